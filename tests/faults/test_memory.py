"""Objects that stay: none more after ten steps and five evaluations than before."""

import collections
import gc

import pytest

from gan_mrcnn.training import run as training_run
from gan_mrcnn.training import status
from tests import tiny

pytestmark = pytest.mark.faults


def test_steps_checkpoints_and_evaluations_leave_nothing_behind(tmp_path, monkeypatch):
    """Counts Python's objects after each evaluation, every second step, of 14 steps.

    Resident memory, which the allocator keeps for later, says less: see benchmarks/soak.py for it.
    """
    counts = []

    def count(self, output):
        evaluated(self, output)
        gc.collect()
        counts.append(collections.Counter(type(x).__name__ for x in gc.get_objects()))

    evaluated = status.Progress.evaluated
    monkeypatch.setattr(status.Progress, 'evaluated', count)
    config = tiny.make_config(tmp_path, 'trainer.train_steps=14', 'trainer.validation_interval=2')
    training_run.train(config, tiny.DATASET, str(tmp_path / 'run'), 'train_and_eval')
    assert len(counts) == 7
    # The first two make what is made once.
    grown = counts[-1] - counts[1]
    print(sum(counts[1].values()), 'objects, then more:', grown.most_common(8))
    # Figures of five validations and these counts, but no tensors, variables or functions.
    assert sum(grown.values()) < 100
