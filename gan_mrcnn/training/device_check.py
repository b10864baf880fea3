# SPDX-License-Identifier: Apache-2.0
"""Whether the devices of a run work as one, asked before its first step.

With TensorFlow 2.16 and later, runs on several GPUs are reported to end in NaN where one GPU trains
well (tensorflow/tensorflow issue 90686, also with other ways to add up), and with some pairs of
GPUs before that, too (105552). Results that are wrong but finite would go unnoticed: the run
learns, only worse.

The run's own step on one device, with the batch of all of them, would be the best comparison, but
need not fit into its memory; and it cannot be taken part by part, because BatchNorm and losses go
over the RoIs of all devices. So two things are asked that fit everywhere:

- `check_step`: steps of a small network on all devices and on one. It has what makes devices depend
  on each other: a BatchNorm over all of them, gradients that are added up, an optimizer's update.
- `check_sums`: sums over devices in the shapes and types of the run's gradients, by the same call
  for the same list of tensors as in the train step, so that they are packed alike. Each device
  draws whole numbers, on the device itself, and knows what the sum must be without the others. Sums
  of whole numbers this small are exact in any order: no tolerance hides an error.
"""

from collections.abc import Mapping, Sequence
from typing import Callable

import numpy as np
import tensorflow as tf

from gan_mrcnn.utils.errors import UserError

# With other numbers each time: what is left over from the one before is not right by chance.
ROUNDS = 3
# Drawn from -_LARGEST to _LARGEST - 1. Replica r gives (r + 1)-fold, and whole numbers up to 2**24
# are exact in float32: sums over 700 replicas are.
_LARGEST = 64
# Steps of the small network: the second one has momenta. Images of each replica, and their size.
_STEPS, _IMAGES, _SIDE = 2, 2, 8
# Of the largest change of a variable. TF32 rounds to a thousandth; to leave out one of n devices
# changes the sum of their gradients, which are random, by some 1 / sqrt(n) of it.
_TOLERANCE = 0.02
# Last bits of the largest weight: at the begin of a long warm-up that is more than it moves.
_ROUNDINGS = 4


def check_step(
    strategy: tf.distribute.Strategy,
    make_optimizer: Callable[[], tf.keras.optimizers.Optimizer],
    apply_gradients: Callable[..., tf.Tensor],
    others: Sequence[str],
) -> None:
    """Takes steps of a small network on all devices, and the same ones on one.

    Args:
      strategy: of all devices; not in its scope.
      make_optimizer: the run's, without a scale of the loss.
      apply_gradients: `GanMaskRCNNTask.apply_gradients`.
      others: values of `runtime.all_reduce_alg` that add up in another way.

    Raises:
      UserError: the weights after the steps are not the same.
    """
    number = strategy.num_replicas_in_sync
    batch = _IMAGES * number
    with tf.device(strategy.extended.worker_devices[0]):
        (expected,) = _small_run(
            tf.distribute.get_strategy(), make_optimizer, apply_gradients, batch
        )
    for found in _small_run(strategy, make_optimizer, apply_gradients, batch):
        for one, other, start in zip(found, expected, _start_weights()):
            moved, apart = np.abs(other - start).max(), np.abs(one - other).max()
            rounding = _ROUNDINGS * np.spacing(np.abs(other).max())
            # NaN is not below anything.
            if not apart <= _TOLERANCE * moved + rounding:
                raise UserError(
                    f'a step of a small network on {number} devices is not that of one (weights '
                    f'move by {moved:.2g} and differ by {apart:.2g}): training would fail or be '
                    f'worse; {_remedy(others)}'
                )


def _remedy(others):
    return (
        f'try --params_override runtime.all_reduce_alg={" or ".join(others)}, or train on one '
        'device (CUDA_VISIBLE_DEVICES=0)'
    )


def _small_run(strategy, make_optimizer, apply_gradients, batch) -> list[list[np.ndarray]]:
    """Weights after the steps, of each replica of this worker."""
    # Nothing is drawn from the run's random state, and no other layer is called so.
    options = {'use_bias': False, 'kernel_initializer': 'zeros', 'dtype': 'float32'}
    with strategy.scope():
        model = tf.keras.Sequential(
            [
                tf.keras.Input([_SIDE, _SIDE, 3]),
                tf.keras.layers.Conv2D(4, 3, name='check_conv', **options),
                tf.keras.layers.BatchNormalization(
                    synchronized=True, dtype='float32', name='check_norm'
                ),
                # No ReLU, which a rounding can turn on.
                tf.keras.layers.Activation('tanh', dtype='float32', name='check_tanh'),
                tf.keras.layers.Flatten(dtype='float32', name='check_flat'),
                tf.keras.layers.Dense(2, name='check_dense', **options),
            ],
            name='check',
        )
        variables = model.trainable_variables
        for variable, value in zip(variables, _start_weights()):
            variable.assign(value)
        optimizer = make_optimizer()
        optimizer.build(variables)

    def on_replica():
        replicas = tf.distribute.get_replica_context()
        share = batch // replicas.num_replicas_in_sync
        first = replicas.replica_id_in_sync_group * share
        images = _draw([batch, _SIDE, _SIDE, 3], 0)[first : first + share]
        targets = _draw([batch, 2], 1)[first : first + share]
        with tf.GradientTape() as tape:
            errors = tf.square(model(images, training=True) - targets)
            loss = tf.reduce_mean(errors) / replicas.num_replicas_in_sync
        apply_gradients(tape, loss, variables, optimizer, {'loss': loss}, clip_norm=0.0)

    @tf.function
    def step():
        strategy.run(on_replica)

    for _ in range(_STEPS):
        step()
    local = [strategy.experimental_local_results(variable) for variable in variables]
    return [[x.numpy() for x in of_replica] for of_replica in zip(*local)]


def _start_weights() -> list[np.ndarray]:
    """Of convolution, norm (scale and offset) and dense layer."""
    flat = (_SIDE - 2) ** 2 * 4
    kernel, dense = _draw([3, 3, 3, 4], 2), _draw([flat, 2], 3)
    return [0.3 * kernel.numpy(), np.ones(4, 'f'), np.zeros(4, 'f'), 0.1 * dense.numpy()]


def _draw(shape, number):
    return tf.random.stateless_normal(shape, [number, 0], alg='philox')


def check_sums(
    strategy: tf.distribute.Strategy,
    networks: Mapping[str, Sequence[tf.Variable]],
    others: Sequence[str],
) -> int:
    """Adds up known numbers in the place of the gradients.

    Args:
      strategy: of all devices.
      networks: what is updated together, by name; at least one variable each.
      others: values of `runtime.all_reduce_alg` that add up in another way.

    Returns:
      How many numbers each device has added up with the others' in each of `ROUNDS` rounds.

    Raises:
      UserError: a sum is not what it must be. On every worker alike, unless nothing at all reaches
        the others.
    """
    for name, variables in networks.items():
        wrong = _wrong_sums(strategy, variables)
        if wrong:
            raise UserError(
                f'the sum over {strategy.num_replicas_in_sync} devices is wrong for {len(wrong)} '
                f'of {len(variables)} gradients of the {name}, such as that of {wrong[0]}: '
                f'training would fail or be worse; {_remedy(others)}'
            )
    return sum(v.shape.num_elements() for variables in networks.values() for v in variables)


def _wrong_sums(strategy, variables) -> list[str]:
    """Names of the variables in the place of whose gradient a sum was wrong on any device."""

    @tf.function
    def add_up(round_number):
        return strategy.run(_is_wrong, args=(variables, round_number))

    seen, told = {}, {}
    for round_number in range(ROUNDS):
        for wrong, counts in zip(*map(strategy.experimental_local_results, add_up(round_number))):
            for variable, is_wrong, count in zip(variables, wrong.numpy(), counts.numpy()):
                if is_wrong:
                    seen[variable.name] = None
                # It came by the way that is in question: NaN is as bad as a number.
                if count != 0:
                    told[variable.name] = None
    return list(seen or told)


def _is_wrong(variables, round_number):
    """On a replica: whether the sums are wrong, [len(variables)] bool, and on how many replicas."""
    replicas = tf.distribute.get_replica_context()
    number = replicas.num_replicas_in_sync
    own = tf.cast(replicas.replica_id_in_sync_group + 1, tf.float32)
    drawn = [_whole_numbers(x, index, round_number) for index, x in enumerate(variables)]
    sums = replicas.all_reduce(
        tf.distribute.ReduceOp.SUM, [x * tf.cast(own, x.dtype) for x in drawn]
    )
    # 1 + 2 + ... + number
    times = number * (number + 1) // 2
    wrong = tf.stack(
        [tf.reduce_any(tf.not_equal(found, x * times)) for found, x in zip(sums, drawn)]
    )
    counts = replicas.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(wrong, tf.float32))
    return wrong, counts


def _whole_numbers(variable, index, round_number):
    """The same ones on every device, whatever its kind: Philox is counted, not measured."""
    seed = tf.stack([tf.constant(index), tf.cast(round_number, tf.int32)])
    drawn = tf.random.stateless_uniform(variable.shape, seed, alg='philox')
    return tf.cast(tf.floor(drawn * (2 * _LARGEST)) - _LARGEST, variable.dtype)
