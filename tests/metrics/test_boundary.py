"""Boundary IoU against distances measured pixel by pixel, and on shapes known on paper."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_api

from gan_mrcnn.metrics import boundary, coco, matching
from tests.metrics import shapes


def slow_band(mask, pixels):
    """Object pixels whose nearest pixel outside the object, or the image, is within `pixels`."""
    outside = np.argwhere(np.pad(mask, 1) == 0) - 1
    band = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        band[y, x] = np.abs(outside - (y, x)).max(1).min() <= pixels
    return band


@settings(deadline=None, derandomize=True, max_examples=30)
@given(seed=st.integers(0, 10**6), pixels=st.integers(1, 4))
def test_the_band_is_what_is_near_the_outside(seed, pixels):
    mask = (np.random.default_rng(seed).random((11, 14)) < 0.9).astype(np.uint8)
    np.testing.assert_array_equal(boundary.boundary_band(mask, pixels), slow_band(mask, pixels))


@pytest.mark.parametrize(
    'mask',
    [
        shapes.rectangle(10, 12, 40, 50),
        shapes.rectangle(0, 0, 64, 80),
        shapes.rectangle(5, 60, 30, 80),
        shapes.rectangle(7, 8, 8, 9),
        np.zeros((64, 80), np.uint8),
    ],
)
def test_run_lengths_have_the_band_of_the_whole_image(mask):
    # A band of 3%: 0.03 * hypot(64, 80) = 3.07.
    found = mask_api.decode(boundary.encode_band(shapes.rle(mask), 0.03))
    np.testing.assert_array_equal(found, slow_band(mask, 3))


@pytest.mark.parametrize('size, pixels', [((480, 640), 16), ((522, 775), 19), ((10, 10), 1)])
def test_two_percent_of_the_diagonal(size, pixels):
    # 0.02 * 800 = 16; 0.02 * 934.4 = 18.7; 0.02 * 14.1 = 0.28, but at least one.
    assert boundary.band_width(*size) == pixels


def boundary_iou(first, second):
    """The definition, from whole arrays."""
    pixels = boundary.band_width(*first.shape)
    a, b = slow_band(first, pixels) > 0, slow_band(second, pixels) > 0
    bands = np.sum(a & b) / np.sum(a | b)
    return min(bands, np.sum(first & second) / np.sum(first | second))


def match_one(ground_truth, found):
    """Matches of one object and one prediction."""
    return matching.match(
        shapes.ground_truth([[(ground_truth, 1)]]), [shapes.result(1, found, 0.9)]
    )


def passed(overlap):
    """Share of the ten thresholds that an overlap passes: AP of a single prediction."""
    return np.mean(overlap >= np.array([50, 55, 60, 65, 70, 75, 80, 85, 90, 95]) / 100)


@pytest.mark.parametrize('k', [0, 1, 2, 3, 5])
def test_a_mask_shifted_by_k_pixels(k):
    # On 64 x 80 the band is two pixels (0.02 * 102.4 = 2.05). A 30 x 40 object has a band of
    # 30 * 40 - 26 * 36 = 264 pixels. Shifted by k along its longer side, the common band is two
    # strips of 2 * (40 - k), and max(0, 2 - k) columns of 26 pixels on either side.
    ground_truth, found = shapes.rectangle(10, 10, 40, 50), shapes.rectangle(10, 10 + k, 40, 50 + k)
    if k <= 2:
        common = 2 * 2 * (40 - k) + 2 * max(0, 2 - k) * 26
        assert boundary_iou(ground_truth, found) == pytest.approx(common / (2 * 264 - common))
    matches = match_one(ground_truth, found)
    figures, _ = coco.figures(matches['boundary'])
    assert figures['AP'] == pytest.approx(passed(boundary_iou(ground_truth, found)))
    mask_figures, _ = coco.figures(matches['mask'])
    assert mask_figures['AP'] == pytest.approx(passed((40 - k) / (40 + k)))


def test_a_ragged_edge_costs_more_than_its_area():
    ground_truth = shapes.rectangle(10, 10, 50, 70)
    found = ground_truth.copy()
    found[10:12, 10:70:2] = 0
    found[48:50, 10:70:2] = 0
    found[10:50:2, 10:12] = 0
    matches = match_one(ground_truth, found)
    expected = boundary_iou(ground_truth, found)
    assert expected < 0.75 < 0.9 < np.sum(found) / np.sum(ground_truth)
    assert coco.figures(matches['boundary'])[0]['AP'] == pytest.approx(passed(expected))
    share = np.sum(found) / np.sum(ground_truth)
    assert coco.figures(matches['mask'])[0]['AP'] == pytest.approx(passed(share))


def test_an_inner_hole_has_a_boundary_too():
    ground_truth = shapes.rectangle(10, 10, 50, 70)
    found = ground_truth.copy()
    found[28:32, 38:42] = 0
    matches = match_one(ground_truth, found)
    expected = boundary_iou(ground_truth, found)
    assert coco.figures(matches['boundary'])[0]['AP'] == pytest.approx(passed(expected))
