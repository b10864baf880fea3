# SPDX-License-Identifier: Apache-2.0
"""Several machines that train as one, named by TF_CONFIG, and what happens when one of them dies.

TF_CONFIG is TensorFlow's own convention: `{"cluster": {"worker": ["host1:port", "host2:port"]},
"task": {"type": "worker", "index": 0}}`, the same on every worker but for the index. Worker 0 is
the chief: it alone writes the run's folder, which all must be able to read.

TensorFlow cannot take a worker back into a run. A worker that loses another therefore restarts
itself with the same command and waits for the others; a scheduler or shell loop only has to restart
the dead one. All go on from the last checkpoint.
"""

import contextlib
import json
import os
import sys

import tensorflow as tf

from gan_mrcnn.utils import devices
from gan_mrcnn.utils.errors import UserError

# A cluster that loses workers more often has another problem than one machine.
MOST_RESTARTS = 20
_RESTARTS = 'GAN_MRCNN_RESTARTS'


def num_workers() -> int:
    """Workers that TF_CONFIG names, 1 without it.

    Raises:
      UserError: it is not what TensorFlow expects.
    """
    text = os.environ.get('TF_CONFIG')
    if not text:
        return 1
    try:
        config = json.loads(text)
        workers, task = config['cluster']['worker'], config['task']
        if not (isinstance(workers, list) and all(isinstance(w, str) for w in workers)):
            raise ValueError('cluster.worker is no list of HOST:PORT')
        if task['type'] != 'worker' or not 0 <= int(task['index']) < len(workers):
            raise ValueError(f'task is {task}, not one of {len(workers)} workers')
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'TF_CONFIG is not {{"cluster": {{"worker": ["HOST:PORT", ...]}}, "task": {{"type": '
            f'"worker", "index": N}}}} ({error!r})'
        ) from error
    return len(workers)


def make_strategy(config) -> tf.distribute.Strategy:
    """All devices of all workers that TF_CONFIG names, or of this machine alone.

    Call it before anything else is done with TensorFlow. It waits until all workers have started.

    Raises:
      UserError: the workers cannot be joined, or the devices cannot share a batch evenly.
    """
    devices.set_up(config.runtime.mixed_precision_dtype, config.task.deterministic)
    if num_workers() == 1:
        strategy = devices.mirrored_strategy(config.runtime.all_reduce_alg)
    else:
        try:
            with starting_again():
                strategy = devices.multi_worker_strategy(config.runtime.all_reduce_alg)
        except RuntimeError as error:
            raise UserError(f'the workers of TF_CONFIG cannot be joined: {error}') from error
    devices.check_batch(strategy, config.task.train_data.global_batch_size)
    return strategy


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run's folder."""
    return strategy.extended.should_checkpoint


def is_lost(error: Exception) -> bool:
    """Whether `error` says that another worker is lost."""
    return num_workers() > 1 and isinstance(
        error,
        (
            tf.errors.UnavailableError,
            tf.errors.AbortedError,
            tf.errors.CancelledError,
            tf.errors.DeadlineExceededError,
            tf.errors.InternalError,
        ),
    )


@contextlib.contextmanager
def starting_again():
    """Does `start_again` where another worker is lost."""
    try:
        yield
    except tf.errors.OpError as error:
        if is_lost(error):
            start_again(error)
        raise


def start_again(error: Exception) -> None:
    """Replaces this process by the same command, which waits for the lost worker.

    Raises:
      UserError: that was done `MOST_RESTARTS` times.
    """
    restarts = int(os.environ.get(_RESTARTS, '0')) + 1
    reason = ' '.join(str(error).split())[:160]
    if restarts > MOST_RESTARTS:
        raise UserError(
            f'a worker was lost {restarts} times ({reason}); check the logs of the others, then '
            'start all of them again: they go on from the last checkpoint'
        ) from error
    print(
        f'a worker is lost ({reason}): restarting, to go on from the last checkpoint when it is '
        f'back (restart {restarts} of at most {MOST_RESTARTS})',
        file=sys.stderr,
        flush=True,
    )
    os.environ[_RESTARTS] = str(restarts)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *_command()])


def _command() -> list[str]:
    """What to give the interpreter to run this program again, `python -m` or a script.

    Not `sys.argv` alone: with `python -m gan_mrcnn` it names `gan_mrcnn/__main__.py`, and a script
    imports from its own folder.
    """
    spec = sys.modules['__main__'].__spec__
    if spec is None:
        return sys.argv
    return ['-m', spec.name.removesuffix('.__main__'), *sys.argv[1:]]


def chiefs_number(strategy: tf.distribute.Strategy, number: int) -> int:
    """The chief's `number`, on every worker; waits for all of them."""
    workers = num_workers()
    if workers == 1:
        return number
    mine = number if is_chief(strategy) else 0

    @tf.function
    def add():
        def on_replica(value):
            replicas = tf.distribute.get_replica_context()
            # Made here: what is added up has to have a device.
            return replicas.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(value, tf.float64))

        return strategy.run(on_replica, args=(tf.constant(mine),))

    replicas_of_chief = strategy.num_replicas_in_sync // workers
    return int(strategy.experimental_local_results(add())[0]) // replicas_of_chief
