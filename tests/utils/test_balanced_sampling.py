"""Balanced sampling: counts, order, repeatability."""

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from gan_mrcnn.utils.balanced_sampling import sample_balanced


@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(['positive', 'negative', 'ignored']), min_size=20, max_size=60),
    fraction=st.sampled_from([0.25, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_counts_and_order(kinds, fraction, seed):
    positives = np.array([kind == 'positive' for kind in kinds])
    negatives = np.array([kind == 'negative' for kind in kinds])
    num_samples = 16
    indices = sample_balanced(
        tf.constant(positives),
        tf.constant(negatives),
        num_samples,
        fraction,
        tf.constant([seed, 1]),
    ).numpy()
    assert len(set(indices)) == num_samples
    wanted_positives = min(int(num_samples * fraction), positives.sum())
    wanted_negatives = min(num_samples - wanted_positives, negatives.sum())
    assert positives[indices[:wanted_positives]].all()
    assert negatives[indices[wanted_positives:][:wanted_negatives]].all()


def by_ranks(positives, negatives, num_samples, fraction, seed):
    """The draw of one image, every positive ranked."""
    draw = tf.random.stateless_uniform(positives.shape, seed).numpy()
    order = np.argsort(np.where(positives, -draw, 1), kind='stable')
    chosen = np.zeros_like(positives)
    chosen[order[: int(num_samples * fraction)]] = True
    chosen &= positives
    priority = np.where(chosen, 2 + draw, np.where(negatives, 1 + draw, draw - 1))
    assert priority.dtype == np.float32
    return np.argsort(-priority, kind='stable')[:num_samples]


@settings(max_examples=60)
@given(
    images=st.integers(1, 4),
    # Enough that some draws, with their 23 bits, are equal.
    size=st.sampled_from([16, 70, 5000]),
    shares=st.tuples(st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([0.0, 0.3, 0.5])),
    fraction=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_images_together_are_drawn_as_each_alone(images, size, shares, fraction, seed):
    kinds = np.random.default_rng(seed).uniform(size=[images, size])
    positives, negatives = kinds < shares[0], kinds > 1 - shares[1]
    seeds = tf.stack([[seed, i] for i in range(images)])
    found = sample_balanced(tf.constant(positives), tf.constant(negatives), 16, fraction, seeds)
    for i in range(images):
        alone = positives[i], negatives[i], 16, fraction, seeds[i]
        np.testing.assert_array_equal(found[i], by_ranks(*alone))
        np.testing.assert_array_equal(
            found[i], sample_balanced(*map(tf.constant, alone[:2]), *alone[2:])
        )


def test_draw_depends_on_the_seed_alone_and_is_fair():
    positives = tf.range(100) < 50
    draw = lambda seed: sample_balanced(  # noqa: E731
        positives, ~positives, 20, 0.5, tf.constant([seed, 0])
    ).numpy()
    np.testing.assert_array_equal(draw(3), draw(3))
    counts = np.bincount(np.concatenate([draw(seed) for seed in range(400)]), minlength=100)
    # Each of 50 is drawn 10 of 50 times: mean 80, standard deviation 8.
    assert counts.min() > 80 - 5 * 8 and counts.max() < 80 + 5 * 8
