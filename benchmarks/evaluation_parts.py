# SPDX-License-Identifier: Apache-2.0
"""Images per second of the parts of evaluate.py before any metric: input, network, pasting, all.

    python benchmarks/evaluation_parts.py [--run RUN | --config_file F] [--images 64] [--batch B]
        [--json F]

Noise of the glands' size (522 x 775) goes through the evaluation's own input, network and
collector, on whatever device there is. With `--run` the network has trained weights; without,
weights are random and nearly every row is a detection, up to 100 an image, which is the worst case.
How many there were, and how large, is in the output. The first batch, in which the graph is traced,
is timed alone.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from gan_mrcnn import settings  # noqa: E402
from gan_mrcnn import task as task_lib  # noqa: E402
from gan_mrcnn.data.records import records  # noqa: E402
from gan_mrcnn.evaluation import run as evaluation_run  # noqa: E402
from gan_mrcnn.metrics import collector, predictions  # noqa: E402
from gan_mrcnn.prediction import checkpoint  # noqa: E402
from gan_mrcnn.utils import devices  # noqa: E402
from gan_mrcnn.utils.cores import num_cores  # noqa: E402

HEIGHT, WIDTH = 522, 775


def write_records(folder, count):
    """Records of `count` images of smooth noise, eight different ones, as a converted split."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, [8, 26, 39, 3], np.uint8)
    pngs = [
        cv2.imencode('.png', cv2.resize(one, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))[1]
        for one in coarse
    ]
    with tf.io.TFRecordWriter(f'{folder}/records-00000.tfrecord') as writer:
        for number in range(count):
            features = {
                'image/encoded': _bytes(pngs[number % len(pngs)].tobytes()),
                'image/source_id': _bytes(str(number).encode()),
                'image/height': tf.train.Feature(int64_list=tf.train.Int64List(value=[HEIGHT])),
                'image/width': tf.train.Feature(int64_list=tf.train.Int64List(value=[WIDTH])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())
    return records.RecordSet(
        f'{folder}/records-*.tfrecord', count, 0, [1, 1], '', '', list(range(count)), [], []
    )


def _bytes(value):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def build(options):
    """The configuration, the strategy, and task and step of the evaluation."""
    path = f'{options.run}/params.yaml' if options.run else options.config_file
    config = settings.saved_config(pathlib.Path(path))
    config.task.model.num_classes = config.task.model.num_classes or 2
    if options.batch:
        config.task.validation_data.global_batch_size = options.batch
    devices.set_up(options.dtype or config.runtime.mixed_precision_dtype, deterministic=False)
    strategy = devices.mirrored_strategy()
    with strategy.scope():
        task = task_lib.GanMaskRCNNTask(config.task)
        model = task.build_model()
        if options.run:
            checkpoint.restore(model, checkpoint.find_checkpoint(options.run, 'best'))
    return config, strategy, task, evaluation_run.make_step(strategy, task, model)


def timed(function):
    """The result of a call, and its seconds on the clock."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def measure(options, record_set):
    """Images per second by part, and what they were measured on."""
    (config, strategy, task, step), seconds_to_build = timed(lambda: build(options))
    params, count = config.task.validation_data, record_set.num_examples
    record_set.feed(params)
    dataset = strategy.distribute_datasets_from_function(
        lambda context: task.build_inputs(params, context)
    )
    batches, input_seconds = timed(lambda: list(dataset))
    _, first_seconds = timed(lambda: fetch(step(batches[0])))
    steps, network_seconds = timed(lambda: [fetch(step(batch)) for batch in batches])
    images = [image for one in steps for image in split(one)]
    _, paste_seconds = timed(lambda: [predictions.detections_to_coco(*one) for one in images])
    _, thread_seconds = timed(lambda: collect(images))
    found, whole_seconds = timed(
        lambda: evaluation_run.predict(config, task, step, record_set, strategy)
    )
    areas = [one['bbox'][2] * one['bbox'][3] for one in found]
    seconds = {
        'input': input_seconds,
        'network': network_seconds,
        'paste, one thread': paste_seconds,
        'paste, threads': thread_seconds,
        'whole': whole_seconds,
    }
    # Images that fill the last batch go through input and network, too.
    return {
        'images_per_second': {name: count / value for name, value in seconds.items()},
        'seconds': {'build': seconds_to_build, 'first batch': first_seconds, **seconds},
        'detections_per_image': len(found) / count,
        'mean_box_side': float(np.sqrt(np.mean(areas))) if areas else None,
        'images': count,
        'batch': params.global_batch_size,
        'device': device_name(),
        'cores': num_cores(),
        'tensorflow': tf.__version__,
    }


def fetch(outputs):
    """A step's outputs as arrays."""
    return tf.nest.map_structure(np.asarray, outputs)


def split(outputs):
    """Arguments of `detections_to_coco` for each image of a step's arrays."""
    labels, found = outputs['labels'], outputs['detections']
    for replica, ids in enumerate(labels['source_id']):
        parts = [found[name][replica] for name in ('boxes', 'scores', 'classes', 'masks')]
        for i, image_id in enumerate(ids):
            if image_id >= 0:
                yield (int(image_id), *(x[i] for x in parts), labels['image_info'][replica][i])


def collect(images):
    """Results as the evaluation makes them."""
    with collector.Collector() as found:
        for image in images:
            found.add(*image)
        return found.results()


def device_name():
    gpus = tf.config.list_physical_devices('GPU')
    if not gpus:
        return 'CPU'
    return tf.config.experimental.get_device_details(gpus[0]).get('device_name', 'GPU')


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--run', help='a run whose trained weights are used')
    parser.add_argument('--config_file', default='configs/gland.yaml')
    parser.add_argument('--images', type=int, default=64)
    parser.add_argument('--batch', type=int, help='default: the configuration')
    parser.add_argument('--dtype', help='of mixed precision; default: the configuration')
    parser.add_argument('--json', help='where the figures go')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options, write_records(folder, options.images))
    text = json.dumps(results, indent=1)
    print(text)
    if options.json:
        pathlib.Path(options.json).write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
