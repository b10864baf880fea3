# SPDX-License-Identifier: Apache-2.0
"""A training run's folder: its checkpoints, its settings, and its network ready for inference."""

import dataclasses
import os
import pathlib
from typing import Any, NamedTuple, Optional, Union

import tensorflow as tf
from google.protobuf import message
from official.core import train_utils
from official.vision.ops import preprocess_ops

import gan_mrcnn
from gan_mrcnn import configs, settings
from gan_mrcnn import task as task_lib
from gan_mrcnn.data.readers import base
from gan_mrcnn.data.readers import options as data_options
from gan_mrcnn.modeling import weights_file
from gan_mrcnn.prediction import exported, model_card, signatures, tta
from gan_mrcnn.prediction import predictor as predictor_lib
from gan_mrcnn.utils import cli, paths, yaml_files
from gan_mrcnn.utils.errors import UserError

SCORE_THRESHOLD = 0.5
PARAMS_NAME = 'params.yaml'
# Of checkpoints that are no paths.
NAMES = ('best', 'last')
# The generator with the averages of its weights, in a checkpoint of a run that keeps some.
_AVERAGED = 'averaged_model'


def find_checkpoint(model_dir: str, which: str) -> str:
    """Path of a checkpoint.

    Args:
      model_dir: of the run.
      which: 'best' (by validation mask AP; the last where there was no validation), 'last', or a
        path.

    Raises:
      UserError: there is no such checkpoint.
    """
    if which not in NAMES:
        if not os.path.isfile(f'{which}.index'):
            raise UserError(f'--checkpoint {which}: there is no {which}.index')
        return which
    folders = [f'{model_dir}/best', model_dir] if which == 'best' else [model_dir]
    for folder in folders:
        try:
            path = newest_named(folder)
        except (ValueError, tf.errors.OpError) as error:
            raise UserError(
                f'{folder}/checkpoint is damaged; give the path of a file there by --checkpoint'
            ) from error
        if path:
            return path
    raise UserError(
        f'--model_dir {model_dir} holds no checkpoint; train first, or give another folder'
    )


def newest_named(folder: str) -> Optional[str]:
    """The checkpoint that `folder` names as its newest, None without one.

    `tf.train.latest_checkpoint` for any folder; also for one that was moved since.

    Raises:
      ValueError, tf.errors.OpError: the list of the folder's checkpoints is damaged.
    """
    with paths.plain_folder(folder) as plain:
        state = tf.train.get_checkpoint_state(plain)
    if state is None:
        return None
    path = os.path.join(folder, os.path.basename(state.model_checkpoint_path))
    return path if os.path.isfile(f'{path}.index') else None


def restore(model, path: str, as_trained: bool = False, **others) -> None:
    """Reads the weights of `model`, and of `others` by their names in the checkpoint.

    Where the run keeps averages of the weights, these are read; `as_trained` reads those that
    training goes on with.

    Raises:
      UserError: the checkpoint holds another network, or cannot be read.
    """
    try:
        with paths.plain_checkpoint(path) as plain:
            names = tf.train.load_checkpoint(plain).get_variable_to_shape_map()
            has_averages = any(name.startswith(f'{_AVERAGED}/') for name in names)
            name = _AVERAGED if has_averages and not as_trained else 'model'
            checkpoint = tf.train.Checkpoint(**{name: model}, **others)
            status = checkpoint.read(plain).expect_partial()
            status.assert_existing_objects_matched()
    except (AssertionError, ValueError) as error:
        raise UserError(
            f'{path} holds another network than the settings describe '
            f'({" ".join(str(error).split())[:200]}); give the --config_file it was trained with'
        ) from error
    except (tf.errors.OpError, message.Error, UnicodeError, LookupError, TypeError) as error:
        raise UserError(
            f'{path} is damaged ({" ".join(str(error).split())[:200]}); give another --checkpoint'
        ) from error


def restored_model(task: task_lib.GanMaskRCNNTask, path: str) -> tf.keras.Model:
    """The generator with the weights at `path`; `task` gets what its detections need beside it.

    Raises:
      UserError: see `restore`.
    """
    model, others = task.build_model(), {}
    if task.rescores:
        task.build_box_discriminator()
        others['box_discriminator'] = task.box_discriminator
    restore(model, path, **others)
    return model


def published_model(task: task_lib.GanMaskRCNNTask, path: str) -> tf.keras.Model:
    """The generator with published weights.

    Raises:
      UserError: they cannot be read, are of another network, or detections depend on more.
    """
    if task.rescores:
        raise UserError(
            f'{path} has no box discriminator, which task.gan.rescore_exponent wants; set it to 0'
        )
    model = task.build_model()
    weights_file.load(model, path)
    return model


def step_of(path: str) -> int:
    """The training step that a checkpoint was saved at.

    Raises:
      UserError: it holds no step, or cannot be read.
    """
    try:
        with paths.plain_checkpoint(path) as plain:
            return int(train_utils.read_global_step_from_checkpoint(plain))
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise UserError(f'{path} holds no training step; give another --checkpoint') from error


def use_saved_settings(
    flags: settings.Flags, saved_model: Optional[str] = None, weights: Optional[str] = None
) -> None:
    """Fills `flags` with the settings of a run, where they do not say otherwise.

    Those are its configuration, where its data were and how they were split: with another split,
    images that were trained on would be among those of the validation.

    Args:
      flags: `model_dir` is that of the run.
      saved_model: of an export, whose settings are taken in place of the run's.
      weights: path of published weights, the same.

    Raises:
      UserError: run or export have no settings, and the flags name none.
    """
    if weights:
        path = pathlib.Path(weights)
    elif saved_model:
        path = exported.assets_of(saved_model) / model_card.PARAMS
    else:
        path = pathlib.Path(flags.model_dir) / PARAMS_NAME
    if not path.is_file():
        if flags.config_file is not None:
            return
        raise UserError(
            f'--saved_model {saved_model} has no {path.name} among its assets'
            if saved_model
            else f'--model_dir {flags.model_dir} has no {PARAMS_NAME}: not the folder of a run'
        )
    if flags.config_file is None:
        flags.config_file = str(path)
    saved = (
        yaml_files.task_of(settings.read(path), weights) if weights else yaml_files.read_task(path)
    )
    if saved['dataset'] != flags.dataset:
        return
    for name in ('data_dir', *data_options.FLAGS):
        if not getattr(flags, name):
            setattr(flags, name, saved.get(name) or None)


class Opened(NamedTuple):
    """A trained network with all that is known of it.

    model: `generator.Generator` with its weights, in float32 whatever it was trained in.
    card: what its numbers mean.
    config: of its run.
    dataset: of its run; None for published weights.
    box_discriminator: where detections depend on it.
    """

    model: tf.keras.Model
    card: model_card.ModelCard
    config: Any
    dataset: Optional[base.Dataset] = None
    box_discriminator: Optional[tf.keras.Model] = None

    def module(self) -> signatures.InferenceModule:
        """The network from encoded images to detections."""
        return self._module(self.config.task)

    def predictor(
        self, augmentation: Optional[str] = None
    ) -> Union[predictor_lib.Predictor, tta.AugmentedPredictor]:
        """The network, called as an export is.

        Args:
          augmentation: a key of `tta.ORIENTATIONS`; None for images as they are.
        """
        upright = self._predictor(self.config.task, predictor_lib.SIGNATURES)
        if augmentation is None:
            return upright
        sideways = upright
        if any(one.turns % 2 for one in tta.ORIENTATIONS[augmentation]):
            height, width, channels = self.config.task.model.input_size
            turned = self.config.task.replace(model={'input_size': [width, height, channels]})
            sideways = self._predictor(turned, ('image_tensor',))
        return tta.AugmentedPredictor(upright, augmentation, sideways)

    def _module(self, task) -> signatures.InferenceModule:
        return signatures.InferenceModule(
            self.model, task, self.card.score_threshold, self.box_discriminator
        )

    def _predictor(self, task, names) -> predictor_lib.Predictor:
        module = self._module(task)
        return predictor_lib.Predictor(module.signatures(names=names), self.card, module)


def open_run(
    model_dir: str,
    checkpoint: str = 'best',
    score_threshold: float = SCORE_THRESHOLD,
    data_dir: Optional[str] = None,
) -> Opened:
    """The generator of a run with its weights.

    Args:
      model_dir: of the run.
      checkpoint: 'best', 'last' or a path.
      score_threshold: see `model_card.ModelCard`.
      data_dir: where the data set is now; the class names are read from it.

    Raises:
      UserError: the run, its checkpoint or its data set is missing, or the checkpoint is of
        another network.
    """
    cli.check_score(score_threshold)
    flags = _flags_of(model_dir, data_dir)
    path = find_checkpoint(model_dir, checkpoint)
    dataset = settings.load_dataset(flags)
    config = settings.load_config(flags, dataset)
    task = task_lib.GanMaskRCNNTask(config.task)
    model = restored_model(task, path)
    card = make_card(config.task, dataset, path, score_threshold)
    return Opened(model, card, config, dataset, task.box_discriminator)


def open_published(path: str, score_threshold: Optional[float] = None) -> Opened:
    """The generator of published weights; no data set is needed.

    Args:
      path: of the file, see `published.find`.
      score_threshold: see `model_card.ModelCard`; None for that of the weights.

    Raises:
      UserError: the file cannot be read, or is not what `gan-mrcnn publish` writes.
    """
    cli.check_score(score_threshold)
    config = settings.saved_config(pathlib.Path(path))
    configs.check(config.task)
    card = model_card.from_values(weights_file.read_notes(path)['card'], path)
    if score_threshold is not None:
        card = dataclasses.replace(card, score_threshold=score_threshold)
    return Opened(published_model(task_lib.GanMaskRCNNTask(config.task), path), card, config)


def make_card(
    task_config, dataset, path: str, score_threshold: float = SCORE_THRESHOLD
) -> model_card.ModelCard:
    """The card of the checkpoint at `path`."""
    return model_card.ModelCard(
        class_names=tuple(dataset.class_names),
        category_ids=tuple(dataset.category_ids),
        score_threshold=score_threshold,
        input_size=tuple(task_config.model.input_size[:2]),
        short_side=task_config.validation_data.parser.test_short_side,
        mean_rgb=tuple(preprocess_ops.MEAN_RGB),
        stddev_rgb=tuple(preprocess_ops.STDDEV_RGB),
        checkpoint=pathlib.Path(path).name,
        step=step_of(path),
        version=gan_mrcnn.__version__,
        micrometres_per_pixel=task_config.micrometres_per_pixel or dataset.micrometres_per_pixel,
        image_size=dataset.image_size,
    )


def _flags_of(model_dir: str, data_dir: Optional[str]) -> settings.Flags:
    """The flags that evaluation would be given for this run."""
    params = pathlib.Path(model_dir) / PARAMS_NAME
    if not params.is_file():
        raise UserError(f'--model_dir {model_dir} has no {PARAMS_NAME}: not the folder of a run')
    task = yaml_files.read_task(params)
    flags = settings.Flags(
        dataset=task['dataset'],
        model_dir=model_dir,
        data_dir=data_dir,
        cache_dir=str(task.get('cache_dir', '')),
    )
    use_saved_settings(flags)
    return flags
