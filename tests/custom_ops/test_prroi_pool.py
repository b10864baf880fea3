# SPDX-License-Identifier: Apache-2.0
"""PrRoIPool against numerical integration and finite differences, both in float64 NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from custom_ops.prroi_pool import prroi_pool
from tests.custom_ops.reference import integrate

OUTPUT = (3, 4)


def random_features(seed=0, batch=2):
    return np.random.default_rng(seed).normal(size=(batch, 7, 9, 2))


def gradients(features, boxes, box_indices, upstream, scale):
    features, boxes = tf.constant(features), tf.constant(boxes)
    with tf.GradientTape() as tape:
        tape.watch([features, boxes])
        pooled = prroi_pool(features, boxes, box_indices, OUTPUT, scale)
        loss = tf.reduce_sum(pooled * upstream)
    return tape.gradient(loss, [features, boxes])


# In image pixels at scale 0.5; the map is 7 x 9 nodes, so boxes reach well outside.
coordinate = st.floats(-6, 22)
extent = st.floats(0.5, 14)


@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-5), ('float64', 1e-11)])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(y=coordinate, x=coordinate, height=extent, width=extent, image=st.integers(0, 1))
def test_equals_numerical_integral(dtype, tolerance, y, x, height, width, image):
    features = random_features().astype(dtype)
    boxes = np.array([[y, x, y + height, x + width]], dtype)
    pooled = prroi_pool(features, boxes, [image], OUTPUT, 0.5)
    expected = integrate(features.astype('float64'), boxes, [image], OUTPUT, 0.5)
    assert pooled.dtype == dtype
    np.testing.assert_allclose(pooled, expected, atol=tolerance, rtol=tolerance)


def test_pixel_centres_are_integers():
    """The mean of f(y, x) = y over rows 1 to 3 is 2, with no half-pixel shift."""
    features = np.tile(np.arange(7.0)[None, :, None, None], [1, 1, 9, 1])
    pooled = prroi_pool(features, [[4.0, 4, 12, 12]], [0], (2, 1), 0.25)
    np.testing.assert_allclose(pooled[0, :, 0, 0], [1.5, 2.5], rtol=1e-12)


def test_far_from_the_origin_in_float32():
    """Tiny bins at large coordinates keep their digits."""
    features = np.random.default_rng(1).normal(size=(1, 300, 300, 1)).astype('float32')
    boxes = np.array([[1100.25, 1000.5, 1104.5, 1003.5]], 'float32')
    pooled = prroi_pool(features, boxes, [0], (28, 28), 0.25)
    expected = integrate(features.astype('float64'), boxes, [0], (28, 28), 0.25)
    np.testing.assert_allclose(pooled, expected, atol=1e-5)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    cells=st.tuples(st.integers(-2, 6), st.integers(-2, 8)),
    sizes=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    fractions=st.tuples(*[st.floats(0.1, 0.4), st.floats(0.1, 0.4)] * 2),
)
def test_box_gradients_equal_finite_differences(cells, sizes, fractions):
    start = np.array(cells) + fractions[:2]
    box = np.concatenate([start, np.array(cells) + np.array(sizes) + 0.45 + fractions[2:]])
    features = random_features(3)
    upstream = np.random.default_rng(4).normal(size=(1, *OUTPUT, 2))
    scale, step = 0.5, 1e-6
    box = box[None] / scale
    _, gradient = gradients(features, box, [1], upstream, scale)
    for k in range(4):
        shift = step * np.eye(4)[k]
        above = integrate(features, box + shift, [1], OUTPUT, scale)
        below = integrate(features, box - shift, [1], OUTPUT, scale)
        expected = np.sum((above - below) * upstream) / (2 * step)
        np.testing.assert_allclose(gradient[0, k], expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000))
def test_feature_gradients_equal_finite_differences(seed):
    """The pooling is linear in the features, so one difference along a direction is exact."""
    rng = np.random.default_rng(seed)
    features, direction = random_features(seed), rng.normal(size=(2, 7, 9, 2))
    boxes = np.concatenate([rng.uniform(-4, 8, (3, 2)), rng.uniform(9, 22, (3, 2))], axis=1)
    indices = rng.integers(0, 2, 3)
    upstream = rng.normal(size=(3, *OUTPUT, 2))
    gradient, _ = gradients(features, boxes, indices, upstream, 0.5)
    expected = np.sum(integrate(direction, boxes, indices, OUTPUT, 0.5) * upstream)
    np.testing.assert_allclose(np.sum(gradient * direction), expected, rtol=1e-10, atol=1e-10)


def test_mixed_order_of_images():
    """Each box takes its own image's features, whatever the order."""
    features = random_features(batch=3)
    boxes = np.tile([[1.0, 2, 9, 11]], [5, 1]) + np.arange(5)[:, None]
    indices = [2, 0, 2, 1, 0]
    pooled = prroi_pool(features, boxes, indices, OUTPUT, 0.5)
    expected = integrate(features, boxes, indices, OUTPUT, 0.5)
    np.testing.assert_allclose(pooled, expected, atol=1e-12)


@pytest.mark.parametrize(
    'box',
    [[3, 2, 3, 8], [3, 2, 9, 2], [3, 2, 3, 2], [9, 2, 3, 8], [3, 8, 9, 2]],
    ids=['no height', 'no width', 'point', 'reversed in y', 'reversed in x'],
)
def test_no_area_gives_zero_without_gradient(box):
    boxes = np.array([box, [1, 1, 5, 5]], np.float64)
    upstream = np.ones((2, *OUTPUT, 2))
    pooled = prroi_pool(random_features(), boxes, [0, 1], OUTPUT, 1.0)
    d_features, d_boxes = gradients(random_features(), boxes, [0, 1], upstream, 1.0)
    assert np.all(pooled[0] == 0) and np.any(pooled[1] != 0)
    assert np.all(d_boxes[0] == 0) and np.any(d_boxes[1] != 0)
    assert np.all(d_features[0] == 0) and np.all(np.isfinite(d_features[1]))


@pytest.mark.parametrize('shift', [-40.0, 40.0, 1e12])
def test_outside_gives_zero(shift):
    boxes = np.array([[1.0, 1, 5, 5]]) + shift
    pooled = prroi_pool(random_features(), boxes, [0], OUTPUT, 1.0)
    d_features, d_boxes = gradients(random_features(), boxes, [0], np.ones((1, *OUTPUT, 2)), 1.0)
    assert not np.any(pooled) and not np.any(d_features) and not np.any(d_boxes)


@pytest.mark.parametrize('as_graph', [False, True])
def test_no_boxes(as_graph):
    def pool(features, boxes, indices):
        with tf.GradientTape() as tape:
            tape.watch([features, boxes])
            pooled = prroi_pool(features, boxes, indices, OUTPUT, 1.0)
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
def test_sixteen_bits_are_computed_in_float32(dtype):
    features = tf.cast(random_features(), dtype)
    boxes = tf.constant([[1.3, 2.2, 5.7, 6.1]])
    with tf.GradientTape() as tape:
        tape.watch([features, boxes])
        pooled = prroi_pool(features, boxes, [0], OUTPUT, 1.0)
    d_features, d_boxes = tape.gradient(pooled, [features, boxes])
    exact = prroi_pool(tf.cast(features, tf.float32), boxes, [0], OUTPUT, 1.0)
    assert pooled.dtype == d_features.dtype == dtype and d_boxes.dtype == tf.float32
    np.testing.assert_array_equal(
        tf.cast(pooled, tf.float32), tf.cast(tf.cast(exact, dtype), tf.float32)
    )


def test_unknown_shapes():
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
            pooled = prroi_pool(features, boxes, indices, OUTPUT, 0.5)
        return pooled, *tape.gradient(pooled, [features, boxes])

    features, boxes = random_features(), np.array([[1.0, 2, 9, 11], [-3, 4, 8, 30]])
    pooled, d_features, d_boxes = pool(features, boxes, [1, 0])
    expected = gradients(features, boxes, [1, 0], 1.0, 0.5)
    np.testing.assert_allclose(pooled, integrate(features, boxes, [1, 0], OUTPUT, 0.5), atol=1e-12)
    np.testing.assert_allclose(d_features, expected[0], atol=1e-12)
    np.testing.assert_allclose(d_boxes, expected[1], atol=1e-12)
    for result in pool(features, np.zeros([0, 4]), np.zeros([0], np.int32)):
        assert np.all(np.isfinite(result))
