"""Runs a program of this repository with faults that come at an exact moment.

    python -m tests.faults.faulty FAULT ... -- train.py ARGUMENTS

A fault is one of

    SIGNAL@MOMENT   the process gets SIGNAL, such as SIGTERM or SIGKILL
    nan@step:N      the loss of step N is not finite; nan-on-worker-1@step:N: that of this worker
    devices:N       N logical CPU devices, all of them in one MirroredStrategy
    wrong-sum       gradients are added up over devices with one of them left out

and a moment one of

    records         the records are there, nothing else
    tracing         in the middle of the first step, while its graph is made
    step:N          step N has been taken and reported
    saving          a checkpoint is about to be written
    saved:N         the checkpoint of step N has been written
    validation      the first batch of a validation is done
    replacing:NAME  a new version of the file NAME is written and about to get its name
"""

import json
import os
import pathlib
import runpy
import signal
import sys

import tensorflow as tf

from gan_mrcnn import task as task_lib
from gan_mrcnn.training import checkpoints, status
from gan_mrcnn.training import run as training_run


def before(owner, name, action) -> None:
    """`action` with the arguments of each call of a function, before it."""
    original = getattr(owner, name)

    def replacement(*args, **kwargs):
        action(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, replacement)


def after(owner, name, action) -> None:
    """`action` with the arguments of each call of a function, after it."""
    original = getattr(owner, name)

    def replacement(*args, **kwargs):
        result = original(*args, **kwargs)
        action(*args, **kwargs)
        return result

    setattr(owner, name, replacement)


def send_at(number: signal.Signals, moment: str) -> None:
    """Has this process get a signal at a moment, once."""
    sent = []

    def send():
        if not sent:
            sent.append(number)
            print(f'fault: {number.name} at {moment}', file=sys.stderr, flush=True)
            os.kill(os.getpid(), number)

    kind, _, where = moment.partition(':')
    if kind == 'records':
        before(training_run, 'resume', lambda *_: send())
    elif kind == 'tracing':
        before(task_lib.GanMaskRCNNTask, 'forward', lambda *_: send())
    elif kind == 'validation':
        before(task_lib.GanMaskRCNNTask, 'aggregate_logs', lambda *_, **__: send())
    elif kind == 'step':
        after(
            status.Progress,
            'update',
            lambda *_: send() if status.current_step() == int(where) else None,
        )
    elif kind == 'saving':
        before(checkpoints.Checkpoints, 'save', lambda *_: send())
    elif kind == 'saved':
        after(
            checkpoints.Checkpoints,
            'save',
            lambda *_: send() if status.current_step() == int(where) else None,
        )
    elif kind == 'replacing':
        before(os, 'replace', lambda _, to: send() if pathlib.Path(to).name == where else None)
    else:
        raise ValueError(f'unknown moment {moment}')


def make_not_finite(step: int) -> None:
    """Has the loss of a step be NaN, by the discriminators' own count of steps."""
    original = task_lib.GanMaskRCNNTask.detection_losses

    def replacement(self, outputs, labels):
        terms = original(self, outputs, labels)
        now = tf.equal(self.discriminator_optimizer.iterations, step - 1)
        terms['model_loss'] += tf.where(now, float('nan'), 0.0)
        return terms

    task_lib.GanMaskRCNNTask.detection_losses = replacement


def worker_index() -> int:
    return json.loads(os.environ['TF_CONFIG'])['task']['index']


def use_devices(number: int) -> None:
    """Has the strategy be of several CPU devices."""
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices('CPU')[0], [tf.config.LogicalDeviceConfiguration()] * number
    )
    original = tf.distribute.MirroredStrategy
    devices = [f'CPU:{i}' for i in range(number)]
    tf.distribute.MirroredStrategy = lambda _, **options: original(devices, **options)


def add_up_wrongly() -> None:
    """Has lists of tensors, which gradients are, be added up without the first replica."""
    original = tf.distribute.ReplicaContext.all_reduce

    def replacement(self, reduce_op, value, options=None):
        if isinstance(value, list):
            counts = tf.cast(self.replica_id_in_sync_group > 0, tf.float32)
            value = [x * counts for x in value]
        return original(self, reduce_op, value, options)

    tf.distribute.ReplicaContext.all_reduce = replacement


def main() -> None:
    split = sys.argv.index('--')
    for fault in sys.argv[1:split]:
        what, _, moment = fault.partition('@')
        if what == 'nan' or (what == 'nan-on-worker-1' and worker_index() == 1):
            make_not_finite(int(moment.partition(':')[2]))
        elif what == 'nan-on-worker-1':
            continue
        elif what.startswith('devices:'):
            use_devices(int(what.partition(':')[2]))
        elif what == 'wrong-sum':
            add_up_wrongly()
        else:
            send_at(signal.Signals[what], moment)
    sys.argv = sys.argv[split + 1 :]
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
