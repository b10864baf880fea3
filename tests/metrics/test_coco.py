"""COCO figures on cases small enough to work out by hand."""

import copy
import json

import numpy as np
import pytest

from gan_mrcnn.metrics.coco import evaluate_coco
from gan_mrcnn.utils.errors import UserError
from gan_mrcnn.utils.run_lengths import encode_mask

_SIZE = 200


def _rectangle(x, y, width, height):
    mask = np.zeros((_SIZE, _SIZE), np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def _annotations(boxes_per_image):
    """boxes_per_image: for each image a list of [x, y, width, height]."""
    images, annotations = [], []
    for image_id, boxes in enumerate(boxes_per_image, 1):
        images.append({'id': image_id, 'height': _SIZE, 'width': _SIZE})
        annotations += [
            {
                'image_id': image_id,
                'category_id': 1,
                'bbox': box,
                'iscrowd': 0,
                'area': box[2] * box[3],
                'segmentation': encode_mask(_rectangle(*box)),
            }
            for box in boxes
        ]
    for number, annotation in enumerate(annotations, 1):
        annotation['id'] = number
    return {
        'images': images,
        'annotations': annotations,
        'categories': [{'id': 1, 'name': 'gland'}],
    }


def _result(image_id, box, score, mask_box=None):
    return {
        'image_id': image_id,
        'category_id': 1,
        'bbox': list(box),
        'score': score,
        'segmentation': encode_mask(_rectangle(*(mask_box or box))),
    }


_TWO = [[[10, 10, 50, 50], [80, 80, 110, 110]], [[20, 30, 60, 40]]]


def _perfect(boxes_per_image):
    return [
        _result(image_id, box, 0.9)
        for image_id, boxes in enumerate(boxes_per_image, 1)
        for box in boxes
    ]


def test_the_ground_truth_as_prediction_scores_one():
    figures = evaluate_coco(_annotations(_TWO), _perfect(_TWO))
    for kind in ('box', 'mask'):
        assert set(figures[kind]) == {'AP', 'AP50', 'AP75', 'APS', 'APM', 'APL', 'AR'}
        for name in ('AP', 'AP50', 'AP75', 'APM', 'APL', 'AR'):
            assert figures[kind][name] == pytest.approx(1.0, abs=1e-9)
        assert figures[kind]['APS'] is None


def test_no_prediction_scores_zero():
    figures = evaluate_coco(_annotations(_TWO), [])
    for kind in ('box', 'mask'):
        assert figures[kind]['AP'] == figures[kind]['AR'] == figures[kind]['APL'] == 0.0
        assert figures[kind]['APS'] is None


def test_a_known_overlap_passes_the_thresholds_below_it():
    # 50x50 shifted by 10: IoU = 40 / 60 = 2/3, so .50, .55, .60 and .65 of the ten are passed.
    ground_truth = _annotations([[[10, 10, 50, 50]]])
    figures = evaluate_coco(ground_truth, [_result(1, [20, 10, 50, 50], 0.9)])
    for kind in ('box', 'mask'):
        assert figures[kind]['AP'] == pytest.approx(0.4)
        assert figures[kind]['AP50'] == pytest.approx(1.0)
        assert figures[kind]['AP75'] == 0.0
        assert figures[kind]['AR'] == pytest.approx(0.4)


def test_boxes_and_masks_are_scored_apart():
    ground_truth = _annotations([[[10, 10, 50, 50]]])
    figures = evaluate_coco(ground_truth, [_result(1, [10, 10, 50, 50], 0.9, [20, 10, 50, 50])])
    assert figures['box']['AP'] == pytest.approx(1.0)
    assert figures['mask']['AP'] == pytest.approx(0.4)


def test_an_image_without_predictions_counts():
    ground_truth = _annotations([[[10, 10, 50, 50]], [[10, 10, 50, 50]]])
    figures = evaluate_coco(ground_truth, [_result(1, [10, 10, 50, 50], 0.9)])
    for kind in ('box', 'mask'):
        assert figures[kind]['AR'] == pytest.approx(0.5)
        # Precision 1 up to recall 0.5: 51 of the 101 recall points 0, .01, ..., 1.
        assert figures[kind]['AP'] == pytest.approx(51 / 101)


def _iou(a, b):
    width = max(0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    height = max(0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    return width * height / (a[2] * a[3] + b[2] * b[3] - width * height)


def _average_precision(ground_truth, found, threshold):
    """AP by its definition: greedy matching by score, interpolated precision at 101 recalls."""
    free = [list(boxes) for boxes in ground_truth]
    total = sum(map(len, ground_truth))
    precision, recall, hits = [], [], 0
    for rank, (_, image, box) in enumerate(sorted(found, reverse=True), 1):
        best = max(free[image], key=lambda other: _iou(box, other), default=None)
        if best is not None and _iou(box, best) >= threshold:
            free[image].remove(best)
            hits += 1
        precision.append(hits / rank)
        recall.append(hits / total)
    return np.mean(
        [
            max([p for p, r in zip(precision, recall) if r >= level - 1e-9], default=0)
            for level in np.arange(101) / 100
        ]
    )


def test_average_precision_equals_its_definition():
    rng = np.random.default_rng(3)
    ground_truth, found = [], []
    for image in range(4):
        ground_truth.append([[x, y, 40, 45] for x in (5, 75, 145) for y in (10, 90)])
        for box in ground_truth[-1]:
            if rng.random() < 0.8:
                shift = rng.integers(-9, 10, 2)
                found.append(
                    (
                        rng.random(),
                        image,
                        [max(0, box[0] + int(shift[0])), box[1] + int(shift[1]), 40, 45],
                    )
                )
        found.append((rng.random(), image, [100, 60, 30, 20]))
        found.append((rng.random(), image, ground_truth[-1][0]))  # often a second hit of one object
    figures = evaluate_coco(
        _annotations(ground_truth), [_result(image + 1, box, score) for score, image, box in found]
    )
    levels = np.linspace(0.5, 0.95, 10)
    expected = [_average_precision(ground_truth, found, level) for level in levels]
    assert 0.2 < np.mean(expected) < 0.8
    for kind in ('box', 'mask'):
        assert figures[kind]['AP'] == pytest.approx(np.mean(expected), abs=1e-9)
        assert figures[kind]['AP50'] == pytest.approx(expected[0], abs=1e-9)
        assert figures[kind]['AP75'] == pytest.approx(expected[5], abs=1e-9)


def test_mask_figures_sort_predictions_by_mask_area():
    # A false prediction with a large box around a medium mask: a mistake among medium masks only.
    ground_truth = _annotations([[[5, 5, 120, 120], [140, 140, 50, 50]]])
    found = [
        _result(1, [5, 5, 120, 120], 0.5),
        _result(1, [140, 140, 50, 50], 0.5),
        _result(1, [60, 60, 120, 120], 0.9, [130, 10, 40, 40]),
    ]
    figures = evaluate_coco(ground_truth, found)
    assert figures['mask']['APL'] == pytest.approx(1.0)
    assert figures['mask']['APM'] == pytest.approx(0.5)
    assert figures['box']['APL'] == pytest.approx(0.5)
    assert figures['box']['APM'] == pytest.approx(1.0)


def test_inputs_stay_as_they_were_and_nothing_is_printed(capsys):
    ground_truth, found = _annotations(_TWO), _perfect(_TWO)
    before = copy.deepcopy((ground_truth, found))
    evaluate_coco(ground_truth, found)
    assert (ground_truth, found) == before
    assert capsys.readouterr() == ('', '')


def test_a_file_scores_as_its_content_does(tmp_path):
    path = tmp_path / 'annotations.json'
    path.write_text(json.dumps(_annotations(_TWO)))
    found = _perfect(_TWO)[:2]
    assert evaluate_coco(str(path), found) == evaluate_coco(_annotations(_TWO), found)


def test_a_missing_annotation_file_is_named(tmp_path):
    with pytest.raises(UserError, match='nowhere.json'):
        evaluate_coco(str(tmp_path / 'nowhere.json'), [])
