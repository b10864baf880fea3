# SPDX-License-Identifier: Apache-2.0
"""The parts of `gpu.py` that need TensorFlow, each a process of its own.

    python benchmarks/_gpu_parts.py steps|inference|evaluation --json FILE [flags]

What takes long and needs no card (imports, tracing) goes on beside the other parts; times are taken
alone on the card, see `_card.py`. Figures are written as they come: a profiler that breaks the
process leaves the times.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import statistics
import sys
import time

START = time.perf_counter()  # Before the imports, which take long.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import gan_mrcnn  # noqa: E402, F401, I001  (chooses Keras 2 before anything imports TensorFlow)
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import _card  # noqa: E402
import _device_profile  # noqa: E402
import train_step  # noqa: E402
from gan_mrcnn import settings  # noqa: E402
from gan_mrcnn import task as task_lib  # noqa: E402
from gan_mrcnn.data.records import records  # noqa: E402
from gan_mrcnn.evaluation import run as evaluation_run  # noqa: E402
from gan_mrcnn.prediction import checkpoint, signatures  # noqa: E402
from gan_mrcnn.utils import devices, progress_bar  # noqa: E402

PROFILED_STEPS = 3
BATCH_SIZES = (1, 8)
# First calls of a shape load kernels and try algorithms.
WARM_UP = 2
MOST_TYPES = 20
RETRY_SECONDS = 3


class Stopwatch:
    """Seconds since it was last looked at, first of all since `start` where that is given."""

    def __init__(self, start=None):
        self._last = start or time.perf_counter()

    def lap(self):
        now = time.perf_counter()
        self._last, before = now, self._last
        return now - before


def make_flags(options):
    """`settings.Flags` of the part, with its dtype."""
    override = [f'runtime.mixed_precision_dtype={options.dtype}', *options.params_override]
    return settings.Flags(
        dataset='gland',
        data_dir=options.data_dir,
        config_file=options.config_file,
        cache_dir=options.cache_dir,
        gan=options.gan,
        params_override=override,
    )


def freeze_as_with_weights(config):
    """The layers that ImageNet weights would leave frozen are frozen.

    Without a file of weights train.py trains all of them, another amount of work.
    """
    resnet = type(config.task.model.backbone.resnet)()
    config.task.model.backbone.resnet.freeze_stages = resnet.freeze_stages
    config.task.model.backbone.resnet.bn_trainable = resnet.bn_trainable


# Steps.


def steps(options, figures):
    """Times, memory, placement and profile of one mode's train step in one dtype."""
    watch = Stopwatch(START)
    with _card.shared('records'):
        config = train_step.load_config(make_flags(options))
    freeze_as_with_weights(config)
    batch = config.task.train_data.global_batch_size
    figures.update(
        batch=batch, input_size=list(config.task.model.input_size), import_seconds=watch.lap()
    )
    with _card.shared():
        run = train_step.Run(config)
    figures.update(build_seconds=watch.lap())
    run.trace()
    figures.update(trace_seconds=watch.lap())
    tf.summary.trace_on(graph=True, profiler=False)
    first_step(run, figures)
    write_placement(options.folder, figures)
    watch.lap()
    with _card.exclusive():
        figures.update(waited_seconds=watch.lap())
        time_steps(run, options.steps, batch, figures)
        profiled = profile(run, options.folder, figures)
    if profiled:
        summarize_profile(options.folder, figures)


def first_step(run, figures):
    """Runs the graph for the first time; waits for the other parts where memory is short."""
    watch = Stopwatch()
    while True:
        try:
            with _card.shared():
                watch.lap()
                finite = [bool(run.step()[1]) for _ in range(1 + WARM_UP)]
            figures.update(first_steps_seconds=watch.lap(), first_steps_finite=finite)
            return
        except tf.errors.ResourceExhaustedError as error:
            print(f'out of memory, trying again: {str(error)[:200]}', flush=True)
            time.sleep(RETRY_SECONDS)


def write_placement(folder, figures):
    """Operations of the step that run on the host, and copies between host and card."""
    try:
        with tf.summary.create_file_writer(str(folder / 'placement')).as_default():
            tf.summary.trace_export('step', step=0)
        counts, copies = count_host_operations(folder / 'placement')
        figures.update(
            operations_on_card=sum(counts['GPU'].values()),
            operations_on_host=sum(counts['CPU'].values()),
            host_operation_types=counts['CPU'].most_common(MOST_TYPES),
            copies_between_devices=copies,
        )
    except Exception as error:  # noqa: BLE001  (the times matter more)
        figures.update(placement_error=repr(error)[:300])


def count_host_operations(folder):
    """Operations by device and type in the graphs that were run, and receives from other devices.

    Constants are left out: they take no time.
    """
    path = max(folder.glob('events.*'), key=os.path.getmtime)
    counts, copies = {'CPU': collections.Counter(), 'GPU': collections.Counter()}, 0
    for record in tf.data.TFRecordDataset(str(path)):
        for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
            if value.metadata.plugin_data.plugin_name != 'graph_run_metadata_graph':
                continue
            (content,) = value.tensor.string_val
            for graphs in tf.compat.v1.RunMetadata.FromString(content).function_graphs:
                for graph in graphs.partition_graphs:
                    for node in graph.node:
                        device = 'GPU' if 'GPU' in node.device else 'CPU'
                        if node.op not in ('Const', 'NoOp', '_Arg', '_Retval'):
                            counts[device][node.op] += 1
                        copies += node.op == '_Recv'
    return counts, copies


def time_steps(run, steps, batch, figures):
    """Seconds of a step whose result is waited for, of steps in a row, and with fresh input."""
    waited, finite = [], []
    for _ in range(steps):
        start = time.perf_counter()
        finite.append(bool(run.step()[1]))  # What train.py's loop waits for after each step.
        waited.append(time.perf_counter() - start)
    start = time.perf_counter()
    for _ in range(steps):
        last = run.step()
    finite.append(bool(last[1]))
    free = (time.perf_counter() - start) / steps
    median = statistics.median(waited)
    figures.update(
        step_seconds=median,
        steps_seconds=waited,
        free_running_seconds=free,
        images_per_second=batch / median,
        free_running_images_per_second=batch / free,
        all_finite=all(finite),
        peak_bytes=peak_bytes(),
    )
    line = f'{1000 * median:.0f} ms a step ({batch / median:.1f} images/s), free-running '
    line += f'{1000 * free:.0f} ms ({batch / free:.1f})'
    line += f', peak {peak_bytes() / 2**30:.1f} GiB' if peak_bytes() else ''
    figures.say(line + ('' if all(finite) else ', NOT ALL STEPS WERE FINITE'))
    time_with_input(run, steps, batch, figures)


def time_with_input(run, steps, batch, figures):
    """Images per second when the input pipeline makes every batch meanwhile, as train.py does."""
    step = run.input_step()
    step()[1].numpy()
    start = time.perf_counter()
    for _ in range(steps):
        step()[1].numpy()
    rate = steps * batch / (time.perf_counter() - start)
    figures.update(images_per_second_with_input=rate)
    figures.say(f'with fresh input {rate:.1f} images/s, other parts on the same cores')


def peak_bytes():
    """Most memory that was in use on the card; None without one."""
    if not tf.config.list_physical_devices('GPU'):
        return None
    return tf.config.experimental.get_memory_info('GPU:0')['peak']


def profile(run, folder, figures):
    """Saves a profile of free-running steps; whether that went well."""
    options = tf.profiler.experimental.ProfilerOptions(
        host_tracer_level=1, python_tracer_level=0, device_tracer_level=1
    )
    try:
        tf.profiler.experimental.start(str(folder), options)
        for _ in range(PROFILED_STEPS):
            last = run.step()
        last[1].numpy()
        tf.profiler.experimental.stop()
    except Exception as error:  # noqa: BLE001  (of whatever kind, the times are there)
        figures.update(profile_error=repr(error)[:300])
        return False
    return True


def summarize_profile(folder, figures):
    """Device time by operation; what is missing is said."""
    try:
        summary = _device_profile.summarize(folder, PROFILED_STEPS)
    except Exception as error:  # noqa: BLE001  (another TensorFlow may have another format)
        figures.update(profile_error=repr(error)[:300])
        return
    figures.update(profile=summary)
    for name, one in summary.items():
        if one['types']:
            dearest = ', '.join(f'{kind} {ms:.1f}' for kind, ms, _ in one['types'][:6])
            figures.say(f'{name} idle {one["idle_share"]:.0%}; ms a step: {dearest}')


# Inference.


def inference(options, figures):
    """Images per second of the network alone, and in float32 of the exported SavedModel."""
    watch = Stopwatch(START)
    with _card.shared('records'):
        config, dataset = load_for_inference(options)
        (record_set,) = records.ensure_splits(dataset, ['val'], config.task)
    record_set.feed(config.task.validation_data)
    devices.set_up(options.dtype, False)
    with _card.shared():
        task, model = build_model(config, options.model_dir)
        batches = make_batches(task, config.task.validation_data)
    figures.update(weights=options.model_dir or 'random', build_seconds=watch.lap())
    network = trace_network(model, config.task.model.input_size)
    figures.update(trace_seconds=watch.lap())
    time_calls('network', lambda size: network(*batches[size]), options.steps, figures)
    if options.dtype == 'float32':
        watch.lap()
        saved, name = export_and_load(model, config, options.folder)
        figures.update(export_and_load_seconds=watch.lap())
        encoded = read_encoded(options.data_dir)
        inputs = {size: tf.constant((encoded * size)[:size]) for size in BATCH_SIZES}
        call = lambda size: saved(**{name: inputs[size]})  # noqa: E731
        time_calls('SavedModel, from PNG', call, options.steps, figures)


def load_for_inference(options):
    """Settings of the part's file, or of the run in `--model_dir`, and the data set."""
    flags = make_flags(options)
    if options.model_dir:
        flags.config_file = f'{options.model_dir}/{checkpoint.PARAMS_NAME}'
    dataset = settings.load_dataset(flags)
    return settings.load_config(flags, dataset), dataset


def build_model(config, model_dir):
    """The task and its generator, with a run's weights or random ones."""
    if not model_dir:
        freeze_as_with_weights(config)
    task = task_lib.GanMaskRCNNTask(config.task)
    model = task.build_model()
    if model_dir:
        checkpoint.restore(model, checkpoint.find_checkpoint(model_dir, 'best'))
    return task, model


def make_batches(task, params):
    """Batch size -> images and their sizes, on the card where there is one."""
    images, labels = next(iter(task.build_inputs(params)))
    shapes = labels['image_info'][:, 1]
    repeats = -(-max(BATCH_SIZES) // images.shape[0])
    images, shapes = tf.tile(images, [repeats, 1, 1, 1]), tf.tile(shapes, [repeats, 1])
    device = 'GPU:0' if tf.config.list_physical_devices('GPU') else 'CPU:0'
    with tf.device(device):
        return {
            size: (tf.identity(images[:size]), tf.identity(shapes[:size])) for size in BATCH_SIZES
        }


def trace_network(model, size):
    """Detections and their 28x28 masks from images that are scaled and padded."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, *size], tf.float32),
            tf.TensorSpec([None, 2], tf.float32),
        ]
    )
    def network(images, shapes):
        outputs = model(images, image_shape=shapes, training=False)
        kept = ('num_detections', 'detection_boxes', 'detection_scores', 'detection_masks')
        return {name: outputs[name] for name in kept}

    network.get_concrete_function()
    return network


def export_and_load(model, config, folder):
    """The default signature of a SavedModel that was written and read, and its input's name.

    That signature alone: each of the others takes as long again to trace.
    """
    module = signatures.InferenceModule(model, config.task, 0.5)
    with _card.shared():
        spec = tf.TensorSpec([None], tf.string, name='image_bytes')
        traced = tf.function(module.detect_encoded).get_concrete_function(spec)
        path = str(folder / 'saved_model')
        tf.saved_model.save(module, path, signatures={'serving_default': traced})
        loaded = tf.saved_model.load(path)
    return loaded.signatures['serving_default'], 'image_bytes'


def read_encoded(data_dir):
    """Encoded images of the gland contest, or one of noise without them."""
    paths = sorted(pathlib.Path(data_dir).glob('testA_*[0-9].png')) if data_dir else []
    if paths:
        return [path.read_bytes() for path in paths[: max(BATCH_SIZES)]]
    pixels = np.random.default_rng(0).integers(0, 256, [256, 384, 3], np.uint8)
    return [tf.io.encode_png(pixels).numpy()]


def time_calls(name, call, rounds, figures):
    """Images per second of each batch size, waiting for each call and not."""
    with _card.shared():
        for size in BATCH_SIZES:
            for _ in range(WARM_UP):
                found = call(size)['num_detections'].numpy()
    rows = {}
    with _card.exclusive():
        for size in BATCH_SIZES:
            waited = []
            for _ in range(rounds):
                start = time.perf_counter()
                # All of the outputs arrive together; masks are what is large.
                [value.numpy() for value in call(size).values()]
                waited.append(time.perf_counter() - start)
            start = time.perf_counter()
            for _ in range(rounds):
                last = call(size)
            last['detection_masks'].numpy()
            free = (time.perf_counter() - start) / rounds
            rows[size] = {
                'seconds': statistics.median(waited),
                'images_per_second': size / statistics.median(waited),
                'free_running_images_per_second': size / free,
            }
    figures.update(
        **{name: {**rows, 'detections_per_image': found.mean().item(), 'peak_bytes': peak_bytes()}}
    )
    text = ', '.join(
        f'batch {size} {row["images_per_second"]:.1f} images/s '
        f'(free {row["free_running_images_per_second"]:.1f})'
        for size, row in rows.items()
    )
    figures.say(f'{name}: {text}; {found.mean():.0f} detections an image')


# Evaluation.


class TimedBar(progress_bar.Bar):
    """Evaluation's bar, which notes when images were predicted: (seconds, images).

    The process has the card alone while a bar runs, but for the first batch, whose step is traced:
    it has the card with others from the end of tracing.
    """

    predictions = []
    card = contextlib.ExitStack()
    first_batch_at = None
    waited = 0.0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.times = []
        if kwargs.get('desc') == 'predict':
            self.predictions.append(self)
            if len(self.predictions) > 1:
                self._take_card()

    def update(self, n=1):
        super().update(n)
        self.times.append((time.perf_counter(), n))

    def close(self):
        super().close()
        self.card.close()

    @classmethod
    def _take_card(cls):
        watch = Stopwatch()
        cls.card.close()
        cls.card.enter_context(_card.exclusive())
        cls.waited += watch.lap()

    @classmethod
    def watch_task(cls, task):
        """Wraps what evaluation calls of a task class: its step, to trace it, and each batch."""
        validation_step, aggregate_logs = task.validation_step, task.aggregate_logs

        def traced(*args, **kwargs):
            outputs = validation_step(*args, **kwargs)
            if cls.first_batch_at is None:
                cls.card.enter_context(_card.shared())
            return outputs

        def aggregated(*args, **kwargs):
            if cls.first_batch_at is None:
                cls.first_batch_at = time.perf_counter()
                cls._take_card()
            return aggregate_logs(*args, **kwargs)

        task.validation_step, task.aggregate_logs = traced, aggregated


def evaluation(options, figures):
    """All of evaluate.py on the test images, in its parts."""
    with _card.shared('records'):
        config, dataset = load_for_inference(options)
        records.ensure_splits(dataset, ['val', 'test'], config.task)
    model_dir = options.model_dir or write_random_run(config, options.folder / 'run')
    figures.update(weights=options.model_dir or 'random: as many detections as there can be')
    TimedBar.watch_task(task_lib.GanMaskRCNNTask)
    progress_bar.Bar = TimedBar
    start = time.perf_counter()
    results = evaluation_run.evaluate(config, dataset, 'test', model_dir, 'best')
    end = time.perf_counter()
    figures.update(
        evaluate_seconds=end - start - TimedBar.waited,
        waited_seconds=TimedBar.waited,
        num_images=results['num_images'],
        detections=count_detections(model_dir),
    )
    batch = config.task.validation_data.global_batch_size
    say_evaluation(TimedBar.predictions, start, end, batch, figures)


def count_detections(model_dir):
    path = pathlib.Path(model_dir) / 'eval/test/predictions.json'
    return len(json.loads(path.read_text(encoding='utf-8')))


def write_random_run(config, folder):
    """A run's folder with a checkpoint of random weights."""
    with _card.shared():
        _, model = build_model(config, None)
        folder.mkdir(parents=True, exist_ok=True)
        step = tf.Variable(0, dtype=tf.int64)
        tf.train.Checkpoint(model=model, global_step=step).save(str(folder / 'ckpt'))
    return str(folder)


def say_evaluation(bars, start, end, batch, figures):
    """Start-up, prediction and scoring, by what the bars have noted."""
    if not bars or TimedBar.first_batch_at is None:
        figures.say(f'{end - start - TimedBar.waited:.1f} s with start-up')
        return
    # The first batch was traced and waited for the card: counting starts when it is done.
    times, done = bars[0].times, 0
    while done < batch:
        (since, n), *times = times
        done += n
    rate = sum(n for _, n in times) / (times[-1][0] - since)
    scoring = end - bars[-1].times[-1][0]
    num_images = done + sum(n for _, n in times)
    whole = num_images / (num_images / rate + scoring)
    start_up = TimedBar.first_batch_at - start
    figures.update(
        start_up_seconds=start_up,
        predict_images_per_second=rate,
        scoring_seconds=scoring,
        images_per_second=whole,
    )
    figures.say(
        f'{num_images} images: start-up with tracing {start_up:.1f} s, predicts {rate:.1f} '
        f'images/s, scores and writes in {scoring:.1f} s: {whole:.1f} images/s without start-up'
    )


PARTS = {'steps': steps, 'inference': inference, 'evaluation': evaluation}


def parse_flags():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('part', choices=PARTS)
    parser.add_argument('--json', help='a file for the figures, whole at any time')
    parser.add_argument('--folder', type=pathlib.Path, required=True, help='for what is written')
    parser.add_argument('--data_dir', help='folder of the gland contest (default: the demo set)')
    parser.add_argument('--model_dir', help='a run; weights are random without one')
    parser.add_argument('--config_file', default='configs/gland.yaml')
    parser.add_argument('--cache_dir', required=True, help='of the records')
    parser.add_argument('--params_override', action='append', default=[])
    parser.add_argument('--gan', default='baseline', help='mode of the step')
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--steps', type=int, default=10, help='that are timed')
    parser.add_argument('--on_card', action='store_true', help='end at once without a GPU')
    return parser.parse_args()


def main():
    options = parse_flags()
    if options.on_card and not tf.config.list_physical_devices('GPU'):
        sys.exit('TensorFlow sees no GPU: its log above says which library it misses')
    options.folder.mkdir(parents=True, exist_ok=True)
    PARTS[options.part](options, _card.Figures(options.json))
    sys.stdout.flush()
    os._exit(0)  # TensorFlow takes seconds to clean up, with the card's memory held.


if __name__ == '__main__':
    main()
