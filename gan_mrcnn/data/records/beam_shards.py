# SPDX-License-Identifier: Apache-2.0
"""Writes the shards of `shards.py` on the workers of an Apache Beam runner.

Beam gets names of files. What is to be done stands in these: the data set and, for each shard, the
items that go into it, pickled, in the folder of the shards. COCO's items hold their annotations,
hundreds of megabytes that no runner wants in the description of a job. And a worker that does not
see the folder of the shards cannot begin.
"""

import functools
import pathlib
import pickle
import secrets
import socket
from collections.abc import Sequence
from typing import Any, Callable

import cv2

from gan_mrcnn.data.readers import base
from gan_mrcnn.data.records import shards as shards_lib
from gan_mrcnn.utils import beam_runner, files
from gan_mrcnn.utils.errors import UnfinishedError, UserError


def write_shards(
    dataset: base.Dataset,
    shards: Sequence[shards_lib.Shard],
    skip_bad: bool,
    progress: Callable[[int], Any],
    runner: beam_runner.Runner,
) -> None:
    """Writes all `shards`, the same bytes as `shards.write_shards`.

    Args:
      dataset, shards, skip_bad, progress: as there.
      runner: whose workers see the folder of the shards, and the data, by the same paths.

    Raises:
      UserError: an example cannot be used, the first such one of its shard; the others are written.
      UnfinishedError: the runner failed, or a worker was killed.
    """
    folder = shards[0].path.parent.absolute() if shards else pathlib.Path()
    # Ends as what is removed where an interrupted call goes on.
    names = [f'{shard.path.name}.{secrets.token_hex(8)}.tmp' for shard in shards]
    about = f'dataset.{secrets.token_hex(8)}.tmp'
    unfinished = list(shards)

    def count() -> None:
        done = [shard for shard in unfinished if shard.ground_truth_path.exists()]
        for shard in done:
            unfinished.remove(shard)
            progress(len(shard.items))

    try:
        _pickle((dataset, skip_bad), folder / about)
        for name, shard in zip(names, shards):
            _pickle(shard._replace(path=folder / shard.path.name), folder / name)
        beam_runner.run(functools.partial(_write, folder / about), names, runner, count)
    finally:
        for name in (about, *names):
            (folder / name).unlink(missing_ok=True)
    if unfinished:
        raise UnfinishedError(
            f'{runner.name} has ended without writing {unfinished[0].path}; the same command goes '
            'on with what is missing'
        )


def _pickle(value: Any, path: pathlib.Path) -> None:
    with files.named_when_whole(path) as temporary, open(temporary, 'wb') as file:
        pickle.dump(value, file, pickle.HIGHEST_PROTOCOL)


def _write(about: pathlib.Path, name: str) -> None:
    """Writes one shard, in a worker."""
    # One thread per process: the processes are as many as the cores.
    cv2.setNumThreads(1)
    dataset, skip_bad = _dataset(about)
    shards_lib.write_shard(dataset, _read(about.with_name(name)), skip_bad, lambda: None)


@functools.lru_cache(maxsize=1)
def _dataset(about: pathlib.Path) -> tuple[base.Dataset, bool]:
    """Read once for all shards that a process writes."""
    return _read(about)


def _read(path: pathlib.Path) -> Any:
    try:
        return pickle.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            f'{path.parent} is not there on the worker {socket.gethostname()}; give a --cache_dir '
            'on a disk that all workers share, by a path that is the same on all'
        ) from error
