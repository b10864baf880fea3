# SPDX-License-Identifier: Apache-2.0
"""Matches predictions with objects by pycocotools, for all images and as compact arrays.

pycocotools compares image by image, and only its last step, the precision-recall curve, needs
all of them. So images are spread over processes, and what comes back is kept as one row per
prediction. From these rows come AP, curves and calibration, and AP on resampled images, without
comparing masks again.

Shapes: D predictions and G objects of all images; T = 10 IoU thresholds, R = 101 recalls, A = 4
ranges of area (all, small, medium, large).
"""

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from gan_mrcnn.metrics import boundary, parallel

KINDS = ('box', 'mask', 'boundary')
AREAS = ('all', 'small', 'medium', 'large')
THRESHOLDS = Params('segm').iouThrs
RECALLS = Params('segm').recThrs
# Best-scored predictions of an image and class that count by COCO's rule.
MAX_DETECTIONS = Params('segm').maxDets[-1]


def counted(most_detections: Optional[int]) -> int:
    """How many predictions of an image and class count: 100, or all that a network gives if more.

    Where images hold hundreds of objects, COCO's rule would make of a perfect answer a bad one.

    Args:
      most_detections: of an image; None where not known.
    """
    return max(MAX_DETECTIONS, most_detections or 0)


@dataclasses.dataclass
class Matches:
    """Every prediction and every object of the ground truth (gt), for one kind of overlap.

    Predictions are sorted by image (in the order of the ids), then class, then falling score.

    class_ids: category ids of all classes, rising.
    num_images: images are numbered from 0, in the order of their ids.
    image, class_id: [D] int.
    score: [D].
    matched, ignored: [A, T, D] bool. What is ignored is neither true nor false positive.
    gt_image, gt_class: [G] int.
    gt_ignored: [A, G] bool: crowds, and what is of another size.
    """

    class_ids: tuple[int, ...]
    num_images: int
    image: np.ndarray
    class_id: np.ndarray
    score: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    gt_image: np.ndarray
    gt_class: np.ndarray
    gt_ignored: np.ndarray

    def curve(
        self, class_id: int, area: int = 0, weights: Optional[np.ndarray] = None
    ) -> Optional[tuple[np.ndarray, np.ndarray]]:
        """Precision and recall of one class, as `COCOeval.accumulate` has them.

        Args:
          class_id: one of `class_ids`.
          area: place in `AREAS`.
          weights: [num_images], how often each image counts; None for once. Equal to having the
            image that many times.

        Returns:
          Interpolated precision [T, R] and recall of all predictions [T]; None where the class has
          no object of that size.
        """
        rows = np.flatnonzero(self.class_id == class_id)
        rows = rows[np.argsort(-self.score[rows], kind='mergesort')]
        objects = (self.gt_class == class_id) & ~self.gt_ignored[area]
        if weights is None:
            weight, total = 1.0, np.count_nonzero(objects)
        else:
            weight, total = weights[self.image[rows]], weights[self.gt_image[objects]].sum()
        if not total:
            return None
        matched, ignored = self.matched[area][:, rows], self.ignored[area][:, rows]
        true = np.cumsum((matched & ~ignored) * weight, axis=1, dtype=float)
        false = np.cumsum((~matched & ~ignored) * weight, axis=1, dtype=float)
        return interpolate(true, false, total)


def interpolate(true: np.ndarray, false: np.ndarray, total: float) -> tuple[np.ndarray, np.ndarray]:
    """COCO's curve: the best precision at each recall or a higher one.

    Args:
      true, false: [T, D], true and false positives among the best 1, 2, ..., D predictions.
      total: number of objects.

    Returns:
      Precision [T, R] at `RECALLS`, recall of all predictions [T].
    """
    precision = np.zeros((len(true), len(RECALLS)))
    if not true.shape[1]:
        return precision, np.zeros(len(true))
    recall = true / total
    # The small number is pycocotools', for predictions that are all ignored.
    best = true / (false + true + np.spacing(1))
    best = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1]
    for row in range(len(true)):
        places = np.searchsorted(recall[row], RECALLS, side='left')
        reached = places < true.shape[1]
        precision[row, reached] = best[row, places[reached]]
    return precision, recall[:, -1]


def index(dataset: dict[str, Any]) -> COCO:
    """pycocotools' index of a COCO dataset in memory, made without its prints."""
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def match(
    ground_truth: dict[str, Any],
    predictions: Sequence[dict[str, Any]],
    kinds: Sequence[str] = KINDS,
    title: str = '',
    num_processes: Optional[int] = None,
    max_detections: int = MAX_DETECTIONS,
) -> dict[str, Matches]:
    """Compares predictions with the ground truth.

    Args:
      ground_truth: COCO annotations; unchanged.
      predictions: COCO results; unchanged.
      kinds: of overlap, out of `KINDS`.
      title: of the progress bar, '' for none.
      num_processes: at most; None for as many as there are cores.
      max_detections: how many predictions of an image and class count, the best-scored ones.

    Returns:
      `Matches` by kind. All images count, those without a prediction, too.
    """
    images = sorted(ground_truth['images'], key=lambda image: image['id'])
    objects = parallel.by_image(ground_truth['annotations'])
    predicted = parallel.by_image(predictions)
    jobs = []
    for first in range(0, len(images), parallel.CHUNK):
        part = images[first : first + parallel.CHUNK]
        dataset = {
            'images': part,
            'categories': ground_truth['categories'],
            'annotations': [one for image in part for one in objects.get(image['id'], ())],
        }
        results = [one for image in part for one in predicted.get(image['id'], ())]
        jobs.append((dataset, results, tuple(kinds), first, max_detections))
    few = len(predictions) < parallel.FEW
    sizes = [len(job[0]['images']) for job in jobs]
    parts = parallel.map_jobs(_match_part, jobs, sizes, title, 1 if few else num_processes)
    class_ids = tuple(sorted(category['id'] for category in ground_truth['categories']))
    return {kind: _join([part[kind] for part in parts], class_ids, len(images)) for kind in kinds}


def _match_part(job) -> dict[str, dict[str, np.ndarray]]:
    dataset, results, kinds, first, max_detections = job
    with contextlib.redirect_stdout(io.StringIO()):
        # Copies: pycocotools writes into both.
        ground_truth = index(
            {**dataset, 'annotations': [dict(one) for one in dataset['annotations']]}
        )
        return {
            kind: _pack(_evaluate(ground_truth, results, kind, max_detections), first)
            for kind in kinds
        }


def _evaluate(ground_truth: COCO, results, kind: str, max_detections: int) -> COCOeval:
    # loadRes takes a result's area from its box if it has one.
    other = 'segmentation' if kind == 'box' else 'bbox'
    results = [{k: v for k, v in result.items() if k != other} for result in results]
    empty = {**ground_truth.dataset, 'annotations': []}
    predictions = ground_truth.loadRes(results) if results else index(empty)
    if kind == 'boundary':
        evaluation = boundary.BoundaryEval(ground_truth, predictions)
    else:
        evaluation = COCOeval(ground_truth, predictions, 'bbox' if kind == 'box' else 'segm')
    evaluation.params.maxDets = [max_detections]
    evaluation.evaluate()
    return evaluation


def _pack(evaluation: COCOeval, first: int) -> dict[str, np.ndarray]:
    """Rows of one part; image numbers count from `first`."""
    image_ids, class_ids = evaluation.params.imgIds, evaluation.params.catIds
    shape = (len(class_ids), len(AREAS), len(image_ids))
    places = np.arange(len(evaluation.evalImgs)).reshape(shape)
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ('image', 'class_id', 'score', 'matched', 'ignored')
    }
    objects: dict[str, list[np.ndarray]] = {
        name: [] for name in ('gt_image', 'gt_class', 'gt_ignored')
    }
    for number in range(len(image_ids)):
        for row, class_id in enumerate(class_ids):
            areas = [evaluation.evalImgs[place] for place in places[row, :, number]]
            if areas[0] is None:
                continue
            count = len(areas[0]['dtIds'])
            columns['image'].append(np.full(count, first + number))
            columns['class_id'].append(np.full(count, class_id))
            columns['score'].append(np.array(areas[0]['dtScores'], float))
            columns['matched'].append(np.stack([a['dtMatches'] != 0 for a in areas]))
            columns['ignored'].append(np.stack([a['dtIgnore'].astype(bool) for a in areas]))
            count = len(areas[0]['gtIds'])
            objects['gt_image'].append(np.full(count, first + number))
            objects['gt_class'].append(np.full(count, class_id))
            objects['gt_ignored'].append(np.stack([np.asarray(a['gtIgnore'], bool) for a in areas]))
    none = {
        'matched': np.zeros((len(AREAS), len(THRESHOLDS), 0), bool),
        'gt_ignored': np.zeros((len(AREAS), 0), bool),
    }
    none['ignored'] = none['matched']
    return {
        name: np.concatenate([none.get(name, np.zeros(0, int)), *parts], axis=-1)
        for name, parts in {**columns, **objects}.items()
    }


def _join(parts, class_ids: tuple[int, ...], num_images: int) -> Matches:
    joined = {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}
    return Matches(class_ids=class_ids, num_images=num_images, **joined)
