# SPDX-License-Identifier: Apache-2.0
"""Whether the devices of a run add up gradients rightly, asked before its first step.

With TensorFlow 2.16 and later, runs on several GPUs are reported to end in NaN where one GPU trains
well, with some pairs of GPUs or on some machines only (tensorflow/tensorflow issues 90686, 105552).
A sum that is wrong but finite would go unnoticed: the run learns, only worse.

What is compared is the sum, not a whole step. A step on one device with the batch of all of them
need not fit into its memory; and the parts of the batch cannot be taken one after the other, because
BatchNorm and losses go over the RoIs of all devices. So every device draws whole numbers in the
shapes and types of the gradients, on the device itself, and they are added up by the same call for
the same list of tensors as in the train step, so that they are packed alike. What the sum must be,
every device knows without the others. Whole numbers this small are added up without rounding in any
order: the sums are compared exactly, and no tolerance hides an error.
"""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from gan_mrcnn.utils.errors import UserError

# With other numbers each time: what is left over from the one before is not right by chance.
ROUNDS = 3
# Drawn from -_LARGEST to _LARGEST - 1. Replica r gives (r + 1)-fold, and whole numbers up to 2**24
# are exact in float32: sums over 700 replicas are.
_LARGEST = 64


def check(
    strategy: tf.distribute.Strategy,
    networks: Mapping[str, Sequence[tf.Variable]],
    others: Sequence[str],
) -> str:
    """Adds up known numbers in the place of the gradients; touches no variable and no random state.

    Args:
      strategy: of all devices.
      networks: what is updated together, by name; at least one variable each.
      others: values of `runtime.all_reduce_alg` that add up in another way.

    Returns:
      What was found, for the user.

    Raises:
      UserError: a sum is not what it must be. On every worker alike, unless nothing at all reaches
        the others.
    """
    number = strategy.num_replicas_in_sync
    for name, variables in networks.items():
        wrong = _wrong_sums(strategy, variables)
        if wrong:
            raise UserError(
                f'the sum over {number} devices is wrong for {len(wrong)} of {len(variables)} '
                f'gradients of the {name}, such as that of {wrong[0]}: training would fail or be '
                'worse; try --params_override runtime.all_reduce_alg='
                f'{" or ".join(others)}, or train on one device (CUDA_VISIBLE_DEVICES=0)'
            )
    weights = sum(v.shape.num_elements() for variables in networks.values() for v in variables)
    return (
        f'checked: gradients of {weights:,} weights summed over {number} devices equal the exact '
        f'sum ({ROUNDS} times)'
    )


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
