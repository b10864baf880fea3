# SPDX-License-Identifier: Apache-2.0
"""`tf.image.combined_non_max_suppression`, whichever implementation serves it.

TensorFlow's is one operation for the CPU. Here it is a sort, the compiled operation and another
sort, all of which run on a GPU, with no number in between that the host would have to read.
TensorFlow calculates with integers of 32 bits in the host's memory, wherever they come from; so
indices are only gathered with, and counts are turned into floating point.

Shapes: B images, N boxes per image, C classes, K boxes chosen of a class, T of an image.
"""

import tensorflow as tf

from custom_ops.prroi_pool import library

# The score of a place without a box, below that of every box.
_NONE = tf.float32.min


def combined_non_max_suppression(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    max_output_size_per_class: int,
    max_total_size: int,
    iou_threshold: float,
    score_threshold: float,
    implementation: str = 'auto',
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Chooses boxes class by class, best first, none of which overlaps a better one too much.

    The results are those of `tf.image.combined_non_max_suppression` without clipping and with
    `pad_per_class=False`, to the bit. Of equal scores TensorFlow's operation takes any box first,
    the compiled one the first, and of several classes the first class. There is no gradient.

    A box with a NaN score is never chosen. One without area, with a NaN, or with an area beyond
    float32 suppresses none and is never suppressed.

    Args:
      boxes: [B, N, C, 4] or, where the classes share their boxes, [B, N, 1, 4], float32,
        [y1, x1, y2, x2] in any unit. All sizes but B must be known, and N must be positive.
      scores: [B, N, C] float32.
      max_output_size_per_class: largest K.
      max_total_size: T.
      iou_threshold: IoU above which the worse of two boxes is left out, in [0, 1].
      score_threshold: boxes up to this score are left out.
      implementation: 'compiled' for the operation, 'tensorflow' for TensorFlow's own, 'auto' for
        the first of the two that there is. 'tensorflow_by_class' is TensorFlow's own as well,
        never with boxes of several classes at once, which cannot be converted into ONNX.

    Returns:
      Boxes [B, T, 4], scores [B, T] and classes [B, T], all float32, best first and zero behind the
      last; and how many there are, [B] int32.

    Raises:
      tf.errors.UnavailableError: 'compiled' was asked for and could not be built or loaded.
      ValueError: another `implementation`.
    """
    by_class = implementation == 'tensorflow_by_class'
    ops = library.choose('tensorflow' if by_class else implementation)
    if ops is None and not (by_class and boxes.shape[2] > 1):
        return tf.image.combined_non_max_suppression(
            boxes,
            scores,
            max_output_size_per_class,
            max_total_size,
            iou_threshold,
            score_threshold,
            clip_boxes=False,
        )
    num_classes = scores.shape[2]
    most = min(max_output_size_per_class, scores.shape[1])
    chosen = (
        _chosen_by_tensorflow(boxes, scores, most, iou_threshold, score_threshold)
        if by_class
        else _chosen(ops, boxes, scores, most, iou_threshold, score_threshold)
    )
    return _best_of_classes(*chosen, num_classes, max_total_size)


def _chosen(ops, boxes, scores, most, iou_threshold, score_threshold):
    """Of each class up to `most` boxes [B * C, K, 4], scores [B * C, K] and counts [B * C]."""
    boxes, scores = _sorted_groups(
        tf.stop_gradient(boxes), tf.stop_gradient(scores), score_threshold
    )
    indices, counts = ops.grouped_non_max_suppression(
        boxes,
        scores,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        max_output=most,
    )
    boxes, scores = (tf.gather(x, indices, batch_dims=1) for x in (boxes, scores))
    return boxes, scores, counts


def _chosen_by_tensorflow(boxes, scores, most, iou_threshold, score_threshold):
    """The same by TensorFlow's operation, for which each class is an image of its own."""
    num_boxes = scores.shape[1]
    boxes, scores, _, counts = tf.image.combined_non_max_suppression(
        tf.reshape(tf.transpose(boxes, [0, 2, 1, 3]), [-1, num_boxes, 1, 4]),
        tf.reshape(tf.transpose(scores, [0, 2, 1]), [-1, num_boxes, 1]),
        most,
        most,
        iou_threshold,
        score_threshold,
        clip_boxes=False,
    )
    return boxes, scores, counts


def _sorted_groups(boxes, scores, score_threshold):
    """Boxes [B * C, N, 4] and scores [B * C, N], best first, those up to the threshold last."""
    _, num_boxes, num_classes = scores.shape
    scores = tf.transpose(scores, [0, 2, 1])
    # NaN is above nothing, and no number to sort by.
    scores = tf.where(scores > score_threshold, scores, _NONE)
    scores, order = tf.math.top_k(scores, num_boxes)
    if boxes.shape[2] == 1:
        boxes = tf.gather(boxes[:, :, 0], order, batch_dims=1)
    else:
        boxes = tf.gather(tf.transpose(boxes, [0, 2, 1, 3]), order, batch_dims=2)
    return tf.reshape(boxes, [-1, num_boxes, 4]), tf.reshape(scores, [-1, num_boxes])


def _best_of_classes(boxes, scores, counts, num_classes, size):
    """The results, from the [B * C, K] that were chosen of each class."""
    num_chosen = scores.shape[1]
    places = tf.range(num_chosen, dtype=tf.float32)
    scores = tf.where(places < tf.cast(counts, tf.float32)[:, tf.newaxis], scores, _NONE)
    total = num_classes * num_chosen
    boxes, scores = tf.reshape(boxes, [-1, total, 4]), tf.reshape(scores, [-1, total])
    scores, order = tf.math.top_k(scores, min(size, total))
    classes = tf.repeat(tf.range(num_classes, dtype=tf.float32), num_chosen)
    exists = scores > _NONE
    results = [
        tf.where(exists[..., tf.newaxis], tf.gather(boxes, order, batch_dims=1), 0.0),
        tf.where(exists, scores, 0.0),
        tf.where(exists, tf.gather(classes, order), 0.0),
    ]
    missing = [[0, 0], [0, size - scores.shape[1]]]
    results = [tf.pad(x, missing + [[0, 0]] * (len(x.shape) - 2)) for x in results]
    counts = tf.reduce_sum(tf.cast(exists, tf.float32), axis=1)
    return (*results, tf.cast(counts, tf.int32))
