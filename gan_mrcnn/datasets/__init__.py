# SPDX-License-Identifier: Apache-2.0
"""The data sets by name."""

from typing import Callable, Dict, Optional

from gan_mrcnn.datasets import base, gland
from gan_mrcnn.errors import UserError

DATASETS: Dict[str, Callable[[Optional[str]], base.Dataset]] = {'gland': gland.load}


def load_dataset(name: str, data_dir: Optional[str]) -> base.Dataset:
    """The data set of that name.

    Args:
      name: a key of `DATASETS`.
      data_dir: its folder; a wrong one is an error, never a reason to take another.

    Raises:
      UserError: unknown name, or `data_dir` does not hold the data set.
    """
    if name not in DATASETS:
        raise UserError(f'--dataset {name} is unknown; there are {", ".join(sorted(DATASETS))}')
    return DATASETS[name](data_dir)
