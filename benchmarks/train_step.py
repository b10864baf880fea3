# SPDX-License-Identifier: Apache-2.0
"""Time of a combined train step over a baseline one, paired, and where the extra time goes.

    python benchmarks/train_step.py [--config_file configs/gland_small.yaml] [--steps 10] [--json F]

The steps are those of train.py: its settings, optimizers, strategy and input, the demo set's where
no --data_dir is given. Both networks take turns on the same batches in one process, so that what
else the machine does meets both; the ratio is the median of the pairs'. Parts are timed alone on
the same tensors: they overlap when they run in one graph, so that their sum is an upper bound.
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

import gan_mrcnn  # noqa: E402, F401, I001  (chooses Keras 2 before anything imports TensorFlow)
import tensorflow as tf  # noqa: E402

from gan_mrcnn import settings  # noqa: E402
from gan_mrcnn import task as task_lib  # noqa: E402
from gan_mrcnn.training import multi_worker, preemption, trainer  # noqa: E402
from gan_mrcnn.training import run as training_run  # noqa: E402
from gan_mrcnn.utils import cli  # noqa: E402
from gan_mrcnn.utils.cores import num_cores  # noqa: E402

# Weights hardly move: every step does the same work, and all are finite.
RATE_SCALE = 1e-4
BATCHES = 4


class Run:
    """What train.py trains with, on a few batches in turn, and its step."""

    def __init__(self, config):
        """Builds networks, optimizers and input; `config` is what `load_config` gives."""
        strategy = multi_worker.make_strategy(config)
        tf.keras.utils.set_random_seed(config.task.seed)
        with strategy.scope():
            self.task = task_lib.GanMaskRCNNTask(config.task)
            self.trainer = trainer.make_trainer(
                config, self.task, evaluate=False, best=None, stop=preemption.Stop()
            )
            self.trainer.initialize()
        self.model = self.trainer.model
        self._strategy = strategy
        params = config.task.train_data
        self.batches = self.task.build_inputs(params).take(BATCHES).cache()
        self._same = iter(
            strategy.distribute_datasets_from_function(lambda _: self.batches.repeat())
        )
        self._step = tf.function(self.trainer.train_step)

    def trace(self):
        """Makes the step's graph and runs nothing of it."""
        self._step.get_concrete_function(next(self._same), tf.constant(False))

    def step(self):
        """Takes a step on the next of the few batches; its loss and whether it was finite."""
        return self._take(self._same)

    def input_step(self):
        """A function that takes a step on what the input pipeline makes meanwhile."""
        fresh = iter(self.trainer.train_dataset)
        return lambda: self._take(fresh)

    def _take(self, iterator):
        outcome = self._step(next(iterator), tf.constant(False))
        local = self._strategy.experimental_local_results
        return local(outcome['terms']['total_loss'])[0], local(outcome['finite'])[0]


def load_config(flags):
    """The settings of `settings.Flags`, with records, at `RATE_SCALE` of their learning rates."""
    dataset = settings.load_dataset(flags)
    config = settings.load_config(flags, dataset)
    training_run.prepare_data(config, dataset)
    settings.scale_rates(config, RATE_SCALE)
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
            tape.watch(samples[:2])
            terms = task.generator_losses(task_lib.Samples(*samples))
            total = tf.add_n(list(terms.values()))
        return tape.gradient(total, samples[:2])

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


def time_pairs(baseline, combined, pairs):
    """Seconds of one step of each, in turn."""
    for _ in range(2):  # The first steps trace and warm up.
        baseline.step(), combined.step()
    return [(seconds(baseline.step), seconds(combined.step)) for _ in range(pairs)]


def parse_flags():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config_file', default='configs/gland_small.yaml')
    parser.add_argument('--data_dir', help='folder of the gland contest (default: the demo set)')
    parser.add_argument('--steps', type=int, default=10, help='pairs that are timed')
    parser.add_argument('--cache_dir', default=cli.default_cache_dir())
    parser.add_argument('--json', help='file for the figures')
    return parser.parse_args()


def main():
    flags = parse_flags()
    places = {name: getattr(flags, name) for name in ('config_file', 'data_dir', 'cache_dir')}
    baseline, combined = (
        Run(load_config(settings.Flags(dataset='gland', gan=mode, **places)))
        for mode in ('baseline', 'combined')
    )
    pairs = time_pairs(baseline, combined, flags.steps)
    figures = {
        'config_file': flags.config_file,
        'tensorflow': tf.__version__,
        'device': 'GPU' if tf.config.list_physical_devices('GPU') else 'CPU',
        'cores': num_cores(),
        'pairs': len(pairs),
        'baseline_seconds': statistics.median(pair[0] for pair in pairs),
        'combined_seconds': statistics.median(pair[1] for pair in pairs),
        'ratio': statistics.median(pair[1] / pair[0] for pair in pairs),
        'parts_seconds': time_parts(combined, next(iter(combined.batches)), flags.steps),
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
