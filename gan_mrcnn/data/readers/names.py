# SPDX-License-Identifier: Apache-2.0
"""Names of files as other systems write them, and the files that are meant.

An annotation file is often made on another machine than the one that reads it: with backslashes,
absolute paths, `%20` for a space, accents as characters of their own (Unicode's decomposed form),
another suffix, or another case. And a name on the disk need not be text at all: Python has bytes
that are not UTF-8 as halves of characters, which no file and no terminal takes.
"""

import itertools
import os
import pathlib
import unicodedata
import urllib.parse
from collections.abc import Collection, Iterator, Sequence
from typing import Callable

# What names of unpacked archives are in, where they are not UTF-8: Windows' and MS-DOS'.
_OTHER_ENCODINGS = ('cp1252', 'cp437')


def printable(name: str) -> str:
    """`name` with escapes such as `\\udcfc` for bytes that are no text."""
    return name.encode('utf-8', 'backslashreplace').decode()


def same(name: str) -> str:
    """Equal for names that look the same: Unicode's composed form."""
    return unicodedata.normalize('NFC', name)


def walk(*folders: pathlib.Path) -> Iterator[pathlib.Path]:
    """All files in `folders` and below, each once, links followed; nothing that is hidden.

    Hidden is what begins with a dot, such as `.ipynb_checkpoints` and macOS' `._a.png`.
    """
    seen: set[str] = set()
    walks = (os.walk(folder, followlinks=True) for folder in folders)
    for place, inner, names in itertools.chain.from_iterable(walks):
        # A link may lead to a folder above it.
        if os.path.realpath(place) in seen:
            inner.clear()
            continue
        seen.add(os.path.realpath(place))
        inner[:] = sorted(name for name in inner if not name.startswith('.'))
        for name in sorted(names):
            if not name.startswith('.'):
                yield pathlib.Path(place, name)


class Finder:
    """Finds a file of some folders by a name that is nearly its own."""

    def __init__(self, folders: Sequence[pathlib.Path], suffixes: Collection[str]):
        """Lists the files in `folders` and below that have one of `suffixes`, in any case."""
        self._folders = list(dict.fromkeys(folders))
        files = [path for path in walk(*self._folders) if path.suffix.lower() in suffixes]
        self._levels: list[tuple[Callable[[str], str], dict[str, list[pathlib.Path]]]] = []
        for key in (same, _loose, lambda name: _stem(name, suffixes)):
            index: dict[str, list[pathlib.Path]] = {}
            for path in files:
                for text in _readings(path.name):
                    known = index.setdefault(key(text), [])
                    if path not in known:
                        known.append(path)
            self._levels.append((key, index))

    def find(
        self, name: str, taken: Collection[pathlib.Path]
    ) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
        """Files that `name` may mean.

        The nearest kind of likeness counts: the same name, then one that differs in case or in
        `%20`, then one with another suffix. A file is meant where the name has its folders, too:
        `/home/x/set/images/a.png` can be `images/a.png` and `a.png`, but neither `one/a.png` nor
        `a.png` can be `two/a.png`, for images of one name may lie in `images` and in `masks`.

        Args:
          name: with slashes or backslashes.
          taken: files that other names have.

        Returns:
          Those that `name` means, one where that is clear, and those that only look like it.
        """
        *folders, last = name.replace('\\', '/').split('/')
        for key, index in self._levels:
            alike = [path for path in index.get(key(last), ()) if path not in taken]
            if alike:
                scores = {path: self._common_folders(path, folders) for path in alike}
                best = max(scores.values())
                meant = [path for path in alike if scores[path] == best] if best >= 0 else []
                return meant, alike
        return [], []

    def _common_folders(self, path: pathlib.Path, folders: Sequence[str]) -> int:
        """How many folders `path` has that a name has, too, from the file on; -1 for others."""
        theirs = [_loose(folder) for folder in reversed(folders)]
        best = -1
        for root in self._folders:
            if root in path.parents:
                ours = [_loose(folder) for folder in reversed(path.relative_to(root).parent.parts)]
                if ours == theirs[: len(ours)]:
                    best = max(best, len(ours))
        return best


def _readings(name: str) -> list[str]:
    """`name` as text, in each way that it can be read."""
    try:
        name.encode()
    except UnicodeEncodeError:
        encoded = os.fsencode(name)
        return [encoded.decode(encoding, 'replace') for encoding in _OTHER_ENCODINGS]
    return [name]


def _loose(name: str) -> str:
    return same(urllib.parse.unquote(name)).casefold()


def _stem(name: str, suffixes: Collection[str]) -> str:
    stem, dot, suffix = _loose(name).rpartition('.')
    return stem if f'{dot}{suffix}' in suffixes else _loose(name)
