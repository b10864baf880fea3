"""What was detected in a row comes back from its file to the bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from gan_mrcnn.prediction import row_files
from gan_mrcnn.prediction.objects import Object
from gan_mrcnn.utils.errors import UserError

places = st.integers(0, 1 << 40)
tiles = st.tuples(places, places, places, places)
numbers = st.floats(allow_nan=False, allow_infinity=False)
found = st.builds(
    Object,
    st.integers(1, 90),
    numbers,
    st.tuples(numbers, numbers, numbers, numbers),
    places,
    places,
    st_numpy.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))),
)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(parts=st.lists(st.tuples(tiles, found), max_size=5))
def test_objects_come_back_as_they_were(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp('rows') / 'row.npz'
    row_files.write(path, parts)
    read = row_files.read(path)
    assert [tile for tile, _ in read] == [tile for tile, _ in parts]
    for (_, one), (_, other) in zip(read, parts):
        assert one[:5] == other[:5] and one.mask.dtype == bool
        np.testing.assert_array_equal(one.mask, other.mask)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / 'row.npz'
    row_files.write(
        path, [((0, 0, 9, 9), Object(1, 0.5, (0, 0, 3, 3), 0, 0, np.ones((3, 3), bool)))]
    )
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 255
    for text in (b'', content[:-40], b'something else', bytes(damaged)):
        path.write_bytes(text)
        with pytest.raises(UserError, match=r'row\.npz is damaged; remove it'):
            row_files.read(path)
