# SPDX-License-Identifier: Apache-2.0
"""Detections: the Model Garden's decoding of the box head's outputs, and NMS class by class.

He et al., Mask R-CNN (2017), section 3.1. What differs from the Model Garden's is the operation for
NMS, which runs on a GPU, too.

Shapes: B images, N RoIs, C classes without the background, D detections at most.
"""

from typing import Optional

import tensorflow as tf
from official.vision.modeling.layers import detection_generator

from custom_ops.nms import combined_non_max_suppression
from gan_mrcnn.utils import devices


class DetectionGenerator(detection_generator.DetectionGenerator):
    """Takes what the parent takes; always its `batched` NMS."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._decoder = detection_generator.DetectionGenerator(**{**kwargs, 'apply_nms': False})

    def __call__(
        self,
        raw_boxes: tf.Tensor,
        raw_scores: tf.Tensor,
        anchor_boxes: tf.Tensor,
        image_shape: tf.Tensor,
        regression_weights: Optional[list[float]] = None,
        bbox_per_class: bool = True,
        nms: str = 'auto',
    ) -> dict[str, tf.Tensor]:
        """Detects objects.

        Args:
          raw_boxes: [B, N, 4 * (C + 1)], encoded; [B, N, 4] without `bbox_per_class`.
          raw_scores: [B, N, C + 1] logits, the background's first.
          anchor_boxes: [B, N, 4] RoIs, [y1, x1, y2, x2] in pixels of the input.
          image_shape: [B, 2], height and width of the image inside its padding.
          regression_weights: of the four numbers of an encoded box.
          bbox_per_class: whether each class has boxes of its own.
          nms: `implementation` of `custom_ops.nms`.

        Returns:
          `detection_boxes` [B, D, 4] within the image, `detection_scores` [B, D], best first,
          `detection_classes` int32 [B, D], 1 for the first, and `num_detections` int32 [B]. Boxes
          and scores behind the last are zero, classes one.
        """
        decoded = self._decoder(
            raw_boxes, raw_scores, anchor_boxes, image_shape, regression_weights, bbox_per_class
        )
        if nms == 'auto' and not devices.has_gpu():
            # Of many candidates few are above the threshold, and TensorFlow's operation sorts them
            # only: on a CPU it is the faster one.
            nms = 'tensorflow'
        config = self.get_config()
        boxes, scores, classes, counts = combined_non_max_suppression(
            decoded['decoded_boxes'],
            decoded['decoded_box_scores'],
            max_output_size_per_class=config['max_num_detections'],
            max_total_size=config['max_num_detections'],
            iou_threshold=config['nms_iou_threshold'],
            score_threshold=config['pre_nms_score_threshold'],
            implementation=nms,
        )
        return {
            'num_detections': counts,
            'detection_boxes': boxes,
            'detection_classes': tf.cast(classes + 1.0, tf.int32),
            'detection_scores': scores,
        }
