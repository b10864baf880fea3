# SPDX-License-Identifier: Apache-2.0
"""The paper's phones (section 4.3): 533 images of ten models taken apart, 11 classes.

Images and annotations in COCO's format. The paper trains on 90% and holds at least one image
of each model out; `--split 0.9` divides the images anew like that, by their names.
"""

from collections.abc import Sequence
from typing import Optional

from gan_mrcnn.data.readers import base, coco_format, options, splitting
from gan_mrcnn.utils.errors import UserError

OPTIONS = ('share', 'split_seed', 'skip_bad_annotations')
_EXPECTED = (
    'expected there: annotations/instances_phone_train.json and instances_phone_val.json, '
    'images/train/ and images/val/'
)


def load(data_dir: Optional[str], chosen: options.Options) -> base.Dataset:
    """The phones in `data_dir` or in its folder phone/.

    Raises:
      UserError: the folder does not hold them.
    """
    folder = options.existing_folder(data_dir, 'phone', _EXPECTED)
    if not (folder / 'annotations').is_dir() and (folder / 'phone').is_dir():
        folder = folder / 'phone'
    files = {s: folder / f'annotations/instances_phone_{s}.json' for s in ('train', 'val')}
    for path in files.values():
        if not path.is_file():
            raise UserError(f'{path} is missing; {_EXPECTED}')
    return Phones('phone', folder, files, chosen)


class Phones(coco_format.CocoFormat):
    """As `CocoFormat`, but a division holds images of each phone model out."""

    origin = (
        'Phones taken apart, from the authors of the GAN Mask R-CNN paper: theirs are the terms.'
    )

    def _hold_out(self, items: Sequence[coco_format.Item], groups: Sequence[str]) -> list[int]:
        names = [item.file_name for item in items]
        models = [splitting.series_of(name) for name in names]
        return splitting.hold_out_of_each(
            names, models, self._chosen.share, self._chosen.split_seed
        )
