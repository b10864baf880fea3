# SPDX-License-Identifier: Apache-2.0
"""One training run from settings to checkpoints: data, resume, the loop, and how it ends."""

import contextlib
import json
import pathlib
import re

import tensorflow as tf
import yaml
from official.core import exp_factory, train_lib, train_utils

from custom_ops.prroi_pool import serving
from gan_mrcnn import configs, experiment, trainer
from gan_mrcnn import task as task_lib
from gan_mrcnn.datasets import augment, base, check, options, records
from gan_mrcnn.errors import UserError

# Every reported term of every loop, as text.
LOG_NAME = 'train.log'


def train(config, dataset: base.Dataset, model_dir: str, mode: str) -> None:
    """Trains (and evaluates on the validation split) until `trainer.train_steps`.

    Args:
      config: the experiment.
      dataset: where `train_data.split` and `validation_data.split` come from.
      model_dir: goes on from the newest checkpoint in there.
      mode: 'train' or 'train_and_eval'.

    Raises:
      UserError: a loss or gradient is not finite (the message names step, terms and images), or
        the checkpoint is of another network.
    """
    task_config = config.task
    train_params, validation_params = task_config.train_data, task_config.validation_data
    to_train_on = dataset
    if train_params.expand_to:
        to_train_on = augment.Expanded(dataset, train_params.expand_to, task_config.seed)
    (train_set,) = experiment.prepare_records(config, to_train_on, [train_params.split])
    (validation_set,) = experiment.prepare_records(config, dataset, [validation_params.split])
    record_sets = {train_params.split: train_set, validation_params.split: validation_set}
    for warning in check.quick(dataset, record_sets):
        print(f'warning: {warning}', flush=True)
    experiment.use_records(train_params, train_set)
    experiment.use_records(validation_params, validation_set)
    task_config.annotation_file = validation_set.annotation_file
    step = resumed_step(config, model_dir)
    pathlib.Path(model_dir).mkdir(parents=True, exist_ok=True)
    train_utils.serialize_config(config, model_dir)

    tf.keras.utils.set_random_seed(task_config.seed)
    strategy = experiment.make_strategy(config)
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
    # Orbit prints every term of every report; the terminal has the bar.
    log = open(f'{model_dir}/{LOG_NAME}', 'a', buffering=1, encoding='utf-8')  # noqa: SIM115
    with contextlib.closing(bar), log, contextlib.redirect_stdout(log):
        experiment_runner = train_lib.OrbitExperimentRunner(
            strategy,
            task,
            mode,
            config,
            model_dir,
            trainer=runner,
            train_actions=[bar.update],
            eval_actions=[bar.evaluated],
        )
        with strategy.scope():
            _run(experiment_runner.controller, config.trainer, mode, train_set)


def _run(controller, trainer_config, mode, train_set) -> None:
    try:
        if mode == 'train':
            controller.train(trainer_config.train_steps)
        else:
            controller.train_and_evaluate(
                trainer_config.train_steps,
                trainer_config.validation_steps,
                trainer_config.validation_interval,
            )
    except tf.errors.InvalidArgumentError as error:
        line = task_lib.parse_non_finite(str(error))
        if line is None:
            raise
        raise UserError(
            f'{name_images(line, train_set)}. The generator was not changed by this step; look at '
            'these images, or lower the learning rate or raise the warm-up steps'
        ) from error


def name_images(line: str, record_set: records.RecordSet) -> str:
    """`line` with the ids after 'images' replaced by the names of the files."""
    images = json.loads(pathlib.Path(record_set.annotation_file).read_text())['images']
    names = {str(image['id']): image['file_name'] for image in images}
    return re.sub(
        r'(?<=images )\d+(?: \d+)*',
        lambda found: ', '.join(names.get(i, i) for i in found.group().split()),
        line,
    )


def resumed_step(config, model_dir: str) -> int:
    """The step of the newest checkpoint in `model_dir`, 0 without one.

    Raises:
      UserError: that run's network was another one.
    """
    path = tf.train.latest_checkpoint(model_dir)
    if path is None:
        return 0
    saved_file = pathlib.Path(model_dir) / 'params.yaml'
    if saved_file.is_file():
        saved = yaml.safe_load(saved_file.read_text(encoding='utf-8'))['task']
        now = config.as_dict()['task']
        for key in ('dataset', *options.FLAGS):
            # A run from before there were such settings has none of them.
            if saved.get(key, now[key]) != now[key]:
                raise UserError(
                    f'{model_dir} holds a run with {options.FLAGS.get(key, "--dataset")} '
                    f'{saved[key]!r}, not {now[key]!r}; give another --model_dir, or the same flag'
                )
        then = _with_defaults({key: saved[key] for key in ('model', 'gan')})
        for key, settings in then.items():
            if settings != now[key]:
                changed = sorted(name for name in now[key] if settings.get(name) != now[key][name])
                raise UserError(
                    f'{model_dir} holds a run with another task.{key}.{changed[0]}; give another '
                    '--model_dir, or the settings of its params.yaml'
                )
    return int(train_utils.read_global_step_from_checkpoint(path))


def _with_defaults(settings: dict) -> dict:
    """Saved settings of the task; what there was not yet when they were saved has its default."""
    config = exp_factory.get_exp_config(configs.EXPERIMENT)
    config.override({'task': settings}, is_strict=False)
    complete = config.as_dict()['task']
    return {key: complete[key] for key in settings}


def learning_rate_line(config) -> list[tuple[str, str]]:
    """What to say where the learning rate was scaled; nothing otherwise."""
    file_batch, batch = config.task.learning_rate_batch, config.task.train_data.global_batch_size
    if file_batch in (0, batch):
        return []
    steps = round(config.trainer.train_steps * file_batch / batch)
    return [
        (
            'rate',
            f'learning rate times {batch}/{file_batch} (linear rule: the settings are for '
            f'{file_batch} images a step); trainer.train_steps={steps} would see as many images',
        )
    ]


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
        (
            'data',
            f'{dataset.name}{" (demo)" if dataset.is_demo else ""}: {train_set.num_examples} '
            f'images to train on, {validation_set.num_examples} to choose the checkpoint',
        ),
        ('classes', ', '.join(dataset.class_names)),
        (
            'network',
            f'Mask R-CNN, ResNet-{task.model.backbone.resnet.model_id} FPN, input '
            f'{task.model.input_size[0]}x{task.model.input_size[1]}',
        ),
        ('backbone', weights),
        ('GAN', f'{gan.mode}: {adversarial}'),
        (
            'steps',
            f'{config.trainer.train_steps} of {task.train_data.global_batch_size} images'
            + (f', going on from step {step}' if step else ''),
        ),
        (
            'devices',
            f'{strategy.num_replicas_in_sync} x '
            f'{"GPU" if tf.config.list_logical_devices("GPU") else "CPU"}, seed {task.seed}',
        ),
        *learning_rate_line(config),
        ('output', f'{model_dir} (tensorboard --logdir {model_dir})'),
    ]
    if gan.mode != 'baseline':
        lines.insert(-1, ('PrRoIPool', serving()))
    if task.train_data.split == 'trainval' and task.validation_data.split == 'val':
        lines.append(('note', 'validation images are trained on: evaluate with --checkpoint last'))
    crowded = train_set.crowded(task.train_data.parser.max_num_instances)
    if crowded:
        lines.append(('note', crowded))
    for name, text in lines:
        print(f'{name:>9}: {text}', flush=True)
