# SPDX-License-Identifier: Apache-2.0
"""Converts images for training ahead of it: gan-mrcnn records --dataset NAME --data_dir DIR ...

Into the same --cache_dir as the training, which then starts at once. What is converted is not
converted again, and an interrupted conversion goes on. With --runner, Apache Beam converts on many
machines; flags that are not listed then go to Beam.
"""

import argparse
import functools
import os

from gan_mrcnn.utils import beam_runner, cli

FORWARDS_FLAGS = True
STOPPED = 'stopped; the same command goes on with what is missing'


def add_flags(parser: argparse.ArgumentParser) -> None:
    cli.add_dataset_flags(parser)
    cli.add_split_flags(parser)
    cli.add_records_flags(parser)
    parser.add_argument(
        '--splits',
        nargs='+',
        metavar='NAME',
        help='such as test (default: those for training and validation)',
    )
    beam_runner.add_flag(parser)


def main(options: argparse.Namespace) -> None:
    runner = beam_runner.from_options(options)
    from gan_mrcnn import settings
    from gan_mrcnn.data.records import beam_shards, records
    from gan_mrcnn.training import run as training_run

    flags = settings.Flags.from_arguments(options)
    write = None
    if runner:
        write = functools.partial(beam_shards.write_shards, runner=runner)
        # Workers may have another current folder.
        flags.data_dir = flags.data_dir and os.path.abspath(flags.data_dir)
    dataset = settings.load_dataset(flags)
    task = settings.load_config(flags, dataset).task
    chosen = [(dataset, name) for name in options.splits or ()]
    for source, split in chosen or training_run.splits_to_read(task, dataset):
        (record_set,) = records.ensure_splits(source, [split], task, write)
        print(f'{source.name}/{split}: {record_set.num_examples} images in {record_set.input_path}')
