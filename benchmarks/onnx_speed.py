# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime against the SavedModel of the same network: speed, and how far answers differ.

    python benchmarks/onnx_speed.py OUT/model/1 OUT/model.onnx 'GLANDS/testA_?.png' [--threads 2]

Both get the same pixels, one image at a time, with as many threads, in one process and in turns;
the one that begins changes from round to round. So other load of the machine affects both, and the
ratio of a round's seconds holds for the machine as it was then. CPU seconds are those of all
threads. ONNX Runtime's wait without spinning here, or they would count while TensorFlow runs.
"""

import argparse
import glob
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import tensorflow as tf  # noqa: E402
from PIL import Image  # noqa: E402

from gan_mrcnn.prediction import onnx_file, predictor  # noqa: E402


def load(options):
    """The networks by name."""
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    saved_model = predictor.load_saved_model(options.saved_model)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.add_session_config_entry('session.intra_op.allow_spinning', '0')
    session = onnxruntime.InferenceSession(
        options.onnx, settings, providers=['CPUExecutionProvider']
    )
    return {
        'SavedModel': saved_model,
        'ONNX Runtime': onnx_file.OnnxPredictor(session, saved_model.card),
    }


def timed(network, pixels):
    """Detections in one image, seconds on the clock and of CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    (found,) = network.detect_pixels(pixels[np.newaxis])
    return found, time.perf_counter() - clock, time.process_time() - cpu


def print_differences(networks, images):
    """The first run of each, which is not timed: the largest differences over all images."""
    largest = {'boxes': 0.0, 'scores': 0.0, 'masks': 0.0}
    total, same = 0, 0
    for pixels in images:
        wanted, found = (timed(network, pixels)[0] for network in networks.values())
        total += len(wanted.scores)
        if len(wanted.scores) != len(found.scores) or (wanted.classes != found.classes).any():
            continue
        same += 1
        for name in largest:
            errors = np.abs(getattr(found, name) - getattr(wanted, name))
            largest[name] = max(largest[name], errors.max(initial=0.0))
    differences = ', '.join(f'{name} {error:.2g}' for name, error in largest.items())
    print(
        f'{total} detections in {len(images)} images; as many, of the same classes, in {same} of '
        f'them, which differ by at most: {differences}',
        flush=True,
    )


def compare(networks, images, rounds):
    """Prints medians over the rounds, and the ratio of a round's seconds."""
    runs = {name: [] for name in networks}
    for turn in range(rounds):
        sums = {name: np.zeros(2) for name in networks}
        for pixels in images:
            for name in sorted(networks, reverse=turn % 2):
                sums[name] += timed(networks[name], pixels)[1:]
        for name, of_round in sums.items():
            runs[name].append(of_round / len(images))
    for name, seconds in runs.items():
        wall, cpu = np.median(seconds, axis=0)
        print(f'{name}: {wall:.3f} s an image, {cpu:.3f} s of CPU')
    for i, kind in enumerate(('on the clock', 'of CPU')):
        ratios = [theirs[i] / ours[i] for theirs, ours in zip(*runs.values())]
        print(
            f'SavedModel / ONNX Runtime, seconds {kind}: {statistics.median(ratios):.2f} '
            f'({min(ratios):.2f} to {max(ratios):.2f} in {rounds} rounds)'
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('saved_model', help='OUT/model/N')
    parser.add_argument('onnx', help='OUT/model.onnx')
    parser.add_argument('images', nargs='+', help='patterns of files')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=5)
    options = parser.parse_args()
    paths = sorted(path for pattern in options.images for path in glob.glob(pattern))
    images = [np.asarray(Image.open(path).convert('RGB')) for path in paths]
    networks = load(options)
    print_differences(networks, images)
    compare(networks, images, options.rounds)


if __name__ == '__main__':
    main()
