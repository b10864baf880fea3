# SPDX-License-Identifier: Apache-2.0
"""Exact means of an image over the cells of a box, by its integral read at the cells' edges."""

import numpy as np


def cell_means(image, box, num_cells):
    """[C, C] means over the cells of `box`, [y1, x1, y2, x2]; what lies beyond the image is 0."""
    integral = np.pad(np.cumsum(np.cumsum(image, 0, dtype=np.float64), 1), [(1, 0), (1, 0)])
    for axis in range(2):
        edges = np.linspace(box[axis], box[axis + 2], num_cells + 1)
        edges = np.clip(edges, 0, image.shape[axis])
        # Between whole numbers the integral of a constant pixel is a straight line.
        lower = np.minimum(np.floor(edges).astype(int), image.shape[axis] - 1)
        share = np.expand_dims(edges - lower, 1 - axis)
        lines = np.take(integral, lower, axis), np.take(integral, lower + 1, axis)
        integral = lines[0] * (1 - share) + lines[1] * share
    area = (box[2] - box[0]) * (box[3] - box[1]) / num_cells**2
    return np.diff(np.diff(integral, axis=0), axis=1) / area
