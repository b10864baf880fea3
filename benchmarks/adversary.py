# SPDX-License-Identifier: Apache-2.0
"""What the discriminators see and what they ask of the generator, for finished runs.

    python benchmarks/adversary.py RUN... [--batches 20]

For each run with discriminators, from its last checkpoint and batches of its own training images:

- scores of the box discriminator on ground-truth and predicted boxes, and how well it tells them
  apart (AUC: 1 always, .5 by chance); the distance of the mask discriminator (Eq. 6);
- at the mask logits and at the box deltas, the gradient of the weighted adversarial loss beside the
  detection loss's: the ratio of their norms and the cosine between them. A cosine near 1 says that
  the discriminator repeats what the ordinary loss says, near 0 that it says something else, below 0
  that it contradicts;
- at the predicted boxes and at the mask logits, the adversarial gradient against discriminators
  that normalize by their stored statistics, beside the one that trains (the batch's statistics);
- the share of the reported steps in which the discriminators' gradient was longer than 10.
"""

import argparse
import glob
import os
import pathlib
import sys

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import _runs  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from gan_mrcnn import task as task_lib  # noqa: E402
from gan_mrcnn.prediction import checkpoint  # noqa: E402

# Where the two losses meet: output of the generator, detection loss, adversarial loss, its weight.
PLACES = {
    'mask logits': ('mask_outputs', 'mask_loss', 'mask_generator_loss', 'mask_weight'),
    'box deltas': ('box_outputs', 'frcnn_box_loss', 'box_generator_loss', 'box_weight'),
}
# Where the adversarial gradient enters the generator, by adversarial loss.
ENTRANCES = {'mask_generator_loss': 'mask_outputs', 'box_generator_loss': 'mask_predicted_boxes'}
COLUMNS = (
    'mask distance',
    *(f'{place}, {what}' for place in PLACES for what in ('ratio', 'cosine')),
    *(f'{what}, stored over batch' for what in ('mask ratio', 'mask cosine')),
    *(f'{what}, stored over batch' for what in ('box ratio', 'box cosine')),
)
LONG = 10.0


def restore(run):
    """Task with its discriminators, generator, and batches of the run's training images."""
    task = _runs.saved_task(run)
    model = task.build_model()
    task.build_discriminators(tf.keras.optimizers.SGD())
    checkpoint.restore(
        model,
        checkpoint.find_checkpoint(str(run), 'last'),
        as_trained=True,
        box_discriminator=task.box_discriminator,
        mask_discriminator=task.mask_discriminator,
    )
    params = task.task_config.train_data
    return task, model, _runs.split_inputs(task, params, params.split)[1]


def stored_losses(task, samples):
    """`GanMaskRCNNTask.generator_losses` with the discriminators' stored statistics."""
    box, _ = task_lib.BOX_LOSSES[task.task_config.gan.box_loss]
    fake_logits = task.box_discriminator(tf.split(samples.box, 2)[1], training=False)
    layers = (task.mask_discriminator(x, training=False) for x in tf.split(samples.mask, 2))
    judgement = task_lib.Judgement(None, fake_logits, *layers)
    return {
        'box_generator_loss': box(fake_logits, samples.weights),
        'mask_generator_loss': task.mask_generator_loss(judgement, samples.weights),
    }


def beside(gradient, other):
    """Norm of a gradient over that of another, and the cosine between them."""
    norm, other_norm = tf.norm(gradient), tf.norm(other)
    return norm / other_norm, tf.reduce_sum(gradient * other) / (norm * other_norm)


def measure(task, model, batches):
    """Mean of `COLUMNS` over the batches, and the scores of all boxes: real, predicted."""

    @tf.function
    def one_batch(inputs):
        with tf.GradientTape(persistent=True) as tape:
            outputs = task.forward(inputs, model)
            samples = task.adversarial_samples(outputs)
            terms = {**task.detection_losses(outputs, inputs[1]), **task.generator_losses(samples)}
            stored = stored_losses(task, samples)
        figures = [terms['mask_generator_loss']]
        for output, detection, adversarial, weight in PLACES.values():
            asked = task.task_config.gan.weight(weight) * tape.gradient(
                terms[adversarial], outputs[output]
            )
            figures += beside(asked, tape.gradient(terms[detection], outputs[output]))
        for adversarial, output in ENTRANCES.items():
            figures += beside(
                tape.gradient(stored[adversarial], outputs[output]),
                tape.gradient(terms[adversarial], outputs[output]),
            )
        judgement = task.judge(samples)
        scores = tf.sigmoid(judgement.box_real), tf.sigmoid(judgement.box_fake)
        return tf.stack(figures), scores, samples.weights > 0.0

    figures, real, predicted = [], [], []
    for inputs in batches:
        found, scores, there = one_batch(inputs)
        figures.append(found.numpy())
        real.append(scores[0].numpy()[there])
        predicted.append(scores[1].numpy()[there])
    figures = np.array(figures)
    means = np.mean(figures[np.all(np.isfinite(figures), axis=1)], axis=0)
    return means, np.concatenate(real), np.concatenate(predicted)


def area_under_curve(real, predicted):
    """Share of pairs of a real and a predicted box in which the real one has the higher score."""
    difference = real[:, np.newaxis] - predicted
    return np.mean((difference > 0) + 0.5 * (difference == 0))


def share_of_long_gradients(run):
    """Of the reported steps, those in which the discriminators' gradient was longer than `LONG`."""
    norms = [
        float(tf.make_ndarray(value.tensor))
        for path in glob.glob(f'{glob.escape(str(run))}/train/events*')
        for event in tf.compat.v1.train.summary_iterator(path)
        for value in event.summary.value
        if value.tag == 'discriminator_gradient_norm'
    ]
    return np.mean(np.array(norms) > LONG) if norms else np.nan


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('runs', nargs='+', type=pathlib.Path, help='--model_dir of each run')
    parser.add_argument('--batches', type=int, default=20)
    flags = parser.parse_args()
    columns = ('score real', 'score predicted', 'AUC', *COLUMNS, f'gradient over {LONG:g}')
    print(f'| run | {" | ".join(columns)} |')
    print('|---' * (1 + len(columns)) + '|')
    for run in flags.runs:
        task, model, batches = restore(run)
        means, real, predicted = measure(task, model, batches.take(flags.batches))
        row = [np.mean(real), np.mean(predicted), area_under_curve(real, predicted), *means]
        row.append(share_of_long_gradients(run))
        print(f'| {run.name} | {" | ".join(f"{x:.3f}" for x in row)} |', flush=True)


if __name__ == '__main__':
    main()
