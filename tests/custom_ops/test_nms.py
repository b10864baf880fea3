# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression against TensorFlow's own, and against the definition written out."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from custom_ops.nms import combined_non_max_suppression
from custom_ops.prroi_pool import build, library
from tests.custom_ops import nms_reference

pytestmark = pytest.mark.skipif(build.find_compiler() is None, reason='no C++ compiler')


def run_op(boxes, scores, iou_threshold=0.5, score_threshold=0.0, max_output=5):
    """Indices and counts of the operation itself."""
    results = library.load().ops.grouped_non_max_suppression(
        np.asarray(boxes, np.float32),
        np.asarray(scores, np.float32),
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        max_output=max_output,
    )
    return [x.numpy() for x in results]


@settings(max_examples=150)
@given(case=nms_reference.cases())
def test_the_operation_is_the_definition(case):
    for found, wanted in zip(run_op(**case), nms_reference.suppress(**case)):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize('threads_share', [1, 7, 200])
def test_groups_do_not_know_each_other(threads_share):
    case = nms_reference.crowded(groups=threads_share, boxes=90, seed=threads_share)
    indices, counts = run_op(*case, max_output=60)
    for g in range(threads_share):
        alone = run_op(*(x[g : g + 1] for x in case), max_output=60)
        np.testing.assert_array_equal(indices[g], alone[0][0])
        assert counts[g] == alone[1][0] > 1


@pytest.mark.parametrize('shape', [(0, 5), (3, 0), (0, 0)])
def test_nothing_gives_nothing(shape):
    indices, counts = run_op(np.zeros([*shape, 4]), np.zeros(shape))
    assert indices.shape == (shape[0], 5) and counts.shape == (shape[0],)
    assert not indices.any() and not counts.any()


@pytest.mark.parametrize(
    'change, words',
    [
        ({'boxes': np.zeros([2, 3, 5])}, r'boxes has shape \[2,3,5\]'),
        ({'boxes': np.zeros([2, 4, 4])}, r'scores has shape \[2,3\], must be \[2, 4\]'),
        ({'iou_threshold': 1.5}, 'iou_threshold is 1.5, must be between 0 and 1'),
        ({'iou_threshold': float('nan')}, 'iou_threshold is nan'),
    ],
)
def test_what_is_wrong_is_named(change, words):
    arguments = {'boxes': np.zeros([2, 3, 4]), 'scores': np.zeros([2, 3])}
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        run_op(**{**arguments, **change})


def test_shapes_are_known_before_anything_runs():
    @tf.function(
        input_signature=[tf.TensorSpec([None, 9, 4]), tf.TensorSpec([3, None]), tf.TensorSpec(None)]
    )
    def trace(boxes, scores, unknown):
        op = library.load().ops.grouped_non_max_suppression
        numbers = {'iou_threshold': 0.5, 'score_threshold': 0.0, 'max_output': 7}
        assert [x.shape for x in op(boxes, scores, **numbers)] == [[3, 7], [3]]
        assert [x.shape.as_list() for x in op(boxes, unknown, **numbers)] == [[None, 7], [None]]

    trace.get_concrete_function()


def every_way(boxes, scores, *numbers):
    """Results of every implementation in a graph whose number of images is not known.

    TensorFlow's operation comes last.
    """
    spec = [tf.TensorSpec([None, *x.shape[1:]], tf.float32) for x in (boxes, scores)]
    return [
        [
            x.numpy()
            for x in tf.function(
                lambda *x, name=name: combined_non_max_suppression(*x, *numbers, name),
                input_signature=spec,
            )(boxes, scores)
        ]
        for name in ('compiled', 'tensorflow_by_class', 'tensorflow')
    ]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(0, 3),
    num_boxes=st.integers(1, 70),
    classes=st.integers(1, 4),
    shares_boxes=st.booleans(),
    per_class=st.integers(1, 80),
    total=st.integers(1, 100),
    iou_threshold=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
    score_threshold=st.sampled_from([0.0, 0.5, -1.0]),
)
def test_equals_tensorflows_operation(
    seed, images, num_boxes, classes, shares_boxes, per_class, total, iou_threshold, score_threshold
):
    boxes, scores = nms_reference.images(seed, images, num_boxes, classes, shares_boxes)
    numbers = per_class, total, iou_threshold, score_threshold
    for *ours, theirs in zip(*every_way(boxes, scores, *numbers)):
        for one in ours:
            np.testing.assert_array_equal(one, theirs)
            assert one.dtype == theirs.dtype


def test_equals_tensorflows_operation_at_the_size_of_proposals():
    boxes, scores = nms_reference.images(0, 3, 2000, 1, True)
    ours, _, theirs = every_way(boxes, scores, 2000, 1000, 0.7, 0.0)
    assert theirs[3].min() > 100
    for x, y in zip(ours, theirs):
        np.testing.assert_array_equal(x, y)


def test_of_equal_scores_the_first_box_and_the_first_class():
    boxes = np.array([[0, 0, 9, 9], [1, 0, 9, 9], [20, 20, 30, 30], [0, 1, 9, 9]], np.float32)
    scores = np.full([1, 4, 2], 0.5, np.float32)
    found = combined_non_max_suppression(
        boxes[np.newaxis, :, np.newaxis], scores, 4, 6, 0.5, 0.0, 'compiled'
    )
    np.testing.assert_array_equal(found[0][0, :4], boxes[[0, 2, 0, 2]])
    np.testing.assert_array_equal(found[2][0], [0, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(found[1][0], [0.5] * 4 + [0, 0])
    np.testing.assert_array_equal(found[3], [4])


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, np.float32(1e38)])
@pytest.mark.parametrize('where', range(5))
def test_what_is_not_finite_gives_what_tensorflow_gives(bad, where):
    """In one of the coordinates, or in the score."""
    boxes, scores = nms_reference.images(1, 2, 40, 2, False)
    if where < 4:
        boxes[:, ::3, :, where] = bad
    else:
        # Once in an image: TensorFlow takes equal scores in any order.
        scores[:, 7, 0] = bad
        scores[:, 0, 1] = np.nan
    *others, theirs = every_way(boxes, scores, 40, 60, 0.3, 0.05)
    for found in others:
        for x, y in zip(found, theirs):
            np.testing.assert_array_equal(x, y)
        assert not np.any(np.isnan(found[1]))


def test_all_nan_chooses_nothing():
    boxes, scores = np.full([2, 9, 1, 4], np.nan), np.full([2, 9, 3], np.nan)
    found = combined_non_max_suppression(
        boxes.astype(np.float32), scores.astype(np.float32), 5, 7, 0.5, 0.0, 'compiled'
    )
    assert not any(np.any(x) for x in found)


def test_there_is_no_gradient():
    boxes, scores = (tf.constant(x) for x in nms_reference.images(0, 1, 20, 1, True))
    for name in ('compiled', 'tensorflow'):
        with tf.GradientTape() as tape:
            tape.watch([boxes, scores])
            found = combined_non_max_suppression(boxes, scores, 9, 9, 0.5, 0.0, name)
            total = tf.reduce_sum(boxes) + tf.reduce_sum(tf.stop_gradient(found[0]))
        np.testing.assert_array_equal(tape.gradient(total, boxes), np.ones_like(boxes))


def test_an_unknown_implementation_is_named():
    with pytest.raises(ValueError, match="'fast', not one of"):
        combined_non_max_suppression(
            *nms_reference.images(0, 1, 2, 1, True), 1, 1, 0.5, 0.0, 'fast'
        )
