# SPDX-License-Identifier: Apache-2.0
"""Average precision of boxes, masks and boundaries as COCO defines it: the paper's tables.

Three choices where pycocotools leaves one: images without a prediction count, an empty list of
predictions scores zero, and mask AP sorts predictions into small, medium and large by the area of
the mask, not of the box (as maskrcnn-benchmark, the paper's code base, and Detectron2 do).
"""

import copy
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np

from gan_mrcnn.metrics import matching
from gan_mrcnn.utils import files

# Threshold (None: the mean of all) and range of area of each figure; AR is the average recall.
_FIGURES = {
    'AP': (None, 'all'),
    'AP50': (0.5, 'all'),
    'AP75': (0.75, 'all'),
    'APS': (None, 'small'),
    'APM': (None, 'medium'),
    'APL': (None, 'large'),
}
FIGURES = (*_FIGURES, 'AR')
Figures = dict[str, Optional[float]]


def load_annotations(annotations) -> dict[str, Any]:
    """COCO annotations from a path, or a copy of those given.

    Raises:
      UserError: the file cannot be read.
    """
    if isinstance(annotations, dict):
        return copy.deepcopy(annotations)
    return files.load_json(annotations, 'a COCO annotation file')


def figures(
    matches: matching.Matches,
    weights: Optional[np.ndarray] = None,
    names: Sequence[str] = FIGURES,
) -> tuple[Figures, list[Figures]]:
    """AP and the like of all classes, and of each.

    Args:
      matches: of one kind.
      weights: how often each image counts, see `Matches.curve`.
      names: which figures.

    Returns:
      Figures by name, and the same for each class in order. None where no object exists;
      classes without one do not count in the mean.
    """
    per_class: list[Figures] = []
    for class_id in matches.class_ids:
        areas = {_FIGURES[name][1] if name in _FIGURES else 'all' for name in names}
        curves = {
            area: matches.curve(class_id, matching.AREAS.index(area), weights) for area in areas
        }
        per_class.append({name: _figure(name, curves) for name in names})
    overall = {}
    for name in names:
        known = [one[name] for one in per_class if one[name] is not None]
        overall[name] = float(np.mean(known)) if known else None
    return overall, per_class


def _figure(name: str, curves) -> Optional[float]:
    threshold, area = _FIGURES.get(name, (None, 'all'))
    if curves[area] is None:
        return None
    precision, recall = curves[area]
    if name == 'AR':
        return float(np.mean(recall))
    if threshold is not None:
        precision = precision[np.isclose(matching.THRESHOLDS, threshold)]
    return float(np.mean(precision))


def evaluate_coco(
    annotations, predictions, max_detections: int = matching.MAX_DETECTIONS
) -> dict[str, Figures]:
    """Scores predictions against all images of the ground truth.

    Args:
      annotations: path of a COCO annotation file, or its content as a dict; unchanged.
      predictions: list of COCO results with 'bbox' and 'segmentation', valid ones (see
        `predictions.load_predictions`); unchanged.
      max_detections: how many of each image and class count, the best-scored ones.

    Returns:
      {'box': figures, 'mask': figures} with `FIGURES`, floats in [0, 1], or None where the ground
      truth has no such object. Nothing is printed.

    Raises:
      UserError: the annotations cannot be read.
    """
    ground_truth = load_annotations(annotations)
    by_kind = matching.match(
        ground_truth, predictions, ('box', 'mask'), max_detections=max_detections
    )
    return {kind: figures(matches)[0] for kind, matches in by_kind.items()}
