# SPDX-License-Identifier: Apache-2.0
"""PrRoIPool, compiled and in plain TensorFlow, against numerical integration and differences."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from custom_ops.prroi_pool import PrRoIPool, build, prroi_pool
from tests.custom_ops import reference

OUTPUT = (3, 4)
TOLERANCE = {'float32': 1e-5, 'float64': 1e-11}


@pytest.fixture(
    scope='module',
    params=[
        pytest.param(
            'compiled',
            marks=pytest.mark.skipif(build.find_compiler() is None, reason='no C++ compiler'),
        ),
        'tensorflow',
    ],
)
def implementation(request):
    return request.param


def random_features(seed=0, batch=2, channels=2):
    return np.random.default_rng(seed).normal(size=(batch, 7, 9, channels))


def pool_with_gradients(features, boxes, indices, size, scale, upstream, implementation):
    """Pooled features, and the gradients to features and boxes."""
    features, boxes = tf.constant(features), tf.constant(boxes)
    with tf.GradientTape() as tape:
        tape.watch([features, boxes])
        pooled = prroi_pool(features, boxes, indices, size, scale, implementation)
    return pooled, *tape.gradient(pooled, [features, boxes], tf.constant(upstream, pooled.dtype))


def assert_close(values, expected, tolerance):
    """Relative to the largest expected value: sums of terms of both signs have no other scale."""
    expected = np.asarray(expected)
    scale = max(np.max(np.abs(expected), initial=0.0), 1e-3)
    np.testing.assert_allclose(values, expected, rtol=0, atol=tolerance * scale)


@st.composite
def cases(draw):
    """Maps of any size, boxes of every kind; all numbers are exact in float32."""
    integers = st.integers
    height, width, channels = draw(integers(1, 11)), draw(integers(1, 11)), draw(integers(1, 40))
    batch, scale = draw(integers(1, 3)), draw(st.sampled_from([1.0, 0.5, 0.125]))
    size = draw(integers(1, 6)), draw(integers(1, 6))
    boxes, rng = [], np.random.default_rng(draw(integers(0, 2**32 - 1)))
    for kind in draw(
        st.lists(
            st.sampled_from(['any', 'on nodes', 'tiny', 'huge', 'reversed', 'empty', 'far']),
            max_size=5,
        )
    ):
        start = rng.uniform(-5, 12, 2)
        sides = rng.uniform(0.2, 14, 2)
        if kind == 'on nodes':
            start, sides = np.round(start), np.ceil(sides)
        elif kind == 'tiny':
            sides /= 256
        elif kind == 'huge':
            start, sides = start * 20, sides * 400
        elif kind == 'reversed':
            sides[rng.integers(2)] *= -1
        elif kind == 'empty':
            sides[rng.integers(2)] = 0
        elif kind == 'far':
            start[rng.integers(2)] += rng.choice([-1e4, 1e4])
        boxes.append(np.concatenate([start, start + sides]) / scale)
    # Sixteenths of a pixel, so that float32 holds them and no test depends on their rounding.
    boxes = np.round(np.array(boxes).reshape(-1, 4) * 4096) / 4096
    features = rng.normal(size=(batch, height, width, channels)).astype(np.float32)
    upstream = rng.normal(size=(len(boxes), *size, channels)).astype(np.float32)
    return features, boxes, rng.integers(0, batch, len(boxes)), size, scale, upstream


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@settings(max_examples=120, deadline=None, derandomize=True)
@given(case=cases())
def test_equals_numerical_integration(implementation, dtype, case):
    """Output and both gradients."""
    features, boxes, indices, size, scale, upstream = case
    boxes = boxes.astype(dtype)
    results = pool_with_gradients(
        features.astype(dtype), boxes, indices, size, scale, upstream, implementation
    )
    expected = (
        reference.integrate(features, boxes, indices, size, scale),
        reference.feature_gradient(features.shape, boxes, indices, upstream, scale),
        reference.box_gradient(features, boxes, indices, upstream, scale),
    )
    for result, value in zip(results, expected):
        assert result.dtype == dtype
        assert_close(result, value, TOLERANCE[dtype])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=cases())
def test_equals_finite_differences(implementation, case):
    """Central differences of the implementation itself, where its output is smooth."""
    features, boxes, indices, size, scale, upstream = case
    sides = boxes[:, 2:] - boxes[:, :2]
    keep = np.all(np.abs(sides) > 0.1, axis=1) & np.all(np.abs(sides) < 1e3, axis=1)
    boxes, indices, upstream = boxes[keep], indices[keep], upstream[keep].astype(np.float64)
    features = features.astype(np.float64)

    def total(features, boxes):
        pooled = prroi_pool(features, boxes, indices, size, scale, implementation)
        return np.sum(pooled.numpy() * upstream, axis=(1, 2, 3))

    _, d_features, d_boxes = pool_with_gradients(
        features, boxes, indices, size, scale, upstream, implementation
    )
    # Boxes do not meet: one shift of all measures each.
    step = 1e-5
    for k in range(4):
        shift = step * np.eye(4)[k]
        slope = (total(features, boxes + shift) - total(features, boxes - shift)) / (2 * step)
        np.testing.assert_allclose(d_boxes[:, k], slope, rtol=1e-4, atol=1e-4)
    direction = np.random.default_rng(1).normal(size=features.shape)
    change = np.sum(total(features + direction, boxes) - total(features - direction, boxes)) / 2
    np.testing.assert_allclose(np.sum(d_features * direction), change, rtol=1e-9, atol=1e-9)


def test_the_derivative_is_continuous_where_edges_lie_on_nodes(implementation):
    """The bin's mean is an integral, so that only its second derivative jumps at a node: from
    either side the difference quotient goes to the gradient that is returned."""
    features = random_features(5)
    box, upstream = np.array([[1.0, 2, 5, 8]]), np.ones((1, 4, 6, 2))
    _, _, gradient = pool_with_gradients(features, box, [0], (4, 6), 1.0, upstream, implementation)
    total = lambda box: np.sum(  # noqa: E731
        prroi_pool(features, box, [0], (4, 6), 1.0, implementation)
    )
    step = 1e-6
    for k in range(4):
        shift = step * np.eye(4)[k]
        right = (total(box + shift) - total(box)) / step
        left = (total(box) - total(box - shift)) / step
        np.testing.assert_allclose([left, right], [gradient[0, k]] * 2, atol=1e-4)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_the_two_implementations_agree_at_full_size(dtype):
    """28 x 28 bins of 256 channels of P2 of an image of 544 x 800."""
    rng = np.random.default_rng(0)
    features = tf.constant(rng.normal(size=(2, 136, 200, 256)), dtype)
    start = rng.uniform(0, 1, (8, 2)) * [400, 700]
    boxes = tf.constant(np.concatenate([start, start + rng.uniform(8, 300, (8, 2))], 1), dtype)
    upstream = rng.normal(size=(8, 28, 28, 256))
    compiled, plain = (
        pool_with_gradients(features, boxes, np.arange(8) % 2, (28, 28), 0.25, upstream, name)
        for name in ('compiled', 'tensorflow')
    )
    for ours, other in zip(compiled, plain):
        assert_close(ours, other, 2 * TOLERANCE[dtype])


def test_pixel_centres_are_integers(implementation):
    """The mean of f(y, x) = y over rows 1 to 3 is 2, with no half-pixel shift."""
    features = np.tile(np.arange(7.0)[None, :, None, None], [1, 1, 9, 1])
    pooled = prroi_pool(features, [[4.0, 4, 12, 12]], [0], (2, 1), 0.25, implementation)
    np.testing.assert_allclose(pooled[0, :, 0, 0], [1.5, 2.5], rtol=1e-6)


def test_a_scale_that_float32_does_not_hold(implementation):
    features, boxes = random_features(), np.array([[1.0, 2, 40, 61]])
    pooled = prroi_pool(features, boxes, [1], OUTPUT, 0.1, implementation)
    assert_close(pooled, reference.integrate(features, boxes, [1], OUTPUT, 0.1), 1e-12)


def test_far_from_the_origin_in_float32(implementation):
    """Tiny bins at large coordinates keep their digits."""
    features = np.random.default_rng(1).normal(size=(1, 300, 300, 1)).astype('float32')
    boxes = np.array([[1100.25, 1000.5, 1104.5, 1003.5]], 'float32')
    pooled = prroi_pool(features, boxes, [0], (28, 28), 0.25, implementation)
    assert_close(pooled, reference.integrate(features, boxes, [0], (28, 28), 0.25), 1e-5)


@pytest.mark.parametrize(
    'box',
    [[3, 2, 3, 8], [3, 2, 9, 2], [3, 2, 3, 2], [9, 2, 3, 8], [3, 8, 9, 2]],
    ids=['no height', 'no width', 'point', 'reversed in y', 'reversed in x'],
)
def test_no_area_gives_zero_without_gradient(implementation, box):
    boxes, upstream = np.array([box, [1, 1, 5, 5]], np.float64), np.ones((2, *OUTPUT, 2))
    pooled, d_features, d_boxes = pool_with_gradients(
        random_features(), boxes, [0, 1], OUTPUT, 1.0, upstream, implementation
    )
    assert np.all(pooled[0] == 0) and np.any(pooled[1] != 0)
    assert np.all(d_boxes[0] == 0) and np.any(d_boxes[1] != 0)
    assert np.all(d_features[0] == 0) and np.any(d_features[1] != 0)


@pytest.mark.parametrize('shift', [-40.0, 40.0, -1e12, 1e12, 1e200])
def test_outside_gives_zero(implementation, shift):
    boxes = np.array([[1.0, 1, 5, 5]]) + shift
    results = pool_with_gradients(
        random_features(), boxes, [0], OUTPUT, 1.0, np.ones((1, *OUTPUT, 2)), implementation
    )
    assert not any(np.any(result) for result in results)


@pytest.mark.parametrize('as_graph', [False, True])
def test_no_boxes(implementation, as_graph):
    def pool(features, boxes, indices):
        with tf.GradientTape() as tape:
            tape.watch([features, boxes])
            pooled = prroi_pool(features, boxes, indices, OUTPUT, 1.0, implementation)
        return pooled, tape.gradient(pooled, [features, boxes])

    pool = tf.function(pool) if as_graph else pool
    features = tf.constant(random_features())
    pooled, (d_features, d_boxes) = pool(
        features, tf.zeros([0, 4], tf.float64), tf.zeros([0], tf.int32)
    )
    assert pooled.shape == (0, *OUTPUT, 2)
    assert d_boxes.shape == (0, 4)
    assert d_features.shape == features.shape and not np.any(d_features)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_sixteen_bits_are_computed_in_float32(implementation, dtype):
    """Every result is the float32 one rounded once, gradients too."""
    features = tf.cast(random_features(channels=21), dtype)
    boxes = tf.constant([[1.3, 2.2, 5.7, 6.1], [-1, 0.5, 20, 3]])
    upstream = tf.cast(np.random.default_rng(2).normal(size=(2, *OUTPUT, 21)), dtype)
    exact = pool_with_gradients(
        tf.cast(features, tf.float32), boxes, [0, 0], OUTPUT, 1.0,
        tf.cast(upstream, tf.float32), implementation,
    )  # fmt: skip
    rounded = pool_with_gradients(features, boxes, [0, 0], OUTPUT, 1.0, upstream, implementation)
    assert rounded[0].dtype == rounded[1].dtype == dtype and rounded[2].dtype == tf.float32
    for ours, float32 in zip(rounded[:2], exact):
        unequal = tf.cast(ours, tf.float32) != tf.cast(tf.cast(float32, dtype), tf.float32)
        assert np.mean(unequal) < 0.01  # Another order of sums now and then tips a tie.
        assert_close(tf.cast(ours, tf.float32), float32, 2.0**-8)
    assert_close(rounded[2], exact[2], 1e-5)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_every_sixteen_bit_number_is_read_and_rounded_right(dtype):
    """A quarter of each: subnormal numbers, ties, infinities and NaN among them."""
    bits = np.arange(65536, dtype=np.uint16)
    values = tf.bitcast(tf.constant(bits), dtype)
    pooled = prroi_pool(
        tf.reshape(values, [1, 1, 1, -1]), [[-1.0, -1, 1, 1]], [0], (1, 1), 1.0, 'compiled'
    )
    exact = tf.cast(values, tf.float64).numpy() * 0.25
    expected = tf.cast(tf.constant(exact, tf.float32), dtype)
    found = tf.bitcast(tf.reshape(pooled, [-1]), tf.uint16).numpy()
    # TensorFlow's threads have no subnormal float32, and so no subnormal bfloat16.
    flushed = (dtype == 'bfloat16') & (np.abs(exact) < 2.0**-126)
    numbers = ~np.isnan(exact) & ~flushed
    same_bits = tf.bitcast(expected, tf.uint16).numpy() & 0x7FFF
    np.testing.assert_array_equal(found[numbers] & 0x7FFF, same_bits[numbers])
    nonzero = numbers & (same_bits != 0)
    np.testing.assert_array_equal(found[nonzero] >> 15, bits[nonzero] >> 15)
    is_nan = np.isnan(tf.cast(tf.reshape(pooled, [-1]), tf.float32))
    np.testing.assert_array_equal(is_nan, np.isnan(exact))


def test_unknown_shapes(implementation):
    """Batch, size and number of boxes unknown when traced; the same values and gradients."""
    spec = [
        tf.TensorSpec([None, None, None, 2], tf.float64),
        tf.TensorSpec([None, 4], tf.float64),
        tf.TensorSpec([None], tf.int32),
    ]

    @tf.function(input_signature=spec)
    def pool(features, boxes, indices):
        with tf.GradientTape() as tape:
            tape.watch([features, boxes])
            pooled = prroi_pool(features, boxes, indices, OUTPUT, 0.5, implementation)
        assert pooled.shape.as_list() == [None, *OUTPUT, 2]
        return pooled, *tape.gradient(pooled, [features, boxes])

    features, boxes = random_features(), np.array([[1.0, 2, 9, 11], [-3, 4, 8, 30]])
    upstream = np.ones((2, *OUTPUT, 2))
    pooled, *results = pool(features, boxes, [1, 0])
    assert_close(pooled, reference.integrate(features, boxes, [1, 0], OUTPUT, 0.5), 1e-12)
    d_features, d_boxes = results
    assert_close(
        d_features,
        reference.feature_gradient(features.shape, boxes, [1, 0], upstream, 0.5),
        1e-12,
    )
    assert_close(d_boxes, reference.box_gradient(features, boxes, [1, 0], upstream, 0.5), 1e-12)
    for result in pool(features, np.zeros([0, 4]), np.zeros([0], np.int32)):
        assert np.all(np.isfinite(result))


def test_detached_features_get_no_gradient(implementation):
    features, boxes = tf.constant(random_features()), tf.constant([[1.0, 2, 9, 11]])
    with tf.GradientTape() as tape:
        tape.watch([features, boxes])
        pooled = prroi_pool(tf.stop_gradient(features), boxes, [0], OUTPUT, 0.5, implementation)
    d_features, d_boxes = tape.gradient(pooled, [features, boxes])
    assert d_features is None and np.all(d_boxes != 0)


WRONG_WHEN_CALLED = {
    'rank of features': (dict(features=np.zeros([7, 9, 2])), 'features has shape .7, 9, 2'),
    'dtype of features': (
        dict(features=np.zeros([1, 7, 9, 2], np.int32)),
        'features has dtype int32',
    ),
    'dtype of boxes': (dict(boxes=np.zeros([1, 4], np.int64)), 'boxes has dtype int64'),
    'rank of boxes': (dict(boxes=np.zeros([4])), 'boxes has shape .4'),
    'five coordinates': (dict(boxes=np.zeros([1, 5])), 'boxes has shape .1, 5'),
    'rank of indices': (dict(box_indices=[[0]]), 'box_indices has shape .1, 1'),
    'height': (dict(output_size=(0, 4)), r'output_size is \(0, 4\)'),
    'width': (dict(output_size=(3, -1)), r'output_size is \(3, -1\)'),
    'scale': (dict(spatial_scale=0.0), 'spatial_scale is 0'),
    'negative scale': (dict(spatial_scale=-0.5), 'spatial_scale is -0.5'),
    'scale not finite': (dict(spatial_scale=float('nan')), 'spatial_scale is nan'),
    'number of indices': (dict(box_indices=[0, 0]), 'box_indices'),
    'index too large': (dict(box_indices=[1]), r'box_indices\[0\] is 1, must be in \[0, 1\)'),
    'index negative': (dict(box_indices=[-1]), r'box_indices\[0\] is -1'),
    'NaN': (dict(boxes=[[1.0, 2, float('nan'), 5]]), r'boxes\[0\] is \(1, 2, nan, 5\)'),
    'infinite': (dict(boxes=[[1.0, 2, float('inf'), 5]]), r'boxes\[0\] is \(1, 2, inf, 5\)'),
}


@pytest.mark.parametrize('wrong', WRONG_WHEN_CALLED)
def test_errors_name_argument_and_value(implementation, wrong):
    arguments = {
        'features': random_features(batch=1),
        'boxes': [[1.0, 2, 4, 5]],
        'box_indices': [0],
        'output_size': OUTPUT,
        'spatial_scale': 0.5,
    }
    change, message = WRONG_WHEN_CALLED[wrong]
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        prroi_pool(**{**arguments, **change}, implementation=implementation)


def test_an_unknown_implementation():
    with pytest.raises(ValueError, match="'cuda'"):
        prroi_pool(random_features(), [[1.0, 2, 4, 5]], [0], implementation='cuda')


# Saves results of a fixed case; run in processes of their own, with other threads and instructions.
_SCRIPT = """
import sys
import numpy as np
import tensorflow as tf
from custom_ops.prroi_pool import multilevel_prroi_pool, multilevel_roi_align, prroi_pool

threads = int(sys.argv[2])
tf.config.threading.set_intra_op_parallelism_threads(threads)
rng = np.random.default_rng(0)
results = []
for dtype in ('float16', 'float32', 'float64'):
    features = tf.cast(rng.normal(size=(2, 40, 50, 70)), dtype)
    start = rng.uniform(-10, 150, (30, 2))
    boxes = tf.constant(np.concatenate([start, start + rng.uniform(1, 90, (30, 2))], 1), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([features, boxes])
        pooled = prroi_pool(features, boxes, np.arange(30) % 2, (14, 9), 0.25, 'compiled')
        loss = tf.reduce_sum(tf.cast(pooled, tf.float64) ** 2)
    for x in (pooled, *tape.gradient(loss, [features, boxes])):
        results.append(tf.cast(x, tf.float64).numpy())
    levels = {'2': features, '3': features[:, ::2, ::2]}
    where = boxes, np.arange(30) % 2
    with tf.GradientTape() as tape:
        tape.watch([levels, boxes])
        pooled = multilevel_prroi_pool(levels, *where, 5, '23', 'compiled')
        aligned = multilevel_roi_align(levels, *where, np.arange(30) // 2 % 2, 7, levels='23')
        losses = [tf.reduce_sum(tf.cast(x, tf.float64) ** 2) for x in (pooled, aligned)]
    gradients = tape.gradient(losses, [*levels.values(), boxes])
    for x in (pooled, aligned, *gradients):
        results.append(tf.cast(x, tf.float64).numpy())
np.savez(sys.argv[1], *results)
"""


@pytest.mark.slow
@pytest.mark.skipif(build.find_compiler() is None, reason='no C++ compiler')
def test_same_bits_for_any_number_of_threads_and_close_for_any_instruction_set(tmp_path):
    runs = {'one': (1, ''), 'seven': (7, ''), 'avx2': (2, 'avx2'), 'baseline': (2, 'baseline')}
    processes = []
    for name, (threads, instructions) in runs.items():
        environment = {**os.environ, 'PRROI_POOL_INSTRUCTIONS': instructions}
        root = str(pathlib.Path(__file__).resolve().parents[2])
        command = [sys.executable, '-c', _SCRIPT, str(tmp_path / f'{name}.npz'), str(threads)]
        processes.append(subprocess.Popen(command, cwd=root, env=environment))
    assert [process.wait() for process in processes] == [0] * len(runs)
    results = {name: np.load(tmp_path / f'{name}.npz') for name in runs}
    for key in results['one']:
        np.testing.assert_array_equal(results['one'][key], results['seven'][key])
        for name in ('avx2', 'baseline'):
            # Eight results of each dtype. Half precision: a tie that tips.
            tolerance = (2e-3, 1e-5, 1e-11)[int(key.split('_')[1]) // 8]
            assert_close(results[name][key], results['one'][key], tolerance)


def test_layer_keeps_boxes_in_float32_under_mixed_precision():
    policy = tf.keras.mixed_precision.Policy('mixed_bfloat16')
    layer = PrRoIPool.from_config(PrRoIPool((2, 3), 0.5, dtype=policy).get_config())
    features = tf.cast(random_features(), tf.bfloat16)
    boxes = tf.constant([[1.001, 2, 9, 11.003]])
    pooled = layer((features, boxes, [0]))
    assert pooled.dtype == tf.bfloat16 and pooled.shape == (1, 2, 3, 2)
    expected = prroi_pool(features, boxes, [0], (2, 3), 0.5)
    np.testing.assert_array_equal(tf.cast(pooled, tf.float32), tf.cast(expected, tf.float32))
