"""Outlines, ellipses, boxes and painted masks against areas by hand and pixels one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as mask_api

from gan_mrcnn.data.importing import shapes
from gan_mrcnn.utils import coco_annotations
from tests.data.layouts import rectangle

HEIGHT, WIDTH = 32, 48


def mask_of(pieces, height=HEIGHT, width=WIDTH):
    annotation = shapes.to_coco(pieces, height, width)
    return mask_api.decode(coco_annotations.to_rle(annotation, height, width)).astype(bool)


def ring(y1, x1, y2, x2):
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64)


def test_an_outline_along_pixels_encloses_these_pixels_and_stays_a_polygon():
    annotation = shapes.to_coco([shapes.Polygon(ring(3, 5, 9, 20))], HEIGHT, WIDTH)
    assert annotation == {
        'segmentation': [[5.0, 3.0, 20.0, 3.0, 20.0, 9.0, 5.0, 9.0]],
        'bbox': [5.0, 3.0, 15.0, 6.0],
        'area': 90,
    }


def test_holes_and_pieces():
    with_holes = shapes.Polygon(ring(2, 2, 20, 20), (ring(4, 4, 8, 8), ring(10, 10, 12, 18)))
    wanted = rectangle(2, 2, 20, 20) & ~rectangle(4, 4, 8, 8) & ~rectangle(10, 10, 12, 18)
    other = shapes.Polygon(ring(22, 30, 30, 48))
    np.testing.assert_array_equal(mask_of([with_holes, other]), wanted | rectangle(22, 30, 30, 48))
    # An island in a hole is a piece of its own.
    island = shapes.Polygon(ring(5, 5, 7, 7))
    np.testing.assert_array_equal(mask_of([with_holes, island]), wanted | rectangle(5, 5, 7, 7))


def test_painted_pieces_are_cut_at_the_image_and_joined_with_outlines():
    painted = shapes.Window(np.ones((6, 5), bool), top=-2, left=45)
    wanted = rectangle(0, 45, 4, 48)
    np.testing.assert_array_equal(mask_of([painted]), wanted)
    outline = shapes.Polygon(ring(10, 0, 12, 4))
    np.testing.assert_array_equal(mask_of([painted, outline]), wanted | rectangle(10, 0, 12, 4))


@given(
    window=hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))),
    top=st.integers(-12, 40),
    left=st.integers(-12, 60),
    outline=st.none() | st.tuples(*[st.integers(0, 20)] * 2),
)
def test_pieces_are_drawn_as_pixel_by_pixel(window, top, left, outline):
    wanted = np.zeros((HEIGHT, WIDTH), bool)
    for y, x in np.argwhere(window):
        if 0 <= top + y < HEIGHT and 0 <= left + x < WIDTH:
            wanted[top + y, left + x] = True
    pieces = [shapes.Window(window, top, left)]
    if outline is not None:
        y, x = outline
        pieces.append(shapes.Polygon(ring(y, x, y + 6, x + 9), (ring(y + 1, x + 1, y + 3, x + 4),)))
        wanted[y : y + 6, x : x + 9] |= ~rectangle(1, 1, 3, 4, 6, 9)
    if wanted.any():
        np.testing.assert_array_equal(mask_of(pieces), wanted)
    else:
        with pytest.raises(shapes.Unusable):
            mask_of(pieces)


@pytest.mark.parametrize('degrees', [0, 30, 90, -200])
def test_an_ellipse_has_the_area_and_the_moments_of_one(degrees):
    one = shapes.ellipse(100, 80, 60, 20, degrees)
    mask = mask_of([one], 160, 200)
    assert mask.sum() == pytest.approx(np.pi * 60 * 20, rel=0.01)
    y, x = np.nonzero(mask)
    assert (y.mean() + 0.5, x.mean() + 0.5) == pytest.approx((80, 100), abs=0.2)
    # An ellipse's second moments are a quarter of its squared half axes; clockwise as y goes down.
    along, across = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    covariance = np.cov(np.stack([x, y]))
    axis = np.array([along, across])
    assert axis @ covariance @ axis == pytest.approx(60**2 / 4, rel=0.02)
    axis = np.array([-across, along])
    assert axis @ covariance @ axis == pytest.approx(20**2 / 4, rel=0.02)


def test_an_ellipse_is_never_far_from_its_outline():
    for radius in (0.5, 3, 50, 4000):
        points = shapes.ellipse(0, 0, radius, radius).outline
        middles = (points + np.roll(points, 1, axis=0)) / 2
        assert np.linalg.norm(middles, axis=1).min() > radius - 0.051


def test_boxes_turn_clockwise_around_their_centre_or_a_corner():
    # A quarter turn of 10 x 4 pixels around its centre, and around its upper left corner.
    np.testing.assert_array_equal(
        mask_of([shapes.box(10, 10, 20, 14, 90)]), rectangle(7, 13, 17, 17)
    )
    np.testing.assert_array_equal(
        mask_of([shapes.box(10, 10, 20, 14, 90, around='corner')]), rectangle(10, 6, 20, 10)
    )


def test_runs_along_rows():
    np.testing.assert_array_equal(
        shapes.row_runs([1, 3, 2], 2, 3), [[False, True, True], [True, False, False]]
    )
    for counts in ([1, 2], [7], [-1, 7], [10**30], ['6'], []):
        with pytest.raises(shapes.Unusable, match='do not fill its 3x2 pixels'):
            shapes.row_runs(counts, 2, 3)


@pytest.mark.parametrize(
    'values, message',
    [
        ('a', 'a list of x and y'),
        ([[0, 0], [1, 0]], 'outline of 2 points'),
        ([[0, 0], [5, 0], [0, 0]], 'outline of 2 points'),
        ([[0, 0], [1, 0], [1]], r'the point \[1\]'),
        ([[0, 0], [1, 0], [float('nan'), 1]], 'finite'),
        ([[0, 0], [1, 0], [10**400, 1]], 'finite'),
        ([[0, 0], [1, 0], 'ab'], 'the point'),
    ],
)
def test_what_is_no_outline(values, message):
    with pytest.raises(shapes.Unusable, match=message):
        shapes.points(values)


@pytest.mark.parametrize(
    'pieces, message',
    [
        ([shapes.Polygon(ring(40, 60, 50, 70))], 'lies outside'),
        ([shapes.Polygon(ring(0, 0, 20, 4000))], 'reaches far beyond'),
        ([shapes.Polygon(ring(3, 3, 3.2, 9), (ring(3, 3, 3.1, 9),))], 'covers no pixel'),
        ([shapes.Window(np.ones((2, 2), bool), 10**30, 0)], 'lies outside'),
        ([shapes.Window(np.zeros((2, 2), bool), 0, 0)], 'covers no pixel'),
        ({'size': [3, 3], 'counts': [9]}, 'its image is'),
    ],
)
def test_what_cannot_be_an_object(pieces, message):
    with pytest.raises(shapes.Unusable, match=message):
        shapes.to_coco(pieces, HEIGHT, WIDTH)
