# SPDX-License-Identifier: Apache-2.0
"""Cityscapes as it is downloaded, the fine annotations (paper, section 4.4): 2,975 train, 500 val.

Every image has a 16-bit label image that holds, for each object, 1000 times the class's id plus a
number; the id alone marks a group that is not annotated object by object, such as `cargroup`: a
crowd. Ids and names are those of `cityscapesscripts`. The ten classes are all that have instances,
as in the paper (the official benchmark excludes caravan and trailer). The labels of the 1,525 test
images are not public.

Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding (2016).
"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Optional

import numpy as np
from cityscapesscripts.helpers import labels as cityscapes_labels

from gan_mrcnn.data.readers import base, fingerprints, images, names, options
from gan_mrcnn.utils import run_lengths
from gan_mrcnn.utils.errors import UserError

_IMAGE, _LABELS = '_leftImg8bit.png', '_gtFine_instanceIds.png'
_EXPECTED = (
    f'expected there: leftImg8bit/train/CITY/*{_IMAGE} and gtFine/train/CITY/*{_LABELS}, the '
    'same for val'
)
_COUNTS = {'train': 2975, 'val': 500}
# Image ids count from these.
_FIRST_IDS = {'train': 1, 'val': 10001}
_CLASSES = [label for label in cityscapes_labels.labels if label.hasInstances]


@dataclasses.dataclass(frozen=True)
class Item(base.Item):
    """An image and its label image."""

    path: pathlib.Path
    labels_path: pathlib.Path


def load(data_dir: Optional[str], chosen: options.Options) -> base.Dataset:
    """Cityscapes in `data_dir`.

    Raises:
      UserError: the folder does not hold it.
    """
    return Cityscapes(options.existing_folder(data_dir, 'cityscapes', _EXPECTED))


class Cityscapes(base.Dataset):
    """Splits: 'train' and 'val', the official ones, as far as their images exist."""

    name = 'cityscapes'
    class_names = tuple(label.name for label in _CLASSES)
    origin = (
        'Cityscapes (Cordts et al. 2016), for non-commercial use: '
        'https://www.cityscapes-dataset.com/license/ has the terms.'
    )

    def __init__(self, folder: pathlib.Path):
        """Lists the images.

        Raises:
          UserError: there are none.
        """
        self._folder = folder
        self._items = {split: items for split in _COUNTS if (items := self._list(split))}
        if not self._items:
            inner = [path.parent for path in sorted(folder.glob('*/leftImg8bit'))]
            hint = f'did you mean {inner[0]}? ' if inner else ''
            raise UserError(f'--data_dir {folder} has no images; {hint}{_EXPECTED}')
        self.splits = tuple(self._items)
        counts = {split: len(self._items.get(split, ())) for split in _COUNTS}
        if counts != _COUNTS:
            parts = [f'{n} of {_COUNTS[split]} {split}' for split, n in counts.items()]
            self.notice = (
                f'PART OF CITYSCAPES: {" and ".join(parts)} images found. Figures do not '
                'compare with those of all.'
            )

    @property
    def category_ids(self) -> tuple[int, ...]:
        return tuple(label.id for label in _CLASSES)

    def items(self, split: str) -> list[Item]:
        return self._items[split]

    def fingerprint(self, split: str) -> str:
        items = self._items[split]
        paths = [path for item in items for path in (item.path, item.labels_path)]
        return fingerprints.of_stats(paths, [item.image_id for item in items], self.category_ids)

    def problems(self, split: str) -> Iterator[base.Problem]:
        expected = {item.labels_path for item in self._items[split]}
        for item in self._items[split]:
            if not item.labels_path.is_file():
                yield base.Problem(str(item.labels_path), 'is missing', 'error')
        for path in sorted(self._folder.glob(f'gtFine/{split}/*/*{_LABELS}')):
            if path not in expected:
                yield base.Problem(str(path), 'has no image in leftImg8bit', 'warning')

    def read(self, item: Item) -> base.Example:
        labels = images.read_labels(item.labels_path)
        image = images.read_image(item.path, labels.shape[::-1])
        numbers = run_lengths.numbers_in(labels)
        ids = np.where(numbers < 1000, numbers, numbers // 1000)
        for number, label_id in zip(numbers, ids):
            label = cityscapes_labels.id2label.get(label_id)
            if label is None or (number >= 1000 and not label.hasInstances):
                raise UserError(f'{item.labels_path} has the number {number}, which is no label')
        is_object = np.isin(ids, self.category_ids)
        numbers, ids = numbers[is_object], ids[is_object]
        return base.Example(
            image_id=item.image_id,
            file_name=item.file_name,
            image=image.pixels,
            rles=run_lengths.encode_labels(labels, numbers),
            classes=np.searchsorted(self.category_ids, ids).astype(np.int32) + 1,
            is_crowd=numbers < 1000,
            encoded=image.encoded,
            warning=image.warning,
        )

    def _list(self, split: str) -> list[Item]:
        paths = sorted(self._folder.glob(f'leftImg8bit/{split}/*/*{_IMAGE}'))
        return [
            Item(
                image_id=_FIRST_IDS[split] + number,
                file_name=names.printable(path.name),
                path=path,
                labels_path=self._folder.joinpath(
                    'gtFine', split, path.parent.name, path.name[: -len(_IMAGE)] + _LABELS
                ),
            )
            for number, path in enumerate(paths)
        ]
