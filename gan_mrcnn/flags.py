# SPDX-License-Identifier: Apache-2.0
"""Command-line flags of `train.py` and `evaluate.py`, and how both end.

Imports nothing heavy: --help and a mistyped flag answer at once.
"""

import argparse
import logging
import os
import pathlib
import sys
import warnings
from typing import Callable

from gan_mrcnn.errors import UserError

GAN_MODES = ('combined', 'baseline', 'adversarial_only')


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that both commands have."""
    parser.add_argument('--dataset', required=True, help='name of the data set, such as gland')
    parser.add_argument('--data_dir', help='folder of the data set; never replaced by another')
    parser.add_argument('--model_dir', help='checkpoints, logs and results')
    parser.add_argument('--config_file', help='YAML with settings (default: configs/DATASET.yaml)')
    parser.add_argument(
        '--params_override',
        action='append',
        default=[],
        metavar='KEY=VALUE,...',
        help='single settings, such as trainer.train_steps=100, or a YAML mapping; repeatable',
    )
    parser.add_argument('--gan', choices=GAN_MODES, help='overrides task.gan.mode')
    parser.add_argument('--seed', type=int, help='overrides task.seed')
    parser.add_argument(
        '--skip_bad', action='store_true', help='leave out (and name) examples that cannot be read'
    )
    parser.add_argument(
        '--cache_dir',
        default=os.environ.get('GAN_MRCNN_CACHE', '~/.cache/gan_mrcnn'),
        help='where converted records are kept',
    )


def run_main(main: Callable[[], None]) -> None:
    """Runs `main` and ends the process: 0 done, 1 a bug, 2 for the user to mend, 130 ^C."""
    _silence_start_up()
    try:
        main()
    except UserError as error:
        sys.exit(_fail(str(error), 2))
    except KeyboardInterrupt:
        sys.exit(_fail('stopped; the same command goes on from the last checkpoint', 130))


def _silence_start_up() -> None:
    """Keeps lines of TensorFlow and its dependencies that say nothing about the run off the log."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    warnings.filterwarnings('ignore', category=FutureWarning, module=r'google\..*')
    warnings.filterwarnings('ignore', category=DeprecationWarning)
    # Deprecations inside the Model Garden.
    logging.getLogger('tensorflow').setLevel(logging.ERROR)


def _fail(message: str, status: int) -> int:
    print(f'{pathlib.Path(sys.argv[0]).name}: {message}', file=sys.stderr)
    return status
