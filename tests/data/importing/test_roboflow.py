"""Import from Roboflow: the COCO export with its folders."""

import pytest

from tests.data import layouts
from tests.data.importing import exports
from tests.data.importing.exports import HEIGHT, WIDTH, rectangle


def annotation(number, box, segmentation, image_id=0, category_id=1):
    y1, x1, y2, x2 = box
    return {
        'id': number,
        'image_id': image_id,
        'category_id': category_id,
        'bbox': [x1, y1, x2 - x1, y2 - y1],
        'area': (x2 - x1) * (y2 - y1),
        'segmentation': segmentation,
        'iscrowd': 0,
    }


def content(annotations, *names):
    return {
        'info': {
            'year': '2026',
            'version': '1',
            'description': 'Exported from roboflow.com',
            'contributor': '',
            'url': 'https://public.roboflow.com/object-detection/undefined',
            'date_created': '2026-01-05T10:11:12+00:00',
        },
        'licenses': [{'id': 1, 'url': '', 'name': 'Private'}],
        'categories': [
            {'id': 0, 'name': 'cells', 'supercategory': 'none'},
            {'id': 1, 'name': 'cell', 'supercategory': 'cells'},
            {'id': 2, 'name': 'nucleus', 'supercategory': 'cells'},
        ],
        'images': [
            {
                'id': number,
                'license': 1,
                'file_name': name,
                'height': HEIGHT,
                'width': WIDTH,
                'date_captured': '2026-01-05T10:11:12+00:00',
                'extra': {'name': 'Zelle 1.png'},
            }
            for number, name in enumerate(names)
        ],
        'annotations': annotations,
    }


def test_splits_pieces_run_lengths_and_boxes(tmp_path, capsys):
    folder = tmp_path / 'set'
    pieces = [layouts.polygon(0, 0, 4, 4), layouts.polygon(0, 20, 4, 30)]
    ring = rectangle(10, 10, 20, 20) & ~rectangle(12, 12, 14, 14)
    train = [
        annotation(0, (0, 0, 4, 30), [[float(x) for x in piece] for piece in pieces]),
        annotation(1, (10, 10, 20, 20), layouts.compressed(ring), category_id=2),
        annotation(2, (20, 1, 24, 5), []),
    ]
    splits = {
        'train': (train, 'a_png.rf.1.jpg', 'leer_png.rf.2.jpg'),
        'valid': ([annotation(0, (1, 1, 5, 5), [layouts.polygon(1, 1, 5, 5)])], 'b_png.rf.3.jpg'),
        'test': ([], 'a_png.rf.1.jpg'),
    }
    for seed, (split, (annotations, *names)) in enumerate(splits.items()):
        for name in names:
            exports.image(folder / split / name, seed)
        path = folder / split / '_annotations.coco.json'
        exports.write_json(path, content(annotations, *names))
    (folder / 'README.roboflow.txt').write_text('cells - v1')
    found = exports.run('roboflow', folder, tmp_path / 'out')
    assert exports.same(
        found['train']['a_png.rf.1.jpg'].objects,
        [('cell', rectangle(0, 0, 4, 4) | rectangle(0, 20, 4, 30)), ('nucleus', ring)],
    )
    assert found['train']['leer_png.rf.2.jpg'].objects == []
    assert found['val']['b_png.rf.3.jpg'].areas == [('cell', 16)]
    assert found['test']['a_png.rf.1.jpg'].objects == []
    assert exports.classes(tmp_path / 'out', 'train') == ['cell', 'nucleus']
    said = capsys.readouterr().out
    assert '4 images copied (test 1, train 2, val 1), 2 without objects' in said
    assert 'left out: 1 boxes' in said
    found = exports.run('roboflow', folder, tmp_path / 'boxes', '--boxes', 'objects')
    assert exports.same(
        found['train']['a_png.rf.1.jpg'].objects[2:], [('cell', rectangle(20, 1, 24, 5))]
    )


@pytest.mark.parametrize(
    'bad, message',
    [
        (annotation(5, (1, 1, 5, 5), [[1, 1, 5, 5]]), 'has an outline of 2 points'),
        (annotation(5, (1, 1, 5, 5), [1, 1, 5, 5, 9, 9]), 'has the segmentation'),
        (annotation(5, (1, 1, 5, 5), 'a'), 'has the segmentation'),
        (annotation(5, (1, 1, 5, 5), {'size': [1, 1], 'counts': 'a'}), 'has run lengths for'),
        (annotation(5, (1, 1, 5, 5), [[1, 1, 5, 1, 5, 5]], category_id=7), 'has the category id 7'),
    ],
)
def test_an_annotation_that_cannot_be_used(tmp_path, bad, message):
    exports.image(tmp_path / 'set/train/a.png')
    good = annotation(0, (0, 0, 4, 4), [layouts.polygon(0, 0, 4, 4)])
    exports.write_json(tmp_path / 'set/train/_annotations.coco.json', content([good, bad], 'a.png'))
    said = exports.error('roboflow', tmp_path / 'set', tmp_path / 'out')
    assert f"_annotations.coco.json: 'a.png': annotation 5: {message}" in said
    found = exports.run('roboflow', tmp_path / 'set', tmp_path / 'out', '--skip_bad_annotations')
    assert found['train']['a.png'].areas == [('cell', 16)]


def test_what_is_not_the_export(tmp_path):
    exports.write_json(tmp_path / 'set/other.json', {})
    message = exports.error('roboflow', tmp_path / 'set', tmp_path / 'out')
    assert 'has no _annotations.coco.json; export from Roboflow as COCO' in message
    exports.write_json(tmp_path / 'set/train/_annotations.coco.json', [])
    message = exports.error('roboflow', tmp_path / 'set', tmp_path / 'out')
    assert 'has no list of images' in message
