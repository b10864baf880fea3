# SPDX-License-Identifier: Apache-2.0
"""Trains and compares rows of the paper's tables: gan-mrcnn ablate --table 5 --dataset phone ...

Each row of a table is trained and evaluated with each seed, into a folder of its own. What is done
is not done again, and an interrupted run goes on, so that the same command finishes the table. It
ends in the comparison of all rows with the first. Flags that are not listed go to training.
"""

import argparse

from gan_mrcnn.utils import cli
from gan_mrcnn.utils.errors import UserError

FORWARDS_FLAGS = True
# Names alone: the rows are in `evaluation.ablate`.
TABLES = ('5', '6', 'ours')
STOPPED = 'stopped; the same command goes on from the last checkpoint'


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--table', required=True, choices=TABLES, help='which rows')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], help='for every row')
    parser.add_argument('--dataset', required=True, help=f'one of {", ".join(cli.DATASETS)}')
    cli.add_path(parser, '--data_dir', help='folder of the data set')
    cli.add_path(parser, '--model_dir', required=True, help='runs are ROW-SEED in there')
    cli.add_cache_flag(parser)
    parser.add_argument(
        '--eval_split', help='that is evaluated and compared (default: test for glands, else val)'
    )
    parser.add_argument('--samples', type=int, default=1000, help='of the comparison')


def main(options: argparse.Namespace) -> None:
    cli.check_positive(options.samples, '--samples')
    taken = [flag for flag in ('--gan', '--seed', '--mode') if flag in options.forwarded]
    if taken:
        raise UserError(f'{taken[0]} is set by the rows; leave it out')
    options.eval_split = options.eval_split or ('test' if options.dataset == 'gland' else 'val')
    from gan_mrcnn.evaluation import ablate

    ablate.run_table(options)
