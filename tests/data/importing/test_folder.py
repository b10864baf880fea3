"""The folder that is written: read by `coco_format`, whole or not at all, whatever the JSON."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gan_mrcnn import __main__ as program
from gan_mrcnn.data import importing, readers
from gan_mrcnn.data.check import check
from gan_mrcnn.utils.errors import UserError
from tests import any_json
from tests.data import round_trip
from tests.data.importing import exports, test_cvat, test_labelme, test_qupath
from tests.data.importing import test_labelstudio as label_studio
from tests.data.importing.exports import rectangle, ring


def labelme_set(folder, count=4):
    for number in range(count):
        exports.image(folder / f'{number}.png', number)
        shapes = [test_labelme.shape('polygon', ring(1, 1, 9 + number, 20))]
        test_labelme.write(folder / f'{number}.json', shapes, f'{number}.png')
    return folder


def test_the_check_and_the_reader_take_an_undivided_folder(tmp_path):
    exports.run('labelme', labelme_set(tmp_path / 'set'), tmp_path / 'out')
    dataset = readers.load_dataset('coco_format', str(tmp_path / 'out'))
    report = check.check(dataset)
    assert not report.num_errors
    examples = [x for split in ('train', 'val') for x in round_trip.read_all(dataset, split)]
    areas = {x.file_name: x.decode_masks().sum() for x in examples}
    assert areas == {f'{number}.png': (8 + number) * 19 for number in range(4)}


def test_the_check_and_the_reader_take_a_divided_folder_without_a_part_to_validate(tmp_path):
    images = []
    for number, subset in enumerate(('train', 'train', 'train', 'test')):
        exports.image(tmp_path / 'set/images' / subset / f'{number}.png', number)
        shape = test_cvat.polygon((0, 0, 9, 9 + number), group=1)
        shape += test_cvat.polygon((20, 0, 22, 9), group=1)
        images.append(test_cvat.image(number, f'{number}.png', shape, subset=subset))
    test_cvat.write(tmp_path / 'set/annotations.xml', *images, kind='project')
    exports.run('cvat', tmp_path / 'set', tmp_path / 'out')
    dataset = readers.load_dataset('coco_format', str(tmp_path / 'out'))
    assert not check.check(dataset).num_errors
    assert dataset.class_names == ('cell', 'mitosis')
    (example,) = round_trip.read_all(dataset, 'test')
    wanted = rectangle(0, 0, 9, 12) | rectangle(20, 0, 22, 9)
    assert exports.same([('', example.decode_masks()[0].astype(bool))], [('', wanted)])
    assert len(dataset.items('train')) + len(dataset.items('val')) == 3


def test_the_command_knows_every_reader():
    command, _ = program.parse('import', ['--from', 'via', 'x', '--to', 'y'], 'gan-mrcnn import')
    assert tuple(importing.READERS) == command.TOOLS


def test_a_folder_that_is_not_new(tmp_path):
    source = labelme_set(tmp_path / 'set', 1)
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/notes.txt').write_text('mine')
    (tmp_path / 'file').write_text('mine')
    for to, message in (
        ('full', 'is not empty; give a new folder'),
        ('file', 'is a file; give a new folder'),
        ('set/out', f'is inside of {source}, which is read'),
        ('set', f'is inside of {source}, which is read'),
    ):
        said = exports.error('labelme', source, tmp_path / to)
        assert said.startswith(f'--to {tmp_path / to} {message}')
    (tmp_path / 'empty').mkdir()
    assert exports.run('labelme', source, tmp_path / 'empty')['']['0.png'].objects
    assert (tmp_path / 'empty').stat().st_mode & 0o777 == 0o755


def test_nothing_is_left_where_the_disk_refuses(tmp_path, monkeypatch):
    source = labelme_set(tmp_path / 'set', 2)

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr('shutil.copyfile', full)
    message = exports.error('labelme', source, tmp_path / 'out')
    assert message.startswith(f'--to {tmp_path}/out cannot be written (No space left on device)')


def test_sources_that_are_none(tmp_path):
    (tmp_path / 'export.zip').write_bytes(b'PK')
    (tmp_path / 'set').mkdir()
    for source, message in (
        ('gone', 'SOURCE {} does not exist'),
        ('export.zip', 'SOURCE {} is an archive; unpack it, and give the folder'),
        ('set', '{} has no file that ends in .json'),
    ):
        path = tmp_path / source
        said = exports.error('labelme', path, tmp_path / 'out')
        assert said.startswith(message.format(path))
    message = exports.error('labelme', tmp_path / 'set', tmp_path / 'out', '--class_attribute', 'a')
    assert message == '--class_attribute is for via; --from labelme has no use for it'
    for name in ('a', 'b'):
        (tmp_path / f'set/{name}.xml').write_text('<annotations/>')
    message = exports.error('cvat', tmp_path / 'set', tmp_path / 'out')
    assert 'has 2 files that end in .xml (a.xml, b.xml); give the one to import' in message


def test_a_relative_source_and_what_comes_next(tmp_path, monkeypatch, capsys):
    labelme_set(tmp_path / 'set', 2)
    monkeypatch.chdir(tmp_path / 'set')
    command, options = program.parse(
        'import', ['--from', 'labelme', '.', '--to', '../my set'], 'gan-mrcnn import'
    )
    command.main(options)
    assert exports.read(tmp_path / 'my set')[''].keys() == {'0.png', '1.png'}
    assert capsys.readouterr().out == (
        '../my set: 2 images copied\n'
        '2 objects of 1 classes: cell 2\n'
        'next:\n'
        "  gan-mrcnn check --dataset coco_format --data_dir '../my set'\n"
        "  gan-mrcnn train --dataset coco_format --data_dir '../my set' --model_dir 'runs/my set'\n"
    )


# Exports with one value of them replaced by whatever JSON can hold.
_MASK = [[3.0, 3.0], [4.0, 4.0]]
SEEDS = {
    'labelme': (
        'a.json',
        {
            'shapes': [
                test_labelme.shape('polygon', ring(1, 1, 5, 5), occluded=True),
                test_labelme.shape('mask', _MASK, mask=test_labelme.png(rectangle(0, 0, 2, 2))),
                test_labelme.shape('circle', _MASK),
                test_labelme.shape('rectangle', _MASK),
            ],
            'flags': {},
            'imagePath': 'a.png',
            'imageData': None,
            'imageHeight': exports.HEIGHT,
            'imageWidth': exports.WIDTH,
        },
    ),
    'via': (
        'via.json',
        {
            'a.png1': {
                'filename': 'a.png',
                'size': 1,
                'regions': [
                    {
                        'shape_attributes': {
                            'name': 'polygon',
                            'all_points_x': [1, 5, 5],
                            'all_points_y': [1, 1, 5],
                        },
                        'region_attributes': {'class': 'cell'},
                    },
                    {
                        'shape_attributes': {'name': 'ellipse', 'cx': 9, 'cy': 9, 'rx': 4, 'ry': 2},
                        'region_attributes': {'class': {'cell': True}},
                    },
                    {
                        'shape_attributes': {'name': 'rect', 'x': 9, 'y': 9, 'width': 4},
                        'region_attributes': {},
                    },
                ],
                'file_attributes': {},
            }
        },
    ),
    'labelstudio': (
        'export.json',
        [
            label_studio.task(
                'a.png',
                label_studio.annotation(
                    label_studio.polygon((1, 1, 5, 5)),
                    label_studio.result('brushlabels', {'rle': [0, 0, 0, 4, 56, 1, 2, 3]}),
                    label_studio.result(
                        'ellipselabels', {'x': 9, 'y': 9, 'radiusX': 4, 'radiusY': 2}
                    ),
                    label_studio.polygon((1, 1, 5, 5), kind='polygon', number='x'),
                    label_studio.result('labels', {}, number='x'),
                ),
            )
        ],
    ),
    'qupath': (
        'a.geojson',
        test_qupath.collection(
            test_qupath.feature(test_qupath.polygon((1, 1, 9, 9), (3, 3, 5, 5))),
            test_qupath.feature(
                {'type': 'MultiPolygon', 'coordinates': [[test_qupath.closed((1, 1, 5, 5))]]},
                measurements={'Area': 3},
            ),
        ),
    ),
    'roboflow': (
        '_annotations.coco.json',
        {
            'images': [
                {
                    'id': 0,
                    'file_name': 'a.png',
                    'height': exports.HEIGHT,
                    'width': exports.WIDTH,
                }
            ],
            'annotations': [
                {
                    'id': 0,
                    'image_id': 0,
                    'category_id': 1,
                    'segmentation': [[1, 1, 5, 1, 5, 5]],
                    'bbox': [1, 1, 4, 4],
                    'iscrowd': 0,
                },
                {
                    'id': 1,
                    'image_id': 0,
                    'category_id': 1,
                    'segmentation': [],
                    'bbox': [1, 1, 4, 4],
                },
            ],
            'categories': [{'id': 1, 'name': 'cell'}],
        },
    ),
}


def places(value, path=()):
    """Paths of everything in a value of JSON."""
    yield path
    if isinstance(value, (dict, list)):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(one, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize('tool', SEEDS)
@settings(max_examples=40)
@given(data=st.data())
def test_any_json_is_imported_or_answered_in_one_line(tmp_path_factory, tool, data):
    name, seed = SEEDS[tool]
    place = data.draw(st.sampled_from(sorted(places(seed), key=str)))
    content = replaced(seed, place, data.draw(any_json.anything))
    flags = data.draw(
        st.sampled_from([(), ('--boxes', 'objects'), ('--skip_bad_annotations', '--skip_bad')])
    )
    folder = tmp_path_factory.mktemp(tool)
    exports.image(folder / 'set/a.png')
    (folder / 'set' / name).write_text(json.dumps(content))
    try:
        exports.run(tool, folder / 'set', folder / 'out', *flags)
    except UserError as error:
        assert '\n' not in str(error)
        assert not (folder / 'out').exists()
    else:
        dataset = readers.load_dataset('coco_format', str(folder / 'out'))
        assert dataset.class_names
    assert not list(folder.glob('.import*'))
