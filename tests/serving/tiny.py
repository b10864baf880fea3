"""A tiny run, its export, and images to send it, made once."""

import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from official.modeling import hyperparams
from PIL import Image

from gan_mrcnn import settings
from gan_mrcnn import task as task_lib
from gan_mrcnn.prediction import checkpoint
from gan_mrcnn.serving import export as export_lib
from tests import tiny
from tests.data import layouts

HERE = pathlib.Path(__file__).parent


class Exported(NamedTuple):
    """run: the folder of the run; model: `OUT/model`; version: `OUT/model/1`."""

    run: pathlib.Path
    model: pathlib.Path
    version: pathlib.Path


def export(folder):
    """A run with random weights below `folder`, and what was exported from it."""
    run = folder / 'run'
    write_run(run)
    opened = checkpoint.open_run(str(run))
    version = export_lib.export(opened.module(), opened.card, opened.config, str(folder / 'out'))
    return Exported(run, version.parent, version)


def export_once(folder):
    """`export`, unless another process has done that already."""
    done = folder / 'done'
    if not done.exists():
        folder.mkdir()
        done.write_text(str(export(folder).version))
    version = pathlib.Path(done.read_text())
    return Exported(folder / 'run', version.parent, version)


def write_run(run):
    """What training leaves behind: settings and a checkpoint."""
    run.mkdir()
    (run.parent / 'data').mkdir()
    layouts.write_label_images(run.parent / 'data')
    flags = settings.Flags(
        dataset='label_images',
        data_dir=str(run.parent / 'data'),
        share=0.6,
        params_override=[
            tiny.SETTINGS,
            'task.model.detection_generator.max_num_detections=9',
        ],
        gan='baseline',
        cache_dir=str(run.parent / 'cache'),
    )
    config = settings.load_config(flags, settings.load_dataset(flags))
    tf.keras.utils.set_random_seed(1)
    model = task_lib.GanMaskRCNNTask(config.task).build_model()
    for variable in model.variables:
        # Decided masks and scores: between equal ones, rounding would decide.
        for layer, factor in (('mask-logits', 1e4), ('detection-scores', 100)):
            if f'{layer}/kernel' in variable.name:
                variable.assign(variable * factor)
    checkpoint = tf.train.Checkpoint(model=model, global_step=tf.Variable(7, dtype=tf.int64))
    tf.train.CheckpointManager(checkpoint, str(run), 1).save(checkpoint_number=7)
    hyperparams.save_params_dict_to_yaml(config, str(run / 'params.yaml'))


def photo(size, seed=0):
    """A smooth colourful image, uint8 [H, W, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, [5, 7, 3]).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.BICUBIC))
