# SPDX-License-Identifier: Apache-2.0
"""Evaluates a trained model: gan-mrcnn evaluate --dataset gland --data_dir DIR --model_dir RUN.

With --predictions FILE instead of a model, it scores COCO results of any system.
"""

import argparse
import os

from gan_mrcnn.utils import cli, paths
from gan_mrcnn.utils.errors import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    cli.add_data_flags(parser)
    cli.add_checkpoint_flag(parser)
    cli.add_path(
        parser, '--saved_model', help='what gan-mrcnn export wrote, in place of a checkpoint'
    )
    cli.add_weights_flag(parser, 'in place of a checkpoint', dest='published')
    parser.add_argument(
        '--split', metavar='NAME', help='which part (default: test, val where there is no test)'
    )
    cli.add_tta_flag(parser)
    cli.add_path(
        parser, '--predictions', metavar='FILE', help='score these COCO results; no model is run'
    )
    cli.add_path(
        parser,
        '--val_predictions',
        metavar='FILE',
        help='of the validation split: they choose from which score glands are painted',
    )
    cli.add_path(parser, '--results', metavar='FILE', help='where the figures go, as JSON')
    cli.add_path(
        parser, '--report', metavar='DIR', help='writes DIR/index.html, one page with all of it'
    )


def main(options: argparse.Namespace) -> None:
    models = (options.model_dir, options.saved_model, options.published)
    if not any(models) and options.predictions is None:
        raise UserError(
            '--model_dir is missing: the folder that train.py wrote; or give --predictions FILE'
        )
    if options.published and (options.saved_model or options.predictions):
        raise UserError('--weights goes without --saved_model and --predictions; leave one out')
    if options.tta and options.predictions:
        raise UserError('--tta goes without --predictions; leave it out')
    if options.val_predictions and not options.predictions:
        raise UserError('--val_predictions goes with --predictions; leave it out')
    if options.model_dir is None and options.saved_model is not None:
        options.model_dir = _beside(options.saved_model)
    weights = None
    if options.published:
        from gan_mrcnn.utils import published

        options.model_dir = options.model_dir or _beside_weights(options.published)
        weights = published.find(options.published, options.cache_dir)
    from gan_mrcnn import settings
    from gan_mrcnn.evaluation import run as evaluation_run
    from gan_mrcnn.prediction import checkpoint

    outputs = evaluation_run.Outputs(results=options.results or '', report=options.report or '')
    flags = settings.Flags.from_arguments(options)
    if flags.model_dir is not None:
        checkpoint.use_saved_settings(flags, options.saved_model, weights)
    dataset = settings.load_dataset(flags)
    split = options.split or dataset.evaluated_split
    config = settings.load_config(flags, dataset)
    if options.predictions:
        evaluation_run.evaluate_file(
            config, dataset, split, options.predictions, options.val_predictions, outputs
        )
        return
    evaluation_run.evaluate(
        config,
        dataset,
        split,
        flags.model_dir,
        options.checkpoint,
        outputs,
        options.saved_model,
        weights,
        options.tta,
    )


def _beside_weights(source: str) -> str:
    """The folder of published weights, where results go unless --model_dir names another."""
    if paths.is_address(source):
        raise UserError('--model_dir is missing: the folder for the results of --weights URL')
    return source if os.path.isdir(source) else os.path.dirname(source) or '.'


def _beside(saved_model: str) -> str:
    """The folder OUT of an export: OUT/model/1, OUT/model or OUT/model.onnx is given."""
    from gan_mrcnn.prediction import exported

    return str(exported.root_of(saved_model))
