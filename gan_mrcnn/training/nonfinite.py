# SPDX-License-Identifier: Apache-2.0
"""What happens after a step with a loss or gradient that is not finite.

Such a step changes nothing (`GanMaskRCNNTask.train_step`). Here the step, the terms and the images
are named, the batch is saved for `gan-mrcnn replay`, the event is recorded, and the run follows its
policy: stop, skip the batch, or go back to the newest checkpoint and continue at a lower rate.
"""

import os
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any, Callable

import numpy as np
import tensorflow as tf

from gan_mrcnn import configs
from gan_mrcnn.utils import files, paths
from gan_mrcnn.utils.errors import UserError

# In the folder of the run.
FOLDER = 'nonfinite'
RECORD = 'nonfinite.json'
# Its name in version 0.1.
_OLD_RECORD = 'blow_ups.json'
# Batches kept for replay, each with the weights of its step.
NUM_KEPT = 3


class GoBack(Exception):
    """The run has to go back to its newest checkpoint, with the new `NonfiniteSteps.rate_scale`."""


class NonfiniteSteps:
    """The steps of one run that were not finite, over all its starts."""

    def __init__(self, config: configs.Nonfinite, model_dir: str, is_chief: bool):
        """Reads the record in `model_dir`; only the chief writes it."""
        self._config = config
        self._folder = pathlib.Path(model_dir) / FOLDER
        self._file = pathlib.Path(model_dir) / RECORD
        self._is_chief = is_chief
        old = files.read_json(self._file.with_name(_OLD_RECORD), [])
        self._events = files.read_json(self._file, old)

    @property
    def count(self) -> int:
        """How many there were."""
        return len(self._events)

    @property
    def rate_scale(self) -> float:
        """What to multiply the learning rates with: `rate_factor` for each time it went back."""
        went_back = sum(event['policy'] == 'go_back' for event in self._events)
        return self._config.rate_factor**went_back

    def handle(
        self,
        step: int,
        inputs: tuple[tf.Tensor, Mapping[str, Any]],
        terms: Mapping[str, float],
        name_images: Callable[[list[int]], list[str]],
        checkpoint: tf.train.Checkpoint,
        say: Callable[[str], None],
    ) -> None:
        """Follows the policy after this step.

        Args:
          step: its number, from 1.
          inputs: this worker's images and labels.
          terms: value of every term of the loss.
          name_images: from ids to names of files.
          checkpoint: of everything that is trained.
          say: prints a line for the user.

        Raises:
          UserError: the run has to end.
          GoBack: it has to continue from its newest checkpoint.
        """
        names = name_images([int(i) for i in np.ravel(inputs[1]['source_id'])])
        line = f'Non-finite loss or gradient: step {step} images {", ".join(names)} ' + ' '.join(
            f'{name} {terms[name]:.4g}' for name in sorted(terms)
        )
        path = self._save(step, inputs, checkpoint)
        self._record(step, names, terms, path)
        replay = f'to examine it: gan-mrcnn replay {shlex.quote(str(path))}'
        policy = self._config.policy
        if policy == 'stop':
            raise UserError(
                f'{line}. This step changed nothing; {replay}; then lower the learning rate, raise '
                'the warm-up steps, or choose --on_nonfinite skip or go_back'
            )
        if self.count > self._config.limit:
            raise UserError(
                f'{line}. This is number {self.count} of at most {self._config.limit} '
                f'(task.nonfinite.limit); {replay}; then lower the learning rate'
            )
        if policy == 'go_back':
            raise GoBack(f'{line}; {replay}')
        say(f'{line}. The batch is skipped; {replay}')

    def _record(self, step, names, terms, path) -> None:
        """Adds the step to the run's record."""
        policy = self._config.policy
        event = {
            'step': step,
            'policy': policy,
            'images': names,
            'terms': {name: f'{value:.6g}' for name, value in terms.items()},
            'batch': str(path),
        }
        # A run that resumes from a checkpoint before it may skip the same batch a second time.
        self._events = [
            old
            for old in self._events
            if not (policy == old['policy'] != 'go_back' and old['step'] == step)
        ] + [event]
        if self._is_chief:
            files.write_json(self._file, self._events)

    def _save(self, step, inputs, checkpoint) -> pathlib.Path:
        """Writes the batch and, beside it, the weights; returns the batch's path."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # All workers save: reading the weights is something they do together.
        worker = '' if self._is_chief else f'-pid{os.getpid()}'
        path = self._folder / f'step-{step}{worker}.npz'
        with files.named_when_whole(path) as temporary, open(temporary, 'wb') as file:
            np.savez(file, step=step, **flatten(inputs))
        with paths.plain_folder(self._folder) as plain:
            checkpoint.write(os.path.join(plain, path.stem))
        kept = sorted(self._folder.glob('step-*.npz'), key=lambda one: one.stat().st_mtime)
        for old in kept[:-NUM_KEPT] if self._is_chief else []:
            for part in self._folder.glob(f'{old.stem}.*'):
                part.unlink(missing_ok=True)
        return path


def flatten(inputs: tuple[tf.Tensor, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Images and labels as arrays by name, those of FPN levels as `name/level`."""
    images, labels = inputs
    arrays = {'images': np.asarray(images)}
    for name, value in labels.items():
        if isinstance(value, Mapping):
            arrays.update({f'{name}/{level}': np.asarray(x) for level, x in value.items()})
        else:
            arrays[name] = np.asarray(value)
    return arrays


def unflatten(arrays: Mapping[str, np.ndarray]) -> tuple[tf.Tensor, dict[str, Any]]:
    """The inverse of `flatten`; drops `step`, which is no label."""
    labels: dict[str, Any] = {}
    for name, value in arrays.items():
        if name in ('images', 'step'):
            continue
        name, _, level = name.partition('/')
        if level:
            labels.setdefault(name, {})[level] = tf.constant(value)
        else:
            labels[name] = tf.constant(value)
    return tf.constant(arrays['images']), labels
