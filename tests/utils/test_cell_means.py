"""Means of masks over the cells of a grid, against sums over pixels cut into pieces."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from gan_mrcnn.utils import cell_means


def slow_mean(mask, box, num_cells):
    """Each pixel's overlap with each cell, one by one."""
    y1, x1, y2, x2 = box
    means = np.zeros([num_cells, num_cells])
    height, width = (y2 - y1) / num_cells, (x2 - x1) / num_cells
    for i in range(num_cells):
        for j in range(num_cells):
            top, left = y1 + i * height, x1 + j * width
            for y, x in np.argwhere(mask):
                rows = min(top + height, y + 1) - max(top, y)
                columns = min(left + width, x + 1) - max(left, x)
                means[i, j] += max(rows, 0) * max(columns, 0)
    return means / (height * width)


@settings(max_examples=25, deadline=None)
@given(
    y=st.floats(-6.0, 6.0),
    x=st.floats(-6.0, 6.0),
    height=st.floats(1.0, 30.0),
    width=st.floats(1.0, 30.0),
    seed=st.integers(0, 100),
)
def test_means_of_a_box_mask_are_those_of_the_image(y, x, height, width, seed):
    """Where the cells of the mask's box are the pixels of the image, nothing is lost on the way."""
    pixels = np.random.default_rng(seed).integers(0, 2, [8, 8]).astype(np.uint8)
    image = np.zeros([20, 25], np.uint8)
    image[7:15, 4:12] = pixels
    box = np.array([7 + y, 4 + x, 7 + y + height, 4 + x + width])
    found = cell_means.of_box_masks(
        tf.constant(pixels[np.newaxis], tf.float32),
        tf.constant([[7.0, 4.0, 15.0, 12.0]]),
        tf.constant(box[np.newaxis], tf.float32),
        6,
    )
    np.testing.assert_allclose(found[0], slow_mean(image, box, 6), atol=2e-5)


@pytest.mark.parametrize('boxes', [[[3.0, 3.0, 3.0, 9.0]], [[5.0, 5.0, 2.0, 2.0]]])
def test_a_box_without_area_has_an_empty_target(boxes):
    found = cell_means.of_box_masks(
        tf.ones([1, 4, 4]), tf.constant([[0.0, 0.0, 8.0, 8.0]]), tf.constant(boxes), 3
    )
    assert np.count_nonzero(found) == 0
    found = cell_means.of_box_masks(
        tf.ones([1, 4, 4]), tf.constant(boxes), tf.constant([[0.0, 0.0, 8.0, 8.0]]), 3
    )
    assert np.count_nonzero(found) == 0
