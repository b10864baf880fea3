# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression: TensorFlow's operation and ours, paired in one run.

    python benchmarks/nms.py [--json FILE] [--rounds 20] [--images 2]

At the sizes of the gland's and COCO's proposals in training (five levels of an image, 2000 boxes
each) and of their detections (1000 RoIs, one class and 80), boxes in clusters as a network proposes
them. On the CPU, and where there is a GPU on it, too: TensorFlow's operation then runs on the CPU
between two copies, as it does in a train step. Before timing, the results are compared. Both take
turns in every round; the ratio is the median over rounds of the ratio within a round.
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

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from custom_ops.nms import combined_non_max_suppression  # noqa: E402
from custom_ops.prroi_pool import serving  # noqa: E402
from gan_mrcnn.utils.cores import num_cores  # noqa: E402

# Levels of an image or 1, boxes, classes, most of a class and of an image, the two thresholds,
# objects, sides of the image.
CASES = {
    'proposals, gland': (5, 2000, 1, 2000, 2000, 0.7, 0.0, 60, (544, 800)),
    'proposals, COCO': (5, 2000, 1, 2000, 2000, 0.7, 0.0, 400, (800, 1344)),
    'detections, gland': (1, 1000, 1, 100, 100, 0.5, 0.05, 60, (544, 800)),
    'detections, COCO': (1, 1000, 80, 100, 100, 0.5, 0.05, 40, (800, 1344)),
}
CONTENDERS = ('compiled', 'tensorflow')


def make_case(groups, num_boxes, num_classes, num_objects, sides, seed=0):
    """Boxes [G, N, C, 4] around objects and scores [G, N, C], few of many classes' above 0.05."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, sides, [groups, num_objects, 2])
    lengths = np.exp(rng.uniform(np.log(16), np.log(250), [groups, num_objects, 2]))
    objects = rng.integers(0, num_objects, [groups, num_boxes, 1])
    centres = np.take_along_axis(centres, objects, axis=1)
    lengths = np.take_along_axis(lengths, objects, axis=1)
    centres = centres + rng.normal(size=centres.shape) * lengths * 0.15
    lengths = lengths * np.exp(rng.normal(size=lengths.shape) * 0.2)
    boxes = np.clip(np.concatenate([centres - lengths / 2, centres + lengths / 2], axis=2), 0, None)
    boxes = np.minimum(boxes, np.tile(sides, 2))
    boxes = np.repeat(boxes[:, :, np.newaxis], num_classes, axis=2)
    scores = rng.permutation(groups * num_boxes * num_classes).reshape(groups, num_boxes, -1)
    scores = (scores + 1) / (scores.size + 1.0)
    if num_classes > 1:
        scores = scores**40
    return boxes.astype(np.float32), scores.astype(np.float32)


def seconds(function, *arguments):
    """Wall time of one call, its results waited for."""
    start = time.perf_counter()
    results = function(*arguments)
    results[-1].numpy()
    return time.perf_counter() - start


def measure(case, device, num_images, rounds):
    """Median milliseconds of each contender and the median ratio; raises where results differ."""
    levels, num_boxes, num_classes, *numbers, num_objects, sides = case
    arrays = make_case(levels * num_images, num_boxes, num_classes, num_objects, sides)
    with tf.device(device):
        tensors = [tf.identity(x) for x in arrays]
        functions = {
            name: tf.function(
                lambda boxes, scores, name=name: combined_non_max_suppression(
                    boxes, scores, *numbers, name
                )
            )
            for name in CONTENDERS
        }
        results = [[x.numpy() for x in f(*tensors)] for f in functions.values()]
        differ = sum(not np.array_equal(x, y) for x, y in zip(*results))
        times = [{n: seconds(f, *tensors) for n, f in functions.items()} for _ in range(rounds)]
    return {
        **{f'{name}_ms': 1e3 * statistics.median(t[name] for t in times) for name in CONTENDERS},
        'ratio': statistics.median(t['tensorflow'] / t['compiled'] for t in times),
        'chosen': float(results[0][3].mean()),
        'results_that_differ': differ,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--images', type=int, default=2, help='images at a time')
    parser.add_argument('--json', help='file for the figures')
    flags = parser.parse_args()
    print(f'{serving()}; TensorFlow {tf.__version__}, {num_cores()} cores, {flags.images} images')
    devices = ['CPU:0', 'GPU:0'] if tf.config.list_physical_devices('GPU') else ['CPU:0']
    figures = {
        'serving': serving(),
        'tensorflow': tf.__version__,
        'cores': num_cores(),
        'images': flags.images,
        'rounds': flags.rounds,
        'cases': {},
    }
    for device in devices:
        for name, case in CASES.items():
            found = measure(case, device, flags.images, flags.rounds)
            figures['cases'][f'{name}, {device}'] = found
            print(
                f'{name}, {device}: TensorFlow {found["tensorflow_ms"]:.2f} ms, '
                f'ours {found["compiled_ms"]:.2f} ms, {found["ratio"]:.2f} times as fast; '
                f'{found["chosen"]:.0f} chosen, {found["results_that_differ"]} of 4 results differ'
            )
    if flags.json:
        pathlib.Path(flags.json).write_text(json.dumps(figures, indent=1), encoding='utf-8')


if __name__ == '__main__':
    main()
