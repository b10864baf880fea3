# SPDX-License-Identifier: Apache-2.0
"""Any data set as cached TFRecords, in the Model Garden's format, with COCO ground truth beside.

A cache folder is named after all that its records depend on: the data, by the data set's own
fingerprint, and the settings of the conversion. It is written under another name, shard by shard,
and renamed when whole. A folder of the final name can therefore be read, a second run starts at
once, and an interrupted one goes on with the shards that are missing.

Disks lose bits, and copies end early. The manifest has the SHA-256 of every file; a shard that is
not as it was written is written again, alone.
"""

import collections
import contextlib
import dataclasses
import fcntl
import functools
import glob
import hashlib
import json
import math
import os
import pathlib
import shutil
from typing import Any, Optional

from gan_mrcnn.data.readers import base
from gan_mrcnn.data.records import shards
from gan_mrcnn.utils import disk, files, progress_bar
from gan_mrcnn.utils.cores import num_cores
from gan_mrcnn.utils.errors import UnfinishedError, UserError

# Raise it when what is written changes.
FORMAT_VERSION = 6
# Enough shards to keep every core busy and to shuffle by, and no more files than a folder likes.
EXAMPLES_PER_SHARD = 32
MOST_SHARDS = 256
# Bytes of a cache that is read and compared at each start, in half a second. Of a larger one only
# files are that have changed since; what else went wrong shows when TensorFlow reads it.
_ALWAYS_READ = 200_000_000
_MANIFEST, _ANNOTATIONS = 'manifest.json', 'annotations.json'
# What a conversion notes of single images.
_NOTES = ('empty_masks', 'warnings', 'skipped_annotations')


@dataclasses.dataclass(frozen=True)
class RecordSet:
    """The records of one split.

    input_path: pattern of the TFRecord files.
    num_examples: how many there are.
    num_upright: those whose image is higher than wide.
    aspect_ratios: largest ratio of longer to shorter side, of the others and of those; 1 if none.
    annotation_file: ground truth as COCO has it, in JSON.
    fingerprint: of data and format.
    image_ids: in the order of the records.
    objects_per_image: in the same order, without crowds.
    objects_per_class: without crowds.
    num_crowds: in all images.
    """

    input_path: str
    num_examples: int
    num_upright: int
    aspect_ratios: list[float]
    annotation_file: str
    fingerprint: str
    image_ids: list[int]
    objects_per_image: list[int]
    objects_per_class: list[int]
    num_crowds: int = 0

    def feed(self, params) -> None:
        """Points the input configuration `configs.DataConfig` at these records."""
        params.input_path = self.input_path
        params.num_examples = self.num_examples
        params.num_upright = self.num_upright
        params.aspect_ratios = self.aspect_ratios

    def crowded(self, max_instances: int) -> str:
        """What is not learnt of images with more objects than that, '' where there is none."""
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
    write: Optional[shards.Writer] = None,
) -> RecordSet:
    """The records of `split`, converted now where they are not in the cache.

    Args:
      dataset: what to convert; picklable where several processes do it.
      split: one of its splits.
      cache_dir: where caches are kept, one folder each.
      skip_bad: skip examples that cannot be used, and name them.
      num_processes: that convert; None for as many as there are cores. The records are the same.
      write: writes the shards in place of these processes, such as those of `beam_shards`.

    Raises:
      UserError: an example cannot be used, all are skipped, or the cache cannot be written.
    """
    settings = {'format_version': FORMAT_VERSION, 'skip_bad': skip_bad}
    data = dataset.fingerprint(split)
    fingerprint = hashlib.sha256(f'{data}:{json.dumps(settings)}'.encode()).hexdigest()
    folder = pathlib.Path(cache_dir) / f'{dataset.name}-{split}-{fingerprint[:16]}'
    manifest = _read_manifest(folder)
    if manifest is None or _find_damaged(folder, manifest):
        disk.make_folder(cache_dir, '--cache_dir')
        _say_what_changed(folder, data, settings)
        about = {'data': data, 'settings': settings, 'fingerprint': fingerprint}
        write = write or functools.partial(
            shards.write_shards, num_processes=num_processes or num_cores()
        )
        try:
            _convert(dataset, split, about, folder, write)
        except OSError as error:
            raise UserError(
                f'records cannot be written to {folder} ({error}); give a folder with room and '
                'permission by --cache_dir'
            ) from error
        manifest = _read_manifest(folder)
        _say_what_was_skipped(dataset, split, manifest)
    return RecordSet(
        input_path=f'{glob.escape(str(folder))}/records-*.tfrecord',
        num_examples=len(manifest['image_ids']),
        num_upright=manifest['num_upright'],
        aspect_ratios=manifest['aspect_ratios'],
        annotation_file=str(folder / _ANNOTATIONS),
        fingerprint=manifest['fingerprint'],
        image_ids=manifest['image_ids'],
        objects_per_image=manifest['objects_per_image'],
        objects_per_class=[manifest['objects_per_class'][name] for name in dataset.class_names],
        num_crowds=manifest['num_crowds'],
    )


def files_of(input_path: str) -> list[bytes]:
    """The TFRecord files of `RecordSet.input_path`, sorted, in the bytes of their names.

    Not by TensorFlow: it takes a backslash for an escape, and names for UTF-8.
    """
    return sorted(map(os.fsencode, glob.glob(input_path)))


def ensure_splits(
    dataset: base.Dataset, splits: list[str], task, write: Optional[shards.Writer] = None
) -> list[RecordSet]:
    """The records of several splits, as the settings `task` want them; see `ensure_records`.

    Raises:
      UserError: there is no such split, or what `ensure_records` raises.
    """
    unknown = [split for split in splits if split not in dataset.splits]
    if unknown:
        raise UserError(
            f'split {unknown[0]!r} of {dataset.name} does not exist; there are '
            f'{", ".join(dataset.splits)}'
        )
    return [
        ensure_records(dataset, split, task.cache_dir, skip_bad=task.skip_bad, write=write)
        for split in splits
    ]


def set_damaged_aside(record_set: RecordSet) -> list[str]:
    """Finds files of a cache that are not as they were written, and renames them to *.damaged.

    To be called where TensorFlow finds a record damaged (`tf.errors.DataLossError`). It reads all
    of the cache. The next `ensure_records` writes again what is then missing: those shards alone,
    or everything where it is not a shard.

    Returns:
      Names of the files, sorted; empty where the disk gives back what was written.

    Raises:
      UserError: they cannot be renamed.
    """
    folder = pathlib.Path(record_set.annotation_file).parent
    manifest = _read_manifest(folder)
    damaged = [_MANIFEST] if manifest is None else _find_damaged(folder, manifest, read_all=True)
    for name in damaged:
        try:
            os.replace(folder / name, folder / f'{name}.damaged')
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UserError(
                f'{folder / name} is damaged and cannot be renamed ({error}); remove {folder}'
            ) from error
    return damaged


def _read_manifest(folder: pathlib.Path) -> Optional[dict[str, Any]]:
    """The manifest of `folder`; None where there is none as `_write_manifest` wrote it."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        return manifest if manifest.pop('sha256') == _digest(manifest) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _write_manifest(folder: pathlib.Path, manifest: dict[str, Any]) -> None:
    text = json.dumps({**manifest, 'sha256': _digest(manifest)}, indent=1)
    (folder / _MANIFEST).write_text(text)


def _digest(manifest) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def _find_damaged(folder: pathlib.Path, manifest, read_all: bool = False) -> list[str]:
    """Files that are missing or not as they were written, as far as they are read."""
    listed = manifest['files']
    read_all = read_all or sum(file['size'] for file in listed.values()) <= _ALWAYS_READ
    written = (folder / _MANIFEST).stat().st_mtime_ns
    damaged, changed = [], False
    for name, expected in sorted(listed.items()):
        try:
            state = (folder / name).stat()
            is_newer = state.st_mtime_ns > written
            is_good = state.st_size == expected['size'] and (
                not (read_all or is_newer) or files.sha256(folder / name) == expected['sha256']
            )
        except OSError:
            is_newer = is_good = False
        changed |= is_newer
        if not is_good:
            damaged.append(name)
    if changed and not damaged:
        # Copied, or touched: there is no need to read them at the next start, too.
        with contextlib.suppress(OSError):
            os.utime(folder / _MANIFEST)
    return damaged


def _say_what_changed(folder: pathlib.Path, data: str, settings: dict[str, Any]) -> None:
    """One line where a split of that name was converted before and its records do not fit now."""
    name = folder.name.rpartition('-')[0]
    if folder.is_dir():
        manifest = _read_manifest(folder)
        damaged = _find_damaged(folder, manifest) if manifest else [_MANIFEST]
        print(
            f'{name}: damaged or missing in {folder}: {", ".join(damaged)}; rebuilding',
            flush=True,
        )
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
        print(
            f'{name}: these data have not been converted yet; conversions of other or earlier '
            f'data in {folder.parent} are kept',
            flush=True,
        )


def _convert(dataset, split, about, folder, write) -> None:
    """Writes `folder`, whole or not at all; goes on with what an interrupted call has written."""
    skip_bad = about['settings']['skip_bad']
    if not skip_bad:
        dataset.stop_at_problems(split)
    unfinished = folder.with_name(f'{folder.name}.unfinished')
    with _only_one_at_a_time(unfinished):
        # Another process may have written it while this one waited.
        if _is_repaired(dataset, split, folder, skip_bad, write):
            with contextlib.suppress(OSError):  # It holds what an interrupted call has written.
                unfinished.rmdir()
            return
        for path in unfinished.glob('*.tmp'):
            path.unlink()
        try:
            jobs = _divide(dataset.items(split), unfinished)
            missing = [job for job in jobs if not job.is_finished()]
            _write(dataset, split, jobs, missing, skip_bad, write)
            _finish(dataset, split, jobs, about, unfinished)
        except UnfinishedError:
            raise
        except UserError:
            # Once the user has fixed this, the data have another fingerprint.
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(unfinished, folder)
    _remove_markers(jobs, folder)


def _is_repaired(dataset, split, folder, skip_bad, write) -> bool:
    """Writes damaged shards of `folder` again; whether it is whole then."""
    manifest = _read_manifest(folder)
    if manifest is None:
        return False
    damaged = _find_damaged(folder, manifest)
    jobs = [job for job in _divide(dataset.items(split), folder) if job.path.name in damaged]
    if len(jobs) < len(damaged):
        return False
    if jobs:
        _write(dataset, split, jobs, jobs, skip_bad, write)
        _remove_markers(jobs, folder)
        for job in jobs:
            job.path.with_name(f'{job.path.name}.damaged').unlink(missing_ok=True)
    # The same data can become other bytes by another version of OpenCV.
    return not _find_damaged(folder, manifest)


def _remove_markers(jobs, folder) -> None:
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


def _write(dataset, split, jobs, missing, skip_bad, write) -> None:
    """Writes those of `jobs` that are `missing`."""
    total = sum(len(job.items) for job in jobs)
    left = sum(len(job.items) for job in missing)
    if left < total:
        print(f'{dataset.name}/{split}: {total - left} of {total} images are converted already')
    with progress_bar.Bar(
        total=total, initial=total - left, desc=f'convert {dataset.name}/{split}', unit='image'
    ) as bar:
        write(dataset, missing, skip_bad, progress=bar.update)


def _finish(dataset, split, jobs, about, folder) -> None:
    """Annotations of all shards in one file, and the manifest."""
    manifest = {'dataset': dataset.name, 'split': split, 'classes': list(dataset.class_names)}
    manifest.update(about)
    manifest.update(_merge_annotations(dataset, split, jobs, folder / _ANNOTATIONS))
    if not manifest['image_ids']:
        raise UserError(f'{dataset.name}/{split} has no usable image')
    digests = {job.path: job.read_ground_truth()['sha256'] for job in jobs}
    digests[folder / _ANNOTATIONS] = files.sha256(folder / _ANNOTATIONS)
    manifest['files'] = {
        path.name: {'size': path.stat().st_size, 'sha256': digest}
        for path, digest in digests.items()
    }
    _write_manifest(folder, manifest)


def _merge_annotations(dataset, split, jobs, path) -> dict[str, Any]:
    """Writes the COCO file, with one shard in memory at a time; gives the counts."""
    images: list[dict[str, Any]] = []
    skipped: list[str] = []
    # By file; shards and caches of older versions have the first alone.
    notes: dict[str, dict[str, Any]] = {key: {} for key in _NOTES}
    per_class = dict.fromkeys(range(1, len(dataset.class_names) + 1), 0)
    per_image: collections.Counter[int] = collections.Counter()
    number = 0
    with open(path, 'w', encoding='utf-8') as file:
        file.write('{"annotations": [')
        for job in jobs:
            ground_truth = job.read_ground_truth()
            images += ground_truth['images']
            skipped += ground_truth['left_out']
            for key, by_file in notes.items():
                by_file.update(ground_truth.get(key, {}))
            for annotation in ground_truth['annotations']:
                number += 1
                file.write((',' if number > 1 else '') + json.dumps({'id': number, **annotation}))
                if not annotation['iscrowd']:
                    per_class[annotation['category_id']] += 1
                    per_image[annotation['image_id']] += 1
        file.write('], ' + json.dumps(_about_annotations(dataset, split, images))[1:])
    num_objects = sum(per_class.values())
    ratios = [image['height'] / image['width'] for image in images]
    return {
        'num_images': len(images),
        'num_upright': sum(ratio > 1 for ratio in ratios),
        'aspect_ratios': [max([1.0, *(1 / x for x in ratios)]), max([1.0, *ratios])],
        'num_objects': num_objects,
        'num_crowds': number - num_objects,
        'objects_per_class': dict(zip(dataset.class_names, per_class.values())),
        'image_ids': [image['id'] for image in images],
        'objects_per_image': [per_image[image['id']] for image in images],
        'left_out': skipped,
        **notes,
    }


def _about_annotations(dataset, split, images) -> dict[str, Any]:
    """All of a COCO file but the annotations."""
    return {
        'info': {'description': f'{dataset.name} {split} {dataset.notice}'.strip()},
        'images': images,
        'categories': [
            {'id': i, 'name': name} for i, name in enumerate(dataset.class_names, start=1)
        ],
    }


def _say_what_was_skipped(dataset, split, manifest) -> None:
    name = f'{dataset.name}/{split}'
    for text in manifest['left_out']:
        print(f'{name}: skipped: {text}', flush=True)
    for key, what in (
        ('empty_masks', 'objects without a pixel'),
        ('skipped_annotations', 'annotations that cannot be used'),
    ):
        by_file = manifest.get(key)
        if by_file:
            print(
                f'{name}: {what} are skipped: {sum(by_file.values())}, in {len(by_file)} of '
                f'{manifest["num_images"]} images, such as {next(iter(by_file))}',
                flush=True,
            )
    by_text: dict[str, list[str]] = {}
    for file_name, text in manifest.get('warnings', {}).items():
        by_text.setdefault(text, []).append(file_name)
    for text, names in by_text.items():
        others = f' (and {len(names) - 1} other images)' if len(names) > 1 else ''
        print(f'{name}: warning: {names[0]}{others} {text}', flush=True)
