"""The check of several devices passes right ones and names what is wrong about others."""

import numpy as np
import pytest
import tensorflow as tf

from gan_mrcnn import task as task_lib
from gan_mrcnn.training import device_check
from gan_mrcnn.utils.errors import UserError
from tests import tiny


class Wrong(tf.distribute.ReductionToOneDevice):
    """Adds up over devices, and `change`s the sum of each list's last tensor."""

    def __init__(self, change):
        super().__init__()
        self._change = change

    def batch_reduce_implementation(self, reduce_op, value_destination_pairs, options):
        *pairs, (last, destination) = value_destination_pairs
        changed = tf.nest.map_structure(self._change, last, expand_composites=True)
        return super().batch_reduce_implementation(
            reduce_op, [*pairs, (changed, destination)], options
        )


def make_networks(strategy):
    with strategy.scope():
        first = [tf.Variable(tf.ones([3, 3, 2]), name='kernel'), tf.Variable([1.0], name='bias')]
        second = [tf.Variable(tf.zeros([5, 4]), name='dense')]
    return {'generator': first, 'discriminators': second}


def test_right_sums_pass_and_nothing_is_touched(two_replicas):
    networks = make_networks(two_replicas)
    tf.random.set_seed(4)
    expected = tf.random.uniform([3]).numpy()
    tf.random.set_seed(4)
    assert device_check.check_sums(two_replicas, networks, ['ring']) == 39
    np.testing.assert_array_equal(tf.random.uniform([3]), expected)
    for variable, value in zip(networks['generator'], (1.0, 1.0)):
        np.testing.assert_array_equal(variable.numpy(), np.full(variable.shape, value))


@pytest.mark.parametrize(
    'change',
    [
        # A device is left out.
        lambda x: x * 0 if x.device.endswith('CPU:1') else x,
        lambda x: x * 2 if x.device.endswith('CPU:1') else x,
        lambda x: x * float('nan'),
        # The mean and not the sum.
        lambda x: x / 2,
        # One value of many.
        lambda x: tf.reshape(
            tf.concat([tf.reshape(x, [-1])[:-1], tf.reshape(x, [-1])[-1:] + 1], 0), x.shape
        ),
    ],
    ids=['dropped', 'scaled', 'nan', 'mean', 'one_value'],
)
def test_wrong_sums_are_named_with_a_remedy(change):
    strategy = tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'], cross_device_ops=Wrong(change))
    networks = make_networks(strategy)
    with pytest.raises(UserError, match='wrong for 1 of 2 gradients of the generator') as error:
        device_check.check_sums(strategy, networks, ['hierarchical_copy', 'one_device'])
    text = str(error.value)
    assert 'such as that of bias:0' in text and '\n' not in text
    assert 'runtime.all_reduce_alg=hierarchical_copy or one_device' in text


def test_numbers_are_other_ones_each_round_and_for_each_variable():
    variable = tf.Variable(tf.zeros([1000]))
    drawn = [
        device_check._whole_numbers(variable, index, tf.constant(number)).numpy()
        for index, number in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({x.tobytes() for x in drawn}) == 3
    for x in drawn:
        # Whole, of both signs, and small enough that a sum of hundreds of them is exact.
        assert (x == np.round(x)).all() and -64 <= x.min() < 0 < x.max() < 64


# Steps of the small network.


@pytest.fixture(scope='module')
def task():
    return task_lib.GanMaskRCNNTask(tiny.make_task_config())


def test_a_step_on_two_devices_is_that_of_one(two_replicas, task):
    tf.random.set_seed(4)
    expected = tf.random.uniform([3]).numpy()
    tf.random.set_seed(4)
    device_check.check_step(two_replicas, tiny.sgd, task.apply_gradients, ['ring'])
    np.testing.assert_array_equal(tf.random.uniform([3]), expected)


@pytest.mark.parametrize('rate', [0.0, 1e-7, 1e-5])
def test_a_long_warm_up_is_no_false_alarm(rate, two_replicas, task):
    """Weights hardly move in its first steps, or not at all: their last bit is more than that."""
    device_check.check_step(
        two_replicas, lambda: tf.keras.optimizers.SGD(rate), task.apply_gradients, ['ring']
    )


@pytest.mark.parametrize(
    'change',
    [
        lambda x: x * 0 if x.device.endswith('CPU:1') else x,
        lambda x: x * float('nan'),
        lambda x: x * 1.1,
    ],
    ids=['dropped', 'nan', 'scaled'],
)
def test_a_step_that_adds_up_wrongly_is_named(change, task):
    strategy = tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'], cross_device_ops=Wrong(change))
    with pytest.raises(UserError, match='on 2 devices is not that of one') as error:
        device_check.check_step(strategy, tiny.sgd, task.apply_gradients, ['one_device'])
    assert 'runtime.all_reduce_alg=one_device, or train on one' in str(error.value)


def test_a_device_that_keeps_its_gradients_to_itself_is_named(two_replicas):
    def apply(tape, loss, variables, optimizer, *_, **__):
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables), skip_gradients_aggregation=True)

    with pytest.raises(UserError, match='on 2 devices is not that of one'):
        device_check.check_step(two_replicas, tiny.sgd, apply, ['one_device'])
