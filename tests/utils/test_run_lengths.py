"""Masks as COCO's run lengths, beside pycocotools on whole masks."""

import json
import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as mask_api

from gan_mrcnn.utils import run_lengths

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


@settings(deadline=None, derandomize=True, max_examples=60)
@given(hnp.arrays(bool, SIZES))
def test_the_runs_of_a_mask_are_the_mask(mask):
    padded = np.pad(mask.T.ravel(), 1).astype(int)
    starts, ends = np.flatnonzero(np.diff(padded) > 0), np.flatnonzero(np.diff(padded) < 0)
    found = run_lengths.encode_runs(starts, ends, *mask.shape)
    assert found == mask_api.encode(np.asfortranarray(mask, np.uint8))


@settings(deadline=None, derandomize=True, max_examples=100)
@given(hnp.arrays(bool, SIZES), st.tuples(*[st.integers(0, 3)] * 4))
def test_run_lengths_of_a_window_are_those_of_the_mask_around_it(window, margins):
    top, bottom, left, right = margins
    mask = np.pad(window, ((top, bottom), (left, right)))
    found = run_lengths.encode_window(window, top, left, *mask.shape)
    assert found == run_lengths.encode_mask(mask)


def test_a_window_without_pixels_has_no_run():
    found = run_lengths.encode_window(np.zeros((0, 0), bool), 0, 0, 4, 6)
    assert found == run_lengths.encode_mask(np.zeros((4, 6)))


def test_run_lengths_go_through_json():
    mask = np.eye(5, 7, dtype=bool)
    content = json.dumps({'segmentation': run_lengths.encode_mask(mask)})
    np.testing.assert_array_equal(mask_api.decode(json.loads(content)['segmentation']), mask)
    assert run_lengths.encode_mask(mask)['size'] == [5, 7]


def test_run_lengths_of_a_large_mask_are_pycocotools():
    mask = np.asfortranarray(np.random.default_rng(0).random((300, 400)) < 0.4, np.uint8)
    mask[50:200, 100:300] = 1
    counts = run_lengths.decode_counts(mask_api.encode(mask)['counts'].decode())
    again = mask_api.frPyObjects({'size': [300, 400], 'counts': counts}, 300, 400)
    np.testing.assert_array_equal(mask_api.decode(again), mask)


def test_an_endless_run_length_is_damaged():
    """A number of a million digits is one in COCO's string, and each digit moves all others."""
    assert run_lengths.decode_counts('o' * 1_000_000 + '0') is None
