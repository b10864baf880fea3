# SPDX-License-Identifier: Apache-2.0
"""Detected objects of an image, with masks that are kept inside their own window.

A crop of a slide has 20,000 pixels to a side and thousands of objects: a mask of the image's size
for each would be terabytes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gan_mrcnn.metrics import predictions
from gan_mrcnn.utils import run_lengths


class Object(NamedTuple):
    """One object.

    class_id: 1 for the first class.
    score: from 0 to 1.
    box: [y1, x1, y2, x2] in pixels of the image, inside it.
    top, left: of the window in the image, in pixels.
    mask: [h, w] bool, the window.
    """

    class_id: int
    score: float
    box: tuple[float, float, float, float]
    top: int
    left: int
    mask: np.ndarray

    @property
    def area(self) -> int:
        """In pixels."""
        return int(np.count_nonzero(self.mask))

    def window(self) -> tuple[int, int, int, int]:
        """y1, x1, y2, x2 of `mask` in the image."""
        height, width = self.mask.shape
        return self.top, self.left, self.top + height, self.left + width

    def cut(self, window: Sequence[int]) -> np.ndarray:
        """The mask inside another window of the image, [y2 - y1, x2 - x1] bool."""
        out = np.zeros((window[2] - window[0], window[3] - window[1]), bool)
        y1, x1, y2, x2 = intersect(self.window(), window)
        if y2 > y1 and x2 > x1:
            part = self.mask[y1 - self.top : y2 - self.top, x1 - self.left : x2 - self.left]
            out[y1 - window[0] : y2 - window[0], x1 - window[1] : x2 - window[1]] = part
        return out


def intersect(first: Sequence[int], second: Sequence[int]) -> tuple[int, int, int, int]:
    """The common part of two windows; empty where an end is not behind its start."""
    return (
        max(first[0], second[0]),
        max(first[1], second[1]),
        min(first[2], second[2]),
        min(first[3], second[3]),
    )


def from_detections(detections, tile: Sequence[int], score_threshold: float) -> list[Object]:
    """Objects of one tile, in pixels of the image, best first.

    Args:
      detections: `predictor.Detections` of the tile.
      tile: y1, x1, y2, x2 of it in the image.
      score_threshold: objects below it are dropped, and so are those without a pixel.
    """
    top, left, height, width = tile[0], tile[1], tile[2] - tile[0], tile[3] - tile[1]
    offset = np.array([top, left, top, left], np.float64)
    found = []
    for box, score, class_id, mask in zip(*detections):
        if score < score_threshold:
            continue
        y, x, window = predictions.paste_window(mask, box, height, width)
        rows, columns = np.flatnonzero(window.any(1)), np.flatnonzero(window.any(0))
        if not len(rows):
            continue
        box = np.clip(box.astype(np.float64), 0, [height, width, height, width]) + offset
        found.append(
            Object(
                int(class_id),
                float(score),
                tuple(box.tolist()),
                top + y + int(rows[0]),
                left + x + int(columns[0]),
                window[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy(),
            )
        )
    return found


def encode(one: Object, height: int, width: int) -> dict[str, Any]:
    """The object's mask in COCO's run lengths, without a mask of the image's size.

    Args:
      one: the object.
      height: of the image, in pixels.
      width: of the image, in pixels.
    """
    return run_lengths.encode_window(one.mask, one.top, one.left, height, width)
