"""`gan-mrcnn predict` as it is typed: folders, patterns, bad files, tiles."""

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import coco as coco_api

from gan_mrcnn.prediction import checkpoint, image_files, model_card, writing
from gan_mrcnn.prediction import predictor as predictor_lib
from gan_mrcnn.prediction import run as prediction_run
from gan_mrcnn.prediction.objects import Object
from gan_mrcnn.utils import visualization
from gan_mrcnn.utils.errors import UserError
from tests import programs
from tests.serving.tiny import photo


@pytest.fixture
def folder(tmp_path):
    """Images of several formats and sizes, one of them damaged."""
    (tmp_path / 'in' / 'deep').mkdir(parents=True)
    Image.fromarray(photo((60, 80), 1)).save(tmp_path / 'in' / 'a.png')
    Image.fromarray(photo((40, 50), 2)).save(tmp_path / 'in' / 'deep' / 'b.jpg', quality=95)
    Image.fromarray(photo((50, 50), 3)).save(tmp_path / 'in' / 'c.tif')
    (tmp_path / 'in' / 'd.png').write_bytes((tmp_path / 'in' / 'a.png').read_bytes()[:900])
    (tmp_path / 'in' / 'notes.txt').write_text('no image')
    return tmp_path / 'in'


def test_a_folder_becomes_tables_and_overlays(exported, predictor, folder, tmp_path):
    out = tmp_path / 'out'
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'gan_mrcnn', 'predict', '--model', str(exported.model)),
            *(str(folder), '--out', str(out), '--batch', '2'),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert 'd.png cannot be read' in done.stdout
    assert '1 of 4 images are skipped' in done.stderr
    coco = coco_api.COCO(str(out / 'predictions.json'))
    names = {image['file_name']: image for image in coco.dataset['images']}
    assert set(names) == {str(folder / name) for name in ('a.png', 'c.tif', 'deep/b.jpg')}
    rows = list(csv.DictReader((out / 'objects.csv').open()))
    assert len(rows) == len(coco.dataset['annotations']) > 3
    for name in ('a', 'c', 'deep/b'):
        labels = np.asarray(Image.open(out / 'labels' / f'{name}.png'))
        (image,) = [i for path, i in names.items() if path[len(str(folder)) + 1 :].startswith(name)]
        assert labels.shape == (image['height'], image['width'])
        mine = [row for row in rows if row['file'] == image['file_name']]
        objects = coco.loadAnns(coco.getAnnIds(image['id']))
        assert [int(row['object']) for row in mine] == list(range(1, len(objects) + 1))
        # The label image is the masks, the best on top.
        wanted = np.zeros_like(labels)
        for number, one in reversed(list(enumerate(objects, start=1))):
            wanted[coco.annToMask(one) > 0] = number
            assert int(mine[number - 1]['area']) == coco.annToMask(one).sum() == one['area']
        np.testing.assert_array_equal(labels, wanted)
        overlay = np.asarray(Image.open(out / 'overlays' / f'{name}.png'))
        assert overlay.shape == (*labels.shape, 3)
    # The first object of the PNG is the network's best detection.
    (detections,) = predictor.detect([(folder / 'a.png').read_bytes()])
    (first, *_) = [row for row in rows if row['file'] == str(folder / 'a.png')]
    assert float(first['score']) == pytest.approx(detections.scores[0], abs=1e-4)
    assert first['class'] == predictor.card.class_names[detections.classes[0] - 1]
    box = [float(first[name]) for name in ('y1', 'x1', 'y2', 'x2')]
    np.testing.assert_allclose(box, detections.boxes[0], atol=0.02)


def test_a_checkpoint_gives_the_same_as_its_export(exported, predictor):
    loaded = checkpoint.open_run(str(exported.run), 'last').predictor()
    assert loaded.card == predictor.card
    pixels = np.stack([photo((60, 80), 1), photo((60, 80), 2)])
    for one, other in zip(loaded.detect_pixels(pixels), predictor.detect_pixels(pixels)):
        np.testing.assert_array_equal(one.classes, other.classes)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)


def test_patterns_files_and_folders_are_found_once(folder):
    names = lambda *arguments: [s.name for s in image_files.find_sources(arguments)]  # noqa: E731
    assert names(str(folder)) == ['a', 'c', 'd', 'deep/b']
    assert names(f'{folder}/*.png') == ['a', 'd']
    assert names(f'{folder}/**/b.jpg', str(folder / 'a.png')) == ['b', 'a']
    assert names(str(folder / 'a.png'), f'{folder}/?.png') == ['a', 'd']


def test_an_argument_without_images_and_two_files_of_one_name_are_errors(folder):
    with pytest.raises(UserError, match='nowhere'):
        image_files.find_sources([str(folder / 'nowhere*')])
    Image.fromarray(photo((5, 5))).save(folder / 'a.bmp')
    with pytest.raises(UserError, match=r'a\.bmp and .*a\.png would both become a'):
        image_files.find_sources([str(folder)])


class Brightness:
    """A network that detects every white square of an image or tile."""

    def detect_pixels(self, images):
        return [self._detect(image) for image in images]

    def _detect(self, image):
        white = (image > 250).all(-1)
        boxes = []
        for x in np.flatnonzero(np.diff(white.any(0).astype(int), prepend=0) == 1):
            end = x + int(np.argmin(np.append(white.any(0)[x:], False)))
            rows = np.flatnonzero(white[:, x:end].any(1))
            boxes.append([rows[0], x, rows[-1] + 1, end])
        count = len(boxes)
        return predictor_lib.Detections(
            np.array(boxes, np.float32).reshape(-1, 4),
            np.full(count, 0.9, np.float32),
            np.ones(count, np.int32),
            np.ones([count, 28, 28], np.float32),
        )


def test_a_large_image_is_predicted_in_tiles(tmp_path):
    pixels = np.zeros((70, 300, 3), np.uint8)
    squares = [(10, 30, 30, 50), (20, 85, 50, 115), (5, 180, 60, 230)]
    for y1, x1, y2, x2 in squares:
        pixels[y1:y2, x1:x2] = 255
    Image.fromarray(pixels).save(tmp_path / 'large.png')
    sources = image_files.find_sources([str(tmp_path / 'large.png')])
    (result,) = image_files.detect(
        image_files.read(sources, []), Brightness(), 0.5, 3, (70, 100), 40, []
    )
    found = sorted(tuple(int(v) for v in one.box) for one in result.objects)
    assert found == sorted(squares)


class Picky:
    """A network that decodes PNG alone and detects nothing."""

    def detect(self, files):
        if not all(file.startswith(b'\x89PNG') for file in files):
            raise UserError('image 0 of the request is damaged or cut short')
        nothing = np.zeros([0, 4]), np.zeros(0), np.zeros(0, int), np.zeros([0, 28, 28])
        return [predictor_lib.Detections(*nothing) for _ in files]


def test_a_file_that_the_network_cannot_decode_is_sent_as_pixels(folder):
    problems = []
    sources = image_files.find_sources([str(folder)])
    results = list(
        image_files.detect(image_files.read(sources, problems), Picky(), 0.5, 4, None, 0, problems)
    )
    assert [result.source.name for result in results] == ['a', 'c', 'deep/b']
    assert len(problems) == 1 and 'd.png' in problems[0]


def make_card():
    """As it was written before cards said a resolution."""
    return model_card.ModelCard(('a', 'b'), (3, 8), 0.5, (64, 64), 32, (0,), (1,), 'ckpt', 1, '1')


def test_an_image_drawn_in_blocks_has_no_seams(tmp_path, monkeypatch):
    pixels = photo((300, 500))
    y, x = np.mgrid[:300, :500]
    masks = [((y - 150) / 120) ** 2 + ((x - 250) / 200) ** 2 < 1, (x > 460) & (y > 240)]
    found = [Object(1, 0.75, (0.0, 0.0, 1.0, 1.0), 0, 0, mask) for mask in masks]
    result = image_files.Result(image_files.Source(tmp_path / 'x.png', 'x'), pixels, found)
    # The blocks' windows have 256 pixels to a side, whose lines are as wide as the image's.
    monkeypatch.setattr(writing, 'BLOCK', 128)
    wanted = visualization.draw_instances(pixels, masks, colours=visualization.PALETTE[:2])
    np.testing.assert_array_equal(writing.draw(result), wanted)


def test_no_objects_are_written_too(tmp_path):
    writer = writing.Writer(str(tmp_path / 'out'), make_card())
    source = image_files.Source(tmp_path / 'x.png', 'x')
    writer.add(image_files.Result(source, photo((20, 30)), []))
    writer.close()
    assert (tmp_path / 'out/objects.csv').read_text().splitlines() == [','.join(writing.COLUMNS)]
    content = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert content['annotations'] == [] and len(content['images']) == 1
    assert content['categories'] == [{'id': 3, 'name': 'a'}, {'id': 8, 'name': 'b'}]
    np.testing.assert_array_equal(Image.open(tmp_path / 'out/overlays/x.png'), photo((20, 30)))


def test_a_name_with_bytes_that_are_no_text_is_written_with_escapes_and_the_rest_follows(folder):
    (folder / 'c.tif').rename(folder / os.fsdecode(b'c\xfc.tif'))
    writer = writing.Writer(str(folder / 'out'), make_card())
    one = Object(1, 0.75, (1.0, 2.0, 5.0, 6.0), 1, 2, np.ones((4, 4), bool))
    for source in image_files.find_sources([str(folder)])[:3]:
        writer.add(image_files.Result(source, photo((20, 30)), [one]))
    writer.close()
    rows = list(csv.DictReader((folder / 'out/objects.csv').open(encoding='utf-8')))
    names = [row['file'][len(str(folder)) + 1 :] for row in rows]
    assert names == ['a.png', 'c\\udcfc.tif', 'd.png']
    for kind in ('overlays', 'labels'):
        assert (folder / 'out' / kind / os.fsdecode(b'c\xfc.png')).is_file()
    content = json.loads((folder / 'out/predictions.json').read_text(encoding='utf-8'))
    assert [len(content[key]) for key in ('images', 'annotations')] == [3, 3]


def names(found):
    return [source.name for source in found]


def test_what_is_no_picture_is_not_predicted(folder, tmp_path):
    """Hidden files, label images beside pictures, and what predictions and the client wrote."""
    picture = (folder / 'a.png').read_bytes()
    for name in (
        *('.ipynb_checkpoints/a-checkpoint.png', '._a.png', 'deep/.hidden.png'),
        *('a_anno.bmp', 'deep/b_mask.png', 'a.detections.png'),
        *('images/x.png', 'labels/x.png', 'older/overlays/a.png', 'older/labels/deep/b.png'),
        *('out/overlays/a.png', 'out/labels/a.png'),
        # Pictures all the same: no other is of the name without the end.
        *('x_mask.png', 'masks/y.png'),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
    (folder / 'a_mask.png').write_bytes(picture)
    left_out = []
    found = image_files.find_sources([str(folder)], str(folder / 'out'), left_out)
    pictures = ['a', 'c', 'd', 'deep/b', 'images/x', 'masks/y', 'x_mask']
    assert sorted(names(found)) == pictures
    counts = {text.split(', such as ')[0] for text in left_out}
    assert counts == {'3 hidden files', '4 label images', '5 results of predictions'}
    # What is named is predicted, whatever it is.
    named = [str(folder / 'a_anno.bmp'), str(folder / '._a.png')]
    assert names(image_files.find_sources(named)) == ['a_anno', '._a']
    assert names(image_files.find_sources([f'{folder}/a*'])) == ['a']
    with pytest.raises(UserError, match='left out: 2 results of predictions'):
        image_files.find_sources([str(folder / 'older')])
    # A shell that is given a pattern names files and folders one by one, label images included.
    left_out = []
    expanded = sorted(str(path) for path in folder.glob('[!.]*') if path.name != 'notes.txt')
    found = image_files.find_sources(expanded, str(folder / 'out'), left_out)
    assert sorted(names(found)) == ['a', 'b', 'c', 'd', 'x', 'x_mask', 'y']
    counts = {text.split(', such as ')[0] for text in left_out}
    assert counts == {'1 hidden files', '4 label images', '5 results of predictions'}
    pair = [str(folder / kind / 'x.png') for kind in ('labels', 'images')]
    assert names(image_files.find_sources(pair)) == ['x']
    assert names(image_files.find_sources(pair[:1])) == ['x']


def test_a_second_run_predicts_the_same_pictures(folder, tmp_path, monkeypatch):
    class Network(Picky):
        card = make_card()

    monkeypatch.setattr(prediction_run, 'load', lambda *_: Network())
    (folder / 'd.png').unlink()
    for out in (folder / 'found', folder, tmp_path / 'in' / 'deep'):
        printed = {
            programs.run('predict', '--model', 'x', folder, '--out', out).out.splitlines()[-1]
            for _ in range(2)
        }
        assert printed == {f'0 objects of at least 0.5 in 3 images; wrote {out}'}


def test_label_images_of_a_data_set_are_not_overwritten(folder, monkeypatch):
    (folder / 'labels').mkdir()
    (folder / 'labels' / 'a.png').write_text('mine')
    done = programs.run('predict', '--model', 'x', folder, '--out', folder)
    assert 'would be overwritten' in programs.refusal(done, 'predict')
    assert (folder / 'labels' / 'a.png').read_text() == 'mine'
    assert not (folder / 'overlays').exists()


def test_a_pattern_in_a_folder_whose_name_is_one(folder, tmp_path):
    odd = folder.rename(tmp_path / 'in[1]*')
    assert names(image_files.find_sources([f'{odd}/?.png'])) == ['a', 'd']
    assert names(image_files.find_sources([f'{odd}/**/*.jpg'])) == ['b']
    (odd / 'x[2].png').write_bytes((odd / 'a.png').read_bytes())
    assert names(image_files.find_sources([f'{odd}/x[2].png'])) == ['x[2]']


class Refusing(Picky):
    """Refuses every batch with the grey picture in it."""

    card = make_card()

    def detect(self, files):
        if any(np.ptp(np.asarray(Image.open(io.BytesIO(file)))) == 0 for file in files):
            raise UserError('image 0 of the request is damaged or cut short')
        return super().detect(files)


def test_one_picture_that_the_network_refuses_is_named_and_the_others_go_on(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(prediction_run, 'load', lambda *_: Refusing())
    Image.new('RGB', (30, 20), (9, 9, 9)).save(folder / 'b.png')
    done = programs.run('predict', '--model', 'x', folder, '--out', tmp_path / 'out')
    assert '2 of 5 images are skipped' in programs.refusal(done, 'predict')
    assert f'{folder / "b.png"}: image 0 of the request is damaged' in done.out
    assert programs.files_in(tmp_path / 'out/overlays') == {'a.png', 'c.png', 'deep/b.png'}


def test_too_many_objects_in_one_picture_are_named_and_the_others_go_on(
    folder, tmp_path, monkeypatch
):
    class Network(Picky):
        card = make_card()

    monkeypatch.setattr(prediction_run, 'load', lambda *_: Network())
    monkeypatch.setattr(writing, '_MOST_LABELS', -1)
    done = programs.run('predict', '--model', 'x', folder / 'a.png', '--out', tmp_path / 'out')
    assert '1 of 1 images are skipped' in programs.refusal(done, 'predict')
    assert f'{folder / "a.png"}: 0 objects in one image' in done.out
    assert not programs.files_in(tmp_path / 'out/overlays')
