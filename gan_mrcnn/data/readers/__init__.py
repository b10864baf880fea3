# SPDX-License-Identifier: Apache-2.0
"""The data sets by name."""

from typing import Callable, NamedTuple, Optional

from gan_mrcnn.data.readers import (
    base,
    cityscapes,
    coco,
    coco_format,
    gland,
    label_images,
    options,
    phone,
)
from gan_mrcnn.utils.errors import UserError


class _Entry(NamedTuple):
    """How a data set is loaded from its folder, and which options it takes."""

    load: Callable[[Optional[str], options.Options], base.Dataset]
    options: tuple[str, ...] = ()


DATASETS = {
    'gland': _Entry(gland.load),
    'phone': _Entry(phone.load, phone.OPTIONS),
    'cityscapes': _Entry(cityscapes.load),
    'coco': _Entry(coco.load, coco.OPTIONS),
    'coco_format': _Entry(coco_format.load, coco_format.OPTIONS),
    'label_images': _Entry(label_images.load, label_images.OPTIONS),
}


def load_dataset(
    name: str, data_dir: Optional[str] = None, chosen: options.Options = options.DEFAULT
) -> base.Dataset:
    """The data set of that name.

    Args:
      name: a key of `DATASETS`.
      data_dir: its folder; a wrong one is an error, never a reason to take another. Without it,
        data/NAME in the current folder.
      chosen: how it is divided.

    Raises:
      UserError: unknown name, an option that it does not take, or `data_dir` does not hold it.
    """
    if name not in DATASETS:
        raise UserError(f'--dataset {name} is unknown; there are {", ".join(DATASETS)}')
    entry = DATASETS[name]
    options.check(chosen, name, entry.options)
    return entry.load(data_dir, chosen)
