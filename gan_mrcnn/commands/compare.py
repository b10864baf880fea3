# SPDX-License-Identifier: Apache-2.0
"""Compares evaluated runs: gan-mrcnn compare RUN_A RUN_B [...] --report DIR.

Runs whose settings differ in the seed alone are one system. Prints figures with intervals and
writes DIR/index.html.
"""

import argparse

from gan_mrcnn.utils import cli
from gan_mrcnn.utils.errors import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    cli.add_path(parser, 'runs', nargs='+', metavar='RUN', help='folders that train.py wrote')
    parser.add_argument(
        '--split',
        metavar='NAME',
        help='that was evaluated (default: test, val where there is no test)',
    )
    cli.add_path(parser, '--data_dir', help='where the data are now')
    cli.add_cache_flag(parser)
    parser.add_argument('--samples', type=int, default=1000, help='resamplings of the images')
    cli.add_path(parser, '--report', required=True, metavar='DIR', help='writes DIR/index.html')


def main(options: argparse.Namespace) -> None:
    cli.check_positive(options.samples, '--samples')
    if len(options.runs) < 2:
        raise UserError('a comparison wants at least two runs')
    from gan_mrcnn.evaluation.report import compare

    compare.run(
        options.runs,
        options.split,
        options.data_dir,
        options.cache_dir,
        options.samples,
        options.report,
    )
