# SPDX-License-Identifier: Apache-2.0
"""What moves the objects of a training image: image, boxes and masks together.

Masks are [N, S, S], means over the cells of their own boxes; docs/geometry.md has the convention.
"""

import tensorflow as tf

from gan_mrcnn.utils import cell_means

# Share of an object's area that a window must leave of it; less is hardly to be recognized.
MIN_VISIBLE = 0.1


def turn(
    image: tf.Tensor, boxes: tf.Tensor, masks: tf.Tensor, turns: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Turns an image and its objects by quarters, counter-clockwise.

    Args:
      image: [h, w, 3].
      boxes: [N, 4] [y1, x1, y2, x2] relative to the image, from 0 to 1.
      masks: [N, S, S].
      turns: scalar int32 from 0 to 3.

    Returns:
      The same three, the image [w, h, 3] after an odd number of turns.
    """
    y1, x1, y2, x2 = tf.unstack(boxes, axis=1)
    turned = tf.stack(
        [
            tf.stack(edges, axis=1)
            for edges in (
                [y1, x1, y2, x2],
                [1 - x2, y1, 1 - x1, y2],
                [1 - y2, 1 - x2, 1 - y1, 1 - x1],
                [x1, 1 - y2, x2, 1 - y1],
            )
        ]
    )
    return (
        tf.image.rot90(image, turns),
        tf.gather(turned, turns),
        tf.image.rot90(masks[..., tf.newaxis], turns)[..., 0],
    )


def cut(
    boxes: tf.Tensor, masks: tf.Tensor, size: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """What a window shows of objects.

    The box of an object that is cut is that of what is left of its mask, as exactly as the mask's
    cells say it; the mask is cut to it by means over the cells of the new box.

    Args:
      boxes: [N, 4] float32 [y1, x1, y2, x2] in pixels from the window's upper left corner.
      masks: [N, S, S] uint8, 255 for a cell that the object covers.
      size: [2] float32, height and width of the window.

    Returns:
      Boxes and masks of all objects, and which are to be kept [N], those of which at least
      `MIN_VISIBLE` is left. An object that lies within the window stays as it is, to the last bit.
    """
    side = masks.shape[-1]
    window = tf.concat([tf.zeros_like(size), size], axis=0)
    is_cut = tf.reduce_any(
        tf.concat([boxes[:, :2] < window[:2], boxes[:, 2:] > window[2:]], axis=1), axis=1
    )
    shares = tf.cast(masks, tf.float32) / 255.0
    visible = _visible_boxes(boxes, shares, size)
    means = cell_means.of_box_masks(shares, boxes, visible, side)
    areas = [
        tf.reduce_mean(share, axis=[1, 2]) * _area(of)
        for share, of in ((shares, boxes), (means, visible))
    ]
    is_kept = tf.logical_not(is_cut) | (tf.math.divide_no_nan(areas[1], areas[0]) >= MIN_VISIBLE)
    means = tf.cast(tf.round(255.0 * means), tf.uint8)
    return (
        tf.where(is_cut[:, tf.newaxis], visible, boxes),
        tf.where(is_cut[:, tf.newaxis, tf.newaxis], means, masks),
        is_kept,
    )


def _visible_boxes(boxes, shares, size):
    """[N, 4], around the parts of the cells with some of the object that lie in the window; zeros
    where there are none."""
    side = shares.shape[-1]
    parts = tf.range(side + 1, dtype=tf.float32) / side
    # [N, S + 1] by axis, where the cells begin and end, as far as the window shows them.
    edges = [
        tf.clip_by_value(
            low[:, tf.newaxis] * (1.0 - parts) + high[:, tf.newaxis] * parts, 0.0, most
        )
        for low, high, most in zip(
            tf.unstack(boxes[:, :2], axis=1), tf.unstack(boxes[:, 2:], axis=1), tf.unstack(size)
        )
    ]
    is_shown = [axis_edges[:, 1:] > axis_edges[:, :-1] for axis_edges in edges]
    is_object = (shares > 0.0) & is_shown[0][:, :, tf.newaxis] & is_shown[1][:, tf.newaxis, :]
    lows, highs = [], []
    for axis, axis_edges in enumerate(edges):
        has_some = tf.reduce_any(is_object, axis=2 - axis)
        lows.append(tf.reduce_min(tf.where(has_some, axis_edges[:, :-1], float('inf')), axis=1))
        highs.append(tf.reduce_max(tf.where(has_some, axis_edges[:, 1:], float('-inf')), axis=1))
    found = tf.stack(lows + highs, axis=1)
    return tf.where(tf.math.is_finite(found), found, 0.0)


def _area(boxes):
    return tf.reduce_prod(boxes[:, 2:] - boxes[:, :2], axis=1)
