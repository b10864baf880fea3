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


def test_draw_depends_on_the_seed_alone_and_is_fair():
    positives = tf.range(100) < 50
    draw = lambda seed: sample_balanced(  # noqa: E731
        positives, ~positives, 20, 0.5, tf.constant([seed, 0])
    ).numpy()
    np.testing.assert_array_equal(draw(3), draw(3))
    counts = np.bincount(np.concatenate([draw(seed) for seed in range(400)]), minlength=100)
    # Each of 50 is drawn 10 of 50 times: mean 80, standard deviation 8.
    assert counts.min() > 80 - 5 * 8 and counts.max() < 80 + 5 * 8
