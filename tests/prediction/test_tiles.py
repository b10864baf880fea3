"""Tiles cover an image, and the parts of one object that they show become one object."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gan_mrcnn.prediction import objects, tiles


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    tile=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    data=st.data(),
)
def test_tiles_cover_every_pixel_and_overlap(height, width, tile, data):
    overlap = data.draw(st.integers(0, min(tile) - 1))
    windows = tiles.make_tiles(height, width, tile, overlap)
    covered = np.zeros((height, width), int)
    for y1, x1, y2, x2 in windows:
        assert (y2 - y1, x2 - x1) == (min(tile[0], height), min(tile[1], width))
        covered[y1:y2, x1:x2] += 1
    assert covered.min() == 1 or len(windows) == 1 or overlap
    assert (covered > 0).all()
    assert len(set(windows)) == len(windows)
    for axis, length in ((0, height), (1, width)):
        starts = sorted({window[axis] for window in windows})
        assert all(b - a <= tile[axis] - overlap for a, b in zip(starts, starts[1:]))
        assert starts[0] == 0 and max(window[axis + 2] for window in windows) == length


def part_in(mask, window, score=0.9, class_id=1):
    """The window and the part of the object that lies in it, as a tile shows it."""
    y1, x1, y2, x2 = window
    part = np.zeros_like(mask)
    part[y1:y2, x1:x2] = mask[y1:y2, x1:x2]
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    cut = part[top:bottom, left:right]
    box = (float(top), float(left), float(bottom), float(right))
    return window, objects.Object(class_id, score, box, int(top), int(left), cut)


def disk(centre, radius, size=(60, 100)):
    y, x = np.mgrid[: size[0], : size[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2


LEFT, RIGHT = (0, 0, 60, 60), (0, 40, 60, 100)


def whole(one, size=(60, 100)):
    return one.cut((0, 0, *size))


def test_an_object_across_a_seam_is_one_with_all_its_pixels():
    mask = disk((30, 50), 22)
    (merged,) = tiles.merge([part_in(mask, LEFT, 0.7), part_in(mask, RIGHT, 0.8)])
    np.testing.assert_array_equal(whole(merged), mask)
    assert merged.score == 0.8 and merged.box == (9.0, 29.0, 52.0, 72.0)


def test_an_object_inside_the_strip_is_not_counted_twice():
    mask = disk((30, 50), 8)
    (merged,) = tiles.merge([part_in(mask, LEFT), part_in(mask, RIGHT)])
    assert merged.area == mask.sum()


def test_an_object_across_four_tiles_is_one():
    mask = disk((30, 50), 26)
    windows = [(0, 0, 35, 60), (0, 40, 35, 100), (25, 0, 60, 60), (25, 40, 60, 100)]
    (merged,) = tiles.merge([part_in(mask, window) for window in windows])
    np.testing.assert_array_equal(whole(merged), mask)


def test_neighbours_stay_apart():
    first, second = disk((30, 38), 11), disk((30, 61), 11)
    merged = tiles.merge(
        [part_in(first, LEFT, 0.9), part_in(second, LEFT, 0.6), part_in(second, RIGHT, 0.8)]
    )
    assert [one.score for one in merged] == [0.9, 0.8]
    np.testing.assert_array_equal(whole(merged[0]), first)
    np.testing.assert_array_equal(whole(merged[1]), second)


def test_other_classes_and_the_same_tile_stay_apart():
    mask = disk((30, 50), 8)
    assert len(tiles.merge([part_in(mask, LEFT), part_in(mask, RIGHT, class_id=2)])) == 2
    assert len(tiles.merge([part_in(mask, LEFT), part_in(mask, LEFT)])) == 2
    assert tiles.merge([]) == []


def as_values(merged):
    """What objects are, in an order of their own."""
    return sorted((*one[:5], one.mask.shape, one.mask.tobytes()) for one in merged)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    size=st.tuples(st.integers(30, 120), st.integers(20, 60)),
    tile=st.tuples(st.integers(12, 40), st.integers(12, 40)),
    share=st.floats(0, 0.9),
    seed=st.integers(0, 1 << 30),
)
def test_row_by_row_is_the_same_as_all_at_once(size, tile, share, seed):
    rng = np.random.default_rng(seed)
    windows = tiles.make_tiles(*size, tile, int(share * min(tile)))
    # Some rows have no tissue, and some tiles miss an object or see another class.
    windows = [window for window in windows if rng.random() < 0.9]
    rows = {}
    for number in range(rng.integers(0, 25)):
        mask = disk(rng.integers(0, size), rng.integers(2, 20), size)
        for window in windows:
            y1, x1, y2, x2 = window
            if mask[y1:y2, x1:x2].any() and rng.random() < 0.9:
                part = part_in(mask, window, rng.random(), 1 + (number + rng.integers(8)) // 8)
                rows.setdefault(y1, []).append(part)
    tops = sorted({window[0] for window in windows})
    merger, found = tiles.RowMerger(), []
    for top, next_top in zip(tops, [*tops[1:], None]):
        found += merger.add(rows.get(top, []), next_top)
    assert merger.num_open == 0
    everything = [part for top in tops for part in rows.get(top, [])]
    assert as_values(found) == as_values(tiles.merge(everything))


def test_what_ends_above_the_next_row_is_not_held():
    merger = tiles.RowMerger()
    inside, across = disk((10, 20), 5), disk((38, 60), 12)
    upper, lower = (0, 0, 40, 100), (30, 0, 60, 100)
    (finished,) = merger.add([part_in(inside, upper), part_in(across, upper)], 30)
    np.testing.assert_array_equal(whole(finished), inside)
    assert merger.num_open == 1
    (finished,) = merger.add([part_in(across, lower)], None)
    np.testing.assert_array_equal(whole(finished), across)


def test_few_objects_are_held_however_long_the_slide():
    held, merger, step = [], tiles.RowMerger(), 30
    for row in range(100):
        top = row * step
        window = (top, 0, top + 40, 400)
        objects_of_row = [
            (window, objects.Object(1, 0.5, (0, 0, 1, 1), top + y, x, np.ones((8, 8), bool)))
            for y in (0, 12, 31)
            for x in range(0, 400, 20)
        ]
        merger.add(objects_of_row, top + step if row < 99 else None)
        held.append(merger.num_open)
    # Those of one row that reach into the next one, and those that they are joined with.
    assert max(held) <= 40 and held[-1] == 0
