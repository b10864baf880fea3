"""The padded ResNet: structure, padding, what is frozen, what moves in training."""

import numpy as np
import pytest
import tensorflow as tf
from official.vision.modeling.backbones import resnet

from gan_mrcnn.modeling import backbone as backbone_lib
from gan_mrcnn.utils import devices
from gan_mrcnn.utils.errors import UserError

_SPECS = tf.keras.layers.InputSpec(shape=[None, None, None, 3])


@pytest.fixture(scope='module')
def model_18():
    return backbone_lib.build_backbone(_SPECS, 18)


def _images(seed, height, width, batch=1):
    return tf.random.stateless_normal([batch, height, width, 3], seed=[seed, 0])


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


def test_same_padding_is_the_model_gardens_network(model_18):
    model = backbone_lib.build_backbone(_SPECS, 18, padding='same')
    assert type(model) is resnet.ResNet
    assert sorted(tuple(v.shape) for v in model_18.variables) == sorted(
        tuple(v.shape) for v in model.variables
    )
    assert model_18.output_specs == model.output_specs


@pytest.mark.parametrize('shape', [(64, 96), (97, 131)])
def test_endpoints_have_their_strides(shape, model_18):
    outputs = model_18(_images(2, *shape))
    assert sorted(outputs) == ['2', '3', '4', '5']
    for level, features in outputs.items():
        stride = 2 ** int(level)
        assert features.shape[1:3] == [-(-side // stride) for side in shape]
        assert features.shape[-1] == model_18.output_specs[level][-1]


@pytest.mark.parametrize(
    ('model_id', 'padding', 'stages', 'frozen_kernels'),
    # ResNet-18: 7x7, then two blocks of two and a projection. ResNet-50: three blocks of three.
    [(18, 'symmetric', 1, 1), (18, 'symmetric', 2, 1 + 5), (50, 'same', 2, 1 + 10)],
)
def test_frozen_stages(model_id, padding, stages, frozen_kernels):
    model = backbone_lib.build_backbone(
        _SPECS, model_id, padding, bn_trainable=True, frozen_stages=stages
    )
    before = {v.ref(): v.numpy() for v in model.variables}
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(_images(4, 64, 64, batch=2), training=True)['2'])
    gradients = tape.gradient(loss, model.trainable_variables)
    # The trained part begins behind the stem, or behind C2.
    assert any(gradient is not None for gradient in gradients) == (stages == 1)
    kernels = [v for v in model.variables if v.shape.rank == 4]
    frozen = [v for v in kernels if not any(v is t for t in model.trainable_variables)]
    assert len(frozen) == frozen_kernels
    # One BatchNorm per convolution, still where that is frozen; a mean and a variance move.
    moved = [v for v in model.variables if np.any(v.numpy() != before[v.ref()])]
    assert len(moved) == 2 * (len(kernels) - frozen_kernels)


def test_batch_norm_is_still_unless_trainable(model_18):
    images = _images(6, 32, 32, batch=2)
    before = [v.numpy() for v in model_18.variables]
    training = model_18(images, training=True)
    for variable, value in zip(model_18.variables, before):
        np.testing.assert_array_equal(variable, value)
    np.testing.assert_array_equal(training['5'], model_18(images, training=False)['5'])
    # All that is trained are the 21 kernels.
    assert [v.shape.rank for v in model_18.trainable_variables] == [4] * 21


@pytest.mark.parametrize('model_id', [18, 50])
def test_folded_batch_norm_is_batch_norm(model_id, tmp_path, monkeypatch, request):
    """Features and gradients of the kernels, beside a network whose layers normalize the maps.

    In float64: rounding moves single activations across ReLU's corner, and a gradient with them.
    """
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy('float64')
    request.addfinalizer(lambda: tf.keras.mixed_precision.set_global_policy(before))
    plain = backbone_lib.build_backbone(_SPECS, model_id)
    monkeypatch.setattr(devices, 'has_gpu', lambda: True)
    folded = backbone_lib.build_backbone(_SPECS, model_id)
    assert any(isinstance(x, backbone_lib.FoldedNorm) for x in folded.submodules)
    rng = np.random.default_rng(model_id)
    for variable in folded.variables:
        if variable.shape.rank == 1:
            low = 0.5 if 'gamma' in variable.name or 'variance' in variable.name else -0.5
            variable.assign(rng.uniform(low, low + 1, variable.shape))
    path = tf.train.Checkpoint(folded).write(str(tmp_path / 'folded'))
    tf.train.Checkpoint(plain).read(path).assert_existing_objects_matched()

    def outputs_and_gradients(model):
        with tf.GradientTape() as tape:
            outputs = model(tf.cast(_images(3, 64, 96), tf.float64), training=False)
            loss = tf.add_n([tf.reduce_mean(x**2) for x in outputs.values()])
        return [*outputs.values(), *tape.gradient(loss, model.trainable_variables)]

    for x, y in zip(outputs_and_gradients(folded), outputs_and_gradients(plain)):
        np.testing.assert_allclose(x, y, atol=1e-9 * np.abs(y).max())


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
