"""Images of chosen examples from the records."""

import numpy as np
import pytest

from gan_mrcnn.data.readers import base
from gan_mrcnn.data.records import records
from gan_mrcnn.prediction import contact_sheet
from gan_mrcnn.utils import run_lengths
from gan_mrcnn.utils.run_lengths import encode_mask


class Street(base.Dataset):
    """Two images, a small and a large one, each with a rectangle."""

    name, class_names, splits = 'street', ('car',), ('val',)
    sizes = {1: (60, 90), 2: (600, 2048)}

    def items(self, split):
        return [base.Item(number, f'{number}.png') for number in self.sizes]

    def fingerprint(self, split):
        return 'one'

    def read(self, item):
        height, width = self.sizes[item.image_id]
        mask = np.zeros((height, width), np.uint8)
        mask[height // 4 : height // 2, width // 4 : width // 2] = 1
        return base.Example(
            image_id=item.image_id,
            file_name=item.file_name,
            image=np.stack([100 + 100 * mask] * 3, -1).astype(np.uint8),
            rles=run_lengths.encode_masks([mask]),
            classes=np.array([1]),
            is_crowd=np.array([False]),
        )


@pytest.fixture(scope='module')
def record_set(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp('cache'))
    return records.ensure_records(Street(), 'val', cache, num_processes=1)


def test_small_images_are_as_they_were_and_large_ones_fit(record_set):
    found = contact_sheet.read_images(record_set, [2, 1])
    image, masks = found[1]
    np.testing.assert_array_equal(image[..., 0], 100 + 100 * masks[0])
    assert image.shape == (60, 90, 3)
    image, masks = found[2]
    assert image.shape == (300, 1024, 3) and masks.shape == (1, 300, 1024)
    assert masks[0, 75:150, 256:512].all() and masks.sum() == 75 * 256


def test_a_prediction_is_drawn_where_it_is(record_set):
    """In the last third of a row; the sheet is as wide as its largest row."""
    mask = np.zeros((600, 2048), np.uint8)
    mask[400:500, 100:300] = 1
    result = {'image_id': 2, 'score': 0.9, 'segmentation': encode_mask(mask)}
    with_it = contact_sheet.contact_sheet(record_set, [2], [result]).astype(int)
    without = contact_sheet.contact_sheet(record_set, [2], [])
    rows, columns = np.where((with_it != without).any(-1))
    head, left = with_it.shape[0] - 300, with_it.shape[1] - 1024
    assert abs(rows.min() - head - 200) <= 1 and abs(rows.max() - head - 249) <= 1
    assert abs(columns.min() - left - 50) <= 1 and abs(columns.max() - left - 149) <= 1
