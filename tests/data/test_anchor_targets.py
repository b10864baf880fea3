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
        patch.setattr(anchor_targets, '_PAIRS', objects_at_a_time * num_anchors)
        found = anchor_targets.AnchorLabeler(tf.constant([4, 2]), 64, 0.5).label_anchors(
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

    labeler = anchor_targets.AnchorLabeler(tf.constant([4, 2]), 64, 0.5)
    compare = labeler._overlaps
    labeler._overlaps = lambda *boxes: look(compare(*boxes))
    anchors = anchor.build_anchor_generator(2, 6, 1, [0.5, 1.0, 2.0], 8.0)([512, 512])
    boxes = tf.constant(np.random.default_rng(0).uniform(0, 256, (400, 4)), tf.float32)
    labeler.label_anchors(anchors, boxes + [0, 0, 256, 256], tf.ones([400, 1]))
    assert 0 < largest <= 1 << 20
