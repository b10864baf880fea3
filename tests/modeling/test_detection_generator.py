# SPDX-License-Identifier: Apache-2.0
"""Detections against the Model Garden's own layer, whichever NMS serves."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from official.vision.modeling.layers import detection_generator as garden

from custom_ops.prroi_pool import build
from gan_mrcnn.modeling.detection_generator import DetectionGenerator

WEIGHTS = [10.0, 10.0, 5.0, 5.0]
needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason='no C++ compiler')


def outputs_of_the_head(seed, images, rois, classes, per_class):
    """Encoded boxes, logits, RoIs in clusters, image sizes."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 100, [images, 6, 2])[:, rng.integers(0, 6, rois)]
    corners = corners + rng.normal(size=corners.shape) * 2
    boxes = np.concatenate([corners, corners + rng.uniform(10, 30, corners.shape)], axis=2)
    deltas = rng.normal(size=[images, rois, 4 * (classes + 1) if per_class else 4])
    logits = rng.normal(size=[images, rois, classes + 1]) * 2
    sizes = rng.uniform(60, 130, [images, 2])
    return [tf.constant(x, tf.float32) for x in (deltas, logits, boxes, sizes)]


@needs_compiler
@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(1, 3),
    rois=st.integers(1, 60),
    classes=st.integers(1, 4),
    per_class=st.booleans(),
    # All that there is, and fewer.
    detections=st.sampled_from([3, 20, 500]),
    score_threshold=st.sampled_from([0.0, 0.05, 0.3, 0.99]),
)
def test_equals_the_model_gardens(
    seed, images, rois, classes, per_class, detections, score_threshold
):
    inputs = outputs_of_the_head(seed, images, rois, classes, per_class)
    numbers = {
        'max_num_detections': detections,
        'pre_nms_score_threshold': score_threshold,
        'nms_version': 'batched',
    }
    wanted = garden.DetectionGenerator(**numbers)(*inputs, WEIGHTS, per_class)
    for nms in ('compiled', 'tensorflow', 'auto'):
        found = DetectionGenerator(**numbers)(*inputs, WEIGHTS, per_class, nms)
        assert set(found) == set(wanted)
        for name, value in wanted.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value, err_msg=name)


@needs_compiler
def test_of_a_network_gone_wrong_there_are_no_detections():
    deltas, logits, boxes, sizes = outputs_of_the_head(0, 2, 30, 2, True)
    numbers = {'max_num_detections': 9, 'nms_version': 'batched'}
    found = DetectionGenerator(**numbers)(
        deltas * np.nan, logits * np.nan, boxes * np.nan, sizes, WEIGHTS, nms='compiled'
    )
    assert not np.any(found['num_detections'])
    assert not np.any(found['detection_boxes']) and not np.any(found['detection_scores'])


def test_settings_are_handed_on():
    layer = DetectionGenerator(max_num_detections=7, nms_version='batched')
    assert DetectionGenerator(**layer.get_config()).get_config() == layer.get_config()
