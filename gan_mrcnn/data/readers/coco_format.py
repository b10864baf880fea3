# SPDX-License-Identifier: Apache-2.0
"""Annotations in COCO's format from any tool; COCO itself and the phones are special cases.

An error in the structure of an annotation file (ids, sizes, categories) ends the program at once;
an error in an annotation or an image makes that image unusable.
"""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np

from gan_mrcnn.data.readers import base, coco_json, fingerprints, images, options, splitting
from gan_mrcnn.utils import coco_annotations, progress_bar
from gan_mrcnn.utils.errors import UserError

SPLITS = ('train', 'val', 'test')
OPTIONS = ('share', 'split_seed', 'group_by', 'annotations')
_EXPECTED = (
    "expected there: a JSON file in COCO's format, or two with 'train' and 'val' in their names, "
    'in the folder itself or in annotations/; --annotations names others'
)
# Of an annotation; the rest would only fill the memory.
_KEPT = ('id', 'category_id', 'segmentation', 'bbox', 'area', 'iscrowd')
# Images by which their folder is found.
_TRIED = 20


@dataclasses.dataclass(frozen=True)
class Item(base.Item):
    """An image with its annotations, so that a process that reads it needs no annotation file.

    width, height: in pixels, as the annotations have them.
    path: of the image.
    source: the annotation file.
    packed: `annotations`, in JSON: COCO's 860,000 as Python's lists would fill 2 GB while a run
      trains, and would be slow to send to another process.
    """

    width: int
    height: int
    path: pathlib.Path
    source: pathlib.Path
    packed: str

    @property
    def annotations(self) -> list[dict[str, Any]]:
        """COCO's dictionaries."""
        return json.loads(self.packed)


class _File(NamedTuple):
    """What an annotation file holds: items, the group of each, and the SHA-256 of the file."""

    items: list[Item]
    groups: list[str]
    digest: str


def load(data_dir: Optional[str], chosen: options.Options) -> base.Dataset:
    """A folder with any COCO-style annotations.

    Raises:
      UserError: the folder holds no such files, or one is not valid.
    """
    folder = options.existing_folder(data_dir, 'coco_format', _EXPECTED)
    paths = [_given(folder, name) for name in chosen.annotations] or _find_files(folder)
    return CocoFormat('coco_format', folder, dict(zip(SPLITS, paths)), chosen)


def _given(folder: pathlib.Path, name: str) -> pathlib.Path:
    for path in (folder / name, folder / 'annotations' / name, pathlib.Path(name)):
        if path.is_file():
            return path
    raise UserError(f'--annotations {name}: there is no file {folder / name}')


def _find_files(folder: pathlib.Path) -> list[pathlib.Path]:
    found = [*sorted(folder.glob('*.json')), *sorted(folder.glob('annotations/*.json'))]
    if len(found) == 1:
        return found
    if not found:
        raise UserError(f'--data_dir {folder} has no JSON file; {_EXPECTED}')
    named = [[path for path in found if split in path.stem.lower()] for split in SPLITS]
    joined = [path for paths in named for path in paths]
    if [len(paths) for paths in named[:2]] == [1, 1] and sorted(joined) == sorted(found):
        return joined
    names = ', '.join(str(path.relative_to(folder)) for path in found)
    raise UserError(
        f'--data_dir {folder} has {len(found)} JSON files ({names}); name by --annotations the '
        'one for training, the one for validation and, if any, the one for test'
    )


class CocoFormat(base.Dataset):
    """Splits: 'train' and 'val', and 'test' where there is a file for it.

    A training file alone is divided into 'train' and 'val'; with a share, so are the two together.
    """

    def __init__(
        self,
        name: str,
        folder: pathlib.Path,
        files: Mapping[str, pathlib.Path],
        chosen: options.Options = options.DEFAULT,
        categories_from: Optional[str] = None,
    ):
        """Reads annotation files.

        Args:
          name: as `--dataset` has it.
          folder: where images are searched, see `_image_folder`.
          files: annotation file of each split.
          chosen: how to divide.
          categories_from: the split whose file has all categories. The others are read when asked
            for: COCO's training file takes a while and gigabytes. None: all are read at once.

        Raises:
          UserError: a file cannot be read or is not valid, or files disagree on categories.
        """
        self.name = name
        self._folder = folder
        self._paths = dict(files)
        self._chosen = chosen
        self._is_divided = chosen.share is not None or 'val' not in files
        if not self._is_divided:
            options.check_not_divided(chosen)
        self.splits = tuple(split for split in SPLITS if split in files or split == 'val')
        self._files: dict[str, _File] = {}
        self._items: dict[str, list[Item]] = {}
        self._categories: dict[int, str] = {}
        self._has_all_categories = False
        for split in [categories_from] if categories_from else files:
            self._file(split)
        self._categories = dict(sorted(self._categories.items()))
        self._has_all_categories = True

    def __getstate__(self):
        # Another process is sent its items one by one; all of COCO's annotations are gigabytes.
        return {**self.__dict__, '_files': {}, '_items': {}}

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self._categories.values())

    @property
    def category_ids(self) -> tuple[int, ...]:
        return tuple(self._categories)

    def items(self, split: str) -> list[Item]:
        if split not in self._items:
            if self._is_divided and split in ('train', 'val'):
                self._items.update(self._divide())
            else:
                self._items[split] = self._file(split).items
        return self._items[split]

    def fingerprint(self, split: str) -> str:
        """Of the annotation files' content, and of the images' names, sizes and times of change.

        To read all images at each start would take minutes for COCO.
        """
        items = self.items(split)
        return fingerprints.of_stats(
            [item.path for item in items],
            [(item.image_id, item.file_name) for item in items],
            [self._file(source).digest for source in self._sources(split)],
            self._categories,
        )

    def problems(self, split: str) -> Iterator[base.Problem]:
        items = self.items(split)
        names = collections.Counter(item.path for item in items)
        ids = collections.Counter(
            (item.source, str(a['id'])) for item in items for a in item.annotations if 'id' in a
        )
        for (source, number), count in ids.items():
            if count > 1:
                text = f'{count} annotations have the id {number}'
                yield base.Problem(str(source), text, 'warning')
        for item in progress_bar.Bar(
            items, desc=f'check {self.name}/{split}', unit='image', delay=2
        ):
            if not _is_file(item.path):
                yield base.Problem(str(item.path), 'is missing', 'error')
            if names[item.path] > 1:
                text = f'is listed as image {item.image_id} and under another id; keep one'
                yield base.Problem(str(item.path), text, 'warning')
            for annotation in item.annotations:
                yield from self._problems_of(annotation, item)

    def read(self, item: Item) -> base.Example:
        image = images.read_image(item.path, (item.width, item.height))
        numbers = {category_id: n for n, category_id in enumerate(self._categories, start=1)}
        rles, classes, crowds = [], [], []
        for annotation in item.annotations:
            for problem in self._problems_of(annotation, item):
                if problem.severity == 'error':
                    raise UserError(f'{problem.file_name}: {problem.text}')
            rle = coco_annotations.to_rle(annotation, item.height, item.width)
            measured = coco_annotations.box_and_area(annotation, rle, item.height, item.width)
            rles.append({**rle, **measured})
            classes.append(numbers[annotation['category_id']])
            crowds.append(annotation.get('iscrowd', 0))
        return base.Example(
            image_id=item.image_id,
            file_name=item.file_name,
            image=image.pixels,
            rles=rles,
            classes=np.array(classes, np.int32),
            is_crowd=np.array(crowds, bool),
            encoded=image.encoded,
        )

    def _problems_of(self, annotation, item) -> Iterator[base.Problem]:
        size = item.height, item.width
        text, severity = coco_annotations.error_in(annotation, *size, self._categories), 'error'
        if not text:
            text, severity = coco_annotations.warning_about(annotation, *size), 'warning'
        if text:
            subject = (
                f'annotation {coco_annotations.short(annotation.get("id"))} of {item.file_name}'
            )
            yield base.Problem(str(item.source), f'{subject} {text}', severity)

    def _sources(self, split: str) -> list[str]:
        """Splits whose files the examples of `split` come from."""
        if self._is_divided and split in ('train', 'val'):
            return [source for source in ('train', 'val') if source in self._paths]
        return [split]

    def _divide(self) -> dict[str, list[Item]]:
        """Items of 'train' and 'val', from all images of both."""
        items: list[Item] = []
        groups: list[str] = []
        for source in self._sources('train'):
            file = self._file(source)
            items += _with_other_ids(file.items, {item.image_id for item in items})
            groups += file.groups
        held_out = set(self._hold_out(items, groups))
        if not held_out:
            raise UserError(
                f'{self._paths["train"]} has too few images ({len(items)}) to hold one out for '
                'validation'
            )
        return {
            'train': [item for i, item in enumerate(items) if i not in held_out],
            'val': [item for i, item in enumerate(items) if i in held_out],
        }

    def _hold_out(self, items: Sequence[Item], groups: Sequence[str]) -> list[int]:
        """Indices of the images for validation."""
        share = self._chosen.share or splitting.DEFAULT_SHARE
        return splitting.hold_out_groups(groups, share, self._chosen.split_seed)

    def _file(self, split: str) -> _File:
        if split not in self._files:
            path = self._paths[split]
            content, digest = coco_json.read_file(path)
            self._add_categories(path, content['categories'])
            groups = [self._group(path, entry) for entry in content['images']]
            self._files[split] = _File(self._make_items(split, content), groups, digest)
        return self._files[split]

    def _add_categories(self, path: pathlib.Path, entries: Sequence[Mapping[str, Any]]) -> None:
        """Adds those of one file, which must not contradict the others'."""
        for category_id, name in ((entry['id'], entry['name']) for entry in entries):
            is_new = category_id not in self._categories and name not in self.class_names
            if is_new and not self._has_all_categories:
                self._categories[category_id] = name
            elif self._categories.get(category_id) != name:
                raise UserError(
                    f'{path}: category {category_id} is {name!r}, unlike in the other annotation '
                    'file; give both the same ids and names'
                )

    def _group(self, path: pathlib.Path, entry: Mapping[str, Any]) -> str:
        key = self._chosen.group_by
        if not key:
            return entry['file_name']
        if key not in entry:
            raise UserError(
                f'{path}: image {entry["id"]} ({entry["file_name"]}) has no {key!r}, which '
                f'--group_by names; it has {", ".join(entry)}'
            )
        return str(entry[key])

    def _make_items(self, split: str, content: Mapping[str, list]) -> list[Item]:
        annotations: dict[int, list] = {entry['id']: [] for entry in content['images']}
        for annotation in content['annotations']:
            kept = {key: annotation[key] for key in _KEPT if key in annotation}
            annotations[annotation['image_id']].append(kept)
        folder = self._image_folder(split, content['images'])
        return [
            Item(
                image_id=entry['id'],
                file_name=entry['file_name'],
                width=entry['width'],
                height=entry['height'],
                path=self._image_path(split, folder, entry),
                source=self._paths[split],
                packed=json.dumps(annotations[entry['id']]),
            )
            for entry in content['images']
        ]

    def _image_folder(self, split: str, entries: Sequence[Mapping[str, Any]]) -> pathlib.Path:
        """Where the images are, by trying some of them.

        DIR/X, DIR/images/X, DIR, DIR/images or beside the annotations; X is the split or the end
        of the annotation file's name, such as train2017.
        """
        path = self._paths[split]
        inner = dict.fromkeys((split, path.stem.split('_')[-1]))
        places = [
            place
            for name in inner
            for place in (self._folder / name, self._folder / 'images' / name)
        ]
        places += [self._folder, self._folder / 'images', path.parent]
        tried = [entry['file_name'] for entry in entries[:_TRIED]]
        found = [
            sum(_is_file(self._inside(split, place, name)) for name in tried) for place in places
        ]
        if not any(found):
            raise UserError(
                f'{path}: none of its images, such as {coco_annotations.short(tried[0])}, is in '
                f'{", ".join(map(str, places))}'
            )
        return places[found.index(max(found))]

    def _image_path(self, split: str, folder: pathlib.Path, entry) -> pathlib.Path:
        name = entry['file_name']
        path = self._inside(split, folder, name)
        if path is None:
            raise UserError(
                f'{self._paths[split]}: image {entry["id"]} has the file_name '
                f'{coco_annotations.short(name)}, which leads out of {self._folder}; move the '
                'image in, or link its folder from there, and name it from there'
            )
        return path

    def _inside(self, split: str, place: pathlib.Path, name: str) -> Optional[pathlib.Path]:
        """The file `name` in `place`; None where it is neither in the folder nor beside the file.

        By its name, before any link is followed: links are the user's, names are the file's. With
        `..` taken out by hand, for behind a link the system would leave the folder by it.
        """
        path = os.path.normpath(place / name)
        for root in (self._folder, self._paths[split].parent):
            # The common part of a folder and what is in it is the folder.
            if os.path.commonpath([os.path.abspath(path), root := os.path.abspath(root)]) == root:
                return pathlib.Path(path)
        return None


def _is_file(path: Optional[pathlib.Path]) -> bool:
    try:
        return path is not None and path.is_file()
    except OSError:  # Its name is longer than any can be.
        return False


def _with_other_ids(items: Sequence[Item], taken: set[int]) -> list[Item]:
    """`items`, with higher image ids where one of theirs is already `taken`."""
    if not any(item.image_id in taken for item in items):
        return list(items)
    offset = max(taken) + 1
    return [dataclasses.replace(item, image_id=item.image_id + offset) for item in items]
