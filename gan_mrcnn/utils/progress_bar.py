# SPDX-License-Identifier: Apache-2.0
"""Progress of long work: tqdm's bar on a terminal, a line every ten seconds in a log file."""

import sys

import tqdm

# Between two lines, in seconds.
LINE_SECONDS = 10.0


class Bar(tqdm.tqdm):
    """tqdm on standard error; its arguments are tqdm's."""

    def __init__(self, *args, **kwargs):
        if not sys.stderr.isatty():
            kwargs.update(file=_Lines(sys.stderr), mininterval=LINE_SECONDS, ncols=0)
        super().__init__(*args, dynamic_ncols=sys.stderr.isatty(), **kwargs)


class _Lines:
    """A stream on which every new state of tqdm's bar is a line of its own."""

    def __init__(self, stream):
        self._stream = stream
        self._last = ''

    def write(self, text: str) -> None:
        line = text.strip('\r\n ')
        if line and line != self._last:
            self._stream.write(f'{line}\n')
        self._last = line or self._last

    def flush(self) -> None:
        self._stream.flush()
