# SPDX-License-Identifier: Apache-2.0
"""Proposals: the best anchors of each level, decoded, and of those that overlap the best ones.

Lin et al., Feature Pyramid Networks (2017), section 4.2, and the paper's baseline: per level, the
`pre_nms_top_k` anchors of the highest scores go into NMS. With its batched NMS the Model Garden
takes that number as a limit of what comes out. It also fills up missing proposals with boxes of
zeros, which the box head would then be trained on; here proposals are repeated instead.

All levels of all images go through one NMS operation. Numbers that depend on the image are kept as
floating point: TensorFlow calculates with integers of 32 bits on the host, and a GPU would have to
wait for it.

Shapes: B images, A anchors of a level, L levels, N proposals.
"""

from collections.abc import Mapping
from typing import Optional

import tensorflow as tf
from official.vision.modeling.layers import roi_generator
from official.vision.ops import box_ops

from custom_ops.nms import combined_non_max_suppression


class RoIGenerator(roi_generator.MultilevelROIGenerator):
    """Takes what the parent takes; `pre_nms_top_k` is what its name says, per level."""

    def call(
        self,
        raw_boxes: Mapping[str, tf.Tensor],
        raw_scores: Mapping[str, tf.Tensor],
        anchor_boxes: Mapping[str, tf.Tensor],
        image_shape: tf.Tensor,
        training: Optional[bool] = None,
        nms: str = 'auto',
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Proposes RoIs.

        Args:
          raw_boxes: level -> [B, h, w, 4 * anchors], encoded.
          raw_scores: level -> [B, h, w, anchors] logits.
          anchor_boxes: level -> [B, h, w, 4 * anchors], [y1, x1, y2, x2] in pixels of the input.
          image_shape: [B, 2], height and width of the image inside its padding.
          training: which of the parent's two sets of numbers hold.
          nms: `implementation` of `custom_ops.nms`.

        Returns:
          Boxes [B, N, 4] within the image, each side of at least the threshold, and scores [B, N],
          best first. Where there are fewer than N, the first ones follow again; without any, all
          are the whole image, with a score of 0.
        """
        numbers = self._numbers(training)
        levels = [
            _candidates(
                raw_boxes[level], raw_scores[level], anchor_boxes[level], image_shape, numbers
            )
            for level in sorted(raw_scores)
        ]
        boxes, scores = _survivors(levels, numbers, nms)
        limit = sum(min(scores.shape[1], numbers['num_proposals']) for _, scores in levels)
        scores, order = tf.math.top_k(scores, min(limit, numbers['num_proposals']))
        return _repeat(tf.gather(boxes, order, batch_dims=1), scores, image_shape)

    def _numbers(self, training):
        """The parent's settings by their names, those of testing without their prefix."""
        config = self.get_config()
        if training:
            return config
        tested = {k[len('test_') :]: v for k, v in config.items() if k.startswith('test_')}
        return {**config, **tested}


def _candidates(boxes, scores, anchors, image_shape, numbers):
    """The best anchors of a level as boxes [B, K, 4] and scores [B, K], 0 for what is too small."""
    boxes, scores, anchors = _best(boxes, scores, anchors, image_shape, numbers['pre_nms_top_k'])
    image_shape = image_shape[:, tf.newaxis]
    boxes = box_ops.clip_boxes(box_ops.decode_boxes(boxes, anchors), image_shape)
    scores, smallest = tf.sigmoid(scores), numbers['pre_nms_min_size_threshold']
    if smallest > 0.0:
        boxes, scores = box_ops.filter_boxes(boxes, scores, image_shape, smallest)
    return boxes, scores


def _best(boxes, scores, anchors, image_shape, top_k):
    """The `top_k` of a level, or all: encoded boxes [B, K, 4], logits [B, K], anchors [B, K, 4]."""
    num_anchors = scores.shape[1] * scores.shape[2] * scores.shape[3]
    boxes, anchors = (tf.reshape(x, [-1, num_anchors, 4]) for x in (boxes, anchors))
    scores = tf.reshape(scores, [-1, num_anchors])
    # What an anchor in the padding proposes is clipped to nothing, and would take a place; so would
    # one whose score is no number.
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2.0
    inside = tf.reduce_all(centres < image_shape[:, tf.newaxis], axis=-1)
    scores = tf.where(inside & ~tf.math.is_nan(scores), scores, scores.dtype.min)
    scores, indices = tf.math.top_k(scores, min(top_k, num_anchors))
    boxes, anchors = (tf.gather(x, indices, batch_dims=1) for x in (boxes, anchors))
    return boxes, scores, anchors


def _survivors(levels, numbers, nms):
    """What NMS leaves of each level: boxes [B, L * K, 4], scores [B, L * K], zero where none is."""
    size = max(scores.shape[1] for _, scores in levels)
    boxes, scores = (
        tf.stack([tf.pad(x, _at_the_end(x, size), constant_values=pad) for x in part], axis=1)
        for part, pad in zip(zip(*levels), (0.0, tf.float32.min))
    )
    boxes, scores, _, _ = combined_non_max_suppression(
        tf.reshape(boxes, [-1, size, 1, 4]),
        tf.reshape(scores, [-1, size, 1]),
        max_output_size_per_class=size,
        max_total_size=min(size, numbers['num_proposals']),
        iou_threshold=numbers['nms_iou_threshold'],
        score_threshold=numbers['pre_nms_score_threshold'],
        implementation=nms,
    )
    total = len(levels) * scores.shape[1]
    return tf.reshape(boxes, [-1, total, 4]), tf.reshape(scores, [-1, total])


def _at_the_end(x, size):
    """Paddings that make the second axis so long."""
    return [[0, 0], [0, size - x.shape[1]]] + [[0, 0]] * (len(x.shape) - 2)


def _repeat(boxes, scores, image_shape):
    """Proposals in place of those of zeros, which come last and have a score of 0."""
    count = tf.reduce_sum(tf.cast(scores > 0.0, tf.float32), axis=1, keepdims=True)
    places = tf.range(scores.shape[1], dtype=tf.float32)
    length = tf.maximum(count, 1.0)
    places = tf.cast(places - tf.floor(places / length) * length, tf.int32)
    boxes, scores = (tf.gather(x, places, batch_dims=1) for x in (boxes, scores))
    image = tf.concat([tf.zeros_like(image_shape), image_shape], axis=1)[:, tf.newaxis]
    return tf.where(count[..., tf.newaxis] > 0.0, boxes, image), scores
