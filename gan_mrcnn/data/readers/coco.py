# SPDX-License-Identifier: Apache-2.0
"""COCO 2017 as it is downloaded (paper, section 4.5): 118,287 images to train on, 5,000 for val.

Lin et al., Microsoft COCO: Common Objects in Context (2014). The 80 classes are taken from the
annotation file, in the order of COCO's ids, which have gaps.
"""

from typing import Optional

from gan_mrcnn.data.readers import base, coco_format, options
from gan_mrcnn.utils.errors import UserError

OPTIONS = ('skip_bad_annotations',)
_EXPECTED = (
    'expected there: annotations/instances_train2017.json and instances_val2017.json, train2017/ '
    'and val2017/ (or images/train2017/ and images/val2017/)'
)


def load(data_dir: Optional[str], chosen: options.Options) -> base.Dataset:
    """COCO 2017 in `data_dir`.

    Raises:
      UserError: the folder does not hold it.
    """
    folder = options.existing_folder(data_dir, 'coco', _EXPECTED)
    files = {s: folder / f'annotations/instances_{s}2017.json' for s in ('train', 'val')}
    # Without the training file one can still evaluate.
    if not files['val'].is_file():
        raise UserError(f'{files["val"]} is missing; {_EXPECTED}')
    dataset = coco_format.CocoFormat('coco', folder, files, chosen, categories_from='val')
    dataset.origin = (
        'COCO 2017 (Lin et al. 2014): annotations CC BY 4.0, images by terms of their owners, see '
        'https://cocodataset.org/#termsofuse.'
    )
    return dataset
