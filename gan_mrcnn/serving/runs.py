# SPDX-License-Identifier: Apache-2.0
"""A training run's folder as a network that is ready to be exported or run."""

import argparse
import os
import pathlib
from typing import Any, Optional

import tensorflow as tf
from official.core import train_utils
from official.vision.ops import preprocess_ops

import gan_mrcnn
from gan_mrcnn import evaluating, experiment, yaml_files
from gan_mrcnn import task as task_lib
from gan_mrcnn.datasets import options as data_options
from gan_mrcnn.errors import UserError
from gan_mrcnn.serving import about as about_lib
from gan_mrcnn.serving import inference

SCORE_THRESHOLD = 0.5


def load_run(
    model_dir: str,
    checkpoint: str = 'best',
    score_threshold: float = SCORE_THRESHOLD,
    data_dir: Optional[str] = None,
) -> tuple[inference.InferenceModule, about_lib.About, Any]:
    """The generator of a run with its weights, in float32 whatever it was trained in.

    Args:
      model_dir: of the run.
      checkpoint: 'best', 'last' or a path.
      score_threshold: see `about.About`.
      data_dir: where the data set is now, which knows the names of its classes.

    Returns:
      The module, what there is to know about it, and the run's configuration.

    Raises:
      UserError: no run, no checkpoint, a checkpoint of another network, or no data set.
    """
    if not 0 <= score_threshold <= 1:
        raise UserError(f'--score_threshold {score_threshold:g} is not between 0 and 1')
    flags = _flags(model_dir, data_dir)
    path = evaluating.find_checkpoint(model_dir, checkpoint)
    dataset = experiment.load_dataset(flags)
    config = experiment.load_config(flags, dataset)
    model = task_lib.GanMaskRCNNTask(config.task).build_model()
    evaluating.restore(model, path)
    about = about_lib.About(
        class_names=tuple(dataset.class_names),
        category_ids=tuple(dataset.category_ids),
        score_threshold=score_threshold,
        input_size=tuple(config.task.model.input_size[:2]),
        short_side=config.task.validation_data.parser.test_short_side,
        mean_rgb=tuple(preprocess_ops.MEAN_RGB),
        stddev_rgb=tuple(preprocess_ops.STDDEV_RGB),
        checkpoint=os.path.basename(path),
        step=_step(path),
        version=gan_mrcnn.__version__,
    )
    return inference.InferenceModule(model, config.task, score_threshold), about, config


def _step(path) -> int:
    try:
        return int(train_utils.read_global_step_from_checkpoint(path))
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise UserError(f'{path} does not say at which step it is; give another') from error


def _flags(model_dir, data_dir) -> argparse.Namespace:
    """The flags that `evaluate.py` would be given for this run."""
    params = pathlib.Path(model_dir) / 'params.yaml'
    if not params.is_file():
        raise UserError(f'--model_dir {model_dir} has no params.yaml: not the folder of a run')
    task = yaml_files.read_task(params)
    flags = argparse.Namespace(
        model_dir=model_dir,
        dataset=task['dataset'],
        data_dir=data_dir,
        config_file=None,
        params_override=[],
        gan=None,
        seed=None,
        skip_bad=False,
        cache_dir=str(task.get('cache_dir', '')),
        **dict.fromkeys(data_options.FLAGS),
    )
    evaluating.take_saved_settings(flags)
    return flags
