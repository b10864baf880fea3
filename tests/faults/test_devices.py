"""A run on several logical devices ends where one on a single device does, to rounding."""

import numpy as np
import pytest

from tests import tiny
from tests.faults import runs

pytestmark = pytest.mark.faults

# Images of a step, over all devices.
BATCH = 4
FLAGS = (
    f'task.train_data.global_batch_size={BATCH}',
    f'task.validation_data.global_batch_size={BATCH}',
    'trainer.validation_interval=2',
)
# BatchNorm trained from scratch on maps of 2x2 makes hundredfold of a rounding with every step.
STEPS = 2


@pytest.fixture(scope='module')
def single(site):
    """The folder of a run on one device."""
    model_dir = site.folder / 'one_device'
    assert runs.ended_well(site.train(model_dir, *FLAGS, steps=STEPS))
    return model_dir


# Relative to the largest value of a variable. One device notes the unbiased
# variance for BatchNorm, several the other: a factor of N / (N - 1) for N values.
TOLERANCE = 3e-2
TOLERANCE_OF_VARIANCES = 0.1


def close_losses(one, other) -> None:
    """Asserts that every term of every step is the same to rounding."""
    first, second = (runs.losses(folder) for folder in (one, other))
    assert set(first) == set(second)
    for key, (bits,) in first.items():
        (expected,) = second[key]
        np.testing.assert_allclose(
            np.frombuffer(bits, np.float32),
            np.frombuffer(expected, np.float32),
            rtol=1e-3 if 'norm' in key[0] else 1e-4,
            atol=1e-6,
            err_msg=str(key),
        )


def close_values(one, other) -> None:
    """Asserts that two checkpoints differ by rounding alone."""
    assert set(one) == set(other)
    differences = {
        name: np.abs(one[name] - other[name]).max() / max(1e-3, np.abs(other[name]).max())
        for name in one
        if np.issubdtype(np.asarray(one[name]).dtype, np.floating)
    }
    variances = {name: x for name, x in differences.items() if 'moving_variance' in name}
    assert max(variances.values()) < TOLERANCE_OF_VARIANCES
    others = {name: x for name, x in differences.items() if name not in variances}
    worst = max(others, key=others.get)
    print(f'variances {max(variances.values()):.2g}, others {others[worst]:.2g} ({worst})')
    assert others[worst] < TOLERANCE, f'{worst}: {others[worst]}'


@pytest.mark.parametrize('number', runs.some([2, 4]))
def test_several_devices_end_where_one_does(number, site, single):
    """Networks, momenta and BatchNorm statistics, trained from scratch, after two steps."""
    model_dir = site.folder / f'{number}_devices'
    done = site.train(model_dir, *FLAGS, steps=STEPS, faults=[f'devices:{number}'])
    assert runs.ended_well(done) and f'{number} x CPU' in done.out
    close_values(tiny.last_values(model_dir), tiny.last_values(single))
    close_losses(model_dir, single)
