"""Polygons of masks: exact, closed, simple, with their holes; and what QuPath reads of them."""

import json
from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from gan_mrcnn.prediction import geojson
from gan_mrcnn.prediction.objects import Object

masks = st_numpy.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def crossings(ring, y, x):
    """How many vertical edges of a ring lie to the right of the pixel's centre, literally."""
    count = 0
    for (x1, y1), (x2, y2) in zip(ring, ring[1:]):
        between = min(y1, y2) < y + Fraction(1, 2) < max(y1, y2)
        count += between and x1 == x2 and x1 > x + Fraction(1, 2)
    return count


@settings(deadline=None, derandomize=True, max_examples=300)
@given(masks, st.integers(-3, 40), st.integers(-3, 40))
def test_polygons_enclose_exactly_the_pixels_of_the_mask(mask, top, left):
    found = geojson.polygons(mask, top, left)
    for y, x in np.ndindex(mask.shape):
        counts = [sum(crossings(r.tolist(), y + top, x + left) for r in piece) for piece in found]
        assert sum(count % 2 for count in counts) == mask[y, x]


@settings(deadline=None, derandomize=True, max_examples=300)
@given(masks)
def test_a_piece_is_what_hangs_together_and_its_rings_are_simple(mask):
    found = geojson.polygons(mask)
    pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0] - 1
    assert len(found) == pieces
    areas = [[signed_area(ring) for ring in piece] for piece in found]
    assert all(piece[0] > 0 and all(area < 0 for area in piece[1:]) for piece in areas)
    assert sum(sum(piece) for piece in areas) == mask.sum()
    for ring in (ring for piece in found for ring in piece):
        corners = [tuple(corner) for corner in ring.tolist()]
        assert corners[0] == corners[-1] and len(set(corners)) == len(corners) - 1
        steps = np.diff(ring, axis=0)
        assert ((steps == 0).sum(1) == 1).all()
        # Lines alternate: no corner lies on a straight line.
        horizontal = steps[:, 1] == 0
        assert (horizontal != np.roll(horizontal, 1)).all()


def signed_area(ring):
    """By the definition, in pixels; rings that are clockwise on the screen have a positive one."""
    return (
        sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(ring.tolist(), ring[1:].tolist())) / 2
    )


def test_a_hole_and_a_corner():
    mask = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1]], bool)
    first, second = geojson.polygons(mask, top=10, left=20)
    # The pixel in the middle and the one right below it meet at a corner, where two rings do.
    assert [ring.tolist() for ring in first] == [
        [[20, 10], [23, 10], [23, 12], [22, 12], [22, 13], [20, 13], [20, 10]],
        [[22, 12], [22, 11], [21, 11], [21, 12], [22, 12]],
    ]
    assert [ring.tolist() for ring in second] == [
        [[23, 12], [24, 12], [24, 13], [23, 13], [23, 12]]
    ]


def test_no_pixel_has_no_polygon():
    assert geojson.polygons(np.zeros((3, 4), bool)) == []


@pytest.mark.parametrize('radius', [10, 40, 90])
def test_the_perimeter_of_a_disk_and_of_a_ring(radius):
    y, x = np.mgrid[:200, :200]
    away = np.hypot(y - 100.3, x - 99.8)
    (disk,) = geojson.polygons(away < radius)
    assert geojson.perimeter(disk) == pytest.approx(2 * np.pi * radius, rel=0.015)
    (ring,) = geojson.polygons((away < radius) & (away > radius / 2))
    assert geojson.perimeter(ring) == pytest.approx(3 * np.pi * radius, rel=0.02)


def test_the_perimeter_is_right_on_the_mean_of_directions():
    """Upright it is 5% short, turned by half a right angle too."""
    y, x = np.mgrid[:300, :300] - 150.0
    ratios = []
    for angle in np.deg2rad(np.arange(0, 90, 5)):
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        (square,) = geojson.polygons((abs(along) < 60.2) & (abs(across) < 60.2))
        ratios.append(geojson.perimeter(square) / (8 * 60.2))
    assert np.mean(ratios) == pytest.approx(1, abs=0.01)
    assert min(ratios) > 0.93 and max(ratios) < 1.05


def test_a_feature_is_what_qupath_reads():
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
    one = Object(2, 0.75, (4.0, 6.0, 7.0, 9.0), 4, 6, mask)
    found = geojson.feature(one, 'benign gland', micrometres_per_pixel=0.5)
    assert json.loads(json.dumps(found)) == found
    assert found['geometry'] == {
        'type': 'Polygon',
        'coordinates': [
            [[6, 4], [9, 4], [9, 7], [6, 7], [6, 4]],
            [[7, 5], [7, 6], [8, 6], [8, 5], [7, 5]],
        ],
    }
    properties = found['properties']
    assert properties['objectType'] == 'annotation'
    assert properties['classification']['name'] == 'benign gland'
    assert all(0 <= value <= 255 for value in properties['classification']['color'])
    measured = properties['measurements']
    assert measured['Score'] == 0.75 and measured['Area um^2'] == 8 * 0.25
    in_pixels = geojson.feature(one, 'benign gland')['properties']['measurements']
    assert in_pixels['Area px^2'] == 8
    assert in_pixels['Perimeter px'] == pytest.approx(2 * measured['Perimeter um'], abs=0.01)


def test_several_pieces_are_a_multipolygon():
    one = Object(1, 0.5, (0.0, 0.0, 1.0, 3.0), 0, 0, np.array([[1, 0, 1]], bool))
    shape = geojson.feature(one, 'gland')['geometry']
    assert shape['type'] == 'MultiPolygon'
    assert [len(piece) for piece in shape['coordinates']] == [1, 1]
