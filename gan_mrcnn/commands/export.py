# SPDX-License-Identifier: Apache-2.0
"""Exports a run for TF Serving: gan-mrcnn export --model_dir RUN --export_dir OUT.

Writes the SavedModel OUT/model/N. It runs without this package, and gan-mrcnn predict and evaluate
take it, too. Needs the extra serving: pip install 'gan-mrcnn[serving]'.
"""

import argparse

from gan_mrcnn.utils import cli


def add_flags(parser: argparse.ArgumentParser) -> None:
    cli.add_path(
        parser,
        '--model_dir',
        metavar='RUN',
        help='folder that gan-mrcnn train wrote',
    )
    cli.add_weights_flag(parser, 'in place of a run', dest='published')
    cli.add_path(
        parser,
        '--export_dir',
        required=True,
        metavar='OUT',
        help='the model is written to OUT/model/N',
    )
    cli.add_checkpoint_flag(parser)
    parser.add_argument(
        '--version',
        type=int,
        metavar='N',
        help='number of the model (default: one more than the highest)',
    )
    parser.add_argument(
        '--score_threshold',
        type=float,
        default=0.5,
        metavar='SCORE',
        help='lowest score in the signature full_masks, and default of predict (default 0.5)',
    )
    cli.add_path(
        parser, '--data_dir', help='where the data set is, if it was moved; it names the classes'
    )
    cli.add_cache_flag(parser)


def main(options: argparse.Namespace) -> None:
    cli.check_one_model(options, '--model_dir')
    from gan_mrcnn.utils import published

    # Before TensorFlow is there: a wrong one is answered at once.
    path = published.find(options.published, options.cache_dir) if options.published else None
    from gan_mrcnn.prediction import checkpoint
    from gan_mrcnn.serving import export

    if path:
        opened = checkpoint.open_published(path, options.score_threshold)
    else:
        opened = checkpoint.open_run(
            options.model_dir, options.checkpoint, options.score_threshold, options.data_dir
        )
    card = opened.card
    target = export.export(
        opened.module(), card, opened.config, options.export_dir, options.version
    )
    size = sum(path.stat().st_size for path in target.rglob('*') if path.is_file())
    print(
        f'exported {card.checkpoint} (step {card.step}) to {target}, {size / 1e6:.0f} MB; '
        f'classes: {", ".join(card.class_names)}'
    )
