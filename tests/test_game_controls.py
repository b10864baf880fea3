# SPDX-License-Identifier: Apache-2.0
"""What a gain of the game is compared with (`gan.control`), and how it begins (`gan.ramp`)."""

import numpy as np
import pytest
import tensorflow as tf

from gan_mrcnn import task as task_lib
from gan_mrcnn.modeling import generator
from tests import test_game, tiny
from tests.test_game import CLASSES, changed, everything, make_outputs, tensors, values

SEED = [3, 17]


# Frozen.


@pytest.mark.parametrize('normalization', ['batch', 'spectral'])
def test_frozen_discriminators_judge_and_stay_as_they_are(normalization):
    task, free = (
        test_game.make_task(control=control, normalization=normalization)
        for control in ('frozen', '')
    )
    before = values(everything(task))
    outputs = make_outputs(0)
    terms = test_game.train_discriminators(task, outputs)
    assert changed(before, everything(task)) == {'steps'}
    wanted = test_game.train_discriminators(free, outputs)
    assert {name: float(x) for name, x in terms.items()} == {
        name: float(x) for name, x in wanted.items()
    }
    # The generator is still asked for something.
    losses = task.generator_losses(task.adversarial_samples(tensors(outputs)))
    assert all(loss > 0 for loss in losses.values())


# Shuffled.


def shuffled_outputs(classes=CLASSES):
    """A generator's outputs with the deltas that its predicted boxes are made of, and labels."""
    outputs, rng = tensors(make_outputs(0, classes)), np.random.default_rng(5)
    outputs['mask_box_deltas'] = tf.constant(rng.normal(size=(*classes.shape, 4)), tf.float32)
    shapes = tf.constant([test_game.IMAGE] * len(classes), tf.float32)
    outputs['mask_predicted_boxes'] = generator.predicted_boxes(
        outputs['mask_box_deltas'], outputs['mask_rois'], shapes
    )
    labels = {'sampling_seed': tf.constant([SEED, [0, 0]]), 'image_info': tf.stack([shapes] * 4, 1)}
    return outputs, labels


def adversarial_gradients(task, control, classes=CLASSES, seed=SEED):
    """To deltas and mask logits of every RoI, [B * K, ...] each, and the loss."""
    outputs, labels = shuffled_outputs(classes)
    labels['sampling_seed'] = tf.constant([seed, [0, 0]])
    sources = [outputs['mask_box_deltas'], outputs['mask_outputs']]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        outputs['mask_predicted_boxes'] = generator.predicted_boxes(
            sources[0], outputs['mask_rois'], labels['image_info'][:, 1]
        )
        if control == 'shuffled':
            outputs = task_lib._with_shuffled_gradients(outputs, labels)
        terms = task.generator_losses(task.adversarial_samples(outputs))
        loss = task.weighted_adversarial_loss(terms)
    gradients = tape.gradient(loss, sources)
    return [x.numpy().reshape(classes.size, -1) for x in gradients], loss.numpy()


def givers_of(found, plain):
    """By looking for it: of which RoI each one's gradient is."""
    return [int(np.flatnonzero((plain == row).all(axis=1))[0]) for row in found]


def test_each_roi_gets_the_gradient_of_another_one():
    task = test_game.make_task()
    plain, plain_loss = adversarial_gradients(task, '')
    found, loss = adversarial_gradients(task, 'shuffled')
    assert loss == plain_loss
    objects = np.flatnonzero(CLASSES > 0)
    givers = [np.array(givers_of(x[objects], y)) for x, y in zip(found, plain)]
    # Boxes and masks of the same one, each one's once, nobody's own.
    np.testing.assert_array_equal(givers[0], givers[1])
    assert sorted(givers[0]) == objects.tolist() and not np.any(givers[0] == objects)
    background = np.flatnonzero(CLASSES == 0)
    for one, other in zip(found, plain):
        assert not np.any(one[background])
        np.testing.assert_allclose(np.sum(one**2), np.sum(other**2), rtol=1e-6)
    again, _ = adversarial_gradients(task, 'shuffled')
    np.testing.assert_array_equal(again[1], found[1])
    others = [adversarial_gradients(task, 'shuffled', seed=[i, 0])[0][1] for i in range(4)]
    assert any(np.any(x != found[1]) for x in others)


@pytest.mark.parametrize('count', [0, 1, 2, 7])
def test_givers_go_around_all_rois_with_an_object(count):
    classes = np.zeros(8, int)
    classes[np.random.default_rng(count).permutation(8)[:count]] = 1
    givers = task_lib._givers(tf.constant(classes.reshape(2, 4)), tf.constant(SEED)).numpy()
    assert np.all((givers == np.arange(8)) == ((classes == 0) | (count == 1)))
    place = start = int(np.argmax(classes))
    circle = [place := givers[place] for _ in range(max(count, 1))]
    assert len(set(circle)) == max(count, 1) and circle[-1] == start


def test_a_shuffled_step_trains_the_discriminators_as_any_other():
    found = []
    for control in ('', 'shuffled'):
        task, model = tiny.make_task(gan={'control': control})
        batch = tiny.make_batch(task.task_config)
        terms = task.train_step(batch, model, tiny.sgd())['terms']
        head = model.mask_head.trainable_variables[-1].numpy()
        found.append((terms, [x.numpy() for x in task.discriminator_variables], head))
    (plain, plain_networks, plain_head), (terms, networks, head) = found
    for name in plain:
        if name != 'gradient_norm':
            np.testing.assert_allclose(terms[name], plain[name], rtol=1e-5, err_msg=name)
    for one, other in zip(networks, plain_networks):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert np.any(head != plain_head)


# Ramp.


def test_the_adversarial_weights_rise_over_the_first_part_of_the_training():
    task, model = tiny.make_task(gan={'ramp': 0.25})
    batch, optimizer = tiny.make_batch(task.task_config), tiny.sgd(0.0)
    optimizer.build(model.trainable_variables)
    metrics = {metric.name: metric for metric in task.build_metrics()}
    step = tf.function(
        lambda: task.train_step(batch, model, optimizer, list(metrics.values()))['terms']
    )
    # One graph; the step that it is at is all that tells it where the ramp is.
    for number, factor in ((0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0), (2, 0.5)):
        optimizer.iterations.assign(number)
        metrics['adversarial_ramp'].reset_state()
        terms = step()
        assert terms['adversarial_ramp'] == metrics['adversarial_ramp'].result() == factor
        kept = terms['total_loss'] - tf.add_n([terms['model_loss'], *model.losses])
        wanted = factor * task.weighted_adversarial_loss(terms)
        np.testing.assert_allclose(kept, wanted, atol=1e-5)
