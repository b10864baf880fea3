"""RoIAlign against its definition, written per bin and per sample."""

import numpy as np
import pytest
import tensorflow as tf

from custom_ops.prroi_pool import build
from gan_mrcnn.modeling import roi_align
from gan_mrcnn.utils import devices

needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason='no C++ compiler')
ways = pytest.mark.parametrize(
    'way', [pytest.param('compiled', marks=needs_compiler), 'Model Garden', 'crops', 'inference']
)


def take(way, monkeypatch):
    """What pools from here on; gives `training`. 'crops' are a GPU's without the operation."""
    monkeypatch.setattr(roi_align, 'is_compiled', lambda: way == 'compiled')
    monkeypatch.setattr(devices, 'has_gpu', lambda: way == 'crops')
    return way != 'inference'


def bilinear(feature, y, x):
    """Value at (y, x), nodes at integers, clamped at the border."""
    height, width = feature.shape[:2]
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    y0, x0 = min(int(y), height - 2), min(int(x), width - 2)
    dy, dx = y - y0, x - x0
    top = feature[y0, x0] * (1 - dx) + feature[y0, x0 + 1] * dx
    bottom = feature[y0 + 1, x0] * (1 - dx) + feature[y0 + 1, x0 + 1] * dx
    return top * (1 - dy) + bottom * dy


def roi_align_slowly(feature, box, size, samples):
    y1, x1, y2, x2 = box
    bin_h, bin_w = (y2 - y1) / size, (x2 - x1) / size
    out = np.zeros([size, size, feature.shape[-1]])
    for i in range(size):
        for j in range(size):
            for a in range(samples):
                for b in range(samples):
                    y = y1 + (i + (a + 0.5) / samples) * bin_h
                    x = x1 + (j + (b + 0.5) / samples) * bin_w
                    out[i, j] += bilinear(feature, y, x) / samples**2
    return out


@ways
@pytest.mark.parametrize('samples', [1, 2])
def test_equals_the_definition_on_the_level_of_the_box(samples, way, monkeypatch):
    training = take(way, monkeypatch)
    rng = np.random.default_rng(0)
    features = {
        str(level): rng.normal(size=[1, 512 // 2**level, 512 // 2**level, 3]).astype(np.float32)
        for level in range(2, 7)
    }
    # Lin et al. (2017), Eq. 1: level 4 + log2(sqrt(area) / 224); P6 is not pooled from.
    boxes = {
        2: [10.0, 20.0, 50.5, 90.25],
        3: [100, 100, 230, 240],
        4: [3, 5, 260, 270],
        5: [0, 0, 512, 500],
    }
    aligner = roi_align.MultilevelRoIAligner(crop_size=7, samples_per_bin=samples)
    corners = tf.constant([list(boxes.values())], tf.float32)
    found = aligner(features, corners, training=training)
    found = found.numpy()[0]
    for i, (level, box) in enumerate(boxes.items()):
        wanted = roi_align_slowly(
            features[str(level)][0].astype(float), np.array(box) / 2**level, 7, samples
        )
        np.testing.assert_allclose(found[i], wanted, atol=1e-4)


@ways
def test_fused_levels_are_the_maximum_over_all_of_them(way, monkeypatch):
    training = take(way, monkeypatch)
    rng = np.random.default_rng(1)
    features = {
        str(level): rng.normal(size=[2, 128 // 2**level, 128 // 2**level, 3]).astype(np.float32)
        for level in range(2, 7)
    }
    boxes = np.array([[[10.0, 20, 50, 90]], [[3, 5, 120, 110]]], np.float32)
    aligner = roi_align.MultilevelRoIAligner(crop_size=3, fuse_levels=True)
    found = aligner(features, tf.constant(boxes), training=training)
    for image in range(2):
        by_level = [
            roi_align_slowly(
                features[str(level)][image].astype(float), boxes[image, 0] / 2**level, 3, 2
            )
            for level in range(2, 6)
        ]
        np.testing.assert_allclose(found[image, 0], np.max(by_level, axis=0), atol=1e-4)


def test_boxes_are_pooled_alike_however_many_at_a_time(monkeypatch):
    rng = np.random.default_rng(2)
    features = {
        str(level): tf.constant(rng.normal(size=[2, 128 // 2**level, 128 // 2**level, 3]))
        for level in range(2, 6)
    }
    corners = rng.uniform(0, 100, [2, 45, 2])
    boxes = np.concatenate([corners, corners + rng.uniform(1, 28, [2, 45, 2])], -1)
    aligner = roi_align.MultilevelRoIAligner(crop_size=3)
    found = []
    for has_gpu in (False, True):
        monkeypatch.setattr(devices, 'has_gpu', lambda has_gpu=has_gpu: has_gpu)
        found.append(aligner(features, tf.constant(boxes, tf.float32), training=False).numpy())
    np.testing.assert_array_equal(*found)
    assert np.unique(found[0]).size > 1000


@needs_compiler
def test_training_has_the_same_samples_in_every_way(monkeypatch):
    """Pooled features and their gradient, boxes at the borders and without size included."""
    rng = np.random.default_rng(3)
    features = {
        str(level): tf.constant(
            rng.normal(size=[2, 256 // 2**level, 256 // 2**level, 3]), tf.float32
        )
        for level in range(2, 6)
    }
    corners = rng.uniform(0, 128, [2, 40, 2])
    sides = np.exp(rng.uniform(0, np.log(256), [2, 40, 2]))
    boxes = np.minimum(np.concatenate([corners, corners + sides], -1), 256)
    boxes[:, 0] = [20, 30, 20, 30]
    boxes = tf.constant(boxes, tf.float32)
    aligner = roi_align.MultilevelRoIAligner(crop_size=7)
    weights = tf.constant(rng.normal(size=[2, 40, 7, 7, 3]), tf.float32)
    results = []
    for way in ('compiled', 'Model Garden', 'crops'):
        take(way, monkeypatch)
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = aligner(features, boxes, training=True)
            loss = tf.reduce_sum(weights * pooled)
        results.append([pooled, *tape.gradient(loss, features).values()])
    for compiled, garden, crops in zip(*results):
        np.testing.assert_allclose(compiled, garden, atol=1e-4)
        np.testing.assert_allclose(crops, garden, atol=1e-4)
    assert np.all(np.isfinite(results[0][0]))


@needs_compiler
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_training_in_sixteen_bits(dtype):
    rng = np.random.default_rng(4)
    features = {
        str(level): tf.cast(rng.normal(size=[1, 64 // 2**level, 96 // 2**level, 3]), dtype)
        for level in range(2, 6)
    }
    boxes = tf.constant([[[3.1, 5, 60.5, 90.3], [1, 2, 20, 9]]])
    aligner = roi_align.MultilevelRoIAligner(crop_size=7, autocast=False)
    pooled = aligner(features, boxes, training=True)
    exact = {level: tf.cast(tensor, tf.float32) for level, tensor in features.items()}
    assert pooled.dtype == dtype and pooled.shape == (1, 2, 7, 7, 3)
    expected = tf.cast(aligner(exact, boxes, training=True), dtype)
    np.testing.assert_allclose(
        tf.cast(pooled, tf.float32), tf.cast(expected, tf.float32), atol=2**-8
    )
