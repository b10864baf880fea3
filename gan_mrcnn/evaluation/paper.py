# SPDX-License-Identifier: Apache-2.0
"""The paper's gland results (Table 4), the table printed beside them, and results.json."""

import datetime
import importlib.metadata
import shlex
import sys

import gan_mrcnn
from gan_mrcnn.evaluation.predictions import write_json

COLUMNS = ('AP', 'AP50', 'AP75', 'APM', 'APL')
COCO_COLUMNS = ('AP', 'AP50', 'AP75', 'APS', 'APM', 'APL')

# Table 4: glands, 80 test images, ResNet-50-FPN. The mask AP75 of the baseline is printed as .9814,
# a misprint: it cannot exceed the AP50 of .8014.
TABLE4 = {
    'box': {
        'Mask R-CNN': dict(zip(COLUMNS, (0.5689, 0.8174, 0.6419, 0.5940, 0.5717))),
        'GAN': dict(zip(COLUMNS, (0.5855, 0.8398, 0.6668, 0.6057, 0.5983))),
    },
    'mask': {
        'Mask R-CNN': dict(zip(COLUMNS, (0.5892, 0.8014, 0.9814, 0.5890, 0.6189))),
        'GAN': dict(zip(COLUMNS, (0.6156, 0.8236, 0.7054, 0.6054, 0.6516))),
    },
}
_MISPRINT = ('mask', 'Mask R-CNN', 'AP75')

_PACKAGES = ('tensorflow', 'tf-models-official', 'numpy', 'pycocotools')
_REQUIRED = ('figures', 'config', 'seed', 'data_fingerprint', 'notice')


def _figure(value, misprint=False):
    text = '-' if value is None else f'{value:.4f}'
    return f'{text + ("*" if misprint else " "):>9}'


def _row(kind, system, figures, columns=COLUMNS):
    cells = (_figure(figures[column], (kind, system, column) == _MISPRINT) for column in columns)
    name = system if system == 'this run' else f'paper, {system}'
    return f'{kind:<6}{name:<18}{"".join(cells)}'.rstrip()


def _header(columns):
    return f'{"":<24}' + ''.join(f'{column:>8} ' for column in columns).rstrip()


def format_figures(results):
    """Our figures as text, with COCO's columns: for data sets of which Table 4 does not speak.

    Args:
      results: what `evaluate_coco` returns.
    """
    rows = [_row(kind, 'this run', results[kind], COCO_COLUMNS) for kind in ('box', 'mask')]
    return '\n'.join([_header(COCO_COLUMNS), *rows])


def format_table4(results, paper=True):
    """The paper's Table 4 as text, with our figures in it.

    Args:
      results: what `evaluate_coco` returns.
      paper: also show the paper's own figures. Only where the data are its 80 test images:
        figures of other images do not compare.

    Returns:
      Lines of text without a final line break; a figure that does not exist is a dash. Footnotes
      say why there is no column for small objects and which of the paper's figures is a misprint.
    """
    lines = [_header(COLUMNS)]
    for kind in ('box', 'mask'):
        lines.append(_row(kind, 'this run', results[kind]))
        if paper:
            lines += [_row(kind, system, figures) for system, figures in TABLE4[kind].items()]
    if paper:
        lines.append('* a misprint in the paper: AP75 cannot exceed AP50')
    lines.append(
        'No APS column: the paper has none; it says that its test set holds no object '
        'below 32 x 32 pixels.'
    )
    return '\n'.join(lines)


def versions():
    """Versions of Python, this package and what it computes with; None where not installed."""
    found = {'python': sys.version.split()[0], 'gan_mrcnn': gan_mrcnn.__version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def write_results(path, results):
    """Writes results.json: the figures and all that is needed to say where they come from.

    Args:
      path: of the file; it is replaced in one piece.
      results: dict with at least 'figures' (of `evaluate_coco`), 'config' (a plain dict),
        'seed', 'data_fingerprint' and 'notice' (what must be said about the data, e.g. that they
        are the demo set; '' if nothing). Versions, command line and UTC date are added.

    Returns:
      A new dict of all that was written.

    Raises:
      ValueError: one of those entries is missing.
    """
    missing = [key for key in _REQUIRED if key not in results]
    if missing:
        raise ValueError(f'results lack {", ".join(missing)}: figures without them say nothing')
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
    written = {
        **results,
        'versions': versions(),
        'command_line': shlex.join(sys.argv),
        'date_utc': now,
    }
    write_json(path, written, indent=2)
    return written
