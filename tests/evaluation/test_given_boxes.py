# SPDX-License-Identifier: Apache-2.0
"""What the heads make of given boxes (benchmarks/given_boxes.py), by hand and by the detector."""

import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

from gan_mrcnn.utils import run_lengths
from tests import tiny

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / 'benchmarks'))

import given_boxes  # noqa: E402

SHAPE = tf.constant([tiny.SIZE], tf.float32)


def square(y1, x1, y2, x2, size=(100, 100)):
    mask = np.zeros(size, np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def test_ious_of_pairs_of_boxes():
    first = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 4, 4]], float)
    second = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [4, 4, 8, 8]], float)
    np.testing.assert_allclose(given_boxes.ious(first, second), [1, 1 / 3, 0])


def test_masks_and_outlines_of_pairs():
    """A square of 60 pixels; the band is 2% of the diagonal, three pixels wide."""
    truth = run_lengths.encode_masks(square(20, 20, 80, 80)[np.newaxis])
    full, half = np.ones([28, 28]), np.ones([28, 28])
    half[:, 14:] = 0
    box = np.array([20.0, 20, 80, 80])
    found = given_boxes.mask_ious([full, half, 0 * full], [box] * 3, [*truth] * 3)
    bands = square(20, 20, 80, 80) - square(23, 23, 77, 77)
    left = square(20, 20, 80, 50) - square(23, 23, 77, 47)
    np.testing.assert_allclose(found[0], [1, 1])
    np.testing.assert_allclose(
        found[1], [0.5, (bands & left).sum() / (bands | left).sum()], atol=1e-9
    )
    np.testing.assert_allclose(found[2], [0, 0])


def test_the_heads_answer_as_in_the_detector():
    task, model = tiny.make_task()
    (images, _), rng = tiny.make_batch(task.task_config), np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign_add(0.03 * rng.standard_normal(variable.shape))
    image = images[:1]
    wanted = model(image, image_shape=SHAPE, training=False)
    count = int(wanted['num_detections'][0])
    assert count > 2
    boxes, classes = (wanted[f'detection_{name}'][:, :count] for name in ('boxes', 'classes'))
    masks, refined = given_boxes.head_outputs(model, image, SHAPE, boxes, boxes, classes, classes)
    np.testing.assert_allclose(masks, wanted['detection_masks'][0, :count], atol=1e-5)
    # Each box alone, decoded by hand.
    features = wanted['decoder_features']
    for i in range(count):
        y1, x1, y2, x2 = boxes[0, i].numpy()
        _, deltas = model.detection_head[0](model.roi_aligner(features, boxes[:, i : i + 1]))
        ty, tx, th, tw = np.reshape(deltas, [-1, 4])[classes[0, i]] / [10, 10, 5, 5]
        height, width = (y2 - y1) * np.exp(th), (x2 - x1) * np.exp(tw)
        y, x = (y1 + y2) / 2 + ty * (y2 - y1), (x1 + x2) / 2 + tx * (x2 - x1)
        box = [y - height / 2, x - width / 2, y + height / 2, x + width / 2]
        box = np.clip(box, 0, np.tile(tiny.SIZE, 2))
        np.testing.assert_allclose(refined[i], box, rtol=1e-4, atol=1e-3)


def test_arms_are_compared_over_seeds():
    rows = {
        ('baseline', 0): [0.5, 0.4, 0.8, 0.7],
        ('baseline', 1): [0.6, 0.4, 0.8, 0.7],
        ('combined', 0): [0.7, 0.5, 0.8, 0.7],
        ('combined', 1): [0.8, 0.5, 0.8, 0.7],
    }
    measured = {run: dict(zip(given_boxes.FIGURES, row)) for run, row in rows.items()}
    *_, baseline, combined, difference = given_boxes.table(measured, 'baseline')
    assert '0.5500 ± 0.0707' in baseline and '0.7500 ± 0.0707' in combined
    # Welch's by tables: t of .975 with 2 degrees of freedom is 4.303, the standard error .0707.
    assert 'combined less baseline' in difference
    assert '+0.2000 [-0.1042, +0.5042], p 0.333' in difference


def test_a_run_is_measured_by_its_folder(tmp_path, monkeypatch):
    folder = tiny.train(tmp_path, 'arm-3', 2)
    (folder / 'eval').mkdir()
    monkeypatch.setattr(given_boxes._runs.readers, 'load_dataset', lambda *_: tiny.DATASET)
    measured = given_boxes.measure_runs(tmp_path, 'last', 'test')
    (run,) = measured
    assert run == ('arm', 3) and set(measured[run]) == set(given_boxes.FIGURES)
    # Edges are moved by 8% of the side: what the box head starts from does not depend on weights.
    assert measured[run]['box IoU before'] == pytest.approx(0.8, abs=0.05)
    assert 0 <= measured[run]['boundary IoU'] <= measured[run]['mask IoU'] <= 1
