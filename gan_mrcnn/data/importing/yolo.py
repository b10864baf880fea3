# SPDX-License-Identifier: Apache-2.0
"""YOLO with outlines (Ultralytics' `segment`): `data.yaml`, and a text file for each image.

A line is a class's number and x, y of each point, as shares of the image's width and height as it
is displayed. Lines of five numbers are boxes. An image without a text file has no objects. Pieces
and holes are what a tool has joined by lines there and back, which enclose nothing.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

from gan_mrcnn.data.importing import shapes
from gan_mrcnn.data.importing.source import Export, Object, Picture, Source, inside
from gan_mrcnn.data.readers import images, text_files
from gan_mrcnn.utils import coco_annotations, yaml_files
from gan_mrcnn.utils.coco_annotations import short
from gan_mrcnn.utils.errors import UserError

_SPLITS = ('train', 'val', 'test')


class _Listed(NamedTuple):
    """An image, and its name in the folder that it was found in."""

    path: pathlib.Path
    name: str


def read(source: Source) -> Export:
    """All images of the splits that `data.yaml` names.

    Raises:
      UserError: `data.yaml` is not one, or an image or a line cannot be used.
    """
    path = source.one_file('.yaml', '.yml')
    settings = _settings(path)
    class_names = _class_names(path, settings)
    pictures: list[Picture] = []
    labels: set[pathlib.Path] = set()
    for split in filter(settings.get, _SPLITS):
        for image in _images(source, path, settings, split):
            text_file = _labels_of(image.path)
            labels.add(text_file)
            with source.image(str(image.path)):
                pictures.append(
                    Picture(
                        path=image.path,
                        objects=_objects(source, text_file, class_names),
                        place=str(text_file),
                        split=split,
                        in_shares=True,
                        name=image.name,
                    )
                )
    _check_all_used(source, labels)
    return Export(pictures, tuple(class_names.values()))


def _settings(path: pathlib.Path) -> Mapping[str, Any]:
    try:
        content = yaml_files.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror})') from error
    if not isinstance(content, dict) or 'names' not in content:
        raise UserError(f'{path} has no names: not the data.yaml of a YOLO data set')
    if 'kpt_shape' in content:
        raise UserError(f'{path} is of key points (kpt_shape), not of outlines')
    return content


def _class_names(path: pathlib.Path, settings: Mapping[str, Any]) -> dict[int, str]:
    """Names by number: a list, or an object that has the numbers."""
    names = settings['names']
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not all(coco_annotations.is_id(number) for number in names):
        raise UserError(f'{path} has the names {short(names)}; a list of classes is wanted')
    # YAML takes 1, yes and null for something else than text.
    return {number: str(names[number]) for number in sorted(names)}


def _images(source: Source, path, settings: Mapping[str, Any], split: str) -> list[_Listed]:
    """Images of a split, sorted by name."""
    entries = settings[split]
    entries = entries if isinstance(entries, list) else [entries]
    found: list[_Listed] = []
    for entry in entries:
        place = _place(source, path, settings.get('path'), entry, split)
        if place.is_file():
            found += _of_list(source, place)
        else:
            prefix = f'{place.name}/' if len(entries) > 1 else ''
            found += [
                _Listed(image, prefix + image.relative_to(place).as_posix())
                for image in images.list_images(place)
            ]
    return found


def _place(source: Source, path, root: Any, entry: Any, split: str) -> pathlib.Path:
    """The folder or list of a split.

    As it is named, from the folder that `path` names or from that of data.yaml; Roboflow writes
    `../train/images` for `train/images`. Never outside of the folder of images.
    """
    named = [entry, entry[3:]] if str(entry).startswith('../') else [entry]
    for folder in (root, '.'):
        for name in named:
            is_path = isinstance(folder, str) and isinstance(name, str)
            place = inside(source.images, f'{folder}/{name}') if is_path else None
            if place is not None and place.exists():
                return place
    raise UserError(
        f'{path}: {split} is {short(entry)}, which is not in {source.images}; name the folder that '
        'it is in by --images'
    )


def _of_list(source: Source, path: pathlib.Path) -> list[_Listed]:
    """The images that a text file lists, one in a line."""
    found = []
    for line in text_files.read(path).splitlines():
        if line.strip():
            with source.image(str(path)):
                found.append(_Listed(source.find(line.strip()), ''))
    return found


def _labels_of(image: pathlib.Path) -> pathlib.Path:
    """The text file of an image: in `labels` for the last `images` of its path, or beside it."""
    folders = list(image.parts[:-1])
    if 'images' in folders:
        last = len(folders) - 1 - folders[::-1].index('images')
        folders[last] = 'labels'
    return pathlib.Path(*folders, image.name).with_suffix('.txt')


def _objects(source: Source, path: pathlib.Path, class_names: Mapping[int, str]) -> list[Object]:
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(text_files.read(path).splitlines(), start=1):
        place = f'{path}, line {number}'
        with source.annotation(place):
            piece = _piece(source, line.split())
            if piece is not None:
                found.append(Object(_class_of(line.split()[0], class_names), [piece], place))
    return found


def _class_of(text: str, class_names: Mapping[int, str]) -> str:
    number = coco_annotations.whole(text)
    if number not in class_names:
        raise shapes.Unusable(f'has the class {short(text)}; data.yaml names {len(class_names)}')
    return class_names[number]


def _piece(source: Source, words: list[str]) -> Optional[shapes.Polygon]:
    """What a line says; None where it is empty, or a box that is left out, which is counted."""
    if not words:
        return None
    try:
        values = shapes.numbers([float(word) for word in words[1:]])
    except ValueError:
        raise shapes.Unusable(f'has {short(" ".join(words))}; numbers are wanted') from None
    if len(values) == 4:
        if not source.boxes_are_objects:
            source.left_out['boxes'] += 1
            return None
        x, y, width, height = values
        return shapes.box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    if len(values) < 6 or len(values) % 2:
        raise shapes.Unusable(
            f'has {len(values)} numbers after the class; x and y of three points or more are wanted'
        )
    return shapes.Polygon(shapes.points(list(zip(values[::2], values[1::2]))))


def _check_all_used(source: Source, used: set[pathlib.Path]) -> None:
    """Names text files that belong to no image, in the folders of those that do."""
    for folder in sorted({path.parent for path in used if 'labels' in path.parts[:-1]}):
        for path in sorted(set(folder.glob('*.txt')) - used - {folder / 'classes.txt'}):
            with source.image(str(path)):
                raise shapes.Unusable('has no image')
