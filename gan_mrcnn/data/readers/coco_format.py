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
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np

from gan_mrcnn.data.readers import (
    base,
    coco_json,
    fingerprints,
    images,
    names,
    options,
    splitting,
)
from gan_mrcnn.utils import coco_annotations, progress_bar
from gan_mrcnn.utils.errors import UserError

SPLITS = ('train', 'val', 'test')
OPTIONS = ('share', 'split_seed', 'group_by', 'annotations', 'crowds', 'skip_bad_annotations')
_EXPECTED = (
    "expected there: a JSON file in COCO's format, or two with 'train' and 'val' in their names, "
    'in the folder itself or in annotations/, or one each in train/ and valid/; --annotations '
    'names others'
)
# Folders with their own annotation file, as Roboflow writes them.
_SPLIT_FOLDERS = {'train': ('train',), 'val': ('val', 'valid'), 'test': ('test',)}
_CROWDS_HINT = (
    'some tools, such as CVAT, write iscrowd 1 for every mask that was painted: --crowds objects '
    'learns and scores them as objects'
)
_SKIP_ANNOTATION = '; --skip_bad_annotations skips it alone'
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


def _subject(annotation: Mapping[str, Any], item: Item) -> str:
    """Which annotation it is, for messages."""
    number = coco_annotations.short(annotation.get('id'))
    return f'{item.source}: annotation {number} of {item.file_name}'


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
    given = dict(zip(SPLITS, (_given(folder, name) for name in chosen.annotations)))
    dataset = CocoFormat('coco_format', folder, given or _find_files(folder), chosen)
    dataset.crowds_hint = '' if chosen.crowds == 'objects' else _CROWDS_HINT
    return dataset


def _given(folder: pathlib.Path, name: str) -> pathlib.Path:
    for path in (folder / name, folder / 'annotations' / name, pathlib.Path(name)):
        if path.is_file():
            return path
    raise UserError(f'--annotations {name}: there is no file {folder / name}')


def _find_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Annotation files by split, where the user names none."""
    found = [*_json_files(folder), *_json_files(folder / 'annotations')]
    if not found:
        found_inside = _files_of_split_folders(folder)
        if not found_inside:
            raise UserError(f'--data_dir {folder} has no JSON file; {_EXPECTED}')
        return found_inside
    if len(found) > 1:
        found = _without_empty(found)
    if len(found) == 1:
        return {'train': found[0]}
    named = {split: [path for path in found if split in path.stem.lower()] for split in SPLITS}
    joined = [path for paths in named.values() for path in paths]
    if len(named['train']) == len(named['val']) == 1 and sorted(joined) == sorted(found):
        return {split: paths[0] for split, paths in named.items() if paths}
    listed = ', '.join(str(path.relative_to(folder)) for path in found)
    raise UserError(
        f'--data_dir {folder} has {len(found)} JSON files ({listed}); name by --annotations the '
        'one for training, the one for validation and, if any, the one for test'
    )


def _json_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in sorted(folder.glob('*.json')) if not path.name.startswith('.')]


def _without_empty(found: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """`found` without lists of images to predict, and JSON files of another kind.

    A file for training or validation stays: all of its images may be without objects.
    """
    kept = []
    for path in found:
        is_named = any(split in path.stem.lower() for split in ('train', 'val'))
        if is_named or coco_json.has_annotations(path):
            kept.append(path)
        else:
            print(f'{path} has no annotations and is not used', flush=True)
    return kept or list(found)


def _files_of_split_folders(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The files in train/, valid/ (or val/) and test/, where each has one; empty otherwise."""
    files = {}
    for split, names_of_split in _SPLIT_FOLDERS.items():
        inside = [path for name in names_of_split for path in _json_files(folder / name)]
        if len(inside) > 1:
            return {}
        if inside:
            files[split] = inside[0]
    return files if 'train' in files else {}


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
        # By annotation file and name: images that were found by another, and files that look like
        # one that was not found.
        self._renamed: set[tuple[pathlib.Path, str]] = set()
        self._alike: dict[tuple[pathlib.Path, str], list[pathlib.Path]] = {}
        self._categories: dict[int, str] = {}
        self._has_all_categories = False
        for split in [categories_from] if categories_from else files:
            self._file(split)
        self._categories = dict(sorted(self._categories.items()))
        self._has_all_categories = True

    def __getstate__(self):
        # Another process is sent its items one by one; all of COCO's annotations are gigabytes.
        return {**self.__dict__, '_files': {}, '_items': {}, '_renamed': set(), '_alike': {}}

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
            # Nothing by default, so that records from before there were such options stay good.
            *[name for name in (self._chosen.crowds,) if name != 'ignored'],
            *[name for name in ('skip_bad_annotations',) if self._chosen.skip_bad_annotations],
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
            if (item.source, item.file_name) in self._renamed:
                name = coco_annotations.short(item.file_name)
                text = f'is taken for {name}, which is not there'
                yield base.Problem(f'{item.source}: {item.path}', text, 'warning')
            if not _is_file(item.path):
                alike = self._alike.get((item.source, item.file_name), ())
                yield base.Problem(str(item.path), f'is missing{_did_you_mean(alike)}', 'error')
            if names[item.path] > 1:
                text = f'is listed as image {item.image_id} and under another id; keep one'
                yield base.Problem(str(item.path), text, 'warning')
            for annotation in item.annotations:
                yield from self._problems_of(annotation, item)

    def read(self, item: Item) -> base.Example:
        image = images.read_image(item.path, (item.width, item.height))
        numbers = {category_id: n for n, category_id in enumerate(self._categories, start=1)}
        rles, classes, crowds = [], [], []
        num_skipped = 0
        for annotation in item.annotations:
            text = self._error_in(annotation, item)
            if text and self._chosen.skip_bad_annotations:
                num_skipped += 1
                continue
            if text:
                raise UserError(f'{_subject(annotation, item)}: {text}{_SKIP_ANNOTATION}')
            rle = coco_annotations.to_rle(annotation, item.height, item.width)
            measured = coco_annotations.box_and_area(annotation, rle, item.height, item.width)
            rles.append({**rle, **measured})
            classes.append(numbers[annotation['category_id']])
            crowds.append(annotation.get('iscrowd', 0) and self._chosen.crowds == 'ignored')
        return base.Example(
            image_id=item.image_id,
            file_name=item.file_name,
            image=image.pixels,
            rles=rles,
            classes=np.array(classes, np.int32),
            is_crowd=np.array(crowds, bool),
            encoded=image.encoded,
            warning=image.warning,
            num_skipped=num_skipped,
        )

    def _error_in(self, annotation, item) -> str:
        return coco_annotations.error_in(annotation, item.height, item.width, self._categories)

    def _problems_of(self, annotation, item) -> Iterator[base.Problem]:
        subject = _subject(annotation, item)
        text = self._error_in(annotation, item)
        if text and self._chosen.skip_bad_annotations:
            yield base.Problem(subject, f'{text}; it is skipped', 'warning')
        elif text:
            yield base.Problem(subject, f'{text}{_SKIP_ANNOTATION}', 'error')
        else:
            text = coco_annotations.warning_about(annotation, item.height, item.width)
            if text:
                yield base.Problem(subject, text, 'warning')

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
        return [
            Item(
                image_id=entry['id'],
                file_name=entry['file_name'],
                width=entry['width'],
                height=entry['height'],
                path=path,
                source=self._paths[split],
                packed=json.dumps(annotations[entry['id']]),
            )
            for entry, path in zip(content['images'], self._image_paths(split, content['images']))
        ]

    def _image_paths(self, split: str, entries: Sequence[Mapping[str, Any]]) -> list[pathlib.Path]:
        """Where the images are, or would be: by their names, and otherwise by what these mean.

        Raises:
          UserError: there is none, or a name leads out of the folder.
        """
        names_of_images = [entry['file_name'] for entry in entries]
        places = self._places(split)
        folder = self._image_folder(split, names_of_images[:_TRIED], places)
        paths = [self._inside(split, folder or places[0], name) for name in names_of_images]
        listing = _Listing()
        lost = [i for i, path in enumerate(paths) if path not in listing]
        if lost:
            taken = {path for path in paths if path in listing}
            found = self._find_lost(split, [names_of_images[i] for i in lost], places, taken)
            for i, path in zip(lost, found):
                paths[i] = path or paths[i]
            if not folder and not any(found):
                name = names_of_images[0]
                raise UserError(
                    f'{self._paths[split]}: none of its images, such as '
                    f'{coco_annotations.short(name)}, is in {", ".join(map(str, places))}'
                    f'{_did_you_mean(self._alike[self._paths[split], name])}'
                )
        for entry, path in zip(entries, paths):
            if path is None:
                name = entry['file_name']
                raise UserError(
                    f'{self._paths[split]}: image {entry["id"]} has the file_name '
                    f'{coco_annotations.short(name)}, which leads out of {self._folder}; move the '
                    'image in, or link its folder from there, and name it from there'
                    f'{_did_you_mean(self._alike[self._paths[split], name])}'
                )
        return paths

    def _find_lost(
        self,
        split: str,
        lost: Sequence[str],
        places: Sequence[pathlib.Path],
        taken: Collection[pathlib.Path],
    ) -> list[Optional[pathlib.Path]]:
        """The file that each of `lost` means, None where that is not clear; says what was found."""
        source = self._paths[split]
        finder = names.Finder([place for place in places if place.is_dir()], images.IMAGE_SUFFIXES)
        meant = {}
        for name in lost:
            meant[name], self._alike[source, name] = finder.find(name, taken)
        uses = collections.Counter(paths[0] for paths in meant.values() if len(paths) == 1)
        found = {
            name: paths[0] if len(paths) == 1 and uses[paths[0]] == 1 else None
            for name, paths in meant.items()
        }
        renamed = [name for name, path in found.items() if path]
        self._renamed.update((source, name) for name in renamed)
        if renamed:
            print(
                f'{source}: {len(renamed)} images are found by names that are nearly theirs, such '
                f'as {coco_annotations.short(renamed[0])} as {found[renamed[0]]}',
                flush=True,
            )
        return [found[name] for name in lost]

    def _places(self, split: str) -> list[pathlib.Path]:
        """Where images may be.

        DIR/X, DIR/images/X, DIR, DIR/images or beside the annotations; X is the split or the end
        of the annotation file's name, such as train2017.
        """
        path = self._paths[split]
        places = [
            place
            for name in dict.fromkeys((split, path.stem.split('_')[-1]))
            for place in (self._folder / name, self._folder / 'images' / name)
        ]
        return [*places, self._folder, self._folder / 'images', path.parent]

    def _image_folder(
        self, split: str, tried: Sequence[str], places: Sequence[pathlib.Path]
    ) -> Optional[pathlib.Path]:
        """The one of `places` with most of the images `tried`, None where none has any."""
        found = [
            sum(_is_file(self._inside(split, place, name)) for name in tried) for place in places
        ]
        return places[found.index(max(found))] if any(found) else None

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


def _did_you_mean(alike: Sequence[pathlib.Path]) -> str:
    return f'; did you mean {" or ".join(map(str, alike[:3]))}?' if alike else ''


class _Listing:
    """Which files exist, by one look into each folder: a look at each of COCO's would take long."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def __contains__(self, path: Optional[pathlib.Path]) -> bool:
        if path is None:
            return False
        folder = str(path.parent)
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(folder))
            except OSError:
                self._names[folder] = frozenset()
        return path.name in self._names[folder]


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
