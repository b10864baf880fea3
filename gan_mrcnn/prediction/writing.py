# SPDX-License-Identifier: Apache-2.0
"""Predictions as files.

`OUT/overlays/NAME.png`: the image with outlines and scores. `OUT/labels/NAME.png`, 16 bits: 0
background, otherwise the object's number in the table. `OUT/objects.csv`: class, score, area and
box of every object. `OUT/predictions.json`: the same with masks, in COCO's format.
"""

import csv
import io
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from gan_mrcnn.prediction import image_files, model_card, objects
from gan_mrcnn.prediction.image_files import Result
from gan_mrcnn.utils import disk, files, visualization
from gan_mrcnn.utils.errors import UserError

TABLE, PREDICTIONS = 'objects.csv', 'predictions.json'
COLUMNS = ('file', 'object', 'class', 'score', 'area', 'y1', 'x1', 'y2', 'x2')
# Overlays are drawn block by block, for drawing needs a mask of the block's size per object.
BLOCK, MARGIN = 1024, 64
_MOST_LABELS = 65535


class TooManyObjects(UserError):
    """A label image cannot number the objects of an image."""


class Writer:
    """Writes results one image at a time; table and JSON are complete after `close`."""

    def __init__(self, folder: str, card: model_card.ModelCard):
        self._folder = pathlib.Path(folder)
        self._card = card
        self._coco = {
            'info': {'description': f'{card.checkpoint}, step {card.step}'},
            'images': [],
            'annotations': [],
            'categories': [
                {'id': i, 'name': name} for i, name in zip(card.category_ids, card.class_names)
            ],
        }
        self._table = io.StringIO()
        self._rows = csv.writer(self._table)
        self._rows.writerow(COLUMNS)
        prepare_folder(folder)

    def add(self, result: Result) -> None:
        """Writes one image's overlay, label image and rows."""
        write_images(self._folder, result)
        self.add_entry(entry(result, self._card))

    def add_entry(self, described: dict[str, Any]) -> None:
        """Adds what `entry` says of an image to table and JSON."""
        self._rows.writerows(described['rows'])
        images, annotations = self._coco['images'], self._coco['annotations']
        image_id = len(images) + 1
        images.append({'id': image_id, **described['image']})
        for one in described['annotations']:
            annotations.append({'id': len(annotations) + 1, 'image_id': image_id, **one})

    def close(self) -> None:
        """Writes table and JSON of the images so far, each whole or not at all."""
        with disk.errors_named(f'--out {self._folder}'):
            files.write_text(self._folder / TABLE, self._table.getvalue())
            # On one line: masks make it large.
            files.write_json(self._folder / PREDICTIONS, self._coco, indent=None)


def write_images(folder: pathlib.Path, result: Result) -> None:
    """Writes the overlay and the label image of one image.

    Raises:
      TooManyObjects: see `label_image`; nothing is written then.
    """
    name = f'{result.source.name}.png'
    labels = label_image(result.objects, *result.pixels.shape[:2])
    with disk.errors_named(f'--out {folder}'):
        visualization.save_png(str(folder / image_files.OVERLAYS / name), draw(result))
        encoded = cv2.imencode('.png', labels)[1].tobytes()
        files.write_bytes(folder / image_files.LABELS / name, encoded)


def entry(result: Result, card: model_card.ModelCard) -> dict[str, Any]:
    """What table and JSON have of an image, as JSON; numbers of all images are not yet in it."""
    height, width = result.pixels.shape[:2]
    return {
        'rows': [
            [file, number, name, f'{score:.4f}', area, *(f'{value:.2f}' for value in box)]
            for file, number, name, score, area, *box in rows(result, card)
        ],
        'image': {'file_name': str(result.source.path), 'height': height, 'width': width},
        'annotations': [annotation(one, card, height, width) for one in result.objects],
    }


def rows(result: Result, card: model_card.ModelCard) -> Iterator[tuple]:
    """The objects of an image as rows of `COLUMNS`."""
    for number, one in enumerate(result.objects, start=1):
        name = card.class_names[one.class_id - 1]
        yield str(result.source.path), number, name, one.score, one.area, *one.box


def annotation(
    one: objects.Object, card: model_card.ModelCard, height: int, width: int
) -> dict[str, Any]:
    """An object of an image of this size, in pixels, in COCO's format without its ids."""
    y1, x1, y2, x2 = one.box
    return {
        'category_id': card.category_ids[one.class_id - 1],
        'score': one.score,
        'bbox': [x1, y1, x2 - x1, y2 - y1],
        'area': one.area,
        'iscrowd': 0,
        'segmentation': objects.encode(one, height, width),
    }


def prepare_folder(folder: str) -> None:
    """Makes the folders; UserError where they cannot be written, or labels are there already.

    The labels of a data set are label images of the same names: they would be overwritten.
    """
    path = pathlib.Path(folder)
    disk.check_folder(path, '--out')
    overlays, labels = path / image_files.OVERLAYS, path / image_files.LABELS
    if labels.is_dir() and not overlays.is_dir() and any(labels.iterdir()):
        raise UserError(
            f'--out {folder}: {labels} was not written by a prediction, and would be overwritten; '
            'give another folder'
        )
    for part in (overlays, labels):
        disk.check_folder(part, '--out')
    for name in (TABLE, PREDICTIONS):
        disk.check_file(path / name, '--out')


def label_image(detected: Sequence[objects.Object], height: int, width: int) -> np.ndarray:
    """[height, width] uint16: the object's place in `detected`, from 1; the first one is on top.

    Raises:
      TooManyObjects: there are more objects than 16 bits can number.
    """
    if len(detected) > _MOST_LABELS:
        raise TooManyObjects(
            f'{len(detected)} objects in one image, more than the {_MOST_LABELS} of a label image; '
            'give a higher --score_threshold'
        )
    labels = np.zeros((height, width), np.uint16)
    for number in range(len(detected), 0, -1):
        y1, x1, y2, x2 = detected[number - 1].window()
        labels[y1:y2, x1:x2][detected[number - 1].mask] = number
    return labels


def draw(result: Result) -> np.ndarray:
    """The image with its objects, [H, W, 3] uint8 RGB."""
    height, width = result.pixels.shape[:2]
    if max(height, width) <= BLOCK:
        return _draw_window(result, (0, 0, height, width), scores=True)
    canvas = np.empty_like(result.pixels)
    # Windows are larger than blocks, because the rim of a mask that is cut off is not its outline,
    # and all of one size, because the width of a line goes with it.
    sides = [min(BLOCK + 2 * MARGIN, length) for length in (height, width)]
    for y in range(0, height, BLOCK):
        for x in range(0, width, BLOCK):
            top, left = (
                min(max(start - MARGIN, 0), length - side)
                for start, length, side in zip((y, x), (height, width), sides)
            )
            drawn = _draw_window(result, (top, left, top + sides[0], left + sides[1]), scores=False)
            canvas[y : y + BLOCK, x : x + BLOCK] = drawn[
                y - top : y - top + BLOCK, x - left : x - left + BLOCK
            ]
    return canvas


def _draw_window(result, window, scores):
    chosen = []
    for number, one in enumerate(result.objects):
        y1, x1, y2, x2 = objects.intersect(one.window(), window)
        if y2 > y1 and x2 > x1:
            chosen.append((number, one))
    pixels = result.pixels[window[0] : window[2], window[1] : window[3]]
    palette = visualization.PALETTE
    return visualization.draw_instances(
        pixels,
        np.array([one.cut(window) for _, one in chosen], bool).reshape(-1, *pixels.shape[:2]),
        scores=[one.score for _, one in chosen] if scores else None,
        # Where an image is drawn in blocks, an object has the same colour in all of them.
        colours=None if scores else [palette[number % len(palette)] for number, _ in chosen],
    )
