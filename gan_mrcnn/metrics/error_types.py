# SPDX-License-Identifier: Apache-2.0
"""What kind of error each prediction is, and how much AP each kind costs.

Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors (2020), on masks, with
its thresholds: an overlap of 0.5 matches an object, one below 0.1 is background. A prediction that
matches no further object is, in this order:

- localization: 0.1 to 0.5 with an object of its class;
- classification: at least 0.5 with an object of another class;
- duplicate: at least 0.5 with an object of its class that a better one has matched;
- background: at most 0.1 with any object;
- both: the rest, which is 0.1 to 0.5 with objects of other classes.

An object that is neither matched nor the target of a localization or classification error is
missed. The cost of a kind is the AP at 0.5 that would be gained if that kind alone were fixed.

Shapes: D predictions, at most 100 per image, and G objects (gt) without crowds, of all images.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
from pycocotools import mask as mask_api

from gan_mrcnn.metrics import matching, parallel

FOREGROUND, BACKGROUND = 0.5, 0.1
KINDS = ('classification', 'localization', 'both', 'duplicate', 'background', 'missed')
# What `Errors.kind` has beside indices into `KINDS`.
CORRECT, IGNORED = -1, -2


@dataclasses.dataclass
class Errors:
    """Every prediction and object, sorted by image, predictions then by falling score.

    prediction: [D] index into the list of predictions.
    image: [D] image id.
    class_id, score: [D].
    kind: [D] index into `KINDS`, or `CORRECT` or `IGNORED`.
    target: [D] which of the G objects is matched or confused; -1 for none.
    overlap: [D] mask IoU with it.
    gt: [G] index into the annotations.
    gt_image, gt_class: [G] image id, category id.
    gt_matched, gt_missed: [G] bool; an object that is neither is the target of an error.
    """

    prediction: np.ndarray
    image: np.ndarray
    class_id: np.ndarray
    score: np.ndarray
    kind: np.ndarray
    target: np.ndarray
    overlap: np.ndarray
    gt: np.ndarray
    gt_image: np.ndarray
    gt_class: np.ndarray
    gt_matched: np.ndarray
    gt_missed: np.ndarray


def classify(
    ground_truth: dict[str, Any],
    predictions: Sequence[dict[str, Any]],
    title: str = '',
    num_processes: Optional[int] = None,
    max_detections: int = matching.MAX_DETECTIONS,
) -> Errors:
    """Assigns a kind to every prediction and object.

    Args:
      ground_truth: COCO annotations with run lengths.
      predictions: COCO results with the same category ids.
      title: of the progress bar, '' for none.
      num_processes: at most; None for as many as there are cores.
      max_detections: how many predictions of an image count, the best-scored ones.
    """
    objects = _numbered_by_image(ground_truth['annotations'])
    predicted = _numbered_by_image(predictions)
    ids = sorted(image['id'] for image in ground_truth['images'])
    jobs = [
        [
            (i, objects.get(i, []), predicted.get(i, []), max_detections)
            for i in ids[k : k + parallel.CHUNK]
        ]
        for k in range(0, len(ids), parallel.CHUNK)
    ]
    few = len(predictions) < parallel.FEW
    parts = parallel.map_jobs(
        _classify_part, jobs, [len(job) for job in jobs], title, 1 if few else num_processes
    )
    images = [image for part in parts for image in part]
    first = 0
    for image in images:
        image['target'][image['target'] >= 0] += first
        first += len(image['gt'])
    return Errors(**{name: np.concatenate([x[name] for x in images]) for name in images[0]})


def _numbered_by_image(entries) -> dict[int, list[dict[str, Any]]]:
    """Entries by image id, each with its 'index' in the whole list."""
    return parallel.by_image({**one, 'index': i} for i, one in enumerate(entries))


def _classify_part(job) -> list[dict[str, np.ndarray]]:
    return [classify_image(*image) for image in job]


def classify_image(image_id, annotations, predictions, max_detections) -> dict[str, np.ndarray]:
    """The rows of `Errors` for one image; annotations and predictions have an 'index', too."""
    objects = [one for one in annotations if not one['iscrowd']]
    crowds = [one for one in annotations if one['iscrowd']]
    predictions = sorted(predictions, key=lambda one: -one['score'])[:max_detections]
    classes = np.array([one['category_id'] for one in predictions], int)
    gt_classes = np.array([one['category_id'] for one in objects], int)
    ious = _ious(predictions, objects, False)
    same = classes[:, None] == gt_classes
    kind = np.full(len(predictions), KINDS.index('background'))
    target = np.full(len(predictions), -1)
    matched = _match(ious * same, kind, target)
    if crowds:
        in_crowd = (_ious(predictions, crowds, True) > FOREGROUND) & (
            classes[:, None] == np.array([one['category_id'] for one in crowds])
        )
        kind[in_crowd.any(1) & (kind != CORRECT)] = IGNORED
    if objects:
        _name_errors(ious, same, matched, kind, target)
    missed = ~matched
    missed[target[_has_target(kind)]] = False
    rows = np.arange(len(predictions))
    return {
        'prediction': np.array([one['index'] for one in predictions], int),
        'image': np.full(len(predictions), image_id),
        'class_id': classes,
        'score': np.array([one['score'] for one in predictions], float),
        'kind': kind,
        'target': target,
        'overlap': np.where(target >= 0, ious[rows, target], 0.0) if objects else 0.0 * rows,
        'gt': np.array([one['index'] for one in objects], int),
        'gt_image': np.full(len(objects), image_id),
        'gt_class': gt_classes,
        'gt_matched': matched,
        'gt_missed': missed,
    }


def _ious(predictions, objects, are_crowds: bool) -> np.ndarray:
    if not predictions or not objects:
        return np.zeros((len(predictions), len(objects)))
    masks = [[one['segmentation'] for one in side] for side in (predictions, objects)]
    return np.asarray(mask_api.iou(*masks, [int(are_crowds)] * len(objects)))


def _has_target(kind) -> np.ndarray:
    """Whether an error of that kind is about one object, which then is not missed."""
    return np.isin(kind, [KINDS.index('localization'), KINDS.index('classification')])


def _match(ious, kind, target) -> np.ndarray:
    """Marks predictions that match an object, best score first; returns which objects are."""
    free = ious.copy()
    matched = np.zeros(ious.shape[1], bool)
    for row in range(len(free)):
        column = free[row].argmax() if free.shape[1] else -1
        if column >= 0 and free[row, column] >= FOREGROUND:
            kind[row], target[row], matched[column] = CORRECT, column, True
            free[:, column] = 0
    return matched


def _name_errors(ious, same, matched, kind, target) -> None:
    wrong = kind == KINDS.index('background')
    own, other = ious * same, ious * ~same
    tests = (
        ('localization', own, (own.max(1) >= BACKGROUND) & (own.max(1) <= FOREGROUND)),
        ('classification', other, other.max(1) >= FOREGROUND),
        ('duplicate', own * matched, (own * matched).max(1) >= FOREGROUND),
        ('background', None, ious.max(1) <= BACKGROUND),
        ('both', ious, np.ones(len(ious), bool)),
    )
    for name, overlaps, holds in tests:
        rows = wrong & holds
        kind[rows] = KINDS.index(name)
        if overlaps is not None:
            target[rows] = overlaps[rows].argmax(1)
        wrong &= ~holds


def summarize(errors: Errors) -> dict[str, Any]:
    """Numbers and costs of the kinds.

    Returns:
      'AP50' of the predictions as they are; 'counts' and 'costs' by kind, the cost in AP50 of masks
      (0 to 1), never below zero.
    """
    is_true = errors.kind == CORRECT
    counted = errors.kind != IGNORED
    before = _average_precision(errors, errors.class_id, is_true, counted)
    fixed = _fixed(errors)
    counts, costs = {}, {}
    for place, name in enumerate(KINDS):
        rows = errors.kind == place
        class_id, true, kept = errors.class_id.copy(), is_true.copy(), counted.copy()
        if name in ('classification', 'localization'):
            class_id[rows & fixed] = errors.gt_class[errors.target[rows & fixed]]
            true |= rows & fixed
            kept &= ~rows | fixed
        else:
            kept &= ~rows
        excluded = errors.gt_missed if name == 'missed' else None
        after = _average_precision(errors, class_id, true, kept, excluded)
        counts[name] = int(errors.gt_missed.sum() if name == 'missed' else rows.sum())
        costs[name] = None if before is None or after is None else max(0.0, after - before)
    return {'AP50': before, 'counts': counts, 'costs': costs}


def _fixed(errors: Errors) -> np.ndarray:
    """Of the errors whose target is not matched, the best-scored one for each target."""
    rows = np.flatnonzero(_has_target(errors.kind))
    rows = rows[~errors.gt_matched[errors.target[rows]]]
    _, first = np.unique(errors.target[rows], return_index=True)
    fixed = np.zeros(len(errors.kind), bool)
    fixed[rows[first]] = True
    return fixed


def _average_precision(errors, class_id, is_true, kept, excluded=None) -> Optional[float]:
    """AP at one threshold, the mean of the classes that have objects.

    Objects that `excluded` has do not count. Where that is all of a class, it would have no AP:
    they are then taken as found, behind everything that was predicted. (TIDE's code has zero there,
    so that a system that detects nothing would lose nothing by what it misses.)
    """
    counted = np.ones(len(errors.gt), bool) if excluded is None else ~excluded
    figures = []
    for number in np.unique(errors.gt_class):
        own = errors.gt_class == number
        total = np.count_nonzero(counted & own)
        rows = np.flatnonzero((class_id == number) & kept)
        rows = rows[np.argsort(-errors.score[rows], kind='mergesort')]
        is_correct = is_true[rows]
        if not total:
            total = np.count_nonzero(own)
            is_correct = np.append(is_correct, np.ones(total, bool))
        true = np.cumsum(is_correct, dtype=float)[None]
        false = np.cumsum(~is_correct, dtype=float)[None]
        figures.append(np.mean(matching.interpolate(true, false, total)[0]))
    return float(np.mean(figures)) if figures else None


def image_qualities(errors: Errors, image_ids: Sequence[int], threshold: float) -> dict[int, float]:
    """How well each image is segmented by predictions of at least that score, from 0 to 1.

    Kirillov et al., Panoptic Segmentation (2019): the sum of the overlaps of matched objects,
    over true positives plus half of the false positives and half of the false negatives; 1 without
    any of these. A prediction below the threshold takes no object from one above it, so no new
    matching is needed.
    """
    counted = (errors.score >= threshold) & (errors.kind != IGNORED)
    correct = counted & (errors.kind == CORRECT)
    qualities = {}
    for image_id in image_ids:
        rows, own = errors.image == image_id, errors.gt_image == image_id
        total = np.count_nonzero(rows & counted) + np.count_nonzero(own)
        overlap = errors.overlap[rows & correct].sum()
        qualities[image_id] = float(2 * overlap / total) if total else 1.0
    return qualities
