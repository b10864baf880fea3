"""Masks as run lengths, and how a data set goes over its pictures."""

import time

import numpy as np
import pytest
from absl import logging
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as mask_api

from gan_mrcnn.utils import run_lengths
from gan_mrcnn.utils.errors import UserError
from tests.data.blocks import Blocks, make_example, make_masks

SIZES = st.tuples(st.integers(1, 7), st.integers(1, 9))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(hnp.arrays(np.int32, SIZES, elements=st.integers(0, 3)))
def test_run_lengths_of_labels_are_those_of_each_mask(labels):
    numbers = [3, 1, 2]
    wanted = [mask_api.encode(np.asfortranarray(labels == n, np.uint8)) for n in numbers]
    assert run_lengths.encode_labels(labels, numbers) == wanted


def test_a_label_image_of_65535_objects_takes_no_minute():
    labels = np.arange(1 << 18, dtype=np.int32).reshape(512, 512) % (1 << 16)
    start = time.process_time()
    rles = run_lengths.encode_labels(labels, range(1, 1 << 16))
    assert time.process_time() - start < 30 and len(rles) == 65535
    assert {int(mask_api.area(rle)) for rle in rles} == {4}


@settings(deadline=None, derandomize=True, max_examples=60)
@given(hnp.arrays(np.uint16, SIZES, elements=st.sampled_from([0, 3, 400])))
def test_numbers_of_a_label_image_are_found_without_sorting_it(labels):
    np.testing.assert_array_equal(run_lengths.numbers_in(labels), np.unique(labels))


def test_run_lengths_of_a_large_mask_are_pycocotools():
    mask = np.asfortranarray(np.random.default_rng(0).random((300, 400)) < 0.4, np.uint8)
    mask[50:200, 100:300] = 1
    counts = run_lengths.decode_counts(mask_api.encode(mask)['counts'].decode())
    again = mask_api.frPyObjects({'size': [300, 400], 'counts': counts}, 300, 400)
    np.testing.assert_array_equal(mask_api.decode(again), mask)


def test_masks_come_back():
    example = make_example(1)
    np.testing.assert_array_equal(example.decode_masks(), make_masks(1))
    example.rles = []
    assert example.decode_masks().shape == (0, 21, 31)


def test_a_bad_picture_is_named_or_left_out(monkeypatch):
    with pytest.raises(UserError, match='^2.png cannot be read; --skip_bad'):
        list(Blocks(4, bad=(2,)).examples('train'))
    warnings = []
    monkeypatch.setattr(logging, 'warning', lambda text, *args: warnings.append(text % args))
    found = list(Blocks(4, bad=(2,)).examples('train', skip_bad=True))
    assert [example.image_id for example in found] == [100, 101, 103]
    assert warnings == ['left out: 2.png cannot be read']


def test_classes_are_numbered_from_one_where_the_data_set_has_no_numbers():
    assert Blocks().category_ids == (1, 2)
    assert Blocks(7).num_examples('train') == 7


def test_an_endless_run_length_is_damaged():
    """A number of a million digits is one in COCO's string, and each digit moves all others."""
    assert run_lengths.decode_counts('o' * 1_000_000 + '0') is None
