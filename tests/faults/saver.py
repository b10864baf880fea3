"""Saves checkpoints without end, all values of one being its number, until somebody kills it.

python -m tests.faults.saver FOLDER
"""

import os
import sys

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import tensorflow as tf  # noqa: E402

from gan_mrcnn.training import checkpoints  # noqa: E402

# Several megabytes, so that being killed while one is written is likely.
SHAPE = [600, 600]


def make(folder):
    """A checkpoint of a few variables and its step, and what saves it."""
    step = tf.Variable(0, dtype=tf.int64)
    parts = {f'part{i}': tf.Variable(tf.zeros(SHAPE)) for i in range(8)}
    checkpoint = tf.train.Checkpoint(global_step=step, **parts)
    saved = checkpoints.Checkpoints(checkpoint, folder, step, max_to_keep=2, is_chief=True)
    return step, list(parts.values()), saved


def main() -> None:
    folder = sys.argv[1]
    newest = checkpoints.newest_sound(folder)
    step, parts, saved = make(folder)
    if newest:
        saved.restore(newest)
        assert all((part.numpy() == step.numpy()).all() for part in parts)
    print(f'from {step.numpy()}', file=sys.stderr, flush=True)
    while True:
        step.assign_add(1)
        for part in parts:
            part.assign(tf.fill(SHAPE, tf.cast(step, tf.float32)))
        saved.save()


if __name__ == '__main__':
    main()
