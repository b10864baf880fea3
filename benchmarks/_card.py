# SPDX-License-Identifier: Apache-2.0
"""How programs of `gpu.py` share one card, and how each hands over its figures while it runs.

A time is taken alone on the card: `exclusive`. What uses the card and is not timed (first steps,
checks) goes on beside its like: `shared`. The locks belong to the process; one that dies gives them
up. Without the variable `GPU_BENCHMARK_LOCKS`, the folder of the lock files, nothing is locked, so
that each program also runs alone. Imports nothing but Python's own: torch's environment has it too.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import time

FOLDER_VARIABLE = 'GPU_BENCHMARK_LOCKS'
_PAUSE = 0.05


@contextlib.contextmanager
def _locked(name, kind):
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        yield
        return
    with open(pathlib.Path(folder) / f'{name}.lock', 'a') as file:
        fcntl.flock(file, kind)
        yield
    # Otherwise the process that releases the lock takes it again before a waiting one has woken.
    time.sleep(_PAUSE)


def exclusive(name='card'):
    """Waits until nobody else has it, and has it alone."""
    return _locked(name, fcntl.LOCK_EX)


def shared(name='card'):
    """Waits until nobody has it alone."""
    return _locked(name, fcntl.LOCK_SH)


def write_whole(path, content):
    """Writes JSON so that a reader never sees half of it."""
    path = pathlib.Path(path)
    unfinished = path.with_name(f'{path.name}.tmp')
    unfinished.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    os.replace(unfinished, path)


class Figures:
    """A dictionary in a JSON file that is whole at any time; no file with path None.

    `summary`, under that name in the file, is what a person should see of it: one line each.
    """

    def __init__(self, path):
        self._path, self._content = path, {'summary': []}

    def update(self, **figures):
        self._content.update(figures)
        self._write()

    def say(self, line):
        """Adds a line to the summary and prints it."""
        print(line, flush=True)
        self._content['summary'].append(line)
        self._write()

    def _write(self):
        if self._path:
            write_whole(self._path, self._content)
