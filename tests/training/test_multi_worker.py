"""TF_CONFIG is looked at before TensorFlow does, whose own errors name a line of its code."""

import json

import pytest

from gan_mrcnn.training import multi_worker
from gan_mrcnn.utils.errors import UserError

TWO = {'worker': ['a:1', 'b:1']}


@pytest.mark.parametrize(
    'config, number',
    [
        (None, 1),
        ({'cluster': {'worker': ['a:1']}, 'task': {'type': 'worker', 'index': 0}}, 1),
        ({'cluster': TWO, 'task': {'type': 'worker', 'index': 1}}, 2),
    ],
)
def test_number_of_workers(config, number, monkeypatch):
    monkeypatch.delenv('TF_CONFIG', raising=False)
    if config:
        monkeypatch.setenv('TF_CONFIG', json.dumps(config))
    assert multi_worker.num_workers() == number


@pytest.mark.parametrize(
    'text',
    [
        'worker',
        '[]',
        '{}',
        json.dumps({'cluster': TWO}),
        json.dumps({'cluster': {'worker': 'a:1'}, 'task': {'type': 'worker', 'index': 0}}),
        json.dumps({'cluster': TWO, 'task': {'type': 'worker', 'index': 2}}),
        json.dumps({'cluster': TWO, 'task': {'type': 'ps', 'index': 0}}),
        json.dumps({'cluster': TWO, 'task': {'type': 'worker', 'index': 'x'}}),
    ],
)
def test_a_wrong_tf_config_is_said_in_one_line(text, monkeypatch):
    monkeypatch.setenv('TF_CONFIG', text)
    with pytest.raises(UserError, match='TF_CONFIG is not') as error:
        multi_worker.num_workers()
    assert '\n' not in str(error.value)


def test_a_cluster_that_breaks_too_often_ends(monkeypatch):
    monkeypatch.setenv('GAN_MRCNN_RESTARTS', str(multi_worker.MOST_RESTARTS))
    with pytest.raises(UserError, match='start all of them again'):
        multi_worker.start_again(RuntimeError('gone\nfor good'))
