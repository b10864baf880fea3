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

from gan_mrcnn.data.readers import names
from gan_mrcnn.utils.errors import UserError

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff')
LABEL_SUFFIXES = ('.bmp', '.png', '.tif', '.tiff')
# What the name of a label image has behind that of its image, where both are in one folder.
_LABEL_ENDINGS = (
    *('_anno', '_annotation', '_gt', '_groundtruth', '_instances', '_label', '_labels'),
    *('_mask', '_masks', '_seg', '_segmentation'),
)
# A JPEG of many cameras is an MPO: a JPEG with a second, small one behind it.
_PASSED_ON = ('JPEG', 'MPO', 'PNG')
# File formats that are read, whatever the name. Pillow knows others, one of which, EPS, is a
# program that it would have Ghostscript run.
_KINDS = ('BMP', 'GIF', 'JPEG', 'PNG', 'TIFF', 'WEBP')
MAX_PIXELS = 1 << 28
# Of either side: a JPEG's limit. An outline along an image of 1 x 2^28 would take gigabytes.
MAX_SIDE = (1 << 16) - 1
_VARIABLE = 'GAN_MRCNN_MAX_PIXELS'
_FIRST_OF_13_BITS = (1 << 12) >> 8
_DARK = (
    'has 16 bits but no value above 4095, so that it is almost black, for the upper 8 are kept; '
    'multiply its values by 16'
)
_ORIENTATION = 0x0112  # EXIF's tag; 1 is upright, 2 to 8 are to be turned or mirrored.


# Pillow's own check is off: it would warn at a third of ours, and give up at two thirds.
Image.MAX_IMAGE_PIXELS = None


class DecodedImage(NamedTuple):
    """What an image file holds.

    pixels: [H, W, 3] uint8, RGB.
    encoded: the file itself, where TensorFlow decodes it to `pixels` (`base.Example.encoded`).
    warning: what is wrong with an image that can be read, in words that follow its name, or ''.
    """

    pixels: np.ndarray
    encoded: Optional[bytes]
    warning: str = ''


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
    image, bits = _open(path)
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
    pixels = _to_rgb(chosen, path)
    # Cameras of 12 bits: of the 8 bits that are kept, the upper 4 are empty.
    is_dark = bits == 16 and pixels.max() < _FIRST_OF_13_BITS
    return DecodedImage(pixels, path.read_bytes() if as_stored else None, _DARK if is_dark else '')


def is_turned(path: pathlib.Path) -> bool:
    """Whether EXIF says that an image is to be turned or mirrored before it is displayed.

    Raises:
      UserError: the file cannot be read.
    """
    return _is_turned(_open(path)[0])


def read_labels(path: pathlib.Path, size: Optional[tuple[int, int]] = None) -> np.ndarray:
    """A label image, [H, W] int32: 0 background, any other number an object.

    A palette image's numbers are its indices, which most readers would turn into colours; where it
    has black and white alone, black is the background. Several channels that are equal are one.

    Args:
      path: of the file.
      size: (width, height) of the image; None for any.

    Raises:
      UserError: the file cannot be read, is too large (`max_pixels`), has channels that differ or
        more than one page, holds anything but whole numbers, or is of another size than its image.
    """
    image, bits = _open(path)
    if size not in (None, image.size):
        raise UserError(f'{path} is {_text(image.size)}, but its image is {_text(size)}')
    labels = np.asarray(image)
    if image.mode == 'P':
        labels = _black_as_background(image, labels)
    if labels.ndim != 2:
        # Pillow has no colours of 16 bits, and drops the lower half.
        labels = labels if bits < 16 else _read_deep(path)
        labels = _only_channel(labels, image.mode in ('LA', 'PA', 'RGBA'), path)
    if not _are_numbers(labels):
        raise UserError(f'{path} holds fractions or negative numbers; 0, 1, 2, ... are wanted')
    return labels.astype(np.int32)


def _are_numbers(labels: np.ndarray) -> bool:
    """Whether all are whole numbers from 0 that 32 bits hold, of whatever type."""
    is_whole = labels.dtype.kind != 'f' or np.array_equal(labels, np.floor(labels))
    return bool(is_whole and np.all((labels >= 0) & (labels < 1 << 31)))


def _black_as_background(image: Image.Image, indices: np.ndarray) -> np.ndarray:
    """Indices of a palette; of one of black and white, 0 for black and 255 for white."""
    palette = np.array(image.getpalette('RGB'), np.uint8).reshape(-1, 3)
    if indices.max(initial=0) >= len(palette):
        return indices
    used = palette[np.flatnonzero(np.bincount(indices.ravel()))]
    # An image of one colour does not tell, but its palette may.
    colours = palette if len(used) == 1 else used
    is_black_and_white = len(used) <= 2 and (
        np.unique(colours, axis=0).tolist() == [[0, 0, 0], [255, 255, 255]]
    )
    return palette[indices, 0] if is_black_and_white else indices


def _only_channel(channels: np.ndarray, has_alpha: bool, path: pathlib.Path) -> np.ndarray:
    """The one channel that [H, W, C] holds C times; with `has_alpha` the last one is opacity.

    Raises:
      UserError: it holds several.
    """
    if has_alpha and (channels[..., -1] != np.iinfo(channels.dtype).max).any():
        raise UserError(f'{path} is transparent in places; save it without transparency')
    colours = channels[..., :-1] if has_alpha else channels
    if (colours != colours[..., :1]).any():
        raise UserError(
            f'{path} has {colours.shape[2]} channels that differ, as colours do; a label image has '
            'one, with the number of its object in each pixel'
        )
    return colours[..., 0]


def _read_deep(path: pathlib.Path) -> np.ndarray:
    """[H, W, C] uint16 of a colour image of 16 bits."""
    pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3:
        raise UserError(f'{path} has colours of 16 bits that cannot be read; save it as grey')
    return pixels


def list_images(folder: pathlib.Path) -> list[pathlib.Path]:
    """Image files in `folder` and below, sorted; suffixes in any case.

    Without what is hidden (`names.walk`), and without label images beside their image, as the
    gland contest has them: `a_anno.bmp` where there is an `a.bmp`. It says so.
    """
    found = [path for path in names.walk(folder) if path.suffix.lower() in IMAGE_SUFFIXES]
    stems = {path.with_suffix('') for path in found}
    labels = sorted(path for path in found if _is_label_of(path, stems))
    if labels:
        print(
            f'{folder}: {len(labels)} label images beside their images are not taken for images, '
            f'such as {labels[0].name}',
            flush=True,
        )
    return sorted(set(found) - set(labels))


def _is_label_of(path: pathlib.Path, stems: Collection[pathlib.Path]) -> bool:
    """Whether `path` has a name for the labels of one of the images `stems`."""
    stem = stem_of_labelled(path.stem)
    return path.suffix.lower() in LABEL_SUFFIXES and stem != '' and path.with_name(stem) in stems


def stem_of_labelled(stem: str) -> str:
    """'a' for 'a_anno': the stem of the image whose label image is called `stem`, in any case.

    '' where `stem` is no name for a label image beside its image.
    """
    endings = [ending for ending in _LABEL_ENDINGS if stem.lower().endswith(ending)]
    return stem[: -len(endings[0])] if endings else ''


def list_labels(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Label images in `folder` and below, by their place in there without suffix (`names.same`).

    Raises:
      UserError: there are two of one name.
    """
    found: dict[str, pathlib.Path] = {}
    for path in sorted(names.walk(folder)):
        if path.suffix.lower() in LABEL_SUFFIXES:
            key = names.same(path.relative_to(folder).with_suffix('').as_posix())
            if key in found:
                raise UserError(f'{found[key]} and {path.name} both exist; remove one')
            found[key] = path
    return found


def _open(path: pathlib.Path) -> tuple[Image.Image, int]:
    """An image, and how many bits each of its values has, 16 or (for less and more) 8."""
    try:
        image = Image.open(path, formats=_KINDS)
        too_large = size_error(*image.size)
        if too_large:
            image.close()
            raise UserError(f'{path} {too_large}')
        num_pages = image.n_frames if image.format in ('GIF', 'TIFF') else 1
        # The mode of an image of colours does not tell.
        bits = 16 if ';16' in str(image.tile) or image.mode.startswith('I') else 8
        image.load()
        image.getexif()
        if image.format == 'BMP' and image.mode == '1':
            image = _read_two_colours(path)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f'{path} is missing') from error
    except Exception as error:  # Pillow's parsers raise anything when the bytes are not theirs.
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise UserError(f'{path} cannot be read ({reason}); replace the file') from error
    if num_pages > 1:
        raise UserError(f'{path} has {num_pages} pages; one is wanted')
    return image, bits


def _read_two_colours(path: pathlib.Path) -> Image.Image:
    """A BMP of black and white. Of one with 8 bits a pixel Pillow takes each bit for a pixel."""
    pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise ValueError('damaged BMP')
    return Image.fromarray(pixels)


def _turned(image: Image.Image) -> Image.Image:
    """As EXIF wants it displayed; the same object where nothing is to be turned."""
    return ImageOps.exif_transpose(image) if _is_turned(image) else image


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(_ORIENTATION, 1) in range(2, 9)


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
