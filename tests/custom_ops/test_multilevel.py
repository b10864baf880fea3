# SPDX-License-Identifier: Apache-2.0
"""Pooling over several levels: scales, maximum, levels of boxes, and where the gradient goes.

PrRoIPool's maximum is held against numerical integration and against pooling level by level,
RoIAlign against its samples one by one and against the Model Garden's.
"""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from official.vision.ops import spatial_transform_ops

from custom_ops.prroi_pool import (
    build,
    library,
    multilevel_prroi_pool,
    multilevel_roi_align,
    prroi_pool,
)
from tests.custom_ops import reference

BOXES = np.array([[3.0, 5, 40, 50], [0, 0, 64, 64], [10, 10, 20, 60], [30, 2, 63, 33]], np.float32)
IMAGES = np.array([0, 0, 1, 1], np.int32)
# Over the largest value: sums of terms of both signs have no other scale. Of 16 bits half a step.
TOLERANCES = {'float16': 2**-11, 'bfloat16': 2**-8, 'float32': 1e-5, 'float64': 1e-11}

needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason='no C++ compiler')
implementations = pytest.mark.parametrize(
    'implementation', [pytest.param('compiled', marks=needs_compiler), 'tensorflow']
)


@pytest.fixture
def features():
    return make_features(64, 64, 3)


def make_features(height, width, channels, seed=0, levels=range(2, 7), dtype='float32'):
    rng = np.random.default_rng(seed)
    return {
        str(level): tf.cast(
            rng.normal(size=(2, -(-height // 2**level), -(-width // 2**level), channels)), dtype
        )
        for level in levels
    }


def assert_close(result, expected, tolerance):
    scale = max(np.max(np.abs(expected), initial=0.0), 1e-3)
    np.testing.assert_allclose(
        tf.cast(result, tf.float64), expected, rtol=0, atol=tolerance * scale
    )


def with_gradients(pool, features, boxes, upstream):
    """Pooled features, and the gradients to the boxes and to each level's features."""
    with tf.GradientTape() as tape:
        tape.watch([features, boxes])
        pooled = pool(features, boxes)
    d_boxes, d_features = tape.gradient(pooled, [boxes, features], tf.cast(upstream, pooled.dtype))
    return pooled, d_boxes, d_features


@implementations
def test_is_the_maximum_over_levels_2_to_5_image_by_image(features, implementation):
    fused = multilevel_prroi_pool(features, BOXES, IMAGES, 4, implementation=implementation)
    assert fused.shape == (4, 4, 4, 3)
    for n, image in enumerate(IMAGES):
        box = BOXES[n : n + 1]
        levels = [
            prroi_pool(features[level], box, [image], (4, 4), scale)
            for level, scale in zip('2345', (1 / 4, 1 / 8, 1 / 16, 1 / 32))
        ]
        np.testing.assert_allclose(fused[n], np.max(levels, axis=0)[0], atol=1e-6)


@implementations
def test_a_feature_is_found_at_its_place_in_the_image(features, implementation):
    """A horizontal ramp of image coordinates on every level reads as the box's own columns."""
    ramps = {
        level: tf.zeros_like(tensor)
        + 2.0 ** int(level) * tf.range(tensor.shape[2], dtype=tf.float32)[:, tf.newaxis]
        for level, tensor in features.items()
    }
    box = np.array([[8.0, 12, 24, 28]] * 2, np.float32)
    fused = multilevel_prroi_pool(
        ramps, box, np.array([0, 1]), 2, levels=('2', '3', '4'), implementation=implementation
    )
    np.testing.assert_allclose(fused[..., 0], np.tile([16.0, 24.0], [2, 2, 1]), rtol=1e-5)


@st.composite
def cases(draw):
    """Image size, channels, levels, size, boxes in pixels, images, levels of boxes, a seed."""
    integers = st.integers
    levels = range(2, 2 + draw(integers(1, 4)))
    height, width = draw(integers(4, 150)), draw(integers(4, 150))
    num_boxes, rng = draw(integers(0, 5)), np.random.default_rng(draw(integers(0, 2**32 - 1)))
    start = rng.uniform(-30, [height, width], (num_boxes, 2))
    sides = np.exp(rng.uniform(np.log(0.5), np.log(300), (num_boxes, 2)))
    # Exact in float32, so that no test depends on rounding.
    boxes = np.round(np.concatenate([start, start + sides], 1) * 256) / 256
    return {
        'features': (height, width, draw(integers(1, 40)), draw(integers(0, 99)), levels),
        'size': draw(integers(1, 8)),
        'boxes': boxes,
        'images': rng.integers(0, 2, num_boxes),
        'box_levels': rng.integers(0, len(levels), num_boxes),
        'rng': rng,
    }


def levels_and_scales(features):
    levels = sorted(features)
    return levels, [2.0 ** -int(level) for level in levels], [features[x].numpy() for x in levels]


@implementations
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=cases())
def test_the_maximum_equals_numerical_integration(implementation, dtype, case):
    """Output and all gradients."""
    features = make_features(*case['features'], dtype)
    boxes, size = tf.constant(case['boxes'], dtype), case['size']
    levels, scales, maps = levels_and_scales(features)
    upstream = case['rng'].normal(size=(len(boxes), size, size, maps[0].shape[-1]))
    pooled, d_boxes, d_features = with_gradients(
        lambda features, boxes: multilevel_prroi_pool(
            features, boxes, case['images'], size, levels, implementation
        ),
        features,
        boxes,
        upstream,
    )
    where = case['boxes'], case['images']
    by_level = reference.maximum(maps, *where, (size, size), scales)
    assert pooled.dtype == dtype and d_boxes.dtype == dtype
    assert_close(pooled, by_level.max(0), TOLERANCES[dtype])
    # What ties within rounding is left out: only at 0, without a gradient, is it expected to.
    first_two = np.sort(by_level, axis=0)[-2:]
    if np.any((first_two[-1] - first_two[0] < 1e-5) & (first_two[-1] != 0)) and len(levels) > 1:
        return
    to_boxes, to_features = reference.maximum_gradients(
        maps, *where, upstream, by_level.argmax(0), scales
    )
    assert_close(d_boxes, to_boxes, 2 * TOLERANCES[dtype])
    for level, expected in zip(levels, to_features):
        assert_close(d_features[level], expected, TOLERANCES[dtype])


def boxes_dtype(dtype):
    """Coordinates in pixels want more than 16 bits."""
    return dtype if dtype in ('float32', 'float64') else 'float32'


@needs_compiler
@pytest.mark.parametrize('dtype', TOLERANCES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=cases())
def test_the_maximum_equals_pooling_level_by_level(dtype, case):
    """Output, winners and all gradients, which go to the winner; ties may go either way."""
    features = make_features(*case['features'], dtype)
    boxes, size = tf.constant(case['boxes'], boxes_dtype(dtype)), case['size']
    levels, scales, _ = levels_and_scales(features)
    images = tf.constant(case['images'], tf.int32)
    _, winners = library.load().ops.pr_roi_pool_pyramid(
        features=[features[level] for level in levels],
        boxes=boxes,
        box_indices=images,
        output_height=size,
        output_width=size,
        spatial_scales=scales,
    )
    upstream = case['rng'].normal(size=winners.shape)
    pooled, d_boxes, d_features = with_gradients(
        lambda f, b: multilevel_prroi_pool(f, b, images, size, levels, 'compiled'),
        features, boxes, upstream,
    )  # fmt: skip
    by_level, to_boxes = [], 0.0
    for number, (level, scale) in enumerate(zip(levels, scales)):
        one, to_boxes_by_level, to_features = with_gradients(
            lambda f, b, scale=scale: prroi_pool(f, b, images, (size, size), scale, 'compiled'),
            features[level], boxes, np.where(winners == number, upstream, 0),
        )  # fmt: skip
        by_level.append(tf.cast(one, tf.float64))
        to_boxes += tf.cast(to_boxes_by_level, tf.float64)
        expected = tf.cast(to_features, tf.float64).numpy()
        assert_close(d_features[level], expected, 2 * TOLERANCES[dtype])
    assert pooled.dtype == dtype and d_boxes.dtype == boxes.dtype
    assert_close(pooled, np.max(by_level, axis=0), 2 * TOLERANCES[dtype])
    won = np.take_along_axis(np.array(by_level), winners.numpy()[None].astype(int), 0)[0]
    assert_close(pooled, won, 2 * TOLERANCES[dtype])
    assert_close(d_boxes, to_boxes.numpy(), 2 * TOLERANCES[boxes_dtype(dtype)])


@needs_compiler
@pytest.mark.parametrize('dtype', TOLERANCES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=cases(), samples=st.integers(1, 3), offset=st.sampled_from([0.0, 0.25, 0.5]))
def test_roi_align_equals_its_samples_one_by_one(dtype, case, samples, offset):
    """Output and gradient."""
    features = make_features(*case['features'], dtype)
    boxes, size = tf.constant(case['boxes'], boxes_dtype(dtype)), case['size']
    levels, scales, maps = levels_and_scales(features)
    maps = [level.astype(np.float64) for level in maps]
    upstream = case['rng'].normal(size=(len(boxes), size, size, maps[0].shape[-1]))
    upstream = tf.cast(tf.cast(upstream, dtype), tf.float64).numpy()
    where = case['boxes'], case['images'], case['box_levels']
    pooled, d_boxes, d_features = with_gradients(
        lambda features, boxes: multilevel_roi_align(
            features, boxes, *where[1:], size, samples, offset, levels
        ),
        features,
        boxes,
        upstream,
    )
    assert pooled.dtype == dtype and d_boxes is None
    sampling = scales, samples, offset
    expected = reference.roi_align(maps, *where, (size, size), *sampling)
    assert_close(pooled, expected, TOLERANCES[dtype])
    expected = reference.roi_align_gradient(maps, *where, upstream, *sampling)
    for level, value in zip(levels, expected):
        assert_close(d_features[level], value, TOLERANCES[dtype])


@needs_compiler
@pytest.mark.parametrize('samples', [1, 2])
@pytest.mark.parametrize('size', [7, 14])
def test_roi_align_equals_the_model_garden(size, samples):
    """Values and gradient, on the level that the Model Garden chooses, over the border too."""
    features = make_features(256, 384, 5, levels=range(2, 6))
    rng = np.random.default_rng(0)
    start = rng.uniform(-10, [250, 370], (2, 30, 2))
    sides = np.exp(rng.uniform(0, np.log(256), (2, 30, 2)))
    boxes = tf.constant(np.concatenate([start, start + sides], -1), tf.float32)
    levels = np.floor(np.log2(np.sqrt(sides.prod(-1)) / 224)) + 4
    levels = np.clip(levels, 2, 5).astype(np.int32).reshape(-1) - 2
    upstream = rng.normal(size=(60, size, size, 5))

    def garden(features, boxes):
        samples_of = spatial_transform_ops.multilevel_crop_and_resize(
            features, boxes, size * samples, 0.5
        )
        samples_of = tf.reshape(samples_of, [60, size * samples, size * samples, 5])
        return tf.nn.avg_pool2d(samples_of, samples, samples, 'VALID')

    def ours(features, boxes):
        flat, images = tf.reshape(boxes, [-1, 4]), np.repeat([0, 1], 30)
        return multilevel_roi_align(features, flat, images, levels, size, samples)

    theirs, pooled = (with_gradients(f, features, boxes, upstream) for f in (garden, ours))
    # The Model Garden's coordinates have the digits of float32.
    assert_close(pooled[0], theirs[0], 1e-4)
    for level in features:
        assert_close(pooled[2][level], theirs[2][level].numpy(), 1e-4)


@needs_compiler
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
@pytest.mark.parametrize('channels', [3, 40])
def test_sixteen_bits_are_computed_in_float32(dtype, channels):
    """Every result is the exact one rounded once; boxes and their gradient keep float32."""
    features = make_features(64, 96, channels, levels=range(2, 6), dtype=dtype)
    levels, scales, _ = levels_and_scales(features)
    maps = [tf.cast(features[level], tf.float64).numpy() for level in levels]
    boxes, box_levels = tf.constant(BOXES), [0, 1, 2, 3]
    upstream = tf.cast(np.random.default_rng(1).normal(size=(4, 5, 5, channels)), dtype)
    above = tf.cast(upstream, tf.float64).numpy()
    where = BOXES.astype(np.float64), IMAGES
    pooled, d_boxes, d_features = with_gradients(
        lambda f, b: multilevel_prroi_pool(f, b, IMAGES, 5, levels, 'compiled'),
        features, boxes, upstream,
    )  # fmt: skip
    by_level = reference.maximum(maps, *where, (5, 5), scales)
    assert pooled.dtype == dtype and d_boxes.dtype == tf.float32
    assert_close(pooled, by_level.max(0), TOLERANCES[dtype])
    # Which level wins is decided among rounded values: the first of those that tie.
    rounded = tf.cast(tf.constant(by_level, tf.float32), dtype)
    winners = np.argmax(tf.cast(rounded, tf.float32), axis=0)
    to_boxes, to_features = reference.maximum_gradients(maps, *where, above, winners, scales)
    assert_close(d_boxes, to_boxes, 1e-4)
    for level, expected in zip(levels, to_features):
        assert_close(d_features[level], expected, TOLERANCES[dtype])
    aligned, _, d_aligned = with_gradients(
        lambda f, b: multilevel_roi_align(f, b, IMAGES, box_levels, 5), features, boxes, upstream
    )
    where, sampling = (*where, np.array(box_levels)), (scales, 2, 0.5)
    assert aligned.dtype == dtype
    assert_close(aligned, reference.roi_align(maps, *where, (5, 5), *sampling), TOLERANCES[dtype])
    expected = reference.roi_align_gradient(maps, *where, above, *sampling)
    for level, value in zip(levels, expected):
        assert_close(d_aligned[level], value, TOLERANCES[dtype])


@implementations
def test_gradient_reaches_boxes_and_not_detached_features(features, implementation):
    boxes = tf.constant(BOXES)

    def loss(features):
        pooled = multilevel_prroi_pool(features, boxes, IMAGES, 4, implementation=implementation)
        return tf.reduce_sum(pooled**2)

    with tf.GradientTape(persistent=True) as tape:
        tape.watch([features, boxes])
        detached = loss({level: tf.stop_gradient(tensor) for level, tensor in features.items()})
        attached = loss(features)
    assert np.all(tape.gradient(detached, boxes) != 0)
    assert all(gradient is None for gradient in tape.gradient(detached, features).values())
    gradients = tape.gradient(attached, features)
    assert gradients.pop('6') is None
    assert all(np.any(gradient != 0) for gradient in gradients.values())


@implementations
def test_of_levels_that_tie_the_first_gets_the_gradient(implementation):
    level = tf.random.stateless_normal([2, 16, 16, 3], [0, 1])
    features = {'2': level, '3': tf.identity(level), '4': tf.identity(level)}
    # The same box on all levels: each level's nodes are twice as far apart, and constant.
    features = {name: tf.ones_like(value) * value[:, :1, :1] for name, value in features.items()}
    _, _, d_features = with_gradients(
        lambda f, b: multilevel_prroi_pool(f, b, [0], 2, ('2', '3', '4'), implementation),
        features,
        tf.constant([[8.0, 8, 16, 16]]),
        np.ones([1, 2, 2, 3]),
    )
    sums = [np.sum(gradient) for gradient in d_features.values()]
    np.testing.assert_allclose(sums, [12, 0, 0], rtol=1e-5)


@implementations
@pytest.mark.parametrize('level', '2345')
def test_nan_of_any_level_is_nan(features, implementation, level):
    features[level] = features[level] * [1, np.nan, 1]
    pooled = multilevel_prroi_pool(features, BOXES, IMAGES, 4, implementation=implementation)
    np.testing.assert_array_equal(
        np.isnan(pooled), np.broadcast_to([False, True, False], pooled.shape)
    )


@implementations
def test_box_gradient_equals_finite_differences(features, implementation):
    features = {level: tf.cast(tensor, tf.float64) for level, tensor in features.items()}
    boxes, step = tf.constant(BOXES[::2] + 0.3, tf.float64), 1e-6

    def pool(boxes):
        return tf.reduce_sum(
            multilevel_prroi_pool(features, boxes, IMAGES[::2], 4, implementation=implementation)
            ** 2
        )

    with tf.GradientTape() as tape:
        tape.watch(boxes)
        loss = pool(boxes)
    gradient = tape.gradient(loss, boxes).numpy()
    for place in np.ndindex(gradient.shape):
        shift = np.zeros(gradient.shape)
        shift[place] = step
        expected = (pool(boxes + shift) - pool(boxes - shift)) / (2 * step)
        np.testing.assert_allclose(gradient[place], expected, rtol=1e-5, atol=1e-6)


def poolings(implementation):
    """Both functions of features, boxes and images, at 3 x 3 bins."""
    yield lambda f, b, i: multilevel_prroi_pool(f, b, i, 3, implementation=implementation)
    if implementation == 'compiled':
        yield lambda f, b, i: multilevel_roi_align(f, b, i, tf.zeros_like(i), 3)


@implementations
def test_unknown_shapes_and_no_boxes(features, implementation):
    """Batch, sizes and number of boxes unknown when traced; the same values and gradients."""
    features = {level: features[level] for level in '2345'}
    spec = [
        {level: tf.TensorSpec([None, None, None, 3]) for level in features},
        tf.TensorSpec([None, 4]),
        tf.TensorSpec([None], tf.int32),
    ]
    for pool in poolings(implementation):

        @tf.function(input_signature=spec)
        def traced(features, boxes, images, pool=pool):
            with tf.GradientTape() as tape:
                tape.watch(features)
                pooled = pool(features, boxes, images)
            assert pooled.shape.as_list() == [None, 3, 3, 3]
            return pooled, tape.gradient(pooled, features)

        pooled, gradients = traced(features, tf.constant(BOXES), tf.constant(IMAGES))
        expected, _, d_features = with_gradients(
            lambda f, b, pool=pool: pool(f, b, tf.constant(IMAGES)),
            features, tf.constant(BOXES), np.ones([4, 3, 3, 3]),
        )  # fmt: skip
        np.testing.assert_array_equal(pooled, expected)
        for level in features:
            np.testing.assert_array_equal(gradients[level], d_features[level])
        pooled, gradients = traced(features, tf.zeros([0, 4]), tf.zeros([0], tf.int32))
        assert pooled.shape == (0, 3, 3, 3)
        for level in features:
            assert gradients[level].shape == features[level].shape and not np.any(gradients[level])


@implementations
def test_nothing_is_selected_by_a_scalar(features, implementation):
    """Of maps: TensorFlow's layout optimizer gives up on a whole graph with such a node."""
    for pool in poolings(implementation):

        @tf.function
        def step(features, boxes, pool=pool):
            with tf.GradientTape() as tape:
                tape.watch([features, boxes])
                pooled = pool(features, boxes, tf.constant(IMAGES))
            return tape.gradient(pooled, [features, boxes])

        graph = step.get_concrete_function(features, tf.constant(BOXES)).graph
        operations = graph.get_operations()
        selects = [op for op in operations if op.type in ('Select', 'SelectV2')]
        ranks = [{branch.shape.rank for branch in op.inputs[1:]} for op in selects]
        assert {0, 4} not in ranks
        pools = [op.type for op in operations if op.type.startswith(('PrRoi', 'RoiAlign'))]
        assert implementation == 'tensorflow' or 2 <= len(pools) <= 3


WRONG = {
    'NaN': (dict(boxes=[[1.0, 2, float('nan'), 5]]), r'boxes\[0\] is \(1, 2, nan, 5\)'),
    'index': (dict(box_indices=[2]), r'box_indices\[0\] is 2, must be in \[0, 2\)'),
    'number of indices': (dict(box_indices=[0, 0]), 'box_indices'),
    'rank of boxes': (dict(boxes=np.zeros([4])), 'boxes has shape .4'),
    'size': (dict(output_size=0), 'output_size is .0, 0'),
    'five levels': (dict(levels='23456'), 'at most 4'),
}


@needs_compiler
@pytest.mark.parametrize('wrong', WRONG)
@pytest.mark.parametrize('pool', [multilevel_prroi_pool, multilevel_roi_align])
def test_errors_name_argument_and_value(features, pool, wrong):
    change, message = WRONG[wrong]
    arguments = {
        'features': features,
        'boxes': [[1.0, 2, 4, 5]],
        'box_indices': [0],
        'output_size': 2,
        'levels': '2345',
        **change,
    }
    if pool is multilevel_roi_align:
        arguments['box_levels'] = np.zeros(len(arguments['box_indices']), np.int32)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        pool(**arguments)


@needs_compiler
def test_errors_of_roi_align_alone(features):
    def align(**change):
        arguments = {'box_levels': [0], 'samples_per_bin': 2, 'sample_offset': 0.5, **change}
        return multilevel_roi_align(features, [[1.0, 2, 4, 5]], [0], **arguments)

    with pytest.raises(tf.errors.InvalidArgumentError, match=r'box_levels\[0\] is 4'):
        align(box_levels=[4])
    with pytest.raises(tf.errors.InvalidArgumentError, match='box_levels has shape .2., must be'):
        align(box_levels=[0, 0])
    with pytest.raises(tf.errors.InvalidArgumentError, match='samples_per_bin is 0'):
        align(samples_per_bin=0)


@needs_compiler
def test_levels_must_have_the_same_images_and_channels(features):
    for wrong in (features['3'][:1], features['3'][..., :2]):
        with pytest.raises(tf.errors.InvalidArgumentError, match='features has shapes|Dimension'):
            multilevel_prroi_pool({**features, '3': wrong}, BOXES, IMAGES, 4)


@needs_compiler
def test_a_point_has_the_value_there_and_a_reversed_box_none(features):
    boxes = [[12.0, 20, 12, 20], [30, 20, 12, 40]]
    pooled = multilevel_roi_align(features, boxes, [1, 1], [0, 0], 2)
    np.testing.assert_allclose(pooled[0], np.broadcast_to(features['2'][1, 3, 5], [2, 2, 3]))
    assert not np.any(pooled[1])
