"""What a window or a copy leaves of objects, by hand; tests/test_geometry.py has any outlines."""

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


def paste(boxes, masks, other_boxes, other_masks, size=(120, 130)):
    image, other = np.zeros([*size, 3], np.float32), np.ones([*size, 3], np.float32)
    found = geometric.paste(
        tf.constant(image),
        tf.reshape(tf.constant(boxes, tf.float32), [-1, 4]),
        tf.reshape(tf.constant(masks, tf.uint8), [-1, 112, 112]),
        tf.constant(other),
        tf.reshape(tf.constant(other_boxes, tf.float32), [-1, 4]),
        tf.reshape(tf.constant(other_masks, tf.uint8), [-1, 112, 112]),
        tf.constant(size, tf.float32),
    )
    return [x.numpy() for x in found]


FULL = np.full([112, 112], 255, np.uint8)


def test_a_copy_takes_pixels_and_what_it_hides():
    boxes = [[10, 10, 50, 66], [60, 10, 100, 66], [100, 100, 110, 110]]
    image, found, masks, kept = paste(boxes, [FULL] * 3, [[0, 38, 55.5, 130]], [FULL])
    np.testing.assert_allclose(image[:55, 38:], 1, atol=1e-4)
    assert not image[:, :38].any() and not image[56:].any()
    # The row that it covers by half is mixed.
    np.testing.assert_allclose(image[55, 38:], 0.5, atol=1e-4)
    # The right half of the first box is hidden; the others are not touched.
    np.testing.assert_allclose(found, [[10, 10, 50, 38], *boxes[1:]], atol=1e-4)
    assert masks.min() == 255 and kept.all()


def test_a_hole_is_no_part_of_the_object_any_more():
    box = [4, 4, 116, 116]
    _, (found,), (mask,), (kept,) = paste([box], [FULL], [[32, 32, 88, 88]], [FULL])
    wanted = FULL.copy()
    wanted[28:84, 28:84] = 0
    np.testing.assert_array_equal(found, np.array(box, np.float32))
    np.testing.assert_allclose(mask, wanted, atol=1)
    assert kept


def test_an_object_that_is_hidden_is_not_kept():
    box = [20, 20, 60, 60]
    for end, is_kept in ((60, False), (57, False), (55, True)):
        *_, kept = paste([box], [FULL], [[10, 10, 70, end]], [FULL])
        assert kept == [is_kept]


def test_nothing_to_copy_and_nothing_to_hide():
    box, none = [[20, 20, 60, 60]], np.zeros([0, 4])
    image, boxes, masks, kept = paste(box, [FULL], none, np.zeros([0, 112, 112]))
    assert not image.any() and masks.min() == 255 and kept.all()
    np.testing.assert_array_equal(boxes, box)
    image, boxes, *_ = paste(none, np.zeros([0, 112, 112]), box, [FULL])
    wanted = np.zeros(image.shape)
    wanted[20:60, 20:60] = 1
    np.testing.assert_allclose(image, wanted, atol=1e-4)
    assert not len(boxes)
