# SPDX-License-Identifier: Apache-2.0
"""Which image files to predict, and the objects in each; few images are in memory at a time.

A folder of pictures holds more than pictures: hidden copies of notebooks and file systems, label
images, and what an earlier prediction has drawn. None of these is predicted, unless it is named.
"""

import glob
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Callable, NamedTuple, Optional

import numpy as np

from gan_mrcnn.data.readers import images
from gan_mrcnn.prediction import objects, signatures, slides, tiles
from gan_mrcnn.prediction import predictor as predictor_lib
from gan_mrcnn.utils.errors import UserError
from gan_mrcnn.utils.paths import PathLike

# What predictions and the client write, in the folder that they are given.
OVERLAYS, LABELS, DRAWN = 'overlays', 'labels', '.detections'
# Folders beside `images` that hold the label images of its pictures.
_LABEL_FOLDERS = ('annotations', 'gt', 'labels', 'masks')
_READ = f'{", ".join(images.IMAGE_SUFFIXES)} are read, and whole slides'
# What predictions write of a slide, beside each other.
OVERVIEW, SUMMARY = 'overview.png', 'slide.json'


class Source(NamedTuple):
    """A file, and what its results are called: its place below the folder given, no suffix."""

    path: pathlib.Path
    name: str


class Result(NamedTuple):
    """An image [H, W, 3] uint8 RGB and its objects, best first."""

    source: Source
    pixels: np.ndarray
    objects: list[objects.Object]


def find_sources(
    arguments: Sequence[str], out: str = '', left_out: Optional[list[str]] = None
) -> list[Source]:
    """Files, folders (with all below) and patterns, in the order given, each file once.

    Args:
      arguments: of the command line. A file that is named is predicted, whatever it is, unless it
        is the label image of a picture that is named as well.
      out: the folder of the results, of which nothing is predicted that was written there.
      left_out: filled with a line for what a folder or pattern has and is not predicted.

    Raises:
      UserError: an argument matches no image, a folder cannot be read, or two files would have
        results of the same name.
    """
    sources: dict[str, Source] = {}
    skipped: dict[str, list[pathlib.Path]] = {}
    given = set(map(pathlib.Path, arguments))
    for argument in arguments:
        before = _count(skipped)
        found = list(_expand(argument, given, out, skipped))
        if not found and _count(skipped) == before:
            raise UserError(f'{argument}: no image there; {_READ}')
        for source in found:
            sources.setdefault(os.path.realpath(source.path), source)
    if not sources:
        others = ', '.join(_texts(skipped))
        raise UserError(
            f'{" ".join(arguments)}: no image there; {_READ} (left out: {others}; name a file by '
            'itself to predict it)'
        )
    names: dict[str, pathlib.Path] = {}
    for source in sources.values():
        other = names.setdefault(source.name, source.path)
        if other != source.path:
            raise UserError(
                f'{other} and {source.path} would both become {source.name}; give the folder '
                'above them, or predict them into different folders'
            )
    if left_out is not None:
        left_out += _texts(skipped)
    return list(sources.values())


def _count(skipped) -> int:
    return sum(map(len, skipped.values()))


def _texts(skipped) -> list[str]:
    """Such as '3 label images, such as a_anno.bmp'."""
    return [f'{len(paths)} {kind}, such as {paths[0]}' for kind, paths in skipped.items()]


def _expand(argument, given, out, skipped):
    folder = pathlib.Path(argument)
    if folder.is_file():
        # What is named is predicted, whatever it is; but a shell's *.png names pictures as well.
        kind = _no_picture(folder, folder, None) if given & set(_pictures_of(folder)) else ''
        if kind:
            skipped.setdefault(kind, []).append(folder)
        else:
            yield Source(folder, folder.stem)
        return
    if folder.is_dir():
        found = [path for path in _walk(folder) if _is_read(path)]
        name = lambda path: path.relative_to(folder).with_suffix('').as_posix()  # noqa: E731
    else:
        found = [path for path in map(pathlib.Path, _matches(argument)) if path.is_file()]
        name = lambda path: path.stem  # noqa: E731
    own = os.path.realpath(out) if out else None
    for path in found:
        kind = _no_picture(path, folder, own)
        if kind:
            skipped.setdefault(kind, []).append(path)
        else:
            yield Source(path, name(path))


def _is_read(path: pathlib.Path) -> bool:
    return path.suffix.lower() in images.IMAGE_SUFFIXES or path.name.lower().endswith(
        slides.SUFFIXES
    )


def _walk(folder: pathlib.Path) -> list[pathlib.Path]:
    """All files below `folder`, sorted; UserError where a folder cannot be read."""

    def stop(error):
        raise UserError(
            f'{error.filename} cannot be read ({error.strerror}); give permission, or other folders'
        ) from error

    found = [
        pathlib.Path(place, name)
        for place, _, names in os.walk(folder, onerror=stop)
        for name in names
    ]
    return sorted(path for path in found if path.is_file())


def _matches(pattern: str) -> list[str]:
    """Files of a pattern; what is a folder by its very name stands for itself."""
    parts = pathlib.PurePath(pattern).parts
    for count in range(len(parts) - 1, 0, -1):
        literal = str(pathlib.PurePath(*parts[:count]))
        if os.path.isdir(literal):
            pattern = os.path.join(glob.escape(literal), *parts[count:])
            break
    return sorted(glob.glob(pattern, recursive=True))


def _no_picture(path: pathlib.Path, folder: pathlib.Path, own: Optional[str]) -> str:
    """What a file is that was found and is no picture to predict, '' for a picture."""
    inside = path.relative_to(folder).parts if folder.is_dir() else path.parts[-1:]
    if any(part.startswith('.') for part in inside):
        return 'hidden files'
    if path.stem.endswith(DRAWN) or _is_written(path, own):
        return 'results of predictions'
    return 'label images' if _pictures_of(path) else ''


def _pictures_of(path: pathlib.Path) -> list[pathlib.Path]:
    """Pictures whose label image, or what was drawn of them, `path` is by its name and place."""
    stem = images.stem_of_labelled(path.stem)
    if path.stem.endswith(DRAWN):
        stem = path.stem[: -len(DRAWN)]
    places = [path.parent / stem] if stem else []
    for parent in path.parents:
        if parent.name.lower() in _LABEL_FOLDERS:
            places.append(parent.parent / 'images' / path.relative_to(parent).parent / path.stem)
    suffixes = [s for suffix in images.IMAGE_SUFFIXES for s in (suffix, suffix.upper())]
    found = [pathlib.Path(f'{place}{suffix}') for place in places for suffix in suffixes]
    return [picture for picture in found if picture.is_file()]


def _is_written(path: pathlib.Path, own: Optional[str]) -> bool:
    """Whether a prediction has written a file: an overlay, a label image, a slide's overview."""
    if path.name == OVERVIEW and (path.parent / SUMMARY).is_file():
        return True
    for parent in path.parents:
        if parent.name in (OVERLAYS, LABELS):
            place = os.path.realpath(parent.parent)
            if place == own or is_results(place):
                return True
    return False


def is_results(folder: PathLike) -> bool:
    """Whether a folder is one that predictions were written into."""
    return all(os.path.isdir(os.path.join(folder, name)) for name in (OVERLAYS, LABELS))


def read(
    sources: Iterable[Source],
    problems: list[str],
    read_image: Callable[[pathlib.Path], images.DecodedImage] = images.read_image,
) -> Iterator[tuple[Source, images.DecodedImage]]:
    """The images of `sources` that can be read; `problems` gets a line for each of the others."""
    for source in sources:
        try:
            yield source, read_image(source.path)
        except UserError as error:
            problems.append(str(error))


def detect(
    pictures: Iterable[tuple[Source, images.DecodedImage]],
    predictor: predictor_lib.Predictor,
    score_threshold: float,
    batch_size: int,
    tile: Optional[tuple[int, int]],
    overlap: int,
    problems: list[str],
) -> Iterator[Result]:
    """Predicts every image, in the order given; as many as a batch has are in memory at a time.

    Args:
      pictures: see `read`.
      predictor: the network.
      score_threshold: objects below it are dropped.
      batch_size: images, or tiles of one image, that the network sees at a time.
      tile: height and width in pixels; larger images are predicted in tiles. None: no tiles.
      overlap: of neighbouring tiles, in pixels.
      problems: filled with a line for each image that is skipped because it cannot be used.
    """
    batch: list[tuple[Source, images.DecodedImage]] = []
    for source, image in pictures:
        height, width = image.pixels.shape[:2]
        in_tiles = tile is not None and (height > tile[0] or width > tile[1])
        if not in_tiles and height * width > signatures.MAX_PIXELS:
            problems.append(
                f'{source.path} has {width}x{height} pixels, too many at once; give --tile (in '
                'Python: tile)'
            )
            continue
        if not in_tiles:
            batch.append((source, image))
        if in_tiles or len(batch) == batch_size:
            yield from _as_wholes(batch, predictor, score_threshold, problems)
            batch = []
        if in_tiles:
            windows = tiles.make_tiles(height, width, tile, overlap)
            try:
                detected = _in_tiles(image.pixels, windows, predictor, score_threshold, batch_size)
            except UserError as error:
                problems.append(f'{source.path}: {error}')
                continue
            yield Result(source, image.pixels, detected)
    yield from _as_wholes(batch, predictor, score_threshold, problems)


def _as_wholes(batch, predictor, score_threshold, problems):
    """A `Result` for each pair of source and image, predicted in one batch."""
    if not batch:
        return
    try:
        predicted = predictor.detect([p.encoded or images.as_png(p.pixels) for _, p in batch])
    except UserError:
        # Pillow reads damaged files that TensorFlow refuses.
        try:
            predicted = predictor.detect([images.as_png(p.pixels) for _, p in batch])
        except UserError as error:
            if len(batch) == 1:
                problems.append(f'{batch[0][0].path}: {error}')
            else:
                for one in batch:
                    yield from _as_wholes([one], predictor, score_threshold, problems)
            return
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
