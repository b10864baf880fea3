# SPDX-License-Identifier: Apache-2.0
"""Roboflow: the export `COCO`, a folder for each split with `_annotations.coco.json`.

`--dataset coco_format` reads such a folder as it is. This one leaves out what has no outline, and
checks all images.
"""

import collections
import pathlib
from collections.abc import Mapping
from typing import Any, Optional

from gan_mrcnn.data.importing import shapes
from gan_mrcnn.data.importing.source import Export, Object, Picture, Source, split_of
from gan_mrcnn.data.readers import coco_json
from gan_mrcnn.utils.coco_annotations import short
from gan_mrcnn.utils.errors import UserError


def read(source: Source) -> Export:
    """All images of all splits.

    Raises:
      UserError: there is no file of annotations, or it, an image or an annotation cannot be used.
    """
    paths = [path for path in source.files('.json') if path.name.endswith('coco.json')]
    if not paths:
        raise UserError(
            f'{source.path} has no _annotations.coco.json; export from Roboflow as COCO, or import '
            'its YOLO export by --from yolo'
        )
    pictures: list[Picture] = []
    classes: dict[str, None] = {}
    for path in paths:
        content, _ = coco_json.read_file(path)
        names = {category['id']: category['name'] for category in content['categories']}
        classes.update(dict.fromkeys(names.values()))
        annotations = collections.defaultdict(list)
        for annotation in content['annotations']:
            annotations[annotation['image_id']].append(annotation)
        for entry in content['images']:
            place = f'{path}: {short(entry["file_name"])}'
            with source.image(place):
                pictures.append(
                    _picture(source, path, place, entry, annotations[entry['id']], names)
                )
    return Export(pictures, tuple(classes))


def _picture(
    source, path: pathlib.Path, place: str, entry, annotations, names: Mapping[int, str]
) -> Picture:
    folder = pathlib.PurePosixPath(source.relative(path)).parent
    objects = []
    for annotation in annotations:
        which = f'{place}: annotation {short(annotation.get("id"))}'
        with source.annotation(which):
            pieces = _pieces(source, annotation)
            if pieces:
                label = _class_of(annotation, names)
                is_crowd = annotation.get('iscrowd', 0) == 1
                objects.append(Object(label, pieces, which, is_crowd))
    return Picture(
        path=source.find(str(folder / entry['file_name'])),
        objects=objects,
        place=place,
        split=split_of(path.parent.name),
        size=(entry['width'], entry['height']),
    )


def _class_of(annotation: Mapping[str, Any], names: Mapping[int, str]) -> str:
    number = annotation.get('category_id')
    if not isinstance(number, int) or number not in names:
        raise shapes.Unusable(f'has the category id {short(number)}, which has no name')
    return names[number]


def _pieces(source: Source, annotation: Mapping[str, Any]) -> Optional[shapes.Pieces]:
    """What an annotation covers; None where it is a box that is left out, which is counted."""
    segmentation = annotation.get('segmentation')
    if isinstance(segmentation, dict):
        return segmentation
    if segmentation:
        if not isinstance(segmentation, list) or not all(isinstance(x, list) for x in segmentation):
            raise shapes.Unusable(f'has the segmentation {short(segmentation)}')
        return [shapes.Polygon(shapes.points(list(zip(x[::2], x[1::2])))) for x in segmentation]
    if not source.boxes_are_objects:
        source.left_out['boxes'] += 1
        return None
    box = annotation.get('bbox')
    if not isinstance(box, list) or len(box) != 4:
        raise shapes.Unusable(f'has neither a segmentation nor a box: {short(box)}')
    x, y, width, height = shapes.numbers(box)
    return [shapes.box(x, y, x + width, y + height)]
