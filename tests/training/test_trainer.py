# SPDX-License-Identifier: Apache-2.0
"""The discriminators' schedule: the generator's, whatever it is, times a ratio."""

import math

import numpy as np
import pytest
import tensorflow as tf
from official.core import exp_factory

from gan_mrcnn import configs, settings
from gan_mrcnn import task as task_lib
from gan_mrcnn.training import trainer

RATIO = 0.3
WARM_UP, WARM_UP_RATE = 4, 0.01

# Settings and the same by hand.
SCHEDULES = {
    'stepwise': (
        {'boundaries': [6, 9], 'values': [0.5, 0.2, 0.04]},
        lambda step: 0.5 if step <= 6 else 0.2 if step <= 9 else 0.04,
    ),
    'cosine': (
        {'initial_learning_rate': 0.5, 'decay_steps': 10, 'alpha': 0.1},
        lambda step: 0.5 * (0.9 * (1 + math.cos(math.pi * min(step, 10) / 10)) / 2 + 0.1),
    ),
    'polynomial': (
        {
            'initial_learning_rate': 0.5,
            'end_learning_rate': 0.1,
            'decay_steps': 10,
            'power': 2.0,
        },
        lambda step: 0.4 * (1 - min(step, 10) / 10) ** 2 + 0.1,
    ),
    'exponential': (
        {'initial_learning_rate': 0.5, 'decay_steps': 5, 'decay_rate': 0.6},
        lambda step: 0.5 * 0.6 ** (step / 5),
    ),
    'power_with_offset': (
        {
            'initial_learning_rate': 0.5,
            'power': -0.5,
            'offset': 6,
            'pre_offset_learning_rate': 0.7,
        },
        lambda step: 0.7 if step <= 6 else 0.5 * (step - 6) ** -0.5,
    ),
    'constant': ({'learning_rate': 0.5}, lambda step: 0.5),
}


@pytest.mark.parametrize('warm_up', [False, True])
@pytest.mark.parametrize('name', SCHEDULES)
def test_discriminators_follow_the_generators_schedule(name, warm_up):
    values, by_hand = SCHEDULES[name]
    config = exp_factory.get_exp_config(configs.EXPERIMENT)
    override = {'learning_rate': {'type': name, name: values}, 'warmup': {'type': None}}
    if warm_up:
        linear = {'warmup_steps': WARM_UP, 'warmup_learning_rate': WARM_UP_RATE}
        override['warmup'] = {'type': 'linear', 'linear': linear}
    settings.override(
        config,
        {
            'trainer': {'optimizer_config': override},
            'task': {'gan': {'mode': 'combined', 'learning_rate_ratio': RATIO}},
        },
        'test',
    )
    before = config.as_dict()
    task = task_lib.GanMaskRCNNTask(config.task)
    generators = task.create_optimizer(config.trainer.optimizer_config, config.runtime)
    discriminators = trainer.discriminator_optimizer(config, task)
    assert config.as_dict() == before
    rates = [rates_taken(optimizer, 15) for optimizer in (generators, discriminators)]
    for step in range(15):
        wanted = by_hand(step)
        if warm_up and step < WARM_UP:
            wanted = WARM_UP_RATE + step / WARM_UP * (by_hand(WARM_UP) - WARM_UP_RATE)
        np.testing.assert_allclose(rates[0][step], wanted, rtol=1e-4)
        np.testing.assert_allclose(rates[1][step], RATIO * wanted, rtol=1e-4)
    assert discriminators.momentum == generators.momentum == 0.9


def rates_taken(optimizer, num_steps):
    """By how much each step moves a variable with the gradient 1, less the momentum."""
    variable, place, moved, rates = tf.Variable(0.0), 0.0, 0.0, []
    optimizer.build([variable])
    for _ in range(num_steps):
        optimizer.apply_gradients([(tf.constant(1.0), variable)])
        momentum, moved, place = 0.9 * moved, float(variable) - place, float(variable)
        rates.append(momentum - moved)
    return rates
