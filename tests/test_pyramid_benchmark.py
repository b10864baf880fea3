# SPDX-License-Identifier: Apache-2.0
"""benchmarks/pyramid_pooling.py on small maps: both sides are the same function, and it says so
where they are not."""

import pathlib
import sys

import pytest

from custom_ops.prroi_pool import build

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / 'benchmarks'
sys.path.insert(0, str(BENCHMARKS))

import pyramid_pooling  # noqa: E402

pytestmark = pytest.mark.skipif(build.find_compiler() is None, reason='no C++ compiler')
ROW = pyramid_pooling.Row(image=(64, 96), channels=3, box_rois=4, mask_rois=2)


def test_every_pass_is_timed_beside_its_equal():
    lines = [line.strip('| ').split(' | ') for line in pyramid_pooling.measure('tiny', ROW, 2)]
    assert [line[0].split(', ', 1) for line in lines] == [
        ['tiny: PrRoIPool', '8 boxes, forward'],
        ['tiny: PrRoIPool', '8 boxes, with gradient to boxes'],
        ['tiny: PrRoIPool', '8 boxes, with gradient to boxes and features'],
        ['tiny: RoIAlign 7 x 7', '8 boxes, forward'],
        ['tiny: RoIAlign 7 x 7', '8 boxes, with gradient to features'],
        ['tiny: RoIAlign 14 x 14', '4 boxes, forward'],
        ['tiny: RoIAlign 14 x 14', '4 boxes, with gradient to features'],
    ]
    for _, before, now, ratio, difference in lines:
        assert float(before) > 0 and float(now) > 0 and float(ratio) > 0
        assert float(difference) < 1e-4


def test_another_function_is_not_timed():
    features, boxes = pyramid_pooling.make_features(ROW), pyramid_pooling.make_boxes(ROW, 4)
    passes = [
        pyramid_pooling.make_passes(pool, features, boxes, [['boxes']])
        for pool in (
            pyramid_pooling.pool_at_once,
            lambda features, boxes: 1.01 * pyramid_pooling.pool_level_by_level(features, boxes),
        )
    ]
    with pytest.raises(SystemExit, match='maximum, forward: relative difference is 9.9e-03'):
        list(pyramid_pooling.compare('maximum', *passes, 1))
