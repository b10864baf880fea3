#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains GAN Mask R-CNN: `train.py --dataset gland --data_dir DIR --model_dir RUN`."""

import argparse

from gan_mrcnn import flags


def parse_flags() -> argparse.Namespace:
    """Flags, before TensorFlow is imported: --help and mistakes answer at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    flags.add_data_flags(parser)
    flags.add_split_flags(parser)
    parser.add_argument(
        '--mode',
        choices=('train', 'eval', 'train_and_eval'),
        default='train_and_eval',
        help='eval: the last checkpoint on the validation split',
    )
    parser.add_argument(
        '--max_instances',
        type=int,
        metavar='N',
        help='most objects of an image that a step learns; overrides '
        'task.train_data.parser.max_num_instances',
    )
    parser.add_argument(
        '--on_blow_up',
        choices=('stop', 'skip', 'go_back'),
        help='a step with a loss or gradient that is not finite ends the run, is left out, or '
        'sends it back to the last checkpoint with a lower rate; overrides task.blow_ups.policy',
    )
    parser.add_argument(
        '--deterministic',
        action='store_true',
        help='the same bits each time with the same seed, on a CPU; slower',
    )
    parser.add_argument('--log_file', metavar='FILE', help='what is printed goes there too')
    return parser.parse_args()


def main() -> None:
    options = parse_flags()
    if options.log_file:
        flags.log_to(options.log_file)
    from gan_mrcnn import evaluating, experiment, training

    if options.mode == 'eval' and options.model_dir:
        evaluating.take_saved_settings(options)
    dataset = experiment.load_dataset(options)
    config = experiment.load_config(options, dataset)
    model_dir = options.model_dir or f'runs/{dataset.name}-{config.task.gan.mode}'
    if options.mode == 'eval':
        split = config.task.validation_data.split
        evaluating.evaluate(config, dataset, split, model_dir, checkpoint='last')
    else:
        training.train(config, dataset, model_dir, options.mode)
        flags.leave_at_once()


if __name__ == '__main__':
    flags.run_main(main)
