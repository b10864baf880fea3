# SPDX-License-Identifier: Apache-2.0
"""Devices of this machine: number formats, determinism, and one strategy for all of them."""

import tensorflow as tf

from gan_mrcnn.utils.errors import UserError


def set_up(mixed_precision_dtype: str, deterministic: bool) -> None:
    """Sets what holds for the whole process; call it before anything is built.

    Args:
      mixed_precision_dtype: 'float32', 'bfloat16' or 'float16'; '' is 'float32'.
      deterministic: whether every operation gives the same bits each time, where it can.
    """
    if mixed_precision_dtype and mixed_precision_dtype != 'float32':
        tf.keras.mixed_precision.set_global_policy(f'mixed_{mixed_precision_dtype}')
    if deterministic:
        tf.config.experimental.enable_op_determinism()
        # It rearranges sums in every process in another way, and with them their last bits.
        tf.config.optimizer.set_experimental_options({'arithmetic_optimization': False})


def mirrored_strategy() -> tf.distribute.Strategy:
    """All GPUs of this machine, one CPU without."""
    gpus = tf.config.list_logical_devices('GPU')
    return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus] or ['/cpu:0'])


def check_batch(strategy: tf.distribute.Strategy, global_batch_size: int) -> None:
    """Raises UserError where the devices cannot share a batch evenly."""
    num_devices = strategy.num_replicas_in_sync
    if global_batch_size % num_devices:
        raise UserError(
            f'task.train_data.global_batch_size is {global_batch_size}, which {num_devices} '
            'devices cannot share evenly'
        )


def has_gpu() -> bool:
    return bool(tf.config.list_logical_devices('GPU'))


def row_multiple(num_rows):
    """What a number of rows that differs from batch to batch is to be a multiple of.

    On a GPU, cuDNN tries all its algorithms for every new size, some tenths of a second for each
    network; a sixteenth of the most rows leaves sixteen sizes. A CPU takes every size as it comes.

    Args:
      num_rows: the most there can be, a number or a scalar int32 tensor.
    """
    return tf.maximum(num_rows // 16, 1) if has_gpu() else 1


def fill_up(places, num_rows):
    """Integers [n, rank], followed by as many zeros as `row_multiple(num_rows)` wants; and n.

    There is at least one.
    """
    count, multiple = tf.shape(places)[0], row_multiple(num_rows)
    filled = tf.maximum((count + multiple - 1) // multiple, 1) * multiple
    # Padding has no kernel for GPUs with integers.
    filling = tf.zeros([filled - count, places.shape[1]], places.dtype)
    return tf.concat([places, filling], axis=0), count
