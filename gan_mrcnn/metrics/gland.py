# SPDX-License-Identifier: Apache-2.0
"""The gland contest's own metrics: object-level F1, Dice and Hausdorff distance on label maps.

Sirinukunwattana et al., Gland Segmentation in Colon Histology Images: The GlaS Challenge Contest
(2017), and its web page. All sums go over the objects of all images of a part, as the contest
defines them, so that a large gland weighs as much as its area wherever it is.

- F1: a segmented object is right if it covers at least half of its gland, the one that it overlaps
  most. Of two that do (half each), the first is right.
- Object Dice: each object against the one of the other side that it overlaps most, 0 without one;
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

# A gland is found by what covers this share of it; of a prediction this share must be visible.
OVERLAP = 0.5
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
_CHUNK = 10


class ImageScore(NamedTuple):
    """Sums over the objects of one image, or of several.

    right, wrong, missed: numbers of objects.
    truth_area, found_area: pixels.
    dice_truth, dice_found, hausdorff_truth, hausdorff_found: per object, times its area.
    """

    right: int
    wrong: int
    missed: int
    truth_area: float
    found_area: float
    dice_truth: float
    dice_found: float
    hausdorff_truth: float
    hausdorff_found: float


def paint(
    predictions: Sequence[Mapping[str, Any]], height: int, width: int, score_threshold: float
) -> np.ndarray:
    """One label map from predictions that may overlap.

    Those of at least `score_threshold` are painted from the best score down, each on the pixels
    that are still free. One of which less than half is visible is left out: it is a second find of
    what is there already (as in Kirillov et al., Panoptic Segmentation, 2019).

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


def score_image(truth: np.ndarray, found: np.ndarray, hausdorff: bool = True) -> ImageScore:
    """Scores one label map against another.

    Args:
      truth, found: [H, W] int, 0 background, any other number an object.
      hausdorff: False leaves the distances, which take most of the time, at zero.
    """
    truth_labels, found_labels = _labels(truth), _labels(found)
    overlaps = _overlaps(truth, found, truth_labels, found_labels)
    truth_areas = _areas(truth, truth_labels)
    found_areas = _areas(found, found_labels)
    right = _count_right(overlaps, truth_areas)
    dice = 2 * overlaps / np.add.outer(truth_areas, found_areas)
    distances = (
        _distances(truth, found, truth_labels, found_labels, overlaps)
        if hausdorff
        else np.zeros(dice.shape)
    )
    diagonal = float(np.hypot(*truth.shape)) if hausdorff else 0.0
    return ImageScore(
        right=right,
        wrong=len(found_labels) - right,
        missed=len(truth_labels) - right,
        truth_area=float(truth_areas.sum()),
        found_area=float(found_areas.sum()),
        dice_truth=float(truth_areas @ _of_best(dice, overlaps)),
        dice_found=float(found_areas @ _of_best(dice.T, overlaps.T)),
        hausdorff_truth=float(truth_areas @ _of_best(distances, overlaps, diagonal)),
        hausdorff_found=float(found_areas @ _of_best(distances.T, overlaps.T, diagonal)),
    )


def _labels(labels: np.ndarray) -> np.ndarray:
    numbers = np.unique(labels)
    return numbers[numbers != 0]


def _areas(labels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return np.array([np.count_nonzero(labels == number) for number in numbers], float)


def _overlaps(truth, found, truth_labels, found_labels) -> np.ndarray:
    """Common pixels, [truth, found]."""
    both = (truth != 0) & (found != 0)
    rows = np.searchsorted(truth_labels, truth[both])
    columns = np.searchsorted(found_labels, found[both])
    overlaps = np.zeros((len(truth_labels), len(found_labels)))
    np.add.at(overlaps, (rows, columns), 1)
    return overlaps


def _count_right(overlaps, truth_areas) -> int:
    if not overlaps.size:
        return 0
    own = overlaps.argmax(0)
    covered = overlaps[own, np.arange(overlaps.shape[1])]
    return len(set(own[(covered > 0) & (covered >= OVERLAP * truth_areas[own])]))


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


def _distances(truth, found, truth_labels, found_labels, overlaps) -> np.ndarray:
    """Hausdorff distances in pixels, [truth, found]; infinite where nobody asks: the two do not
    overlap, but each overlaps another."""
    distances = np.full(overlaps.shape, np.inf)
    wanted = overlaps > 0
    if wanted.size:
        wanted = wanted | ~wanted.any(1)[:, None] | ~wanted.any(0)
    truth_masks = [truth == number for number in truth_labels]
    to_truth = [_distance_map(mask) for mask in truth_masks]
    for column, number in enumerate(found_labels):
        mask = found == number
        to_found = _distance_map(mask)
        for row in np.flatnonzero(wanted[:, column]):
            distances[row, column] = max(
                to_truth[row][mask].max(), to_found[truth_masks[row]].max()
            )
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
    found, there = total.right + total.wrong, total.right + total.missed
    if not found and not there:
        return {'F1': 1.0, 'precision': 1.0, 'recall': 1.0, 'dice': 1.0, 'hausdorff': 0.0}
    sides = [
        (dice / area, distance / area)
        for dice, distance, area in (
            (total.dice_truth, total.hausdorff_truth, total.truth_area),
            (total.dice_found, total.hausdorff_found, total.found_area),
        )
        if area
    ]
    return {
        'F1': 2 * total.right / (found + there),
        'precision': total.right / found if found else 0.0,
        'recall': total.right / there if there else 0.0,
        'dice': sum(dice for dice, _ in sides) / len(sides),
        'hausdorff': sum(distance for _, distance in sides) / len(sides),
    }


def score_images(
    truth: dict[str, Any],
    predictions: Sequence[dict[str, Any]],
    score_threshold: float,
    title: str = '',
) -> dict[int, ImageScore]:
    """Scores by image id, of all images.

    Args:
      truth: COCO annotations with run lengths.
      predictions: COCO results.
      score_threshold: see `paint`.
      title: of the progress bar, '' for none.
    """
    objects, found = parallel.by_image(truth['annotations']), parallel.by_image(predictions)
    images = truth['images']
    jobs = [
        ([(i, objects.get(i['id'], []), found.get(i['id'], [])) for i in part], score_threshold)
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
                paint(found, image['height'], image['width'], score_threshold),
            ),
        )
        for image, objects, found in images
    ]


def label_map(annotations: Sequence[Mapping[str, Any]], height: int, width: int) -> np.ndarray:
    """The label image of one image's annotations, which do not overlap: [height, width] int32."""
    labels = np.zeros((height, width), np.int32)
    for number, annotation in enumerate(annotations, start=1):
        labels[mask_api.decode(annotation['segmentation']).astype(bool)] = number
    return labels


def choose_threshold(truth: dict[str, Any], predictions: Sequence[dict[str, Any]]) -> float:
    """The score from which predictions are painted, by the validation images.

    The one of `THRESHOLDS` with the largest sum of F1 and object Dice; the lowest of equal ones.

    Args:
      truth: COCO annotations of the validation split, with run lengths.
      predictions: COCO results of all its images.
    """
    objects, found = parallel.by_image(truth['annotations']), parallel.by_image(predictions)
    best, chosen = -1.0, THRESHOLDS[0]
    maps = {
        image['id']: label_map(objects.get(image['id'], []), image['height'], image['width'])
        for image in truth['images']
    }
    for threshold in THRESHOLDS:
        figures = summarize(
            [
                score_image(labels, paint(found.get(i, []), *labels.shape, threshold), False)
                for i, labels in maps.items()
            ]
        )
        if figures['F1'] + figures['dice'] > best + 1e-12:
            best, chosen = figures['F1'] + figures['dice'], threshold
    return chosen
