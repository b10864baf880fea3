"""Balanced sampling: counts, order, repeatability."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

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
