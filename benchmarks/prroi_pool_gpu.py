# SPDX-License-Identifier: Apache-2.0
"""PrRoIPool's and RoIAlign's CUDA kernels on a GPU: checked, timed, and beside the published.

    python benchmarks/prroi_pool_gpu.py [--json FILE] [--published FILE.cu] [--sanitize]
    python benchmarks/prroi_pool_gpu.py --check_only

Wants a GPU, nvcc, NumPy, ml_dtypes and tqdm; TensorFlow is not needed. The kernels are built for
the card at hand and called through their C launchers. First they are held against numerical
integration in float64, which processes on all cores do meanwhile; a mistake ends the run. So are
those over several levels, RoIAlign's against its samples one by one. With --sanitize a few small
cases run under compute-sanitizer too. Then every pass over one level is timed at the sizes that the
discriminators need: 28 x 28 bins of 256 channels of P2 of two images.

A time is the median over replays of a CUDA graph with several launches in a row, so that it holds
no time of the host; the launches take turns on copies of the features that together exceed the L2
cache. It stands beside the fewest bytes that the pass can move (touched nodes and bins once,
results once) and the share that these have of the card's own copy bandwidth, measured here.

`--published` is the file `src/prroi_pooling_gpu_impl.cu` of github.com/vacancy/PreciseRoIPooling
with the `.cuh` beside it: float32, features as [B, C, H, W].
"""

import argparse
import concurrent.futures
import contextlib
import ctypes
import multiprocessing
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import _card  # noqa: E402
import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from gan_mrcnn.utils.cores import num_cores  # noqa: E402
from gan_mrcnn.utils.errors import UserError  # noqa: E402
from tests.custom_ops import launchers, reference  # noqa: E402

IMAGES = {'544x800': (544, 800), '800x1344': (800, 1344)}
NUM_BOXES = (128, 512)
TIMED_DTYPES = ('float32', 'float16')
BATCH, CHANNELS, SIZE, SCALE = 2, 256, 28, 0.25
PASSES = ('forward', 'feature gradient', 'box gradient')
LAUNCHES, REPLAYS = 8, 15
# A slow kernel is repeated less often, at least three times.
SECONDS_OF_REPLAYS = 0.4
COPY_BYTES = 1 << 29
# Random values are made for so many elements and repeated over the rest: their values cost no
# time, making them by the hundred megabytes would.
RANDOM_ELEMENTS = 1 << 20
PUBLISHED_TOLERANCE = 1e-2  # All in float32, and for no more than to know that it is the right one.
SANITIZER_TOOLS = ('memcheck', 'racecheck')
GUARD_BYTES = 256
POISON = 0x5B  # No value that a check expects, in any dtype.


def find_nvcc():
    nvcc = shutil.which('nvcc') or shutil.which('nvcc', path='/usr/local/cuda/bin')
    if nvcc is None:
        raise UserError('there is no nvcc: install the CUDA toolkit, or put it on PATH')
    return pathlib.Path(nvcc).resolve()


def build(nvcc, source, library):
    """Compiles a .cu file for the card at hand."""
    flags = ['-std=c++17', '-O3', '-arch=native', '-Xcompiler', '-fPIC', '-cudart', 'static']
    run = subprocess.run(
        [str(nvcc), *flags, '-shared', str(source), '-o', str(library)],
        capture_output=True,
        text=True,
    )
    if run.returncode:
        lines = [line for line in run.stderr.splitlines() if 'error' in line] or ['no message']
        raise UserError(f'nvcc cannot compile {source}: {lines[0]}')


class Device:
    """The first GPU, through libcudart: memory, one stream, graphs and events."""

    _COMPUTE_MAJOR, _COMPUTE_MINOR, _L2_BYTES = 75, 76, 38  # cudaDeviceAttr
    _TO_DEVICE, _TO_HOST, _ON_DEVICE = 1, 2, 3  # cudaMemcpyKind

    def __init__(self, nvcc):
        self._runtime = ctypes.CDLL(str(self._find_runtime(nvcc)))
        self._runtime.cudaGetErrorString.restype = ctypes.c_char_p
        try:
            self._call('cudaSetDevice', 0)
            self.stream = self._new('cudaStreamCreate')
            self._events = [self._new('cudaEventCreate') for _ in range(2)]
        except RuntimeError as error:
            raise UserError(f'there is no GPU to run on: {error}') from None

    @staticmethod
    def _find_runtime(nvcc):
        for root in (nvcc.parents[1], pathlib.Path('/usr/local/cuda')):
            for folder in ('lib64', 'lib', 'targets/x86_64-linux/lib'):
                found = sorted((root / folder).glob('libcudart.so*'))
                if found:
                    return found[0]
        raise UserError(f'there is no libcudart.so beside {nvcc}: install the whole CUDA toolkit')

    def _call(self, name, *arguments):
        error = getattr(self._runtime, name)(*arguments)
        if error:
            text = self._runtime.cudaGetErrorString(error).decode()
            raise RuntimeError(f'{name}: {text}')

    def _new(self, name, *arguments):
        """What a call stores behind its first argument, a pointer."""
        value = ctypes.c_void_p()
        self._call(name, ctypes.byref(value), *arguments)
        return value.value

    def _attribute(self, code):
        value = ctypes.c_int()
        self._call('cudaDeviceGetAttribute', ctypes.byref(value), code, 0)
        return value.value

    def describe(self):
        """Name, compute capability, bytes of L2 cache."""
        properties = ctypes.create_string_buffer(1 << 14)  # Begins with the name in every version.
        self._call('cudaGetDeviceProperties', properties, 0)
        capability = self._attribute(self._COMPUTE_MAJOR), self._attribute(self._COMPUTE_MINOR)
        return {
            'card': properties.value.decode(),
            'compute_capability': '.'.join(map(str, capability)),
            'l2_bytes': self._attribute(self._L2_BYTES),
        }

    @contextlib.contextmanager
    def memory(self):
        """Gives `allocate(size)` and frees at the end what it has given."""
        given = []

        def allocate(size):
            given.append(self._new('cudaMalloc', ctypes.c_size_t(max(size, 1))))
            return given[-1]

        try:
            yield allocate
        finally:
            for pointer in given:
                self._call('cudaFree', ctypes.c_void_p(pointer))

    def write(self, pointer, array):
        array = np.ascontiguousarray(array)
        self._copy(pointer, array.ctypes.data, array.nbytes, self._TO_DEVICE)

    def read(self, pointer, size):
        array = np.empty(size, np.uint8)
        self._copy(array.ctypes.data, pointer, size, self._TO_HOST)
        return array

    def _copy(self, to, source, size, kind):
        self._call(
            'cudaMemcpy', ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), kind
        )

    def fill(self, pointer, size):
        self._call('cudaMemset', ctypes.c_void_p(pointer), POISON, ctypes.c_size_t(size))

    def repeat(self, pointer, block, size):
        """Fills `size` bytes with an array's, over and over."""
        block = np.ascontiguousarray(block).view(np.uint8).reshape(-1)[:size]
        self.write(pointer, block)
        written = block.nbytes
        while written < size:
            more = min(written, size - written)
            self._copy(pointer + written, pointer, more, self._ON_DEVICE)
            written += more

    def enqueue_copy(self, to, source, size):
        pointers = ctypes.c_void_p(to), ctypes.c_void_p(source)
        self._call(
            'cudaMemcpyAsync',
            *pointers,
            ctypes.c_size_t(size),
            self._ON_DEVICE,
            ctypes.c_void_p(self.stream),
        )

    def synchronize(self):
        self._call('cudaDeviceSynchronize')

    def seconds(self, enqueue):
        """Median and quartiles of the time of one launch.

        Args:
            enqueue: enqueue(k) puts launch k, in [0, LAUNCHES), on the stream.
        """
        stream, thread_local = ctypes.c_void_p(self.stream), 1
        self._call('cudaStreamBeginCapture', stream, thread_local)
        for k in range(LAUNCHES):
            enqueue(k)
        graph = ctypes.c_void_p()
        self._call('cudaStreamEndCapture', stream, ctypes.byref(graph))
        # CUDA 11 takes five arguments and 12 three, of which the third is 0 in both.
        nothing = ctypes.c_void_p(None)
        executable = ctypes.c_void_p(
            self._new('cudaGraphInstantiate', graph, nothing, nothing, nothing)
        )
        self._replay(executable)  # Warms up, as does the second.
        replays = SECONDS_OF_REPLAYS / max(self._replay(executable), 1e-9)
        times = [self._replay(executable) for _ in range(int(min(REPLAYS, max(3, replays))))]
        self._call('cudaGraphExecDestroy', executable)
        self._call('cudaGraphDestroy', graph)
        return statistics.quantiles([time / LAUNCHES for time in times], n=4)

    def _replay(self, executable):
        """Seconds of all launches of a graph."""
        stream = ctypes.c_void_p(self.stream)
        first, last = map(ctypes.c_void_p, self._events)
        self._call('cudaEventRecord', first, stream)
        self._call('cudaGraphLaunch', executable, stream)
        self._call('cudaEventRecord', last, stream)
        self._call('cudaEventSynchronize', last)
        elapsed = ctypes.c_float()
        self._call('cudaEventElapsedTime', ctypes.byref(elapsed), first, last)
        return elapsed.value / 1e3


class DeviceKernels(launchers.Kernels):
    """The passes on a GPU, with guard bytes behind the workspace and the result."""

    def __init__(self, device, library):
        self._device, self._launchers = device, launchers.Launchers(library)

    def _call(self, name, shape, dtype, inputs, result_shape, result_dtype):
        (boxes_dtype,) = {value.dtype.name for value in inputs if value.ndim == 2}
        workspace_size = self._launchers.workspace_size(name, shape, dtype.name)
        size = int(np.prod(result_shape)) * result_dtype.itemsize
        with self._device.memory() as allocate:
            pointers = []
            for value in inputs:
                pointers.append(allocate(value.nbytes))
                self._device.write(pointers[-1], value)
            for guarded in (workspace_size, size):
                pointers.append(allocate(guarded + GUARD_BYTES))
                self._device.fill(pointers[-1], guarded + GUARD_BYTES)
            self._launchers.launch(
                name, shape, dtype.name, boxes_dtype, *pointers, stream=self._device.stream
            )
            self._device.synchronize()
            for pointer, guarded in zip(pointers[-2:], (workspace_size, size)):
                if np.any(self._device.read(pointer + guarded, GUARD_BYTES) != POISON):
                    raise AssertionError(f'{name} wrote out of bounds')
            return self._device.read(pointers[-1], size).view(result_dtype).reshape(result_shape)

    def _call_pyramid(self, name, pyramid, dtype, inputs, results):
        """Lists, of one of each level, are taken apart for the way to the card and back."""
        workspace = self._launchers.workspace_size(name, pyramid, dtype.name)
        with self._device.memory() as allocate:

            def put(value):
                pointer = allocate(value.nbytes)
                self._device.write(pointer, value)
                return pointer

            def make_room(size):
                pointer = allocate(size + GUARD_BYTES)
                self._device.fill(pointer, size + GUARD_BYTES)
                return pointer

            def take(pointer, result):
                (shape, of_type), size = result, _size(result)
                if np.any(self._device.read(pointer + size, GUARD_BYTES) != POISON):
                    raise AssertionError(f'{name} wrote out of bounds')
                return self._device.read(pointer, size).view(of_type).reshape(shape)

            rooms = {k: _each(lambda r: make_room(_size(r)), v) for k, v in results.items()}
            self._launchers.launch_pyramid(
                name,
                pyramid,
                dtype.name,
                inputs['boxes'].dtype.name,
                self._device.stream,
                workspace=make_room(workspace),
                **{k: _each(put, v) for k, v in inputs.items()},
                **rooms,
            )
            self._device.synchronize()
            return {k: _each(take, rooms[k], v) for k, v in results.items()}


def _each(function, *values):
    """The function of each of a list, or of a value that is none."""
    return list(map(function, *values)) if isinstance(values[0], list) else function(*values)


def _size(result):
    shape, dtype = result
    return int(np.prod(shape)) * dtype.itemsize


def random_cases():
    """Names and arguments of Kernels.all on maps of many blocks, with more boxes than threads."""
    rng = np.random.default_rng()  # Others in every run.
    for name, dtype in launchers.DTYPES.items():
        for channels, num_boxes in ((256, 8), (5, 300)):
            features = rng.normal(size=(BATCH, 50, 76, channels)).astype(dtype)
            corner = rng.uniform(-40, [200, 304], (num_boxes, 2))
            sides = np.exp(rng.uniform(np.log(2), np.log(400), (num_boxes, 2)))
            boxes = np.concatenate([corner, corner + sides], 1)
            upstream = rng.normal(size=(num_boxes, SIZE, SIZE, channels)).astype(dtype)
            indices = rng.integers(0, BATCH, num_boxes)
            case = features, boxes, indices, upstream, SCALE
            yield f'{name}, {channels} channels, {num_boxes} random boxes', case


def relative_error(result, expected):
    """Largest difference over the largest value; infinite where NaN is not on both sides."""
    result = result.astype(np.float64)
    if np.any(np.isnan(result) != np.isnan(expected)):
        return float('inf')
    return float(np.nanmax(np.abs(result - expected)) / np.nanmax(np.abs(expected)))


def small_cases():
    """Some of the fixed ones, for tools under which everything is slow."""
    for name, case in launchers.fixed_cases():
        if case[0].shape[-1] in (3, 8) and case[0].dtype in (np.float32, np.float16):
            yield name, case


@contextlib.contextmanager
def expected_results(cases):
    """One future per case with what `reference.all_passes` says; processes work on them."""
    # Not forked: CUDA does not survive that.
    spawn = multiprocessing.get_context('spawn')
    workers = min(num_cores(), len(cases))
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        yield [pool.submit(reference.all_passes, *case) for _, case in cases]


def check(kernels, cases, expected):
    """Largest errors by dtype and pass; raises AssertionError for a wrong or changing result."""
    errors = {}
    for (name, case), futures in zip(tqdm(cases, desc='check'), expected):
        dtype = case[0].dtype.name
        with _card.shared():
            results, again = kernels.all(*case), kernels.all(*case)
        narrow, wide = launchers.TOLERANCES[dtype]
        for part, result, other, exact, tolerance in zip(
            PASSES, results, again, futures.result(), (narrow, narrow, wide)
        ):
            error = relative_error(result, exact)
            if not error <= tolerance:
                raise AssertionError(f'{part}, {name}: relative error {error:.2g}')
            if np.any(result.view(np.uint8) != other.view(np.uint8)):
                raise AssertionError(f'{part}, {name}: other bits on the second run')
            errors[dtype, part] = max(error, errors.get((dtype, part), 0))
    return errors


def check_pyramid(kernels):
    """Largest errors by dtype of all passes over several levels; raises as `check` does."""
    errors = {}
    for name, case in tqdm(list(launchers.pyramid_cases()), desc='check levels'):
        dtype = case[4].dtype.name
        with _card.shared():
            results, again = (launchers.all_of_pyramid(kernels, case) for _ in range(2))
        for result, other in zip(results, again):
            if np.any(result.view(np.uint8) != other.view(np.uint8)):
                raise AssertionError(f'several levels, {name}: other bits on the second run')
        pooled, winners, *rest = results
        expected = reference.all_of_pyramid(case, winners, 2, 0.5)
        for part, (result, exact) in enumerate(zip([pooled, *rest], expected)):
            error = relative_error(result, exact)
            # The gradient to the boxes, second, is not rounded to the features' type.
            if not error <= launchers.TOLERANCES[dtype][part == 1]:
                raise AssertionError(f'several levels, {name}, {part}: relative error {error:.2g}')
            errors[dtype] = max(error, errors.get(dtype, 0))
    return errors


class Published:
    """The published kernel: float32, [B, C, H, W], boxes as image, x1, y1, x2, y2."""

    def __init__(self, nvcc, source, folder):
        library = folder / 'published.so'
        build(nvcc, source, library)
        self._library = ctypes.CDLL(str(library))

    def enqueue(self, name, stream, pointers, shape):
        """Puts a pass on the stream; pointers are those of the published function."""
        sizes = [shape.channels, shape.height, shape.width, SIZE, SIZE]
        bins = shape.num_boxes * shape.channels * SIZE * SIZE
        counts = {
            'forward': [bins],
            'feature gradient': [
                bins,
                shape.num_images * shape.channels * shape.height * shape.width,
            ],
            'box gradient': [bins, 5 * shape.num_boxes],
        }
        function = {
            'forward': 'PrRoIPoolingForwardGpu',
            'feature gradient': 'PrRoIPoolingBackwardGpu',
            'box gradient': 'PrRoIPoolingCoorBackwardGpu',
        }
        getattr(self._library, function[name])(
            ctypes.c_void_p(stream),
            *(ctypes.c_void_p(pointer) for pointer in pointers),
            *map(ctypes.c_int, sizes),
            ctypes.c_float(shape.spatial_scale),
            *map(ctypes.c_int, counts[name]),
        )


def check_published(device, published):
    """Raises UserError if the file is not what is called here: its times would mean nothing."""
    rng = np.random.default_rng(2)
    features = rng.normal(size=(1, 20, 30, 8)).astype(np.float32)
    boxes = np.array([[9.0, 14, 61, 87], [3, 30, 75, 52]], np.float32)
    upstream = rng.normal(size=(2, SIZE, SIZE, 8)).astype(np.float32)
    indices = np.zeros(2, int)
    expected = reference.all_passes(features, boxes, indices, upstream, SCALE)
    shape = launchers.Shape(*features.shape, 2, SIZE, SIZE, SCALE)
    rows = np.concatenate([indices[:, None], boxes[:, [1, 0, 3, 2]]], 1).astype(np.float32)
    planes, bins = (np.moveaxis(array, -1, 1) for array in (features, upstream))
    with device.memory() as allocate:
        given = planes, rows, bins
        feature, row, bin_ = (allocate(array.nbytes) for array in given)
        for pointer, array in zip((feature, row, bin_), given):
            device.write(pointer, array)
        pooled, d_features, d_boxes = (allocate(a.nbytes) for a in (upstream, features, rows))
        passes = {
            'forward': [feature, row, pooled],
            'feature gradient': [feature, row, pooled, bin_, d_features],
            'box gradient': [feature, row, pooled, bin_, d_boxes],
        }
        for name, pointers in passes.items():
            published.enqueue(name, device.stream, pointers, shape)
        device.synchronize()
        found = (
            np.moveaxis(_read(device, pooled, bins.shape), 1, -1),
            np.moveaxis(_read(device, d_features, planes.shape), 1, -1),
            _read(device, d_boxes, rows.shape)[:, [2, 1, 4, 3]],
        )
    for name, result, exact in zip(PASSES, found, expected):
        error = relative_error(result, exact)
        if not error < PUBLISHED_TOLERANCE:
            raise UserError(
                f'--published: its {name} has a relative error of {error:.2g}: '
                'take the file of github.com/vacancy/PreciseRoIPooling as it is there'
            )


def _read(device, pointer, shape):
    return device.read(pointer, 4 * int(np.prod(shape))).view(np.float32).reshape(shape)


def make_boxes(image_size, num_boxes):
    """Boxes whose sides are spread evenly on a logarithmic scale, and their images."""
    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(np.log(16), np.log(400), [num_boxes, 2]))
    centres = rng.uniform(0, 1, [num_boxes, 2]) * image_size
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], 1)
    boxes = np.clip(boxes, 0, [*image_size, *image_size]).astype(np.float32)
    return boxes, np.repeat(np.arange(BATCH, dtype=np.int32), num_boxes // BATCH)


def fewest_bytes(shape, boxes, indices, itemsize):
    """Pass -> bytes: touched nodes and all bins once, and the result once."""
    touched = np.zeros([BATCH, shape.height, shape.width], bool)
    for (y1, x1, y2, x2), image in zip(boxes * SCALE, indices):
        touched[image, int(y1) : int(np.ceil(y2)) + 1, int(x1) : int(np.ceil(x2)) + 1] = True
    nodes, bins = touched.sum(), len(boxes) * SIZE * SIZE
    moved = {
        'forward': nodes + bins,
        'feature gradient': bins + touched.size,
        'box gradient': nodes + bins,
    }
    return {name: int(count) * CHANNELS * itemsize for name, count in moved.items()}


class TimedCase:
    """The arguments of all passes of one size on the card, for ours and the published kernel."""

    def __init__(self, device, allocate, image_size, num_boxes, dtype, l2_bytes):
        height, width = (int(side * SCALE) for side in image_size)
        self.shape = launchers.Shape(BATCH, height, width, CHANNELS, num_boxes, SIZE, SIZE, SCALE)
        self.dtype = launchers.DTYPES[dtype]
        self.boxes, self.indices = make_boxes(image_size, num_boxes)
        rows = np.concatenate([self.indices[:, None], self.boxes[:, [1, 0, 3, 2]]], 1)
        random = np.random.default_rng(1).standard_normal(RANDOM_ELEMENTS, np.float32)
        random = random.astype(self.dtype)
        map_bytes = BATCH * height * width * CHANNELS * self.dtype.itemsize
        bin_bytes = num_boxes * SIZE * SIZE * CHANNELS * self.dtype.itemsize

        def put(array):
            pointer = allocate(array.nbytes)
            device.write(pointer, array)
            return pointer

        def fill(size):
            pointer = allocate(size)
            device.repeat(pointer, random, size)
            return pointer

        self._features = [fill(map_bytes) for _ in range(2 + 2 * l2_bytes // map_bytes)]
        self._upstream, self._box, self._image = fill(bin_bytes), put(self.boxes), put(self.indices)
        self._row = put(rows.astype(np.float32))
        self._pooled, self._d_features = allocate(bin_bytes), allocate(map_bytes)
        self._d_boxes = allocate(4 * rows.size)
        self._device, self._allocate = device, allocate

    def ours(self, compiled):
        """name -> enqueue(k), of our kernels."""
        names = dict(zip(PASSES, ('Forward', 'FeatureGradient', 'BoxGradient')))
        sizes = [compiled.workspace_size(n, self.shape, self.dtype.name) for n in names.values()]
        workspace = self._allocate(max(sizes))

        def enqueue(name, k):
            features = self._features[k % len(self._features)]
            where = self._box, self._image
            pointers = {
                'forward': [features, *where, workspace, self._pooled],
                'feature gradient': [*where, self._upstream, workspace, self._d_features],
                'box gradient': [features, *where, self._upstream, workspace, self._d_boxes],
            }[name]
            options = {'stream': self._device.stream}
            compiled.launch(
                names[name], self.shape, self.dtype.name, 'float32', *pointers, **options
            )

        return enqueue

    def theirs(self, published):
        """The same of the published kernel."""

        def enqueue(name, k):
            features = self._features[k % len(self._features)]
            given = features, self._row, self._pooled
            pointers = {
                'forward': given,
                'feature gradient': [*given, self._upstream, self._d_features],
                'box gradient': [*given, self._upstream, self._d_boxes],
            }[name]
            published.enqueue(name, self._device.stream, pointers, self.shape)

        return enqueue


def time_passes(device, library, published, size, l2_bytes):
    """Pass -> seconds of ours and of the published kernel, as quartiles, and fewest bytes.

    `size` is image size, number of boxes and name of the dtype.
    """
    with device.memory() as allocate:
        case = TimedCase(device, allocate, *size, l2_bytes)
        moved = fewest_bytes(case.shape, case.boxes, case.indices, case.dtype.itemsize)
        ours, theirs = case.ours(launchers.Launchers(library)), None
        if published is not None and case.dtype == np.float32:
            theirs = case.theirs(published)

        def seconds(enqueue, name):
            return device.seconds(lambda k: enqueue(name, k))

        return {
            name: {
                'seconds': seconds(ours, name),
                'published_seconds': seconds(theirs, name) if theirs else None,
                'bytes': moved[name],
            }
            for name in PASSES
        }


def copy_bandwidth(device):
    """Bytes read and written per second by a large copy on the card."""
    with device.memory() as allocate:
        source, target = allocate(COPY_BYTES), allocate(COPY_BYTES)
        device.fill(source, COPY_BYTES)
        _, median, _ = device.seconds(lambda _: device.enqueue_copy(target, source, COPY_BYTES))
    return 2 * COPY_BYTES / median


def time_all(device, library, published, figures):
    """The card's figures and one row per size, number of boxes, dtype and pass."""
    card = device.describe()
    with _card.exclusive():
        card['copy_bytes_per_second'] = copy_bandwidth(device)
    cases = [(i, n, d) for i in IMAGES for n in NUM_BOXES for d in TIMED_DTYPES]
    rows = []
    for image, num_boxes, dtype in tqdm(cases, desc='time'):
        size = IMAGES[image], num_boxes, dtype
        with _card.exclusive():
            passes = time_passes(device, library, published, size, card['l2_bytes'])
        for name, row in passes.items():
            rate = row['bytes'] / row['seconds'][1]
            share = rate / card['copy_bytes_per_second']
            case = {'image': image, 'boxes': num_boxes, 'dtype': dtype, 'pass': name}
            rows.append({**case, **row, 'share_of_copy_bandwidth': share})
        figures.update(**card, rows=rows)
    return card, rows


def say_table(card, rows, figures):
    figures.say(f'{card["card"]}, copies {card["copy_bytes_per_second"] / 1e9:.0f} GB/s')
    figures.say(
        '| P2 of | boxes | dtype | pass | ms | fewest MB | of copy | published ms | ratio |'
    )
    figures.say('|---|---|---|---|---|---|---|---|---|')
    for row in rows:
        _, ours, _ = row['seconds']
        theirs = row['published_seconds'] and row['published_seconds'][1]
        cells = [row['image'], row['boxes'], row['dtype'], row['pass'], f'{1e3 * ours:.3f}']
        cells += [f'{row["bytes"] / 1e6:.0f}', f'{row["share_of_copy_bandwidth"]:.0%}']
        cells += [f'{1e3 * theirs:.2f}', f'{theirs / ours:.1f}'] if theirs else ['-', '-']
        figures.say(f'| {" | ".join(map(str, cells))} |')


def sanitize(library, figures):
    """Checks the small cases under the tools of compute-sanitizer, side by side."""
    program = shutil.which('compute-sanitizer') or shutil.which(
        'compute-sanitizer', path='/usr/local/cuda/bin'
    )
    if program is None:
        raise UserError('there is no compute-sanitizer: install the whole CUDA toolkit')
    environment = {k: v for k, v in os.environ.items() if k != _card.FOLDER_VARIABLE}
    with _card.shared():
        runs = {}
        for tool in SANITIZER_TOOLS:
            command = [program, '--tool', tool, '--error-exitcode', '1', sys.executable, __file__]
            command += ['--small_library', str(library)]
            runs[tool] = subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        for tool, run in runs.items():
            output, _ = run.communicate()
            if run.returncode:
                print(output)
                raise UserError(f'compute-sanitizer --tool {tool} has found errors: see above')
            figures.say(f'compute-sanitizer --tool {tool}: no error')


def parse_flags():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--json', type=pathlib.Path, help='a file for the figures')
    parser.add_argument(
        '--published', type=pathlib.Path, help='the .cu file of the published kernel'
    )
    parser.add_argument('--check_only', action='store_true', help='do not time')
    parser.add_argument('--sanitize', action='store_true', help='check under compute-sanitizer too')
    # For the process under a tool: the small cases, with a library that is there already.
    parser.add_argument('--small_library', type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.published and not options.published.is_file():
        raise UserError(f'--published {options.published}: there is no such file')
    return options


def check_small(library):
    """What runs under compute-sanitizer."""
    cases = list(small_cases())
    expected = [concurrent.futures.Future() for _ in cases]
    for (_, case), future in zip(cases, expected):
        future.set_result(reference.all_passes(*case))
    kernels = DeviceKernels(Device(find_nvcc()), library)
    check(kernels, cases, expected)
    launchers.all_of_pyramid(kernels, dict(launchers.pyramid_cases())['float32, 8 channels'])


def check_all(device, library, cases, expected, figures):
    errors = check(DeviceKernels(device, library), cases, expected)
    for (dtype, part), error in errors.items():
        figures.say(f'{dtype}, {part}: largest relative error {error:.1e}')
    checks = [{'dtype': d, 'pass': p, 'error': error} for (d, p), error in errors.items()]
    for dtype, error in check_pyramid(DeviceKernels(device, library)).items():
        figures.say(f'{dtype}, several levels: largest relative error {error:.1e}')
        checks.append({'dtype': dtype, 'pass': 'several levels', 'error': error})
    figures.update(checks=checks)


def run(options):
    if options.small_library:
        check_small(options.small_library)
        return
    nvcc = find_nvcc()
    device, figures = Device(nvcc), _card.Figures(options.json)
    cases = [*launchers.fixed_cases(), *random_cases()]
    with tempfile.TemporaryDirectory() as folder, expected_results(cases) as expected:
        folder = pathlib.Path(folder)
        library = folder / 'kernels.so'
        build(nvcc, launchers.KERNELS, library)
        published = options.published and Published(nvcc, options.published, folder)
        if published:
            with _card.shared():
                check_published(device, published)
        check_all(device, library, cases, expected, figures)
        if not options.check_only:
            say_table(*time_all(device, library, published, figures), figures)
        if options.sanitize:
            sanitize(library, figures)


if __name__ == '__main__':
    try:
        run(parse_flags())
    except UserError as error:
        print(f'prroi_pool_gpu.py: {error}', file=sys.stderr)
        sys.exit(2)
