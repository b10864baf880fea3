# SPDX-License-Identifier: Apache-2.0
"""The Model Garden's RPN, box and mask heads with the paper's normalization and initializers.

The paper's baseline (maskrcnn-benchmark) has no normalization in its heads; the Model Garden has
BatchNorm in each and initial weights made for it: its first fully connected layer starts twice, its
RPN's outputs (standard deviation 1e-5) a thousandth as large. Each class here is the Model Garden's
with only these two things changed; shapes and calling conventions are the parent's.
"""

from typing import Callable

import tensorflow as tf
from official.vision.modeling.heads import dense_prediction_heads, instance_heads


def make_norm(normalization: str, name: str) -> tf.keras.layers.Layer:
    """A normalization layer for FPN or heads.

    Args:
      normalization: 'none' or 'group_norm' (32 groups, epsilon 1e-5; Wu and He, 2018).
      name: name of the layer.

    Returns:
      A layer that keeps the shape of its input.

    Raises:
      ValueError: for any other `normalization`.
    """
    if normalization == 'none':
        return tf.keras.layers.Activation('linear', name=name)
    if normalization == 'group_norm':
        return tf.keras.layers.GroupNormalization(groups=32, epsilon=1e-5, name=name)
    raise ValueError(f'normalization is {normalization!r}, one of none, group_norm is wanted')


def _replace_norms(norms, normalization: str):
    """The same (nested) list of layers with each normalization layer replaced."""
    if isinstance(norms, (list, tuple)):
        return [_replace_norms(norm, normalization) for norm in norms]
    return make_norm(normalization, norms.name)


class _Normalized:
    """Takes the normalization beside what the Model Garden's heads take."""

    def __init__(self, normalization: str = 'none', **kwargs):
        super().__init__(**kwargs)
        self._normalization = normalization


class RPNHead(_Normalized, dense_prediction_heads.RPNHead):
    """RPN head; all its convolutions start from a normal with standard deviation 0.01.

    Ren et al., Faster R-CNN (2015), section 3.1.
    """

    def build(self, input_shape):
        super().build(input_shape)
        self._norms = _replace_norms(self._norms, self._normalization)
        for conv in (self._classifier, self._box_regressor):
            conv.kernel_initializer = tf.keras.initializers.RandomNormal(stddev=0.01)


class DetectionHead(_Normalized, instance_heads.DetectionHead):
    """Box head; fully connected layers start as maskrcnn-benchmark's (`kaiming_uniform_`, a=1)."""

    def build(self, input_shape):
        super().build(input_shape)
        self._conv_norms = _replace_norms(self._conv_norms, self._normalization)
        self._fc_norms = _replace_norms(self._fc_norms, 'none')
        for fc in self._fcs:
            fc.kernel_initializer = tf.keras.initializers.VarianceScaling(
                1.0, mode='fan_in', distribution='uniform'
            )


class MaskHead(_Normalized, instance_heads.MaskHead):
    """Mask head; the logits start near zero (normal, standard deviation 0.001, as Detectron's).

    The parent's start, made for 80 classes, gives logits of a hundred with the two classes of a
    one-class data set.
    """

    def build(self, input_shape):
        super().build(input_shape)
        self._conv_norms = _replace_norms(self._conv_norms, self._normalization)
        self._deconv_bn = make_norm('none', self._deconv_bn.name)
        self._mask_regressor.kernel_initializer = tf.keras.initializers.RandomNormal(stddev=0.001)


def with_normalization(
    head: tf.keras.layers.Layer, head_class: Callable[..., tf.keras.layers.Layer], normalization
) -> tf.keras.layers.Layer:
    """A head of `head_class` with the settings of a head that the Model Garden's factory made."""
    return head_class(normalization=normalization, name=head.name, **head.get_config())
