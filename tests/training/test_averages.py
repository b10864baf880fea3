"""Averages of the weights: their recursion, and that everybody but training gets them."""

import contextlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from official.modeling import optimization

from gan_mrcnn import settings
from gan_mrcnn import task as task_lib
from gan_mrcnn.evaluation import run as evaluation_run
from gan_mrcnn.prediction import checkpoint
from gan_mrcnn.training import averages
from gan_mrcnn.training import run as training_run
from gan_mrcnn.utils.errors import UserError
from tests import tiny
from tests.tiny import DATASET, STEPS, make_config

DECAY = 0.6
EMA = f'trainer.optimizer_config.ema.average_decay={DECAY}'
WITH_STATISTICS = 'trainer.optimizer_config.ema.trainable_weights_only=false'


def network():
    """Kernel, bias, gamma and beta, moving mean and variance, in this order of `variables`."""
    inputs = tf.keras.Input([3])
    outputs = tf.keras.layers.BatchNormalization()(tf.keras.layers.Dense(4)(inputs))
    return tf.keras.Model(inputs, outputs)


def by_hand(weights, decays):
    """The recursion from the first of `weights` over the others."""
    average = weights[0]
    for weight, decay in zip(weights[1:], decays):
        average = decay * average + (1 - decay) * weight
    return average


# The Model Garden's: (1 + n) / (10 + n) at first; weights themselves before the first step counted.
DECAYS = {
    'fixed': ({'dynamic_decay': False}, [DECAY] * 3),
    'rising': ({}, [2 / 11, 3 / 12, 4 / 13]),
    'later': ({'start_step': 2}, [0, 1 / 10, 2 / 11]),
    'capped': ({'average_decay': 0.2}, [2 / 11, 0.2, 0.2]),
}


@pytest.mark.parametrize('devices', [1, 2])
@pytest.mark.parametrize('with_statistics', [False, True])
@pytest.mark.parametrize('name', DECAYS)
def test_three_steps_by_hand(name, with_statistics, devices, request):
    """And a step in between that is left out."""
    options, decays = DECAYS[name]
    config = optimization.EMAConfig(
        **{'average_decay': DECAY, 'trainable_weights_only': not with_statistics, **options}
    )
    strategy = (
        request.getfixturevalue('two_replicas') if devices == 2 else tf.distribute.get_strategy()
    )
    rng = np.random.default_rng(0)
    with strategy.scope():
        model = network()
        averaged = averages.AveragedModel(config, model, network())
        values = [[rng.uniform(1, 2, x.shape) for x in model.variables] for _ in range(4)]
        model.set_weights(values[0])
        averaged.start()
        update = tf.function(averaged.update)
        for step, weights in enumerate(values[1:], start=1):
            model.set_weights(weights)
            update(tf.constant(step), tf.constant(True))
            update(tf.constant(step), tf.constant(False))
        found = averaged.model.get_weights()
    trained = [any(x is y for y in model.trainable_variables) for x in model.variables]
    assert trained.count(True) == 4 and trained.count(False) == 2
    for i, variable in enumerate(found):
        is_averaged = trained[i] or with_statistics
        wanted = by_hand([weights[i] for weights in values], decays if is_averaged else [0] * 3)
        np.testing.assert_allclose(variable, wanted, rtol=1e-6)
    np.testing.assert_allclose(model.get_weights()[0], values[3][0], rtol=1e-6)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('averages')


def train(folder, name, steps):
    tf.random.set_seed(steps)
    # Each step's checkpoint is kept.
    config = make_config(
        folder,
        EMA,
        WITH_STATISTICS,
        f'trainer.train_steps={steps},trainer.checkpoint_interval=1,trainer.max_to_keep=9',
    )
    training_run.train(config, DATASET, str(folder / name), 'train_and_eval')
    return folder / name


@contextlib.contextmanager
def watched_validation():
    """Collects the networks that images are validated or evaluated with."""
    seen, validation_step = [], task_lib.GanMaskRCNNTask.validation_step

    def watch(self, inputs, model, metrics=None):
        seen.append(model)
        return validation_step(self, inputs, model, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_lib.GanMaskRCNNTask, 'validation_step', watch)
        yield seen


@pytest.fixture(scope='module')
def run_and_validated(folder):
    with tiny.eager_steps(), watched_validation() as seen:
        return train(folder, 'whole', STEPS), seen


@pytest.fixture
def run(run_and_validated):
    return run_and_validated[0]


@pytest.fixture(scope='module')
def model(folder):
    return task_lib.GanMaskRCNNTask(make_config(folder).task).build_model()


def weights_in(model, path, name):
    """What a checkpoint holds under `name`."""
    status = tf.train.Checkpoint(**{name: model}).read(str(path))
    status.assert_existing_objects_matched().expect_partial()
    return model.get_weights()


def assert_same(found, wanted, **tolerances):
    assert len(found) == len(wanted) > 50
    for one, other in zip(found, wanted):
        np.testing.assert_allclose(one, other, **(tolerances or {'rtol': 0, 'atol': 0}))


def test_a_run_keeps_the_averages_of_its_own_weights(run, model):
    """From its first checkpoint on, by the weights of each; BatchNorm's statistics as well."""
    first, *_, last = averages_ = [
        weights_in(model, run / f'ckpt-{step}', 'averaged_model') for step in range(1, STEPS + 1)
    ]
    trained = [weights_in(model, run / f'ckpt-{step}', 'model') for step in range(2, STEPS + 1)]
    decays = [min(DECAY, (1 + n) / (10 + n)) for n in range(2, STEPS + 1)]
    wanted = [by_hand([start, *weights], decays) for start, *weights in zip(first, *trained)]
    assert_same(last, wanted, rtol=1e-4, atol=1e-7)
    differ = [not np.array_equal(x, y) for x, y in zip(last, trained[-1])]
    assert np.mean(differ) > 0.8 and len(averages_) == STEPS
    statistics = [place for place, x in enumerate(model.weights) if 'moving' in x.name]
    assert statistics and any(differ[place] for place in statistics)


@tiny.eager_steps()
def test_a_run_that_was_stopped_has_the_averages_of_the_whole_one(run, folder):
    (folder / 'stopped').mkdir()
    for path in (run / 'params.yaml', *run.glob(f'ckpt-{STEPS // 2}.*')):
        shutil.copy(path, folder / 'stopped')
    stopped = tiny.last_values(train(folder, 'stopped', STEPS))
    whole = tiny.last_values(run)
    assert set(stopped) == set(whole)
    for name, value in whole.items():
        np.testing.assert_allclose(stopped[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_validation_and_restored_models_have_the_averages(run_and_validated, model):
    run, validated = run_and_validated
    path = run / f'ckpt-{STEPS}'
    wanted = weights_in(model, path, 'averaged_model')
    trained = weights_in(model, path, 'model')
    assert_same(validated[-1].get_weights(), wanted)
    checkpoint.restore(model, str(path))
    assert_same(model.get_weights(), wanted)
    checkpoint.restore(model, str(path), as_trained=True)
    assert_same(model.get_weights(), trained)


@pytest.mark.slow
@tiny.eager_steps()
def test_evaluation_prediction_and_export_have_the_averages(run, folder, model):
    wanted = weights_in(model, run / f'ckpt-{STEPS}', 'averaged_model')
    with watched_validation() as seen:
        evaluation_run.evaluate(make_config(folder), DATASET, 'val', str(run), 'best')
    assert_same(seen[-1].get_weights(), wanted)
    module = checkpoint.open_run(str(run), 'best').module()
    assert_same([variable.numpy() for variable in module.generator_variables], wanted)


@pytest.mark.slow
@tiny.eager_steps()
def test_a_run_without_averages_does_not_go_on_with_some(folder):
    plain = tiny.train(folder, 'plain', 1)
    assert not [name for name in tiny.last_values(plain) if name.startswith('averaged_model')]
    with pytest.raises(UserError, match='another network'):
        train(folder, 'plain', 2)


@pytest.mark.parametrize(
    'text, part',
    [
        ('ema.average_decay=1.0', 'average_decay is 1.0'),
        ('ema.average_decay=fast', 'ema.average_decay'),
        ('ema.decay=0.9', 'unknown key trainer.optimizer_config.ema.decay'),
        ('ema=0.9', 'trainer.optimizer_config.ema'),
    ],
)
def test_mistakes_end_with_one_line(text, part, folder):
    with pytest.raises(UserError) as error:
        settings.check_training(make_config(folder, f'trainer.optimizer_config.{text}'))
    assert part in str(error.value) and '\n' not in str(error.value)
