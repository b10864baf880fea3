"""What test_two_sets.py has done by the other set: `PYTHON -m tests.other_set WHAT ...`.

losses MODE FILE        terms of three steps on one batch, as JSON
train FOLDER STEPS      the run of tests/training/test_run.py in FOLDER/run, on to STEPS
detect MODEL IN OUT     what the SavedModel finds in the pictures of an .npz, as another .npz
"""

import json
import os
import pathlib
import sys

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import numpy as np  # noqa: E402

from gan_mrcnn.prediction import predictor  # noqa: E402
from tests import test_task  # noqa: E402
from tests.serving import tiny  # noqa: E402
from tests.training import test_run  # noqa: E402


def losses(mode):
    """Terms of three steps on one batch, of a network drawn from a seed: [{name: value}]."""
    task, model = test_task.make_task(mode)
    batch = test_task.make_batch(task.task_config)
    optimizer = test_task.sgd()
    steps = []
    for _ in range(3):
        metrics = task.build_metrics()
        task.train_step(batch, model, optimizer, metrics)
        steps.append({metric.name: float(metric.result()) for metric in metrics})
    return steps


def detect(model, pictures):
    """Outputs of a SavedModel for uint8 pictures [B, H, W, 3], named by picture and output."""
    found = predictor.load_saved_model(str(model)).detect_pixels(pictures)
    return {f'{i}_{name}': x for i, one in enumerate(found) for name, x in one._asdict().items()}


if __name__ == '__main__':
    what, *arguments = sys.argv[1:]
    if what == 'losses':
        mode, target = arguments
        pathlib.Path(target).write_text(json.dumps(losses(mode)))
    elif what == 'train':
        folder, steps = arguments
        test_run.train(pathlib.Path(folder), 'run', int(steps))
    elif what == 'export':
        tiny.export(pathlib.Path(arguments[0]))
    elif what == 'detect':
        model, source, target = arguments
        np.savez(target, **detect(model, np.load(source)['pictures']))
