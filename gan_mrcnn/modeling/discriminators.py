# SPDX-License-Identifier: Apache-2.0
"""The two discriminators (section 3 and Fig. 3 of the paper; Table 6 for 3, 4 or 5 layers), and one
of masks that judges every cell.

The paper's are stacks of strided convolutions with batch normalization and LeakyReLU, without
pooling, on 28x28 maps. What the paper leaves open follows the authors' code: the channels, the 4x4
kernels, no normalization on the mask discriminator's first layer, the weights of the layers.
Convolutions start from a normal distribution of standard deviation 0.02, as DCGAN's do.

With `normalization` 'spectral' (`gan.normalization`), no layer has batch normalization, which makes
what is said of one RoI depend on the others, and every kernel is divided by its spectral norm. A
hidden layer then has a bias where batch normalization would have its own.

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
        normalization: 'batch' or 'spectral'.
        layer_dtype: that the layers compute in; None for the global policy's.

    Raises:
        ValueError: for another number of layers.
    """

    def __init__(
        self,
        num_layers=5,
        kernel_regularizer=None,
        name='box_discriminator',
        normalization='batch',
        layer_dtype=None,
    ):
        # Every layer casts its own input; the model leaves it as it comes.
        super().__init__(name=name, autocast=False)
        _check_num_layers(num_layers)
        options = {
            'kernel_regularizer': kernel_regularizer,
            'normalization': normalization,
            'dtype': layer_dtype,
        }
        self._hidden = [
            _ConvBlock(64 * 2**i, True, name=f'layer{i + 1}', **options)
            for i in range(num_layers - 1)
        ]
        self._to_logit = _convolution(1, True, name=f'layer{num_layers}', **options)

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
        logits = _convolve(self._to_logit, x, training)
        return tf.reduce_mean(tf.cast(logits, self.variable_dtype), axis=[1, 2, 3])


class MaskDiscriminator(tf.keras.Model):
    """Features of masked RoI features at several scales, for SegAN's L1 distance (Eq. 6).

    Layers of 64-128-256-512-1024 channels without bias, each with batch normalization (but the
    first) and LeakyReLU.

    Args:
        num_layers: convolutions, 3, 4 or 5.
        kernel_regularizer: `tf.keras.regularizers.Regularizer` of all kernels, or None.
        name: of the model.
        normalization: 'batch' or 'spectral'.

    Raises:
        ValueError: for another number of layers.
    """

    def __init__(
        self,
        num_layers=5,
        kernel_regularizer=None,
        name='mask_discriminator',
        normalization='batch',
    ):
        super().__init__(name=name, autocast=False)
        _check_num_layers(num_layers)
        self._blocks = [
            _ConvBlock(64 * 2**i, i > 0, kernel_regularizer, normalization, name=f'layer{i + 1}')
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


class PixelDiscriminator(tf.keras.Model):
    """Tells the cells of ground-truth masks from those of predicted ones.

    Luc et al. (2016) judge segmentation maps of whole images; a logit for every cell, by a small
    U-Net, is Schoenfeld et al.'s (2020). Down: the mask discriminator's strided convolutions, of
    64-128-256 channels and no more. Up: the nearest neighbour at twice the size, a 3x3 convolution
    to the channels of the layer at that size (32 at the full size) and that layer's output beside
    it. A 3x3 convolution makes the logit. All but the first layer and the logit are normalized.

    Args:
        num_layers: strided convolutions, 3, 4 or 5, and as many on the way up.
        kernel_regularizer: `tf.keras.regularizers.Regularizer` of all kernels, or None.
        name: of the model.
        normalization: 'batch' or 'spectral'.

    Raises:
        ValueError: for another number of layers.
    """

    def __init__(
        self,
        num_layers=5,
        kernel_regularizer=None,
        name='mask_discriminator',
        normalization='batch',
    ):
        super().__init__(name=name, autocast=False)
        _check_num_layers(num_layers)
        options = {'kernel_regularizer': kernel_regularizer, 'normalization': normalization}
        at_size = {'kernel_size': 3, 'strides': 1}
        channels = [min(64 * 2**i, 256) for i in range(num_layers)]
        self._down = [
            _ConvBlock(x, i > 0, name=f'down{i + 1}', **options) for i, x in enumerate(channels)
        ]
        self._up = [
            _ConvBlock(x, True, name=f'up{i + 1}', **options, **at_size)
            for i, x in enumerate([32, *channels[:-1]])
        ]
        self._to_logit = _convolution(1, True, name='logit', **options, **at_size)

    def call(self, x, training=None, is_counted=None):
        """Scores every cell.

        Args:
            x: [N, S, S, C], masks times RoI features.
            training: whether to normalize by the statistics of the batch, and to update the others.
            is_counted: [N] bool, which RoIs count in the batch's statistics; None: all.

        Returns:
            A list of one tensor, [N, S, S] float32 logits, high for ground truth.
        """
        options = {'training': training, 'is_counted': is_counted}
        at_sizes = [x]
        for block in self._down:
            at_sizes.append(block(at_sizes[-1], **options))
        x = at_sizes.pop()
        for block in reversed(self._up):
            beside = at_sizes.pop()
            x = block(_twice(x)[:, : beside.shape[1], : beside.shape[2]], **options)
            x = tf.concat([x, tf.cast(beside, x.dtype)], axis=-1)
        logits = _convolve(self._to_logit, x, training)
        return [tf.cast(logits[..., 0], self.variable_dtype)]


class SpectralConv2D(tf.keras.layers.Conv2D):
    """Convolution by the kernel over its spectral norm (Miyato et al. 2018, section 2.1).

    The norm of the kernel W as a matrix [height * width * input channels, output channels] is that
    of W u, where u is the vector that W stretches most. A call in training takes u one step of the
    power iteration further (Algorithm 1), then the gradient passes through the norm with u as a
    constant (Eq. 12).

    `tf.keras.layers.SpectralNormalization` is no way to have that: it overwrites the kernel by the
    quotient, as no optimizer step, so that the generator's half and skipped steps would change the
    weights, and the gradient does not pass through the norm.
    """

    def build(self, input_shape):
        super().build(input_shape)
        self.direction = self.add_weight(
            'direction',
            shape=[self.filters],
            initializer=tf.keras.initializers.RandomNormal(),
            trainable=False,
            # Each replica moves its own, all of them alike since their kernels are.
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            experimental_autocast=False,
        )

    def call(self, inputs, training=None):
        """Convolves; `training` is whether to take the power iteration a step further."""
        if training:
            matrix = self._matrix(self.kernel)
            # Only a direction: its length does not count.
            image = tf.math.l2_normalize(tf.linalg.matvec(matrix, self.direction))
            back = tf.linalg.matvec(matrix, image, transpose_a=True)
            self.direction.assign(tf.stop_gradient(tf.math.l2_normalize(back)))
        return super().call(inputs)

    def convolution_op(self, inputs, kernel):
        # A variable in 16 bits still calls itself one of 32.
        kernel = tf.convert_to_tensor(kernel)
        direction = tf.math.l2_normalize(self.direction)
        norm = tf.norm(tf.linalg.matvec(self._matrix(kernel), direction))
        return super().convolution_op(inputs, kernel / tf.cast(norm, kernel.dtype))

    def _matrix(self, kernel):
        """The kernel as a matrix, in no less than float32."""
        return tf.cast(tf.reshape(kernel, [-1, self.filters]), self.direction.dtype)


class _ConvBlock(tf.keras.layers.Layer):
    """Convolution, normalized or not, LeakyReLU.

    Where it is `normalized`, it has batch normalization or, if `normalization` is 'spectral', a
    bias. In the latter case every kernel is normalized.
    """

    def __init__(
        self,
        channels,
        normalized,
        kernel_regularizer,
        normalization,
        name,
        dtype=None,
        **convolution,
    ):
        super().__init__(name=name, dtype=dtype)
        self.convolution = _convolution(
            channels,
            normalized and normalization == 'spectral',
            kernel_regularizer,
            normalization,
            'conv',
            dtype,
            **convolution,
        )
        self.norm = None
        if normalized and normalization == 'batch':
            # Momentum and epsilon are PyTorch's, in which the authors' code is written.
            self.norm = tf.keras.layers.BatchNormalization(
                momentum=0.9,
                epsilon=1e-5,
                # Several replicas normalize by the statistics of all their RoIs, as one would. It
                # also is the one that can leave rows out.
                synchronized=tf.distribute.get_strategy().num_replicas_in_sync > 1
                or devices.has_gpu(),
                name='bn',
                dtype=dtype,
            )

    def call(self, x, training=None, is_counted=None):
        x = _convolve(self.convolution, x, training)
        if self.norm is not None:
            mask = None
            if self.norm.synchronized and is_counted is not None:
                mask = tf.broadcast_to(is_counted[:, tf.newaxis, tf.newaxis], tf.shape(x)[:3])
            x = self.norm(x, training=training, mask=mask)
        return tf.nn.leaky_relu(x, _LEAK)


def _convolution(
    channels,
    use_bias,
    kernel_regularizer,
    normalization,
    name,
    dtype=None,
    kernel_size=4,
    strides=2,
):
    """4x4, stride 2 where nothing else is said; `SpectralConv2D` for 'spectral'."""
    kind = SpectralConv2D if normalization == 'spectral' else tf.keras.layers.Conv2D
    return kind(
        channels,
        kernel_size=kernel_size,
        strides=strides,
        padding='same',
        use_bias=use_bias,
        kernel_initializer=tf.keras.initializers.RandomNormal(stddev=0.02),
        kernel_regularizer=kernel_regularizer,
        name=name,
        dtype=dtype,
    )


def _twice(x):
    """[N, S, S, C] to [N, 2S, 2S, C], each node four times. `tf.image.resize` has no gradient that
    is deterministic on a GPU."""
    return tf.repeat(tf.repeat(x, 2, axis=1), 2, axis=2)


def _convolve(convolution, x, training):
    """Only one of the two kinds behaves in training in another way."""
    if isinstance(convolution, SpectralConv2D):
        return convolution(x, training=training)
    return convolution(x)


def _check_num_layers(num_layers):
    if num_layers not in configs.NUM_LAYERS:
        raise ValueError(f'num_layers is {num_layers}, must be one of {configs.NUM_LAYERS}')
