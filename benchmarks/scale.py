# SPDX-License-Identifier: Apache-2.0
"""What one unit of each job takes, from which docs/scale.md reckons large ones.

    python benchmarks/scale.py records --dataset coco --data_dir COCO [--split val]
    python benchmarks/scale.py exchange --config_file configs/coco.yaml --backbone FILE
    python benchmarks/scale.py slides --model RUN SLIDE

`records` converts a split: bytes read and written and CPU seconds of an image. `exchange` traces a
train step on two replicas, without running it, and counts what they reduce: how often, and how many
bytes. `slides` predicts a slide: CPU seconds of a tile, and bytes read and written. CPU seconds are
those of this process and its threads; one thread each for TensorFlow's operations, so that they are
of one core.
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

import gan_mrcnn  # noqa: E402, F401, I001  (chooses Keras 2 before anything imports TensorFlow)
import tensorflow as tf  # noqa: E402

from gan_mrcnn import settings  # noqa: E402
from gan_mrcnn import task as task_lib  # noqa: E402
from gan_mrcnn.data import readers  # noqa: E402
from gan_mrcnn.data.records import records  # noqa: E402
from gan_mrcnn.prediction import image_files, slide_plan, slide_run  # noqa: E402
from gan_mrcnn.prediction import run as prediction_run  # noqa: E402
from gan_mrcnn.training import preemption, trainer  # noqa: E402
from gan_mrcnn.training import run as training_run  # noqa: E402
from gan_mrcnn.utils import cli, files  # noqa: E402


def measure_records(options):
    """CPU seconds and bytes of an image that is converted."""
    dataset = readers.load_dataset(options.dataset, options.data_dir)
    # TensorFlow's start is no image's.
    tf.io.TFRecordWriter(os.devnull).close()
    with tempfile.TemporaryDirectory() as cache:
        begin = time.process_time()
        found = records.ensure_records(dataset, options.split, cache, num_processes=1)
        cpu = time.process_time() - begin
        folder = pathlib.Path(found.annotation_file).parent
        written = sum(path.stat().st_size for path in folder.iterdir())
    read = sum(path.stat().st_size for path in options.images)
    images = found.num_examples
    return {
        'images': images,
        'objects_per_image': sum(found.objects_per_image) / images,
        'cpu_seconds_per_image': cpu / images,
        'megabytes_read_per_image': read / images / 1e6 if read else None,
        'megabytes_written_per_image': written / images / 1e6,
    }


class CountingReduction(tf.distribute.CrossDeviceOps):
    """Reduces on one device, and notes what: a list of bytes for every time that replicas meet."""

    def __init__(self):
        super().__init__()
        self.meetings = []
        self._inner = tf.distribute.ReductionToOneDevice()

    def reduce_implementation(self, reduce_op, per_replica_value, destinations, options):
        self._note([per_replica_value])
        return self._inner.reduce_implementation(
            reduce_op, per_replica_value, destinations, options
        )

    def batch_reduce_implementation(self, reduce_op, value_destination_pairs, options):
        self._note([value for value, _ in value_destination_pairs])
        return self._inner.batch_reduce_implementation(reduce_op, value_destination_pairs, options)

    def broadcast_implementation(self, tensor, destinations):
        return self._inner.broadcast_implementation(tensor, destinations)

    def _note(self, values):
        tensors = [value.values[0] for value in values]
        # A tensor whose size the batch decides has a row for each RoI at most; there is none now.
        self.meetings.append([x.shape.num_elements() * x.dtype.size for x in tensors])


def measure_exchange(options):
    """What two replicas reduce within a step, baseline and combined."""
    cpus = tf.config.list_physical_devices('CPU')
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpus[0], two)
    return {mode: _count(options, mode) for mode in ('baseline', 'combined')}


def _count(options, mode):
    flags = settings.Flags(
        dataset=options.dataset,
        gan=mode,
        config_file=options.config_file,
        params_override=[f'task.backbone_weights={options.backbone}'],
        data_dir=options.data_dir,
        cache_dir=options.cache_dir,
    )
    dataset = settings.load_dataset(flags)
    config = settings.load_config(flags, dataset)
    training_run.prepare_data(config, dataset)
    reduction = CountingReduction()
    strategy = tf.distribute.MirroredStrategy(['/cpu:0', '/cpu:1'], cross_device_ops=reduction)
    with strategy.scope():
        task = task_lib.GanMaskRCNNTask(config.task)
        made = trainer.make_trainer(config, task, evaluate=False, best=None, stop=preemption.Stop())
        inputs = next(iter(made.train_dataset))
        reduction.meetings.clear()
        tf.function(made.train_step).get_concrete_function(inputs, tf.constant(False))
    sizes = [sum(meeting) for meeting in reduction.meetings]
    large = [size for size in sizes if size >= 1e6]
    weights = {'generator': made.model.trainable_variables}
    if task.has_discriminators:
        weights['discriminators'] = task.discriminator_variables
    return {
        'million_weights': {
            name: sum(x.shape.num_elements() for x in variables) / 1e6
            for name, variables in weights.items()
        },
        'reductions': len(sizes),
        'reductions_of_gradients': len(large),
        'megabytes': sum(sizes) / 1e6,
        'megabytes_of_the_others': (sum(sizes) - sum(large)) / 1e6,
    }


def measure_slides(options):
    """CPU seconds of a tile, with the network and without."""
    network = prediction_run.load(options.model, 'last', options.glands, None, None)
    chosen = slide_plan.Options(options.model, batch_size=1)
    (source,) = image_files.find_sources([options.slide], None, [])
    seconds = {'network': 0.0}

    def timed(pixels, detect=network.detect_pixels):
        begin = time.process_time()
        found = detect(pixels)
        seconds['network'] += time.process_time() - begin
        return found

    network.detect_pixels = timed
    for _ in range(2):  # The first time traces.
        seconds['network'] = 0.0
        with tempfile.TemporaryDirectory() as out:
            begin = time.process_time()
            slide_run.predict([source], network, out, chosen, [])
            whole = time.process_time() - begin
            folder = pathlib.Path(out, source.name)
            found = files.load_json(folder / image_files.SUMMARY, 'the results of a slide')
            written = sum(path.stat().st_size for path in folder.iterdir())
    tiles = found['tiles']
    return {
        'tiles': tiles,
        'of_tiles': found['of_tiles'],
        'objects': found['objects'],
        'cpu_seconds_per_tile_network': seconds['network'] / tiles,
        'cpu_seconds_per_tile_else': (whole - seconds['network']) / tiles,
        'megabytes_of_the_slide': source.path.stat().st_size / 1e6,
        'megabytes_written': written / 1e6,
    }


def parse_flags():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--json', help='also writes the figures here')
    jobs = parser.add_subparsers(dest='job', required=True)
    job = jobs.add_parser('records')
    job.add_argument('--dataset', default='coco')
    job.add_argument('--data_dir', required=True)
    job.add_argument('--split', default='val')
    job.add_argument('images', nargs='*', type=pathlib.Path, help='of the split, for their sizes')
    job.set_defaults(measure=measure_records)
    job = jobs.add_parser('exchange')
    job.add_argument('--dataset', default='gland')
    job.add_argument('--data_dir', help='default: the demo set of glands')
    job.add_argument('--config_file', default='configs/gland.yaml')
    # With one, the backbone's BatchNorm is frozen. It is not read.
    job.add_argument('--backbone', required=True, help='file of weights')
    job.add_argument('--cache_dir', default=cli.default_cache_dir())
    job.set_defaults(measure=measure_exchange)
    job = jobs.add_parser('slides')
    job.add_argument('--model', required=True, help='folder of a run')
    job.add_argument('--glands', help='where the data set of the run is')
    job.add_argument('slide')
    job.set_defaults(measure=measure_slides)
    return parser.parse_args()


def main():
    tf.config.threading.set_intra_op_parallelism_threads(1)
    options = parse_flags()
    figures = options.measure(options)
    print(json.dumps(figures, indent=1))
    if options.json:
        files.write_json(options.json, figures)


if __name__ == '__main__':
    main()
