# SPDX-License-Identifier: Apache-2.0
"""The two discriminators (section 3 and Fig. 3 of the paper; Table 6 for 3, 4 or 5 layers).

Both are stacks of strided convolutions with batch normalization and LeakyReLU, without pooling, on
28x28 maps. What the paper leaves open follows the authors' code: the channels, the 4x4 kernels, no
normalization on the mask discriminator's first layer, the weights of the layers. Convolutions start
from a normal distribution of standard deviation 0.02, as DCGAN's do.

Padding is 'same': 28-14-7-4-2-1 over five layers. PyTorch's padding of 1 is the same for even
sizes, but takes 7 to 3 and 3 to 1, and leaves nothing for a fifth layer.

Shapes: N RoIs, S x S map (28), C channels, L layers.
"""

import tensorflow as tf

from gan_mrcnn import configs
from gan_mrcnn.utils import devices

_LEAK = 0.2


class BoxDiscriminator(tf.keras.Model):
    """Tells features inside ground-truth boxes from features inside predicted ones.

    Hidden layers of 64-128-256-512 channels, each with batch normalization and LeakyReLU, as many
    as leave one layer for the logit.

    Args:
        num_layers: convolutions, 3, 4 or 5.
        kernel_regularizer: `tf.keras.regularizers.Regularizer` of all kernels, or None.
        name: of the model.

    Raises:
        ValueError: for another number of layers.
    """

    def __init__(self, num_layers=5, kernel_regularizer=None, name='box_discriminator'):
        # Every layer casts its own input; the model leaves it as it comes.
        super().__init__(name=name, autocast=False)
        _check_num_layers(num_layers)
        self._hidden = [
            _ConvBlock(64 * 2**i, True, kernel_regularizer, name=f'layer{i + 1}')
            for i in range(num_layers - 1)
        ]
        self._to_logit = _convolution(1, True, kernel_regularizer, name=f'layer{num_layers}')

    def call(self, x, training=None, is_counted=None):
        """Scores RoI features.

        Args:
            x: [N, S, S, C] RoI features.
            training: whether to normalize by the statistics of the batch, and to update the others.
            is_counted: [N] bool, which RoIs count in the batch's statistics; None: all.

        Returns:
            [N] float32 logits, the mean over the positions where the last layer has several. Their
            sigmoid is the paper's score, 1 for ground-truth boxes.
        """
        for block in self._hidden:
            x = block(x, training=training, is_counted=is_counted)
        return tf.reduce_mean(tf.cast(self._to_logit(x), self.variable_dtype), axis=[1, 2, 3])


class MaskDiscriminator(tf.keras.Model):
    """Features of masked RoI features at several scales, for SegAN's L1 distance (Eq. 6).

    Layers of 64-128-256-512-1024 channels without bias, each with batch normalization (but the
    first) and LeakyReLU.

    Args:
        num_layers: convolutions, 3, 4 or 5.
        kernel_regularizer: `tf.keras.regularizers.Regularizer` of all kernels, or None.
        name: of the model.

    Raises:
        ValueError: for another number of layers.
    """

    def __init__(self, num_layers=5, kernel_regularizer=None, name='mask_discriminator'):
        super().__init__(name=name, autocast=False)
        _check_num_layers(num_layers)
        self._blocks = [
            _ConvBlock(64 * 2**i, i > 0, kernel_regularizer, name=f'layer{i + 1}')
            for i in range(num_layers)
        ]
        # Input, layer 1, 2, ...: the authors' code.
        self.layer_weights = (1.0, 1.0, 2.0, 2.0, 2.0, 4.0)[: num_layers + 1]

    def call(self, x, training=None, is_counted=None):
        """Returns the input and the output of every layer.

        Args:
            x: [N, S, S, C], masks times RoI features.
            training: whether to normalize by the statistics of the batch, and to update the others.
            is_counted: [N] bool, which RoIs count in the batch's statistics; None: all.

        Returns:
            A list of L + 1 tensors [N, S_l, S_l, C_l], the first of them `x`, in the dtype that the
            layers compute in. Eq. 6 wants them times `layer_weights`.
        """
        outputs = [x]
        for block in self._blocks:
            outputs.append(block(outputs[-1], training=training, is_counted=is_counted))
        return outputs


class _ConvBlock(tf.keras.layers.Layer):
    """Strided convolution without bias, batch normalization or none, LeakyReLU."""

    def __init__(self, channels, normalize, kernel_regularizer, name):
        super().__init__(name=name)
        self.convolution = _convolution(channels, False, kernel_regularizer, name='conv')
        self.norm = None
        if normalize:
            # Momentum and epsilon are PyTorch's, in which the authors' code is written.
            self.norm = tf.keras.layers.BatchNormalization(
                momentum=0.9,
                epsilon=1e-5,
                # Several replicas normalize by the statistics of all their RoIs, as one would. It
                # also is the one that can leave rows out.
                synchronized=tf.distribute.get_strategy().num_replicas_in_sync > 1
                or devices.has_gpu(),
                name='bn',
            )

    def call(self, x, training=None, is_counted=None):
        x = self.convolution(x)
        if self.norm is not None:
            mask = None
            if self.norm.synchronized and is_counted is not None:
                mask = tf.broadcast_to(is_counted[:, tf.newaxis, tf.newaxis], tf.shape(x)[:3])
            x = self.norm(x, training=training, mask=mask)
        return tf.nn.leaky_relu(x, _LEAK)


def _convolution(channels, use_bias, kernel_regularizer, name):
    """4x4, stride 2."""
    return tf.keras.layers.Conv2D(
        channels,
        kernel_size=4,
        strides=2,
        padding='same',
        use_bias=use_bias,
        kernel_initializer=tf.keras.initializers.RandomNormal(stddev=0.02),
        kernel_regularizer=kernel_regularizer,
        name=name,
    )


def _check_num_layers(num_layers):
    if num_layers not in configs.NUM_LAYERS:
        raise ValueError(f'num_layers is {num_layers}, must be one of {configs.NUM_LAYERS}')
