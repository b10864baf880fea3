# SPDX-License-Identifier: Apache-2.0
"""Reads images and label images from files of any common kind, or says in one line what is wrong.

Pillow and not OpenCV: OpenCV fills an image that was cut short with grey and goes on, and turns the
numbers of a palette into colours.

A few kilobytes can claim to be an image of gigabytes. So an image's size is checked before its
pixels are decoded, and `max_pixels` is the one limit for all ways that an image comes in.

Shapes: H x W pixels.
"""

import os
import pathlib
from collections.abc import Collection
from typing import NamedTuple, Optional

import cv2
import numpy as np
from PIL import Image, ImageOps

from gan_mrcnn.utils.errors import UserError

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff')
LABEL_SUFFIXES = ('.bmp', '.png', '.tif', '.tiff')
# A JPEG of many cameras is an MPO: a JPEG with a second, small one behind it.
_PASSED_ON = ('JPEG', 'MPO', 'PNG')
# File formats that are read, whatever the name. Pillow knows others, one of which, EPS, is a
# program that it would have Ghostscript run.
_KINDS = ('BMP', 'GIF', 'JPEG', 'PNG', 'TIFF', 'WEBP')
MAX_PIXELS = 1 << 28
# Of either side: a JPEG's limit. An outline along an image of 1 x 2^28 would take gigabytes.
MAX_SIDE = (1 << 16) - 1
_VARIABLE = 'GAN_MRCNN_MAX_PIXELS'
_ORIENTATION = 0x0112  # EXIF's tag; 1 is upright, 2 to 8 are to be turned or mirrored.


# Pillow's own check is off: it would warn at a third of ours, and give up at two thirds.
Image.MAX_IMAGE_PIXELS = None


class DecodedImage(NamedTuple):
    """What an image file holds.

    pixels: [H, W, 3] uint8, RGB.
    encoded: the file itself, where TensorFlow decodes it to `pixels` (`base.Example.encoded`).
    """

    pixels: np.ndarray
    encoded: Optional[bytes]


def max_pixels() -> int:
    """Pixels that an image may have: `MAX_PIXELS`, or GAN_MRCNN_MAX_PIXELS of the environment.

    Raises:
      UserError: the variable is not a number.
    """
    given = os.environ.get(_VARIABLE, str(MAX_PIXELS))
    if not given.isdecimal() or not 0 < len(given) < 16:
        raise UserError(
            f'{_VARIABLE}={given[:40]!r} is not a number of pixels; correct or unset it'
        )
    return int(given)


def size_error(width: int, height: int) -> str:
    """Why an image of that size is not read, '' where it is."""
    if width * height > max_pixels():
        return (
            f'has {width}x{height} pixels, more than {max_pixels()}; make it smaller, or set '
            f'{_VARIABLE} where there is the memory'
        )
    if max(width, height) > MAX_SIDE:
        return f'has {width}x{height} pixels, a side above {MAX_SIDE}; cut it into pieces'
    return ''


def read_image(path: pathlib.Path, size: Optional[tuple[int, int]] = None) -> DecodedImage:
    """Reads an image of any kind as RGB: grey and palette are spread, transparency is dropped.

    Of 16 bits the upper 8 are kept, as OpenCV and TensorFlow do.

    A camera may store an image lying on its side and say by EXIF how to turn it. Annotations
    follow what the annotator's tool showed, which need not be what is stored: `size` decides. Where
    it fits both (turned by 180 degrees, or square) the displayed one is taken, as browsers show it.

    Args:
      path: of the file.
      size: (width, height) that the annotations are for; None for the displayed one.

    Raises:
      UserError: the file cannot be read, is too large (`max_pixels`), has several pages or pixels
        that are not 8 or 16 bits, or is of another size.
    """
    image = _open(path)
    displayed = _turned(image)
    if size in (None, displayed.size):
        chosen = displayed
    elif size == image.size:
        chosen = image
    else:
        turned = ', turned by EXIF' if displayed.size != image.size else ''
        raise UserError(
            f'{path} is {_text(displayed.size)}{turned}, but its annotations are for '
            f'{_text(size)}; give the image that was annotated'
        )
    as_stored = chosen is image and image.format in _PASSED_ON and image.mode in ('L', 'RGB')
    return DecodedImage(_to_rgb(chosen, path), path.read_bytes() if as_stored else None)


def read_labels(path: pathlib.Path, size: Optional[tuple[int, int]] = None) -> np.ndarray:
    """A label image, [H, W] int32: 0 background, any other number an object.

    A palette image's numbers are its indices, which most readers would turn into colours.

    Args:
      path: of the file.
      size: (width, height) of the image; None for any.

    Raises:
      UserError: the file cannot be read, is too large (`max_pixels`), has more than one channel or
        page, holds anything but whole numbers, or is of another size than its image.
    """
    image = _open(path)
    labels = np.asarray(image)
    if labels.ndim != 2:
        raise UserError(f'{path} has {labels.shape[2]} channels; a label image has one')
    if labels.dtype.kind == 'f' or labels.min(initial=0) < 0:
        raise UserError(f'{path} holds fractions or negative numbers; 0, 1, 2, ... are wanted')
    if size not in (None, image.size):
        raise UserError(f'{path} is {_text(image.size)}, but its image is {_text(size)}')
    return labels.astype(np.int32)


def find(folder: pathlib.Path, stem: str, suffixes: Collection[str]) -> Optional[pathlib.Path]:
    """The file of that name with one of `suffixes`, None without one.

    Raises:
      UserError: there are two.
    """
    found = [path for s in suffixes if (path := folder / f'{stem}{s}').is_file()]
    if len(found) > 1:
        raise UserError(f'{found[0]} and {found[1].name} both exist; remove one')
    return found[0] if found else None


def _open(path: pathlib.Path) -> Image.Image:
    try:
        image = Image.open(path, formats=_KINDS)
        too_large = size_error(*image.size)
        if too_large:
            image.close()
            raise UserError(f'{path} {too_large}')
        num_pages = image.n_frames if image.format in ('GIF', 'TIFF') else 1
        image.load()
        image.getexif()
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f'{path} is missing') from error
    except Exception as error:  # Pillow's parsers raise anything when the bytes are not theirs.
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise UserError(f'{path} cannot be read ({reason}); replace the file') from error
    if num_pages > 1:
        raise UserError(f'{path} has {num_pages} pages; one is wanted')
    return image


def _turned(image: Image.Image) -> Image.Image:
    """As EXIF wants it displayed; the same object where nothing is to be turned."""
    turned = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    return ImageOps.exif_transpose(image) if turned else image


def _to_rgb(image: Image.Image, path: pathlib.Path) -> np.ndarray:
    if image.mode == 'F':
        raise UserError(f'{path} holds fractions; save it with 8 or 16 bits')
    if not image.mode.startswith('I'):
        return np.asarray(image.convert('RGB'))
    # Pillow's own conversion would turn everything above 255 into white.
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() >= 1 << 16:
        raise UserError(f'{path} has pixels of 32 bits; save it with 8 or 16')
    return np.repeat((grey >> 8).astype(np.uint8)[..., np.newaxis], 3, axis=2)


def _text(size: tuple[int, int]) -> str:
    return f'{size[0]}x{size[1]}'


def as_png(pixels: np.ndarray, compression: int = 1) -> bytes:
    """A PNG of [H, W, 3] uint8, RGB; `compression` from 0 to 9, where 1 is fast."""
    level = [cv2.IMWRITE_PNG_COMPRESSION, compression]
    return cv2.imencode('.png', pixels[..., ::-1], level)[1].tobytes()
