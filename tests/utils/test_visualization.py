"""What is drawn, and what is left alone."""

import cv2
import numpy as np
import pytest

from gan_mrcnn.utils import visualization
from gan_mrcnn.utils.run_lengths import encode_mask


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(150, 230, (120, 160, 3)).astype(np.uint8)


@pytest.fixture
def masks():
    masks = np.zeros((2, 120, 160), bool)
    masks[0, 10:60, 20:70] = True
    masks[1, 50:110, 90:150] = True
    return masks


def _result(mask, score):
    return {'score': score, 'segmentation': encode_mask(mask)}


def test_inside_changes_and_outside_does_not(image, masks):
    before = image.copy()
    drawn = visualization.draw_instances(image, masks)
    inside = masks.any(0)
    assert (drawn != image).any(2)[inside].mean() > 0.99
    np.testing.assert_array_equal(drawn[~inside], image[~inside])
    np.testing.assert_array_equal(image, before)
    assert drawn.dtype == np.uint8


def test_the_outline_is_opaque_and_the_fill_is_not(image, masks):
    drawn = visualization.draw_instances(image, masks[:1], colours=[(0, 90, 220)])
    row = drawn[35, 20:70].astype(int)
    # A dark rim, then the pure colour, on both sides; inside, the image still shows.
    assert row[0].sum() < row[1].sum()
    np.testing.assert_array_equal(row[[1, -2]], [[0, 90, 220]] * 2)
    fill = drawn[20:50, 30:60].astype(float)
    expected = 0.75 * image[20:50, 30:60] + 0.25 * np.array([0, 90, 220])
    np.testing.assert_allclose(fill, expected, atol=0.5)


def test_touching_instances_keep_two_outlines_and_two_colours(image):
    masks = np.zeros((2, 120, 160), bool)
    masks[0, 20:100, 20:80] = True
    masks[1, 20:100, 80:140] = True
    first, second = visualization.neighbour_colours(masks)
    assert first != second
    drawn = visualization.draw_instances(image, masks)
    assert tuple(drawn[60, 78]) == first and tuple(drawn[60, 81]) == second


def test_neighbours_differ_as_long_as_there_are_colours():
    number = len(visualization.PALETTE)
    masks = np.zeros((3 * number, 60, 200), bool)
    for row in range(3 * number):
        masks[row, 10:50, 10 * row : 10 * row + 9] = True
    colours = visualization.neighbour_colours(masks)
    assert all(a != b for a, b in zip(colours, colours[1:]))
    assert all(colours.count(colour) == 3 for colour in visualization.PALETTE)


def test_boxes_and_scores_are_drawn(image, masks):
    plain = visualization.draw_instances(image, masks)
    framed = visualization.draw_instances(image, masks, boxes=[[5, 10, 70, 80], [45, 85, 115, 155]])
    colour = visualization.neighbour_colours(masks)[0]
    assert tuple(framed[5, 40]) == colour and tuple(framed[40, 79]) == colour
    np.testing.assert_array_equal(plain[5, 40], image[5, 40])
    scored = visualization.draw_instances(image, masks, scores=[0.87, 1.0])
    changed = (scored != plain).any(2)
    assert changed[masks[0]].any() and changed[masks[1]].any()
    small = np.zeros((1, 120, 160), bool)
    small[0, 30:42, 30:46] = True
    np.testing.assert_array_equal(
        visualization.draw_instances(image, small, scores=[0.87]),
        visualization.draw_instances(image, small),
    )


def test_no_instance_leaves_the_image(image):
    drawn = visualization.draw_instances(image, np.zeros((0, 120, 160), bool))
    np.testing.assert_array_equal(drawn, image)
    empty = visualization.draw_instances(image, np.zeros((1, 120, 160), bool), scores=[0.5])
    np.testing.assert_array_equal(empty, image)


def test_masks_of_another_size_are_refused(image):
    with pytest.raises(ValueError, match='on an image of'):
        visualization.draw_instances(image, np.ones((1, 60, 80), bool))
    with pytest.raises(ValueError, match='predicted mask of'):
        visualization.side_by_side(image, [], [_result(np.ones((60, 80)), 0.9)])


def test_three_panels_under_their_titles(image, masks):
    canvas = visualization.side_by_side(image, masks, [_result(masks[0], 0.9)])
    strip, gap = canvas.shape[0] - 120, (canvas.shape[1] - 3 * 160) // 2
    assert strip > 0 and gap > 0 and canvas.shape == (120 + strip, 3 * 160 + 2 * gap, 3)
    panels = [canvas[strip:, i * (160 + gap) : i * (160 + gap) + 160] for i in range(3)]
    titles = [canvas[:strip, i * (160 + gap) : i * (160 + gap) + 160] for i in range(3)]
    np.testing.assert_array_equal(panels[0], image)
    np.testing.assert_array_equal(panels[1], visualization.draw_instances(image, masks))
    # The detected one has the colour of its object; the missed one is not drawn.
    np.testing.assert_array_equal(panels[2][11, 30:60], panels[1][11, 30:60])
    np.testing.assert_array_equal(panels[2][masks[1]], image[masks[1]])
    assert all(title.min() < 100 for title in titles)
    assert not np.array_equal(titles[0], titles[1])


def test_a_prediction_that_matches_nothing_or_a_second_time_is_marked(image, masks):
    found = [_result(masks[0], 0.8), _result(masks[0], 0.6)]
    wrong = np.zeros((120, 160), bool)
    wrong[75:110, 10:50] = True
    canvas = visualization.side_by_side(image, masks, found[:1] + [_result(wrong, 0.7)])
    panel = canvas[-120:, -160:]
    assert tuple(panel[90, 11]) == visualization.UNMATCHED
    assert tuple(panel[30, 21]) == visualization.neighbour_colours(masks)[0]
    twice = visualization.side_by_side(image, masks, found)[-120:, -160:]
    assert tuple(twice[30, 21]) == visualization.UNMATCHED


def test_the_threshold_and_empty_predictions(image, masks):
    nothing = visualization.side_by_side(image, masks, [])
    np.testing.assert_array_equal(nothing[-120:, -160:], image)
    weak = visualization.side_by_side(image, masks, [_result(masks[0], 0.49)])
    np.testing.assert_array_equal(weak, nothing)
    shown = visualization.side_by_side(image, masks, [_result(masks[0], 0.49)], score_threshold=0.3)
    assert not np.array_equal(shown, nothing)
    visualization.side_by_side(image, np.zeros((0, 120, 160), bool), [_result(masks[0], 0.9)])


def test_drawing_twice_gives_the_same(image, masks):
    predictions = [_result(masks[1], 0.9), _result(masks[0], 0.9)]
    np.testing.assert_array_equal(
        visualization.side_by_side(image, masks, predictions),
        visualization.side_by_side(image, masks, predictions),
    )


def test_rows_are_stacked_on_white():
    wide, narrow = np.zeros((10, 60, 3), np.uint8), np.zeros((20, 40, 3), np.uint8)
    sheet = visualization.contact_sheet([wide, narrow])
    assert sheet.shape[1:] == (60, 3) and sheet.shape[0] > 30
    assert not sheet[:10].any() and not sheet[-20:, :40].any()
    assert (sheet[-20:, 40:] == 255).all() and (sheet[10:-20] == 255).all()
    with pytest.raises(ValueError, match='at least one'):
        visualization.contact_sheet([])


def test_a_png_comes_back_in_rgb(tmp_path, image):
    path = tmp_path / 'new' / 'image.png'
    visualization.save_png(str(path), image)
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], image)


def test_outlines_of_ground_truth_and_prediction_are_both_seen():
    image = np.full((120, 160, 3), 200, np.uint8)
    mask, shifted = (rectangle_mask(120, 160, 20, x, 90, x + 80) for x in (30, 50))
    drawn = visualization.draw_outlines(image, [mask], [shifted])
    is_gt = (drawn == visualization.GROUND_TRUTH).all(-1)
    is_predicted = (drawn == visualization.PREDICTION).all(-1)
    assert is_gt[55, 30:38].any() and is_predicted[55, 50:58].any()
    # Where both lie on each other, too.
    both = visualization.draw_outlines(image, [mask], [mask])
    assert (both == visualization.GROUND_TRUTH).all(-1).any()
    assert (both == visualization.PREDICTION).all(-1).any()
    # Far from both nothing is drawn.
    assert (drawn[100:] == 200).all() and (drawn[:15] == 200).all()


def test_a_zoom_shows_where_outlines_differ():
    image = np.full((200, 300, 3), 200, np.uint8)
    mask = rectangle_mask(200, 300, 40, 40, 160, 260)
    bulge = mask | rectangle_mask(200, 300, 90, 260, 110, 280)
    shown = visualization.zoom(image, mask, bulge, 40, 3)
    assert shown.shape == (120, 120, 3)
    # The right end of the bulge and the straight side that it leaves, 20 pixels apart.
    predicted = np.argwhere((shown == visualization.PREDICTION).all(-1))
    gt = np.argwhere((shown == visualization.GROUND_TRUTH).all(-1))
    assert 50 < predicted[:, 1].max() - gt[:, 1].max() < 70
    # An object that continues beyond the window has no line at its border.
    assert not (shown[:, :6] == visualization.GROUND_TRUTH).all(-1).any()


def rectangle_mask(height, width, y1, x1, y2, x2):
    mask = np.zeros((height, width), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def test_a_large_image_is_shrunk_and_a_tiny_mask_keeps_a_pixel():
    image = np.zeros((600, 1200, 3), np.uint8)
    image[100:200, 300:600] = 200
    masks = np.zeros((2, 600, 1200), np.uint8)
    masks[0, 100:200, 300:600] = masks[1, 501, 1100] = 1
    small, found = visualization.shrink(image, iter(masks), 120)
    assert small.shape == (60, 120, 3) and found.shape == (2, 60, 120) and found.dtype == bool
    wanted = np.zeros((60, 120), bool)
    wanted[10:20, 30:60] = True
    np.testing.assert_array_equal(found[0], wanted)
    np.testing.assert_array_equal(small[..., 0] > 100, wanted)
    assert np.argwhere(found[1]).tolist() == [[50, 110]]


def test_an_image_that_is_small_enough_stays_as_it_is(image, masks):
    same, found = visualization.shrink(image, masks, 1000)
    np.testing.assert_array_equal(same, image)
    np.testing.assert_array_equal(found, masks)
    assert visualization.shrink(image, [], 1000)[1].shape == (0, 120, 160)
