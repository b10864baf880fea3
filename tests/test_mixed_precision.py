# SPDX-License-Identifier: Apache-2.0
"""Gradients of both networks in 16 bits beside those in 32, on one device and on two.

Measured on the tiny network of `test_task` with the same RoIs in every precision, as the norm of
the difference over that of the gradient in float32: generator .25 in bfloat16 and .09 in float16,
box discriminator .28 and .10, mask discriminator .05 and .02. The first two are that large because
BatchNorm over the few nodes of so small an image magnifies what was rounded before it.
"""

import contextlib

import numpy as np
import pytest
import tensorflow as tf

from gan_mrcnn.modeling import roi_generator
from tests.tiny import make_batch, make_task

RATE = 1e-3
# Largest difference of the generator's and of both discriminators' gradient.
BOUNDS = {'float32': (0.01, 0.01), 'bfloat16': (0.45, 0.45), 'float16': (0.2, 0.2)}


@pytest.fixture
def same_rois(monkeypatch):
    """Proposals that rounding does not choose others of: near the objects, and elsewhere."""
    rng = np.random.default_rng(0)
    objects = np.array([[5, 4, 35, 34], [8, 44, 38, 74], [11, 84, 41, 114]])
    near = objects[np.arange(12) % 3] + rng.uniform(-4, 4, (12, 4))
    low = rng.uniform(0, [40, 100], (8, 2))
    rois = np.concatenate([near, np.concatenate([low, low + 20], axis=1)]).astype(np.float32)
    monkeypatch.setattr(
        roi_generator.RoIGenerator,
        'call',
        lambda self, boxes, scores, anchors, shape, training, nms: (
            tf.tile(rois[np.newaxis], [tf.shape(shape)[0], 1, 1]),
            tf.ones([tf.shape(shape)[0], len(rois)]),
        ),
    )


def gradients(dtype, strategy, weights):
    """Of the generator and of the discriminators in one step from `weights`, or from new ones.

    Returns:
      The two gradients, lists of arrays, and all weights before.
    """
    tf.keras.mixed_precision.set_global_policy(
        'float32' if dtype == 'float32' else f'mixed_{dtype}'
    )
    try:
        with strategy.scope() if strategy else contextlib.nullcontext():
            task, model = make_task()
            task.task_config.clip_norm = 0.0
            optimizers = [tf.keras.optimizers.SGD(RATE, momentum=0.9) for _ in range(2)]
            applied = optimizers
            if dtype == 'float16':
                applied = [
                    tf.keras.mixed_precision.LossScaleOptimizer(x, dynamic=False, initial_scale=1e3)
                    for x in optimizers
                ]
            applied[0].build(model.trainable_variables)
            applied[1].build(task.discriminator_variables)
            task.discriminator_optimizer = applied[1]
        variables = [
            x
            for part in (model, task.box_discriminator, task.mask_discriminator)
            for x in part.variables
        ]
        weights = weights or [x.numpy() for x in variables]
        for variable, value in zip(variables, weights):
            variable.assign(value)
        step = tf.function(lambda inputs: task.train_step(inputs, model, applied[0])['finite'])
        inputs = make_batch(task.task_config)
        if strategy:
            dataset = tf.data.Dataset.from_tensors(inputs).unbatch().batch(2)
            inputs = next(iter(strategy.experimental_distribute_dataset(dataset)))
            finite = strategy.experimental_local_results(strategy.run(step, (inputs,)))[0]
        else:
            finite = step(inputs)
    finally:
        tf.keras.mixed_precision.set_global_policy('float32')
    assert finite
    # The first step's momentum is the gradient, times minus the rate.
    return [[-x.numpy() / RATE for x in one.momentums] for one in optimizers], weights


def norm(arrays):
    return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in arrays))


@pytest.mark.slow
def test_gradients_in_16_bits_are_near_those_in_32(same_rois, two_replicas):
    wanted, weights = gradients('float32', None, None)
    for strategy in (None, two_replicas):
        for dtype, bounds in BOUNDS.items():
            found, _ = gradients(dtype, strategy, weights)
            for one, other, bound in zip(found, wanted, bounds):
                difference = norm([x - y for x, y in zip(one, other)])
                assert difference < bound * norm(other), (dtype, strategy)
