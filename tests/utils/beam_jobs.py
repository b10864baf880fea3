"""Jobs of the tests of `beam_runner`. Imports no Beam: a program that runs them is to do that."""

import os
import pathlib
import signal
import time
from typing import NamedTuple

# DirectRunner in this process: no second start of Python.
HERE = ('--direct_running_mode=in_memory', '--direct_num_workers=1')


class Job(NamedTuple):
    """Holds what Beam would change on the way by itself."""

    number: int
    path: pathlib.Path


JOBS = [Job(number, pathlib.Path('a/b')) for number in range(6)]


def write(folder, job):
    assert isinstance(job, Job) and isinstance(job.path, pathlib.Path)
    (folder / str(job.number)).write_text(f'{job.number} {job.path}')


def write_but(folder, error, numbers, job):
    if job.number in numbers:
        raise error(f'{job.number}.png is damaged')
    write(folder, job)


def write_or_die(folder, job):
    if job.number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    write(folder, job)


def write_slowly(folder, job):
    write(folder, job)
    time.sleep(60)
