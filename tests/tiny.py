"""The smallest network that still has every part, images for it, and runs of it in this process.

What a test wants otherwise it says as an override, so that every other setting stands here once.
"""

import contextlib
import dataclasses
import hashlib
import pathlib

import numpy as np
import tensorflow as tf
import yaml
from pycocotools import mask as mask_api

from gan_mrcnn import configs, settings
from gan_mrcnn import task as task_lib
from gan_mrcnn.data import input_pipeline
from gan_mrcnn.data.readers import base
from gan_mrcnn.data.records import mask_crops
from gan_mrcnn.training import run as training_run
from gan_mrcnn.utils import run_lengths

# Without learning rates, so that it can follow any data set's own file.
SETTINGS = """
task:
  model:
    input_size: [64, 64, 3]
    backbone: {resnet: {model_id: 18}}
    decoder: {fpn: {num_filters: 32}}
    rpn_head: {num_filters: 32}
    detection_head: {fc_dims: 32}
    mask_head: {num_convs: 1, num_filters: 32}
    roi_generator: {num_proposals: 20, test_num_proposals: 20}
    roi_sampler: {num_sampled_rois: 16}
    mask_sampler: {num_sampled_masks: 4}
    detection_generator: {max_num_detections: 10}
  gan: {num_layers: 3}
  train_data:
    global_batch_size: 2
    expand_to: 0
    shuffle_buffer_size: 3
    parser: {train_short_side: [32, 40], aug_rand_hflip: true, max_num_instances: 5}
  validation_data:
    global_batch_size: 2
    parser: {test_short_side: 32}
trainer:
  train_steps: 2
  steps_per_loop: 1
  summary_interval: 1
  checkpoint_interval: 2
  validation_interval: 2
"""
# Goes on where `SETTINGS` ends: a warm-up and a lower rate within a few steps.
SCHEDULE = """
  optimizer_config:
    learning_rate:
      type: stepwise
      stepwise: {boundaries: [2], values: [0.01, 0.001]}
    warmup:
      type: linear
      linear: {warmup_steps: 2, warmup_learning_rate: 0.001}
"""

# One network, to be stepped by hand.

SIZE = (64, 128)


# All settings of a stronger game at once.
STRONGEST = {
    'box_loss': 'hinge',
    'normalization': 'spectral',
    'r1': 3.0,
    'mask_judgement': 'pixel',
    'ramp': 0.5,
}


def make_task_config(mode='combined', gan=None, **losses) -> configs.GanMaskRCNNTask:
    """Three classes, images of `SIZE`, everything trained."""
    config = configs.GanMaskRCNNTask()
    model = yaml.safe_load(SETTINGS)['task']['model']
    resnet = {**model['backbone']['resnet'], 'bn_trainable': True, 'freeze_stages': 0}
    model.update(num_classes=3, input_size=[*SIZE, 3], backbone={'resnet': resnet})
    gan = {'mode': mode, 'num_layers': 3, **(gan or {})}
    config.override({'model': model, 'gan': gan, 'losses': losses})
    return config


def make_task(mode='combined', gan=None, **losses):
    """A task and its generator, drawn from a seed; with discriminators where the mode has some."""
    tf.keras.utils.set_random_seed(0)
    task = task_lib.GanMaskRCNNTask(make_task_config(mode, gan, **losses), train_steps=16)
    model = task.build_model()
    if task.has_discriminators:
        task.build_discriminators(sgd())
    return task, model


def sgd(rate=0.01) -> tf.keras.optimizers.Optimizer:
    return tf.keras.optimizers.SGD(rate, momentum=0.9)


def make_batch(config, num_objects=3, batch_size=2, side=30, apart=40):
    """Images with bright squares of some pixels' side, through the real parser."""
    parser_config = configs.Parser(train_short_side=[64, 64], max_num_instances=5)
    parser = input_pipeline.Parser(config.model, parser_config, seed=5)
    rng = np.random.default_rng(0)
    examples = []
    for number in range(batch_size):
        image = rng.integers(0, 60, [*SIZE, 3]).astype(np.uint8)
        masks, boxes, bboxes = [], [], []
        for i in range(num_objects):
            y, x = 5 + 3 * i, 4 + apart * i
            image[y : y + side, x : x + side] += 150
            mask = np.zeros(SIZE, np.uint8)
            mask[y : y + side, x : x + side] = 1
            masks.append(mask)
            bboxes.append([x, y, side, side])
            boxes.append([y / 64, x / 128, (y + side) / 64, (x + side) / 128])
        data = {
            'image': tf.constant(image),
            'source_id': tf.constant(str(100 + number)),
            'groundtruth_boxes': tf.reshape(tf.constant(boxes, tf.float32), [-1, 4]),
            'groundtruth_classes': tf.constant([1 + i % 2 for i in range(num_objects)], tf.int64),
            'groundtruth_is_crowd': tf.zeros([num_objects], tf.bool),
            'groundtruth_mask_crops': mask_crops.decode(
                tf.constant(mask_crops.encode(run_lengths.encode_masks(masks), bboxes))
            ),
        }
        examples.append(parser.parse_train(data, tf.constant(number, tf.int64)))
    images, labels = zip(*examples)
    return tf.stack(images), tf.nest.map_structure(lambda *x: tf.stack(x), *labels)


# Runs.

HEIGHT, WIDTH = 64, 96
STEPS = 4


class Rectangles(base.Dataset):
    """Bright rectangles in noise; an odd number of images in every split, against full batches."""

    name = 'rectangles'
    class_names = ('rectangle',)
    splits = ('train', 'val', 'test')
    notice = 'RECTANGLES: not tissue'
    ids = {'train': range(1, 6), 'val': range(6, 7), 'test': range(7, 10)}

    def items(self, split):
        return [base.Item(image_id, f'{image_id}.png') for image_id in self.ids[split]]

    def fingerprint(self, split):
        return hashlib.sha256(f'{self.name} {split}'.encode()).hexdigest()

    def read(self, item):
        rng = np.random.default_rng(item.image_id)
        image = rng.integers(0, 60, [HEIGHT, WIDTH, 3]).astype(np.uint8)
        masks = np.zeros([2, HEIGHT, WIDTH], np.uint8)
        for i in range(2):
            y, x = rng.integers(0, 30), 45 * i + rng.integers(0, 15)
            masks[i, y : y + 30, x : x + 30] = 1
            image[y : y + 30, x : x + 30] += 150
        return base.Example(
            image_id=item.image_id,
            file_name=item.file_name,
            image=image,
            rles=run_lengths.encode_masks(masks),
            classes=np.ones(2, np.int32),
            is_crowd=np.zeros(2, bool),
        )


class Turned(Rectangles):
    """The images of which the number can be divided by `step` are upright."""

    name = 'turned'

    def __init__(self, step):
        self.step = step

    def fingerprint(self, split):
        return f'{self.step} {super().fingerprint(split)}'

    def read(self, item):
        example = super().read(item)
        if item.image_id % self.step:
            return example
        masks = mask_api.decode(example.rles).transpose(2, 1, 0)
        return dataclasses.replace(
            example,
            image=np.ascontiguousarray(example.image.swapaxes(0, 1)),
            rles=run_lengths.encode_masks(np.ascontiguousarray(masks)),
        )


DATASET = Rectangles()


def make_config(folder: pathlib.Path, *overrides):
    """Settings of a run on images of `SIZE` whose cache is in `folder`."""
    path = folder / 'tiny.yaml'
    path.write_text(SETTINGS + SCHEDULE)
    flags = settings.Flags(
        dataset='gland',
        config_file=str(path),
        params_override=[
            f'task.model.input_size=[{SIZE[0]}, {SIZE[1]}, 3]',
            '{task: {train_data: {parser: {train_short_side: [50, 64]}}}}',
            'task.validation_data.parser.test_short_side=64',
            f'trainer.validation_interval={STEPS}',
            *overrides,
        ],
        seed=3,
        cache_dir=str(folder / 'cache'),
    )
    return settings.load_config(flags, DATASET)


@contextlib.contextmanager
def eager_steps():
    """No graphs: tracing one takes as long as ten steps, too long for what is done after a step."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def train(folder: pathlib.Path, name: str, steps: int, mode='train', *overrides) -> pathlib.Path:
    """Trains on to `steps` in `folder`/`name`, which is returned."""
    # Draws of whatever ran before in this process must not matter.
    tf.random.set_seed(steps)
    config = make_config(folder, f'trainer.train_steps={steps}', *overrides)
    training_run.train(config, DATASET, str(folder / name), mode)
    return folder / name


def values(path) -> dict[str, np.ndarray]:
    """Every value of a checkpoint by its key, but for the graph and the number of savings."""
    reader = tf.train.load_checkpoint(str(path))
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if not name.startswith(('_CHECKPOINTABLE_OBJECT_GRAPH', 'save_counter'))
    }


def last_values(model_dir: pathlib.Path) -> dict[str, np.ndarray]:
    """Of the newest checkpoint of a run."""
    return values(tf.train.latest_checkpoint(str(model_dir)))
