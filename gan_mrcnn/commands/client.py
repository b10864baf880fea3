# SPDX-License-Identifier: Apache-2.0
"""Asks a TF Serving what is in an image: gan-mrcnn client --url URL IMAGE...

URL is http://HOST:8501/v1/models/model (REST) or grpc://HOST:8500/model; /versions/1 behind it
chooses a version.
"""

import argparse
import pathlib


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('images', nargs='+', type=pathlib.Path, metavar='IMAGE')
    parser.add_argument(
        '--url', required=True, help='http://HOST:8501/v1/models/model or grpc://..'
    )
    parser.add_argument(
        '--out', type=pathlib.Path, default=pathlib.Path('.'), help='overlays go there (default .)'
    )
    parser.add_argument('--class_names', type=pathlib.Path, help="the model's class_names.txt")
    parser.add_argument('--score_threshold', type=float, default=0.5, help='default 0.5')
    parser.add_argument('--timeout', type=float, default=60, help='seconds (default 60)')


def main(options: argparse.Namespace) -> None:
    from gan_mrcnn.serving import client

    client.run(
        options.images,
        options.url,
        options.out,
        options.class_names,
        options.score_threshold,
        options.timeout,
    )
