"""The two sets of packages give the same, and each goes on with what the other left.

Needs the other set's interpreter, with everything installed: GAN_MRCNN_OTHER_PYTHON names it.
"""

import json
import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from tests import other_set, tiny
from tests.serving import tiny as tiny_export

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def other():
    """Runs `tests.other_set` by the other interpreter."""
    interpreter = os.environ.get('GAN_MRCNN_OTHER_PYTHON')
    if not interpreter:
        pytest.skip('GAN_MRCNN_OTHER_PYTHON does not name a Python with the other set of packages')
    # Which Keras this process has chosen is not the other's business.
    environment = {k: v for k, v in os.environ.items() if k != 'TF_USE_LEGACY_KERAS'}

    def run(*arguments):
        done = subprocess.run(
            [interpreter, *arguments],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    version = run('-c', 'import importlib.metadata as m; print(m.version("tensorflow"))').strip()
    assert version != tf.__version__, f'{interpreter} has the same TensorFlow as this Python'
    return lambda *arguments: run('-m', 'tests.other_set', *map(str, arguments))


@pytest.mark.parametrize('mode', ['baseline', 'combined'])
def test_same_losses(other, mode, tmp_path):
    other('losses', mode, tmp_path / 'losses.json')
    theirs = json.loads((tmp_path / 'losses.json').read_text())
    ours = other_set.losses(mode)
    assert [set(step) for step in ours] == [set(step) for step in theirs]
    # What a step rounds differently, the next one enlarges; the third may sample another RoI, and
    # is not compared.
    for rtol, our_step, their_step in zip((1e-5, 1e-4), ours, theirs):
        for name, value in our_step.items():
            np.testing.assert_allclose(their_step[name], value, rtol=rtol, atol=1e-6, err_msg=name)


@pytest.mark.parametrize('first', ['this', 'the other'])
def test_a_run_goes_on_under_the_other_set(other, first, tmp_path):
    """Networks, momenta of both optimizers, and the step: as if it had never changed the set."""

    def train(by_this, folder, steps):
        folder.mkdir(exist_ok=True)
        if by_this:
            tiny.train(folder, 'run', steps)
        else:
            other('train', folder, steps)

    halfway, whole, steps = tmp_path / 'changed', tmp_path / 'whole', tiny.STEPS
    train(first == 'this', halfway, steps // 2)
    shutil.copytree(halfway, whole)
    train(first == 'this', whole, steps)
    train(first != 'this', halfway, steps)
    wanted = tiny.last_values(whole / 'run')
    found = tiny.last_values(halfway / 'run')
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize('exporter', ['this', 'the other'])
def test_an_export_runs_under_the_other_set(other, exporter, tmp_path):
    if exporter == 'this':
        tiny_export.export(tmp_path)
    else:
        other('export', tmp_path)
    model = tmp_path / 'out/model'
    images = np.stack([tiny_export.photo((60, 80), seed) for seed in range(3)])
    np.savez(tmp_path / 'images.npz', images=images)
    other('detect', model, tmp_path / 'images.npz', tmp_path / 'detections.npz')
    theirs = np.load(tmp_path / 'detections.npz')
    ours = other_set.detect(model, images)
    assert set(theirs.files) == set(ours)
    assert all(len(ours[f'{i}_scores']) > 1 for i in range(3))
    for name, value in ours.items():
        atol = {'boxes': 1e-2, 'masks': 1e-3}.get(name.split('_')[1], 1e-5)
        np.testing.assert_allclose(theirs[name], value, atol=atol, err_msg=name)


def test_both_publish_the_same_and_read_each_others(other, tmp_path):
    (tmp_path / 'ours').mkdir()
    (tmp_path / 'theirs').mkdir()
    other_set.publish(tmp_path / 'ours')
    other('publish', tmp_path / 'theirs')
    ours, theirs = (tmp_path / name / 'weights/model.safetensors' for name in ('ours', 'theirs'))
    other('weights', ours, tmp_path / 'read.npz')
    wanted, read_there = other_set.weights(ours), np.load(tmp_path / 'read.npz')
    read_here = other_set.weights(theirs)
    assert set(read_there.files) == set(read_here) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(read_there[name], value, err_msg=name)
        # Both have drawn them from one seed.
        np.testing.assert_allclose(read_here[name], value, rtol=2**-10, atol=1e-7, err_msg=name)
