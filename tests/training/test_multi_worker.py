"""TF_CONFIG is checked before TensorFlow reads it, and a worker restarts the command it is."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf

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


def test_a_cluster_that_loses_workers_too_often_ends(monkeypatch):
    monkeypatch.setenv('GAN_MRCNN_RESTARTS', str(multi_worker.MOST_RESTARTS))
    with pytest.raises(UserError, match='start all of them again'):
        multi_worker.start_again(RuntimeError('gone\nfor good'))


@pytest.mark.parametrize(
    'error, again',
    [
        (tf.errors.UnavailableError, True),
        # What the coordination service says of a worker that is not heard of any more.
        (tf.errors.DeadlineExceededError, True),
        (tf.errors.InvalidArgumentError, False),
    ],
)
def test_only_a_lost_worker_is_a_reason_to_start_again(error, again, monkeypatch):
    config = {'cluster': TWO, 'task': {'type': 'worker', 'index': 1}}
    monkeypatch.setenv('TF_CONFIG', json.dumps(config))
    seen = []
    monkeypatch.setattr(multi_worker, 'start_again', seen.append)
    with pytest.raises(error), multi_worker.starting_again():
        raise error(None, None, 'gone')
    assert len(seen) == again


PROGRAM = """
import os
import sys
from unittest import mock

import gan_mrcnn  # Before TensorFlow, in which it chooses Keras 2.

# The restart needs nothing of it.
sys.modules['tensorflow'] = mock.MagicMock()
from gan_mrcnn.training import multi_worker


def main():
    print(sys.argv[1:], sys.path, flush=True)
    if 'GAN_MRCNN_RESTARTS' not in os.environ:
        multi_worker.start_again(RuntimeError('gone'))
"""
START = 'from small import program\n\nprogram.main()\n'
# As an installation makes it: its package can be imported from everywhere.
INSTALLED = f'#!{sys.executable}\nimport sys\n\nsys.path.append({{!r}})\n{START}'


@pytest.fixture
def program(tmp_path):
    """A folder with a small program, to be started in each of three ways."""
    for folder in ('small', 'bin'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'small/program.py').write_text(PROGRAM)
    (tmp_path / 'small/__main__.py').write_text(START)
    (tmp_path / 'start.py').write_text(START)
    (tmp_path / 'bin/small').write_text(INSTALLED.format(str(tmp_path)))
    (tmp_path / 'bin/small').chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    'command',
    [[sys.executable, 'start.py'], [sys.executable, '-m', 'small'], ['bin/small']],
    ids=['script', 'module', 'installed'],
)
def test_a_restarted_program_has_the_same_arguments_and_imports(command, program):
    environment = {**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parents[2])}
    environment.pop('GAN_MRCNN_RESTARTS', None)
    done = subprocess.run(
        [*command, 'train', '--flag', 'a b'],
        cwd=program,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.splitlines()
    assert before == after and before.startswith("['train', '--flag', 'a b']")
    assert 'restart 1 of at most 20' in done.stderr
