# SPDX-License-Identifier: Apache-2.0
"""CVAT: the export `CVAT for images 1.1`, of a task, a job or a project, as `annotations.xml`.

Shapes of one label and one group are pieces of one object, as in CVAT's own export to COCO.
"""

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Optional
from xml.etree import ElementTree

from gan_mrcnn.data.importing import shapes
from gan_mrcnn.data.importing.source import Export, Object, Picture, Source, label_of, split_of
from gan_mrcnn.data.readers import images
from gan_mrcnn.utils import coco_annotations
from gan_mrcnn.utils.coco_annotations import short
from gan_mrcnn.utils.errors import UserError

_NUMBER = re.compile(r'\s*-?\d{1,12}(\.\d{1,12})?\s*')
_LEFT_OUT = {
    'box': 'boxes',
    'points': 'points',
    'polyline': 'lines',
    'cuboid': 'cuboids',
    'skeleton': 'skeletons',
    'tag': 'tags of whole images',
}
# Labels of these can be those of objects; there are some for tags and skeletons alone.
_LABEL_TYPES = ('any', 'polygon', 'mask', 'ellipse', 'rectangle', '')


class _Builder(ElementTree.TreeBuilder):
    """Refuses definitions of XML, by which a kilobyte can stand for gigabytes."""

    def doctype(self, name, pubid, system):
        raise UserError('has a DOCTYPE')


def read(source: Source) -> Export:
    """All images of the task or the project.

    Raises:
      UserError: the file is not CVAT's, or an image or a shape cannot be used.
    """
    path = source.one_file('.xml')
    root = _parse(path)
    if root.find('track') is not None:
        raise UserError(f'{path} is CVAT for video; export it as CVAT for images 1.1')
    pictures: list[Picture] = []
    for number, image in enumerate(root.iterfind('image'), start=1):
        place = f'{path}: image {image.get("id", number)}'
        with source.image(place):
            pictures.append(_picture(source, image, place))
    return Export(pictures, tuple(_classes(root)))


def _parse(path: pathlib.Path) -> ElementTree.Element:
    try:
        with open(path, 'rb') as file:
            root = ElementTree.parse(file, ElementTree.XMLParser(target=_Builder())).getroot()
    # A ValueError is one of encodings.
    except (ElementTree.ParseError, OSError, ValueError, LookupError, UserError) as error:
        reason = ' '.join(str(error).split())
        raise UserError(f'cannot read {path}: {reason}; give what CVAT wrote') from error
    if root.tag != 'annotations':
        raise UserError(f'{path} is not CVAT for images 1.1: it begins with {short(root.tag)}')
    return root


def _classes(root: ElementTree.Element) -> Iterator[str]:
    """Names of the labels of the task or project, parts of skeletons left out."""
    for label in root.iterfind('meta/*/labels/label'):
        is_whole = label.find('parent') is None
        if is_whole and (label.findtext('type') or '').strip() in _LABEL_TYPES:
            name = (label.findtext('name') or '').strip()
            if name:
                yield name


def _picture(source: Source, image: ElementTree.Element, place: str) -> Picture:
    name, subset = image.get('name', ''), image.get('subset', '')
    size = int(_number(image, 'width')), int(_number(image, 'height'))
    objects: dict[Any, Object] = {}
    for number, shape in enumerate(image, start=1):
        which = f'{place} ({name}), {shape.tag} {number}'
        with source.annotation(which):
            piece = _piece(source, shape)
            if piece is not None:
                _note_attributes(source, shape)
                label, group = label_of(shape.get('label')), shape.get('group_id', '0')
                key = which if group == '0' else (label, group)
                old = objects.get(key, Object(label, (), which))
                objects[key] = Object(label, [*old.pieces, piece], old.place)
    if not name:
        raise shapes.Unusable('has no name')
    # A project's images lie in a folder for each subset.
    found = source.find(name, *([f'{subset}/{name}'] if subset else []))
    return Picture(found, list(objects.values()), place, split_of(subset), size)


def _note_attributes(source: Source, shape: ElementTree.Element) -> None:
    """Counts what is known of a shape beside its place and its class."""
    source.attributes['occluded'] += shape.get('occluded') == '1'
    # Objects may overlap, so that nothing has to be above.
    source.attributes['z_order'] += shape.get('z_order', '0') != '0'
    for attribute in shape.iterfind('attribute'):
        source.attributes[attribute.get('name', 'attribute')] += bool(attribute.text)


def _number(element: Mapping[str, str], key: str, default: Optional[str] = None) -> float:
    text = element.get(key, default)
    if text is None or not _NUMBER.fullmatch(text):
        raise shapes.Unusable(f'has {short(text)} as its {key}; a number is wanted')
    return float(text)


def _piece(source: Source, shape: ElementTree.Element) -> Optional[shapes.Piece]:
    """What a shape covers; None where it is of a kind that is left out, which is counted."""
    if shape.tag == 'polygon':
        pairs = [pair.split(',') for pair in shape.get('points', '').split(';')]
        if not all(_NUMBER.fullmatch(value) for pair in pairs for value in pair):
            raise shapes.Unusable(f'has the points {short(shape.get("points"))}')
        return shapes.Polygon(shapes.points([[float(value) for value in pair] for pair in pairs]))
    if shape.tag == 'ellipse':
        values = [_number(shape, key) for key in ('cx', 'cy', 'rx', 'ry')]
        return shapes.ellipse(*values, _number(shape, 'rotation', '0'))
    if shape.tag == 'mask':
        return _mask(shape)
    if shape.tag == 'box' and source.boxes_are_objects:
        values = [_number(shape, key) for key in ('xtl', 'ytl', 'xbr', 'ybr')]
        return shapes.box(*values, _number(shape, 'rotation', '0'))
    source.left_out[_LEFT_OUT.get(shape.tag, f'shapes of the kind {short(shape.tag)}')] += 1
    return None


def _mask(shape: ElementTree.Element) -> shapes.Window:
    """A painted mask: run lengths along the rows of its box, background first."""
    left, top, width, height = (int(_number(shape, x)) for x in ('left', 'top', 'width', 'height'))
    too_large = images.size_error(width, height)
    if width <= 0 or height <= 0 or too_large:
        raise shapes.Unusable(f'is a mask of {width}x{height} pixels')
    counts = [coco_annotations.whole(text.strip()) for text in shape.get('rle', '').split(',')]
    return shapes.Window(shapes.row_runs(counts, height, width), top, left)
