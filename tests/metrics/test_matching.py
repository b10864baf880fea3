"""The compact matches give, figure for figure, what plain pycocotools gives."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gan_mrcnn.metrics import coco, matching, parallel
from tests.metrics import shapes


def plain(ground_truth, results, kind):
    """pycocotools on its own: precision [T, R, K, A, M], recall [T, K, A, M], its 12 figures."""
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO()
        annotations.dataset = ground_truth
        annotations.createIndex()
        other = 'segmentation' if kind == 'box' else 'bbox'
        found = annotations.loadRes(
            [{k: v for k, v in one.items() if k != other} for one in results]
        )
        evaluation = COCOeval(annotations, found, 'bbox' if kind == 'box' else 'segm')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.eval['precision'], evaluation.eval['recall'], evaluation.stats


@pytest.mark.parametrize('seed', range(4))
def test_curves_and_figures_are_those_of_pycocotools(seed):
    ground_truth, results = shapes.random_case(seed)
    found = matching.match(ground_truth, results, ('box', 'mask'))
    for kind, matches in found.items():
        precision, recall, stats = plain(ground_truth, results, kind)
        for class_id in (1, 2, 3):
            for area in range(4):
                curve = matches.curve(class_id, area)
                if curve is None:
                    assert (precision[:, :, class_id - 1, area, -1] == -1).all()
                    continue
                np.testing.assert_array_equal(curve[0], precision[:, :, class_id - 1, area, -1])
                np.testing.assert_array_equal(curve[1], recall[:, class_id - 1, area, -1])
        figures, _ = coco.figures(matches)
        places = {'AP': 0, 'AP50': 1, 'AP75': 2, 'APS': 3, 'APM': 4, 'APL': 5, 'AR': 8}
        for name, place in places.items():
            expected = None if stats[place] < 0 else pytest.approx(stats[place], abs=1e-12)
            assert figures[name] == expected


def test_more_than_a_hundred_predictions_of_an_image():
    mask = shapes.rectangle(10, 10, 30, 30)
    ground_truth = shapes.ground_truth([[(mask, 1)]])
    # The correct one is the 101st, and does not count.
    results = [shapes.result(1, shapes.rectangle(40, 40, 50, 50), 0.9) for _ in range(100)]
    results.append(shapes.result(1, mask, 0.5))
    assert coco.figures(matching.match(ground_truth, results)['mask'])[0]['AR'] == 0.0
    assert plain(ground_truth, results, 'mask')[2][8] == 0.0
    for kind, more in matching.match(ground_truth, results, max_detections=101).items():
        assert coco.figures(more)[0]['AR'] == 1.0, kind
    assert matching.counted(None) == matching.counted(50) == 100 and matching.counted(350) == 350


def test_a_weight_is_so_many_copies_of_an_image():
    ground_truth, results = shapes.random_case(11, num_images=6)
    weights = np.array([2, 0, 1, 3, 1, 0])
    copies, copied = {**ground_truth, 'images': [], 'annotations': []}, []
    for image, weight in zip(ground_truth['images'], weights):
        for copy in range(weight):
            image_id = 100 * image['id'] + copy
            copies['images'].append({**image, 'id': image_id})
            for one in ground_truth['annotations']:
                if one['image_id'] == image['id']:
                    number = len(copies['annotations']) + 1
                    copies['annotations'].append({**one, 'image_id': image_id, 'id': number})
            copied += [
                {**one, 'image_id': image_id} for one in results if one['image_id'] == image['id']
            ]
    for kind in ('box', 'mask', 'boundary'):
        weighted, _ = coco.figures(matching.match(ground_truth, results, (kind,))[kind], weights)
        repeated, _ = coco.figures(matching.match(copies, copied, (kind,))[kind])
        assert weighted['AP'] is not None
        assert weighted == pytest.approx(repeated, abs=1e-12)


def test_several_processes_give_the_same(monkeypatch):
    ground_truth, results = shapes.random_case(5, num_images=8)
    alone = matching.match(ground_truth, results, num_processes=1)
    monkeypatch.setattr(parallel, 'CHUNK', 3)
    monkeypatch.setattr(parallel, 'FEW', 0)
    together = matching.match(ground_truth, results, num_processes=2)
    for kind, matches in alone.items():
        for name, value in vars(matches).items():
            np.testing.assert_array_equal(value, getattr(together[kind], name))


def test_shuffled_classes_score_what_they_must():
    # Two classes that are always taken for each other, and one that is correct.
    masks = [shapes.rectangle(5, 5 + 25 * i, 45, 25 + 25 * i) for i in range(3)]
    objects = [(mask, class_id) for class_id, mask in enumerate(masks, 1)]
    ground_truth = shapes.ground_truth([objects], 3)
    results = [shapes.result(1, mask, 0.9, c) for mask, c in zip(masks, (2, 1, 3))]
    for kind, matches in matching.match(ground_truth, results).items():
        figures, per_class = coco.figures(matches)
        assert [one['AP'] for one in per_class] == pytest.approx([0, 0, 1]), kind
        assert figures['AP'] == pytest.approx(1 / 3)


def test_category_ids_with_gaps():
    ground_truth, results = shapes.random_case(7)
    own = {1: 3, 2: 18, 3: 90}
    rename = lambda entries: [{**x, 'category_id': own[x['category_id']]} for x in entries]  # noqa: E731
    renamed = {
        **ground_truth,
        'annotations': rename(ground_truth['annotations']),
        'categories': [{**x, 'id': own[x['id']]} for x in ground_truth['categories']],
    }
    figures = coco.evaluate_coco(renamed, rename(results))
    assert figures == coco.evaluate_coco(ground_truth, results) and figures['mask']['AP'] > 0
