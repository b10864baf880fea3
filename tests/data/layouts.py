"""Tiny but complete folders in the layout of each data set, and what is in them.

Ground truth is written down here before anything is encoded, so that it depends on no reader.
"""

import json
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

HEIGHT, WIDTH = 32, 48


class Object(NamedTuple):
    name: str
    mask: np.ndarray
    is_crowd: bool = False


class GroundTruth(NamedTuple):
    """An image: its file, [H, W, 3] RGB, objects in the order wanted, largest error of a pixel."""

    file_name: str
    pixels: np.ndarray
    objects: list
    tolerance: int = 0


def smooth(seed, height=HEIGHT, width=WIDTH):
    """An image of slow changes, which a JPEG keeps."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(40, 200, (2, 2, 3)).astype(np.uint8)
    return cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)


def rectangle(y1, x1, y2, x2, height=HEIGHT, width=WIDTH):
    mask = np.zeros((height, width), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def save_image(path, kind, seed):
    """Writes an image of HEIGHT x WIDTH as it is seen; gives its RGB pixels and tolerance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = smooth(seed)
    grey = pixels[..., 0]
    spread = np.repeat(grey[..., None], 3, 2)
    if kind == 'rgb':
        Image.fromarray(pixels).save(path)
        return pixels, 0
    if kind == 'grey':
        Image.fromarray(grey).save(path)
        return spread, 0
    if kind == '16 bits':
        deep = grey.astype(np.uint16) * 256 + 77
        assert cv2.imwrite(str(path), deep)
        return spread, 0
    if kind == 'alpha':
        alpha = np.full((HEIGHT, WIDTH, 1), 90, np.uint8)
        Image.fromarray(np.concatenate([pixels, alpha], 2), 'RGBA').save(path)
        return pixels, 0
    if kind == 'palette':
        few = pixels // 64 * 64
        image = Image.fromarray(few).quantize(64)
        image.save(path)
        return np.asarray(image.convert('RGB')), 0
    if kind == 'jpeg':
        Image.fromarray(pixels).save(path, quality=100, subsampling=0)
        return pixels, 6
    assert kind == 'turned'
    # Stored lying on its left side; orientation 6 says: turn it clockwise to look at it.
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(pixels, 1)))
    stored.save(path, quality=100, subsampling=0, exif=exif)
    return pixels, 6


# COCO's format.


def polygon(y1, x1, y2, x2):
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def run_lengths(mask):
    """COCO's uncompressed form: lengths of runs down the columns, background first."""
    counts, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {'size': list(mask.shape), 'counts': counts}


def compressed(mask):
    rle = mask_api.encode(np.asfortranarray(mask, np.uint8))
    return {'size': rle['size'], 'counts': rle['counts'].decode()}


def every_encoding(names):
    """Objects of all kinds that COCO knows, and their segmentations; `names` are two classes."""
    first, second = names
    two_pieces = rectangle(1, 1, 6, 9) | rectangle(20, 30, 28, 44)
    ring = rectangle(8, 2, 18, 14) & ~rectangle(11, 5, 15, 11)
    crowd = rectangle(20, 0, 32, 20) & (np.indices((HEIGHT, WIDTH)).sum(0) % 2 == 0)
    return [
        (Object(first, rectangle(4, 20, 16, 40)), [polygon(4, 20, 16, 40)]),
        (Object(second, two_pieces), [polygon(1, 1, 6, 9), polygon(20, 30, 28, 44)]),
        (Object(first, rectangle(9, 46, 10, 47)), [polygon(9, 46, 10, 47)]),
        (Object(second, ring), run_lengths(ring)),
        (Object(first, rectangle(0, 45, 32, 48)), compressed(rectangle(0, 45, 32, 48))),
        (Object(second, crowd, True), run_lengths(crowd)),
    ]


def coco_entries(image_id, file_name, pairs, category_ids, first_id, **fields):
    """The image entry and the annotations of an image."""
    image = {'id': image_id, 'file_name': file_name, 'width': WIDTH, 'height': HEIGHT, **fields}
    annotations = []
    for number, (thing, segmentation) in enumerate(pairs):
        y, x = np.nonzero(thing.mask)
        box = [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
        annotations.append(
            {
                'id': first_id + number,
                'image_id': image_id,
                'category_id': category_ids[thing.name],
                'bbox': [float(value) for value in box],
                'area': float(thing.mask.sum()),
                'iscrowd': int(thing.is_crowd),
                'segmentation': segmentation,
            }
        )
    return image, annotations


def write_coco(json_path, image_folder, specs, category_ids):
    """Writes images and their annotation file.

    `specs` are (file name, kind, seed, pairs as `every_encoding` gives them, more fields).
    """
    images, annotations, ground_truths = [], [], []
    for number, (file_name, kind, seed, pairs, fields) in enumerate(specs):
        pixels, tolerance = save_image(image_folder / file_name, kind, seed)
        image, own = coco_entries(
            100 + 3 * number, file_name, pairs, category_ids, len(annotations) + 1, **fields
        )
        images.append(image)
        annotations += own
        ground_truths.append(
            GroundTruth(file_name, pixels, [thing for thing, _ in pairs], tolerance)
        )
    categories = [{'id': number, 'name': name} for name, number in category_ids.items()]
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(
        json.dumps({'images': images, 'annotations': annotations, 'categories': categories})
    )
    return ground_truths


def blocks(seed, name):
    """Two rectangles, to have something to train on."""
    y, x = np.random.default_rng(seed).integers(0, 8, 2)
    boxes = [(y, x, y + 14, x + 16), (y + 8, x + 22, y + 24, x + 38)]
    return [(Object(name, rectangle(*box)), [[int(v) for v in polygon(*box)]]) for box in boxes]


# COCO's own ids have gaps: 3 is a car, 17 a cat, 90 the last one.
COCO_IDS = {'person': 1, 'car': 3, 'cat': 17, 'toothbrush': 90}


def write_coco_2017(folder):
    """A COCO of a few images in its official layout; ground truth by split."""
    kinds = ['jpeg', 'grey', '16 bits', 'alpha', 'palette', 'turned']
    suffix = {'jpeg': 'jpg', 'turned': 'jpg'}
    train = [
        (f'{i:012d}.{suffix.get(kind, "png")}', kind, i, every_encoding(['car', 'cat']), {})
        for i, kind in enumerate(kinds)
    ]
    train.append(('000000000099.jpg', 'jpeg', 99, [], {}))
    val = [(f'{i:012d}.jpg', 'jpeg', i, blocks(i, 'toothbrush'), {}) for i in range(200, 203)] + [
        ('000000000299.jpg', 'jpeg', 299, [], {})
    ]
    return {
        split: write_coco(
            folder / f'annotations/instances_{split}2017.json',
            folder / f'{split}2017',
            specs,
            COCO_IDS,
        )
        for split, specs in (('train', train), ('val', val))
    }


PHONE_IDS = {f'part {i}': i for i in range(1, 12)}
PHONE_MODELS = ('iphone_3gs', 'Mate 8', 'pixel-2-xl')


def write_phones(folder):
    """The phones' layout, with names that say the model; ground truth by split."""
    specs = []
    for m, model in enumerate(PHONE_MODELS):
        for i in range(4):
            name = f'part {(m + i) % 11 + 1}'
            specs.append((f'{model}_{i:03d}.png', 'rgb', 10 * m + i, blocks(i, name), {}))
    specs.append(('odd.png', 'rgb', 77, every_encoding(['part 1', 'part 11']), {}))
    parts = {'train': specs[:-3], 'val': specs[-3:]}
    return {
        split: write_coco(
            folder / f'annotations/instances_phone_{split}.json',
            folder / 'images' / split,
            part,
            PHONE_IDS,
        )
        for split, part in parts.items()
    }


def write_own_coco(folder, count=12):
    """One annotation file of images of several patients; ground truth of all."""
    specs = [
        (
            f'case{i}.png',
            'rgb',
            i,
            blocks(i, 'cell') if i else every_encoding(['cell', 'nucleus']),
            {'patient': f'P{i % 4}'},
        )
        for i in range(count)
    ]
    return write_coco(folder / 'all.json', folder / 'images', specs, {'cell': 7, 'nucleus': 2})


# Cityscapes.

CITYSCAPES_IDS = {'person': 24, 'car': 26, 'bicycle': 33}


def write_cityscapes(folder):
    """Two cities of a train and one of a val part, with groups; ground truth by split."""
    ground_truths = {}
    for split, cities in (('train', ('aachen', 'zurich')), ('val', ('lindau',))):
        ground_truths[split] = []
        for city in cities:
            for number in range(2):
                name = f'{city}_{number:06d}_000019'
                ground_truths[split].append(_write_street(folder, split, city, name, number))
    return ground_truths


def _write_street(folder, split, city, name, number):
    path = folder / 'leftImg8bit' / split / city / f'{name}_leftImg8bit.png'
    pixels, _ = save_image(path, 'rgb', sum(map(ord, name)))
    # Road, an ego vehicle, sky: no instances. Then people, cars and a group of each.
    labels = np.full((HEIGHT, WIDTH), 7, np.uint16)
    labels[28:], labels[:3] = 1, 23
    objects = []
    if number == 0:
        for value, crowd, mask in (
            (24, True, rectangle(3, 0, 9, 5)),
            (26, True, rectangle(10, 0, 16, 9) | rectangle(12, 30, 15, 33)),
            (24000, False, rectangle(4, 20, 22, 30)),
            (24001, False, rectangle(4, 40, 5, 41)),
            (26000, False, rectangle(6, 6, 10, 18) | rectangle(22, 6, 27, 18)),
            (33017, False, rectangle(14, 31, 26, 47)),
        ):
            labels[mask] = value
            class_id = value if crowd else value // 1000
            class_name = {v: k for k, v in CITYSCAPES_IDS.items()}[class_id]
            objects.append((class_name, value, crowd))
        objects = [Object(name, labels == value, crowd) for name, value, crowd in objects]
    label_path = folder / 'gtFine' / split / city / f'{name}_gtFine_instanceIds.png'
    label_path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(label_path), labels)
    return GroundTruth(path.name, pixels, objects)


# Label images.


def write_label_images(folder, classes=True):
    """Images and label images of every kind, with or without classes; ground truth by file."""
    kinds = [
        ('a.jpg', 'jpeg', 'a.png', np.uint8),
        ('b.png', 'grey', 'b.tif', np.uint16),
        ('c.tif', '16 bits', 'c.bmp', np.uint8),
        ('d.png', 'alpha', 'd.png', np.uint16),
        ('e.jpg', 'turned', 'e.tiff', np.uint8),
        ('f.bmp', 'rgb', 'f.png', np.uint8),
        ('deep/g.png', 'palette', 'deep/g.png', np.uint16),
        ('empty.png', 'rgb', 'empty.png', np.uint8),
    ]
    ground_truths, rows = {}, ['file,object,class']
    for seed, (image_name, kind, label_name, dtype) in enumerate(kinds):
        pixels, tolerance = save_image(folder / 'images' / image_name, kind, seed)
        labels = np.zeros((HEIGHT, WIDTH), dtype)
        objects = []
        if image_name != 'empty.png':
            for value, name, mask in numbered(dtype):
                labels[mask] = value
                objects.append(Object(name if classes else 'object', mask))
                rows.append(f'{image_name},{value},{name}')
        path = folder / 'labels' / label_name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(path)
        ground_truths[image_name] = GroundTruth(image_name, pixels, objects, tolerance)
    if classes:
        (folder / 'classes.csv').write_text('\n'.join(rows))
    return ground_truths


def numbered(dtype):
    # Numbers with a gap; beyond 255 where there is room.
    last = 255 if dtype == np.uint8 else 40000
    return [
        (1, 'gland', rectangle(2, 3, 12, 20)),
        (2, 'vessel', rectangle(14, 0, 15, 1)),
        (7, 'gland', rectangle(20, 2, 30, 12) | rectangle(20, 30, 28, 46)),
        (last, 'vessel', rectangle(3, 24, 16, 44)),
    ]
