"""Which checkpoint a run resumes from, and which is the best, also after an interrupted save."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from gan_mrcnn.training import checkpoints
from gan_mrcnn.utils.errors import UserError


class Model:
    """A variable, a step and what saves them."""

    def __init__(self, folder, size=1000):
        self.folder = str(folder)
        self.step = tf.Variable(0, dtype=tf.int64)
        self.weights = tf.Variable(tf.zeros([size]))
        self.checkpoint = tf.train.Checkpoint(global_step=self.step, model=self.weights)
        self.saved = checkpoints.Checkpoints(self.checkpoint, self.folder, self.step, 2, True)

    def train_to(self, step):
        self.step.assign(step)
        self.weights.assign(tf.fill(self.weights.shape, float(step)))
        self.saved.save()
        return self


@pytest.fixture
def folder(tmp_path):
    """With checkpoints of the steps 20 and 30; that of 10 is no longer kept."""
    model = Model(tmp_path)
    for step in (10, 20, 30):
        model.train_to(step)
    assert not (tmp_path / 'ckpt-10.index').exists()
    return tmp_path


def data_file(folder, step):
    (path,) = folder.glob(f'ckpt-{step}.data-*')
    return path


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


def test_a_run_resumes_from_the_newest(folder):
    assert checkpoints.newest_sound(str(folder)) == str(folder / 'ckpt-30')
    assert not (folder / 'damaged').exists()


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoints.newest_sound(str(tmp_path)) is None
    assert checkpoints.newest_sound(str(tmp_path / 'nosuch')) is None


@pytest.mark.parametrize(
    'damage',
    [
        lambda folder: flip(data_file(folder, 30), 2000),
        lambda folder: os.truncate(data_file(folder, 30), 1500),
        lambda folder: data_file(folder, 30).unlink(),
        lambda folder: os.truncate(folder / 'ckpt-30.index', 0),
        lambda folder: os.truncate(folder / 'ckpt-30.index', 100),
        lambda folder: flip(folder / 'ckpt-30.index', 60),
    ],
    ids=['flipped', 'cut', 'no data', 'empty index', 'cut index', 'flipped index'],
)
def test_a_damaged_one_is_set_aside_and_the_one_before_is_taken(damage, folder, capsys):
    damage(folder)
    path = checkpoints.newest_sound(str(folder))
    assert path == str(folder / 'ckpt-20') == tf.train.latest_checkpoint(str(folder))
    assert 'ckpt-30 is damaged' in capsys.readouterr().out
    assert (folder / 'damaged' / 'ckpt-30.index').is_file()
    # The run goes on, saves under the same name again and keeps as many as before.
    model = Model(folder)
    model.saved.restore(path)
    np.testing.assert_array_equal(model.weights, 20.0)
    model.train_to(30).train_to(40)
    assert sorted(found.stem for found in folder.glob('ckpt-*.index')) == ['ckpt-30', 'ckpt-40']
    assert checkpoints.newest_sound(str(folder)) == str(folder / 'ckpt-40')


@pytest.mark.parametrize('content', [None, '', 'model_checkpoint_path: "ckpt-7'])
def test_the_list_of_checkpoints_may_be_lost(content, folder):
    """A start that relied on it would train from scratch and overwrite the checkpoints."""
    (folder / 'checkpoint').unlink()
    if content is not None:
        (folder / 'checkpoint').write_text(content)
    assert checkpoints.newest_sound(str(folder)) == str(folder / 'ckpt-30')
    assert tf.train.latest_checkpoint(str(folder)) == str(folder / 'ckpt-30')


def test_what_an_interrupted_save_left_is_removed(folder):
    unfinished = folder / 'ckpt-40_temp'
    unfinished.mkdir()
    (unfinished / 'part-00000-of-00001.data-00000-of-00001').write_bytes(b'x' * 100)
    shutil.copy(data_file(folder, 30), folder / 'ckpt-40.data-00000-of-00001')
    assert checkpoints.newest_sound(str(folder)) == str(folder / 'ckpt-30')
    assert not list(folder.glob('ckpt-40*'))


def test_what_the_user_has_put_beside_them_stays(folder):
    (folder / 'ckpt-old').mkdir()
    for name in ('ckpt-10-copy.index', 'ckpt-best.txt', 'ckpt-old/ckpt-5.index'):
        (folder / name).write_text('mine')
    before = sorted(folder.rglob('*'))
    checkpoints.newest_sound(str(folder))
    assert sorted(folder.rglob('*')) == before


def test_where_none_can_be_read_nothing_begins_from_scratch(folder):
    for step in (20, 30):
        os.truncate(folder / f'ckpt-{step}.index', 10)
    with pytest.raises(UserError, match='none of the checkpoints') as error:
        checkpoints.newest_sound(str(folder))
    assert '\n' not in str(error.value)


def test_another_network_is_said_in_one_line(folder):
    with pytest.raises(UserError, match='another network') as error:
        Model(folder, size=7).saved.restore(str(folder / 'ckpt-30'))
    assert '\n' not in str(error.value)


def test_too_little_room_is_said_before_the_first_step(folder, monkeypatch):
    model = Model(folder)
    model.saved.check_room()
    usage = shutil.disk_usage(folder)._replace(free=0)
    monkeypatch.setattr(checkpoints.shutil, 'disk_usage', lambda _: usage)
    with pytest.raises(UserError, match='0 MB of room'):
        model.saved.check_room()


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_errors_of_the_disk_are_one_line_and_others_stay_what_they_are(number):
    for error in (
        OSError(number, os.strerror(number)),
        tf.errors.ResourceExhaustedError(None, None, f'ckpt-1.data; {os.strerror(number)}'),
    ):
        expected = pytest.raises(UserError, match='RUN cannot be written')
        with expected as found, checkpoints.disk_errors_named('RUN'):
            raise error
        assert os.strerror(number) in str(found.value) and '\n' not in str(found.value)
    with pytest.raises(tf.errors.ResourceExhaustedError), checkpoints.disk_errors_named('RUN'):
        raise tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating tensor')


def best_of(folder):
    return checkpoints.BestCheckpoint(str(folder), 'mask_AP', is_chief=True)


def validate(best, model, step, figure):
    model.train_to(step)
    best.add(model.checkpoint, {'mask_AP': figure, 'box_AP': 0.0}, step)


def step_on_disk(folder):
    reader = tf.train.load_checkpoint(str(folder / 'best'))
    return reader.get_tensor('global_step/.ATTRIBUTES/VARIABLE_VALUE')


def test_the_best_is_kept_over_restarts(tmp_path):
    model = Model(tmp_path)
    for step, figure, expected in [(10, 0.2, 10), (20, 0.1, 10), (30, 0.3, 30), (40, 0.3, 30)]:
        best = best_of(tmp_path)
        validate(best, model, step, figure)
        assert best.best_step == expected == step_on_disk(tmp_path)
        assert best_of(tmp_path).best_step == expected
    assert len(list((tmp_path / 'best').glob('*.index'))) == 1
    history = json.loads((tmp_path / 'validations.json').read_text())
    assert [history[str(step)]['mask_AP'] for step in (10, 20, 30, 40)] == [0.2, 0.1, 0.3, 0.3]


def test_killed_between_noting_and_saving_the_best_is_chosen_again(tmp_path, monkeypatch):
    """The validation is taken again then, since its step is the last that was saved."""
    model = Model(tmp_path)
    validate(best_of(tmp_path), model, 10, 0.2)

    def killed(*_, **__):
        raise KeyboardInterrupt

    model.step.assign(20)
    with monkeypatch.context() as patch:
        patch.setattr(tf.train.CheckpointManager, 'save', killed)
        with pytest.raises(KeyboardInterrupt):
            best_of(tmp_path).add(model.checkpoint, {'mask_AP': 0.9}, 20)
    best = best_of(tmp_path)
    assert best.best_step == 10 and not best.is_settled(20)
    best.add(model.checkpoint, {'mask_AP': 0.9}, 20)
    assert best.is_settled(20) and best_of(tmp_path).best_step == 20 == step_on_disk(tmp_path)


def test_a_damaged_best_is_none(tmp_path):
    model = Model(tmp_path)
    validate(best_of(tmp_path), model, 10, 0.2)
    (path,) = (tmp_path / 'best').glob('*.index')
    os.truncate(path, 10)
    best = best_of(tmp_path)
    assert best.best_step is None
    validate(best, model, 20, 0.1)
    assert best_of(tmp_path).best_step == 20 == step_on_disk(tmp_path)


def test_a_figure_that_is_undefined_chooses_no_checkpoint(tmp_path):
    """As the mask AP of a validation split without an object."""
    variable = tf.Variable(1.0)
    best = checkpoints.BestCheckpoint(str(tmp_path), 'mask_AP', is_chief=True)
    for step, logs in ((10, {}), (20, {'mask_AP': 0.25}), (30, {}), (40, {'mask_AP': 0.125})):
        variable.assign(step)
        number = tf.Variable(step, dtype=tf.int64)
        saved = tf.train.Checkpoint(variable=variable, global_step=number)
        best.add(saved, logs, step)
        assert best.is_settled(step)
        assert best.best_step == (None if step == 10 else 20)
        assert best.best_figure() == ({} if step == 10 else {'mask_AP': 0.25})
        # The same after a new start.
        best = checkpoints.BestCheckpoint(str(tmp_path), 'mask_AP', is_chief=True)


def test_validations_since_the_best_are_counted_over_restarts(tmp_path):
    """Equal is not better; a figure that is undefined counts, but not before there is a best."""
    model = Model(tmp_path)
    figures = (None, 0.25, 0.25, None, 0.5, 0.125)
    for place, (figure, wanted) in enumerate(zip(figures, (0, 0, 1, 2, 0, 1))):
        step = 10 * (place + 1)
        best = checkpoints.BestCheckpoint(str(tmp_path), 'mask_AP', is_chief=True)
        model.train_to(step)
        best.add(model.checkpoint, {} if figure is None else {'mask_AP': figure}, step)
        assert best.num_since_best(step) == wanted
    # A run that has gone back does not count what it is still to do again.
    assert [best.num_since_best(step) for step in (40, 50, 60)] == [0, 0, 1]
