# SPDX-License-Identifier: Apache-2.0
"""Trains this project's baseline by a plan of `peer_torchvision.py` and writes its predictions.

The counterpart of `_torchvision_worker.py`: the same files come out. The network, its losses and
its step are those of `train.py --gan baseline` with `configs/gland_small.yaml`; the plan takes the
place of the input pipeline, because both networks must see the same pixels in the same order.
"""

import argparse
import json
import pathlib
import statistics
import time

import _peer_plan as peer
import numpy as np
import tensorflow as tf
import yaml
from official.core import exp_factory

from gan_mrcnn import configs
from gan_mrcnn import task as task_lib
from gan_mrcnn.data import input_pipeline
from gan_mrcnn.data.records import mask_crops
from gan_mrcnn.metrics import predictions
from gan_mrcnn.utils import files, run_lengths

_CONFIG = pathlib.Path(__file__).resolve().parents[1] / 'configs' / 'gland_small.yaml'


def build_task(settings, seed):
    """The baseline's task with the plan's numbers."""
    config = exp_factory.get_exp_config(configs.EXPERIMENT)
    config.override(yaml.safe_load(_CONFIG.read_text(encoding='utf-8')))
    config.task.override(
        {
            'seed': seed,
            'gan': {'mode': 'baseline'},
            'backbone_weights': settings['backbone'],
            'losses': {'l2_weight_decay': settings['weight_decay']},
            'model': {
                'num_classes': 2,
                'input_size': [*settings['canvas'], 3],
                'backbone': {
                    'resnet': {
                        'model_id': 34,
                        'freeze_stages': {3: 2, 4: 1, 5: 0}[settings['trainable_layers']],
                    },
                },
                # The paper's coco_boxes; the small configuration has half of them.
                'decoder': {'fpn': {'num_filters': 256}},
                'rpn_head': {'num_filters': 256},
                'detection_head': {'fc_dims': 1024},
                'mask_head': {'num_filters': 256},
                'roi_generator': {
                    'pre_nms_top_k': settings['pre_nms'],
                    'test_pre_nms_top_k': settings['pre_nms'],
                    'num_proposals': settings['proposals'],
                    'test_num_proposals': settings['proposals'],
                },
                'roi_sampler': {'num_sampled_rois': settings['rois']},
                'mask_sampler': {'num_sampled_masks': settings['rois'] // 4},
            },
            'train_data': {'parser': {'rpn_batch_size_per_im': settings['anchors']}},
        }
    )
    return task_lib.GanMaskRCNNTask(config.task)


def make_parser(task, short_side):
    """A parser that leaves an image of that shorter side as large as it is."""
    params = configs.Parser(**task.task_config.train_data.parser.as_dict())
    params.override({'aug_rand_hflip': False, 'train_short_side': [short_side, short_side]})
    return input_pipeline.Parser(task.task_config.model, params, task.task_config.seed)


def make_batch(task, entries, first_number):
    """Images and labels of one step; the plan has flipped and scaled them already."""
    examples = []
    for number, entry in enumerate(entries, start=first_number):
        image, masks, boxes = peer.training_example(entry, task.task_config.model.input_size[:2])
        height, width = image.shape[:2]
        # [x, y, width, height].
        coco_boxes = np.concatenate(
            [boxes[:, 1::-1], (boxes[:, 2:] - boxes[:, :2])[:, ::-1]], axis=1
        )
        data = {
            'image': tf.constant(image),
            'source_id': tf.constant('1'),
            'groundtruth_boxes': tf.constant(boxes / [height, width, height, width], tf.float32),
            'groundtruth_classes': tf.ones([len(boxes)], tf.int64),
            'groundtruth_is_crowd': tf.zeros([len(boxes)], tf.bool),
            'groundtruth_mask_crops': mask_crops.decode(
                tf.constant(mask_crops.encode(run_lengths.encode_masks(masks), coco_boxes))
            ),
        }
        parser = make_parser(task, min(height, width))
        examples.append(parser.parse_train(data, tf.constant(number, tf.int64)))
    images, labels = zip(*examples)
    return tf.stack(images), tf.nest.map_structure(lambda *x: tf.stack(x), *labels)


def evaluate(detect, plan, path):
    """Writes the predictions on all test images to `path`; returns the seconds it took."""
    start = time.perf_counter()
    canvas = plan['settings']['canvas']
    found = []
    for entry in plan['test']:
        image = peer.test_image(entry, canvas)
        height, width = image.shape[:2]
        size = np.array([entry['height'], entry['width']], np.float32)
        info = np.stack([size, [height, width], [height, width] / size, [0, 0]])
        detections = {name: value[0].numpy() for name, value in detect(image).items()}
        found += predictions.detections_to_coco(
            entry['image_id'],
            detections['detection_boxes'],
            detections['detection_scores'],
            detections['detection_classes'],
            detections['detection_masks'],
            info,
        )
    files.write_json(path, found, indent=None)
    return time.perf_counter() - start


def train(plan, seed, out):
    """Trains by the plan of `seed`; returns what goes into timings.json."""
    settings = plan['settings']
    tf.keras.utils.set_random_seed(seed)
    task = build_task(settings, seed)
    model = task.build_model()
    task.initialize(model)
    optimizer = tf.keras.optimizers.SGD(
        tf.Variable(0.0), momentum=settings['momentum'], jit_compile=False
    )
    optimizer.build(model.trainable_variables)
    step_function = tf.function(lambda inputs: task.train_step(inputs, model, optimizer))
    parser = make_parser(task, min(settings['canvas']))

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    def detect(image):
        image, info = parser.resize(image, tf.reduce_min(tf.shape(image)[:2]))
        outputs = model(image[tf.newaxis], image_shape=info[tf.newaxis, 1], training=False)
        return {name: x for name, x in outputs.items() if name.startswith('detection_')}

    step_seconds, evaluation_seconds, losses = [], {}, []
    for step, entries in enumerate(plan['train'][str(seed)], start=1):
        inputs = make_batch(task, entries, step * settings['batch'])
        start = time.perf_counter()
        optimizer.learning_rate.assign(plan['learning_rates'][step - 1])
        losses.append(float(step_function(inputs)[task.loss]))
        step_seconds.append(time.perf_counter() - start)
        if step % 10 == 0:
            print(f'step {step}: loss {losses[-1]:.3f}, {step_seconds[-1]:.2f} s', flush=True)
        if step in settings['eval_steps']:
            path = out / f'predictions_step{step}.json'
            evaluation_seconds[step] = evaluate(detect, plan, path)
    return {
        'system': f'gan-mrcnn, tensorflow {tf.__version__}',
        'median_step_seconds': statistics.median(step_seconds),
        'step_seconds': step_seconds,
        'evaluation_seconds': evaluation_seconds,
        'losses': losses,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--plan', required=True, help='plan file of peer_torchvision.py')
    parser.add_argument('--seed', type=int, required=True, help='one of the seeds of the plan')
    parser.add_argument('--out', type=pathlib.Path, required=True, help='folder to write into')
    flags = parser.parse_args()
    plan = peer.load_plan(flags.plan)
    flags.out.mkdir(parents=True, exist_ok=True)
    timings = train(plan, flags.seed, flags.out)
    (flags.out / 'timings.json').write_text(json.dumps(timings, indent=1), encoding='utf-8')


if __name__ == '__main__':
    main()
