"""Tiny runs of train.py, each a process of its own, and what they leave behind.

`train.py` is typed as a user would type it. Faults that need an exact moment are caused by
`tests.faults.faulty`, which runs the very same program.
"""

import glob
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tests import tiny
from tests.data import layouts

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
STEPS = 6
NUM_TRAIN, NUM_VAL = 7, 3
# An odd number of images against batches of two, and a lower rate on the way.
OVERRIDES = (
    'trainer.validation_interval=3',
    'trainer.optimizer_config.learning_rate.stepwise.boundaries=[4]',
)
# Of a process that is not stuck, on a machine that is busy.
PATIENCE = 240
# `make test-faults SHORT=1`: of each kind of fault a few, the same ones each time.
IS_SHORT = bool(os.environ.get('GAN_MRCNN_SHORT_FAULTS'))


def count(number: int) -> int:
    """How often to cause a fault: `number` times, a tenth of it in the short form."""
    return max(1, number // 10) if IS_SHORT else number


def some(cases: Sequence, number=1) -> Sequence:
    """The cases to test: all, the first `number` in the short form."""
    return cases[:number] if IS_SHORT else cases


class Done(NamedTuple):
    """How a run ended: exit status (-9: killed), seconds, and what it printed."""

    status: int
    seconds: float
    out: str
    err: str


class Site:
    """A folder with images, settings and a cache, for any number of runs."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.cache = folder / 'cache'
        self.settings = folder / 'tiny.yaml'
        self.settings.write_text(tiny.SETTINGS + tiny.SCHEDULE)
        for split, numbers in (('train', range(NUM_TRAIN)), ('val', range(20, 20 + NUM_VAL))):
            images = [(f'{split}{i}.png', 'rgb', i, layouts.blocks(i, 'cell'), {}) for i in numbers]
            layouts.write_coco(
                folder / 'data' / f'{split}.json', folder / 'data' / split, images, {'cell': 1}
            )

    def arguments(self, model_dir, *overrides, steps=STEPS, cache=None, seed=3) -> list[str]:
        """The command after `python`; `overrides` are KEY=VALUE."""
        overrides = [*OVERRIDES, f'trainer.train_steps={steps}', *overrides]
        return [
            *('train.py', '--dataset', 'coco_format', '--data_dir', str(self.folder / 'data')),
            *('--config_file', str(self.settings), '--cache_dir', str(cache or self.cache)),
            *('--model_dir', str(model_dir), '--seed', str(seed), '--deterministic'),
            *(part for one in overrides for part in ('--params_override', one)),
        ]

    def start(self, model_dir, *overrides, faults=(), env=None, within=(), **more) -> 'Process':
        """Starts train.py with `faults`, see `tests.faults.faulty`; `within` is a command before
        it, which becomes it."""
        faulty = ['-m', 'tests.faults.faulty', *faults, '--'] if faults else []
        return Process([*faulty, *self.arguments(model_dir, *overrides, **more)], env, within)

    def train(self, model_dir, *overrides, **more) -> Done:
        return self.start(model_dir, *overrides, **more).finish()


class Process:
    """A running Python program of this repository; its end is awaited by `finish`."""

    def __init__(self, arguments, env=None, within=()):
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [*within, sys.executable, *arguments],
            cwd=REPOSITORY,
            env={**os.environ, 'CUDA_VISIBLE_DEVICES': '', **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._read = {}
        # Read as it comes: a full pipe would stop the process.
        self._readers = [
            threading.Thread(target=self._keep, args=(name,), daemon=True)
            for name in ('stdout', 'stderr')
        ]
        for reader in self._readers:
            reader.start()

    def _keep(self, name):
        lines = self._read.setdefault(name, [])
        for line in getattr(self.process, name):
            lines.append(line)

    @property
    def err(self) -> str:
        return ''.join(self._read.get('stderr', []))

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def send(self, number) -> None:
        self.process.send_signal(number)

    def wait_for(self, condition, patience=PATIENCE) -> bool:
        """Waits until `condition()`; False where the process has ended without it."""
        end = time.monotonic() + patience
        while not condition():
            if not self.is_running:
                return bool(condition())
            if time.monotonic() > end:
                self.process.kill()
                raise AssertionError(f'nothing happened in {patience} s:\n{self.err[-2000:]}')
            time.sleep(0.0005)
        return True

    def says(self, text, patience=PATIENCE) -> bool:
        """Waits for `text` on standard error."""
        return self.wait_for(lambda: text in self.err, patience)

    def kill_at(self, pattern) -> bool:
        """SIGKILL as soon as a file of this pattern is there; False where it ended before."""
        seen = self.wait_for(lambda: glob.glob(str(pattern)))
        self.send(signal.SIGKILL)
        return seen and self.finish().status == -signal.SIGKILL

    def finish(self, patience=PATIENCE) -> Done:
        """Waits for the end."""
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f'did not end in {patience} s:\n{self.err[-2000:]}') from None
        seconds = time.monotonic() - self.began
        for reader in self._readers:
            reader.join(10)
        return Done(
            self.process.returncode, seconds, ''.join(self._read.get('stdout', [])), self.err
        )


def ended_well(done: Done) -> bool:
    """Whether a run came to its end or was stopped in good order; AssertionError says why not."""
    assert done.status == 0, f'exit status {done.status}:\n{done.err[-3000:]}'
    assert 'Traceback' not in done.err
    return True


def refusal(done: Done) -> str:
    """The one line with which a run ended that the user has to fix something for."""
    assert done.status == 2, f'exit status {done.status}:\n{done.err[-3000:]}'
    assert 'Traceback' not in done.out + done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith('train.py: ')]
    # Nothing after it.
    assert done.err.rstrip().endswith(line)
    return line


# What is left behind.


def same_values(one, other) -> None:
    """Asserts that two checkpoints hold the same bits."""
    assert set(one) == set(other)
    different = [name for name in one if one[name].tobytes() != other[name].tobytes()]
    assert not different, f'{len(different)} of {len(one)} values differ, such as {different[0]}'


def losses(model_dir) -> dict[tuple[str, int], set[bytes]]:
    """Bits of every reported term of every step; of a step that was done twice perhaps two."""
    found: dict[tuple[str, int], set[bytes]] = {}
    for path in glob.glob(f'{model_dir}/train/events.out.tfevents.*'):
        for tag, step, value in _scalars(path):
            if tag != 'steps_per_second':
                found.setdefault((tag, step), set()).add(value)
    return found


def _scalars(path):
    """Of a process that was killed the last record may be cut off."""
    try:
        for event in tf.compat.v1.train.summary_iterator(path):
            for value in event.summary.value:
                yield value.tag, event.step, tf.make_ndarray(value.tensor).tobytes()
    except tf.errors.DataLossError:
        return


def same_run(one, other) -> None:
    """Asserts that the run in folder `one` ended as that in `other`, without a trace of a stop."""
    same_values(tiny.last_values(one), tiny.last_values(other))
    validations = [json.loads((folder / 'validations.json').read_text()) for folder in (one, other)]
    assert validations[0] == validations[1]
    best = [tf.train.latest_checkpoint(str(folder / 'best')) for folder in (one, other)]
    assert pathlib.Path(best[0]).name == pathlib.Path(best[1]).name
    same_values(tiny.values(best[0]), tiny.values(best[1]))
    expected = losses(other)
    for key, bits in losses(one).items():
        assert bits == expected[key], f'{key[0]} of step {key[1]} was another'
    assert json.loads((one / 'status.json').read_text())['state'] == 'finished'


def state(model_dir) -> str:
    return json.loads((model_dir / 'status.json').read_text())['state']


def hashes(folder) -> dict[str, str]:
    """SHA-256 of every file by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(pathlib.Path(folder).rglob('*'))
        if path.is_file()
    }
