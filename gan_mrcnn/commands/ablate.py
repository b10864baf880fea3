# SPDX-License-Identifier: Apache-2.0
"""Trains and compares arms with several seeds: gan-mrcnn ablate --table 5 --dataset phone ...

Each arm is trained and evaluated with each seed, into a folder of its own. What is done is not done
again, and an interrupted run goes on, so that the same command finishes the rest. A run that fails
is named, and the others go on. It ends in one page and one JSON: means, intervals and learning
curves, against the first arm. Flags that are not listed go to training.
"""

import argparse
import re

from gan_mrcnn.utils import cli
from gan_mrcnn.utils.errors import UserError

FORWARDS_FLAGS = True
# Names alone: the arms are in `evaluation.ablate`.
TABLES = ('5', '6', 'ours', 'controls')
STOPPED = 'stopped; the same command goes on from the last checkpoints'
_MOST_SEEDS = 1000


def add_flags(parser: argparse.ArgumentParser) -> None:
    arms = parser.add_mutually_exclusive_group(required=True)
    arms.add_argument('--table', choices=TABLES, help='arms that are built in')
    cli.add_path(arms, '--arms', metavar='FILE', help='YAML with arms, see docs/ablation.md')
    parser.add_argument(
        '--seeds',
        type=_seeds,
        nargs='+',
        default=[[0]],
        metavar='SEED',
        help='of every arm: numbers, or ranges such as 0-7 (default: 0)',
    )
    parser.add_argument(
        '--jobs', type=int, default=1, metavar='K', help='trainings at a time (default: 1)'
    )
    parser.add_argument('--dataset', required=True, help=f'one of {", ".join(cli.DATASETS)}')
    cli.add_path(parser, '--data_dir', help='folder of the data set')
    cli.add_path(parser, '--model_dir', required=True, help='runs are ARM-SEED in there')
    cli.add_cache_flag(parser)
    parser.add_argument(
        '--eval_split', help='that is evaluated and compared (default: test for glands, else val)'
    )
    parser.add_argument('--samples', type=int, default=1000, help='resamplings of the images')


def _seeds(text: str) -> list[int]:
    """The seeds of '3' or '0-7'."""
    if not (bounds := re.fullmatch(r'(\d+)-(\d+)', text)):
        return [int(text)]
    first, last = (int(bound) for bound in bounds.groups())
    if not 0 <= last - first < _MOST_SEEDS:
        raise argparse.ArgumentTypeError(f'{text} is no range of up to {_MOST_SEEDS} seeds')
    return list(range(first, last + 1))


def main(options: argparse.Namespace) -> None:
    cli.check_positive(options.samples, '--samples')
    cli.check_positive(options.jobs, '--jobs')
    options.seeds = list(dict.fromkeys(seed for part in options.seeds for seed in part))
    taken = [flag for flag in ('--gan', '--seed', '--mode') if flag in options.forwarded]
    if taken:
        raise UserError(f'{taken[0]} is set by the arms; leave it out')
    options.eval_split = options.eval_split or ('test' if options.dataset == 'gland' else 'val')
    from gan_mrcnn.evaluation import ablate

    ablate.run(options)
