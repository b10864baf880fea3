# SPDX-License-Identifier: Apache-2.0
"""Any data set as cached TFRecords, in the Model Garden's format, with COCO ground truth beside.

A cache folder is named after all that its records depend on. It is written under another name and
renamed when whole, so that what is there can be read and a second run starts at once.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from typing import Any, Dict, List, Tuple

import cv2
import numpy as np
import tensorflow as tf
import tqdm
from official.vision.data import tfrecord_lib
from pycocotools import mask as mask_api

from gan_mrcnn.datasets import base
from gan_mrcnn.errors import UserError

# Raise it when what is written changes.
FORMAT_VERSION = 1
EXAMPLES_PER_SHARD = 32


@dataclasses.dataclass(frozen=True)
class RecordSet:
    """The records of one split.

    input_path: pattern of the TFRecord files.
    num_examples: how many there are.
    annotation_file: ground truth as COCO has it, in JSON.
    fingerprint: of data and format.
    image_ids: in the order of the records.
    """

    input_path: str
    num_examples: int
    annotation_file: str
    fingerprint: str
    image_ids: Tuple[int, ...]


def ensure_records(
    dataset: base.Dataset, split: str, cache_dir: str, skip_bad: bool = False
) -> RecordSet:
    """The records of `split`, converted now where they are not in the cache.

    Args:
      dataset: what to convert.
      split: one of its splits.
      cache_dir: where caches are kept, one folder each.
      skip_bad: leave out examples that cannot be used, and name them.

    Raises:
      UserError: an example cannot be used, or none is left.
    """
    key = f'{FORMAT_VERSION}:{dataset.fingerprint(split)}:{skip_bad}'
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    folder = pathlib.Path(cache_dir) / f'{dataset.name}-{split}-{fingerprint[:16]}'
    if not (folder / 'manifest.json').is_file():
        _convert(dataset, split, skip_bad, fingerprint, folder)
    manifest = json.loads((folder / 'manifest.json').read_text())
    return RecordSet(
        input_path=str(folder / 'records-*.tfrecord'),
        num_examples=len(manifest['image_ids']),
        annotation_file=str(folder / 'annotations.json'),
        fingerprint=manifest['fingerprint'],
        image_ids=tuple(manifest['image_ids']),
    )


def _convert(dataset, split, skip_bad, fingerprint, folder):
    """Writes `folder`, whole or not at all."""
    unfinished = folder.with_name(f'{folder.name}.{uuid.uuid4().hex}.unfinished')
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise UserError(f'--cache_dir {folder.parent} cannot be written ({error})') from error
    try:
        ground_truth = _write_shards(dataset, split, skip_bad, unfinished)
        image_ids = [image['id'] for image in ground_truth['images']]
        if not image_ids:
            raise UserError(f'{dataset.name}/{split} has no usable image')
        (unfinished / 'annotations.json').write_text(json.dumps(ground_truth))
        manifest = {
            'dataset': dataset.name,
            'split': split,
            'classes': list(dataset.class_names),
            'fingerprint': fingerprint,
            'num_objects': len(ground_truth['annotations']),
            'image_ids': image_ids,
        }
        (unfinished / 'manifest.json').write_text(json.dumps(manifest, indent=1))
        # Where another process was faster, its folder is as good.
        with contextlib.suppress(OSError):
            os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_shards(dataset, split, skip_bad, folder) -> Dict[str, Any]:
    ground_truth: Dict[str, Any] = {
        'images': [],
        'annotations': [],
        'categories': [
            {'id': i, 'name': name} for i, name in enumerate(dataset.class_names, start=1)
        ],
    }
    total = dataset.num_examples(split)
    writer = None
    with contextlib.ExitStack() as files:
        examples = tqdm.tqdm(
            dataset.examples(split, skip_bad),
            total=total,
            desc=f'convert {dataset.name}/{split}',
            unit='image',
        )
        for number, example in enumerate(examples):
            if number % EXAMPLES_PER_SHARD == 0:
                path = folder / f'records-{number // EXAMPLES_PER_SHARD:05d}.tfrecord'
                writer = files.enter_context(tf.io.TFRecordWriter(str(path)))
            annotations = coco_annotations(example, len(ground_truth['annotations']) + 1)
            writer.write(tf_example(example, annotations).SerializeToString())
            height, width = example.image.shape[:2]
            ground_truth['images'].append(
                {
                    'id': example.image_id,
                    'file_name': example.file_name,
                    'height': height,
                    'width': width,
                }
            )
            ground_truth['annotations'] += annotations
    return ground_truth


def coco_annotations(example: base.Example, first_id: int) -> List[Dict[str, Any]]:
    """COCO annotations of one example, `bbox` [x, y, width, height] in pixels around the mask."""
    annotations = []
    for i, mask in enumerate(example.masks):
        rle = mask_api.encode(np.asfortranarray(mask, np.uint8))
        annotations.append(
            {
                'id': first_id + i,
                'image_id': example.image_id,
                'category_id': int(example.classes[i]),
                'bbox': [float(x) for x in mask_api.toBbox(rle)],
                'area': float(mask_api.area(rle)),
                'iscrowd': int(example.is_crowd[i]),
                'segmentation': {'size': list(rle['size']), 'counts': rle['counts'].decode()},
            }
        )
    return annotations


def tf_example(example: base.Example, annotations: List[Dict[str, Any]]) -> tf.train.Example:
    """One record, as the Model Garden's `TfExampleDecoder` reads it."""
    height, width = example.image.shape[:2]
    x, y, w, h = np.array([a['bbox'] for a in annotations]).reshape(-1, 4).T
    feature = tfrecord_lib.convert_to_feature
    features = {
        'image/encoded': feature(_png(example.image[..., ::-1])),
        'image/source_id': feature(str(example.image_id).encode()),
        'image/height': feature(height),
        'image/width': feature(width),
        'image/object/bbox/ymin': feature(list(y / height), 'float_list'),
        'image/object/bbox/xmin': feature(list(x / width), 'float_list'),
        'image/object/bbox/ymax': feature(list((y + h) / height), 'float_list'),
        'image/object/bbox/xmax': feature(list((x + w) / width), 'float_list'),
        'image/object/class/label': feature([int(c) for c in example.classes], 'int64_list'),
        'image/object/area': feature([a['area'] for a in annotations], 'float_list'),
        'image/object/is_crowd': feature([int(c) for c in example.is_crowd], 'int64_list'),
        'image/object/mask': feature(
            [_png(mask.astype(np.uint8)) for mask in example.masks], 'bytes_list'
        ),
    }
    return tf.train.Example(features=tf.train.Features(feature=features))


def _png(image: np.ndarray) -> bytes:
    _, encoded = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    return encoded.tobytes()
