# SPDX-License-Identifier: Apache-2.0
"""What the system says when a file cannot be written, or read, as one line for the user.

A full disk, a missing permission, a file in the place of a folder: the user can mend all of
these, and none of them is a bug.
"""

import contextlib
import errno
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Optional

from gan_mrcnn.utils.errors import UserError
from gan_mrcnn.utils.paths import PathLike

_ERRORS = (
    errno.ENOENT,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EIO,
    errno.EFBIG,
    errno.ESTALE,
)
_REMEDY = 'make room, give permission, or give another path'


def reason(error: BaseException) -> Optional[str]:
    """The system's text of a disk error, None for others; TensorFlow has it in its message."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in _ERRORS else None
    if type(error).__module__.startswith('tensorflow.'):
        found = [os.strerror(number) for number in _ERRORS if os.strerror(number) in str(error)]
        return found[0] if found else None
    return None


def line_of(error: BaseException) -> Optional[str]:
    """A disk error as a line for the user, None for others."""
    text = reason(error)
    if text is None:
        return None
    place = getattr(error, 'filename2', None) or getattr(error, 'filename', None) or 'a file'
    return f'{os.fsdecode(place) if place != -1 else "a file"} cannot be used ({text}); {_REMEDY}'


@contextlib.contextmanager
def errors_named(path: PathLike, remedy: str = _REMEDY) -> Iterator[None]:
    """Turns disk errors into one line that says what could not be written."""
    try:
        yield
    except Exception as error:
        text = reason(error)
        if text is None:
            raise
        raise UserError(f'{os.fspath(path)} cannot be written ({text}); {remedy}') from error


def make_folder(folder: PathLike, flag: str) -> None:
    """Makes `folder`, with those above it; UserError where that is not possible."""
    folder = pathlib.Path(folder)
    for place in (folder, *folder.parents):
        if os.path.lexists(place) and not os.path.isdir(place):
            what = 'a file, not a folder' if os.path.exists(place) else 'a link that leads nowhere'
            asked = f'{flag} {folder}' if place == folder else f'{flag} {folder}: {place}'
            raise UserError(f'{asked} is {what}; give another path')
    with errors_named(f'{flag} {folder}'):
        folder.mkdir(parents=True, exist_ok=True)


def check_folder(folder: PathLike, flag: str) -> None:
    """Makes `folder`, and raises UserError where no file can be written into it.

    To be called before the work whose results go there.
    """
    make_folder(folder, flag)
    with errors_named(f'{flag} {os.fspath(folder)}'), tempfile.TemporaryFile(dir=folder) as file:
        file.write(b'x')


def check_file(path: PathLike, flag: str) -> None:
    """The same for a file that will be written or replaced."""
    path = pathlib.Path(path)
    if os.path.isdir(path):
        raise UserError(f'{flag} {path} is a folder; give the name of a file')
    make_folder(path.parent, flag)
    with errors_named(f'{flag} {path}'), tempfile.TemporaryFile(dir=path.parent) as file:
        file.write(b'x')
