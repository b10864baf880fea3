"""Workers on machines of their own, as far as their network goes: links that are cut."""

import json
import signal
import time

import pytest

from tests import tiny
from tests.faults import networks, runs, test_devices, test_workers

pytestmark = pytest.mark.faults

FLAGS = test_devices.FLAGS
# Enough for a link to be cut in the middle.
MANY = 40
# What a network does to workers has nothing to do with discriminators.
MANY_FLAGS = (
    FLAGS[0],
    'task.gan.mode=baseline',
    'trainer.checkpoint_interval=5',
    f'trainer.validation_interval={MANY}',
)
# Seconds after which both sides have noticed that nothing comes any more (docs/cluster.md).
NOTICED = 60


@pytest.fixture(scope='module')
def make_network():
    """Makes networks of so many machines, and removes them."""
    reason = networks.why_not()
    if reason:
        pytest.skip(reason)
    made = []

    def make(number):
        made.append(networks.Network(number))
        return made[-1]

    yield make
    for network in made:
        network.close()


@pytest.fixture(scope='module')
def network(make_network):
    """Two machines, whose links are whole before each test."""
    return make_network(2)


@pytest.fixture(scope='module')
def single(site):
    """The folder of a run in one process."""
    model_dir = site.folder / 'one_process_for_network'
    assert runs.ended_well(site.train(model_dir, *FLAGS, steps=test_devices.STEPS))
    return model_dir


@pytest.fixture(scope='module')
def undisturbed(site, network):
    """The folder of a run of two workers that nothing happens to."""
    workers = test_workers.Workers(site, 'undisturbed', *MANY_FLAGS, steps=MANY, network=network)
    assert all(runs.ended_well(one) for one in workers.finish())
    return workers.model_dir


@pytest.mark.parametrize('number', runs.some([2, 4]))
def test_workers_end_where_one_process_does(number, site, single, make_network):
    workers = test_workers.Workers(
        site,
        f'{number}_machines',
        *FLAGS,
        steps=test_devices.STEPS,
        number=number,
        network=make_network(number),
    )
    done = workers.finish()
    assert all(runs.ended_well(one) for one in done)
    assert f'{number} x CPU of {number} workers' in done[0].out
    assert f'a step of a small network on {number} devices is that of one' in done[0].err
    test_devices.close_values(tiny.last_values(workers.model_dir), tiny.last_values(single))
    test_devices.close_losses(workers.model_dir, single)


def cut_in_the_middle(site, name, network):
    """Two workers, of which the second has no network any more."""
    workers = test_workers.Workers(site, name, *MANY_FLAGS, steps=MANY, network=network)
    assert workers.processes[0].wait_for(lambda: (workers.model_dir / 'ckpt-10.index').exists())
    network.cut(1)
    return workers


def ends_as(workers, undisturbed):
    """Asserts that they end, and with the same bits as without the fault."""
    done = workers.finish()
    assert all(runs.ended_well(one) for one in done)
    assert runs.state(workers.model_dir) == 'finished'
    runs.same_values(tiny.last_values(workers.model_dir), tiny.last_values(undisturbed))
    validations = [
        json.loads((folder / 'validations.json').read_text())
        for folder in (workers.model_dir, undisturbed)
    ]
    assert validations[0] == validations[1]


def test_a_worker_that_is_cut_off_killed_and_started_again(site, network, undisturbed):
    workers = cut_in_the_middle(site, 'cut_and_killed', network)
    workers.processes[1].send(signal.SIGKILL)
    assert workers.processes[1].finish().status == -signal.SIGKILL
    # No last packet of the killed one comes through: it is missed, not heard of.
    assert workers.processes[0].says('a worker is lost', NOTICED)
    network.mend(1)
    workers.restart(1)
    ends_as(workers, undisturbed)


def test_a_link_that_is_cut_for_a_while(site, network, undisturbed):
    """Nobody dies: both notice it, restart themselves, and go on when the link is back."""
    workers = cut_in_the_middle(site, 'cut', network)
    began = time.monotonic()
    for process in workers.processes:
        assert process.says('a worker is lost', NOTICED - (time.monotonic() - began))
    network.mend(1)
    ends_as(workers, undisturbed)
