# SPDX-License-Identifier: Apache-2.0
"""Any data set as cached TFRecords, in the Model Garden's format, with COCO ground truth beside.

A cache folder is named after all that its records depend on: the data, by the data set's own
fingerprint, and the settings of the conversion. It is written under another name, shard by shard,
and renamed when whole. What is there can therefore be read, a second run starts at once, and an
interrupted one goes on with the shards that are missing.
"""

import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import json
import math
import os
import pathlib
import shutil
from typing import Any, Optional

import tqdm

from gan_mrcnn.datasets import base, shards
from gan_mrcnn.errors import UserError

# Raise it when what is written changes.
FORMAT_VERSION = 3
# Enough shards to keep every core busy and to shuffle by, and no more files than a folder likes.
EXAMPLES_PER_SHARD = 32
MOST_SHARDS = 256


@dataclasses.dataclass(frozen=True)
class RecordSet:
    """The records of one split.

    input_path: pattern of the TFRecord files.
    num_examples: how many there are.
    annotation_file: ground truth as COCO has it, in JSON.
    fingerprint: of data and format.
    image_ids: in the order of the records.
    objects_per_image: in the same order, without crowds.
    objects_per_class: without crowds.
    """

    input_path: str
    num_examples: int
    annotation_file: str
    fingerprint: str
    image_ids: list[int]
    objects_per_image: list[int]
    objects_per_class: list[int]

    def crowded(self, max_instances: int) -> str:
        """What is not learnt of pictures with more objects than that, '' where there is none."""
        beyond = [number - max_instances for number in self.objects_per_image]
        beyond = [number for number in beyond if number > 0]
        if not beyond:
            return ''
        return (
            f'{len(beyond)} of {self.num_examples} images have more than {max_instances} objects: '
            f'each time another {sum(beyond)} of all {sum(self.objects_per_image)} objects are '
            'not learnt; raise --max_instances to learn them all'
        )


def ensure_records(
    dataset: base.Dataset,
    split: str,
    cache_dir: str,
    skip_bad: bool = False,
    num_processes: Optional[int] = None,
) -> RecordSet:
    """The records of `split`, converted now where they are not in the cache.

    Args:
      dataset: what to convert; picklable where several processes do it.
      split: one of its splits.
      cache_dir: where caches are kept, one folder each.
      skip_bad: leave out examples that cannot be used, and name them.
      num_processes: that convert; None for as many as there are cores. The records are the same.

    Raises:
      UserError: an example cannot be used, none is left, or the cache cannot be written.
    """
    settings = {'format_version': FORMAT_VERSION, 'skip_bad': skip_bad}
    data = dataset.fingerprint(split)
    fingerprint = hashlib.sha256(f'{data}:{json.dumps(settings)}'.encode()).hexdigest()
    folder = pathlib.Path(cache_dir) / f'{dataset.name}-{split}-{fingerprint[:16]}'
    manifest = _read_manifest(folder)
    if manifest is None:
        _say_what_changed(folder, data, settings)
        about = {'data': data, 'settings': settings, 'fingerprint': fingerprint}
        try:
            _convert(dataset, split, about, folder, num_processes or num_cores())
        except OSError as error:
            raise UserError(
                f'records cannot be written to {folder} ({error}); give a folder with room and '
                'permission by --cache_dir'
            ) from error
        manifest = _read_manifest(folder)
        _say_what_was_left_out(dataset, split, manifest)
    return RecordSet(
        input_path=f'{glob.escape(str(folder))}/records-*.tfrecord',
        num_examples=len(manifest['image_ids']),
        annotation_file=str(folder / 'annotations.json'),
        fingerprint=manifest['fingerprint'],
        image_ids=manifest['image_ids'],
        objects_per_image=manifest['objects_per_image'],
        objects_per_class=[manifest['objects_per_class'][name] for name in dataset.class_names],
    )


def num_cores() -> int:
    """Cores that this process may use, where the system can tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def _read_manifest(folder: pathlib.Path) -> Optional[dict[str, Any]]:
    """The manifest of a whole `folder`; None where something is missing or cut short."""
    try:
        manifest = json.loads((folder / 'manifest.json').read_text())
        sizes = manifest['file_sizes']
        if all((folder / name).stat().st_size == size for name, size in sizes.items()):
            return manifest
    except (OSError, ValueError, KeyError):
        pass
    return None


def _say_what_changed(folder: pathlib.Path, data: str, settings: dict[str, Any]) -> None:
    """One line where the same split was converted before and its records do not fit now."""
    name = folder.name.rpartition('-')[0]
    if folder.is_dir():
        print(f'{name}: the records in {folder} are damaged: rebuilding', flush=True)
        return
    others = glob.glob(f'{glob.escape(str(folder.with_name(name)))}-' + '[0-9a-f]' * 16)
    found = [_read_manifest(pathlib.Path(other)) for other in others]
    found = [manifest for manifest in found if manifest]
    same_data = [manifest['settings'] for manifest in found if manifest.get('data') == data]
    if same_data:
        changed = [
            f'{key} from {same_data[0].get(key)} to {value}'
            for key, value in settings.items()
            if same_data[0].get(key) != value
        ]
        print(f'{name}: settings changed ({", ".join(changed)}): rebuilding', flush=True)
    elif found:
        print(f'{name}: other data than in the last conversion: rebuilding', flush=True)


def _convert(dataset, split, about, folder, num_processes) -> None:
    """Writes `folder`, whole or not at all; goes on with what an interrupted call has written."""
    skip_bad = about['settings']['skip_bad']
    if not skip_bad:
        dataset.stop_at_problems(split)
    unfinished = folder.with_name(f'{folder.name}.unfinished')
    with _only_one_at_a_time(unfinished):
        if _read_manifest(folder) is not None:
            # Another process was at it, and was waited for.
            unfinished.rmdir()
            return
        for path in unfinished.glob('*.tmp'):
            path.unlink()
        try:
            jobs = _divide(dataset.items(split), unfinished)
            _write_missing(dataset, split, jobs, skip_bad, num_processes)
            _finish(dataset, split, jobs, about, unfinished)
        except shards.KilledError:
            raise
        except UserError:
            # The data will be another after this is mended.
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(unfinished, folder)
    for job in jobs:
        (folder / job.ground_truth_path.name).unlink(missing_ok=True)


@contextlib.contextmanager
def _only_one_at_a_time(folder: pathlib.Path):
    """Makes `folder` and locks it, waiting for another process; its end, any end, frees it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            # Some network file systems have no locks. Two conversions then do the same work twice.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # The folder that was waited for may have been renamed or removed.
            if folder.is_dir() and os.path.samestat(os.fstat(descriptor), folder.stat()):
                yield
                return
        finally:
            os.close(descriptor)


def _divide(items, folder: pathlib.Path) -> list[shards.Shard]:
    size = max(EXAMPLES_PER_SHARD, math.ceil(len(items) / MOST_SHARDS))
    return [
        shards.Shard(items[first : first + size], folder / f'records-{first // size:05d}.tfrecord')
        for first in range(0, len(items), size)
    ]


def _write_missing(dataset, split, jobs, skip_bad, num_processes) -> None:
    missing = [job for job in jobs if not job.is_finished()]
    total = sum(len(job.items) for job in jobs)
    left = sum(len(job.items) for job in missing)
    if left < total:
        print(f'{dataset.name}/{split}: {total - left} of {total} images are there already')
    with tqdm.tqdm(
        total=total, initial=total - left, desc=f'convert {dataset.name}/{split}', unit='image'
    ) as bar:
        shards.write_shards(dataset, missing, skip_bad, num_processes, bar.update)


def _finish(dataset, split, jobs, about, folder) -> None:
    """Annotations of all shards in one file, and the manifest."""
    manifest = {'dataset': dataset.name, 'split': split, 'classes': list(dataset.class_names)}
    manifest.update(about)
    manifest.update(_merge_annotations(dataset, split, jobs, folder / 'annotations.json'))
    if not manifest['image_ids']:
        raise UserError(f'{dataset.name}/{split} has no usable image')
    files = [job.path for job in jobs] + [folder / 'annotations.json']
    manifest['file_sizes'] = {path.name: path.stat().st_size for path in files}
    (folder / 'manifest.json').write_text(json.dumps(manifest, indent=1))


def _merge_annotations(dataset, split, jobs, path) -> dict[str, Any]:
    """Writes the COCO file, with one shard in memory at a time; gives the counts."""
    images: list[dict[str, Any]] = []
    left_out: list[str] = []
    empty_masks: dict[str, int] = {}
    objects = {image_class: 0 for image_class in range(1, len(dataset.class_names) + 1)}
    per_image: dict[int, int] = {}
    number = num_crowds = 0
    with open(path, 'w', encoding='utf-8') as file:
        file.write('{"annotations": [')
        for job in jobs:
            truth = job.read_ground_truth()
            images += truth['images']
            left_out += truth['left_out']
            empty_masks.update(truth['empty_masks'])
            per_image.update((image['id'], 0) for image in truth['images'])
            for annotation in truth['annotations']:
                number += 1
                file.write((',' if number > 1 else '') + json.dumps({'id': number, **annotation}))
                if annotation['iscrowd']:
                    num_crowds += 1
                else:
                    objects[annotation['category_id']] += 1
                    per_image[annotation['image_id']] += 1
        rest = {
            'info': {'description': f'{dataset.name} {split} {dataset.notice}'.strip()},
            'images': images,
            'categories': [
                {'id': i, 'name': name} for i, name in enumerate(dataset.class_names, start=1)
            ],
        }
        file.write('], ' + json.dumps(rest)[1:])
    return {
        'num_images': len(images),
        'num_objects': number - num_crowds,
        'num_crowds': num_crowds,
        'objects_per_class': dict(zip(dataset.class_names, objects.values())),
        'image_ids': [image['id'] for image in images],
        'objects_per_image': [per_image[image['id']] for image in images],
        'left_out': left_out,
        'empty_masks': empty_masks,
    }


def _say_what_was_left_out(dataset, split, manifest) -> None:
    name = f'{dataset.name}/{split}'
    for text in manifest['left_out']:
        print(f'{name}: left out: {text}', flush=True)
    empty = manifest['empty_masks']
    if empty:
        print(
            f'{name}: objects without a pixel are left out: {sum(empty.values())}, in '
            f'{len(empty)} of {manifest["num_images"]} images, such as {next(iter(empty))}',
            flush=True,
        )
