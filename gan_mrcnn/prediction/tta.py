# SPDX-License-Identifier: Apache-2.0
"""Test-time augmentation: an image is shown in several orientations, what is detected is merged.

Boxes and masks are turned back, detections of one object put together, and their boxes and masks
averaged, as in weighted boxes fusion (Solovyev et al., Weighted Boxes Fusion, 2021) with the masks
beside. It works on detections alone, so that a SavedModel can do it, too.

Shapes: N detections in an image of H x W pixels, S side of a predicted mask, T orientations.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from pycocotools import mask as mask_api

from gan_mrcnn.prediction import predictor as predictor_lib
from gan_mrcnn.utils import cell_means
from gan_mrcnn.utils.errors import UserError

# Boxes of two orientations are of one object from this IoU on: those of one orientation, after its
# NMS, overlap by less.
SAME_OBJECT = 0.5


class Orientation(NamedTuple):
    """How an image is shown: mirrored left to right or not, then turned.

    turns: quarter turns, counterclockwise.
    """

    turns: int
    is_mirrored: bool


# By what --tta calls them (`utils.cli.TTA`), the image as it is first.
ORIENTATIONS = {
    'flip': (Orientation(0, False), Orientation(0, True)),
    'all': tuple(Orientation(turns, flip) for flip in (False, True) for turns in range(4)),
}


def turn(pixels: np.ndarray, orientation: Orientation) -> np.ndarray:
    """An image [H, W, ...] as it is shown; a view of it."""
    pixels = pixels[:, ::-1] if orientation.is_mirrored else pixels
    return np.rot90(pixels, orientation.turns)


def turn_back(
    detections: predictor_lib.Detections, orientation: Orientation, height: int, width: int
) -> predictor_lib.Detections:
    """Detections in an image that was shown by `turn`, as if it had not been turned.

    Args:
      detections: in pixels of the image as it was shown.
      orientation: of it.
      height: H, of the image before.
      width: W, of the image before.
    """
    y1, x1, y2, x2 = detections.boxes.T
    shown_height = width if orientation.turns % 2 else height
    other = height + width - shown_height
    for _ in range(orientation.turns):
        # A quarter turn takes (y, x) to (width - x, y).
        y1, x1, y2, x2 = x1, shown_height - y2, x2, shown_height - y1
        shown_height, other = other, shown_height
    masks = np.rot90(detections.masks, -orientation.turns, axes=(1, 2))
    if orientation.is_mirrored:
        x1, x2 = width - x2, width - x1
        masks = masks[:, :, ::-1]
    return detections._replace(boxes=np.stack([y1, x1, y2, x2], axis=1), masks=masks)


def merge(found: Sequence[predictor_lib.Detections], most: int) -> predictor_lib.Detections:
    """One list of detections from those of all orientations of an image, turned back.

    From the best score down, a detection takes from each other orientation the free one of its
    class that overlaps it most, from an IoU of `SAME_OBJECT` on. Box and mask become means weighted
    by score, the mask over the cells of the new box; the score is the sum over the group divided by
    T, so that what only some orientations show counts less.

    Args:
      found: T of them.
      most: detections are kept, the best.
    """
    boxes, scores, classes, masks = (np.concatenate(parts) for parts in zip(*found))
    if not len(scores):
        return found[0]
    sources = np.repeat(np.arange(len(found)), [len(one.scores) for one in found])
    members = _group(boxes, scores, classes, sources)
    groups = np.repeat(np.arange(len(members)), list(map(len, members)))
    flat = np.concatenate(members)
    totals = np.bincount(groups, scores[flat].astype(np.float64))
    weights = scores[flat] / totals[groups]
    merged_boxes = np.zeros([len(members), 4])
    np.add.at(merged_boxes, groups, weights[:, np.newaxis] * boxes[flat])
    resampled = cell_means.of_box_masks(
        tf.constant(masks[flat], tf.float64),
        tf.constant(boxes[flat], tf.float64),
        tf.constant(merged_boxes[groups]),
        masks.shape[-1],
    )
    merged_masks = np.zeros([len(members), *masks.shape[1:]])
    np.add.at(merged_masks, groups, weights[:, np.newaxis, np.newaxis] * resampled.numpy())
    best = np.argsort(-totals, kind='stable')[:most]
    return predictor_lib.Detections(
        merged_boxes[best].astype(np.float32),
        (totals[best] / len(found)).astype(np.float32),
        classes[[members[i][0] for i in best]],
        merged_masks[best].astype(np.float32),
    )


def _group(boxes, scores, classes, sources) -> list[list[int]]:
    """Indices of the detections of each object, the best first; see `merge`."""
    corners, ends = boxes[:, 1::-1].astype(np.float64), boxes[:, :1:-1].astype(np.float64)
    as_coco = np.concatenate([corners, ends - corners], axis=1)
    overlaps = mask_api.iou(as_coco, as_coco, [0] * len(boxes))
    same = (overlaps >= SAME_OBJECT) & (classes == classes[:, np.newaxis])
    free = np.ones(len(boxes), bool)
    groups = []
    for i in np.argsort(-scores, kind='stable'):
        if not free[i]:
            continue
        group = [int(i)]
        for source in np.unique(sources[same[i] & free & (sources != sources[i])]):
            others = np.flatnonzero(same[i] & free & (sources == source))
            group.append(int(others[np.argmax(overlaps[i, others])]))
        free[group] = False
        groups.append(group)
    return groups


class AugmentedPredictor(predictor_lib.PixelPredictor):
    """A `predictor.Predictor` that shows every image in several orientations."""

    def __init__(
        self,
        predictor: predictor_lib.Predictor,
        kind: str,
        sideways: predictor_lib.Predictor,
    ):
        """Wraps predictors.

        Args:
          predictor: of images as they are.
          kind: a key of `ORIENTATIONS`.
          sideways: of images after a quarter turn: the same network with an input as wide as the
            other's is high, so that they are scaled alike.
        """
        super().__init__(predictor.card)
        self._predictor, self._sideways = predictor, sideways
        self._orientations = ORIENTATIONS[kind]

    def detect_pixels(self, images: np.ndarray) -> list[predictor_lib.Detections]:
        """As `Predictor.detect_pixels`, T times."""
        height, width = images.shape[1:3]
        shown = []
        for one in self._orientations:
            network = self._sideways if one.turns % 2 else self._predictor
            found = network.detect_pixels(np.stack([turn(pixels, one) for pixels in images]))
            shown.append([turn_back(detections, one, height, width) for detections in found])
        most = self._predictor.most_detections
        return [merge(of_image, most) for of_image in zip(*shown)]


def augment_saved_model(predictor: predictor_lib.Predictor, kind: str) -> AugmentedPredictor:
    """A SavedModel's predictor with `kind` of `ORIENTATIONS`.

    Raises:
      UserError: quarter turns are wanted, and its input is not square: turned images would be
        scaled to other sizes than those it was trained with.
    """
    height, width = predictor.card.input_size
    if kind == 'all' and height != width:
        raise UserError(
            f'--tta all shows images on their side, and this export has an input of {height}x'
            f'{width}; give the run or its published weights, or --tta flip'
        )
    return AugmentedPredictor(predictor, kind, predictor)
