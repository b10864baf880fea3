# SPDX-License-Identifier: Apache-2.0
"""What moves the objects of a training image: image, boxes and masks together.

Masks are [N, S, S], means over the cells of their own boxes; docs/geometry.md has the convention.
"""

import tensorflow as tf

from gan_mrcnn.utils import cell_means

# Share of an object's area that must be left of it; less is hardly to be recognized.
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
    window = tf.concat([tf.zeros_like(size), size], axis=0)
    is_cut = tf.reduce_any(
        tf.concat([boxes[:, :2] < window[:2], boxes[:, 2:] > window[2:]], axis=1), axis=1
    )
    shares = tf.cast(masks, tf.float32) / 255.0
    return _keep_visible(boxes, masks, shares, shares > 0.0, size, is_cut)


def paste(
    image: tf.Tensor,
    boxes: tf.Tensor,
    masks: tf.Tensor,
    other_image: tf.Tensor,
    other_boxes: tf.Tensor,
    other_masks: tf.Tensor,
    size: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Copies objects of another image into this one, at the places that they have there.

    Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation
    (CVPR 2021). A pixel that a copied object covers in part is mixed by that share. What a copy
    hides of an object is taken off its mask, and its box is that of what is left.

    Args:
      image: [H, W, 3] float32, of static shape.
      boxes: [N, 4] float32 [y1, x1, y2, x2] in pixels, within `size`.
      masks: [N, S, S] uint8, 255 for a cell that the object covers.
      other_image: [H, W, 3].
      other_boxes: [P, 4], of the objects that are copied, within `size`.
      other_masks: [P, S, S].
      size: [2] float32, height and width of what is not padding.

    Returns:
      The image, the N objects' boxes and masks as they are now, and which of them are to be kept
      [N], those of which at least `MIN_VISIBLE` is left. An object that no copy hides stays as it
      is, to the last bit.
    """
    shares = tf.cast(masks, tf.float32) / 255.0
    hidden = _cover(other_boxes, tf.cast(other_masks, tf.float32) / 255.0, image.shape[:2])
    left = shares * (1.0 - _means(hidden, boxes, masks.shape[-1]))
    is_hidden = tf.reduce_any(left < shares, axis=[1, 2])
    image += hidden[..., tf.newaxis] * (other_image - image)
    # A cell along the copy's outline, hardly any of which is left, would widen the box.
    is_left = (left > 0.0) & (left >= 0.5 * shares)
    return (image, *_keep_visible(boxes, masks, left, is_left, size, is_hidden))


def _cover(boxes, shares, shape):
    """[H, W], the share of each pixel that objects cover; of several the one that covers most."""
    side = shares.shape[-1]
    low, high = tf.split(boxes, 2, axis=1)
    unit = (high - low) / side
    rows, columns = (
        cell_means.overlaps(
            tf.math.divide_no_nan(-low[:, axis], unit[:, axis]),
            tf.math.divide_no_nan(shape[axis] - low[:, axis], unit[:, axis]),
            shape[axis],
            side,
        )
        for axis in (0, 1)
    )
    # One object at a time: all of them at once would be as many images.
    add = lambda covered, of: tf.maximum(covered, of[0] @ of[1] @ tf.transpose(of[2]))  # noqa: E731
    return tf.foldl(add, (rows, shares, columns), tf.zeros(shape))


def _means(values, boxes, num_cells):
    """[N, C, C], means of [H, W] over the cells of boxes [N, 4] in pixels."""
    y1, x1, y2, x2 = tf.unstack(boxes, axis=1)
    rows = cell_means.overlaps(y1, y2, num_cells, values.shape[0])
    columns = cell_means.overlaps(x1, x2, num_cells, values.shape[1])
    return tf.linalg.matmul(rows @ values, columns, transpose_b=True)


def _keep_visible(boxes, masks, shares, is_object, size, is_changed):
    """Boxes and masks [N, ...] of what is visible, and which are to be kept [N].

    `shares` [N, S, S] is what is left of each cell, `is_object` which cells the box is drawn
    around, `size` the window, `is_changed` [N] which objects do not stay as they are.
    """
    side = masks.shape[-1]
    visible = _visible_boxes(boxes, is_object, size)
    means = cell_means.of_box_masks(shares, boxes, visible, side)
    before = tf.reduce_mean(tf.cast(masks, tf.float32), axis=[1, 2]) / 255.0 * _area(boxes)
    after = tf.reduce_mean(means, axis=[1, 2]) * _area(visible)
    is_kept = tf.logical_not(is_changed) | (tf.math.divide_no_nan(after, before) >= MIN_VISIBLE)
    means = tf.cast(tf.round(255.0 * means), tf.uint8)
    return (
        tf.where(is_changed[:, tf.newaxis], visible, boxes),
        tf.where(is_changed[:, tf.newaxis, tf.newaxis], means, masks),
        is_kept,
    )


def _visible_boxes(boxes, is_object, size):
    """[N, 4], around the parts of the object's cells that lie in the window; zeros where there are
    none."""
    side = is_object.shape[-1]
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
    is_object &= is_shown[0][:, :, tf.newaxis] & is_shown[1][:, tf.newaxis, :]
    lows, highs = [], []
    for axis, axis_edges in enumerate(edges):
        has_some = tf.reduce_any(is_object, axis=2 - axis)
        lows.append(tf.reduce_min(tf.where(has_some, axis_edges[:, :-1], float('inf')), axis=1))
        highs.append(tf.reduce_max(tf.where(has_some, axis_edges[:, 1:], float('-inf')), axis=1))
    found = tf.stack(lows + highs, axis=1)
    return tf.where(tf.math.is_finite(found), found, 0.0)


def _area(boxes):
    return tf.reduce_prod(boxes[:, 2:] - boxes[:, :2], axis=1)
