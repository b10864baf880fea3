# SPDX-License-Identifier: Apache-2.0
"""The data sets by name."""

from typing import Callable, Optional

from gan_mrcnn.datasets import base, gland
from gan_mrcnn.errors import UserError

DATASETS: dict[str, Callable[[Optional[str], int], base.Dataset]] = {'gland': gland.load}


def load_dataset(name: str, data_dir: Optional[str] = None, seed: int = 0) -> base.Dataset:
    """The data set of that name.

    Args:
      name: a key of `DATASETS`.
      data_dir: its folder; a wrong one is an error, never a reason to take another.
      seed: of the demo set.

    Raises:
      UserError: unknown name, or `data_dir` does not hold the data set.
    """
    if name not in DATASETS:
        raise UserError(f'--dataset {name} is unknown; there are {", ".join(sorted(DATASETS))}')
    return DATASETS[name](data_dir, seed)
