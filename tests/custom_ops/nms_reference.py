# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression of groups written out in NumPy, and boxes to try it on."""

import numpy as np
from hypothesis import strategies as st


def iou(a, b):
    """Of two boxes with corners in any order, in float32; 0 where one has no area."""
    a, b = (np.concatenate([np.minimum(x[:2], x[2:]), np.maximum(x[:2], x[2:])]) for x in (a, b))
    area_a, area_b = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    if area_a <= 0 or area_b <= 0:
        return np.float32(0)
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), np.float32(0))
    common = sides[0] * sides[1]
    return common / (area_a + area_b - common)


def suppress(boxes, scores, iou_threshold, score_threshold, max_output):
    """Indices [G, max_output] and counts [G], as the operation has them."""
    boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
    iou_threshold = np.float32(iou_threshold)
    indices = np.zeros([len(boxes), max_output], np.int32)
    counts = np.zeros([len(boxes)], np.int32)
    with np.errstate(all='ignore'):
        for g, (of_group, scores_of_group) in enumerate(zip(boxes, scores)):
            chosen = []
            for i, box in enumerate(of_group):
                if len(chosen) == max_output or not scores_of_group[i] > score_threshold:
                    continue
                if not any(iou(box, of_group[j]) > iou_threshold for j in chosen):
                    chosen.append(i)
            indices[g, : len(chosen)], counts[g] = chosen, len(chosen)
    return indices, counts


# On a coarse grid: equal boxes, boxes without area, touching ones and reversed ones are all common.
_coordinate = st.one_of(
    st.integers(0, 6).map(float),
    st.floats(-1e4, 1e4, width=32),
    st.sampled_from([float('nan'), float('inf'), -float('inf'), 1e30, -0.0]),
)
_score = st.one_of(
    st.sampled_from([0.0, 0.25, 0.5, 1.0, -1.0, float('inf'), float('nan')]),
    st.floats(0, 1, width=32),
)


@st.composite
def cases(draw):
    """Arguments of `suppress`: up to 3 groups of up to 12 boxes, of any kind, in any order."""
    groups, size = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    coordinates = draw(
        st.lists(_coordinate, min_size=groups * size * 4, max_size=groups * size * 4)
    )
    scores = draw(st.lists(_score, min_size=groups * size, max_size=groups * size))
    return {
        'boxes': np.reshape(coordinates, [groups, size, 4]).astype(np.float32),
        'scores': np.reshape(scores, [groups, size]).astype(np.float32),
        # 1/3 and 1/2 are IoUs of boxes on the grid.
        'iou_threshold': draw(st.sampled_from([0.0, 1 / 3, 0.5, 0.7, 1.0])),
        'score_threshold': draw(
            st.sampled_from([0.0, 0.25, -2.0, float(np.finfo(np.float32).min)])
        ),
        'max_output': draw(st.integers(1, 14)),
    }


def crowded(groups, boxes, seed):
    """Boxes [G, N, 4] in clusters and scores [G, N], best first, the last tenth of them 0."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 200, [groups, max(boxes // 8, 1), 2])
    centres = np.take_along_axis(
        centres, rng.integers(0, centres.shape[1], [groups, boxes, 1]), axis=1
    )
    centres = centres + rng.normal(size=centres.shape) * 3
    sides = np.exp(rng.normal(size=centres.shape) * 0.3) * 25
    scores = -np.sort(-rng.uniform(0.1, 1, [groups, boxes]), axis=1)
    scores[:, boxes - boxes // 10 :] = 0
    corners = np.concatenate([centres - sides / 2, centres + sides / 2], axis=2)
    return corners.astype(np.float32), scores.astype(np.float32)


def images(seed, num_images, num_boxes, num_classes, shares_boxes):
    """Boxes [B, N, C or 1, 4] and scores [B, N, C], all different, in no order."""
    rng = np.random.default_rng(seed)
    boxes, _ = crowded(num_images * num_classes, num_boxes, seed)
    boxes = boxes.reshape(num_images, num_classes, num_boxes, 4).transpose(0, 2, 1, 3)
    shape = [num_images, num_boxes, num_classes]
    # Fewer than 2**24 steps between 0 and 1: all of them are numbers of float32.
    scores = (rng.permutation(int(np.prod(shape))) + 1) / np.float32(np.prod(shape) + 1)
    if shares_boxes:
        boxes = boxes[:, :, :1]
    return np.ascontiguousarray(boxes), scores.astype(np.float32).reshape(shape)
