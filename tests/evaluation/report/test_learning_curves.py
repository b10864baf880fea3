"""Learning curves, from files as a run writes them."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf

from gan_mrcnn.evaluation.report import learning_curves


def write_events(folder, suffix, losses):
    """An event file with `mask_loss` by step, and what is no loss."""
    writer = tf.summary.create_file_writer(str(folder / 'train'), filename_suffix=suffix)
    with writer.as_default():
        for step, loss in losses.items():
            tf.summary.scalar('mask_loss', loss, step=step)
            tf.summary.scalar('learning_rate', 0.1, step=step)
    writer.close()


def test_losses_and_validations_of_a_run(tmp_path):
    write_events(tmp_path, '.0', {5: 1.5, 10: 1.25})
    figures = {'10': {'mask_AP': 0.25, 'box_AP': 0.5}, '20': {'mask_AP': None}}
    (tmp_path / 'validations.json').write_text(json.dumps(figures))
    assert learning_curves.read(str(tmp_path)) == {
        learning_curves.VALIDATION: {10: 0.25},
        'mask_loss': {5: 1.5, 10: 1.25},
    }


def test_what_a_later_start_repeats_replaces_what_was_before(tmp_path):
    write_events(tmp_path, '.0', {5: 1.5, 10: 1.25})
    (first,) = (tmp_path / 'train').iterdir()
    # The first file's name has the earlier time, its end was never written.
    first.rename(first.with_name('events.out.tfevents.1000000000.vm.1.0.v2'))
    (first,) = (tmp_path / 'train').iterdir()
    first.write_bytes(first.read_bytes() + b'half a record')
    write_events(tmp_path, '.1', {10: 1.0, 15: 0.5})
    assert learning_curves.read(str(tmp_path)) == {'mask_loss': {5: 1.5, 10: 1.0, 15: 0.5}}


def test_a_run_without_anything_has_no_curves(tmp_path):
    assert learning_curves.read(str(tmp_path)) == {}
    assert learning_curves.bands([{}, {}]) == {}


def test_bands_are_means_and_deviations_by_step():
    runs = [{'x': {1: 1.0, 2: 3.0}}, {'x': {1: 2.0}, 'y': {4: 0.5}}]
    found = learning_curves.bands(runs)
    assert list(found) == ['x', 'y']
    band = found['x']
    assert band.steps.tolist() == [1, 2] and band.n.tolist() == [2, 1]
    np.testing.assert_allclose(band.mean, [1.5, 3])
    np.testing.assert_allclose(band.spread, [math.sqrt(0.5), np.nan])


@pytest.mark.parametrize('num_steps, width', [(100, 1), (250, 3)])
def test_neighbours_of_long_curves_are_averaged(num_steps, width):
    """Steps up to a multiple of the width count there; the sum over all stays."""
    values = np.random.default_rng(0).normal(size=num_steps)
    curve = {step: float(values[step - 1]) for step in range(1, num_steps + 1)}
    band = learning_curves.bands([{'x': curve}])['x']
    assert len(band.steps) == -(-num_steps // width) <= 100
    assert band.steps[0] == width and band.mean[0] == pytest.approx(values[:width].mean())
    assert band.mean[1] == pytest.approx(values[width : 2 * width].mean())
