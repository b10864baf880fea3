# SPDX-License-Identifier: Apache-2.0
"""What was detected in a row of tiles, as a file: the progress of a slide that may be stopped.

A file holds everything that was detected, with masks bit by bit, so that what is made of it is the
same as without a stop. It is there as a whole or not at all.
"""

import io
import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np

from gan_mrcnn.prediction.objects import Object
from gan_mrcnn.utils import files
from gan_mrcnn.utils.errors import UserError

Parts = list[tuple[tuple[int, int, int, int], Object]]


def write(path: pathlib.Path, parts: Parts) -> None:
    """Writes objects with the tiles that they are from, as `tiles.merge` takes them."""
    detected = [one for _, one in parts]
    bits = [np.packbits(one.mask) for one in detected]
    content = io.BytesIO()
    np.savez_compressed(
        content,
        tiles=_table([tile for tile, _ in parts], np.int64),
        windows=_table([one.window() for one in detected], np.int64),
        boxes=_table([one.box for one in detected], np.float64),
        class_ids=np.array([one.class_id for one in detected], np.int64),
        scores=np.array([one.score for one in detected], np.float64),
        bits=np.concatenate([np.zeros(0, np.uint8), *bits]),
    )
    files.write_bytes(path, content.getvalue())


def read(path: pathlib.Path) -> Parts:
    """What `write` has written.

    Raises:
      UserError: the file is damaged.
    """
    try:
        with np.load(path) as arrays:
            return _parts(**arrays)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f'{path} is damaged; remove it, and the same command predicts its tiles again'
        ) from error


def _table(rows: Sequence, dtype) -> np.ndarray:
    return np.array(rows, dtype).reshape(-1, 4)


def _parts(tiles, windows, boxes, class_ids, scores, bits):
    parts, begin = [], 0
    rows = (array.tolist() for array in (tiles, windows, boxes, class_ids, scores))
    for tile, (y1, x1, y2, x2), box, class_id, score in zip(*rows):
        height, width = y2 - y1, x2 - x1
        end = begin + -(-height * width // 8)
        mask = np.unpackbits(bits[begin:end], count=height * width).astype(bool)
        mask = mask.reshape(height, width)
        parts.append((tuple(tile), Object(class_id, score, tuple(box), y1, x1, mask)))
        begin = end
    return parts
