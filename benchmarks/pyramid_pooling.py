# SPDX-License-Identifier: Apache-2.0
"""Pooling from P2-P5 in one operation on the CPU, beside what it replaces, paired in one run.

    python benchmarks/pyramid_pooling.py [--rows gland_small gland] [--rounds 7]

Two images with the sizes and numbers of RoIs of configs/gland_small.yaml and configs/gland.yaml,
features and boxes at random. PrRoIPool's maximum over the levels at 28 x 28 bins, for the mask
head's RoIs as they are labelled and as they are predicted: one operation, and a PrRoIPool for each
level with `tf.maximum` over them. RoIAlign of training, at 7 x 7 bins for the box head and at
14 x 14 for the mask head: one operation, and what serves without it, the Model Garden's gather and
an average over the samples.

Both take turns in every round; ratios are medians over rounds of the ratio within a round. Before
timing, their results are compared: a difference beyond rounding ends the run.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import statistics
import sys
import time
from unittest import mock

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from custom_ops.prroi_pool import multilevel_prroi_pool, prroi_pool, serving  # noqa: E402
from gan_mrcnn.modeling import roi_align  # noqa: E402
from gan_mrcnn.utils.cores import num_cores  # noqa: E402

LEVELS = roi_align.POOLED_LEVELS
BATCH = 2
# The Model Garden's coordinates have the digits of float32. Where levels tie by chance, which
# happens to one value in millions, the sum of gradients that `maximum` gives is another one.
TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Row:
    """Sizes of a configuration; numbers of RoIs are of one image."""

    image: tuple[int, int]
    channels: int
    box_rois: int
    mask_rois: int


ROWS = {
    'gland_small': Row((256, 384), 128, 64, 16),
    'gland': Row((576, 832), 256, 512, 128),
}


def make_features(row):
    rng = np.random.default_rng(0)
    sizes = {level: [-(-side // 2 ** int(level)) for side in row.image] for level in LEVELS}
    return {
        level: tf.constant(rng.normal(size=[BATCH, *size, row.channels]), tf.float32)
        for level, size in sizes.items()
    }


def make_boxes(row, count):
    """[BATCH, count, 4]: sides spread evenly on a logarithmic scale."""
    rng = np.random.default_rng(1)
    sides = np.exp(rng.uniform(np.log(16), np.log(400), [BATCH, count, 2]))
    centres = rng.uniform(0, 1, [BATCH, count, 2]) * row.image
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], -1)
    return tf.constant(np.clip(boxes, 0, [*row.image, *row.image]), tf.float32)


def flatten(boxes):
    """Boxes [N, 4] and the image of each."""
    return tf.reshape(boxes, [-1, 4]), np.repeat(np.arange(BATCH), boxes.shape[1])


@tf.custom_gradient
def maximum(*levels):
    """What stood in the place of the operation."""
    largest = functools.reduce(tf.maximum, levels)

    def gradient(upstream):
        nothing = tf.zeros_like(upstream)
        return [tf.where(tf.equal(level, largest), upstream, nothing) for level in levels]

    return largest, gradient


def pool_at_once(features, boxes):
    return multilevel_prroi_pool(features, *flatten(boxes), implementation='compiled')


def pool_level_by_level(features, boxes):
    where = flatten(boxes)
    return maximum(
        *(prroi_pool(features[x], *where, (28, 28), 2.0 ** -int(x), 'compiled') for x in LEVELS)
    )


def make_align(size, compiled):
    """RoIAlign of training with the operation or without."""
    aligner = roi_align.MultilevelRoIAligner(crop_size=size)

    def align(features, boxes):
        with mock.patch.object(roi_align, 'is_compiled', lambda: compiled):
            return aligner(features, boxes, training=True)

    return align


def make_passes(pool, features, boxes, gradients):
    """name -> function of no arguments that runs the pass: forward alone, and with the gradients
    to each of `gradients`, a list of parts of 'boxes' and 'features'."""
    forward = tf.function(lambda features, boxes: [pool(features, boxes)])
    passes = {'forward': functools.partial(forward, features, boxes)}
    shape = forward(features, boxes)[0].shape
    upstream = tf.random.stateless_normal(shape, [0, 1])
    for watched in gradients:

        @tf.function
        def run(features, boxes, watched=watched):
            chosen = {'boxes': boxes, 'features': features}
            sources = [chosen[name] for name in watched]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                pooled = pool(features, boxes)
            # The pooled features too, or a graph would leave them out: no gradient needs them.
            return pooled, *tf.nest.flatten(tape.gradient(pooled, sources, upstream))

        passes[f'with gradient to {" and ".join(watched)}'] = functools.partial(
            run, features, boxes
        )
    return passes


def largest_difference(results, others):
    """Norm of the difference over that of the result, the largest of all results."""
    return max(float(tf.norm(a - b) / tf.norm(b)) for a, b in zip(results, others))


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(title, now, before, rounds):
    """Lines of a table: milliseconds before and now, how many times faster, the difference.

    Args:
      title: what the lines begin with.
      now: passes as `make_passes` gives them.
      before: the same of what is replaced.
      rounds: how often both are timed.
    """
    for name in now:
        difference = largest_difference(now[name](), before[name]())
        if not difference <= TOLERANCE:
            sys.exit(f'{title}, {name}: relative difference is {difference:.1e}')
        times = [[seconds(passes[name]) for passes in (now, before)] for _ in range(rounds)]
        ours, others = (1e3 * statistics.median(t[k] for t in times) for k in (0, 1))
        ratio = statistics.median(other / own for own, other in times)
        yield (f'| {title}, {name} | {others:.1f} | {ours:.1f} | {ratio:.2f} | {difference:.0e} |')


def measure(title, row, rounds):
    """Lines of the table of one row."""
    features = make_features(row)
    boxes = make_boxes(row, 2 * row.mask_rois)
    # Training wants the gradient to the boxes alone, unless `gan.detach_features` is off.
    watched = [['boxes'], ['boxes', 'features']]
    passes = [
        make_passes(pool, features, boxes, watched) for pool in (pool_at_once, pool_level_by_level)
    ]
    yield from compare(f'{title}: PrRoIPool, {BATCH * 2 * row.mask_rois} boxes', *passes, rounds)
    for size, count in ((7, row.box_rois), (14, row.mask_rois)):
        boxes = make_boxes(row, count)
        passes = [
            make_passes(make_align(size, compiled), features, boxes, [['features']])
            for compiled in (True, False)
        ]
        name = f'{title}: RoIAlign {size} x {size}, {BATCH * count} boxes'
        yield from compare(name, *passes, rounds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rows', nargs='+', choices=ROWS, default=list(ROWS))
    parser.add_argument('--rounds', type=int, default=7)
    flags = parser.parse_args()
    print(f'{serving()}; TensorFlow {tf.__version__}, {num_cores()} cores\n')
    print('| | before, ms | now, ms | times faster | relative difference |')
    print('|---|---|---|---|---|')
    for title in flags.rows:
        for line in measure(title, ROWS[title], flags.rounds):
            print(line, flush=True)


if __name__ == '__main__':
    main()
