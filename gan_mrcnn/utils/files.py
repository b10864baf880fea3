# SPDX-License-Identifier: Apache-2.0
"""Files that hold either the old content or all of the new one, whatever happens in between."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any


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

    In `folder` and those in it, no deeper: what another process may be writing is not looked at.
    """
    for path in (*folder.glob('*.tmp'), *folder.glob('*/*.tmp')):
        path.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes `value` as JSON, whole or not at all."""
    with named_when_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + '\n', encoding='utf-8')


def read_json(path: pathlib.Path, default: Any) -> Any:
    """What `path` holds; `default` where it is not there or no JSON."""
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return default
