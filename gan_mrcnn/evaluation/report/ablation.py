# SPDX-License-Identifier: Apache-2.0
"""The page of an ablation: what arms of several seeds differ by, and whether it could be luck.

Arms are compared with the first one in three ways, since each alone misleads with few seeds: over
resampled seeds and images, over seeds by Welch's t and regroupings, and by pairs of the same seed.
`ablation.html.j2` has the words of the page.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from gan_mrcnn.evaluation import statistics
from gan_mrcnn.evaluation.report import charts, learning_curves
from gan_mrcnn.evaluation.report import compare as compare_report
from gan_mrcnn.utils import files
from gan_mrcnn.utils.html import render

_TEMPLATE = pathlib.Path(__file__).with_name('ablation.html.j2')
# Differences of AP and the like for which the number of seeds is given.
DIFFERENCES = (0.02, 0.01)


@dataclasses.dataclass
class Arm:
    """The evaluated runs of an arm.

    name: of the arm.
    runs: by seed.
    bands: learning curves by name.
    """

    name: str
    runs: dict[int, compare_report.Run]
    bands: dict[str, learning_curves.Band]

    @property
    def system(self) -> compare_report.System:
        return compare_report.System(self.name, list(self.runs.values()))


def load(
    folders: Mapping[str, Mapping[int, str]], split: str, data_dir: Optional[str], cache_dir: str
) -> list[Arm]:
    """Scores the runs of all arms; an arm without any is left out.

    Args:
      folders: by arm and seed.
      split, data_dir, cache_dir: see `compare.load_runs`.

    Raises:
      UserError: a folder is not that of an evaluated run.
    """
    folders = {name: by_seed for name, by_seed in folders.items() if by_seed}
    in_row = [folder for by_seed in folders.values() for folder in by_seed.values()]
    runs = iter(compare_report.load_runs(in_row, split, data_dir, cache_dir))
    return [
        Arm(
            name,
            {seed: next(runs) for seed in by_seed},
            learning_curves.bands([learning_curves.read(one) for one in by_seed.values()]),
        )
        for name, by_seed in folders.items()
    ]


def compare(arms: Sequence[Arm], num_samples: int) -> dict[str, Any]:
    """Figures of all arms, and differences to the first.

    Args:
      arms: see `load`.
      num_samples: resamplings of the images.

    Returns:
      A dictionary fit for JSON: 'arms' with name, seeds, runs, and mean, spread and n by figure;
      'differences' by arm and figure, see `_difference`; 'curves' by arm.
    """
    resampled = compare_report.resample(
        [run for arm in arms for run in arm.runs.values()], num_samples
    )
    of_first, *of_others = compare_report.columns_of([arm.system for arm in arms])
    figures = {arm.name: {seed: run.figures() for seed, run in arm.runs.items()} for arm in arms}
    differences = {
        arm.name: {
            figure: _difference(
                {seed: one[figure] for seed, one in figures[arms[0].name].items()},
                {seed: one[figure] for seed, one in figures[arm.name].items()},
                samples[:, of_first],
                samples[:, columns],
                DIFFERENCES if 'Hausdorff' not in figure else (),
            )
            for figure, samples in resampled.items()
        }
        for arm, columns in zip(arms[1:], of_others)
    }
    return {
        'arms': [_describe_arm(arm, figures[arm.name]) for arm in arms],
        'compared_with': arms[0].name,
        'samples': num_samples,
        'differences': differences,
        'curves': {
            arm.name: {name: band._asdict() for name, band in arm.bands.items()} for arm in arms
        },
    }


def _describe_arm(arm: Arm, figures: Mapping[int, Mapping[str, Optional[float]]]) -> dict[str, Any]:
    by_figure = {
        name: statistics.summarize(_array([one[name] for one in figures.values()]))
        for name in next(iter(figures.values()))
    }
    return {
        'name': arm.name,
        'seeds': list(arm.runs),
        'runs': {run.name: figures[seed] for seed, run in arm.runs.items()},
        **{
            key: {name: getattr(summary, key) for name, summary in by_figure.items()}
            for key in ('mean', 'spread', 'n')
        },
    }


def _difference(
    first: Mapping[int, Optional[float]],
    second: Mapping[int, Optional[float]],
    first_samples: np.ndarray,
    second_samples: np.ndarray,
    to_find: Sequence[float],
) -> dict[str, Any]:
    """What the second arm's figure is more than the first's.

    Args:
      first, second: figure by seed.
      first_samples, second_samples: [samples, runs] on resampled images.
      to_find: differences for which the number of seeds is wanted beside the observed one.
    """
    a, b = _array(first.values()), _array(second.values())
    before, after = statistics.summarize(a), statistics.summarize(b)
    difference = None
    if before.n and after.n:
        difference = after.mean - before.mean
    pairs = [(first[seed], second[seed]) for seed in first if seed in second]
    paired = _array(pairs).reshape(-1, 2)
    return {
        'difference': difference,
        'seeds_and_images': statistics.seeds_and_images_interval(first_samples, second_samples),
        'images': statistics.images_interval(first_samples, second_samples),
        'welch': statistics.welch_interval(a, b),
        'permutation_p': statistics.permutation_p(a, b),
        'paired': statistics.paired(paired[:, 0], paired[:, 1])._asdict(),
        'seeds_needed': {
            name: statistics.seeds_needed(before.spread, after.spread, value)
            for name, value in (('observed', difference), *((f'{x:g}', x) for x in to_find))
        },
    }


def _array(values) -> np.ndarray:
    """Figures with NaN for None."""
    return np.array(list(values), float)


# The page.


def write(arms: Sequence[Arm], result: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes the page to `path` and `result` beside it, as `.json`.

    Args:
      arms: see `load`.
      result: what `compare` returns, and under 'failed' why runs are missing, by their names.
      path: of the page.
    """
    files.write_json(path.with_suffix('.json'), result)
    shown = compare_report.page_values([arm.system for arm in arms])
    render.write(
        path,
        _TEMPLATE,
        **shown,
        failed=result['failed'],
        samples=result['samples'],
        permutations=f'{statistics.MOST_PERMUTATIONS:,}',
        first=result['compared_with'],
        means=_means(result),
        differences={
            name: _differences(by_figure) for name, by_figure in result['differences'].items()
        },
        power={name: _power(by_figure) for name, by_figure in result['differences'].items()},
        runs=compare_report.runs_table(result['arms']),
        learning=_learning(arms),
    )


def _means(result) -> render.Table:
    """Mean and deviation of each arm."""
    header = ['', *(f'{arm["name"]} (n = {len(arm["seeds"])})' for arm in result['arms'])]
    rows = [
        [figure, *(_plus_minus(arm, figure) for arm in result['arms'])]
        for figure in result['arms'][0]['mean']
    ]
    return render.Table(header, rows)


def _plus_minus(arm, figure) -> str:
    spread = arm['spread'][figure]
    plus = '' if spread is None else f' \N{PLUS-MINUS SIGN} {_number(spread, figure)}'
    return _number(arm['mean'][figure], figure) + plus


def _differences(by_figure) -> render.Table:
    """Difference and intervals; bold where neither unpaired one over seeds holds zero."""
    header = ['', 'difference', 'seeds and images', 'seeds (Welch)', 'p', 'images alone']
    header += ['same seed', 'interval', 'p', 'pairs']
    rows, bold = [], []
    for figure, one in by_figure.items():
        paired = one['paired']
        # The one is narrow with few seeds, the other knows nothing of images.
        if all(_is_clear(one[key]) for key in ('seeds_and_images', 'welch')):
            bold.append(len(rows))
        rows.append(
            [
                figure,
                _signed(one['difference'], figure),
                _interval(one['seeds_and_images'], figure),
                _interval(one['welch'], figure),
                _p(one['permutation_p']),
                _interval(one['images'], figure),
                _signed(paired['difference'], figure),
                _interval(paired['interval'], figure),
                _p(paired['p']),
                paired['n'],
            ]
        )
    return render.Table(header, rows, bold)


def _power(by_figure) -> render.Table:
    """Seeds of each arm that would be wanted."""
    header = ['', 'what was observed', *(f'{x:g}' for x in DIFFERENCES)]
    rows = []
    for figure, one in by_figure.items():
        wanted = [one['seeds_needed'].get(key) for key in ('observed', *header[2:])]
        rows.append([figure, *('-' if n is None else f'{n:,}' for n in wanted)])
    return render.Table(header, rows)


def _learning(arms: Sequence[Arm]) -> dict[str, Any]:
    """A chart by name of the curve; validation comes first."""
    names = dict.fromkeys(name for arm in arms for name in arm.bands)
    ordered = sorted(names, key=lambda name: name != learning_curves.VALIDATION)
    # An arm without the curve keeps its colour and its place in the legend.
    nothing = (np.zeros(0),) * 3
    return {
        name: charts.bands(
            {arm.name: arm.bands[name][:3] if name in arm.bands else nothing for arm in arms},
            'step',
            name.replace('_', ' '),
        )
        for name in ordered
    }


_number = compare_report.number


def _signed(value: Optional[float], figure: str) -> str:
    return ('+' if value is not None and value > 0 else '') + _number(value, figure)


def _interval(interval: Optional[statistics.Interval], figure: str) -> str:
    if interval is None:
        return '-'
    low, high = (_number(value, figure) for value in interval)
    return f'[{low}, {high}]'


def _is_clear(interval: Optional[statistics.Interval]) -> bool:
    return interval is not None and interval[0] * interval[1] > 0


def _p(value: Optional[float]) -> str:
    return '-' if value is None else f'{value:.3f}'


def format_text(result: Mapping[str, Any]) -> str:
    """The figures for a terminal."""
    lines = []
    for figure in result['arms'][0]['mean']:
        lines.append(f'{figure}:')
        for arm in result['arms']:
            one = result['differences'].get(arm['name'], {}).get(figure)
            text = ''
            if one and one['difference'] is not None:
                text = f', {_signed(one["difference"], figure)}'
                if one['seeds_and_images']:
                    text += f' {_interval(one["seeds_and_images"], figure)}'
                if one['permutation_p'] is not None:
                    text += f', p {_p(one["permutation_p"])}'
            seeds = f' (n = {arm["n"][figure]})'
            lines.append(f'    {arm["name"]} {_plus_minus(arm, figure)}{seeds}{text}')
    return '\n'.join(lines)
