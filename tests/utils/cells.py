# SPDX-License-Identifier: Apache-2.0
"""Exact means of an image over the cells of a box, by its integral read at the cells' edges."""

import numpy as np


def cell_means(image, box, num_cells):
    """[C, C] means over the cells of `box`, [y1, x1, y2, x2]; what lies beyond the image is 0."""
    integral = np.pad(np.cumsum(np.cumsum(image, 0, dtype=np.float64), 1), [(1, 0), (1, 0)])
    edges = [np.linspace(box[i], box[i + 2], num_cells + 1) for i in range(2)]
    for axis, places in enumerate(edges):
        nodes = np.arange(integral.shape[axis])
        integral = np.apply_along_axis(
            lambda line, places=places, nodes=nodes: np.interp(places, nodes, line), axis, integral
        )
    area = (box[2] - box[0]) * (box[3] - box[1]) / num_cells**2
    return np.diff(np.diff(integral, axis=0), axis=1) / area
