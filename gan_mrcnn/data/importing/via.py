# SPDX-License-Identifier: Apache-2.0
"""VGG Image Annotator 1 and 2: a JSON file with the regions of all images, or a whole project.

VIA knows no classes: one of the attributes of regions is taken for it. It has no groups either, so
that each region is an object.
"""

import collections
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from gan_mrcnn.data.importing import shapes
from gan_mrcnn.data.importing.source import Export, Object, Picture, Source, load_json, mapping
from gan_mrcnn.utils import coco_annotations
from gan_mrcnn.utils.coco_annotations import short
from gan_mrcnn.utils.errors import UserError

_LEFT_OUT = {'point': 'points', 'polyline': 'lines', 'rect': 'boxes'}


def read(source: Source) -> Export:
    """All images of the file.

    Raises:
      UserError: it is not VIA's, it is not clear which attribute names the class, or an image or a
        region cannot be used.
    """
    path = source.one_file('.json')
    entries = _entries(path)
    attribute = _class_attribute(source, path, entries)
    pictures = []
    for name, entry in entries:
        with source.image(f'{path}: {short(name)}'):
            pictures.append(_picture(source, path, entry, attribute))
    return Export(pictures)


def _entries(path: pathlib.Path) -> list[tuple[str, Mapping[str, Any]]]:
    content = load_json(path, 'VIA')
    if isinstance(content, dict) and {'project', 'metadata', 'file'} <= content.keys():
        raise UserError(f'{path} is a project of VIA 3; VIA 1 and 2 are read')
    found = content.get('_via_img_metadata', content) if isinstance(content, dict) else None
    if (
        not isinstance(found, dict)
        or not found
        or not all(isinstance(x, dict) and 'regions' in x for x in found.values())
    ):
        raise UserError(f'{path} is not the JSON export of VIA: an entry with regions per image')
    return list(found.items())


def _regions(entry: Mapping[str, Any]) -> list[Any]:
    """A list; VIA 1 numbers them in an object. Empty where it is neither."""
    regions = entry['regions']
    if isinstance(regions, dict):
        return list(regions.values())
    return regions if isinstance(regions, list) else []


def _attributes(item: Any, key: str) -> dict[str, Any]:
    """Attributes of a region or a file that have a value."""
    found = item.get(key) if isinstance(item, dict) else None
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: value for name, value in pairs if value not in ('', None, {})}


def _class_attribute(source: Source, path: pathlib.Path, entries: Sequence) -> Optional[str]:
    """The attribute that names the class, None where regions have no attributes."""
    found: collections.Counter = collections.Counter()
    for _, entry in entries:
        for region in _regions(entry):
            found.update(_attributes(region, 'region_attributes').keys())
    listed = ', '.join(map(str, sorted(found)))
    if source.class_attribute:
        if source.class_attribute not in found:
            raise UserError(
                f'--class_attribute {source.class_attribute}: no region of {path} has it; there '
                f'are {listed or "no attributes"}'
            )
        return source.class_attribute
    if len(found) > 1:
        raise UserError(
            f'{path}: its regions have the attributes {listed}; say by --class_attribute which of '
            'them is the class'
        )
    if found:
        print(f'{path}: the class is the attribute {short(*found)}', flush=True)
    return next(iter(found), None)


def _picture(source: Source, path, entry: Mapping[str, Any], attribute: Optional[str]) -> Picture:
    name = entry.get('filename')
    if not isinstance(name, str) or not name:
        raise shapes.Unusable(f'has the filename {short(name)}; the name of an image is wanted')
    if not isinstance(entry['regions'], (dict, list)):
        raise shapes.Unusable(f'has {short(entry["regions"])} as its regions; a list is wanted')
    source.attributes.update(_attributes(entry, 'file_attributes').keys())
    objects = []
    for number, region in enumerate(_regions(entry), start=1):
        place = f'{path}: region {number} of {short(name)}'
        with source.annotation(place):
            pieces = _pieces(source, mapping(region, 'region'))
            if pieces:
                attributes = _attributes(region, 'region_attributes')
                label = _label(attributes.pop(attribute, None))
                source.attributes.update(attributes.keys())
                objects.append(Object(label, pieces, place))
    size = coco_annotations.whole(entry.get('size'))
    return Picture(source.find(name, num_bytes=size), objects, place=f'{path}: {short(name)}')


def _label(value: Any) -> Optional[str]:
    """The class; an attribute with check boxes has an object, {'cell': true}."""
    chosen = (
        [key for key, is_set in value.items() if is_set] if isinstance(value, dict) else [value]
    )
    if len(chosen) > 1:
        raise shapes.Unusable(f'has the classes {short(chosen)}; one is wanted')
    label = chosen[0] if chosen else None
    # A number that is typed into a form is a number in the file.
    return None if label is None else str(label).strip() or None


def _pieces(source: Source, region: Mapping[str, Any]) -> list[shapes.Polygon]:
    """What a region covers; nothing where it is of a kind that is left out, which is counted."""
    shape = mapping(region.get('shape_attributes'), 'shape_attributes')
    kind = shape.get('name')
    if kind == 'polygon':
        x, y = shape.get('all_points_x'), shape.get('all_points_y')
        if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y):
            raise shapes.Unusable('has no two lists of as many x as y')
        return [shapes.Polygon(shapes.points(list(zip(x, y))))]
    if kind == 'circle':
        radius = shape.get('r')
        return [shapes.ellipse(shape.get('cx'), shape.get('cy'), radius, radius)]
    if kind == 'ellipse':
        (theta,) = shapes.numbers([shape.get('theta', 0)])
        values = [shape.get(key) for key in ('cx', 'cy', 'rx', 'ry')]
        return [shapes.ellipse(*values, math.degrees(theta))]
    if kind == 'rect' and source.boxes_are_objects:
        x, y, w, h = shapes.numbers([shape.get(key) for key in ('x', 'y', 'width', 'height')])
        return [shapes.box(x, y, x + w, y + h)]
    source.left_out[_LEFT_OUT.get(str(kind), 'regions of an unknown kind')] += 1
    return []
