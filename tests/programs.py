"""The programs as they are typed, in this process, up to the network."""

import contextlib
import io
import os
import resource
import sys
from typing import NamedTuple

import pytest

from gan_mrcnn import __main__ as program
from gan_mrcnn.utils import cli


class Done(NamedTuple):
    """How a program ended: exit status, and what it printed."""

    status: int
    out: str
    err: str


def run(*arguments, encoding='utf-8') -> Done:
    """Runs `gan-mrcnn ARGUMENTS` with a terminal of that encoding; a stack trace is raised."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, 'strict') for _ in range(2)]
    status = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
    ):
        patch.setattr(cli, 'leave_at_once', sys.exit)
        patch.setattr(cli, 'silence_start_up', lambda: None)
        try:
            program.main([os.fspath(one) for one in arguments])
        except SystemExit as end:
            status = end.code or 0
    for stream in streams:
        stream.flush()
    return Done(status, *(stream.buffer.getvalue().decode(encoding) for stream in streams))


def refusal(done: Done, name: str) -> str:
    """The one line with which the command `name` ended with status 2."""
    assert done.status == 2, done
    lines = [line for line in done.err.splitlines() if line.startswith(f'gan-mrcnn {name}: ')]
    assert len(lines) == 1 and done.err.rstrip().endswith(lines[0]), done.err
    return lines[0]


@contextlib.contextmanager
def largest_file(num_bytes):
    """No file of this process can become larger, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files_in(folder) -> set[str]:
    """Paths of all files below `folder`."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}
