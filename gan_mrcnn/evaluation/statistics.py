# SPDX-License-Identifier: Apache-2.0
"""What a few seeds of two arms say about the difference of their means.

Arrays are the figures of runs, one value per seed; NaN is a figure that a run does not have, and is
left out. Intervals hold 95%. Where the values do not allow a statistic, it is None.
"""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
POWER = 0.8
# Regroupings of seeds: all of them where there are no more, otherwise as many drawn ones.
MOST_PERMUTATIONS = 20_000

Interval = tuple[float, float]


class Summary(NamedTuple):
    """Mean, standard deviation (None for fewer than two) and number of values."""

    mean: Optional[float]
    spread: Optional[float]
    n: int


class Paired(NamedTuple):
    """Second minus first of the same seed: mean, Student's t interval, sign-flip p, pairs."""

    difference: Optional[float]
    interval: Optional[Interval]
    p: Optional[float]
    n: int


def summarize(values: Sequence[float]) -> Summary:
    """Of the values that are there."""
    known = _known(values)
    return Summary(
        float(np.mean(known)) if len(known) else None,
        float(np.std(known, ddof=1)) if len(known) > 1 else None,
        len(known),
    )


def welch_interval(first: Sequence[float], second: Sequence[float]) -> Optional[Interval]:
    """Of the mean of `second` minus that of `first`, their variances not taken as equal.

    Welch, The generalization of `Student's' problem when several different population variances
    are involved (1947). None for fewer than two values in an arm, or no variance in either.
    """
    first, second = _known(first), _known(second)
    if min(len(first), len(second)) < 2 or np.ptp(first) == np.ptp(second) == 0:
        return None
    with warnings.catch_warnings():
        # One arm whose seeds all give the same is no mistake.
        warnings.simplefilter('ignore', RuntimeWarning)
        result = stats.ttest_ind(second, first, equal_var=False)
    return _interval(result.confidence_interval(CONFIDENCE))


def permutation_p(first: Sequence[float], second: Sequence[float]) -> Optional[float]:
    """Two-sided p of the difference of means, over regroupings of the seeds into the two arms.

    Exact up to `MOST_PERMUTATIONS` regroupings; otherwise of so many drawn ones, with one added to
    both counts (Phipson and Smyth 2010), the same at each call. None for fewer than two values in
    an arm.
    """
    first, second = _known(first), _known(second)
    if min(len(first), len(second)) < 2:
        return None
    return _permutation_p((second, first), _mean_difference, 'independent')


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compares the same seed with itself.

    The p value flips signs of differences, exact or drawn as in `permutation_p`.

    Args:
      first, second: of the same length and order of seeds; a pair with a NaN is left out.
    """
    differences = _known(np.asarray(second, float) - np.asarray(first, float))
    difference, spread, n = summarize(differences)
    if spread is None:
        return Paired(difference, None, None, n)
    interval = None
    if spread > 0:
        interval = _interval(stats.ttest_1samp(differences, 0).confidence_interval(CONFIDENCE))
    p = _permutation_p((differences,), np.mean, 'samples')
    return Paired(difference, interval, p, n)


def seeds_needed(
    first_spread: Optional[float], second_spread: Optional[float], difference: Optional[float]
) -> Optional[int]:
    """Seeds of each arm for which a difference of means is found in `POWER` of all experiments.

    By the normal approximation of the unpaired two-sided test at 5%, n = (z_.975 + z_.8)^2 (s1^2 +
    s2^2) / d^2, with the deviations that were observed; few seeds know these badly, and for small n
    the t distribution wants one or two more. At least 2.

    Args:
      first_spread, second_spread: standard deviations over seeds.
      difference: to be found, of either sign.
    """
    if None in (first_spread, second_spread, difference) or difference == 0:
        return None
    z = stats.norm.ppf((1 + CONFIDENCE) / 2) + stats.norm.ppf(POWER)
    needed = z**2 * (first_spread**2 + second_spread**2) / difference**2
    return max(2, math.ceil(needed)) if math.isfinite(needed) else None


def images_interval(first: np.ndarray, second: np.ndarray) -> Optional[Interval]:
    """Of the mean of `second` minus that of `first` over resampled images: a paired bootstrap.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993). It says nothing about other
    seeds.

    Args:
      first, second: [samples, runs] figures on the same resampled images.
    """
    return _percentiles(np.mean(second, axis=1) - np.mean(first, axis=1), (1 - CONFIDENCE) / 2)


def seeds_and_images_interval(
    first: np.ndarray, second: np.ndarray, seed: int = 0
) -> Optional[Interval]:
    """The same with the seeds of each arm resampled within each resampling of the images.

    Seeds and images are crossed, and are resampled independently of each other (Owen, The
    pigeonhole bootstrap, 2007), which errs on the wide side. Of n seeds n - 1 are drawn: n would
    make the variance of the mean too small by (n - 1) / n, which matters for three or five
    (Hesterberg, What Teachers Should Know About the Bootstrap, 2015). For the same reason the
    percentiles are farther out than 2.5%, as Student's t is than the normal distribution
    (Hesterberg's expanded percentiles), with the degrees of freedom of both arms together.
    Resampled seeds never lie outside those that there are: two or three remain too few, see
    docs/ablation.md.

    Args:
      first, second: as for `images_interval`.
      seed: of the drawing.

    Returns:
      None for an arm of fewer than two runs.
    """
    if min(first.shape[1], second.shape[1]) < 2:
        return None
    rng = np.random.default_rng(seed)
    t = stats.t.ppf((1 + CONFIDENCE) / 2, first.shape[1] + second.shape[1] - 2)
    return _percentiles(
        _resampled_mean(second, rng) - _resampled_mean(first, rng), stats.norm.cdf(-t)
    )


def _resampled_mean(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means over one less than all columns, drawn with replacement for each row."""
    num_samples, num_runs = values.shape
    drawn = rng.integers(num_runs, size=(num_samples, num_runs - 1))
    return np.mean(np.take_along_axis(values, drawn, axis=1), axis=1)


def _percentiles(differences: np.ndarray, tail: float) -> Optional[Interval]:
    """What lies between the shares `tail` of the differences at either end."""
    # Without an object of a class in the sample, there is no figure.
    known = _known(differences)
    return _interval(np.quantile(known, (tail, 1 - tail))) if len(known) else None


def _permutation_p(samples, statistic, kind: str) -> float:
    result = stats.permutation_test(
        samples,
        statistic,
        permutation_type=kind,
        vectorized=True,
        n_resamples=MOST_PERMUTATIONS,
        random_state=np.random.default_rng(0),
    )
    return float(result.pvalue)


def _mean_difference(second, first, axis):
    return np.mean(second, axis=axis) - np.mean(first, axis=axis)


def _known(values) -> np.ndarray:
    values = np.asarray(values, float)
    return values[np.isfinite(values)]


def _interval(bounds) -> Optional[Interval]:
    low, high = (float(x) for x in bounds)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None
