# SPDX-License-Identifier: Apache-2.0
"""Proposals: the Model Garden's, the best of each level chosen before NMS, and none without area.

Lin et al., Feature Pyramid Networks (2017), section 4.2, and the paper's baseline: per level, the
`pre_nms_top_k` anchors of the highest scores go into NMS. With its batched NMS the Model Garden
takes that number as a limit of what comes out. It also fills up missing proposals with boxes of
zeros, which the box head would then be trained on; here proposals are repeated instead.

Shapes: B images, A anchors of a level, N proposals.
"""

from collections.abc import Mapping
from typing import Optional

import tensorflow as tf
from official.vision.modeling.layers import roi_generator


class RoIGenerator(roi_generator.MultilevelROIGenerator):
    """Takes what the parent takes; `pre_nms_top_k` is what its name says, per level."""

    def call(
        self,
        raw_boxes: Mapping[str, tf.Tensor],
        raw_scores: Mapping[str, tf.Tensor],
        anchor_boxes: Mapping[str, tf.Tensor],
        image_shape: tf.Tensor,
        training: Optional[bool] = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Proposes RoIs.

        Args:
          raw_boxes: level -> [B, h, w, 4 * anchors], encoded.
          raw_scores: level -> [B, h, w, anchors] logits.
          anchor_boxes: level -> [B, h, w, 4 * anchors], [y1, x1, y2, x2] in pixels of the input.
          image_shape: [B, 2], height and width of the image inside its padding.
          training: which of the parent's two sets of numbers hold.

        Returns:
          Boxes [B, N, 4] within the image, each side of at least the threshold, and scores [B, N],
          best first. Where there are fewer than N, the first ones follow again; without any, all
          are the whole image, with a score of 0.
        """
        top_k = self.get_config()['pre_nms_top_k' if training else 'test_pre_nms_top_k']
        best = {
            level: _best(
                raw_boxes[level], raw_scores[level], anchor_boxes[level], image_shape, top_k
            )
            for level in raw_scores
        }
        boxes, scores, anchors = (
            {level: tensors[i] for level, tensors in best.items()} for i in range(3)
        )
        return _repeat(*super().call(boxes, scores, anchors, image_shape, training), image_shape)


def _best(boxes, scores, anchors, image_shape, top_k):
    """The `top_k` of a level, shaped as a level of as many nodes with one anchor each."""
    num_anchors = scores.shape[1] * scores.shape[2] * scores.shape[3]
    chosen = min(top_k, num_anchors)
    boxes, anchors = (tf.reshape(x, [-1, num_anchors, 4]) for x in (boxes, anchors))
    # What an anchor in the padding proposes is clipped to nothing, and would take a place.
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2.0
    inside = tf.reduce_all(centres < image_shape[:, tf.newaxis], axis=-1)
    scores = tf.where(inside, tf.reshape(scores, [-1, num_anchors]), scores.dtype.min)
    scores, indices = tf.math.top_k(scores, chosen)
    boxes, anchors = (tf.gather(x, indices, batch_dims=1) for x in (boxes, anchors))
    # The parent reads the number of nodes off the static shape.
    return (
        tf.reshape(boxes, [-1, chosen, 1, 4]),
        tf.reshape(scores, [-1, chosen, 1, 1]),
        anchors,
    )


def _repeat(boxes, scores, image_shape):
    """Proposals in place of those of zeros, which come last and have a score of 0."""
    count = tf.reduce_sum(tf.cast(scores > 0.0, tf.int32), axis=1, keepdims=True)
    places = tf.range(tf.shape(scores)[1]) % tf.maximum(count, 1)
    boxes, scores = (tf.gather(x, places, batch_dims=1) for x in (boxes, scores))
    image = tf.concat([tf.zeros_like(image_shape), image_shape], axis=1)[:, tf.newaxis]
    return tf.where(count[..., tf.newaxis] > 0, boxes, image), scores
