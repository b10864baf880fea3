"""Masks from COCO's annotations against pycocotools and by hand; one line for every error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_api

from gan_mrcnn.utils import coco_annotations
from tests.any_json import anything
from tests.data import layouts

few = settings(deadline=None, derandomize=True, max_examples=60)


def read(segmentation, height, width):
    annotation = {'category_id': 1, 'segmentation': segmentation}
    assert coco_annotations.error_in(annotation, height, width, {1}) == ''
    rle = coco_annotations.to_rle(annotation, height, width)
    assert isinstance(rle['counts'], bytes)
    return mask_api.decode(rle)


@few
@given(st.data())
def test_polygons_agree_with_pycocotools(data):
    height, width = data.draw(st.integers(2, 40)), data.draw(st.integers(2, 40))
    # From a little outside on: annotators let go of the mouse there.
    point = st.tuples(
        st.floats(-2, width + 2, width=32, allow_subnormal=False),
        st.floats(-2, height + 2, width=32, allow_subnormal=False),
    )
    shapes = data.draw(st.lists(st.lists(point, min_size=3, max_size=7), min_size=1, max_size=3))
    polygons = [[value for xy in shape for value in xy] for shape in shapes]
    annotation = {'category_id': 1, 'segmentation': polygons}
    if coco_annotations.error_in(annotation, height, width, {1}):
        return
    union = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        (rle,) = mask_api.frPyObjects([polygon], height, width)
        union |= mask_api.decode(rle)
    np.testing.assert_array_equal(read(polygons, height, width), union)


@few
@given(
    st.integers(1, 12).flatmap(
        lambda height: st.lists(
            st.lists(st.booleans(), min_size=height, max_size=height), min_size=1, max_size=12
        )
    )
)
def test_both_kinds_of_run_lengths_give_the_mask(columns):
    mask = np.array(columns).T
    np.testing.assert_array_equal(read(layouts.run_lengths(mask), *mask.shape), mask)
    np.testing.assert_array_equal(read(layouts.compressed(mask), *mask.shape), mask)


@few
@given(st.binary(max_size=12))
def test_no_string_of_run_lengths_gives_anything_but_a_mask_or_a_line(content):
    """pycocotools answers many of these with whatever is in memory."""
    rle = {'size': [4, 5], 'counts': content.decode('latin-1')}
    annotation = {'category_id': 1, 'segmentation': rle}
    if not coco_annotations.error_in(annotation, 4, 5, {1}):
        mask = mask_api.decode(coco_annotations.to_rle(annotation, 4, 5))
        assert set(np.unique(mask)) <= {0, 1}


def test_rectangles_cover_their_pixels():
    for box in ((0, 0, 32, 48), (4, 20, 16, 40), (9, 46, 10, 47), (31, 0, 32, 1)):
        found = read([layouts.polygon(*box)], 32, 48)
        np.testing.assert_array_equal(found, layouts.rectangle(*box))


SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]

ERRORS = {
    'category unknown': ({'category_id': 5}, 'category id 5'),
    'category missing': ({'category_id': None}, 'category id None'),
    'category a list': ({'category_id': [1]}, 'category id [1]'),
    'category a string': ({'category_id': '1'}, "category id '1'"),
    'crowd a word': ({'iscrowd': 'no'}, "iscrowd 'no'"),
    'no segmentation': ({'segmentation': None}, 'no segmentation'),
    'empty segmentation': ({'segmentation': []}, 'no segmentation'),
    'segmentation a word': ({'segmentation': 'RLE'}, 'neither polygons nor run lengths'),
    'polygon not in a list': ({'segmentation': SQUARE}, 'no list of polygons'),
    'polygon of one point': ({'segmentation': [[2, 2]]}, 'polygon of 1 points'),
    # pycocotools takes this one for a box.
    'polygon of two points': ({'segmentation': [[2, 2, 8, 8]]}, 'polygon of 2 points'),
    'second polygon of two points': ({'segmentation': [SQUARE, [2, 2, 8, 8]]}, 'of 2 points'),
    'empty polygon': ({'segmentation': [[]]}, 'polygon of 0 points'),
    'polygon of an odd count': ({'segmentation': [[2, 2, 8, 2, 8, 8, 2]]}, 'polygon of 7 numbers'),
    'word in a polygon': ({'segmentation': [[2, 2, 8, 2, 8, 'x']]}, "'x' in a polygon"),
    'null in a polygon': ({'segmentation': [[2, 2, 8, 2, 8, None]]}, 'None in a polygon'),
    'pairs in a polygon': ({'segmentation': [[[2, 2], [8, 2], [8, 8]]]}, '[2, 2] in a polygon'),
    'not finite': ({'segmentation': [[2, 2, 8, 2, 8, float('nan')]]}, 'nan in a polygon'),
    'outside': ({'segmentation': [[60, 2, 70, 2, 70, 9]]}, 'outside its image of 20x10'),
    'above': ({'segmentation': [[2, -9, 8, -9, 8, -2]]}, 'outside its image'),
    'far beyond': ({'segmentation': [[2, 2, 800, 2, 8, 8]]}, 'far beyond its image'),
    'huge': ({'segmentation': [[2, 2, 1e30, 2, 8, 8]]}, 'far beyond its image'),
    'beyond all floats': ({'segmentation': [[2, 2, 10**400, 2, 8, 8]]}, 'finite numbers'),
    'long outline': (
        {'segmentation': [[0, 0, 20, 10] * 200_000 + [0, 10]]},
        'outline of more than 4194304 pixels',
    ),
    'gigabytes of run lengths': (
        {'segmentation': {'size': [10**9, 10**9], 'counts': [10**18]}},
        '[1000000000, 1000000000]',
    ),
    'gigabytes in a string': (
        {'segmentation': {'size': [10**9, 10**9], 'counts': 'PPYo0'}},
        '[1000000000, 1000000000]',
    ),
    'size in fractions': (
        {'segmentation': {'size': [10.0, 20.0], 'counts': [200]}},
        'run lengths for [height, width] [10.0, 20.0]',
    ),
    'relative': ({'segmentation': [[0.1, 0.1, 0.5, 0.1, 0.5, 0.9]]}, 'between 0 and 1'),
    'size of another image': (
        {'segmentation': {'size': [20, 10], 'counts': [200]}},
        'run lengths for [height, width] [20, 10]',
    ),
    'no size': ({'segmentation': {'counts': [200]}}, 'run lengths for'),
    'no counts': ({'segmentation': {'size': [10, 20]}}, 'damaged run lengths'),
    'too few': ({'segmentation': {'size': [10, 20], 'counts': [3, 5]}}, 'of 8 pixels'),
    'too many': ({'segmentation': {'size': [10, 20], 'counts': [3, 500]}}, 'of 503 pixels'),
    'negative': ({'segmentation': {'size': [10, 20], 'counts': [300, -100]}}, 'damaged run'),
    'fractions': ({'segmentation': {'size': [10, 20], 'counts': [100.5, 99.5]}}, 'damaged run'),
    'string cut short': ({'segmentation': {'size': [10, 20], 'counts': 'o'}}, 'damaged run'),
    'string of other signs': ({'segmentation': {'size': [10, 20], 'counts': '\xff!'}}, 'damaged'),
    'empty string': ({'segmentation': {'size': [10, 20], 'counts': ''}}, 'of 0 pixels'),
}


@pytest.mark.parametrize('case', ERRORS)
def test_an_error_is_said_in_one_line(case):
    change, said = ERRORS[case]
    annotation = {'id': 3, 'category_id': 1, 'iscrowd': 0, 'segmentation': [SQUARE]}
    assert coco_annotations.error_in(annotation, 10, 20, {1, 2}) == ''
    text = coco_annotations.error_in({**annotation, **change}, 10, 20, {1, 2})
    assert said in text and '\n' not in text


@pytest.mark.parametrize(
    'box, said',
    [
        ([2, 2, 0, 6], '0x6'),
        ([2, 2, 6, -1], '6x-1'),
        ([30, 2, 6, 6], 'outside'),
        # The corners, where a size belongs.
        ([2, 2, 8, 8], 'does not fit its mask'),
        ([1.5, 2, 6.9, 6.2], ''),
        ([2, 2, 6], 'not [x, y'),
        ([2, 2, 6, None], 'not [x, y'),
        ('2 2 6 6', 'not [x, y'),
        ([2, 2, 6, 6], ''),
        (None, ''),
    ],
)
def test_a_wrong_box_is_a_warning_and_does_no_harm(box, said):
    annotation = {'category_id': 1, 'segmentation': [SQUARE], 'bbox': box}
    assert coco_annotations.error_in(annotation, 10, 20, {1}) == ''
    text = coco_annotations.warning_about(annotation, 10, 20)
    assert said in text and bool(text) == bool(said)


nearly_rle = st.fixed_dictionaries(
    {
        'size': st.sampled_from([[10, 20], [10.0, 20.0], [True, 20], [10], '10', None]),
        'counts': st.sampled_from([[200], [200.0], [0, 200], [True, 199], [], '', 'X6', '0X6', 7]),
    }
)
nearly_polygons = st.lists(
    st.lists(st.sampled_from([2, 7.5, 12, 0, True, -3, 19, None, '4']), max_size=9), max_size=3
)


@settings(deadline=None, derandomize=True, max_examples=400)
@given(
    st.fixed_dictionaries(
        {'segmentation': anything | nearly_rle | nearly_polygons},
        optional={
            'category_id': anything | st.just(1),
            'iscrowd': anything | st.just(0),
            'bbox': anything | st.lists(st.integers(-3, 30), min_size=4, max_size=4),
            'area': anything,
        },
    ),
    st.booleans(),
)
def test_no_annotation_ends_with_a_stack_trace(annotation, known):
    if known:
        annotation = {**annotation, 'category_id': 1, 'iscrowd': 0}
    text = coco_annotations.error_in(annotation, 10, 20, {1})
    assert '\n' not in text
    if not text:
        assert '\n' not in coco_annotations.warning_about(annotation, 10, 20)
        rle = coco_annotations.to_rle(annotation, 10, 20)
        assert set(np.unique(mask_api.decode(rle))) <= {0, 1}
        measures = coco_annotations.box_and_area(annotation, rle, 10, 20)
        assert all(np.isfinite(value).all() for value in measures.values())
