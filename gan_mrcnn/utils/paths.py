# SPDX-License-Identifier: Apache-2.0
"""Paths as users have them: with a home folder, and with characters that mean something elsewhere.

TensorFlow takes the path of a checkpoint for a pattern: that of a run in `lr[0.01]` matches no
file, and that of a run in `*` the files of its neighbours, which it would delete as its own old
ones. It also writes every name as UTF-8, whatever the bytes on the disk are. Such a path gets
another name for it, a symbolic link in the temporary folder.
"""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Union

from gan_mrcnn.utils.errors import UserError

PathLike = Union[str, os.PathLike]
_PATTERN = frozenset('*?[]\\')
_BUCKETS = ('gs://', 's3://', 'hdfs://')


def from_user(text: str, flag: str) -> str:
    """A path that was given by `flag`, without a slash at the end.

    A leading ~ becomes the home folder: a shell leaves it alone in --flag=~/folder.

    Raises:
      UserError: it is empty, an address, or in a home folder that is not known.
    """
    if not text:
        raise UserError(f'{flag} is empty; give a path')
    if is_address(text):
        remedy = 'give a path of this machine'
        if text.startswith(_BUCKETS):
            remedy = (
                'buckets are neither read nor written; give a path on a disk, for several machines '
                'one that all share, and copy to and from it by gsutil, rclone or hdfs'
            )
        raise UserError(f'{flag} {text} is an address; {remedy}')
    path = str(pathlib.Path(expand_home(text, flag)))
    # Handed on to another program, it would be a flag.
    return f'./{path}' if path.startswith('-') else path


def is_address(text: str) -> bool:
    """Whether `text` is a URL and not a path."""
    return '://' in text


def from_user_or_address(text: str, flag: str) -> str:
    """`from_user` for what may be an address, too."""
    return text if is_address(text) else from_user(text, flag)


def expand_home(text: str, flag: str) -> str:
    """`text` with the home folder in place of a leading ~; a ~NAME that is no user stays.

    Raises:
      UserError: the home folder is not known, as in a container with a user of its own.
    """
    expanded = os.path.expanduser(text)
    if expanded == text and (text == '~' or text.startswith('~/')):
        remedy = 'give --cache_dir, or set GAN_MRCNN_CACHE' if flag == '--cache_dir' else 'set HOME'
        raise UserError(
            f'{flag} {text}: cannot tell the home folder of user {os.getuid()}, who has no HOME '
            f'and no entry in passwd; {remedy}'
        )
    return expanded


def is_plain(path: PathLike) -> bool:
    """Whether TensorFlow takes a path as it is."""
    text = os.fspath(path)
    return not _PATTERN & set(text) and os.fsencode(text) == text.encode('utf-8', 'surrogatepass')


@contextlib.contextmanager
def plain_folder(folder: PathLike) -> Iterator[str]:
    """A path of `folder` that TensorFlow takes as it is."""
    if is_plain(folder):
        yield os.fspath(folder)
        return
    with _place_for_links() as place:
        link = os.path.join(place, 'folder')
        os.symlink(os.path.abspath(folder), link)
        yield link


@contextlib.contextmanager
def plain_checkpoint(prefix: PathLike) -> Iterator[str]:
    """A path that TensorFlow reads the checkpoint `prefix` by."""
    if is_plain(prefix):
        yield os.fspath(prefix)
        return
    folder, name = os.path.split(os.path.abspath(prefix))
    with _place_for_links() as place:
        for file in os.listdir(folder) if os.path.isdir(folder) else ():
            if file.startswith(f'{name}.'):
                link = os.path.join(place, f'checkpoint{file[len(name) :]}')
                os.symlink(os.path.join(folder, file), link)
        yield os.path.join(place, 'checkpoint')


@contextlib.contextmanager
def _place_for_links() -> Iterator[str]:
    """A new folder with a plain name, removed at the end."""
    for parent in (tempfile.gettempdir(), '/tmp', '/var/tmp', '/dev/shm'):
        if is_plain(parent) and os.path.isdir(parent) and os.access(parent, os.W_OK):
            with tempfile.TemporaryDirectory(prefix='gan_mrcnn.', dir=parent) as place:
                yield place
            return
    raise UserError(
        'a path with one of * ? [ ] \\ needs a link from the temporary folder, but none can be '
        'written; set TMPDIR, or give another path'
    )
