"""Objects in their windows against masks of the image's size."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from pycocotools import mask as mask_api

from gan_mrcnn.metrics import predictions
from gan_mrcnn.prediction import objects, predictor


def whole(one, height, width):
    """The object's mask at the image's size."""
    mask = np.zeros((height, width), bool)
    y1, x1, y2, x2 = one.window()
    mask[y1:y2, x1:x2] = one.mask
    return mask


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.data(), st.integers(1, 9), st.integers(1, 9))
def test_run_lengths_are_those_of_the_whole_mask(data, height, width):
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    shape = (
        data.draw(st.integers(1, height - top)),
        data.draw(st.integers(1, width - left)),
    )
    mask = data.draw(st_numpy.arrays(bool, shape).filter(lambda m: m.any()))
    one = objects.Object(1, 0.5, (0, 0, 1, 1), top, left, mask)
    full = whole(one, height, width)
    wanted = mask_api.encode(np.asfortranarray(full, np.uint8))
    found = objects.encode(one, height, width)
    assert found == {'size': [height, width], 'counts': wanted['counts'].decode()}
    assert one.area == full.sum()


def test_a_window_of_an_object_is_cut_out_anywhere():
    mask = np.arange(12).reshape(3, 4) % 3 > 0
    one = objects.Object(1, 0.5, (0, 0, 1, 1), 2, 5, mask)
    full = whole(one, 10, 10)
    for window in ((0, 0, 10, 10), (3, 6, 9, 8), (0, 0, 2, 5), (4, 0, 5, 10)):
        y1, x1, y2, x2 = window
        np.testing.assert_array_equal(one.cut(window), full[y1:y2, x1:x2])


def test_objects_are_the_evaluations_masks_and_boxes():
    rng = np.random.default_rng(0)
    boxes = np.array([[3, 4, 20, 30.5], [-1, 10, 12, 45], [5, 5, 5, 5], [1, 1, 9, 9]], np.float32)
    detections = predictor.Detections(
        boxes,
        np.array([0.9, 0.8, 0.7, 0.2], np.float32),
        np.array([1, 2, 1, 1], np.int32),
        rng.random((4, 28, 28)).astype(np.float32),
    )
    as_sent = [[30, 40], [30, 40], [1, 1], [0, 0]]
    wanted = predictions.detections_to_coco(1, *detections, as_sent)[:2]
    found = objects.from_detections(detections, (0, 0, 30, 40), 0.5)
    assert [one.class_id for one in found] == [1, 2]
    for one, other in zip(found, wanted):
        assert objects.encode(one, 30, 40) == other['segmentation']
        x, y, width, height = other['bbox']
        np.testing.assert_allclose(one.box, [y, x, y + height, x + width], rtol=1e-6)
    # The same in a tile that begins at (100, 200).
    moved = objects.from_detections(detections, (100, 200, 130, 240), 0.5)
    for one, other in zip(moved, found):
        np.testing.assert_allclose(one.box, np.add(other.box, [100, 200, 100, 200]))
        assert one.window() == tuple(np.add(other.window(), [100, 200, 100, 200]))
