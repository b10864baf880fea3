# SPDX-License-Identifier: Apache-2.0
"""A page in the browser to try a model: gan-mrcnn demo --model MODEL.

Give it an image, choose the score from which objects are shown, and take outlines (GeoJSON for
QuPath), label image and table with you. MODEL is a SavedModel that gan-mrcnn export wrote, or the
folder of a run; --weights takes what gan-mrcnn publish wrote. Wants pip install 'gan-mrcnn[demo]'.
The page is for this machine alone, unless --host says otherwise. Ctrl-C ends it.
"""

import argparse

from gan_mrcnn.utils import cli
from gan_mrcnn.utils.errors import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    cli.add_path(parser, '--model', help='a SavedModel, or the folder of a run')
    cli.add_weights_flag(parser, 'in place of --model', dest='published')
    cli.add_checkpoint_flag(parser)
    cli.add_path(parser, '--data_dir', help='of a run: where its data set is, if it was moved')
    cli.add_cache_flag(parser)
    cli.add_tile_flags(parser)
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to answer on (default 127.0.0.1: this machine alone; 0.0.0.0: everybody who '
        'reaches it)',
    )
    parser.add_argument('--port', type=int, default=7860, help='default 7860')


def main(options: argparse.Namespace) -> None:
    cli.check_one_model(options, '--model')
    if not 0 < options.port < 1 << 16:
        raise UserError(f'--port {options.port} is no port; give 1 to 65535')
    cli.check_extra('demo', 'gradio')
    from gan_mrcnn import api, demo
    from gan_mrcnn.prediction import run as prediction_run
    from gan_mrcnn.prediction import tiles
    from gan_mrcnn.utils import devices, published

    if options.tile:
        tiles.check(options.tile, options.overlap)
    path = published.find(options.published, options.cache_dir) if options.published else None
    network = prediction_run.load(options.model, options.checkpoint, options.data_dir, path, None)
    print(f'devices: {devices.describe()}', flush=True)
    demo.serve(api.Model(network), options.tile, options.overlap, options.host, options.port)
