# SPDX-License-Identifier: Apache-2.0
"""Charts of the HTML pages, drawn by matplotlib as SVG that stays sharp and fits any background.

Text and axes have the page's own text colour. Series have colours of middle brightness, after Okabe
and Ito's colour-blind-friendly set, with a contrast of at least 3 on white and on near black; lines
differ in their dashes, too. Text is large enough to read where a phone shrinks a chart to 350
pixels. The same values give the same bytes.
"""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Callable, Optional

import markupsafe
import numpy as np

COLOURS = ('#0072b2', '#d55e00', '#009e73', '#b07a00', '#c46a9b', '#5586c9')
_DASHES = ('-', (0, (4, 2)), (0, (1, 1.2)), (0, (5, 2, 1, 2)), (0, (3, 3)), (0, (1, 3)))
_WIDTH, _HEIGHT, _ROW = 480, 330, 30
_LEGEND_ROW = 23
# matplotlib knows no `currentColor`: this stands in for it.
_TEXT = '#010203'
_SETTINGS = {
    'font.size': 14,
    'font.sans-serif': ['DejaVu Sans', 'Verdana', 'sans-serif'],
    'legend.fontsize': 14,
    'legend.frameon': False,
    'legend.columnspacing': 1.0,
    'lines.linewidth': 2.5,
    'text.color': _TEXT,
    'axes.labelcolor': _TEXT,
    'axes.edgecolor': _TEXT,
    'xtick.color': _TEXT,
    'ytick.color': _TEXT,
    'grid.color': _TEXT,
    'grid.alpha': 0.15,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.axisbelow': True,
    'xtick.major.pad': 8,
    'ytick.major.pad': 6,
    # Words stay words: searchable, read aloud.
    'svg.fonttype': 'none',
    'svg.hashsalt': 'gan_mrcnn',
}


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    diagonal: bool = False,
    dots: bool = False,
) -> markupsafe.Markup:
    """Curves on axes from 0 to 1.

    Args:
      series: x and y of each curve by name.
      x_label, y_label: of the axes.
      diagonal: also draw where both are equal.
      dots: mark the points.
    """

    def draw(axes):
        if diagonal:
            axes.plot([0, 1], [0, 1], color=_TEXT, alpha=0.5, linewidth=1.5, linestyle=':')
        for number, (name, (x, y)) in enumerate(series.items()):
            axes.plot(
                x,
                y,
                color=COLOURS[number % len(COLOURS)],
                linestyle=_DASHES[number % len(_DASHES)],
                marker='o' if dots else '',
                label=name,
            )
        axes.set(xlabel=x_label, ylabel=y_label, xlim=(0, 1.01), ylim=(0, 1.02))
        axes.set(xticks=(0, 0.25, 0.5, 0.75, 1), yticks=(0, 0.25, 0.5, 0.75, 1))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter('{x:g}')
        axes.grid(axis='y')

    described = f'{y_label} over {x_label}: {", ".join(series)}'
    return _svg(draw, _HEIGHT, described, list(series))


def bands(
    series: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], x_label: str, y_label: str
) -> markupsafe.Markup:
    """Curves with a band around each, on axes that fit them.

    Args:
      series: x, y and half the height of the band by name; NaN for no band.
      x_label, y_label: of the axes.
    """

    def draw(axes):
        for number, (name, (x, y, half)) in enumerate(series.items()):
            colour = COLOURS[number % len(COLOURS)]
            axes.fill_between(x, y - half, y + half, color=colour, alpha=0.18, linewidth=0)
            # A single point has no line.
            marker = 'o' if len(x) < 8 else ''
            dashes = _DASHES[number % len(_DASHES)]
            axes.plot(x, y, color=colour, linestyle=dashes, marker=marker, label=name)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.set_xlim(left=0)
        axes.locator_params(nbins=5)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter('{x:g}')
        axes.grid(axis='y')

    described = f'{y_label} over {x_label}: {", ".join(series)}'
    return _svg(draw, _HEIGHT, described, list(series))


def bars(
    groups: Mapping[str, Mapping[str, Optional[float]]], y_label: str, digits: int = 2
) -> markupsafe.Markup:
    """Groups of upright bars side by side, each with its value above.

    Args:
      groups: values by series by group; None leaves a gap with a dash.
      y_label: of the values.
      digits: after the point.
    """
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    values = np.array(
        [[group.get(name) for group in groups.values()] for name in names], float
    ).reshape(len(names), len(groups))

    def draw(axes):
        width = 0.8 / max(1, len(names))
        for number, (name, heights) in enumerate(zip(names, values)):
            places = np.arange(len(groups)) + (number - (len(names) - 1) / 2) * width
            drawn = axes.bar(
                places,
                np.nan_to_num(heights),
                width * 0.95,
                color=COLOURS[number % len(COLOURS)],
                label=name,
            )
            texts = [_number(height, digits).replace('0.', '.', 1) for height in heights]
            axes.bar_label(drawn, texts, padding=2, fontsize=12)
        axes.set(ylabel=y_label, ylim=(0, max(0.2, 1.15 * np.nanmax(values, initial=0.0))))
        axes.set_xticks(range(len(groups)), list(groups))
        axes.locator_params(axis='y', nbins=5)
        axes.yaxis.set_major_formatter('{x:g}')
        axes.grid(axis='y')

    return _svg(draw, _HEIGHT, f'{y_label} of {", ".join(groups)}', names)


def rows(
    values: Mapping[str, Optional[float]], notes: Mapping[str, str], digits: int = 3
) -> markupsafe.Markup:
    """Horizontal bars, one below the other, each with its value and a note.

    Args:
      values: by name, from 0; None has no bar and a dash.
      notes: what stands behind the value, by name; may lack some.
      digits: after the point.
    """
    lengths = np.array(list(values.values()), float)
    texts = [_number(length, digits) for length in lengths]

    def draw(axes):
        drawn = axes.barh(list(values), np.nan_to_num(lengths), 0.7, color=COLOURS[0])
        noted = [f'{text} {notes.get(name, "")}'.rstrip() for name, text in zip(values, texts)]
        axes.bar_label(drawn, noted, padding=6)
        axes.set(xlim=(0, 1.5 * max(1e-9, np.nanmax(lengths, initial=0.0))), xticks=())
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.spines['bottom'].set_visible(False)

    described = ', '.join(f'{name} {text}' for name, text in zip(values, texts))
    return _svg(draw, _ROW * len(values) + 10, described)


def _number(value: float, digits: int) -> str:
    return '-' if np.isnan(value) else f'{value:.{digits}f}'


def _svg(
    draw: Callable[..., None], height: int, described: str, series: Sequence[str] = ()
) -> markupsafe.Markup:
    """What `draw` puts on axes, as an SVG element.

    Args:
      draw: takes the axes.
      height: of the chart without its legend, in pixels at full width.
      described: for readers who cannot see it.
      series: names of labelled series, which get a legend from two on.
    """
    # Imported here, because only a page with charts should take that second.
    import matplotlib
    from matplotlib.figure import Figure

    num_columns = max(1, min(3, int(_WIDTH / (60 + 8.2 * max(map(len, series), default=0)))))
    num_rows = -(-len(series) // num_columns) if len(series) > 1 else 0
    size = (_WIDTH / 72, (height + _LEGEND_ROW * num_rows) / 72)
    file = io.StringIO()
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # Words stay words, and the reader's own font has the character.
        warnings.filterwarnings('ignore', message='Glyph .* missing from font')
        figure = Figure(size, dpi=72, layout='constrained')
        axes = figure.add_subplot()
        axes.tick_params(length=0)
        draw(axes)
        if num_rows:
            figure.legend(loc='outside lower center', ncols=num_columns, handlelength=2.5)
        figure.savefig(file, format='svg', transparent=True, metadata={'Date': None})
    return _inline(file.getvalue(), described)


def _inline(svg: str, described: str) -> markupsafe.Markup:
    """An SVG file as an element of a page: no size, no style for the rest of the page, no ids."""
    svg = svg[svg.index('<svg') :]
    svg = re.sub(r'<metadata>.*?</metadata>|<style.*?</style>', '', svg, flags=re.DOTALL)
    # What is referred to has a hash as its id; the others only repeat from chart to chart.
    svg = re.sub(r' id="[\w.]+_\d+"', '', svg).replace(_TEXT, 'currentColor')
    svg = re.sub(r' (width|height)="[\d.]+pt"', '', svg, count=2)
    label = markupsafe.Markup('<svg role="img" aria-label="{}"').format(described)
    return label + markupsafe.Markup(svg[len('<svg') :])
