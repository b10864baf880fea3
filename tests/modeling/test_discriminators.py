# SPDX-License-Identifier: Apache-2.0
"""The discriminators' layers, shapes, normalization and gradients."""

import numpy as np
import pytest
import tensorflow as tf

from gan_mrcnn.modeling.discriminators import (
    BoxDiscriminator,
    MaskDiscriminator,
    PixelDiscriminator,
    SpectralConv2D,
)


def kernels(model):
    return [v.shape.as_list() for v in model.trainable_variables if 'kernel' in v.name]


def variables_named(model, name):
    return [v for v in model.variables if v.name.split('/')[-1].startswith(name)]


@pytest.fixture
def inputs():
    return tf.random.stateless_normal([4, 28, 28, 8], seed=[1, 2])


@pytest.mark.parametrize('num_layers', [3, 4, 5])
def test_mask_layers(inputs, num_layers):
    model = MaskDiscriminator(num_layers)
    outputs = model(inputs, training=True)
    shapes = [[4, 28, 28, 8], [4, 14, 14, 64], [4, 7, 7, 128], [4, 4, 4, 256]]
    shapes += [[4, 2, 2, 512], [4, 1, 1, 1024]]
    assert [output.shape.as_list() for output in outputs] == shapes[: num_layers + 1]
    assert model.layer_weights == (1, 1, 2, 2, 2, 4)[: num_layers + 1]
    np.testing.assert_array_equal(outputs[0], inputs)
    channels = [8, 64, 128, 256, 512, 1024]
    expected = [[4, 4, *pair] for pair in zip(channels, channels[1:])]
    assert kernels(model) == expected[:num_layers]
    assert not variables_named(model, 'bias')


def test_first_mask_layer_is_not_normalized(inputs):
    model = MaskDiscriminator(3)
    first = model(inputs, training=True)[1]
    assert [v.shape[0] for v in variables_named(model, 'gamma')] == [128, 256]
    convolved = tf.nn.conv2d(inputs, variables_named(model, 'kernel')[0], 2, 'SAME')
    expected = np.where(convolved > 0, convolved, 0.2 * convolved)
    np.testing.assert_allclose(first, expected, atol=1e-5)


@pytest.mark.parametrize('num_layers', [3, 4, 5])
def test_box_layers(inputs, num_layers):
    model = BoxDiscriminator(num_layers)
    logits = model(inputs, training=True)
    assert logits.shape == (4,) and logits.dtype == tf.float32
    channels = [8, 64, 128, 256, 512][:num_layers] + [1]
    assert kernels(model) == [[4, 4, *pair] for pair in zip(channels, channels[1:])]
    assert [v.shape[0] for v in variables_named(model, 'gamma')] == channels[1:-1]
    assert [v.shape[0] for v in variables_named(model, 'bias')] == [1]


@pytest.mark.parametrize('num_layers', [3, 4, 5])
def test_pixel_layers(inputs, num_layers):
    model = PixelDiscriminator(num_layers)
    (logits,) = model(inputs, training=True)
    assert logits.shape == (4, 28, 28) and logits.dtype == tf.float32
    down = [64, 128, 256, 256, 256][:num_layers]
    wanted = [[4, 4, *pair] for pair in zip([8, *down], down)]
    above = down[-1]
    for channels, beside in zip([*down[-2::-1], 32], [*down[-2::-1], 8]):
        wanted.append([3, 3, above, channels])
        above = channels + beside
    wanted.append([3, 3, above, 1])
    assert sorted(kernels(model)) == sorted(wanted)
    assert len(variables_named(model, 'gamma')) == 2 * num_layers - 1
    assert [v.shape[0] for v in variables_named(model, 'bias')] == [1]


def test_every_cell_has_a_logit_of_its_own(inputs):
    """What changes at one cell changes the logits there, and those of other RoIs not at all."""
    model = PixelDiscriminator(3)
    changed = inputs + 5.0 * tf.one_hot(2, 4)[:, None, None, None] * (
        tf.one_hot(9, 28)[None, :, None, None] * tf.one_hot(20, 28)[None, None, :, None]
    )
    difference = np.abs(model(changed, training=False)[0] - model(inputs, training=False)[0])
    assert not np.any(difference[[0, 1, 3]])
    near = difference[2, 8:11, 19:22]
    assert near.max() == difference.max() > 0 and np.all(near > 0)


@pytest.mark.parametrize(
    'discriminator, normalized',
    [(BoxDiscriminator, 2), (MaskDiscriminator, 2), (PixelDiscriminator, 5)],
)
def test_spectral_normalization_takes_the_place_of_batch_normalization(
    discriminator, normalized, inputs
):
    model = discriminator(3, normalization='spectral')
    alone = tf.nest.flatten(model(inputs[:1], training=False))
    together = tf.nest.flatten(model(inputs, training=False))
    for one, other in zip(alone, together):
        np.testing.assert_allclose(one, other[:1], atol=1e-6)
    assert not [x for x in model.submodules if 'BatchNorm' in type(x).__name__]
    convolutions = [x for x in model.submodules if isinstance(x, tf.keras.layers.Conv2D)]
    assert len(convolutions) == len(kernels(model)) == len(variables_named(model, 'direction'))
    assert all(isinstance(x, SpectralConv2D) for x in convolutions)
    # In place of each beta; the logit has one in any case.
    logits = 0 if discriminator is MaskDiscriminator else 1
    assert len(variables_named(model, 'bias')) == normalized + logits


def test_spectral_norm_is_the_largest_singular_value(inputs):
    tf.keras.utils.set_random_seed(0)
    layer = SpectralConv2D(5, 4, 2, 'same', use_bias=True)
    outputs = [layer(inputs, training=True) for _ in range(100)][-1]
    kernel = layer.kernel.numpy()
    norm = np.linalg.svd(kernel.reshape(-1, 5), compute_uv=False)[0]
    wanted = tf.nn.conv2d(inputs, kernel / norm, 2, 'SAME')
    np.testing.assert_allclose(outputs, wanted, rtol=1e-3, atol=1e-4)
    # Whatever the kernel's size, and without training nothing moves.
    direction = layer.direction.numpy()
    layer.kernel.assign(3.0 * kernel)
    np.testing.assert_allclose(layer(inputs), wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(layer.direction, direction)


@pytest.mark.parametrize('discriminator', [BoxDiscriminator, MaskDiscriminator, PixelDiscriminator])
class TestAll:
    @pytest.mark.parametrize('num_layers', [2, 6])
    def test_wrong_number_of_layers(self, discriminator, num_layers):
        with pytest.raises(ValueError, match='num_layers'):
            discriminator(num_layers)

    def test_gradients_reach_inputs_and_every_weight(self, discriminator, inputs):
        model = discriminator(5)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = tf.nest.flatten(model(inputs, training=True))
            loss = tf.add_n([tf.reduce_sum(tf.square(output)) for output in outputs])
        gradients = tape.gradient(loss, [inputs, *model.trainable_variables])
        assert all(g is not None and np.all(np.isfinite(g)) for g in gradients)
        assert np.any(gradients[0] != 0)

    def test_statistics_move_in_training_only(self, discriminator, inputs):
        model = discriminator(3)
        model(inputs, training=False)
        moving_mean = variables_named(model, 'moving_mean')[-1]
        assert not np.any(moving_mean)
        model(inputs, training=True)
        assert np.any(moving_mean)

    def test_initial_kernels_and_regularizer(self, discriminator, inputs):
        plain = discriminator(5)
        plain(inputs)
        kernel = next(x for x in variables_named(plain, 'kernel') if x.shape[2] > 100).numpy()
        assert abs(kernel.std() - 0.02) < 5e-4 and abs(kernel.mean()) < 5e-4
        assert plain.losses == []
        regularized = discriminator(5, kernel_regularizer=tf.keras.regularizers.L2(1e-4))
        regularized(inputs)
        weight_sum = sum(np.sum(k.numpy() ** 2) for k in variables_named(regularized, 'kernel'))
        np.testing.assert_allclose(sum(regularized.losses), 1e-4 * weight_sum, rtol=1e-4)

    def test_mixed_precision_scores_in_float32_and_keeps_layers_in_16_bits(
        self, discriminator, inputs
    ):
        tf.keras.mixed_precision.set_global_policy('mixed_bfloat16')
        try:
            model = discriminator(3)
            outputs = tf.nest.flatten(model(inputs, training=True))
        finally:
            tf.keras.mixed_precision.set_global_policy('float32')
        # As they came, the layers would take twice the memory; the loss sums them in float32.
        kept = inputs.dtype if discriminator is MaskDiscriminator else tf.float32
        assert outputs[0].dtype == kept
        if discriminator is MaskDiscriminator:
            assert all(output.dtype == tf.bfloat16 for output in outputs[1:])
        assert all(np.all(np.isfinite(tf.cast(output, tf.float32))) for output in outputs)
        assert all(v.dtype == tf.float32 for v in model.trainable_variables)
