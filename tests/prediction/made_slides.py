"""Slides that tests make: glass with rectangles of a stain, and a network that finds these."""

import dataclasses

import cv2
import numpy as np

from gan_mrcnn.prediction import model_card
from gan_mrcnn.prediction import predictor as predictor_lib

STAIN = (150, 60, 160)
CARD = model_card.ModelCard(
    class_names=('cell', 'other'),
    category_ids=(1, 2),
    score_threshold=0.5,
    input_size=(64, 128),
    short_side=64,
    mean_rgb=(0,),
    stddev_rgb=(1,),
    checkpoint='ckpt-1',
    step=1,
    version='1',
    micrometres_per_pixel=0.5,
    image_size=(96, 128),
)


def glass(height, width, rectangles=()):
    """A slide [height, width, 3] uint8 with rectangles y1, x1, y2, x2 of stain."""
    pixels = np.full((height, width, 3), 240, np.uint8)
    for y1, x1, y2, x2 in rectangles:
        pixels[y1:y2, x1:x2] = STAIN
    return pixels


def write_pyramid(path, pixels, micrometres=0.5, factors=(1, 2, 4), **options):
    """A pyramid of TIFF in tiles, each level the means of the first."""
    import tifffile

    with tifffile.TiffWriter(path) as file:
        for factor in factors:
            height, width = (side // factor for side in pixels.shape[:2])
            level = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
            density = 10000 / micrometres / factor if micrometres else 1
            file.write(
                level,
                tile=(64, 64),
                photometric='rgb',
                compression='deflate',
                subfiletype=int(factor > 1),
                metadata=None,
                resolution=(density, density),
                resolutionunit='CENTIMETER' if micrometres else 'NONE',
                **options,
            )


class Stains:
    """A network that detects every connected piece of stain that a tile shows, as its box."""

    def __init__(self, stop_after=None, **card):
        self.card = dataclasses.replace(CARD, **card)
        self.num_tiles, self.shapes = 0, set()
        self._stop_after = stop_after

    def detect_pixels(self, images):
        return [self._detect(image) for image in images]

    def _detect(self, image):
        if self.num_tiles == self._stop_after:
            raise KeyboardInterrupt
        self.num_tiles += 1
        self.shapes.add(image.shape)
        stained = (image[..., 1] < 150).astype(np.uint8)
        _, _, found, _ = cv2.connectedComponentsWithStats(stained, connectivity=4)
        x, y, width, height = found[1:, :4].T
        return predictor_lib.Detections(
            np.stack([y, x, y + height, x + width], axis=1).astype(np.float32),
            np.full(len(x), 0.9, np.float32),
            np.ones(len(x), np.int32),
            np.ones([len(x), 28, 28], np.float32),
        )
