"""Charts are well-formed SVG, show their values where they belong, and are legible."""

import pathlib
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from gan_mrcnn.evaluation.report import charts
from gan_mrcnn.utils.html import render

SVG = '{http://www.w3.org/2000/svg}'
HREF = '{http://www.w3.org/1999/xlink}href'


def parse(svg):
    root = ElementTree.fromstring(svg)
    assert root.tag == f'{SVG}svg'
    return root


def paths(root, property, colour):
    """Points [K, 2], y downwards, of each path with `property`, stroke or fill, of that colour."""
    found = [e for e in root.iter(f'{SVG}path') if f'{property}: {colour}' in e.get('style', '')]
    return [np.array(re.findall(r'[ML] (\S+) (\S+)', e.get('d')), float) for e in found]


def texts(root):
    return [''.join(e.itertext()) for e in root.iter(f'{SVG}text')]


def test_curves_go_through_their_points():
    root = parse(charts.lines({'a & b': ([0, 0.5, 1], [1, 0.5, 0])}, 'recall', 'precision'))
    ((first, middle, last),) = paths(root, 'stroke', charts.COLOURS[0])
    # Straight lines stay straight; more is to the right and higher up.
    assert middle == pytest.approx((first + last) / 2, abs=0.1)
    assert first[0] < last[0] and first[1] < last[1]
    assert {'recall', 'precision', '0.25'} <= set(texts(root))
    assert root.get('aria-label') == 'precision over recall: a & b'


def test_every_curve_has_its_own_colour_dash_and_name():
    series = {name: ([0, 1], [0, 1]) for name in ('a', '<b>', 'c')}
    root = parse(charts.lines(series, 'x', 'y'))
    styles = [e.get('style') for e in root.iter(f'{SVG}path')]
    dashes = set()
    for colour in charts.COLOURS[:3]:
        # The curve and its sample in the legend.
        own = [style for style in styles if f'stroke: {colour}' in style]
        assert len(own) == 2 and len({re.search('dasharray.*?;|$', s).group() for s in own}) == 1
        dashes.add(re.search('dasharray.*?;|$', own[0]).group())
    assert len(dashes) == 3
    assert {'a', '<b>', 'c'} <= set(texts(root))


def test_points_and_the_diagonal_are_marked_where_asked_for():
    curve = {'a': ([0.2, 0.4], [0.3, 0.9])}
    plain, marked = (charts.lines(curve, 'x', 'y', *flags) for flags in ((), (True, True)))
    assert '<use' not in plain and marked.count('<use') == 2
    assert 'stroke-dasharray' not in plain and 'stroke-dasharray' in marked


def test_bands_are_around_their_curves_where_they_are_known():
    x, y, half = np.arange(4.0), np.array([1.0, 2, 2, 4]), np.array([0.5, 1, np.nan, np.nan])
    nothing = (np.zeros(0),) * 3
    root = parse(charts.bands({'none': nothing, 'a': (x, y, half)}, 'step', 'loss'))
    # The curve, and not its sample in the legend.
    (curve,) = [one for one in paths(root, 'stroke', charts.COLOURS[1]) if len(one) == 4]
    rise = (curve[0] - curve[3])[1] / 3
    (use,) = [e for e in root.iter(f'{SVG}use') if 'fill-opacity: 0.18' in e.get('style', '')]
    (outline,) = [e for e in root.iter(f'{SVG}path') if e.get('id') == use.get(HREF)[1:]]
    band = np.array(re.findall(r'[ML] (\S+) (\S+)', outline.get('d')), float)
    band += [float(use.get('x')), float(use.get('y'))]
    for point, height in ((curve[0], 0.5), (curve[1], 1)):
        heights = band[np.isclose(band[:, 0], point[0], atol=0.1), 1]
        expected = point[1] - height * rise, point[1] + height * rise
        assert (heights.min(), heights.max()) == pytest.approx(expected, abs=0.1)
    assert not np.any(np.isclose(band[:, 0], curve[2, 0], atol=0.1))
    assert {'none', 'a', 'step', 'loss'} <= set(texts(root))


def test_bars_are_as_high_as_their_values():
    groups = {'small': {'box': 0.1, 'mask': 0.2}, 'large': {'box': 0.3, 'mask': None}}
    root = parse(charts.bars(groups, 'AP'))
    bars = [paths(root, 'fill', colour) for colour in charts.COLOURS[:2]]
    heights = [np.ptp(bar[:, 1]) for series in bars for bar in series[:2]]
    assert heights == pytest.approx([heights[0] * k for k in (1, 3, 2, 0)], rel=0.01, abs=0.01)
    assert {'.10', '.20', '.30', '-', 'small', 'large', 'box', 'mask'} <= set(texts(root))


def test_rows_are_as_long_as_their_values():
    root = parse(charts.rows({'one': 0.1, 'two': 0.4, 'none': None}, {'two': '(7)'}))
    lengths = [np.ptp(bar[:, 0]) for bar in paths(root, 'fill', charts.COLOURS[0])]
    assert lengths == pytest.approx([lengths[1] / 4, lengths[1], 0], abs=0.1)
    assert {'one', 'two', 'none', '0.100', '0.400 (7)', '-'} <= set(texts(root))


def test_nothing_at_all_is_still_a_chart():
    parse(charts.lines({'a': ([], [])}, 'x', 'y'))
    parse(charts.bars({'a': {'b': None}}, 'x'))
    parse(charts.rows({'a': 0.0}, {}))


def test_the_same_values_give_the_same_bytes_without_a_date():
    first, second = (charts.bars({'a': {'b': 0.2, 'c': 0.1}}, 'x') for _ in range(2))
    assert first == second and 'date' not in first and re.search(r'20\d\d-', first) is None


def test_a_chart_does_not_change_the_page_around_it():
    chart = charts.lines({'a': ([0, 1], [0, 1]), 'b': ([0, 1], [1, 0])}, 'x', 'y', True, True)
    assert '<style' not in chart and 'width="480' not in chart
    # Two charts of a page have no id in common but those of equal content.
    assert not re.search(r' id="(?!\w+[0-9a-f]{8})', chart)


def _luminance(colour):
    """Relative luminance by WCAG 2.1."""
    values = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(first, second):
    dark, light = sorted(map(_luminance, (first, second)))
    return (light + 0.05) / (dark + 0.05)


def test_colours_are_told_from_light_and_dark_pages():
    """WCAG asks for 3 of graphics and for 4.5 of text."""
    css = pathlib.Path(render.__file__).with_name('style.css').read_text()
    light, dark = (dict(re.findall(r'--(\w+): (#\w{6})', part)) for part in css.split('@media')[:2])
    assert light['page'] != dark['page']
    for theme in (light, dark):
        assert all(_contrast(colour, theme['page']) >= 3 for colour in charts.COLOURS)
        for name in ('text', 'faint', 'error', 'warning', 'good'):
            assert _contrast(theme[name], theme['page']) >= 4.5, name
        assert _contrast(theme['text'], theme['notice']) >= 4.5
    # Text and axes of charts have the colour of the page's text.
    chart = charts.rows({'a': 0.5}, {})
    assert re.findall(r'<text[^>]*fill: (\w+)', chart) == ['currentColor'] * chart.count('<text')
