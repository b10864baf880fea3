# SPDX-License-Identifier: Apache-2.0
"""Targets of the RPN: which anchors are sampled, and what they should predict.

The Model Garden compares all anchors with all objects at once. An image of 1024x2048 pixels has
523,776 anchors, and with 300 objects each of several such matrices is 630 MB. Here they are
compared with one object at a time, and only those that match an object are encoded.
"""

from typing import Optional

import tensorflow as tf
from official.vision.ops import anchor
from official.vision.utils.object_detection import box_list

from gan_mrcnn.utils.balanced_sampling import sample_balanced

# Matched anchors are encoded in multiples of this number. The processor's wide instructions and its
# narrow ones, for what is left over, differ in the last bit of a logarithm.
_WIDTH = 64


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
        self._thresholds = unmatched_threshold, match_threshold

    def label_anchors(self, anchor_boxes, gt_boxes):
        """Score and box targets by level, as the parent's.

        Args:
          anchor_boxes: level -> [h, w, 4 * anchors per place].
          gt_boxes: [N, 4].

        Returns:
          Level -> [h, w, anchors per place] int32, 1 positive, 0 negative, -1 neither; and level ->
          [h, w, 4 * anchors per place] float32, zeros where no object matches.
        """
        anchors = tf.concat([tf.reshape(x, [-1, 4]) for x in anchor_boxes.values()], axis=0)
        matches, indicators = self._match(anchors, gt_boxes)
        scores, _, _ = self._get_rpn_samples(indicators)
        boxes = self._encode(anchors, gt_boxes, matches, indicators)
        return tuple(anchor.unpack_targets(x, anchor_boxes) for x in (scores, boxes))

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
        iou_with_all = _compare(anchors, inside)

        def add(number, best, best_object, forced_object):
            overlaps = iou_with_all(objects[number])
            # Of several best objects the first counts, and so it does of those that force a match.
            best_object = tf.where(overlaps > best, number, best_object)
            best_anchor = tf.argmax(overlaps, output_type=tf.int32)
            forced_object = tf.tensor_scatter_nd_min(forced_object, [[best_anchor]], [number])
            return number + 1, tf.maximum(overlaps, best), best_object, forced_object

        # One after the other, for TensorFlow would compare several at a time.
        _, best, best_object, forced_object = tf.while_loop(
            lambda number, *_: number < num_objects,
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
        low, high = self._thresholds
        indicators = tf.where(best >= high, 1, tf.where(best < low, -1, -2))
        return (
            tf.where(is_forced, forced_object, best_object),
            tf.where(is_forced, 1, tf.where(inside, indicators, -2)),
        )

    def _encode(self, anchors, objects, matches, indicators):
        """What the matched anchors are to predict, [A, 4]; zeros for the others."""
        places = tf.where(indicators > 0)[:, 0]
        matched = tf.gather(anchors, places)
        boxes = tf.gather(objects, tf.gather(matches, places))
        filling = [[0, -tf.size(places) % _WIDTH], [0, 0]]
        codes = self.box_coder.encode(
            *(box_list.BoxList(tf.pad(x, filling, constant_values=1.0)) for x in (boxes, matched))
        )
        return tf.scatter_nd(
            places[:, tf.newaxis], codes[: tf.size(places)], tf.shape(anchors, tf.int64)
        )

    def _inside(self, anchors):
        """Whether the centre of each anchor lies in the image, [A] bool."""
        if self._image_size is None:
            return tf.ones([anchors.shape[0]], tf.bool)
        top, left, bottom, right = tf.unstack(anchors, axis=1)
        height, width = tf.unstack(tf.cast(self._image_size, anchors.dtype))
        return ((top + bottom) / 2.0 < height) & ((left + right) / 2.0 < width)

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


def _compare(anchors, inside):
    """The function from a box [4] to its IoU with all anchors [A], that of the Model Garden.

    Those that are not `inside` [A] get 0, too: they are given no height to overlap with.
    """
    top, left, bottom, right = tf.unstack(anchors, axis=1)
    areas = (bottom - top) * (right - left)
    bottom = tf.where(inside, bottom, top)

    def compare(box):
        y1, x1, y2, x2 = tf.unstack(box)
        height = tf.nn.relu(tf.minimum(bottom, y2) - tf.maximum(top, y1))
        width = tf.nn.relu(tf.minimum(right, x2) - tf.maximum(left, x1))
        common = height * width
        # No anchor is without area, nor is then what the two cover together.
        return common / ((y2 - y1) * (x2 - x1) + areas - common)

    return compare
