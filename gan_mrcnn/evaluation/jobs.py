# SPDX-License-Identifier: Apache-2.0
"""Trainings with their evaluations, several at a time, each in processes of its own.

What a run prints goes to `log.txt` in its folder; here a line says when it starts and how it ends.
A run that fails leaves the others alone. The first Ctrl-C, SIGTERM or SIGHUP lets every run save
and stop, the second ends them at once.
"""

import collections
import contextlib
import datetime
import fcntl
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

from gan_mrcnn.utils import cores, disk, files
from gan_mrcnn.utils.errors import UserError

LOG = 'log.txt'
PROGRAM = (sys.executable, '-m', 'gan_mrcnn')
# Between two looks at the processes, and between two lines about those that run.
POLL_SECONDS = 0.2
LINE_SECONDS = 30.0
# Ctrl-C in a terminal may come twice, from it and from a program in between: it is one signal.
SAME_SIGNAL_SECONDS = 0.3
# Of a log's end, in which the line that says what went wrong is looked for.
_TAIL_BYTES = 1 << 16


class Job(NamedTuple):
    """A run: its name and folder, what trains and evaluates it, and the results that this writes.

    train, evaluate: words of `gan-mrcnn`, with their flags.
    """

    name: str
    folder: pathlib.Path
    train: list[str]
    evaluate: list[str]
    results: pathlib.Path


def run_all(jobs: Sequence[Job], num_at_once: int) -> dict[str, str]:
    """Trains and evaluates all `jobs`, `num_at_once` at a time, and prints how far they are.

    Returns:
      Why a job failed, by name; empty where none did.

    Raises:
      KeyboardInterrupt: a signal has come; all processes have ended.
      UserError: the environment gives a whole GPU to each of several processes.
    """
    environment = _environment(num_at_once)
    waiting, running = collections.deque(jobs), []
    progress = _Progress(len(jobs), num_at_once)
    failures: dict[str, str] = {}
    with _Signals() as signals:
        try:
            while running or (waiting and not signals.count):
                if waiting and len(running) < num_at_once and not signals.count:
                    running.append(_Running(waiting.popleft(), environment))
                    progress.started(running[-1])
                for one in [one for one in running if one.has_ended(signals.count > 0)]:
                    running.remove(one)
                    if not signals.count:
                        progress.ended(one)
                    if one.failure is not None:
                        failures[one.job.name] = one.failure
                progress.update(running, len(waiting))
                signals.pass_on(running)
                time.sleep(POLL_SECONDS)
        finally:
            for one in running:
                one.send(signal.SIGTERM)
    if signals.count:
        raise KeyboardInterrupt
    return failures


def _environment(num_at_once: int) -> dict[str, str]:
    """Of each process, so that several of them share a machine; what the user has set stays."""
    environment = dict(os.environ)
    if num_at_once > 1:
        if environment.get('TF_FORCE_GPU_ALLOW_GROWTH', 'true').lower() in ('false', '0'):
            raise UserError(
                'TF_FORCE_GPU_ALLOW_GROWTH=false gives all memory of a GPU to one process; unset '
                'it, or give --jobs 1'
            )
        share = str(max(1, cores.num_cores() // num_at_once))
        environment.setdefault('TF_NUM_INTRAOP_THREADS', share)
    return environment


class _Running:
    """A job whose training or evaluation runs."""

    def __init__(self, job: Job, environment: dict[str, str]):
        self.job = job
        self.started = time.monotonic()
        self.failure: Optional[str] = None
        self.log = job.folder / LOG
        self._environment = environment
        self._process: Optional[subprocess.Popen] = None
        self._steps = collections.deque([job.train, job.evaluate])
        with disk.errors_named(job.folder):
            job.folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.log, 'ab')  # noqa: SIM115
        try:
            # The processes inherit it: also one whose parent was killed holds it to its own end.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._fail('another process works in its folder; wait for it or end it')
        except OSError:
            pass  # Some network file systems have no locks.
        if self.failure is None:
            self._start()

    def _start(self) -> None:
        self._step = self._steps.popleft()
        moment = datetime.datetime.now().isoformat(' ', 'seconds')
        self._file.write(f'\n{moment} $ gan-mrcnn {shlex.join(self._step)}\n'.encode())
        self._file.flush()
        self._offset = self._file.tell()
        # A group of its own: Ctrl-C reaches this process alone, which passes it on once.
        self._process = subprocess.Popen(
            [*PROGRAM, *self._step],
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,
        )

    def has_ended(self, is_stopping: bool) -> bool:
        """Whether all is done or has failed; starts the evaluation when the training has ended.

        Args:
          is_stopping: whether nothing is to be started any more.
        """
        if self.failure is not None:
            return True
        code = self._process.poll()
        if code is None:
            return False
        if code:
            reason = self._last_line()
            if code < 0:
                reason = f'killed by {signal.Signals(-code).name} after: {reason}'
            self._fail(f'{self._step[0]}: {reason}')
        elif self._step is self.job.train and self.status().get('state') != 'finished':
            self._fail('its training was stopped')
        elif self._steps and not is_stopping:
            self._start()
            return False
        self._file.close()
        return True

    def _fail(self, reason: str) -> None:
        self.failure = f'{reason} ({self.log})'

    def _last_line(self) -> str:
        """The line that says what is wrong: the program's own one, or the last of a stack trace."""
        with open(self.log, 'rb') as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._offset, size - _TAIL_BYTES))
            text = file.read().decode('utf-8', 'replace')
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        own = [line for line in lines if line.startswith('gan-mrcnn ')]
        return (own or lines or ['nothing was printed'])[-1]

    def status(self) -> dict[str, Any]:
        """What the training that runs, or has just run, says in `status.json`; see `training`."""
        status = files.read_json(self.job.folder / 'status.json', {})
        # Before it has written one, that of an earlier start is there.
        return status if status.get('pid') == self._process.pid else {}

    def describe(self) -> str:
        """How far it is."""
        if self._step is self.job.evaluate:
            return f'{self.job.name} evaluates'
        status = self.status()
        if not status.get('step'):
            return f'{self.job.name} starts'
        return f'{self.job.name} at step {status["step"]} of {status["train_steps"]}'

    def seconds_left(self) -> Optional[float]:
        """Of the training, None where it does not know."""
        return self.status().get('eta_seconds') if self._step is self.job.train else None

    def send(self, number: signal.Signals) -> None:
        """A signal to its process and those that this has started."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class _Progress:
    """Plain lines about all jobs, for terminals and log files alike."""

    def __init__(self, num_jobs: int, num_at_once: int):
        self._num_jobs = num_jobs
        self._num_at_once = num_at_once
        self._num_ended = 0
        # Seconds that jobs have taken from their start here to their results.
        self._took: list[float] = []
        self._last_line = time.monotonic()

    def started(self, one: _Running) -> None:
        self._say(f'{one.job.name}: started, log {one.log}')

    def ended(self, one: _Running) -> None:
        self._num_ended += 1
        count = f'[{self._num_ended}/{self._num_jobs}]'
        if one.failure is not None:
            self._say(f'{count} {one.job.name}: failed: {one.failure}')
            return
        seconds = time.monotonic() - one.started
        self._took.append(seconds)
        figures = files.read_json(one.job.results, {}).get('figures', {})
        found = {kind: figures.get(kind, {}).get('AP') for kind in ('mask', 'box')}
        texts = [f'{kind} AP {ap:.4f}' for kind, ap in found.items() if ap is not None]
        shown = ', '.join(texts) or 'no object to measure AP on'
        self._say(f'{count} {one.job.name}: finished in {_clock(seconds)}: {shown}')

    def update(self, running: Sequence[_Running], num_waiting: int) -> None:
        """A line every `LINE_SECONDS`."""
        now = time.monotonic()
        if running and now - self._last_line > LINE_SECONDS:
            self._last_line = now
            left = self._left(running, num_waiting)
            texts = [one.describe() for one in running]
            # Nothing is known of a last run that takes longer than the others did.
            if left:
                texts.append(f'about {_clock(left)} left for all')
            self._say(f'{self._num_ended} of {self._num_jobs} done, {", ".join(texts)}')

    def _left(self, running: Sequence[_Running], num_waiting: int) -> Optional[float]:
        """Seconds until all are done, from those that are done or, before, from those that run."""
        now = time.monotonic()
        elapsed = [now - one.started for one in running]
        left = [one.seconds_left() for one in running]
        whole = self._took or [e + s for e, s in zip(elapsed, left) if s is not None]
        if not whole:
            return None
        mean = sum(whole) / len(whole)
        left = [max(0.0, mean - e) if s is None else s for e, s in zip(elapsed, left)]
        return max(max(left), (sum(left) + num_waiting * mean) / self._num_at_once)

    @staticmethod
    def _say(line: str) -> None:
        print(line, flush=True)


class _Signals:
    """Signals that ask for the end, while the context is entered."""

    def __init__(self):
        self.count = 0
        self._passed_on = 0
        self._last = float('-inf')
        self._before = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Under nohup a closed terminal is to change nothing.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, *_) -> None:
        now = time.monotonic()
        if now - self._last > SAME_SIGNAL_SECONDS:
            self.count += 1
        self._last = now

    def pass_on(self, running: Sequence[_Running]) -> None:
        """To every process that runs, as often as there is something new."""
        if self.count == self._passed_on:
            return
        self._passed_on = self.count
        if self.count == 1:
            print('stopping: every run saves first; once more ends them at once', flush=True)
        for one in running:
            one.send(signal.SIGTERM if self.count == 1 else signal.SIGKILL)


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
