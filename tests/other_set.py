"""What test_two_sets.py has done by the other set: `PYTHON -m tests.other_set WHAT ...`.

losses MODE FILE        terms of three steps on one batch, as JSON
train FOLDER STEPS      a run of tests/tiny.py in FOLDER/run, on to STEPS
detect MODEL IN OUT     detections of the SavedModel in the images of an .npz, as another .npz
publish FOLDER          a run of tests/serving/tiny.py in FOLDER/run, published in FOLDER/weights
weights FILE OUT        weights of the network that published weights are of, as an .npz
"""

import json
import os
import pathlib
import sys

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import numpy as np  # noqa: E402

from gan_mrcnn.modeling import weights_file  # noqa: E402
from gan_mrcnn.prediction import checkpoint, predictor  # noqa: E402
from gan_mrcnn.serving import publish as publishing  # noqa: E402
from tests import tiny  # noqa: E402
from tests.serving import tiny as tiny_export  # noqa: E402


def losses(mode):
    """Terms of three steps on one batch, of a network drawn from a seed: [{name: value}]."""
    task, model = tiny.make_task(mode)
    batch = tiny.make_batch(task.task_config)
    optimizer = tiny.sgd()
    steps = []
    for _ in range(3):
        metrics = task.build_metrics()
        task.train_step(batch, model, optimizer, metrics)
        steps.append({metric.name: float(metric.result()) for metric in metrics})
    return steps


def detect(model, images):
    """Outputs of a SavedModel for uint8 images [B, H, W, 3], named by image and output."""
    detections = predictor.load_saved_model(str(model)).detect_pixels(images)
    return {
        f'{i}_{name}': x for i, one in enumerate(detections) for name, x in one._asdict().items()
    }


def publish(folder):
    """A tiny run in `folder`/run, published in `folder`/weights."""
    run = folder / 'run'
    tiny_export.write_run(run)
    publishing.publish(checkpoint.open_run(str(run)), str(run), str(folder / 'weights'))


def weights(path):
    """Every weight of the network that published weights are of, by name."""
    model = checkpoint.open_published(str(path)).model
    return {name: x.numpy() for name, x in weights_file.named_variables(model).items()}


if __name__ == '__main__':
    what, *arguments = sys.argv[1:]
    if what == 'losses':
        mode, target = arguments
        pathlib.Path(target).write_text(json.dumps(losses(mode)))
    elif what == 'train':
        folder, steps = arguments
        tiny.train(pathlib.Path(folder), 'run', int(steps))
    elif what == 'export':
        tiny_export.export(pathlib.Path(arguments[0]))
    elif what == 'publish':
        publish(pathlib.Path(arguments[0]))
    elif what == 'weights':
        source, target = arguments
        np.savez(target, **weights(source))
    elif what == 'detect':
        model, source, target = arguments
        np.savez(target, **detect(model, np.load(source)['images']))
