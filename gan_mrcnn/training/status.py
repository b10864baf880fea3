# SPDX-License-Identifier: Apache-2.0
"""What a run reports while it trains: a bar or lines, `status.json`, and warnings about the GAN.

`status.json` in the folder of the run is for monitoring from elsewhere. It is replaced as a whole,
so that a reader never sees a part of it.
"""

import datetime
import os
import pathlib
import socket
import sys
import time
from typing import Any, Optional

import orbit
import tensorflow as tf
from official.core import config_definitions

from gan_mrcnn.training import gan_monitor
from gan_mrcnn.utils import files, progress_bar

STATUS = 'status.json'
# Between two updates of the file, in seconds.
STATUS_SECONDS = 2.0


class Status:
    """`status.json` of a run.

    state: 'starting', 'training', 'validating', 'stopped', 'finished' or 'failed'.
    step: the last one that was reported; train_steps: the run's last one.
    eta_seconds: until the last step, null where not known.
    losses: means of the last report, by name; validation: figures of the last validation.
    best: step and figure of the best checkpoint.
    nonfinite: number of steps with a loss or gradient that was not finite.
    message: why the run failed, or ended before its last step.
    updated: UTC; host, pid: of the process.
    """

    def __init__(self, model_dir: str, train_steps: int, is_chief: bool):
        self._file = pathlib.Path(model_dir) / STATUS if is_chief else None
        self._last = 0.0
        self._content: dict[str, Any] = {
            'state': 'starting',
            'step': 0,
            'train_steps': train_steps,
            'eta_seconds': None,
            'losses': {},
            'validation': None,
            'best': None,
            'nonfinite': 0,
            'message': '',
            'host': socket.gethostname(),
            'pid': os.getpid(),
        }

    def update(self, **changes) -> None:
        """Changes entries; a new state is written at once, others every `STATUS_SECONDS`."""
        at_once = changes.get('state', self._content['state']) != self._content['state']
        self._content.update(changes)
        now = time.monotonic()
        if self._file is None or not (at_once or now - self._last > STATUS_SECONDS):
            return
        self._last = now
        moment = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
        files.write_json(self._file, {**self._content, 'updated': moment})


class Progress:
    """Orbit's train and evaluation actions: ETA, time per step, images per second, loss and AP."""

    def __init__(self, config: config_definitions.ExperimentConfig, step: int, status: Status):
        self._batch_size = config.task.train_data.global_batch_size
        self._train_steps = config.trainer.train_steps
        self._metric = config.trainer.best_checkpoint_eval_metric
        self._status = status
        self._gan_monitor = gan_monitor.GanMonitor(config.task.gan.control != 'frozen')
        self._timer = _Timer()
        self._last_line = 0.0
        self._validated = ''
        # The training's, to be set: actions run outside the controller's own writer.
        self.summary_writer = tf.summary.create_noop_writer()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = progress_bar.Bar(
                total=self._train_steps,
                initial=step,
                unit='step',
                desc='train',
            )

    def update(self, output: orbit.runner.Output) -> None:
        """An orbit train action."""
        step = current_step()
        terms = {name: float(orbit.utils.get_value(x)) for name, x in output.items()}
        seconds = self._timer.seconds_per_step(step)
        left = seconds and seconds * (self._train_steps - step)
        self._status.update(
            state='training',
            step=step,
            eta_seconds=left and round(left),
            losses={name: float(f'{value:.6g}') for name, value in terms.items()},
        )
        for warning in self._gan_monitor.update(terms):
            self.say(f'warning: step {step}: {warning.text}')
            with self.summary_writer.as_default():
                tf.summary.text(f'warnings/{warning.name}', warning.text, step=step)
        self._show(step, terms['total_loss'], seconds, left)

    def _show(self, step, loss, seconds, left) -> None:
        figures = {'loss': f'{loss:.3f}'}
        if seconds:
            figures['s/step'] = f'{seconds:.2f}'
            figures['img/s'] = f'{self._batch_size / seconds:.1f}'
        if self._validated:
            figures['val'] = self._validated
        if self._bar is not None:
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._last_line > progress_bar.LINE_SECONDS or step == self._train_steps:
            self._last_line = now
            if left is not None:
                figures['left'] = str(datetime.timedelta(seconds=round(left)))
            parts = ', '.join(f'{name} {value}' for name, value in figures.items())
            self.say(f'step {step} of {self._train_steps}: {parts}')

    def evaluated(self, output: orbit.runner.Output) -> None:
        """An orbit evaluation action; validation does not count in the time per step."""
        self._timer.pause()
        figures = {name: float(orbit.utils.get_value(x)) for name, x in output.items()}
        shown = [
            f'{k} AP {figures[f"{k}_AP"]:.3f}' for k in ('box', 'mask') if f'{k}_AP' in figures
        ]
        self._validated = ', '.join(shown) or 'without an object to measure AP on'
        rounded = {name: round(value, 6) for name, value in figures.items()}
        self._status.update(state='training', validation={'step': current_step(), **rounded})
        self.say(f'step {current_step()}: validation {self._validated}')

    def say(self, line: str) -> None:
        """Prints above the bar, or to standard error: standard output is orbit's during a run."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


class _Timer:
    """Time per step since the last report, without pauses."""

    def __init__(self):
        self._last: Optional[tuple[float, int]] = None

    def seconds_per_step(self, step: int) -> Optional[float]:
        """None for the first report after the start or a pause."""
        now = time.monotonic()
        seconds = None
        if self._last and step > self._last[1]:
            seconds = (now - self._last[0]) / (step - self._last[1])
        self._last = (now, step)
        return seconds

    def pause(self) -> None:
        self._last = None


def current_step() -> int:
    """The global step, which orbit makes the summaries' step."""
    return int(tf.summary.experimental.get_step().numpy())
