"""Whole slides from file to results: places, seams, stops, and what is refused."""

import csv
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest

from gan_mrcnn import __main__ as program
from gan_mrcnn.prediction import image_files, slide_plan, slide_run, slides, tiles
from gan_mrcnn.prediction import run as prediction_run
from gan_mrcnn.utils.errors import UserError
from tests.prediction import made_slides

pytest.importorskip('openslide', reason='the extra slides is not installed')
pytest.importorskip('tifffile', reason='the extra slides is not installed')

# On level 0 of 0.25 micrometres; the network's are of 0.5, and its tiles of 96 x 128 pixels.
RECTANGLES = [(40, 60, 120, 140), (150, 180, 250, 300), (300, 20, 380, 130), (500, 600, 560, 700)]
HEIGHT, WIDTH = 640, 900


@pytest.fixture(scope='module')
def slide(tmp_path_factory):
    """A slide of 0.25 micrometres with `RECTANGLES`, none of it left out as glass."""
    path = tmp_path_factory.mktemp('slides') / 'a.tif'
    made_slides.write_pyramid(path, made_slides.glass(HEIGHT, WIDTH, RECTANGLES), 0.25)
    return path


def predict(path, out, network=None, problems=None, **options):
    sources = [image_files.Source(path, path.stem)]
    network = network or made_slides.Stains()
    chosen = slide_plan.Options(**{'model': 'm', 'batch_size': 2, **options})
    slide_run.predict(sources, network, str(out), chosen, [] if problems is None else problems)
    return out / path.stem


def boxes(folder):
    rows = csv.DictReader((folder / 'objects.csv').open())
    return sorted(tuple(float(row[name]) for name in ('y1', 'x1', 'y2', 'x2')) for row in rows)


@pytest.mark.parametrize('overlap', [None, 40])
def test_every_object_is_found_once_at_its_place(slide, tmp_path, overlap):
    network = made_slides.Stains()
    folder = predict(slide, tmp_path, network, finds_tissue=False, overlap=overlap)
    assert network.shapes == {(96, 128, 3)}
    np.testing.assert_allclose(boxes(folder), sorted(RECTANGLES), atol=2)
    features = json.loads((folder / 'objects.geojson').read_text())['features']
    assert len(features) == len(RECTANGLES)
    for feature, (y1, x1, y2, x2) in zip(features, RECTANGLES):
        ring = np.array(feature['geometry']['coordinates'][0])
        np.testing.assert_allclose([*ring.min(0), *ring.max(0)], [x1, y1, x2, y2], atol=2)
        area = (y2 - y1) * (x2 - x1) * 0.25**2
        assert feature['properties']['measurements']['Area um^2'] == pytest.approx(area, rel=0.06)
    summary = json.loads((folder / 'slide.json').read_text())
    assert summary['finished'] and summary['objects'] == len(RECTANGLES)
    assert sorted(path.name for path in folder.iterdir()) == [
        *('objects.csv', 'objects.geojson', 'overview.png', 'slide.json')
    ]


def test_glass_is_left_out(slide, tmp_path):
    network = made_slides.Stains()
    folder = predict(slide, tmp_path, network)
    np.testing.assert_allclose(boxes(folder), sorted(RECTANGLES), atol=2)
    summary = json.loads((folder / 'slide.json').read_text())
    assert network.num_tiles == summary['tiles'] < summary['of_tiles']


def test_the_resolution_decides_how_large_objects_are_seen(slide, tmp_path):
    # 1 micrometre: half as many pixels along each side, and tiles that show twice as much.
    with slides.Slide(slide) as opened:
        for mpp, size in ((0.5, (320, 450)), (1.0, (160, 225)), (0.62, (258, 363))):
            options = slide_plan.Options('m', mpp=mpp, finds_tissue=False)
            chosen = slide_plan.settings_of(opened, made_slides.CARD, options)
            plan = slide_plan.make_plan(opened, chosen)
            assert (plan.view.height, plan.view.width) == size
            expected = tiles.make_tiles(*size, (96, 128), 24)
            assert [window for row in plan.rows for window in row] == expected
            assert plan.scale.side == pytest.approx(mpp, rel=0.01)
        with_own = slide_plan.Options('m', slide_mpp=0.5, mpp=1.0)
        assert slide_plan.settings_of(opened, made_slides.CARD, with_own)['slide_mpp'] == [0.5, 0.5]


def test_a_slide_that_is_smaller_than_a_tile_keeps_its_scale(tmp_path):
    made_slides.write_pyramid(
        tmp_path / 'small.tif', made_slides.glass(100, 90, [(20, 30, 80, 85)]), 0.5, factors=(1, 2)
    )
    network = made_slides.Stains(image_size=(120, 128))
    folder = predict(tmp_path / 'small.tif', tmp_path, network, finds_tissue=False)
    assert network.shapes == {(120, 128, 3)}
    np.testing.assert_allclose(boxes(folder), [(20, 30, 80, 85)])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize('num_tiles', [0, 1, 4, 5, 6, 17, 24])
def test_a_stopped_run_ends_with_the_same_files(slide, tmp_path, num_tiles):
    whole = predict(slide, tmp_path / 'whole', finds_tissue=False)
    with pytest.raises(KeyboardInterrupt):
        stopping = made_slides.Stains(stop_after=num_tiles)
        predict(slide, tmp_path / 'stopped', stopping, finds_tissue=False)
    network = made_slides.Stains()
    resumed = predict(slide, tmp_path / 'stopped', network, finds_tissue=False)
    assert contents(resumed) == contents(whole)
    total = json.loads((whole / 'slide.json').read_text())['tiles']
    # Of what was predicted, only the row that was stopped in is predicted again.
    per_row = len({window[1] for window in tiles.make_tiles(320, 450, (96, 128), 24)})
    assert network.num_tiles == total - num_tiles // per_row * per_row


def test_a_stop_while_results_are_written_is_made_good(slide, tmp_path, monkeypatch):
    whole = predict(slide, tmp_path / 'whole')

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(slide_run.slide_files.Overview, 'add', stop)
        with pytest.raises(KeyboardInterrupt):
            predict(slide, tmp_path / 'stopped')
    assert sorted(path.name for path in (tmp_path / 'stopped/a').iterdir()) == [
        *('rows', 'slide.json')
    ]
    network = made_slides.Stains()
    resumed = predict(slide, tmp_path / 'stopped', network)
    assert contents(resumed) == contents(whole) and network.num_tiles == 0


@pytest.mark.faults
def test_a_killed_run_ends_with_the_same_files(slide, tmp_path):
    whole = contents(predict(slide, tmp_path / 'whole', finds_tissue=False))
    for milliseconds in range(5, 400, 13):
        folder = tmp_path / str(milliseconds)
        child = os.fork()
        if not child:
            try:
                predict(slide, folder, finds_tissue=False)
            finally:
                os._exit(0)
        time.sleep(milliseconds / 1000)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert contents(predict(slide, folder, finds_tissue=False)) == whole
        shutil.rmtree(folder)


def test_a_finished_slide_is_not_predicted_again(slide, tmp_path, capsys):
    before = contents(predict(slide, tmp_path))
    network = made_slides.Stains()
    assert contents(predict(slide, tmp_path, network)) == before and network.num_tiles == 0
    assert 'is finished already' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('options', 'card', 'text'),
    [
        ({'tile': (80, 100)}, {}, r'tile \[96, 128\], now \[80, 100\]'),
        ({'overlap': 10}, {}, 'overlap 24, now 10'),
        ({'score_threshold': 0.7}, {}, 'score_threshold 0.5, now 0.7'),
        ({'mpp': 0.6}, {}, 'mpp 0.5, now 0.6'),
        ({'slide_mpp': 0.3}, {}, r'slide_mpp \[0.25, 0.25\], now \[0.3, 0.3\]'),
        ({'finds_tissue': False}, {}, 'tissue True, now False'),
        ({'tta': 'flip'}, {}, 'tta None, now flip'),
        ({'model': 'other'}, {}, 'model .*, now .*/other'),
        ({}, {'step': 2}, 'step 1, now 2'),
    ],
)
def test_other_settings_are_refused(slide, tmp_path, options, card, text):
    with pytest.raises(KeyboardInterrupt):
        predict(slide, tmp_path, made_slides.Stains(stop_after=4))
    before = contents(tmp_path / 'a/rows')
    with pytest.raises(UserError, match=f'a was begun with {text}; give the same, another --out'):
        predict(slide, tmp_path, made_slides.Stains(**card), **options)
    assert contents(tmp_path / 'a/rows') == before


def test_a_smaller_batch_goes_on(slide, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        predict(slide, tmp_path, made_slides.Stains(stop_after=4))
    sources = [image_files.Source(slide, 'a')]
    slide_run.predict(
        sources, made_slides.Stains(), str(tmp_path), slide_plan.Options('m', batch_size=1), []
    )
    assert len(boxes(tmp_path / 'a')) == len(RECTANGLES)


def test_a_folder_with_other_files_is_left_alone(slide, tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/thesis.txt').write_text('years of work')
    with pytest.raises(UserError, match=r'holds files, but no slide\.json'):
        predict(slide, tmp_path)
    assert [path.name for path in (tmp_path / 'a').iterdir()] == ['thesis.txt']


def test_a_stop_does_not_close_a_slide_that_is_read(slide, tmp_path, monkeypatch):
    reading, closed_while = [], []
    read, close = slides._OpenSlide.read, slides._OpenSlide.close

    def slowly(self, level, window):
        reading.append(window)
        time.sleep(0.02)
        found = read(self, level, window)
        reading.pop()
        return found

    def watched(self):
        closed_while.extend(reading)
        close(self)

    monkeypatch.setattr(slides._OpenSlide, 'read', slowly)
    monkeypatch.setattr(slides._OpenSlide, 'close', watched)
    with pytest.raises(KeyboardInterrupt):
        predict(slide, tmp_path, made_slides.Stains(stop_after=0), finds_tissue=False)
    assert not closed_while


def test_a_slide_without_tissue_is_named(tmp_path):
    made_slides.write_pyramid(tmp_path / 'glass.tif', made_slides.glass(300, 300))
    problems = []
    predict(tmp_path / 'glass.tif', tmp_path, problems=problems)
    (problem,) = problems
    assert problem.endswith('glass.tif has no tissue; --tissue off predicts all of it')


@pytest.mark.parametrize(
    ('card', 'options', 'text'),
    [
        ({'micrometres_per_pixel': None}, {}, 'the model does not say the resolution.*--mpp'),
        ({'micrometres_per_pixel': 500.0}, {}, 'the model does not say the resolution.*--mpp'),
        ({'image_size': None}, {}, 'the model does not say the size.*--tile'),
        ({}, {'mpp': 0.0}, '--mpp 0 is no resolution of a microscope'),
        ({}, {'overlap': 96}, '--overlap 96 is not between 0 and the shorter side of a tile'),
    ],
)
def test_a_model_that_says_too_little_is_refused(slide, tmp_path, card, options, text):
    with pytest.raises(UserError, match=text):
        predict(slide, tmp_path, made_slides.Stains(**card), **options)
    assert not (tmp_path / 'a').exists()


def type_command(monkeypatch, network, *flags):
    """`gan-mrcnn predict FLAGS` with a network without a file; None where none may be loaded."""

    def load(*_):
        assert network is not None
        return network

    monkeypatch.setattr(prediction_run, 'load', load)
    command, options = program.parse('predict', [*map(str, flags), '--model', 'm'], 'predict')
    command.main(options)


def test_the_command_predicts_slides_beside_images(slide, tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'in'
    folder.mkdir()
    shutil.copy(slide, folder / 'a.tif')
    made_slides.write_pyramid(folder / 'picture.tif', made_slides.glass(90, 90), factors=(1,))
    made_slides.write_pyramid(folder / 'unknown.tif', made_slides.glass(90, 90), None)
    seen = []
    monkeypatch.setattr(prediction_run, 'predict', lambda sources, *_: seen.extend(sources))
    with pytest.raises(UserError, match='1 of 2 slides are skipped'):
        type_command(monkeypatch, made_slides.Stains(), folder, '--out', tmp_path / 'out')
    assert [source.name for source in seen] == ['picture']
    np.testing.assert_allclose(boxes(tmp_path / 'out/a'), sorted(RECTANGLES), atol=2)
    assert 'unknown.tif does not say its resolution' in capsys.readouterr().out
    # What was drawn is not predicted in the next run.
    found = image_files.find_sources([str(tmp_path / 'out'), str(folder)])
    assert {source.name for source in found} == {'a', 'picture', 'unknown'}


def test_the_flags_reach_the_run(slide, tmp_path, monkeypatch):
    network = made_slides.Stains(micrometres_per_pixel=None, image_size=None)
    flags = ['--mpp', 0.5, '--slide_mpp', 0.2, '--tissue', 'off', '--tile', 90, 100]
    flags += ['--overlap', 30, '--batch', 3, '--score_threshold', 0.6]
    type_command(monkeypatch, network, slide, '--out', tmp_path, *flags)
    found = json.loads((tmp_path / 'a/slide.json').read_text())['settings']
    wanted = {'mpp': 0.5, 'slide_mpp': [0.2, 0.2], 'tissue': False, 'tile': [90, 100]}
    wanted.update(overlap=30, score_threshold=0.6, model=os.path.realpath('m'))
    assert {name: found[name] for name in wanted} == wanted


def test_one_slide_that_cannot_be_used_is_said_before_the_network_is_loaded(tmp_path, monkeypatch):
    path = tmp_path / 'a.tif'
    made_slides.write_pyramid(path, made_slides.glass(90, 90), None)
    with pytest.raises(UserError, match=r'a\.tif does not say its resolution; .* --slide_mpp'):
        type_command(monkeypatch, None, path, '--out', tmp_path / 'out')
    (tmp_path / 'b.svs').write_bytes(b'no slide')
    with pytest.raises(UserError, match=r'b\.svs is no slide that OpenSlide or tifffile reads'):
        type_command(monkeypatch, None, tmp_path / 'b.svs', '--out', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_few_objects_are_held_whatever_the_slide(tmp_path, monkeypatch):
    rectangles = [(y, x, y + 12, x + 12) for y in range(5, 1580, 30) for x in range(5, 180, 25)]
    made_slides.write_pyramid(tmp_path / 'long.tif', made_slides.glass(1600, 200, rectangles), 0.5)
    held = []
    add = tiles.RowMerger.add

    def watched(self, *arguments):
        finished = add(self, *arguments)
        held.append(self.num_open)
        return finished

    monkeypatch.setattr(tiles.RowMerger, 'add', watched)
    folder = predict(tmp_path / 'long.tif', tmp_path, finds_tissue=False)
    assert len(boxes(folder)) == len(rectangles) == 371
    assert len(held) > 20 and max(held) <= 40
