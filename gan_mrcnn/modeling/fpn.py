# SPDX-License-Identifier: Apache-2.0
"""Feature pyramid P2-P6 as the paper's baseline has it: no normalization, P6 a subsampled P5.

Lin et al., Feature Pyramid Networks (2017), section 3 and footnote of 4.1. The Model Garden's FPN
always ends in BatchNorm and makes P6 with a strided convolution; it serves where `head_norm` is
'batch_norm', this one everywhere else.
"""

from collections.abc import Mapping
from typing import Optional

import tensorflow as tf

from gan_mrcnn.modeling import heads


class FPN(tf.keras.Model):
    """Maps C2-C5 to P2-P6, each [B, H / 2**level, W / 2**level, num_filters]."""

    def __init__(
        self,
        input_specs: Mapping[str, tf.TensorShape],
        num_filters: int = 256,
        normalization: str = 'none',
        kernel_regularizer: Optional[tf.keras.regularizers.Regularizer] = None,
        **kwargs,
    ):
        """Builds the pyramid.

        Args:
          input_specs: shape of each of the backbone's outputs '2' to '5', batch first.
          num_filters: channels of every output.
          normalization: 'none' or 'group_norm', after each lateral and output convolution.
          kernel_regularizer: of every convolution.
        """

        def conv(size, name, x):
            # maskrcnn-benchmark's kaiming_uniform_(a=1): variance 1 / fan_in.
            x = tf.keras.layers.Conv2D(
                num_filters,
                size,
                padding='same',
                kernel_initializer=tf.keras.initializers.VarianceScaling(
                    1.0, mode='fan_in', distribution='uniform'
                ),
                kernel_regularizer=kernel_regularizer,
                name=name,
            )(x)
            return heads.make_norm(normalization, f'{name}_norm')(x)

        inputs = {level: tf.keras.Input(input_specs[level][1:]) for level in ('2', '3', '4', '5')}
        top_down = conv(1, 'lateral_5', inputs['5'])
        outputs = {'5': conv(3, 'output_5', top_down)}
        for level in ('4', '3', '2'):
            up = tf.keras.layers.UpSampling2D(2, interpolation='nearest')(top_down)
            top_down = conv(1, f'lateral_{level}', inputs[level]) + up
            outputs[level] = conv(3, f'output_{level}', top_down)
        outputs['6'] = tf.keras.layers.MaxPool2D(1, strides=2, name='output_6')(outputs['5'])
        super().__init__(inputs=inputs, outputs=dict(sorted(outputs.items())), **kwargs)
