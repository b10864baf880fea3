# SPDX-License-Identifier: Apache-2.0
"""The balanced draw of anchors and RoIs, from a seed that travels with the image.

The Model Garden samples with stateful random operations, whose state no checkpoint holds: a resumed
run would see other RoIs than one that was never stopped. Here the draw is a function of the
example's place in the run, so that runs repeat and resume.
"""

import tensorflow as tf


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
    # Of equal draws the first counts, here and below.
    best = tf.math.top_k(
        tf.where(positives, draw, -1.0), tf.minimum(max_positives, tf.size(positives))
    ).indices
    is_best = tf.scatter_nd(best[:, tf.newaxis], tf.ones_like(best), tf.shape(positives)) > 0
    chosen = positives & is_best
    priority = tf.where(chosen, 2.0 + draw, tf.where(negatives, 1.0 + draw, draw - 1.0))
    return tf.math.top_k(priority, num_samples).indices
