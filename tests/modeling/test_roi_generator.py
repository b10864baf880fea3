# SPDX-License-Identifier: Apache-2.0
"""Proposals against the whole step in plain NumPy: what goes into NMS, what comes out."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from official.vision.modeling.layers import roi_generator as garden
from official.vision.ops import anchor

from custom_ops.prroi_pool import build
from gan_mrcnn import configs
from gan_mrcnn.modeling import generator, roi_generator
from gan_mrcnn.modeling.roi_generator import RoIGenerator

CANVAS = (64, 96)
LEVELS = (3, 4, 5)
MIN_SIDE = 1e-3


def make_anchors(canvas=CANVAS, levels=LEVELS, size=3.0):
    boxes = anchor.build_anchor_generator(levels[0], levels[-1], 1, [0.5, 1.0, 2.0], size)(canvas)
    return {level: x[tf.newaxis] for level, x in boxes.items()}


needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason='no C++ compiler')


def run(layer, boxes, scores, anchors, sizes, training=True, **nms):
    """Boxes and scores of the layer, as arrays."""
    tensors = tf.nest.map_structure(tf.constant, (boxes, scores))
    sizes = tf.constant(sizes, tf.float32)
    return [x.numpy() for x in layer(*tensors, anchors, sizes, training=training, **nms)]


def make_generator(**changes):
    numbers = {
        'pre_nms_top_k': 30,
        'num_proposals': 40,
        'nms_iou_threshold': 0.7,
        'pre_nms_min_size_threshold': MIN_SIDE,
        'test_pre_nms_top_k': 12,
        'test_num_proposals': 20,
        'test_nms_iou_threshold': 0.5,
        'test_pre_nms_min_size_threshold': MIN_SIDE,
        'use_batched_nms': True,
    }
    return RoIGenerator(**{**numbers, **changes})


def random_maps(rng, anchors, spread=0.3, num_scores=0):
    """Logits and deltas of one image for every level; of few different scores where asked."""
    scores, boxes = {}, {}
    for level, x in anchors.items():
        height, width = x.shape[1:3]
        logits = rng.normal(size=[1, height, width, 3]) * 2
        if num_scores:
            logits = rng.integers(-num_scores, num_scores, logits.shape) / 4
        scores[level] = logits.astype(np.float32)
        boxes[level] = (rng.normal(size=[1, height, width, 12]) * spread).astype(np.float32)
    return boxes, scores


# The step written out, for one image.


def decode(deltas, anchors):
    height, width = (anchors[:, 2:] - anchors[:, :2]).T
    y, x = (anchors[:, 2:] + anchors[:, :2]).T / 2
    dy, dx, dh, dw = deltas.T
    most = np.log(1000 / 16)
    y, x = y + dy * height, x + dx * width
    height, width = height * np.exp(np.minimum(dh, most)), width * np.exp(np.minimum(dw, most))
    return np.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2], axis=1)


def overlap(box, others):
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    return common / (np.prod(box[2:] - box[:2]) + areas - common)


def survivors(boxes, scores, threshold):
    """Greedy NMS, best first and of equal scores the first first."""
    kept = []
    for i in np.argsort(-scores, kind='stable'):
        if scores[i] > 0 and not np.any(overlap(boxes[i], boxes[kept]) > threshold):
            kept.append(i)
    return boxes[kept], scores[kept]


def candidates(deltas, logits, anchors, size, top_k):
    """What of a level goes into NMS."""
    deltas, anchors = (np.reshape(x, [-1, 4]).astype(np.float64) for x in (deltas, anchors))
    logits = np.reshape(logits, [-1]).astype(np.float64)
    inside = np.all((anchors[:, :2] + anchors[:, 2:]) / 2 < size, axis=1)
    best = [i for i in np.argsort(-logits, kind='stable') if inside[i]][:top_k]
    boxes = np.clip(decode(deltas[best], anchors[best]), 0, np.tile(size, 2))
    large = np.all(boxes[:, 2:] - boxes[:, :2] > MIN_SIDE, axis=1)
    return boxes[large], (1 / (1 + np.exp(-logits[best])))[large]


def propose(boxes, scores, anchors, size, top_k, threshold, number):
    """The best of all levels, again and again where there are too few."""
    levels = [
        survivors(*candidates(boxes[k], scores[k], anchors[k], size, top_k), threshold)
        for k in scores
    ]
    boxes, scores = (np.concatenate(x) for x in zip(*levels))
    if not len(boxes):
        boxes, scores = np.array([[0, 0, *size]]), np.zeros(1)
    order = np.resize(np.argsort(-scores, kind='stable')[:number], number)
    return boxes[order], scores[order]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(9, CANVAS[0]),
    width=st.integers(9, CANVAS[1]),
    training=st.booleans(),
    # Up to boxes that leave the image and boxes that all are the whole image.
    spread=st.sampled_from([0.0, 0.3, 3.0]),
)
def test_proposals_are_those_of_the_step_written_out(seed, height, width, training, spread):
    rng, anchors, size = np.random.default_rng(seed), make_anchors(), np.array([height, width])
    boxes, scores = random_maps(rng, anchors, spread)
    found, found_scores = (
        x[0] for x in run(make_generator(), boxes, scores, anchors, [size], training)
    )
    numbers = (30, 0.7, 40) if training else (12, 0.5, 20)
    wanted, wanted_scores = propose(boxes, scores, anchors, size, *numbers)
    np.testing.assert_allclose(found_scores, wanted_scores, atol=1e-6)
    np.testing.assert_allclose(found, wanted, atol=2e-3)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    num_scores=st.integers(1, 4),
    spread=st.sampled_from([0.0, 0.3, 3.0]),
)
def test_of_equal_scores_and_boxes_any_order_but_a_greedy_choice(seed, num_scores, spread):
    """Every candidate is chosen, or overlaps a chosen one that is no worse; no two chosen do."""
    size = np.array([40, 60])
    anchors = make_anchors(levels=(3,))
    boxes, scores = random_maps(np.random.default_rng(seed), anchors, spread, num_scores)
    found, found_scores = (x[0] for x in run(make_generator(), boxes, scores, anchors, [size]))
    found, first = np.unique(np.round(found, 2), axis=0, return_index=True)
    found_scores = found_scores[first]
    assert len(found) < 40
    going_in = candidates(boxes['3'], scores['3'], anchors['3'], size, 30)
    overlaps = np.array([overlap(box, found) for box in going_in[0]])
    no_worse = found_scores >= going_in[1][:, np.newaxis] - 1e-6
    assert np.all(np.any((overlaps > 0.7 - 1e-2) & no_worse, axis=1))
    for i, box in enumerate(found):
        assert np.all(np.delete(overlap(box, found), i) < 0.7 + 1e-2)
        same = np.abs(going_in[0] - box).max(axis=1) < 0.02
        assert np.any(same & (np.abs(going_in[1] - found_scores[i]) < 1e-6))


@pytest.mark.parametrize('training', [True, False])
def test_exactly_top_k_anchors_of_each_level_go_into_nms(monkeypatch, training):
    """Those of the highest scores, where a level has as many; one operation for all levels."""
    seen, original = [], tf.image.combined_non_max_suppression

    def look(boxes, scores, *args, **kwargs):
        seen.append((boxes.numpy()[:, :, 0], scores.numpy()[:, :, 0]))
        return original(boxes, scores, *args, **kwargs)

    monkeypatch.setattr(tf.image, 'combined_non_max_suppression', look)
    anchors = make_anchors()
    boxes, scores = random_maps(np.random.default_rng(0), anchors)
    run(make_generator(), boxes, scores, anchors, [CANVAS], training, nms='tensorflow')
    top_k = 30 if training else 12
    sizes = [min(top_k, scores[level].size) for level in scores]
    ((all_boxes, all_scores),) = seen
    going_in = all_scores >= 0
    assert np.sum(going_in, axis=1).tolist() == sizes and min(sizes) < 30 <= scores['3'].size
    for i, level in enumerate(scores):
        going_scores = all_scores[i][going_in[i]]
        best = np.sort(1 / (1 + np.exp(-scores[level].ravel())))[::-1][: sizes[i]]
        np.testing.assert_allclose(np.sort(going_scores)[::-1], best, rtol=1e-5)
        np.testing.assert_allclose(
            all_boxes[i][going_in[i]],
            candidates(boxes[level], scores[level], anchors[level], CANVAS, top_k)[0],
            atol=1e-3,
        )


class LevelByLevel(garden.MultilevelROIGenerator):
    """The Model Garden's proposals from the best anchors of each level, NMS level by level."""

    def call(self, raw_boxes, raw_scores, anchor_boxes, image_shape, training=None):
        top_k = self.get_config()['pre_nms_top_k' if training else 'test_pre_nms_top_k']
        best = {
            level: roi_generator._best(
                raw_boxes[level], raw_scores[level], anchor_boxes[level], image_shape, top_k
            )
            for level in raw_scores
        }
        boxes, scores, anchors = (
            {
                # The Model Garden reads the number of nodes off the static shape.
                level: tf.reshape(tensors[i], [-1, tensors[1].shape[1], 1, depth])
                for level, tensors in best.items()
            }
            for i, depth in enumerate((4, 1, 4))
        )
        found = super().call(boxes, scores, anchors, image_shape, training)
        return roi_generator._repeat(*found, image_shape)


@needs_compiler
@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(1, 3),
    training=st.booleans(),
    spread=st.sampled_from([0.0, 0.3, 3.0]),
    # From fewer than a level has to more than all have.
    num_proposals=st.sampled_from([5, 40, 1000]),
    score_threshold=st.sampled_from([0.0, 0.6]),
    smallest=st.sampled_from([0.0, MIN_SIDE, 8.0]),
)
def test_one_nms_for_all_levels_and_images_changes_nothing(
    seed, images, training, spread, num_proposals, score_threshold, smallest
):
    """To the bit, whichever NMS serves."""
    rng, anchors = np.random.default_rng(seed), make_anchors()
    boxes, scores = (
        {level: np.concatenate([one[i][level] for one in maps]) for level in anchors}
        for maps in [[random_maps(rng, anchors, spread) for _ in range(images)]]
        for i in range(2)
    )
    anchors = {level: tf.tile(x, [images, 1, 1, 1]) for level, x in anchors.items()}
    sizes = rng.uniform(9, CANVAS, [images, 2])
    numbers = make_generator(
        num_proposals=num_proposals,
        pre_nms_score_threshold=score_threshold,
        pre_nms_min_size_threshold=smallest,
    ).get_config()
    inputs = boxes, scores, anchors, sizes, training
    wanted = run(LevelByLevel(**numbers), *inputs)
    for nms in ('compiled', 'tensorflow'):
        for x, y in zip(run(RoIGenerator(**numbers), *inputs, nms=nms), wanted):
            np.testing.assert_array_equal(x, y)


@needs_compiler
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('training', [True, False])
def test_of_a_network_gone_wrong_there_are_proposals_all_the_same(bad, training):
    """The step that finds its loss not finite must come to its end."""
    anchors = make_anchors()
    boxes, scores = random_maps(np.random.default_rng(0), anchors)
    for nms in ('compiled', 'tensorflow'):
        found, found_scores = run(
            make_generator(),
            {level: x + np.float32(bad) for level, x in boxes.items()},
            {level: x + np.float32(bad) for level, x in scores.items()},
            anchors,
            [CANVAS],
            training,
            nms=nms,
        )
        np.testing.assert_array_equal(found[0], np.tile([[0, 0, *CANVAS]], [len(found[0]), 1]))
        assert not np.any(found_scores)


@needs_compiler
def test_an_anchor_whose_score_is_no_number_takes_no_place():
    anchors = make_anchors(levels=(3,))
    boxes, scores = random_maps(np.random.default_rng(0), anchors)
    hidden = np.arange(scores['3'].size).reshape(scores['3'].shape) % 3 == 0
    results = [
        run(
            make_generator(),
            boxes,
            {'3': np.where(hidden, np.float32(value), scores['3'])},
            anchors,
            [CANVAS],
        )
        for value in (np.nan, -1e30)
    ]
    for x, y in zip(*results):
        np.testing.assert_array_equal(x, y)


def test_images_of_a_batch_do_not_know_each_other():
    rng, anchors = np.random.default_rng(3), make_anchors()
    maps = [random_maps(rng, anchors) for _ in range(2)]
    sizes = [[64.0, 96.0], [20.0, 50.0]]
    layer = make_generator()
    together = run(
        layer,
        *({k: np.concatenate([one[i][k] for one in maps]) for k in anchors} for i in range(2)),
        {k: tf.tile(x, [2, 1, 1, 1]) for k, x in anchors.items()},
        sizes,
    )
    for b, (boxes, scores) in enumerate(maps):
        alone = run(layer, boxes, scores, anchors, sizes[b : b + 1])
        for one, both in zip(alone, together):
            np.testing.assert_allclose(one[0], both[b], rtol=1e-5, atol=1e-5)


def test_too_few_proposals_are_repeated_best_first():
    """Boxes that all become the whole image: one survives on each level."""
    anchors = make_anchors()
    boxes, scores = random_maps(np.random.default_rng(0), anchors)
    boxes = {
        level: np.tile(np.array([0, 0, 9, 9], np.float32), [*x.shape[:3], 3])
        for level, x in boxes.items()
    }
    found, found_scores = run(make_generator(), boxes, scores, anchors, [[30.0, 40.0]])
    np.testing.assert_array_equal(found[0], np.tile([[0, 0, 30, 40]], [40, 1]))
    np.testing.assert_array_equal(found_scores[0], np.resize(found_scores[0, :3], 40))
    assert np.all(np.diff(found_scores[0, :3]) < 0)


@pytest.mark.parametrize('why', ['no score', 'no area', 'no anchor'])
def test_without_any_proposal_there_is_the_whole_image(why):
    anchors = make_anchors()
    boxes, scores = random_maps(np.random.default_rng(0), anchors)
    size = [2.0, 40.0] if why == 'no anchor' else [30.0, 40.0]
    if why == 'no score':
        scores = {level: np.full_like(x, -1e4) for level, x in scores.items()}
    if why == 'no area':
        boxes = {level: np.full_like(x, -50.0) for level, x in boxes.items()}
    found, found_scores = run(make_generator(), boxes, scores, anchors, [size])
    np.testing.assert_array_equal(found[0], np.tile([[0, 0, *size]], [40, 1]))
    assert not np.any(found_scores)


def test_at_the_start_of_a_training_every_proposal_has_area_and_lies_in_the_image():
    """A small image in a square canvas, whose padding once filled the proposals with nothing."""
    tf.keras.utils.set_random_seed(0)
    config = configs.Generator(num_classes=2, input_size=[384, 384, 3])
    config.override(
        {
            'backbone': {'resnet': {'model_id': 18}},
            'decoder': {'fpn': {'num_filters': 16}},
            'rpn_head': {'num_filters': 16},
            'detection_head': {'fc_dims': 16},
            'mask_head': {'num_convs': 1, 'num_filters': 16},
            'roi_generator': {'num_proposals': 300, 'test_num_proposals': 300},
        }
    )
    model = generator.build_generator(config)
    image = tf.pad(
        tf.random.stateless_normal([1, 192, 288, 3], [1, 2]), [[0, 0], [0, 192], [0, 96], [0, 0]]
    )
    scores, deltas = model.rpn_head(model.decoder(model.backbone(image)))
    for training in (True, False):
        boxes, found_scores = (
            x.numpy()[0]
            for x in model.roi_generator(
                deltas, scores, model._anchors(image), tf.constant([[192.0, 288.0]]), training
            )
        )
        assert np.all(boxes[:, 2:] - boxes[:, :2] > MIN_SIDE)
        assert np.all(boxes >= 0) and np.all(boxes[:, 2:] <= [192, 288])
        assert np.all(found_scores > 0)
        # They are different ones, and not a few repeated.
        assert len(np.unique(boxes, axis=0)) > 250


def test_numbers_of_training_and_testing_are_the_configs():
    """The paper's baseline: 2000 a level and in all in training, 1000 in testing."""
    numbers = configs.ROIGenerator()
    assert (numbers.pre_nms_top_k, numbers.num_proposals) == (2000, 2000)
    assert (numbers.test_pre_nms_top_k, numbers.test_num_proposals) == (1000, 1000)
    anchors = make_anchors((256, 256), (2, 3, 4))
    boxes, scores = random_maps(np.random.default_rng(0), anchors)
    layer = RoIGenerator(**numbers.as_dict())
    for training, number in ((True, 2000), (False, 1000)):
        found, _ = run(layer, boxes, scores, anchors, [[256.0, 256.0]], training)
        assert found.shape == (1, number, 4)
