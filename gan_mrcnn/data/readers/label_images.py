# SPDX-License-Identifier: Apache-2.0
"""Images with a label image each, as tools for microscopy write them: a number per object.

    DIR/images/a.jpg  b.tif ...
    DIR/labels/a.png  b.tif ...    0 background, 1, 2, 3, ... the objects
    DIR/classes.csv                file, object, class: without it there is one class, `object`
    DIR/pictures.csv               file and what --group_by may name, such as patient

Folders `train`, `val` and `test` inside images/ and labels/ are the splits. Without `val` the
images to train on are divided. Numbers need not follow each other.

A mask of black and white is a label image with one number, however it is stored. Several pieces of
an image's only number are therefore refused, unless `Options.objects` says what they are.
"""

import csv
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Optional

import cv2
import numpy as np

from gan_mrcnn.data.readers import (
    base,
    fingerprints,
    images,
    names,
    options,
    splitting,
    text_files,
)
from gan_mrcnn.utils import coco_annotations, run_lengths
from gan_mrcnn.utils.errors import UserError

OPTIONS = ('share', 'split_seed', 'group_by', 'objects')
_SPLITS = ('train', 'val', 'test')
_EXPECTED = 'expected there: the images in images/ and a label image of each in labels/'


@dataclasses.dataclass(frozen=True)
class Item(base.Item):
    """An image, its label image, and the class of each object by its number (None: all 1)."""

    path: pathlib.Path
    labels_path: pathlib.Path
    classes: Optional[dict[int, int]]


def load(data_dir: Optional[str], chosen: options.Options) -> base.Dataset:
    """A folder of images and label images.

    Raises:
      UserError: the folder does not hold them, or a CSV file is damaged.
    """
    return LabelImages(options.existing_folder(data_dir, 'label_images', _EXPECTED), chosen)


class LabelImages(base.Dataset):
    """Splits: 'train' and 'val', and 'test' where there is a folder for it."""

    name = 'label_images'

    def __init__(self, folder: pathlib.Path, chosen: options.Options = options.DEFAULT):
        """Lists the images and reads the CSV files.

        Raises:
          UserError: there are no images, or a CSV file is damaged or goes with no option.
        """
        image_paths = _list_images(folder / 'images')
        if not image_paths:
            raise UserError(f'--data_dir {folder} has no images in images/; {_EXPECTED}')
        self._labels_folder, self._objects = folder / 'labels', chosen.objects
        labels_paths = images.list_labels(self._labels_folder)
        if chosen.objects == 'components' and (folder / 'classes.csv').exists():
            raise UserError(
                f'{folder / "classes.csv"} gives classes by number, which --objects components '
                'does not go by; leave out one of them'
            )
        classes = _read_classes(folder / 'classes.csv', image_paths)
        found = sorted({name for by_number in classes.values() for name in by_number.values()})
        self.class_names = tuple(found) or ('object',)
        items = {
            key: self._make_item(number, key, path, labels_paths.get(key), classes)
            for number, (key, path) in enumerate(image_paths.items(), start=1)
        }
        self._items = _own_splits(items)
        is_divided = chosen.share is not None or 'val' not in self._items
        if is_divided and self._items.keys() & {'train', 'val'}:
            self._items.update(_divide(folder, items, self._items, chosen))
        elif {'train', 'val'} <= self._items.keys():
            options.check_not_divided(chosen)
        self.splits = tuple(split for split in _SPLITS if split in self._items)

    def items(self, split: str) -> list[Item]:
        return self._items[split]

    def fingerprint(self, split: str) -> str:
        items = self._items[split]
        paths = [path for item in items for path in (item.path, item.labels_path)]
        facts = [(item.image_id, item.file_name, item.classes) for item in items]
        return fingerprints.of_content(paths, self.class_names, facts, self._objects)

    def problems(self, split: str) -> Iterator[base.Problem]:
        for item in self._items[split]:
            if not item.labels_path.is_file():
                others = ', '.join(images.LABEL_SUFFIXES)
                text = f'is missing, the label image of {item.file_name} ({others} are read)'
                yield base.Problem(str(item.labels_path), text, 'error')

    def read(self, item: Item) -> base.Example:
        labels = images.read_labels(item.labels_path)
        image = images.read_image(item.path, labels.shape[::-1])
        if self._objects == 'components':
            labels = _components(labels)
        numbers = [int(number) for number in run_lengths.numbers_in(labels) if number]
        if item.classes is None:
            if not self._objects:
                _check_not_binary(item.labels_path, labels, numbers)
            classes = [1] * len(numbers)
        else:
            _check_same_objects(item.labels_path, item.classes, numbers)
            classes = [item.classes[number] for number in numbers]
        return base.Example(
            image_id=item.image_id,
            file_name=item.file_name,
            image=image.pixels,
            rles=run_lengths.encode_labels(labels, numbers),
            classes=np.array(classes, np.int32),
            is_crowd=np.zeros(len(numbers), bool),
            encoded=image.encoded,
            warning=image.warning,
        )

    def _make_item(
        self,
        number: int,
        key: str,
        path: pathlib.Path,
        labels_path: Optional[pathlib.Path],
        classes: Mapping[str, Mapping[int, str]],
    ) -> Item:
        """`classes`: name by number, by key; empty where there is one class."""
        own = None
        if classes:
            by_number = classes.get(key, {})
            own = {n: self.class_names.index(name) + 1 for n, name in by_number.items()}
        return Item(
            image_id=number,
            file_name=names.printable(f'{key}{path.suffix}'),
            path=path,
            labels_path=labels_path or self._labels_folder / f'{key}.png',
            classes=own,
        )


def _components(labels: np.ndarray) -> np.ndarray:
    """[H, W] int32 with a number for each connected piece (of 8 neighbours) of each of `labels`."""
    pieces = np.zeros(labels.shape, np.int32)
    count = 0
    for number in run_lengths.numbers_in(labels):
        if number:
            found, own = cv2.connectedComponents((labels == number).astype(np.uint8))
            pieces += np.where(own > 0, own + count, 0)
            count += found - 1
    return pieces


def _check_not_binary(path: pathlib.Path, labels: np.ndarray, numbers: list[int]) -> None:
    """Raises UserError for several pieces of an only number: a mask of several things, or one?"""
    if len(numbers) == 1:
        pieces = cv2.connectedComponents((labels > 0).astype(np.uint8))[0] - 1
        if pieces > 1:
            raise UserError(
                f'{path} is a black and white mask of {pieces} pieces (its only number is '
                f'{numbers[0]}): --objects components makes each piece an object, --objects '
                'numbers all of them one; or number the objects 1, 2, 3, ...'
            )


def _check_same_objects(path: pathlib.Path, classes: Mapping[int, int], numbers: list[int]) -> None:
    """Raises UserError where classes.csv and the label image do not have the same objects."""
    for number in classes:
        if number not in numbers:
            raise UserError(f'{path} has no object {number}, which classes.csv names')
    for number in numbers:
        if number not in classes:
            raise UserError(
                f'{path} has an object {number}, of which classes.csv does not give the class'
            )


def _list_images(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Images by key: the path in `folder` without suffix, in the order of the keys."""
    found: dict[str, pathlib.Path] = {}
    for path in images.list_images(folder):
        key = _key(path.relative_to(folder).as_posix())
        if key in found:
            raise UserError(f'{found[key]} and {path.name} both exist; remove one')
        found[key] = path
    return dict(sorted(found.items()))


def _key(file_name: str) -> str:
    stem, dot, suffix = names.same(file_name).rpartition('.')
    return stem if f'{dot}{suffix}'.lower() in images.IMAGE_SUFFIXES else names.same(file_name)


def _key_of_cell(file_name: str) -> str:
    return _key(file_name.replace('\\', '/'))


def _own_splits(items: Mapping[str, Item]) -> dict[str, list[Item]]:
    """Items of the folders train, val and test; all as 'train' where there are others, too."""
    found = {
        split: [item for key, item in items.items() if key.startswith(f'{split}/')]
        for split in _SPLITS
    }
    found = {split: members for split, members in found.items() if members}
    in_folders = sum(map(len, found.values())) == len(items)
    return found if in_folders else {'train': list(items.values())}


def _divide(folder, items, own, chosen) -> dict[str, list[Item]]:
    """'train' and 'val' from the images of both."""
    keys = {item.image_id: names.printable(key) for key, item in items.items()}
    pooled = [*own.get('train', []), *own.get('val', [])]
    groups = [keys[item.image_id] for item in pooled]
    if chosen.group_by:
        by_key = _read_groups(folder / 'pictures.csv', chosen.group_by, keys.values())
        groups = [by_key[key] for key in groups]
    share = chosen.share or splitting.DEFAULT_SHARE
    held_out = set(splitting.hold_out_groups(groups, share, chosen.split_seed))
    return {
        'train': [item for i, item in enumerate(pooled) if i not in held_out],
        'val': [item for i, item in enumerate(pooled) if i in held_out],
    }


def _read_classes(path: pathlib.Path, image_paths) -> dict[str, dict[int, str]]:
    """Class names by object number, by image; empty without the file."""
    found: dict[str, dict[int, str]] = {}
    for place, row in _read_csv(path, ('file', 'object', 'class')) if path.exists() else ():
        key, name = _key_of_cell(row['file']), row['class']
        number = coco_annotations.whole(row['object'])
        if key not in image_paths:
            raise UserError(f'{place}: there is no image {row["file"]} in images/')
        if not coco_annotations.is_id(number) or not number:
            raise UserError(f'{place}: {row["object"]!r} is not an object number; use 1, 2, 3, ...')
        if not name:
            raise UserError(f'{place}: the class of object {number} is empty')
        by_number = found.setdefault(key, {})
        if by_number.setdefault(number, name) != name:
            raise UserError(f'{place}: object {number} of {row["file"]} has another class above')
    return found


def _read_groups(path: pathlib.Path, column: str, image_paths) -> dict[str, str]:
    """What `column` says of each image."""
    if not path.exists():
        raise UserError(f'--group_by {column} wants {path}, with columns file and {column}')
    rows = _read_csv(path, ('file', column))
    found = {_key_of_cell(row['file']): row[column] for _, row in rows}
    for key in image_paths:
        if not found.get(key):
            raise UserError(f'{path} does not give the {column} of {key}')
    return found


def _read_csv(path: pathlib.Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """The place, for messages, and the cells of each line; commas or semicolons are read.

    Raises:
      UserError: the file cannot be read, or a column or a cell is missing.
    """
    try:
        lines = text_files.read(path).splitlines()
        delimiter = ';' if ';' in lines[0] else ','
        rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True))
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise UserError(f'{path} cannot be read as CSV ({error}); replace the file') from error
    header = [name.strip() for name in rows[0]]
    missing = [column for column in columns if column not in header]
    if missing:
        raise UserError(f'{path} has no column {missing[0]!r}; {", ".join(columns)} are wanted')
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            if not row:
                continue
            raise UserError(
                f'{path}, line {number}: {len(row)} cells, but the header has {len(header)}'
            )
        yield f'{path}, line {number}', dict(zip(header, (cell.strip() for cell in row)))
