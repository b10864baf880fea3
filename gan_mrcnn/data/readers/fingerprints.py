# SPDX-License-Identifier: Apache-2.0
"""What tells one state of a data set's files from another."""

import hashlib
import pathlib
from collections.abc import Iterable
from typing import Any

from gan_mrcnn.utils import files


def of_stats(paths: Iterable[pathlib.Path], *facts: Any) -> str:
    """Hex SHA-256 of `facts`, and of the files' names, sizes and times of change.

    For sets so large that reading them at each start would take minutes. Files that are copied
    anew count as changed.
    """
    digest = hashlib.sha256(repr(facts).encode())
    for path in paths:
        state = path.stat() if path.is_file() else None
        digest.update(repr((path.name, state and (state.st_size, state.st_mtime_ns))).encode())
    return digest.hexdigest()


def of_content(paths: Iterable[pathlib.Path], *facts: Any) -> str:
    """Hex SHA-256 of `facts`, and of the files' names and content; the same on every machine."""
    digest = hashlib.sha256(repr(facts).encode())
    for path in paths:
        content = files.sha256(path) if path.is_file() else None
        digest.update(repr((path.name, content)).encode())
    return digest.hexdigest()
