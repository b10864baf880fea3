"""All programs on the machines, disks and paths that users have: one line, and nothing lost.

In this process and up to the network, which is built in the tests of single programs.
"""

import json
import os
import pathlib
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gan_mrcnn import __main__ as program
from gan_mrcnn import task as task_lib
from gan_mrcnn.evaluation import ablate
from gan_mrcnn.metrics import predictions
from gan_mrcnn.prediction import predictor as predictor_lib
from gan_mrcnn.prediction import run as prediction_run
from gan_mrcnn.utils.errors import UserError
from tests import programs, tiny
from tests.prediction.test_run import Picky, make_card
from tests.serving.tiny import photo


class World:
    """A run, an export, a data set, pictures and predictions in one folder."""

    def __init__(self, folder: pathlib.Path, exported):
        self.folder = folder
        self.run, self.model = folder / 'run', folder / 'model'
        # Copies: a command of the fuzz may write into them.
        shutil.copytree(exported.run, self.run)
        shutil.copytree(exported.model, self.model)
        self.data, self.cache = exported.run.parent / 'data', folder / 'cache'
        self.pictures = folder / 'pictures'
        (self.pictures / 'deep').mkdir(parents=True)
        for number, name in enumerate(('a.png', 'b.jpg', 'deep/c.png')):
            Image.fromarray(photo((30, 40), number)).save(self.pictures / name)
        self.predictions = folder / 'predictions.json'
        self.predictions.write_text('[]')
        self.annotated = folder / 'annotated'
        self.annotated.mkdir()
        shutil.copy(self.pictures / 'a.png', self.annotated)
        shape = {'label': 'gland', 'points': [[1, 1], [9, 1], [5, 9]], 'shape_type': 'polygon'}
        (self.annotated / 'a.json').write_text(
            json.dumps({'imagePath': 'a.png', 'imageData': None, 'shapes': [shape]})
        )

    @property
    def data_flags(self):
        return ['--dataset', 'label_images', '--data_dir', self.data]


@pytest.fixture(scope='module')
def world(exported, tmp_path_factory):
    return World(tmp_path_factory.mktemp('world'), exported)


class Network(Picky):
    """Decodes PNG alone, detects nothing."""

    card = make_card()


@pytest.fixture
def network(monkeypatch):
    """Predictions without loading a network."""
    monkeypatch.setattr(prediction_run, 'load', lambda *_: Network())


# Disks and folders.


@pytest.fixture
def wrong_places(tmp_path):
    """Folders that cannot be written, by what is wrong with them, as in `KINDS`."""
    (tmp_path / 'file').write_text('notes')
    os.symlink(tmp_path / 'nowhere' / 'deep', tmp_path / 'link')
    os.symlink(tmp_path / 'loop', tmp_path / 'loop')
    return {
        'a file': tmp_path / 'file',
        'below a file': tmp_path / 'file' / 'x',
        'a link to nothing': tmp_path / 'link',
        'a loop of links': tmp_path / 'loop' / 'x',
        'too long a name': tmp_path / ('n' * 300),
        'not a disk': pathlib.Path('/proc/nosuch'),
    }


# And what is said of them.
KINDS = {
    'a file': 'file is a file, not a folder; give another path',
    'below a file': 'file is a file, not a folder; give another path',
    'a link to nothing': 'link is a link that leads nowhere; give another path',
    'a loop of links': 'loop is a link that leads nowhere; give another path',
    'too long a name': 'cannot be written (File name too long)',
    'not a disk': 'cannot be written (No such file or directory)',
}


def test_an_export_is_no_folder_to_train_in(world):
    before = sorted(world.model.rglob('*'))
    line = programs.refusal(
        programs.run(
            *('train', *world.data_flags, '--cache_dir', world.cache, '--model_dir', world.model),
            *('--params_override', tiny.SETTINGS),
        ),
        'train',
    )
    assert f'--model_dir {world.model} holds an export; give another folder' in line
    assert sorted(world.model.rglob('*')) == before


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
    'name',
    ['train', 'predict', 'client', 'evaluate', 'report', 'check', 'compare', 'ablate', 'export'],
)
def test_an_output_that_cannot_be_written_is_one_line(
    name, kind, world, wrong_places, network, tmp_path
):
    place = wrong_places[kind]
    prepared = [*world.data_flags, '--cache_dir', world.cache, '--params_override', tiny.SETTINGS]
    scored = ['evaluate', *prepared, '--predictions', world.predictions]
    commands = {
        'train': ['train', *prepared, '--model_dir', place],
        'predict': ['predict', '--model', 'x', world.pictures, '--out', place],
        'client': [
            *('client', '--url', 'http://127.0.0.1:9/v1/models/m', '--out', place),
            world.pictures / 'a.png',
        ],
        'evaluate': [*scored, '--results', place / 'results.json'],
        'report': [*scored, '--report', place],
        'check': ['check', *world.data_flags, '--html', place / 'x.html'],
        'compare': [
            *('compare', world.folder / 'scored', world.folder / 'scored', '--split', 'val'),
            *('--report', place, '--samples', '2', '--cache_dir', world.cache),
        ],
        'ablate': ['ablate', '--table', '5', '--dataset', 'label_images', '--model_dir', place],
        'export': ['export', '--model_dir', world.run, '--export_dir', place],
    }
    if name == 'compare':
        write_scored_run(world)
    if name == 'export':
        # After the network, so that this is tried by itself.
        from gan_mrcnn.serving import export

        with pytest.raises(UserError, match='^--export_dir ') as error:
            export.export(None, make_card(), None, str(place))
        line = str(error.value)
        assert '\n' not in line
    else:
        command = commands[name]
        line = programs.refusal(programs.run(*command), command[0])
    assert str(place)[:90] in line and KINDS[kind] in line
    assert (tmp_path / 'file').read_text() == 'notes'


def write_scored_run(world):
    """A run that evaluate.py has evaluated on 'val'."""
    folder = world.folder / 'scored'
    if folder.exists():
        return
    shutil.copytree(world.run, folder)
    predictions.save_predictions(str(folder / 'eval/val/predictions.json'), [], {})


def test_a_disk_that_is_full_keeps_what_was_finished(world, network, tmp_path):
    """The second image does not fit; of it there is nothing, of the first all."""
    small, large = world.folder / 'sizes', tmp_path / 'out'
    small.mkdir()
    Image.new('RGB', (20, 20)).save(small / 'a.png')
    Image.fromarray(photo((300, 400))).save(small / 'b.png')
    with programs.largest_file(20_000):
        done = programs.run('predict', '--model', 'x', small, '--out', large, '--batch', '1')
    line = programs.refusal(done, 'predict')
    assert str(large) in line and 'File too large' in line
    assert programs.files_in(large) == {
        *('overlays/a.png', 'labels/a.png', 'objects.csv', 'predictions.json')
    }
    assert Image.open(large / 'overlays/a.png').size == (20, 20)
    images = json.loads((large / 'predictions.json').read_text())['images']
    assert [pathlib.Path(one['file_name']).name for one in images] == ['a.png']


def test_figures_and_reports_are_written_whole_or_not_at_all(world, tmp_path):
    command = ['evaluate', *world.data_flags, '--cache_dir', world.cache]
    command += ['--params_override', tiny.SETTINGS, '--predictions', world.predictions]
    for flag, path in (('--results', tmp_path / 'x.json'), ('--report', tmp_path / 'page')):
        assert programs.run(*command, flag, path).status == 0
        before = {name: (tmp_path / name).read_bytes() for name in programs.files_in(tmp_path)}
        with programs.largest_file(1000):
            line = programs.refusal(programs.run(*command, flag, path), 'evaluate')
        assert str(path) in line and 'File too large' in line
        after = {name: (tmp_path / name).read_bytes() for name in programs.files_in(tmp_path)}
        assert after == before


# Terminals.


@pytest.mark.parametrize('encoding', ['ascii', 'iso-8859-1'])
def test_class_names_are_printed_on_every_terminal(encoding, world, tmp_path):
    data = shutil.copytree(world.data, tmp_path / 'data')
    text = (data / 'classes.csv').read_text(encoding='utf-8').replace('gland', '腺')
    (data / 'classes.csv').write_text(text, encoding='utf-8')
    done = programs.run('check', '--dataset', 'label_images', '--data_dir', data, encoding=encoding)
    assert done.status in (0, 1) and '\\u817a' in done.out
    command = ['evaluate', '--dataset', 'label_images', '--data_dir', data]
    command += ['--cache_dir', tmp_path / 'cache', '--params_override', tiny.SETTINGS]
    command += ['--predictions', world.predictions, '--report', tmp_path / 'page']
    done = programs.run(*command, encoding=encoding)
    assert done.status == 0, done.err
    assert '\\u817a' in done.out
    assert '腺' in (tmp_path / 'page/index.html').read_text(encoding='utf-8')


# Everything at once.


def places(world):
    """Paths that a user might give, right and wrong."""
    return st.sampled_from(
        [
            *(world.run, world.model, world.data, world.pictures, world.predictions),
            *('nosuch', 'new', 'new[0]', 'n*w', 'with space', 'ü/腺', 'line\nbreak', "it's"),
            *('', '.', '~nosuchuser/x', 'gs://bucket/x', '-x', 'file', 'file/x', 'n' * 300),
            *('/proc/nosuch', '%s', '<b>', '{}', 'a/../new', 'new/', 'pictures/*.png', '**'),
            *(os.fsdecode(b'latin\xfc'), world.model / '1', world.run / 'ckpt-7'),
            *(world.run / 'params.yaml', world.pictures / 'a.png'),
        ]
    ).map(os.fspath)


NUMBERS = st.sampled_from(
    ['0', '1', '2', '-1', '0.5', '1.5', '1e400', 'nan', '-inf', 'x', '', '4294967296', '1e-9']
)
WORDS = st.sampled_from(
    ['best', 'last', 'val', 'train', 'test', 'gland', 'label_images', 'coco_format', 'x', '腺']
)
OVERRIDES = st.sampled_from(
    [
        *(tiny.SETTINGS, 'task.seed=-1', 'task.x=1', 'x', 'task.model.input_size=[7,7,3]', '{', ''),
        *('task.train_data.global_batch_size=0', 'trainer.train_steps=-3', 'a: b', 'task.gan=3'),
        *('trainer.steps_per_loop=0', 'task.model.roi_sampler.num_sampled_rois=99999'),
        *('task.validation_data.split=nosuch', 'task.model.backbone.resnet.model_id=7', 'a: *b'),
        *('runtime.all_reduce_alg=x', 'task.backbone_weights=nosuch.npz', 'task.nonfinite=[]'),
    ]
)


URLS = st.sampled_from(
    [
        *('http://127.0.0.1:9/v1/models/m', 'http://[::1/v1/models/m', 'x', ''),
        *('http://h:99999/v1/models/m', 'http://127.0.0.1:9/v1/models/ü b'),
    ]
)


WEIGHTS = st.sampled_from(
    [
        *(
            '',
            '.',
            'nosuch',
            'file',
            'http://127.0.0.1:9/x',
            'ftp://x',
            '://',
            'http://[::1#sha256=',
        ),
        *(f'http://127.0.0.1:9/ü b#sha256={"0" * 64}', f'http://h:x/#sha256={"0" * 64}'),
        *(f'file:///proc/nosuch#sha256={"0" * 64}', f'http://[::1#sha256={"0" * 64}'),
    ]
)


def valid(world, name):
    """Flags and the rest of a command `name` that is right."""
    data = {'--dataset': 'label_images', '--data_dir': world.data}
    settings = {'--params_override': tiny.SETTINGS, '--cache_dir': world.cache}
    return {
        'train': ({**data, **settings, '--model_dir': 'new', '--split': 0.6}, []),
        'evaluate': ({**data, **settings, '--predictions': world.predictions}, []),
        'predict': ({'--model': world.model, '--out': 'new'}, [world.pictures]),
        'check': ({**data, '--html': 'x.html'}, []),
        'records': ({**data, '--cache_dir': world.cache, '--split': 0.6}, []),
        'compare': (
            {'--split': 'val', '--report': 'new', '--cache_dir': world.cache, '--samples': 2},
            [world.folder / 'scored', world.folder / 'scored'],
        ),
        'ablate': ({**data, '--table': 5, '--model_dir': 'new', '--cache_dir': world.cache}, []),
        'export': ({'--model_dir': world.run, '--export_dir': 'new'}, []),
        'publish': ({}, [world.run, 'new']),
        'client': ({'--url': 'http://127.0.0.1:9/v1/models/m'}, [world.pictures / 'a.png']),
        'replay': ({}, [world.run / 'nonfinite/step-1.npz']),
        'import': ({'--from': 'labelme', '--to': 'new'}, [world.annotated]),
        'demo': ({'--model': world.model, '--host': '127.0.0.1'}, []),
    }[name]


def any_values(world, name):
    """Values of any kind for the flags of the command `name`."""
    place = places(world)
    of_a_run = {
        **{'--model_dir': place, '--config_file': place, '--params_override': OVERRIDES},
        **{'--seed': NUMBERS, '--gan': st.sampled_from(['baseline', 'x']), '--data_dir': place},
        '--dataset': WORDS,
    }
    return {
        'train': {
            **of_a_run,
            **{'--split': NUMBERS, '--split_seed': NUMBERS, '--max_instances': NUMBERS},
            **{'--group_by': WORDS, '--log_file': place, '--weights': WEIGHTS},
        },
        'evaluate': {
            **of_a_run,
            **{'--saved_model': place, '--split': WORDS, '--predictions': place},
            **{'--val_predictions': place, '--results': place, '--report': place},
            **{'--checkpoint': st.one_of(WORDS, place), '--weights': WEIGHTS},
        },
        'predict': {
            **{'--model': place, '--out': place, '--batch': NUMBERS, '--overlap': NUMBERS},
            **{'--score_threshold': NUMBERS, '--checkpoint': st.one_of(WORDS, place)},
            **{'--weights': WEIGHTS, '--mpp': NUMBERS, '--slide_mpp': NUMBERS},
            **{'--runner': WORDS, '--direct_num_workers': NUMBERS},
        },
        'check': {
            **{'--dataset': WORDS, '--data_dir': place, '--split': NUMBERS, '--html': place},
            **{'--annotations': place, '--split_seed': NUMBERS},
        },
        'records': {
            **{'--dataset': WORDS, '--data_dir': place, '--split': NUMBERS, '--seed': NUMBERS},
            **{'--config_file': place, '--params_override': OVERRIDES, '--cache_dir': place},
            **{'--splits': WORDS, '--runner': WORDS, '--direct_num_workers': NUMBERS},
        },
        'compare': {'--split': WORDS, '--samples': NUMBERS, '--report': place, '--data_dir': place},
        'ablate': {
            **{'--seeds': NUMBERS, '--eval_split': WORDS, '--samples': NUMBERS},
            **{'--jobs': NUMBERS, '--arms': place, '--model_dir': place},
        },
        'export': {
            **{'--version': NUMBERS, '--score_threshold': NUMBERS, '--model_dir': place},
            **{'--export_dir': place, '--checkpoint': st.one_of(WORDS, place)},
            **{'--data_dir': place, '--weights': WEIGHTS},
            '--format': st.sampled_from(['onnx', 'saved_model', 'x']),
        },
        'publish': {'--checkpoint': st.one_of(WORDS, place), '--data_dir': place},
        'client': {
            **{'--out': place, '--class_names': place, '--timeout': NUMBERS, '--url': URLS},
            '--score_threshold': NUMBERS,
        },
        'replay': {},
        'import': {
            **{'--from': st.sampled_from(['cvat', 'qupath', 'via', 'yolo', 'x']), '--to': place},
            **{'--images': place, '--boxes': WORDS, '--class_attribute': WORDS},
        },
        'demo': {
            **{'--model': place, '--data_dir': place, '--weights': WEIGHTS, '--overlap': NUMBERS},
            **{'--host': WORDS, '--port': NUMBERS, '--checkpoint': st.one_of(WORDS, place)},
        },
    }[name]


@st.composite
def commands(draw, world):
    """A right command of any program, some of whose flags and paths have become anything."""
    name = draw(st.sampled_from(list(program.COMMANDS)))
    flags, rest = valid(world, name)
    anything = any_values(world, name)
    changed = draw(st.lists(st.sampled_from(sorted(anything)), max_size=3)) if anything else []
    flags = {**flags, **{flag: draw(anything[flag]) for flag in changed}}
    if rest and draw(st.booleans()):
        rest = draw(st.lists(places(world), min_size=1, max_size=3))
    given = [f'{flag}={value}' for flag, value in flags.items()]
    return [name, *given, *(['--', *rest] if rest else [])]


def stop(*_, **__):
    raise UserError('the network is not built here')


def check_any_arguments(world, folder, monkeypatch, number):
    """Runs programs with `number` different commands, each ending as docs/commands.md says."""
    write_scored_run(world)
    monkeypatch.chdir(folder)
    (folder / 'file').write_text('notes')
    monkeypatch.setattr(task_lib.GanMaskRCNNTask, 'build_model', stop)
    monkeypatch.setattr(predictor_lib, 'load_saved_model', stop)
    monkeypatch.setattr(ablate.jobs, 'run_all', lambda todo, _: {one.name: 'x' for one in todo})

    @settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(commands(world))
    def check(command):
        done = programs.run(*command)
        name = command[0]
        assert done.status in ((0, 1, 2) if name == 'check' else (0, 2)), (command, done)
        assert 'Traceback' not in done.out + done.err
        if done.status == 2:
            last = done.err.rstrip().splitlines()[-1]
            assert last.startswith(f'gan-mrcnn {name}: '), (command, done.err)

    check()
    assert (folder / 'file').read_text() == 'notes'
    assert (world.run / 'ckpt-7.index').is_file() and not (world.run / 'damaged').exists()


def test_any_arguments_end_as_the_readme_says(world, tmp_path, monkeypatch):
    check_any_arguments(world, tmp_path, monkeypatch, 60)


@pytest.mark.slow
def test_any_arguments_end_as_the_readme_says_500_times(world, tmp_path, monkeypatch):
    check_any_arguments(world, tmp_path, monkeypatch, 500)
