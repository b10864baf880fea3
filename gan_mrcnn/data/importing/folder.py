# SPDX-License-Identifier: Apache-2.0
"""Writes an export as a folder that `--dataset coco_format` reads, whole or not at all.

    DIR/annotations.json  DIR/images/...        of images that come undivided
    DIR/train/annotations.json  DIR/train/...   and val and test, of images that come divided

Images are copied, byte for byte, and keep their names and the folders that they were in.
"""

import collections
import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gan_mrcnn.data.importing import shapes
from gan_mrcnn.data.importing.source import Export, Object, Picture, Source, split_of
from gan_mrcnn.data.readers import images, names
from gan_mrcnn.utils import cli, coco_annotations, disk, files, progress_bar
from gan_mrcnn.utils.errors import UserError

ANNOTATIONS = 'annotations.json'
_ONLY_CLASS = 'object'
_OPEN_MODE = 0o755  # mkdtemp gives access to this user alone.


class Summary(NamedTuple):
    """What was written.

    images: how many in each split; the key is '' where there are none.
    without_objects: how many of them have none.
    objects: how many of each class, in the order of their ids.
    """

    images: dict[str, int]
    without_objects: int
    objects: dict[str, int]


def check_new(out: str, source: pathlib.Path) -> None:
    """Raises UserError where `out` holds something, cannot be written, or is in `source`."""
    path, absolute = pathlib.Path(out), pathlib.Path(os.path.abspath(out))
    if pathlib.Path(os.path.abspath(source)) in (absolute, *absolute.parents):
        raise UserError(f'--to {out} is inside of {source}, which is read; give a folder elsewhere')
    if os.path.lexists(path) and not os.path.isdir(path):
        raise UserError(f'--to {out} is a file; give a new folder')
    if os.path.isdir(path) and os.listdir(path):
        raise UserError(f'--to {out} is not empty; give a new folder')
    disk.check_folder(path.parent, '--to')


def write(export: Export, source: Source, out: str) -> Summary:
    """Writes the folder.

    Raises:
      UserError: an image or an annotation cannot be used, nothing is left to write, or the folder
        cannot be written.
    """
    pictures = _divided(_named(export.pictures, source))
    _check_names(pictures)
    class_names = _class_names(export)
    target = pathlib.Path(out)
    # Beside the target, for a rename must not cross disks.
    partial = pathlib.Path(tempfile.mkdtemp(prefix='.import.', dir=target.parent))
    try:
        with disk.errors_named(f'--to {out}'):
            writer = _Writer(partial, source, class_names)
            for picture in progress_bar.Bar(pictures, desc='import', unit='image', delay=2):
                with source.image(picture.place):
                    writer.add(picture)
            summary = writer.finish()
            partial.chmod(_OPEN_MODE)
            os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


def _named(pictures: Sequence[Picture], source: Source) -> list[Picture]:
    """With names in the new folder: those of the files in the folder of images, as text."""
    found = []
    for picture in pictures:
        name = picture.name
        if not name and picture.path is not None:
            name = picture.path.relative_to(source.images).as_posix()
        found.append(dataclasses.replace(picture, name=names.printable(os.path.normpath(name))))
    folder = 'images/'
    is_inside = all(picture.name.startswith(folder) for picture in found)
    return [
        dataclasses.replace(picture, name=picture.name[len(folder) :]) if is_inside else picture
        for picture in found
    ]


def _divided(pictures: Sequence[Picture]) -> list[Picture]:
    """With splits: those of the export, or the folders that the images are in.

    Either says something of all of them and has a part to train on, or nothing is divided.
    """
    by_folder = [
        dataclasses.replace(picture, split=split_of(picture.name.partition('/')[0]))
        for picture in pictures
    ]
    for found in (pictures, by_folder):
        splits = {picture.split for picture in found}
        if 'train' in splits and '' not in splits:
            return [_without_folder(picture) for picture in found]
    return [dataclasses.replace(picture, split='') for picture in pictures]


def _without_folder(picture: Picture) -> Picture:
    """Without the folders `train` and `images` before the name, in either order."""
    name = picture.name
    for _ in range(2):
        folder, _, rest = name.partition('/')
        if rest and (folder == 'images' or split_of(folder) == picture.split):
            name = rest
    return dataclasses.replace(picture, name=name)


def _check_names(pictures: Sequence[Picture]) -> None:
    """Raises UserError where an image is described twice."""
    known: dict[tuple[str, str], Picture] = {}
    for picture in pictures:
        first = known.setdefault((picture.split, picture.name), picture)
        if first is not picture:
            raise UserError(
                f'{first.place} and {picture.place} are both of the image {picture.name}; keep one'
            )


def _class_names(export: Export) -> list[str]:
    """The classes of the project, then others that objects have; one where nothing has a class."""
    known = list(dict.fromkeys(export.classes))
    for name in known:
        if not coco_annotations.is_name(name):
            raise UserError(
                f'there is a class {coco_annotations.short(name)}; give it a name that can be '
                'printed'
            )
    used = {thing.label for picture in export.pictures for thing in picture.objects}
    others = {name for name in used if coco_annotations.is_name(name)}
    return [*known, *sorted(others.difference(known))] or [_ONLY_CLASS]


class _Writer:
    """Copies images one by one, and keeps their annotations until the end."""

    def __init__(self, folder: pathlib.Path, source: Source, class_names: Sequence[str]):
        self._folder = folder
        self._source = source
        self._ids = {name: number for number, name in enumerate(class_names, start=1)}
        self._has_classes = list(class_names) != [_ONLY_CLASS]
        self._images: dict[str, list[dict[str, Any]]] = {}
        self._annotations: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
        self._num_images = self._num_annotations = 0

    def add(self, picture: Picture) -> None:
        """Copies an image and converts its annotations.

        Raises:
          Unusable, UserError: it, or one of them, cannot be used; nothing of it is kept.
        """
        if not coco_annotations.is_name(picture.name):
            raise shapes.Unusable(f'has the name {coco_annotations.short(picture.name)}')
        height, width = self._size(picture)
        converted = []
        for thing in picture.objects:
            with self._source.annotation(thing.place):
                converted.append(self._convert(thing, picture, height, width))
        target = self._folder / (picture.split or 'images') / picture.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if picture.path is not None:
            shutil.copyfile(picture.path, target)
        else:
            target.write_bytes(picture.encoded)
        self._num_images += 1
        entry = {'id': self._num_images, 'file_name': picture.name, 'width': width}
        self._images.setdefault(picture.split, []).append({**entry, 'height': height})
        for annotation in converted:
            self._num_annotations += 1
            ids = {'id': self._num_annotations, 'image_id': self._num_images}
            self._annotations[picture.split].append({**ids, **annotation})

    def finish(self) -> Summary:
        """Writes the annotations.

        Raises:
          UserError: there is no image, or no object in any of them.
        """
        annotations = [one for listed in self._annotations.values() for one in listed]
        if not annotations:
            what = 'has no image' if not self._num_images else 'has no object with an outline'
            raise UserError(f'{self._source.path} {what} that can be used{self._hint()}')
        categories = [{'id': number, 'name': name} for name, number in self._ids.items()]
        for split, entries in self._images.items():
            content = {
                'images': entries,
                'annotations': self._annotations[split],
                'categories': categories,
            }
            files.write_json(self._folder / split / ANNOTATIONS, content, indent=None)
        counts = collections.Counter(one['category_id'] for one in annotations)
        return Summary(
            images={split: len(entries) for split, entries in self._images.items()},
            without_objects=self._num_images - len({one['image_id'] for one in annotations}),
            objects={name: counts[number] for name, number in self._ids.items()},
        )

    def _hint(self) -> str:
        boxes = self._source.left_out['boxes']
        if not boxes:
            return ''
        return f': it has {boxes} boxes; --boxes objects takes them for outlines'

    def _size(self, picture: Picture) -> tuple[int, int]:
        """Height and width that the annotations are for; the whole image is read for it."""
        if picture.path is None:
            return self._size_of_encoded(picture)
        if picture.must_be_upright and images.is_turned(picture.path):
            raise shapes.Unusable(
                f'its image {picture.path} is turned by EXIF, and the export does not say whether '
                'it was annotated as stored or as displayed; save it upright'
            )
        return images.read_image(picture.path, picture.size).pixels.shape[:2]

    def _size_of_encoded(self, picture: Picture) -> tuple[int, int]:
        with tempfile.NamedTemporaryFile(dir=self._folder) as file:
            file.write(picture.encoded)
            file.flush()
            try:
                return images.read_image(pathlib.Path(file.name), picture.size).pixels.shape[:2]
            except UserError as error:
                text = str(error).replace(file.name, 'the image inside')
                raise shapes.Unusable(text) from error

    def _convert(
        self, thing: Object, picture: Picture, height: int, width: int
    ) -> Mapping[str, Any]:
        label = thing.label if self._has_classes else _ONLY_CLASS
        if label is None:
            raise shapes.Unusable('has no class, while others have one')
        if not coco_annotations.is_name(label):
            raise shapes.Unusable(f'has the class {coco_annotations.short(label)}; give it a name')
        pieces = _in_pixels(thing.pieces, height, width) if picture.in_shares else thing.pieces
        return {
            'category_id': self._ids[label],
            'iscrowd': int(thing.is_crowd),
            **shapes.to_coco(pieces, height, width),
        }


def _in_pixels(pieces: Sequence[shapes.Polygon], height: int, width: int) -> list[shapes.Polygon]:
    """Outlines whose coordinates are shares of the image's sides."""
    return [shapes.Polygon(piece.outline * np.array([width, height])) for piece in pieces]


def describe(summary: Summary, source: Source, out: str) -> list[str]:
    """Lines for the user: what was written, and what was left out."""
    parts = ', '.join(f'{split} {count}' for split, count in summary.images.items() if split)
    classes = ', '.join(f'{name} {count}' for name, count in summary.objects.items())
    parts = f' ({parts})' if parts else ''
    empty = f', {summary.without_objects} without objects' if summary.without_objects else ''
    lines = [
        f'{out}: {sum(summary.images.values())} images copied{parts}{empty}',
        f'{sum(summary.objects.values())} objects of {len(summary.objects)} classes: {classes}',
    ]
    unused = [name for name, count in summary.objects.items() if not count]
    if unused:
        lines.append(f'classes without an object: {", ".join(unused)}')
    left_out = [f'{count} {kind}' for kind, count in sorted(source.left_out.items()) if count]
    attributes = {name: count for name, count in sorted(source.attributes.items()) if count}
    if attributes:
        listed = ', '.join(f'{name} {count}' for name, count in attributes.items())
        left_out.append(f'{sum(attributes.values())} attributes ({listed})')
    if left_out:
        lines.append(f'left out: {", ".join(left_out)}')
    skipped = (
        (source.skipped_images, 'images'),
        (source.skipped_annotations, 'annotations'),
    )
    listed = ' and '.join(f'{count} {what}' for count, what in skipped if count)
    if listed:
        lines.append(f'skipped, because they cannot be used: {listed}')
    return [cli.one_line(line) for line in lines]
