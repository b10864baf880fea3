"""A run that starts from published weights."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from gan_mrcnn import task as task_lib
from gan_mrcnn.modeling import weights_file
from gan_mrcnn.training import run as training_run
from gan_mrcnn.utils.errors import UserError
from tests import programs, tiny
from tests.data import layouts
from tests.prediction.test_run import make_card


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """Weights of a network like that of tests/tiny.py, for two classes where that has one."""
    folder = tmp_path_factory.mktemp('published')
    config = tiny.make_config(folder)
    config.task.model.num_classes = 3
    tf.keras.utils.set_random_seed(11)
    model = task_lib.GanMaskRCNNTask(config.task).build_model()
    notes = {'card': dataclasses.asdict(make_card()), 'settings': config.as_dict()}
    path = folder / 'model.safetensors'
    path.write_bytes(weights_file.to_bytes(model, notes))
    return path


@pytest.mark.slow
def test_a_run_starts_from_them_and_goes_on_without_them(published, tmp_path, capsys):
    once = pathlib.Path(shutil.copy(published, tmp_path / 'once.safetensors'))
    # Nothing moves, so that the checkpoint shows what it started from.
    still = '{trainer: {optimizer_config: {learning_rate: {stepwise: {values: [0.0, 0.0]}}, '
    still += 'warmup: {linear: {warmup_learning_rate: 0.0}}}}}'

    def train(steps):
        overrides = [f'task.weights={once}', still, f'trainer.train_steps={steps}']
        config = tiny.make_config(tmp_path, *overrides)
        with tiny.eager_steps():
            training_run.train(config, tiny.DATASET, str(tmp_path / 'run'), 'train')

    train(1)
    out = capsys.readouterr().out
    assert f'{once}, which knows a, b; another number of classes: the last layers start' in out
    log = (tmp_path / 'run/train.log').read_text()
    assert f'generator initialized from {once}' in log
    assert f'{", ".join(sorted(weights_file.CLASS_LAYERS))} start anew' in log
    found, wanted = tiny.last_values(tmp_path / 'run'), weights_file.read_tensors(str(once))
    key = '{}/.ATTRIBUTES/VARIABLE_VALUE'.format
    for name, place in (
        ('rpn_head.rpn-conv_0.kernel', 'rpn_head/_convs/0/kernel'),
        ('backbone.conv1.kernel', 'backbone/layer_with_weights-0/kernel'),
    ):
        np.testing.assert_array_equal(found[key(place)], wanted[name])
    assert found[key('mask_head/_mask_regressor/bias')].shape == (2,)
    # The checkpoint has all from here on.
    once.unlink()
    train(2)
    assert 'going on from step 1' in capsys.readouterr().out


def test_what_is_trained_is_what_is_trained_from_imagenet_weights(tmp_path):
    resnet = tiny.make_config(tmp_path).task.model.backbone.resnet
    assert resnet.bn_trainable and resnet.freeze_stages == 0
    resnet = tiny.make_config(tmp_path, 'task.weights=x').task.model.backbone.resnet
    assert not resnet.bn_trainable and resnet.freeze_stages == 2


@pytest.mark.parametrize(
    'weights, text',
    [
        ('nowhere', 'is neither a folder nor a file'),
        ('http://127.0.0.1:9/x', 'has no #sha256='),
        (f'http://127.0.0.1:9/x#sha256={"0" * 64}', 'check address and network'),
        ('ftp://x/y', 'is none of http, https, file'),
        ('', '--weights is empty'),
    ],
)
def test_wrong_weights_are_refused_before_anything_is_converted(weights, text, tmp_path):
    (tmp_path / 'data').mkdir()
    layouts.write_label_images(tmp_path / 'data')
    done = programs.run(
        *('train', '--dataset', 'label_images', '--data_dir', tmp_path / 'data'),
        *('--cache_dir', tmp_path / 'cache', '--model_dir', tmp_path / 'run', '--split', '0.6'),
        *('--params_override', tiny.SETTINGS, '--weights', weights),
    )
    assert text in programs.refusal(done, 'train')
    assert {path.name for path in tmp_path.iterdir()} <= {'data', 'cache'}
    assert not (tmp_path / 'cache').exists() or not programs.files_in(tmp_path / 'cache')


def test_another_network_is_refused(published, tmp_path):
    config = tiny.make_config(
        tmp_path, f'task.weights={published}', 'task.model.decoder.fpn.num_filters=16'
    )
    task = task_lib.GanMaskRCNNTask(config.task)
    with pytest.raises(UserError, match='is of another network than the settings describe'):
        task.initialize(task.build_model())
