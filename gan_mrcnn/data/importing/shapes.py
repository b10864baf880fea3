# SPDX-License-Identifier: Apache-2.0
"""Outlines, ellipses, boxes and painted masks of any tool, as COCO's segmentations.

Coordinates are the pixels of docs/geometry.md: pixel j covers [j, j + 1). Points are [P, 2], x and
y, as all of the tools have them. What is inside an outline is decided by pycocotools, for objects
with and without holes alike; along the edges of pixels it is exact.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Union

import numpy as np
from pycocotools import mask as mask_api

from gan_mrcnn.utils import coco_annotations, run_lengths
from gan_mrcnn.utils.coco_annotations import is_number, short

# Pixels that an ellipse may lie beyond the outline which stands for it.
_ELLIPSE_TOLERANCE = 0.05
_MOST_ELLIPSE_POINTS = 2000
# Digits behind the point: the tools write two to six.
_DIGITS = 4


class Unusable(Exception):
    """An annotation or an image that cannot be used. The text follows the name of it."""


class Polygon(NamedTuple):
    """A piece of an object: [P, 2] points of its outline, and of each hole in it."""

    outline: np.ndarray
    holes: tuple[np.ndarray, ...] = ()


class Window(NamedTuple):
    """A painted piece of an object.

    pixels: [h, w] bool.
    top, left: place of the first pixel in the image.
    """

    pixels: np.ndarray
    top: int
    left: int


Piece = Union[Polygon, Window]
# COCO's run lengths stay what they are.
Pieces = Union[Sequence[Piece], dict[str, Any]]


def points(values: Any) -> np.ndarray:
    """[P, 2] from a list of pairs x, y, without a last point that repeats the first.

    Raises:
      Unusable: it is no such list, or has less than three points.
    """
    if not isinstance(values, (list, tuple)):
        raise Unusable(f'has the points {short(values)}; a list of x and y is wanted')
    for pair in values:
        # GeoJSON may have a height as the third.
        if not isinstance(pair, (list, tuple)) or len(pair) < 2 or not all(map(is_number, pair)):
            raise Unusable(f'has the point {short(pair)}; two finite numbers are wanted')
    found = np.array([pair[:2] for pair in values], np.float64).reshape(-1, 2)
    if len(found) > 1 and (found[0] == found[-1]).all():
        found = found[:-1]
    if len(found) < 3:
        raise Unusable(f'has an outline of {len(found)} points; at least three are wanted')
    return found


def numbers(values: Sequence[Any]) -> list[float]:
    """The values as numbers.

    Raises:
      Unusable: one is none.
    """
    for value in values:
        if not is_number(value):
            raise Unusable(f'has {short(value)} where a finite number is wanted')
    return [float(value) for value in values]


def ellipse(x: Any, y: Any, radius_x: Any, radius_y: Any, degrees: Any = 0) -> Polygon:
    """An ellipse by its centre and radii in pixels, turned clockwise, as an outline.

    Raises:
      Unusable: one is no number, or a radius is not positive.
    """
    x, y, radius_x, radius_y, degrees = numbers([x, y, radius_x, radius_y, degrees])
    largest = max(radius_x, radius_y)
    if min(radius_x, radius_y) <= 0:
        raise Unusable(f'has the radii {radius_x:g} and {radius_y:g}; positive ones are wanted')
    # The chord of an arc of 2 a is r (1 - cos a) away from it.
    step = math.acos(max(1 - _ELLIPSE_TOLERANCE / largest, 0))
    count = min(max(math.ceil(math.pi / max(step, 1e-9)), 12), _MOST_ELLIPSE_POINTS)
    angles = 2 * np.pi * np.arange(count) / count
    unturned = np.stack([radius_x * np.cos(angles), radius_y * np.sin(angles)], axis=1)
    return Polygon(_turn(unturned, degrees) + [x, y])


def box(x1: Any, y1: Any, x2: Any, y2: Any, degrees: Any = 0, around: str = 'centre') -> Polygon:
    """A rectangle by two opposite corners, turned clockwise around its centre or `corner` x1, y1.

    Raises:
      Unusable: one is no number.
    """
    x1, y1, x2, y2, degrees = numbers([x1, y1, x2, y2, degrees])
    corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
    pivot = corners[0] if around == 'corner' else corners.mean(axis=0)
    return Polygon(_turn(corners - pivot, degrees) + pivot)


def _turn(values: np.ndarray, degrees: float) -> np.ndarray:
    """[P, 2] x, y turned around 0; clockwise as one sees it, since y goes down."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    return values @ np.array([[cos, sin], [-sin, cos]])


def row_runs(counts: Sequence[int], height: int, width: int) -> np.ndarray:
    """[height, width] bool from lengths of runs along the rows, background first.

    Raises:
      Unusable: they do not add up.
    """
    if not all(map(coco_annotations.is_id, counts)) or sum(counts) != height * width:
        raise Unusable(f'has run lengths that do not fill its {width}x{height} pixels')
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(height, width)


def to_coco(pieces: Pieces, height: int, width: int) -> dict[str, Any]:
    """`segmentation`, `bbox` and `area` of an annotation.

    Polygons stay polygons; with a hole or a painted piece the object becomes run lengths, because
    COCO's polygons can only be added. Box and area are those of the mask, in whole pixels.

    Args:
      pieces: of the object, in any order; they may overlap.
      height: of the image, in pixels.
      width: of the image, in pixels.

    Raises:
      Unusable: the object lies outside the image or covers no pixel of it, or its coordinates
        cannot be pixels of it.
    """
    if isinstance(pieces, dict):
        segmentation: Any = pieces
    else:
        rings = [ring for piece in pieces if isinstance(piece, Polygon) for ring in _rings(piece)]
        # Before they are drawn: the memory for it depends on them.
        if rings:
            _check([_flat(ring) for ring in rings], height, width)
        is_plain = all(isinstance(piece, Polygon) and not piece.holes for piece in pieces)
        segmentation = [_flat(ring) for ring in rings] if is_plain else _draw(pieces, height, width)
    _check(segmentation, height, width)
    rle = coco_annotations.to_rle({'segmentation': segmentation}, height, width)
    area = int(mask_api.area(rle))
    if not area:
        raise Unusable(f'covers no pixel of its image of {width}x{height}')
    return {
        'segmentation': segmentation,
        'bbox': [float(value) for value in mask_api.toBbox(rle)],
        'area': area,
    }


def _check(segmentation: Any, height: int, width: int) -> None:
    annotation = {'category_id': 1, 'segmentation': segmentation}
    text = coco_annotations.error_in(annotation, height, width, (1,))
    if text:
        raise Unusable(text)


def _rings(polygon: Polygon) -> tuple[np.ndarray, ...]:
    return (polygon.outline, *polygon.holes)


def _flat(ring: np.ndarray) -> list[float]:
    return np.round(ring, _DIGITS).ravel().tolist()


def _draw(pieces: Sequence[Piece], height: int, width: int) -> dict[str, Any]:
    """Run lengths of all pieces together, drawn in the window that holds them."""
    # Numbers in a file may be larger than any integer of NumPy.
    boxes = np.array([_extent(piece) for piece in pieces], np.float64)
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    left, top = np.clip(low, 0, [width, height]).astype(int).tolist()
    right, bottom = np.clip(high, 0, [width, height]).astype(int).tolist()
    if right <= left or bottom <= top:
        raise Unusable(f'lies outside its image of {width}x{height} pixels')
    window = np.zeros((bottom - top, right - left), bool)
    for piece in pieces:
        if isinstance(piece, Window):
            _paste(piece, window, top, left)
        else:
            drawn = _fill(piece.outline - [left, top], *window.shape)
            for hole in piece.holes:
                drawn &= ~_fill(hole - [left, top], *window.shape)
            window |= drawn
    return run_lengths.encode_window(window, top, left, height, width)


def _extent(piece: Piece) -> list[int]:
    """[left, top, right, bottom] of whole pixels that hold a piece."""
    if isinstance(piece, Window):
        height, width = piece.pixels.shape
        return [piece.left, piece.top, piece.left + width, piece.top + height]
    low, high = np.floor(piece.outline.min(axis=0)), np.ceil(piece.outline.max(axis=0))
    return [int(value) for value in (*low, *high)]


def _paste(piece: Window, window: np.ndarray, top: int, left: int) -> None:
    """Adds a painted piece to `window`, whose first pixel is at top, left of the image."""
    y, x = piece.top - top, piece.left - left
    inside = piece.pixels[max(-y, 0) :, max(-x, 0) :]
    place = window[max(y, 0) :, max(x, 0) :][: inside.shape[0], : inside.shape[1]]
    place |= inside[: place.shape[0], : place.shape[1]]


def _fill(ring: np.ndarray, height: int, width: int) -> np.ndarray:
    """[height, width] bool, the inside of one ring."""
    rles = mask_api.frPyObjects([ring.ravel().tolist()], height, width)
    return mask_api.decode(rles)[..., 0].astype(bool)
