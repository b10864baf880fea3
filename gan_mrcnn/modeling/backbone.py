# SPDX-License-Identifier: Apache-2.0
"""The ResNet under the generator, C2-C5 (He et al., 2016), padded as its weights were trained.

The paper's baseline starts from ImageNet weights made in PyTorch, where a strided convolution pads
both sides alike. TensorFlow's 'same' pads the far side only (on even sizes), so that the same
weights see everything shifted, and where a 1x1 shortcut meets the shifted 3x3 branch, mixed. Here
is the Model Garden's ResNet with the strided 3x3 and 7x7 layers exchanged for symmetric ones.

On a GPU, BatchNorm that is frozen multiplies the kernels, which are small, and adds its offset,
instead of going through every map forward and, more slowly still, backward. On a CPU the layers as
they are take 4% less.

Layers, variables and the checkpoint's object graph are the Model Garden's all the same, so that its
checkpoints fit.
"""

from typing import Optional

import tensorflow as tf
from official.vision.modeling.backbones import resnet
from official.vision.modeling.layers import nn_blocks

from gan_mrcnn import configs
from gan_mrcnn.utils import devices
from gan_mrcnn.utils.errors import UserError

BLOCKS = (nn_blocks.ResidualBlock, nn_blocks.BottleneckBlock)


def _symmetric(kernel_size):
    """Half a kernel of odd size on every side, NHWC; the output's size is that of 'same'."""
    return [[0, 0]] + [[size // 2, size // 2] for size in kernel_size] + [[0, 0]]


class SymmetricConv2D(tf.keras.layers.Conv2D):
    """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), filters]; odd kernels only."""

    # What `_fold_if_frozen` leaves here gives the factor [filters] of the kernel.
    scale = None

    def convolution_op(self, inputs, kernel):
        if self.scale is not None:
            kernel = kernel * tf.cast(self.scale(), kernel.dtype)
        if max(self.strides) == 1:
            return super().convolution_op(inputs, kernel)
        padding = _symmetric(self.kernel_size)
        return tf.nn.conv2d(inputs, kernel, strides=self.strides, padding=padding)


class FoldedNorm(tf.keras.layers.BatchNormalization):
    """BatchNorm in inference mode behind a convolution that has its scale in the kernel."""

    def scale_of_kernel(self):
        """[C] float32."""
        return self.gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)

    def call(self, inputs, training=None, mask=None):
        offset = self.beta - self.moving_mean * self.scale_of_kernel()
        return tf.nn.bias_add(inputs, tf.cast(offset, inputs.dtype))


def _fold_if_frozen(convolution, norm):
    """`norm`, or the same with its scale in the kernel of the convolution before it."""
    if norm.trainable or not devices.has_gpu():
        return norm
    folded = FoldedNorm.from_config(norm.get_config())
    folded.build([None, None, None, convolution.filters])
    convolution.scale = folded.scale_of_kernel
    return folded


class SymmetricMaxPool2D(tf.keras.layers.MaxPool2D):
    """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), C]; the padding never wins."""

    def call(self, inputs):
        padding = _symmetric(self.pool_size)
        return tf.nn.max_pool2d(inputs, self.pool_size, self.strides, padding=padding)


class _SymmetricBlock:
    """A block of the Model Garden with the layers above in the place of its own."""

    def build(self, input_shape):
        super().build(input_shape)
        for name, norm in (
            ('_shortcut', '_norm0'),
            ('_conv1', '_norm1'),
            ('_conv2', '_norm2'),
            ('_conv3', '_norm3'),
        ):
            if hasattr(self, name):
                convolution = SymmetricConv2D.from_config(getattr(self, name).get_config())
                setattr(self, name, convolution)
                setattr(self, norm, _fold_if_frozen(convolution, getattr(self, norm)))


class SymmetricResidualBlock(_SymmetricBlock, nn_blocks.ResidualBlock):
    """Two 3x3 convolutions, the first one strided."""


class SymmetricBottleneckBlock(_SymmetricBlock, nn_blocks.BottleneckBlock):
    """1x1, strided 3x3, 1x1 (torchvision's ResNet v1.5; the Model Garden strides there, too)."""


class SymmetricResNet(resnet.ResNet):
    """The Model Garden's ResNet (plain stem) with torchvision's padding.

    One thing torchvision lacks stays: the first block of stage 1 in ResNet-18 and -34 has a
    projection. `backbone_weights` makes it an identity.
    """

    _BLOCKS = {
        nn_blocks.ResidualBlock: SymmetricResidualBlock,
        nn_blocks.BottleneckBlock: SymmetricBottleneckBlock,
    }

    def _stem(self, inputs):
        convolution = SymmetricConv2D(
            filters=64,
            kernel_size=7,
            strides=2,
            use_bias=False,
            padding='same',
            kernel_initializer=self._kernel_initializer,
            kernel_regularizer=self._kernel_regularizer,
        )
        norm = self._norm(
            axis=self._bn_axis,
            momentum=self._norm_momentum,
            epsilon=self._norm_epsilon,
            trainable=self._bn_trainable,
            synchronized=self._use_sync_bn,
        )
        norm = _fold_if_frozen(convolution, norm)
        x = tf.keras.layers.Activation('relu')(norm(convolution(inputs)))
        return SymmetricMaxPool2D(pool_size=3, strides=2, padding='same')(x)

    def _block_group(self, inputs, filters, strides, block_fn, **kwargs):
        return super()._block_group(inputs, filters, strides, self._BLOCKS[block_fn], **kwargs)


def _freeze_stages(model, model_id, stages):
    """Freezes the layers before stage 1 (`stages` 1) or before stage 2 (`stages` 2)."""
    blocks = [layer for layer in model.layers if isinstance(layer, BLOCKS)]
    blocks_of_stage_1 = resnet.RESNET_SPECS[model_id][0][2]
    first_trained = blocks[0 if stages == 1 else blocks_of_stage_1]
    for layer in model.layers[: model.layers.index(first_trained)]:
        layer.trainable = False


def build_backbone(
    input_specs: tf.keras.layers.InputSpec,
    model_id: int,
    padding: str = 'symmetric',
    norm_epsilon: float = 1e-5,
    norm_momentum: float = 0.9,
    use_sync_bn: bool = False,
    bn_trainable: bool = False,
    frozen_stages: int = 0,
    kernel_regularizer: Optional[tf.keras.regularizers.Regularizer] = None,
) -> tf.keras.Model:
    """Builds a ResNet that maps images to C2-C5.

    The Model Garden's backbone factory cannot take the padding or the frozen stages in its own
    `resnet` configuration, hence a function beside it.

    Args:
      input_specs: of the images, [B, H, W, 3], RGB, normalized; H and W may be None.
      model_id: depth, one of 18, 34, 50, 101.
      padding: 'symmetric' for weights in torchvision's layout, 'same' for the Model Garden's
        network as it stands, and weights trained with that.
      norm_epsilon: BatchNorm's; 1e-5 in torchvision's weights.
      norm_momentum: of BatchNorm's moving averages, in TensorFlow's sense.
      use_sync_bn: whether BatchNorm's statistics are those of all replicas.
      bn_trainable: False keeps BatchNorm in inference mode, also in training.
      frozen_stages: 0 trains everything, 1 freezes the stem, 2 the stem and stage 1 (C2). Setting
        `trainable` of the whole model later on undoes it.
      kernel_regularizer: of every convolution; that of a frozen one is a constant.

    Returns:
      A model from [B, H, W, 3] to {'2', '3', '4', '5'}: [B, ceil(H / 2**level),
      ceil(W / 2**level), channels]; `.output_specs` has their shapes.

    Raises:
      UserError: an unknown depth, padding or number of stages.
    """
    for name, value, choices in (
        ('depth', model_id, configs.MODEL_IDS),
        ('padding', padding, configs.PADDINGS),
        ('number of frozen stages', frozen_stages, configs.FREEZE_STAGES),
    ):
        if value not in choices:
            raise UserError(f'backbone: unknown {name} {value!r}, choose one of {choices}')
    network = SymmetricResNet if padding == 'symmetric' else resnet.ResNet
    model = network(
        model_id=model_id,
        input_specs=input_specs,
        use_sync_bn=use_sync_bn,
        norm_momentum=norm_momentum,
        norm_epsilon=norm_epsilon,
        kernel_regularizer=kernel_regularizer,
        bn_trainable=bn_trainable,
    )
    if frozen_stages:
        _freeze_stages(model, model_id, frozen_stages)
    return model
