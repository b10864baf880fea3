# SPDX-License-Identifier: Apache-2.0
"""Exports a run for TF Serving: gan-mrcnn export --model_dir RUN --export_dir OUT."""

import argparse

from gan_mrcnn.utils import cli


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--model_dir', required=True, help='the folder that train.py wrote')
    parser.add_argument('--export_dir', required=True, help='the model goes to EXPORT_DIR/model/N')
    cli.add_checkpoint_flag(parser)
    parser.add_argument(
        '--version', type=int, metavar='N', help='number of the model (default: the next free one)'
    )
    parser.add_argument(
        '--score_threshold',
        type=float,
        default=0.5,
        help='from this score on detections are in full_masks, and worth showing (default 0.5)',
    )
    parser.add_argument('--data_dir', help='where the data set is now; it names the classes')


def main(options: argparse.Namespace) -> None:
    from gan_mrcnn.prediction import checkpoint
    from gan_mrcnn.serving import export

    module, card, config = checkpoint.load_run(
        options.model_dir, options.checkpoint, options.score_threshold, options.data_dir
    )
    target = export.export(module, card, config, options.export_dir, options.version)
    size = sum(path.stat().st_size for path in target.rglob('*') if path.is_file())
    print(
        f'{card.checkpoint} (step {card.step}) is now {target}, {size / 1e6:.0f} MB; '
        f'classes: {", ".join(card.class_names)}'
    )
