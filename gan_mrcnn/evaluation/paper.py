# SPDX-License-Identifier: Apache-2.0
"""The paper's results (Tables 1 to 4), the tables printed beside them, and results.json."""

import datetime
import importlib.metadata
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import gan_mrcnn
from gan_mrcnn.utils import files

COCO_COLUMNS = ('AP', 'AP50', 'AP75', 'APS', 'APM', 'APL', 'AR')
# The paper has no column for small glands.
GLAND_COLUMNS = ('AP', 'AP50', 'AP75', 'APM', 'APL', 'AR')
KINDS = ('box', 'mask', 'boundary')


class Table(NamedTuple):
    """A table of the paper.

    number: of the table.
    split, num_images: what its figures are of.
    rows: figures by system ('Mask R-CNN' or 'GAN') by kind ('box' or 'mask').
    per_class: of Table 2, by kind, system and 'AP', 'AP50' or 'AP75': ten classes in order.
    """

    number: int
    split: str
    num_images: int
    rows: Mapping[str, Mapping[str, Mapping[str, float]]]
    per_class: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]] = {}


def _rows(columns, **kinds):
    return {
        kind: {
            system: dict(zip(columns, figures))
            for system, figures in zip(('Mask R-CNN', 'GAN'), systems)
        }
        for kind, systems in kinds.items()
    }


_SIZES = ('AP', 'AP50', 'AP75', 'APS', 'APM', 'APL')
_NO_SMALL = ('AP', 'AP50', 'AP75', 'APM', 'APL')
_LEVELS = ('AP', 'AP50', 'AP75')

TABLES = {
    # A tenth of its 533 images.
    'phone': Table(
        1,
        'val',
        53,
        _rows(
            _SIZES,
            box=(
                (0.5486, 0.7333, 0.6261, 0.3327, 0.5071, 0.7462),
                (0.5844, 0.7746, 0.6448, 0.3833, 0.5480, 0.7586),
            ),
            mask=(
                (0.5718, 0.7242, 0.6439, 0.3195, 0.5247, 0.7735),
                (0.5923, 0.7607, 0.6525, 0.3615, 0.5549, 0.7846),
            ),
        ),
    ),
    'cityscapes': Table(
        2,
        'val',
        500,
        _rows(
            _LEVELS,
            box=((0.406, 0.730, 0.373), (0.423, 0.745, 0.409)),
            mask=((0.403, 0.724, 0.365), (0.416, 0.736, 0.398)),
        ),
        _rows(
            _LEVELS,
            box=(
                (
                    (0.378, 0.459, 0.545, 0.385, 0.572, 0.499, 0.326, 0.268, 0.320, 0.313),
                    (0.721, 0.806, 0.840, 0.655, 0.827, 0.839, 0.641, 0.661, 0.682, 0.629),
                    (0.349, 0.457, 0.575, 0.379, 0.679, 0.484, 0.170, 0.155, 0.208, 0.273),
                ),
                (
                    (0.383, 0.482, 0.552, 0.403, 0.562, 0.592, 0.359, 0.270, 0.309, 0.317),
                    (0.723, 0.821, 0.844, 0.704, 0.787, 0.888, 0.764, 0.632, 0.646, 0.638),
                    (0.364, 0.497, 0.580, 0.394, 0.638, 0.708, 0.298, 0.112, 0.221, 0.276),
                ),
            ),
            mask=(
                (
                    (0.329, 0.334, 0.535, 0.391, 0.594, 0.557, 0.353, 0.442, 0.271, 0.219),
                    (0.693, 0.811, 0.819, 0.624, 0.817, 0.957, 0.642, 0.669, 0.652, 0.561),
                    (0.280, 0.148, 0.561, 0.417, 0.696, 0.484, 0.288, 0.507, 0.145, 0.121),
                ),
                (
                    (0.340, 0.353, 0.545, 0.414, 0.598, 0.597, 0.407, 0.425, 0.258, 0.228),
                    (0.703, 0.844, 0.825, 0.676, 0.792, 0.888, 0.763, 0.701, 0.590, 0.582),
                    (0.288, 0.192, 0.576, 0.448, 0.674, 0.595, 0.483, 0.448, 0.143, 0.136),
                ),
            ),
        ),
    ),
    'coco': Table(
        3,
        'val',
        5000,
        _rows(
            _SIZES,
            box=(
                (0.3992, 0.6116, 0.4387, 0.2336, 0.4328, 0.5183),
                (0.3994, 0.6143, 0.4342, 0.2317, 0.4332, 0.5269),
            ),
            mask=(
                (0.3604, 0.5828, 0.3835, 0.1606, 0.3892, 0.5299),
                (0.3681, 0.5855, 0.3919, 0.1685, 0.3988, 0.5452),
            ),
        ),
    ),
    # The mask AP75 of the baseline is printed as .9814, a misprint: it cannot exceed the AP50.
    'gland': Table(
        4,
        'test',
        80,
        _rows(
            _NO_SMALL,
            box=(
                (0.5689, 0.8174, 0.6419, 0.5940, 0.5717),
                (0.5855, 0.8398, 0.6668, 0.6057, 0.5983),
            ),
            mask=(
                (0.5892, 0.8014, 0.9814, 0.5890, 0.6189),
                (0.6156, 0.8236, 0.7054, 0.6054, 0.6516),
            ),
        ),
    ),
}
MISPRINTS = frozenset({(4, 'mask', 'Mask R-CNN', 'AP75')})

CONTEST_COLUMNS = ('F1', 'Dice', 'Hausdorff')
# Object-level results on the glands, test A and test B.
CONTEST = {
    'contest winner': {
        'testA': {'F1': 0.912, 'dice': 0.897, 'hausdorff': 45.4},
        'testB': {'F1': 0.716, 'dice': 0.781, 'hausdorff': 160.3},
    },
    'MILD-Net': {
        'testA': {'F1': 0.914, 'dice': 0.913, 'hausdorff': 41.5},
        'testB': {'F1': 0.844, 'dice': 0.836, 'hausdorff': 105.9},
    },
}

_PACKAGES = ('tensorflow', 'tf-models-official', 'numpy', 'pycocotools')
_REQUIRED = ('figures', 'config', 'seed', 'data_fingerprint', 'notice')
_NAME_WIDTH = 28


def table_for(dataset: str, is_demo: bool, split: str, num_images: int) -> Optional[Table]:
    """The paper's table with figures of the same images; None where there is none.

    Figures of other images do not compare, so that the demo set, a part of the images or another
    split gets none.
    """
    table = TABLES.get(dataset)
    if table is None or is_demo or (table.split, table.num_images) != (split, num_images):
        return None
    return table


def columns_for(dataset: str) -> tuple[str, ...]:
    """Names of the figures shown for a data set."""
    return GLAND_COLUMNS if dataset == 'gland' else COCO_COLUMNS


def figure_rows(
    figures: Mapping[str, Any], dataset: str, table: Optional[Table]
) -> list[tuple[str, str, list[str]]]:
    """Rows of AP as text: ours of each kind, and the paper's below; see `format_table`.

    Returns:
      Kind, system ('' for ours) and the figures of `columns_for(dataset)`. A star marks a misprint.
    """
    columns = columns_for(dataset)
    rows = []
    for kind in KINDS:
        if kind not in figures:
            continue
        rows.append((kind, '', [cell(figures[kind][column]) for column in columns]))
        for system, row in (table.rows.get(kind, {}) if table else {}).items():
            starred = [(table.number, kind, system, column) in MISPRINTS for column in columns]
            cells = [cell(row.get(c)) + '*' * star for c, star in zip(columns, starred)]
            rows.append((kind, system, cells))
    return rows


def format_table(figures: Mapping[str, Any], dataset: str, table: Optional[Table]) -> str:
    """Our figures as text, and the paper's below ours.

    Args:
      figures: by kind ('box', 'mask', perhaps 'boundary'), each with `COCO_COLUMNS`.
      dataset: its name.
      table: the paper's, see `table_for`.

    Returns:
      Lines without a final line break; a figure that does not exist is a dash. Footnotes say which
      of the paper's figures is a misprint, and why glands have no column for small ones.
    """
    rows = figure_rows(figures, dataset, table)
    lines = [_line('', columns_for(dataset))]
    for kind, system, cells in rows:
        lines.append(_line(f'{kind:<9}{f"paper, {system}" if system else "this run"}', cells))
    if any(text.endswith('*') for _, _, cells in rows for text in cells):
        lines.append('* a misprint in the paper: AP75 cannot exceed AP50')
    if dataset == 'gland':
        lines.append(
            'No APS column: the paper has none; it says that its test set holds no object below '
            '32 x 32 pixels.'
        )
    return '\n'.join(lines)


def format_classes(figures: Mapping[str, Any]) -> str:
    """A line for each class with AP, AP50 and AP75 of each kind; '' for a single class.

    Args:
      figures: with 'per_class', figures by kind and class.
    """
    per_class = figures['per_class']
    kinds = [kind for kind in KINDS if kind in per_class]
    if len(per_class['mask']) == 1:
        return ''
    lines = [_line('', [kind if level == 'AP' else '' for kind in kinds for level in _LEVELS])]
    lines.append(_line('class', [level for _ in kinds for level in _LEVELS]))
    for name in per_class['mask']:
        cells = [cell(per_class[kind][name][level]) for kind in kinds for level in _LEVELS]
        lines.append(_line(name, cells))
    return '\n'.join(lines)


def format_table2(figures: Mapping[str, Any], table: Optional[Table]) -> str:
    """Cityscapes as the paper's Table 2: ten classes side by side and their average.

    Boxes are by COCO's rules, masks by the official code. The last line has the official average,
    which is of eight classes.

    Args:
      figures: with 'per_class' and 'cityscapes'.
      table: the paper's, see `table_for`.
    """
    masks = figures['cityscapes']
    ours = {'box': figures['per_class']['box'], 'mask': masks['per_class']}
    names = list(masks['per_class'])
    lines = [_line('', ['Average', *(name.capitalize() for name in names)], 11)]
    for kind, per_class in ours.items():
        for level in _LEVELS:
            classes = [per_class[name][level] for name in names]
            cells = [cell(_mean(classes)), *map(cell, classes)]
            lines.append(_line(f'{kind:<6}{level:<6}this run', cells, 11))
        for system, row in (table.rows[kind] if table else {}).items():
            for level in _LEVELS:
                classes = table.per_class[kind][system][level]
                cells = [cell(value) for value in (row[level], *classes)]
                lines.append(_line(f'{kind:<6}{level:<6}{system}', cells, 11))
    official = ', '.join(f'{level} {cell(masks[level])}' for level in _LEVELS)
    lines.append(f'Masks, official average of eight classes, as on the benchmark: {official}')
    return '\n'.join(lines)


def contest_rows(figures: Mapping[str, Any], compare: bool) -> list[tuple[str, str, list[str]]]:
    """Part, system ('' for ours) and `CONTEST_COLUMNS` as text; see `format_glands`."""

    def cells(one):
        return [cell(one['F1']), cell(one['dice']), f'{one["hausdorff"]:.1f}']

    rows = []
    for part, one in figures.items():
        rows.append((part, '', cells(one)))
        for system, parts in CONTEST.items() if compare else ():
            if part in parts:
                rows.append((part, system, cells(parts[part])))
    return rows


def format_glands(figures: Mapping[str, Any], compare: bool) -> str:
    """The contest's metrics as text, published ones beside them.

    Args:
      figures: with 'glands', figures by part, and 'score_threshold'.
      compare: whether the images are those of the published figures.
    """
    lines = [_line('object level', CONTEST_COLUMNS, 11)]
    for part, system, cells in contest_rows(figures['glands'], compare):
        lines.append(_line(f'  {system}' if system else part, cells, 11))
    threshold = figures['score_threshold']
    lines.append(f'Scores of at least {threshold["value"]:.2f}, {threshold["origin"]}.')
    return '\n'.join(lines)


def _mean(values: Sequence[Optional[float]]) -> Optional[float]:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def cell(value: Optional[float]) -> str:
    """A figure as text, a dash where it does not exist."""
    return '-' if value is None else f'{value:.4f}'


def _line(name: str, cells: Sequence[str], width: int = 8) -> str:
    """Cells end in the same place; a star hangs over."""
    texts = [f'{text if text.endswith("*") else text + " ":>{width + 1}}' for text in cells]
    return f'{name:<{_NAME_WIDTH}}{"".join(texts)}'.rstrip()


def versions() -> dict[str, Optional[str]]:
    """Versions of Python, this package and what it computes with; None where not installed."""
    known = {'python': sys.version.split()[0], 'gan_mrcnn': gan_mrcnn.__version__}
    for package in _PACKAGES:
        try:
            known[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            known[package] = None
    return known


def write_results(path: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """Writes results.json: the figures and all that is needed to say where they come from.

    Args:
      path: of the file, which is replaced whole or not at all.
      results: dict with at least 'figures', 'config' (a plain dict; None for predictions of which
        nothing is known), 'seed', 'data_fingerprint' and 'notice' (what must be said about the
        data, e.g. that they are the demo set; '' if nothing). Versions, command line and UTC date
        are added.

    Returns:
      A new dict of all that was written.

    Raises:
      ValueError: one of those entries is missing.
    """
    missing = [key for key in _REQUIRED if key not in results]
    if missing:
        raise ValueError(f'results lack {", ".join(missing)}, without which figures say nothing')
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
    written = {
        **results,
        'versions': versions(),
        'command_line': shlex.join(sys.argv),
        'date_utc': now,
    }
    files.write_json(path, written)
    return written
