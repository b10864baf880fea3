# SPDX-License-Identifier: Apache-2.0
"""What every data set is: class names, splits, and examples that can be read in any order.

Records, caching and checks build on this alone (`records.py`, `check.py`). Imports nothing heavy:
each process that converts images would pay for it.

Shapes: N objects in an image of H x W pixels.
"""

import abc
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
from absl import logging
from pycocotools import mask as mask_api

from gan_mrcnn.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Item:
    """Which image to read. Cheap and picklable; a data set adds fields in a subclass.

    image_id: 0 or more, unique in its split, the same on every machine.
    file_name: as the data set names it.
    """

    image_id: int
    file_name: str


@dataclasses.dataclass
class Example:
    """One image with its objects.

    Masks are kept as COCO's run lengths: 300 objects on 1024x2048 would be 630 MB as an array.
    `encode_labels` and `encode_masks` make them, `decode_masks` gives the array back.

    image_id, file_name: as in `Item`.
    image: [H, W, 3] uint8, RGB.
    rles: N masks, each {'size': [H, W], 'counts': bytes} as pycocotools encodes them; with 'bbox'
      [x, y, width, height] and 'area', too, where the data set has measured these itself (COCO's,
      of fractions of a pixel, are what its AP is defined by).
    classes: [N] int32, 1 for the first class; 0 is the background.
    is_crowd: [N] bool, groups that are neither learnt nor held against a prediction.
    encoded: the image's own file, where it is a JPEG or PNG that TensorFlow decodes to `image`
      (8 bits, grey or RGB, not turned by EXIF): it goes into the records as it is, since a JPEG
      becomes several times larger as a PNG. None: a PNG of `image` is written.
    warning: what is wrong with the image although it can be used, in words that follow its name.
    num_skipped: annotations that are left out because they cannot be used.
    """

    image_id: int
    file_name: str
    image: np.ndarray
    rles: list[dict[str, Any]]
    classes: np.ndarray
    is_crowd: np.ndarray
    encoded: Optional[bytes] = None
    warning: str = ''
    num_skipped: int = 0

    def decode_masks(self) -> np.ndarray:
        """All masks at once, [N, H, W] uint8: for few objects or small images."""
        masks = [mask_api.decode(rle) for rle in self.rles]
        return np.array(masks, np.uint8).reshape(-1, *self.image.shape[:2])


class Problem(NamedTuple):
    """Something wrong with a data set.

    file_name: where it is.
    text: what it is and what to do, in one line without the file's name.
    severity: 'error' where training would stop or go wrong (`Dataset.read` refuses such an image),
      'warning' where it goes on.
    """

    file_name: str
    text: str
    severity: str


class Dataset(abc.ABC):
    """A data set. Picklable, so that several processes can read it; their copies need `read` alone.

    name: as `--dataset` has it.
    class_names: without the background.
    splits: what `split` may be.
    is_demo: whether figures on it mean nothing outside this project.
    notice: said at the start and in every result file, where it is not empty.
    origin: where the data are from and what their owners ask, for those who pass on what was learnt
      from them; '' where only the user knows.
    crowds_hint: what to do where crowds may be objects after all; '' where they are groups.
    micrometres_per_pixel: of its images; None where it is not known, or not one for all.
    image_size: height and width of most images in pixels; None where they differ, or only the user
      knows.
    """

    name: str
    class_names: tuple[str, ...]
    splits: tuple[str, ...]
    is_demo: bool = False
    notice: str = ''
    origin: str = ''
    crowds_hint: str = ''
    micrometres_per_pixel: Optional[float] = None
    image_size: Optional[tuple[int, int]] = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Splits that share no image, the one to train on first; others are made of them."""
        return self.splits

    @property
    def evaluated_split(self) -> str:
        """What is evaluated where no split is named: test images, or validation ones without."""
        return 'test' if 'test' in self.splits else 'val'

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The data set's own number of each class, in the order of `class_names`."""
        return tuple(range(1, len(self.class_names) + 1))

    @abc.abstractmethod
    def items(self, split: str) -> Sequence[Item]:
        """All that `split` has, in a fixed order, unusable ones included."""

    @abc.abstractmethod
    def read(self, item: Item) -> Example:
        """Reads one of `items`.

        Raises:
          UserError: it cannot be used; the message names the file.
        """

    @abc.abstractmethod
    def fingerprint(self, split: str) -> str:
        """Hex SHA-256 of everything that the examples of `split` depend on."""

    def problems(self, split: str) -> Iterator[Problem]:
        """What is wrong with `split` as far as it shows without decoding images.

        A data set that is described by a file checks it here: ids, boxes, polygons, and whether the
        images that it names exist.
        """
        yield from ()

    def stop_at_problems(self, split: str) -> None:
        """Raises UserError where `problems` has an error, before the first image is converted."""
        errors = [problem for problem in self.problems(split) if problem.severity == 'error']
        if errors:
            others = f', and {len(errors) - 1} more in {split}' if len(errors) > 1 else ''
            raise UserError(
                f'{errors[0].file_name}: {errors[0].text}{others}; --skip_bad skips such images'
            )

    def num_examples(self, split: str) -> int:
        """Number of images in `split`, unusable ones included."""
        return len(self.items(split))

    def examples(self, split: str, skip_bad: bool = False) -> Iterator[Example]:
        """The examples of `split`, in the order of `items`.

        Raises:
          UserError: one cannot be used, and `skip_bad` is False; the message names the file.
        """
        for item in self.items(split):
            skipped: list[str] = []
            example = self.read_or_skip(item, skipped if skip_bad else None)
            for text in skipped:
                logging.warning('skipped: %s', text)
            if example is not None:
                yield example

    def read_or_skip(self, item: Item, skipped: Optional[list[str]]) -> Optional[Example]:
        """Reads `item`; None where it cannot be used, and the reason is added to `skipped`.

        Raises:
          UserError: it cannot be used, and `skipped` is None.
        """
        try:
            return self.read(item)
        except UserError as error:
            if skipped is None:
                raise UserError(f'{error}; --skip_bad skips such images') from error
            skipped.append(str(error))
            return None
