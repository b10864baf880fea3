# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels over several levels, emulated on a CPU as in test_kernels_cuda.py: PrRoIPool's
maximum against numerical integration, RoIAlign against its samples one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.custom_ops import emulated_kernels, reference
from tests.custom_ops.launchers import DTYPES, TOLERANCES, all_of_pyramid, pyramid_cases


def assert_close(result, expected, tolerance):
    """Relative to the largest value, and NaN in the same places."""
    scale = max(np.nanmax(np.abs(expected), initial=0.0), 1e-3)
    np.testing.assert_allclose(
        result.astype(np.float64), expected, rtol=0, atol=tolerance * scale, equal_nan=True
    )


def assert_right(kernels, case, samples=2, offset=0.5):
    features, boxes, indices, _, upstream, scales = case
    narrow, wide = TOLERANCES[upstream.dtype.name]
    pooled, winners, *results = all_of_pyramid(kernels, case, samples, offset)
    expected = reference.all_of_pyramid(case, winners, samples, offset)
    for part, (result, value) in enumerate(zip([pooled, *results], expected)):
        # The gradient to the boxes, second, is not rounded to the features' type.
        assert_close(result, value, wide if part == 1 else narrow)
    # The winner has the maximum, give or take rounding.
    by_level = reference.maximum(features, boxes, indices, upstream.shape[1:3], scales)
    won = np.take_along_axis(by_level, winners[None].astype(int), 0)[0]
    assert_close(won, by_level.max(0), 2 * narrow)


@pytest.mark.parametrize('boxes_dtype', ['float32', 'float64'])
@pytest.mark.parametrize('case', [pytest.param(case, id=name) for name, case in pyramid_cases()])
def test_every_kind_of_box(kernels, case, boxes_dtype):
    features, boxes, *rest = case
    if features[0].dtype == np.float64 and boxes_dtype == 'float32':
        pytest.skip('the bounds of float64 are too tight for boxes of float32')
    assert_right(kernels, (features, boxes.astype(boxes_dtype), *rest))


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    num_levels=st.integers(1, 4),
    num_boxes=st.integers(0, 6),
    channels=st.sampled_from([1, 2, 3, 4, 6, 8]),
    size=st.sampled_from([(1, 1), (3, 4), (7, 7), (2, 15)]),
    height=st.integers(1, 18),
    width=st.integers(1, 18),
    samples=st.integers(1, 3),
    offset=st.sampled_from([0.0, 0.5, 0.9]),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    library, dtype, num_levels, num_boxes, channels, size, height, width, samples, offset, seed
):  # fmt: skip
    rng = np.random.default_rng(seed)
    features = [
        rng.normal(size=(2, -(-height // 2**k), -(-width // 2**k), channels)).astype(dtype)
        for k in range(num_levels)
    ]
    corner = rng.uniform(-6, 20, (num_boxes, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.2, 24, (num_boxes, 2))], 1)
    upstream = rng.normal(size=(num_boxes, *size, channels)).astype(dtype)
    indices, levels = rng.integers(0, 2, num_boxes), rng.integers(0, num_levels, num_boxes)
    scales = [0.5**k for k in range(1, num_levels + 1)]
    case = features, boxes.astype(dtype), indices, levels, upstream, scales
    assert_right(emulated_kernels.EmulatedKernels(library), case, samples, offset)


def equal_levels(dtype):
    """Three levels with the same values at the same scale: all tie everywhere."""
    rng = np.random.default_rng(0)
    level = rng.normal(size=(1, 6, 7, 8)).astype(dtype)
    upstream = rng.normal(size=(1, 3, 4, 8)).astype(dtype)
    return [level, level, level], np.array([[1.0, 1, 5, 5.5]]), [0], upstream, [1.0, 1.0, 1.0]


@pytest.mark.parametrize('dtype', DTYPES)
def test_of_levels_that_tie_the_first_wins(kernels, dtype):
    features, boxes, indices, upstream, scales = equal_levels(DTYPES[dtype])
    features[0] = features[0] - DTYPES[dtype].type(1)
    pooled, winners = kernels.maximum(features, boxes, indices, (3, 4), scales)
    assert np.all(winners == 1)
    one = kernels.forward(features[1], boxes, indices, (3, 4), 1.0)
    np.testing.assert_array_equal(pooled, one)
    d_boxes, d_features = kernels.maximum_gradients(
        features, boxes, indices, upstream, winners, scales
    )
    assert not np.any(d_features[0]) and not np.any(d_features[2])
    alone = kernels.feature_gradient(features[1].shape, boxes, indices, upstream, 1.0)
    np.testing.assert_array_equal(d_features[1], alone)
    assert_close(d_boxes, kernels.box_gradient(features[1], boxes, indices, upstream, 1.0), 1e-5)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('level', [0, 1, 2])
def test_nan_of_any_level_is_nan_in_the_maximum(kernels, dtype, level):
    features, boxes, indices, _, scales = equal_levels(DTYPES[dtype])
    features[level] = features[level].copy()
    features[level][..., 2] = np.nan
    pooled, winners = kernels.maximum(features, boxes, indices, (3, 4), scales)
    is_nan = np.isnan(pooled.astype(np.float64))
    assert np.all(is_nan[..., 2]) and np.all(winners[..., 2] == level)
    assert not np.any(np.delete(is_nan, 2, -1))


@pytest.mark.parametrize('shift', [2, 8])
@pytest.mark.parametrize('dtype', DTYPES)
def test_unaligned_arrays(kernels, dtype, shift):
    """Off the 16-byte boundary the kernels fall back to single channels."""
    shift = max(shift, DTYPES[dtype].itemsize)
    case = next(case for name, case in pyramid_cases() if name == f'{dtype}, 8 channels')
    straight = all_of_pyramid(kernels, case)
    for result, expected in zip(all_of_pyramid(kernels, case, shift=shift), straight):
        if result.dtype == np.uint8:
            np.testing.assert_array_equal(result, expected)
        else:
            tolerance = TOLERANCES[dtype][0] if result.ndim == 4 else 1e-6
            assert_close(result, expected.astype(np.float64), tolerance)


@pytest.mark.parametrize('dtype', DTYPES)
def test_same_bits_for_every_grid_and_order_of_threads(kernels, dtype):
    case = next(case for name, case in pyramid_cases() if name == f'{dtype}, 8 channels')
    expected = all_of_pyramid(kernels, case)
    for seed, max_grid in ((2, 0), (3, 1), (4, 3)):
        kernels.set_seed(seed)
        kernels.set_max_grid(max_grid)
        for result, other in zip(expected, all_of_pyramid(kernels, case)):
            np.testing.assert_array_equal(result.view(np.uint8), other.view(np.uint8))


def test_more_boxes_than_a_block_has_threads(kernels):
    """In no order of images or levels."""
    rng = np.random.default_rng(3)
    features = [rng.normal(size=(3, 12 >> k, 16 >> k, 4)).astype(np.float32) for k in range(3)]
    corner = rng.uniform(-8, 20, (700, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.2, 16, (700, 2))], 1)
    upstream = rng.normal(size=(700, 2, 3, 4)).astype(np.float32)
    indices, levels = rng.integers(0, 3, 700), rng.integers(0, 3, 700)
    assert_right(kernels, (features, boxes, indices, levels, upstream, [0.5, 0.25, 0.125]))
