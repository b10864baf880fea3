# SPDX-License-Identifier: Apache-2.0
"""kernels_cuda.cu on NumPy arrays: compiled by g++ with the headers of cuda_emulation/.

Every result and the workspace start as bytes 0x5b, which is no value that a test would expect in
any type, and lie between guard bytes that must stay so.

    python -m tests.custom_ops.emulated_kernels LIBRARY RESULTS

runs fixed cases and saves their results: for a build with sanitizers, which must be loaded before
Python and therefore wants a process of its own (without TensorFlow).
"""

import ctypes
import pathlib
import subprocess
import sys

import ml_dtypes
import numpy as np

from tests.custom_ops.launchers import Launchers, Shape

_ROOT = pathlib.Path(__file__).resolve().parents[2]
KERNELS = _ROOT / 'custom_ops/prroi_pool/cc/kernels_cuda.cu'
DTYPES = {
    'float16': np.dtype(np.float16),
    'bfloat16': np.dtype(ml_dtypes.bfloat16),
    'float32': np.dtype(np.float32),
    'float64': np.dtype(np.float64),
}
_POISON = 0x5B
# Of an input, in bytes; larger ones are mostly virtual memory and are used where they are.
_LARGEST_COPY = 1 << 30


def build(library, *flags):
    """Compiles the kernels for the CPU; raises CalledProcessError with the compiler's words."""
    command = ['g++', '-std=c++17', '-O1', '-fPIC', '-shared', '-Wall', '-Wno-unknown-pragmas']
    command += [*flags, '-I', str(_ROOT / 'tests/custom_ops/cuda_emulation')]
    command += ['-x', 'c++', str(KERNELS), '-o', str(library)]
    subprocess.run(command, check=True, capture_output=True, text=True)


class _Guarded:
    """Poisoned bytes on a 16-byte boundary (or `shift` behind one) between guards.

    Without guards the array ends where the allocation does, so that a sanitizer sees what goes
    beyond.
    """

    def __init__(self, size, guard, shift=0):
        self._guard, self._size = guard, size
        self._buffer = np.full(size + 2 * guard + 32, _POISON, np.uint8)
        if guard == 0:
            self._buffer = np.full(size, _POISON, np.uint8)  # malloc's own boundary is 16.
        self._first = guard and guard + shift - (self._buffer.ctypes.data + guard) % 16 + 16

    @property
    def pointer(self):
        return self._buffer.ctypes.data + self._first

    def array(self, dtype, shape):
        return self._buffer[self._first :][: self._size].view(dtype).reshape(shape)

    def check(self):
        outside = np.delete(self._buffer, np.arange(self._first, self._first + self._size))
        assert np.all(outside == _POISON), 'written out of bounds'


class EmulatedKernels:
    """The three passes, NumPy in and out.

    features [B, H, W, C]; boxes [N, 4], pixels, float32 or float64; box_indices [N]; upstream
    [N, h, w, C]. `shift` moves features and results off their 16-byte boundary, by bytes.
    """

    def __init__(self, library, guard=256):
        self._launchers, self._guard = Launchers(library), guard
        self._emulation = ctypes.CDLL(str(library))

    def set_seed(self, seed):
        """Of the order of blocks and of the threads in them."""
        self._emulation.EmulationSetSeed(ctypes.c_uint(seed))

    def set_max_grid(self, blocks):
        """Launches get at most so many blocks; 0 for all that they ask for."""
        self._emulation.EmulationSetMaxGrid(ctypes.c_int64(blocks))

    def forward(self, features, boxes, box_indices, output_size, scale, shift=0):
        shape = Shape(*features.shape, len(boxes), *output_size, scale)
        result_shape = (len(boxes), *output_size, features.shape[-1])
        inputs = [features, boxes, np.asarray(box_indices, np.int32)]
        return self._run('Forward', shape, features.dtype, boxes.dtype, inputs, result_shape, shift)

    def feature_gradient(self, map_shape, boxes, box_indices, upstream, scale, shift=0):
        shape = Shape(*map_shape, len(boxes), *upstream.shape[1:3], scale)
        inputs = [boxes, np.asarray(box_indices, np.int32), upstream]
        types = upstream.dtype, boxes.dtype
        return self._run('FeatureGradient', shape, *types, inputs, map_shape, shift)

    def box_gradient(self, features, boxes, box_indices, upstream, scale, shift=0):
        shape = Shape(*features.shape, len(boxes), *upstream.shape[1:3], scale)
        inputs = [features, boxes, np.asarray(box_indices, np.int32), upstream]
        types = features.dtype, boxes.dtype
        return self._run('BoxGradient', shape, *types, inputs, boxes.shape, shift, boxes.dtype)

    def _run(
        self, name, shape, dtype, boxes_dtype, inputs, result_shape, shift=0, result_dtype=None
    ):
        result_dtype = result_dtype or dtype
        held, pointers = [], []
        for value in inputs:
            if value.nbytes > _LARGEST_COPY:
                pointers.append(value.ctypes.data)
                continue
            held.append(_Guarded(value.nbytes, self._guard, shift if value.ndim == 4 else 0))
            held[-1].array(value.dtype, value.shape)[...] = value
            pointers.append(held[-1].pointer)
        workspace = _Guarded(self._launchers.workspace_size(name, shape, dtype.name), self._guard)
        size = int(np.prod(result_shape)) * result_dtype.itemsize
        result = _Guarded(size, self._guard, shift if name != 'BoxGradient' else 0)
        self._launchers.launch(
            name, shape, dtype.name, boxes_dtype.name, *pointers, workspace.pointer, result.pointer
        )
        for buffer in (*held, workspace, result):
            buffer.check()
        return result.array(result_dtype, result_shape).copy()


def cases():
    """Named arguments of fixed cases that reach every kernel, dtype, path and kind of box."""
    rng = np.random.default_rng(5)
    boxes = np.array(
        [
            [3.3, 2.1, 9.2, 12.7],
            [-5, -7, 4, 30],  # Over the border.
            [2, 4, 10, 14],  # On nodes.
            [-40000, -3000, 50000, 5000],  # Thousands wide.
            [5.2, 6.1, 5.9, 6.3],  # Inside a cell.
            [100, 3, 120, 9],  # Outside.
            [4, 3, 4, 9],  # Without area.
            [9, 9, 2, 3],  # Reversed.
            [np.nan, 1, 5, 5],
            [1, 1, np.inf, 5],
            [1, 1, 5, 5],  # Of an image that is not there.
            [1, 1, 5, 5],
            [1e300, 1e300, 1.0000001e300, 1.1e300],
            [0, 0, 13.9, 17.9],
        ]
    )
    indices = np.array([0, 2, 0, 2, 0, 0, 2, 0, 0, 2, 3, -1, 0, 2])
    for dtype in DTYPES:
        for channels in (1, 3, 8, 520):
            features = rng.normal(size=(3, 7, 9, channels)).astype(DTYPES[dtype])
            upstream = rng.normal(size=(len(boxes), 3, 4, channels)).astype(DTYPES[dtype])
            yield f'{dtype}-{channels}', (features, boxes, indices, upstream, 0.5)


def run_case(kernels, features, boxes, indices, upstream, scale):
    """Forward, gradient to the features, gradient to the boxes."""
    return (
        kernels.forward(features, boxes, indices, upstream.shape[1:3], scale),
        kernels.feature_gradient(features.shape, boxes, indices, upstream, scale),
        kernels.box_gradient(features, boxes, indices, upstream, scale),
    )


def main(library, results):
    kernels = EmulatedKernels(library, guard=0)
    kernels.set_max_grid(3)
    arrays = {}
    for name, case in cases():
        for part, value in zip(('forward', 'features', 'boxes'), run_case(kernels, *case)):
            arrays[f'{name}-{part}'] = value.view(np.uint8)
    np.savez(results, **arrays)


if __name__ == '__main__':
    main(*sys.argv[1:])
