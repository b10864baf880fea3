"""Import from YOLO's outlines: the layouts of Ultralytics and of Roboflow's exports."""

import pytest

from tests.data.importing import exports
from tests.data.importing.exports import HEIGHT, WIDTH, rectangle


def line(number, y1, x1, y2, x2):
    corners = exports.ring(y1, x1, y2, x2)
    return ' '.join([str(number), *(f'{x / WIDTH:.6f} {y / HEIGHT:.6f}' for x, y in corners)])


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join([*lines, '']), 'utf-8')
    return path


def test_the_layout_of_ultralytics(tmp_path, capsys):
    folder = tmp_path / 'set'
    for seed, name in enumerate(('train/a b.png', 'train/leer.png', 'val/a b.png')):
        exports.image(folder / 'images' / name, seed)
    exports.turned_image(folder / 'images/train/turned.jpg')
    text(
        folder / 'labels/train/a b.txt',
        line(0, 2, 3, 10, 12),
        '1 0.5 0.5 0.25 0.25',
        line(2, 20, 30, 30, 40),
    )
    text(folder / 'labels/train/turned.txt', line(0, 1, 2, 3, 40))
    text(folder / 'labels/val/a b.txt', line(1, 0, 0, 4, 4))
    text(
        folder / 'cells.yaml',
        '# Train/val/test sets',
        'path: ../datasets/cells # dataset root dir',
        'train: images/train # train images (relative to path)',
        'val: images/val',
        'test: # test images (optional)',
        'names:',
        '  0: cell',
        '  1: nucleus',
        '  2: 3',
        '  3: mitosis',
    )
    found = exports.run('yolo', folder, tmp_path / 'out')
    assert exports.same(
        found['train']['a b.png'].objects,
        [('cell', rectangle(2, 3, 10, 12)), ('3', rectangle(20, 30, 30, 40))],
    )
    assert found['train']['leer.png'].objects == []
    # As displayed.
    assert exports.same(found['train']['turned.jpg'].objects, [('cell', rectangle(1, 2, 3, 40))])
    assert found['val']['a b.png'].areas == [('nucleus', 16)]
    for split in found:
        assert exports.classes(tmp_path / 'out', split) == ['cell', 'nucleus', '3', 'mitosis']
    said = capsys.readouterr().out
    assert '4 images copied (train 3, val 1), 1 without objects' in said
    assert 'left out: 1 boxes' in said and 'classes without an object: mitosis' in said
    found = exports.run('yolo', folder, tmp_path / 'boxes', '--boxes', 'objects')
    # 0.25 of 48 x 32 pixels around the middle.
    assert exports.same(
        found['train']['a b.png'].objects[1:2], [('nucleus', rectangle(12, 18, 20, 30))]
    )


def test_the_layout_of_roboflow(tmp_path):
    folder = tmp_path / 'set'
    for seed, split in enumerate(('train', 'valid', 'test')):
        name = f'a_png.rf.{seed}'
        exports.image(folder / split / 'images' / f'{name}.jpg', seed)
        text(folder / split / 'labels' / f'{name}.txt', line(0, 0, 0, 4 + seed, 4))
    text(
        folder / 'data.yaml',
        'train: ../train/images',
        'val: ../valid/images',
        'test: ../test/images',
        '',
        'nc: 1',
        "names: ['cell']",
        '',
        'roboflow:',
        '  workspace: lab',
        '  project: cells',
        '  version: 1',
    )
    found = exports.run('yolo', folder, tmp_path / 'out')
    assert {split: [one.areas for one in images.values()] for split, images in found.items()} == {
        'train': [[('cell', 16)]],
        'val': [[('cell', 20)]],
        'test': [[('cell', 24)]],
    }


def test_pieces_and_a_hole_that_are_joined_by_lines(tmp_path):
    exports.image(tmp_path / 'set/images/train/a.png')
    # An outline, there and back to another one: what tools write for two pieces, or a hole.
    pieces = [(2, 2), (10, 2), (10, 10), (2, 10), (2, 2)]
    pieces += [(20, 20), (30, 20), (30, 28), (20, 28), (20, 20), (2, 2)]
    hole = [(32, 2), (46, 2), (46, 16), (32, 16), (32, 2)]
    hole += [(36, 6), (36, 10), (40, 10), (40, 6), (36, 6), (32, 2)]
    lines = [
        ' '.join(['0', *(f'{x / WIDTH:.6f} {y / HEIGHT:.6f}' for x, y in points)])
        for points in (pieces, hole)
    ]
    text(tmp_path / 'set/labels/train/a.txt', *lines)
    text(tmp_path / 'set/data.yaml', 'train: images/train', "names: ['cell']")
    assert exports.same(
        exports.run('yolo', tmp_path / 'set', tmp_path / 'out')['train']['a.png'].objects,
        [
            ('cell', rectangle(2, 2, 10, 10) | rectangle(20, 20, 28, 30)),
            ('cell', rectangle(2, 32, 16, 46) & ~rectangle(6, 36, 10, 40)),
        ],
    )


def test_a_list_of_images(tmp_path):
    for seed, name in enumerate(('images/a.png', 'images/more/a.png')):
        exports.image(tmp_path / 'set' / name, seed)
    text(tmp_path / 'set/labels/a.txt', line(0, 0, 0, 4, 4))
    text(tmp_path / 'set/train.txt', './images/a.png', './images/more/a.png')
    text(tmp_path / 'set/data.yaml', 'train: train.txt', "names: ['cell']")
    found = exports.run('yolo', tmp_path / 'set', tmp_path / 'out')
    assert {name: one.areas for name, one in found['train'].items()} == {
        'a.png': [('cell', 16)],
        'more/a.png': [],
    }


@pytest.mark.parametrize(
    'row, message',
    [
        ('1 0.1 0.1 0.5 0.1 0.5 0.5', "has the class '1'; data.yaml names 1"),
        ('cell 0.1 0.1 0.5 0.1 0.5 0.5', "has the class 'cell'"),
        ('0 0.1 0.1 0.5 0.1 0.5', 'has 5 numbers after the class'),
        ('0 0.1 0.1 0.5 x 0.5 0.5', 'numbers are wanted'),
        ('0 0.1 0.1 0.5 nan 0.5 0.5', 'a finite number is wanted'),
        ('0 10 10 50 10 50 50', 'lies outside its image'),
    ],
)
def test_a_line_that_cannot_be_used(tmp_path, row, message):
    exports.image(tmp_path / 'set/images/train/a.png')
    text(tmp_path / 'set/labels/train/a.txt', line(0, 0, 0, 4, 4), '', row)
    text(tmp_path / 'set/data.yaml', 'train: images/train', "names: ['cell']")
    said = exports.error('yolo', tmp_path / 'set', tmp_path / 'out')
    assert said.startswith(f'{tmp_path}/set/labels/train/a.txt, line 3: ') and message in said
    found = exports.run('yolo', tmp_path / 'set', tmp_path / 'out', '--skip_bad_annotations')
    assert found['train']['a.png'].areas == [('cell', 16)]


def test_labels_without_an_image(tmp_path):
    exports.image(tmp_path / 'set/images/train/a.png')
    for name in ('a', 'b'):
        text(tmp_path / f'set/labels/train/{name}.txt', line(0, 0, 0, 4, 4))
    text(tmp_path / 'set/data.yaml', 'train: images/train', "names: ['cell']")
    message = exports.error('yolo', tmp_path / 'set', tmp_path / 'out')
    assert message == (
        f'{tmp_path}/set/labels/train/b.txt: has no image; --skip_bad skips such images'
    )
    found = exports.run('yolo', tmp_path / 'set', tmp_path / 'out', '--skip_bad')
    assert set(found['train']) == {'a.png'}


@pytest.mark.parametrize(
    'lines, message',
    [
        (['train: images/train'], 'has no names'),
        (['- a'], 'has no names'),
        (['names: 3', 'train: images/train'], 'has the names 3'),
        (['names: [cell]', 'train: images/train', 'kpt_shape: [17, 3]'], 'is of key points'),
        (['names: [cell]', 'train: ../../elsewhere'], 'name the folder that it is in by --images'),
        (['names: [cell]', 'train: /etc'], 'name the folder that it is in by --images'),
        (['names: [cell]', 'train: [3]'], 'train is 3, which is not in'),
        (['names: [cell]'], 'has no image that can be used'),
        (['names: [""]', 'train: images/train'], "there is a class ''; give it a name"),
        (['names: {'], 'is not YAML'),
    ],
)
def test_what_is_not_the_export(tmp_path, lines, message):
    exports.image(tmp_path / 'set/images/train/a.png')
    text(tmp_path / 'set/data.yaml', *lines)
    assert message in exports.error('yolo', tmp_path / 'set', tmp_path / 'out')
