"""The contest's metrics by hand, and against a slow version written from the definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gan_mrcnn.metrics import gland as gland_metrics
from tests.metrics import shapes

H, W = 30, 40


def labels(*boxes):
    """Label map of rectangles (y1, x1, y2, x2), numbered from 1."""
    canvas = np.zeros((H, W), np.int32)
    for number, (y1, x1, y2, x2) in enumerate(boxes, 1):
        canvas[y1:y2, x1:x2] = number
    return canvas


def figures(*pairs):
    return gland_metrics.summarize([gland_metrics.score_image(t, f) for t, f in pairs])


def test_the_ground_truth_itself():
    ground_truth = labels((2, 2, 10, 12), (15, 5, 28, 30))
    expected = {'F1': 1, 'precision': 1, 'recall': 1, 'dice': 1, 'hausdorff': 0}
    assert figures((ground_truth, ground_truth)) == expected


def test_one_gland_half_covered_by_hand():
    # The gland is 10 x 10, the prediction its left half: exactly 50% detects it.
    # Dice = 2 * 50 / 150 both ways; the farthest pixel is 5 columns away.
    one = figures((labels((0, 0, 10, 10)), labels((0, 0, 10, 5))))
    assert one['F1'] == 1.0
    assert one['dice'] == pytest.approx(2 / 3)
    assert one['hausdorff'] == pytest.approx(5)
    # One column less is no find.
    assert figures((labels((0, 0, 10, 10)), labels((0, 0, 10, 4))))['F1'] == 0.0


def test_a_large_prediction_finds_one_of_two_glands():
    # It covers both wholly, and belongs to the larger one alone.
    one = figures((labels((0, 0, 10, 10), (0, 12, 10, 32)), labels((0, 0, 10, 32))))
    assert (one['precision'], one['recall'], one['F1']) == (1.0, 0.5, pytest.approx(2 / 3))


def test_two_halves_are_one_find():
    one = figures((labels((0, 0, 10, 10)), labels((0, 0, 10, 5), (0, 5, 10, 10))))
    assert (one['precision'], one['recall']) == (0.5, 1.0)


def test_area_weights_by_hand():
    # Glands of 100 and 300 pixels; the small one is detected exactly, the large one not at all.
    # Ground truth: (100 * 1 + 300 * 0) / 400; prediction: 1. Distances: the large gland's nearest
    # object is the small one: from its far columns 35..., (0, 40) to (0, 9): 39 - 9 = 30 columns.
    one = figures((labels((0, 0, 10, 10), (0, 10, 10, 40)), labels((0, 0, 10, 10))))
    assert one['dice'] == pytest.approx((0.25 + 1) / 2)
    assert one['hausdorff'] == pytest.approx((0.75 * 30 + 0) / 2)
    assert one['F1'] == pytest.approx(2 / 3)


def test_nothing_on_one_side_or_both():
    some, nothing, diagonal = labels((0, 0, 10, 10)), labels(), np.hypot(H, W)
    for pair in ((some, nothing), (nothing, some)):
        one = figures(pair)
        assert (one['F1'], one['dice']) == (0.0, 0.0)
        assert one['hausdorff'] == pytest.approx(diagonal)
    assert figures((nothing, nothing))['F1'] == 1.0
    assert figures((nothing, nothing))['dice'] == 1.0
    assert figures((nothing, nothing))['hausdorff'] == 0.0


def test_sums_go_over_all_images():
    # 100 pixels detected exactly in one image, 300 missed in the other.
    pairs = [(labels((0, 0, 10, 10)), labels((0, 0, 10, 10))), (labels((0, 0, 10, 30)), labels())]
    one = figures(*pairs)
    assert (one['recall'], one['precision']) == (0.5, 1.0)
    assert one['dice'] == pytest.approx((0.25 + 1) / 2)
    assert one['hausdorff'] == pytest.approx(0.75 * np.hypot(H, W) / 2)


def partner(one, others):
    best = max(others, key=lambda other: len(one & other), default=None)
    return best if best is not None and one & best else None


def hausdorff(a, b):
    a, b = np.array(sorted(a)), np.array(sorted(b))
    between = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return max(between.min(0).max(), between.min(1).max())


def slow_figures(pairs):
    """Sirinukunwattana et al. (2017), sections 4.1 to 4.3, object by object, pixel by pixel."""

    def objects(image):
        numbers = sorted(set(image[image > 0]))
        return [{(int(y), int(x)) for y, x in np.argwhere(image == k)} for k in numbers]

    right = wrong = missed = 0
    sides = {'gt': [], 'found': []}
    for ground_truth, found in pairs:
        glands, segmented = objects(ground_truth), objects(found)
        matched = []
        for one in segmented:
            gland = partner(one, glands)
            if gland is not None and len(gland & one) / len(gland) >= 0.5 and gland not in matched:
                matched.append(gland)
        right += len(matched)
        wrong += len(segmented) - len(matched)
        missed += len(glands) - len(matched)
        for name, mine, others in (('gt', glands, segmented), ('found', segmented, glands)):
            for one in mine:
                other = partner(one, others)
                dice = 2 * len(one & other) / (len(one) + len(other)) if other else 0.0
                if other:
                    distance = hausdorff(one, other)
                else:
                    alone = np.hypot(*ground_truth.shape)
                    distance = min((hausdorff(one, o) for o in others), default=alone)
                sides[name].append((len(one), dice, distance))
    means = []
    for side in sides.values():
        if side:
            area, dice, distance = np.array(side).T
            means.append(((area / area.sum()) @ dice, (area / area.sum()) @ distance))
    dice, distance = np.mean(means, 0)
    return {'F1': 2 * right / (2 * right + wrong + missed), 'dice': dice, 'hausdorff': distance}


def random_labels(rng):
    canvas = np.zeros((H, W), np.int32)
    for number in range(1, rng.integers(1, 6)):
        y, x = rng.integers(0, H - 4), rng.integers(0, W - 4)
        canvas[y : y + rng.integers(2, 14), x : x + rng.integers(2, 14)] = number * 7
    return canvas


@settings(deadline=None, derandomize=True, max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_random_maps_equal_the_slow_version(seed):
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(3):
        ground_truth = random_labels(rng)
        shifted = np.roll(ground_truth, rng.integers(-3, 4, 2), (0, 1))
        pairs.append((ground_truth, shifted if rng.random() < 0.6 else random_labels(rng)))
    if not any(t.any() or f.any() for t, f in pairs):
        return
    found, expected = figures(*pairs), slow_figures(pairs)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-4), name


def test_better_scores_lie_on_top():
    first, second = shapes.rectangle(0, 0, 10, 20), shapes.rectangle(0, 15, 10, 40)
    painted = gland_metrics.paint(
        [shapes.result(1, second, 0.6), shapes.result(1, first, 0.8)], 64, 80, 0.5
    )
    assert painted[5, 17] == painted[5, 0] == 1
    assert painted[5, 25] == 2
    assert set(np.unique(painted)) == {0, 1, 2}


def test_what_is_hidden_or_below_the_threshold_is_not_painted():
    mask = shapes.rectangle(0, 0, 10, 20)
    # 11 of 20 columns are hidden: less than half is visible.
    mostly_hidden = shapes.rectangle(0, 9, 10, 29)
    half_hidden = shapes.rectangle(0, 10, 10, 30)
    paint = lambda other, score: gland_metrics.paint(  # noqa: E731
        [shapes.result(1, mask, 0.9), shapes.result(1, other, score)], 64, 80, 0.5
    )
    assert paint(mostly_hidden, 0.8).max() == 1
    assert paint(half_hidden, 0.8).max() == 2
    assert paint(half_hidden, 0.5).max() == 2
    assert paint(half_hidden, 0.49).max() == 1


def test_the_threshold_leaves_out_what_is_wrong():
    good, bad = shapes.rectangle(0, 0, 20, 20), shapes.rectangle(40, 40, 60, 60)
    ground_truth = shapes.ground_truth([[(good, 1)], [(good, 1)]])
    results = [shapes.result(i, good, 0.62) for i in (1, 2)]
    results += [shapes.result(i, bad, 0.43) for i in (1, 2)]
    # 0.45 is the first of the thresholds above what is wrong.
    assert gland_metrics.choose_threshold(ground_truth, results) == 0.45


def test_all_images_are_scored():
    mask = shapes.rectangle(0, 0, 20, 20)
    ground_truth = shapes.ground_truth([[(mask, 1)], [(mask, 1)], []])
    scores = gland_metrics.score_images(ground_truth, [shapes.result(1, mask, 0.9)], 0.5)
    # True positives, false positives, false negatives.
    assert {image_id: score[:3] for image_id, score in scores.items()} == {
        1: (1, 0, 0),
        2: (0, 0, 1),
        3: (0, 0, 0),
    }
