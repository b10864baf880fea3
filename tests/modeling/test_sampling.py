"""Balanced sampling: counts, order, repeatability."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from official.vision.ops import anchor

from gan_mrcnn.modeling import sampling


@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(['positive', 'negative', 'ignored']), min_size=20, max_size=60),
    fraction=st.sampled_from([0.25, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_counts_and_order(kinds, fraction, seed):
    positives = np.array([kind == 'positive' for kind in kinds])
    negatives = np.array([kind == 'negative' for kind in kinds])
    num_samples = 16
    indices = sampling.sample_balanced(
        tf.constant(positives),
        tf.constant(negatives),
        num_samples,
        fraction,
        tf.constant([seed, 1]),
    ).numpy()
    assert len(set(indices)) == num_samples
    wanted_positives = min(int(num_samples * fraction), positives.sum())
    wanted_negatives = min(num_samples - wanted_positives, negatives.sum())
    assert positives[indices[:wanted_positives]].all()
    assert negatives[indices[wanted_positives:][:wanted_negatives]].all()


def test_draw_depends_on_the_seed_alone_and_is_fair():
    positives = tf.range(100) < 50
    draw = lambda seed: sampling.sample_balanced(  # noqa: E731
        positives, ~positives, 20, 0.5, tf.constant([seed, 0])
    ).numpy()
    np.testing.assert_array_equal(draw(3), draw(3))
    counts = np.bincount(np.concatenate([draw(seed) for seed in range(400)]), minlength=100)
    # Each of 50 is drawn 10 of 50 times: mean 80, standard deviation 8.
    assert counts.min() > 80 - 5 * 8 and counts.max() < 80 + 5 * 8


def test_roi_sampler_matches_the_closest_object():
    gt_boxes = np.array([[[0, 0, 10, 10], [20, 20, 40, 40], [-1] * 4]], np.float32)
    gt_classes = np.array([[3, 5, -1]], np.int32)
    proposals = np.array(
        [[[0, 0, 10, 9], [21, 20, 40, 41], [0, 0, 40, 40], [60, 60, 70, 70]]], np.float32
    )
    sampler = sampling.RoISampler(
        mix_gt_boxes=False, num_sampled_rois=4, foreground_fraction=0.5
    )
    rois, boxes, classes, indices = (
        x.numpy()[0] for x in sampler(proposals, gt_boxes, gt_classes, tf.constant([[1, 2]]))
    )
    by_roi = {tuple(roi): i for i, roi in enumerate(rois)}
    assert set(by_roi) == {tuple(roi) for roi in proposals[0]}
    for proposal, gt in ((0, 0), (1, 1)):
        i = by_roi[tuple(proposals[0, proposal])]
        assert i < 2
        assert classes[i] == gt_classes[0, gt]
        assert indices[i] == gt
        np.testing.assert_array_equal(boxes[i], gt_boxes[0, gt])
    assert (classes[2:] == 0).all() and (indices[2:] == -1).all() and (boxes[2:] == 0).all()


def test_ground_truth_boxes_are_among_the_rois_where_asked():
    gt_boxes = np.array([[[5, 5, 25, 25], [-1] * 4]], np.float32)
    sampler = sampling.RoISampler(num_sampled_rois=4, foreground_fraction=0.25)
    rois, _, classes, _ = sampler(
        np.zeros([1, 4, 4], np.float32) + [50, 50, 60, 60],
        gt_boxes,
        np.array([[1, -1]], np.int32),
        tf.constant([[0, 0]]),
    )
    np.testing.assert_array_equal(rois[0, 0], gt_boxes[0, 0])
    assert classes[0].numpy().tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize('num_positive', [0, 3, 200])
def test_anchor_targets(num_positive):
    matches = np.full(300, -1, np.int64)
    matches[:num_positive] = 0
    matches[250:] = -2
    labeler = sampling.AnchorLabeler(tf.constant([4, 2]), 64, 0.5)
    targets, positives, negatives = (
        x.numpy() for x in labeler._get_rpn_samples(tf.constant(matches))
    )
    kept = min(num_positive, 32)
    assert (targets == 1).sum() == kept == positives.sum()
    assert (targets == 0).sum() == min(64 - kept, 250 - num_positive) == negatives.sum()
    assert (targets[:num_positive] != 0).all() and (targets[250:] == -1).all()


class WholeMatrix(anchor.RpnAnchorLabeler):
    """The Model Garden's own labeler, with our draw so that the two can be compared."""

    _seed = (4, 2)
    _get_rpn_samples = sampling.AnchorLabeler._get_rpn_samples


ANCHORS = anchor.build_anchor_generator(2, 4, 1, [0.5, 1.0, 2.0], 4.0)([64, 96])


# Corners on a coarse grid, so that boxes are equal, empty and equally far from an anchor.
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    corners=st.lists(
        st.tuples(*[st.integers(0, 8)] * 2, *[st.integers(0, 6)] * 2), min_size=0, max_size=40
    ),
    grid=st.sampled_from([8, 11.3]),
    objects_at_a_time=st.sampled_from([1, 3, 64]),
)
def test_targets_are_the_model_gardens_whatever_the_number_of_objects_at_a_time(
    corners, grid, objects_at_a_time
):
    corners = np.array(corners, np.float32).reshape(-1, 4) * grid
    boxes = tf.constant(np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1))
    labels = tf.ones([len(boxes), 1])
    num_anchors = sum(level.shape.num_elements() // 4 for level in ANCHORS.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, '_PAIRS', objects_at_a_time * num_anchors)
        found = sampling.AnchorLabeler(tf.constant([4, 2]), 64, 0.5).label_anchors(
            ANCHORS, boxes, labels
        )
    expected = WholeMatrix(rpn_batch_size_per_im=64).label_anchors(ANCHORS, boxes, labels)
    for targets, wanted in zip(tf.nest.flatten(found), tf.nest.flatten(expected)):
        np.testing.assert_array_equal(targets, wanted)


def test_memory_does_not_grow_with_the_objects():
    """The largest tensor of the graph, which the whole matrix would be."""
    largest = 0

    def look(overlaps):
        nonlocal largest
        largest = max(largest, overlaps.shape.num_elements())
        return overlaps

    labeler = sampling.AnchorLabeler(tf.constant([4, 2]), 64, 0.5)
    compare = labeler._overlaps
    labeler._overlaps = lambda *boxes: look(compare(*boxes))
    anchors = anchor.build_anchor_generator(2, 6, 1, [0.5, 1.0, 2.0], 8.0)([512, 512])
    boxes = tf.constant(np.random.default_rng(0).uniform(0, 256, (400, 4)), tf.float32)
    labeler.label_anchors(anchors, boxes + [0, 0, 256, 256], tf.ones([400, 1]))
    assert 0 < largest <= 1 << 20
