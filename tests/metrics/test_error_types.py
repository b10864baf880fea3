"""TIDE's six kinds of error on constructed cases, and what each costs."""

import numpy as np
import pytest

from gan_mrcnn.metrics import error_types
from tests.metrics import shapes

# Objects of 20 x 20; an overlap of k columns of 20 with one shifted by 20 - k is k / (40 - k).
OBJECT = shapes.rectangle(10, 10, 30, 30)
FAR = shapes.rectangle(40, 50, 60, 70)


def shifted(columns):
    return shapes.rectangle(10, 10 + columns, 30, 30 + columns)


def kinds(ground_truth, results):
    errors = error_types.classify(ground_truth, results)
    names = {error_types.CORRECT: 'correct', error_types.IGNORED: 'ignored'}
    names.update(enumerate(error_types.KINDS))
    found = dict(zip(errors.prediction.tolist(), (names[kind] for kind in errors.kind)))
    return [found[i] for i in range(len(results))], errors


# Overlaps: 0: 1; 4: 16/24 = .67; 8: 12/28 = .43; 15: 5/35 = .14; 18: 2/38 = .05.
CASES = {
    'correct': (shifted(4), 1, 'correct'),
    'localization': (shifted(8), 1, 'localization'),
    'localization, barely': (shifted(15), 1, 'localization'),
    'background': (shifted(18), 1, 'background'),
    'classification': (shifted(4), 2, 'classification'),
    'both': (shifted(8), 2, 'both'),
    'background of another class': (shifted(18), 2, 'background'),
}


@pytest.mark.parametrize('name', CASES)
def test_a_single_prediction(name):
    mask, class_id, expected = CASES[name]
    ground_truth = shapes.ground_truth([[(OBJECT, 1)]], 2)
    found, errors = kinds(ground_truth, [shapes.result(1, mask, 0.8, class_id)])
    assert found == [expected]
    # The object is the target of localization and classification errors: it is not missed.
    is_missed = expected in ('both', 'background')
    assert errors.gt_missed.tolist() == [is_missed]
    assert errors.gt_matched.tolist() == [expected == 'correct']


def test_a_second_find_is_a_duplicate():
    ground_truth = shapes.ground_truth([[(OBJECT, 1), (FAR, 1)]])
    results = [shapes.result(1, shifted(2), 0.6), shapes.result(1, OBJECT, 0.8)]
    found, errors = kinds(ground_truth, results)
    assert found == ['duplicate', 'correct']
    assert errors.gt_missed.tolist() == [False, True]


def test_another_class_is_worse_than_being_second():
    # At least half with an object of another class comes before duplicate, as in TIDE.
    ground_truth = shapes.ground_truth([[(OBJECT, 1), (shifted(1), 2)]], 2)
    results = [shapes.result(1, OBJECT, 0.9), shapes.result(1, OBJECT, 0.8)]
    assert kinds(ground_truth, results)[0] == ['correct', 'classification']


def test_predictions_in_a_crowd_are_no_mistakes():
    crowd = shapes.rectangle(0, 0, 40, 40)
    ground_truth = shapes.ground_truth([[(crowd, 1, True), (FAR, 1)]])
    found, errors = kinds(ground_truth, [shapes.result(1, OBJECT, 0.8)])
    assert found == ['ignored']
    assert errors.gt_missed.tolist() == [True]


def test_without_predictions_all_is_missed():
    ground_truth = shapes.ground_truth([[(OBJECT, 1)], [(OBJECT, 1), (FAR, 1)]])
    summary = error_types.summarize(error_types.classify(ground_truth, []))
    assert summary['counts']['missed'] == 3
    assert summary['AP50'] == 0.0
    assert summary['costs'].pop('missed') == pytest.approx(1)
    assert not any(summary['costs'].values())


def test_a_class_that_is_missed_as_a_whole_is_lost_behind_what_is_false():
    # One false prediction; the two objects, found behind it, have precision 1/2 and 2/3: the best
    # of recall 1/2 or higher is 2/3, and so it is up to recall 1.
    ground_truth = shapes.ground_truth([[(OBJECT, 1), (FAR, 1)]])
    nothing = shapes.rectangle(0, 60, 8, 70)
    summary = error_types.summarize(
        error_types.classify(ground_truth, [shapes.result(1, nothing, 0.9)])
    )
    assert summary['AP50'] == 0.0
    assert summary['costs']['missed'] == pytest.approx(2 / 3)


def test_costs_by_hand():
    # Two objects. The better prediction is background, the worse correct; one object is missed.
    # AP50: precision 1/2 up to recall 1/2, 51 of 101 points. Without the background error:
    # precision 1 there. Without the missed object: precision 1/2 up to recall 1.
    ground_truth = shapes.ground_truth([[(OBJECT, 1), (FAR, 1)]])
    nothing = shapes.rectangle(0, 60, 8, 70)
    results = [shapes.result(1, nothing, 0.9), shapes.result(1, OBJECT, 0.8)]
    summary = error_types.summarize(error_types.classify(ground_truth, results))
    before = 0.5 * 51 / 101
    assert summary['AP50'] == pytest.approx(before)
    assert summary['costs']['background'] == pytest.approx(51 / 101 - before)
    assert summary['costs']['missed'] == pytest.approx(0.5 - before)
    for kind in ('classification', 'localization', 'both', 'duplicate'):
        assert summary['costs'][kind] == pytest.approx(0)
    expected = dict.fromkeys(error_types.KINDS, 0)
    expected.update(background=1, missed=1)
    assert summary['counts'] == expected


def test_one_of_several_mistakes_mends_an_object():
    # Both are about the same object; fixed, the better one is correct and the other is gone: AP 1.
    ground_truth = shapes.ground_truth([[(OBJECT, 1)]])
    results = [shapes.result(1, shifted(8), 0.9), shapes.result(1, shifted(9), 0.8)]
    summary = error_types.summarize(error_types.classify(ground_truth, results))
    assert summary['counts']['localization'] == 2
    assert summary['AP50'] == 0.0
    assert summary['costs']['localization'] == pytest.approx(1)


def test_a_mended_class_counts_there():
    # Class 2's object was called class 1; mended, class 2 has AP 1 and class 1 stays at 1.
    ground_truth = shapes.ground_truth([[(OBJECT, 1), (FAR, 2)]], 2)
    results = [shapes.result(1, OBJECT, 0.9, 1), shapes.result(1, FAR, 0.8, 1)]
    summary = error_types.summarize(error_types.classify(ground_truth, results))
    assert summary['AP50'] == pytest.approx(0.5)
    assert summary['costs']['classification'] == pytest.approx(0.5)


def test_rows_of_all_images_fit_together():
    ground_truth, results = shapes.random_case(2, num_images=9)
    errors = error_types.classify(ground_truth, results)
    assert sorted(errors.prediction) == list(range(len(results)))
    for row in range(len(errors.kind)):
        prediction = results[errors.prediction[row]]
        assert prediction['image_id'] == errors.image[row]
        assert prediction['category_id'] == errors.class_id[row]
        if errors.target[row] >= 0:
            assert errors.gt_image[errors.target[row]] == errors.image[row]
            annotation = ground_truth['annotations'][errors.gt[errors.target[row]]]
            assert annotation['category_id'] == errors.gt_class[errors.target[row]]
    assert np.sum(errors.kind == error_types.CORRECT) == np.sum(errors.gt_matched)
