# SPDX-License-Identifier: Apache-2.0
"""The adversarial part of one training step, literally as in the paper, for tests.

Le et al., sections 3.1 and 3.2: first the discriminators take their step (Eq. 3, which is Eq. 5
and minus Eq. 6), then the generator is judged by the updated ones (Eq. 4 and 6). Nothing of the
package is used. Everything is in float64 and slow: RoI features by numerical integration, RoI by
RoI; convolutions as sums over the kernel's places; batch normalization, optimizer and losses
spelled out.

Shapes: N RoIs with an object, S x S map (28), C channels, L layers.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from tests.custom_ops import reference

LEVELS = ('2', '3', '4', '5')
LEAK = 0.2
EPSILON = 1e-5
DECAY_OF_STATISTICS = 0.9
# Of the input and of each layer of the mask discriminator.
LAYER_WEIGHTS = (1.0, 1.0, 2.0, 2.0, 2.0, 4.0)


@dataclasses.dataclass
class Layer:
    """A convolution, batch normalization (None without) and, but for a logit, LeakyReLU."""

    kernel: tf.Tensor
    bias: tf.Tensor = None
    gamma: tf.Tensor = None
    beta: tf.Tensor = None
    mean: np.ndarray = None
    variance: np.ndarray = None
    # That the kernel stretches most, where it is spectrally normalized.
    direction: np.ndarray = None

    def trained(self):
        return [x for x in (self.kernel, self.bias, self.gamma, self.beta) if x is not None]


@dataclasses.dataclass
class Weights:
    """Of the losses, and what else the settings decide."""

    box: float
    mask: float
    discriminator_box: float
    discriminator_mask: float
    l2_weight_decay: float = 0.0
    clip_norm: float = 0.0
    learning_rate: float = 0.01
    momentum: float = 0.9
    box_loss: str = 'cross_entropy'
    r1: float = 0.0
    mask_judgement: str = 'roi'


# Fig. 2 and 3: what the discriminators see.


def roi_features(features, box, image):
    """PrRoIPool of one box on every level, the maximum over the levels: [S, S, C], float64."""
    return np.max(levels_of(features, box, image), axis=0)


def levels_of(features, box, image):
    return [
        reference.integrate(features[level], box[None], [image], (28, 28), 2.0 ** -int(level))[0]
        for level in LEVELS
    ]


def box_gradient(features, box, image, upstream):
    """Gradient of sum(upstream * roi_features) to the box, [4]."""
    pooled = levels_of(features, box, image)
    highest = np.max(pooled, axis=0)
    return sum(
        reference.box_gradient(
            features[level],
            box[None],
            [image],
            np.where(values == highest, upstream, 0.0)[None],
            2.0 ** -int(level),
        )[0]
        for level, values in zip(LEVELS, pooled)
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def see(outputs):
    """Real and fake maps of every RoI with an object, [N, S, S, C] each, and where they are.

    Args:
      outputs: the generator's, NumPy.
    """
    places = [tuple(place) for place in np.argwhere(outputs['mask_class_targets'] > 0)]
    maps = {'box_real': [], 'box_fake': [], 'mask_real': [], 'mask_fake': [], 'mask_features': []}
    for b, k in places:
        pool = lambda name: roi_features(outputs['decoder_features'], outputs[name][b, k], b)  # noqa: B023, E731
        maps['box_real'].append(pool('mask_gt_boxes'))
        maps['box_fake'].append(pool('mask_predicted_boxes'))
        inside = pool('mask_rois')
        maps['mask_features'].append(inside)
        maps['mask_real'].append(inside * outputs['mask_targets'][b, k][..., None])
        maps['mask_fake'].append(inside * sigmoid(outputs['mask_outputs'][b, k])[..., None])
    return {name: np.array(values) for name, values in maps.items()}, places


# Fig. 3: the discriminators.


def convolve(x, layer, moves=True):
    """4 x 4 with stride 2, zeros around so that [2n] and [2n - 1] both become [n]; or 3 x 3 with
    stride 1 and zeros around."""
    side = layer.kernel.shape[0]
    stride = {4: 2, 3: 1}[side]
    size = (x.shape[1] + stride - 1) // stride
    missing = stride * (size - 1) + side - x.shape[1]
    around = [missing // 2, missing - missing // 2]
    x = tf.pad(x, [[0, 0], around, around, [0, 0]])
    kernel = layer.kernel if layer.direction is None else spectrally_normalized(layer, moves)
    total = 0.0 if layer.bias is None else layer.bias
    last = stride * (size - 1) + 1
    for i in range(side):
        for j in range(side):
            part = x[:, i : i + last : stride, j : j + last : stride]
            total += tf.einsum('nyxc,cd->nyxd', part, kernel[i, j])
    return total


def spectrally_normalized(layer, moves):
    """The kernel over u^T W^T W u / |W u|, where u and W u are constants to the gradient.

    Args:
      layer: its direction u moves by one step of the power iteration, W^T W u, before that.
      moves: whether it does.
    """
    matrix = tf.reshape(layer.kernel, [-1, layer.kernel.shape[-1]])
    fixed = matrix.numpy()
    if moves:
        moved = fixed.T @ (fixed @ layer.direction)
        layer.direction = moved / np.sqrt(np.sum(moved**2))
    unit = layer.direction / np.sqrt(np.sum(layer.direction**2))
    image = fixed @ unit / np.sqrt(np.sum((fixed @ unit) ** 2))
    return layer.kernel / tf.einsum('i,ij,j->', image, matrix, unit)


def normalize(x, layer):
    """By the mean and variance over all RoIs, real and fake, and all places."""
    mean = tf.reduce_mean(x, [0, 1, 2])
    variance = tf.reduce_mean((x - mean) ** 2, [0, 1, 2])
    layer.mean = DECAY_OF_STATISTICS * layer.mean + (1 - DECAY_OF_STATISTICS) * mean.numpy()
    layer.variance = (
        DECAY_OF_STATISTICS * layer.variance + (1 - DECAY_OF_STATISTICS) * variance.numpy()
    )
    return layer.gamma * (x - mean) / tf.sqrt(variance + EPSILON) + layer.beta


def leaky_relu(x):
    return tf.where(x > 0, x, LEAK * x)


def hidden(x, layer, moves=True):
    x = convolve(x, layer, moves)
    if layer.gamma is not None:
        x = normalize(x, layer)
    return leaky_relu(x)


def forward(x, layers, to_logit, moves=True):
    """The input and every layer's output; the last one without LeakyReLU if it is the logit."""
    outputs = [x]
    for number, layer in enumerate(layers, start=1):
        is_logit = to_logit and number == len(layers)
        outputs.append((convolve if is_logit else hidden)(outputs[-1], layer, moves))
    return outputs


def box_logits(x, layers, moves=True):
    return tf.reduce_mean(forward(x, layers, True, moves)[-1], [1, 2, 3])


def score(real, fake, layers):
    """D_b of every real and every fake map, which go through it as one batch: the logits and their
    sigmoid, each of real and of fake ones."""
    logits = box_logits(tf.concat([real, fake], 0), layers)
    scores = 1 / (1 + tf.exp(-logits))
    return [(x[: len(real)], x[len(real) :]) for x in (logits, scores)]


def score_cells(real, fake, layers):
    """Of every cell of every real and every fake map, which go through it as one batch.

    Args:
      layers: as many on the way down as on the way up, the logit between them.
    """
    x, depth, sizes = tf.concat([real, fake], 0), len(layers) // 2, []
    for layer in layers[:depth]:
        sizes.append(x)
        x = hidden(x, layer)
    for layer in layers[:depth:-1]:
        beside = sizes.pop()
        cells = np.arange(beside.shape[1]) // 2
        x = hidden(tf.gather(tf.gather(x, cells, axis=1), cells, axis=2), layer)
        x = tf.concat([x, beside], axis=-1)
    scores = 1 / (1 + tf.exp(-convolve(x, layers[depth])[..., 0]))
    return scores[: len(real)], scores[len(real) :]


def describe(real, fake, layers):
    """D_m of every real and every fake map: all layers, weighted, flattened and joined."""
    outputs = forward(tf.concat([real, fake], 0), layers, False)
    flat = [
        weight * tf.reshape(x, [2 * len(real), -1]) for weight, x in zip(LAYER_WEIGHTS, outputs)
    ]
    joined = tf.concat(flat, axis=1)
    return joined[: len(real)], joined[len(real) :]


# Eq. 4 to 6.


def equation_4(fake_scores):
    return sum(-tf.math.log(score) for score in fake_scores) / len(fake_scores)


def equation_5(real_scores, fake_scores):
    terms = [
        -(tf.math.log(real) + tf.math.log(1 - fake)) for real, fake in zip(real_scores, fake_scores)
    ]
    return sum(terms) / len(terms)


def equation_6(real, fake):
    """L1 as a mean over the elements, SegAN's, then over the RoIs."""
    terms = [tf.reduce_mean(tf.abs(one - other)) for one, other in zip(real, fake)]
    return sum(terms) / len(terms)


# What may stand in their places.


def hinge_of_generator(fake_logits):
    return sum(-logit for logit in fake_logits) / len(fake_logits)


def hinge_of_discriminator(real_logits, fake_logits):
    terms = [
        tf.maximum(1 - real, 0) + tf.maximum(1 + fake, 0)
        for real, fake in zip(real_logits, fake_logits)
    ]
    return sum(terms) / len(terms)


def r1(real, layers):
    """Mean over the real maps, one by one, of their logit's squared gradient."""
    total = 0.0
    for n in range(len(real)):
        x = tf.constant(real[n : n + 1])
        with tf.GradientTape() as tape:
            tape.watch(x)
            logit = box_logits(x, layers, moves=False)
        total += tf.reduce_sum(tape.gradient(logit, x) ** 2)
    return total / len(real)


def of_cells(equation, *scores):
    """Eq. 4 or 5, of every cell as if it were a RoI."""
    return equation(*(tf.reshape(x, [-1]) for x in scores))


# The step.


def descend(variables, gradients, momenta, weights):
    """SGD with momentum, after clipping by the global norm; returns variables, momenta, norm."""
    norm = np.sqrt(sum(np.sum(np.square(gradient)) for gradient in gradients))
    if weights.clip_norm and norm > weights.clip_norm:
        gradients = [gradient * weights.clip_norm / norm for gradient in gradients]
    momenta = [
        weights.momentum * momentum - weights.learning_rate * gradient
        for momentum, gradient in zip(momenta, gradients)
    ]
    return [x + momentum for x, momentum in zip(variables, momenta)], momenta, norm


def discriminators_half(maps, box_layers, mask_layers, momenta, weights):
    """Updates both discriminators' layers in place.

    Args:
      maps: `see`'s.
      box_layers: of D_b, `Layer`s of NumPy arrays.
      mask_layers: of D_m.
      momenta: one of each trained array, in the order of `trained`.
      weights: `Weights`.

    Returns:
      The terms by name, and the new momenta.
    """
    layers = box_layers + mask_layers
    variables = [tf.constant(x) for layer in layers for x in layer.trained()]
    kernels = [x for x in variables if x.shape.rank == 4]
    with tf.GradientTape() as tape:
        tape.watch(variables)
        put(layers, variables)
        logits, scores = score(maps['box_real'], maps['box_fake'], box_layers)
        box_loss = {
            'cross_entropy': lambda: equation_5(*scores),
            'hinge': lambda: hinge_of_discriminator(*logits),
        }[weights.box_loss]()
        others = {}
        if weights.mask_judgement == 'pixel':
            cells = score_cells(maps['mask_real'], maps['mask_fake'], mask_layers)
            mask_loss = of_cells(equation_5, *cells)
            others.update(mask_score_real=np.mean(cells[0]), mask_score_fake=np.mean(cells[1]))
        else:
            mask_loss = -equation_6(*describe(maps['mask_real'], maps['mask_fake'], mask_layers))
        # Eq. 3, with the weights that the paper leaves at 1.
        loss = weights.discriminator_box * box_loss + weights.discriminator_mask * mask_loss
        if weights.r1:
            penalty = r1(maps['box_real'], box_layers)
            loss += weights.discriminator_box * weights.r1 / 2 * penalty
            others['box_gradient_penalty'] = penalty.numpy()
        decay = weights.l2_weight_decay / 2 * sum(tf.reduce_sum(x**2) for x in kernels)
        total = loss + decay
    gradients = [x.numpy() for x in tape.gradient(total, variables)]
    variables, momenta, norm = descend([x.numpy() for x in variables], gradients, momenta, weights)
    put(layers, variables)
    return {
        'box_discriminator_loss': box_loss.numpy(),
        'mask_discriminator_loss': mask_loss.numpy(),
        'box_score_real': np.mean(scores[0]),
        'box_score_fake': np.mean(scores[1]),
        'discriminator_gradient_norm': norm,
        **others,
    }, momenta


def put(layers, values):
    """Gives the layers other arrays, in the order of `trained`."""
    values = iter(values)
    for layer in layers:
        for name in ('kernel', 'bias', 'gamma', 'beta'):
            if getattr(layer, name) is not None:
                setattr(layer, name, next(values))


def generators_half(outputs, maps, places, box_layers, mask_layers, weights):
    """The generator's adversarial terms against the updated discriminators, and their gradients.

    Returns:
      The terms by name with their weighted sum, `adversarial_loss`; and its gradients to
      `mask_predicted_boxes` [B, K, 4] and `mask_outputs` [B, K, S, S], zero at the background.
    """
    box_fake, mask_fake = tf.constant(maps['box_fake']), tf.constant(maps['mask_fake'])
    with tf.GradientTape() as tape:
        tape.watch([box_fake, mask_fake])
        # The generator is judged with the batch's statistics and leaves the stored ones alone.
        box_layers, mask_layers = (
            [dataclasses.replace(x) for x in y] for y in (box_layers, mask_layers)
        )
        logits, scores = score(maps['box_real'], box_fake, box_layers)
        box_loss = {
            'cross_entropy': lambda: equation_4(scores[1]),
            'hinge': lambda: hinge_of_generator(logits[1]),
        }[weights.box_loss]()
        if weights.mask_judgement == 'pixel':
            _, cells = score_cells(maps['mask_real'], mask_fake, mask_layers)
            mask_loss = of_cells(equation_4, cells)
        else:
            mask_loss = equation_6(*describe(maps['mask_real'], mask_fake, mask_layers))
        loss = weights.box * box_loss + weights.mask * mask_loss
    box_upstream, mask_upstream = (x.numpy() for x in tape.gradient(loss, [box_fake, mask_fake]))
    to_boxes = np.zeros_like(outputs['mask_predicted_boxes'])
    to_masks = np.zeros_like(outputs['mask_outputs'])
    for n, (b, k) in enumerate(places):
        to_boxes[b, k] = box_gradient(
            outputs['decoder_features'], outputs['mask_predicted_boxes'][b, k], b, box_upstream[n]
        )
        mask = sigmoid(outputs['mask_outputs'][b, k])
        to_mask = np.sum(mask_upstream[n] * maps['mask_features'][n], axis=-1)
        to_masks[b, k] = to_mask * mask * (1 - mask)
    return (
        {
            'box_generator_loss': box_loss.numpy(),
            'mask_generator_loss': mask_loss.numpy(),
            'adversarial_loss': loss.numpy(),
        },
        to_boxes,
        to_masks,
    )
