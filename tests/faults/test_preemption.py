"""Signals: the step is finished, saved, and the resumed run ends as one that was never stopped."""

import json
import signal
import time

import pytest

from gan_mrcnn.training import preemption
from tests.faults import runs

# From the signal to the end of the process, on a machine that is busy.
SECONDS = 30


@pytest.mark.slow
def test_stopped_and_killed_while_saving_a_run_ends_as_a_whole_one(site, whole):
    """SIGTERM after step 3, SIGKILL while the checkpoint of step 4 is written."""
    model_dir = site.folder / 'stopped'
    done = site.train(model_dir, faults=['SIGTERM@step:3'])
    assert runs.ended_well(done)
    # It had been stopped before the validation of step 3, which comes first then.
    assert 'SIGTERM: stopping as soon as this step is done' in done.err
    saved = int(json.loads((model_dir / 'status.json').read_text())['step'])
    assert saved == 3 and runs.state(model_dir) == 'stopped'
    assert f'stopped; step {saved} is saved' in done.out
    assert site.start(model_dir).kill_at(model_dir / 'ckpt-6_temp*')
    done = site.train(model_dir)
    assert runs.ended_well(done) and 'going on from step 4' in done.out
    runs.same_run(model_dir, whole)
    assert not list(model_dir.glob('*_temp*'))


@pytest.mark.faults
def test_stopped_at_every_kind_of_moment_a_run_ends_as_a_whole_one(site, whole):
    """One run, stopped again and again: start-up, first step, around checkpoint and validation."""
    model_dir = site.folder / 'stopped_often'
    moments = [
        # What is lost is start-up alone.
        ('SIGINT@records', 0),
        ('SIGTERM@tracing', 0),
        # The step after the signal is the last one: that of a checkpoint, ...
        ('SIGTERM@step:1', 2),
        # ... one of a validation, which the next start has to make up for, ...
        ('SIGINT@step:3', 3),
        # ... in which it is stopped again, ...
        ('SIGTERM@validation', 3),
        # ... then in the first step after that validation, ...
        ('SIGINT@tracing', 3),
        # ... and before the last validation.
        ('SIGTERM@saved:6', 6),
    ]
    for fault, step in runs.some(moments, 3):
        done = site.train(model_dir, faults=[fault])
        assert runs.ended_well(done), fault
        if fault != 'SIGINT@records':
            # Before, there is no folder yet.
            assert runs.state(model_dir) == 'stopped', fault
        assert f'step {step} is saved' in done.out, fault
    assert runs.ended_well(site.train(model_dir))
    runs.same_run(model_dir, whole)


@pytest.mark.faults
@pytest.mark.parametrize('number', runs.some([signal.SIGTERM, signal.SIGINT]))
def test_a_signal_ends_a_run_within_seconds(number, site):
    """From outside, in the middle of many steps; `SECONDS` are for a busy machine."""
    process = site.start(site.folder / f'soon_{number}', steps=100000)
    assert process.says('step 1 of')
    process.send(number)
    sent = time.monotonic()
    assert runs.ended_well(process.finish(SECONDS))
    print(f'{number.name}: ended after {time.monotonic() - sent:.1f} s')


@pytest.mark.faults
@pytest.mark.parametrize('number', runs.some([signal.SIGTERM, signal.SIGINT]))
def test_a_second_signal_ends_it_at_once(number, site):
    """Before the first one's checkpoint has been written."""
    model_dir = site.folder / f'at_once_{number}'
    # Halted where it would save, so that it cannot be faster than the test.
    process = site.start(model_dir, steps=100000, faults=['SIGSTOP@saving'])
    assert process.says('step 1 of')
    process.send(number)
    assert process.says('SIGSTOP at saving')
    # Sooner, it would be taken for the same signal, passed on twice.
    time.sleep(2 * preemption.SAME_SIGNAL_SECONDS)
    process.send(number)
    process.send(signal.SIGCONT)
    assert process.finish(SECONDS).status == 128 + number
    # Nothing was saved, and nothing half: the next start begins anew.
    assert not list(model_dir.glob('ckpt-*.index'))
