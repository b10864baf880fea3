# SPDX-License-Identifier: Apache-2.0
"""RoIs of the box head, sampled from the proposals.

He et al., Mask R-CNN (2017), section 3.1: a quarter of the RoIs have an object, the rest none.
"""

import tensorflow as tf
from official.vision.modeling.layers import roi_sampler

from gan_mrcnn.utils.balanced_sampling import sample_balanced


class RoISampler(roi_sampler.ROISampler):
    """The Model Garden's RoI matching with the sampling above."""

    def call(self, boxes, gt_boxes, gt_classes, sampling_seed):
        """Samples RoIs and their targets.

        Args:
          boxes: [B, N, 4] proposals, pixels of the network's input.
          gt_boxes: [B, M, 4], padded with -1.
          gt_classes: [B, M] int, padded with -1.
          sampling_seed: [B, 2] int32, B known.

        Returns:
          RoIs [B, K, 4], their ground-truth boxes [B, K, 4], classes int64 [B, K] (0 for
          background) and indices into `gt_boxes` int64 [B, K] (-1 for background); positives first.
          With integers of 32 bits TensorFlow would calculate on the host.
        """
        config = self._config_dict
        gt_boxes = tf.cast(gt_boxes, boxes.dtype)
        if config['mix_gt_boxes']:
            boxes = tf.concat([boxes, gt_boxes], axis=1)
        invalid = tf.reduce_max(boxes, axis=-1, keepdims=True) < 0.0
        gt_invalid = tf.reduce_max(gt_boxes, axis=-1, keepdims=True) < 0.0
        similarity = self._sim_calc(boxes, gt_boxes, invalid, gt_invalid)
        gt_indices, indicators = self._box_matcher(similarity)

        # A GPU compares no integers.
        kinds = tf.cast(indicators, tf.float32)
        indices = sample_balanced(
            kinds >= 0.0,
            tf.equal(kinds, -1.0),
            config['num_sampled_rois'],
            config['foreground_fraction'],
            sampling_seed,
        )
        gather = lambda x: tf.gather(x, indices, batch_dims=1)  # noqa: E731
        positive = gather(kinds) >= 0.0
        gt_indices = tf.where(positive, gather(tf.cast(gt_indices, tf.int64)), -1)
        matched = tf.maximum(gt_indices, 0)
        zero_where_negative = tf.cast(positive, boxes.dtype)[..., tf.newaxis]
        return (
            gather(boxes),
            tf.gather(gt_boxes, matched, batch_dims=1) * zero_where_negative,
            tf.where(positive, tf.gather(tf.cast(gt_classes, tf.int64), matched, batch_dims=1), 0),
            gt_indices,
        )
