# SPDX-License-Identifier: Apache-2.0
"""PrRoIPool and its gradients in float64 NumPy, by numerical integration.

Nothing here knows of weights per node: the bilinear interpolant is evaluated at points, by the
midpoint rule on every unit cell, which is exact for it. Derivatives to a box come from the
integral's limits (Leibniz), those to the features from adding each point's share to its four nodes.

Shapes: B images, H x W feature map, C channels, N boxes, h x w bins, P x Q points of one box.
"""

import numpy as np

# The map continues with zeros. A point between -1 and H has its two rows among those of the map
# with one more above and two more below.
_PADDING = [(1, 2), (1, 2), (0, 0)]


def _points(start, stop, num_bins, num_nodes):
    """Midpoints [P] of the pieces of all bins between integers, their lengths and their bins."""
    points, lengths, bins = [], [], []
    edges = start + np.arange(num_bins + 1) * ((stop - start) / num_bins)
    edges = np.clip(edges, -1, num_nodes)  # Outside there is nothing to add up.
    for i, (lower, upper) in enumerate(zip(edges[:-1], edges[1:])):
        cuts = np.concatenate([[lower], np.arange(np.floor(lower) + 1, np.ceil(upper)), [upper]])
        points.append((cuts[1:] + cuts[:-1]) / 2)
        lengths.append(np.diff(cuts))
        bins.append(np.full(len(cuts) - 1, i))
    return np.concatenate(points), np.concatenate(lengths), np.concatenate(bins)


def _corners(y, x):
    """The four nodes around points: rows [P, 1] and columns [1, Q] of the padded map, and each
    node's share of each point, [P, Q]."""
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    dy, dx = (y - top)[:, None], (x - left)[None]
    for row, share_y in ((0, 1 - dy), (1, dy)):
        for column, share_x in ((0, 1 - dx), (1, dx)):
            yield (top + 1 + row)[:, None], (left + 1 + column)[None], share_y * share_x


def _interpolate(image, y, x):
    """Bilinear interpolant of one image [H, W, C] on a grid of points, [P, Q, C]."""
    padded = np.pad(image, _PADDING)
    return sum(padded[row, column] * share[..., None] for row, column, share in _corners(y, x))


def _in_nodes(boxes, spatial_scale):
    """y1, x1, y2, x2 of every box that has an area, with its index."""
    for n, box in enumerate(np.asarray(boxes, np.float64) * spatial_scale):
        if box[2] > box[0] and box[3] > box[1]:
            yield n, box


def integrate(features, boxes, box_indices, output_size, spatial_scale):
    """PrRoIPool of features [B, H, W, C] and boxes [N, 4], in pixels: [N, h, w, C]."""
    features, (h, w) = np.asarray(features, np.float64), output_size
    pooled = np.zeros([len(boxes), h, w, features.shape[-1]])
    for n, (y1, x1, y2, x2) in _in_nodes(boxes, spatial_scale):
        y, dy, bin_y = _points(y1, y2, h, features.shape[1])
        x, dx, bin_x = _points(x1, x2, w, features.shape[2])
        values = _interpolate(features[box_indices[n]], y, x) * (dy[:, None] * dx)[..., None]
        np.add.at(pooled[n], (bin_y[:, None], bin_x[None]), values)
        pooled[n] *= h * w / ((y2 - y1) * (x2 - x1))
    return pooled


def box_gradient(features, boxes, box_indices, upstream, spatial_scale):
    """Derivatives of sum(upstream * pooled) to the boxes' coordinates in pixels, [N, 4]."""
    features, upstream = np.asarray(features, np.float64), np.asarray(upstream, np.float64)
    h, w = upstream.shape[1:3]
    pooled = integrate(features, boxes, box_indices, (h, w), spatial_scale)
    d_boxes = np.zeros([len(boxes), 4])
    for n, (y1, x1, y2, x2) in _in_nodes(boxes, spatial_scale):
        image = features[box_indices[n]]
        along = [(1, y1, y2, x1, x2, w), (0, x1, x2, y1, y2, h)]
        for first, (other, start, stop, other_start, other_stop, num_other) in enumerate(along):
            # The mean over the other axis, as a function of this one, at the edges of the bins.
            num_bins = upstream.shape[1 + first]
            edges = start + np.arange(num_bins + 1) * ((stop - start) / num_bins)
            inside = np.flatnonzero((edges > -1) & (edges < image.shape[first]))
            points, lengths, bins = _points(other_start, other_stop, num_other, image.shape[other])
            grid = (edges[inside], points) if first == 0 else (points, edges[inside])
            values = np.moveaxis(_interpolate(image, *grid), first, 0) * lengths[:, None]
            means = np.zeros([num_bins + 1, num_other, image.shape[-1]])
            np.add.at(means, (inside[:, None], bins[None]), values)
            means *= num_other / (other_stop - other_start)
            # d/db of the mean over [a, b] is (f(b) - mean) / (b - a), and d/da the other way round.
            mean, gradient = (np.moveaxis(a[n], first, 0) for a in (pooled, upstream))
            per_bin = num_bins / (stop - start) * spatial_scale
            d_lower = per_bin * np.sum(gradient * (mean - means[:-1]), axis=(1, 2))
            d_upper = per_bin * np.sum(gradient * (means[1:] - mean), axis=(1, 2))
            share = np.arange(num_bins + 1) / num_bins
            d_boxes[n, first] = d_lower @ (1 - share[:-1]) + d_upper @ (1 - share[1:])
            d_boxes[n, first + 2] = d_lower @ share[:-1] + d_upper @ share[1:]
    return d_boxes


def feature_gradient(map_shape, boxes, box_indices, upstream, spatial_scale):
    """Derivatives of sum(upstream * pooled) to the features, of shape `map_shape`."""
    upstream = np.asarray(upstream, np.float64)
    batch, height, width, channels = map_shape
    h, w = upstream.shape[1:3]
    padded = np.zeros([batch, height + 3, width + 3, channels])
    for n, (y1, x1, y2, x2) in _in_nodes(boxes, spatial_scale):
        y, dy, bin_y = _points(y1, y2, h, height)
        x, dx, bin_x = _points(x1, x2, w, width)
        area = (y2 - y1) * (x2 - x1) / (h * w)
        values = upstream[n][bin_y[:, None], bin_x[None]] * (dy[:, None] * dx / area)[..., None]
        for row, column, share in _corners(y, x):
            np.add.at(padded[box_indices[n]], (row, column), values * share[..., None])
    return padded[:, 1:-2, 1:-2]
