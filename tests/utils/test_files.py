"""A file is there with all of its content, or as it was."""

import json
import pathlib

import numpy as np
import pytest

from gan_mrcnn.utils import files
from gan_mrcnn.utils.errors import UserError


def test_what_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / 'x.json'
    files.write_json(path, {'a': 1})
    with pytest.raises(TypeError):
        files.write_json(path, {'a': object()})
    with pytest.raises(RuntimeError), files.named_when_whole(path) as temporary:
        temporary.write_text('half')
        raise RuntimeError
    assert files.read_json(path, None) == {'a': 1}
    assert [found.name for found in tmp_path.iterdir()] == ['x.json']


@pytest.mark.parametrize('indent', [1, None])
def test_numbers_of_numpy_are_written_as_plain_ones_into_a_new_folder(tmp_path, indent):
    path = tmp_path / 'new' / 'x.json'
    value = {'count': np.int64(3), 'rate': np.float32(0.5), 'yes': np.bool_(True)}
    files.write_json(str(path), {**value, 'row': np.arange(3), 'side': 0.1}, indent)
    text = path.read_text()
    read = {'count': 3, 'rate': 0.5, 'yes': True, 'row': [0, 1, 2], 'side': 0.1}
    assert json.loads(text) == read == files.load_json(path, 'a file')
    assert text.endswith('\n') and (text.count('\n') == 1) == (indent is None)


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / 'nonfinite').mkdir()
    for name in ('x.json.123.tmp', 'nonfinite/y.npz.123.tmp', 'x.json'):
        (tmp_path / name).write_text('{}')
    files.remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.rglob('*') if path.is_file()] == ['x.json']


@pytest.mark.parametrize('content', [b'', b'{"a": ', b'\xff\xfe', None])
def test_what_is_no_json_is_the_default(content, tmp_path):
    path = pathlib.Path(tmp_path / 'x.json')
    if content is not None:
        path.write_bytes(content)
    assert files.read_json(path, []) == []
    with pytest.raises(UserError, match=r'cannot read .*x\.json: .*; give a list') as error:
        files.load_json(path, 'a list')
    assert '\n' not in str(error.value)


def test_numbers_that_are_not_finite_are_null(tmp_path):
    """JSON has none; a reader other than Python's would refuse the file."""
    path = tmp_path / 'x.json'
    nan, infinity = float('nan'), float('inf')
    value = {'AP': nan, 'row': [1.5, -infinity, np.float32(nan)], 'array': np.array([2.0, nan])}
    files.write_json(path, value)

    def refuse(text):
        raise AssertionError(text)

    read = json.loads(path.read_text(), parse_constant=refuse)
    assert read == {'AP': None, 'row': [1.5, None, None], 'array': [2.0, None]}


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-32'])
def test_json_is_read_as_windows_writes_it(encoding, tmp_path):
    path = tmp_path / 'x.json'
    path.write_bytes('["腺"]'.encode(encoding))
    assert files.load_json(path, 'a list') == ['腺']


def test_a_name_may_be_as_long_as_names_can_be(tmp_path):
    path = tmp_path / ('n' * 250 + '.json')
    files.write_json(path, [1])
    assert files.read_json(path, None) == [1]
