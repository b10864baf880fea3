# SPDX-License-Identifier: Apache-2.0
"""Label Studio: the export `JSON`, a list of tasks with their annotations.

Coordinates are percent of the image. Brushes are run lengths of a coding of their own, see
`decode_brush`. Of several annotations of one image the one that is marked as ground truth is taken,
or else the one that was updated last.
"""

import pathlib
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np

from gan_mrcnn.data.importing import shapes
from gan_mrcnn.data.importing.source import (
    Export,
    Object,
    Picture,
    Source,
    label_of,
    load_json,
    mapping,
)
from gan_mrcnn.data.readers import images
from gan_mrcnn.utils import coco_annotations
from gan_mrcnn.utils.coco_annotations import short
from gan_mrcnn.utils.errors import UserError

# What Label Studio puts before the name of a file that was uploaded.
_PREFIX = re.compile(r'^[0-9a-f]{8}-')
_LEFT_OUT = {'rectangle': 'boxes', 'keypoint': 'points'}
_KINDS = ('polygon', 'brush', 'ellipse', 'rectangle')
_LABELS = 'labels'
# Results that say something about a region, or about the whole image.
_ATTRIBUTES = (
    'choices',
    'datetime',
    'number',
    'pairwise',
    'ranker',
    'rating',
    'taxonomy',
    'textarea',
)


def read(source: Source) -> Export:
    """All tasks that have an annotation.

    Raises:
      UserError: the file is not Label Studio's, or an image or a region cannot be used.
    """
    path = source.one_file('.json')
    content = load_json(path, 'Label Studio')
    if (
        not isinstance(content, list)
        or not content
        or not all(isinstance(x, dict) and 'annotations' in x and 'data' in x for x in content)
    ):
        raise UserError(f'{path} is not the export JSON of Label Studio (nor is JSON-MIN)')
    pictures: list[Picture] = []
    for number, task in enumerate(content, start=1):
        place = f'{path}: task {coco_annotations.short(task.get("id", number))}'
        with source.image(place):
            annotation = _chosen(source, task)
            if annotation is not None:
                pictures.append(_picture(source, task, annotation, place))
    return Export(pictures)


def _chosen(source: Source, task: Mapping[str, Any]) -> Optional[Mapping[str, Any]]:
    """The annotation to take; None where there is none."""
    listed = task['annotations']
    if not isinstance(listed, list):
        raise shapes.Unusable(f'has {short(listed)} as its annotations; a list is wanted')
    done = [
        one for one in (mapping(x, 'annotation') for x in listed) if not one.get('was_cancelled')
    ]
    if not done:
        source.left_out['tasks without an annotation'] += 1
        return None
    if len(done) > 1:
        source.left_out['further annotations of the same image'] += len(done) - 1
    return max(done, key=lambda x: (bool(x.get('ground_truth')), str(x.get('updated_at'))))


def _picture(source: Source, task, annotation: Mapping[str, Any], place: str) -> Picture:
    results = annotation.get('result')
    if not isinstance(results, list):
        raise shapes.Unusable(f'has {short(results)} as its result; a list is wanted')
    results = [mapping(result, 'result') for result in results]
    # A region and its class may be two results of one id.
    labels = {str(x.get('id')): x for x in results if x.get('type') == _LABELS}
    sizes = set()
    objects = []
    for number, result in enumerate(results, start=1):
        with source.annotation(f'{place}, result {number}'):
            piece = _piece(source, result)
            if piece is not None:
                sizes.add(_size(result))
                label = _label(result, labels.get(str(result.get('id')), {}))
                objects.append(Object(label, [piece], f'{place}, result {number}'))
    if len(sizes) > 1:
        raise shapes.Unusable('has results for images of different sizes')
    return Picture(
        path=source.find(*_names(task)),
        objects=objects,
        place=place,
        size=next(iter(sizes), None),
    )


def _names(task: Mapping[str, Any]) -> list[str]:
    """What the image of a task may be called, the best first."""
    found = {}
    for key, address in mapping(task['data'], 'data').items():
        name = _file_name(address)
        if pathlib.PurePosixPath(name).suffix.lower() in images.IMAGE_SUFFIXES:
            found[key] = name
    if len(found) != 1 and 'image' not in found:
        raise shapes.Unusable(f'has {len(found)} images among its data; one is wanted')
    # The usual name, where there are previews and the like beside it.
    whole = found.get('image') or next(iter(found.values()))
    folder, _, name = whole.rpartition('/')
    return [whole, f'{folder}/{_PREFIX.sub("", name)}']


def _file_name(address: Any) -> str:
    """The path that an address has, '' where it is none."""
    try:
        parts = urllib.parse.urlsplit(address if isinstance(address, str) else '')
    except ValueError:
        return ''
    # Files of a mounted folder are /data/local-files/?d=folder/a.png.
    inner = urllib.parse.parse_qs(parts.query).get('d', [''])[0]
    return (inner or urllib.parse.unquote(parts.path)).lstrip('/')


def _size(result: Mapping[str, Any]) -> tuple[int, int]:
    """(width, height) of the image in pixels."""
    size = [coco_annotations.whole(result.get(f'original_{x}')) for x in ('width', 'height')]
    if not all(coco_annotations.is_id(side) and side for side in size):
        raise shapes.Unusable(f'has the size {short(size)}; original_width and _height are wanted')
    return size[0], size[1]


def _label(result: Mapping[str, Any], separate: Mapping[str, Any]) -> Optional[str]:
    """The class of a region, in its own value or in that of the other result of its id."""
    kind = str(result.get('type'))
    value = mapping(result.get('value'), 'value')
    others = mapping(separate.get('value', {}), 'value')
    chosen = value.get(kind) or value.get(_LABELS) or others.get(_LABELS) or []
    if not isinstance(chosen, list) or len(chosen) > 1:
        raise shapes.Unusable(f'has the classes {short(chosen)}; one is wanted')
    return label_of(chosen[0]) if chosen else None


def _piece(source: Source, result: Mapping[str, Any]) -> Optional[shapes.Piece]:
    """What a result covers; None where it is of a kind that is left out, which is counted."""
    kind = str(result.get('type'))
    shape = kind[: -len(_LABELS)] if kind.endswith(_LABELS) and kind != _LABELS else kind
    if kind == _LABELS:
        return None
    if kind in _ATTRIBUTES:
        source.attributes[str(result.get('from_name') or kind)] += 1
        return None
    if shape not in _KINDS or (shape == 'rectangle' and not source.boxes_are_objects):
        source.left_out[_LEFT_OUT.get(shape, f'results of the kind {short(kind)}')] += 1
        return None
    if result.get('image_rotation'):
        raise shapes.Unusable(
            f'is of an image that was turned by {short(result["image_rotation"])} degrees in Label '
            'Studio; turn the file itself'
        )
    width, height = _size(result)
    value = mapping(result.get('value'), 'value')
    if shape == 'polygon':
        return shapes.Polygon(shapes.points(value.get('points')) * [width / 100, height / 100])
    if shape == 'brush':
        return shapes.Window(decode_brush(value.get('rle'), height, width), 0, 0)
    keys = ('x', 'y', 'radiusX', 'radiusY') if shape == 'ellipse' else ('x', 'y', 'width', 'height')
    x, y, w, h = shapes.numbers([value.get(key) for key in keys])
    x, y, w, h = x * width / 100, y * height / 100, w * width / 100, h * height / 100
    degrees = value.get('rotation') or 0
    if shape == 'ellipse':
        return shapes.ellipse(x, y, w, h, degrees)
    return shapes.box(x, y, x + w, y + h, degrees, around='corner')


def decode_brush(rle: Any, height: int, width: int) -> np.ndarray:
    """The mask of a brush, [height, width] bool: where the painted layer is not transparent.

    The coding is that of the JavaScript package @thi.ng/rle-pack: bits, the first one of a byte the
    highest. 32 bits say how many words follow, 5 how long a word is, and four times 4 how long the
    four kinds of run lengths are (all less one). Then runs: a bit for one word repeated or words
    one by one, two for the kind of the length, the length less one, and the word or the words.
    Words are red, green, blue and opacity of each pixel along the rows.

    Raises:
      Unusable: they are damaged, or of another image.
    """
    if not isinstance(rle, list) or not all(
        coco_annotations.is_id(byte) and byte < 256 for byte in rle
    ):
        raise shapes.Unusable('has no rle of bytes')
    bits = _Bits(bytes(rle))
    count, word_bits = bits.read(32), bits.read(5) + 1
    lengths = [bits.read(4) + 1 for _ in range(4)]
    too_large = images.size_error(width, height)
    if too_large or count != 4 * width * height:
        raise shapes.Unusable(f'has an rle of {count} values for an image of {width}x{height}')
    values = np.zeros(count, bool)
    done = 0
    while done < count:
        is_run = bits.read(1)
        end = done + 1 + bits.read(lengths[bits.read(2)])
        if end > count:
            raise shapes.Unusable('has a damaged rle')
        words = [bits.read(word_bits) for _ in range(1 if is_run else end - done)]
        values[done:end] = np.array(words) > 0
        done = end
    return values.reshape(height, width, 4)[..., 3]


class _Bits:
    """Reads numbers of any count of bits, the highest first."""

    def __init__(self, data: bytes):
        self._data = data
        self._place = 0

    def read(self, count: int) -> int:
        end = self._place + count
        if end > 8 * len(self._data):
            raise shapes.Unusable('has an rle that ends too early')
        first, last = self._place // 8, -(-end // 8)
        number = int.from_bytes(self._data[first:last], 'big') >> (8 * last - end)
        self._place = end
        return number & ((1 << count) - 1)
