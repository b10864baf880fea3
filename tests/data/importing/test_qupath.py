"""Import from QuPath: GeoJSON as version 0.5 writes it, and that of this project."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gan_mrcnn.prediction import geojson
from tests.data.importing import exports
from tests.data.importing.exports import HEIGHT, WIDTH, rectangle

NAMES = {'Tumor': [200, 0, 0], 'Stroma: Positive': [150, 200, 150]}


def closed(box):
    corners = exports.ring(*box)
    return [*corners, corners[0]]


def feature(geometry, name='Tumor', kind='annotation', **properties):
    names = {'names': name.split(': ')} if ': ' in name else {'name': name}
    classification = {'classification': {**names, 'color': NAMES.get(name, [1, 2, 3])}}
    return {
        'type': 'Feature',
        'id': '0b9c2a4e-0000-4000-8000-000000000000',
        'geometry': geometry,
        'properties': {'objectType': kind, **(classification if name else {}), **properties},
    }


def polygon(*boxes):
    return {'type': 'Polygon', 'coordinates': [closed(box) for box in boxes]}


def collection(*features):
    return {'type': 'FeatureCollection', 'features': list(features)}


def test_objects_of_every_kind(tmp_path, capsys):
    exports.image(tmp_path / 'set/Schnitt 1.png')
    multi = {
        'type': 'MultiPolygon',
        'coordinates': [
            polygon((0, 0, 10, 10), (2, 2, 5, 5))['coordinates'],
            polygon((3, 3, 4, 4))['coordinates'],
            polygon((20, 30, 24, 40))['coordinates'],
        ],
        'plane': {'c': -1, 'z': 1, 't': 0},
    }
    features = [
        feature(polygon((12, 3, 20, 12)), name='Tumor', isLocked=True),
        feature(multi, 'Stroma: Positive', 'detection', name_of_object=''),
        {
            **feature(polygon((24, 2, 30, 12)), kind='cell', measurements={'Area': float('nan')}),
            'nucleusGeometry': polygon((25, 3, 28, 6)),
        },
        feature({'type': 'LineString', 'coordinates': [[1, 1], [2, 2]]}),
        feature({'type': 'MultiPoint', 'coordinates': [[1, 1], [2, 2]]}),
        feature(polygon((0, 0, 32, 48)), '', 'tmaCore', isMissing=False),
    ]
    exports.write_json(tmp_path / 'set/Schnitt 1.geojson', collection(*features))
    found = exports.run('qupath', tmp_path / 'set', tmp_path / 'out')['']['Schnitt 1.png']
    pieces = (rectangle(0, 0, 10, 10) & ~rectangle(2, 2, 5, 5)) | rectangle(3, 3, 4, 4)
    assert exports.same(
        found.objects,
        [
            ('Tumor', rectangle(12, 3, 20, 12)),
            ('Stroma: Positive', pieces | rectangle(20, 30, 24, 40)),
            ('Tumor', rectangle(24, 2, 30, 12)),
        ],
    )
    assert (
        'left out: 1 TMA cores, 1 lines, 1 nuclei of cells, 1 points, 1 attributes (measurements 1)'
    ) in capsys.readouterr().out


def test_other_forms_of_the_file_and_of_its_name(tmp_path):
    folder = tmp_path / 'set'
    for seed, name in enumerate(('a.png', 'b.tif', 'deep/a.jpg', 'c.png', 'd.png')):
        exports.image(folder / 'images' / name, seed)
    # Version 0.2: a list, the kind as the id, a colour of one number.
    old = {
        'type': 'Feature',
        'id': 'PathAnnotationObject',
        'geometry': polygon((0, 0, 4, 4)),
        'properties': {
            'classification': {
                'parentClass': {'name': 'Tumor', 'colorRGB': -3670016},
                'name': 'Positive',
                'colorRGB': -3670016,
            },
            'isLocked': False,
            'measurements': [],
        },
    }
    exports.write_json(folder / 'a.geojson', [old])
    exports.write_json(folder / 'export/b.tif.geojson', collection(feature(polygon((0, 0, 4, 5)))))
    exports.write_json(folder / 'export/deep/a.json', feature(polygon((0, 0, 4, 6))))
    exports.write_json(folder / 'export/c.geojson', collection())
    exports.write_json(folder / 'notes.json', {'type': 'of another kind'})
    found = exports.run('qupath', folder, tmp_path / 'out', '--images', folder / 'images')['']
    assert {name: one.areas for name, one in found.items()} == {
        'a.png': [('Tumor: Positive', 16)],
        'b.tif': [('Tumor', 20)],
        'deep/a.jpg': [('Tumor', 24)],
        'c.png': [],
    }


def test_objects_without_a_class(tmp_path):
    exports.image(tmp_path / 'set/a.png')
    none = feature(polygon((0, 0, 4, 4)), '')
    path = exports.write_json(tmp_path / 'set/a.geojson', collection(none, none))
    found = exports.run('qupath', tmp_path / 'set', tmp_path / 'out')
    assert found['']['a.png'].areas == [('object', 16)] * 2
    exports.write_json(path, collection(none, feature(polygon((0, 0, 4, 4)))))
    message = exports.error('qupath', tmp_path / 'set', tmp_path / 'other')
    assert message.startswith(f'{path}: object 1: has no class, while others have one')


def test_an_image_that_exif_turns_is_refused(tmp_path):
    exports.turned_image(tmp_path / 'set/a.jpg')
    exports.write_json(tmp_path / 'set/a.geojson', collection(feature(polygon((0, 0, 4, 4)))))
    message = exports.error('qupath', tmp_path / 'set', tmp_path / 'out')
    assert 'a.jpg is turned by EXIF' in message and 'save it upright' in message


@pytest.mark.parametrize(
    'geometry, message',
    [
        ({'type': 'Polygon', 'coordinates': []}, 'has the rings []'),
        ({'type': 'Polygon', 'coordinates': [[[0, 0], [1, 1], [0, 0]]]}, 'an outline of 2 points'),
        ({'type': 'MultiPolygon', 'coordinates': 3}, 'has the coordinates 3'),
        ({'type': 'GeometryCollection', 'geometries': []}, 'a Polygon is wanted'),
        ({'type': ['Polygon']}, 'a Polygon is wanted'),
        (None, 'has None as its geometry'),
        (polygon((40, 60, 44, 64)), 'lies outside its image'),
    ],
)
def test_an_object_that_cannot_be_used(tmp_path, geometry, message):
    exports.image(tmp_path / 'set/a.png')
    features = [feature(polygon((0, 0, 4, 4))), feature(geometry)]
    exports.write_json(tmp_path / 'set/a.geojson', collection(*features))
    said = exports.error('qupath', tmp_path / 'set', tmp_path / 'out')
    assert 'a.geojson: object 2: ' in said and message in said
    found = exports.run('qupath', tmp_path / 'set', tmp_path / 'out', '--skip_bad_annotations')
    assert found['']['a.png'].areas == [('Tumor', 16)]


def as_sets(geometry):
    """Polygons as sets of rings, each from its smallest point on, in either direction."""
    coordinates = geometry['coordinates']
    polygons = [coordinates] if geometry['type'] == 'Polygon' else coordinates
    found = []
    for rings in polygons:
        normal = []
        for ring in rings:
            corners = [tuple(map(float, point)) for point in ring[:-1]]
            start = corners.index(min(corners))
            turned = corners[start:] + corners[:start]
            normal.append(min(turned, [turned[0], *turned[:0:-1]]))
        found.append((normal[0], sorted(normal[1:])))
    return sorted(found)


def exported(objects):
    """What this project writes of the objects that an import gave."""
    return [as_sets(geojson.geometry(geojson.polygons(mask))) for _, mask in objects]


def test_outlines_along_pixels_come_back_as_they_went_in(tmp_path):
    exports.image(tmp_path / 'set/a.png')
    # By hand: a ring with two holes, one of them with an island; steps; two pieces.
    geometries = [
        {
            'type': 'MultiPolygon',
            'coordinates': [
                polygon((1, 1, 15, 20), (3, 3, 9, 9), (10, 12, 12, 18))['coordinates'],
                polygon((5, 5, 7, 7))['coordinates'],
            ],
        },
        {
            'type': 'Polygon',
            'coordinates': [
                [[30, 2], [34, 2], [34, 4], [36, 4], [36, 9], [32, 9], [32, 6], [30, 6], [30, 2]]
            ],
        },
        {
            'type': 'MultiPolygon',
            'coordinates': [
                polygon((20, 0, 32, 8))['coordinates'],
                # It touches the first piece at a corner alone.
                polygon((16, 8, 20, 12))['coordinates'],
            ],
        },
    ]
    features = [feature(geometry) for geometry in geometries]
    exports.write_json(tmp_path / 'set/a.geojson', collection(*features))
    found = exports.run('qupath', tmp_path / 'set', tmp_path / 'out')['']['a.png']
    assert exported(found.objects) == [as_sets(geometry) for geometry in geometries]


@settings(max_examples=20)
@given(
    masks=st.lists(
        hnp.arrays(bool, (HEIGHT // 2, WIDTH // 2), elements=st.booleans()).filter(np.any),
        min_size=1,
        max_size=3,
    )
)
def test_any_mask_that_was_exported_is_imported_as_it_was(tmp_path_factory, masks):
    folder = tmp_path_factory.mktemp('round_trip')
    exports.image(folder / 'set/a.png')
    masks = [np.pad(mask, ((5, HEIGHT // 2 - 5), (7, WIDTH // 2 - 7))) for mask in masks]
    geometries = [geojson.geometry(geojson.polygons(mask)) for mask in masks]
    features = json.loads(json.dumps([feature(geometry) for geometry in geometries]))
    exports.write_json(folder / 'set/a.geojson', collection(*features))
    found = exports.run('qupath', folder / 'set', folder / 'out')['']['a.png'].objects
    assert exports.same(found, [('Tumor', mask) for mask in masks])
    assert exported(found) == [as_sets(geometry) for geometry in geometries]
