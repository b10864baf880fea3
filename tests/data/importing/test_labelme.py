"""Import from labelme: files as labelme 5 writes them."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.data.importing import exports
from tests.data.importing.exports import HEIGHT, WIDTH, rectangle, ring


def shape(kind, points, label='cell', group_id=None, mask=None, **flags):
    return {
        'label': label,
        'points': [[float(x), float(y)] for x, y in points],
        'group_id': group_id,
        'description': '',
        'shape_type': kind,
        'flags': flags,
        'mask': mask,
    }


def png(mask):
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(file, 'PNG')
    return base64.b64encode(file.getvalue()).decode()


def write(path, shapes, image_path, data=None, size=(WIDTH, HEIGHT), **flags):
    return exports.write_json(
        path,
        {
            'version': '5.5.0',
            'flags': flags,
            'shapes': shapes,
            'imagePath': image_path,
            'imageData': data,
            'imageHeight': size[1],
            'imageWidth': size[0],
        },
    )


def test_shapes_of_every_kind(tmp_path, capsys):
    folder = tmp_path / 'set'
    exports.image(folder / 'a.png')
    painted = np.array([[1, 0, 1], [1, 1, 1]], bool)
    shapes = [
        shape('polygon', ring(2, 3, 10, 12)),
        shape('circle', [(30, 16), (30, 22)], 'nucleus'),
        # Its points are the first and the last pixel.
        shape('mask', [(40, 4), (42, 5)], mask=png(painted)),
        shape('rectangle', [(20, 30), (12, 20)]),
        shape('line', [(0, 0), (5, 5)]),
        shape('linestrip', [(0, 0), (5, 5), (9, 9)]),
        shape('point', [(7, 7)], blurred=True),
        shape('polygon', ring(2, 3, 10, 12), '__ignore__'),
    ]
    shapes[0]['flags'] = {'occluded': True, 'blurred': False}
    shapes[0]['description'] = 'at the edge'
    write(folder / 'a.json', shapes, 'a.png', reviewed=True)
    found = exports.run('labelme', folder, tmp_path / 'out')['']['a.png'].objects
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[4:6, 40:43] = painted
    assert [name for name, _ in found] == ['cell', 'nucleus', 'cell']
    np.testing.assert_array_equal(found[0][1], rectangle(2, 3, 10, 12))
    assert found[1][1].sum() == pytest.approx(np.pi * 36, abs=4)
    assert found[1][1][16, 30] and not found[1][1][22, 36]
    np.testing.assert_array_equal(found[2][1], mask)
    said = capsys.readouterr().out
    assert '1 images copied' in said and '3 objects of 2 classes: cell 2, nucleus 1' in said
    assert (
        'left out: 1 boxes, 2 lines, 1 points, 1 shapes of the label __ignore__, 3 attributes '
        '(description 1, occluded 1, reviewed 1)'
    ) in said
    found = exports.run('labelme', folder, tmp_path / 'boxes', '--boxes', 'objects')
    np.testing.assert_array_equal(found['']['a.png'].objects[3][1], rectangle(20, 12, 30, 20))


def test_a_group_of_one_label_is_one_object_of_several_pieces(tmp_path):
    exports.image(tmp_path / 'set/a.png')
    shapes = [
        shape('polygon', ring(0, 0, 4, 4), group_id=1),
        shape('polygon', ring(8, 0, 12, 4), 'nucleus', group_id=1),
        shape('polygon', ring(0, 20, 4, 30), group_id=1),
        shape('polygon', ring(20, 20, 24, 30)),
    ]
    write(tmp_path / 'set/a.json', shapes, 'a.png')
    assert exports.same(
        exports.run('labelme', tmp_path / 'set', tmp_path / 'out')['']['a.png'].objects,
        [
            ('cell', rectangle(0, 0, 4, 4) | rectangle(0, 20, 4, 30)),
            ('nucleus', rectangle(8, 0, 12, 4)),
            ('cell', rectangle(20, 20, 24, 30)),
        ],
    )


def test_images_elsewhere_of_odd_names_empty_and_of_one_name_in_two_folders(tmp_path):
    folder = tmp_path / 'set'
    names = ('Zelle größe 1.png', 'one/a.png', 'two/a.png', 'empty.png')
    for seed, name in enumerate(names):
        exports.image(folder / 'images' / name, seed)
    exports.turned_image(folder / 'images/turned.jpg')
    cell = [shape('polygon', ring(1, 2, 9, 40))]
    write(folder / 'labels/1.json', cell, '..\\images\\Zelle größe 1.png')
    write(folder / 'labels/2.json', cell, '/home/someone/set/images/one/a.png')
    write(folder / 'labels/3.json', cell, '../images/two/a.png')
    write(folder / 'labels/4.json', [], '../images/empty.png')
    write(folder / 'labels/5.json', cell, '../images/turned.jpg')
    found = exports.run('labelme', folder, tmp_path / 'out')['']
    assert found.keys() == {*names, 'turned.jpg'}
    for name, one in found.items():
        count = 0 if name == 'empty.png' else 1
        assert one.areas == [('cell', 8 * 38)] * count
        assert one.path.read_bytes() == (folder / 'images' / name).read_bytes()


def test_folders_called_train_and_val_are_splits(tmp_path):
    for seed, name in enumerate(('train/a', 'train/b', 'val/a')):
        exports.image(tmp_path / 'set' / f'{name}.png', seed)
        label = 'cell' if name != 'val/a' else 'nucleus'
        write(
            tmp_path / 'set' / f'{name}.json',
            [shape('polygon', ring(1, 1, 5, 5), label)],
            f'{name[-1]}.png',
        )
    found = exports.run('labelme', tmp_path / 'set', tmp_path / 'out')
    assert {split: set(images) for split, images in found.items()} == {
        'train': {'a.png', 'b.png'},
        'val': {'a.png'},
    }
    # The same classes in both files, whichever occur there.
    for split in found:
        assert exports.classes(tmp_path / 'out', split) == ['cell', 'nucleus']


def test_an_image_inside_of_the_json_file(tmp_path):
    path = exports.image(tmp_path / 'elsewhere/a.png')
    data = base64.b64encode(path.read_bytes()).decode()
    write(tmp_path / 'set/a.json', [shape('polygon', ring(1, 1, 5, 5))], 'a.png', data)
    found = exports.run('labelme', tmp_path / 'set', tmp_path / 'out')
    assert found['']['a.png'].path.read_bytes() == path.read_bytes()
    assert found['']['a.png'].areas == [('cell', 16)]
    # As version 4 names it.
    write(tmp_path / 'set/a.json', [shape('polygon', ring(1, 1, 5, 5))], 'a.json', data)
    found = exports.run('labelme', tmp_path / 'set', tmp_path / 'own_name')
    assert found['']['a'].path.read_bytes() == path.read_bytes()
    write(tmp_path / 'set/a.json', [shape('polygon', ring(1, 1, 5, 5))], 'a.png', data[:400])
    message = exports.error('labelme', tmp_path / 'set', tmp_path / 'other')
    assert 'a.json: the image inside cannot be read' in message


def test_images_and_shapes_that_cannot_be_used(tmp_path, capsys):
    folder = tmp_path / 'set'
    for name in ('a', 'b', 'e', 'not annotated'):
        exports.image(folder / f'{name}.png')
    write(
        folder / 'a.json',
        [shape('polygon', [(0, 0), (4, 4)]), shape('polygon', ring(1, 1, 5, 5))],
        'a.png',
    )
    write(folder / 'b.json', [shape('polygon', ring(1, 1, 5, 5))], 'b.png')
    write(folder / 'c.json', [shape('polygon', ring(1, 1, 5, 5))], 'gone.png')
    (folder / 'd.json').write_text('{"shapes": [')
    write(folder / 'e.json', [], 'e.png', size=(WIDTH, HEIGHT + 1))
    exports.write_json(folder / 'other.json', {'name': 'not of labelme'})
    message = exports.error('labelme', folder, tmp_path / 'out')
    assert message == (
        f'{folder}/a.json: shape 1: has an outline of 2 points; at least three are wanted; '
        '--skip_bad_annotations skips it alone; --skip_bad skips such images'
    )
    message = exports.error('labelme', folder, tmp_path / 'out', '--skip_bad_annotations')
    assert message.startswith(f"{folder}/c.json: its image 'gone.png' is not in {folder}")
    found = exports.run('labelme', folder, tmp_path / 'all', '--skip_bad_annotations', '--skip_bad')
    assert {name: one.areas for name, one in found[''].items()} == {
        'a.png': [('cell', 16)],
        'b.png': [('cell', 16)],
    }
    said = capsys.readouterr().out
    # Of e.png the annotations cannot be used.
    assert 'left out: 1 images without annotations\n' in said
    assert 'skipped, because they cannot be used: 3 images and 1 annotations' in said
    assert f"{folder}/other.json is not labelme's and is not used" in said


def test_two_files_of_one_image(tmp_path):
    exports.image(tmp_path / 'set/a.png')
    for name in ('a', 'b'):
        write(tmp_path / 'set' / f'{name}.json', [shape('polygon', ring(1, 1, 5, 5))], 'a.png')
    message = exports.error('labelme', tmp_path / 'set', tmp_path / 'out')
    assert message.endswith('b.json are both of the image a.png; keep one')


def test_boxes_alone(tmp_path):
    exports.image(tmp_path / 'set/a.png')
    write(tmp_path / 'set/a.json', [shape('rectangle', [(1, 1), (5, 5)])] * 3, 'a.png')
    message = exports.error('labelme', tmp_path / 'set', tmp_path / 'out')
    assert message == (
        f'{tmp_path}/set has no object with an outline that can be used: it has 3 boxes; '
        '--boxes objects takes them for outlines'
    )
