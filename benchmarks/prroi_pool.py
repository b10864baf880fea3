# SPDX-License-Identifier: Apache-2.0
"""PrRoIPool on the CPU: the compiled operation, its rivals and the floor, paired in one run.

    python benchmarks/prroi_pool.py [--json FILE] [--boxes 128 512] [--rounds 5]

28 x 28 bins of 256 channels of P2 of two images, the sizes that the discriminators need. Rivals:
the same in plain TensorFlow; the published algorithm put straight on the CPU
(`_prroi_pool_port.cc`, compiled here); the Model Garden's `MultilevelROIAligner` (RoIAlign with one
sample per bin from P2-P5, another function, the cost of what the heads do; its gradient goes to the
features alone). Floor: writing zeros over the output.

All of them take turns in every round, so that what else the machine does meets each; ratios are
medians over rounds of the ratio within a round. Before timing, the first three are compared.
"""

import argparse
import ctypes
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from official.vision.modeling.layers import roi_aligner  # noqa: E402

from custom_ops.prroi_pool import build, prroi_pool, serving  # noqa: E402
from gan_mrcnn.utils.cores import num_cores  # noqa: E402

IMAGES = {'544x800': (544, 800), '800x1344': (800, 1344)}
BATCH, CHANNELS, SIZE, SCALE = 2, 256, 28, 0.25
CONTENDERS = ('compiled', 'tensorflow', 'port', 'roi_align')


class Port:
    """The published algorithm, on maps of [B, C, H, W]."""

    def __init__(self, folder, num_threads):
        library = pathlib.Path(folder) / 'port.so'
        source = pathlib.Path(__file__).with_name('_prroi_pool_port.cc')
        flags = ['-O3', '-march=native', '-std=c++17', '-shared', '-fPIC', '-pthread']
        subprocess.run([build.find_compiler(), *flags, str(source), '-o', str(library)], check=True)
        self._library = ctypes.CDLL(str(library))
        self._num_threads = num_threads

    def _call(self, name, *arrays, features, output):
        pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in arrays]
        sizes = [*features.shape[1:], output.shape[0], SIZE, SIZE]
        numbers = [*map(ctypes.c_int, sizes), ctypes.c_float(SCALE)]
        target = pointers.pop()
        getattr(self._library, name)(*pointers, *numbers, ctypes.c_int(self._num_threads), target)

    def forward(self, features, boxes, indices):
        output = np.empty([len(boxes), CHANNELS, SIZE, SIZE], np.float32)
        self._call(
            'port_forward', features, boxes, indices, output, features=features, output=output
        )
        return output

    def gradients(self, features, boxes, indices, output, upstream):
        shapes = {'features': features, 'output': output}
        d_features, d_boxes = np.zeros_like(features), np.empty_like(boxes)
        self._call('port_feature_gradient', upstream, boxes, indices, d_features, **shapes)
        self._call(
            'port_box_gradient', features, upstream, output, boxes, indices, d_boxes, **shapes
        )
        return d_features, d_boxes


def make_case(image_size, num_boxes, seed=0):
    """Features of P2-P5 and boxes whose sides are spread evenly on a logarithmic scale."""
    rng = np.random.default_rng(seed)
    features = {
        str(level): rng.normal(
            size=(BATCH, *(-(-side // 2**level) for side in image_size), CHANNELS)
        ).astype(np.float32)
        for level in range(2, 6)
    }
    sides = np.exp(rng.uniform(np.log(16), np.log(400), [num_boxes, 2]))
    centres = rng.uniform(0, 1, [num_boxes, 2]) * image_size
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], 1)
    boxes = np.clip(boxes, 0, [*image_size, *image_size]).astype(np.float32)
    indices = np.repeat(np.arange(BATCH, dtype=np.int32), num_boxes // BATCH)
    upstream = rng.normal(size=(num_boxes, SIZE, SIZE, CHANNELS)).astype(np.float32)
    return features, boxes, indices, upstream


def make_runs(case, port):
    """name -> (function of the forward pass, function of forward and both gradients)."""
    features, boxes, indices, upstream = case
    tensors = {level: tf.constant(x) for level, x in features.items()}
    tf_boxes, tf_indices, tf_upstream = map(tf.constant, (boxes, indices, upstream))

    def through_tensorflow(pool, watched):
        forward = tf.function(pool)

        @tf.function
        def both(upstream):
            with tf.GradientTape() as tape:
                tape.watch(watched)
                pooled = pool()
            # The pooled features too, or a graph would leave them out: no gradient needs them.
            return pooled, *tape.gradient(pooled, watched, upstream)

        return forward, lambda: both(tf_upstream)

    runs = {
        name: through_tensorflow(
            lambda name=name: prroi_pool(
                tensors['2'], tf_boxes, tf_indices, (SIZE, SIZE), SCALE, implementation=name
            ),
            [tensors['2'], tf_boxes],
        )
        for name in ('compiled', 'tensorflow')
    }
    aligner = roi_aligner.MultilevelROIAligner(SIZE, sample_offset=0.5)
    by_image = tf.reshape(tf_boxes, [BATCH, -1, 4])
    runs['roi_align'] = through_tensorflow(
        lambda: tf.reshape(aligner(tensors, by_image), upstream.shape), list(tensors.values())
    )
    planes, swapped = (
        np.ascontiguousarray(np.moveaxis(x, -1, 1)) for x in (features['2'], upstream)
    )

    def port_both():
        output = port.forward(planes, boxes, indices)
        return output, *port.gradients(planes, boxes, indices, output, swapped)

    runs['port'] = (lambda: port.forward(planes, boxes, indices)), port_both
    return runs


def largest_difference(runs):
    """Of the compiled operation's results to the two others', relative to the largest value."""
    worst = 0.0
    results = runs['compiled'][1]()
    for name in ('tensorflow', 'port'):
        for ours, other in zip(results, runs[name][1]()):
            other = np.asarray(other)
            if name == 'port' and other.ndim == 4:
                other = np.moveaxis(other, 1, -1)
            worst = max(worst, float(np.max(np.abs(ours - other)) / np.max(np.abs(other))))
    return worst


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(case, port, rounds):
    """Figures of one case: seconds of each contender, and ratios to the compiled operation."""
    runs = make_runs(case, port)
    output = np.empty(case[3].shape, np.float32)
    times = {name: {'forward': [], 'both': []} for name in CONTENDERS}
    floor = []
    difference = largest_difference(runs)
    for forward, both in runs.values():
        forward(), both()
    for _ in range(rounds):
        floor.append(seconds(lambda: output.fill(0)))
        for name in CONTENDERS:
            for kind, function in zip(('forward', 'both'), runs[name]):
                times[name][kind].append(seconds(function))
    ratio = lambda some, others: statistics.median(  # noqa: E731
        a / b for a, b in zip(some, others)
    )
    return {
        'largest_relative_difference': difference,
        'floor_seconds': statistics.median(floor),
        'seconds': {
            name: {kind: statistics.median(values) for kind, values in kinds.items()}
            for name, kinds in times.items()
        },
        'times_faster': {
            name: {
                kind: ratio(times[name][kind], times['compiled'][kind])
                for kind in ('forward', 'both')
            }
            for name in CONTENDERS
        },
        'forward_over_floor': ratio(times['compiled']['forward'], floor),
    }


def print_case(title, figures):
    print(f'\n{title}; floor (zeros over the output) {1e3 * figures["floor_seconds"]:.1f} ms')
    print(f'largest relative difference: {figures["largest_relative_difference"]:.1e}')
    print('| | forward ms | over ours | forward + both gradients ms | over ours |')
    print('|---|---|---|---|---|')
    for name in CONTENDERS:
        cells = []
        for kind in ('forward', 'both'):
            cells += [
                f'{1e3 * figures["seconds"][name][kind]:.1f}',
                f'{figures["times_faster"][name][kind]:.1f}',
            ]
        print(f'| {name} | {" | ".join(cells)} |')
    print(f'compiled, forward over floor: {figures["forward_over_floor"]:.2f}', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--boxes', type=int, nargs='+', default=[128, 512])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--json', type=pathlib.Path, help='file for the figures')
    flags = parser.parse_args()
    print(f'{serving()}; TensorFlow {tf.__version__}, {num_cores()} cores, {platform.machine()}')
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        port = Port(folder, num_cores())
        for title, image_size in IMAGES.items():
            for num_boxes in flags.boxes:
                name = f'{num_boxes} boxes, P2 of {title}'
                cases[name] = measure(make_case(image_size, num_boxes), port, flags.rounds)
                print_case(name, cases[name])
    if flags.json:
        content = {'serving': serving(), 'tensorflow': tf.__version__, 'cores': num_cores()}
        flags.json.write_text(json.dumps({**content, 'cases': cases}, indent=1), encoding='utf-8')


if __name__ == '__main__':
    main()
