# SPDX-License-Identifier: Apache-2.0
"""What the training input delivers, what training consumes, and what limits the input.

    python benchmarks/input_pipeline.py [--config_file F] [--dataset D] [--data_dir DIR] [--steps N]
    python benchmarks/input_pipeline.py --crowded 300 [--config_file configs/cityscapes.yaml]

The first measures images a second of the input alone, of a baseline and of a combined train step on
batches that are there already, one after the other on the same cores, and the milliseconds of one
core that each stage of the input takes for an image. A stage is timed by asking for what it makes
and for nothing else: TensorFlow prunes the rest. Its time is that of the processor, which others
that use the machine change less than the clock's.

The second makes images with that many objects, as large as the network's input, and reports the
peak of this process's memory while batches of them are made.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import train_step  # noqa: E402
import yaml  # noqa: E402
from official.core import exp_factory  # noqa: E402

from gan_mrcnn import configs  # noqa: E402
from gan_mrcnn import task as task_lib  # noqa: E402
from gan_mrcnn.data import input_pipeline, readers  # noqa: E402
from gan_mrcnn.data.readers import base, gland_demo  # noqa: E402
from gan_mrcnn.data.records import records  # noqa: E402
from gan_mrcnn.utils import cli, files, run_lengths  # noqa: E402
from gan_mrcnn.utils.cores import num_cores  # noqa: E402


class Crowd(base.Dataset):
    """Images of [height, width] pixels with `num_objects` overlapping blocks, another each."""

    name = 'crowd'
    class_names = ('block',)
    splits = ('train',)

    def __init__(self, size, num_objects, num_images=8):
        self._size, self._num_objects, self._num_images = tuple(size), num_objects, num_images

    def items(self, split):
        return [base.Item(number, f'{number}.png') for number in range(self._num_images)]

    def fingerprint(self, split):
        return f'{self._size}-{self._num_objects}-{self._num_images}'

    def read(self, item):
        height, width = self._size
        random = np.random.default_rng(item.image_id)

        def block():
            mask = np.zeros(self._size, np.uint8)
            y, x = random.integers(0, height - 16), random.integers(0, width - 16)
            h, w = random.integers(8, height // 4), random.integers(8, width // 4)
            mask[y : y + h, x : x + w] = 1
            return mask

        return base.Example(
            image_id=item.image_id,
            file_name=item.file_name,
            image=random.integers(0, 256, (height, width, 3), np.uint8),
            rles=run_lengths.encode_masks(block() for _ in range(self._num_objects)),
            classes=np.ones(self._num_objects, np.int32),
            is_crowd=np.zeros(self._num_objects, bool),
        )


def load_config(path, dataset, cache_dir):
    """The experiment of a YAML file on `dataset`."""
    config = exp_factory.get_exp_config(configs.EXPERIMENT)
    config.override(yaml.safe_load(pathlib.Path(path).read_text(encoding='utf-8')))
    config.task.model.num_classes = len(dataset.class_names) + 1
    (found,) = [records.ensure_records(dataset, 'train', cache_dir)]
    found.feed(config.task.train_data)
    return config


def images_per_second(dataset, batch_size, num_batches):
    """Of an endless dataset of batches, after one that warms up."""
    iterator = iter(dataset)
    next(iterator)
    start = time.perf_counter()
    for _ in range(num_batches):
        next(iterator)
    return num_batches * batch_size / (time.perf_counter() - start)


def stage_milliseconds(config, num_examples):
    """Milliseconds of one core for each stage of one example's way, and for the whole."""
    params = config.task.train_data
    # What most pictures are.
    canvas = input_pipeline.training_canvases(config.task.model, params)[0]
    parser = input_pipeline.Parser(config.task.model, params.parser, seed=0, canvas=canvas)
    files = sorted(tf.io.gfile.glob(params.input_path))

    def milliseconds(wanted):
        def parse(number, record):
            data = input_pipeline.decode(record)
            image, labels = parser.parse_train(data, number)
            return wanted({**labels, 'record': record, 'source': data['image'], 'image': image})

        # Nothing runs beside it, so that milliseconds are of one core.
        options = tf.data.Options()
        options.threading.private_threadpool_size = 1
        options.threading.max_intra_op_parallelism = 1
        examples = tf.data.TFRecordDataset(files).repeat().enumerate().map(parse)
        iterator = iter(examples.with_options(options))
        next(iterator)
        start = time.process_time()
        for _ in range(num_examples):
            next(iterator)
        return 1e3 * (time.process_time() - start) / num_examples

    targets = ('rpn_score_targets', 'rpn_box_targets')
    read = milliseconds(lambda made: tf.strings.length(made['record']))
    decode = milliseconds(lambda made: made['source'])
    # How large an image is shows only when it is decoded.
    return {
        'read the record': read,
        'decode the image': decode - read,
        'masks': milliseconds(lambda made: made['gt_masks']) - read,
        'flip, resize, normalize, pad': milliseconds(lambda made: made['image']) - decode,
        'label anchors': milliseconds(lambda made: [made[name] for name in targets]) - decode,
        'all': milliseconds(lambda made: (made['image'], {**made, 'source': 0, 'record': 0})),
    }


def step_seconds(config, mode, steps):
    """Median seconds of a train step on batches that are held, after two of each that warm up."""
    config.task.gan.mode = mode
    run = train_step.Run(config)
    times = [train_step.seconds(run.step) for _ in range(2 * train_step.BATCHES + steps)]
    return statistics.median(times[2 * train_step.BATCHES :])


def measure_throughput(flags, dataset):
    """Figures of the module's first form."""
    config = load_config(flags.config_file, dataset, flags.cache_dir)
    batch_size = config.task.train_data.global_batch_size
    task = task_lib.GanMaskRCNNTask(config.task)
    inputs = task.build_inputs(config.task.train_data)
    delivered = images_per_second(inputs, batch_size, -(-flags.examples // batch_size))
    figures = {
        'config_file': flags.config_file,
        'dataset': dataset.name,
        'cores': num_cores(),
        'input_images_per_second': delivered,
        'stage_milliseconds': stage_milliseconds(config, flags.examples),
    }
    for mode in ('baseline', 'combined') if flags.steps else ():
        consumed = batch_size / step_seconds(config, mode, flags.steps)
        figures[f'{mode}_images_per_second'] = consumed
        figures[f'input_over_{mode}'] = delivered / consumed
    return figures


def measure_memory(flags):
    """Figures of the module's second form."""
    with tempfile.TemporaryDirectory() as cache_dir:
        config = exp_factory.get_exp_config(configs.EXPERIMENT)
        config.override(yaml.safe_load(pathlib.Path(flags.config_file).read_text()))
        dataset = Crowd(config.task.model.input_size[:2], flags.crowded)
        # Converted by another process, whose memory is not counted.
        if not os.fork():
            records.ensure_records(dataset, 'train', cache_dir, num_processes=1)
            os._exit(0)
        os.wait()
        config = load_config(flags.config_file, dataset, cache_dir)
        params = config.task.train_data
        params.global_batch_size = flags.batch
        params.parser.max_num_instances = flags.crowded
        before = _peak_bytes()
        inputs = task_lib.GanMaskRCNNTask(config.task).build_inputs(params)
        delivered = images_per_second(inputs, flags.batch, -(-flags.examples // flags.batch))
    return {
        'config_file': flags.config_file,
        'cores': num_cores(),
        'objects': flags.crowded,
        'batch': flags.batch,
        'input_images_per_second': delivered,
        'peak_gigabytes_before': before / 1e9,
        'peak_gigabytes': _peak_bytes() / 1e9,
    }


def _peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config_file', default='configs/gland_small.yaml')
    parser.add_argument('--dataset', default='gland', help='that --data_dir holds')
    parser.add_argument('--data_dir', help='of the data (default: the demo set of glands)')
    parser.add_argument('--examples', type=int, default=200, help='that are made and timed')
    parser.add_argument('--steps', type=int, default=10, help='timed of each network; 0 for none')
    parser.add_argument('--crowded', type=int, metavar='N', help='memory of images of N objects')
    parser.add_argument('--batch', type=int, default=1, help='images a batch, with --crowded')
    parser.add_argument('--cache_dir', default=os.path.expanduser(cli.default_cache_dir()))
    parser.add_argument('--json', help='file for the figures')
    flags = parser.parse_args()
    tf.keras.utils.set_random_seed(0)
    if flags.crowded:
        figures = measure_memory(flags)
    else:
        dataset = gland_demo.DemoGlands()
        if flags.data_dir:
            dataset = readers.load_dataset(flags.dataset, flags.data_dir)
        figures = measure_throughput(flags, dataset)
    print(json.dumps(figures, indent=1))
    if flags.json:
        files.write_json(pathlib.Path(flags.json), figures)


if __name__ == '__main__':
    main()
