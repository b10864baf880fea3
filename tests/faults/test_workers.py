"""Several workers, as real processes on this machine: the same run, also when one is killed."""

import contextlib
import json
import signal
import socket

import pytest

from tests import tiny
from tests.faults import runs, test_devices

pytestmark = pytest.mark.faults

FLAGS = test_devices.FLAGS
# Enough for a worker to be killed in the middle.
MANY = 100


class Workers:
    """Processes that train as one; a worker can be started again."""

    def __init__(self, site, name, *flags, faults=(), steps=runs.STEPS, number=2, network=None):
        """Starts them, on this machine or each on one of a `tests.faults.networks.Network`."""
        self._site, self._flags, self._steps, self._network = site, flags, steps, network
        self._addresses = network.addresses if network else free_addresses(number)
        self.model_dir = site.folder / name
        self.processes = [self._start(index, faults) for index in range(number)]

    def _start(self, index, faults=()):
        config = {
            'cluster': {'worker': self._addresses},
            'task': {'type': 'worker', 'index': index},
        }
        return self._site.start(
            self.model_dir,
            *self._flags,
            steps=self._steps,
            faults=faults,
            env={'TF_CONFIG': json.dumps(config)},
            within=self._network.within(index) if self._network else (),
        )

    def restart(self, index):
        self.processes[index] = self._start(index)

    def finish(self):
        try:
            # Two have a core each; more of them wait for each other.
            patience = runs.PATIENCE * max(1, len(self.processes) / 2)
            return [process.finish(patience) for process in self.processes]
        finally:
            for process in self.processes:
                process.process.kill()


def free_addresses(number) -> list[str]:
    """Of this machine."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(('localhost', 0))
        return [f'localhost:{one.getsockname()[1]}' for one in sockets]


@pytest.fixture(scope='module')
def single(site):
    """The folder of a run in one process."""
    model_dir = site.folder / 'one_process'
    assert runs.ended_well(site.train(model_dir, *FLAGS, steps=test_devices.STEPS))
    return model_dir


def test_two_workers_end_where_one_process_does(site, single):
    workers = Workers(site, 'two_workers', *FLAGS, steps=test_devices.STEPS)
    done = workers.finish()
    assert all(runs.ended_well(one) for one in done)
    assert '2 x CPU of 2 workers' in done[0].out
    test_devices.close_values(tiny.last_values(workers.model_dir), tiny.last_values(single))
    test_devices.close_losses(workers.model_dir, single)
    # Validation has seen each of the three images once, although two workers share them.
    figures = [
        json.loads((folder / 'validations.json').read_text())
        for folder in (workers.model_dir, single)
    ]
    assert set(figures[0]) == set(figures[1])
    for step in figures[0]:
        assert figures[0][step] == pytest.approx(figures[1][step], abs=1e-3)


@pytest.mark.parametrize('victim', runs.some([0, 1]))
def test_a_worker_that_is_killed_and_started_again(victim, site):
    """The survivor starts itself again; both end, from the last checkpoint on."""
    flags = (FLAGS[0], 'trainer.checkpoint_interval=10', f'trainer.validation_interval={MANY}')
    workers = Workers(site, f'killed_worker_{victim}', *flags, steps=MANY)
    assert workers.processes[0].wait_for(lambda: (workers.model_dir / 'ckpt-20.index').exists())
    workers.processes[victim].send(signal.SIGKILL)
    assert workers.processes[victim].finish().status == -signal.SIGKILL
    workers.restart(victim)
    done = workers.finish()
    assert all(runs.ended_well(one) for one in done)
    assert 'a worker is lost' in done[1 - victim].err
    assert 'going on from step' in done[0].out
    assert runs.state(workers.model_dir) == 'finished'
    step = tiny.last_values(workers.model_dir)['global_step/.ATTRIBUTES/VARIABLE_VALUE']
    assert step == MANY


@pytest.mark.parametrize('receiver', runs.some([1, 0]))
def test_a_signal_to_one_worker_stops_both_after_the_same_step(receiver, site):
    flags = (FLAGS[0], 'trainer.checkpoint_interval=1000')
    workers = Workers(site, f'stopped_worker_{receiver}', *flags, steps=MANY)
    assert workers.processes[0].says('step 1 of')
    workers.processes[receiver].send(signal.SIGTERM)
    done = workers.finish()
    assert all(runs.ended_well(one) for one in done)
    assert runs.state(workers.model_dir) == 'stopped'
    step = int(tiny.last_values(workers.model_dir)['global_step/.ATTRIBUTES/VARIABLE_VALUE'])
    assert 0 < step < MANY and f'step {step} is saved' in done[0].out


def test_a_step_that_is_not_finite_on_one_worker_is_skipped_by_all(site):
    """Its loss is NaN on the second worker alone."""
    workers = Workers(
        site, 'not_finite', *FLAGS, 'task.nonfinite.policy=skip', faults=['nan-on-worker-1@step:3']
    )
    done = workers.finish()
    assert all(runs.ended_well(one) for one in done)
    for one in done:
        assert 'Non-finite loss or gradient: step 3 images' in one.err
    (event,) = json.loads((workers.model_dir / 'nonfinite.json').read_text())
    assert (event['step'], event['policy']) == (3, 'skip')
    assert runs.state(workers.model_dir) == 'finished'


def test_sums_that_are_wrong_end_the_run_on_every_worker(site):
    workers = Workers(site, 'wrong_sum', *FLAGS, faults=['wrong-sum'])
    for one in workers.finish():
        assert one.status == 2, one.err[-3000:]
        assert 'a step of a small network on 2 devices is not that of one' in one.err
        assert 'try --params_override runtime.all_reduce_alg=ring' in one.err
        assert 'Traceback' not in one.err
    assert runs.state(workers.model_dir) == 'failed'
