# SPDX-License-Identifier: Apache-2.0
"""Progress of long work: tqdm's bar on a terminal, a line every ten seconds in a log file."""

import sys

import tqdm

# Between two lines, in seconds.
LINE_SECONDS = 10.0


class Bar(tqdm.tqdm):
    """tqdm on standard error; its arguments are tqdm's."""

    def __init__(self, *args, **kwargs):
        kwargs.update(file=_StandardError())
        if not sys.stderr.isatty():
            kwargs.update(file=_Lines(), mininterval=LINE_SECONDS, ncols=0)
        super().__init__(*args, dynamic_ncols=sys.stderr.isatty(), **kwargs)


class _StandardError:
    """Standard error as it is at the time: it may be another while a bar is shown."""

    def write(self, text: str) -> None:
        sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def __getattr__(self, name):
        return getattr(sys.stderr, name)


class _Lines(_StandardError):
    """A stream on which every new state of tqdm's bar is a line of its own."""

    def __init__(self):
        self._last = ''

    def write(self, text: str) -> None:
        line = text.strip('\r\n ')
        if line and line != self._last:
            super().write(f'{line}\n')
        self._last = line or self._last
