# SPDX-License-Identifier: Apache-2.0
"""Time of a combined train step over a baseline one, paired, and where the extra time goes.

    python benchmarks/train_step.py [--config_file configs/gland_small.yaml] [--steps 10] [--json F]

Both networks take turns on the same batches of the demo set in one process, so that what else the
machine does meets both; the ratio is the median of the pairs'. Parts are timed alone on the same
tensors: they overlap when they run in one graph, so that their sum is an upper bound.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import tensorflow as tf  # noqa: E402
import yaml  # noqa: E402
from official.core import exp_factory  # noqa: E402

from gan_mrcnn import configs  # noqa: E402
from gan_mrcnn import task as task_lib  # noqa: E402
from gan_mrcnn.data.readers import gland_demo  # noqa: E402
from gan_mrcnn.data.records import records  # noqa: E402
from gan_mrcnn.utils import cli  # noqa: E402
from gan_mrcnn.utils.cores import num_cores  # noqa: E402


class Run:
    """A task with its networks, optimizers and compiled step."""

    def __init__(self, config, mode):
        config.task.gan.mode = mode
        self.task = task_lib.GanMaskRCNNTask(config.task)
        self.model = self.task.build_model()
        rate = 1e-4  # Weights hardly move: every step does the same work.
        optimizer = tf.keras.optimizers.SGD(rate, momentum=0.9, jit_compile=False)
        optimizer.build(self.model.trainable_variables)
        if self.task.has_discriminators:
            self.task.build_discriminators(
                tf.keras.optimizers.SGD(rate, momentum=0.9, jit_compile=False)
            )
        self.step = tf.function(
            lambda inputs: self.task.train_step(inputs, self.model, optimizer)['loss']
        )


def load_config(path, cache_dir):
    """The experiment of a YAML file on the demo set."""
    config = exp_factory.get_exp_config(configs.EXPERIMENT)
    config.override(yaml.safe_load(pathlib.Path(path).read_text(encoding='utf-8')))
    config.task.model.num_classes = 2
    config.task.cache_dir = cache_dir
    (record_set,) = records.ensure_splits(gland_demo.DemoGlands(), ['train'], config.task)
    record_set.feed(config.task.train_data)
    return config


def seconds(function, *arguments):
    """Wall time of one call, its result waited for."""
    start = time.perf_counter()
    tf.nest.map_structure(lambda x: x.numpy(), function(*arguments))
    return time.perf_counter() - start


def time_parts(run, inputs, repeats):
    """Median seconds of the adversarial parts of the step, each compiled alone."""
    task = run.task
    outputs = task.forward(inputs, run.model)
    names = [name for name in outputs if name.startswith('mask_')]
    kept = {name: outputs[name] for name in names}
    kept['decoder_features'] = outputs['decoder_features']
    samples = task.adversarial_samples(kept)

    @tf.function
    def pooling(kept):
        with tf.GradientTape() as tape:
            tape.watch(kept['mask_predicted_boxes'])
            total = tf.add_n([tf.reduce_sum(x) for x in task.adversarial_samples(kept)])
        return tape.gradient(total, kept['mask_predicted_boxes'])

    @tf.function
    def discriminators(samples):
        return task._train_discriminators(task_lib.Samples(*samples), {})

    @tf.function
    def through_discriminators(samples):
        with tf.GradientTape() as tape:
            tape.watch([samples[1], samples[3]])
            terms = task.generator_losses(task_lib.Samples(*samples))
            total = tf.add_n(list(terms.values()))
        return tape.gradient(total, [samples[1], samples[3]])

    parts = {
        'PrRoIPool with gradient to boxes': (pooling, kept),
        'discriminator half': (discriminators, tuple(samples)),
        'generator through discriminators': (through_discriminators, tuple(samples)),
    }
    times = {}
    for name, (function, argument) in parts.items():
        seconds(function, argument)
        times[name] = statistics.median(seconds(function, argument) for _ in range(repeats))
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config_file', default='configs/gland_small.yaml')
    parser.add_argument('--steps', type=int, default=10, help='pairs that are timed')
    parser.add_argument('--cache_dir', default=os.path.expanduser(cli.default_cache_dir()))
    parser.add_argument('--json', help='file for the figures')
    flags = parser.parse_args()
    tf.keras.utils.set_random_seed(0)
    config = load_config(flags.config_file, flags.cache_dir)
    baseline = Run(config, 'baseline')
    combined = Run(load_config(flags.config_file, flags.cache_dir), 'combined')
    batches = combined.task.build_inputs(config.task.train_data)
    pairs = []
    for number, inputs in enumerate(batches.take(flags.steps + 2)):
        pair = seconds(baseline.step, inputs), seconds(combined.step, inputs)
        if number >= 2:  # The first steps trace and warm up.
            pairs.append(pair)
    figures = {
        'config_file': flags.config_file,
        'tensorflow': tf.__version__,
        'device': 'GPU' if tf.config.list_physical_devices('GPU') else 'CPU',
        'cores': num_cores(),
        'pairs': len(pairs),
        'baseline_seconds': statistics.median(pair[0] for pair in pairs),
        'combined_seconds': statistics.median(pair[1] for pair in pairs),
        'ratio': statistics.median(pair[1] / pair[0] for pair in pairs),
        'parts_seconds': time_parts(combined, inputs, flags.steps),
    }
    print(f'baseline  {figures["baseline_seconds"]:.3f} s')
    print(f'combined  {figures["combined_seconds"]:.3f} s')
    print(f'combined over baseline, median of {len(pairs)} pairs: {figures["ratio"]:.2f}')
    for name, value in figures['parts_seconds'].items():
        print(f'  {name}: {value:.3f} s, {value / figures["baseline_seconds"]:.2f} of a baseline')
    if flags.json:
        pathlib.Path(flags.json).write_text(json.dumps(figures, indent=1), encoding='utf-8')


if __name__ == '__main__':
    main()
