# SPDX-License-Identifier: Apache-2.0
"""Settings of an experiment: from a YAML file, overrides and flags.

The file comes first, then `--params_override`, then the flags that have a name of their own; an
unknown key or a value of the wrong kind ends with one line that names it.
"""

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from official.core import config_definitions, exp_factory
from official.modeling import hyperparams, optimization
from official.modeling.hyperparams import params_dict

from gan_mrcnn import configs
from gan_mrcnn.data import readers
from gan_mrcnn.data.readers import base, options
from gan_mrcnn.modeling import weights_file
from gan_mrcnn.utils import cli, paths, published, yaml_files
from gan_mrcnn.utils.errors import UserError

# What holds a learning rate in the Model Garden's schedules and warm-ups.
RATES = (
    'values',
    'learning_rate',
    'initial_learning_rate',
    'end_learning_rate',
    'pre_offset_learning_rate',
    'warmup_learning_rate',
)
# Settings that may be left empty, by their type, and what a value of each is like.
_OPTIONAL = {Optional[float]: float, Optional[optimization.EMAConfig]: optimization.EMAConfig}
_PACKAGE = pathlib.Path(__file__).resolve().parent
# The repository's, or what setup.py put into an installed package.
CONFIGS_DIR = _PACKAGE.parent / 'configs'
if not (CONFIGS_DIR / 'own_data.yaml').is_file():
    CONFIGS_DIR = _PACKAGE / 'config_files'


@dataclasses.dataclass
class Flags:
    """What a command line says of an experiment and its data; the flags' own names and defaults.

    A command has the flags that it can use; the others keep their defaults.
    """

    dataset: str
    data_dir: Optional[str] = None
    share: Optional[float] = None
    split_seed: Optional[int] = None
    group_by: Optional[str] = None
    annotations: Sequence[str] = ()
    crowds: Optional[str] = None
    objects: Optional[str] = None
    skip_bad_annotations: bool = False
    model_dir: Optional[str] = None
    config_file: Optional[str] = None
    params_override: Sequence[str] = ()
    gan: Optional[str] = None
    seed: Optional[int] = None
    skip_bad: bool = False
    cache_dir: str = dataclasses.field(default_factory=cli.default_cache_dir)
    max_instances: Optional[int] = None
    on_nonfinite: Optional[str] = None
    patience: Optional[int] = None
    deterministic: bool = False
    weights: Optional[str] = None

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> 'Flags':
        """Those of `arguments` that are about the experiment."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: x for name, x in vars(arguments).items() if name in names})


def load_dataset(flags: Flags) -> base.Dataset:
    """The data set of the flags; says loudly when it is the demo set."""
    dataset = readers.load_dataset(flags.dataset, flags.data_dir, options.from_flags(flags))
    if dataset.notice:
        print(f'\n{"!" * 88}\n{dataset.notice}\n{"!" * 88}\n', flush=True)
    return dataset


def load_config(flags: Flags, dataset: base.Dataset) -> config_definitions.ExperimentConfig:
    """The experiment's settings from file, overrides and flags, in this order."""
    config = exp_factory.get_exp_config(configs.EXPERIMENT)
    path = pathlib.Path(flags.config_file or default_config_file(dataset))
    if not path.is_file():
        raise UserError(f'--config_file {path} is not there; see {CONFIGS_DIR} for others')
    override(config, read(path), str(path))
    overrides = [_parse_overrides(text) for text in flags.params_override]
    file_batch = config.task.train_data.global_batch_size
    for values in overrides:
        override(config, values, '--params_override')
    scale_learning_rate(config, file_batch, overrides)
    _apply_flags(config.task, flags)
    config.task.model.num_classes = len(dataset.class_names) + 1
    configs.check(config.task)
    config.task.backbone_weights = os.path.expanduser(config.task.backbone_weights)
    if not (config.task.backbone_weights or config.task.weights):
        # Frozen random layers and BatchNorm that never sees a statistic would learn nothing.
        config.task.model.backbone.resnet.freeze_stages = 0
        config.task.model.backbone.resnet.bn_trainable = True
    return config


def check_training(config: config_definitions.ExperimentConfig) -> None:
    """Raises UserError where a number that training alone uses cannot be one."""
    data, trainer = config.task.train_data, config.trainer
    for key, value, least in (
        ('task.train_data.global_batch_size', data.global_batch_size, 1),
        ('task.train_data.shuffle_buffer_size', data.shuffle_buffer_size, 1),
        ('task.train_data.expand_to', data.expand_to, 0),
        ('trainer.train_steps', trainer.train_steps, 1),
        ('trainer.steps_per_loop', trainer.steps_per_loop, 1),
        ('trainer.summary_interval', trainer.summary_interval, 1),
        ('trainer.max_to_keep', trainer.max_to_keep, 1),
        ('trainer.checkpoint_interval', trainer.checkpoint_interval, 0),
        ('trainer.validation_interval', trainer.validation_interval, 0),
        ('--patience (task.patience)', config.task.patience, 0),
    ):
        if value < least:
            raise UserError(f'{key} is {value}, but at least {least} is wanted')
    ema = trainer.optimizer_config.ema
    if ema is not None and not 0 <= ema.average_decay < 1:
        raise UserError(
            f'trainer.optimizer_config.ema.average_decay is {ema.average_decay}, not from 0 to '
            'below 1'
        )


def _apply_flags(task: configs.GanMaskRCNNTask, flags: Flags) -> None:
    """Sets what has a flag of its own."""
    task.dataset, task.data_dir = flags.dataset, flags.data_dir or ''
    chosen = options.from_flags(flags)
    for name in options.FLAGS:
        setattr(task, name, getattr(chosen, name))
    task.share, task.annotations = chosen.share or 0.0, list(chosen.annotations)
    task.skip_bad = flags.skip_bad
    task.cache_dir = paths.expand_home(flags.cache_dir, '--cache_dir')
    task.deterministic |= flags.deterministic
    if flags.gan is not None:
        task.gan.mode = flags.gan
    if flags.weights is not None:
        task.weights = flags.weights
    if flags.seed is not None:
        task.seed = flags.seed
    if flags.max_instances is not None:
        task.train_data.parser.max_num_instances = flags.max_instances
    if flags.on_nonfinite is not None:
        task.nonfinite.policy = flags.on_nonfinite
    if flags.patience is not None:
        task.patience = flags.patience


def saved_config(path: pathlib.Path) -> config_definitions.ExperimentConfig:
    """The settings that a run has noted in its `params.yaml`, or published with its weights."""
    if not path.is_file():
        raise UserError(f'{path} is not there: not the folder of a run')
    config = exp_factory.get_exp_config(configs.EXPERIMENT)
    override(config, read(path), str(path))
    return config


def read(path: pathlib.Path) -> Any:
    """What a YAML file says, or published weights of the run that they are from.

    Raises:
      UserError: it cannot be read.
    """
    if path.suffix == published.SUFFIX:
        return weights_file.read_notes(str(path))['settings']
    return yaml_files.parse(path.read_bytes(), str(path)) or {}


def scale_learning_rate(config, file_batch: int, overrides: Sequence[Mapping[str, Any]]) -> None:
    """Linear rule: rates that are right for `file_batch` images a step, times the batch's ratio.

    Goyal et al., Accurate, Large Minibatch SGD (2017). Nothing is changed where `overrides` give a
    rate: it was chosen for that batch.
    """
    batch = config.task.train_data.global_batch_size
    chosen = [values.get('trainer', {}).get('optimizer_config', {}) for values in overrides]
    if batch == file_batch or not file_batch or any(_has_rate(values) for values in chosen):
        return
    config.task.learning_rate_batch = file_batch
    scale_rates(config, batch / file_batch)


def first_rate(config) -> float:
    """The learning rate after the warm-up."""
    schedule = config.trainer.optimizer_config.learning_rate.get()
    rate = next(getattr(schedule, name) for name in RATES if hasattr(schedule, name))
    return rate[0] if isinstance(rate, list) else rate


def _has_rate(values: Mapping[str, Any]) -> bool:
    return any(
        _has_rate(value) if isinstance(value, Mapping) else name in RATES
        for name, value in values.items()
    )


def default_model_dir(config, dataset: base.Dataset) -> str:
    """Folder of a run for which none is given."""
    return f'runs/{dataset.name}-{config.task.gan.mode}'


def default_config_file(dataset: base.Dataset) -> pathlib.Path:
    """The paper's settings for its data sets, those for two CPU cores for the demo set."""
    path = CONFIGS_DIR / f'{dataset.name}{"_small" if dataset.is_demo else ""}.yaml'
    return path if path.is_file() else CONFIGS_DIR / 'own_data.yaml'


def override(config: hyperparams.Config, values: Mapping[str, Any], source: str) -> None:
    """Sets `values`, a nested mapping, in `config`.

    Raises:
      UserError: naming an unknown key and the valid ones, or a value of the wrong kind.
    """
    if isinstance(values, Mapping) and isinstance(values.get('task'), Mapping):
        values = {**values, 'task': yaml_files.up_to_date(values['task'])}
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
    kinds = {field.name: field.type for field in dataclasses.fields(config)}
    for name, value in values.items():
        key = f'{prefix}{name}'
        if name not in kinds:
            raise UserError(f'{source}: unknown key {key}; valid here: {", ".join(sorted(kinds))}')
        current = getattr(config, name)
        if current is None and kinds[name] in _OPTIONAL:
            current = _OPTIONAL[kinds[name]]()
        if isinstance(current, hyperparams.Config) and value is not None:
            _check_keys(current, value, f'{key}.', source)
        elif not _same_kind(current, value):
            raise UserError(
                f'{source}: {key} is {value!r}, but a {type(current).__name__} like {current!r} is '
                'wanted'
            )


def _same_kind(current, value) -> bool:
    if (
        current is None
        or value is None
        or isinstance(current, (list, tuple)) != isinstance(value, (list, tuple))
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
