# SPDX-License-Identifier: Apache-2.0
"""How often an ablation's 95% intervals hold the true difference, by the number of seeds.

    python benchmarks/interval_coverage.py [--experiments 1500]

Simulated experiments of two arms: a run's figure is its arm's mean and a normally distributed part
of its seed. Images make no difference in them: it is the number of seeds that is looked at.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

from gan_mrcnn.evaluation import statistics  # noqa: E402

SEEDS = (2, 3, 4, 5, 8, 16)
DIFFERENCE = 0.3
SAMPLES = 1000


def coverage(num_seeds, num_experiments, rng):
    """Shares of experiments in which each interval holds the difference.

    Args:
      num_seeds: of each arm.
      num_experiments: simulated.
      rng: of NumPy.

    Returns:
      Of `seeds_and_images_interval`, and of `welch_interval`.
    """
    held = np.zeros((num_experiments, 2), bool)
    for number in range(num_experiments):
        first, second = rng.normal(size=(2, num_seeds))
        second += DIFFERENCE
        alike = [np.tile(arm, (SAMPLES, 1)) for arm in (first, second)]
        intervals = (
            statistics.seeds_and_images_interval(*alike, seed=number),
            statistics.welch_interval(first, second),
        )
        held[number] = [low <= DIFFERENCE <= high for low, high in intervals]
    return held.mean(axis=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--experiments', type=int, default=1500)
    flags = parser.parse_args()
    rng = np.random.default_rng(0)
    print('| seeds of each arm | seeds and images | Welch |\n|---|---|---|')
    for num_seeds in SEEDS:
        shares = coverage(num_seeds, flags.experiments, rng)
        print(f'| {num_seeds} | {shares[0]:.2f} | {shares[1]:.2f} |', flush=True)


if __name__ == '__main__':
    main()
