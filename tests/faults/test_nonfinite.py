"""A step that is not finite, as a user sees it: exit status and replay."""

import re
import shlex

import pytest

from tests.faults import runs

pytestmark = pytest.mark.faults


def test_a_run_that_stops_and_its_batch_replayed_as_typed(site):
    model_dir = site.folder / 'stops'
    line = runs.refusal(site.train(model_dir, faults=['nan@step:3']))
    assert 'step 3 images' in line and str(model_dir) in line
    # The command that the line gives, typed as it stands.
    command = re.search(r'to examine it: (gan-mrcnn replay \S+\.npz)', line).group(1)
    done = runs.Process(['-m', 'gan_mrcnn', *shlex.split(command)[1:]]).finish()
    assert done.status == 0 and 'Traceback' not in done.err, done.err
    lines = done.out.splitlines()
    assert lines[0] == 'step 3: 2 images'
    assert sum(text.startswith('image ') for text in lines) == 2
    # Nothing about the data or the weights: replayed without the fault, the step is finite.
    assert any('total' in text or 'mask_loss' in text for text in lines)
    assert not [text for text in lines if text.startswith('not finite')]
    # Without the fault the same command goes on from the last checkpoint.
    done = site.train(model_dir)
    assert runs.ended_well(done) and 'going on from step 2' in done.out


def test_a_run_that_skips_the_batch_ends_with_status_0(site):
    model_dir = site.folder / 'skips'
    done = site.train(model_dir, 'task.nonfinite.policy=skip', faults=['nan@step:3'])
    assert runs.ended_well(done)
    assert 'Non-finite loss or gradient: step 3 images' in done.err
    assert runs.state(model_dir) == 'finished'


def test_a_run_that_goes_back_ends_with_status_0(site):
    """The fault depends on the discriminators' count of steps, which goes back too: three times."""
    model_dir = site.folder / 'goes_back'
    flags = ('task.nonfinite.policy=go_back', 'task.nonfinite.limit=2')
    line = runs.refusal(site.train(model_dir, *flags, faults=['nan@step:3']))
    assert 'number 3 of at most 2' in line
    done = site.train(model_dir, *flags)
    assert runs.ended_well(done) and runs.state(model_dir) == 'finished'
