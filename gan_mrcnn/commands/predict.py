# SPDX-License-Identifier: Apache-2.0
"""Finds the objects in image files: gan-mrcnn predict --model OUT/model IMAGES... --out DIR.

IMAGES are files, folders and patterns in quotes. --model is a SavedModel that gan-mrcnn export
wrote, or the folder of a run.
"""

import argparse

from gan_mrcnn.utils import cli
from gan_mrcnn.utils.errors import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='files, folders, patterns')
    parser.add_argument('--model', required=True, help='a SavedModel, or the folder of a run')
    parser.add_argument('--out', required=True, help='results go there, see docs/serving.md')
    cli.add_checkpoint_flag(parser)
    parser.add_argument('--data_dir', help='of a run: where its data set is now')
    parser.add_argument(
        '--score_threshold', type=float, help="fainter objects are left out (default: the model's)"
    )
    parser.add_argument('--batch', type=int, default=4, help='images at a time (default 4)')
    parser.add_argument(
        '--tile',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help='larger images are cut into tiles of this size, in pixels; take the size of the '
        'images that were trained on',
    )
    parser.add_argument(
        '--overlap', type=int, help='of neighbouring tiles, in pixels (default: a quarter of one)'
    )


def main(options: argparse.Namespace) -> None:
    if options.batch < 1:
        raise UserError(f'--batch {options.batch} is too few; 1 is the least')
    tile, overlap = options.tile, options.overlap
    if tile and min(tile) < 1:
        raise UserError(f'--tile {tile[0]} {tile[1]} is no size in pixels')
    if tile and overlap is None:
        overlap = min(tile) // 4
    if tile and not 0 <= overlap < min(tile):
        raise UserError(f'--overlap {overlap} does not fit into a tile')
    from gan_mrcnn.prediction import run as prediction_run

    prediction_run.predict(
        options.images,
        prediction_run.load(options.model, options.checkpoint, options.data_dir),
        options.out,
        options.score_threshold,
        options.batch,
        tile,
        overlap,
    )
