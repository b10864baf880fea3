# SPDX-License-Identifier: Apache-2.0
"""kernels_cuda.cu on NumPy arrays: compiled by g++ with the headers of cuda_emulation/.

Every result and the workspace start as bytes 0x5b, which is no value that a test would expect in
any type, and lie between guard bytes that must stay so.

    python -m tests.custom_ops.emulated_kernels LIBRARY RESULTS

runs fixed cases and saves their results: for a build with sanitizers, which must be loaded before
Python and therefore wants a process of its own (without TensorFlow).
"""

import ctypes
import functools
import pathlib
import subprocess
import sys

import numpy as np

from tests.custom_ops import launchers

_HEADERS = pathlib.Path(__file__).with_name('cuda_emulation')
_POISON = 0x5B
# Of an input, in bytes; larger ones are mostly virtual memory and are used where they are.
_LARGEST_COPY = 1 << 30


def build(library, *flags, source=launchers.KERNELS):
    """Compiles the kernels for the CPU; raises CalledProcessError with the compiler's words."""
    command = ['g++', '-std=c++17', '-O1', '-fPIC', '-shared', '-Wall', '-Wno-unknown-pragmas']
    command += [*flags, '-I', str(_HEADERS), '-x', 'c++', str(source)]
    command += ['-o', str(library)]
    subprocess.run(command, check=True, capture_output=True, text=True)


class Guarded:
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


class EmulatedKernels(launchers.Kernels):
    """The passes of a library that `build` made.

    They take `shift`: features, upstream and results lie so many bytes off a 16-byte boundary.
    """

    def __init__(self, library, guard=256):
        self._launchers, self._guard = launchers.Launchers(library), guard
        self._emulation = ctypes.CDLL(str(library))

    def set_seed(self, seed):
        """Of the order of blocks and of the threads in them."""
        self._emulation.EmulationSetSeed(ctypes.c_uint(seed))

    def set_max_grid(self, blocks):
        """Launches get at most so many blocks; 0 for all that they ask for."""
        self._emulation.EmulationSetMaxGrid(ctypes.c_int64(blocks))

    def _call(self, name, shape, dtype, inputs, result_shape, result_dtype, shift=0):
        (boxes_dtype,) = {value.dtype.name for value in inputs if value.ndim == 2}
        held = []
        pointers = [self._put(value, held, shift) for value in inputs]
        workspace = Guarded(self._launchers.workspace_size(name, shape, dtype.name), self._guard)
        result = self._room(result_shape, result_dtype, shift)
        pointers += [workspace.pointer, result.pointer]
        self._launchers.launch(name, shape, dtype.name, boxes_dtype, *pointers)
        for buffer in (*held, workspace, result):
            buffer.check()
        return result.array(result_dtype, result_shape).copy()

    def _call_pyramid(self, name, pyramid, dtype, inputs, results, shift=0):
        held, put = [], functools.partial(self._put, shift=shift)
        pointers = {
            argument: [put(level, held) for level in value]
            if isinstance(value, list)
            else put(value, held)
            for argument, value in inputs.items()
        }
        workspace = Guarded(self._launchers.workspace_size(name, pyramid, dtype.name), self._guard)
        rooms = {
            argument: [self._room(*level, shift) for level in result]
            if isinstance(result, list)
            else self._room(*result, shift)
            for argument, result in results.items()
        }
        for argument, room in rooms.items():
            several = isinstance(room, list)
            pointers[argument] = [r.pointer for r in room] if several else room.pointer
        self._launchers.launch_pyramid(
            name,
            pyramid,
            dtype.name,
            inputs['boxes'].dtype.name,
            workspace=workspace.pointer,
            **pointers,
        )
        for buffer in (*held, workspace):
            buffer.check()
        return {
            argument: [self._taken(r, *level) for r, level in zip(room, results[argument])]
            if isinstance(room, list)
            else self._taken(room, *results[argument])
            for argument, room in rooms.items()
        }

    def _put(self, value, held, shift):
        """Pointer to a guarded copy, which goes to `held`."""
        if value.nbytes > _LARGEST_COPY:
            return value.ctypes.data
        held.append(Guarded(value.nbytes, self._guard, shift if value.ndim == 4 else 0))
        held[-1].array(value.dtype, value.shape)[...] = value
        return held[-1].pointer

    def _room(self, shape, dtype, shift):
        size = int(np.prod(shape)) * dtype.itemsize
        return Guarded(size, self._guard, shift if len(shape) == 4 else 0)

    @staticmethod
    def _taken(room, shape, dtype):
        room.check()
        return room.array(dtype, shape).copy()


def main(library, results):
    kernels = EmulatedKernels(library, guard=0)
    kernels.set_max_grid(3)
    arrays = {}
    for name, case in launchers.fixed_cases():
        for part, result in enumerate(kernels.all(*case)):
            arrays[f'{name}, {part}'] = result.view(np.uint8)
    for name, case in launchers.pyramid_cases():
        for part, result in enumerate(launchers.all_of_pyramid(kernels, case)):
            arrays[f'pyramid, {name}, {part}'] = result.view(np.uint8)
    np.savez(results, **arrays)


if __name__ == '__main__':
    main(*sys.argv[1:])
