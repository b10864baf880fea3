"""`gan-mrcnn predict --runner`: the same results as on one machine, whatever fails on the way."""

import collections
import dataclasses
import errno
import io
import json
import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from gan_mrcnn.data.readers import images
from gan_mrcnn.prediction import beam_job, image_files, slide_plan, slides, writing
from gan_mrcnn.prediction import run as prediction_run
from gan_mrcnn.utils import files
from gan_mrcnn.utils.errors import UserError
from tests import programs
from tests.prediction import made_slides
from tests.prediction.test_slide_run import HEIGHT, RECTANGLES, WIDTH
from tests.serving.tiny import photo

pytest.importorskip('openslide', reason='the extra slides is not installed')
pytest.importorskip('apache_beam', reason='the extra beam is not installed')

# One worker in this process, so that it has the network of the test.
IN_MEMORY = ['--runner=DirectRunner', '--direct_running_mode=in_memory', '--direct_num_workers=1']
NUM_PICTURES = 7


class Network(made_slides.Stains):
    """Detects stain in files, too; `failing` is called before each batch."""

    def __init__(self, failing=lambda batch: None):
        super().__init__()
        self._failing = failing

    def detect(self, files):
        return self.detect_pixels([np.asarray(Image.open(io.BytesIO(file))) for file in files])

    def detect_pixels(self, images):
        self._failing(images)
        return super().detect_pixels(images)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two slides and `NUM_PICTURES` pictures, one of which is larger than a tile."""
    place = tmp_path_factory.mktemp('in')
    made_slides.write_pyramid(place / 'a.svs', made_slides.glass(HEIGHT, WIDTH, RECTANGLES), 0.25)
    made_slides.write_pyramid(place / 'b.svs', made_slides.glass(300, 400, [(9, 9, 80, 90)]), 0.25)
    for number in range(NUM_PICTURES):
        size = (200, 180) if number == 3 else (60, 70 + number)
        pixels = made_slides.glass(*size, [(10, 5 * number, 40, 5 * number + 9), (45, 3, 58, 30)])
        (place / 'deep').mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f'deep/p{number}.png')
    return place


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(beam_job, 'WAITS', (0, 0))


def run(monkeypatch, network, *flags):
    monkeypatch.setattr(prediction_run, 'load', lambda *_: network)
    return programs.run('predict', '--model', 'm', '--batch', '2', '--tile', '96', '128', *flags)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in programs.files_in(folder)}


@pytest.fixture
def whole(folder, tmp_path, monkeypatch):
    """The results of the command without a runner."""
    with monkeypatch.context() as patch:
        done = run(patch, Network(), folder, '--out', tmp_path / 'whole')
    assert not done.status, done
    found = contents(tmp_path / 'whole')
    assert len(found) == 2 * NUM_PICTURES + 2 + 2 * 4
    return found


def num_tiles_of(whole):
    """Of both slides."""
    return sum(json.loads(whole[f'{name}/slide.json'])['tiles'] for name in ('a', 'b'))


def test_results_are_those_of_one_machine(folder, whole, tmp_path, monkeypatch):
    network = Network()
    done = run(monkeypatch, network, folder, '--out', tmp_path / 'out', *IN_MEMORY)
    assert not done.status, done
    assert contents(tmp_path / 'out') == whole
    assert '2 of 2 slides are finished' in done.out
    assert f'objects of at least 0.5 in {NUM_PICTURES} images; wrote' in done.out
    # Slides that are finished are left, as without a runner; pictures are predicted again.
    before = network.num_tiles
    run(monkeypatch, network, folder, '--out', tmp_path / 'out', *IN_MEMORY)
    assert contents(tmp_path / 'out') == whole
    assert network.num_tiles - before == before - num_tiles_of(whole)


def make_job(folder, out):
    """A job with the settings of `run`, its parts, and its slides."""
    sources = image_files.find_sources([str(folder)])
    found = [source for source in sources if slides.is_slide(source.path)]
    pictures = [source for source in sources if source not in found]
    options = slide_plan.Options('m', batch_size=2, tile=(96, 128))
    job = beam_job.Job(out, folder, len(pictures), made_slides.CARD, options)
    writing.prepare_folder(str(out))
    beam_job.begin(job, pictures, found)
    parts, listed = beam_job.sources(job)
    assert listed == found and [one for part in parts for one in part.sources] == pictures
    for number, source in enumerate(found):
        parts += beam_job.plan_slide(job, number, source)
    return job, parts, found


@pytest.mark.parametrize('seed', range(4))
def test_each_object_is_there_once_whatever_is_lost_and_done_twice(folder, whole, tmp_path, seed):
    """Workers in any order, some of which are lost between predicting and writing."""
    chance = random.Random(seed)
    job, parts, found = make_job(folder, tmp_path / 'out')
    # Several times in each list: two workers predict the same before either of them has written.
    work = [part for part in parts for _ in range(chance.choice((1, 2, 3)))]
    chance.shuffle(work)
    predicted = [beam_job.predict(job, part, Network()) for part in work]
    for one in predicted:
        if chance.random() < 0.6:
            beam_job.write(job, one)
    for part in parts:
        beam_job.write(job, beam_job.predict(job, part, Network()))
    for source in found:
        beam_job.join_slide(job, source)
    beam_job.join_pictures(job)
    # All of it again, which wants no network any more.
    assert not finish(job, parts, found, None)
    assert contents(tmp_path / 'out') == whole


def finish(job, parts, found, network):
    """What the steps of a job do, in turn; the problems of its pictures."""
    for part in parts:
        beam_job.write(job, beam_job.predict(job, part, network))
    for source in found:
        beam_job.join_slide(job, source)
    report = beam_job.join_pictures(job)
    files.write_json(job.folder / beam_job.REPORT, report)
    beam_job.tidy(job, report['failures'])
    return report['problems']


def test_what_passes_is_tried_again(folder, whole, tmp_path, monkeypatch):
    calls = collections.Counter()

    def fail_twice(batch):
        key = b''.join(image.tobytes() for image in batch)
        calls[key] += 1
        if calls[key] < 3:
            raise RuntimeError('out of memory')

    # More tries, since a row is tried as a whole and has several batches.
    monkeypatch.setattr(beam_job, 'WAITS', (0,) * 12)
    assert not finish(*make_job(folder, tmp_path / 'out'), Network(fail_twice))
    assert contents(tmp_path / 'out') == whole


def test_what_does_not_pass_is_named_and_the_same_command_predicts_it_alone(
    folder, whole, tmp_path, monkeypatch
):
    def fail(batch):
        if isinstance(batch, np.ndarray) or any(image.shape[1] == 72 for image in batch):
            raise RuntimeError('out of memory')

    command = (folder, '--out', tmp_path / 'out', *IN_MEMORY)
    done = run(monkeypatch, Network(fail), *command)
    assert '2 of 7 images are skipped' in programs.refusal(done, 'predict')
    reason = 'failed 3 times (RuntimeError: out of memory); the same command tries again'
    for name in ('deep/p2.png', 'deep/p3.png', 'a.svs', 'b.svs'):
        assert f'{folder / name} {reason}' in done.out
    written = {f'overlays/deep/p{number}.png' for number in (0, 1, 4, 5, 6)}
    assert written < programs.files_in(tmp_path / 'out')
    assert '0 of 2 slides are finished' in done.out
    network = Network()
    done = run(monkeypatch, network, *command)
    assert not done.status and contents(tmp_path / 'out') == whole
    # The batch of both, of which one has six tiles, and the slides.
    assert network.num_tiles == num_tiles_of(whole) + 1 + 6


def test_what_is_damaged_is_named_at_once_as_without_a_runner(folder, tmp_path, monkeypatch):
    """A picture that is cut short, one that the network refuses, and a file that is no slide."""
    place = tmp_path / 'in'
    place.mkdir()
    for number in range(4):
        (place / f'p{number}.png').write_bytes((folder / f'deep/p{number}.png').read_bytes())
    (place / 'p1.png').write_bytes((folder / 'deep/p1.png').read_bytes()[:120])
    (place / 'c.svs').write_bytes(b'no slide')
    calls = []
    read_image = images.read_image

    def counted(path, *others):
        calls.append(path)
        return read_image(path, *others)

    def refuse(batch):
        if any(image.shape[1] == 72 for image in batch):
            raise UserError('image 0 of the request is damaged or cut short')

    alone = run(monkeypatch, Network(refuse), place, '--out', tmp_path / 'alone')
    monkeypatch.setattr(images, 'read_image', counted)
    done = run(monkeypatch, Network(refuse), place, '--out', tmp_path / 'out', *IN_MEMORY)
    assert sorted(calls) == sorted(place.glob('*.png'))
    assert contents(tmp_path / 'out') == contents(tmp_path / 'alone')
    assert programs.refusal(done, 'predict') == programs.refusal(alone, 'predict')
    for text in ('p1.png cannot be read', 'p2.png: image 0', 'c.svs is no slide'):
        assert (
            [line for line in done.out.splitlines() if text in line]
            == [line for line in alone.out.splitlines() if text in line]
            != []
        )


def test_a_disk_that_does_not_answer_is_asked_again(folder, whole, tmp_path, monkeypatch):
    silent = [2]
    read_image = images.read_image

    def read(path):
        if path.name == 'p5.png' and silent[0]:
            silent[0] -= 1
            raise UserError(f'{path} cannot be read') from OSError(errno.EIO, 'no answer')
        return read_image(path)

    monkeypatch.setattr(images, 'read_image', read)
    assert not finish(*make_job(folder, tmp_path / 'out'), Network())
    assert contents(tmp_path / 'out') == whole
    # It does not answer at all: the other picture of that batch is predicted all the same.
    silent[0] = 1000
    (problem,) = finish(*make_job(folder, tmp_path / 'again'), Network())
    assert problem == (
        f'{folder}/deep/p5.png failed 3 times ({folder}/deep/p5.png cannot be read); the same '
        'command tries again'
    )
    assert (tmp_path / 'again/overlays/deep/p4.png').exists()
    silent[0] = 0
    network = Network()
    assert not finish(*make_job(folder, tmp_path / 'again'), network)
    assert contents(tmp_path / 'again') == whole and network.num_tiles == 2


@pytest.mark.parametrize(
    ('error', 'expected'),
    [
        (UserError('damaged'), False),
        (slides.SlideError('damaged'), False),
        (RuntimeError('out of memory'), True),
        (MemoryError(), True),
        (OSError(errno.ESTALE, 'gone'), True),
        (FileNotFoundError(errno.ENOENT, 'a.tmp'), True),
    ],
)
def test_failures_that_may_pass(error, expected):
    assert beam_job.may_pass(error) is expected


@pytest.mark.parametrize(
    ('cause', 'expected'),
    [
        # As Pillow has it for a file that is cut short.
        (OSError('image file is truncated'), False),
        (ValueError('bad header'), False),
        (OSError(errno.EIO, 'no answer'), True),
    ],
)
def test_what_caused_a_line_for_the_user_tells_whether_it_may_pass(cause, expected):
    error = UserError('a.png cannot be read')
    error.__cause__ = cause
    assert beam_job.may_pass(error) is expected


def test_a_job_that_ended_goes_on_with_what_is_missing(folder, whole, tmp_path, monkeypatch):
    written = []
    write = beam_job.write

    def fill_the_disk(job, predicted):
        written.append(predicted.part)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, 'No space left on device')
        write(job, predicted)

    command = (folder, '--out', tmp_path / 'out', *IN_MEMORY)
    first, second, complete = Network(), Network(), Network()
    with monkeypatch.context() as patch:
        patch.setattr(beam_job, 'write', fill_the_disk)
        done = run(monkeypatch, first, *command)
    assert 'No space left on device' in programs.refusal(done, 'predict')
    done = run(monkeypatch, second, *command)
    assert not done.status and contents(tmp_path / 'out') == whole
    run(monkeypatch, complete, folder, '--out', tmp_path / 'again')
    assert second.num_tiles < complete.num_tiles


def test_other_pictures_and_settings_are_refused_where_a_job_was_begun(folder, tmp_path):
    job, _, _ = make_job(folder, tmp_path)
    sources = image_files.find_sources([str(folder / 'deep')])
    with pytest.raises(UserError, match=r'\.beam was begun with images by hash'):
        beam_job.begin(job, sources, [])
    with pytest.raises(UserError, match=r'\.beam was begun with images 7, now 6'):
        beam_job.begin(job, sources[:6], [])
    other = dataclasses.replace(job, options=dataclasses.replace(job.options, batch_size=3))
    with pytest.raises(UserError, match=r'\.beam was begun with batch 2, now 3'):
        beam_job.begin(other, sources, [])


def test_paths_are_relative_to_the_folder_of_the_command_wherever_a_worker_is(folder, tmp_path):
    job = beam_job.Job(tmp_path, folder, 1, made_slides.CARD, slide_plan.Options('m'))
    source = image_files.Source(pathlib.Path('deep/p1.png'), 'p1')
    (result,) = beam_job.predict(job, beam_job.Pictures(0, [source]), Network()).content
    # As the command was given it, so that tables are those of one machine.
    assert result.source == source and len(result.objects) == 2
    rows = beam_job.plan_slide(job, 0, image_files.Source(pathlib.Path('b.svs'), 'b'))
    parts = [one for row in rows for one in beam_job.predict(job, row, Network()).content]
    assert rows and parts


def test_flags_of_beam_want_a_runner(folder, tmp_path, monkeypatch):
    done = run(monkeypatch, None, folder, '--out', tmp_path / 'out', '--direct_num_workers=2')
    assert '--direct_num_workers=2 is no flag of this command without --runner' in done.err
    done = run(monkeypatch, None, folder, '--out', 'gs://bucket/out', *IN_MEMORY)
    assert '--out gs://bucket/out is an address; buckets are neither read nor written' in done.err
    assert not (tmp_path / 'out').exists()


def test_a_worker_that_does_not_see_the_results_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(beam_job, 'begin', lambda *_: None)
    done = run(monkeypatch, Network(), folder, '--out', tmp_path / 'out', *IN_MEMORY)
    assert 'give --out on a disk that all workers share' in programs.refusal(done, 'predict')


def test_slides_alone_leave_nothing_but_their_results(folder, whole, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    done = run(monkeypatch, Network(), folder / 'b.svs', '--out', out, *IN_MEMORY)
    assert not done.status and contents(out / 'b') == {
        name[2:]: content for name, content in whole.items() if name.startswith('b/')
    }
    assert [path.name for path in out.iterdir()] == ['b']


@pytest.fixture(scope='module')
def real(exported, tmp_path_factory):
    """The command with a real network on pictures and a slide, and its results without a runner."""
    place = tmp_path_factory.mktemp('real')
    (place / 'in').mkdir()
    for number in range(12):
        Image.fromarray(photo((60, 80), number)).save(place / f'in/p{number}.png')
    made_slides.write_pyramid(place / 'in/a.svs', photo((300, 400), 99))
    words = [sys.executable, '-m', 'gan_mrcnn', 'predict', str(place / 'in'), '--batch', '2']
    words += ['--model', str(exported.model), '--mpp', '0.5', '--tile', '64', '96']
    words += ['--tissue', 'off']
    subprocess.run([*words, '--out', str(place / 'alone')], check=True)
    found = contents(place / 'alone')
    assert len(found) == 2 * 12 + 2 + 4
    return words, found


TWO_PROCESSES = ['--runner', 'DirectRunner', '--direct_num_workers=2']


@pytest.mark.slow
def test_two_processes_with_a_real_network_give_the_results_of_one(real, tmp_path):
    words, found = real
    subprocess.run([*words, '--out', str(tmp_path / 'out'), *TWO_PROCESSES], check=True)
    assert contents(tmp_path / 'out') == found


@pytest.mark.slow
def test_a_killed_worker_ends_the_command_and_the_same_command_goes_on(real, tmp_path):
    words, found = real
    out = tmp_path / 'out'
    words = [*words, '--out', str(out), *TWO_PROCESSES]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while not [*out.glob('.beam/0*.json'), *out.glob('a/rows/*.npz')]:
        assert process.poll() is None
        time.sleep(0.02)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if 'apache_beam.runners.worker.sdk_worker_main' in child.cmdline()
    ]
    assert len(workers) == 2
    workers[0].kill()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert said.splitlines()[-1].endswith('the same command goes on with what is missing')
    assert not [worker for worker in workers if worker.is_running()]
    kept = {path: path.stat().st_mtime_ns for path in out.glob('.beam/0*.json')}
    process = subprocess.Popen(words)
    changed = []
    while process.poll() is None:
        changed += [path for path, when in kept.items() if when != _written(path, when)]
        time.sleep(0.05)
    assert process.returncode == 0 and not changed
    assert contents(out) == found


def _written(path, otherwise):
    """When a file was written, in nanoseconds; `otherwise` where it is gone."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return otherwise
