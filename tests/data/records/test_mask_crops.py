"""Masks in a record, against sums over pixels cut into pieces."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gan_mrcnn.data.records import mask_crops
from gan_mrcnn.utils import run_lengths

SIDES = st.floats(0.25, 40.0)
PLACES = st.floats(-10.0, 30.0)


def slow_means(mask, box):
    """Each pixel's share of each cell of the box [x, y, width, height], rows times columns."""
    shares = []
    for low, size, length in zip(box[:2], box[2:], mask.shape[::-1]):
        cells = low + size / 112 * np.arange(113)
        pixels = np.arange(length)[:, np.newaxis]
        common = np.minimum(cells[1:], pixels + 1) - np.maximum(cells[:-1], pixels)
        shares.append(np.maximum(common, 0) / (size / 112))
    columns, rows = shares
    return np.einsum('yi,yx,xj->ij', rows, mask, columns)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(x=PLACES, y=PLACES, width=SIDES, height=SIDES, seed=st.integers(0, 100))
# The whole image, one pixel, and beyond each edge.
@example(0.0, 0.0, 12.0, 9.0, 0)
@example(3.0, 4.0, 1.0, 1.0, 0)
@example(-2.0, -3.0, 30.0, 30.0, 0)
def test_crops_are_means_over_the_cells_of_their_boxes(x, y, width, height, seed):
    mask = np.random.default_rng(seed).integers(0, 2, [9, 12]).astype(np.uint8)
    (rle,) = run_lengths.encode_masks([mask])
    found = mask_crops.crop(rle, [x, y, width, height])
    assert found.dtype == np.uint8
    np.testing.assert_allclose(
        found, 255 * slow_means(mask, [x, y, width, height]), atol=0.5 + 1e-6
    )


@pytest.mark.parametrize('box', [[2, 2, 0, 5], [2, 2, 5, 0], [20, 3, 5, 5], [-9, 0, 9, 9]])
def test_a_box_without_area_or_beyond_the_image_has_an_empty_crop(box):
    (rle,) = run_lengths.encode_masks([np.ones([9, 12])])
    assert not mask_crops.crop(rle, box).any()


def test_what_is_encoded_comes_back():
    masks = np.random.default_rng(0).integers(0, 2, [3, 20, 30]).astype(np.uint8)
    rles, boxes = run_lengths.encode_masks(masks), [[1, 2, 20, 15], [0, 0, 30, 20], [5, 5, 3, 3]]
    found = mask_crops.decode(tf.constant(mask_crops.encode(rles, boxes)))
    for crop, rle, box in zip(found, rles, boxes):
        np.testing.assert_array_equal(crop, mask_crops.crop(rle, box))


def test_an_image_without_objects_has_no_crops():
    assert mask_crops.decode(tf.constant(mask_crops.encode([], []))).shape == (0, 112, 112)
