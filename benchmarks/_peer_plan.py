# SPDX-License-Identifier: Apache-2.0
"""What both sides of the peer benchmark share: the plan file and the pixels it stands for.

`peer_torchvision.py` writes one plan; each system's worker reads it. It names every image of every
step with its flip and scale, every learning rate, and the test images, so that no system draws any
of that for itself. The images are read, resized and flipped here as well, so both networks see
the same bytes. Workers run in environments of their own: this module needs NumPy and OpenCV only.

Boxes are [y1, x1, y2, x2] in pixels of the resized image, as everywhere in this project.
"""

import functools
import json
import pathlib

import cv2
import numpy as np

SUFFIXES = ('.png', '.bmp')


def load_plan(path):
    """The plan as the dict that `peer_torchvision.make_plan` describes."""
    return json.loads(pathlib.Path(path).read_text(encoding='utf-8'))


@functools.cache
def read_image(path):
    """uint8 [H, W, 3], RGB.

    Raises:
      ValueError: the file is missing or not an image.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f'{path} is missing or not an image')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


@functools.cache
def read_labels(path):
    """uint8 [H, W]: 0 is background, every other value one gland.

    Raises:
      ValueError: the file is missing, not an image, or has more than one channel.
    """
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if labels is None or labels.ndim != 2:
        raise ValueError(f'{path} is missing or not a label image with one channel')
    return labels


def instance_masks(labels):
    """uint8 [N, H, W] of 0 and 1, one mask per value of `labels` that is not 0, in rising order."""
    values = np.unique(labels)
    return (labels == values[values > 0][:, None, None]).astype(np.uint8)


def mask_boxes(masks):
    """float32 [N, 4] [y1, x1, y2, x2]: the tight boxes; y2, x2 are one past the last pixel."""
    boxes = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes.append([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
    return np.array(boxes, np.float32).reshape(-1, 4)


def resized_size(height, width, canvas, scale=1.0):
    """(height, width) in pixels of an image that is fitted into `canvas` and scaled by `scale`.

    The largest size of the same aspect ratio that fits into canvas (height, width), times `scale`,
    rounded.
    """
    fit = min(canvas[0] / height, canvas[1] / width) * scale
    return round(height * fit), round(width * fit)


def training_example(entry, canvas):
    """One image of a step, resized, flipped and with its glands, not yet padded to the canvas.

    Args:
      entry: an element of plan['train'][seed][step].
      canvas: (height, width) in pixels.

    Returns:
      image uint8 [h, w, 3], RGB; masks uint8 [N, h, w]; boxes float32 [N, 4]. N may be 0, glands
      that vanish in resizing are skipped.
    """
    image, labels = read_image(entry['image']), read_labels(entry['labels'])
    height, width = resized_size(*labels.shape, canvas, entry['scale'])
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
    if entry['flip']:
        image, labels = image[:, ::-1], labels[:, ::-1]
    masks = instance_masks(labels)
    return np.ascontiguousarray(image), masks, mask_boxes(masks)


def test_image(entry, canvas):
    """uint8 [h, w, 3], RGB: a test image as it is resized, not yet padded to the canvas."""
    image = read_image(entry['image'])
    height, width = resized_size(*image.shape[:2], canvas)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
