"""What the command tells a scheduler: who the workers are, and how a run has ended."""

import pytest

from gan_mrcnn import settings
from gan_mrcnn.training import cluster
from gan_mrcnn.training import run as training_run
from tests import programs


@pytest.fixture
def train(monkeypatch):
    """Runs the command with a training that comes to its end or does not; returns its status."""
    for name in ('load_dataset', 'load_config', 'check_training'):
        monkeypatch.setattr(settings, name, lambda *_: None)

    def train(finished, *flags):
        monkeypatch.setattr(training_run, 'train', lambda *_: finished)
        flags = ('--dataset', 'gland', '--model_dir', 'run', *flags)
        return programs.run('train', *flags).status

    return train


@pytest.mark.parametrize(
    'finished, flags, status',
    [
        (True, (), 0),
        (False, (), 0),
        (True, ('--stopped_status', '75'), 0),
        (False, ('--stopped_status', '75'), 75),
    ],
)
def test_a_stopped_run_ends_with_the_status_that_is_asked_for(finished, flags, status, train):
    assert train(finished, *flags) == status


def test_slurm_is_asked_where_it_is_said_alone(train, monkeypatch):
    asked = []
    monkeypatch.setattr(cluster, 'set_tf_config_by_slurm', lambda: asked.append(True))
    assert train(True) == 0 and not asked
    assert train(True, '--cluster', 'slurm') == 0 and asked
