# SPDX-License-Identifier: Apache-2.0
"""Trains GAN Mask R-CNN: gan-mrcnn train --dataset gland --data_dir DIR --model_dir RUN."""

import argparse

from gan_mrcnn.utils import cli
from gan_mrcnn.utils.errors import UserError

STOPPED = 'stopped; the same command goes on from the last checkpoint'


def add_flags(parser: argparse.ArgumentParser) -> None:
    cli.add_data_flags(parser)
    cli.add_split_flags(parser)
    parser.add_argument(
        '--mode',
        choices=('train', 'eval', 'train_and_eval'),
        default='train_and_eval',
        help='eval: the last checkpoint on the validation split',
    )
    cli.add_weights_flag(parser, 'the generator starts from these; overrides task.weights')
    parser.add_argument(
        '--max_instances',
        type=int,
        metavar='N',
        help='most objects of an image that a step learns; overrides '
        'task.train_data.parser.max_num_instances',
    )
    parser.add_argument(
        '--on_nonfinite',
        choices=('stop', 'skip', 'go_back'),
        help='a step with a loss or gradient that is not finite ends the run, is skipped, or '
        'sends it back to the last checkpoint with a lower rate; overrides task.nonfinite.policy',
    )
    parser.add_argument(
        '--patience',
        type=int,
        metavar='N',
        help='ends the run after N validations in a row without a better mask AP (default 0: it '
        'goes on to trainer.train_steps); overrides task.patience',
    )
    parser.add_argument(
        '--deterministic',
        action='store_true',
        help='the same bits each time with the same seed and devices; slower',
    )
    parser.add_argument(
        '--cluster',
        choices=cli.CLUSTERS,
        default='tf_config',
        help='what names the workers of a training on several machines: the variable TF_CONFIG, '
        'or Slurm, for what srun starts (default: tf_config; without it, this machine alone)',
    )
    parser.add_argument(
        '--stopped_status',
        type=int,
        default=0,
        metavar='N',
        help='exit status of a run that a signal has stopped, for schedulers that must tell it '
        'from one that is finished (default 0)',
    )
    cli.add_path(parser, '--log_file', metavar='FILE', help='what is printed goes there too')


def main(options: argparse.Namespace) -> None:
    if options.log_file:
        cli.log_to(options.log_file)
    from gan_mrcnn import settings
    from gan_mrcnn.evaluation import run as evaluation_run
    from gan_mrcnn.prediction import checkpoint
    from gan_mrcnn.training import cluster
    from gan_mrcnn.training import run as training_run

    if options.cluster == 'slurm':
        cluster.set_tf_config_by_slurm()
    flags = settings.Flags.from_arguments(options)
    if options.mode == 'eval' and flags.model_dir:
        checkpoint.use_saved_settings(flags)
    dataset = settings.load_dataset(flags)
    config = settings.load_config(flags, dataset)
    model_dir = flags.model_dir or settings.default_model_dir(config, dataset)
    if options.mode == 'eval':
        split = config.task.validation_data.split
        evaluation_run.evaluate(config, dataset, split, model_dir, checkpoint='last')
    else:
        settings.check_training(config)
        if options.patience and options.mode == 'train':
            raise UserError('--patience goes by validations: it wants --mode train_and_eval')
        finished = training_run.train(config, dataset, model_dir, options.mode)
        cli.leave_at_once(0 if finished else options.stopped_status)
