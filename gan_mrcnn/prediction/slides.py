# SPDX-License-Identifier: Apache-2.0
"""Whole slides: files of gigapixels, of which any window can be read at any resolution.

OpenSlide reads the scanners' own formats, tifffile reads OME-TIFF and what else OpenSlide does not.
Both come with the extra `slides` and are imported when a slide is opened.

Level 0 is the slide in full. Its pixels count from the upper left corner of what the scanner has
scanned: where a file says that the rest of its area is empty (OpenSlide's bounds, as in MIRAX), the
rest is not there, as in QuPath.

A window of a `View` is read from the level that is just finer, and shrunk with a filter that goes
with the scale. The same pixel of the view has the same value in every window that shows it.
"""

import functools
import logging
import math
import pathlib
import threading
from typing import NamedTuple, Optional
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from gan_mrcnn.data.readers import images
from gan_mrcnn.utils.errors import UserError

# Files of scanners, and pyramids by name. Other TIFF files are looked into.
SUFFIXES = ('.bif', '.mrxs', '.ndpi', '.scn', '.svs', '.svslide', '.vms', '.vmu')
SUFFIXES += ('.btf', '.ome.tif', '.ome.tiff', '.tf8')
_TIFF_SUFFIXES = ('.tif', '.tiff')
# TIFF's tag of the width of a tile; a picture that lies in strips has none.
_TILE_WIDTH = 322
# Micrometres per pixel of microscopes. Others, such as those of 72 dots per inch, are what a
# program writes that knows nothing of the slide.
LEAST_MPP, MOST_MPP = 0.02, 50.0
# A level that is this much coarser than what is asked for is taken as it: 4.0003 is meant as 4.
_TOLERANCE = 1.01
# Of a level, at a time: a slide without levels is read in pieces where a small picture is wanted.
_MOST_PIXELS = 1 << 24
# A tile or strip is decoded as a whole.
_MOST_OF_A_PIECE = 1 << 26
_BACKGROUND = 255
# Both signs that stand for micro.
_UNITS = {'nm': 1e-3, '\u00b5m': 1.0, '\u03bcm': 1.0, 'um': 1.0, 'mm': 1e3, 'cm': 1e4, 'm': 1e6}
# TIFF's resolution units: inch and centimetre.
_RESOLUTION_UNITS = {2: 25400.0, 3: 10000.0}


def is_slide(path: pathlib.Path) -> bool:
    """Whether a file is predicted as a slide and not as an image, by its name or its kind.

    A TIFF is a slide where it lies in tiles and is no image that could be read as a whole: it has
    several pages, as a pyramid has, or too many pixels.
    """
    name = path.name.lower()
    if name.endswith(SUFFIXES):
        return True
    if not name.endswith(_TIFF_SUFFIXES):
        return False
    try:
        with Image.open(path) as image:
            is_tiled = _TILE_WIDTH in image.tag_v2
            return is_tiled and (image.n_frames > 1 or bool(images.size_error(*image.size)))
    except Exception:  # Pillow raises anything; the reader of images says what is wrong.
        return False


def check_installed() -> None:
    """Raises UserError where the extra is missing."""
    try:
        import openslide  # noqa: F401
        import tifffile  # noqa: F401

        # It logs what is wrong with a file before it raises an error that says the same.
        logging.getLogger('tifffile').setLevel(logging.CRITICAL)
    except (ImportError, OSError) as error:
        raise UserError(
            f"slides need the extra slides ({error}): pip install 'gan-mrcnn[slides]'"
        ) from error


class SlideError(UserError):
    """A slide cannot be predicted; others may be."""


class Size(NamedTuple):
    """Of a level, in pixels."""

    height: int
    width: int


class Slide:
    """An open slide; a context manager. Several threads may read from it.

    path: of its file.
    size: of level 0.
    micrometres_per_pixel: (vertical, horizontal) of level 0; None where the file does not say.
    objective: such as '20x', '' where the file does not say: no resolution, but a hint at it.
    """

    def __init__(self, path: pathlib.Path):
        """Opens a slide.

        Raises:
          UserError: the extra is missing.
          SlideError: no reader can open the file.
        """
        check_installed()
        self.path = path
        self._reader = _open(path)
        self.size = self._reader.levels[0]
        self.micrometres_per_pixel = _plausible(self._reader.micrometres_per_pixel)
        self.objective = self._reader.objective

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._reader.close()

    def view(self, height: int, width: int) -> 'View':
        """The whole slide as an image of that size, in pixels."""
        return View(self._read_level, self._reader.levels, Size(height, width))

    def _read_level(self, level, window):
        try:
            return self._reader.read(level, window)
        except MemoryError:
            raise
        except Exception as error:  # Decoders raise anything where a file is damaged.
            y, x = (
                round(start * full / size)
                for start, full, size in zip(window, self.size, self._reader.levels[level])
            )
            raise _damaged(self.path, f'at y {y}, x {x} of level 0: {error}') from error


class View:
    """A slide as one image of a chosen size; `read` gives windows of it.

    height, width: in pixels.
    """

    def __init__(self, read_level, levels, size: Size):
        """Made by `Slide.view`.

        Args:
          read_level: of a level's number and window, y1, x1, y2, x2 inside it: [h, w, 3] uint8.
          levels: `Size` of each, the largest first.
          size: of the view.
        """
        self.height, self.width = size
        self._level = choose_level(levels, size)
        self._read_level = functools.partial(read_level, self._level)
        self._of_level = levels[self._level]
        # Pixels of the level to one of the view.
        self._factors = tuple(own / asked for own, asked in zip(self._of_level, size))

    def read(self, window: tuple[int, int, int, int]) -> np.ndarray:
        """Pixels of the window y1, x1, y2, x2 inside the view, [h, w, 3] uint8 RGB.

        Raises:
          SlideError: the file is damaged there.
        """
        y1, x1, y2, x2 = window
        source = [value * self._factors[axis % 2] for axis, value in enumerate(window)]
        if (source[2] - source[0]) * (source[3] - source[1]) > _MOST_PIXELS:
            if y2 - y1 > 1 and y2 - y1 >= x2 - x1:
                y = (y1 + y2) // 2
                return np.concatenate([self.read((y1, x1, y, x2)), self.read((y, x1, y2, x2))], 0)
            if x2 - x1 > 1:
                x = (x1 + x2) // 2
                return np.concatenate([self.read((y1, x1, y2, x)), self.read((y1, x, y2, x2))], 1)
        return self._read_whole(source, (x2 - x1, y2 - y1))

    def _read_whole(self, source, size):
        # What the filter sees beyond the window: one pixel of the view, or of the level.
        margins = [math.ceil(max(factor, 1)) + 1 for factor in self._factors]
        low = [max(math.floor(source[axis]) - margins[axis], 0) for axis in (0, 1)]
        high = [
            min(math.ceil(source[axis + 2]) + margins[axis], self._of_level[axis])
            for axis in (0, 1)
        ]
        pixels = self._read_level((*low, *high))
        top, left = low
        box = (source[1] - left, source[0] - top, source[3] - left, source[2] - top)
        # Rounding must not put an end beyond the level's last pixel.
        box = tuple(min(value, limit) for value, limit in zip(box, pixels.shape[1::-1] * 2))
        shrunk = Image.fromarray(pixels).resize(size, Image.BILINEAR, box=box)
        return np.asarray(shrunk)


def choose_level(levels, size: Size) -> int:
    """The coarsest level that is not coarser than an image of `size` of the whole slide; else 0."""
    fine = [
        number
        for number, (height, width) in enumerate(levels)
        if height * _TOLERANCE >= size.height and width * _TOLERANCE >= size.width
    ]
    return max(fine, key=lambda number: -levels[number][0], default=0)


def _plausible(found):
    if found is None or not all(LEAST_MPP <= value <= MOST_MPP for value in found):
        return None
    return found


def _damaged(path, reason) -> SlideError:
    text = ' '.join(str(reason).split())[:200]
    return SlideError(f'{path} cannot be read ({text}); give a slide that is whole')


def _open(path: pathlib.Path):
    """The reader for a file."""
    import openslide

    if not path.is_file():
        raise SlideError(f'{path} is not there; give the path of a slide')
    try:
        if _is_ome(path):
            return _Tiff(path)
        if openslide.OpenSlide.detect_format(path):
            return _OpenSlide(path)
        if path.suffix.lower() in (*_TIFF_SUFFIXES, '.btf', '.tf8'):
            return _Tiff(path)
    except SlideError:
        raise
    except Exception as error:  # Both raise anything where a file is damaged.
        raise _damaged(path, error) from error
    raise SlideError(f'{path} is no slide that OpenSlide or tifffile reads; give another file')


def _is_ome(path: pathlib.Path) -> bool:
    """Whether a file is an OME-TIFF, of which OpenSlide would read the first level alone."""
    import tifffile

    if path.suffix.lower() not in (*_TIFF_SUFFIXES, '.btf', '.tf8'):
        return False
    try:
        with tifffile.TiffFile(path) as file:
            return bool(file.is_ome)
    except tifffile.TiffFileError:
        return False


class _OpenSlide:
    """What OpenSlide reads. Transparent pixels, which nobody has scanned, become background."""

    def __init__(self, path: pathlib.Path):
        import openslide

        self._slide = openslide.OpenSlide(path)
        properties = self._slide.properties
        width, height = self._slide.dimensions
        self._left, self._top, width, height = (
            int(properties.get(f'openslide.bounds-{name}', whole))
            for name, whole in (('x', 0), ('y', 0), ('width', width), ('height', height))
        )
        self._downsamples = self._slide.level_downsamples
        full = self._slide.dimensions
        self.levels = [
            Size(max(1, own[1] * height // full[1]), max(1, own[0] * width // full[0]))
            for own in self._slide.level_dimensions
        ]
        self.micrometres_per_pixel = _numbers(
            properties.get('openslide.mpp-y'), properties.get('openslide.mpp-x')
        )
        power = properties.get('openslide.objective-power')
        self.objective = f'{power}x' if power else ''
        colour = properties.get('openslide.background-color', 'ffffff')
        self._background = tuple(bytes.fromhex(colour))

    def read(self, level, window):
        y1, x1, y2, x2 = window
        corner = [
            start + round(place * self._downsamples[level])
            for start, place in ((self._left, x1), (self._top, y1))
        ]
        read = self._slide.read_region(corner, level, (x2 - x1, y2 - y1))
        filled = Image.new('RGB', read.size, self._background)
        filled.paste(read, mask=read.getchannel('A'))
        return np.asarray(filled)

    def close(self):
        self._slide.close()


class _Tiff:
    """What tifffile reads: the first series of a file, of 8 bits, RGB or grey."""

    objective = ''

    def __init__(self, path: pathlib.Path):
        import tifffile

        self._file, self._lock = tifffile.TiffFile(path), threading.Lock()
        series = self._file.series[0]
        axes = series.axes
        if axes not in ('YXS', 'YX') or series.dtype != np.uint8:
            raise SlideError(
                f'{path} has axes {axes} of {series.dtype}; slides of 8 bits, RGB or grey (YXS or '
                'YX), are read'
            )
        self._pages = [level.pages[0] for level in series.levels]
        piece = max(math.prod(_piece(page)) for page in self._pages)
        if piece > _MOST_OF_A_PIECE:
            raise SlideError(
                f'{path} is stored in pieces of {piece} pixels, too many to be read at once; save '
                'it in tiles'
            )
        self.levels = [Size(page.imagelength, page.imagewidth) for page in self._pages]
        self.micrometres_per_pixel = _of_ome(self._file.ome_metadata) or _of_tags(self._pages[0])

    def read(self, level, window):
        page = self._pages[level]
        y1, x1, y2, x2 = window
        height, width = _piece(page)
        columns = -(-page.imagewidth // width)
        pixels = np.full((y2 - y1, x2 - x1, 3), _BACKGROUND, np.uint8)
        for row in range(y1 // height, -(-y2 // height)):
            for column in range(x1 // width, -(-x2 // width)):
                segment = self._segment(page, row * columns + column)
                if segment is None:
                    continue
                top, left = row * height, column * width
                end = min(top + segment.shape[0], y2), min(left + segment.shape[1], x2)
                begin = max(top, y1), max(left, x1)
                pixels[begin[0] - y1 : end[0] - y1, begin[1] - x1 : end[1] - x1] = segment[
                    begin[0] - top : end[0] - top, begin[1] - left : end[1] - left
                ]
        return pixels

    def _segment(self, page, index):
        """A tile or strip [h, w, 1 or 3], None where the file holds none."""
        count = page.databytecounts[index]
        if not count:
            return None
        with self._lock:
            self._file.filehandle.seek(page.dataoffsets[index])
            encoded = self._file.filehandle.read(count)
        if len(encoded) < count:
            raise ValueError('the file is cut short')
        decoded, _, _ = page.decode(
            encoded, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader
        )
        return decoded[0, :, :, :3]

    def close(self):
        self._file.close()


def _piece(page) -> Size:
    """Size of a page's tiles or strips."""
    if page.is_tiled:
        return Size(page.tilelength, page.tilewidth)
    return Size(min(page.rowsperstrip, page.imagelength), page.imagewidth)


def _numbers(*texts):
    """What all of the texts say as numbers, None where one says none."""
    try:
        return tuple(map(float, texts))
    except (TypeError, ValueError):
        return None


def _of_ome(metadata: Optional[str]):
    """Micrometres per pixel in the XML of an OME-TIFF, None where it does not say."""
    if not metadata:
        return None
    try:
        found = ElementTree.fromstring(metadata).iterfind('.//{*}Pixels')
    except ElementTree.ParseError:
        return None
    for pixels in found:
        sizes = _numbers(pixels.get('PhysicalSizeY'), pixels.get('PhysicalSizeX'))
        units = [_UNITS.get(pixels.get(f'PhysicalSize{axis}Unit', '\u00b5m')) for axis in 'YX']
        if sizes and all(units):
            return tuple(size * unit for size, unit in zip(sizes, units))
    return None


def _of_tags(page):
    """Micrometres per pixel by a page's resolution, None where it does not say."""
    unit = _RESOLUTION_UNITS.get(int(page.tags.valueof('ResolutionUnit', 1)))
    fractions = [page.tags.valueof(f'{axis}Resolution') for axis in 'YX']
    if unit is None or not all(fraction and all(fraction) for fraction in fractions):
        return None
    return tuple(unit * below / above for above, below in fractions)
