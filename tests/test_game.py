# SPDX-License-Identifier: Apache-2.0
"""The adversarial half of a training step against `literal_game`, and what must not change."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from gan_mrcnn import configs
from gan_mrcnn import task as task_lib
from gan_mrcnn.utils import devices
from tests import literal_game

IMAGE = (64, 96)
CHANNELS = 3
RATE = 0.01
# Of two images; 0 is the background, wherever it stands.
CLASSES = np.array([[1, 0, 2, 1], [0, 0, 1, 0]])


@pytest.fixture
def float64():
    tf.keras.backend.set_floatx('float64')
    tf.keras.mixed_precision.set_global_policy('float64')
    yield
    tf.keras.backend.set_floatx('float32')
    tf.keras.mixed_precision.set_global_policy('float32')


def make_task(mode='combined', preset='authors_code', **gan):
    config = configs.GanMaskRCNNTask()
    config.override(
        {
            'model': {'num_classes': 3, 'decoder': {'fpn': {'num_filters': CHANNELS}}},
            'gan': {'mode': mode, 'preset': preset, 'num_layers': 3, **gan},
        }
    )
    tf.keras.utils.set_random_seed(0)
    task = task_lib.GanMaskRCNNTask(config)
    task.build_discriminators(tf.keras.optimizers.SGD(RATE, momentum=0.9))
    rng = np.random.default_rng(1)
    for variable in task.box_discriminator.variables + task.mask_discriminator.variables:
        # Nothing at a value of its own, such as 0 or 1, that would hide a mistake.
        noise = rng.uniform(0.5, 1.5, variable.shape)
        factor = 3.0 if 'kernel' in variable.name else 1.0
        shift = 0.2 * noise if 'beta' in variable.name or 'bias' in variable.name else 0.0
        variable.assign(variable * factor * noise + shift)
    return task


def box(rng, count):
    low = rng.uniform(0, 0.6, (*count, 2)) * IMAGE
    return np.concatenate([low, low + rng.uniform(0.1, 0.4, (*count, 2)) * IMAGE], axis=-1)


def make_outputs(seed, classes=CLASSES):
    """What a generator gives, in float64, of a small FPN and a few RoIs."""
    rng, count = np.random.default_rng(seed), classes.shape
    gt_boxes = box(rng, count)
    near = lambda: gt_boxes + rng.uniform(-5, 5, gt_boxes.shape)  # noqa: E731
    return {
        'decoder_features': {
            str(i): rng.normal(size=(2, IMAGE[0] >> i, IMAGE[1] >> i, CHANNELS))
            for i in range(2, 7)
        },
        'mask_class_targets': classes,
        'mask_rois': near(),
        'mask_gt_boxes': gt_boxes,
        'mask_predicted_boxes': near(),
        'mask_targets': rng.uniform(0, 1, (*count, 28, 28)) ** 2,
        'mask_outputs': rng.normal(size=(*count, 28, 28)),
    }


def tensors(outputs, dtype=tf.float32):
    return tf.nest.map_structure(
        lambda x: tf.constant(x, dtype if x.dtype.kind == 'f' else tf.int32), outputs
    )


# The step against the literal one.


class ToyGenerator(tf.keras.Model):
    """Its weights are the predicted boxes and the mask logits themselves."""

    def __init__(self, outputs):
        super().__init__()
        self.boxes = tf.Variable(outputs['mask_predicted_boxes'])
        self.masks = tf.Variable(outputs['mask_outputs'])
        self.built = True

    @property
    def losses(self):
        return [tf.zeros([], tf.float64)]


def detection_part():
    """Outputs and labels of the other losses, none of which reaches the toy's weights."""
    one = np.full([2, 1, 1, 1], 0.7)
    outputs = {
        'rpn_scores': {'2': one},
        'rpn_boxes': {'2': np.tile(one, 4)},
        'class_outputs': np.tile(one[:, :, 0], 3),
        'class_targets': np.ones([2, 1], int),
        'box_outputs': np.tile(one[:, :, 0], 12),
        'box_targets': np.zeros([2, 1, 4]),
    }
    labels = {
        'rpn_score_targets': {'2': np.ones([2, 1, 1, 1], int)},
        'rpn_box_targets': {'2': np.zeros([2, 1, 1, 4])},
    }
    return tensors(outputs, tf.float64), tensors(labels, tf.float64)


def take_step(task, outputs, model, optimizer):
    """The task's own `train_step` where the generator gives `outputs`."""
    others, labels = detection_part()
    fixed = {**tensors(outputs, tf.float64), **others}
    task.forward = lambda inputs, model: {
        **fixed,
        'mask_predicted_boxes': tf.identity(model.boxes),
        'mask_outputs': tf.identity(model.masks),
    }
    terms = task.train_step((None, labels), model, optimizer)['terms']
    return {name: value.numpy() for name, value in terms.items()}


def layers_of(model):
    """A discriminator's variables as `literal_game.Layer`s of arrays, and their trained ones."""
    layers = {}
    for variable in model.variables:
        _, layer, *_, name = variable.name.split(':')[0].split('/')
        name = {'moving_mean': 'mean', 'moving_variance': 'variance'}.get(name, name)
        layers.setdefault(layer, {})[name] = variable
    layers = [layers[name] for name in sorted(layers)]
    order = [field.name for field in dataclasses.fields(literal_game.Layer)][:4]
    trained = [layer[name] for layer in layers for name in order if name in layer]
    return [
        literal_game.Layer(**{name: x.numpy() for name, x in layer.items()}) for layer in layers
    ], trained


def mask_loss_gradient(outputs):
    """Of Mask R-CNN's mask loss to the logits."""
    positive = (outputs['mask_class_targets'] > 0)[..., None, None]
    difference = literal_game.sigmoid(outputs['mask_outputs']) - outputs['mask_targets']
    return positive * difference / (28 * 28 * positive.sum())


class LiteralStep:
    """State of the literal game beside a task and its toy generator, and its next step."""

    def __init__(self, task, model, weights, generator_weights):
        networks = task.box_discriminator, task.mask_discriminator
        (self.box, box_trained), (self.mask, mask_trained) = (layers_of(x) for x in networks)
        self.trained = box_trained + mask_trained
        self.momenta = [np.zeros(x.shape) for x in self.trained]
        self.own_momenta = [np.zeros(x.shape) for x in model.trainable_variables]
        self.weights, self.generator_weights = weights, generator_weights

    def __call__(self, outputs, with_mask_loss):
        """Takes a step; terms by name, predicted boxes and mask logits behind it."""
        maps, places = literal_game.see(outputs)
        terms, self.momenta = literal_game.discriminators_half(
            maps, self.box, self.mask, self.momenta, self.weights
        )
        own_terms, to_boxes, to_masks = literal_game.generators_half(
            outputs, maps, places, self.box, self.mask, self.weights
        )
        if with_mask_loss:
            to_masks = to_masks + mask_loss_gradient(outputs)
        (boxes, masks), self.own_momenta, norm = literal_game.descend(
            [outputs['mask_predicted_boxes'], outputs['mask_outputs']],
            [to_boxes, to_masks],
            self.own_momenta,
            self.generator_weights,
        )
        return {**terms, **own_terms, 'gradient_norm': norm}, boxes, masks


def assert_same_discriminators(task, literal):
    """Weights, statistics and momenta."""
    networks = task.box_discriminator, task.mask_discriminator
    layers = [layer for network in networks for layer in layers_of(network)[0]]
    for one, other in zip(layers, literal.box + literal.mask):
        for field in dataclasses.fields(one):
            value, wanted = getattr(one, field.name), getattr(other, field.name)
            assert (value is None) == (wanted is None)
            if value is not None:
                close(value, wanted)
    slots = zip(task.discriminator_variables, task.discriminator_optimizer.momentums)
    slots = {variable.ref(): momentum for variable, momentum in slots}
    for variable, momentum in zip(literal.trained, literal.momenta):
        close(slots[variable.ref()], momentum)
        # The hinge may pull the logit's bias, the only one of its kind, up and down alike.
        assert np.abs(momentum).max() > 1e-9 or momentum.shape == (1,)


# Settings that `literal_game.Weights` has by the same name.
IN_LITERAL = ('clip_norm', 'box_loss', 'r1', 'mask_judgement')
STRONGEST = {
    'box_loss': 'hinge',
    'normalization': 'spectral',
    'r1': 3.0,
    'mask_judgement': 'pixel',
    'clip_norm': 0.01,
}
WEIGHTINGS = {
    'paper': (1.0, 1.0, 1.0, 1.0),
    'authors_code': (0.025, 0.5, 0.025, 0.5),
    'one_sided': (0.025, 0.5, 1.0, 1.0),
}


@pytest.mark.parametrize(
    'mode, preset, gan',
    [
        ('combined', 'paper', {}),
        ('combined', 'authors_code', {'clip_norm': 0.01}),
        ('combined', 'one_sided', {}),
        ('adversarial_only', 'paper', {'clip_norm': 0.01, 'num_layers': 4}),
        ('adversarial_only', 'authors_code', {}),
        ('combined', 'paper', {'box_loss': 'hinge'}),
        ('combined', 'paper', {'normalization': 'spectral', 'r1': 3.0}),
        pytest.param('combined', 'paper', {'mask_judgement': 'pixel'}, marks=pytest.mark.slow),
        pytest.param('combined', 'one_sided', STRONGEST, marks=pytest.mark.slow),
    ],
)
def test_two_steps_are_the_literal_ones(float64, mode, preset, gan):
    task, outputs = make_task(mode, preset, **gan), make_outputs(0)
    weights = literal_game.Weights(
        *WEIGHTINGS[preset],
        l2_weight_decay=1e-4,
        learning_rate=RATE,
        **{name: gan[name] for name in IN_LITERAL if name in gan},
    )
    model, optimizer = ToyGenerator(outputs), tf.keras.optimizers.SGD(0.5, momentum=0.9)
    optimizer.build(model.trainable_variables)
    literal = LiteralStep(
        task, model, weights, dataclasses.replace(weights, clip_norm=10.0, learning_rate=0.5)
    )
    for seed in range(2):
        # Another image the second time; boxes and masks go on from where they are.
        moved = {'mask_predicted_boxes': model.boxes.numpy(), 'mask_outputs': model.masks.numpy()}
        outputs = {**make_outputs(seed), **moved}
        found = take_step(task, outputs, model, optimizer)
        wanted, boxes, masks = literal(outputs, with_mask_loss=mode == 'combined')
        found['adversarial_loss'] = found['total_loss'] - found['model_loss']
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
        left_out = LEFT_OUT if mode == 'adversarial_only' else ()
        parts = [found[name] for name in task_lib.DETECTION_TERMS if name not in left_out]
        np.testing.assert_allclose(found['model_loss'], sum(parts), rtol=1e-6)
        close(model.boxes, boxes)
        close(model.masks, masks)
        assert_same_discriminators(task, literal)


LEFT_OUT = ('frcnn_box_loss', 'mask_loss')


def close(found, wanted):
    """Within a millionth of the largest value."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max() + 1e-15)


# What must not change.


def everything(task):
    """All that the discriminators' half may change, by name."""
    optimizer = task.discriminator_optimizer
    variables = task.box_discriminator.variables + task.mask_discriminator.variables
    named = {variable.name: variable for variable in variables}
    named.update({f'momentum {i}': x for i, x in enumerate(optimizer.momentums)})
    named['steps'] = optimizer.iterations
    return named


def values(variables):
    return {name: variable.numpy() for name, variable in variables.items()}


def changed(before, variables):
    return {name for name, x in values(variables).items() if not np.array_equal(x, before[name])}


def train_discriminators(task, outputs):
    return task._train_discriminators(task.adversarial_samples(tensors(outputs)), {})


NOTHING = np.zeros_like(CLASSES)


def test_a_batch_without_objects_changes_nothing_but_the_count_of_steps():
    task = make_task()
    train_discriminators(task, make_outputs(0))
    before = values(everything(task))
    assert all(np.any(x) for x in before.values())
    terms = train_discriminators(task, make_outputs(1, NOTHING))
    assert changed(before, everything(task)) == {'steps'}
    assert task.discriminator_optimizer.iterations == 2
    for name in ('box_discriminator_loss', 'mask_discriminator_loss'):
        assert terms[name] == 0
    losses = task.generator_losses(task.adversarial_samples(tensors(make_outputs(1, NOTHING))))
    assert all(loss == 0 for loss in losses.values())


@pytest.fixture(scope='module')
def on_two(two_replicas):
    """A task on two replicas, and its discriminators' step on a list of their outputs."""
    with two_replicas.scope():
        task = make_task()

    @tf.function
    def step(outputs):
        samples = task.adversarial_samples(outputs)
        return task._train_discriminators(samples, {})

    def run(outputs):
        outputs = [tensors(one) for one in outputs]
        distributed = two_replicas.experimental_distribute_values_from_function(
            lambda context: outputs[context.replica_id_in_sync_group]
        )
        terms = two_replicas.run(step, (distributed,))
        return {
            name: np.mean(two_replicas.experimental_local_results(x)) for name, x in terms.items()
        }

    return task, run


def image_of(outputs, b):
    return tf.nest.map_structure(lambda x: x[b : b + 1], outputs)


def test_two_replicas_without_objects_change_nothing_but_the_count_of_steps(on_two):
    task, run = on_two
    outputs = make_outputs(0)
    run([image_of(outputs, b) for b in range(2)])
    before = values(everything(task))
    outputs = make_outputs(1, NOTHING)
    run([image_of(outputs, b) for b in range(2)])
    assert changed(before, everything(task)) == {'steps'}


def test_a_replica_without_objects_takes_no_part_in_what_the_other_learns(on_two):
    """Two replicas, one with all the RoIs, take the step of one device."""
    together, run = on_two
    alone = make_task()
    for name, variable in everything(together).items():
        variable.assign(everything(alone)[name])
    outputs = make_outputs(2, np.array([[1, 0, 2, 1], [0, 0, 0, 0]]))
    wanted_terms = train_discriminators(alone, outputs)
    terms = run([image_of(outputs, b) for b in range(2)])
    for name, value in wanted_terms.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-4, err_msg=name)
    wanted = everything(alone)
    for name, variable in everything(together).items():
        if 'moving_variance' not in name:  # One device notes N / (N - 1) times that.
            np.testing.assert_allclose(variable, wanted[name], atol=2e-5, rtol=1e-3, err_msg=name)


def test_rois_that_fill_up_the_number_change_nothing(monkeypatch):
    """On a GPU the number of RoIs is a multiple; the same is learnt from the same objects."""
    ends = []
    for filled in (False, True):
        monkeypatch.setattr(devices, 'has_gpu', lambda filled=filled: filled)
        monkeypatch.setattr(devices, 'row_multiple', lambda _, filled=filled: 7 if filled else 1)
        task = make_task()
        samples = task.adversarial_samples(tensors(make_outputs(0)))
        assert len(samples.weights) == (7 if filled else np.sum(CLASSES > 0))
        terms = task._train_discriminators(samples, {})
        terms.update(task.generator_losses(samples))
        ends.append({**terms, **values(everything(task))})
    for name, wanted in ends[0].items():
        if 'moving_variance' not in name:  # The fused normalization notes N / (N - 1) times that.
            np.testing.assert_allclose(ends[1][name], wanted, atol=1e-6, rtol=1e-4, err_msg=name)


def test_the_generators_half_leaves_the_discriminators_alone():
    task = make_task()
    before = values(everything(task))
    samples = task.adversarial_samples(tensors(make_outputs(0)))
    with tf.GradientTape() as tape:
        tape.watch(samples.box)
        loss = task.weighted_adversarial_loss(task.generator_losses(samples))
    assert np.any(tape.gradient(loss, samples.box))
    assert changed(before, everything(task)) == set()


def test_the_background_has_no_say():
    """Whatever its boxes and masks are, the discriminators see and say the same."""
    first, second = make_outputs(0), make_outputs(0)
    background = CLASSES == 0
    for name in second:
        if name.startswith('mask_') and name != 'mask_class_targets':
            second[name][background] = np.nan
    results = []
    for outputs in (first, second):
        task, outputs = make_task(), tensors(outputs)
        watched = [outputs['mask_predicted_boxes'], outputs['mask_outputs']]
        with tf.GradientTape() as tape:
            tape.watch(watched)
            samples = task.adversarial_samples(outputs)
            with tape.stop_recording():
                task._train_discriminators(samples, {})
            loss = task.weighted_adversarial_loss(task.generator_losses(samples))
        results.append([*samples, loss, *values(everything(task)).values()])
        gradients = [x.numpy() for x in tape.gradient(loss, watched)]
        assert not any(np.any(x[background]) for x in gradients)
        assert all(np.all(np.any(x.reshape(2, 4, -1), -1)[~background]) for x in gradients)
    assert len(results[0][0]) == 2 * np.sum(~background)
    for one, other in zip(*results):
        np.testing.assert_array_equal(one, other)
