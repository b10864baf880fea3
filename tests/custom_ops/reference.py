# SPDX-License-Identifier: Apache-2.0
"""PrRoIPool and its gradients in float64 NumPy, by numerical integration.

Nothing here knows of weights per node: the bilinear interpolant is evaluated at points, by the
midpoint rule on every unit cell, which is exact for it. Derivatives to a box come from the
integral's limits (Leibniz), those to the features from adding each point's share to its four nodes.

A box with a coordinate that is not finite, or with the index of an image that is not there, has no
values: NaN, as of the kernels. The gradient to the features leaves it out.

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


def _defined(boxes, box_indices, num_images):
    """[N], whether a box has values."""
    box_indices = np.asarray(box_indices)
    return np.all(np.isfinite(boxes), 1) & (box_indices >= 0) & (box_indices < num_images)


def _in_nodes(boxes, box_indices, num_images, spatial_scale):
    """Index and y1, x1, y2, x2 of every box that has values and an area."""
    defined = _defined(boxes, box_indices, num_images)
    for n, box in enumerate(np.asarray(boxes, np.float64) * spatial_scale):
        if defined[n] and box[2] > box[0] and box[3] > box[1]:
            yield n, box


def integrate(features, boxes, box_indices, output_size, spatial_scale):
    """PrRoIPool of features [B, H, W, C] and boxes [N, 4], in pixels: [N, h, w, C]."""
    features, (h, w) = np.asarray(features, np.float64), output_size
    pooled = np.zeros([len(boxes), h, w, features.shape[-1]])
    pooled[~_defined(boxes, box_indices, len(features))] = np.nan
    for n, (y1, x1, y2, x2) in _in_nodes(boxes, box_indices, len(features), spatial_scale):
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
    d_boxes[~_defined(boxes, box_indices, len(features))] = np.nan
    for n, (y1, x1, y2, x2) in _in_nodes(boxes, box_indices, len(features), spatial_scale):
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
    for n, (y1, x1, y2, x2) in _in_nodes(boxes, box_indices, batch, spatial_scale):
        y, dy, bin_y = _points(y1, y2, h, height)
        x, dx, bin_x = _points(x1, x2, w, width)
        area = (y2 - y1) * (x2 - x1) / (h * w)
        values = upstream[n][bin_y[:, None], bin_x[None]] * (dy[:, None] * dx / area)[..., None]
        for row, column, share in _corners(y, x):
            np.add.at(padded[box_indices[n]], (row, column), values * share[..., None])
    return padded[:, 1:-2, 1:-2]


def all_passes(features, boxes, box_indices, upstream, spatial_scale):
    """Pooled features, gradient to the features, gradient to the boxes."""
    output_size = upstream.shape[1:3]
    return (
        integrate(features, boxes, box_indices, output_size, spatial_scale),
        feature_gradient(features.shape, boxes, box_indices, upstream, spatial_scale),
        box_gradient(features, boxes, box_indices, upstream, spatial_scale),
    )


def maximum(features, boxes, box_indices, output_size, scales):
    """PrRoIPool of every level, [L, N, h, w, C], of which the maximum is taken; `features` and
    `scales` are one of each level."""
    return np.stack(
        [
            integrate(level, boxes, box_indices, output_size, scale)
            for level, scale in zip(features, scales)
        ]
    )


def maximum_gradients(features, boxes, box_indices, upstream, winners, scales):
    """Derivatives of sum(upstream * maximum) to the boxes, [N, 4], and to each level's features,
    where `winners` [N, h, w, C] says which level has the maximum."""
    d_boxes, d_features = 0, []
    for number, (level, scale) in enumerate(zip(features, scales)):
        won = np.where(winners == number, np.asarray(upstream, np.float64), 0)
        d_boxes = d_boxes + box_gradient(level, boxes, box_indices, won, scale)
        d_features.append(feature_gradient(level.shape, boxes, box_indices, won, scale))
    return d_boxes, d_features


def _samples(start, stop, num_bins, samples, offset, num_nodes):
    """RoIAlign's samples along one axis: bin, node and share of each of the two nodes, [2, P].

    As the Model Garden has it: beyond the last node its value holds; before the first the line
    through the first two goes on.
    """
    points = start + (np.arange(num_bins * samples) + offset) * (stop - start) / (
        num_bins * samples
    )
    lower = np.clip(np.floor(points), 0, num_nodes - 1).astype(int)
    upper = np.minimum(lower + 1, num_nodes - 1)
    share = np.stack([1 - (points - lower), points - lower]) / samples
    bins = np.broadcast_to(np.arange(num_bins * samples) // samples, share.shape)
    return bins.ravel(), np.stack([lower, upper]).ravel(), share.ravel()


def _roi_align_terms(
    features, boxes, box_indices, box_levels, output_size, scales, samples, offset
):
    """Of every box that has values: its number, image and level, and all of its terms as (bins,
    nodes, share) along y as [P, 1] and along x as [1, Q]."""
    defined = _defined(boxes, box_indices, len(features[0]))
    defined &= (box_levels >= 0) & (box_levels < len(features))
    for n in np.flatnonzero(defined):
        level = box_levels[n]
        y1, x1, y2, x2 = np.asarray(boxes[n], np.float64) * scales[level]
        if y2 < y1 or x2 < x1:
            continue
        height, width = features[level].shape[1:3]
        y = _samples(y1, y2, output_size[0], samples, offset, height)
        x = _samples(x1, x2, output_size[1], samples, offset, width)
        yield n, box_indices[n], level, [t[:, None] for t in y], [t[None] for t in x]


def roi_align(features, boxes, box_indices, box_levels, output_size, scales, samples, offset):
    """RoIAlign sample by sample of features [B, H, W, C] of each level: [N, h, w, C]."""
    pooled = np.zeros([len(boxes), *output_size, features[0].shape[-1]])
    defined = _defined(boxes, box_indices, len(features[0]))
    pooled[~(defined & (box_levels >= 0) & (box_levels < len(features)))] = np.nan
    arguments = boxes, box_indices, box_levels, output_size, scales, samples, offset
    for n, image, level, y, x in _roi_align_terms(features, *arguments):
        values = np.asarray(features[level][image], np.float64)[y[1], x[1]]
        np.add.at(pooled[n], (y[0], x[0]), values * (y[2] * x[2])[..., None])
    return pooled


def roi_align_gradient(features, boxes, box_indices, box_levels, upstream, scales, samples, offset):
    """Derivatives of sum(upstream * roi_align) to each level's features."""
    d_features = [np.zeros(level.shape) for level in features]
    upstream, size = np.asarray(upstream, np.float64), upstream.shape[1:3]
    arguments = boxes, box_indices, box_levels, size, scales, samples, offset
    for n, image, level, y, x in _roi_align_terms(features, *arguments):
        values = upstream[n][y[0], x[0]] * (y[2] * x[2])[..., None]
        np.add.at(d_features[level][image], (y[1], x[1]), values)
    return d_features


def all_of_pyramid(case, winners, samples, offset):
    """What `launchers.all_of_pyramid` gives of the same case, without the winners."""
    features, boxes, indices, levels, upstream, scales = case
    size = upstream.shape[1:3]
    align, sampling = (boxes, indices, levels), (scales, samples, offset)
    d_boxes, d_features = maximum_gradients(features, boxes, indices, upstream, winners, scales)
    return (
        maximum(features, boxes, indices, size, scales).max(0),
        d_boxes,
        *d_features,
        roi_align(features, *align, size, *sampling),
        *roi_align_gradient(features, *align, upstream, *sampling),
    )
