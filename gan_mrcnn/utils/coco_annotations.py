# SPDX-License-Identifier: Apache-2.0
"""Single annotations in COCO's format, checked before pycocotools sees them.

pycocotools trusts its input: a polygon of two points is taken for a box, run lengths that do not
add up give whatever was in memory, and memory is taken for as long an outline or as large a mask as
the file says.
"""

import re
import reprlib
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
from pycocotools import coco as coco_api
from pycocotools import mask as mask_api

from gan_mrcnn.utils import run_lengths

# Pixels between the box in a file and that of its mask, which is one of whole pixels.
BOX_TOLERANCE = 1
# Pixels that all outlines of an object may be long; pycocotools takes 40 bytes for each.
_LONGEST_OUTLINE = 1 << 22
# JSON has integers of any length; the product of two of these is still a float.
_LARGEST_NUMBER = 1e100
_WHOLE = re.compile(r'-?[0-9]{1,19}(\.0*)?')
_SHORTENER = reprlib.Repr()
_SHORTENER.maxstring = _SHORTENER.maxother = 80


def is_id(value: Any) -> bool:
    """Whether `value` is a whole number from 0 that fits into 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def whole(value: Any) -> Any:
    """A whole number that is written as `1.0`, `"1"` or `"1.0"` as an int; all else as it is."""
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value.partition('.')[0])
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    return value


def is_name(value: Any) -> bool:
    """Whether `value` can be the name of a file or a class and be printed in one line."""
    try:
        is_text = isinstance(value, str) and value.encode()
    except UnicodeEncodeError:  # Half of a character.
        return False
    return bool(is_text) and not any(ord(x) < 32 or 127 <= ord(x) < 160 for x in value)


def is_number(value: Any) -> bool:
    """Whether `value` is a number that one can count with; JSON has 1e999, NaN and any integer."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER
    )


def short(value: Any) -> str:
    """What `value` is, for a message of one line."""
    # Not `repr`: of a list of a million numbers it would be the message.
    return _SHORTENER.repr(value)


def error_in(
    annotation: dict[str, Any], height: int, width: int, category_ids: Container[int]
) -> str:
    """Why `annotation`, of an image of that size, cannot be used; '' where it can."""
    category_id = annotation.get('category_id')
    if not is_id(category_id) or category_id not in category_ids:
        return f'has the category id {short(category_id)}, which is not among the categories'
    if annotation.get('iscrowd', 0) not in (0, 1):
        return f'has iscrowd {short(annotation["iscrowd"])}; 0 or 1 is wanted'
    segmentation = annotation.get('segmentation')
    if not segmentation:
        return 'has no segmentation; a box alone does not say which pixels are meant'
    if isinstance(segmentation, dict):
        return _error_in_run_lengths(segmentation, height, width)
    if isinstance(segmentation, list):
        return _error_in_polygons(segmentation, height, width)
    return 'has a segmentation that is neither polygons nor run lengths'


def _error_in_polygons(polygons, height, width) -> str:
    if not all(isinstance(polygon, list) for polygon in polygons):
        return 'has no list of polygons, each [x1, y1, x2, y2, ...], as its segmentation'
    for polygon in polygons:
        for value in polygon:
            if not is_number(value):
                return f'has {short(value)} in a polygon; finite numbers are wanted'
        if len(polygon) % 2:
            return f'has a polygon of {len(polygon)} numbers; x and y of each point are wanted'
        if len(polygon) < 6:
            return f'has a polygon of {len(polygon) // 2} points; at least three are wanted'
    points = _points(polygons)
    low, high, size = points.min(0), points.max(0), np.array([width, height])
    if (high < 0).any() or (low > size).any():
        return f'lies outside its image of {width}x{height} pixels'
    if (low < -size).any() or (high > 2 * size).any():
        return f'reaches far beyond its image of {width}x{height} pixels; is it of another size?'
    if (high <= 1).all() and (points % 1).any():
        return 'has coordinates between 0 and 1; pixels are wanted'
    if sum(map(_outline, polygons)) > _LONGEST_OUTLINE:
        return f'has an outline of more than {_LONGEST_OUTLINE} pixels; is it an object?'
    return ''


def _outline(polygon) -> float:
    """Pixels that a closed outline is long, its longer side counted of each piece."""
    points = _points([polygon])
    return np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()


def _error_in_run_lengths(rle, height, width) -> str:
    size = rle.get('size')
    if size != [height, width] or not all(map(is_id, size)):
        return (
            f'has run lengths for [height, width] {short(size)}, but its image is {[height, width]}'
        )
    counts = rle.get('counts')
    if isinstance(counts, str):
        counts = run_lengths.decode_counts(counts)
    if not isinstance(counts, list) or not all(is_id(count) for count in counts):
        return 'has damaged run lengths'
    if sum(counts) != height * width:
        return f'has run lengths of {sum(counts)} pixels for an image of {height * width}'
    return ''


def warning_about(annotation: dict[str, Any], height: int, width: int) -> str:
    """What is wrong with the box of a valid annotation, '' if nothing; the mask counts."""
    box = annotation.get('bbox')
    if box is None:
        return ''
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return f'has the box {short(box)}, not [x, y, width, height]; that of its mask is taken'
    x, y, w, h = box
    if w <= 0 or h <= 0:
        return f'has a box of {w:g}x{h:g} pixels; that of its mask is taken'
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return 'has a box outside its image; that of its mask is taken'
    boxes = np.array([_extent(annotation['segmentation']), [x, y, x + w, y + h]])
    own, given = np.clip(boxes, 0, [width, height, width, height])
    if np.abs(own - given).max() > BOX_TOLERANCE:
        return f'has the box {box}, which does not fit its mask; that of the mask is taken'
    return ''


def box_and_area(
    annotation: dict[str, Any], rle: dict[str, Any], height: int, width: int
) -> dict[str, Any]:
    """Box and area as the file has them, in fractions of a pixel, where they fit the mask `rle`.

    COCO's AP is defined by these: half a pixel of a small object's box is a different IoU.
    """
    found: dict[str, Any] = {}
    if annotation.get('bbox') is not None and not warning_about(annotation, height, width):
        x, y, w, h = annotation['bbox']
        if x >= 0 and y >= 0 and x + w <= width and y + h <= height:
            found['bbox'] = annotation['bbox']
    area, of_mask = annotation.get('area'), float(mask_api.area(rle))
    # Some tools write the area of the box.
    if is_number(area) and area > 0 and abs(area - of_mask) <= 0.1 * of_mask + 4:
        found['area'] = area
    return found


def _extent(segmentation) -> np.ndarray:
    """[x1, y1, x2, y2] around polygons or a mask."""
    if isinstance(segmentation, dict):
        rle = to_rle({'segmentation': segmentation}, *segmentation['size'])
        x, y, w, h = mask_api.toBbox(rle)
        return np.array([x, y, x + w, y + h])
    points = _points(segmentation)
    return np.concatenate([points.min(0), points.max(0)])


def _points(polygons: Sequence[Sequence[float]]) -> np.ndarray:
    """All points, [P, 2] as x, y."""
    return np.concatenate([np.array(polygon, np.float64).reshape(-1, 2) for polygon in polygons])


def to_rle(annotation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """The mask of a valid annotation, in one piece, as pycocotools encodes it."""
    coco = coco_api.COCO()
    coco.imgs = {0: {'height': height, 'width': width}}
    rle = coco.annToRLE({'image_id': 0, 'segmentation': annotation['segmentation']})
    # Into bytes, where a file has the counts as a string.
    return mask_api.merge([rle])
