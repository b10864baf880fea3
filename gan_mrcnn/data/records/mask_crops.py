# SPDX-License-Identifier: Apache-2.0
"""Masks in a record: of each object the means over the cells of its box, all that training reads.

A mask as large as its image would have to be decoded in each epoch, and is mostly background. Its
means over 112 x 112 cells of the box are what the targets of the mask head are made of
(`utils/cell_means.py`); they are computed once, exactly, and kept with eight bits. The masks
themselves are in the annotation file beside the records.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_api

# Cells along each side of a box.
SIDE = 112
# Of the record: all objects of the image, one after the other.
FEATURE = 'image/object/mask_crops'


def encode(rles: Sequence[dict[str, Any]], boxes: Sequence[Sequence[float]]) -> bytes:
    """The crops of an image's objects, compressed; `boxes` as in `crop`."""
    crops = b''.join(crop(rle, box).tobytes() for rle, box in zip(rles, boxes))
    return zlib.compress(crops)


def decode(encoded):
    """[N, SIDE, SIDE] uint8 tensor of what `encode` has made, a scalar string tensor."""
    # Not at the top: reading and converting images is to go without TensorFlow's start.
    import tensorflow as tf

    crops = tf.io.decode_raw(tf.io.decode_compressed(encoded, 'ZLIB'), tf.uint8)
    return tf.reshape(crops, [-1, SIDE, SIDE])


def crop(rle: dict[str, Any], box: Sequence[float]) -> np.ndarray:
    """Means of a mask over SIDE x SIDE cells of a box, times 255 and rounded.

    The sum over a cell is a difference of sums over rectangles from the first pixel on, which are
    bilinear within a pixel: sums up to whole pixels, interpolated, give it exactly.

    Args:
      rle: the mask in COCO's run lengths.
      box: [x, y, width, height] in pixels, not necessarily whole ones; what lies beyond the image
        counts as background.

    Returns:
      [SIDE, SIDE] uint8; zeros for a box without area or beyond the image.
    """
    # Masks are decoded column by column: x first, as all that follows.
    mask = mask_api.decode(rle).T
    low, size = np.array(box[:2], float), np.array(box[2:], float)
    first = np.clip(np.floor(low), 0, mask.shape).astype(int)
    end = np.clip(np.ceil(low + size), 0, mask.shape).astype(int)
    if np.any(first >= end) or np.any(size <= 0):
        return np.zeros((SIDE, SIDE), np.uint8)
    window = np.ascontiguousarray(mask[first[0] : end[0], first[1] : end[1]])
    sums = cv2.integral(window).astype(float)
    for axis in range(2):
        edges = low[axis] - first[axis] + np.arange(SIDE + 1) * (size[axis] / SIDE)
        edges = np.clip(edges, 0, window.shape[axis])
        pixels = np.minimum(edges.astype(int), window.shape[axis] - 1)
        below, above = np.take(sums, pixels, axis), np.take(sums, pixels + 1, axis)
        share = np.expand_dims(edges - pixels, 1 - axis)
        sums = np.diff(below + (above - below) * share, axis=axis)
    means = sums.T / np.prod(size / SIDE)
    return np.rint(255 * means).astype(np.uint8)
