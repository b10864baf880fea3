# SPDX-License-Identifier: Apache-2.0
"""What the discriminators see and what they ask of the generator, for finished runs.

    python benchmarks/adversary.py RUN... [--batches 20]

For each run in mode `combined`, from its last checkpoint and batches of its own training images:
scores of the box discriminator on true and predicted boxes; the distance of the mask discriminator
(Eq. 6); and, at the mask logits and at the box deltas, the gradient of the weighted adversarial
loss beside the detection loss's: the ratio of their norms and the cosine between them. A cosine
near 1 says that the discriminator repeats what the ordinary loss says, near 0 that it says
something else, below 0 that it contradicts.
"""

import argparse
import os
import pathlib
import sys

from gan_mrcnn.data.records import records

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import yaml  # noqa: E402
from official.core import exp_factory  # noqa: E402

from gan_mrcnn import configs  # noqa: E402
from gan_mrcnn import task as task_lib  # noqa: E402
from gan_mrcnn.data import readers  # noqa: E402

# Where the two losses meet: output of the generator, detection loss, adversarial loss, its weight.
PLACES = {
    'mask logits': ('mask_outputs', 'mask_loss', 'mask_generator_loss', 'mask_weight'),
    'box deltas': ('box_outputs', 'frcnn_box_loss', 'box_generator_loss', 'box_weight'),
}
COLUMNS = ('score true', 'score predicted', 'mask distance') + tuple(
    f'{place}, {what}' for place in PLACES for what in ('ratio', 'cosine')
)


def restore(run):
    """Task with its discriminators, generator, and batches of the run's training images."""
    config = exp_factory.get_exp_config(configs.EXPERIMENT)
    config.override(yaml.safe_load((run / 'params.yaml').read_text(encoding='utf-8')))
    task = task_lib.GanMaskRCNNTask(config.task)
    model = task.build_model()
    task.build_discriminators(tf.keras.optimizers.SGD())
    tf.train.Checkpoint(
        model=model,
        box_discriminator=task.box_discriminator,
        mask_discriminator=task.mask_discriminator,
    ).read(tf.train.latest_checkpoint(str(run))).expect_partial().assert_existing_objects_matched()
    params = config.task.train_data
    dataset = readers.load_dataset(config.task.dataset, config.task.data_dir or None)
    (record_set,) = records.ensure_splits(dataset, [params.split], config.task)
    record_set.feed(params)
    return task, model, task.build_inputs(params)


def measure(task, model, batches):
    """Mean of `COLUMNS` over the batches that have an object among their RoIs."""

    @tf.function
    def one_batch(inputs):
        with tf.GradientTape(persistent=True) as tape:
            outputs = task.forward(inputs, model)
            samples = task.adversarial_samples(outputs)
            terms = {**task.detection_losses(outputs, inputs[1]), **task.generator_losses(samples)}
        scores = [
            tf.reduce_sum(tf.sigmoid(task.box_discriminator(x, training=False)) * samples.weights)
            / tf.reduce_sum(samples.weights)
            for x in (samples.box_real, samples.box_fake)
        ]
        figures = [*scores, terms['mask_generator_loss']]
        for output, detection, adversarial, weight in PLACES.values():
            ordinary = tape.gradient(terms[detection], outputs[output])
            asked = getattr(task.task_config.gan, weight) * tape.gradient(
                terms[adversarial], outputs[output]
            )
            product = tf.norm(asked) * tf.norm(ordinary)
            figures.append(tf.norm(asked) / tf.norm(ordinary))
            figures.append(tf.reduce_sum(asked * ordinary) / product)
        return tf.stack(figures)

    figures = np.array([one_batch(inputs) for inputs in batches])
    return np.mean(figures[np.all(np.isfinite(figures), axis=1)], axis=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('runs', nargs='+', type=pathlib.Path, help='--model_dir of each run')
    parser.add_argument('--batches', type=int, default=20)
    flags = parser.parse_args()
    print(f'| run | {" | ".join(COLUMNS)} |')
    print('|---' * (1 + len(COLUMNS)) + '|')
    for run in flags.runs:
        task, model, batches = restore(run)
        figures = measure(task, model, batches.take(flags.batches))
        print(f'| {run.name} | {" | ".join(f"{x:.3f}" for x in figures)} |', flush=True)


if __name__ == '__main__':
    main()
