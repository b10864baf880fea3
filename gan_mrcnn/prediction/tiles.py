# SPDX-License-Identifier: Apache-2.0
"""Large images in overlapping tiles, and one object where two tiles show the same.

A network that was trained on images of 522 x 775 pixels knows objects at that scale: given a crop
of a slide as a whole, scaled down to its input, it would have to detect them at a tenth of their
size.

Two tiles show the same pixels in the strip that they share. Two detections are therefore one object
where their masks agree inside that strip; outside of it either may show what the other cannot.
"""

import operator
from collections.abc import Sequence
from typing import Optional

import numpy as np

from gan_mrcnn.prediction.objects import Object, intersect
from gan_mrcnn.utils.errors import UserError

# Masks agree from this IoU on, inside the strip that both tiles show.
AGREEMENT = 0.5
# Fewer common pixels in the strip are no evidence.
FEWEST_PIXELS = 8


def check(tile: tuple[int, int], overlap: Optional[int]) -> int:
    """The overlap of tiles: the one given, otherwise a quarter of their shorter side.

    Raises:
      UserError: tiles of this size and overlap cannot cover an image.
    """
    try:
        height, width = map(operator.index, tile)
    except (TypeError, ValueError) as error:
        raise UserError(f'--tile {tile!r:.50}: give height and width in pixels') from error
    shorter = min(height, width)
    if shorter < 1:
        raise UserError(f'--tile {height} {width} is not positive; give height and width in pixels')
    overlap = shorter // 4 if overlap is None else overlap
    if not 0 <= overlap < shorter:
        raise UserError(f'--overlap {overlap} is not between 0 and the shorter side of a tile')
    return overlap


def make_tiles(
    height: int, width: int, tile: tuple[int, int], overlap: int
) -> list[tuple[int, int, int, int]]:
    """Windows y1, x1, y2, x2 that cover an image, all of one size, row by row.

    The last ones lie at the far border and overlap more.

    Args:
      height: of the image, in pixels.
      width: of the image, in pixels.
      tile: height and width of a tile; a smaller image is one tile.
      overlap: of neighbours, at least, in pixels; less than the tile.
    """
    rows, columns = (_starts(length, side, overlap) for length, side in zip((height, width), tile))
    return [
        (y, x, min(y + tile[0], height), min(x + tile[1], width)) for y in rows for x in columns
    ]


def _starts(length, side, overlap):
    last = max(length - side, 0)
    return [*range(0, last, side - overlap), last]


def merge(detected: Sequence[tuple[Sequence[int], Object]]) -> list[Object]:
    """Joins the parts of one object that several tiles show.

    Args:
      detected: each object with the tile it is from.

    Returns:
      The objects, best first. A joined one has all pixels of its parts, the smallest box around
      theirs, and the best of their scores.
    """
    return sorted(map(_join, _groups(detected)), key=lambda one: -one.score)


class RowMerger:
    """`merge` for tiles that come row by row: the same objects, of which few are held at a time.

    A later row can add to an object only where it shows some of its pixels. What ends above is
    finished.
    """

    def __init__(self):
        self._open: list[tuple[Sequence[int], Object]] = []

    @property
    def num_open(self) -> int:
        """How many parts of objects are held."""
        return len(self._open)

    def add(
        self, detected: Sequence[tuple[Sequence[int], Object]], next_top: Optional[int]
    ) -> list[Object]:
        """Adds a row, and gives the objects that are finished with it, in no order.

        Args:
          detected: as for `merge`, of the row; rows come from top to bottom.
          next_top: where the tiles of the next row begin, in pixels; None behind the last row.
        """
        finished = []
        parts = [*self._open, *detected]
        self._open = []
        for group in _groups(parts):
            if next_top is not None and any(part.window()[2] > next_top for _, part in group):
                self._open += group
            else:
                finished.append(_join(group))
        return finished


def _groups(detected):
    """The parts of each object, with their tiles."""
    groups = list(range(len(detected)))

    def group(i):
        while groups[i] != i:
            i = groups[i]
        return i

    for i, j in _neighbours(detected):
        if _same(detected[i], detected[j]):
            groups[group(j)] = group(i)
    parts: dict[int, list[tuple[Sequence[int], Object]]] = {}
    for i, one in enumerate(detected):
        parts.setdefault(group(i), []).append(one)
    return parts.values()


def _neighbours(detected):
    """Pairs from different tiles whose windows overlap."""
    windows = np.array([part.window() for _, part in detected]).reshape(-1, 4)
    for i, (tile, part) in enumerate(detected):
        y1, x1, y2, x2 = part.window()
        later = windows[i + 1 :]
        near = (later[:, 0] < y2) & (later[:, 2] > y1) & (later[:, 1] < x2) & (later[:, 3] > x1)
        for j in np.flatnonzero(near) + i + 1:
            if tuple(detected[j][0]) != tuple(tile):
                yield i, int(j)


def _same(first, second):
    (first_tile, first_part), (second_tile, second_part) = first, second
    if first_part.class_id != second_part.class_id:
        return False
    strip = intersect(first_tile, second_tile)
    # Only the masks' own windows can have pixels in it.
    window = _hull([intersect(part.window(), strip) for part in (first_part, second_part)])
    masks = [part.cut(window) for part in (first_part, second_part)]
    both = np.count_nonzero(masks[0] & masks[1])
    either = np.count_nonzero(masks[0] | masks[1])
    return both >= FEWEST_PIXELS and both / either >= AGREEMENT


def _hull(windows):
    """The smallest window around all of them, and not less than nothing."""
    windows = np.array(windows)
    low, high = windows[:, :2].min(0), windows[:, 2:].max(0)
    return (*low.tolist(), *np.maximum(low, high).tolist())


def _join(group):
    parts = [part for _, part in group]
    if len(parts) == 1:
        return parts[0]
    window = _hull([part.window() for part in parts])
    mask = np.zeros((window[2] - window[0], window[3] - window[1]), bool)
    for part in parts:
        mask |= part.cut(window)
    boxes = np.array([part.box for part in parts])
    box = (*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist())
    best = max(parts, key=lambda part: part.score)
    return Object(best.class_id, best.score, box, window[0], window[1], mask)
