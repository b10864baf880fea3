# SPDX-License-Identifier: Apache-2.0
"""The box discriminator's opinion of detections, and the ranking by it."""

import json
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

from gan_mrcnn.modeling import rescoring
from gan_mrcnn.modeling.discriminators import BoxDiscriminator
from tests import literal_game, tiny
from tests.metrics import shapes
from tests.test_game import box, make_outputs

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / 'benchmarks'))

import rescoring as benchmark  # noqa: E402


@pytest.fixture(scope='module')
def network():
    """A generator that detects something in two images, a box discriminator that knows something of
    its features, and the images."""
    task, model = tiny.make_task()
    (images, _), rng = tiny.make_batch(task.task_config), np.random.default_rng(0)
    for variable in task.box_discriminator.variables:
        variable.assign(variable * 3.0 + 0.2 * rng.uniform(size=variable.shape))
    return task, model, images, tf.constant([tiny.SIZE] * 2, tf.float32)


def test_opinions_are_the_scores_of_the_features_inside_each_box():
    tf.keras.utils.set_random_seed(0)
    outputs, rng = make_outputs(0), np.random.default_rng(1)
    features = {
        level: tf.constant(x, tf.float32) for level, x in outputs['decoder_features'].items()
    }
    boxes = box(rng, (2, 3)).astype(np.float32)
    discriminator = BoxDiscriminator(3)
    discriminator(tf.keras.Input([28, 28, 3]))
    for variable in discriminator.variables:
        variable.assign(variable * rng.uniform(2.0, 4.0, variable.shape))
    for implementation in ('auto', 'tensorflow'):
        found = rescoring.opinions(discriminator, features, boxes, implementation)
        for b in range(2):
            for d in range(3):
                seen = literal_game.roi_features(outputs['decoder_features'], boxes[b, d], b)
                logit = discriminator(seen[None].astype(np.float32), training=False)[0]
                np.testing.assert_allclose(
                    found[b, d], literal_game.sigmoid(logit.numpy()), atol=1e-5
                )
    assert np.std(found) > 1e-3


def test_the_best_come_first_and_padding_stays_behind():
    scores = np.array([[0.9, 0.8, 0.5, 0.0], [0.7, 0.0, 0.0, 0.0]], np.float32)
    opinions = np.array([[0.1, 0.9, 0.5, 1.0], [0.2, 1.0, 1.0, 1.0]], np.float32)
    numbers = np.arange(8).reshape(2, 4)
    detections = {
        'detection_scores': scores,
        'detection_boxes': np.stack([numbers] * 4, -1),
        'detection_classes': numbers,
        'detection_masks': numbers[..., None, None],
        'num_detections': np.array([3, 1]),
    }
    found = rescoring.rescore(detections, opinions, 2.0)
    np.testing.assert_allclose(found['detection_scores'][0], [0.648, 0.125, 0.009, 0], atol=1e-6)
    np.testing.assert_allclose(found['detection_scores'][1], [0.028, 0, 0, 0], atol=1e-6)
    order = [[1, 2, 0, 3], [4, 5, 6, 7]]
    np.testing.assert_array_equal(found['detection_classes'], order)
    np.testing.assert_array_equal(found['detection_boxes'][..., 2], order)
    np.testing.assert_array_equal(found['detection_masks'][..., 0, 0], order)
    np.testing.assert_array_equal(found['num_detections'], [3, 1])


def test_a_graph_for_export_holds_stock_operations_alone(network):
    task, model, images, image_shape = network
    # As many images as a request has.
    step = tf.function(
        lambda *x: rescoring.detect(model, *x, task.box_discriminator, 0.5, 'tensorflow'),
        input_signature=[tf.TensorSpec([None, *images.shape[1:]]), tf.TensorSpec([None, 2])],
    )
    graph = step.get_concrete_function().graph.as_graph_def()
    functions = {function.signature.name for function in graph.library.function}
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    assert {node.op for node in nodes} - functions <= set(dir(tf.raw_ops))
    # As other processes do it.
    wanted = rescoring.detect(model, images, image_shape, task.box_discriminator, 0.5)
    found = step(images, image_shape)
    assert np.any(found['detection_scores'] > 0)
    for name in ('detection_scores', 'detection_boxes', 'detection_classes'):
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-3, err_msg=name)


def test_without_an_exponent_nobody_is_asked(network):
    _, model, images, image_shape = network
    found = rescoring.detect(model, images, image_shape)
    wanted = model(images, image_shape=image_shape, training=False)
    for name in ('detection_scores', 'detection_boxes', 'detection_masks'):
        np.testing.assert_array_equal(found[name], wanted[name])


def test_opinions_of_the_table_belong_to_its_detections(network):
    task, model, images, image_shape = network
    info = tf.stack([image_shape, image_shape, tf.ones([2, 2]), tf.zeros([2, 2])], axis=1)
    labels = {'image_info': info, 'source_id': tf.constant([7, 8], tf.int64)}
    results, opinions = benchmark.detect_with_opinions(task, model, [(images, labels)])
    assert len(results) == len(opinions) > 0
    plain = rescoring.detect(model, images, image_shape)
    for one, opinion in zip(results, opinions):
        b = one['image_id'] - 7
        x, y, width, height = one['bbox']
        boxes = tf.constant([[y, x, y + height, x + width]])
        features = {name: level[b : b + 1] for name, level in plain['decoder_features'].items()}
        wanted = rescoring.opinions(task.box_discriminator, features, boxes[tf.newaxis])
        np.testing.assert_allclose(opinion, wanted[0, 0], atol=1e-3)


def test_a_table_of_opinions_that_know_the_truth_rises(tmp_path):
    """Wrong detections score higher than right ones until the opinion counts enough."""
    right, wrong = shapes.rectangle(0, 0, 40, 40, 80, 80), shapes.rectangle(50, 50, 70, 70, 80, 80)
    path = tmp_path / 'truth.json'
    path.write_text(json.dumps(shapes.ground_truth([[(right, 1)]], 1)))
    image_id = json.loads(path.read_text())['images'][0]['id']
    results = [shapes.result(image_id, wrong, 0.9), shapes.result(image_id, right, 0.6)]
    rows = benchmark.table(str(path), results, [0.3, 0.7], (0.0, 0.25, 1.0))
    assert rows[0.0][0] == rows[0.25][0] == pytest.approx(0.5, abs=0.01)
    assert rows[1.0][0] == pytest.approx(1.0)
