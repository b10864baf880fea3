"""Charts are well-formed SVG and show their values where they belong."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from gan_mrcnn.evaluation.report import charts
from gan_mrcnn.utils import html_page


def parse(text):
    return ElementTree.fromstring(f'<div>{text}</div>')


def points(root):
    lines = [e.get('points') for e in root.iter('polyline')]
    return [[tuple(map(float, p.split(','))) for p in line.split()] for line in lines]


def texts(root):
    return [''.join(e.itertext()) for e in root.iter('text')]


def test_curves_go_through_their_points():
    root = parse(charts.lines({'a & b': ([0, 0.5, 1], [1, 0.5, 0])}, 'recall', 'precision'))
    ((first, middle, last),) = points(root)
    # Straight lines stay straight; more is to the right and higher up.
    assert middle == pytest.approx(((first[0] + last[0]) / 2, (first[1] + last[1]) / 2), abs=0.1)
    assert first[0] < last[0] and first[1] < last[1]
    assert {'recall', 'precision'} <= set(texts(root))


def test_every_curve_has_its_own_colour_dash_and_name():
    series = {name: ([0, 1], [0, 1]) for name in ('a', '<b>', 'c')}
    root = parse(charts.lines(series, 'x', 'y'))
    looks = [(e.get('stroke'), e.get('stroke-dasharray')) for e in root.iter('polyline')]
    assert len(set(looks)) == 3 and len({dash for _, dash in looks}) == 3
    assert [e.text or e[0].tail for e in root.iter('span')] == ['a', '<b>', 'c']


def test_bars_are_as_high_as_their_values():
    groups = {'small': {'box': 0.1, 'mask': 0.2}, 'large': {'box': 0.3, 'mask': None}}
    root = parse(charts.bars(groups, 'AP'))
    heights = [float(e.get('height')) for e in root.iter('rect')]
    assert heights == pytest.approx([heights[0] * k for k in (1, 2, 3)], rel=0.02)
    assert {'.10', '.20', '.30', '-', 'small', 'large'} <= set(texts(root))


def test_rows_are_as_long_as_their_values():
    root = parse(charts.rows({'one': 0.1, 'two': 0.4, 'none': None}, {'two': '(7)'}))
    lengths = [float(e.get('width')) for e in root.iter('rect')]
    assert lengths == pytest.approx([lengths[1] / 4, lengths[1], 0], abs=0.1)
    assert {'one', 'two', 'none', '0.100', '0.400  (7)', '-'} <= set(texts(root))


def test_nothing_at_all_is_still_a_chart():
    parse(charts.lines({'a': ([], [])}, 'x', 'y'))
    parse(charts.bars({'a': {'b': None}}, 'x'))
    parse(charts.rows({'a': 0.0}, {}))


def test_a_page_is_whole_and_needs_no_network(tmp_path):
    rows = [(['<script>', '0.5'], True)]
    path = html_page.write(
        str(tmp_path / 'new'),
        'A & B',
        [html_page.section('Title', 'Text <b>', html_page.table(['', 'AP'], rows))],
    )
    text = (tmp_path / 'new' / 'index.html').read_text()
    assert path.endswith('index.html')
    assert '<title>A &amp; B</title>' in text and 'width=device-width' in text
    assert '&lt;script&gt;' in text and '<script' not in text and 'Text &lt;b&gt;' in text
    assert not re.search(r'(?:src|href)="(?!data:)', text) and 'url(' not in text
