# SPDX-License-Identifier: Apache-2.0
"""Which image files to predict, and the objects in each; few images are in memory at a time."""

import glob
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Optional

import numpy as np

from gan_mrcnn.data.readers import images
from gan_mrcnn.prediction import objects, signatures, tiles
from gan_mrcnn.prediction import predictor as predictor_lib
from gan_mrcnn.utils.errors import UserError


class Source(NamedTuple):
    """A file, and what its results are called: its place below the folder given, no suffix."""

    path: pathlib.Path
    name: str


class Result(NamedTuple):
    """An image [H, W, 3] uint8 RGB and its objects, best first."""

    source: Source
    pixels: np.ndarray
    objects: list[objects.Object]


def find_sources(arguments: Sequence[str]) -> list[Source]:
    """Files, folders (with all below) and patterns, in the order given, each file once.

    Of a folder, without what is hidden and without label images (`images.list_images`).

    Raises:
      UserError: an argument matches no image, or two files would have results of the same name.
    """
    sources: dict[pathlib.Path, Source] = {}
    for argument in arguments:
        found = list(_expand(argument))
        if not found:
            suffixes = ', '.join(images.IMAGE_SUFFIXES)
            raise UserError(f'{argument}: no image there; {suffixes} are read')
        for source in found:
            sources.setdefault(source.path.resolve(), source)
    names: dict[str, pathlib.Path] = {}
    for source in sources.values():
        other = names.setdefault(source.name, source.path)
        if other != source.path:
            raise UserError(
                f'{other} and {source.path} would both become {source.name}; give the folder '
                'above them, or predict them into different folders'
            )
    return list(sources.values())


def _expand(argument):
    folder = pathlib.Path(argument)
    if folder.is_dir():
        for path in images.list_images(folder):
            yield Source(path, path.relative_to(folder).with_suffix('').as_posix())
        return
    matches = [argument] if folder.is_file() else sorted(glob.glob(argument, recursive=True))
    for path in map(pathlib.Path, matches):
        if path.is_file():
            yield Source(path, path.stem)


def detect(
    sources: Iterable[Source],
    predictor: predictor_lib.Predictor,
    score_threshold: float,
    batch_size: int,
    tile: Optional[tuple[int, int]],
    overlap: int,
    problems: list[str],
) -> Iterator[Result]:
    """Predicts every image, in the order of `sources`.

    Args:
      sources: see `find_sources`.
      predictor: the network.
      score_threshold: objects below it are dropped.
      batch_size: images, or tiles of one image, that the network sees at a time.
      tile: height and width in pixels; larger images are predicted in tiles. None: no tiles.
      overlap: of neighbouring tiles, in pixels.
      problems: filled with a line for each image that is skipped because it cannot be used.
    """
    batch: list[tuple[Source, images.DecodedImage]] = []
    for source in sources:
        try:
            image = images.read_image(source.path)
            height, width = image.pixels.shape[:2]
            in_tiles = tile is not None and (height > tile[0] or width > tile[1])
            if not in_tiles and height * width > signatures.MAX_PIXELS:
                raise UserError(
                    f'{source.path} has {width}x{height} pixels, too many at once; give --tile'
                )
        except UserError as error:
            problems.append(str(error))
            continue
        if not in_tiles:
            batch.append((source, image))
        if in_tiles or len(batch) == batch_size:
            yield from _as_wholes(batch, predictor, score_threshold)
            batch = []
        if in_tiles:
            windows = tiles.make_tiles(height, width, tile, overlap)
            detected = _in_tiles(image.pixels, windows, predictor, score_threshold, batch_size)
            yield Result(source, image.pixels, detected)
    yield from _as_wholes(batch, predictor, score_threshold)


def _as_wholes(batch, predictor, score_threshold):
    """A `Result` for each pair of source and image, predicted in one batch."""
    if not batch:
        return
    try:
        predicted = predictor.detect([p.encoded or images.as_png(p.pixels) for _, p in batch])
    except UserError:
        # Pillow reads damaged files that TensorFlow refuses.
        predicted = predictor.detect([images.as_png(p.pixels) for _, p in batch])
    for (source, image), detections in zip(batch, predicted):
        window = (0, 0, *image.pixels.shape[:2])
        detected = objects.from_detections(detections, window, score_threshold)
        yield Result(source, image.pixels, detected)


def _in_tiles(pixels, windows, predictor, score_threshold, batch_size):
    """The objects of one image, predicted in `windows`."""
    parts = []
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        crops = np.stack([pixels[y1:y2, x1:x2] for y1, x1, y2, x2 in batch])
        for window, detections in zip(batch, predictor.detect_pixels(crops)):
            detected = objects.from_detections(detections, window, score_threshold)
            parts.extend((window, one) for one in detected)
    return tiles.merge(parts)
