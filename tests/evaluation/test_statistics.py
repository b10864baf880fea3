"""Statistics of a few seeds, against formulas and enumerations written out."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gan_mrcnn.evaluation import statistics

# Mask AP of five seeds each.
FIRST = [0.383, 0.335, 0.365, 0.308, 0.328]
SECOND = [0.324, 0.333, 0.334, 0.384, 0.371]
NAN = float('nan')
# Quantiles of Student's t at .975, from a printed table.
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 7: 2.365, 8: 2.306}

figures = st.lists(st.integers(0, 30).map(lambda x: x / 30), min_size=2, max_size=5)


@st.composite
def equal_arms(draw):
    """Two arms of the same number of seeds."""
    n = draw(st.integers(2, 4))
    return [draw(st.lists(st.integers(0, 20), min_size=n, max_size=n)) for _ in range(2)]


def test_a_summary_leaves_out_what_is_missing():
    assert statistics.summarize([1, NAN, 3]) == (2, pytest.approx(math.sqrt(2)), 2)
    assert statistics.summarize([0.5]) == (0.5, None, 1)
    assert statistics.summarize([NAN]) == (None, None, 0)


def test_welchs_interval_by_hand():
    a, b = np.array(FIRST), np.array(SECOND)
    va, vb = a.var(ddof=1) / 5, b.var(ddof=1) / 5
    freedom = (va + vb) ** 2 / (va**2 / 4 + vb**2 / 4)
    # Between 7 and 8 degrees of freedom, the quantile is close to linear.
    t = T[7] + (freedom - 7) * (T[8] - T[7])
    middle, half = b.mean() - a.mean(), t * math.sqrt(va + vb)
    expected = (middle - half, middle + half)
    assert statistics.welch_interval(FIRST, [*SECOND, NAN]) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize('first, second', [([1], [2, 3]), ([1, 1], [2, 2]), ([NAN, 1], [1, 2])])
def test_no_interval_without_a_variance(first, second):
    assert statistics.welch_interval(first, second) is None


def test_the_paired_comparison_by_hand():
    differences = np.array(SECOND) - np.array(FIRST)
    half = T[4] * differences.std(ddof=1) / math.sqrt(5)
    mean = differences.mean()
    found = statistics.paired(FIRST, SECOND)
    assert found.difference == pytest.approx(mean) and found.n == 5
    assert found.interval == pytest.approx((mean - half, mean + half), abs=1e-4)
    flipped = [np.mean(differences * signs) for signs in itertools.product((1, -1), repeat=5)]
    assert found.p == np.mean(np.abs(flipped) >= abs(mean) - 1e-12)


def test_pairs_that_lack_a_side_are_left_out():
    assert statistics.paired([1, NAN, 5], [2, 3, NAN]) == (1, None, None, 1)
    assert statistics.paired([NAN], [1]) == (None, None, None, 0)
    # The same difference three times has no variance, but can be flipped.
    assert statistics.paired([1, 2, 3], [2, 3, 4]) == (1, None, 2 / 8, 3)


def test_the_smallest_p_is_one_of_the_regroupings():
    """Three against three, all above: 2 of 20 regroupings; five against five: 2 of 252."""
    assert statistics.permutation_p([1, 2, 3], [4, 5, 6]) == pytest.approx(2 / 20)
    assert statistics.permutation_p(range(5), range(5, 10)) == pytest.approx(2 / 252)
    assert statistics.permutation_p([1, 2], [1, 2]) == 1
    assert statistics.permutation_p([1], [4, 5]) is None


@settings(max_examples=30)
@given(equal_arms())
def test_the_exact_p_counts_regroupings(arms):
    """Of arms of equal size, for which the distribution is symmetric."""
    first, second = arms
    together = np.array(first + second)
    n, total = len(first), sum(together)
    observed = abs(sum(second) - sum(first))
    differences = [
        abs(total - 2 * together[list(chosen)].sum())
        for chosen in itertools.combinations(range(2 * n), n)
    ]
    expected = np.mean([difference >= observed for difference in differences])
    assert statistics.permutation_p(first, second) == pytest.approx(expected)


def test_many_seeds_are_regrouped_at_random_the_same_each_time():
    first, second = np.arange(12.0), np.arange(12.0) + 2.5
    p = statistics.permutation_p(first, second)
    assert p == statistics.permutation_p(first, second)
    # Against the normal approximation of the permutation distribution.
    together = np.concatenate([first, second])
    z = 2.5 / math.sqrt(together.var(ddof=1) * 2 / 12)
    assert p == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.02)


@settings(max_examples=30)
@given(figures, figures)
def test_order_of_the_arms_turns_the_sign_only(first, second):
    there, back = (statistics.welch_interval(*arms) for arms in ((first, second), (second, first)))
    assert (there is None) == (back is None)
    if there is not None:
        assert there == pytest.approx((-back[1], -back[0]))
    assert statistics.permutation_p(first, second) == pytest.approx(
        statistics.permutation_p(second, first)
    )


def test_seeds_needed_in_closed_form():
    """A difference of one deviation wants 2 (1.96 + .842)^2 = 15.7, a half four times that."""
    assert statistics.seeds_needed(1, 1, 1) == 16
    assert statistics.seeds_needed(1, 1, -0.5) == 63
    assert statistics.seeds_needed(0.03, 0.027, 0.01) == math.ceil(7.8489 * 0.001629 / 0.0001)
    assert statistics.seeds_needed(0.0, 0.0, 1) == 2
    assert statistics.seeds_needed(1, 1, 0) is None
    assert statistics.seeds_needed(None, 1, 1) is None


def test_that_many_seeds_have_the_power():
    rng = np.random.default_rng(0)
    n = statistics.seeds_needed(1, 1, 0.6)
    arms = rng.normal(size=(2000, 2, n)) + np.array([0, 0.6])[:, None]
    standard_error = np.sqrt(arms.var(axis=2, ddof=1).sum(axis=1) / n)
    z = (arms[:, 1].mean(axis=1) - arms[:, 0].mean(axis=1)) / standard_error
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(statistics.POWER, abs=0.03)


def test_the_interval_over_images_is_that_of_differences_of_means():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(100, 2)), rng.normal(size=(100, 3))
    differences = sorted(second.mean(axis=1) - first.mean(axis=1))
    low, high = statistics.images_interval(first, second)
    # The 2.5th percentile of 100 lies between the third and the fourth.
    assert differences[2] <= low <= differences[3] and differences[96] <= high <= differences[97]
    second[:99, 1] = NAN
    assert statistics.images_interval(first, second)[0] == pytest.approx(
        second[99].mean() - first[99].mean()
    )
    second[:] = NAN
    assert statistics.images_interval(first, second) is None


def test_seeds_that_agree_add_nothing_but_wider_percentiles():
    """Three and four seeds: the normal tail beyond Student's 2.571 with five degrees of freedom."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 500))
    tail = math.erfc(2.571 / math.sqrt(2)) / 2
    found = statistics.seeds_and_images_interval(
        np.tile(first[:, None], 3), np.tile(second[:, None], 4)
    )
    assert found == pytest.approx(np.quantile(second - first, (tail, 1 - tail)), abs=1e-3)


def test_images_that_agree_leave_the_resampled_seeds():
    """Of two seeds one is drawn: each of the four differences is as likely."""
    found = statistics.seeds_and_images_interval(
        np.tile([0.1, 0.2], (500, 1)), np.tile([0.4, 0.7], (500, 1))
    )
    assert found == pytest.approx((0.4 - 0.2, 0.7 - 0.1))


def test_resampled_seeds_vary_as_means_do():
    """The variance of a mean of n is the unbiased one of the values over n."""
    values = np.array([0.1, 0.2, 0.6])
    drawn = statistics._resampled_mean(np.tile(values, (50_000, 1)), np.random.default_rng(0))
    assert np.mean(drawn) == pytest.approx(np.mean(values), abs=0.002)
    assert np.var(drawn) == pytest.approx(np.var(values, ddof=1) / 3, rel=0.02)


def test_one_seed_has_no_interval_over_seeds():
    values = np.zeros((10, 3))
    assert statistics.seeds_and_images_interval(values[:, :1], values) is None
    assert statistics.seeds_and_images_interval(values, values[:, :1]) is None


@pytest.mark.parametrize(
    'num_seeds, least, most', [(3, 0.86, 0.97), (5, 0.91, 0.98), (20, 0.92, 0.98)]
)
def test_the_interval_over_seeds_and_images_covers(num_seeds, least, most):
    """Simulated figures: an effect of the arm, of the seed, of the images and of both."""
    rng = np.random.default_rng(1)
    num_images, covered = 40, 0
    for trial in range(150):
        # Some images are easier for the second arm than others; the true difference is 0.3.
        easier = rng.normal(0, 0.5, num_images)
        first = rng.normal(0, 0.2, (num_seeds, 1)) + rng.normal(0, 0.3, (num_seeds, num_images))
        second = 0.3 + easier + rng.normal(0, 0.2, (num_seeds, 1))
        second = second + rng.normal(0, 0.3, (num_seeds, num_images))
        weights = rng.multinomial(num_images, np.full(num_images, 1 / num_images), 400)
        first, second = (weights @ arm.T / num_images for arm in (first, second))
        low, high = statistics.seeds_and_images_interval(first, second, seed=trial)
        covered += low <= 0.3 <= high
    assert least <= covered / 150 <= most
