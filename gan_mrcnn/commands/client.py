# SPDX-License-Identifier: Apache-2.0
"""Sends images to a TF Serving and draws its detections: gan-mrcnn client --url URL IMAGE...

URL is http://HOST:8501/v1/models/model (REST) or grpc://HOST:8500/model; /versions/1 or
/labels/stable behind it chooses a version. Prints class, score and box [y1, x1, y2, x2] of each
object, in pixels.
"""

import argparse
import pathlib

from gan_mrcnn.utils import cli
from gan_mrcnn.utils.errors import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    cli.add_path(parser, 'images', nargs='+', metavar='IMAGE', help='image files')
    parser.add_argument(
        '--url', required=True, help='of the model: http://HOST:8501/v1/models/model or grpc://...'
    )
    cli.add_path(
        parser,
        '--out',
        default='.',
        metavar='DIR',
        help='folder of the overlays, NAME.detections.png (default .)',
    )
    cli.add_path(
        parser,
        '--class_names',
        metavar='FILE',
        help='OUT/model/N/assets/class_names.txt of the export (default: print class numbers)',
    )
    parser.add_argument(
        '--score_threshold',
        type=float,
        default=0.5,
        metavar='SCORE',
        help='detections with a lower score are not shown (default 0.5)',
    )
    parser.add_argument(
        '--timeout',
        type=float,
        default=60,
        metavar='SECONDS',
        help='for a response (default 60)',
    )


def main(options: argparse.Namespace) -> None:
    cli.check_score(options.score_threshold)
    if not 0 < options.timeout < 1e6:
        raise UserError(f'--timeout {options.timeout:g} is no number of seconds above 0')
    from gan_mrcnn.serving import client

    client.run(
        list(map(pathlib.Path, options.images)),
        options.url,
        pathlib.Path(options.out),
        pathlib.Path(options.class_names) if options.class_names else None,
        options.score_threshold,
        options.timeout,
    )
