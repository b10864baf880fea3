# SPDX-License-Identifier: Apache-2.0
"""PrRoIPool by numerical integration in float64 NumPy, and its gradients, apart from our formulas.

A box is cut at its bins' edges and at the map's nodes. On each piece the interpolant is bilinear,
so that the midpoint rule is exact: no weights, no tent functions, nothing that the implementations
use. The derivative of a bin's mean to one of its edges is the mean along that edge minus the bin's
mean, over the bin's size; the integral along the edge is again made of midpoints.
"""

import numpy as np


def corners(image_shape, y, x):
    """The four nodes around points, as (rows, columns, weights), each [P, Q]; outside weighs 0."""
    height, width = image_shape
    y, x = np.meshgrid(y, x, indexing='ij')
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    dy, dx = y - top, x - left
    for row, weight_y in ((top, 1 - dy), (top + 1, dy)):
        for column, weight_x in ((left, 1 - dx), (left + 1, dx)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            yield (
                np.where(inside, row, 0),
                np.where(inside, column, 0),
                np.where(inside, weight_y * weight_x, 0.0),
            )


def sample(image, y, x):
    """Bilinear interpolant of one image [H, W, C] at the grid of y [P] and x [Q]: [P, Q, C]."""
    return sum(
        image[row, column] * weight[..., None]
        for row, column, weight in corners(image.shape[:2], y, x)
    )


def pieces(start, stop, num_bins, num_nodes):
    """Midpoint, length and bin of every piece of an axis; outside the map all is 0, uncut."""
    edges = start + (stop - start) / num_bins * np.arange(num_bins + 1)
    nodes = np.arange(-1, num_nodes + 1)
    cuts = np.unique(np.concatenate([edges, nodes[(nodes > edges[0]) & (nodes < edges[-1])]]))
    middle = (cuts[1:] + cuts[:-1]) / 2
    bins = np.clip(np.searchsorted(edges, middle) - 1, 0, num_bins - 1)
    return middle, np.diff(cuts), bins


def _sum_by_bin(values, bins, num_bins):
    """Sums the rows of `values` [P, ...] that have the same bin."""
    total = np.zeros([num_bins, *values.shape[1:]])
    np.add.at(total, bins, values)
    return total


def _cut(features, box, output_size):
    """`pieces` of both axes of a box in nodes."""
    height, width = features.shape[1:3]
    return (
        pieces(box[0], box[2], output_size[0], height),
        pieces(box[1], box[3], output_size[1], width),
    )


def _has_area(box):
    return box[2] > box[0] and box[3] > box[1]


def pool(features, boxes, box_indices, output_size, spatial_scale):
    """[N, h, w, C] float64."""
    h, w = output_size
    features = np.asarray(features, np.float64)
    pooled = np.zeros([len(boxes), h, w, features.shape[-1]])
    for n, (box, image) in enumerate(zip(np.asarray(boxes, np.float64), box_indices)):
        if not _has_area(box):
            continue
        y1, x1, y2, x2 = box * spatial_scale
        (y, dy, row), (x, dx, column) = _cut(features, box * spatial_scale, output_size)
        integral = sample(features[image], y, x) * (dy[:, None] * dx)[..., None]
        by_row = _sum_by_bin(integral, row, h)
        by_bin = _sum_by_bin(np.moveaxis(by_row, 1, 0), column, w)
        pooled[n] = np.moveaxis(by_bin, 0, 1) / ((y2 - y1) / h * (x2 - x1) / w)
    return pooled


def gradients(features, boxes, box_indices, output_size, spatial_scale, upstream):
    """Gradients of sum(pooled * upstream): to features [B, H, W, C] and boxes [N, 4], in pixels."""
    h, w = output_size
    features = np.asarray(features, np.float64)
    d_features, d_boxes = np.zeros_like(features), np.zeros([len(boxes), 4])
    pooled = pool(features, boxes, box_indices, output_size, spatial_scale)
    for n, (box, image) in enumerate(zip(np.asarray(boxes, np.float64), box_indices)):
        if not _has_area(box):
            continue
        y1, x1, y2, x2 = box * spatial_scale
        (y, dy, row), (x, dx, column) = _cut(features, box * spatial_scale, output_size)
        bin_h, bin_w = (y2 - y1) / h, (x2 - x1) / w
        share = upstream[n][row][:, column] * (dy[:, None] * dx)[..., None] / (bin_h * bin_w)
        for rows, columns, weight in corners(features.shape[1:3], y, x):
            np.add.at(d_features[image], (rows, columns), share * weight[..., None])
        # Means along the edges of the bins: [h + 1, w, C] and [h, w + 1, C].
        on_y = sample(features[image], y1 + bin_h * np.arange(h + 1), x) * dx[:, None]
        on_y = np.moveaxis(_sum_by_bin(np.moveaxis(on_y, 1, 0), column, w), 0, 1) / bin_w
        on_x = sample(features[image], y, x1 + bin_w * np.arange(w + 1)) * dy[:, None, None]
        on_x = _sum_by_bin(on_x, row, h) / bin_h
        to_y = upstream[n] * np.stack([pooled[n] - on_y[:-1], on_y[1:] - pooled[n]]) / bin_h
        to_x = upstream[n] * np.stack([pooled[n] - on_x[:, :-1], on_x[:, 1:] - pooled[n]]) / bin_w
        # Edge i is at y1 + i / h (y2 - y1).
        at_y, at_x = np.arange(h + 1) / h, np.arange(w + 1) / w
        to_y, to_x = to_y.sum((2, 3)), to_x.sum((1, 3))
        d_boxes[n] = spatial_scale * np.array(
            [
                (to_y[0] * (1 - at_y[:-1]) + to_y[1] * (1 - at_y[1:])).sum(),
                (to_x[0] * (1 - at_x[:-1]) + to_x[1] * (1 - at_x[1:])).sum(),
                (to_y[0] * at_y[:-1] + to_y[1] * at_y[1:]).sum(),
                (to_x[0] * at_x[:-1] + to_x[1] * at_x[1:]).sum(),
            ]
        )
    return d_features, d_boxes
