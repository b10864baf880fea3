# SPDX-License-Identifier: Apache-2.0
"""Makes a data set of a tool's export: gan-mrcnn import --from TOOL SOURCE --to DIR.

DIR becomes a folder that --dataset coco_format trains on: COCO's JSON and copies of the images.
What is no outlined object, such as points and attributes, is left out and counted; what cannot be
used is named and ends the import. docs/data/importing.md says what each export must look like.
"""

# No statement can import a module of this name. Commands are imported by their names alone.

import argparse
import os
import pathlib
import shlex

from gan_mrcnn.utils import cli
from gan_mrcnn.utils.errors import UserError

# Names only, so that --help imports none of the readers.
TOOLS = ('labelme', 'cvat', 'via', 'yolo', 'labelstudio', 'roboflow', 'qupath')


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--from', dest='tool', required=True, choices=TOOLS, help='the tool')
    cli.add_path(parser, 'source', metavar='SOURCE', help='folder or file that the tool exported')
    cli.add_path(parser, '--to', required=True, metavar='DIR', help='a new folder')
    cli.add_path(
        parser,
        '--images',
        metavar='DIR',
        help='folder of the images (default: SOURCE, or the folder that it is in)',
    )
    parser.add_argument(
        '--boxes',
        choices=('left_out', 'objects'),
        default='left_out',
        help='what rectangles are: no outlines, left out (the default), or outlines',
    )
    parser.add_argument(
        '--class_attribute', metavar='NAME', help='via: the attribute of regions that is the class'
    )
    parser.add_argument(
        '--skip_bad', action='store_true', help='skip (and name) images that cannot be used'
    )
    parser.add_argument(
        '--skip_bad_annotations',
        action='store_true',
        help='skip (and name) annotations that cannot be used, and keep the rest of their images',
    )


def main(options: argparse.Namespace) -> None:
    from gan_mrcnn.data import importing

    if options.class_attribute and options.tool != 'via':
        raise UserError(f'--class_attribute is for via; --from {options.tool} has no use for it')
    path = _existing(options.source, 'SOURCE')
    images = _existing(options.images, '--images') if options.images else None
    if images is not None and not images.is_dir():
        raise UserError(f'--images {images} is a file; give a folder')
    source = importing.Source(
        path=path,
        images=images or (path if path.is_dir() else path.parent),
        boxes_are_objects=options.boxes == 'objects',
        class_attribute=options.class_attribute,
        skip_bad=options.skip_bad,
        skip_bad_annotations=options.skip_bad_annotations,
    )
    for line in importing.convert(options.tool, source, options.to):
        print(line)
    data = shlex.quote(options.to)
    run = shlex.quote(os.path.join('runs', pathlib.Path(options.to).name))
    print('next:')
    print(f'  gan-mrcnn check --dataset coco_format --data_dir {data}')
    print(f'  gan-mrcnn train --dataset coco_format --data_dir {data} --model_dir {run}')


def _existing(path: str, flag: str) -> pathlib.Path:
    found = pathlib.Path(os.path.normpath(path))
    if not found.exists():
        raise UserError(f'{flag} {path} does not exist')
    if found.suffix.lower() == '.zip':
        raise UserError(f'{flag} {path} is an archive; unpack it, and give the folder')
    return found
