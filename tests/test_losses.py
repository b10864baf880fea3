# SPDX-License-Identifier: Apache-2.0
"""Every loss against the paper's formula in plain NumPy (float64), and its edge cases."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from gan_mrcnn import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=6) * 3
OTHER_LOGITS = RNG.normal(size=6) * 3
WEIGHTS = np.array([1.0, 0, 1, 1, 0, 1])
VALID = WEIGHTS > 0
LAYERS = [RNG.normal(size=(6, 4, 4, 3)), RNG.normal(size=(6, 2, 2, 5))]
OTHER_LAYERS = [RNG.normal(size=(6, 4, 4, 3)), RNG.normal(size=(6, 2, 2, 5))]
LAYER_WEIGHTS = (1.0, 2.0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def smooth_l1(difference, beta):
    """torch.nn.functional.smooth_l1_loss, one number at a time."""
    d = abs(difference)
    return 0.5 * d * d / beta if d < beta else d - 0.5 * beta


def binary_cross_entropy(logit, target):
    return -(target * np.log(sigmoid(logit)) + (1 - target) * np.log(1 - sigmoid(logit)))


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


# Eq. 4-6.


def test_box_generator_loss_is_equation_4():
    expected = np.mean(-np.log(sigmoid(LOGITS[VALID])))
    close(losses.box_generator_loss(LOGITS, WEIGHTS), expected)


def test_box_discriminator_loss_is_equation_5():
    real, fake = LOGITS[VALID], OTHER_LOGITS[VALID]
    expected = np.mean(-(np.log(sigmoid(real)) + np.log(1 - sigmoid(fake))))
    close(losses.box_discriminator_loss(LOGITS, OTHER_LOGITS, WEIGHTS), expected)


def test_hinges_are_those_of_lim_and_ye():
    real, fake = LOGITS[VALID], OTHER_LOGITS[VALID]
    expected = np.mean([max(0, 1 - x) + max(0, 1 + y) for x, y in zip(real, fake)])
    close(losses.box_discriminator_hinge(LOGITS, OTHER_LOGITS, WEIGHTS), expected)
    close(losses.box_generator_hinge(OTHER_LOGITS, WEIGHTS), -np.mean(fake))
    # Both sides of both corners.
    assert min(real) < 1 < max(real) and min(fake) < -1 < max(fake)


def test_pixel_losses_are_equations_4_and_5_of_every_cell():
    real, fake = (sigmoid(x[0][VALID][..., 0]) for x in (LAYERS, OTHER_LAYERS))
    maps = [x[0][..., 0] for x in (LAYERS, OTHER_LAYERS)]
    close(losses.pixel_generator_loss(maps[1], WEIGHTS), np.mean(-np.log(fake)))
    expected = np.mean(-(np.log(real) + np.log(1 - fake)))
    close(losses.pixel_discriminator_loss(*maps, WEIGHTS), expected)


def test_gradient_penalty_is_the_mean_squared_norm():
    expected = np.mean([np.sum(x**2) for x in LAYERS[0][VALID]])
    close(losses.gradient_penalty(LAYERS[0], WEIGHTS), expected)


def test_mask_losses_are_equation_6():
    flat = [
        np.concatenate(
            [w * layer[VALID].reshape(4, -1) for w, layer in zip(LAYER_WEIGHTS, layers)], axis=1
        )
        for layers in (LAYERS, OTHER_LAYERS)
    ]
    expected = np.mean(np.abs(flat[0] - flat[1]))
    arguments = (LAYERS, OTHER_LAYERS, WEIGHTS, LAYER_WEIGHTS)
    close(losses.mask_feature_distance(*arguments), expected)
    close(losses.mask_generator_loss(*arguments), expected)
    close(losses.mask_discriminator_loss(*arguments), -expected)
    assert expected > 0


def test_who_wants_what():
    """Eq. 4 pushes fake logits up, Eq. 5 real ones up and fake ones down; padding is left alone."""
    real, fake = tf.constant(LOGITS), tf.constant(OTHER_LOGITS)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([real, fake])
        generator = losses.box_generator_loss(fake, WEIGHTS)
        discriminator = losses.box_discriminator_loss(real, fake, WEIGHTS)
    close(tape.gradient(generator, fake), (sigmoid(OTHER_LOGITS) - 1) * WEIGHTS / 4)
    close(tape.gradient(discriminator, real), (sigmoid(LOGITS) - 1) * WEIGHTS / 4)
    close(tape.gradient(discriminator, fake), sigmoid(OTHER_LOGITS) * WEIGHTS / 4)


def test_large_logits_stay_finite():
    assert losses.box_generator_loss([-1000.0, 1000.0], [1, 1]) == 500
    assert losses.box_discriminator_loss([-1000.0], [1000.0], [1]) == 2000


def test_layers_must_match():
    with pytest.raises(ValueError, match='1 real and 2 fake'):
        losses.mask_feature_distance(LAYERS[:1], OTHER_LAYERS, WEIGHTS, LAYER_WEIGHTS)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    weights=st.lists(st.booleans(), min_size=6, max_size=6),
    garbage=st.sampled_from([0.0, -50.0, 1e30, np.inf, np.nan]),
)
def test_padding_does_not_matter(weights, garbage):
    """Whatever stands in padded entries, losses are those of the valid entries alone."""
    weights = np.array(weights, np.float64)
    valid = weights > 0

    def spoil(array):
        return np.where(valid.reshape([6] + [1] * (array.ndim - 1)), array, garbage)

    def all_losses(f, w):
        real, fake = [f(x) for x in LAYERS], [f(x) for x in OTHER_LAYERS]
        return [
            losses.box_generator_loss(f(LOGITS), w),
            losses.box_discriminator_loss(f(LOGITS), f(OTHER_LOGITS), w),
            losses.mask_generator_loss(real, fake, w, LAYER_WEIGHTS),
            losses.mask_discriminator_loss(real, fake, w, LAYER_WEIGHTS),
            losses.box_generator_hinge(f(LOGITS), w),
            losses.box_discriminator_hinge(f(LOGITS), f(OTHER_LOGITS), w),
            losses.pixel_generator_loss(fake[0][..., 0], w),
            losses.pixel_discriminator_loss(real[0][..., 0], fake[0][..., 0], w),
            losses.gradient_penalty(real[0], w),
        ]

    alone = all_losses(lambda x: x[valid], np.ones(valid.sum()))
    close(all_losses(spoil, weights), alone if valid.any() else [0.0] * 9)


def test_no_valid_roi_gives_zero_and_no_gradient():
    inputs = [tf.constant(x) for x in (LOGITS, OTHER_LOGITS, *LAYERS, *OTHER_LAYERS)]
    none = np.zeros(6)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(inputs)
        results = [
            losses.box_generator_loss(inputs[1], none),
            losses.box_discriminator_loss(inputs[0], inputs[1], none),
            losses.mask_generator_loss(inputs[2:4], inputs[4:6], none, LAYER_WEIGHTS),
            losses.mask_discriminator_loss(inputs[2:4], inputs[4:6], none, LAYER_WEIGHTS),
            losses.box_generator_hinge(inputs[1], none),
            losses.box_discriminator_hinge(inputs[0], inputs[1], none),
            losses.pixel_generator_loss(inputs[4][..., 0], none),
            losses.pixel_discriminator_loss(inputs[2][..., 0], inputs[4][..., 0], none),
            losses.gradient_penalty(inputs[2], none),
        ]
    for result in results:
        assert result == 0
        zero = tf.UnconnectedGradients.ZERO
        for gradient in tape.gradient(result, inputs, unconnected_gradients=zero):
            assert np.all(gradient == 0)


def test_sixteen_bits_do_not_overflow():
    layers = [tf.fill([1, 28, 28, 256], tf.constant(2.0, tf.float16))]
    zeros = [tf.zeros_like(layers[0])]
    loss = losses.mask_generator_loss(layers, zeros, [1.0], [1.0])
    assert loss.dtype == tf.float32 and loss == 2


def test_mean_is_over_the_rois_of_all_replicas(two_replicas):
    """Replicas with 3 and 1 valid RoIs: their losses over two sum to the mean of all four."""
    strategy = two_replicas
    values = [np.array([1.0, 2, 4, 7]), np.array([10.0, 20, 40, 70])]
    weights = [np.array([1.0, 1, 1, 0]), np.array([0.0, 1, 0, 0])]

    def per_replica(arrays):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(arrays[context.replica_id_in_sync_group])
        )

    @tf.function
    def step(values, weights):
        per_replica_loss = strategy.run(losses.mean_over_rois, (values, weights))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica_loss, axis=None)

    close(step(per_replica(values), per_replica(weights)) / 2, (1 + 2 + 4 + 20) / 4)


# The baseline's detection losses.


@pytest.fixture
def rpn():
    rng = np.random.default_rng(5)
    sizes = {'3': (2, 4, 4, 3), '4': (2, 2, 2, 3)}
    scores = {level: rng.normal(size=size) for level, size in sizes.items()}
    targets = {level: rng.integers(-1, 2, size).astype('int32') for level, size in sizes.items()}
    deltas, box_targets = (
        {level: rng.normal(size=(*size[:3], 12)) * 0.2 for level, size in sizes.items()}
        for _ in range(2)
    )
    return scores, targets, deltas, box_targets


def test_rpn_score_loss(rpn):
    scores, targets, _, _ = rpn
    values = [
        binary_cross_entropy(s, t)
        for level in scores
        for s, t in zip(scores[level].ravel(), targets[level].ravel())
        if t != -1
    ]
    close(losses.rpn_score_loss(scores, targets), np.mean(values))


@pytest.mark.parametrize('beta', [1 / 9, 1.0])
def test_rpn_box_loss(rpn, beta):
    _, targets, deltas, box_targets = rpn
    total, sampled = 0, 0
    for level in deltas:
        for b, y, x, a in np.ndindex(targets[level].shape):
            sampled += targets[level][b, y, x, a] != -1
            if targets[level][b, y, x, a] == 1:
                for k in range(4):
                    place = (b, y, x, 4 * a + k)
                    total += smooth_l1(deltas[level][place] - box_targets[level][place], beta)
    close(losses.rpn_box_loss(deltas, box_targets, targets, beta), total / sampled)


def test_rpn_box_loss_default_beta(rpn):
    _, targets, deltas, box_targets = rpn
    expected = losses.rpn_box_loss(deltas, box_targets, targets, 1 / 9)
    close(losses.rpn_box_loss(deltas, box_targets, targets), expected)


def test_class_loss():
    logits = np.random.default_rng(6).normal(size=(2, 5, 3))
    targets = np.array([[0, 1, 2, 0, 0], [1, 1, 0, 2, 0]])
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.take_along_axis(probabilities, targets[..., None], -1)
    close(losses.class_loss(logits, targets), np.mean(-np.log(chosen)))


def test_box_loss():
    rng = np.random.default_rng(7)
    outputs, box_targets = rng.normal(size=(2, 5, 12)), rng.normal(size=(2, 5, 4))
    targets = np.array([[0, 1, 2, 0, 0], [1, 1, 0, 2, 0]])
    total = 0
    for b, n in np.ndindex(targets.shape):
        if targets[b, n] > 0:
            for k in range(4):
                own = outputs[b, n, 4 * targets[b, n] + k]
                total += smooth_l1(own - box_targets[b, n, k], 1.0)
    close(losses.box_loss(outputs, targets, box_targets), total / 10)


def test_mask_loss():
    rng = np.random.default_rng(8)
    logits, mask_targets = rng.normal(size=(2, 3, 4, 4)), rng.integers(0, 2, (2, 3, 4, 4))
    targets = np.array([[0, 1, 2], [1, 0, 0]])
    per_pixel = binary_cross_entropy(logits, mask_targets)
    close(losses.mask_loss(logits, mask_targets, targets), per_pixel[targets > 0].mean())


def test_loss_scale_is_independent_of_the_number_of_rois():
    """Twice the same RoIs give the same losses."""
    rng = np.random.default_rng(9)
    outputs, box_targets = rng.normal(size=(1, 4, 8)), rng.normal(size=(1, 4, 4))
    logits, targets = rng.normal(size=(1, 4, 2)), np.array([[1, 0, 1, 0]])

    def twice(array):
        return np.concatenate([array, array], axis=1)

    once = losses.box_loss(outputs, targets, box_targets), losses.class_loss(logits, targets)
    close(losses.box_loss(twice(outputs), twice(targets), twice(box_targets)), once[0])
    close(losses.class_loss(twice(logits), twice(targets)), once[1])


def test_nothing_sampled_gives_zero_and_no_gradient(rpn):
    scores, targets, deltas, box_targets = rpn
    nothing = {level: np.full_like(target, -1) for level, target in targets.items()}
    background = np.zeros((2, 3), np.int32)
    inputs = [
        {level: tf.constant(score) for level, score in scores.items()},
        {level: tf.constant(delta) for level, delta in deltas.items()},
        tf.ones([2, 3, 8]),
        tf.ones([2, 3, 4, 4]),
    ]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(inputs)
        results = [
            losses.rpn_score_loss(inputs[0], nothing),
            losses.rpn_box_loss(inputs[1], box_targets, nothing),
            losses.box_loss(inputs[2], background, np.zeros([2, 3, 4])),
            losses.mask_loss(inputs[3], np.ones([2, 3, 4, 4]), background),
        ]
    for result, source in zip(results, inputs):
        assert result == 0
        assert all(np.all(g == 0) for g in tf.nest.flatten(tape.gradient(result, source)))
