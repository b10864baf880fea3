# SPDX-License-Identifier: Apache-2.0
"""Files in COCO's annotation format, read whole and checked; of single annotations see
`gan_mrcnn.utils.coco_annotations`."""

import gc
import hashlib
import json
import pathlib
import re
from typing import Any

from gan_mrcnn.data.readers import images, text_files
from gan_mrcnn.utils.coco_annotations import is_id, is_name, short, whole
from gan_mrcnn.utils.errors import UserError

# Bytes of a file that takes seconds to read.
_LARGE = 100_000_000
_LISTS = ('images', 'annotations', 'categories')
# Whole numbers of their entries, which some tools write as `1.0` or `"1"`.
_WHOLE = {
    'images': ('id', 'width', 'height'),
    'annotations': ('id', 'image_id', 'category_id', 'iscrowd'),
    'categories': ('id',),
}
_NO_ANNOTATIONS = re.compile(rb'"annotations"\s*:\s*\[\s*\]')


def read_file(path: pathlib.Path) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """An annotation file, and the SHA-256 of its content.

    What is sure after this: images have different whole-numbered ids, a file name, width and
    height; categories different ids and names; annotations belong to images of the file. There may
    be none: of images without objects.

    Raises:
      UserError: the file cannot be read or is not like that.
    """
    try:
        encoded = path.read_bytes()
        if len(encoded) > _LARGE:
            print(f'reading {path}, {len(encoded) / 1e6:.0f} MB', flush=True)
        # JSON has no cycles, and searching for some takes longer than reading COCO's file.
        gc.disable()
        content = json.loads(encoded)
    except FileNotFoundError as error:
        raise UserError(f'{path} is missing') from error
    except UnicodeDecodeError as error:
        raise text_files.not_utf_8(path, encoded, error) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = ' '.join(str(error).split())
        raise UserError(f'{path} cannot be read as JSON ({reason}); replace the file') from error
    finally:
        gc.enable()
    for name in _LISTS:
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(x, dict) for x in entries):
            raise UserError(
                f"{path} has no list of {name}; COCO's format is an object with {', '.join(_LISTS)}"
            )
        if not entries and name != 'annotations':
            raise UserError(f'{path} has an empty list of {name}')
        _make_whole(entries, _WHOLE[name])
    _check_images(path, content['images'])
    _check_categories(path, content['categories'])
    content['categories'] = _without_root(content['categories'], content['annotations'])
    known = {image['id'] for image in content['images']}
    for annotation in content['annotations']:
        if not is_id(annotation.get('image_id')) or annotation['image_id'] not in known:
            raise UserError(
                f'{path}: annotation {short(annotation.get("id"))} is of image '
                f'{short(annotation.get("image_id"))}, which is not among the images; add the '
                'image or remove the annotation'
            )
    return content, hashlib.sha256(encoded).hexdigest()


def has_annotations(path: pathlib.Path) -> bool:
    """Whether the file seems to hold annotations; a list of images to predict does not."""
    try:
        content = path.read_bytes()
    except OSError:
        return True  # Reading it says why not.
    return b'"annotations"' in content and not _NO_ANNOTATIONS.search(content)


def _make_whole(entries, keys) -> None:
    for entry in entries:
        for key in keys:
            if key in entry:
                entry[key] = whole(entry[key])
        mask = entry.get('segmentation')
        if isinstance(mask, dict):
            for key in ('size', 'counts'):
                if isinstance(mask.get(key), list):
                    mask[key] = [whole(value) for value in mask[key]]


def _check_images(path, entries) -> None:
    ids = _check_ids(path, 'image', entries)
    for image_id, image in zip(ids, entries):
        if not is_name(image.get('file_name')):
            raise UserError(
                f'{path}: image {image_id} has no file_name that can be one: '
                f'{short(image.get("file_name"))}'
            )
        for side in ('width', 'height'):
            if not is_id(image.get(side)) or not image[side]:
                raise UserError(
                    f'{path}: image {image_id} ({image["file_name"]}) has the {side} '
                    f'{short(image.get(side))}; a number of pixels is wanted'
                )
        too_large = images.size_error(image['width'], image['height'])
        if too_large:
            raise UserError(f'{path}: image {image_id} ({image["file_name"]}) {too_large}')


def _check_categories(path, entries) -> None:
    names = set()
    for category_id, category in zip(_check_ids(path, 'category', entries), entries):
        name = category.get('name')
        if not is_name(name):
            raise UserError(
                f'{path}: category {category_id} has no name that can be printed: {short(name)}'
            )
        if name in names:
            raise UserError(f'{path}: two categories are named {name!r}; rename or merge them')
        names.add(name)


def _without_root(categories, annotations) -> list[dict[str, Any]]:
    """Without the category that Roboflow puts above the others, which no object has."""
    used = {x['category_id'] for x in annotations if is_id(x.get('category_id'))}
    return [
        category
        for category in categories
        if category.get('supercategory') != 'none'
        or category['id'] in used
        or not any(
            other.get('supercategory') == category['name']
            for other in categories
            if other is not category
        )
    ]


def _check_ids(path, kind, entries) -> list[int]:
    ids = [entry.get('id') for entry in entries]
    seen = set()
    for number, entry_id in enumerate(ids):
        if not is_id(entry_id):
            raise UserError(
                f'{path}: {kind} number {number + 1} has the id {short(entry_id)}; a whole number '
                'is wanted'
            )
        if entry_id in seen:
            raise UserError(f'{path}: {kind} id {entry_id} is used twice; ids must differ')
        seen.add(entry_id)
    return ids
