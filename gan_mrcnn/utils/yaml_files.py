# SPDX-License-Identifier: Apache-2.0
"""YAML from files and flags of any origin: plain values, or an error of one line.

Settings are read by `yaml.safe_load` alone: it makes no objects and runs nothing. References are
what remains dangerous: a kilobyte of text can stand for a list of gigabytes, or for one that
contains itself.
"""

import os
from collections.abc import Mapping
from typing import Any, Union

import yaml

from gan_mrcnn.utils.errors import UserError

# Settings of a run are 400 values in 10 kB. A megabyte already takes seconds to parse.
_MOST_BYTES = 1_000_000
_MOST_VALUES = 100_000
# Settings of the task in version 0.1 that have another name now.
_NEW_NAMES = {'blow_ups': 'nonfinite'}
# A run saves every setting; a file that somebody wrote has a few.
_SAVED_BY_0_1 = {'mode', 'box_weight', 'mask_weight', 'num_layers', 'detach_features'}
# What the Model Garden of the newer set of packages saves of its own, by the only value that means
# anything here; the older set's does not know the names.
_SAVED_BY_NEWER_SET = {'ram_budget': None, 'keep_aspect_ratio': True}


def parse(text: Union[str, bytes], source: str) -> Any:
    """The values of `text`.

    Args:
      text: YAML, UTF-8 where it is bytes.
      source: what it is from, for the message.

    Raises:
      UserError: it is not YAML, or expands to too much.
    """
    if len(text) > _MOST_BYTES:
        raise UserError(f'{source} is longer than {_MOST_BYTES} bytes; give a file of settings')
    try:
        value = yaml.safe_load(text)
    # Beside its own errors: Python's for a date in the 13th month, and for a thousand nested lists.
    except (yaml.YAMLError, ValueError, LookupError, RecursionError, TypeError) as error:
        reason = ' '.join(str(error).split())[:300] or type(error).__name__
        raise UserError(f'{source} is not YAML: {reason}') from error
    try:
        if _count(value, {}) > _MOST_VALUES:
            raise UserError(
                f'{source} expands to more than {_MOST_VALUES} values; remove references'
            )
    except RecursionError as error:
        raise UserError(f'{source} contains itself by a reference; remove it') from error
    return value


def read_task(path: Union[str, os.PathLike]) -> Mapping[str, Any]:
    """The `task` of the settings that a run has saved, by the names of this version.

    Args:
      path: of `params.yaml`.

    Raises:
      UserError: it cannot be read, or has no `task` with a data set.
    """
    try:
        with open(path, 'rb') as file:
            content = parse(file.read(_MOST_BYTES + 1), str(path))
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error})') from error
    except UserError as error:
        raise UserError(f'{error}; put back a copy, or remove it') from error
    return task_of(content, str(path))


def task_of(content: Any, source: str) -> Mapping[str, Any]:
    """The `task` of saved settings, by the names of this version.

    Raises:
      UserError: there is none, or one without a data set; `source` is named.
    """
    task = content.get('task') if isinstance(content, Mapping) else None
    if not isinstance(task, Mapping) or not isinstance(task.get('dataset'), str):
        raise UserError(f'{source} has no task with a dataset: not the settings of a run')
    return up_to_date(task)


def up_to_date(task: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a task as this version says them under both sets of packages.

    Version 0.1 has saved some otherwise, and the newer set saves some that the older one refuses.
    """
    task = {_NEW_NAMES.get(name, name): value for name, value in task.items()}
    for part in ('train_data', 'validation_data'):
        if isinstance(task.get(part), Mapping):
            task[part] = _of_both_sets(task[part])
    gan = task.get('gan')
    if isinstance(gan, Mapping) and 'preset' not in gan and set(gan) >= _SAVED_BY_0_1:
        # It weighed the discriminators' losses by 1 and clipped them as the generator.
        own = {'discriminator_box_weight': 1.0, 'discriminator_mask_weight': 1.0}
        task['gan'] = {**gan, **own, 'clip_norm': task.get('clip_norm', 0.0)}
    return task


def _of_both_sets(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the data, or of their parser, without `_SAVED_BY_NEWER_SET`."""
    return {
        name: _of_both_sets(value) if name == 'parser' and isinstance(value, Mapping) else value
        for name, value in data.items()
        if name not in _SAVED_BY_NEWER_SET or value is not _SAVED_BY_NEWER_SET[name]
    }


def _count(value, known: dict[int, int]) -> int:
    """How many values `value` has when all references are expanded; each object is counted once."""
    if not isinstance(value, (list, dict)):
        return 1
    if id(value) not in known:
        parts = value if isinstance(value, list) else [*value, *value.values()]
        known[id(value)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(value)]
