# SPDX-License-Identifier: Apache-2.0
"""Image, ground truth and predictions side by side, for examples chosen by id."""

import collections
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow as tf
from pycocotools import mask as mask_utils

from gan_mrcnn.data.records import records
from gan_mrcnn.utils import visualization
from gan_mrcnn.utils.run_lengths import encode_mask

# Larger images are drawn smaller: 300 masks of 1024x2048 are 0.6 GB, and drawing copies them.
_LONGEST_SIDE = 1024
_FEATURES = {
    'image/source_id': tf.io.FixedLenFeature((), tf.string),
    'image/encoded': tf.io.FixedLenFeature((), tf.string),
}


def read_images(
    record_set: records.RecordSet, image_ids: Sequence[int]
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Images uint8 [h, w, 3] and masks of their objects bool [N, h, w] by id, large ones shrunk."""
    wanted = {str(image_id).encode() for image_id in image_ids}
    ground_truth = _ground_truth(record_set, image_ids)
    images = {}
    for record in tf.data.TFRecordDataset(records.files_of(record_set.input_path)):
        example = tf.io.parse_single_example(record, _FEATURES)
        if example['image/source_id'].numpy() in wanted:
            image = tf.io.decode_image(example['image/encoded'], channels=3).numpy()
            image_id = int(example['image/source_id'].numpy())
            masks = (mask_utils.decode(one).astype(bool) for one in ground_truth[image_id])
            images[image_id] = visualization.shrink(image, masks, _LONGEST_SIDE)
    return images


def _ground_truth(record_set, image_ids):
    """Run lengths of all objects of these images by id; the records have no whole masks."""
    content = json.loads(pathlib.Path(record_set.annotation_file).read_text(encoding='utf-8'))
    found = {image_id: [] for image_id in image_ids}
    for annotation in content['annotations']:
        if annotation['image_id'] in found:
            found[annotation['image_id']].append(annotation['segmentation'])
    return found


def _shrunk(predictions, image):
    """COCO results with masks of the size of `image` [h, w, 3]."""
    masks = (mask_utils.decode(one['segmentation']) for one in predictions)
    resized = (
        cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_NEAREST) for mask in masks
    )
    return [{**one, 'segmentation': encode_mask(mask)} for one, mask in zip(predictions, resized)]


def contact_sheet(
    record_set: records.RecordSet, image_ids: Sequence[int], predictions: list[dict[str, Any]]
) -> np.ndarray:
    """One row per image: the image, its ground truth and its predictions.

    Args:
      record_set: with images and ground truth.
      image_ids: which ones, in this order.
      predictions: COCO results of the whole split.

    Returns:
      [h, w, 3] uint8 RGB.
    """
    by_image = collections.defaultdict(list)
    for prediction in predictions:
        by_image[prediction['image_id']].append(prediction)
    images = read_images(record_set, image_ids)
    rows = []
    for image_id in image_ids:
        image, masks = images[image_id]
        shown = _shrunk(by_image[image_id], image)
        rows.append(visualization.side_by_side(image, masks, shown))
    return visualization.contact_sheet(rows)
