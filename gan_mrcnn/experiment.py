# SPDX-License-Identifier: Apache-2.0
"""From flags to settings, records and devices: what `train.py` and `evaluate.py` share.

Settings come from the YAML file, then `--params_override`, then the flags that have a name of their
own; an unknown key or a value of the wrong kind ends with one line that names it.
"""

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from official.core import config_definitions, exp_factory
from official.modeling import hyperparams
from official.modeling.hyperparams import params_dict

from gan_mrcnn import blow_ups, configs, datasets, multi_worker, yaml_files
from gan_mrcnn import task as task_lib
from gan_mrcnn.datasets import base, options, records
from gan_mrcnn.errors import UserError
from gan_mrcnn.flags import GAN_MODES
from gan_mrcnn.modeling import backbone, discriminators, heads

# What holds a learning rate in the Model Garden's schedules and warm-ups.
RATES = (
    'values',
    'learning_rate',
    'initial_learning_rate',
    'end_learning_rate',
    'warmup_learning_rate',
)
CONFIGS_DIR = pathlib.Path(__file__).resolve().parents[1] / 'configs'


def load_dataset(flags: argparse.Namespace) -> base.Dataset:
    """The data set of the flags; says loudly when it is the demo set."""
    dataset = datasets.load_dataset(flags.dataset, flags.data_dir, options.from_flags(flags))
    if dataset.notice:
        print(f'\n{"!" * 88}\n{dataset.notice}\n{"!" * 88}\n', flush=True)
    return dataset


def load_config(
    flags: argparse.Namespace, dataset: base.Dataset
) -> config_definitions.ExperimentConfig:
    """The experiment's settings from file, overrides and flags, in this order."""
    config = exp_factory.get_exp_config(configs.EXPERIMENT)
    path = pathlib.Path(flags.config_file or default_config_file(dataset))
    if not path.is_file():
        raise UserError(f'--config_file {path} is not there; see {CONFIGS_DIR} for others')
    override(config, yaml_files.parse(path.read_bytes(), str(path)) or {}, str(path))
    overrides = [_parse_overrides(text) for text in flags.params_override]
    file_batch = config.task.train_data.global_batch_size
    for values in overrides:
        override(config, values, '--params_override')
    scale_learning_rate(config, file_batch, overrides)
    task = config.task
    task.dataset, task.data_dir = flags.dataset, flags.data_dir or ''
    divided = options.from_flags(flags)
    task.share, task.split_seed = divided.share or 0.0, divided.split_seed
    task.group_by, task.annotations = divided.group_by, list(divided.annotations)
    task.skip_bad = flags.skip_bad
    task.cache_dir = str(pathlib.Path(flags.cache_dir).expanduser())
    task.model.num_classes = len(dataset.class_names) + 1
    if flags.gan is not None:
        task.gan.mode = flags.gan
    if flags.seed is not None:
        task.seed = flags.seed
    # evaluate.py trains nothing and does not have these flags.
    if getattr(flags, 'max_instances', None) is not None:
        task.train_data.parser.max_num_instances = flags.max_instances
    if getattr(flags, 'on_blow_up', None) is not None:
        task.blow_ups.policy = flags.on_blow_up
    task.deterministic |= getattr(flags, 'deterministic', False)
    _check_values(task)
    task.backbone_weights = os.path.expanduser(task.backbone_weights)
    if not task.backbone_weights:
        # Frozen random layers and BatchNorm that never sees a statistic would learn nothing.
        task.model.backbone.resnet.freeze_stages = 0
        task.model.backbone.resnet.bn_trainable = True
    return config


def saved_config(path: pathlib.Path) -> config_definitions.ExperimentConfig:
    """The settings that a run has noted in its `params.yaml`."""
    if not path.is_file():
        raise UserError(f'{path} is not there: not the folder of a run')
    config = exp_factory.get_exp_config(configs.EXPERIMENT)
    override(config, yaml_files.parse(path.read_bytes(), str(path)) or {}, str(path))
    return config


def scale_learning_rate(config, file_batch: int, overrides: Sequence[Mapping[str, Any]]) -> None:
    """Linear rule: rates that are right for `file_batch` images a step, times the batch's ratio.

    Goyal et al., Accurate, Large Minibatch SGD (2017). Nothing is changed where `overrides` give a
    rate: who gives one has chosen it.
    """
    batch = config.task.train_data.global_batch_size
    chosen = [values.get('trainer', {}).get('optimizer_config', {}) for values in overrides]
    if batch == file_batch or not file_batch or any(_has_rate(values) for values in chosen):
        return
    config.task.learning_rate_batch = file_batch
    scale_rates(config, batch / file_batch)


def _has_rate(values: Mapping[str, Any]) -> bool:
    return any(
        _has_rate(value) if isinstance(value, Mapping) else name in RATES
        for name, value in values.items()
    )


def _check_values(task: configs.GanMaskRCNNTask) -> None:
    """Raises UserError where a setting is none of its few possible values."""
    resnet = task.model.backbone.resnet
    for key, value, choices in (
        ('gan.mode', task.gan.mode, GAN_MODES),
        ('gan.num_layers', task.gan.num_layers, discriminators.NUM_LAYERS),
        ('blow_ups.policy', task.blow_ups.policy, blow_ups.POLICIES),
        ('losses.normalization', task.losses.normalization, task_lib.NORMALIZATIONS),
        ('model.head_norm', task.model.head_norm, heads.NORMALIZATIONS),
        ('model.backbone.resnet.model_id', resnet.model_id, backbone.MODEL_IDS),
        ('model.backbone.resnet.padding', resnet.padding, backbone.PADDINGS),
        ('model.backbone.resnet.freeze_stages', resnet.freeze_stages, (0, 1, 2)),
    ):
        if value not in choices:
            raise UserError(
                f'task.{key} is {value!r}, not one of {", ".join(map(str, choices))}'
            )
    if task.train_data.parser.max_num_instances < 1:
        raise UserError(
            '--max_instances (task.train_data.parser.max_num_instances) is '
            f'{task.train_data.parser.max_num_instances}, but at least 1 is wanted'
        )
    size, stride = task.model.input_size, 2**task.model.max_level
    if len(size) != 3 or size[0] % stride or size[1] % stride or size[2] != 3:
        raise UserError(
            f'task.model.input_size is {size}, but [height, width, 3] with multiples of {stride} '
            'is wanted'
        )


def default_config_file(dataset: base.Dataset) -> pathlib.Path:
    """The paper's settings for its data sets, those for two CPU cores for the demo set."""
    path = CONFIGS_DIR / f'{dataset.name}{"_small" if dataset.is_demo else ""}.yaml'
    return path if path.is_file() else CONFIGS_DIR / 'own_data.yaml'


def override(config: hyperparams.Config, values: Mapping[str, Any], source: str) -> None:
    """Sets `values`, a nested mapping, in `config`.

    Raises:
      UserError: naming an unknown key and the valid ones, or a value of the wrong kind.
    """
    _check_keys(config, values, '', source)
    try:
        config.override(values)
        config.as_dict()  # Looks whether every `type` exists.
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f'{source}: {" ".join(str(error).split())}') from error


def _check_keys(config, values, prefix, source):
    if not isinstance(values, Mapping):
        raise UserError(f'{source}: {prefix or "the file"} wants keys and values, not {values!r}')
    # Not `as_dict`: a choice between several configurations exports the chosen one only.
    names = {field.name for field in dataclasses.fields(config)}
    for name, value in values.items():
        key = f'{prefix}{name}'
        if name not in names:
            raise UserError(f'{source}: unknown key {key}; valid here: {", ".join(sorted(names))}')
        current = getattr(config, name)
        if isinstance(current, hyperparams.Config) and value is not None:
            _check_keys(current, value, f'{key}.', source)
        elif not _same_kind(current, value):
            raise UserError(
                f'{source}: {key} is {value!r}, but a {type(current).__name__} like {current!r} is '
                'wanted'
            )


def _same_kind(current, value) -> bool:
    if current is None or value is None or isinstance(current, (list, tuple)) != isinstance(
        value, (list, tuple)
    ):
        return current is None or value is None
    if isinstance(current, bool) or isinstance(value, bool):
        return isinstance(current, bool) and isinstance(value, bool)
    if isinstance(current, float):
        return isinstance(value, (int, float))
    if isinstance(current, (int, str)):
        return isinstance(value, type(current))
    return True


def _parse_overrides(text: str) -> Mapping[str, Any]:
    """`a.b=1,c=[2, 3]` or a YAML mapping, as a nested mapping."""
    if not (text.lstrip().startswith('{') or ': ' in text):
        try:
            text = params_dict.nested_csv_str_to_json_str(text)
        except ValueError as error:
            raise UserError(
                f'--params_override {text!r} is not KEY=VALUE,KEY=VALUE: {error}'
            ) from error
    return yaml_files.parse(text, '--params_override') or {}


def prepare_records(config, dataset: base.Dataset, splits: list[str]) -> list[records.RecordSet]:
    """Converts `splits` where that has not been done yet."""
    unknown = [split for split in splits if split not in dataset.splits]
    if unknown:
        raise UserError(
            f'split {unknown[0]!r} of {dataset.name} does not exist; there are '
            f'{", ".join(dataset.splits)}'
        )
    task = config.task
    return [
        records.ensure_records(dataset, split, task.cache_dir, skip_bad=task.skip_bad)
        for split in splits
    ]


def use_records(params: configs.DataConfig, record_set: records.RecordSet) -> None:
    """Points the input configuration at `record_set`."""
    params.input_path = record_set.input_path
    params.num_examples = record_set.num_examples


def scale_rates(config, scale: float) -> None:
    """Multiplies every learning rate of the schedule and the warm-up."""
    optimizer_config = config.trainer.optimizer_config
    for part in (optimizer_config.learning_rate.get(), optimizer_config.warmup.get()):
        for name in RATES:
            value = getattr(part, name, None)
            if isinstance(value, list):
                setattr(part, name, [rate * scale for rate in value])
            elif value is not None:
                setattr(part, name, value * scale)


def make_strategy(config, workers: bool = False) -> tf.distribute.Strategy:
    """MirroredStrategy on all GPUs, on one CPU without.

    With `workers`, and where the environment's TF_CONFIG names several, all of theirs; that has to
    be before anything else is done with TensorFlow.
    """
    dtype = config.runtime.mixed_precision_dtype
    if dtype and dtype != 'float32':
        tf.keras.mixed_precision.set_global_policy(f'mixed_{dtype}')
    if config.task.deterministic:
        tf.config.experimental.enable_op_determinism()
    if workers and multi_worker.num_workers() > 1:
        strategy = multi_worker.make_strategy()
    else:
        gpus = tf.config.list_logical_devices('GPU')
        strategy = tf.distribute.MirroredStrategy([gpu.name for gpu in gpus] or ['/cpu:0'])
    batch_size, devices = (
        config.task.train_data.global_batch_size,
        strategy.num_replicas_in_sync,
    )
    if batch_size % devices:
        raise UserError(
            f'task.train_data.global_batch_size is {batch_size}, which {devices} devices cannot '
            'share evenly'
        )
    return strategy
