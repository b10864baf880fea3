# SPDX-License-Identifier: Apache-2.0
"""Which pictures to look at, and what is found in each, few of them in memory at a time."""

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
    """A picture [H, W, 3] uint8 RGB and its objects, best first."""

    source: Source
    pixels: np.ndarray
    objects: list[objects.Object]


def find_sources(arguments: Sequence[str]) -> list[Source]:
    """Files, folders (with all below) and patterns, in the order given, each file once.

    Raises:
      UserError: nothing is there, or two files would have results of the same name.
    """
    sources: dict[pathlib.Path, Source] = {}
    for argument in arguments:
        found = list(_expand(argument))
        if not found:
            suffixes = ', '.join(images.PICTURE_SUFFIXES)
            raise UserError(f'{argument}: no picture there; {suffixes} are read')
        for source in found:
            sources.setdefault(source.path.resolve(), source)
    names: dict[str, pathlib.Path] = {}
    for source in sources.values():
        other = names.setdefault(source.name, source.path)
        if other != source.path:
            raise UserError(
                f'{other} and {source.path} would both become {source.name}; give the folder '
                'above, or predict one after the other'
            )
    return list(sources.values())


def _expand(argument):
    folder = pathlib.Path(argument)
    if folder.is_dir():
        for path in sorted(folder.rglob('*')):
            if path.suffix.lower() in images.PICTURE_SUFFIXES and path.is_file():
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
    """What is found in each picture, in the order of `sources`.

    Args:
      sources: see `find_sources`.
      predictor: the network.
      score_threshold: objects below it are left out.
      batch_size: pictures, or tiles of one picture, that the network sees at a time.
      tile: height and width; larger pictures are looked at in tiles. None: every one as a whole.
      overlap: of neighbouring tiles, in pixels.
      problems: filled with a line for each picture that cannot be used; the others go on.
    """
    waiting: list[tuple[Source, images.Picture]] = []

    def run_waiting():
        found = _as_wholes([picture for _, picture in waiting], predictor)
        for (source, picture), detections in zip(waiting, found):
            window = (0, 0, *picture.pixels.shape[:2])
            yield Result(
                source,
                picture.pixels,
                objects.from_detections(detections, window, score_threshold),
            )
        waiting.clear()

    for source in sources:
        try:
            picture = images.read_picture(source.path)
        except UserError as error:
            problems.append(str(error))
            continue
        height, width = picture.pixels.shape[:2]
        if tile and (height > tile[0] or width > tile[1]):
            if waiting:
                yield from run_waiting()
            windows = tiles.make_tiles(height, width, tile, overlap)
            found = _in_tiles(picture.pixels, windows, predictor, score_threshold, batch_size)
            yield Result(source, picture.pixels, found)
            continue
        if height * width > signatures.MAX_PIXELS:
            problems.append(
                f'{source.path} has {width}x{height} pixels, too many at once; give --tile'
            )
            continue
        waiting.append((source, picture))
        if len(waiting) == batch_size:
            yield from run_waiting()
    if waiting:
        yield from run_waiting()


def _as_wholes(batch, predictor):
    try:
        return predictor.detect([p.encoded or images.as_png(p.pixels) for p in batch])
    except UserError:
        # Pillow reads damaged files that TensorFlow refuses.
        return predictor.detect([images.as_png(p.pixels) for p in batch])


def _in_tiles(pixels, windows, predictor, score_threshold, batch_size):
    found = []
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        cut = np.stack([pixels[y1:y2, x1:x2] for y1, x1, y2, x2 in batch])
        for window, detections in zip(batch, predictor.detect_pixels(cut)):
            for one in objects.from_detections(detections, window, score_threshold):
                found.append((window, one))
    return tiles.merge(found)
