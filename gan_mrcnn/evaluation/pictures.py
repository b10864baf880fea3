# SPDX-License-Identifier: Apache-2.0
"""Image, truth and prediction side by side, for examples chosen by id."""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from official.vision.dataloaders import tf_example_decoder

from gan_mrcnn import visualization
from gan_mrcnn.datasets import records


def read_images(record_set: records.RecordSet, image_ids: Sequence[int]) -> dict[int, dict]:
    """Decoded examples (the Model Garden's dictionaries, as NumPy) by image id."""
    wanted = {str(image_id).encode() for image_id in image_ids}
    decoder = tf_example_decoder.TfExampleDecoder(include_mask=True)
    files = sorted(tf.io.gfile.glob(record_set.input_path))
    found = {}
    for record in tf.data.TFRecordDataset(files).as_numpy_iterator():
        example = tf.io.parse_single_example(
            record, {'image/source_id': tf.io.FixedLenFeature((), tf.string)}
        )
        if example['image/source_id'].numpy() in wanted:
            data = {name: np.asarray(value) for name, value in decoder.decode(record).items()}
            found[int(data['source_id'].item())] = data
    return found


def contact_sheet(
    record_set: records.RecordSet, image_ids: Sequence[int], predictions: list[dict[str, Any]]
) -> np.ndarray:
    """One row per image: the image, its ground truth and its predictions.

    Args:
      record_set: where images and truth are.
      image_ids: which ones, in this order.
      predictions: COCO results of the whole split.

    Returns:
      [h, w, 3] uint8 RGB.
    """
    by_image = collections.defaultdict(list)
    for prediction in predictions:
        by_image[prediction['image_id']].append(prediction)
    images = read_images(record_set, image_ids)
    return visualization.contact_sheet(
        [
            visualization.side_by_side(
                images[i]['image'], images[i]['groundtruth_instance_masks'] > 0.5, by_image[i]
            )
            for i in image_ids
        ]
    )
