# SPDX-License-Identifier: Apache-2.0
"""The gland contest's own metrics: object-level F1, Dice and Hausdorff distance on label maps.

Sirinukunwattana et al., Gland Segmentation in Colon Histology Images: The GlaS Challenge Contest
(2017), and its web page. All sums go over the objects of all images of a part, as the contest
defines them, so that a large gland weighs as much as its area wherever it is.

- F1: a segmented object is a true positive if it covers at least half of its gland, the one that it
  overlaps most. Of two that do (half each), only the first is.
- Object Dice: each object against that of the other label map that it overlaps most, 0 without one;
  weighted by area; mean of both directions.
- Object Hausdorff, in pixels: the same with the Hausdorff distance. An object that overlaps none is
  compared with the nearest of the image. Where the image has none, the contest's code says
  infinity, which would hide all other images: the image's diagonal is taken, the largest distance
  that it has.

Without any object on both sides F1 and Dice are 1 and the distance is 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import cv2
import numpy as np
from pycocotools import mask as mask_api

from gan_mrcnn.metrics import parallel

# This share of a gland must be covered to be detected, and of a prediction be visible.
OVERLAP = 0.5
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
_CHUNK = 10


class ImageScore(NamedTuple):
    """Sums over the objects of one image, or of several.

    true_positives, false_positives, false_negatives: numbers of objects.
    gt_area, predicted_area: pixels.
    gt_dice, predicted_dice, gt_hausdorff, predicted_hausdorff: per object, times its area.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    gt_area: float
    predicted_area: float
    gt_dice: float
    predicted_dice: float
    gt_hausdorff: float
    predicted_hausdorff: float


def paint(
    predictions: Sequence[Mapping[str, Any]], height: int, width: int, score_threshold: float
) -> np.ndarray:
    """One label map from predictions that may overlap.

    Those of at least `score_threshold` are painted from the best score down, each on the pixels
    that are still free. One of which less than half is visible is skipped as a duplicate (as in
    Kirillov et al., Panoptic Segmentation, 2019).

    Args:
      predictions: COCO results of one image.
      height, width: of the image.
      score_threshold: lowest score.

    Returns:
      [height, width] int32, 0 background, 1, 2, ... objects from the best score down.
    """
    labels = np.zeros((height, width), np.int32)
    number = 0
    for prediction in sorted(predictions, key=lambda one: -one['score']):
        if prediction['score'] < score_threshold:
            break
        mask = mask_api.decode(prediction['segmentation']).astype(bool)
        free = mask & (labels == 0)
        visible = np.count_nonzero(free)
        if visible and visible >= OVERLAP * np.count_nonzero(mask):
            number += 1
            labels[free] = number
    return labels


def score_image(
    ground_truth: np.ndarray, predicted: np.ndarray, hausdorff: bool = True
) -> ImageScore:
    """Scores one label map against another.

    Args:
      ground_truth, predicted: [H, W] int, 0 background, any other number an object.
      hausdorff: False leaves the distances, which take most of the time, at zero.
    """
    gt_labels, predicted_labels = _labels(ground_truth), _labels(predicted)
    overlaps = _overlaps(ground_truth, predicted, gt_labels, predicted_labels)
    gt_areas = _areas(ground_truth, gt_labels)
    predicted_areas = _areas(predicted, predicted_labels)
    true_positives = _count_true_positives(overlaps, gt_areas)
    dice = 2 * overlaps / np.add.outer(gt_areas, predicted_areas)
    distances = (
        _distances(ground_truth, predicted, gt_labels, predicted_labels, overlaps)
        if hausdorff
        else np.zeros(dice.shape)
    )
    diagonal = float(np.hypot(*ground_truth.shape)) if hausdorff else 0.0
    return ImageScore(
        true_positives=true_positives,
        false_positives=len(predicted_labels) - true_positives,
        false_negatives=len(gt_labels) - true_positives,
        gt_area=float(gt_areas.sum()),
        predicted_area=float(predicted_areas.sum()),
        gt_dice=float(gt_areas @ _of_best(dice, overlaps)),
        predicted_dice=float(predicted_areas @ _of_best(dice.T, overlaps.T)),
        gt_hausdorff=float(gt_areas @ _of_best(distances, overlaps, diagonal)),
        predicted_hausdorff=float(predicted_areas @ _of_best(distances.T, overlaps.T, diagonal)),
    )


def _labels(labels: np.ndarray) -> np.ndarray:
    numbers = np.unique(labels)
    return numbers[numbers != 0]


def _areas(labels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return np.array([np.count_nonzero(labels == number) for number in numbers], float)


def _overlaps(ground_truth, predicted, gt_labels, predicted_labels) -> np.ndarray:
    """Common pixels, [ground truth, predicted]."""
    both = (ground_truth != 0) & (predicted != 0)
    rows = np.searchsorted(gt_labels, ground_truth[both])
    columns = np.searchsorted(predicted_labels, predicted[both])
    overlaps = np.zeros((len(gt_labels), len(predicted_labels)))
    np.add.at(overlaps, (rows, columns), 1)
    return overlaps


def _count_true_positives(overlaps, gt_areas) -> int:
    if not overlaps.size:
        return 0
    own = overlaps.argmax(0)
    covered = overlaps[own, np.arange(overlaps.shape[1])]
    return len(set(own[(covered > 0) & (covered >= OVERLAP * gt_areas[own])]))


def _of_best(values, overlaps, without: Optional[float] = None) -> np.ndarray:
    """For each row, the value at the column of largest overlap.

    A row that overlaps nothing has 0, or the smallest value where `without` is given (distances);
    `without` itself where there is no column.
    """
    rows = np.arange(len(values))
    if not values.shape[1]:
        return np.full(len(values), without or 0.0)
    best = values[rows, overlaps.argmax(1)]
    alone = overlaps.max(1) == 0
    return np.where(alone, 0.0 if without is None else values.min(1), best)


def _distances(ground_truth, predicted, gt_labels, predicted_labels, overlaps) -> np.ndarray:
    """Hausdorff distances in pixels, [ground truth, predicted].

    Infinite where not needed: the two do not overlap, but each overlaps another.
    """
    distances = np.full(overlaps.shape, np.inf)
    wanted = overlaps > 0
    if wanted.size:
        wanted = wanted | ~wanted.any(1)[:, None] | ~wanted.any(0)
    gt_masks = [ground_truth == number for number in gt_labels]
    to_gt = [_distance_map(mask) for mask in gt_masks]
    for column, number in enumerate(predicted_labels):
        mask = predicted == number
        to_predicted = _distance_map(mask)
        for row in np.flatnonzero(wanted[:, column]):
            distances[row, column] = max(to_gt[row][mask].max(), to_predicted[gt_masks[row]].max())
    return distances


def _distance_map(mask: np.ndarray) -> np.ndarray:
    """Distance of each pixel to the nearest one of the mask, exact."""
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def summarize(
    scores: Sequence[ImageScore], weights: Optional[np.ndarray] = None
) -> dict[str, float]:
    """The contest's figures of a part of the images.

    Args:
      scores: of its images.
      weights: how often each of them counts; None for once.

    Returns:
      'F1', 'precision', 'recall', 'dice', in [0, 1], and 'hausdorff' in pixels.
    """
    table = np.array(scores, float).reshape(-1, len(ImageScore._fields))
    weights = np.ones(len(table)) if weights is None else weights
    total = ImageScore(*(weights @ table))
    predicted = total.true_positives + total.false_positives
    objects = total.true_positives + total.false_negatives
    if not predicted and not objects:
        return {'F1': 1.0, 'precision': 1.0, 'recall': 1.0, 'dice': 1.0, 'hausdorff': 0.0}
    sides = [
        (dice / area, distance / area)
        for dice, distance, area in (
            (total.gt_dice, total.gt_hausdorff, total.gt_area),
            (total.predicted_dice, total.predicted_hausdorff, total.predicted_area),
        )
        if area
    ]
    return {
        'F1': 2 * total.true_positives / (predicted + objects),
        'precision': total.true_positives / predicted if predicted else 0.0,
        'recall': total.true_positives / objects if objects else 0.0,
        'dice': sum(dice for dice, _ in sides) / len(sides),
        'hausdorff': sum(distance for _, distance in sides) / len(sides),
    }


def score_images(
    ground_truth: dict[str, Any],
    predictions: Sequence[dict[str, Any]],
    score_threshold: float,
    title: str = '',
) -> dict[int, ImageScore]:
    """Scores by image id, of all images.

    Args:
      ground_truth: COCO annotations with run lengths.
      predictions: COCO results.
      score_threshold: see `paint`.
      title: of the progress bar, '' for none.
    """
    objects = parallel.by_image(ground_truth['annotations'])
    predicted = parallel.by_image(predictions)
    images = ground_truth['images']
    jobs = [
        ([(i, objects.get(i['id'], []), predicted.get(i['id'], [])) for i in part], score_threshold)
        for part in (images[k : k + _CHUNK] for k in range(0, len(images), _CHUNK))
    ]
    parts = parallel.map_jobs(_score_part, jobs, [len(job[0]) for job in jobs], title)
    return {image_id: score for part in parts for image_id, score in part}


def _score_part(job):
    images, score_threshold = job
    return [
        (
            image['id'],
            score_image(
                label_map(objects, image['height'], image['width']),
                paint(predicted, image['height'], image['width'], score_threshold),
            ),
        )
        for image, objects, predicted in images
    ]


def label_map(annotations: Sequence[Mapping[str, Any]], height: int, width: int) -> np.ndarray:
    """The label image of one image's annotations, which do not overlap: [height, width] int32."""
    labels = np.zeros((height, width), np.int32)
    for number, annotation in enumerate(annotations, start=1):
        labels[mask_api.decode(annotation['segmentation']).astype(bool)] = number
    return labels


def choose_threshold(ground_truth: dict[str, Any], predictions: Sequence[dict[str, Any]]) -> float:
    """The score from which predictions are painted, by the validation images.

    The one of `THRESHOLDS` with the largest sum of F1 and object Dice; the lowest of equal ones.

    Args:
      ground_truth: COCO annotations of the validation split, with run lengths.
      predictions: COCO results of all its images.
    """
    objects = parallel.by_image(ground_truth['annotations'])
    predicted = parallel.by_image(predictions)
    best, chosen = -1.0, THRESHOLDS[0]
    maps = {
        image['id']: label_map(objects.get(image['id'], []), image['height'], image['width'])
        for image in ground_truth['images']
    }
    for threshold in THRESHOLDS:
        figures = summarize(
            [
                score_image(labels, paint(predicted.get(i, []), *labels.shape, threshold), False)
                for i, labels in maps.items()
            ]
        )
        if figures['F1'] + figures['dice'] > best + 1e-12:
            best, chosen = figures['F1'] + figures['dice'], threshold
    return chosen
