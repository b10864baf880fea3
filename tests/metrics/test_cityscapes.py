"""The official Cityscapes evaluation, fed from our list, on images with known figures."""

import cv2
import numpy as np
import pytest

from gan_mrcnn.data.readers import cityscapes
from gan_mrcnn.metrics import cityscapes as cityscapes_metrics
from tests.metrics import shapes

CAR, PERSON = 3, 1  # Places among the ten classes.
CAR_ID, PERSON_ID, CARAVAN_ID = 26, 24, 29


def label_file(folder, number, objects):
    """A label image that has `objects`, pairs of mask and number, under its image's id."""
    labels = np.zeros((64, 80), np.uint16)
    for mask, value in objects:
        labels[mask > 0] = value
    path = folder / f'town_{number:06d}_000019_gtFine_instanceIds.png'
    assert cv2.imwrite(str(path), labels)
    return {number: path}


def big(x=0):
    return shapes.rectangle(0, x, 40, x + 30)


def test_the_ground_truth_scores_one(tmp_path):
    files = {
        **label_file(tmp_path, 1, [(big(), 26000), (big(40), 24000)]),
        **label_file(tmp_path, 2, [(big(), 26005)]),
    }
    found = [
        shapes.result(1, big(), 0.9, CAR),
        shapes.result(1, big(40), 0.8, PERSON),
        shapes.result(2, big(), 0.7, CAR),
    ]
    figures = cityscapes_metrics.evaluate(files, found, num_processes=1)
    assert (figures['AP'], figures['AP50'], figures['AP75']) == pytest.approx((1, 1, 1))
    assert figures['per_class']['car'] == pytest.approx({'AP': 1, 'AP50': 1, 'AP75': 1})
    # No object of the class: no figure, and it does not count in the mean.
    assert figures['per_class']['bicycle'] == {'AP': None, 'AP50': None, 'AP75': None}
    assert list(figures['per_class']) == list(cityscapes.Cityscapes.class_names)


def test_an_overlap_passes_the_thresholds_below_it(tmp_path):
    # 24 of 30 columns: an overlap of 0.8 passes .50 to .75 of the ten (the official code wants more
    # than the threshold).
    files = label_file(tmp_path, 1, [(big(), 26000)])
    found = [shapes.result(1, shapes.rectangle(0, 0, 40, 24), 0.9, CAR)]
    figures = cityscapes_metrics.evaluate(files, found, num_processes=1)['per_class']['car']
    assert figures == pytest.approx({'AP': 0.6, 'AP50': 1, 'AP75': 1})


def test_a_group_is_neither_true_nor_false_positive(tmp_path):
    files = label_file(tmp_path, 1, [(big(), 26), (big(40), 26000)])
    found = [shapes.result(1, big(), 0.9, CAR), shapes.result(1, big(40), 0.5, CAR)]
    figures = cityscapes_metrics.evaluate(files, found, num_processes=1)
    assert figures['per_class']['car']['AP'] == pytest.approx(1)


def test_caravans_have_a_figure_and_are_not_in_the_average(tmp_path):
    files = label_file(tmp_path, 1, [(big(), CARAVAN_ID * 1000), (big(40), 26000)])
    figures = cityscapes_metrics.evaluate(
        files, [shapes.result(1, big(40), 0.9, CAR)], num_processes=1
    )
    assert figures['per_class']['caravan']['AP'] == pytest.approx(0)
    assert figures['AP'] == pytest.approx(1)


def test_images_without_predictions_count(tmp_path):
    files = {
        i: path for n in (1, 2) for i, path in label_file(tmp_path, n, [(big(), 26000)]).items()
    }
    found = [shapes.result(1, big(), 0.9, CAR)]
    figures = cityscapes_metrics.evaluate(files, found, num_processes=1)
    # Precision 1 up to recall 1/2; the official area under the curve is a half.
    assert figures['per_class']['car']['AP'] == pytest.approx(0.5, abs=0.01)


def test_files_are_as_the_benchmark_wants_them(tmp_path):
    found = [shapes.result(1, big(), 0.75, CAR), shapes.result(1, big(40), 0.5, PERSON)]
    path = cityscapes_metrics.write_predictions(tmp_path, 'town_1', found)
    assert path.read_text() == f'town_1_0.png {CAR_ID} 0.75\ntown_1_1.png {PERSON_ID} 0.5'
    mask = cv2.imread(str(tmp_path / 'town_1_1.png'), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(mask > 0, big(40) > 0)
