# SPDX-License-Identifier: Apache-2.0
"""Devices of this machine: which there are, number formats, and one strategy for all of them."""

import contextlib
import functools
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Optional

import tensorflow as tf

from gan_mrcnn.utils.errors import UserError

# `runtime.all_reduce_alg`, named as in the Model Garden: how gradients are added up over the GPUs
# of one machine, and over those of several workers.
_REDUCTIONS = {
    'nccl': tf.distribute.NcclAllReduce,
    'hierarchical_copy': tf.distribute.HierarchicalCopyAllReduce,
    'one_device': tf.distribute.ReductionToOneDevice,
}
_REDUCTIONS_OF_WORKERS = {
    'ring': tf.distribute.experimental.CommunicationImplementation.RING,
    'nccl': tf.distribute.experimental.CommunicationImplementation.NCCL,
}


def set_up(mixed_precision_dtype: str, deterministic: bool) -> None:
    """Sets what holds for the whole process; call it before anything is built.

    Args:
      mixed_precision_dtype: 'float32', 'bfloat16' or 'float16'; '' is 'float32'.
      deterministic: whether every operation gives the same bits each time, where it can.
    """
    prepare_gpus()
    if _is_made_for_nhwc(tf.config.get_visible_devices('GPU')):
        # TensorFlow would turn float32 maps around for convolutions that these cards do as it is.
        tf.config.optimizer.set_experimental_options({'layout_optimizer': False})
    if mixed_precision_dtype and mixed_precision_dtype != 'float32':
        tf.keras.mixed_precision.set_global_policy(f'mixed_{mixed_precision_dtype}')
    if deterministic:
        tf.config.experimental.enable_op_determinism()
        # It rearranges the graph in every process in another way, and with it the last bits of
        # sums. With only its rearrangement of arithmetic off, a combined run had three outcomes.
        tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': True})


@functools.cache
def prepare_gpus() -> None:
    """Has each GPU's memory be taken as it is needed, and says once where a GPU is left unused.

    TensorFlow would take nearly all memory of every GPU at its start: evaluate.py could not run
    beside train.py. The variable TF_FORCE_GPU_ALLOW_GROWTH=false brings that back.
    """
    gpus = tf.config.list_physical_devices('GPU')
    for gpu in gpus:
        # Too late where a GPU is in use already, as in a notebook.
        with contextlib.suppress(RuntimeError):
            tf.config.experimental.set_memory_growth(gpu, True)
    if not gpus and _has_nvidia_gpu():
        print(f'warning: {_why_unused()}', file=sys.stderr, flush=True)


def _has_nvidia_gpu() -> bool:
    """Whether NVIDIA's driver knows a GPU that this process is not told to leave alone."""
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    if visible is not None and visible.strip() in ('', '-1'):
        return False
    if pathlib.Path('/dev/nvidia0').exists():
        return True
    program = shutil.which('nvidia-smi')
    if program is None:
        return False
    try:
        listed = subprocess.run(
            [program, '-L'], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return any(line.startswith('GPU ') for line in listed.stdout.splitlines())


def _why_unused() -> str:
    text = (
        f'there is an NVIDIA GPU, but TensorFlow {tf.__version__} sees none and runs on the CPU: '
    )
    built = tf.sysconfig.get_build_info()
    if not built.get('is_cuda_build'):
        return f'{text}it was built without CUDA; install the package tensorflow in its place'
    return (
        f'{text}it needs CUDA {built.get("cuda_version")} and cuDNN {built.get("cudnn_version")}, '
        f"which pip install 'tensorflow[and-cuda]=={tf.__version__}' brings (where they are, "
        'TF_CPP_MIN_LOG_LEVEL=0 shows what could not be loaded)'
    )


def describe(number: int = 1, workers: int = 1) -> str:
    """The devices in use, and what is computed in by the policy that `set_up` has set.

    Args:
      number: of devices.
      workers: that these belong to.

    Returns:
      Such as '1 x GPU (NVIDIA H100 80GB HBM3), float32 (TF32)', '2 x CPU of 2 workers, float32'.
    """
    gpus = tf.config.get_visible_devices('GPU')
    names = dict.fromkeys(_detail(gpu, 'device_name', 'unknown') for gpu in gpus)
    kind = f'GPU ({", ".join(names)})' if gpus else 'CPU'
    others = f' of {workers} workers' if workers > 1 else ''
    return f'{number} x {kind}{others}, {_number_format(gpus)}'


def _number_format(gpus) -> str:
    policy = tf.keras.mixed_precision.global_policy().name
    if policy.startswith('mixed_'):
        return f'{policy.removeprefix("mixed_")} (mixed)'
    return f'{policy} (TF32)' if _is_made_for_nhwc(gpus) else policy


def _is_made_for_nhwc(gpus) -> bool:
    """Whether convolutions in float32 use tensor cores, which round to 10 bits behind the point.

    From Ampere on, and with the channels last.
    """
    has_tf32 = gpus and all(_detail(gpu, 'compute_capability', (0, 0)) >= (8, 0) for gpu in gpus)
    return bool(has_tf32) and tf.config.experimental.tensor_float_32_execution_enabled()


def _detail(gpu, name, otherwise):
    return tf.config.experimental.get_device_details(gpu).get(name, otherwise)


def mirrored_strategy(all_reduce_alg: Optional[str] = None) -> tf.distribute.Strategy:
    """All GPUs of this machine, one CPU without.

    Args:
      all_reduce_alg: 'nccl', 'hierarchical_copy' or 'one_device'; None leaves it to TensorFlow,
        which takes NCCL for several GPUs.

    Raises:
      UserError: another algorithm.
    """
    _check_reduction(all_reduce_alg, _REDUCTIONS, 'one machine')
    gpus = [gpu.name for gpu in tf.config.list_logical_devices('GPU')]
    reduction = _REDUCTIONS[all_reduce_alg]() if all_reduce_alg else None
    return tf.distribute.MirroredStrategy(gpus or ['/cpu:0'], cross_device_ops=reduction)


def multi_worker_strategy(all_reduce_alg: Optional[str] = None) -> tf.distribute.Strategy:
    """All devices of all workers that TF_CONFIG names; waits until all of them have started.

    Args:
      all_reduce_alg: 'ring', TensorFlow's own over gRPC, or 'nccl', which needs GPUs; None leaves
        it to TensorFlow.

    Raises:
      UserError: another algorithm.
      RuntimeError: the workers cannot be joined.
    """
    _check_reduction(all_reduce_alg, _REDUCTIONS_OF_WORKERS, 'several workers')
    automatic = tf.distribute.experimental.CommunicationImplementation.AUTO
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=_REDUCTIONS_OF_WORKERS.get(all_reduce_alg, automatic)
    )
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


def _check_reduction(all_reduce_alg, choices, where):
    if all_reduce_alg and all_reduce_alg not in choices:
        raise UserError(
            f'runtime.all_reduce_alg is {all_reduce_alg}; for {where} set it to '
            f'{", ".join(choices)}, or leave it out'
        )


def other_reductions(workers: int, all_reduce_alg: Optional[str] = None) -> list[str]:
    """What else `runtime.all_reduce_alg` can be; left out, it is NCCL where there are GPUs."""
    choices = _REDUCTIONS_OF_WORKERS if workers > 1 else _REDUCTIONS
    return [name for name in choices if name != (all_reduce_alg or 'nccl')]


def check_batch(
    strategy: tf.distribute.Strategy, global_batch_size: int, part: str = 'train_data'
) -> None:
    """Raises UserError where the devices cannot share a batch of `part` of the task evenly."""
    num_devices = strategy.num_replicas_in_sync
    if global_batch_size < 1:
        raise UserError(f'task.{part}.global_batch_size is {global_batch_size}; give 1 or more')
    if global_batch_size % num_devices:
        raise UserError(
            f'task.{part}.global_batch_size is {global_batch_size}, which {num_devices} '
            'devices cannot share evenly'
        )


def has_gpu() -> bool:
    """Whether what is built now will run on a GPU; takes nothing of it."""
    return bool(tf.config.get_visible_devices('GPU'))


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
