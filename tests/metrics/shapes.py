"""Small COCO data sets for the tests of metrics, written without the package's own writers."""

import numpy as np
from pycocotools import mask as mask_api


def rectangle(y1, x1, y2, x2, height=64, width=80):
    mask = np.zeros((height, width), np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def rle(mask):
    encoded = mask_api.encode(np.asfortranarray(mask, np.uint8))
    return {'size': list(mask.shape), 'counts': encoded['counts'].decode()}


def box(mask):
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return [0.0, 0.0, 0.0, 0.0]
    y, x = int(rows.min()), int(columns.min())
    return [x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1]


def ground_truth(images, num_classes=1):
    """images: per image a list of (mask, class) or (mask, class, is_crowd); ids count from 1."""
    annotations = []
    for image_id, objects in enumerate(images, 1):
        for mask, class_id, *crowd in objects:
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': class_id,
                    'bbox': box(mask),
                    'area': int(mask.sum()),
                    'iscrowd': int(bool(crowd and crowd[0])),
                    'segmentation': rle(mask),
                }
            )
    height, width = next((one[0].shape for image in images for one in image), (64, 80))
    return {
        'images': [
            {'id': i, 'height': height, 'width': width, 'file_name': f'{i}.png'}
            for i in range(1, len(images) + 1)
        ],
        'annotations': annotations,
        'categories': [{'id': i, 'name': f'class {i}'} for i in range(1, num_classes + 1)],
    }


def result(image_id, mask, score, class_id=1):
    return {
        'image_id': image_id,
        'category_id': class_id,
        'bbox': box(mask),
        'score': score,
        'segmentation': rle(mask),
    }


def random_mask(rng, height=64, width=80):
    """A few overlapping ellipses with a ragged edge."""
    y, x = np.mgrid[:height, :width]
    cy, cx = rng.uniform(5, height - 5), rng.uniform(5, width - 5)
    ry, rx = rng.uniform(3, 18, 2)
    mask = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 + rng.normal(0, 0.15, y.shape) < 1
    return mask.astype(np.uint8)


def random_case(seed, num_images=7, num_classes=3):
    """Ground truth with crowds; predictions correct, shifted, doubled, tied, of another class."""
    rng = np.random.default_rng(seed)
    images, results = [], []
    for image_id in range(1, num_images + 1):
        objects = []
        for _ in range(rng.integers(0, 6)):
            mask, class_id = random_mask(rng), int(rng.integers(1, num_classes + 1))
            if not mask.any():
                continue
            objects.append((mask, class_id, rng.random() < 0.15))
            for _ in range(rng.integers(0, 3)):
                shift = rng.integers(-4, 5, 2)
                other = class_id if rng.random() < 0.8 else int(rng.integers(1, num_classes + 1))
                # Scores of one digit: many are equal.
                score = round(float(rng.random()), 1)
                results.append(result(image_id, np.roll(mask, shift, (0, 1)), score, other))
        for _ in range(rng.integers(0, 3)):
            class_id, score = int(rng.integers(1, num_classes + 1)), round(float(rng.random()), 1)
            results.append(result(image_id, random_mask(rng), score, class_id))
        images.append(objects)
    return ground_truth(images, num_classes), results
