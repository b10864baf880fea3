# SPDX-License-Identifier: Apache-2.0
"""One training run from settings to checkpoints: data, resume, the loop, and how it ends."""

import contextlib
import copy
import dataclasses
import json
import os
import pathlib
import shlex
import time
from typing import Callable, Optional

import orbit
import tensorflow as tf
from official.core import exp_factory
from official.modeling import hyperparams

from custom_ops.prroi_pool import serving
from gan_mrcnn import configs, settings
from gan_mrcnn import task as task_lib
from gan_mrcnn.data import augment, input_pipeline
from gan_mrcnn.data.check import check
from gan_mrcnn.data.readers import base, options
from gan_mrcnn.data.records import records
from gan_mrcnn.modeling import weights_file
from gan_mrcnn.prediction import checkpoint as checkpoint_lib
from gan_mrcnn.prediction import model_card, predictor
from gan_mrcnn.training import (
    checkpoints,
    device_check,
    multi_worker,
    nonfinite,
    preemption,
    status,
    trainer,
)
from gan_mrcnn.utils import devices, disk, files, paths, published, yaml_files
from gan_mrcnn.utils.errors import UserError

# Settings of `task.gan` that a run names where they are not the paper's.
_GAME = (
    'mask_judgement',
    'normalization',
    'box_loss',
    'r1',
    'ramp',
    'rescore_exponent',
    'control',
)
# Every reported term of every loop, as text.
LOG_NAME = 'train.log'


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same when a run goes back to an older checkpoint.

    config: as the user gave it, with the records.
    model_dir: its folder.
    plain_dir: the same for TensorFlow, see `paths.plain_folder`.
    evaluates: whether it validates in between.
    strategy: of all devices.
    is_chief: whether this process writes the folder.
    train_set, validation_set: the records.
    stop: asks for its end.
    status: `status.json`.
    events: its steps that were not finite, so far.
    """

    config: configs.cfg.ExperimentConfig
    model_dir: str
    plain_dir: str
    evaluates: bool
    strategy: tf.distribute.Strategy
    is_chief: bool
    train_set: records.RecordSet
    validation_set: records.RecordSet
    stop: preemption.Stop
    status: status.Status
    events: nonfinite.NonfiniteSteps


def train(config, dataset: base.Dataset, model_dir: str, mode: str) -> bool:
    """Trains (and evaluates on the validation split) until `trainer.train_steps`.

    SIGTERM and SIGINT end it after the step that is being done, with a checkpoint.

    Args:
      config: the experiment.
      dataset: where `train_data.split` and `validation_data.split` come from.
      model_dir: goes on from the newest checkpoint in there.
      mode: 'train' or 'train_and_eval'.

    Returns:
      Whether it came to its end; False where a signal stopped it. The same on every worker.

    Raises:
      UserError: a loss or gradient is not finite and the policy is to stop, the checkpoint is of
        another network, the folder is an export, or it cannot be written.
    """
    # Before the data are converted: what is wrong is answered at once.
    predictor.check_no_saved_model(model_dir, '--model_dir')
    if config.task.weights and not checkpoints.latest(model_dir):
        published.find(config.task.weights, config.task.cache_dir)
    strategy = multi_worker.make_strategy(config)
    if 'eval' in mode:
        batch_size = config.task.validation_data.global_batch_size
        devices.check_batch(strategy, batch_size, 'validation_data')
    is_chief = multi_worker.is_chief(strategy)
    train_set, validation_set = prepare_data(config, dataset)
    stop = preemption.Stop(breaks_off=multi_worker.num_workers() == 1)
    with (
        checkpoints.disk_errors_named(model_dir),
        paths.plain_folder(model_dir) as plain_dir,
        stop,
    ):
        try:
            with multi_worker.starting_again():
                checkpoint = resume(config, model_dir, strategy)
            run = Run(
                config=config,
                model_dir=model_dir,
                plain_dir=plain_dir,
                evaluates='eval' in mode,
                strategy=strategy,
                is_chief=is_chief,
                train_set=train_set,
                validation_set=validation_set,
                stop=stop,
                status=status.Status(model_dir, config.trainer.train_steps, is_chief),
                events=nonfinite.NonfiniteSteps(config.task.nonfinite, model_dir, is_chief),
            )
            say_what_runs(run, dataset, checkpoint)
        except KeyboardInterrupt:
            _say_stopped(step_of(checkpoints.latest(model_dir)))
            return False
        return _run_to_its_end(run, checkpoint)


def _run_to_its_end(run: Run, checkpoint: Optional[str]) -> bool:
    """Trains, and leaves in `status.json` how that has ended; returns what `train` does."""
    try:
        ended_early = _train_through_nonfinite_steps(run, checkpoint)
        run.status.update(state='finished', eta_seconds=0, message=ended_early)
        if ended_early:
            print(ended_early, flush=True)
        return True
    except KeyboardInterrupt:
        saved = step_of(checkpoints.latest(run.model_dir))
        run.status.update(state='stopped', step=saved)
        _say_stopped(saved)
        return False
    except tf.errors.DataLossError as error:
        raise _name_damaged(error, run) from error
    except BaseException as error:
        if multi_worker.is_lost(error):
            multi_worker.start_again(error)
        with contextlib.suppress(OSError):
            run.status.update(state='failed', message=str(error) or type(error).__name__)
        raise


def _name_damaged(error: Exception, run: Run) -> UserError:
    """What to say of a record that TensorFlow cannot read."""
    damaged = [
        name
        for record_set in (run.train_set, run.validation_set)
        for name in records.set_damaged_aside(record_set)
    ]
    if damaged:
        text = f'{", ".join(damaged)} in the cache are damaged and set aside; start again: they '
        text += 'are written anew, and the run goes on from the last checkpoint'
    else:
        text = f'a record could not be read ({" ".join(str(error).split())[:200]}), but is as it '
        text += 'was written; start again, and check the disk if it comes back'
    run.status.update(state='failed', message=text)
    return UserError(text)


def _say_stopped(step: int) -> None:
    print(f'stopped; step {step} is saved, and the same command goes on from there')


def splits_to_read(task, dataset: base.Dataset) -> list[tuple[base.Dataset, str]]:
    """Which split of what is trained on, and which is validated on."""
    to_train_on = dataset
    if task.train_data.expand_to:
        to_train_on = augment.Expanded(dataset, task.train_data.expand_to, task.seed)
    return [(to_train_on, task.train_data.split), (dataset, task.validation_data.split)]


def prepare_data(config, dataset: base.Dataset) -> tuple[records.RecordSet, records.RecordSet]:
    """Records of the training and of the validation split, which `config` then names."""
    train_params, validation_params = config.task.train_data, config.task.validation_data
    (train_set,), (validation_set,) = (
        records.ensure_splits(source, [split], config.task)
        for source, split in splits_to_read(config.task, dataset)
    )
    record_sets = {train_params.split: train_set, validation_params.split: validation_set}
    for warning in check.quick(dataset, record_sets):
        print(f'warning: {warning}', flush=True)
    train_set.feed(train_params)
    validation_set.feed(validation_params)
    config.task.annotation_file = validation_set.annotation_file
    return train_set, validation_set


def resume(config, model_dir: str, strategy) -> Optional[str]:
    """The checkpoint to go on from, None without one; makes the folder and notes the settings.

    Raises:
      UserError: that run's network or data were others, or the folder cannot be written.
    """
    folder = pathlib.Path(model_dir)
    step = 0
    if multi_worker.is_chief(strategy):
        disk.make_folder(folder, '--model_dir')
        step = resumed_step(config, model_dir)
        files.remove_unfinished(folder)
        with (
            paths.plain_folder(folder) as plain,
            files.named_when_whole(pathlib.Path(plain) / checkpoint_lib.PARAMS_NAME) as path,
        ):
            hyperparams.save_params_dict_to_yaml(config, str(path))
    step = multi_worker.chiefs_number(strategy, step)
    return str(folder / f'ckpt-{step}') if step else None


def resumed_step(config, model_dir: str) -> int:
    """The step of the newest checkpoint in `model_dir` that can be read, 0 without one.

    Raises:
      UserError: that run's network or data were others.
    """
    path = checkpoints.newest_sound(model_dir)
    if path is None:
        return 0
    saved_file = pathlib.Path(model_dir) / checkpoint_lib.PARAMS_NAME
    if saved_file.is_file():
        saved = yaml_files.read_task(saved_file)
        now = config.as_dict()['task']
        for key in ('dataset', *options.FLAGS):
            # A run from before there were such settings has none of them.
            if saved.get(key, now[key]) != now[key]:
                raise UserError(
                    f'{model_dir} holds a run with {options.FLAGS.get(key, "--dataset")} '
                    f'{saved[key]!r}, not {now[key]!r}; give another --model_dir, or the same flag'
                )
        then = _with_defaults({key: saved.get(key, {}) for key in ('model', 'gan')})
        for key, settings in then.items():
            if settings != now[key]:
                changed = sorted(name for name in now[key] if settings.get(name) != now[key][name])
                raise UserError(
                    f'{model_dir} holds a run with another task.{key}.{changed[0]}; give another '
                    '--model_dir, or the settings of its params.yaml'
                )
    return step_of(path)


def step_of(path: Optional[str]) -> int:
    """The step that a checkpoint was saved at, 0 for None."""
    return checkpoint_lib.step_of(path) if path else 0


def _train_through_nonfinite_steps(run: Run, checkpoint: Optional[str]) -> str:
    """Trains from `checkpoint`, and again from an older one where the run has to go back.

    Returns what `_loop` does.
    """
    while True:
        try:
            return _train_from(run, checkpoint)
        except nonfinite.GoBack as reason:
            step = step_of(checkpoints.latest(run.model_dir))
            checkpoint = f'{run.model_dir}/ckpt-{step}' if step else None
            print(
                f'{reason}: going on from step {step} with learning rates times '
                f'{run.events.rate_scale:g}',
                flush=True,
            )
            # What the graph of the last attempt holds would stay with the next one's.
            tf.keras.backend.clear_session()


def _train_from(run: Run, checkpoint: Optional[str]) -> str:
    """Builds networks and input, goes on from `checkpoint`; returns what `_loop` does."""
    config = copy.deepcopy(run.config)
    settings.scale_rates(config, run.events.rate_scale)
    step = step_of(checkpoint)
    progress = status.Progress(config, step, run.status)
    best = checkpoints.BestCheckpoint(
        run.model_dir, config.trainer.best_checkpoint_eval_metric, run.is_chief
    )
    with contextlib.closing(progress), _log(run):
        runner, saved = _build(run, config, best, step)
        if run.strategy.num_replicas_in_sync > 1:
            progress.say(_check_devices(run, runner))
        with run.strategy.scope():
            if checkpoint:
                saved.restore(checkpoint)
            else:
                runner.initialize()
        runner.on_nonfinite = _nonfinite_action(run, runner, progress.say)
        controller = _make_controller(run, config, runner, progress)
        try:
            with run.strategy.scope():
                return _loop(run, config, controller, saved, best)
        except KeyboardInterrupt:
            run.stop.hold()
            saved.save()
            raise


def _build(
    run: Run, config, best: checkpoints.BestCheckpoint, step: int
) -> tuple[trainer.Trainer, checkpoints.Checkpoints]:
    """Networks, optimizers and input from `step` on, and what saves and restores them."""
    tf.keras.utils.set_random_seed(config.task.seed)
    with run.strategy.scope():
        task = task_lib.GanMaskRCNNTask(
            config.task,
            logging_dir=run.plain_dir,
            first_batch=step,
            train_steps=config.trainer.train_steps,
        )
        drawn = run.validation_set if run.is_chief else None
        runner = trainer.make_trainer(config, task, run.evaluates, best, run.stop, drawn)
        saved = checkpoints.Checkpoints(
            runner.checkpoint,
            run.model_dir,
            runner.global_step,
            config.trainer.max_to_keep,
            run.is_chief,
            run.plain_dir,
        )
    saved.check_room()
    return runner, saved


def _check_devices(run: Run, runner: trainer.Trainer) -> str:
    """What to say where several devices work as one; changes nothing of the run.

    Raises:
      UserError: they do not, see `device_check`.
    """
    began = time.monotonic()
    task, strategy = runner.task, run.strategy
    others = devices.other_reductions(multi_worker.num_workers(), run.config.runtime.all_reduce_alg)
    optimizer_config = run.config.trainer.optimizer_config
    device_check.check_step(
        strategy, lambda: task.create_optimizer(optimizer_config), task.apply_gradients, others
    )
    networks = {'generator': runner.model.trainable_variables}
    if task.has_discriminators:
        networks['discriminators'] = task.discriminator_variables
    weights = device_check.check_sums(strategy, networks, others)
    return (
        f'checked in {time.monotonic() - began:.0f} s: a step of a small network on '
        f'{strategy.num_replicas_in_sync} devices is that of one, and gradients of {weights:,} '
        'weights summed over them equal the exact sum'
    )


@contextlib.contextmanager
def _log(run: Run):
    """Orbit prints every term of every report; the terminal has the bar."""
    path = f'{run.model_dir}/{LOG_NAME}' if run.is_chief else os.devnull
    log = open(path, 'a', buffering=1, encoding='utf-8', errors='backslashreplace')  # noqa: SIM115
    with log, contextlib.redirect_stdout(log):
        yield


def _nonfinite_action(run: Run, runner: trainer.Trainer, say: Callable[[str], None]):
    def handle(inputs, terms):
        run.events.handle(
            int(runner.global_step.numpy()),
            inputs,
            terms,
            lambda ids: file_names(ids, run.train_set),
            runner.checkpoint,
            say,
        )
        run.status.update(nonfinite=run.events.count)

    return handle


def file_names(image_ids: list[int], record_set: records.RecordSet) -> list[str]:
    """Names of the files with these ids."""
    images = json.loads(pathlib.Path(record_set.annotation_file).read_text())['images']
    names = {image['id']: image['file_name'] for image in images}
    return [names.get(image_id, str(image_id)) for image_id in image_ids]


def _make_controller(run: Run, config, runner, progress) -> orbit.Controller:
    params = config.trainer
    folder = lambda name: f'{run.plain_dir}/{name}' if run.is_chief else None  # noqa: E731
    controller = orbit.Controller(
        strategy=run.strategy,
        trainer=runner,
        evaluator=runner if run.evaluates else None,
        global_step=runner.global_step,
        steps_per_loop=params.steps_per_loop,
        summary_dir=folder('train'),
        eval_summary_dir=folder(params.validation_summary_subdir),
        summary_interval=params.summary_interval if run.is_chief else None,
        train_actions=[progress.update],
        eval_actions=[progress.evaluated],
    )
    progress.summary_writer = controller.summary_manager.summary_writer()
    return controller


def _loop(run: Run, config, controller, saved, best) -> str:
    """Trains, saves and validates at the multiples of their intervals and at the end.

    A run that was stopped in between has the same moments as one that was not. All workers have the
    same figures of validation, and end after the same step.

    Returns:
      Why it ended before the last step, '' where it did not.
    """
    params = config.trainer
    total = params.train_steps
    save_every = params.checkpoint_interval or total
    validate_every = params.validation_interval or total
    step = int(controller.global_step.numpy())

    def is_due(every):
        return step % every == 0 or step == total

    def validate():
        run.status.update(state='validating')
        run.stop.release()
        controller.evaluate(params.validation_steps)
        run.stop.hold()
        run.status.update(best={'step': best.best_step, **best.best_figure()})

    if run.evaluates and step and is_due(validate_every) and not best.is_settled(step):
        validate()
        # Until the first step, which takes its time to be traced, a signal breaks off.
        run.stop.release()
    while step < total and not _is_out_of_patience(run, best, step):
        intervals = [save_every, validate_every]
        if step % params.steps_per_loop:
            intervals.append(params.steps_per_loop)
        step = min(total, *((step // every + 1) * every for every in intervals))
        controller.train(step, checkpoint_at_completion=False)
        validates = run.evaluates and is_due(validate_every)
        if validates or is_due(save_every):
            saved.save()
        if validates:
            validate()
    if step >= total:
        return ''
    figure = ', '.join(f'{name} {value:.4f}' for name, value in best.best_figure().items())
    return (
        f'ended at step {step}: {best.num_since_best(step)} validations in a row were not better '
        f'than that of step {best.best_step} ({figure}), see --patience; it is the best checkpoint'
    )


def _is_out_of_patience(run: Run, best: checkpoints.BestCheckpoint, step: int) -> bool:
    patience = run.config.task.patience
    return run.evaluates and 0 < patience <= best.num_since_best(step)


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


def batch_line(config, num_devices: int) -> list[tuple[str, str]]:
    """What several devices share, and the rate that goes with it; nothing for one device."""
    if num_devices == 1:
        return []
    batch = config.task.train_data.global_batch_size
    return [
        (
            'batch',
            f'{batch} images a step, {batch // num_devices} on each of {num_devices} devices; '
            f'learning rate {settings.first_rate(config):g}',
        )
    ]


def averages_line(config) -> list[tuple[str, str]]:
    """What to say where averages of the weights are kept; nothing otherwise."""
    ema = config.trainer.optimizer_config.ema
    if ema is None:
        return []
    text = f'of the weights, decay {ema.average_decay:g}, are what is validated and evaluated'
    return [('averages', text)]


def say_what_runs(run: Run, dataset: base.Dataset, checkpoint: Optional[str]) -> None:
    """Prints what the run is, in a few lines that its log keeps."""
    task = run.config.task
    lines = [
        ('data', _data_text(run, dataset)),
        ('classes', ', '.join(dataset.class_names)),
        (
            'network',
            f'Mask R-CNN, ResNet-{task.model.backbone.resnet.model_id} FPN, input '
            f'{_input_text(task)}',
        ),
        _origin_of_weights(task, dataset, checkpoint),
        ('GAN', _gan_text(task.gan)),
        ('steps', _steps_text(run.config, step_of(checkpoint))),
        ('devices', _devices_text(run)),
        *batch_line(run.config, run.strategy.num_replicas_in_sync),
        *learning_rate_line(run.config),
        *averages_line(run.config),
    ]
    if task.gan.mode != 'baseline':
        lines.append(('PrRoIPool', serving()))
    look = f'tensorboard --logdir {shlex.quote(run.model_dir)}'
    lines.append(('output', f'{run.model_dir} ({look})'))
    if task.train_data.split == 'trainval' and task.validation_data.split == 'val':
        lines.append(('note', 'validation images are trained on: evaluate with --checkpoint last'))
    crowded = run.train_set.crowded(task.train_data.parser.max_num_instances)
    if crowded:
        lines.append(('note', crowded))
    for name, text in lines:
        print(f'{name:>9}: {text}', flush=True)


def _origin_of_weights(task, dataset: base.Dataset, checkpoint) -> tuple[str, str]:
    """What the generator starts from."""
    if not task.weights:
        return 'backbone', task.backbone_weights or 'none: training from scratch'
    if checkpoint:
        return 'weights', task.weights
    notes = weights_file.read_notes(published.find(task.weights, task.cache_dir))
    names = model_card.from_values(notes['card'], task.weights).class_names
    text = f'{task.weights}, which knows {", ".join(names)}'
    if len(names) != len(dataset.class_names):
        text += '; another number of classes: the last layers start anew'
    return 'weights', text


def _input_text(task) -> str:
    """The canvas, and those of training where they are smaller."""
    full = tuple(task.model.input_size[:2])
    training = input_pipeline.training_canvases(task.model, task.train_data)
    text = lambda canvases: ' and '.join(f'{height}x{width}' for height, width in canvases)  # noqa: E731
    return text([full]) + ('' if training == [full] else f' (training: {text(training)})')


def _data_text(run: Run, dataset: base.Dataset) -> str:
    return (
        f'{dataset.name}{" (demo)" if dataset.is_demo else ""}: {run.train_set.num_examples} '
        f'images to train on, {run.validation_set.num_examples} to choose the checkpoint'
    )


def _gan_text(gan: configs.Gan) -> str:
    if gan.mode == 'baseline':
        return 'baseline: no discriminators'
    mask, box = gan.weight('mask_weight'), gan.weight('box_weight')
    own_mask, own_box = (gan.weight(f'discriminator_{name}_weight') for name in ('mask', 'box'))
    values, defaults = gan.as_dict(), configs.Gan().as_dict()
    chosen = [f'; {name} {values[name]}' for name in _GAME if values[name] != defaults[name]]
    return (
        f'{gan.mode}: {gan.num_layers} layers, weights mask {mask:g}, box {box:g}; '
        f"discriminators' own {own_mask:g}, {own_box:g}{''.join(chosen)}"
    )


def _steps_text(config, step: int) -> str:
    text = f'{config.trainer.train_steps} of {config.task.train_data.global_batch_size} images'
    return f'{text}, going on from step {step}' if step else text


def _devices_text(run: Run) -> str:
    devices_in_use = devices.describe(run.strategy.num_replicas_in_sync, multi_worker.num_workers())
    deterministic = ', deterministic' if run.config.task.deterministic else ''
    return f'{devices_in_use}, seed {run.config.task.seed}{deterministic}'
