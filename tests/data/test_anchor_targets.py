"""Anchor targets: counts, and those of the Model Garden's own labeler."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from official.vision.ops import anchor

from gan_mrcnn.data import anchor_targets


@pytest.mark.parametrize('num_positive', [0, 3, 200])
def test_anchor_targets(num_positive):
    matches = np.full(300, -1, np.int64)
    matches[:num_positive] = 0
    matches[250:] = -2
    labeler = anchor_targets.AnchorLabeler(tf.constant([4, 2]), 64, 0.5)
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
    _get_rpn_samples = anchor_targets.AnchorLabeler._get_rpn_samples


ANCHORS = anchor.build_anchor_generator(2, 4, 1, [0.5, 1.0, 2.0], 4.0)([64, 96])


# Corners on a coarse grid, so that boxes are equal, empty and equally far from an anchor.
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    corners=st.lists(
        st.tuples(*[st.integers(0, 8)] * 2, *[st.integers(0, 6)] * 2), min_size=0, max_size=40
    ),
    grid=st.sampled_from([8, 11.3]),
)
def test_targets_are_the_model_gardens(corners, grid):
    corners = np.array(corners, np.float32).reshape(-1, 4) * grid
    boxes = tf.constant(np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1))
    labels = tf.ones([len(boxes), 1])
    found = anchor_targets.AnchorLabeler(tf.constant([4, 2]), 64, 0.5).label_anchors(ANCHORS, boxes)
    expected = WholeMatrix(rpn_batch_size_per_im=64).label_anchors(ANCHORS, boxes, labels)
    for targets, wanted in zip(tf.nest.flatten(found), tf.nest.flatten(expected)):
        np.testing.assert_array_equal(targets, wanted)


def test_memory_does_not_grow_with_the_objects(monkeypatch):
    """All anchors are compared with one object at a time."""
    anchors = anchor.build_anchor_generator(2, 6, 1, [0.5, 1.0, 2.0], 8.0)([512, 512])
    num_anchors = sum(level.shape.num_elements() // 4 for level in anchors.values())
    compare, sizes = anchor_targets._compare, []

    def look(*arguments):
        iou_with_all = compare(*arguments)

        def compared(box):
            overlaps = iou_with_all(box)
            sizes.append(overlaps.shape.num_elements())
            return overlaps

        return compared

    monkeypatch.setattr(anchor_targets, '_compare', look)
    boxes = tf.constant(np.random.default_rng(0).uniform(0, 256, (40, 4)), tf.float32)
    anchor_targets.AnchorLabeler(tf.constant([4, 2]), 64, 0.5).label_anchors(
        anchors, boxes + [0, 0, 256, 256]
    )
    assert sizes == [num_anchors] * 40


# Images inside their canvases: the rows of configs/.
IMAGES_IN_CANVASES = {
    'gland': ((522, 775), (576, 832)),
    'gland_small': ((256, 380), (256, 384)),
    'coco': ((800, 1066), (1344, 1344)),
    'coco upright': ((1066, 800), (1344, 1344)),
    'phone': ((400, 711), (1088, 1088)),
    'phone upright': ((1067, 600), (1088, 1088)),
    'small': ((192, 288), (384, 384)),
    'a strip without the centre of any anchor': ((1, 384), (384, 384)),
}


def label(size, canvas, boxes):
    """Scores by level for objects in an image of that size, and the anchors' centres."""
    anchors = anchor.build_anchor_generator(2, 6, 1, [0.5, 1.0, 2.0], 8.0)(canvas)
    scores, _ = anchor_targets.AnchorLabeler(
        tf.constant([4, 2]), 256, 0.5, image_size=tf.constant(size, tf.float32)
    ).label_anchors(anchors, tf.constant(boxes, tf.float32))
    scores = np.concatenate([x.numpy().ravel() for x in scores.values()])
    boxes = np.concatenate([x.numpy().reshape(-1, 4) for x in anchors.values()])
    return scores, boxes


@pytest.mark.parametrize('name', IMAGES_IN_CANVASES)
def test_no_anchor_in_the_padding_is_drawn(name):
    """Not for the objects in the corner either, whose best anchors lie beyond it."""
    size, canvas = IMAGES_IN_CANVASES[name]
    height, width = size
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.8, (12, 2)) * size
    boxes = np.concatenate([low, low + rng.uniform(0.02, 0.2, (12, 2)) * size], axis=1)
    corners = [[height - side, width - side, height, width] for side in (3.0, 9.0, 40.0)]
    corners += [[height - 4, 0, height, width], [0, width - 4, height, width]]
    boxes = np.clip(np.concatenate([boxes, corners]), 0, [height, width, height, width])
    scores, anchors = label(size, canvas, boxes)
    drawn = scores >= 0
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert np.all(centres[drawn] < size)
    if not np.any(np.all(centres < size, axis=1)):
        assert not drawn.any()
        return
    assert drawn.sum() == 256 and (scores == 1).sum() <= 128
    # The best anchor of each object, of those inside, is there to be learnt.
    assert (scores == 1).sum() >= 10
    inside = anchors[np.all(centres < size, axis=1)]
    positive = {tuple(box) for box in anchors[scores == 1]}
    for box in boxes:
        overlaps = overlap(box, inside)
        assert any(
            tuple(inside[i]) in positive for i in np.flatnonzero(overlaps >= overlaps.max() - 1e-5)
        )


def overlap(box, others):
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    return common / (np.prod(box[2:] - box[:2]) + areas - common)


def test_an_image_that_fills_its_canvas_has_the_model_gardens_targets():
    rng = np.random.default_rng(1)
    low = rng.uniform(0, 50, (7, 2))
    boxes = tf.constant(np.concatenate([low, low + rng.uniform(3, 14, (7, 2))], 1), tf.float32)
    labels = tf.ones([7, 1])
    found = anchor_targets.AnchorLabeler(
        tf.constant([4, 2]), 64, 0.5, image_size=tf.constant([64.0, 96.0])
    ).label_anchors(ANCHORS, boxes)
    expected = WholeMatrix(rpn_batch_size_per_im=64).label_anchors(ANCHORS, boxes, labels)
    for targets, wanted in zip(tf.nest.flatten(found), tf.nest.flatten(expected)):
        np.testing.assert_array_equal(targets, wanted)
