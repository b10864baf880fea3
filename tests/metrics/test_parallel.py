"""Jobs spread over processes come back in order; one that is killed is named."""

import os
import signal

import pytest

from gan_mrcnn.metrics import parallel
from gan_mrcnn.utils.errors import UserError


def square(number):
    return number * number


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize('processes', [1, 2])
def test_results_are_in_order(processes):
    numbers = list(range(7))
    squares = parallel.map_jobs(square, numbers, [1] * 7, '', processes)
    assert squares == [0, 1, 4, 9, 16, 25, 36]


def test_no_jobs_at_all():
    assert parallel.map_jobs(square, [], [], '') == []


def test_a_killed_process_is_named():
    with pytest.raises(UserError, match='memory'):
        parallel.map_jobs(die, [1, 2, 3], [1, 1, 1], '', 2)
