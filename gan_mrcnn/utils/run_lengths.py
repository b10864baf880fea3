# SPDX-License-Identifier: Apache-2.0
"""Masks as COCO's run lengths, and label images as such masks.

Run lengths go down the columns and begin with the background. pycocotools encodes and decodes; here
is what it does not do.

Shapes: H and W height and width of an image.
"""

from collections.abc import Iterable
from typing import Any, Optional

import numpy as np
from pycocotools import mask as mask_api


def encode_masks(masks: Iterable[np.ndarray]) -> list[dict[str, Any]]:
    """Run lengths of masks, each [H, W], bool or 0 and 1; `counts` are bytes."""
    return [mask_api.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths of a mask [H, W], bool or 0 and 1, fit for JSON."""
    return to_json(*encode_masks([mask]))


def to_json(rle: dict[str, Any]) -> dict[str, Any]:
    """Run lengths whose `counts` are a str instead of bytes, without any other key."""
    return {'size': list(rle['size']), 'counts': rle['counts'].decode('ascii')}


def encode_runs(starts: np.ndarray, ends: np.ndarray, height: int, width: int) -> dict[str, Any]:
    """Run lengths of a mask given by its runs, without the mask.

    Args:
      starts: [R] ascending, the first pixel of each run, counted down the columns from 0.
      ends: [R], one beyond the last pixel of each run; less than the next start.
      height: of the mask, in pixels.
      width: of the mask, in pixels.

    Returns:
      As `encode_masks` of the mask.
    """
    turns = np.stack([starts, ends], axis=1).ravel()
    counts = np.diff(turns, prepend=0, append=height * width)
    # As COCO does, no background follows an object that reaches the last pixel.
    counts = counts[:-1] if len(turns) and turns[-1] == height * width else counts
    uncompressed = {'size': [height, width], 'counts': counts.tolist()}
    return mask_api.frPyObjects(uncompressed, height, width)


def encode_window(
    window: np.ndarray, top: int, left: int, height: int, width: int
) -> dict[str, Any]:
    """Run lengths of a mask given by a window of it, without the mask.

    Args:
      window: [h, w] bool; nothing lies outside of it.
      top: of the window in the mask, in pixels.
      left: of the window in the mask, in pixels.
      height: of the mask, in pixels.
      width: of the mask, in pixels.

    Returns:
      As `encode_mask` of the mask.
    """
    # Column by column, as COCO counts. A pixel of background before each column and behind the
    # last one begins and ends every run.
    stride = window.shape[0] + 1
    padded = np.zeros((window.shape[1] + 1, stride), bool)
    padded[:-1, 1:] = window.T
    flat = padded.ravel()
    turns = np.flatnonzero(flat[1:] != flat[:-1]) + 1

    def place(pixels):
        return (left + pixels // stride) * height + top + pixels % stride - 1

    starts, ends = place(turns[::2]), place(turns[1::2] - 1) + 1
    # A run to the bottom of the mask goes on at the top of the next column.
    apart = starts[1:] != ends[:-1]
    starts = np.concatenate([starts[:1], starts[1:][apart]])
    ends = np.concatenate([ends[:-1][apart], ends[-1:]])
    return to_json(encode_runs(starts, ends, height, width))


def encode_labels(labels: np.ndarray, numbers: Iterable[int]) -> list[dict[str, Any]]:
    """Run lengths of the objects of a label image, without a mask per object.

    Args:
      labels: [H, W], integers.
      numbers: which of them are objects, in the order wanted.

    Returns:
      As `encode_masks` of `labels == number`, in one pass over the image for all of them.
    """
    height, width = labels.shape
    flat = labels.ravel(order='F')
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.concatenate([starts[1:], [flat.size]])
    # The runs of a number follow each other here: searching all runs for each of many objects would
    # take minutes.
    order = np.argsort(flat[starts], kind='stable')
    sorted_labels = flat[starts][order]
    rles = []
    for number in numbers:
        first, last = np.searchsorted(sorted_labels, [number, number + 1])
        mine = order[first:last]
        rles.append(encode_runs(starts[mine], ends[mine], height, width))
    return rles


def numbers_in(labels: np.ndarray) -> np.ndarray:
    """The different numbers in a label image, ascending: `np.unique` in a fiftieth of its time.

    Of each row of equal numbers only the first is examined.
    """
    flat = labels.ravel()
    begins = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return np.unique(np.append(flat[:1], flat[begins]))


def decode_counts(text: str) -> Optional[list[int]]:
    """The run lengths in COCO's compressed string, None where it is damaged.

    pycocotools decodes it only into a whole mask, and does not see a sum that is too small.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        # More than 64 bits are no run; a number of millions of them would take hours.
        if not 0 <= code < 64 or shift > 60:
            return None
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        # From the fourth on, the difference to the one before the last.
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    return None if shift else counts
