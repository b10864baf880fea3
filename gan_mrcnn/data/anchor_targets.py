# SPDX-License-Identifier: Apache-2.0
"""Targets of the RPN: which anchors are sampled, and what they should predict.

The Model Garden compares all anchors with all objects at once. An image of 1024x2048 pixels has
523,776 anchors, and with 300 objects each of several such matrices is 630 MB. Here they are
compared with a few objects at a time.
"""

from typing import Optional

import tensorflow as tf
from official.vision.ops import anchor, box_matcher

from gan_mrcnn.utils.balanced_sampling import sample_balanced

# Pairs of an anchor and an object that are compared at a time, 4 MB for each number about them.
_PAIRS = 1 << 20


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
        image_size: Optional[tf.Tensor] = None,
    ):
        """Makes a labeler for one image.

        Args:
          seed: [2] int32, of the draw.
          batch_size_per_image: anchors to draw.
          positive_fraction: largest share of positive ones.
          match_threshold: IoU from which on an anchor is positive.
          unmatched_threshold: IoU below which it is negative.
          image_size: [2] float, height and width of the image inside its padding, in pixels;
            anchors whose centre lies beyond are never drawn. None: there is no padding.
        """
        super().__init__(
            match_threshold, unmatched_threshold, batch_size_per_image, positive_fraction
        )
        self._seed = seed
        self._image_size = image_size
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
        inside = self._inside(anchors)
        size = max(_PAIRS // num_anchors, 1)

        def add(start, best, best_object, forced_object):
            overlaps = self._overlaps(objects[start : start + size], anchors)
            # Below every IoU: no object's best anchor lies in the padding either.
            overlaps = tf.where(inside, overlaps, -1.0)
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
        # An image of one pixel's height holds no anchor's centre.
        is_forced = (forced_object < num_objects) & inside
        _, indicators = self._classify(best[:, tf.newaxis])
        return (
            tf.where(is_forced, forced_object, best_object),
            tf.where(is_forced, 1, tf.where(inside, indicators, -2)),
        )

    def _inside(self, anchors):
        """Whether the centre of each anchor lies in the image, [A] bool."""
        if self._image_size is None:
            return tf.ones([anchors.shape[0]], tf.bool)
        centres = (anchors[:, :2] + anchors[:, 2:]) / 2.0
        return tf.reduce_all(centres < tf.cast(self._image_size, centres.dtype), axis=1)

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
