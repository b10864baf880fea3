"""How a data set goes over its images."""

import numpy as np
import pytest
from absl import logging

from gan_mrcnn.utils.errors import UserError
from tests.data.blocks import Blocks, make_example, make_masks


def test_masks_come_back():
    example = make_example(1)
    np.testing.assert_array_equal(example.decode_masks(), make_masks(1))
    example.rles = []
    assert example.decode_masks().shape == (0, 21, 31)


def test_a_bad_image_is_named_or_skipped(monkeypatch):
    with pytest.raises(UserError, match='^2.png cannot be read; --skip_bad'):
        list(Blocks(4, bad=(2,)).examples('train'))
    warnings = []
    monkeypatch.setattr(logging, 'warning', lambda text, *args: warnings.append(text % args))
    found = list(Blocks(4, bad=(2,)).examples('train', skip_bad=True))
    assert [example.image_id for example in found] == [100, 101, 103]
    assert warnings == ['skipped: 2.png cannot be read']


def test_classes_are_numbered_from_one_where_the_data_set_has_no_numbers():
    assert Blocks().category_ids == (1, 2)
    assert Blocks(7).num_examples('train') == 7
