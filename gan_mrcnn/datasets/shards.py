# SPDX-License-Identifier: Apache-2.0
"""Pictures to TFRecord shards, by as many processes as there are cores.

One shard is one job: a TFRecord file in the Model Garden's format and, written last, a JSON file
with its COCO ground truth, which marks the shard as finished. Bytes depend on the data alone, not
on the number of processes.

Nothing in here imports TensorFlow. That takes 3 s and 0.5 GB, which every process would pay, while
the two formats that it would be wanted for, a protobuf message and its frame, are a page of code.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import signal
import struct
import threading
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import process
from typing import Any, Callable, NamedTuple, Optional

import cv2
import google_crc32c
import numpy as np
from pycocotools import mask as mask_api

from gan_mrcnn.datasets import base
from gan_mrcnn.errors import UserError


class KilledError(UserError):
    """A process was killed; what is finished stays good."""


class Shard(NamedTuple):
    """A job: `items` go to `path`, `ground_truth_path` says that they are there."""

    items: Sequence[base.Item]
    path: pathlib.Path

    @property
    def ground_truth_path(self) -> pathlib.Path:
        return self.path.with_suffix('.json')

    def read_ground_truth(self) -> dict[str, Any]:
        return json.loads(self.ground_truth_path.read_text())

    def is_finished(self) -> bool:
        """Whether both files are there and whole."""
        try:
            return self.read_ground_truth()['size'] == self.path.stat().st_size
        except (OSError, ValueError):
            return False


def write_shards(
    dataset: base.Dataset,
    shards: Sequence[Shard],
    skip_bad: bool,
    num_processes: int,
    progress: Callable[[int], Any],
) -> None:
    """Writes all `shards`; each is there whole or not at all, whatever happens in between.

    Args:
      dataset: what they are read from.
      shards: what to write.
      skip_bad: leave out examples that cannot be used.
      num_processes: at most; with one the work is done in this process.
      progress: called now and then with the number of examples done since the last call.

    Raises:
      UserError: an example cannot be used, the first such one of its shard.
      KilledError: a process was killed.
    """
    if min(num_processes, len(shards)) <= 1:
        for shard in shards:
            write_shard(dataset, shard, skip_bad, on_example=lambda: progress(1))
        return
    context = multiprocessing.get_context('spawn')
    done, stop = context.Value('q', 0), context.Event()
    reported = 0
    with concurrent.futures.ProcessPoolExecutor(
        min(num_processes, len(shards)), context, _start_worker, (dataset, skip_bad, done, stop)
    ) as pool:
        futures: list[concurrent.futures.Future] = []
        try:
            with interrupts_held():
                futures += [pool.submit(_work, shard) for shard in shards]
            pending = set(futures)
            while pending and not stop.is_set():
                finished, pending = concurrent.futures.wait(
                    pending, timeout=0.2, return_when=concurrent.futures.FIRST_EXCEPTION
                )
                now = done.value
                progress(now - reported)
                reported = now
                if any(future.exception() for future in finished):
                    stop.set()
        finally:
            stop.set()
            for future in futures:
                future.cancel()
    for future in futures:
        if not future.cancelled():
            try:
                future.result()
            except process.BrokenProcessPool as error:
                raise KilledError(
                    'a process that converts pictures was killed, most likely for lack of memory; '
                    'the same command goes on with what is missing'
                ) from error


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
    """What a process that reads pictures does first."""
    # A parent that was killed cannot say so.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # One thread per process: the processes are as many as the cores.
    cv2.setNumThreads(1)


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
    left_out: Optional[list[str]] = [] if skip_bad else None
    ground_truth: dict[str, Any] = {'images': [], 'annotations': [], 'empty_masks': {}}
    with _whole_file(shard.path) as file:
        for item in shard.items:
            example = dataset.read_or_leave_out(item, left_out)
            if example is not None:
                example, num_empty = _without_empty_masks(example)
                if num_empty:
                    ground_truth['empty_masks'][example.file_name] = num_empty
                height, width = example.image.shape[:2]
                ground_truth['images'].append(
                    {
                        'id': example.image_id,
                        'file_name': example.file_name,
                        'height': height,
                        'width': width,
                    }
                )
                annotations = coco_annotations(example)
                ground_truth['annotations'] += annotations
                file.write(frame(tf_example(example, annotations)))
            on_example()
        ground_truth['size'] = file.tell()
    ground_truth['left_out'] = left_out or []
    with _whole_file(shard.ground_truth_path) as file:
        file.write(json.dumps(ground_truth).encode())


@contextlib.contextmanager
def _whole_file(path: pathlib.Path):
    """A file to write that gets its name only when it is whole."""
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _without_empty_masks(example: base.Example) -> tuple[base.Example, int]:
    """Leaves out objects without a pixel, whose box has no size to learn; and how many."""
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
            'segmentation': {'size': list(rle['size']), 'counts': rle['counts'].decode()},
        }
        for i, rle in enumerate(example.rles)
    ]


def tf_example(example: base.Example, annotations: list[dict[str, Any]]) -> bytes:
    """One record, a serialized `tf.train.Example` as the Model Garden's decoder reads it."""
    height, width = example.image.shape[:2]
    x, y, w, h = np.array([a['bbox'] for a in annotations]).reshape(-1, 4).T
    return _message(
        {
            'image/encoded': _bytes([example.encoded or encode_image(example.image)]),
            'image/source_id': _bytes([str(example.image_id).encode()]),
            'image/height': _int64s([height]),
            'image/width': _int64s([width]),
            'image/object/bbox/ymin': _floats(y / height),
            'image/object/bbox/xmin': _floats(x / width),
            'image/object/bbox/ymax': _floats((y + h) / height),
            'image/object/bbox/xmax': _floats((x + w) / width),
            'image/object/class/label': _int64s(example.classes),
            'image/object/area': _floats([a['area'] for a in annotations]),
            'image/object/is_crowd': _int64s(example.is_crowd),
            'image/object/mask': _bytes([encode_mask_png(rle) for rle in example.rles]),
        }
    )


# tf.train.Example in protobuf's wire format. Every field of its messages has a length before it:
# Example{1: Features}, Features{1: {1: key, 2: Feature}}, and Feature has one of
# {1: bytes_list}, {2: float_list}, {3: int64_list}, each a list in its field 1.


def _message(features: dict[str, bytes]) -> bytes:
    entries = [_field(1, _field(1, key.encode()) + _field(2, f)) for key, f in features.items()]
    return _field(1, b''.join(entries))


def _bytes(values: Iterable[bytes]) -> bytes:
    return _field(1, b''.join(_field(1, value) for value in values))


def _floats(values: Iterable[float]) -> bytes:
    return _field(2, _field(1, np.asarray(values, '<f4').tobytes()))


def _int64s(values: Iterable[int]) -> bytes:
    return _field(3, _field(1, b''.join(_varint(int(value)) for value in values)))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; not negative."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def frame(record: bytes) -> bytes:
    """A record as it stands in a TFRecord file: length, its checksum, content, its checksum."""
    length = struct.pack('<Q', len(record))
    return length + _masked_crc(length) + record + _masked_crc(record)


def _masked_crc(content: bytes) -> bytes:
    crc = google_crc32c.value(content)
    return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def encode_image(image: np.ndarray) -> bytes:
    """A PNG of [H, W, 3] uint8, RGB."""
    _, encoded = cv2.imencode('.png', image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 3])
    return encoded.tobytes()


def encode_mask_png(rle: dict[str, Any]) -> bytes:
    """A grey PNG of 0 and 1, as large as the picture, of a mask in COCO's run lengths.

    Only the rows with the object are compressed here. The empty ones above and below are put
    together from pieces that are compressed once, so that the cost goes with the size of the
    object: of a small one on 1024x2048, 1 ms where an image library takes 3 to 11.
    """
    height, width = rle['size']
    x, y, columns, rows = (int(value) for value in mask_api.toBbox(rle))
    # A row is its filter (0: none) and its pixels.
    middle = np.zeros((rows, width + 1), np.uint8)
    middle[:, 1 + x : 1 + x + columns] = base.decode_columns(rle, x, x + columns)[y : y + rows]
    middle = middle.tobytes()
    compressor = zlib.compressobj(1, wbits=-15)
    packed = compressor.compress(middle) + compressor.flush(zlib.Z_FULL_FLUSH)
    above, below = y, height - y - rows
    checksum = _adler_of_zeros(above * (width + 1), 1)
    checksum = _adler_of_zeros(below * (width + 1), zlib.adler32(middle, checksum))
    stream = b''.join(
        [
            b'\x78\x01',
            _empty_rows(above, width),
            packed,
            _empty_rows(below, width),
            b'\x03\x00',
            struct.pack('>I', checksum),
        ]
    )
    header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    chunks = [_png_chunk(b'IHDR', header), _png_chunk(b'IDAT', stream), _png_chunk(b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack('>I', len(content))
        + kind
        + content
        + struct.pack('>I', zlib.crc32(kind + content))
    )


def _empty_rows(count: int, width: int) -> bytes:
    """`count` rows of zeros as a piece of a deflate stream, from pieces of 1, 2, 4, 8... rows."""
    return b''.join(
        _compressed_zeros((width + 1) << bit)
        for bit in range(count.bit_length())
        if count >> bit & 1
    )


@functools.lru_cache(maxsize=256)
def _compressed_zeros(size: int) -> bytes:
    compressor = zlib.compressobj(9, wbits=-15)
    return compressor.compress(bytes(size)) + compressor.flush(zlib.Z_FULL_FLUSH)


def _adler_of_zeros(count: int, checksum: int) -> int:
    """Adler-32 after `count` more zeros: the sum stays, the sum of sums grows by it each time."""
    low, high = checksum & 0xFFFF, checksum >> 16
    return (high + count * low) % 65521 << 16 | low
