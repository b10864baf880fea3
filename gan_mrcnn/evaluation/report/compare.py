# SPDX-License-Identifier: Apache-2.0
"""Runs side by side: `gan-mrcnn compare RUN_A RUN_B [...] --report DIR`.

Answers whether one system is better than another on the same images, or whether other images could
have said the opposite. A RUN is a folder of train.py that evaluate.py has evaluated. Runs that
differ only in their seed are one system, whose figures are means; the other systems are compared
with the first one given.

The interval of a difference comes from resampling images, the same ones for both systems (a paired
bootstrap, Efron and Tibshirani 1993). It says nothing about other seeds: the standard deviation
over seeds does. `compare.html.j2` has the words of the page.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from gan_mrcnn.data import readers
from gan_mrcnn.data.readers import base
from gan_mrcnn.data.readers import options as data_options
from gan_mrcnn.data.records import records
from gan_mrcnn.evaluation import scoring, statistics
from gan_mrcnn.evaluation.report import charts
from gan_mrcnn.evaluation.report import page as report_page
from gan_mrcnn.metrics import coco, error_types, predictions
from gan_mrcnn.metrics import gland as gland_metrics
from gan_mrcnn.utils import disk, files, paths, progress_bar, yaml_files
from gan_mrcnn.utils.errors import UserError
from gan_mrcnn.utils.html import render

_TEMPLATE = pathlib.Path(__file__).with_name('compare.html.j2')
# Images on each side of where two systems differ most.
_NUM_IMAGES = 3
# Settings that may differ between runs of one system.
_NO_SETTINGS = ('seed', 'data_dir', 'cache_dir', 'annotation_file')
# Where their records were is no setting either.
_DATA = ('train_data', 'validation_data')
# Name of a figure: kind and name in `coco.figures`.
_AP = {
    'box AP': ('box', 'AP'),
    'mask AP': ('mask', 'AP'),
    'mask AP50': ('mask', 'AP50'),
    'mask AP75': ('mask', 'AP75'),
    'boundary AP': ('boundary', 'AP'),
}
_GLANDS = {'gland F1': 'F1', 'gland Dice': 'dice', 'gland Hausdorff': 'hausdorff'}


@dataclasses.dataclass
class Run:
    """An evaluated run: its name, settings that define its system, and scores."""

    name: str
    settings: dict[str, Any]
    scored: scoring.Scored

    def figures(self, weights: Optional[np.ndarray] = None) -> dict[str, Optional[float]]:
        """All compared figures; `weights` is how often each image counts, in the order of ids."""
        names: dict[str, list[str]] = {}
        for kind, name in _AP.values():
            names.setdefault(kind, []).append(name)
        by_kind = {
            kind: coco.figures(self.scored.matches[kind], weights, wanted)[0]
            for kind, wanted in names.items()
        }
        figures = {figure: by_kind[kind][name] for figure, (kind, name) in _AP.items()}
        scores = self.scored.gland_scores
        if scores:
            summary = gland_metrics.summarize([scores[i] for i in sorted(scores)], weights)
            figures.update({figure: summary[name] for figure, name in _GLANDS.items()})
        return figures

    def qualities(self) -> dict[int, float]:
        """Panoptic quality by image id."""
        return error_types.image_qualities(
            self.scored.errors, self.scored.record_set.image_ids, self.threshold
        )

    @property
    def threshold(self) -> float:
        return self.scored.figures['score_threshold']['value']


@dataclasses.dataclass
class System:
    """Runs that differ in their seed only."""

    name: str
    runs: list[Run]

    def mean(self, weights: Optional[np.ndarray] = None) -> dict[str, Optional[float]]:
        """Means of the runs' figures; None where one has none."""
        return self._reduce([run.figures(weights) for run in self.runs], np.mean)

    def spread(self) -> dict[str, Optional[float]]:
        """Standard deviation over seeds; None for a single run."""
        if len(self.runs) == 1:
            return dict.fromkeys(self.runs[0].figures())
        std = functools.partial(np.std, ddof=1)
        return self._reduce([run.figures() for run in self.runs], std)

    @staticmethod
    def _reduce(figures, function) -> dict[str, Optional[float]]:
        values = {name: [one[name] for one in figures] for name in figures[0]}
        return {
            name: None if None in column else float(function(column))
            for name, column in values.items()
        }

    def qualities(self) -> dict[int, float]:
        """Mean of the runs' panoptic quality by image id."""
        qualities = [run.qualities() for run in self.runs]
        return {i: float(np.mean([one[i] for one in qualities])) for i in qualities[0]}


def group(runs: Sequence[Run]) -> list[System]:
    """Systems in the order of their first runs, named by what their runs' names have in common."""
    groups: list[list[Run]] = []
    for run in runs:
        for members in groups:
            if run.settings and members[0].settings == run.settings:
                members.append(run)
                break
        else:
            groups.append([run])
    return [System(_common_name([run.name for run in members]), members) for members in groups]


def _common_name(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    # Without the seed: 'combined-10' and 'combined-11' are 'combined'.
    return re.sub(r'[-_. ]\d*$', '', os.path.commonprefix(list(names))) or names[0]


def resample(runs: Sequence[Run], num_samples: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Figures of runs on resampled images, the same images for all of them.

    Args:
      runs: evaluated on the same images.
      num_samples: resamplings.
      seed: of the drawing.

    Returns:
      [samples, runs] by figure; NaN where it does not exist, as without an object of a class in
      the sample.
    """
    num_images = runs[0].scored.matches['mask'].num_images
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in progress_bar.Bar(range(num_samples), desc='resample images', unit='sample'):
        weights = rng.multinomial(num_images, np.full(num_images, 1 / num_images))
        drawn.append([run.figures(weights) for run in runs])
    return {
        name: np.array([[one[name] for one in sample] for sample in drawn], float)
        for name in drawn[0][0]
    }


def load_runs(
    folders: Sequence[str], split: Optional[str], data_dir: Optional[str], cache_dir: str
) -> list[Run]:
    """Scores the predictions of runs.

    Args:
      folders: of train.py.
      split: that was evaluated for all of them; None for the data set's `evaluated_split`.
      data_dir: where the data are now; None for where the first run had them.
      cache_dir: of records.

    Raises:
      UserError: a folder is not that of a run, is not evaluated, or is of another data set.
    """
    settings = [_settings(folder) for folder in folders]
    dataset = _load_dataset(settings[0], data_dir)
    split = split or dataset.evaluated_split
    if split not in dataset.splits:
        raise UserError(
            f'--split {split}: {dataset.name} has the splits {", ".join(dataset.splits)} only'
        )
    cache_dir = paths.expand_home(cache_dir, '--cache_dir')
    skip_bad = bool(settings[0].get('skip_bad'))
    record_set = records.ensure_records(dataset, split, cache_dir, skip_bad=skip_bad)
    ground_truth = coco.load_annotations(record_set.annotation_file)
    runs = []
    for folder, own in zip(folders, settings):
        scored = _score(folder, dataset, split, record_set, ground_truth)
        kept = {key: value for key, value in own.items() if key not in _NO_SETTINGS}
        for part in _DATA:
            kept[part] = {key: x for key, x in kept.get(part, {}).items() if key != 'input_path'}
        runs.append(Run(pathlib.Path(folder).resolve().name, kept, scored))
    return runs


def _score(folder, dataset, split, record_set, ground_truth) -> scoring.Scored:
    path = str(pathlib.Path(folder) / 'eval' / split / 'predictions.json')
    if not os.path.exists(path):
        raise UserError(
            f'{path} does not exist; evaluate the run first: evaluate.py --split {split}'
        )
    manifest = predictions.load_manifest(path)
    predictions.check_manifest(path, manifest, scoring.manifest(dataset, split, record_set))
    results = predictions.load_predictions(path, ground_truth, dataset.category_ids)
    threshold = manifest.get('score_threshold', scoring.DEFAULT_THRESHOLD)
    most = manifest.get('max_num_detections')
    return scoring.score(dataset, split, record_set, results, threshold, most)


def _settings(folder: str) -> Mapping[str, Any]:
    path = pathlib.Path(folder) / 'params.yaml'
    if not path.is_file():
        raise UserError(f'{folder} has no params.yaml; give a folder that train.py wrote')
    return yaml_files.read_task(path)


def _load_dataset(settings: Mapping[str, Any], data_dir: Optional[str]) -> base.Dataset:
    given = {name: settings.get(name) or None for name in data_options.FLAGS}
    divided = data_options.from_flags(argparse.Namespace(**given))
    return readers.load_dataset(
        settings['dataset'], data_dir or settings['data_dir'] or None, divided
    )


def compare(systems: Sequence[System], num_samples: int) -> dict[str, Any]:
    """Figures of all systems, and differences to the first.

    Returns:
      A dictionary fit for JSON: 'systems' with name, runs, mean and spread; 'differences' by name
      of system, each with difference and interval by figure.
    """
    first = systems[0]
    means = {system.name: system.mean() for system in systems}
    of_first, *of_others = columns_of(systems)
    resampled = resample([run for system in systems for run in system.runs], num_samples)
    differences = {}
    for system, columns in zip(systems[1:], of_others):
        differences[system.name] = {
            name: {
                'difference': _minus(means[system.name][name], means[first.name][name]),
                'interval': statistics.images_interval(values[:, of_first], values[:, columns]),
            }
            for name, values in resampled.items()
        }
    return {
        'systems': [
            {
                'name': system.name,
                'runs': {run.name: run.figures() for run in system.runs},
                'mean': means[system.name],
                'spread': system.spread(),
            }
            for system in systems
        ],
        'compared_with': first.name,
        'samples': num_samples,
        'differences': differences,
    }


def columns_of(systems: Sequence[System]) -> list[slice]:
    """Where the runs of each system are when all runs stand in one row."""
    ends = np.cumsum([len(system.runs) for system in systems])
    return [slice(end - len(system.runs), end) for system, end in zip(systems, ends)]


def _minus(a: Optional[float], b: Optional[float]) -> Optional[float]:
    return None if a is None or b is None else a - b


# The page.


def write(systems: Sequence[System], result: Mapping[str, Any], folder: str) -> str:
    """Writes FOLDER/index.html and FOLDER/comparison.json; returns the path of the page."""
    path = pathlib.Path(folder) / 'index.html'
    files.write_json(path.with_name('comparison.json'), result)
    render.write(
        path,
        _TEMPLATE,
        samples=result['samples'],
        figures=_figures(result),
        runs=runs_table(result['systems']),
        **page_values(systems),
    )
    return str(path)


def page_values(systems: Sequence[System]) -> dict[str, Any]:
    """What `compare.html.j2` shows below the figures, by name, and the page's title."""
    scored = systems[0].runs[0].scored
    return {
        'title': f'{scored.dataset.name}/{scored.split}: {", ".join(s.name for s in systems)}',
        'notice': scored.dataset.notice,
        'curves': charts.lines(_curves(systems), 'recall', 'precision'),
        'errors': charts.bars(_costs(systems), 'AP50 lost'),
        'pairs': [_differences(systems[0], system) for system in systems[1:]],
        'outline_colours': report_page.OUTLINE_COLOURS,
    }


def _figures(result) -> render.Table:
    """Mean, spread and difference of each figure; bold where an interval does not hold zero."""
    first, differences = result['compared_with'], result['differences']
    header = ['', *(f'{one["name"]} (n = {len(one["runs"])})' for one in result['systems'])]
    header += [f'{name} minus {first}' for name in differences]
    rows, bold = [], []
    for figure in result['systems'][0]['mean']:
        cells = [figure]
        for one in result['systems']:
            spread = one['spread'][figure]
            plus = '' if spread is None else f' \N{PLUS-MINUS SIGN} {number(spread, figure)}'
            cells.append(number(one['mean'][figure], figure) + plus)
        cells += [describe(one[figure], figure) for one in differences.values()]
        if any(is_clear(one[figure]) for one in differences.values()):
            bold.append(len(rows))
        rows.append(cells)
    return render.Table(header, rows, bold)


def runs_table(systems: Sequence[Mapping[str, Any]]) -> render.Table:
    """The figures of each run, of systems as `compare` returns them."""
    rows = [
        [name, *(number(value, figure) for figure, value in figures.items())]
        for one in systems
        for name, figures in one['runs'].items()
    ]
    return render.Table(['', *next(iter(systems[0]['runs'].values()))], rows)


def number(value: Optional[float], figure: str) -> str:
    """A figure as text: pixels with one digit, the rest with four."""
    if value is None:
        return '-'
    return f'{value:.1f}' if 'Hausdorff' in figure else f'{value:.4f}'


def describe(one: Mapping[str, Any], figure: str) -> str:
    """A difference with its interval, as text."""
    if one['difference'] is None or one['interval'] is None:
        return '-'
    sign = '+' if one['difference'] > 0 else ''
    low, high = (number(value, figure) for value in one['interval'])
    return f'{sign}{number(one["difference"], figure)} [{low}, {high}]'


def is_clear(one: Mapping[str, Any]) -> bool:
    """Whether the interval of a difference lies on one side of zero."""
    return one['interval'] is not None and one['interval'][0] * one['interval'][1] > 0


def _curves(systems) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Precision over recall by system, means over seeds."""
    curves = {}
    for name in ('mask at 0.5', 'boundary at 0.5'):
        for system in systems:
            of_runs = [report_page.precision_recall(run.scored.matches) for run in system.runs]
            if all(name in one for one in of_runs):
                mean = np.mean([one[name][1] for one in of_runs], axis=0)
                curves[f'{system.name}, {name}'] = (of_runs[0][name][0], mean)
    return curves


def _costs(systems) -> dict[str, dict[str, Optional[float]]]:
    """AP50 lost by kind of error and system, means over seeds; names fit below narrow bars."""
    short = {'classification': 'class', 'localization': 'local.', 'background': 'backgr.'}
    costs = {}
    for kind in error_types.KINDS:
        for system in systems:
            values = [run.scored.figures['errors']['costs'][kind] for run in system.runs]
            mean = None if None in values else float(np.mean(values))
            costs.setdefault(short.get(kind, kind), {})[system.name] = mean
    return costs


def _differences(first: System, second: System) -> dict[str, Any]:
    """The images on which two systems differ most, by name of the better one."""
    before, after = first.qualities(), second.qualities()
    ranked = sorted(before, key=lambda i: (after[i] - before[i], i))
    chosen = {
        second.name: [i for i in ranked[::-1] if after[i] > before[i]][:_NUM_IMAGES],
        first.name: [i for i in ranked if after[i] < before[i]][:_NUM_IMAGES],
    }
    scored = first.runs[0].scored
    images = report_page.read_images(scored.dataset, scored.split, sum(chosen.values(), []))
    shown = {
        name: [_show(system, images[i], i) for i in ids for system in (first, second)]
        for name, ids in chosen.items()
    }
    return {'first': first.name, 'second': second.name, 'images': shown}


def _show(system: System, image: np.ndarray, image_id: int) -> report_page.Shown:
    """The image with the predictions of the run that is nearest to the system's mean quality."""
    qualities = [run.qualities()[image_id] for run in system.runs]
    nearest = int(np.argmin(np.abs(np.array(qualities) - np.mean(qualities))))
    run = system.runs[nearest]
    return report_page.show_image(
        run.scored, image, image_id, run.threshold, qualities[nearest], run.name
    )


def format_text(result: Mapping[str, Any]) -> str:
    """The figures for a terminal."""
    first = result['compared_with']
    lines = []
    for figure, value in result['systems'][0]['mean'].items():
        lines.append(f'{figure}: {first} {number(value, figure)}')
        for one in result['systems'][1:]:
            difference = describe(result['differences'][one['name']][figure], figure)
            lines.append(f'    {one["name"]} {number(one["mean"][figure], figure)}, {difference}')
    return '\n'.join(lines)


def run(
    folders: Sequence[str],
    split: Optional[str],
    data_dir: Optional[str],
    cache_dir: str,
    samples: int,
    folder: str,
) -> None:
    """Compares runs, prints the figures and writes the page."""
    systems = group(load_runs(folders, split, data_dir, cache_dir))
    # Before the resampling, which takes its time.
    disk.check_folder(folder, '--report')
    result = compare(systems, samples)
    with disk.errors_named(f'--report {folder}'):
        path = write(systems, result, folder)
    print(format_text(result))
    print(f'report: {path}')
