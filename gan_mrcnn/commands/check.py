# SPDX-License-Identifier: Apache-2.0
"""Checks a data set before training: gan-mrcnn check --dataset NAME --data_dir DIR.

Reads every image once, counts what is there and names every problem by file, as text and, with
--html, as a page with thumbnails. Ends with 1 where training would stop or go wrong.
"""

import argparse
import sys

from gan_mrcnn.utils import cli, disk


def add_flags(parser: argparse.ArgumentParser) -> None:
    cli.add_dataset_flags(parser)
    cli.add_split_flags(parser)
    cli.add_path(parser, '--html', metavar='FILE', help='writes a page with thumbnails, too')


def main(options: argparse.Namespace) -> None:
    from gan_mrcnn import settings
    from gan_mrcnn.data.check import check, page

    flags = settings.Flags.from_arguments(options)
    dataset = settings.load_dataset(flags)
    if options.html:
        disk.check_file(options.html, '--html')
    task = settings.load_config(flags, dataset).task
    limits = check.Limits(
        learnt=task.train_data.parser.max_num_instances,
        found=task.model.detection_generator.max_num_detections,
        settings=settings.default_config_file(dataset).name,
    )
    report = check.check(dataset, limits=limits)
    print(page.to_text(report))
    if options.html:
        page.write(report, options.html)
        print(f'wrote {options.html}')
    sys.exit(1 if report.num_errors else 0)
