# SPDX-License-Identifier: Apache-2.0
"""Flags that several commands share, and how every command ends.

Imports nothing heavy: --help and a mistyped flag answer at once.
"""

import argparse
import functools
import importlib.util
import logging
import os
import sys
import warnings
from typing import Callable, Optional

from gan_mrcnn.utils import disk, paths
from gan_mrcnn.utils.errors import UserError

GAN_MODES = ('combined', 'baseline', 'adversarial_only')
# What a data set's reader may be told, see `data.readers.options`.
CROWDS = ('ignored', 'objects')
OBJECTS = ('numbers', 'components')
# What tells a worker who the others are, see `training.cluster`.
CLUSTERS = ('tf_config', 'slurm')
# Orientations that an image is predicted in, see `prediction.tta`.
TTA = ('flip', 'all')


# Names only, so that --help imports none of the readers.
DATASETS = ('gland', 'phone', 'cityscapes', 'coco', 'coco_format', 'label_images')


def add_path(parser: argparse.ArgumentParser, name: str, **options) -> None:
    """Adds a flag or argument that is a path of this machine; see `paths.from_user`."""
    parser.add_argument(name, type=functools.partial(paths.from_user, flag=name), **options)


def add_dataset_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which data set, where it is, and how its files are read."""
    parser.add_argument('--dataset', required=True, help=f'one of {", ".join(DATASETS)}')
    add_path(
        parser, '--data_dir', help='folder of the data set (default: data/DATASET); see docs/data'
    )
    parser.add_argument(
        '--annotations',
        nargs='+',
        default=[],
        metavar='FILE',
        help='coco_format: files for training, validation and test; a single one is split',
    )
    parser.add_argument(
        '--crowds',
        choices=CROWDS,
        help='coco_format: what annotations with iscrowd 1 are: groups, neither learnt nor scored '
        '(ignored; the default), or objects as the others',
    )
    parser.add_argument(
        '--objects',
        choices=OBJECTS,
        help='label_images: what an object is: a number, or each connected piece of it; without '
        'it, an image with several pieces of one number is refused',
    )
    parser.add_argument(
        '--skip_bad_annotations',
        action='store_true',
        help='skip (and count) annotations that cannot be used, and keep the rest of their images',
    )


def add_split_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say how images are split into training and validation.

    Not for `evaluate`: it takes this from the run, and its --split is the name of a split.
    """
    parser.add_argument(
        '--split',
        dest='share',
        type=float,
        metavar='SHARE',
        help='share of the images to train on, such as 0.9; the rest is for validation',
    )
    parser.add_argument(
        '--split_seed', type=int, help='another seed gives another split with the same share'
    )
    parser.add_argument(
        '--group_by',
        metavar='KEY',
        help='keep images with the same KEY (patient, scene, video) in the same split',
    )


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that training and evaluation share."""
    add_dataset_flags(parser)
    add_path(parser, '--model_dir', help='folder of the run: checkpoints, logs and results')
    parser.add_argument('--gan', choices=GAN_MODES, help='overrides task.gan.mode')
    add_records_flags(parser)


def add_records_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags, besides those of the data set, that records depend on."""
    add_path(parser, '--config_file', help='YAML with settings (default: configs/DATASET.yaml)')
    parser.add_argument(
        '--params_override',
        action='append',
        default=[],
        metavar='KEY=VALUE,...',
        help='single settings, such as trainer.train_steps=100, or a YAML mapping; repeatable',
    )
    parser.add_argument('--seed', type=int, help='overrides task.seed')
    parser.add_argument(
        '--skip_bad', action='store_true', help='skip (and name) examples that cannot be read'
    )
    add_cache_flag(parser)


def add_weights_flag(parser: argparse.ArgumentParser, help_text: str, **options) -> None:
    """Adds --weights, which takes what `published.find` does."""
    parser.add_argument(
        '--weights',
        type=functools.partial(paths.from_user_or_address, flag='--weights'),
        metavar='DIR|FILE|URL',
        help=f'{help_text}: what gan-mrcnn publish wrote; an address ends in #sha256=SUM',
        **options,
    )


def add_tta_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--tta',
        choices=TTA,
        help='test-time augmentation: images are predicted mirrored as well (flip, twice the '
        'time; for data with an up) or in all eight orientations (all, eight times), and what is '
        'detected is merged',
    )


def add_tile_flags(parser: argparse.ArgumentParser) -> None:
    """--tile and --overlap, for large images; `tiles.check` checks them."""
    parser.add_argument(
        '--tile',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help='larger images are predicted in tiles of this size, in pixels; take that of the '
        'training images',
    )
    parser.add_argument(
        '--overlap',
        type=int,
        metavar='PIXELS',
        help='of neighbouring tiles (default: a quarter of the shorter side of a tile)',
    )


def add_cache_flag(parser: argparse.ArgumentParser) -> None:
    add_path(
        parser,
        '--cache_dir',
        default=default_cache_dir(),
        help='folder of converted records and of weights that were read from an address (default: '
        'GAN_MRCNN_CACHE, or ~/.cache/gan_mrcnn)',
    )


def add_checkpoint_flag(parser: argparse.ArgumentParser) -> None:
    add_path(
        parser,
        '--checkpoint',
        default='best',
        help="of a run: 'best' (by validation mask AP; the default), 'last' or a path",
    )


def check_extra(extra: str, *modules: str) -> None:
    """Raises UserError where one of the `modules`, which an extra brings, is not installed."""
    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed; pip install 'gan-mrcnn[{extra}]'")


def check_positive(value: int, flag: str) -> None:
    """Raises UserError where a number that was given by `flag` is below 1."""
    if value < 1:
        raise UserError(f'{flag} {value} is not positive; give 1 or more')


def check_one_model(options: argparse.Namespace, flag: str) -> None:
    """Raises UserError unless one of --weights and `flag` is given."""
    given = getattr(options, flag.lstrip('-'))
    if given is None and options.published is None:
        raise UserError(f'{flag} is missing; give that or --weights')
    if given is not None and options.published is not None:
        raise UserError(f'{flag} and --weights are two models; leave one out')


def check_score(threshold: Optional[float]) -> None:
    """Raises UserError where --score_threshold is given and is no score."""
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f'--score_threshold {threshold:g} is not between 0 and 1')


def default_cache_dir() -> str:
    """Where converted records are kept unless --cache_dir says otherwise."""
    return os.environ.get('GAN_MRCNN_CACHE', '~/.cache/gan_mrcnn')


def run_main(main: Callable[[], None], program: str, stopped: str = 'stopped') -> None:
    """Runs `main`; a UserError ends the process with status 2, Ctrl-C with 130.

    Args:
      main: the command.
      program: its name, which begins the line that says what is wrong.
      stopped: what Ctrl-C is answered with.
    """
    silence_start_up()
    prepare_streams()
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        sys.exit(_fail(program, str(error), 2))
    except KeyboardInterrupt:
        sys.exit(_fail(program, stopped, 130))
    except Exception as error:
        line = _stream_error(error) or disk.line_of(error)
        if line is None:
            raise
        sys.exit(_fail(program, line, 2))


def prepare_streams() -> None:
    """Lets everything be printed: what a terminal has no character for is escaped.

    A class may be called \u817a, and a file have a name that is no text at all. A service may have
    closed its streams, which Python then has none of.
    """
    for name in ('stdout', 'stderr'):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, 'w'))  # noqa: SIM115
        stream = getattr(sys, name)
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')


def _stream_error(error: Exception) -> str:
    """What to say where standard output takes no more, '' where that is not the error.

    It is tried, with an empty line: an error in writing to it has no file's name, and what could
    not be written may be gone.
    """
    if not isinstance(error, OSError) or error.filename is not None:
        return ''
    line = 'standard output is closed' if isinstance(error, BrokenPipeError) else ''
    try:
        print(flush=True)
    except OSError as again:
        # Python would try once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return line or f'standard output cannot be written ({again.strerror})'
    return line


def leave_at_once(status: int = 0) -> None:
    """Ends the process, without the many seconds that TensorFlow takes to clean up.

    All results are on the disk, and a scheduler that has sent a signal does not wait for long.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def silence_start_up() -> None:
    """Hides messages of TensorFlow and its dependencies that say nothing about the run."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    warnings.filterwarnings('ignore', category=FutureWarning, module=r'google\..*')
    warnings.filterwarnings('ignore', category=DeprecationWarning)
    # Deprecations inside the Model Garden.
    logging.getLogger('tensorflow').setLevel(logging.ERROR)


class _Logged:
    """A stream whose lines also go to a file; no terminal, so that nothing draws bars on it."""

    def __init__(self, stream, file):
        self._stream = stream
        self._file = file

    def write(self, text: str) -> int:
        self._file.write(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._file.flush()
        self._stream.flush()

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name):
        return getattr(self._stream, name)


def log_to(path: str) -> None:
    """Appends everything that is printed from here on to the file `path` as well.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        file = open(  # noqa: SIM115
            path, 'a', buffering=1, encoding='utf-8', errors='backslashreplace'
        )
    except OSError as error:
        raise UserError(f'--log_file {path} cannot be written ({error.strerror})') from error
    sys.stdout, sys.stderr = _Logged(sys.stdout, file), _Logged(sys.stderr, file)


def one_line(text: str) -> str:
    """`text` with escapes for what would break the line or command the terminal."""
    return ''.join(
        one if one.isprintable() else one.encode('unicode_escape').decode() for one in text
    )


def _fail(program: str, message: str, status: int) -> int:
    print(f'{program}: {one_line(message)}', file=sys.stderr)
    return status
