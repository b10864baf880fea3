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
      positives: [N] bool, or [B, N] for as many images, B known.
      negatives: the same, disjoint from `positives`.
      num_samples: how many to draw, at most N.
      positive_fraction: largest share of positives.
      seed: [2] int32, of this draw, or [B, 2].

    Returns:
      [num_samples] or [B, num_samples] int32 indices, positives first. Where positives and
      negatives together are too few, the rest are indices of the others: check the two masks. An
      image's are the same, alone or among others.
    """
    draw = _draw(tf.shape(positives)[-1:], seed)
    chosen = positives & _is_among_best(
        tf.where(positives, draw, -1.0), int(num_samples * positive_fraction)
    )
    priority = tf.where(chosen, 2.0 + draw, tf.where(negatives, 1.0 + draw, draw - 1.0))
    return tf.math.top_k(priority, num_samples).indices


def _draw(shape, seed):
    """Numbers from [0, 1), of each seed as many as `shape` says."""
    seed = tf.convert_to_tensor(seed)
    if seed.shape.rank == 1:
        return tf.random.stateless_uniform(shape, seed)
    return tf.stack([tf.random.stateless_uniform(shape, one) for one in tf.unstack(seed)])


def _is_among_best(values, count):
    """Whether each of the last axis is among the `count` largest; of equal ones the first are.

    The last one that is says it for all, so that no permutation has to be inverted, for which
    there is no kernel for GPUs. Places are compared as floating point, for TensorFlow compares
    integers of 32 bits on the host.
    """
    if count == 0:
        return tf.zeros_like(values, tf.bool)
    size = tf.shape(values)[-1]
    best, places = tf.math.top_k(values, tf.minimum(count, size))
    last, last_place = best[..., -1:], tf.cast(places, tf.float32)[..., -1:]
    is_before = tf.cast(tf.range(size), tf.float32) <= last_place
    return (values > last) | (tf.equal(values, last) & is_before)
