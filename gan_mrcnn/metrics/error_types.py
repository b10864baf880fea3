# SPDX-License-Identifier: Apache-2.0
"""What kind of mistake each prediction is, and how much AP each kind costs.

Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors (2020), on masks, with
its thresholds: an overlap of 0.5 finds an object, one below 0.1 is background. A prediction that
finds nothing new is, in this order:

- localization: 0.1 to 0.5 with an object of its class;
- classification: at least 0.5 with an object of another class;
- duplicate: at least 0.5 with an object of its class that a better one has found;
- background: at most 0.1 with any object;
- both: the rest, which is 0.1 to 0.5 with objects of other classes.

An object that is not found, and is not what a localization or classification mistake meant, is
missed. The cost of a kind is the AP at 0.5 that would be gained if that kind alone were mended.

Shapes: D predictions, at most 100 per image, and G objects without crowds, of all images.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
from pycocotools import mask as mask_api

from gan_mrcnn.metrics import matching, parallel

FOUND, BACKGROUND = 0.5, 0.1
KINDS = ('classification', 'localization', 'both', 'duplicate', 'background', 'missed')
# What `Errors.kind` has beside places in `KINDS`.
RIGHT, IGNORED = -1, -2
MAX_DETECTIONS = 100


@dataclasses.dataclass
class Errors:
    """Every prediction and object, sorted by image, predictions then by falling score.

    prediction: [D] place in the list of predictions.
    image: [D] image id.
    class_id, score: [D].
    kind: [D] place in `KINDS`, or `RIGHT` or `IGNORED`.
    target: [D] place among the objects of the one that is found, meant or mistaken; -1 for none.
    overlap: [D] mask IoU with that one.
    truth: [G] place in the annotations.
    truth_image, truth_class: [G].
    found, missed: [G] bool; an object that is neither was meant by a mistake.
    """

    prediction: np.ndarray
    image: np.ndarray
    class_id: np.ndarray
    score: np.ndarray
    kind: np.ndarray
    target: np.ndarray
    overlap: np.ndarray
    truth: np.ndarray
    truth_image: np.ndarray
    truth_class: np.ndarray
    found: np.ndarray
    missed: np.ndarray


def classify(
    truth: dict[str, Any],
    predictions: Sequence[dict[str, Any]],
    title: str = '',
    num_processes: Optional[int] = None,
) -> Errors:
    """Sorts all predictions and objects.

    Args:
      truth: COCO annotations with run lengths.
      predictions: COCO results with the same category ids.
      title: of the progress bar, '' for none.
      num_processes: at most; None for as many as there are cores.
    """
    objects = parallel.by_image({**one, 'place': i} for i, one in enumerate(truth['annotations']))
    found = parallel.by_image({**one, 'place': i} for i, one in enumerate(predictions))
    ids = sorted(image['id'] for image in truth['images'])
    jobs = [
        [(i, objects.get(i, []), found.get(i, [])) for i in ids[k : k + parallel.CHUNK]]
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
        first += len(image['truth'])
    return Errors(**{name: np.concatenate([x[name] for x in images]) for name in images[0]})


def _classify_part(job) -> list[dict[str, np.ndarray]]:
    return [classify_image(*image) for image in job]


def classify_image(image_id, annotations, predictions) -> dict[str, np.ndarray]:
    """The rows of `Errors` for one image; annotations and predictions have their 'place', too."""
    objects = [one for one in annotations if not one['iscrowd']]
    crowds = [one for one in annotations if one['iscrowd']]
    predictions = sorted(predictions, key=lambda one: -one['score'])[:MAX_DETECTIONS]
    classes = np.array([one['category_id'] for one in predictions], int)
    truth_classes = np.array([one['category_id'] for one in objects], int)
    ious = _ious(predictions, objects, False)
    same = classes[:, None] == truth_classes
    kind = np.full(len(predictions), KINDS.index('background'))
    target = np.full(len(predictions), -1)
    found = _find(ious * same, kind, target)
    if crowds:
        in_crowd = (_ious(predictions, crowds, True) > FOUND) & (
            classes[:, None] == np.array([one['category_id'] for one in crowds])
        )
        kind[in_crowd.any(1) & (kind != RIGHT)] = IGNORED
    if objects:
        _name_mistakes(ious, same, found, kind, target)
    meant = np.isin(kind, [KINDS.index('localization'), KINDS.index('classification')])
    missed = ~found
    missed[target[meant]] = False
    rows = np.arange(len(predictions))
    return {
        'prediction': np.array([one['place'] for one in predictions], int),
        'image': np.full(len(predictions), image_id),
        'class_id': classes,
        'score': np.array([one['score'] for one in predictions], float),
        'kind': kind,
        'target': target,
        'overlap': np.where(target >= 0, ious[rows, target], 0.0) if objects else 0.0 * rows,
        'truth': np.array([one['place'] for one in objects], int),
        'truth_image': np.full(len(objects), image_id),
        'truth_class': truth_classes,
        'found': found,
        'missed': missed,
    }


def _ious(predictions, objects, are_crowds: bool) -> np.ndarray:
    if not predictions or not objects:
        return np.zeros((len(predictions), len(objects)))
    masks = [[one['segmentation'] for one in side] for side in (predictions, objects)]
    return np.asarray(mask_api.iou(*masks, [int(are_crowds)] * len(objects)))


def _find(ious, kind, target) -> np.ndarray:
    """Marks predictions, best score first, that find an object; gives which objects are found."""
    free = ious.copy()
    found = np.zeros(ious.shape[1], bool)
    for row in range(len(free)):
        column = free[row].argmax() if free.shape[1] else -1
        if column >= 0 and free[row, column] >= FOUND:
            kind[row], target[row], found[column] = RIGHT, column, True
            free[:, column] = 0
    return found


def _name_mistakes(ious, same, found, kind, target) -> None:
    wrong = kind == KINDS.index('background')
    own, other = ious * same, ious * ~same
    tests = (
        ('localization', own, (own.max(1) >= BACKGROUND) & (own.max(1) <= FOUND)),
        ('classification', other, other.max(1) >= FOUND),
        ('duplicate', own * found, (own * found).max(1) >= FOUND),
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
    is_true = errors.kind == RIGHT
    counted = errors.kind != IGNORED
    before = _average_precision(errors, errors.class_id, is_true, counted)
    mended = _mended(errors)
    counts, costs = {}, {}
    for place, name in enumerate(KINDS):
        rows = errors.kind == place
        class_id, true, kept = errors.class_id.copy(), is_true.copy(), counted.copy()
        if name in ('classification', 'localization'):
            class_id[rows & mended] = errors.truth_class[errors.target[rows & mended]]
            true |= rows & mended
            kept &= ~rows | mended
        else:
            kept &= ~rows
        left_out = errors.missed if name == 'missed' else None
        after = _average_precision(errors, class_id, true, kept, left_out)
        counts[name] = int(errors.missed.sum() if name == 'missed' else rows.sum())
        costs[name] = None if before is None or after is None else max(0.0, after - before)
    return {'AP50': before, 'counts': counts, 'costs': costs}


def _mended(errors: Errors) -> np.ndarray:
    """Of the mistakes that mean an object nobody found, the best-scored one for each object."""
    meant = np.isin(errors.kind, [KINDS.index('localization'), KINDS.index('classification')])
    rows = np.flatnonzero(meant)
    rows = rows[~errors.found[errors.target[rows]]]
    _, first = np.unique(errors.target[rows], return_index=True)
    mended = np.zeros(len(errors.kind), bool)
    mended[rows[first]] = True
    return mended


def _average_precision(errors, class_id, is_true, kept, left_out=None) -> Optional[float]:
    """AP at one threshold, the mean of the classes that have objects.

    Where `left_out` takes all objects of a class, it scores zero, as in TIDE's code.
    """
    there = np.ones(len(errors.truth), bool) if left_out is None else ~left_out
    figures = []
    for number in np.unique(errors.truth_class):
        total = np.count_nonzero(there & (errors.truth_class == number))
        rows = np.flatnonzero((class_id == number) & kept)
        rows = rows[np.argsort(-errors.score[rows], kind='mergesort')]
        true = np.cumsum(is_true[rows], dtype=float)[None]
        false = np.cumsum(~is_true[rows], dtype=float)[None]
        figures.append(np.mean(matching.interpolate(true, false, total)[0]) if total else 0.0)
    return float(np.mean(figures)) if figures else None


def image_qualities(errors: Errors, image_ids: Sequence[int], threshold: float) -> dict[int, float]:
    """How well each image is segmented by predictions of at least that score, from 0 to 1.

    Kirillov et al., Panoptic Segmentation (2019): the sum of the overlaps of found objects, over
    the found ones plus half of the false and half of the missed ones. 1 where there is nothing on
    both sides. A prediction below the threshold takes nothing from one above, so nothing is matched
    anew.
    """
    counted = (errors.score >= threshold) & (errors.kind != IGNORED)
    right = counted & (errors.kind == RIGHT)
    qualities = {}
    for image_id in image_ids:
        rows, own = errors.image == image_id, errors.truth_image == image_id
        total = np.count_nonzero(rows & counted) + np.count_nonzero(own)
        overlap = errors.overlap[rows & right].sum()
        qualities[image_id] = float(2 * overlap / total) if total else 1.0
    return qualities
