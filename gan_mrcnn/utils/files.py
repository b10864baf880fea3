# SPDX-License-Identifier: Apache-2.0
"""Files that hold either the old content or all of the new one, whatever happens in between."""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import Any, Optional, Union

import numpy as np

from gan_mrcnn.utils.errors import UserError

PathLike = Union[str, os.PathLike]
_CHUNK = 1 << 20


@contextlib.contextmanager
def named_when_whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Another path to write to, which gets the name of `path` at the end.

    What was written is on the disk before it has the name, so that a power cut does not leave an
    empty file under it. Of several who write the same file the last to end names it.
    """
    # A name may be as long as a name can be. Not by the number of the process: on several machines,
    # and in several containers, there are equal ones.
    temporary = path.with_name(f'{path.name[:50]}.{secrets.token_hex(8)}.tmp')
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


def write_bytes(path: PathLike, content: bytes) -> None:
    """Writes a file, whole or not at all; makes the folder."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with named_when_whole(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: PathLike, text: str) -> None:
    """The same for text, as UTF-8; what is no text in a file's name is escaped."""
    write_bytes(path, text.encode('utf-8', 'backslashreplace'))


def write_json(path: PathLike, value: Any, indent: Optional[int] = 1) -> None:
    """Writes `value` as JSON, whole or not at all; makes the folder.

    Args:
      path: of the file.
      value: what JSON knows, and NumPy scalars and arrays. JSON has no number that is not finite:
        such a one becomes null.
      indent: spaces; None writes one line, for large files that nobody reads.

    Raises:
      TypeError: JSON has nothing for a value; the old file stays.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with named_when_whole(path) as temporary, open(temporary, 'w', encoding='utf-8') as file:
        try:
            json.dump(value, file, indent=indent, default=_plain, allow_nan=False)
        except ValueError:
            file.seek(0)
            file.truncate()
            json.dump(_finite(value), file, indent=indent, allow_nan=False)
        file.write('\n')


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays as JSON knows them."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f'{type(value).__name__} cannot be written as JSON')


def _finite(value: Any) -> Any:
    """A copy with None for each number that is not finite."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256(path: PathLike) -> str:
    """Hex SHA-256 of a file's content, a megabyte of it in memory at a time."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def load_json(path: PathLike, wanted: str) -> Any:
    """What `path` holds.

    Args:
      path: of a JSON file.
      wanted: what the user should give instead, for the message.

    Raises:
      UserError: the file cannot be read or is not JSON.
    """
    try:
        # From bytes, so that a byte order mark and UTF-16, as Windows writes them, are read, too.
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
