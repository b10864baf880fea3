# SPDX-License-Identifier: Apache-2.0
"""Finds, builds where needed, and loads the compiled PrRoIPool and NMS; registers gradients."""

import functools
import sys
from typing import Any, NamedTuple, Optional

import tensorflow as tf

from custom_ops.prroi_pool import build

IMPLEMENTATIONS = ('auto', 'compiled', 'tensorflow')


class Library(NamedTuple):
    """ops: the operations as functions, None where nothing is loaded; text: what serves and why."""

    ops: Optional[Any]
    text: str


@functools.cache
def load() -> Library:
    """The library, loaded once per process; compiled first where there is none.

    Without a compiler, plain TensorFlow serves; the reason is printed once on standard error.
    """
    has_gpu = bool(tf.config.list_physical_devices('GPU'))
    try:
        path = _find(has_gpu) or _build()
        ops = tf.load_op_library(str(path))
    except (build.BuildError, tf.errors.NotFoundError, OSError) as error:
        text = f'TensorFlow ({" ".join(str(error).split())})'
        print(
            f'PrRoIPool and NMS are served by their slower versions in {text}. '
            f'To compile them: python {build.__file__}',
            file=sys.stderr,
        )
        return Library(None, text)
    has_cuda = '-cuda-' in path.name
    problem = _problem_on_gpu(ops, has_cuda) if has_gpu else None
    if problem:
        text = f'TensorFlow ({problem})'
        print(f'PrRoIPool and NMS are served by their slower versions in {text}', file=sys.stderr)
        return Library(None, text)
    return Library(ops, f'compiled operation, {"CPU and CUDA" if has_cuda else "CPU"}')


def _find(has_gpu: bool):
    """The library; None where it lacks the GPU's kernels, and there is what compiles them."""
    path = build.find_library()
    can_have_cuda = has_gpu and tf.test.is_built_with_cuda() and build.find_nvcc()
    return None if path and '-cuda-' not in path.name and can_have_cuda else path


def _problem_on_gpu(ops, has_cuda: bool) -> Optional[str]:
    """Why the operation cannot serve on this machine's GPU, and what helps; None where it can."""
    if not has_cuda:
        return (
            f'the compiled operation is for the CPU only, since there was no nvcc: '
            f'{build.NVCC_REMEDY}; then start again'
        )
    try:
        # The driver may be older than the compiler's CUDA, or the card than its oldest.
        with tf.init_scope(), tf.device('/GPU:0'):
            ops.pr_roi_pool(
                features=tf.zeros([1, 2, 2, 1]),
                boxes=tf.constant([[0.0, 0.0, 1.0, 1.0]]),
                box_indices=tf.constant([0]),
                output_height=1,
                output_width=1,
                spatial_scale=1.0,
            ).numpy()
    except tf.errors.OpError as error:
        return (
            f'{" ".join(error.message.split())}; a newer driver helps, or a compiler of its CUDA: '
            f'python {build.__file__} takes the first nvcc on PATH'
        )
    return None


def choose(implementation: str) -> Optional[Any]:
    """The operations as functions, or None where plain TensorFlow is to serve.

    Args:
      implementation: 'compiled' for the library, 'tensorflow' for plain TensorFlow, 'auto' for the
        first of the two that there is.

    Raises:
      tf.errors.UnavailableError: 'compiled' was asked for and could not be built or loaded.
      ValueError: another `implementation`.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f'implementation is {implementation!r}, not one of {IMPLEMENTATIONS}')
    ops = None if implementation == 'tensorflow' else load().ops
    if ops is None and implementation == 'compiled':
        raise tf.errors.UnavailableError(None, None, f'served by {load().text}')
    return ops


def _build():
    if build.failure_log().exists():
        raise build.BuildError(f'compiling failed before, see {build.failure_log()}')
    others = [path.name for folder in build.folders() for path in folder.glob('prroi_pool-tf*.so')]
    why = f'{others[0]} is for another TensorFlow or other sources' if others else 'first use'
    print(
        f'Compiling PrRoIPool and NMS for TensorFlow {tf.__version__} ({why}): '
        'half a minute, once.',
        file=sys.stderr,
    )
    # The GPU's kernels take a minute more; `make` compiles them wherever there is nvcc.
    return build.build_library('auto' if tf.config.list_physical_devices('GPU') else 'no')


tf.no_gradient('GroupedNonMaxSuppression')


@tf.RegisterGradient('PrRoiPool')
def _gradient(op, upstream):
    """To features and boxes, each an operation of its own; eager mode skips what is not watched."""
    attributes = {
        name: op.get_attr(name) for name in ('output_height', 'output_width', 'spatial_scale')
    }
    skipped = getattr(op, 'skip_input_indices', None) or ()
    ops = load().ops
    d_features = d_boxes = None
    if 0 not in skipped:
        d_features = ops.pr_roi_pool_grad_features(*op.inputs, upstream, **attributes)
    if 1 not in skipped:
        d_boxes = ops.pr_roi_pool_grad_boxes(*op.inputs, upstream, **attributes)
    return d_features, d_boxes, None
