# SPDX-License-Identifier: Apache-2.0
"""PrRoIPool over several levels: order, scales, maximum, and where the gradient goes."""

import numpy as np
import pytest
import tensorflow as tf

from custom_ops.prroi_pool import multilevel_prroi_pool, prroi_pool

BOXES = np.array([[3.0, 5, 40, 50], [0, 0, 64, 64], [10, 10, 20, 60], [30, 2, 63, 33]], np.float32)
IMAGES = np.array([0, 0, 1, 1], np.int32)


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return {
        str(level): tf.constant(rng.normal(size=(2, 64 >> level, 64 >> level, 3)), tf.float32)
        for level in range(2, 7)
    }


def test_is_the_maximum_over_levels_2_to_5_image_by_image(features):
    fused = multilevel_prroi_pool(features, BOXES, IMAGES, output_size=4)
    assert fused.shape == (4, 4, 4, 3)
    for n, image in enumerate(IMAGES):
        box = BOXES[n : n + 1]
        levels = [
            prroi_pool(features[level], box, [image], (4, 4), scale)
            for level, scale in zip('2345', (1 / 4, 1 / 8, 1 / 16, 1 / 32))
        ]
        np.testing.assert_allclose(fused[n], np.max(levels, axis=0)[0], atol=1e-6)


def test_a_feature_is_found_at_its_place_in_the_image(features):
    """A horizontal ramp of image coordinates on every level reads as the box's own columns."""
    ramps = {
        level: tf.zeros_like(tensor)
        + 2.0 ** int(level) * tf.range(tensor.shape[2], dtype=tf.float32)[:, tf.newaxis]
        for level, tensor in features.items()
    }
    box = np.array([[8.0, 12, 24, 28]] * 2, np.float32)
    fused = multilevel_prroi_pool(
        ramps, box, np.array([0, 1]), output_size=2, levels=('2', '3', '4')
    )
    np.testing.assert_allclose(fused[..., 0], np.tile([16.0, 24.0], [2, 2, 1]), rtol=1e-5)


def test_gradient_reaches_boxes_and_not_detached_features(features):
    boxes = tf.constant(BOXES)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([features, boxes])
        detached = {level: tf.stop_gradient(tensor) for level, tensor in features.items()}
        loss = tf.reduce_sum(multilevel_prroi_pool(detached, boxes, IMAGES, output_size=4) ** 2)
        attached_loss = tf.reduce_sum(
            multilevel_prroi_pool(features, boxes, IMAGES, output_size=4) ** 2
        )
    assert np.all(tape.gradient(loss, boxes) != 0)
    assert all(gradient is None for gradient in tape.gradient(loss, features).values())
    gradients = tape.gradient(attached_loss, features)
    assert gradients.pop('6') is None
    assert all(np.any(gradient != 0) for gradient in gradients.values())


def test_box_gradient_equals_finite_differences(features):
    features = {level: tf.cast(tensor, tf.float64) for level, tensor in features.items()}
    boxes, step = tf.constant(BOXES[::2] + 0.3, tf.float64), 1e-6

    def pool(boxes):
        return tf.reduce_sum(
            multilevel_prroi_pool(features, boxes, IMAGES[::2], output_size=4) ** 2
        )

    with tf.GradientTape() as tape:
        tape.watch(boxes)
        loss = pool(boxes)
    gradient = tape.gradient(loss, boxes).numpy()
    for place in np.ndindex(gradient.shape):
        shift = np.zeros(gradient.shape)
        shift[place] = step
        expected = (pool(boxes + shift) - pool(boxes - shift)) / (2 * step)
        np.testing.assert_allclose(gradient[place], expected, rtol=1e-5, atol=1e-6)
