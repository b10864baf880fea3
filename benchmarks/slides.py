# SPDX-License-Identifier: Apache-2.0
"""Memory and time of predicting whole slides, by their size.

Made slides of glass with islands of stained cells go through everything but the network, in whose
place a stand-in marks connected stain: what is measured is reading, tissue, seams and writing.

    python benchmarks/slides.py --sides 10000 20000 40000

Each slide is predicted in a process of its own; its peak memory is compared with that after the
imports.
"""

import argparse
import json
import multiprocessing
import pathlib
import resource
import tempfile
import time

import cv2
import numpy as np

TILE = 256
MICROMETRES = 0.25
GLASS, STROMA, CELL = (241, 240, 242), (228, 180, 205), (120, 60, 150)
# In pixels of level 0: a cell in each square of a lattice, and islands of tissue.
LATTICE, RADIUS, ISLAND = 120, 40, 6000


def region(y, x, height, width, step):
    """A window of the slide whose pixels are `step` pixels of level 0 apart, [h, w, 3] uint8."""
    rows = ((y + np.arange(height)) * step)[:, None]
    columns = ((x + np.arange(width)) * step)[None]
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = GLASS
    tissue = (rows % (2 * ISLAND) - ISLAND) ** 2 + (columns % (2 * ISLAND) - ISLAND) ** 2
    tissue = tissue < (0.6 * ISLAND) ** 2
    pixels[tissue] = STROMA
    distance = (rows % LATTICE - LATTICE // 2) ** 2 + (columns % LATTICE - LATTICE // 2) ** 2
    pixels[tissue & (distance < RADIUS**2)] = CELL
    return pixels


def write_slide(path, side):
    """A pyramid with levels of a half, a quarter, and so on, tile by tile."""
    import tifffile

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(6):
            length = side >> level
            starts = range(0, length, TILE)
            density = 10000 / MICROMETRES / (1 << level)
            file.write(
                (region(y, x, TILE, TILE, 1 << level) for y in starts for x in starts),
                shape=(length, length, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric='rgb',
                compression='deflate',
                subfiletype=int(level > 0),
                metadata=None,
                resolution=(density, density),
                resolutionunit='CENTIMETER',
            )


def predict(path, out, connection):
    """Predicts a slide in this process, and sends what it took."""
    from gan_mrcnn.prediction import image_files, model_card, slide_plan, slide_run
    from gan_mrcnn.prediction import predictor as predictor_lib

    class StandIn:
        card = model_card.ModelCard(
            ('cell',), (1,), 0.5, (576, 832), 522, (0.0,), (1.0,), 'none', 0, '', 0.5, (522, 775)
        )

        def detect_pixels(self, images):
            return [self._detect(image) for image in images]

        def _detect(self, image):
            stained = (image[..., 1] < 110).astype(np.uint8)
            found = cv2.connectedComponentsWithStats(stained)[2][1:]
            x, y, width, height = found[:, :4].T
            return predictor_lib.Detections(
                np.stack([y, x, y + height, x + width], axis=1).astype(np.float32),
                np.full(len(found), 0.9, np.float32),
                np.ones(len(found), np.int32),
                np.ones([len(found), 28, 28], np.float32),
            )

    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # noqa: E731
    before, begin = peak(), time.monotonic()
    sources = [image_files.Source(pathlib.Path(path), 'slide')]
    slide_run.predict(sources, StandIn(), out, slide_plan.Options('none'), [])
    connection.send((before, peak(), time.monotonic() - begin, time.process_time()))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--sides', type=int, nargs='+', default=[10000, 20000, 40000])
    options = parser.parse_args()
    context = multiprocessing.get_context('spawn')
    print('side    file MB  tiles  objects  GeoJSON MB  before MB  peak MB  wall s  CPU s')
    for side in options.sides:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, 'slide.tif')
            write_slide(path, side)
            ours, theirs = context.Pipe()
            process = context.Process(target=predict, args=(str(path), f'{folder}/out', theirs))
            process.start()
            before, peak, wall, cpu = ours.recv()
            process.join()
            out = pathlib.Path(folder, 'out/slide')
            found = json.loads((out / 'slide.json').read_text())
            written = (out / 'objects.geojson').stat().st_size / 1e6
            print(
                f'{side:<8}{path.stat().st_size / 1e6:7.1f}{found["tiles"]:7}{found["objects"]:9}'
                f'{written:12.1f}{before:11.0f}{peak:9.0f}{wall:8.0f}{cpu:7.0f}',
                flush=True,
            )


if __name__ == '__main__':
    main()
