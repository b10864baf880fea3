"""SIGKILL at random moments and at chosen ones: the next start goes on, and nothing is lost."""

import random
import signal
import time

import pytest

from gan_mrcnn.training import checkpoints
from tests import tiny
from tests.faults import runs

pytestmark = pytest.mark.faults

# Of the random moments.
SEED = 7


def check_saved(folder, least):
    """The step of the newest sound checkpoint, all of whose values belong to it."""
    path = checkpoints.newest_sound(str(folder))
    if path is None:
        assert least == 0
        return 0
    found = tiny.values(path)
    step = int(found.pop('global_step/.ATTRIBUTES/VARIABLE_VALUE'))
    assert all((value == step).all() for value in found.values()) and len(found) == 8
    # Of those that were whole when it was killed, the last one or the one before it.
    assert step >= least
    return step


def test_killed_at_random_while_saving_without_end(tmp_path):
    """Forty times; the process does nothing but save, so that most kills hit a saving."""
    rng = random.Random(SEED)
    step = half_written = 0
    trials = runs.count(40)
    for _ in range(trials):
        process = runs.Process(['-m', 'tests.faults.saver', str(tmp_path)])
        assert process.says(f'from {step}\n')
        time.sleep(rng.uniform(0, 1.0))
        process.send(signal.SIGKILL)
        assert process.finish().status == -signal.SIGKILL
        half_written += bool(list(tmp_path.glob('*_temp*')))
        step = check_saved(tmp_path, step)
        assert not list(tmp_path.glob('*_temp*')) and not (tmp_path / checkpoints.DAMAGED).exists()
    print(f'{trials} kills, {half_written} in the middle of a file; {step} checkpoints')
    # A few kills may all miss the moment.
    assert (half_written > trials / 8 or runs.IS_SHORT) and step > trials


# Every two steps a checkpoint, every five a validation: most moments are near one.
LONG = ('trainer.validation_interval=5',)
LONG_STEPS = 60
KILLS = runs.count(8)


@pytest.fixture(scope='module')
def long_run(site):
    """A run of sixty steps that nothing happened to."""
    model_dir = site.folder / 'long'
    assert runs.ended_well(site.train(model_dir, *LONG, steps=LONG_STEPS))
    return model_dir


@pytest.mark.parametrize('part', runs.some(range(2)))
def test_killed_at_random_a_run_ends_as_a_whole_one(part, site, long_run):
    """`KILLS` times each: some in start-up, most while it trains, saves and validates."""
    rng = random.Random(f'{SEED} {part}')
    model_dir = site.folder / f'killed_{part}'
    for _ in range(KILLS):
        process = site.start(model_dir, *LONG, steps=LONG_STEPS)
        if rng.random() < 0.3:
            time.sleep(rng.uniform(0, 10))
        elif process.says(f' of {LONG_STEPS}: loss'):
            time.sleep(rng.uniform(0, 6))
        process.send(signal.SIGKILL)
        status = process.finish().status
        assert status == -signal.SIGKILL, 'it came to its end: the moments are too far apart'
    done = site.train(model_dir, *LONG, steps=LONG_STEPS)
    assert runs.ended_well(done)
    assert 'damaged' not in done.out
    runs.same_run(model_dir, long_run)
