"""Pasting and COCO results against a per-pixel loop written without the package's shortcuts."""

import json
import math
import os

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from gan_mrcnn.metrics import predictions
from gan_mrcnn.utils.errors import UserError
from tests.metrics import shapes


def _slow_paste(mask, box, height, width, threshold=0.5):
    """Bilinear interpolation by hand: four corners of the cell, zero outside, pixel by pixel."""
    y1, x1, y2, x2 = box
    rows, columns = mask.shape

    def cell(row, column):
        inside = 0 <= row < rows and 0 <= column < columns
        return float(mask[row, column]) if inside else 0.0

    pasted = np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            v = (y + 0.5 - y1) * rows / (y2 - y1) - 0.5
            u = (x + 0.5 - x1) * columns / (x2 - x1) - 0.5
            top, left = math.floor(v), math.floor(u)
            b, r = v - top, u - left
            value = (
                (1 - b) * (1 - r) * cell(top, left)
                + (1 - b) * r * cell(top, left + 1)
                + b * (1 - r) * cell(top + 1, left)
                + b * r * cell(top + 1, left + 1)
            )
            pasted[y, x] = value >= threshold
    return pasted


@pytest.mark.parametrize(
    'box',
    [
        (3.3, 5.7, 31.2, 40.9),  # fractional edges, magnified
        (-8.4, -3.1, 20.6, 25.5),  # over the top left corner
        (20.1, 30.2, 61.7, 77.3),  # over the bottom right corner
        (10.2, 10.3, 19.9, 15.1),  # smaller than the mask: several cells per pixel
        (-30.0, -30.0, 90.0, 90.0),  # around the whole image
        (12.1, 12.2, 12.9, 12.8),  # inside one pixel
    ],
)
def test_pasting_equals_a_loop_over_pixels(box):
    mask = np.random.default_rng(0).random((28, 28)).astype(np.float32)
    np.testing.assert_array_equal(
        predictions.paste_mask(mask, box, 40, 50), _slow_paste(mask, box, 40, 50)
    )


def test_smooth_mask_pastes_as_the_loop_does_on_a_non_square_grid():
    y, x = np.mgrid[:14, :28]
    mask = np.exp(-(((y - 5) / 4.0) ** 2) - ((x - 18) / 6.0) ** 2)
    box = (4.25, 2.75, 33.5, 47.25)
    pasted = predictions.paste_mask(mask, box, 40, 50, threshold=0.6)
    np.testing.assert_array_equal(pasted, _slow_paste(mask, box, 40, 50, 0.6))
    assert 0 < pasted.sum() < pasted.size


@pytest.mark.parametrize(
    'box', [(2.3, 4.6, 20.2, 24.4), (2.0, 4.0, 20.0, 24.0), (-6.3, 40.4, 12.2, 61.7)]
)
def test_full_mask_fills_exactly_the_pixels_whose_centres_are_inside(box):
    # At most 28 pixels to a side: no centre lies in the half cell where a corner is rounded.
    y1, x1, y2, x2 = box
    y, x = np.mgrid[:40, :50] + 0.5
    expected = (y > y1) & (y < y2) & (x > x1) & (x < x2)
    np.testing.assert_array_equal(predictions.paste_mask(np.ones((28, 28)), box, 40, 50), expected)


def test_full_mask_in_a_large_box_is_rounded_at_the_corners_by_the_zero_outside():
    # Within half a cell of an edge the weight is 1/2 + distance / cell; a corner multiplies two.
    y1, x1, y2, x2 = box = (10.1, 20.2, 290.7, 440.4)
    y, x = np.arange(300) + 0.5, np.arange(450) + 0.5

    def weight(t, low, high, size):
        return np.clip(0.5 + np.minimum(t - low, high - t) / size, 0, 1)

    expected = np.outer(weight(y, y1, y2, (y2 - y1) / 28), weight(x, x1, x2, (x2 - x1) / 28)) >= 0.5
    pasted = predictions.paste_mask(np.ones((28, 28)), box, 300, 450)
    np.testing.assert_array_equal(pasted, expected)
    assert pasted[150, 20] == pasted[150, 439] == pasted[10, 200] == 1
    assert pasted[10, 20] == 0


@hypothesis.given(
    low=st.floats(-100, 100, width=32),
    extent=st.floats(0.125, 300, width=32),
    num_cells=st.integers(1, 28),
)
def test_weights_are_the_same_in_numpy_and_in_a_graph_and_interpolate(low, extent, num_cells):
    high = low + extent
    centres = np.arange(-5, 60) + 0.5
    weights = predictions.tent_weights(centres, low, high, num_cells)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        axis = [tf.constant(value, tf.float64) for value in (centres, low, high)]
        in_graph = session.run(predictions.tent_weights(*axis, num_cells))
    assert weights.dtype == in_graph.dtype == np.float64
    np.testing.assert_array_equal(in_graph, weights)
    # Weights for a mask are what interpolating between its cells, with a zero at each end, gives.
    values = np.sin(np.arange(num_cells))
    cell_centres = low + (np.arange(-1, num_cells + 1) + 0.5) * extent / num_cells
    expected = np.interp(centres, cell_centres, [0, *values, 0])
    np.testing.assert_allclose(weights @ values, expected, atol=1e-9)


@pytest.mark.parametrize(
    'box', [(5, 5, 5, 9), (9, 5, 5, 9), (-9, 5, -1, 9), (5, 50, 9, 60), (0, 0, 0, 0)]
)
def test_empty_and_outside_boxes_give_an_empty_mask(box):
    pasted = predictions.paste_mask(np.ones((28, 28)), box, 40, 50)
    assert pasted.shape == (40, 50) and pasted.dtype == np.uint8 and not pasted.any()


def test_a_window_has_the_pixels_that_the_box_touches_by_columns_in_memory():
    mask = np.random.default_rng(1).random((28, 28))
    # Of a window of this size several blocks are pasted.
    box = (-7.5, 20.2, 410.6, 633.3)
    top, left, window = predictions.paste_window(mask, box, 400, 700)
    assert (top, left, window.shape) == (0, 20, (400, 614))
    assert window.dtype == bool and window.flags.f_contiguous
    assert 28 * window.size > 10 * predictions._MULTIPLICATIONS
    np.testing.assert_array_equal(window, _slow_paste(mask, box, 400, 700)[:, 20:634].astype(bool))


def test_a_box_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match='not finite'):
        predictions.paste_mask(np.ones((28, 28)), (0, 0, float('nan'), 5), 40, 50)


# A 40x50 image, shown to the network at 1.6 and 1.5 times its size (y, x), padded to 128x128.
_INFO = np.array([[40, 50], [64, 75], [1.6, 1.5], [0, 0]], np.float32)


def test_an_image_whose_boxes_are_not_finite_is_named():
    boxes = np.array([[16, 15, 48, 45], [0, 0, np.nan, 5]], np.float32)
    arguments = (np.array([1, 3]), np.ones((2, 28, 28)), _INFO)
    with pytest.raises(UserError, match='image 7: .* not finite; .* earlier'):
        predictions.detections_to_coco(7, boxes, np.array([0.9, 0.4]), *arguments)
    # Padding behind the detections may hold anything.
    assert len(predictions.detections_to_coco(7, boxes, np.array([0.9, 0.0]), *arguments)) == 1


def test_detections_come_back_in_the_images_own_pixels():
    boxes = np.array([[16, 15, 48, 45], [-8, 60, 32, 90]], np.float32)
    results = predictions.detections_to_coco(
        7, boxes, np.array([0.9, 0.4], np.float32), np.array([1, 3]), np.ones((2, 28, 28)), _INFO
    )
    assert [one['image_id'] for one in results] == [7, 7]
    assert [one['category_id'] for one in results] == [1, 3]
    np.testing.assert_allclose(results[0]['bbox'], [10, 10, 20, 20], rtol=1e-6)
    np.testing.assert_allclose(results[1]['bbox'], [40, 0, 10, 20], rtol=1e-6)
    np.testing.assert_allclose([one['score'] for one in results], [0.9, 0.4], rtol=1e-6)
    mask = mask_utils.decode(results[0]['segmentation'])
    expected = np.zeros((40, 50), np.uint8)
    expected[10:30, 10:30] = 1
    np.testing.assert_array_equal(mask, expected)


def test_masks_are_pasted_into_the_box_before_clipping():
    # The object fills the left half of a box of which the right half is outside the image.
    mask = np.zeros((28, 28))
    mask[:, :14] = 1
    (result,) = predictions.detections_to_coco(1, [[16, 60, 48, 90]], [0.9], [1], mask[None], _INFO)
    decoded = mask_utils.decode(result['segmentation'])
    assert decoded[20, 40:50].all() and decoded.sum() == 20 * 10


def test_the_offset_of_a_crop_is_undone():
    info = _INFO.copy()
    info[3] = [8, 15]
    (result,) = predictions.detections_to_coco(
        1, [[8, 0, 40, 30]], [0.9], [1], np.ones((1, 28, 28)), info
    )
    np.testing.assert_allclose(result['bbox'], [10, 10, 20, 20], rtol=1e-6)


def test_padding_and_boxes_outside_are_dropped():
    boxes = [[16, 15, 48, 45], [0, 0, 0, 0], [16, 15, 48, 45], [70, 80, 90, 99]]
    results = predictions.detections_to_coco(
        1, boxes, [0.9, 0, -1, 0.8], [1, 0, 0, 1], np.ones((4, 28, 28)), _INFO
    )
    assert len(results) == 1
    assert (
        predictions.detections_to_coco(1, np.zeros((0, 4)), [], [], np.zeros((0, 28, 28)), _INFO)
        == []
    )


GROUND_TRUTH = shapes.ground_truth([[(shapes.rectangle(5, 5, 20, 30), 1)], []], num_classes=2)
# The data set's own ids of classes 1 and 2.
OWN_IDS = (7, 24)


def entries():
    masks = (shapes.rectangle(5, 6, 20, 30), shapes.rectangle(0, 0, 64, 80))
    return [shapes.result(1, masks[0], 0.9, 7), shapes.result(2, masks[1], 0.25, 24)]


def write(folder, content):
    path = folder / 'p.json'
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_predictions_survive_the_file(tmp_path):
    path = str(tmp_path / 'new' / 'predictions.json')
    manifest = {'dataset': 'gland', 'split': 'test', 'categories': [{'id': 7, 'name': 'a'}]}
    predictions.save_predictions(path, entries(), manifest)
    read = predictions.load_predictions(path, GROUND_TRUTH, OWN_IDS)
    # Category ids have become places in the list of classes; nothing else has changed.
    assert [one['category_id'] for one in read] == [1, 2]
    assert [{**one, 'category_id': 0} for one in read] == [
        {**one, 'category_id': 0} for one in entries()
    ]
    assert predictions.load_manifest(path) == manifest
    assert sorted(os.listdir(tmp_path / 'new')) == [
        'predictions.json',
        'predictions.manifest.json',
    ]


def test_a_file_without_a_manifest(tmp_path):
    path = write(tmp_path, entries())
    assert predictions.load_manifest(path) == {}
    predictions.check_manifest(path, {}, {'dataset': 'x', 'split': 'val', 'categories': []})


@pytest.mark.parametrize('key, other', [('dataset', 'phone'), ('split', 'val'), ('categories', [])])
def test_predictions_of_something_else_are_refused(key, other):
    manifest = {'dataset': 'gland', 'split': 'test', 'categories': [{'id': 1, 'name': 'gland'}]}
    predictions.check_manifest('p.json', {**manifest, 'step': 3}, manifest)
    with pytest.raises(UserError, match=f'p.manifest.json.*{key}'):
        predictions.check_manifest('p.json', {**manifest, key: other}, manifest)


def test_a_damaged_manifest_is_named(tmp_path):
    path = write(tmp_path, entries())
    (tmp_path / 'p.manifest.json').write_text('{')
    with pytest.raises(UserError, match='p.manifest.json'):
        predictions.load_manifest(path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = str(tmp_path / 'predictions.json')
    predictions.save_predictions(path, [], {})
    with pytest.raises(TypeError, match='set'):
        predictions.save_predictions(path, [{'image_id': {1}}], {})
    assert predictions.load_predictions(path, GROUND_TRUTH, OWN_IDS) == []
    assert sorted(os.listdir(tmp_path)) == ['predictions.json', 'predictions.manifest.json']


@pytest.mark.parametrize('content, message', [('{', 'cannot read'), ('{}', 'does not hold a list')])
def test_a_file_that_is_not_predictions_is_named(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=message) as error:
        predictions.load_predictions(path, GROUND_TRUTH, OWN_IDS)
    assert path in str(error.value)
    assert '\n' not in str(error.value)


_OTHER_SIZE = {'segmentation': shapes.rle(np.ones((80, 64), np.uint8))}
_SHORT = {'segmentation': {'size': [64, 80], 'counts': shapes.rle(np.ones((64, 79)))['counts']}}
_GARBAGE = {'segmentation': {'size': [64, 80], 'counts': '\u00e4!'}}
BAD = {
    'unknown image': ({'image_id': 9}, 'image_id 9'),
    'image id a word': ({'image_id': 'one'}, "image_id 'one'"),
    'unknown class': ({'category_id': 1}, r'category_id 1; the data set has \[7, 24\]'),
    'another size': (_OTHER_SIZE, r'\[80, 64\].*\[64, 80\]'),
    'too few pixels': (_SHORT, '5056 pixels for an image of 5120'),
    'garbage': (_GARBAGE, 'damaged'),
    'no run lengths': ({'segmentation': [[1, 1, 5, 1, 5, 5]]}, 'run lengths'),
    'NaN score': ({'score': float('nan')}, 'score nan'),
    'score as text': ({'score': '0.9'}, "score '0.9'"),
    'box with infinity': ({'bbox': [0, 0, float('inf'), 3]}, 'box'),
    'box of three': ({'bbox': [0, 0, 3]}, 'box'),
    'negative box': ({'bbox': [0, 0, -3, 3]}, 'negative'),
}


@pytest.mark.parametrize('name', BAD)
def test_a_bad_entry_is_named(tmp_path, name):
    change, message = BAD[name]
    good, bad = entries()
    path = write(tmp_path, [good, {**bad, **change}])
    with pytest.raises(UserError, match=message) as error:
        predictions.load_predictions(path, GROUND_TRUTH, OWN_IDS)
    assert str(error.value).startswith(f'{path}: entry 1 ')


@pytest.mark.parametrize('key', ['image_id', 'category_id', 'bbox', 'score', 'segmentation'])
def test_a_missing_key_is_named(tmp_path, key):
    bad = entries()
    del bad[1][key]
    with pytest.raises(UserError, match=f'entry 1 has no {key}'):
        predictions.load_predictions(write(tmp_path, bad), GROUND_TRUTH, OWN_IDS)


def test_an_entry_that_is_no_object_is_named(tmp_path):
    with pytest.raises(UserError, match='entry 0 has no image_id'):
        predictions.load_predictions(write(tmp_path, [3]), GROUND_TRUTH, OWN_IDS)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match='nowhere.json'):
        predictions.load_predictions(str(tmp_path / 'nowhere.json'), GROUND_TRUTH, OWN_IDS)


@pytest.mark.parametrize('spell', [float, str])
def test_a_file_with_a_byte_order_mark_and_odd_whole_numbers_is_read(tmp_path, spell):
    odd = [
        {**one, **{key: spell(one[key]) for key in ('image_id', 'category_id')}}
        for one in entries()
    ]
    path = tmp_path / 'p.json'
    path.write_bytes('\ufeff'.encode() + json.dumps(odd).encode())
    assert predictions.load_predictions(str(path), GROUND_TRUTH, OWN_IDS) == [
        {**one, 'category_id': place} for place, one in enumerate(entries(), start=1)
    ]
