# SPDX-License-Identifier: Apache-2.0
"""What every data set is: class names, splits and an iterator of examples.

Records, caching, progress and pictures build on this alone (`records.py`).
"""

import abc
import dataclasses
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass
class Example:
    """One image with its objects.

    image_id: positive, unique in the data set, the same on every machine.
    file_name: as the data set names it.
    image: [H, W, 3] uint8, RGB.
    masks: [N, H, W] bool.
    classes: [N] int32, 1 for the first class; 0 is the background.
    is_crowd: [N] bool, groups that are neither learnt nor held against a prediction.
    """

    image_id: int
    file_name: str
    image: np.ndarray
    masks: np.ndarray
    classes: np.ndarray
    is_crowd: np.ndarray


class Dataset(abc.ABC):
    """A data set.

    name: as `--dataset` has it.
    class_names: without the background.
    splits: what `split` may be.
    is_demo: whether figures on it mean nothing outside this project.
    notice: said at the start and in every result file, where it is not empty.
    """

    name: str
    class_names: tuple[str, ...]
    splits: tuple[str, ...]
    is_demo: bool = False
    notice: str = ''

    @abc.abstractmethod
    def num_examples(self, split: str) -> int:
        """Number of images in `split`, the bad ones among them."""

    @abc.abstractmethod
    def fingerprint(self, split: str) -> str:
        """Hex SHA-256 of everything that the examples of `split` depend on."""

    @abc.abstractmethod
    def examples(self, split: str, skip_bad: bool = False) -> Iterator[Example]:
        """The examples of `split`, in a fixed order.

        Raises:
          UserError: one cannot be used, and `skip_bad` is False; the message names the file.
        """
