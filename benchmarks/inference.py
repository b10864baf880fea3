# SPDX-License-Identifier: Apache-2.0
"""Inference of checkpoint, SavedModel and the Model Garden's own export, side by side.

    python benchmarks/inference.py [--run RUN | --config_file F] [--images 'P*.png'] [--json F]

All predict the same encoded images at the same size (522 pixels, padded to 576 x 832). Each is a
process of its own, for its peak memory; they take turns, so that other load of the machine affects
all, and time is given on the clock and in seconds of CPU, which other load hardly changes. With
`--run` ours has trained weights; without, weights are random and every row of the output is a
detection, which is the worst case. The Model Garden's network has random weights: its time does not
depend on its detections. Two of it are measured: with the box head of its default (four
convolutions and a fully connected layer), and with ours (two fully connected layers).

Parts of ours are timed alone, on the same tensors.
"""

import argparse
import glob
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

from gan_mrcnn.prediction import checkpoint  # noqa: E402

SHORT_SIDE, INPUT_SIZE = 522, (576, 832)
KINDS = ('checkpoint', 'saved_model', 'garden', 'garden_our_head')


def read_images(pattern):
    """Up to 8 encoded images; noise where there is no pattern.

    All of the first one's size: the Model Garden's export takes no others in a batch.
    """
    import cv2

    if pattern:
        paths = sorted(glob.glob(pattern))
        shapes = {path: cv2.imread(path).shape for path in paths}
        paths = [path for path in paths if shapes[path] == shapes[paths[0]]]
        return [pathlib.Path(path).read_bytes() for path in paths[:8]]
    pixels = np.random.default_rng(0).integers(0, 256, [8, 26, 39, 3], np.uint8)
    pixels = [cv2.resize(one, (775, 522), interpolation=cv2.INTER_CUBIC) for one in pixels]
    return [cv2.imencode('.png', one)[1].tobytes() for one in pixels]


def make_module(options):
    """Our module at the benchmark's size."""
    from gan_mrcnn import settings
    from gan_mrcnn import task as task_lib
    from gan_mrcnn.prediction import signatures

    path = f'{options.run}/params.yaml' if options.run else options.config_file
    config = settings.saved_config(pathlib.Path(path))
    config.task.model.input_size = [*INPUT_SIZE, 3]
    config.task.validation_data.parser.test_short_side = SHORT_SIDE
    config.task.model.num_classes = config.task.model.num_classes or 2
    model = task_lib.GanMaskRCNNTask(config.task).build_model()
    if options.run:
        checkpoint.restore(model, checkpoint.find_checkpoint(options.run, 'best'))
    return signatures.InferenceModule(model, config.task, 0.5), model, config


def export_garden(config, our_head, folder):
    """The Model Garden's Mask R-CNN of that size, exported by its own code."""
    from official.core import exp_factory
    from official.vision.serving import export_saved_model_lib
    from official.vision.tasks import maskrcnn

    garden = exp_factory.get_exp_config('maskrcnn_resnetfpn_coco')
    ours, theirs = config.task.model, garden.task.model
    theirs.input_size, theirs.num_classes = [*INPUT_SIZE, 3], ours.num_classes
    theirs.max_level = ours.max_level
    theirs.backbone.resnet.model_id = ours.backbone.resnet.model_id
    theirs.decoder.fpn.num_filters = ours.decoder.fpn.num_filters
    theirs.rpn_head.num_filters = ours.rpn_head.num_filters
    theirs.mask_head.num_filters = ours.mask_head.num_filters
    theirs.roi_generator.test_num_proposals = ours.roi_generator.test_num_proposals
    theirs.detection_head.fc_dims = ours.detection_head.fc_dims
    if our_head:
        theirs.detection_head.num_convs, theirs.detection_head.num_fcs = 0, 2
    else:
        theirs.detection_head.num_filters = ours.decoder.fpn.num_filters
    import tensorflow as tf

    model = maskrcnn.MaskRCNNTask(garden.task).build_model()
    checkpoint = tf.train.Checkpoint(model=model).save(f'{folder}/checkpoint')
    export_saved_model_lib.export_inference_graph(
        'image_bytes', None, list(INPUT_SIZE), garden, checkpoint, str(folder)
    )
    return str(folder)


def prepare(options, folder):
    """Writes the SavedModels; gives kind -> path."""
    import tensorflow as tf

    module, _, config = make_module(options)
    paths = {'checkpoint': ''}
    for kind in options.kinds:
        path = f'{folder}/{kind}'
        if kind == 'saved_model':
            tf.saved_model.save(module, path, signatures=module.signatures('tensorflow'))
            paths[kind] = path
        elif kind != 'checkpoint':
            paths[kind] = export_garden(config, kind == 'garden_our_head', path)
    return {kind: paths[kind] for kind in options.kinds}


def work(options):
    """Runs one batch for each line of the standard input, a number; answers with a line of JSON."""
    import tensorflow as tf

    images = read_images(options.images)
    if options.path:
        loaded = tf.saved_model.load(options.path)
        function = loaded.signatures['serving_default']
        (name,) = function.structured_input_signature[1]
    else:
        module, _, _ = make_module(options)
        function, name = module.signatures()['serving_default'], 'image_bytes'
    for line in sys.stdin:
        batch = tf.constant((images * int(line))[: int(line)])
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        outputs = function(**{name: batch})
        detections = int(tf.reduce_sum(outputs['num_detections']))
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        answer = {'wall': wall, 'cpu': cpu, 'detections': detections, 'peak_mb': peak_mb()}
        print(json.dumps(answer), flush=True)


def peak_mb():
    """The process's own peak; `ru_maxrss` begins with that of the process that started it."""
    status = pathlib.Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) / 1024


class Worker:
    """A process that runs batches when asked."""

    def __init__(self, path, arguments):
        self._process = subprocess.Popen(
            [sys.executable, __file__, '--worker', '--path', path, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, batch_size):
        self._process.stdin.write(f'{batch_size}\n')
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError('a worker has stopped, see above')
        return json.loads(line)

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def compare(paths, batch_sizes, rounds, arguments):
    """kind -> batch size -> figures; each kind runs once before it is timed."""
    workers = {kind: Worker(path, arguments) for kind, path in paths.items()}
    results = {kind: {} for kind in workers}
    for batch_size in batch_sizes:
        runs = {kind: [] for kind in workers}
        for turn in range(rounds + 1):
            for kind, worker in workers.items():
                run = worker.run(batch_size)
                if turn:
                    runs[kind].append(run)
        for kind, timed in runs.items():
            wall, cpu = (statistics.median(run[key] for run in timed) for key in ('wall', 'cpu'))
            results[kind][batch_size] = {
                'images_per_second': batch_size / wall,
                'cpu_seconds_per_image': cpu / batch_size,
                'peak_mb': timed[-1]['peak_mb'],
                'detections_per_image': timed[-1]['detections'] / batch_size,
            }
            print(kind, batch_size, results[kind][batch_size], flush=True)
    for worker in workers.values():
        worker.close()
    return results


def time_parts(options, rounds):
    """Seconds of CPU per image of each part of ours, one image at a time."""
    import tensorflow as tf

    from gan_mrcnn.metrics import predictions
    from gan_mrcnn.prediction import predictor, signatures

    module, model, _ = make_module(options)
    encoded = tf.constant(read_images(options.images)[0])
    image, info = module._resize(signatures.decode(encoded, 0))
    images, shape = image[tf.newaxis], info[tf.newaxis, 1]
    features = model.decoder(model.backbone(images))
    rpn_scores, rpn_boxes = model.rpn_head(features)
    anchors = model._anchors(images)
    propose = lambda scores, boxes: model.roi_generator(  # noqa: E731
        boxes, scores, anchors, shape, False
    )[0]
    rois = propose(rpn_scores, rpn_boxes)
    pooled = model.roi_aligner(features, rois, training=False)
    found = model._detections(features, rois, shape)
    height, width = (int(side) for side in info[0].numpy())
    (detections,) = predictor.split_batch(
        {name: value.numpy() for name, value in found.items() if 'detection' in name}
    )
    parts = {
        'decode, scale': (lambda x: module._resize(signatures.decode(x, 0)), encoded),
        'backbone': (model.backbone, images),
        'FPN': (model.decoder, model.backbone(images)),
        'RPN head': (model.rpn_head, features),
        'proposals': (propose, rpn_scores, rpn_boxes),
        'RoIAlign 7x7': (lambda f, r: model.roi_aligner(f, r, training=False), features, rois),
        'box head': (lambda p: model.detection_head[0](p), pooled),
        'masks of detections': (lambda f: model._detected_masks(f, found), features),
    }
    seconds = {}
    for name, (function, *arguments) in parts.items():
        seconds[name] = _cpu_seconds(tf.function(function), arguments, rounds)
    as_sent = [[height, width], [height, width], [1, 1], [0, 0]]
    paste = lambda: predictions.detections_to_coco(1, *detections, as_sent)  # noqa: E731
    seconds['paste'] = _cpu_seconds(paste, [], rounds)
    for name, value in seconds.items():
        print(f'{name:22s} {value:7.3f} s of CPU', flush=True)
    return seconds


def _cpu_seconds(function, arguments, rounds):
    function(*arguments)
    start = time.process_time()
    for _ in range(rounds):
        function(*arguments)
    return (time.process_time() - start) / rounds


def parse_flags():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--run', help='a run whose trained weights are used')
    parser.add_argument('--config_file', default='configs/gland.yaml')
    parser.add_argument('--images', default='', help='pattern of JPEG or PNG files')
    parser.add_argument('--kinds', nargs='*', default=KINDS, help='none for the parts alone')
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--json')
    parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('--path', default='', help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = parse_flags()
    if options.worker:
        work(options)
        return
    arguments = ['--config_file', options.config_file, '--images', options.images]
    arguments += ['--run', options.run] if options.run else []
    with tempfile.TemporaryDirectory() as folder:
        paths = prepare(options, folder)
        results = {'whole': compare(paths, options.batch, options.rounds, arguments)}
    results['parts'] = time_parts(options, options.rounds)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1), encoding='utf-8')


if __name__ == '__main__':
    main()
