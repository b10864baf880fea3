# SPDX-License-Identifier: Apache-2.0
"""Files that hold either the old content or all of the new one, whatever happens in between."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, Optional, Union

import numpy as np

from gan_mrcnn.utils.errors import UserError

PathLike = Union[str, os.PathLike]


@contextlib.contextmanager
def named_when_whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Another path to write to, which gets the name of `path` at the end.

    What was written is on the disk before it has the name, so that a power cut does not leave an
    empty file under it.
    """
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    try:
        yield temporary
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: pathlib.Path) -> None:
    """Removes what a process that was killed within `named_when_whole` has left.

    In `folder` and those in it, no deeper: another process may be writing there.
    """
    for path in (*folder.glob('*.tmp'), *folder.glob('*/*.tmp')):
        path.unlink(missing_ok=True)


def write_json(path: PathLike, value: Any, indent: Optional[int] = 1) -> None:
    """Writes `value` as JSON, whole or not at all; makes the folder.

    Args:
      path: of the file.
      value: what JSON knows, and NumPy scalars and arrays.
      indent: spaces; None writes one line, for large files that nobody reads.

    Raises:
      TypeError: JSON has nothing for a value; the old file stays.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with named_when_whole(path) as temporary, open(temporary, 'w', encoding='utf-8') as file:
        json.dump(value, file, indent=indent, default=_plain)
        file.write('\n')


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays as JSON knows them."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f'{type(value).__name__} cannot be written as JSON')


def load_json(path: PathLike, wanted: str) -> Any:
    """What `path` holds.

    Args:
      path: of a JSON file.
      wanted: what the user should give instead, for the message.

    Raises:
      UserError: the file cannot be read or is not JSON.
    """
    try:
        # Of bytes, JSON knows the byte order mark.
        return json.loads(pathlib.Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = ' '.join(str(error).split())
        raise UserError(f'cannot read {path}: {reason}; give {wanted}') from error


def read_json(path: PathLike, default: Any) -> Any:
    """What `path` holds; `default` where the file does not exist or is not JSON."""
    try:
        return load_json(path, 'a JSON file')
    except UserError:
        return default
