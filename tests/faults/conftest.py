"""Fixtures of the tests that cause faults."""

import pytest

from tests.faults import runs


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    """Images and settings for tiny runs."""
    return runs.Site(tmp_path_factory.mktemp('faults'))


@pytest.fixture(scope='session')
def whole(site):
    """The folder of a run that nothing happened to."""
    model_dir = site.folder / 'whole'
    assert runs.ended_well(site.train(model_dir))
    return model_dir
