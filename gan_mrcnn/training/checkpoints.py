# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: the one to resume from, also where the last one is damaged, and the best.

TensorFlow writes a checkpoint under another name and renames it, then names it in the file
`checkpoint`: a run that is killed at any moment still has the one before. A power cut or a full or
failing disk can still leave damaged files. Reading detects them, for every tensor has a checksum;
they are set aside, and the run resumes from the checkpoint before.
"""

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, Optional

import orbit
import tensorflow as tf

from gan_mrcnn.prediction import checkpoint as checkpoint_lib
from gan_mrcnn.utils import disk, files, paths
from gan_mrcnn.utils.errors import UserError

# Where files that cannot be read go.
DAMAGED = 'damaged'
# Every validation's figures by step.
VALIDATIONS = 'validations.json'
BEST = 'best'

_NAME = re.compile(r'ckpt-(\d+)\.index')
# What TensorFlow writes before a checkpoint is complete; other files in the folder are the user's.
_UNFINISHED = re.compile(r'ckpt-\d+(_temp.*|\.(index|data-\d{5}-of-\d{5})\.tempstate\d+)')
_PART = re.compile(r'ckpt-(\d+)\.(index|data-\d{5}-of-\d{5})')


def newest_sound(model_dir: str) -> Optional[str]:
    """Path of the newest checkpoint that can be read, None without one.

    Newer ones that cannot are moved into `damaged`, with a line that says so; what an interrupted
    save left behind is removed.

    Raises:
      UserError: there are checkpoints, and none can be read.
    """
    folder = pathlib.Path(model_dir)
    found = sorted(
        (
            int(match.group(1))
            for path in folder.glob('ckpt-*.index')
            if (match := _NAME.fullmatch(path.name))
        ),
        reverse=True,
    )
    for step in found:
        path = str(folder / f'ckpt-{step}')
        problem = _problem(path)
        if problem is None:
            _clean(folder, found)
            if latest(str(folder)) != path:
                _name_as_latest(folder, [one for one in reversed(found) if one <= step])
            return path
        _set_aside(folder, step)
        print(f'{path} is damaged ({problem}): moved to {folder / DAMAGED}', flush=True)
    if found or list((folder / DAMAGED).glob('ckpt-*.index')):
        # Also the next start must not take the folder for a new one.
        raise UserError(
            f'none of the checkpoints in {model_dir} can be read; they were moved to its folder '
            f'{DAMAGED}: put back a copy, or start again with another --model_dir'
        )
    return None


def latest(folder: str) -> Optional[str]:
    """The checkpoint that `folder` names as its newest; None without one, or a readable list."""
    try:
        return checkpoint_lib.newest_named(folder)
    except (ValueError, tf.errors.OpError):
        return None


def _name_as_latest(folder: pathlib.Path, steps: list[int]) -> None:
    """Writes TensorFlow's list of the checkpoints that are kept, oldest first."""
    names = [f'ckpt-{step}' for step in steps]
    times = [os.path.getmtime(folder / f'{name}.index') for name in names]
    lines = [
        f'model_checkpoint_path: "{names[-1]}"',
        *(f'all_model_checkpoint_paths: "{name}"' for name in names),
        *(f'all_model_checkpoint_timestamps: {time!r}' for time in times),
        # Older than all of them: what is preserved would never be deleted.
        'last_preserved_timestamp: 0.0',
    ]
    files.write_text(folder / 'checkpoint', '\n'.join(lines) + '\n')


def _problem(path: str) -> Optional[str]:
    """Why a checkpoint cannot be read, None where it can: every tensor's checksum is verified."""
    try:
        with paths.plain_checkpoint(path) as plain:
            reader = tf.train.load_checkpoint(plain)
            for name in reader.get_variable_to_shape_map():
                reader.get_tensor(name)
    except (tf.errors.OpError, ValueError, IndexError, OverflowError, MemoryError) as error:
        return ' '.join(str(error).split())[:100] or type(error).__name__
    return None


def _set_aside(folder: pathlib.Path, step: int) -> None:
    (folder / DAMAGED).mkdir(exist_ok=True)
    for path in folder.glob(f'ckpt-{step}.*'):
        os.replace(path, folder / DAMAGED / path.name)


def _clean(folder: pathlib.Path, steps: list[int]) -> None:
    """Removes what interrupted saves have left."""
    for path in folder.glob('ckpt-*'):
        part = _PART.fullmatch(path.name)
        if not _UNFINISHED.fullmatch(path.name) and (not part or int(part.group(1)) in steps):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class Checkpoints:
    """Saves and restores one run.

    Each of several workers has to take part in saving, because reading a variable may be a
    collective operation; what the workers other than the chief write is discarded.
    """

    def __init__(
        self,
        checkpoint: tf.train.Checkpoint,
        model_dir: str,
        step: tf.Variable,
        max_to_keep: int,
        is_chief: bool,
        plain_dir: str = '',
    ):
        """Saves nothing yet.

        Args:
          checkpoint: what is saved and restored.
          model_dir: of the run.
          step: numbers the checkpoints.
          max_to_keep: how many are kept.
          is_chief: whether this worker's checkpoints are those of the run.
          plain_dir: `model_dir` as `paths.plain_folder` has it, where that is another.
        """
        self._model_dir = model_dir
        self._step = step
        self._discarded = None if is_chief else tempfile.TemporaryDirectory()
        self._manager = tf.train.CheckpointManager(
            checkpoint,
            (plain_dir or model_dir) if is_chief else self._discarded.name,
            max_to_keep=max_to_keep if is_chief else 1,
        )
        self._saved_step: Optional[int] = None

    def restore(self, path: str) -> None:
        """Reads `path`; UserError where it holds another network."""
        try:
            with paths.plain_checkpoint(path) as plain:
                status = self._manager.checkpoint.restore(plain)
                status.assert_existing_objects_matched()
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            raise UserError(
                f'{path} holds another network than the settings describe '
                f'({str(error).splitlines()[0][:200]}); give another --model_dir, or the settings '
                'that it was trained with'
            ) from error
        self._saved_step = int(self._step.numpy())

    def save(self) -> None:
        """Saves, unless this step has been saved already."""
        step = int(self._step.numpy())
        if step != self._saved_step:
            self._manager.save(checkpoint_number=step)
            self._saved_step = step

    def check_room(self) -> None:
        """Raises UserError where the disk cannot take what the run will save."""
        if self._discarded:
            return
        view = tf.train.TrackableView(self._manager.checkpoint)
        variables = [x for x in view.descendants() if isinstance(x, tf.Variable)]
        size = sum(v.dtype.size * v.shape.num_elements() for v in variables)
        free = shutil.disk_usage(self._model_dir).free
        # One more than is kept, and the best: a new one is written before the oldest is removed.
        wanted = size * 2
        if free < wanted:
            raise UserError(
                f'{self._model_dir} has {free / 1e6:.0f} MB of room, but a checkpoint takes '
                f'{size / 1e6:.0f} MB and a new one is written before an old one is removed: make '
                f'room for {wanted / 1e6:.0f} MB, or give another --model_dir'
            )


class BestCheckpoint:
    """The checkpoint with the highest validation figure, kept apart, and all figures.

    Which one is the best follows from the step of the checkpoint on disk and the figures of that
    step, so that a killed process cannot leave a checkpoint with the figures of another. Where the
    figure is undefined, as without an object in the validation split, there is no best.
    """

    def __init__(self, model_dir: str, metric: str, is_chief: bool):
        self._folder = str(pathlib.Path(model_dir) / BEST)
        self._file = pathlib.Path(model_dir) / VALIDATIONS
        self._metric = metric
        self._is_chief = is_chief
        self._discarded = None if is_chief else tempfile.TemporaryDirectory()
        history = files.read_json(self._file, {})
        self.history = {int(step): figures for step, figures in history.items()}
        self._best_step = self._step_on_disk()

    def _step_on_disk(self) -> Optional[int]:
        path = latest(self._folder)
        if path is None or _problem(path) is not None:
            return None
        step = checkpoint_lib.step_of(path)
        # Runs from before there was a history have the figures of the best one here.
        info = files.read_json(pathlib.Path(self._folder) / 'info.json', None)
        if info and step not in self.history:
            self.history[step] = info
        return step if self._metric in self.history.get(step, {}) else None

    def _is_best(self, step: int) -> bool:
        figure = self.history[step].get(self._metric)
        if figure is None or self._best_step in (None, step):
            return figure is not None
        return figure > self.history[self._best_step][self._metric]

    @property
    def best_step(self) -> Optional[int]:
        """The step of the best checkpoint, None without one."""
        return self._best_step

    def is_settled(self, step: int) -> bool:
        """Whether the validation of `step` is recorded, and its checkpoint saved if it is best."""
        return step in self.history and (self._best_step == step or not self._is_best(step))

    def num_since_best(self, step: int) -> int:
        """Validations up to `step` that have not been better than the best one; 0 without one."""
        if self._best_step is None:
            return 0
        return sum(self._best_step < validated <= step for validated in self.history)

    def best_figure(self) -> dict[str, float]:
        """The figure that the best checkpoint was chosen by, by its name; empty without one."""
        if self._best_step is None:
            return {}
        return {self._metric: self.history[self._best_step][self._metric]}

    def add(self, checkpoint: tf.train.Checkpoint, logs: Mapping[str, Any], step: int) -> None:
        """Records a validation's figures and, where it is the best so far, saves `checkpoint`."""
        self.history[step] = {name: float(orbit.utils.get_value(x)) for name, x in logs.items()}
        if self._is_chief:
            files.write_json(self._file, self.history)
        if not self._is_best(step):
            return
        self._best_step = step
        folder = self._discarded.name if self._discarded else self._folder
        # A link to a folder that is not there would be no folder.
        os.makedirs(folder, exist_ok=True)
        with paths.plain_folder(folder) as plain:
            manager = tf.train.CheckpointManager(
                checkpoint, plain, max_to_keep=1, checkpoint_name='best_ckpt'
            )
            manager.save(checkpoint_number=step)


@contextlib.contextmanager
def disk_errors_named(folder: str) -> Iterator[None]:
    """Turns errors of a full or read-only disk and the like into one line about `folder`."""
    remedy = (
        'files there are unchanged: make room or give permission and start again, it goes on from '
        'the last checkpoint'
    )
    with disk.errors_named(folder, remedy):
        yield
