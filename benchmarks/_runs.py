# SPDX-License-Identifier: Apache-2.0
"""A finished run and its images, for the scripts that look into one."""

import pathlib

from gan_mrcnn import settings
from gan_mrcnn import task as task_lib
from gan_mrcnn.data import readers
from gan_mrcnn.data.records import records
from gan_mrcnn.prediction import checkpoint


def saved_task(run):
    """The task with the settings of `run`, the --model_dir of a training."""
    config = settings.saved_config(pathlib.Path(run) / checkpoint.PARAMS_NAME)
    return task_lib.GanMaskRCNNTask(config.task)


def split_inputs(task, params, split):
    """Records of a split of the task's data set, and batches of it as `params` wants them.

    Args:
      task: of `saved_task`.
      params: its `train_data` or `validation_data`.
      split: name of the split.
    """
    dataset = readers.load_dataset(task.task_config.dataset, task.task_config.data_dir or None)
    (record_set,) = records.ensure_splits(dataset, [split], task.task_config)
    record_set.feed(params)
    return record_set, task.build_inputs(params)
