# SPDX-License-Identifier: Apache-2.0
"""Charts as SVG text for the HTML pages: they stay sharp, and need no library and no network.

Series are told apart by colour-blind readers: by Okabe and Ito's colours, and by dashes or order,
too. Text is large enough to read when a phone shrinks a chart to 350 pixels.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Optional

import numpy as np

COLOURS = ('#0072b2', '#d55e00', '#009e73', '#e69f00', '#cc79a7', '#56b4e9')
_DASHES = ('', '9 4', '3 3', '12 4 3 4', '6 6', '2 6')
_WIDTH, _HEIGHT = 480, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 14, 14, 48


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    diagonal: bool = False,
    dots: bool = False,
) -> str:
    """Curves on axes from 0 to 1.

    Args:
      series: x and y of each curve by name.
      x_label, y_label: of the axes.
      diagonal: also draw where both are equal.
      dots: mark the points.
    """
    parts = [_frame(x_label, y_label, 1.0)]
    if diagonal:
        parts.append(_polyline([0, 1], [0, 1], '#999999', '2 4'))
    for number, (x, y) in enumerate(series.values()):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(_polyline(x, y, colour, _DASHES[number % len(_DASHES)]))
        if dots:
            parts += [
                f'<circle cx="{_x(a):.1f}" cy="{_y(b, 1.0):.1f}" r="4.5" fill="{colour}"/>'
                for a, b in zip(x, y)
            ]
    described = f'{y_label} over {x_label}: {", ".join(series)}'
    legend = _legend(list(series), dashed=True) if len(series) > 1 else ''
    return _svg(parts, _HEIGHT, described) + legend


def bars(groups: Mapping[str, Mapping[str, Optional[float]]], y_label: str, digits: int = 2) -> str:
    """Groups of upright bars side by side, each with its value above.

    Args:
      groups: values by series by group; None leaves a gap with a dash.
      y_label: of the values.
      digits: after the point.
    """
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    values = [value for group in groups.values() for value in group.values() if value is not None]
    top = _round_up(max(values, default=0.0))
    parts = [_frame('', y_label, top)]
    room = (_WIDTH - _LEFT - _RIGHT) / max(1, len(groups))
    width = room * 0.8 / max(1, len(names))
    for place, (group, members) in enumerate(groups.items()):
        left = _LEFT + room * (place + 0.1)
        for number, name in enumerate(names):
            parts.append(_bar(left + number * width, width, members.get(name), top, number, digits))
        parts.append(_text(left + room * 0.4, _HEIGHT - _BOTTOM + 20, group, 'middle'))
    legend = _legend(names) if len(names) > 1 else ''
    return _svg(parts, _HEIGHT, f'{y_label} of {", ".join(groups)}') + legend


def rows(values: Mapping[str, Optional[float]], notes: Mapping[str, str], digits: int = 3) -> str:
    """Lying bars, one below the other, each with its value and a note.

    Args:
      values: by name, from 0.
      notes: what stands behind the value, by name; may lack some.
      digits: after the point.
    """
    top = max([value for value in values.values() if value is not None] + [1e-9])
    label_width = 8.2 * max(len(name) for name in values) + 14
    room = _WIDTH - label_width - 130
    parts, height = [], 30
    for place, (name, value) in enumerate(values.items()):
        y = place * height
        parts.append(_text(label_width - 8, y + 20, name, 'end'))
        length = 0 if value is None else max(0.0, value) / top * room
        parts.append(
            f'<rect x="{label_width:.1f}" y="{y + 5}" width="{length:.1f}" height="20" '
            f'fill="{COLOURS[0]}"/>'
        )
        text = '-' if value is None else f'{value:.{digits}f}'
        note = f'{text}  {notes.get(name, "")}'.rstrip()
        parts.append(_text(label_width + length + 6, y + 20, note))
    described = ', '.join(
        f'{k} {"-" if v is None else round(v, digits)}' for k, v in values.items()
    )
    return _svg(parts, height * len(values), described)


def _bar(x, width, value, top, number, digits) -> str:
    middle = x + width / 2
    if value is None:
        return _text(middle, _y(0, top) - 5, '-', 'middle')
    y = _y(value, top)
    return (
        f'<rect x="{x + 1:.1f}" y="{y:.1f}" width="{width - 2:.1f}" '
        f'height="{_y(0, top) - y:.1f}" fill="{COLOURS[number % len(COLOURS)]}"/>'
        + _text(middle, y - 4, f'{value:.{digits}f}'.replace('0.', '.', 1), 'middle', 12)
    )


def _frame(x_label, y_label, top) -> str:
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _y(share * top, top)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            'stroke="#dddddd"/>' + _text(_LEFT - 6, y + 5, f'{share * top:.3g}', 'end')
        )
        if x_label:
            parts.append(_text(_x(share), _HEIGHT - _BOTTOM + 18, f'{share:g}', 'middle'))
    if x_label:
        parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, x_label, 'middle'))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<g transform="rotate(-90 13 {middle})">{_text(13, middle, y_label, "middle")}</g>'
    )
    return ''.join(parts)


def _x(value) -> float:
    return _LEFT + value * (_WIDTH - _LEFT - _RIGHT)


def _y(value, top) -> float:
    return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)


def _round_up(value: float) -> float:
    """The next of 0.2, 0.4, ... with room for a text above: quarters of it have short names."""
    return float(max(1, np.ceil(value * 5 + 0.3))) / 5


def _polyline(x, y, colour, dash) -> str:
    points = ' '.join(f'{_x(a):.1f},{_y(b, 1.0):.1f}' for a, b in zip(x, y))
    return (
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5" '
        f'stroke-dasharray="{dash}"/>'
    )


def _text(x, y, text, anchor='start', size=14) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">'
        f'{html.escape(text)}</text>'
    )


def _svg(parts, height, described) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{html.escape(described)}">'
        f'{"".join(parts)}</svg>'
    )


def _legend(names, dashed: bool = False) -> str:
    """Names below a chart as HTML, which wraps on a narrow screen."""
    items = []
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        dash = _DASHES[number % len(_DASHES)] if dashed else ''
        items.append(
            f'<span><svg viewBox="0 0 30 10"><line x1="0" x2="30" y1="5" y2="5" stroke="{colour}" '
            f'stroke-width="{3 if dashed else 10}" stroke-dasharray="{dash}"/></svg>'
            f'{html.escape(name)}</span>'
        )
    return f'<div class="legend">{"".join(items)}</div>'
