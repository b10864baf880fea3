"""The padded ResNet: structure, padding, what is frozen, what moves in training."""

import numpy as np
import pytest
import tensorflow as tf
from official.vision.modeling.backbones import resnet

from gan_mrcnn.errors import UserError
from gan_mrcnn.modeling import backbone as backbone_lib

_SPECS = tf.keras.layers.InputSpec(shape=[None, None, None, 3])


def _images(seed, height, width, batch=1):
    return tf.random.stateless_normal([batch, height, width, 3], seed=[seed, 0])


def _trainable_kernels(model):
    return [v for v in model.trainable_variables if v.shape.rank == 4]


def _direct_convolution(x, kernel, stride):
    """Symmetric-padded convolution as the sum over its taps, in NumPy."""
    half = kernel.shape[0] // 2
    padded = np.pad(x, [(0, 0), (half, half), (half, half), (0, 0)])
    out_h, out_w = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    total = 0
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            taps = padded[:, i : i + stride * out_h : stride, j : j + stride * out_w : stride]
            total = total + taps[:, :out_h, :out_w] @ kernel[i, j]
    return total


@pytest.mark.parametrize('size', [3, 7])
@pytest.mark.parametrize('shape', [(8, 10), (9, 7)])
def test_convolution_pads_both_sides_alike(size, shape):
    layer = backbone_lib.SymmetricConv2D(5, size, strides=2, padding='same', use_bias=False)
    x = _images(0, *shape)
    actual = layer(x)
    expected = _direct_convolution(x.numpy(), layer.kernel.numpy(), 2)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert layer.compute_output_shape(x.shape) == actual.shape


@pytest.mark.parametrize('shape', [(8, 10), (9, 7)])
def test_max_pool_pads_both_sides_alike_and_the_padding_never_wins(shape):
    x = _images(1, *shape) - 100.0
    actual = backbone_lib.SymmetricMaxPool2D(3, 2, padding='same')(x).numpy()
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    for i, j in np.ndindex(actual.shape[1:3]):
        window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        np.testing.assert_array_equal(actual[:, i, j], window.max(axis=(1, 2)))


@pytest.mark.parametrize('model_id', [18, 50])
def test_same_padding_is_the_model_gardens_network(model_id):
    model = backbone_lib.build_backbone(_SPECS, model_id, padding='same')
    assert type(model) is resnet.ResNet
    symmetric = backbone_lib.build_backbone(_SPECS, model_id)
    assert sorted(tuple(v.shape) for v in symmetric.variables) == sorted(
        tuple(v.shape) for v in model.variables
    )
    assert symmetric.output_specs == model.output_specs


@pytest.mark.parametrize('shape', [(64, 96), (97, 131)])
def test_endpoints_have_their_strides(shape):
    model = backbone_lib.build_backbone(_SPECS, 18)
    outputs = model(_images(2, *shape))
    assert sorted(outputs) == ['2', '3', '4', '5']
    for level, features in outputs.items():
        stride = 2 ** int(level)
        assert features.shape[1:3] == [-(-side // stride) for side in shape]
        assert features.shape[-1] == model.output_specs[level][-1]


def test_mirrored_images_give_mirrored_features():
    """On odd sizes symmetric padding commutes with a flip if the kernels are symmetric, too."""
    model = backbone_lib.build_backbone(_SPECS, 18)
    for variable in _trainable_kernels(model):
        variable.assign((variable + tf.reverse(variable, [1])) / 2.0)
    images = _images(3, 33, 65)
    features = model(images)
    flipped = model(tf.reverse(images, [2]))
    for level in features:
        np.testing.assert_allclose(flipped[level], tf.reverse(features[level], [2]), atol=1e-5)


@pytest.mark.parametrize(
    ('model_id', 'stages', 'frozen_kernels'),
    # ResNet-18: 7x7, then two blocks of two and a projection. ResNet-50: three blocks of three.
    [(18, 0, 0), (18, 1, 1), (18, 2, 1 + 5), (50, 2, 1 + 10)],
)
@pytest.mark.parametrize('padding', ['symmetric', 'same'])
def test_frozen_stages(model_id, stages, frozen_kernels, padding):
    model = backbone_lib.build_backbone(
        _SPECS, model_id, padding, bn_trainable=True, frozen_stages=stages
    )
    with tf.GradientTape() as tape:
        c2 = model(_images(4, 32, 32), training=True)['2']
        loss = tf.reduce_sum(c2)
    kernels = [v for v in model.variables if v.shape.rank == 4]
    assert len(kernels) - len(_trainable_kernels(model)) == frozen_kernels
    reaches_c2 = [g is not None for g in tape.gradient(loss, model.trainable_variables)]
    assert any(reaches_c2) == (stages < 2)


def test_all_batch_norms_of_frozen_stages_are_still():
    model = backbone_lib.build_backbone(_SPECS, 18, bn_trainable=True, frozen_stages=2)
    before = {id(v): v.numpy() for v in model.non_trainable_variables}
    model(_images(5, 32, 32, batch=2), training=True)
    moved = [v for v in model.non_trainable_variables if np.any(v.numpy() != before[id(v)])]
    # Stages 2 to 4: five BatchNorms each (one is the projection's), a mean and a variance.
    assert len(moved) == 3 * 5 * 2


def test_batch_norm_moves_only_where_it_is_trainable():
    images = _images(6, 32, 32, batch=2)
    for bn_trainable in (False, True):
        model = backbone_lib.build_backbone(_SPECS, 18, bn_trainable=bn_trainable)
        before = [v.numpy() for v in model.variables]
        training = model(images, training=True)
        same = all(np.array_equal(v, b) for v, b in zip(model.variables, before))
        assert same is not bn_trainable
        if not bn_trainable:
            inference = model(images, training=False)
            np.testing.assert_array_equal(training['5'], inference['5'])
            assert all(v.shape.rank == 4 for v in model.trainable_variables)


def test_gradients_reach_every_kernel():
    model = backbone_lib.build_backbone(_SPECS, 50)

    @tf.function
    def gradients(images):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(images, training=True)['5'] ** 2)
        return tape.gradient(loss, model.trainable_variables)

    for gradient in gradients(_images(7, 64, 64)):
        assert np.abs(gradient).max() > 0


def test_regularizer_and_epsilon_arrive_in_every_layer():
    model = backbone_lib.build_backbone(
        _SPECS, 18, norm_epsilon=3e-4, kernel_regularizer=tf.keras.regularizers.l2(0.5)
    )
    kernels = [v.numpy() for v in model.variables if v.shape.rank == 4]
    assert len(model.losses) == len(kernels) == 21
    np.testing.assert_allclose(
        sum(model.losses), sum(0.5 * np.sum(k.astype(np.float64) ** 2) for k in kernels), rtol=1e-5
    )
    norms = [m for m in model.submodules if isinstance(m, tf.keras.layers.BatchNormalization)]
    assert len(norms) == 21
    assert {norm.epsilon for norm in norms} == {3e-4}


@pytest.mark.parametrize(
    'wrong', [{'model_id': 35}, {'padding': 'valid'}, {'frozen_stages': 3}], ids=str
)
def test_unknown_choice_is_named(wrong):
    value = next(iter(wrong.values()))
    with pytest.raises(UserError, match=f'unknown .* {value!r}, choose one of'):
        backbone_lib.build_backbone(_SPECS, **{'model_id': 18, **wrong})
