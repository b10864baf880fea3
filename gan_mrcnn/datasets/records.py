# SPDX-License-Identifier: Apache-2.0
"""Any data set as cached TFRecords, in the Model Garden's format, with COCO ground truth beside.

A cache folder is named after all that its records depend on. It is written under another name and
renamed when whole, so that what is there can be read and a second run starts at once.
"""

import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from typing import Any, Optional

import cv2
import numpy as np
import tensorflow as tf
import tqdm
from official.vision.data import tfrecord_lib
from pycocotools import mask as mask_api

from gan_mrcnn.datasets import base
from gan_mrcnn.errors import UserError

# Raise it when what is written changes.
FORMAT_VERSION = 2
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
    image_ids: list[int]


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
      UserError: an example cannot be used, none is left, or the cache cannot be written.
    """
    key = f'{FORMAT_VERSION}:{dataset.fingerprint(split)}:{skip_bad}'
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    folder = pathlib.Path(cache_dir) / f'{dataset.name}-{split}-{fingerprint[:16]}'
    manifest = _read_manifest(folder)
    if manifest is None:
        try:
            _convert(dataset, split, skip_bad, fingerprint, folder)
        except (OSError, tf.errors.OpError) as error:
            reason = ' '.join(str(error).split())
            raise UserError(
                f'records cannot be written to {folder} ({reason}); give a folder with room and '
                'permission by --cache_dir'
            ) from error
        manifest = _read_manifest(folder)
    return RecordSet(
        input_path=f'{glob.escape(str(folder))}/records-*.tfrecord',
        num_examples=len(manifest['image_ids']),
        annotation_file=str(folder / 'annotations.json'),
        fingerprint=manifest['fingerprint'],
        image_ids=manifest['image_ids'],
    )


def _convert(dataset, split, skip_bad, fingerprint, folder):
    """Writes `folder`, whole or not at all."""
    if not skip_bad:
        dataset.stop_at_problems(split)
    unfinished = folder.with_name(f'{folder.name}.{uuid.uuid4().hex}.unfinished')
    unfinished.mkdir(parents=True)
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
            'file_sizes': {path.name: path.stat().st_size for path in unfinished.iterdir()},
        }
        (unfinished / 'manifest.json').write_text(json.dumps(manifest, indent=1))
        _move_into_place(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _move_into_place(unfinished, folder):
    """Renames; a damaged `folder` goes, a whole one of a faster process is as good and stays."""
    if folder.exists() and _read_manifest(folder) is None:
        shutil.rmtree(folder)
    try:
        os.rename(unfinished, folder)
    except OSError:
        if _read_manifest(folder) is None:
            raise


def _read_manifest(folder) -> Optional[dict[str, Any]]:
    """The manifest of a whole `folder`; None where something is missing or cut short."""
    try:
        manifest = json.loads((folder / 'manifest.json').read_text())
        sizes = manifest['file_sizes']
        if all((folder / name).stat().st_size == size for name, size in sizes.items()):
            return manifest
    except (OSError, ValueError, KeyError):
        pass
    return None


def _write_shards(dataset, split, skip_bad, folder) -> dict[str, Any]:
    ground_truth: dict[str, Any] = {
        'info': {'description': f'{dataset.name} {split} {dataset.notice}'.strip()},
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


def coco_annotations(example: base.Example, first_id: int) -> list[dict[str, Any]]:
    """COCO annotations of one example, `bbox` [x, y, width, height] in pixels around the mask."""
    annotations = []
    for i, rle in enumerate(example.rles):
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


def tf_example(example: base.Example, annotations: list[dict[str, Any]]) -> tf.train.Example:
    """One record, as the Model Garden's `TfExampleDecoder` reads it."""
    height, width = example.image.shape[:2]
    x, y, w, h = np.array([a['bbox'] for a in annotations]).reshape(-1, 4).T
    feature = tfrecord_lib.convert_to_feature
    features = {
        'image/encoded': feature(example.encoded or _png(example.image[..., ::-1])),
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
            [_png(mask_api.decode(rle)) for rle in example.rles], 'bytes_list'
        ),
    }
    return tf.train.Example(features=tf.train.Features(feature=features))


def _png(image: np.ndarray) -> bytes:
    _, encoded = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    return encoded.tobytes()
