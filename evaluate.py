#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Evaluates a trained model: `evaluate.py --dataset gland --data_dir DIR --model_dir RUN`.

With --predictions FILE instead of a model, it scores COCO results of any system.
"""

import argparse
import pathlib

from gan_mrcnn import flags
from gan_mrcnn.errors import UserError


def parse_flags() -> argparse.Namespace:
    """Flags, before TensorFlow is imported: --help and mistakes answer at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    flags.add_data_flags(parser)
    parser.add_argument(
        '--checkpoint', default='best', help="'best' (by validation mask AP), 'last' or a path"
    )
    parser.add_argument(
        '--saved_model', help='what gan_mrcnn.serving.export wrote, in place of a checkpoint'
    )
    parser.add_argument(
        '--split', metavar='NAME', help='which part (default: test, val where there is no test)'
    )
    parser.add_argument(
        '--predictions', metavar='FILE', help='score these COCO results; no model is run'
    )
    parser.add_argument(
        '--val_predictions',
        metavar='FILE',
        help='of the validation split: they choose from which score glands are painted',
    )
    parser.add_argument(
        '--results', metavar='FILE', default='', help='where the figures go, as JSON'
    )
    parser.add_argument(
        '--report', metavar='DIR', default='', help='writes DIR/index.html, one page with all of it'
    )
    options = parser.parse_args()
    if options.model_dir is None and options.saved_model is None and options.predictions is None:
        raise UserError(
            '--model_dir is missing: the folder that train.py wrote; or give --predictions FILE'
        )
    if options.val_predictions and not options.predictions:
        raise UserError('--val_predictions goes with --predictions; leave it out')
    if options.model_dir is None and options.saved_model is not None:
        # OUT/model/1 is evaluated into OUT/eval.
        options.model_dir = str(pathlib.Path(options.saved_model).resolve().parents[1])
    return options


def main() -> None:
    options = parse_flags()
    from gan_mrcnn import evaluating, experiment

    outputs = evaluating.Outputs(results=options.results, report=options.report)
    if options.model_dir is not None:
        evaluating.take_saved_settings(options)
    dataset = experiment.load_dataset(options)
    split = options.split or ('test' if 'test' in dataset.splits else 'val')
    config = experiment.load_config(options, dataset)
    if options.predictions:
        evaluating.evaluate_file(
            config, dataset, split, options.predictions, options.val_predictions, outputs
        )
        return
    evaluating.evaluate(
        config,
        dataset,
        split,
        options.model_dir,
        options.checkpoint,
        outputs,
        options.saved_model,
    )


if __name__ == '__main__':
    flags.run_main(main)
