# SPDX-License-Identifier: Apache-2.0
"""labelme: a JSON file for each image, with `shapes` and `imagePath`.

Shapes of one label and one `group_id` are pieces of one object, as in labelme's own export to COCO.
An image file that is missing is taken out of the JSON file, where labelme has put it in there.
"""

import base64
import io
import math
import pathlib
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np
from PIL import Image

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

_LEFT_OUT = {
    **dict.fromkeys(('line', 'linestrip'), 'lines'),
    **dict.fromkeys(('point', 'points'), 'points'),
    **dict.fromkeys(('rectangle', 'oriented_rectangle'), 'boxes'),
}
# Labels by which labelme itself leaves shapes out.
_NO_CLASSES = ('__ignore__', '_background_')


def read(source: Source) -> Export:
    """All images that have a JSON file.

    Raises:
      UserError: there is none, or one cannot be used.
    """
    pictures: list[Picture] = []
    count = 0
    for path in source.files('.json'):
        with source.image(str(path)):
            content = load_json(path, 'labelme')
            if not isinstance(content, dict) or 'shapes' not in content:
                print(f"{path} is not labelme's and is not used", flush=True)
                continue
            count += 1
            pictures.append(_picture(source, path, content))
    if not count:
        raise UserError(f'{source.path} has no JSON file of labelme, with shapes and an imagePath')
    source.count_other_images(pictures)
    return Export(pictures)


def _picture(source: Source, path: pathlib.Path, content: Mapping[str, Any]) -> Picture:
    name, listed = content.get('imagePath'), content['shapes']
    if not isinstance(name, str) or not name:
        raise shapes.Unusable(f'has the imagePath {short(name)}; the name of an image is wanted')
    if not isinstance(listed, list):
        raise shapes.Unusable(f'has {short(listed)} as its shapes; a list is wanted')
    source.attributes.update(key for key, value in _flags(content) if value)
    size = (
        coco_annotations.whole(content.get('imageWidth')),
        coco_annotations.whole(content.get('imageHeight')),
    )
    objects: dict[Any, Object] = {}
    for number, shape in enumerate(listed, start=1):
        with source.annotation(f'{path}: shape {number}'):
            _add(source, objects, mapping(shape, 'shape'), f'{path}: shape {number}')
    # Relative to the JSON file, with the slashes of the system that labelme ran on.
    name = name.replace('\\', '/')
    # Version 4 may write its own name, where the image is inside of it.
    name = name[: -len('.json')] if name.endswith('.json') else name
    folder = pathlib.PurePosixPath(source.relative(path)).parent
    found, encoded = None, None
    try:
        found = source.find(str(folder / name))
    except shapes.Unusable:
        encoded = _embedded(content.get('imageData'))
        if encoded is None:
            raise
    return Picture(
        path=found,
        objects=list(objects.values()),
        place=str(path),
        size=size if all(map(coco_annotations.is_id, size)) else None,
        encoded=encoded,
        name=f'{folder}/{pathlib.PurePosixPath(name).name}' if encoded else '',
    )


def _flags(item: Mapping[str, Any]) -> list[tuple[str, Any]]:
    flags = item.get('flags')
    return list(flags.items()) if isinstance(flags, dict) else []


def _embedded(data: Any) -> Optional[bytes]:
    """The image in a JSON file; None where there is none."""
    try:
        return base64.b64decode(data, validate=True) if data and isinstance(data, str) else None
    except ValueError:
        return None


def _add(source: Source, objects: dict, shape: Mapping[str, Any], place: str) -> None:
    """Adds a shape as an object, or as a piece to the object of its group."""
    kind = shape.get('shape_type') or 'polygon'
    if not isinstance(kind, str):
        raise shapes.Unusable(f'has the shape_type {short(kind)}; a name is wanted')
    is_box = kind in ('rectangle', 'oriented_rectangle')
    piece = None if is_box and not source.boxes_are_objects else _piece(kind, shape)
    if piece is None:
        source.left_out[_LEFT_OUT.get(kind, f'shapes of the kind {short(kind)}')] += 1
        return
    label, group = label_of(shape.get('label')), shape.get('group_id')
    if label in _NO_CLASSES:
        source.left_out[f'shapes of the label {label}'] += 1
        return
    source.attributes.update(name for name, value in _flags(shape) if value)
    source.attributes['description'] += bool(shape.get('description'))
    key = place if group is None else (label, str(group))
    pieces = [*objects[key].pieces, piece] if key in objects else [piece]
    objects[key] = Object(label, pieces, objects[key].place if key in objects else place)


def _piece(kind: str, shape: Mapping[str, Any]) -> Optional[shapes.Piece]:
    """What a shape covers; None where it is of a kind that covers nothing, or of none we know."""
    points = shape.get('points')
    if kind in ('polygon', 'oriented_rectangle'):
        return shapes.Polygon(shapes.points(points))
    if kind not in ('rectangle', 'circle', 'mask'):
        return None
    if not isinstance(points, list) or len(points) < 2:
        raise shapes.Unusable(f'is a {kind} with the points {short(points)}; two are wanted')
    pairs = [pair for pair in points if isinstance(pair, list) and len(pair) == 2]
    if len(pairs) != len(points):
        raise shapes.Unusable(f'is a {kind} with the points {short(points)}; pairs are wanted')
    if kind == 'rectangle':
        # Two opposite corners, or all four.
        corners = np.array([shapes.numbers(pair) for pair in pairs])
        return shapes.box(*corners.min(axis=0), *corners.max(axis=0))
    x1, y1, x2, y2 = shapes.numbers([*pairs[0], *pairs[1]])
    if kind == 'circle':
        radius = math.hypot(x2 - x1, y2 - y1)
        return shapes.ellipse(x1, y1, radius, radius)
    return shapes.Window(_mask(shape.get('mask')), int(y1), int(x1))


def _mask(data: Any) -> np.ndarray:
    """[h, w] bool from a PNG in base 64."""
    encoded = _embedded(data)
    if encoded is None:
        raise shapes.Unusable('is a mask without an image in base 64')
    try:
        image = Image.open(io.BytesIO(encoded), formats=('PNG',))
        too_large = images.size_error(*image.size)
        pixels = None if too_large else np.asarray(image.convert('L'))
    except Exception as error:  # Pillow's parsers raise anything when the bytes are not theirs.
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise shapes.Unusable(f'has a mask that cannot be read ({reason})') from error
    if pixels is None:
        raise shapes.Unusable(f'has a mask that {too_large}')
    return pixels > 0
