# SPDX-License-Identifier: Apache-2.0
"""The objects of a slide as files, written one object at a time.

`objects.geojson`: a detection for each, which QuPath opens on the slide. `objects.csv`: a row for
each, in the same order. `overview.png`: the slide, small, with the tissue that was searched and the
objects.

Objects come in pixels of the view that was predicted. Places in the files are in pixels of level 0
and, in the table, in micrometres as well.
"""

import csv
import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple, TextIO

import cv2
import numpy as np

from gan_mrcnn.prediction import geojson, image_files, objects, slides
from gan_mrcnn.utils import visualization

GEOJSON, TABLE, OVERVIEW = 'objects.geojson', 'objects.csv', image_files.OVERVIEW
COLUMNS = ('object', 'class', 'score', 'area_um2', 'perimeter_um')
PLACES = ('y', 'x', 'y1', 'x1', 'y2', 'x2')
# The longer side of the overview, in pixels.
OVERVIEW_SIDE = 2048
_TISSUE = (60, 60, 60)
# Digits of places, in pixels of level 0.
_DIGITS = 2


class Scale(NamedTuple):
    """From pixels of the view to level 0 and micrometres; each vertical, horizontal.

    pixels: of level 0, to one of the view.
    micrometres: to one of level 0.
    """

    pixels: tuple[float, float]
    micrometres: tuple[float, float]

    @property
    def side(self) -> float:
        """Micrometres to a pixel of the view: the side of a square of its area."""
        return float(np.sqrt(np.prod(self.pixels) * np.prod(self.micrometres)))


class Writer:
    """Writes GeoJSON and table, which are complete after `close`."""

    def __init__(self, collection: TextIO, table: TextIO, class_names: Sequence[str], scale: Scale):
        """Writes what comes before the first object.

        Args:
          collection: file of the GeoJSON.
          table: file of the table, opened with newline=''.
          class_names: see `model_card.ModelCard`.
          scale: of the objects.
        """
        self._collection, self._rows = collection, csv.writer(table)
        self._class_names, self._scale = class_names, scale
        self.num_objects = 0
        collection.write('{"type": "FeatureCollection", "features": [')
        self._rows.writerow([*COLUMNS, *PLACES, *(f'{name}_um' for name in PLACES)])

    def add(self, one: objects.Object) -> None:
        """Writes an object into both."""
        # As annotations QuPath shows some thousands.
        name = self._class_names[one.class_id - 1]
        feature = geojson.feature(one, name, self._scale.side, 'detection')
        properties, geometry = feature['properties'], feature['geometry']
        geometry['coordinates'] = self._at_level_0(geometry['coordinates'])
        self._collection.write(',\n' if self.num_objects else '\n')
        self._collection.write(json.dumps(feature, ensure_ascii=False))
        self.num_objects += 1
        self._add_row(one, properties['measurements'])

    def close(self) -> None:
        """Completes the collection."""
        self._collection.write('\n]}\n')

    def _at_level_0(self, coordinates):
        if isinstance(coordinates[0], list):
            return [self._at_level_0(one) for one in coordinates]
        y, x = self._scale.pixels
        return [round(coordinates[0] * x, _DIGITS), round(coordinates[1] * y, _DIGITS)]

    def _add_row(self, one, measurements):
        middle = np.mean(np.nonzero(one.mask), axis=1) + 0.5 + [one.top, one.left]
        places = np.array([middle, one.box[:2], one.box[2:]]) * self._scale.pixels
        self._rows.writerow(
            [
                self.num_objects,
                self._class_names[one.class_id - 1],
                f'{one.score:.4f}',
                f'{measurements["Area um^2"]:.2f}',
                f'{measurements["Perimeter um"]:.2f}',
                *(f'{value:.{_DIGITS}f}' for value in places.ravel()),
                *(f'{value:.2f}' for value in (places * self._scale.micrometres).ravel()),
            ]
        )


class Overview:
    """The slide with outlines: dark of the tissue, in its class's colour of each object."""

    def __init__(self, pixels: np.ndarray, mask: np.ndarray, height: int, width: int):
        """Starts with the tissue.

        Args:
          pixels: [h, w, 3] uint8 RGB, the slide.
          mask: [h', w'] bool, where tissue is on it.
          height: of the view that objects are from, in pixels.
          width: of the view that objects are from, in pixels.
        """
        self._canvas = pixels.copy()
        self._scale = pixels.shape[1] / width, pixels.shape[0] / height
        tissue = cv2.resize(mask.astype(np.uint8), pixels.shape[1::-1])
        outlines, _ = cv2.findContours(tissue, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(self._canvas, outlines, -1, _TISSUE, 1)

    def add(self, one: objects.Object) -> None:
        """Draws an object."""
        found, _ = cv2.findContours(
            one.mask.astype(np.uint8),
            cv2.RETR_CCOMP,
            cv2.CHAIN_APPROX_NONE,
            offset=(one.left, one.top),
        )
        drawn = [np.round(outline * self._scale).astype(np.int32) for outline in found]
        cv2.polylines(self._canvas, drawn, True, geojson.class_colour(one.class_id), 2, cv2.LINE_AA)

    def save(self, path: pathlib.Path) -> None:
        """Writes the picture."""
        visualization.save_png(str(path), self._canvas)


def overview_of(slide: slides.Slide) -> np.ndarray:
    """The slide as small as an overview, [h, w, 3] uint8 RGB."""
    factor = min(1.0, OVERVIEW_SIDE / max(slide.size))
    height, width = (max(1, round(side * factor)) for side in slide.size)
    return slide.view(height, width).read((0, 0, height, width))
