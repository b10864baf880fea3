# SPDX-License-Identifier: Apache-2.0
"""RoIAlign with 2x2 samples per bin from P2-P5, the paper's baseline's.

He et al., Mask R-CNN (2017), section 3. The Model Garden takes one sample per bin and also pools
from P6. Averaging 2x2 of its samples at twice the resolution puts samples exactly where RoIAlign
with `sampling_ratio=2` has them.
"""

from collections.abc import Mapping

import tensorflow as tf
from official.vision.modeling.layers import roi_aligner

POOLED_LEVELS = ('2', '3', '4', '5')


class MultilevelRoIAligner(roi_aligner.MultilevelROIAligner):
    """[B, N, crop_size, crop_size, C] features of [B, N, 4] boxes in pixels of the input."""

    def __init__(self, crop_size: int, samples_per_bin: int = 2, **kwargs):
        """`samples_per_bin` is the number of samples along each side of a bin."""
        super().__init__(crop_size=crop_size * samples_per_bin, **kwargs)
        self._samples_per_bin = samples_per_bin

    def call(self, features: Mapping[str, tf.Tensor], boxes: tf.Tensor) -> tf.Tensor:
        samples = super().call({level: features[level] for level in POOLED_LEVELS}, boxes)
        if self._samples_per_bin == 1:
            return samples
        shape = tf.shape(samples)
        size, channels = samples.shape[2], samples.shape[4]
        pooled = tf.nn.avg_pool2d(
            tf.reshape(samples, [-1, size, size, channels]),
            self._samples_per_bin,
            self._samples_per_bin,
            'VALID',
        )
        out = size // self._samples_per_bin
        pooled = tf.reshape(pooled, [shape[0], shape[1], out, out, channels])
        pooled.set_shape([samples.shape[0], boxes.shape[1], out, out, channels])
        return pooled
