# SPDX-License-Identifier: Apache-2.0
"""Means of a mask over the cells of a grid, exactly: what a mask head is to predict.

A mask is constant within its own pixels (or cells). Its mean over a cell of another grid is then a
sum of overlaps, separable in y and x: `rows @ mask @ columns.T`. Nothing is sampled, so nothing is
shifted by half a cell, and no detail between samples is lost.

docs/geometry.md says where pixels, cells and samples lie.
"""

import tensorflow as tf


def overlaps(low: tf.Tensor, high: tf.Tensor, num_cells: int, length) -> tf.Tensor:
    """Share of each cell of [low, high) that lies in each of the unit intervals from 0 to `length`.

    Args:
      low: [...] float, where the cells begin, in units of the intervals.
      high: [...], where they end.
      num_cells: C, equally large cells between the two.
      length: L, number of intervals; what lies beyond them counts for nothing.

    Returns:
      [..., C, L] of the dtype of `low`; each row sums to the share of the cell that lies within
      [0, L). All zeros where `high` is not above `low`.
    """
    low, high = low[..., tf.newaxis, tf.newaxis], high[..., tf.newaxis, tf.newaxis]
    cells = tf.range(num_cells, dtype=low.dtype)[:, tf.newaxis]
    intervals = tf.range(tf.cast(length, low.dtype))
    size = (high - low) / num_cells
    begins, ends = low + cells * size, low + (cells + 1.0) * size
    common = tf.minimum(ends, intervals + 1.0) - tf.maximum(begins, intervals)
    return tf.math.divide_no_nan(tf.nn.relu(common), tf.nn.relu(size))


def of_box_masks(
    masks: tf.Tensor, mask_boxes: tf.Tensor, boxes: tf.Tensor, num_cells: int
) -> tf.Tensor:
    """Means of masks that are given on the cells of their own boxes, over the cells of other boxes.

    Args:
      masks: [..., S, S] float, means over the cells of `mask_boxes`; 0 outside these.
      mask_boxes: [..., 4] float, [y1, x1, y2, x2] in pixels.
      boxes: [..., 4], of the same images, such as RoIs.
      num_cells: C.

    Returns:
      [..., C, C] float, zeros for a box or a mask's box without area.
    """
    side = masks.shape[-1]
    low, high = tf.split(mask_boxes, 2, axis=-1)
    unit = (high - low) / side
    in_units = tf.math.divide_no_nan(
        boxes - tf.concat([low, low], axis=-1), tf.concat([unit, unit], axis=-1)
    )
    y1, x1, y2, x2 = tf.unstack(in_units, axis=-1)
    rows = overlaps(y1, y2, num_cells, side)
    columns = overlaps(x1, x2, num_cells, side)
    return tf.linalg.matmul(rows @ masks, columns, transpose_b=True)
