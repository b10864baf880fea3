# SPDX-License-Identifier: Apache-2.0
"""What the command line may say about a data set beside its name and folder.

The same few options for all; a data set that has no use for one refuses it (`load_dataset`).
"""

import argparse
import dataclasses
import os
import pathlib
from typing import Optional

from gan_mrcnn.utils import cli
from gan_mrcnn.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """How a data set is divided and read.

    share: of the images, to be trained on; None for what is usual for the data set.
    split_seed: another one gives another division of the same share.
    group_by: what must not be on both sides: a field of the images, such as 'patient'; '' none.
    annotations: annotation files for training, validation and test, relative to the folder; one is
      divided, without any they are searched.
    crowds: what annotations with `iscrowd` 1 are: 'ignored' (neither learnt nor scored) or
      'objects'.
    objects: of a label image: each of its 'numbers', or all of their connected 'components'; ''
      where no image may leave that open.
    skip_bad_annotations: whether those that cannot be used are left out of their images.
    """

    share: Optional[float] = None
    split_seed: int = 0
    group_by: str = ''
    annotations: tuple[str, ...] = ()
    crowds: str = 'ignored'
    objects: str = ''
    skip_bad_annotations: bool = False


DEFAULT = Options()
# Flags by field, for messages.
FLAGS = {
    'share': '--split',
    'split_seed': '--split_seed',
    'group_by': '--group_by',
    'annotations': '--annotations',
    'crowds': '--crowds',
    'objects': '--objects',
    'skip_bad_annotations': '--skip_bad_annotations',
}
_DIVIDING = ('share', 'split_seed', 'group_by')


def from_flags(flags: argparse.Namespace) -> Options:
    """What the command line says; a command need not have all of the flags."""
    given = {name: getattr(flags, name, None) for name in FLAGS}
    given['annotations'] = tuple(given['annotations'] or ())
    return Options(**{name: value for name, value in given.items() if value is not None})


def check(options: Options, dataset: str, taken: tuple[str, ...]) -> None:
    """Raises UserError where an option has a wrong value or is not among those `taken`."""
    for name, flag in FLAGS.items():
        if getattr(options, name) != getattr(DEFAULT, name) and name not in taken:
            others = ', '.join(FLAGS[other] for other in taken)
            why = f', which takes {others}' if taken else ''
            if name in _DIVIDING and not set(_DIVIDING) & set(taken):
                why = ', whose splits are fixed'
            raise UserError(f'{flag} is not for {dataset}{why}; leave it out')
    if options.share is not None and not 0 < options.share < 1:
        raise UserError(
            f'--split {options.share:g} is not a share of the images to train on; give a number '
            'between 0 and 1, such as 0.9'
        )
    if len(options.annotations) > 3:
        raise UserError(
            f'--annotations names {len(options.annotations)} files; training, validation and test '
            'are the most'
        )
    for name, choices in (('crowds', cli.CROWDS), ('objects', ('', *cli.OBJECTS))):
        if getattr(options, name) not in choices:
            raise UserError(
                f'{FLAGS[name]} {getattr(options, name)} is unknown; there are '
                f'{", ".join(filter(None, choices))}'
            )


def check_not_divided(options: Options) -> None:
    """Raises UserError where an option says how to divide what is divided already."""
    if options.group_by or options.split_seed:
        raise UserError(
            '--group_by and --split_seed say how to divide images, but these are divided into '
            'train and val already; add --split to divide them anew'
        )


def existing_folder(data_dir: Optional[str], dataset: str, expected: str) -> pathlib.Path:
    """The folder given, or data/NAME in the current one.

    Raises:
      UserError: it is not there; `expected` says what should be in it.
    """
    folder = pathlib.Path(f'data/{dataset}' if data_dir is None else os.path.expanduser(data_dir))
    if data_dir == '' or not folder.is_dir():
        given = 'is not given, and there is no' if data_dir is None else f'{data_dir!r} is no'
        place = f' data/{dataset}' if data_dir is None else ' folder'
        raise UserError(f'--data_dir {given}{place}; {expected}')
    return folder
