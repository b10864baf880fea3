"""A whole run on a few small images: what it leaves behind, going on after a stop, evaluation."""

import dataclasses
import glob
import json
import re
import shutil
from unittest import mock

import cv2
import numpy as np
import pytest
import tensorflow as tf
import yaml

from gan_mrcnn import configs, settings
from gan_mrcnn import task as task_lib
from gan_mrcnn.evaluation import run as evaluation_run
from gan_mrcnn.prediction import checkpoint
from gan_mrcnn.training import checkpoints, gan_monitor, multi_worker, replay
from gan_mrcnn.training import run as training_run
from gan_mrcnn.utils.errors import UserError
from tests import tiny
from tests.tiny import DATASET, HEIGHT, STEPS, WIDTH, make_config, train


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('training')


@pytest.fixture(scope='module')
def run(folder):
    """The folder of a run of `STEPS` steps without a stop."""
    with tiny.eager_steps():
        return train(folder, 'whole', STEPS, 'train_and_eval')


def variables(model_dir):
    """Every value in the last checkpoint, that of step `STEPS`, by its key."""
    found = tiny.last_values(model_dir)
    assert found['global_step/.ATTRIBUTES/VARIABLE_VALUE'] == STEPS
    return found


def test_checkpoint_holds_both_networks_both_optimizers_and_the_step(run):
    found = variables(run)
    parts = {name.split('/')[0] for name in found}
    assert parts >= {
        'backbone',
        'decoder',
        'box_discriminator',
        'mask_discriminator',
        'optimizer',
        'discriminator_optimizer',
        'global_step',
    }
    assert found['global_step/.ATTRIBUTES/VARIABLE_VALUE'] == STEPS
    for name in ('optimizer', 'discriminator_optimizer'):
        momenta = [
            value
            for key, value in found.items()
            if key.startswith(f'{name}/') and np.ndim(value) == 4
        ]
        assert momenta and all(np.abs(momentum).max() > 0 for momentum in momenta), name
        iterations = [
            value for key, value in found.items() if key.startswith(f'{name}/_iterations')
        ]
        assert iterations == [STEPS]


@tiny.eager_steps()
def test_run_that_was_stopped_ends_where_the_whole_one_does(run, folder):
    """Stopped in the middle of an epoch, of the warm-up and before the lower learning rate.

    Not compared to the last bit: threads may add up a gradient's sums in another order.
    """
    (folder / 'stopped').mkdir()
    for path in (run / 'params.yaml', *run.glob(f'ckpt-{STEPS // 2}.*')):
        shutil.copy(path, folder / 'stopped')
    stopped = variables(train(folder, 'stopped', STEPS))
    whole = variables(run)
    assert set(stopped) == set(whole)
    for name, value in whole.items():
        np.testing.assert_allclose(stopped[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
@tiny.eager_steps()
def test_a_stopped_run_of_a_stronger_game_ends_where_the_whole_one_does(folder):
    """Directions of the spectral norms, place on the ramp and draw of the exchange included."""
    gan = {**tiny.STRONGEST, 'control': 'shuffled'}
    overrides = [f'task.gan.{name}={value}' for name, value in gan.items()]
    whole = train(folder, 'strong', STEPS, 'train', *overrides)
    (folder / 'strong-stopped').mkdir()
    for path in (whole / 'params.yaml', *whole.glob(f'ckpt-{STEPS // 2}.*')):
        shutil.copy(path, folder / 'strong-stopped')
    stopped = train(folder, 'strong-stopped', STEPS, 'train', *overrides)
    found, wanted = variables(stopped), variables(whole)
    assert set(found) == set(wanted)
    assert sum('/direction/' in name for name in found) == 3 + 7
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    ramp = events(whole / 'train')['adversarial_ramp']
    assert ramp == {1: 0.0, 2: 0.5, 3: 1.0, 4: 1.0}
    later = events(folder / 'strong-stopped' / 'train')['adversarial_ramp']
    assert later == {3: 1.0, 4: 1.0}


def events(folder):
    """Values by tag and step."""
    found = {}
    for path in glob.glob(f'{folder}/events.out.tfevents.*'):
        for event in tf.compat.v1.train.summary_iterator(path):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = tf.make_ndarray(value.tensor)
    return found


def test_tensorboard_shows_every_term_at_every_step(run):
    found = events(run / 'train')
    terms = task_lib.DETECTION_TERMS + task_lib.ADVERSARIAL_TERMS + ('total_loss', 'gradient_norm')
    for name in terms:
        assert set(found[name]) == {1, 2, 3, 4}, name
        assert all(np.isfinite(value) for value in found[name].values()), name
    # Two steps of warm-up, then the full rate until the boundary is passed, then a tenth of it.
    for step, rate in ((1, 0.001), (2, 0.0055), (3, 0.01), (4, 0.001)):
        assert found['learning_rate'][step] == pytest.approx(rate, rel=1e-5)
        assert found['discriminator_learning_rate'][step] == pytest.approx(rate / 5, rel=1e-5)


def test_tensorboard_shows_validation_and_its_images(run):
    found = events(run / 'validation')
    assert set(found['mask_AP']) == set(found['box_AP']) == {STEPS}
    assert any('image_ground_truth_prediction' in tag for tag in found)


@tiny.eager_steps()
def test_evaluation_asks_the_box_discriminator_where_it_is_told_to(run, folder):
    found = []
    for exponent in (0, 1):
        config = make_config(folder, f'task.gan.rescore_exponent={exponent}')
        evaluation_run.evaluate(config, DATASET, 'val', str(run), 'last')
        path = run / 'eval' / 'val' / 'predictions.json'
        found.append({tuple(one['bbox']): one['score'] for one in json.loads(path.read_text())})
    plain, rescored = found
    assert set(plain) == set(rescored) and plain
    opinions = [rescored[box] / plain[box] for box in plain]
    assert 0 < min(opinions) < max(opinions) < 1


def test_what_runs_names_the_settings_of_the_game_that_were_chosen():
    assert 'control' not in training_run._gan_text(configs.Gan())
    text = training_run._gan_text(configs.Gan(control='frozen', ramp=0.25))
    assert text.endswith('; ramp 0.25; control frozen')


def test_evaluation_covers_every_image_and_carries_the_notice(run, folder, capsys):
    results = evaluation_run.evaluate(make_config(folder), DATASET, 'test', str(run), 'best')
    output = run / 'eval' / 'test'
    assert json.loads((output / 'results.json').read_text()) == results
    assert results['notice'] == DATASET.notice
    assert results['num_images'] == 3 and results['step'] == STEPS
    assert '/best/' in results['checkpoint']
    for kind in ('box', 'mask'):
        assert 0 <= results['figures'][kind]['AP'] <= 1
    predictions = json.loads((output / 'predictions.json').read_text())
    assert {prediction['image_id'] for prediction in predictions} == set(DATASET.ids['test'])
    keys = [(p['image_id'], p['score'], tuple(p['bbox'])) for p in predictions]
    # The last batch is filled up with images that must not count twice.
    assert len(keys) == len(set(keys)) <= 10 * 3
    assert all(p['segmentation']['size'] == [HEIGHT, WIDTH] for p in predictions)
    sheet = cv2.imread(str(output / 'images.png'))
    assert sheet.shape[0] >= 3 * HEIGHT and sheet.shape[1] >= 3 * WIDTH
    assert DATASET.notice in capsys.readouterr().out


@pytest.mark.parametrize(
    'setting',
    ['task.model.backbone.resnet.model_id=34', 'task.model.mask_head.num_filters=16'],
)
def test_evaluation_of_another_network_says_so_in_one_line(setting, run, folder):
    with pytest.raises(UserError) as error:
        evaluation_run.evaluate(make_config(folder, setting), DATASET, 'test', str(run), 'last')
    message = str(error.value)
    assert '\n' not in message and '--config_file' in message and str(run) in message


@pytest.mark.parametrize(
    'setting', ['task.model.detection_head.fc_dims=16', 'task.gan.mode=baseline']
)
def test_training_does_not_go_on_from_another_network(setting, run, folder):
    settings = (run / 'params.yaml').read_text()
    config = make_config(folder, setting, 'trainer.train_steps=5')
    with pytest.raises(UserError) as error:
        training_run.train(config, DATASET, str(run), 'train')
    message = str(error.value)
    assert '\n' not in message and str(run) in message
    # What the run was trained with is still on record.
    assert (run / 'params.yaml').read_text() == settings


def test_a_run_from_before_a_setting_was_there_goes_on(run, folder, tmp_path):
    """Its checkpoint was made with what is now the setting's default."""
    older = shutil.copytree(run, tmp_path / 'older')
    settings = yaml.safe_load((older / 'params.yaml').read_text())
    del settings['task']['gan']['detach_features']
    del settings['task']['model']['roi_aligner']['fuse_levels']
    (older / 'params.yaml').write_text(yaml.safe_dump(settings))
    config = make_config(folder)
    assert training_run.resumed_step(config, str(older)) > 0
    config.task.gan.detach_features = False
    with pytest.raises(UserError, match='task.gan.detach_features'):
        training_run.resumed_step(config, str(older))


@pytest.mark.parametrize(
    'name, value, flag',
    [
        ('share', 0.5, '--split'),
        ('split_seed', 1, '--split_seed'),
        ('dataset', 'coco', '--dataset'),
    ],
)
def test_training_does_not_go_on_with_another_split(name, value, flag, run, folder):
    """Images held out so far would be trained on, and the best checkpoint chosen by them."""
    config = make_config(folder)
    setattr(config.task, name, value)
    with pytest.raises(UserError) as error:
        training_run.resumed_step(config, str(run))
    message = str(error.value)
    assert '\n' not in message and str(run) in message and f'{flag} ' in message


HUGE_RATE = (
    'task.clip_norm=0.0',
    'trainer.optimizer_config.learning_rate.stepwise.values=[1.0e+30, 1.0e+30]',
    'trainer.optimizer_config.warmup.linear.warmup_learning_rate=1.0e+30',
)


@pytest.fixture(scope='module')
def diverged(folder):
    """A run with a learning rate far too high: its folder, and the line that it ended with."""
    config = make_config(folder, 'trainer.train_steps=4', *HUGE_RATE)
    with pytest.raises(UserError) as error, tiny.eager_steps():
        training_run.train(config, DATASET, str(folder / 'diverged'), 'train')
    return folder / 'diverged', str(error.value)


def test_non_finite_loss_names_step_terms_and_images_in_one_line(diverged):
    model_dir, message = diverged
    assert '\n' not in message
    assert re.match(
        r'Non-finite loss or gradient: step [12] images \d\.png, \d\.png .*gradient_norm', message
    )
    (event,) = json.loads((model_dir / 'nonfinite.json').read_text())
    assert event['policy'] == 'stop' and f'step {event["step"]} ' in message
    status = json.loads((model_dir / 'status.json').read_text())
    assert status['state'] == 'failed' and status['message'] == message


def test_a_non_finite_step_is_replayed(diverged):
    model_dir, message = diverged
    path = re.search(r'gan-mrcnn replay (\S+\.npz)', message).group(1)
    lines = replay.replay(path)
    assert any(line.startswith('not finite: ') for line in lines)
    # The very same step: what was finite has the value that the run has noted.
    (event,) = json.loads((model_dir / 'nonfinite.json').read_text())
    again = dict(line.strip().split(': ') for line in lines if re.match(r' +\w+: \S+$', line))
    for name in task_lib.DETECTION_TERMS:
        then = float(event['terms'][name])
        assert float(again[name]) == pytest.approx(then, rel=1e-4, nan_ok=True)
    assert sum(line.startswith('image ') for line in lines) == 2


def test_replay_says_in_one_line_what_is_missing(tmp_path):
    with pytest.raises(UserError, match='is not there'):
        replay.replay(str(tmp_path / 'step-3.npz'))
    (tmp_path / 'step-3.npz').write_bytes(b'PK nonsense')
    with pytest.raises(UserError, match='no batch'):
        replay.replay(str(tmp_path / 'step-3.npz'))


class Poisoned(task_lib.GanMaskRCNNTask):
    """A step of which the loss is not finite, on its batch, whenever it comes."""

    step = 3

    def detection_losses(self, outputs, labels):
        terms = super().detection_losses(outputs, labels)
        poison = tf.where(tf.equal(self._counted, self.step), float('nan'), 0.0)
        self._counted.assign_add(1)
        return {**terms, 'model_loss': terms['model_loss'] + poison}

    def __init__(self, *args, first_batch=0, **kwargs):
        super().__init__(*args, first_batch=first_batch, **kwargs)
        self._counted = tf.Variable(1 + first_batch, trainable=False)


@tiny.eager_steps()
def test_skipping_a_batch_goes_on(folder, monkeypatch, capsys):
    # Any scores are those of a discriminator that wins.
    monkeypatch.setattr(gan_monitor, 'WON', (-1.0, 2.0))
    monkeypatch.setattr(gan_monitor, 'PATIENCE', 2)
    monkeypatch.setattr(task_lib, 'GanMaskRCNNTask', Poisoned)
    config = make_config(folder, f'trainer.train_steps={STEPS}', 'task.nonfinite.policy=skip')
    training_run.train(config, DATASET, str(folder / 'skipped'), 'train')
    found = variables(folder / 'skipped')
    assert all(np.isfinite(value).all() for value in found.values())
    (event,) = json.loads((folder / 'skipped' / 'nonfinite.json').read_text())
    assert event['step'] == 3
    said = capsys.readouterr().err
    assert 'step 3 images' in said and 'step 2: the box discriminator wins' in said
    assert 'warnings/box_discriminator_wins' in events(folder / 'skipped' / 'train')
    assert json.loads((folder / 'skipped' / 'status.json').read_text())['state'] == 'finished'


@pytest.mark.slow
@tiny.eager_steps()
def test_going_back_lowers_the_rate_for_good(folder, monkeypatch, capsys):
    class Once(Poisoned):
        """Finite at the lower rate."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            if (folder / 'back' / 'nonfinite.json').is_file():
                self.step = -1

    monkeypatch.setattr(task_lib, 'GanMaskRCNNTask', Once)
    settings = (f'trainer.train_steps={STEPS}', 'task.nonfinite.policy=go_back')
    training_run.train(make_config(folder, *settings), DATASET, str(folder / 'back'), 'train')
    assert 'going on from step 2 with learning rates times 0.5' in capsys.readouterr().out
    rates = events(folder / 'back' / 'train')['learning_rate']
    # Step 3 has the full rate of 0.01, step 4 a tenth of it.
    assert rates[3] == pytest.approx(0.005) and rates[4] == pytest.approx(0.0005)
    # A later start has the lower rate too.
    training_run.train(
        make_config(folder, 'trainer.train_steps=5', *settings[1:]),
        DATASET,
        str(folder / 'back'),
        'train',
    )
    assert events(folder / 'back' / 'train')['learning_rate'][5] == pytest.approx(0.0005)


@pytest.mark.slow
@tiny.eager_steps()
def test_nonfinite_steps_have_a_limit(folder, monkeypatch):
    class Always(Poisoned):
        def detection_losses(self, outputs, labels):
            self.step = tf.identity(self._counted)
            return super().detection_losses(outputs, labels)

    monkeypatch.setattr(task_lib, 'GanMaskRCNNTask', Always)
    settings = ('trainer.train_steps=9', 'task.nonfinite.policy=skip', 'task.nonfinite.limit=4')
    with pytest.raises(UserError, match='number 5 of at most 4') as error:
        training_run.train(make_config(folder, *settings), DATASET, str(folder / 'always'), 'train')
    assert '\n' not in str(error.value)
    # The last three can be replayed; a disk is not filled with the others.
    kept = sorted(path.name for path in (folder / 'always' / 'nonfinite').glob('*.npz'))
    assert kept == ['step-3.npz', 'step-4.npz', 'step-5.npz']


class Uneven(tiny.Rectangles):
    """Images without an object, with a crowd alone, and with more than are learnt at a time."""

    name = 'uneven'

    def read(self, item):
        example = super().read(item)
        number = {1: 0, 2: 1, 3: 20}.get(item.image_id, 2)
        return dataclasses.replace(
            example,
            rles=(example.rles * 10)[:number],
            classes=np.ones(number, np.int32),
            is_crowd=np.full(number, item.image_id == 2),
        )


@pytest.mark.slow
@tiny.eager_steps()
def test_images_without_and_with_many_objects_train_to_finite_losses(folder, capsys):
    config = make_config(folder, f'trainer.train_steps={STEPS}', 'task.train_data.expand_to=7')
    training_run.train(config, Uneven(), str(folder / 'uneven'), 'train')
    said = capsys.readouterr().out
    # Two copies beside the five images: of the one without and of the one with a crowd.
    assert '7 images to train on' in said
    assert '1 of 7 images have more than 5 objects: each time another 15 of all 24' in said
    found = events(folder / 'uneven' / 'train')
    assert set(found['total_loss']) == {1, 2, 3, 4}
    assert all(np.isfinite(value) for value in found['total_loss'].values())


class NothingToValidate(tiny.Rectangles):
    """A validation split without an object."""

    name = 'nothing_to_validate'

    def read(self, item):
        example = super().read(item)
        if item.image_id not in self.ids['val']:
            return example
        nothing = {'rles': [], 'classes': np.zeros(0, np.int32), 'is_crowd': np.zeros(0, bool)}
        return dataclasses.replace(example, **nothing)


@pytest.mark.slow
@tiny.eager_steps()
def test_a_validation_split_without_an_object_is_warned_of_and_training_goes_on(folder, capsys):
    model_dir = folder / 'nothing_to_validate'
    for steps in (1, 2):
        config = make_config(
            folder, f'trainer.train_steps={steps}', 'trainer.validation_interval=1'
        )
        training_run.train(config, NothingToValidate(), str(model_dir), 'train_and_eval')
        said = capsys.readouterr()
        assert 'warning: val: has no object: its AP is not defined' in said.out
        assert f'step {steps}: validation without an object' in said.err
    status = json.loads((model_dir / 'status.json').read_text())
    assert (status['state'], status['step'], status['best']) == ('finished', 2, {'step': None})
    assert not (model_dir / 'best').exists()


@pytest.mark.slow
@tiny.eager_steps()
def test_a_run_in_a_folder_whose_name_is_a_pattern(folder):
    """Its records, too; the run next to it matches the pattern, and is another."""
    own = folder / 'lr[0.01]*'
    own.mkdir()
    neighbour = own / 'xy'
    neighbour.mkdir()
    (neighbour / 'ckpt-1.index').write_text('mine')
    for steps in (2, STEPS):
        model_dir = train(own, 'x?', steps, 'train_and_eval')
        assert (model_dir / f'ckpt-{steps}.index').is_file()
    assert not (model_dir / 'damaged').exists()
    assert set(events(f'{glob.escape(str(model_dir))}/train')['total_loss']) == {1, 2, 3, 4}
    results = evaluation_run.evaluate(make_config(own), DATASET, 'test', str(model_dir), 'best')
    assert results['num_images'] == 3 and results['step'] in (2, STEPS)
    assert (neighbour / 'ckpt-1.index').read_text() == 'mine'


def test_missing_checkpoints_are_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match='holds no checkpoint'):
        checkpoint.find_checkpoint(str(tmp_path), 'best')
    with pytest.raises(UserError, match='nosuch'):
        checkpoint.find_checkpoint(str(tmp_path), str(tmp_path / 'nosuch'))
    with pytest.raises(UserError, match='params.yaml'):
        checkpoint.use_saved_settings(settings.Flags(dataset='gland', model_dir=str(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize('num_devices', [1, 2])
def test_wide_and_upright_images_train_in_one_run(folder, monkeypatch, request, num_devices):
    """In a graph for each canvas, on one device and on two."""
    if num_devices == 2:
        strategy = request.getfixturevalue('two_replicas')
        monkeypatch.setattr(multi_worker, 'make_strategy', lambda config: strategy)
    seen = []
    train_step = task_lib.GanMaskRCNNTask.train_step

    def watch(self, inputs, *args):
        seen.append(tuple(inputs[0].shape))
        return train_step(self, inputs, *args)

    monkeypatch.setattr(task_lib.GanMaskRCNNTask, 'train_step', watch)
    config = make_config(
        folder, f'trainer.train_steps={STEPS}', 'task.model.input_size=[128,128,3]'
    )
    model_dir = folder / f'turned{num_devices}'
    training_run.train(config, tiny.Turned(2), str(model_dir), 'train')
    batch = 2 // num_devices
    # Traced once for each, and for each device.
    assert sorted(seen) == sorted([(batch, 64, 128, 3), (batch, 128, 64, 3)] * num_devices)
    assert all(np.isfinite(value).all() for value in variables(model_dir).values())


class Loop:
    """`run._loop` with validations whose mask AP is given; notes what it does."""

    def __init__(self, folder, figures, patience, evaluates=True):
        self.figures, self.evaluates, self.done = figures, evaluates, []
        self.status = self.stop = self.saved = mock.MagicMock()
        self.global_step = tf.Variable(0, dtype=tf.int64)
        self.checkpoint = tf.train.Checkpoint(global_step=self.global_step)
        self.best = checkpoints.BestCheckpoint(str(folder), 'mask_AP', is_chief=True)
        self.config = settings.saved_config(settings.CONFIGS_DIR / 'gland.yaml')
        self.config.task.patience = patience
        self.config.trainer.override(
            {'train_steps': 60, 'validation_interval': 10, 'checkpoint_interval': 20}
        )

    def train(self, step, checkpoint_at_completion):
        self.global_step.assign(step)

    def evaluate(self, steps):
        step = int(self.global_step)
        self.done.append(step)
        self.best.add(self.checkpoint, {'mask_AP': self.figures[step // 10 - 1]}, step)

    def run(self, step=0):
        self.global_step.assign(step)
        return training_run._loop(self, self.config, self, self.saved, self.best)


RISING_TO_20 = (0.1, 0.3, 0.3, 0.2, 0.4, 0.1)


@pytest.mark.parametrize(
    'patience, evaluates, last',
    [(0, True, 60), (2, True, 40), (3, True, 60), (1, True, 30), (1, False, 60)],
)
def test_patience_ends_a_run_of_which_the_validation_is_no_longer_better(
    patience, evaluates, last, tmp_path
):
    loop = Loop(tmp_path, RISING_TO_20, patience, evaluates)
    line = loop.run()
    assert loop.done == (list(range(10, last + 1, 10)) if evaluates else [])
    assert int(loop.global_step) == last
    if last == 60:
        assert line == ''
        return
    for part in (f'ended at step {last}', f'{patience} validations', 'step 20 (mask_AP 0.3000)'):
        assert part in line
    assert '\n' not in line
    # The same command again ends at once; with more patience it goes on.
    again = Loop(tmp_path, RISING_TO_20, patience)
    assert again.run(last) == line and again.done == []
    more = Loop(tmp_path, RISING_TO_20, patience=4)
    assert more.run(last) == '' and more.done[0] == last + 10


@pytest.mark.slow
@tiny.eager_steps()
def test_a_run_out_of_patience_says_so_and_is_finished(folder, monkeypatch, capsys):
    monkeypatch.setattr(
        task_lib.GanMaskRCNNTask, 'reduce_aggregated_logs', lambda *_: {'mask_AP': 0.5}
    )
    config = make_config(
        folder, 'trainer.train_steps=9,trainer.validation_interval=1', 'task.patience=1'
    )
    training_run.train(config, DATASET, str(folder / 'impatient'), 'train_and_eval')
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith('ended at step 2: 1 validations')
    status = json.loads((folder / 'impatient' / 'status.json').read_text())
    assert (status['state'], status['step'], status['message']) == ('finished', 2, line)
    assert checkpoint.step_of(checkpoint.find_checkpoint(str(folder / 'impatient'), 'best')) == 1
