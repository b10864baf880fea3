# SPDX-License-Identifier: Apache-2.0
"""Pooling from the levels of an FPN, all of them in one operation.

A discriminator sees a box as a 28x28 map of FPN features inside it (Fig. 2 and 3). As in the
authors' code, the map is pooled by PrRoIPool from every level P2-P5 and the levels are fused by
their maximum, so that which level a box belongs to is no step in the way of its gradient. The heads
see a box by RoIAlign, on one level that goes with its size.

The levels in one operation spare a GPU the starts of a dozen kernels, and memory the pooled
features of every level. `docs/prroi_pool.md` says how.

Shapes: B images, N boxes, C channels, S bins along each side.
"""

import functools
from collections.abc import Mapping, Sequence

import tensorflow as tf

from custom_ops.prroi_pool import library, pooling


def multilevel_prroi_pool(
    features: Mapping[str, tf.Tensor],
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    output_size: int = 28,
    levels: Sequence[str] = ('2', '3', '4', '5'),
    implementation: str = 'auto',
) -> tf.Tensor:
    """Pools each box from every level and takes the element-wise maximum over the levels.

    Differentiable in the boxes and the features. The paper's adversarial gradient goes to the boxes
    only: detach the features by `tf.stop_gradient` for that, which also saves their gradient. The
    gradient goes to the level that has the maximum; of levels that tie, to the first. (All tie at 0
    where a box has no area or lies outside the map, and no gradient is left there.) NaN on any
    level is NaN in the result.

    Args:
        features: level -> [B, H_level, W_level, C], one node per 2**level pixels.
        boxes: [N, 4], float, [y1, x1, y2, x2] in pixels of the input image.
        box_indices: [N] int32, the image of each box.
        output_size: S.
        levels: keys of `features` to pool from, at most four.
        implementation: as in `prroi_pool`.

    Returns:
        [N, S, S, C] of the features' dtype.

    Raises:
        tf.errors.InvalidArgumentError, tf.errors.UnavailableError, ValueError: as `prroi_pool`.
    """
    ops = library.choose(implementation)
    if ops is None:
        pool = functools.partial(pooling.prroi_pool, boxes=boxes, box_indices=box_indices)
        size = (output_size, output_size)
        return _maximum(
            *(
                pool(features[level], output_size=size, spatial_scale=2.0 ** -int(level),
                     implementation='tensorflow')
                for level in levels
            )
        )  # fmt: skip
    arguments = _arguments(features, boxes, box_indices, output_size, levels)
    return ops.pr_roi_pool_pyramid(**arguments).pooled


def multilevel_roi_align(
    features: Mapping[str, tf.Tensor],
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    box_levels: tf.Tensor,
    output_size: int = 7,
    samples_per_bin: int = 2,
    sample_offset: float = 0.5,
    levels: Sequence[str] = ('2', '3', '4', '5'),
) -> tf.Tensor:
    """RoIAlign of each box on its own level, by the compiled operation alone.

    He et al., Mask R-CNN (2017), section 3: each bin is the mean of samples of the bilinear
    interpolant, `samples_per_bin` along each of its sides. The values are those of the Model
    Garden's `multilevel_crop_and_resize` at `samples_per_bin` times the size, averaged over bins:
    node k stands at k; beyond the last node its value holds, and before the first the line through
    the first two goes on. A box without size is a point; a reversed one gives 0.

    Differentiable in the features. Boxes get no gradient.

    Args:
        features: level -> [B, H_level, W_level, C], one node per 2**level pixels; float16,
          bfloat16 (both computed in float32), float32 or float64.
        boxes: [N, 4], float, [y1, x1, y2, x2] in pixels of the input image.
        box_indices: [N] int32, the image of each box.
        box_levels: [N] int32, the position of each box's level in `levels`.
        output_size: S.
        samples_per_bin: samples along each side of a bin.
        sample_offset: of the first sample from the edge of the bin, in distances between samples.
        levels: keys of `features` to pool from, at most four.

    Returns:
        [N, S, S, C] of the features' dtype.

    Raises:
        tf.errors.InvalidArgumentError: as in `prroi_pool`, and for a level out of range.
        tf.errors.UnavailableError: there is no compiled operation (see `is_compiled`).
    """
    return library.choose('compiled').roi_align_pyramid(
        **_arguments(features, boxes, box_indices, output_size, levels),
        box_levels=tf.cast(box_levels, tf.int32),
        samples_per_bin=samples_per_bin,
        sample_offset=sample_offset,
    )


def _arguments(features, boxes, box_indices, output_size, levels):
    """What both operations take, checked."""
    maps = [tf.convert_to_tensor(features[level]) for level in levels]
    scales = [2.0 ** -int(level) for level in levels]
    boxes, box_indices = tf.convert_to_tensor(boxes), tf.cast(box_indices, tf.int32)
    for level, scale in zip(maps, scales):
        pooling.check(level, boxes, box_indices, (output_size, output_size), scale)
    if boxes.dtype not in (tf.float32, tf.float64):
        boxes = tf.cast(boxes, tf.float32)
    return {
        'features': maps,
        'boxes': boxes,
        'box_indices': box_indices,
        'output_height': output_size,
        'output_width': output_size,
        'spatial_scales': scales,
    }


@tf.RegisterGradient('PrRoiPoolPyramid')
def _prroi_pool_gradient(op, upstream, _):
    """To features and boxes, each an operation of its own; eager mode skips what is not watched."""
    num_levels = len(op.inputs) - 2
    arguments = _gradient_arguments(op, num_levels)
    arguments.update(upstream=upstream, winners=op.outputs[1])
    skipped = getattr(op, 'skip_input_indices', None) or ()
    d_features, d_boxes = [None] * num_levels, None
    if not set(range(num_levels)).issubset(skipped):
        d_features = library.load().ops.pr_roi_pool_pyramid_grad_features(**arguments)
    if num_levels not in skipped:
        d_boxes = library.load().ops.pr_roi_pool_pyramid_grad_boxes(**arguments)
    return *d_features, d_boxes, None


@tf.RegisterGradient('RoiAlignPyramid')
def _roi_align_gradient(op, upstream):
    """To the features."""
    num_levels = len(op.inputs) - 3
    names = ('samples_per_bin', 'sample_offset')
    d_features = library.load().ops.roi_align_pyramid_grad_features(
        **_gradient_arguments(op, num_levels),
        **{name: op.get_attr(name) for name in names},
        box_levels=op.inputs[num_levels + 2],
        upstream=upstream,
    )
    return *d_features, None, None, None


def _gradient_arguments(op, num_levels):
    """What the gradients take over from the operation."""
    names = ('output_height', 'output_width', 'spatial_scales')
    return {
        'features': list(op.inputs[:num_levels]),
        'boxes': op.inputs[num_levels],
        'box_indices': op.inputs[num_levels + 1],
        **{name: op.get_attr(name) for name in names},
    }


@tf.custom_gradient
def _maximum(*tensors):
    """Element-wise maximum of any number of tensors of the same shape; the first of those that tie
    gets the gradient."""
    maximum = functools.reduce(tf.maximum, tensors)

    def gradient(upstream):
        # Not a scalar: TensorFlow's layout optimizer gives up on the whole graph for one.
        nothing = tf.zeros_like(upstream)
        is_free, gradients = tf.ones_like(upstream, tf.bool), []
        for tensor in tensors:
            wins = is_free & tf.equal(tensor, maximum)
            gradients.append(tf.where(wins, upstream, nothing))
            is_free &= ~wins
        return gradients

    return maximum, gradient
