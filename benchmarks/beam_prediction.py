# SPDX-License-Identifier: Apache-2.0
"""Prediction by Apache Beam's local runner beside the command without a runner.

    python benchmarks/beam_prediction.py --model export/model images/ slide.svs --workers 1 2 4

Times the command alone, with --runner for each number of worker processes, and alone with batches
of one: what a batch's other images change in the last bits. With two workers, one is killed when
something is written, and the same command is given again. Files are compared with those of the
command alone, byte for byte; where they differ, scores and boxes. CPU seconds are those of all
processes, and say more than the clock where others use the machine.
"""

import argparse
import csv
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import psutil

WORKER = 'apache_beam.runners.worker.sdk_worker_main'


def command(options, out, *flags):
    words = ['predict', *options.images, '--model', options.model, '--out', str(out), *flags]
    return [sys.executable, '-m', 'gan_mrcnn', *words]


def timed(words):
    """What a command takes, in words; it must end well."""
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f'{" ".join(words)}\n{done.stdout}\n{done.stderr}')
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return f'{time.monotonic() - begin:.0f} s, {cpu:.0f} CPU s'


def with_a_kill(words, out):
    """Kills a worker of a command when a part is written; what it says, and after how long."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not [*out.glob('.beam/0*.json'), *out.glob('*/rows/*.npz')]:
        if process.poll() is not None:
            sys.exit('the command had ended before a part was seen')
        time.sleep(0.05)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if WORKER in child.cmdline()
    ]
    workers[-1].kill()
    begin = time.monotonic()
    _, said = process.communicate(timeout=600)
    parts = [*out.glob('.beam/0*.json'), *out.glob('*/rows/*.npz')]
    return process.returncode, said.splitlines()[-1], time.monotonic() - begin, len(parts)


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()
    }


def difference(one, other):
    """In words: how results differ."""
    first, second = contents(one), contents(other)
    if first.keys() != second.keys():
        return f'other files: {sorted(map(str, first.keys() ^ second.keys()))[:3]}'
    differing = [path for path in first if first[path] != second[path]]
    if not differing:
        return f'all {len(first)} files equal'
    largest = []
    for path in differing:
        if path.name == 'objects.csv':
            rows = [list(csv.DictReader((place / path).open())) for place in (one, other)]
            if len(rows[0]) != len(rows[1]):
                largest.append(f'{path}: {len(rows[0])} and {len(rows[1])} objects')
                continue
            for names in (['score'], ['y1', 'x1', 'y2', 'x2']):
                values = [[[float(row[name]) for name in names] for row in half] for half in rows]
                apart = np.abs(np.subtract(*values)).max()
                largest.append(f'{path}: {"/".join(names)} by {apart:g} at most')
    return f'{len(differing)} of {len(first)} files differ; ' + '; '.join(largest)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('images', nargs='+')
    parser.add_argument('--model', required=True)
    parser.add_argument('--workers', type=int, nargs='+', default=[1, 2, 4])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        alone = place / 'alone'
        print(f'alone: {timed(command(options, alone))}', flush=True)
        for count in options.workers:
            out = place / str(count)
            took = timed(command(options, out, *with_runner(count)))
            print(f'{count} workers: {took}, {difference(alone, out)}', flush=True)
        out = place / 'killed'
        words = command(options, out, *with_runner(2))
        status, said, seconds, kept = with_a_kill(words, out)
        print(f'one of 2 killed: status {status} after {seconds:.1f} s, {kept} parts kept: {said}')
        print(f'the same command: {timed(words)}, {difference(alone, out)}', flush=True)
        took = timed(command(options, place / 'ones', '--batch', '1'))
        print(f'alone, --batch 1: {took}, {difference(alone, place / "ones")}', flush=True)


def with_runner(count):
    return '--runner=DirectRunner', f'--direct_num_workers={count}'


if __name__ == '__main__':
    main()
