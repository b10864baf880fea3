# SPDX-License-Identifier: Apache-2.0
"""Changes of colours: the paper's of the phone images, and jitter of a tissue's stains.

Paper, section 4.3: the training part of 533 images becomes more than 4000. It can be had both ways:

* `Expanded` is a data set with further copies of each image, drawn once at conversion, as the paper
  does it (`task.train_data.expand_to`);
* `distort` draws anew for each example of the run, in `tf.data`
  (`task.train_data.parser.aug_photometric`).

Each copy has one of the five changes: noise, blur, sharpness, lightness or contrast. The paper does
not say how strong they are; `STRENGTHS` are ours, about those in the examples of imgaug's
documentation. Objects stay where they are, and a copy of a JPEG is stored as one.

`stain` is not the paper's: other laboratories stain otherwise, other scanners see it otherwise.

The only file that imports tensorflow_addons, which ended with TensorFlow 2.15; without it the same
values come from elsewhere (`_blur_and_sharpness`). It does so where it is used: processes that only
read images, as check.py's, have no TensorFlow at all.
"""

import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Iterator

import cv2
import numpy as np

from gan_mrcnn import compat
from gan_mrcnn.data.readers import base

# From weakest to strongest.
STRENGTHS = {
    # Standard deviation of each colour value.
    'noise': (2.0, 13.0),
    # Standard deviation of the Gaussian in pixels.
    'blur': (0.5, 2.0),
    # 1 is the image, 0 a smoothed one; beyond 1 the difference between the two is enlarged.
    'sharpness': (1.5, 4.0),
    # Times the colour values.
    'lightness': (0.7, 1.3),
    # Times the difference to the middle grey.
    'contrast': (0.75, 1.5),
}
OPERATIONS = tuple(STRENGTHS)
# Part of the fingerprint: to be raised when the same seed would give other images.
EXPANSION_VERSION = 1

# Optical densities of haematoxylin, eosin and DAB (rows) in red, green and blue (columns), each row
# of length 1: Ruifrok & Johnston, Quantification of histochemical staining by color deconvolution
# (2001).
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])

_JPEG = b'\xff\xd8'
_MIDDLE_GREY = 128.0
# Reaches two standard deviations and more of the strongest blur.
_BLUR_SIZE = 9
# The blur wants a number and takes no tensor: one of a few.
_BLUR_STEPS = 7
# Pillow's and tensorflow_addons' smoothing, which sharpness enlarges the difference to.
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


@dataclasses.dataclass(frozen=True)
class _Copy(base.Item):
    """Copy number `number` of `original`; 0 is the original itself."""

    original: base.Item
    number: int

    @property
    def operation(self) -> str:
        return OPERATIONS[(self.number - 1) % len(OPERATIONS)]


class Expanded(base.Dataset):
    """A data set of which every split has `size` images: its own, then changed copies of them."""

    def __init__(self, source: base.Dataset, size: int, seed: int):
        """`seed` is that of the changes; a copy depends on it and on its image and number only."""
        self._source, self._size, self._seed = source, size, seed
        self.name = f'{source.name}-expanded'
        self.class_names, self.splits = source.class_names, source.splits
        self.is_demo, self.notice = source.is_demo, source.notice

    @property
    def parts(self) -> tuple[str, ...]:
        return self._source.parts

    @property
    def category_ids(self) -> tuple[int, ...]:
        return self._source.category_ids

    def items(self, split: str) -> list[base.Item]:
        originals = self._source.items(split)
        if not originals:
            return []
        # No copy has the id of an image of another split.
        step = 1 + max(item.image_id for part in self.parts for item in self._source.items(part))
        items = []
        for place in range(max(self._size, len(originals))):
            number, index = divmod(place, len(originals))
            original = originals[index]
            copy = _Copy(original.image_id + number * step, original.file_name, original, number)
            if number:
                name = f'{original.file_name}+{copy.operation}{number}'
                copy = dataclasses.replace(copy, file_name=name)
            items.append(copy)
        return items

    def read(self, item: base.Item) -> base.Example:
        example = self._source.read(item.original)
        if not item.number:
            return example
        rng = np.random.default_rng([self._seed, item.original.image_id, item.number])
        strength = rng.uniform(*STRENGTHS[item.operation])
        image = change(example.image, item.operation, strength, rng)
        is_jpeg = (example.encoded or b'').startswith(_JPEG)
        return dataclasses.replace(
            example,
            image_id=item.image_id,
            file_name=item.file_name,
            image=image,
            # As a PNG, a photograph of many megapixels would take tens of megabytes, in each copy.
            encoded=_encode_jpeg(image) if is_jpeg else None,
            # Said and counted once, of the original.
            warning='',
            num_skipped=0,
        )

    def fingerprint(self, split: str) -> str:
        parts = (EXPANSION_VERSION, self._source.fingerprint(split), self._size, self._seed)
        # Another OpenCV or NumPy may give another pixel.
        parts += (STRENGTHS, cv2.__version__, np.__version__)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def problems(self, split: str) -> Iterator[base.Problem]:
        return self._source.problems(split)


def _encode_jpeg(image: np.ndarray) -> bytes:
    _, encoded = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    return encoded.tobytes()


def change(
    image: np.ndarray, operation: str, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """A changed copy of an image.

    Args:
      image: [H, W, 3] uint8.
      operation: one of `OPERATIONS`.
      strength: see `STRENGTHS`.
      rng: of the noise.

    Returns:
      [H, W, 3] uint8.
    """
    pixels = image.astype(np.float32)
    if operation == 'noise':
        pixels += strength * rng.standard_normal(pixels.shape, np.float32)
    elif operation == 'blur':
        pixels = cv2.GaussianBlur(pixels, (_BLUR_SIZE, _BLUR_SIZE), strength)
    elif operation == 'sharpness':
        smooth = pixels.copy()
        smooth[1:-1, 1:-1] = cv2.filter2D(pixels, -1, _SMOOTH)[1:-1, 1:-1]
        pixels = smooth + strength * (pixels - smooth)
    elif operation == 'lightness':
        pixels *= strength
    else:
        pixels = _MIDDLE_GREY + strength * (pixels - _MIDDLE_GREY)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def distort(image, seed):
    """One of the five changes or none, each as likely, drawn from `seed`; for `tf.data`.

    Args:
      image: [H, W, 3] uint8 tensor.
      seed: [2] integers; the same seed gives the same image.

    Returns:
      [H, W, 3] uint8 tensor.
    """
    import tensorflow as tf

    which, how_much, noise = tf.unstack(tf.random.split(seed, 3))
    branches = [functools.partial(lambda pixels: pixels, tf.cast(image, tf.float32))]
    for operation, (low, high) in STRENGTHS.items():
        strength = tf.random.stateless_uniform([], how_much, low, high)
        branches.append(
            functools.partial(
                _TENSOR_CHANGES[operation], tf.cast(image, tf.float32), strength, noise
            )
        )
    choice = tf.random.stateless_uniform([], which, 0, len(branches), tf.int32)
    pixels = tf.switch_case(choice, branches)
    return tf.saturate_cast(tf.round(pixels), tf.uint8)


def _tensor_noise(pixels, strength, seed):
    import tensorflow as tf

    return pixels + strength * tf.random.stateless_normal(tf.shape(pixels), seed)


def _tensor_blur(pixels, strength, seed):
    import tensorflow as tf

    del seed
    low, high = STRENGTHS['blur']
    sigmas = np.linspace(low, high, _BLUR_STEPS)
    blur, _ = _blur_and_sharpness()
    branches = [functools.partial(blur, pixels, _BLUR_SIZE, float(sigma)) for sigma in sigmas]
    nearest = tf.round((strength - low) / (high - low) * (_BLUR_STEPS - 1))
    return tf.switch_case(tf.cast(nearest, tf.int32), branches)


def _tensor_sharpness(pixels, strength, seed):
    del seed
    _, sharpness = _blur_and_sharpness()
    return sharpness(pixels, strength)


def _tensor_lightness(pixels, strength, seed):
    del seed
    return pixels * strength


def _tensor_contrast(pixels, strength, seed):
    del seed
    return _MIDDLE_GREY + strength * (pixels - _MIDDLE_GREY)


_TENSOR_CHANGES = {
    'noise': _tensor_noise,
    'blur': _tensor_blur,
    'sharpness': _tensor_sharpness,
    'lightness': _tensor_lightness,
    'contrast': _tensor_contrast,
}


def _blur_and_sharpness():
    """`gaussian_filter2d` and `sharpness` of tensorflow_addons, or what gives the same without it.

    The Model Garden took over the first as it is; its `sharpness` rounds in between.
    """
    if not compat.HAS_ADDONS:
        from official.vision.ops import augment

        return augment.gaussian_filter2d, _sharpness
    with warnings.catch_warnings():
        # That it has ended; setup.py has the version that goes with this TensorFlow.
        warnings.simplefilter('ignore')
        import tensorflow_addons
    return tensorflow_addons.image.gaussian_filter2d, tensorflow_addons.image.sharpness


def _sharpness(pixels, strength):
    """`change`'s sharpness of [H, W, C] float32; the outermost pixels have no smoothed value."""
    import tensorflow as tf

    kernel = tf.tile(_SMOOTH[..., np.newaxis, np.newaxis], [1, 1, pixels.shape[-1], 1])
    smooth = tf.nn.depthwise_conv2d(pixels[tf.newaxis], kernel, [1, 1, 1, 1], 'VALID')[0]
    difference = tf.pad(pixels[1:-1, 1:-1] - smooth, [[1, 1], [1, 1], [0, 0]])
    return pixels + (strength - 1.0) * difference


def stain(image, strength: float, seed):
    """Jitter of the stains, for `tf.data`: Tellez et al., Whole-slide mitosis detection in H&E
    breast histology using PHH3 as a reference (2018).

    The amount of each stain, an optical density, is multiplied by a number from [1 - strength,
    1 + strength] and gets one from [-strength, strength] added. The optical density of a colour
    value x is -log10((x + 1) / 256): the light that comes through, of 256 (Ruifrok & Johnston).

    Args:
      image: [H, W, 3] uint8 tensor.
      strength: their sigma; 0.05 is their weak jitter, 0.2 their strong one.
      seed: [2] integers; the same seed gives the same image.

    Returns:
      [H, W, 3] uint8 tensor.
    """
    import tensorflow as tf

    draws = tf.random.stateless_uniform([2, 3], seed, -strength, strength)
    # Unmixing, jitter and mixing are one matrix and one vector for all pixels.
    unmix, mix = (tf.constant(x, tf.float32) for x in (np.linalg.inv(STAINS), STAINS))
    matrix = unmix @ (tf.transpose([1.0 + draws[0]]) * mix)
    shift = draws[1:] @ mix
    pixels = tf.reshape(tf.cast(image, tf.float32), [-1, 3])
    # In natural logarithms: the base cancels out but for the shift.
    light = tf.math.log((pixels + 1.0) / 256.0) @ matrix - shift * np.log(10.0)
    pixels = tf.reshape(256.0 * tf.exp(light) - 1.0, tf.shape(image))
    return tf.saturate_cast(tf.round(pixels), tf.uint8)
