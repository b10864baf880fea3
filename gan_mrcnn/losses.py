# SPDX-License-Identifier: Apache-2.0
"""The adversarial losses of the paper (Eq. 4-6), others in their places, and the baseline's losses.

All means are over the RoIs (or anchors) of the whole batch on all replicas: as in the Model Garden,
a replica divides its own sum by the count averaged over the replicas, and the train step divides by
the number of replicas. Without anything to average, a loss is exactly 0 and so is its gradient.

The Model Garden divides the RPN score loss by a configured batch size and the box losses by four
times the number of positives, so its terms shift against each other with the number of RoIs. The
baseline, maskrcnn-benchmark, divides by what was sampled; so do the functions here. All compute
in float32 (float64 where given that) and return a scalar.

Shapes: N RoIs (per image where B is given), B images, K mask RoIs per image, C classes with the
background as class 0, A anchors per node of an FPN level of H x W nodes, S mask resolution.
"""

from collections.abc import Mapping, Sequence

import tensorflow as tf


def mean_over_rois(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Mean of the values with weight over all replicas; see the module for the division.

    Args:
        values: loss of each RoI, any shape. Those without weight do not count, not even as NaN.
        weights: of the same shape, 1 for a valid RoI and 0 for padding.

    Returns:
        A scalar, 0 where no replica has a valid RoI.
    """
    values = _at_least_float32(values)
    weights = tf.cast(weights, values.dtype)
    return _divide_by_count(tf.reduce_sum(tf.math.multiply_no_nan(values, weights)), weights)


def box_generator_loss(fake_logits: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Eq. 4: mean over RoIs of -log D_b(pred).

    Args:
        fake_logits: [N], of the box discriminator on predicted boxes; D_b is their sigmoid.
        weights: [N], 1 for a valid RoI, 0 for padding.
    """
    return mean_over_rois(tf.nn.softplus(-_at_least_float32(fake_logits)), weights)


def box_discriminator_loss(
    real_logits: tf.Tensor, fake_logits: tf.Tensor, weights: tf.Tensor
) -> tf.Tensor:
    """Eq. 5: mean over RoIs of -(log D_b(gt) + log(1 - D_b(pred))).

    Args:
        real_logits: [N], of the box discriminator on ground-truth boxes.
        fake_logits: [N], on predicted boxes.
        weights: [N], 1 for a valid RoI, 0 for padding.
    """
    on_real = tf.nn.softplus(-_at_least_float32(real_logits))
    on_fake = tf.nn.softplus(_at_least_float32(fake_logits))
    return mean_over_rois(on_real + on_fake, weights)


def box_generator_hinge(fake_logits: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Mean over RoIs of -D(pred), the generator's side of the hinge loss (Lim & Ye 2017, Eq. 13).

    Args:
        fake_logits: [N], D of predicted boxes.
        weights: [N], 1 for a valid RoI, 0 for padding.
    """
    return mean_over_rois(-_at_least_float32(fake_logits), weights)


def box_discriminator_hinge(
    real_logits: tf.Tensor, fake_logits: tf.Tensor, weights: tf.Tensor
) -> tf.Tensor:
    """Mean over RoIs of max(0, 1 - D(gt)) + max(0, 1 + D(pred)) (Lim & Ye 2017, Eq. 12).

    Args:
        real_logits: [N], D of ground-truth boxes.
        fake_logits: [N], of predicted boxes.
        weights: [N], 1 for a valid RoI, 0 for padding.
    """
    on_real = tf.nn.relu(1.0 - _at_least_float32(real_logits))
    on_fake = tf.nn.relu(1.0 + _at_least_float32(fake_logits))
    return mean_over_rois(on_real + on_fake, weights)


def gradient_penalty(gradients: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Mean over RoIs of || grad D(gt) ||^2, R1 without its weight (Mescheder et al. 2018, Eq. 9).

    Args:
        gradients: [N, ...], of each RoI's logit to the RoI's own features.
        weights: [N], 1 for a valid RoI, 0 for padding.
    """
    squares = tf.square(_at_least_float32(gradients))
    return mean_over_rois(tf.reduce_sum(squares, axis=list(range(1, squares.shape.rank))), weights)


def mask_feature_distance(
    real_layers: Sequence[tf.Tensor],
    fake_layers: Sequence[tf.Tensor],
    weights: tf.Tensor,
    layer_weights: Sequence[float],
) -> tf.Tensor:
    """Eq. 6: mean over RoIs of || D_m(gt) - D_m(pred) ||_1, SegAN's multi-scale L1.

    D_m is the concatenation of all layers, flattened, each times its weight. As in SegAN, the norm
    is the mean and not the sum over its elements: some 300,000 elements per RoI would otherwise
    set the scale of the loss by the resolution and the channels.

    Args:
        real_layers: outputs of the mask discriminator's layers for ground truth, each [N, ...].
        fake_layers: the same for predicted masks.
        weights: [N], 1 for a valid RoI, 0 for padding.
        layer_weights: one for each layer.

    Raises:
        ValueError: if the three sequences differ in length.
    """
    if not len(real_layers) == len(fake_layers) == len(layer_weights):
        raise ValueError(
            f'{len(real_layers)} real and {len(fake_layers)} fake layers '
            f'for {len(layer_weights)} layer weights'
        )
    # Summed layer by layer: the concatenation itself would be a copy of all of them.
    distance, num_elements = 0.0, 0
    for real, fake, layer_weight in zip(real_layers, fake_layers, layer_weights):
        difference = _at_least_float32(tf.abs(tf.subtract(real, fake)))
        per_roi = tf.reduce_sum(difference, axis=list(range(1, difference.shape.rank)))
        distance += layer_weight * per_roi
        num_elements += tf.reduce_prod(tf.shape(real)[1:])
    return mean_over_rois(distance / tf.cast(num_elements, distance.dtype), weights)


def mask_generator_loss(real_layers, fake_layers, weights, layer_weights) -> tf.Tensor:
    """Eq. 6 for the generator: the distance, see `mask_feature_distance`."""
    return mask_feature_distance(real_layers, fake_layers, weights, layer_weights)


def mask_discriminator_loss(real_layers, fake_layers, weights, layer_weights) -> tf.Tensor:
    """Eq. 6 for the discriminator: minus the distance, see `mask_feature_distance`."""
    return -mask_feature_distance(real_layers, fake_layers, weights, layer_weights)


def pixel_generator_loss(fake_logits: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Eq. 4 for every cell: mean over the cells, then over the RoIs, of -log D(pred).

    Args:
        fake_logits: [N, S, S], of predicted masks; D is their sigmoid.
        weights: [N], 1 for a valid RoI, 0 for padding.
    """
    on_fake = tf.nn.softplus(-_at_least_float32(fake_logits))
    return mean_over_rois(tf.reduce_mean(on_fake, axis=[1, 2]), weights)


def pixel_discriminator_loss(
    real_logits: tf.Tensor, fake_logits: tf.Tensor, weights: tf.Tensor
) -> tf.Tensor:
    """Eq. 5 for every cell: mean of -(log D(gt) + log(1 - D(pred))).

    Every cell of a ground-truth map is real and every one of a predicted map is not (Schoenfeld et
    al. 2020, Eq. 4, of the decoder).

    Args:
        real_logits: [N, S, S], of ground-truth masks.
        fake_logits: [N, S, S], of predicted masks.
        weights: [N], 1 for a valid RoI, 0 for padding.
    """
    on_real = tf.nn.softplus(-_at_least_float32(real_logits))
    on_fake = tf.nn.softplus(_at_least_float32(fake_logits))
    return mean_over_rois(tf.reduce_mean(on_real + on_fake, axis=[1, 2]), weights)


def rpn_score_loss(scores: Mapping[str, tf.Tensor], targets: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Binary cross-entropy of the objectness, mean over the sampled anchors of all levels.

    Args:
        scores: level -> [B, H, W, A] logits.
        targets: level -> [B, H, W, A], 1 object, 0 background, -1 not sampled.
    """
    scores, targets = _join_levels(scores, targets, 1)
    targets = tf.cast(targets, scores.dtype)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=scores)
    return mean_over_rois(losses, targets >= 0)


def rpn_box_loss(
    deltas: Mapping[str, tf.Tensor],
    box_targets: Mapping[str, tf.Tensor],
    score_targets: Mapping[str, tf.Tensor],
    beta: float = 1 / 9,
) -> tf.Tensor:
    """Smooth L1 of the positive anchors' four deltas, divided by all sampled anchors.

    Args:
        deltas: level -> [B, H, W, 4A], encoded boxes.
        box_targets: level -> [B, H, W, 4A].
        score_targets: level -> [B, H, W, A], 1 object, 0 background, -1 not sampled.
        beta: where the loss turns from quadratic to linear, in units of the deltas.
    """
    _, score_targets = _join_levels(deltas, score_targets, 1)
    deltas, box_targets = _join_levels(deltas, box_targets, 4)
    per_anchor = tf.reduce_sum(_smooth_l1(deltas, box_targets, beta), axis=-1)
    positive = tf.cast(tf.equal(score_targets[:, 0], 1), per_anchor.dtype)
    sampled = tf.cast(score_targets[:, 0] >= 0, per_anchor.dtype)
    return _divide_by_count(tf.reduce_sum(tf.math.multiply_no_nan(per_anchor, positive)), sampled)


def class_loss(class_logits: tf.Tensor, class_targets: tf.Tensor) -> tf.Tensor:
    """Softmax cross-entropy, mean over all RoIs.

    Args:
        class_logits: [B, N, C].
        class_targets: [B, N], class of each RoI, 0 for the background.
    """
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=tf.cast(class_targets, tf.int64), logits=_at_least_float32(class_logits)
    )
    return mean_over_rois(losses, tf.ones_like(losses))


def box_loss(
    box_outputs: tf.Tensor, class_targets: tf.Tensor, box_targets: tf.Tensor, beta: float = 1.0
) -> tf.Tensor:
    """Smooth L1 of the positive RoIs' four deltas, divided by all RoIs, positive or not.

    Args:
        box_outputs: [B, N, 4C], encoded boxes for every class; the RoI's own class counts.
        class_targets: [B, N], class of each RoI, 0 for the background.
        box_targets: [B, N, 4].
        beta: where the loss turns from quadratic to linear, in units of the deltas.
    """
    box_outputs = _at_least_float32(box_outputs)
    shape = tf.shape(box_outputs)
    by_class = tf.reshape(box_outputs, [shape[0], shape[1], shape[2] // 4, 4])
    own = tf.gather(by_class, tf.cast(class_targets, tf.int64), batch_dims=2)
    per_roi = tf.reduce_sum(_smooth_l1(own, box_targets, beta), axis=-1)
    positive = tf.cast(class_targets > 0, per_roi.dtype)
    total = tf.reduce_sum(tf.math.multiply_no_nan(per_roi, positive))
    return _divide_by_count(total, tf.ones_like(positive))


def mask_loss(
    mask_logits: tf.Tensor, mask_targets: tf.Tensor, class_targets: tf.Tensor
) -> tf.Tensor:
    """Binary cross-entropy, mean over the pixels, then over the positive RoIs.

    Args:
        mask_logits: [B, K, S, S], of the RoI's own class.
        mask_targets: [B, K, S, S], in [0, 1].
        class_targets: [B, K], class of each RoI, 0 for the background.
    """
    mask_logits = _at_least_float32(mask_logits)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(
        labels=tf.cast(mask_targets, mask_logits.dtype), logits=mask_logits
    )
    return mean_over_rois(tf.reduce_mean(losses, axis=[2, 3]), class_targets > 0)


def _divide_by_count(total, weights):
    """This replica's sum over the mean of the replicas' counts, 0 for 0/0."""
    count = tf.reduce_sum(tf.stop_gradient(weights))
    replica_context = tf.distribute.get_replica_context()
    if replica_context is not None:
        count = replica_context.all_reduce(tf.distribute.ReduceOp.MEAN, count)
    return tf.math.divide_no_nan(total, count)


def _at_least_float32(tensor):
    """Sums of 16-bit numbers overflow and lose small terms."""
    tensor = tf.convert_to_tensor(tensor)
    return tf.cast(tensor, tf.float32) if tensor.dtype.size < 4 else tensor


def _smooth_l1(outputs, targets, beta):
    """Element-wise: d**2 / (2 * beta) below beta, |d| - beta / 2 above."""
    difference = tf.abs(outputs - tf.cast(targets, outputs.dtype))
    quadratic = 0.5 * tf.square(difference) / beta
    return tf.where(difference < beta, quadratic, difference - 0.5 * beta)


def _join_levels(outputs, targets, size):
    """Outputs and targets of all levels of `outputs`, each as one [number, size] tensor."""
    joined = [
        tf.concat([tf.reshape(tensors[level], [-1, size]) for level in outputs], axis=0)
        for tensors in (outputs, targets)
    ]
    return _at_least_float32(joined[0]), joined[1]
