# SPDX-License-Identifier: Apache-2.0
"""Learning curves of the runs of one arm: from what they have logged to mean and deviation."""

import collections
import contextlib
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gan_mrcnn.utils import files

# Values by step.
Curve = dict[int, float]
VALIDATION = 'validation mask AP'
# Of a curve; of more steps, neighbours are averaged.
_MOST_POINTS = 100


class Band(NamedTuple):
    """Step, mean, standard deviation (NaN for one run) and number of runs, by point."""

    steps: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    n: np.ndarray


def read(folder: str) -> dict[str, Curve]:
    """The losses of a run by their names in TensorBoard, and mask AP on its validation split."""
    curves: dict[str, Curve] = {}
    validations = files.read_json(pathlib.Path(folder) / 'validations.json', {})
    figures = {int(step): one.get('mask_AP') for step, one in validations.items()}
    known = {step: x for step, x in figures.items() if x is not None and math.isfinite(x)}
    if known:
        curves[VALIDATION] = known
    # The names begin with the time: what a later start has repeated replaces what was before.
    for path in sorted(pathlib.Path(folder, 'train').glob('events.out.tfevents.*')):
        for name, step, value in _losses(path):
            curves.setdefault(name, {})[step] = value
    return curves


def _losses(path: pathlib.Path):
    """(name, step, value) of each loss in an event file, as far as it was written."""
    # Imported here: nothing else of the comparison wants it.
    import tensorflow as tf

    with contextlib.suppress(tf.errors.DataLossError):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tag.endswith('_loss'):
                    yield value.tag, event.step, float(tf.make_ndarray(value.tensor))


def bands(runs: Sequence[Mapping[str, Curve]]) -> dict[str, Band]:
    """Mean and deviation over runs, by name of the curve; a run counts where it has the step."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: _band([run[name] for run in runs if name in run]) for name in names}


def _band(curves: Sequence[Curve]) -> Band:
    steps = {step for curve in curves for step in curve}
    width = math.ceil(max(steps) / _MOST_POINTS) if len(steps) > _MOST_POINTS else 1
    by_step = collections.defaultdict(list)
    for curve in curves:
        own = collections.defaultdict(list)
        for step, value in curve.items():
            own[math.ceil(step / width) * width].append(value)
        for step, values in own.items():
            by_step[step].append(float(np.mean(values)))
    ordered = sorted(by_step)
    spread = [np.std(by_step[s], ddof=1) if len(by_step[s]) > 1 else np.nan for s in ordered]
    return Band(
        np.array(ordered),
        np.array([np.mean(by_step[step]) for step in ordered]),
        np.array(spread),
        np.array([len(by_step[step]) for step in ordered]),
    )
