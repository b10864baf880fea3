# SPDX-License-Identifier: Apache-2.0
"""PrRoIPool over the levels of an FPN: the input of the discriminators (Fig. 2 and 3).

A discriminator sees a box as a 28x28 map of FPN features inside it. As in the authors' code, the
map is pooled from every level P2-P5 and the levels are fused by their maximum, so that which level
a box belongs to is no step in the way of its gradient.

Shapes: B images, N boxes, C channels, S bins along each side.
"""

import functools
from collections.abc import Mapping, Sequence

import tensorflow as tf

from custom_ops.prroi_pool.pooling import prroi_pool


def multilevel_prroi_pool(
    features: Mapping[str, tf.Tensor],
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    output_size: int = 28,
    levels: Sequence[str] = ('2', '3', '4', '5'),
) -> tf.Tensor:
    """Pools each box from every level and takes the element-wise maximum over the levels.

    Differentiable in the boxes and the features. The paper's adversarial gradient goes to the boxes
    only: detach the features by `tf.stop_gradient` for that, which also saves their gradient.

    Args:
        features: level -> [B, H_level, W_level, C], one node per 2**level pixels.
        boxes: [N, 4], float, [y1, x1, y2, x2] in pixels of the input image.
        box_indices: [N] int32, the image of each box.
        output_size: S.
        levels: keys of `features` to pool from.

    Returns:
        [N, S, S, C] of the features' dtype.
    """
    pooled = [
        prroi_pool(
            features[level], boxes, box_indices, (output_size, output_size), 2.0 ** -int(level)
        )
        for level in levels
    ]
    return _maximum(*pooled)


@tf.custom_gradient
def _maximum(*tensors):
    """Element-wise maximum of any number of tensors of the same shape.

    Its gradient goes through memory half as often as that of a chain of `tf.maximum`, which would
    take longer than the pooling. Tensors that tie, as all do outside the map, each get the whole.
    """
    maximum = functools.reduce(tf.maximum, tensors)

    def gradient(upstream):
        # Not a scalar: TensorFlow's layout optimizer gives up on the whole graph for one.
        nothing = tf.zeros_like(upstream)
        return [tf.where(tf.equal(tensor, maximum), upstream, nothing) for tensor in tensors]

    return maximum, gradient
