"""RoIs of the box head: which object each has, and that ground truth is among them."""

import numpy as np
import tensorflow as tf

from gan_mrcnn.modeling.roi_sampler import RoISampler


def test_roi_sampler_matches_the_closest_object():
    gt_boxes = np.array([[[0, 0, 10, 10], [20, 20, 40, 40], [-1] * 4]], np.float32)
    gt_classes = np.array([[3, 5, -1]], np.int32)
    proposals = np.array(
        [[[0, 0, 10, 9], [21, 20, 40, 41], [0, 0, 40, 40], [60, 60, 70, 70]]], np.float32
    )
    sampler = RoISampler(mix_gt_boxes=False, num_sampled_rois=4, foreground_fraction=0.5)
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
    sampler = RoISampler(num_sampled_rois=4, foreground_fraction=0.25)
    rois, _, classes, _ = sampler(
        np.zeros([1, 4, 4], np.float32) + [50, 50, 60, 60],
        gt_boxes,
        np.array([[1, -1]], np.int32),
        tf.constant([[0, 0]]),
    )
    np.testing.assert_array_equal(rois[0, 0], gt_boxes[0, 0])
    assert classes[0].numpy().tolist() == [1, 0, 0, 0]
