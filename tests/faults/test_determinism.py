"""`--deterministic`: the same seed gives the same bits, another seed another run."""

import pytest

from tests.faults import runs

pytestmark = pytest.mark.faults


def test_the_same_seed_twice_is_the_same_run(site, whole):
    """Weights, momenta, statistics, validations, and every loss of every step in TensorBoard."""
    again = site.folder / 'again'
    assert runs.ended_well(site.train(again))
    runs.same_run(again, whole)
    assert set(runs.losses(again)) == set(runs.losses(whole))
    assert len({step for _, step in runs.losses(again)}) == runs.STEPS


def test_another_seed_is_another_run(site, whole):
    """So that the test above cannot pass by comparing nothing."""
    other = site.folder / 'other_seed'
    assert runs.ended_well(site.train(other, seed=4, steps=2))
    first = ('total_loss', 1)
    assert runs.losses(other)[first] != runs.losses(whole)[first]
