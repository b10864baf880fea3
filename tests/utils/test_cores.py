"""Cores of this process."""

import os

import pytest

from gan_mrcnn.utils.cores import num_cores


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='this system has no affinities')
def test_only_cores_that_this_process_may_use_count():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert num_cores() == len(allowed)
