# SPDX-License-Identifier: Apache-2.0
"""Writes images to TFRecord shards, by as many processes as there are cores.

One shard is one job: a TFRecord file in the Model Garden's format, with masks as `mask_crops` has
them, and, written last, a JSON file
with its COCO ground truth, which marks the shard as finished. Bytes depend on the data alone, not
on the number of processes.

TensorFlow is imported where a shard is written and not before: a process that only reads images
(`check.py`) is spared the 3 s and 0.5 GB that it costs.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import process
from typing import Any, Callable, NamedTuple, Optional

import cv2
import numpy as np
from pycocotools import mask as mask_api

from gan_mrcnn.data.readers import base, images
from gan_mrcnn.data.records import mask_crops
from gan_mrcnn.utils import cli, files, run_lengths
from gan_mrcnn.utils.errors import UnfinishedError


class Shard(NamedTuple):
    """A job: `items` go to `path`; `ground_truth_path` exists once they are written."""

    items: Sequence[base.Item]
    path: pathlib.Path

    @property
    def ground_truth_path(self) -> pathlib.Path:
        return self.path.with_suffix('.json')

    def read_ground_truth(self) -> dict[str, Any]:
        return json.loads(self.ground_truth_path.read_text())

    def is_finished(self) -> bool:
        """Whether both files exist and are as they were written.

        After a power cut a file may have its name and its size, but not its content.
        """
        try:
            return self.read_ground_truth()['sha256'] == files.sha256(self.path)
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return False


# What `write_shards` is but for the number of processes: all that write shards call `write_shard`.
Writer = Callable[..., None]


def write_shards(
    dataset: base.Dataset,
    shards: Sequence[Shard],
    skip_bad: bool,
    num_processes: int,
    progress: Callable[[int], Any],
) -> None:
    """Writes all `shards`; each exists whole or not at all, whatever happens in between.

    Args:
      dataset: what they are read from.
      shards: what to write.
      skip_bad: skip examples that cannot be used.
      num_processes: at most; with one the work is done in this process.
      progress: called now and then with the number of examples done since the last call.

    Raises:
      UserError: an example cannot be used, the first such one of its shard.
      OSError: a shard cannot be written.
      UnfinishedError: a process was killed.
    """
    if min(num_processes, len(shards)) <= 1:
        for shard in shards:
            write_shard(dataset, shard, skip_bad, on_example=lambda: progress(1))
        return
    context = multiprocessing.get_context('spawn')
    done, stop = context.Value('q', 0), context.Event()
    with concurrent.futures.ProcessPoolExecutor(
        min(num_processes, len(shards)), context, _start_worker, (dataset, skip_bad, done, stop)
    ) as pool:
        futures: list[concurrent.futures.Future] = []
        try:
            with interrupts_held():
                futures += [pool.submit(_work, shard) for shard in shards]
            _wait(futures, done, stop, progress)
        finally:
            stop.set()
            for future in futures:
                future.cancel()
    try:
        for future in futures:
            if not future.cancelled():
                future.result()
    except process.BrokenProcessPool as error:
        raise UnfinishedError(
            'a process that converts images was killed, most likely for lack of memory; the same '
            'command goes on with what is missing'
        ) from error


def _wait(futures, done, stop, progress) -> None:
    """Reports progress until all `futures` are finished or one of them has failed."""
    pending, reported = set(futures), 0
    while pending and not stop.is_set():
        finished, pending = concurrent.futures.wait(
            pending, timeout=0.2, return_when=concurrent.futures.FIRST_EXCEPTION
        )
        now = done.value
        progress(now - reported)
        reported = now
        if any(future.exception() for future in finished):
            stop.set()


@contextlib.contextmanager
def interrupts_held():
    """Processes that are started in here never see Ctrl-C; this one sees it when it leaves.

    A process inherits the mask of signals, so that not even its first moments have a gap. The mask
    is of this thread alone: where another thread gets the signal, the handler keeps it for later.
    """
    kept: list[int] = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if in_main_thread:
        handler = signal.signal(signal.SIGINT, lambda number, _: kept.append(number))
    try:
        yield
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if kept:
            signal.raise_signal(signal.SIGINT)


class _Stopped(Exception):
    """Another process failed or the user does not want to wait."""


# What a worker process works on; set once, since a data set may be large to send.
_worker: dict[str, Any] = {}


def _start_worker(dataset, skip_bad, done, stop) -> None:
    _worker.update(dataset=dataset, skip_bad=skip_bad, done=done, stop=stop)
    settle_in()


def settle_in() -> None:
    """What a process that reads images does first."""
    # A parent that was killed cannot say so.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # One thread per process: the processes are as many as the cores.
    cv2.setNumThreads(1)
    cli.silence_start_up()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(shard: Shard) -> None:
    def count() -> None:
        with _worker['done'].get_lock():
            _worker['done'].value += 1
        if _worker['stop'].is_set():
            raise _Stopped

    with contextlib.suppress(_Stopped):
        write_shard(_worker['dataset'], shard, _worker['skip_bad'], count)


def write_shard(
    dataset: base.Dataset, shard: Shard, skip_bad: bool, on_example: Callable[[], Any]
) -> None:
    """Writes one shard; `on_example` is called after each of its examples."""
    import tensorflow as tf

    skipped: Optional[list[str]] = [] if skip_bad else None
    ground_truth: dict[str, Any] = {
        'images': [],
        'annotations': [],
        'empty_masks': {},
        'warnings': {},
        'skipped_annotations': {},
    }
    with files.named_when_whole(shard.path) as path:
        try:
            _write_records(dataset, shard.items, path, skipped, ground_truth, on_example)
        except tf.errors.OpError as error:
            raise OSError(' '.join(str(error.message).split())) from error
        ground_truth['sha256'] = files.sha256(path)
    ground_truth['left_out'] = skipped or []
    files.write_json(shard.ground_truth_path, ground_truth, indent=None)


def _write_records(dataset, items, path, skipped, ground_truth, on_example) -> None:
    """Writes the examples of `items`; adds to `skipped` and `ground_truth` what they hold."""
    import tensorflow as tf

    with tf.io.TFRecordWriter(os.fsencode(path)) as writer:
        for item in items:
            example = dataset.read_or_skip(item, skipped)
            if example is not None:
                example, num_empty = _without_empty_masks(example)
                if num_empty:
                    ground_truth['empty_masks'][example.file_name] = num_empty
                if example.warning:
                    ground_truth['warnings'][example.file_name] = example.warning
                if example.num_skipped:
                    ground_truth['skipped_annotations'][example.file_name] = example.num_skipped
                annotations = coco_annotations(example)
                ground_truth['images'].append(_coco_image(example))
                ground_truth['annotations'] += annotations
                writer.write(tf_example(example, annotations))
            on_example()


def _coco_image(example: base.Example) -> dict[str, Any]:
    height, width = example.image.shape[:2]
    return {
        'id': example.image_id,
        'file_name': example.file_name,
        'height': height,
        'width': width,
    }


def _without_empty_masks(example: base.Example) -> tuple[base.Example, int]:
    """Drops objects without a pixel, whose box has no size to learn; and how many there were."""
    kept = [i for i, rle in enumerate(example.rles) if mask_api.area(rle)]
    num_empty = len(example.rles) - len(kept)
    if num_empty:
        example = dataclasses.replace(
            example,
            rles=[example.rles[i] for i in kept],
            classes=example.classes[kept],
            is_crowd=example.is_crowd[kept],
        )
    return example, num_empty


def coco_annotations(example: base.Example) -> list[dict[str, Any]]:
    """COCO annotations of one example without `id`, `bbox` [x, y, width, height] in pixels."""
    return [
        {
            'image_id': example.image_id,
            'category_id': int(example.classes[i]),
            'bbox': [float(x) for x in rle.get('bbox', mask_api.toBbox(rle))],
            'area': float(rle.get('area', mask_api.area(rle))),
            'iscrowd': int(example.is_crowd[i]),
            'segmentation': run_lengths.to_json(rle),
        }
        for i, rle in enumerate(example.rles)
    ]


def tf_example(example: base.Example, annotations: list[dict[str, Any]]) -> bytes:
    """One record, a serialized `tf.train.Example` as the Model Garden's decoder reads it.

    Its masks are ours, see `mask_crops`.
    """
    import tensorflow as tf
    from official.vision.data import tfrecord_lib

    height, width = example.image.shape[:2]
    x, y, w, h = np.array([a['bbox'] for a in annotations]).reshape(-1, 4).T
    feature = tfrecord_lib.convert_to_feature
    features = {
        # Written once and read in each epoch: smaller than the default of `as_png`.
        'image/encoded': feature(example.encoded or images.as_png(example.image, compression=3)),
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
        mask_crops.FEATURE: feature(
            mask_crops.encode(example.rles, [a['bbox'] for a in annotations])
        ),
    }
    message = tf.train.Example(features=tf.train.Features(feature=features))
    # The order of the features would be another in every process.
    return message.SerializeToString(deterministic=True)
