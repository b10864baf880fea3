"""Import from the VGG Image Annotator: projects and annotations of VIA 2, and those of VIA 1."""

import math

import numpy as np
import pytest

from tests.data.importing import exports
from tests.data.importing.exports import rectangle


def region(shape, **attributes):
    return {'shape_attributes': shape, 'region_attributes': attributes}


def polygon(box, **attributes):
    x, y = zip(*exports.ring(*box))
    shape = {'name': 'polygon', 'all_points_x': list(x), 'all_points_y': list(y)}
    return region(shape, **attributes)


def entry(path, regions, name=None, **attributes):
    size = path.stat().st_size if path else -1
    name = name or path.name
    return f'{name}{size}', {
        'filename': name,
        'size': size,
        'regions': regions,
        'file_attributes': attributes,
    }


def project(entries):
    entries = dict(entries)
    return {
        '_via_settings': {
            'ui': {'annotation_editor_height': 25, 'image_grid': {'img_height': 80}},
            'core': {'buffer_size': '18', 'filepath': {}, 'default_filepath': ''},
            'project': {'name': 'cells'},
        },
        '_via_img_metadata': entries,
        '_via_attributes': {
            'region': {
                'class': {
                    'type': 'dropdown',
                    'description': '',
                    'options': {'cell': '', 'nucleus': ''},
                    'default_options': {},
                }
            },
            'file': {},
        },
        '_via_data_format_version': '2.0.10',
        '_via_image_id_list': list(entries),
    }


def test_a_project_with_shapes_of_every_kind(tmp_path, capsys):
    path = exports.image(tmp_path / 'set/Bild ä.png')
    empty = exports.image(tmp_path / 'set/empty.png', 1)
    ellipse = {'name': 'ellipse', 'cx': 30, 'cy': 16, 'rx': 8, 'ry': 4, 'theta': math.pi / 2}
    regions = [
        polygon((2, 3, 10, 12), **{'class': 'cell'}),
        region({'name': 'circle', 'cx': 10, 'cy': 22, 'r': 6}, **{'class': 'nucleus'}),
        region(ellipse, **{'class': 'nucleus'}),
        region({'name': 'rect', 'x': 40, 'y': 1, 'width': 5, 'height': 4}, **{'class': 'cell'}),
        region({'name': 'point', 'cx': 5, 'cy': 5}, **{'class': 'cell'}),
        region({'name': 'polyline', 'all_points_x': [1, 2], 'all_points_y': [1, 2]}),
    ]
    content = project([entry(path, regions, quality='good'), entry(empty, [])])
    exports.write_json(tmp_path / 'set/via_project.json', content)
    found = exports.run('via', tmp_path / 'set', tmp_path / 'out')['']
    assert found['empty.png'].objects == []
    (first, circle, ellipse) = found['Bild ä.png'].objects
    assert exports.same([first], [('cell', rectangle(2, 3, 10, 12))])
    assert circle[0] == 'nucleus' and circle[1].sum() == pytest.approx(np.pi * 36, abs=4)
    y, x = np.nonzero(ellipse[1])
    assert (y.min(), y.max() + 1, x.min(), x.max() + 1) == (8, 24, 26, 34)
    said = capsys.readouterr().out
    assert "via_project.json: the class is the attribute 'class'" in said
    assert 'left out: 1 boxes, 1 lines, 1 points, 1 attributes (quality 1)' in said
    found = exports.run('via', tmp_path / 'set', tmp_path / 'boxes', '--boxes', 'objects')
    np.testing.assert_array_equal(found['']['Bild ä.png'].objects[3][1], rectangle(1, 40, 5, 45))


def test_annotations_of_via_1_and_without_a_class(tmp_path):
    path = exports.image(tmp_path / 'set/a.png')
    shape = polygon((2, 3, 10, 12))
    # VIA 1 numbers regions, and repeats the first point.
    for key in ('all_points_x', 'all_points_y'):
        values = shape['shape_attributes'][key]
        values.append(values[0])
    key, value = entry(path, {'0': shape, '1': polygon((20, 3, 22, 12))})
    content = {key: {'fileref': '', 'base64_img_data': '', **value}}
    exports.write_json(tmp_path / 'set/via_region_data.json', content)
    found = exports.run('via', tmp_path / 'set', tmp_path / 'out')['']
    assert found['a.png'].areas == [('object', 8 * 9), ('object', 2 * 9)]


def test_which_attribute_is_the_class(tmp_path, capsys):
    path = exports.image(tmp_path / 'set/a.png')
    regions = [
        polygon((0, 0, 4, 4), kind='cell', colour={'red': True, 'blue': False}),
        polygon((8, 0, 12, 4), kind='nucleus', colour={'red': False}),
        polygon((16, 0, 20, 4), kind=7),
    ]
    exports.write_json(tmp_path / 'set/via.json', dict([entry(path, regions)]))
    message = exports.error('via', tmp_path / 'set', tmp_path / 'out')
    assert message == (
        f'{tmp_path}/set/via.json: its regions have the attributes colour, kind; say by '
        '--class_attribute which of them is the class'
    )
    message = exports.error('via', tmp_path / 'set', tmp_path / 'out', '--class_attribute', 'type')
    assert message.endswith('via.json has it; there are colour, kind')
    found = exports.run('via', tmp_path / 'set', tmp_path / 'out', '--class_attribute', 'kind')
    assert found['']['a.png'].areas == [('cell', 16), ('nucleus', 16), ('7', 16)]
    assert 'left out: 2 attributes (colour 2)' in capsys.readouterr().out
    flags = ('--class_attribute', 'colour', '--skip_bad_annotations')
    found = exports.run('via', tmp_path / 'set', tmp_path / 'colours', *flags)
    assert found['']['a.png'].areas == [('red', 16)]


def test_files_of_one_name_are_told_apart_by_their_bytes(tmp_path):
    paths = [exports.image(tmp_path / f'set/{name}/a.png', seed, 32, 48 + seed)
             for seed, name in enumerate(('one', 'two'))]  # fmt: skip
    assert paths[0].stat().st_size != paths[1].stat().st_size
    entries = [entry(path, [polygon((0, 0, 4, 4 + n))]) for n, path in enumerate(paths)]
    exports.write_json(tmp_path / 'set/via.json', project(entries))
    found = exports.run('via', tmp_path / 'set', tmp_path / 'out')['']
    assert {name: one.areas for name, one in found.items()} == {
        'one/a.png': [('object', 16)],
        'two/a.png': [('object', 20)],
    }
    key, value = entries[0]
    exports.write_json(tmp_path / 'set/via.json', project([(key, {**value, 'size': 1})]))
    message = exports.error('via', tmp_path / 'set', tmp_path / 'other')
    assert f'did you mean {paths[0]} or {paths[1]}?' in message


@pytest.mark.parametrize(
    'content, message',
    [
        ([], 'is not the JSON export of VIA'),
        ({}, 'is not the JSON export of VIA'),
        ({'a.png1': {'filename': 'a.png'}}, 'is not the JSON export of VIA'),
        ({'project': {}, 'config': {}, 'file': {}, 'metadata': {}, 'view': {}}, 'of VIA 3'),
        ({'a': {'filename': '../b.png', 'regions': []}}, "its image '../b.png' is not in"),
        ({'a': {'filename': '', 'regions': []}}, "has the filename ''"),
        ({'a': {'filename': 'a.png', 'regions': 3}}, 'has 3 as its regions'),
        ({'a': {'filename': 'a.png', 'regions': [3]}}, 'has 3 as its region;'),
    ],
)
def test_what_is_not_the_export(tmp_path, content, message):
    exports.image(tmp_path / 'set/a.png')
    exports.image(tmp_path / 'b.png')
    path = exports.write_json(tmp_path / 'set/via.json', content)
    assert message in exports.error('via', path, tmp_path / 'out')
