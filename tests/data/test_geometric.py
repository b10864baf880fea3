"""What a window leaves of objects, by hand; tests/test_geometry.py has any outlines and turns."""

import numpy as np
import tensorflow as tf

from gan_mrcnn.data import geometric


def cut(boxes, masks, size=(120, 130)):
    found = geometric.cut(
        tf.constant(boxes, tf.float32), tf.constant(masks, tf.uint8), tf.constant(size, tf.float32)
    )
    return [x.numpy() for x in found]


def test_objects_within_the_window_stay_to_the_last_bit():
    masks = np.random.default_rng(0).integers(0, 256, [2, 112, 112]).astype(np.uint8)
    masks[:, 0] = 0
    boxes = np.array([[0, 0, 120, 130], [3.3, 7.7, 50.1, 60.2]], np.float32)
    found = cut(boxes, masks)
    for one, wanted in zip(found, (boxes, masks, [True, True])):
        np.testing.assert_array_equal(one, wanted)


def test_the_box_is_that_of_what_is_left():
    """An upside-down L of pixels that are cells: its bar lies above the window."""
    mask = np.zeros([112, 112], np.uint8)
    mask[:40] = mask[:, 20:41] = 255
    (box,), (found,), (kept,) = cut([[-56, 5, 56, 117]], [mask])
    np.testing.assert_allclose(box, [0, 25, 56, 46], atol=1e-4)
    assert found.min() == 255 and kept
    # Half of the bar is seen.
    (box,), (found,), (kept,) = cut([[-20, 5, 92, 117]], [mask])
    np.testing.assert_allclose(box, [0, 5, 92, 117], atol=1e-4)
    assert abs(found[:24].min() - 255) <= 1 and not found[26:, :19].any() and kept
    np.testing.assert_allclose(found.mean() / 255, (20 * 112 + 72 * 21) / (92 * 112), atol=1e-3)


def test_what_is_hardly_seen_is_not_kept():
    full = np.full([112, 112], 255, np.uint8)
    corner = np.zeros([112, 112], np.uint8)
    corner[:20, :20] = 255
    boxes = [
        [-89, 0, 11, 100],
        [-91, 0, 9, 100],
        [20, 130, 40, 150],
        [110, 120, 210, 220],
        # Its box is seen, but nothing of it.
        [-50, -50, 100, 100],
    ]
    _, masks, kept = cut(boxes, [full, full, full, full, corner])
    assert kept.tolist() == [True, False, False, False, False]
    assert not masks[2].any() and not masks[4].any()
