# SPDX-License-Identifier: Apache-2.0
"""One training run from settings to checkpoints: data, resume, the loop, and how it ends."""

import pathlib

import tensorflow as tf
from absl import logging
from official.core import train_lib, train_utils

from gan_mrcnn import experiment, trainer
from gan_mrcnn import task as task_lib
from gan_mrcnn.datasets import base
from gan_mrcnn.errors import UserError


def train(config, dataset: base.Dataset, model_dir: str, mode: str) -> None:
    """Trains (and evaluates on the validation split) until `trainer.train_steps`.

    Args:
      config: the experiment.
      dataset: where `train_data.split` and `validation_data.split` come from.
      model_dir: goes on from the newest checkpoint in there.
      mode: 'train' or 'train_and_eval'.

    Raises:
      UserError: a loss or gradient is not finite; the message names step, terms and images.
    """
    task_config = config.task
    train_set, validation_set = experiment.prepare_records(
        config, dataset, [task_config.train_data.split, task_config.validation_data.split]
    )
    experiment.use_records(task_config.train_data, train_set)
    experiment.use_records(task_config.validation_data, validation_set)
    task_config.annotation_file = validation_set.annotation_file
    pathlib.Path(model_dir).mkdir(parents=True, exist_ok=True)
    train_utils.serialize_config(config, model_dir)

    tf.keras.utils.set_random_seed(task_config.seed)
    strategy = experiment.make_strategy(config)
    step = _resumed_step(model_dir)
    say_what_runs(config, dataset, train_set, validation_set, strategy, step, model_dir)
    with strategy.scope():
        task = task_lib.GanMaskRCNNTask(
            task_config,
            logging_dir=model_dir,
            first_example=step * task_config.train_data.global_batch_size,
            validation_records=validation_set,
        )
        runner = trainer.make_trainer(config, task, True, 'eval' in mode, model_dir)
    bar = trainer.ProgressBar(config, step)
    try:
        controller = train_lib.OrbitExperimentRunner(
            strategy,
            task,
            mode,
            config,
            model_dir,
            trainer=runner,
            train_actions=[bar.update],
            eval_actions=[bar.evaluated],
        ).controller
        with strategy.scope():
            if mode == 'train':
                controller.train(config.trainer.train_steps)
            else:
                controller.train_and_evaluate(
                    config.trainer.train_steps,
                    config.trainer.validation_steps,
                    config.trainer.validation_interval,
                )
    except tf.errors.InvalidArgumentError as error:
        line = task_lib.parse_non_finite(str(error))
        if line is None:
            raise
        raise UserError(
            f'{line}. Nothing of this step was applied; look at these images, or lower the '
            'learning rate or raise the warm-up steps'
        ) from error
    finally:
        bar.close()


def _resumed_step(model_dir: str) -> int:
    path = tf.train.latest_checkpoint(model_dir)
    return int(train_utils.read_global_step_from_checkpoint(path)) if path else 0


def say_what_runs(config, dataset, train_set, validation_set, strategy, step, model_dir) -> None:
    """Prints the run in a few lines, for someone who reads the log next year."""
    task = config.task
    gan = task.gan
    weights = task.backbone_weights or 'none: training from scratch'
    adversarial = (
        'no discriminators'
        if gan.mode == 'baseline'
        else f'{gan.num_layers} layers, weights mask {gan.mask_weight}, box {gan.box_weight}'
    )
    lines = [
        ('data', f'{dataset.name}{" (demo)" if dataset.is_demo else ""}: {train_set.num_examples} '
         f'images to train on, {validation_set.num_examples} to choose the checkpoint'),
        ('classes', ', '.join(dataset.class_names)),
        ('network', f'Mask R-CNN, ResNet-{task.model.backbone.resnet.model_id} FPN, input '
         f'{task.model.input_size[0]}x{task.model.input_size[1]}'),
        ('backbone', weights),
        ('GAN', f'{gan.mode}: {adversarial}'),
        ('steps', f'{config.trainer.train_steps} of {task.train_data.global_batch_size} images'
         + (f', going on from step {step}' if step else '')),
        ('devices', f'{strategy.num_replicas_in_sync} x '
         f'{"GPU" if tf.config.list_logical_devices("GPU") else "CPU"}, seed {task.seed}'),
        ('output', f'{model_dir} (tensorboard --logdir {model_dir})'),
    ]
    for name, text in lines:
        print(f'{name:>9}: {text}', flush=True)
    logging.info('%s', config.as_dict())
