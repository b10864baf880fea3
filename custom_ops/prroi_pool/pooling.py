# SPDX-License-Identifier: Apache-2.0
"""PrRoIPool's one call, whichever implementation serves it, and its Keras layer."""

import math

import numpy as np
import tensorflow as tf

from custom_ops.prroi_pool import library, prroi_pool_tf

_FEATURE_DTYPES = (tf.float16, tf.bfloat16, tf.float32, tf.float64)


def serving() -> str:
    """What serves `implementation='auto'` here, as a line for a log."""
    return library.load().text


def is_compiled() -> bool:
    """Whether the compiled operations serve here, and not plain TensorFlow."""
    return library.load().ops is not None


def prroi_pool(
    features: tf.Tensor,
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    output_size: tuple[int, int] = (28, 28),
    spatial_scale: float = 0.25,
    implementation: str = 'auto',
) -> tf.Tensor:
    """Averages the bilinear interpolant of a feature map over each bin of each box, exactly.

    Precise RoI Pooling, Jiang et al., Acquisition of Localization Confidence for Accurate Object
    Detection (ECCV 2018); `docs/prroi_pool.md` has the formulas. Box (0, 0, 4, 4) at scale 1 is
    4 x 4: there is no half-pixel shift. Outside the map all nodes are 0. A bin without area (also
    of a reversed box) gives 0 and has no gradient.

    The gradients to `features` and `boxes` are exact, and continuous in the boxes, edges on whole
    nodes included. Inside a `tf.function` neither is computed where nobody asks for it.

    Args:
      features: [B, H, W, C], float16, bfloat16 (both computed in float32), float32 or float64.
      boxes: [N, 4], floating point, [y1, x1, y2, x2] in pixels of the image. N may be 0.
      box_indices: [N], integer, the image of each box, in [0, B), in any order.
      output_size: (h, w), the number of bins.
      spatial_scale: nodes of the feature map per pixel of the image, 2**-level in an FPN.
      implementation: 'compiled' for the operation, 'tensorflow' for the same in plain TensorFlow,
        'auto' for the first of the two that there is.

    Returns:
      [N, h, w, C] of the dtype of `features`.

    Raises:
      tf.errors.InvalidArgumentError: naming the argument and its value: a wrong rank or dtype, a
        size or scale that is not positive, a box that is not finite or an index out of range. The
        last two are found when the values are known; the operation's kernel for GPUs does not look
        and gives NaN for such a box.
      tf.errors.UnavailableError: 'compiled' was asked for and could not be built or loaded.
      ValueError: another `implementation`.
    """
    ops = library.choose(implementation)
    features, boxes = tf.convert_to_tensor(features), tf.convert_to_tensor(boxes)
    box_indices = tf.cast(box_indices, tf.int32)
    check(features, boxes, box_indices, output_size, spatial_scale)
    if ops is None:
        return prroi_pool_tf.prroi_pool(features, boxes, box_indices, output_size, spatial_scale)
    if boxes.dtype not in (tf.float32, tf.float64):
        boxes = tf.cast(boxes, tf.float32)
    if boxes.dtype == tf.float64 and float(np.float32(spatial_scale)) != spatial_scale:
        # An operation's attribute has the digits of float32 only.
        boxes, spatial_scale = boxes * spatial_scale, 1.0
    return ops.pr_roi_pool(
        features=features,
        boxes=boxes,
        box_indices=box_indices,
        output_height=output_size[0],
        output_width=output_size[1],
        spatial_scale=spatial_scale,
    )


def check(*arguments):
    """Raises InvalidArgumentError for what is wrong before any value is known.

    Args:
      *arguments: those of `prroi_pool` but the last, features, boxes and indices as tensors.
    """
    for problem in _problems(*arguments):
        raise tf.errors.InvalidArgumentError(None, None, f'prroi_pool: {problem}')


def _problems(features, boxes, box_indices, output_size, spatial_scale):
    """What is wrong, one line each."""
    if features.dtype not in _FEATURE_DTYPES:
        names = ', '.join(dtype.name for dtype in _FEATURE_DTYPES)
        yield f'features has dtype {features.dtype.name}, must be one of {names}'
    if not boxes.dtype.is_floating:
        yield f'boxes has dtype {boxes.dtype.name}, must be floating point'
    if not features.shape.is_compatible_with([None] * 4):
        yield f'features has shape {features.shape}, must be [images, height, width, channels]'
    if not boxes.shape.is_compatible_with([None, 4]):
        yield f'boxes has shape {boxes.shape}, must be [boxes, 4]'
    if not box_indices.shape.is_compatible_with(boxes.shape[:1]):
        yield f'box_indices has shape {box_indices.shape}, must be {boxes.shape[:1]} as boxes has'
    if len(output_size) != 2 or any(int(n) != n or n <= 0 for n in output_size):
        yield f'output_size is {tuple(output_size)}, must be two positive integers'
    if not (spatial_scale > 0 and math.isfinite(spatial_scale)):
        yield f'spatial_scale is {spatial_scale}, must be positive and finite'


class PrRoIPool(tf.keras.layers.Layer):
    """`prroi_pool` as a layer, called with (features, boxes, box_indices)."""

    def __init__(self, output_size=(28, 28), spatial_scale=0.25, **kwargs):
        """See `prroi_pool` for both; `kwargs` are `tf.keras.layers.Layer`'s."""
        # 16 bits are too few for pixel coordinates: boxes keep their dtype.
        super().__init__(autocast=False, **kwargs)
        self.output_size = tuple(output_size)
        self.spatial_scale = spatial_scale

    def call(self, inputs):
        """Pools (features [B, H, W, C], boxes [N, 4], box_indices [N]) to [N, h, w, C]."""
        return prroi_pool(*inputs, self.output_size, self.spatial_scale)

    def get_config(self):
        return {
            **super().get_config(),
            'output_size': self.output_size,
            'spatial_scale': self.spatial_scale,
        }
