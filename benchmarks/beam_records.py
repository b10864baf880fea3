# SPDX-License-Identifier: Apache-2.0
"""Records by Apache Beam's worker processes beside those of the local conversion: time, and bytes.

    python benchmarks/beam_records.py --dataset gland --data_dir GLANDS --split trainval [--json F]

Converts one split with 1, 2 and 4 processes of either kind, each into an empty folder: seconds by
the clock, and seconds of the processors, which count where the machine has other work. Starts of
the processes are included. Then one of two of Beam's workers is killed once the first
shard is there, and the conversion called again. The SHA-256 of every file is compared with those of
one local process. Ends with 1 where one differs.
"""

import argparse
import functools
import os
import pathlib
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import psutil  # noqa: E402

from gan_mrcnn.data import readers  # noqa: E402
from gan_mrcnn.data.readers import options as reader_options  # noqa: E402
from gan_mrcnn.data.records import beam_shards, records  # noqa: E402
from gan_mrcnn.utils import beam_runner, cli, files  # noqa: E402
from gan_mrcnn.utils.errors import UnfinishedError  # noqa: E402

WORKER = 'apache_beam.runners.worker.sdk_worker_main'


def by_beam(num_processes):
    """What `ensure_records` is to write with."""
    runner = beam_runner.from_flags('DirectRunner', [f'--direct_num_workers={num_processes}'])
    return {'write': functools.partial(beam_shards.write_shards, runner=runner)}


def locally(num_processes):
    return {'num_processes': num_processes}


def digests(folder):
    """SHA-256 by name of every file below `folder`."""
    paths = (path for path in folder.rglob('*') if path.is_file())
    return {path.relative_to(folder).as_posix(): files.sha256(path) for path in paths}


def now():
    """Seconds of the clock, and of the processors for this process and those that have ended."""
    return np.array([time.perf_counter(), sum(os.times()[:4])])


def convert_timed(dataset, split, how):
    """Seconds of both kinds, and the SHA-256 of what was written."""
    with tempfile.TemporaryDirectory() as folder:
        start = now()
        records.ensure_records(dataset, split, folder, **how)
        return (now() - start).tolist(), digests(pathlib.Path(folder))


def kill_one_worker(folder):
    """Once the first shard is there."""
    while not list(folder.glob('*.unfinished/records-*.json')):
        time.sleep(0.02)
    workers = [
        process
        for process in psutil.Process().children(recursive=True)
        if process.name().startswith('python') and WORKER in process.cmdline()
    ]
    workers[0].kill()


def convert_killed(dataset, split):
    """How many shards were there when it had ended, what was said, and the SHA-256 afterwards."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        threading.Thread(target=kill_one_worker, args=(folder,), daemon=True).start()
        try:
            records.ensure_records(dataset, split, name, **by_beam(2))
            said = 'it had ended before'
        except UnfinishedError as error:
            said = str(error)
        kept = len(list(folder.glob('*.unfinished/records-*.json')))
        records.ensure_records(dataset, split, name, **by_beam(2))
        return kept, said, digests(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--dataset', required=True)
    parser.add_argument('--data_dir')
    parser.add_argument('--split', default='train', help='name of the split (default: train)')
    parser.add_argument('--share', type=float, help='of the images that are in train')
    parser.add_argument('--workers', type=int, nargs='+', default=[1, 2, 4])
    parser.add_argument('--json', help='also writes the figures here')
    options = parser.parse_args()
    # Before the clock starts; the worker processes start without.
    import tensorflow  # noqa: F401

    dataset = readers.load_dataset(
        options.dataset, options.data_dir, reader_options.Options(share=options.share)
    )
    found = {'images': dataset.num_examples(options.split), 'seconds': {}}
    print(f'{dataset.name}/{options.split}: {found["images"]} images')
    _, expected = convert_timed(dataset, options.split, locally(1))
    differing = []
    for count in options.workers:
        for name, how in (('local', locally), ('Beam', by_beam)):
            label = f'{name}, {count} processes'
            seconds, written = convert_timed(dataset, options.split, how(count))
            found['seconds'][label] = seconds
            differing += [label] if written != expected else []
            clock, processors = seconds
            print(f'{label}: {clock:.1f} s, of processors {processors:.1f} s', flush=True)
    kept, said, written = convert_killed(dataset, options.split)
    differing += ['killed'] if written != expected else []
    found.update(kept_shards=kept, said=said, differing=differing)
    print(f'one of two workers killed: "{said}"; {kept} shards kept; then the same call again')
    print(f'files that differ: {", ".join(differing) or "none"}')
    if options.json:
        files.write_json(options.json, found)
    sys.exit(1 if differing else 0)


if __name__ == '__main__':
    cli.silence_start_up()
    main()
