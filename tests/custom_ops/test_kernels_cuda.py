# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels against numerical integration, on a CPU: emulated_kernels.py says how.

This shows that their arithmetic, indices and barriers are right. It cannot show what only a GPU
does: benchmarks/prroi_pool_gpu.py repeats the comparison where there is one.
"""

import mmap
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.custom_ops import emulated_kernels, reference
from tests.custom_ops.launchers import (
    DTYPES,
    KERNELS,
    TOLERANCES,
    LaunchError,
    Launchers,
    Shape,
    all_of_pyramid,
    fixed_cases,
    pyramid_cases,
)

OUTPUT = (3, 4)
MAP = (2, 7, 9)


def random_case(seed, dtype, boxes, channels, output_size=OUTPUT, map_shape=MAP):
    """Arguments of Kernels.all at scale 0.5, boxes on images in turn."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(*map_shape, channels)).astype(DTYPES[dtype])
    upstream = rng.normal(size=(len(boxes), *output_size, channels)).astype(DTYPES[dtype])
    return features, np.asarray(boxes), np.arange(len(boxes)) % map_shape[0], upstream, 0.5


def assert_close(result, expected, tolerance):
    """Relative to the largest value: sums of terms of both signs have no better scale."""
    result, largest = result.astype(np.float64), np.nanmax(np.abs(expected))
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * largest)


def assert_all_close(results, case, tolerance):
    for result, expected in zip(results, reference.all_passes(*case)):
        assert_close(result, expected, tolerance)


def random_boxes(seed, count, size=16):
    """Pixels, most of them over the border of a map of so many pixels."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-8, size, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(0.2, size, (count, 2))], axis=1)


# In image pixels at scale 0.5; the map is 7 x 9 nodes, so boxes reach well outside.
box = st.tuples(st.floats(-8, 24), st.floats(-8, 24), st.floats(0.5, 30), st.floats(0.5, 30)).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)


@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-5), ('float64', 1e-11)])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    boxes=st.lists(box, min_size=1, max_size=3),
    boxes_dtype=st.sampled_from(['float32', 'float64']),
    channels=st.sampled_from([1, 2, 3, 4, 6, 8]),
    output_size=st.sampled_from([(1, 1), (3, 4), (7, 1), (2, 28)]),
    seed=st.integers(0, 100),
)
def test_equals_numerical_integration(
    library, dtype, tolerance, boxes, boxes_dtype, channels, output_size, seed
):
    kernels = emulated_kernels.EmulatedKernels(library)
    boxes = np.array(boxes, boxes_dtype)
    case = random_case(seed, dtype, boxes, channels, output_size)
    results = kernels.all(*case)
    assert [result.dtype for result in results] == [dtype, dtype, boxes_dtype]
    expected = reference.all_passes(*case)
    assert_close(results[0], expected[0], tolerance)
    assert_close(results[1], expected[1], tolerance)
    # Small boxes have derivatives of opposite sign that cancel: what is left has the rounding
    # errors of what there was, and each box its own.
    scale = np.abs(case[0]).max() * np.abs(case[3]).sum(axis=(1, 2, 3)) * 0.5
    scale /= np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]) * 0.5
    allowed = tolerance * scale[:, None] + np.finfo(boxes_dtype).eps * np.abs(expected[2])
    assert np.all(np.abs(results[2] - expected[2]) <= allowed)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(box=box, seed=st.integers(0, 100))
def test_box_gradient_equals_finite_differences(library, box, seed):
    kernels = emulated_kernels.EmulatedKernels(library)
    features, boxes, indices, upstream, scale = random_case(seed, 'float64', [box], 2)
    gradient = kernels.box_gradient(features, boxes, indices, upstream, scale)
    for k in range(4):
        step = 1e-5 * np.eye(4)[k]
        above = reference.integrate(features, boxes + step, indices, OUTPUT, scale)
        below = reference.integrate(features, boxes - step, indices, OUTPUT, scale)
        expected = np.sum((above - below) * upstream) / 2e-5
        np.testing.assert_allclose(gradient[0, k], expected, atol=2e-4, rtol=2e-4)


def test_boxes_on_nodes_have_one_derivative(kernels):
    """The interpolant is continuous, so its integral has the same slope on both sides of a node."""
    features, boxes, indices, upstream, scale = random_case(1, 'float64', [[2.0, 4, 8, 12]], 2)
    gradient = kernels.box_gradient(features, boxes, indices, upstream, scale)
    here = reference.integrate(features, boxes, indices, OUTPUT, scale)
    for k in range(4):
        for step in (1e-6, -1e-6):
            there = reference.integrate(
                features, boxes + step * np.eye(4)[k], indices, OUTPUT, scale
            )
            slope = np.sum((there - here) * upstream) / step
            np.testing.assert_allclose(gradient[0, k], slope, atol=1e-4)


@pytest.mark.parametrize('dtype, step', [('float16', 2**-10), ('bfloat16', 2**-7)])
def test_sixteen_bits_are_rounded_once(kernels, dtype, step):
    """Results are the exact ones rounded to the nearest, give or take float32's own error."""
    case = random_case(2, dtype, random_boxes(2, 12), 8)
    expected = reference.all_passes(*case)
    results = kernels.all(*case)
    for result, exact in zip(results[:2], expected):
        assert result.dtype == DTYPES[dtype]
        error = np.abs(result.astype(np.float64) - exact)
        assert np.all(error <= 0.5 * step * np.abs(exact) + 1e-6 * np.abs(exact).max())
    assert_close(results[2], expected[2], 1e-5)


@pytest.mark.parametrize('case', [pytest.param(case, id=name) for name, case in fixed_cases()])
def test_every_kind_of_box(kernels, case):
    results = kernels.all(*case)
    # The gradient to the boxes is not of the features' dtype and therefore not rounded to it.
    narrow, wide = TOLERANCES[case[0].dtype.name]
    expected = reference.all_passes(*case)
    for result, exact, tolerance in zip(results, expected, (narrow, narrow, wide)):
        assert_close(result, exact, tolerance)


@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-5), ('float64', 1e-11)])
def test_many_boxes_and_channels(kernels, dtype, tolerance):
    """More boxes than a block has threads, more channels than it takes at once."""
    case = random_case(3, dtype, random_boxes(3, 530), 3)
    assert_all_close(kernels.all(*case), case, tolerance)
    boxes = random_boxes(4, 3, 60)
    case = random_case(4, dtype, boxes, 516, map_shape=(2, 20, 33))
    assert_all_close(kernels.all(*case), case, tolerance)


def test_boxes_thousands_wide(kernels):
    boxes = [[-40000.0, -3000, 50000, 5000], [-3, -70000, 9, 70000], [-2e9, -2e9, 3e9, 3e9]]
    case = random_case(5, 'float64', boxes, 4, (5, 28))
    assert_all_close(kernels.all(*case), case, 1e-11)


def test_far_from_the_origin_in_float32(kernels):
    """Tiny bins at large coordinates keep their digits."""
    boxes = np.array([[1100.25, 1000.5, 1104.5, 1003.5]], np.float32)
    case = random_case(6, 'float32', boxes, 1, (28, 28), (1, 560, 510))
    results = kernels.all(*case)
    assert_all_close(results[:2], case, 1e-5)


@pytest.mark.parametrize('dtype', DTYPES)
def test_no_area_or_outside_gives_zero(kernels, dtype):
    boxes = [[4.0, 3, 4, 9], [4, 3, 9, 3], [4, 3, 4, 3], [9, 3, 4, 9], [4, 9, 9, 3]]
    boxes += [[-40, -40, -20, -20], [40, 2, 50, 9], [1e12, 1e12, 2e12, 2e12]]
    # Sizes and coordinates whose products with the scale, or differences, leave the double range.
    boxes += [[-1e308, -1e308, 1e308, 1e308], [1e308, 1, np.nextafter(1e308, 2e308), 5]]
    case = random_case(7, dtype, boxes, 4)
    case = *case[:-1], 4.0
    for result in kernels.all(*case):
        assert not np.any(result)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('boxes_dtype', ['float32', 'float64'])
def test_undefined_boxes_give_nan_and_leave_others_alone(kernels, dtype, boxes_dtype):
    good = [1.0, 2, 9, 11]
    features, _, _, _, scale = random_case(8, dtype, [good], 4)
    upstream = np.ones((8, *OUTPUT, 4), DTYPES[dtype])
    boxes = np.array([good] * 8, boxes_dtype)
    for n, value in enumerate([np.nan, np.inf, -np.inf, np.nan]):
        boxes[n, n] = value
    boxes[4] = np.nan
    indices = np.array([0, 0, 1, 1, 0, 2, -1, 1])
    results = kernels.all(features, boxes, indices, upstream, scale)
    alone = features, boxes[7:], indices[7:], upstream[7:], scale
    expected = kernels.all(*alone)
    assert np.all(np.isnan(results[0][:7])) and np.all(np.isnan(results[2][:7]))
    np.testing.assert_array_equal(results[0][7:], expected[0])
    np.testing.assert_array_equal(results[1], expected[1])
    np.testing.assert_array_equal(results[2][7:], expected[2])
    assert np.any(expected[0]) and np.all(np.isfinite(expected[2]))


@pytest.mark.parametrize('dtype', DTYPES)
def test_no_boxes_no_channels_no_images(kernels, dtype):
    features, boxes, indices, upstream, scale = random_case(9, dtype, np.zeros((0, 4)), 4)
    pooled, d_features, d_boxes = kernels.all(features, boxes, indices, upstream, scale)
    assert pooled.shape == (0, *OUTPUT, 4) and d_boxes.shape == (0, 4)
    assert not np.any(d_features)
    case = random_case(9, dtype, [[1.0, 2, 9, 11], [np.nan, 2, 9, 11]], 0)
    d_boxes = kernels.all(*case)[2]
    assert not np.any(d_boxes[0]) and np.all(np.isnan(d_boxes[1]))
    features = np.zeros((0, 7, 9, 4), DTYPES[dtype])
    upstream = np.ones((1, *OUTPUT, 4), DTYPES[dtype])
    pooled, _, d_boxes = kernels.all(features, np.ones((1, 4)), [0], upstream, scale)
    assert np.all(np.isnan(pooled)) and np.all(np.isnan(d_boxes))


def test_images_without_boxes_get_no_gradient(kernels):
    features, boxes, _, upstream, scale = random_case(
        10, 'float32', random_boxes(10, 6), 4, map_shape=(4, 7, 9)
    )
    indices = np.array([3, 1, 1, 3, 3, 1])
    case = features, boxes, indices, upstream, scale
    results = kernels.all(*case)
    assert not np.any(results[1][[0, 2]]) and np.all(np.any(results[1][[1, 3]], axis=(1, 2, 3)))
    assert_all_close(results, case, 1e-5)


def test_nan_in_upstream_reaches_touched_nodes_only(kernels):
    _, boxes, indices, upstream, scale = random_case(11, 'float32', [[4.0, 4, 10, 12]], 4)
    upstream[0, 1, 1, 2] = np.nan
    d_features = kernels.feature_gradient((*MAP, 4), boxes, indices, upstream, scale)
    # Bin (1, 1) is rows 3 to 4, columns 3 to 4; on nodes, so that no other has a share.
    touched = np.zeros((*MAP, 4), bool)
    touched[0, 3:5, 3:5, 2] = True
    np.testing.assert_array_equal(np.isnan(d_features), touched)


@pytest.mark.parametrize('shift', [2, 8])
@pytest.mark.parametrize('dtype', DTYPES)
def test_unaligned_arrays(kernels, dtype, shift):
    """Off the 16-byte boundary the kernels fall back to single channels."""
    shift = max(shift, DTYPES[dtype].itemsize)
    features, boxes, indices, upstream, scale = random_case(12, dtype, random_boxes(12, 3), 16)
    shared = boxes, indices
    for straight, shifted in (
        [kernels.forward(features, *shared, OUTPUT, scale, shift=s) for s in (0, shift)],
        [
            kernels.feature_gradient(features.shape, *shared, upstream, scale, shift=s)
            for s in (0, shift)
        ],
        [kernels.box_gradient(features, *shared, upstream, scale, shift=s) for s in (0, shift)],
    ):
        assert_close(shifted, straight.astype(np.float64), 1e-6)


@pytest.mark.parametrize('channels', [1, 8, 130])
@pytest.mark.parametrize('dtype', DTYPES)
def test_same_bits_for_every_grid_and_order_of_threads(kernels, dtype, channels):
    case = random_case(13, dtype, random_boxes(13, 70), channels, map_shape=(2, 17, 23))
    expected = kernels.all(*case)
    for seed, max_grid in ((1, 0), (2, 0), (3, 1), (4, 3)):
        kernels.set_seed(seed)
        kernels.set_max_grid(max_grid)
        for result, other in zip(expected, kernels.all(*case)):
            np.testing.assert_array_equal(result.view(np.uint8), other.view(np.uint8))


def _virtual(shape, dtype):
    """Zeros that take memory only where they are written."""
    size = int(np.prod(shape)) * dtype.itemsize
    no_reserve = 0x4000  # MAP_NORESERVE; Python names it from 3.13 on.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    try:
        memory = mmap.mmap(-1, size, flags=flags)
    except OSError:
        pytest.skip('the system does not give out 4 GiB of virtual memory')
    return np.frombuffer(memory, dtype).reshape(shape)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='wants sparse virtual memory')
def test_more_than_two_to_the_31_elements(kernels):
    """Offsets into features and upstream; the last image and the last box hold all that counts."""
    small, boxes, _, upstream, scale = random_case(14, 'float16', [[3.0, 5, 11, 13]], 8)
    features = _virtual((3, 1 << 13, 1 << 14, 8), DTYPES['float16'])
    features[2, :7, :9] = small[0]
    case = features, boxes, np.array([2]), upstream, scale
    here = small[:1], boxes, np.array([0]), upstream, scale
    assert features.size > 1 << 31
    np.testing.assert_array_equal(
        kernels.forward(*case[:3], OUTPUT, scale), kernels.forward(*here[:3], OUTPUT, scale)
    )
    np.testing.assert_array_equal(kernels.box_gradient(*case), kernels.box_gradient(*here))

    many = _virtual((520, 1 << 8, 1 << 8, 64), DTYPES['float16'])
    many[-1] = np.random.default_rng(0).normal(size=(1, 1, 64))
    no_area = np.zeros((len(many), 4))
    no_area[-1] = boxes
    assert many.size > 1 << 31
    np.testing.assert_array_equal(
        kernels.feature_gradient((1, 7, 9, 64), no_area, [0] * len(many), many, scale),
        kernels.feature_gradient((1, 7, 9, 64), boxes, [0], many[-1:], scale),
    )


@pytest.mark.slow
def test_sanitizers_find_nothing(library, kernels, tmp_path):
    """Address and undefined-behaviour sanitizer, exact allocations, three blocks at most."""
    runtime = subprocess.run(
        ['g++', '-print-file-name=libasan.so'], capture_output=True, text=True
    ).stdout.strip()
    if not os.path.isabs(runtime):
        pytest.skip('g++ has no address sanitizer here')
    sanitized, results = tmp_path / 'sanitized.so', tmp_path / 'results.npz'
    emulated_kernels.build(
        sanitized, '-fsanitize=address,undefined', '-fno-sanitize-recover=undefined'
    )
    run = subprocess.run(
        [sys.executable, '-m', 'tests.custom_ops.emulated_kernels', sanitized, results],
        # Python itself does not free all that it has at the end.
        env={**os.environ, 'LD_PRELOAD': runtime, 'ASAN_OPTIONS': 'detect_leaks=0'},
        cwd=pathlib.Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    found = np.load(results)
    plain = {name: kernels.all(*case) for name, case in fixed_cases()}
    for name, case in pyramid_cases():
        plain[f'pyramid, {name}'] = all_of_pyramid(kernels, case)
    for name, results in plain.items():
        for part, result in enumerate(results):
            np.testing.assert_array_equal(found[f'{name}, {part}'], result.view(np.uint8))


def test_errors_are_returned(library):
    """No exit, no exception through C: a code, which the binding raises."""
    launchers = Launchers(library)
    shape = Shape(1, 7, 9, 4, 0, *OUTPUT, 1.0)
    with pytest.raises(LaunchError, match='invalid argument'):
        launchers.launch('Forward', shape, 'int8', 'float32', *[None] * 5)
    too_wide = Shape(1, 7, 1 << 26, 4, 0, *OUTPUT, 1.0)
    for name, num_pointers in (('Forward', 5), ('FeatureGradient', 5), ('BoxGradient', 6)):
        assert launchers.workspace_size(name, shape, 'int8') == -1
        assert launchers.workspace_size(name, shape, 'float32') >= 0
        with pytest.raises(LaunchError, match='invalid argument'):
            launchers.launch(name, too_wide, 'float32', 'float32', *[None] * num_pointers)


def test_no_header_of_tensorflow():
    """Newer nvcc cannot parse them; the op's other files may include them."""
    folder = KERNELS.parent
    for name in ('kernels_cuda.cu', 'kernels_cuda.h', 'geometry.h'):
        included = re.findall(r'#include [<"](.*)[>"]', (folder / name).read_text('utf-8'))
        assert included and not [path for path in included if '/' in path]


@pytest.mark.slow
def test_nvcc_compiles_it(tmp_path):
    nvcc = shutil.which('nvcc') or shutil.which('nvcc', path='/usr/local/cuda/bin')
    if nvcc is None:
        pytest.skip('there is no nvcc')
    path = tmp_path / 'kernels.so'
    command = [nvcc, '-std=c++17', '-O3', '-Xcompiler', '-fPIC', '-cudart', 'static', '-shared']
    command += ['-arch=sm_80', '-Werror', 'all-warnings', str(KERNELS)]
    subprocess.run([*command, '-o', path], check=True, capture_output=True, text=True)
    launchers = Launchers(path)
    shape = Shape(1, 7, 9, 4, 1, *OUTPUT, 1.0)
    assert launchers.workspace_size('Forward', shape, 'float32') > 0
    if not pathlib.Path('/dev/nvidiactl').exists():
        with pytest.raises(LaunchError, match='CUDA'):
            launchers.launch('Forward', shape, 'float32', 'float32', *[None] * 5)
