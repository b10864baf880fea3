# SPDX-License-Identifier: Apache-2.0
"""Predicts the objects in image files: gan-mrcnn predict --model MODEL IMAGES... --out DIR.

IMAGES are files, folders (with all below) and patterns in quotes. MODEL is a SavedModel that
gan-mrcnn export wrote (OUT/model or OUT/model/1), an ONNX file of it (OUT/model.onnx), or the
folder of a run; --weights takes what gan-mrcnn publish wrote. DIR gets overlays/, labels/,
objects.csv and predictions.json (COCO format).
"""

import argparse

from gan_mrcnn.utils import cli
from gan_mrcnn.utils.errors import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    cli.add_path(parser, 'images', nargs='+', metavar='IMAGES', help='files, folders or patterns')
    cli.add_path(parser, '--model', help='a SavedModel, an ONNX file, or the folder of a run')
    cli.add_weights_flag(parser, 'in place of --model', dest='published')
    cli.add_path(parser, '--out', required=True, metavar='DIR', help='folder of the results')
    cli.add_checkpoint_flag(parser)
    cli.add_path(parser, '--data_dir', help='of a run: where its data set is, if it was moved')
    cli.add_cache_flag(parser)
    parser.add_argument(
        '--score_threshold',
        type=float,
        metavar='SCORE',
        help="objects with a lower score are dropped (default: the model's)",
    )
    cli.add_tta_flag(parser)
    parser.add_argument(
        '--batch', type=int, default=4, metavar='N', help='images at a time (default 4)'
    )
    parser.add_argument(
        '--tile',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help='larger images are predicted in tiles of this size, in pixels; take that of the '
        'training images',
    )
    parser.add_argument(
        '--overlap',
        type=int,
        metavar='PIXELS',
        help='of neighbouring tiles (default: a quarter of the shorter side of a tile)',
    )


def main(options: argparse.Namespace) -> None:
    cli.check_one_model(options, '--model')
    cli.check_score(options.score_threshold)
    cli.check_positive(options.batch, '--batch')
    tile, overlap = options.tile, options.overlap
    if tile and min(tile) < 1:
        raise UserError(
            f'--tile {tile[0]} {tile[1]} is not positive; give height and width in pixels'
        )
    if tile and overlap is None:
        overlap = min(tile) // 4
    if tile and not 0 <= overlap < min(tile):
        raise UserError(f'--overlap {overlap} is not between 0 and the shorter side of a tile')
    from gan_mrcnn.prediction import image_files, writing
    from gan_mrcnn.prediction import run as prediction_run
    from gan_mrcnn.utils import published

    # Before the network, which takes its time: a wrong path is answered at once.
    left_out: list[str] = []
    sources = image_files.find_sources(options.images, options.out, left_out)
    for text in left_out:
        print(f'left out: {cli.one_line(text)}; name a file by itself to predict it')
    writing.prepare_folder(options.out)
    path = published.find(options.published, options.cache_dir) if options.published else None
    prediction_run.predict(
        sources,
        prediction_run.load(options.model, options.checkpoint, options.data_dir, path, options.tta),
        options.out,
        options.score_threshold,
        options.batch,
        tile,
        overlap,
    )
