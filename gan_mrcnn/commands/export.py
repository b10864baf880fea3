# SPDX-License-Identifier: Apache-2.0
"""Exports a run for TF Serving: gan-mrcnn export --model_dir RUN --export_dir OUT.

Writes the SavedModel OUT/model/N or, with --format onnx, OUT/model.onnx. Either runs without this
package, and gan-mrcnn predict and evaluate take it, too. Needs an extra:
pip install 'gan-mrcnn[serving]', or 'gan-mrcnn[onnx]'.
"""

import argparse

from gan_mrcnn.utils import cli
from gan_mrcnn.utils.errors import UserError

FORMATS = ('saved_model', 'onnx')


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
        help='the model is written to OUT/model/N, or OUT/model.onnx',
    )
    cli.add_checkpoint_flag(parser)
    parser.add_argument(
        '--format',
        choices=FORMATS,
        default=FORMATS[0],
        help='what is written (default: saved_model)',
    )
    parser.add_argument(
        '--version',
        type=int,
        metavar='N',
        help='number of the SavedModel (default: one more than the highest)',
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
    as_onnx = options.format == 'onnx'
    if as_onnx:
        cli.check_extra('onnx', 'tf2onnx', 'onnxruntime')
        if options.version is not None:
            raise UserError('--version numbers SavedModels; leave it out with --format onnx')
    from gan_mrcnn.utils import published

    # Before TensorFlow is there: a wrong one is answered at once.
    path = published.find(options.published, options.cache_dir) if options.published else None
    from gan_mrcnn.prediction import checkpoint

    if path:
        opened = checkpoint.open_published(path, options.score_threshold)
    else:
        opened = checkpoint.open_run(
            options.model_dir, options.checkpoint, options.score_threshold, options.data_dir
        )
    card = opened.card
    exported = (opened.module(), card, opened.config, options.export_dir)
    if as_onnx:
        from gan_mrcnn.serving import onnx_export

        target = onnx_export.export(*exported)
    else:
        from gan_mrcnn.serving import export

        target = export.export(*exported, options.version)
    size = sum(path.stat().st_size for path in (target, *target.rglob('*')) if path.is_file())
    print(
        f'exported {card.checkpoint} (step {card.step}) to {target}, {size / 1e6:.0f} MB; '
        f'classes: {", ".join(card.class_names)}'
    )
