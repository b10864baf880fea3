"""A small data set for the tests of whatever takes any data set. Imports no TensorFlow."""

import os
import signal
import time

import numpy as np

from gan_mrcnn.data.readers import base
from gan_mrcnn.utils import run_lengths
from gan_mrcnn.utils.errors import UserError


class Blocks(base.Dataset):
    """Images of noise with rectangles and an L; `reads` has the numbers of those that were read."""

    name = 'blocks'
    class_names = ('gland', 'other')
    splits = ('train', 'empty')
    notice = 'NOTICE'

    def __init__(
        self, count=40, version='1', bad=(), stop_after=None, slow_from=None, dies_at=None
    ):
        self.count, self.version, self.bad = count, version, bad
        self.stop_after, self.slow_from, self.dies_at = stop_after, slow_from, dies_at
        self.reads = []

    def items(self, split):
        count = self.count if split == 'train' else 0
        return [base.Item(100 + k, f'{k}.png') for k in range(count)]

    def fingerprint(self, split):
        return f'{split} {self.version}'

    def read(self, item):
        k = item.image_id - 100
        if k == self.stop_after:
            raise KeyboardInterrupt
        if k == self.dies_at:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        if k in self.bad:
            raise UserError(f'{item.file_name} cannot be read')
        if self.slow_from is not None and k >= self.slow_from:
            time.sleep(0.3)
        self.reads.append(k)
        return make_example(k)


def make_masks(k):
    height, width = 20 + k % 3, 31
    masks = np.zeros((3, height, width), np.uint8)
    masks[0, 0:5, 0:7] = 1
    masks[1, 10:height, 20:width] = 1
    masks[2, 6, 8] = masks[2, 6:9, 9] = 1
    return masks


def make_example(k):
    masks = make_masks(k)
    rng = np.random.default_rng(k)
    return base.Example(
        image_id=100 + k,
        file_name=f'{k}.png',
        image=rng.integers(0, 256, (*masks.shape[1:], 3), np.uint8),
        rles=run_lengths.encode_masks(masks),
        classes=np.array([1, 2, 1], np.int32),
        is_crowd=np.array([False, False, True]),
    )
