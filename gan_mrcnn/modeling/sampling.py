# SPDX-License-Identifier: Apache-2.0
"""Balanced sampling of anchors and RoIs from a seed that travels with the image.

The Model Garden samples with stateful random operations, whose state no checkpoint holds: a resumed
run would see other RoIs than one that was never stopped. Here the draw is a function of the
example's place in the run (`sampling_seed`, made by the parser), so that runs repeat and resume.

It also compares all anchors with all objects at once. A picture of 1024x2048 pixels has 523,776
anchors, and with 300 objects each of several such matrices is 630 MB. Here they are compared with a
few objects at a time.
"""

import tensorflow as tf
from official.vision.modeling.layers import roi_sampler
from official.vision.ops import anchor, box_matcher

# Pairs of an anchor and an object that are compared at a time, 4 MB for each number about them.
_PAIRS = 1 << 20


def sample_balanced(
    positives: tf.Tensor,
    negatives: tf.Tensor,
    num_samples: int,
    positive_fraction: float,
    seed: tf.Tensor,
) -> tf.Tensor:
    """Draws at most `num_samples * positive_fraction` positives and fills up with negatives.

    Args:
      positives: [N] bool.
      negatives: [N] bool, disjoint from `positives`.
      num_samples: how many to draw, at most N.
      positive_fraction: largest share of positives.
      seed: [2] int32, of this draw.

    Returns:
      [num_samples] int32 indices, positives first. Where positives and negatives together are too
      few, the rest are indices of the others: check the two masks.
    """
    draw = tf.random.stateless_uniform(tf.shape(positives), seed)
    max_positives = int(num_samples * positive_fraction)
    order = tf.argsort(tf.where(positives, draw, -1.0), direction='DESCENDING')
    rank = tf.math.invert_permutation(order)
    chosen = positives & (rank < max_positives)
    priority = tf.where(chosen, 2.0 + draw, tf.where(negatives, 1.0 + draw, draw - 1.0))
    return tf.math.top_k(priority, num_samples).indices


class AnchorLabeler(anchor.RpnAnchorLabeler):
    """The Model Garden's anchor targets with the sampling above; one instance per draw.

    The matching is equal to the Model Garden's, too, in memory that does not grow with the objects.
    """

    def __init__(
        self,
        seed: tf.Tensor,
        batch_size_per_image: int,
        positive_fraction: float,
        match_threshold: float = 0.7,
        unmatched_threshold: float = 0.3,
    ):
        super().__init__(
            match_threshold, unmatched_threshold, batch_size_per_image, positive_fraction
        )
        self._seed = seed
        self._overlaps = self.similarity_calc
        self._classify = box_matcher.BoxMatcher(
            [unmatched_threshold, match_threshold], indicators=[-1, -2, 1]
        )
        # The parent hands on whatever the comparison gives: here the boxes, yet to be compared.
        self.similarity_calc = lambda *boxes: boxes
        self.matcher = lambda boxes: self._match(*boxes)

    def _match(self, anchors, objects):
        """Each anchor's object, as the Model Garden's matcher finds it, ties included.

        Args:
          anchors: [A, 4], A static.
          objects: [N, 4].

        Returns:
          [A] int32, index of the object; and [A] int32, whether the two match (1), do not (-1) or
          are to be ignored (-2). An object's best anchor matches it, whatever their IoU.
        """
        num_anchors, num_objects = anchors.shape[0], tf.shape(objects)[0]
        size = max(_PAIRS // num_anchors, 1)

        def add(start, best, best_object, forced_object):
            overlaps = self._overlaps(objects[start : start + size], anchors)
            numbers = start + tf.range(tf.shape(overlaps)[0])
            highest = tf.reduce_max(overlaps, axis=0)
            which = start + tf.argmax(overlaps, axis=0, output_type=tf.int32)
            # Of several best objects the first counts, and so it does of those that force a match.
            best_object = tf.where(highest > best, which, best_object)
            best_anchors = tf.argmax(overlaps, axis=1, output_type=tf.int32)
            forced_object = tf.tensor_scatter_nd_min(
                forced_object, best_anchors[:, tf.newaxis], numbers
            )
            return start + size, tf.maximum(highest, best), best_object, forced_object

        # One after the other, for TensorFlow would compare several at a time.
        _, best, best_object, forced_object = tf.while_loop(
            lambda start, *_: start < num_objects,
            add,
            (
                tf.constant(0),
                tf.fill([num_anchors], -1.0),
                tf.zeros([num_anchors], tf.int32),
                tf.fill([num_anchors], tf.int32.max),
            ),
            parallel_iterations=1,
        )
        is_forced = forced_object < num_objects
        _, indicators = self._classify(best[:, tf.newaxis])
        return (
            tf.where(is_forced, forced_object, best_object),
            tf.where(is_forced, 1, indicators),
        )

    def _get_rpn_samples(self, match_results):
        """As the parent's: 1 sampled positive, 0 sampled negative, -1 not sampled, [N] int32."""
        positives = match_results > -1
        negatives = tf.equal(match_results, -1)
        indices = sample_balanced(
            positives,
            negatives,
            min(self._rpn_batch_size_per_im, match_results.shape[0]),
            self._rpn_fg_fraction,
            self._seed,
        )
        sampled = tf.scatter_nd(
            indices[:, tf.newaxis], tf.ones_like(indices), tf.shape(match_results)
        )
        positives = positives & (sampled > 0)
        negatives = negatives & (sampled > 0)
        targets = tf.where(positives, 1, tf.where(negatives, 0, -1))
        return targets, positives, negatives


class RoISampler(roi_sampler.ROISampler):
    """The Model Garden's RoI matching with the sampling above."""

    def call(self, boxes, gt_boxes, gt_classes, sampling_seed):
        """Samples RoIs and their targets.

        Args:
          boxes: [B, N, 4] proposals, pixels of the network's input.
          gt_boxes: [B, M, 4], padded with -1.
          gt_classes: [B, M] int, padded with -1.
          sampling_seed: [B, 2] int32.

        Returns:
          RoIs [B, K, 4], their ground-truth boxes [B, K, 4], classes [B, K] (0 for background) and
          indices into `gt_boxes` [B, K] (-1 for background); positives first.
        """
        config = self._config_dict
        gt_boxes = tf.cast(gt_boxes, boxes.dtype)
        if config['mix_gt_boxes']:
            boxes = tf.concat([boxes, gt_boxes], axis=1)
        invalid = tf.reduce_max(boxes, axis=-1, keepdims=True) < 0.0
        gt_invalid = tf.reduce_max(gt_boxes, axis=-1, keepdims=True) < 0.0
        similarity = self._sim_calc(boxes, gt_boxes, invalid, gt_invalid)
        gt_indices, indicators = self._box_matcher(similarity)

        def sample(args):
            indicator, seed = args
            return sample_balanced(
                indicator >= 0,
                tf.equal(indicator, -1),
                config['num_sampled_rois'],
                config['foreground_fraction'],
                seed,
            )

        indices = tf.map_fn(sample, (indicators, sampling_seed), fn_output_signature=tf.int32)
        gather = lambda x: tf.gather(x, indices, batch_dims=1)  # noqa: E731
        positive = gather(indicators) >= 0
        gt_indices = tf.where(positive, gather(gt_indices), -1)
        matched = tf.maximum(gt_indices, 0)
        zero_where_negative = tf.cast(positive, boxes.dtype)[..., tf.newaxis]
        return (
            gather(boxes),
            tf.gather(gt_boxes, matched, batch_dims=1) * zero_where_negative,
            tf.where(positive, tf.gather(gt_classes, matched, batch_dims=1), 0),
            gt_indices,
        )
