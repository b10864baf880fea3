# SPDX-License-Identifier: Apache-2.0
"""QuPath: objects as GeoJSON, a file for each image, with the name of the image.

`a.geojson` and `a.png.geojson` belong to `a.png`: QuPath does not write into the file which image
it is of. Coordinates are pixels of the full resolution, from the upper left corner of the image.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, Optional

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
from gan_mrcnn.utils.coco_annotations import short
from gan_mrcnn.utils.errors import UserError

_LEFT_OUT = {
    **dict.fromkeys(('LineString', 'MultiLineString'), 'lines'),
    **dict.fromkeys(('Point', 'MultiPoint'), 'points'),
}
_NOT_OBJECTS = {'root': 'roots', 'tmaCore': 'TMA cores', 'TMACoreObject': 'TMA cores'}


def read(source: Source) -> Export:
    """All images that have a file of objects.

    Raises:
      UserError: there is none, or an image, a file or an object cannot be used.
    """
    pictures: list[Picture] = []
    count = 0
    for path in source.files('.geojson', '.json'):
        with source.image(str(path)):
            features = _features(load_json(path, 'QuPath'))
            if features is None:
                print(f'{path} is not GeoJSON and is not used', flush=True)
                continue
            count += 1
            pictures.append(_picture(source, path, features))
    if not count:
        raise UserError(f'{source.path} has no GeoJSON file of QuPath')
    source.count_other_images(pictures)
    return Export(pictures)


def _features(content: Any) -> Optional[list[Any]]:
    """The objects of a file: a FeatureCollection, a list, or one object; None for other JSON."""
    kind = content.get('type') if isinstance(content, dict) else None
    if kind == 'FeatureCollection' and isinstance(content.get('features'), list):
        return content['features']
    if kind == 'Feature':
        return [content]
    is_list = isinstance(content, list) and all(
        isinstance(x, dict) and x.get('type') == 'Feature' for x in content
    )
    return content if is_list else None


def _picture(source: Source, path: pathlib.Path, features: list[Any]) -> Picture:
    objects = []
    for number, feature in enumerate(features, start=1):
        place = f'{path}: object {number}'
        with source.annotation(place):
            pieces = _pieces(source, mapping(feature, 'feature'))
            if pieces:
                objects.append(Object(_label(source, feature), pieces, place))
    name = source.relative(path)
    stem = name[: -len(path.suffix)] if path.suffix else name
    found = source.find(stem)
    return Picture(found, objects, place=str(path), must_be_upright=True)


def _label(source: Source, feature: Mapping[str, Any]) -> Optional[str]:
    """The class, such as `Tumor` or `Tumor: Positive`; counts what else is known of the object."""
    properties = mapping(feature.get('properties') or {}, 'properties')
    source.attributes['measurements'] += bool(properties.get('measurements'))
    source.attributes['name'] += bool(properties.get('name'))
    source.attributes['metadata'] += bool(properties.get('metadata'))
    children = properties.get('childObjects')
    source.left_out['objects inside of others'] += (
        len(children) if isinstance(children, list) else 0
    )
    source.left_out['nuclei of cells'] += bool(feature.get('nucleusGeometry'))
    return _class_name(properties.get('classification'))


def _class_name(classification: Any) -> Optional[str]:
    """`Tumor: Positive` for the names of a class, since version 0.4, or a class inside of one."""
    found: list[str] = []
    while isinstance(classification, dict):
        names = classification.get('names')
        names = names if isinstance(names, list) else [classification.get('name')]
        found = [*(label_of(name) or '' for name in names), *found]
        classification = classification.get('parentClass')
    return ': '.join(filter(None, [label_of(classification), *found])) or None


def _pieces(source: Source, feature: Mapping[str, Any]) -> list[shapes.Polygon]:
    """What an object covers; nothing where it is of a kind that is left out, which is counted."""
    properties = mapping(feature.get('properties') or {}, 'properties')
    # Until version 0.2 the type was the id.
    kind = str(properties.get('objectType', properties.get('object_type', feature.get('id'))))
    if kind in _NOT_OBJECTS:
        source.left_out[_NOT_OBJECTS[kind]] += 1
        return []
    geometry = mapping(feature.get('geometry'), 'geometry')
    shape, coordinates = geometry.get('type'), geometry.get('coordinates')
    if shape == 'Polygon':
        return [_polygon(coordinates)]
    if shape == 'MultiPolygon':
        if not isinstance(coordinates, list) or not coordinates:
            raise shapes.Unusable(f'has the coordinates {short(coordinates)}')
        return [_polygon(rings) for rings in coordinates]
    if isinstance(shape, str) and shape in _LEFT_OUT:
        source.left_out[_LEFT_OUT[shape]] += 1
        return []
    raise shapes.Unusable(f'has a geometry of the type {short(shape)}; a Polygon is wanted')


def _polygon(rings: Any) -> shapes.Polygon:
    """A polygon of GeoJSON: its outline, then its holes."""
    if not isinstance(rings, list) or not rings:
        raise shapes.Unusable(f'has the rings {short(rings)}; a list is wanted')
    outline, *holes = (shapes.points(ring) for ring in rings)
    return shapes.Polygon(outline, tuple(holes))
