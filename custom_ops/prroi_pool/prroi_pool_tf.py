# SPDX-License-Identifier: Apache-2.0
"""PrRoIPool in plain TensorFlow.

The box discriminator scores the features inside a predicted box, and its gradient must reach the
box's four coordinates (Fig. 2 of the GAN Mask R-CNN paper). PrRoIPool (Jiang et al., Acquisition of
Localization Confidence for Accurate Object Detection, ECCV 2018) makes that possible: every bin is
the exact mean of the bilinear interpolant of the feature map over the bin, a continuously
differentiable function of the bin's edges.

The integral is separable. Pixel centres are integers, so node k of an axis contributes to the
interval [a, b] the integral of its tent function, G(b - k) - G(a - k), and

    out[n, i, j, c] = sum_y sum_x weights_y[n, i, y] * weights_x[n, j, x] * features[b_n, y, x, c]

where the weights already hold the division by the bin's area. They are computed once per box for
all channels; the sums are matrix products over the window of the map that the box touches.

Shapes: B images, H x W feature map, C channels, N boxes, h x w bins, R x S window of one box.
"""

import tensorflow as tf


def prroi_pool(features, boxes, box_indices, output_size=(28, 28), spatial_scale=0.25):
    """What `custom_ops.prroi_pool.prroi_pool` says, of tensors that it has checked."""
    compute_dtype = tf.float32 if features.dtype.size < 4 else features.dtype
    # The weights are few, and the edges of small bins far from the origin need the digits.
    nodes = tf.cast(boxes, tf.float64) * tf.constant(spatial_scale, tf.float64)
    y1, x1, y2, x2 = tf.unstack(nodes, num=4, axis=-1)
    height, width = tf.shape(features)[1], tf.shape(features)[2]
    with tf.control_dependencies(_assert_valid(boxes, box_indices, tf.shape(features)[0])):
        pooled = _contract(
            tf.cast(features, compute_dtype),
            tf.cast(_bin_weights(y1, y2, output_size[0], height), compute_dtype),
            tf.cast(_bin_weights(x1, x2, output_size[1], width), compute_dtype),
            tf.identity(box_indices),
            tf.stack([*_touched_nodes(y1, y2, height), *_touched_nodes(x1, x2, width)], axis=-1),
        )
    pooled = tf.ensure_shape(pooled, [boxes.shape[0], *output_size, features.shape[-1]])
    return tf.cast(pooled, features.dtype)


def _assert_valid(boxes, box_indices, num_images):
    """Operations that raise InvalidArgumentError naming the first bad box or index."""
    finite = tf.reduce_all(tf.math.is_finite(boxes), axis=1)
    in_range = (box_indices >= 0) & (box_indices < num_images)

    def fail():
        n = tf.where(~(finite & in_range))[0, 0]
        index, box = box_indices[n], tf.unstack(boxes[n])
        message = tf.where(
            in_range[n],
            tf.strings.format('boxes[{}] is ({}, {}, {}, {}), must be finite', (n, *box)),
            tf.strings.format('box_indices[{}] is {}, must be in [0, {})', (n, index, num_images)),
        )
        return tf.debugging.Assert(False, [message])

    return [tf.cond(tf.reduce_all(finite & in_range), tf.no_op, fail)]


def _bin_weights(start, stop, num_bins, num_nodes):
    """Mean of every node's tent function over every bin, along one axis.

    Args:
        start: [N], first edge of the boxes, in nodes.
        stop: [N], last edge of the boxes.
        num_bins: bins between the two.
        num_nodes: nodes of the axis, at 0, 1, ..., num_nodes - 1.

    Returns:
        [N, num_bins, num_nodes], all 0 for boxes without size.
    """
    has_size = stop > start
    # Without a size of 1 in its place, a box without size would send 0 * inf backwards.
    size = tf.where(has_size, stop - start, tf.ones_like(start))
    start, bin_size = start[:, tf.newaxis, tf.newaxis], size[:, tf.newaxis, tf.newaxis] / num_bins
    edges = tf.range(num_bins + 1)[:, tf.newaxis]
    # First from the node to the box, then along its bins: with small numbers only, float32 keeps
    # its digits far from the origin too.
    distance = start - tf.cast(tf.range(num_nodes), start.dtype)
    distance += tf.cast(edges, start.dtype) * bin_size
    integral = _tent_antiderivative(distance)
    weights = (integral[:, 1:] - integral[:, :-1]) / bin_size
    return tf.where(has_size[:, tf.newaxis, tf.newaxis], weights, tf.zeros_like(weights))


def _tent_antiderivative(u):
    """Integral of max(0, 1 - |t|) from 0 to u."""
    u = tf.clip_by_value(u, -1, 1)
    return u - 0.5 * u * tf.abs(u)


def _touched_nodes(start, stop, num_nodes):
    """First node with weight or gradient and one after the last, two [N] int32; never empty."""
    limit = tf.cast(num_nodes - 1, start.dtype)
    first = tf.cast(tf.clip_by_value(tf.floor(start), 0, limit), tf.int32)
    last = tf.cast(tf.clip_by_value(tf.math.ceil(stop), 0, limit), tf.int32)
    # NaN casts to the smallest integer; the window must stay inside the map even so.
    first = tf.maximum(first, 0)
    return first, tf.maximum(last, first) + 1


@tf.custom_gradient
def _contract(features, weights_y, weights_x, box_indices, windows):
    """Sums the features with the weights of both axes, box by box, over the box's window.

    The gradient is written out because automatic differentiation of the loop would store every
    window and would always compute the gradient to the features, too. Here that is a branch of its
    own, which a graph drops when nobody asks for it. Gradients to weights outside the window are
    left at 0: those weights do not depend on the box.

    Args:
        features: [B, H, W, C].
        weights_y: [N, h, H].
        weights_x: [N, w, W].
        box_indices: [N], int32.
        windows: [N, 4], int32: first row, one after the last, first column, one after the last.

    Returns:
        [N, h, w, C].
    """
    boxes = (weights_y, weights_x, box_indices, windows)
    bins = [weights_y.shape[1], weights_x.shape[1], features.shape[3]]

    def pool(box):
        patch, window_y, window_x = _window(features, *box)
        pooled = tf.matmul(window_y, _flatten_rows(tf.matmul(window_x, patch)))
        return tf.reshape(pooled, [bins[0], bins[1], tf.shape(features)[3]])

    def gradient(upstream):
        d_weights = _weight_gradients(features, boxes, upstream)
        d_features = _feature_gradient(features, weights_y, weights_x, box_indices, upstream)
        return d_features, *d_weights, None, None

    pooled = tf.map_fn(pool, boxes, fn_output_signature=tf.TensorSpec(bins, features.dtype))
    return pooled, gradient


def _window(features, weights_y, weights_x, image, window):
    """The part of the map one box touches, [R, S, C], and its weights, [h, R] and [w, S]."""
    top, bottom, left, right = tf.unstack(window)
    patch = features[image, top:bottom, left:right]
    return patch, weights_y[:, top:bottom], weights_x[:, left:right]


def _flatten_rows(tensor):
    """[R, ...] to [R, -1]."""
    return tf.reshape(tensor, [tf.shape(tensor)[0], tf.reduce_prod(tf.shape(tensor)[1:])])


def _weight_gradients(features, boxes, upstream):
    """Gradients to the weights of both axes, [N, h, H] and [N, w, W], box by box."""
    weights_y, weights_x = boxes[:2]

    def loop():
        return tf.map_fn(
            lambda box: _box_weight_gradients(features, box[:4], box[4]),
            (*boxes, upstream),
            fn_output_signature=(
                tf.TensorSpec(weights_y.shape[1:], features.dtype),
                tf.TensorSpec(weights_x.shape[1:], features.dtype),
            ),
        )

    # A loop without a step cannot tell the size of a map that is unknown when traced.
    return tf.cond(
        tf.shape(weights_y)[0] > 0,
        loop,
        lambda: (tf.zeros_like(weights_y), tf.zeros_like(weights_x)),
    )


def _box_weight_gradients(features, box, upstream):
    """Gradients to one box's weights, [h, H] and [w, W], from the one to its bins, [h, w, C]."""
    patch, window_y, window_x = _window(features, *box)
    columns = tf.matmul(window_x, patch)  # [R, w, C]
    upstream = _flatten_rows(upstream)
    d_window_y = tf.matmul(upstream, _flatten_rows(columns), transpose_b=True)
    d_columns = tf.reshape(tf.matmul(window_y, upstream, transpose_a=True), tf.shape(columns))
    d_window_x = tf.reduce_sum(tf.matmul(d_columns, patch, transpose_b=True), axis=0)
    weights_y, weights_x, _, (top, bottom, left, right) = *box[:3], tf.unstack(box[3])
    d_weights_y = tf.pad(d_window_y, [[0, 0], [top, tf.shape(weights_y)[1] - bottom]])
    d_weights_x = tf.pad(d_window_x, [[0, 0], [left, tf.shape(weights_x)[1] - right]])
    return d_weights_y, d_weights_x


def _feature_gradient(features, weights_y, weights_x, box_indices, upstream):
    """Gradient to the features, [B, H, W, C], image by image over the image's boxes."""
    num_rows, num_columns = tf.shape(features)[1], tf.shape(features)[2]

    def one_image(image):
        own = tf.where(tf.equal(box_indices, image))[:, 0]
        own_y, own_x = tf.gather(weights_y, own), tf.gather(weights_x, own)
        columns = tf.matmul(own_x[:, tf.newaxis], tf.gather(upstream, own), transpose_a=True)
        num_bins = tf.shape(own_y)[0] * tf.shape(own_y)[1]
        d_image = tf.matmul(
            tf.reshape(own_y, [num_bins, num_rows]),
            tf.reshape(columns, [num_bins, num_columns * tf.shape(features)[3]]),
            transpose_a=True,
        )
        return tf.reshape(d_image, tf.shape(features)[1:])

    signature = tf.TensorSpec(features.shape[1:], features.dtype)
    return tf.map_fn(one_image, tf.range(tf.shape(features)[0]), fn_output_signature=signature)
