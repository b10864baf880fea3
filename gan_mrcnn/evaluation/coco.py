# SPDX-License-Identifier: Apache-2.0
"""Average precision of boxes and masks as COCO defines it, the measure of all the paper's tables.

A thin layer over pycocotools that closes three gaps: images without a prediction count, an empty
list of predictions scores zero instead of crashing, and mask AP sorts predictions into small,
medium and large by the area of the mask, not of the box (as maskrcnn-benchmark, the paper's code
base, and Detectron2 do).
"""

import contextlib
import copy
import io
import json

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gan_mrcnn.errors import UserError

# Where each figure stands in COCOeval.stats; AR is the average recall at 100 detections.
_STATS = {'AP': 0, 'AP50': 1, 'AP75': 2, 'APS': 3, 'APM': 4, 'APL': 5, 'AR': 8}


def _load_annotations(annotations):
    if isinstance(annotations, dict):
        return copy.deepcopy(annotations)
    try:
        with open(annotations, encoding='utf-8') as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f'cannot read annotations from {annotations}: {error}; give a COCO annotation file'
        ) from error


def _index(dataset):
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _check(dataset, predictions):
    images = {image['id'] for image in dataset['images']}
    categories = {category['id'] for category in dataset['categories']}
    for prediction in predictions:
        if prediction['image_id'] not in images:
            raise UserError(
                f'predictions: image_id {prediction["image_id"]} is not in the '
                'annotations; evaluate on the split that was predicted'
            )
        if prediction['category_id'] not in categories:
            raise UserError(
                f'predictions: category_id {prediction["category_id"]} is not in the '
                f'annotations; they have {sorted(categories)}'
            )
        if 'segmentation' not in prediction or 'bbox' not in prediction:
            raise UserError(
                f'predictions: one of image {prediction["image_id"]} lacks its box or '
                'mask; give COCO results with both'
            )


def _score(truth, predictions, iou_type):
    # loadRes writes into what it is given and takes a result's area from its box if it finds one.
    left_out = 'bbox' if iou_type == 'segm' else 'segmentation'
    predictions = [
        {key: value for key, value in prediction.items() if key != left_out}
        for prediction in predictions
    ]
    if predictions:
        found = truth.loadRes(predictions)
    else:
        found = _index({**truth.dataset, 'annotations': []})
    evaluation = COCOeval(truth, found, iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    figures = {name: float(evaluation.stats[place]) for name, place in _STATS.items()}
    # COCOeval says -1 where the ground truth has no object of that size.
    return {name: None if figure < 0 else figure for name, figure in figures.items()}


def evaluate_coco(annotations, predictions):
    """Scores predictions against all images of the ground truth.

    Args:
      annotations: path of a COCO annotation file, or its content as a dict; unchanged.
      predictions: list of COCO results with 'bbox' and 'segmentation'; unchanged. Of each image
        and class, the 100 best-scored ones count.

    Returns:
      {'box': figures, 'mask': figures} with figures AP, AP50, AP75, APS, APM, APL and AR (at 100
      detections), floats in [0, 1], or None where the ground truth has no such object. Nothing is
      printed.

    Raises:
      UserError: the annotations cannot be read, or a prediction names an image or category that
        they do not have, or lacks its box or mask.
    """
    dataset = _load_annotations(annotations)
    _check(dataset, predictions)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _index(dataset)
        return {
            'box': _score(truth, predictions, 'bbox'),
            'mask': _score(truth, predictions, 'segm'),
        }
