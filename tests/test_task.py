"""The train step: who is trained by what, where gradients go, what a step without objects does."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from official.vision.modeling import maskrcnn_model
from official.vision.ops import spatial_transform_ops
from official.vision.tasks import maskrcnn as model_garden

from gan_mrcnn import task as task_lib
from gan_mrcnn.utils import cell_means
from tests.tiny import STRONGEST, make_batch, make_task, sgd


@pytest.fixture(scope='module')
def combined():
    return make_task()


def values(variables):
    return [variable.numpy() for variable in variables]


def changed(before, variables):
    return [not np.array_equal(old, new) for old, new in zip(before, values(variables))]


def test_predicted_boxes_are_the_rois_moved_by_their_own_class_deltas(combined):
    task, model = combined
    batch = make_batch(task.task_config)
    outputs = task.forward(batch, model)
    rois = outputs['mask_rois'].numpy()
    deltas = outputs['box_outputs'].numpy()
    classes = outputs['mask_class_targets'].numpy()
    for b in range(2):
        for k in range(4):
            y1, x1, y2, x2 = rois[b, k]
            c = classes[b, k]
            dy, dx, dh, dw = deltas[b, k, 4 * c : 4 * c + 4] / [10, 10, 5, 5]
            height, width = (y2 - y1) * np.exp(dh), (x2 - x1) * np.exp(dw)
            cy = (y1 + y2) / 2 + dy * (y2 - y1)
            cx = (x1 + x2) / 2 + dx * (x2 - x1)
            wanted = [cy - height / 2, cx - width / 2, cy + height / 2, cx + width / 2]
            wanted = np.clip(wanted, 0, [64, 128, 64, 128])
            np.testing.assert_allclose(outputs['mask_predicted_boxes'][b, k], wanted, atol=1e-2)


def test_adversarial_gradient_reaches_box_coordinates_and_mask_logits_alone(combined):
    task, model = combined
    outputs = task.forward(make_batch(task.task_config), model)
    floating = {
        name: tf.identity(value)
        for name, value in outputs.items()
        if name != 'mask_targets' and isinstance(value, tf.Tensor) and value.dtype.is_floating
    }
    features = {name: tf.identity(value) for name, value in outputs['decoder_features'].items()}
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([floating, features])
        terms = task.generator_losses(
            task.adversarial_samples({**outputs, **floating, 'decoder_features': features})
        )
    reached = {
        name: {
            source
            for source, gradient in {
                **tape.gradient(loss, floating),
                **tape.gradient(loss, features),
            }.items()
            if gradient is not None and np.abs(gradient).max() > 0
        }
        for name, loss in terms.items()
    }
    assert reached == {
        'box_generator_loss': {'mask_predicted_boxes'},
        'mask_generator_loss': {'mask_outputs'},
    }


def test_features_that_are_not_detached_get_the_adversarial_gradient(combined, monkeypatch):
    task, model = combined
    monkeypatch.setattr(task.task_config.gan, 'detach_features', False)
    outputs = task.forward(make_batch(task.task_config), model)
    features = {name: tf.identity(value) for name, value in outputs['decoder_features'].items()}
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(features)
        terms = task.generator_losses(
            task.adversarial_samples({**outputs, 'decoder_features': features})
        )
    for loss in terms.values():
        gradients = tape.gradient(loss, features)
        assert {name for name, value in gradients.items() if value is not None} == set('2345')


def test_each_half_trains_its_own_network_only(combined):
    task, model = combined
    batch = make_batch(task.task_config)
    samples = task.adversarial_samples(task.forward(batch, model))
    discriminators = task.box_discriminator.variables + task.mask_discriminator.variables

    before, generator_before = values(discriminators), values(model.variables)
    task._train_discriminators(samples, {})
    assert all(changed(before, discriminators))
    assert not any(changed(generator_before, model.variables))

    # The generator's half: forward and backward through the discriminators changes nothing there,
    # their BatchNorm statistics included.
    before = values(discriminators)
    with tf.GradientTape() as tape:
        samples = task.adversarial_samples(task.forward(batch, model))
        total = tf.add_n(list(task.generator_losses(samples).values()))
    gradients = tape.gradient(total, model.trainable_variables)
    assert not any(changed(before, discriminators))
    reached = {
        variable.ref()
        for variable, gradient in zip(model.trainable_variables, gradients)
        if gradient is not None and np.abs(gradient).max() > 0
    }
    for head in (model.mask_head, model.detection_head[0]):
        assert reached & {variable.ref() for variable in head.trainable_variables}


def test_train_step_changes_both_networks_and_reports_every_term(combined):
    task, model = combined
    metrics = task.build_metrics()
    before = values(model.trainable_variables), values(task.discriminator_variables)
    task.train_step(make_batch(task.task_config), model, sgd(), metrics)
    assert any(changed(before[0], model.trainable_variables))
    assert all(changed(before[1], task.discriminator_variables))
    report = {metric.name: metric.result().numpy() for metric in metrics}
    assert all(np.isfinite(value) for value in report.values())
    gan = task.task_config.gan
    weight_decay = sum(
        0.5e-4 * np.square(value).sum()
        for value, variable in zip(before[0], model.trainable_variables)
        if 'kernel' in variable.name
    )
    detection = sum(report[name] for name in task_lib.DETECTION_TERMS)
    adversarial = (
        gan.weight('box_weight') * report['box_generator_loss']
        + gan.weight('mask_weight') * report['mask_generator_loss']
    )
    np.testing.assert_allclose(
        report['total_loss'], detection + adversarial + weight_decay, rtol=1e-4
    )


def test_batch_without_objects_has_no_adversarial_loss_and_no_nan(combined):
    task, model = combined
    metrics = task.build_metrics()
    task.train_step(make_batch(task.task_config, num_objects=0), model, sgd(), metrics)
    report = {metric.name: metric.result().numpy() for metric in metrics}
    adversarial = ('box_generator_loss', 'mask_generator_loss', 'box_discriminator_loss')
    for name in (*adversarial, 'mask_loss'):
        assert report[name] == 0, name
    assert all(np.isfinite(value).all() for value in values(model.variables))
    assert all(np.isfinite(value).all() for value in values(task.mask_discriminator.variables))


def test_adversarial_only_has_no_box_and_mask_loss():
    task, model = make_task('adversarial_only')
    batch = make_batch(task.task_config)
    terms = task.detection_losses(task.forward(batch, model), batch[1])
    assert terms['mask_loss'] > 0 and terms['frcnn_box_loss'] > 0
    np.testing.assert_allclose(
        terms['model_loss'],
        terms['rpn_score_loss'] + terms['rpn_box_loss'] + terms['frcnn_cls_loss'],
        rtol=1e-6,
    )


def test_baseline_has_no_discriminators():
    task, model = make_task('baseline')
    assert not task.has_discriminators
    names = {metric.name for metric in task.build_metrics()}
    assert not names & set(task_lib.ADVERSARIAL_TERMS)
    metrics = task.build_metrics()
    task.train_step(make_batch(task.task_config), model, sgd(), metrics)
    assert all(np.isfinite(metric.result()) for metric in metrics)


def test_losses_equal_the_model_gardens_where_its_settings_are_chosen(monkeypatch):
    # Its mask targets are samples half a cell off: the one thing that no setting chooses.
    crop = spatial_transform_ops.crop_mask_in_target_box
    monkeypatch.setattr(cell_means, 'of_box_masks', functools.partial(crop, sample_offset=0.5))
    task, _ = make_task('baseline', normalization='model_garden')
    config = task.task_config
    # All RoIs are sampled, so that the two samplers' different draws give the same set.
    config.model.override(
        {
            'head_norm': 'batch_norm',
            'backbone': {'resnet': {'padding': 'same'}},
            'roi_sampler': {'num_sampled_rois': 25, 'foreground_fraction': 1.0},
            'mask_sampler': {'num_sampled_masks': 25},
        }
    )
    model = task.build_model()
    images, labels = make_batch(config)
    parts = dict(model.get_config())
    sampler = config.model.roi_sampler
    parts['roi_sampler'] = model_garden_sampler(sampler)
    theirs = maskrcnn_model.MaskRCNNModel(**parts)
    their_task = model_garden.MaskRCNNTask(config)
    their_outputs = theirs(
        images,
        image_shape=labels['image_info'][:, 1],
        gt_boxes=labels['gt_boxes'],
        gt_classes=labels['gt_classes'],
        gt_masks=tf.cast(labels['gt_masks'], tf.float32) / 255.0,
        training=True,
    )
    their_terms = their_task.build_losses(their_outputs, labels)
    our_terms = task.detection_losses(task.forward((images, labels), model), labels)
    for name, value in our_terms.items():
        assert value > 0
        np.testing.assert_allclose(value, their_terms[name], rtol=1e-4, err_msg=name)


def model_garden_sampler(config):
    from official.vision.modeling.layers import roi_sampler

    return roi_sampler.ROISampler(
        num_sampled_rois=config.num_sampled_rois, foreground_fraction=config.foreground_fraction
    )


def everything(task, model, optimizer):
    """All that a step may change."""
    return [
        *model.variables,
        *task.box_discriminator.variables,
        *task.mask_discriminator.variables,
        *optimizer.variables,
        *task.discriminator_optimizer.variables,
    ]


class TracedStep:
    """A train step as a graph, and the weights of the mask losses in it, which tests change."""

    def __init__(self):
        self.task, self.model = make_task()
        batch = make_batch(self.task.task_config)
        self.optimizer = sgd()
        self.optimizer.build(self.model.trainable_variables)
        self.metrics = self.task.build_metrics()
        self.mask_weight, self.adversarial_weight = tf.Variable(1.0), tf.Variable(0.5)
        vars(self.task.task_config.losses)['mask_weight'] = self.mask_weight
        vars(self.task.task_config.gan)['mask_weight'] = self.adversarial_weight
        self.take = tf.function(
            lambda: self.task.train_step(batch, self.model, self.optimizer, self.metrics)
        )


@pytest.fixture(scope='module')
def traced_step():
    """After its first step, so that momentum, which moves weights without a gradient, is there."""
    step = TracedStep()
    assert step.take()['finite']
    return step


def test_a_step_that_is_not_finite_changes_nothing_but_the_count_of_steps(traced_step):
    step = traced_step
    loss, steps = step.metrics[0].result().numpy(), step.optimizer.iterations.numpy()
    before = values(everything(step.task, step.model, step.optimizer))
    step.mask_weight.assign(np.nan)
    outcome = step.take()
    assert not outcome['finite'] and np.isnan(outcome['terms']['total_loss'])
    after = everything(step.task, step.model, step.optimizer)
    moved = {x.name for x, is_other in zip(after, changed(before, after)) if is_other}
    assert {name.split(':')[0].split('/')[-1] for name in moved} == {'iteration'}
    assert step.optimizer.iterations == step.task.discriminator_optimizer.iterations == steps + 1
    # It has no part in the means that are reported.
    assert step.metrics[0].result().numpy() == loss
    step.mask_weight.assign(1.0)
    assert step.take()['finite']


def test_a_generator_that_alone_is_not_finite_stays_as_it_is(traced_step):
    """Its loss against discriminators that have become non-finite in between."""
    step = traced_step
    before = values(step.model.variables)
    discriminators = values(step.task.discriminator_variables)
    step.adversarial_weight.assign(np.inf)
    outcome = step.take()
    step.adversarial_weight.assign(0.5)
    assert not outcome['finite'] and np.isfinite(outcome['terms']['mask_loss'])
    assert not any(changed(before, step.model.variables))
    assert all(changed(discriminators, step.task.discriminator_variables))


@pytest.mark.slow
@pytest.mark.parametrize(
    'mode, gan',
    [('baseline', {}), ('combined', {}), ('combined', {**STRONGEST, 'ramp': 0.0})],
    ids=['baseline', 'combined', 'strongest'],
)
def test_two_replicas_take_the_step_of_one(two_replicas, mode, gan):
    task, model = make_task(mode, gan)
    batch = make_batch(task.task_config)
    # Replicas with different numbers of objects: the means must be over all of them.
    batch[1]['gt_classes'] = tf.tensor_scatter_nd_update(
        batch[1]['gt_classes'], [[0, 1], [0, 2]], [-1, -1]
    )
    batch[1]['gt_boxes'] = tf.tensor_scatter_nd_update(
        batch[1]['gt_boxes'], [[0, 1], [0, 2]], -tf.ones([2, 4])
    )
    with two_replicas.scope():
        replicated_task, replicated_model = make_task(mode, gan)
        optimizer = sgd()
        optimizer.build(replicated_model.trainable_variables)
    replicated_model.set_weights(model.get_weights())
    if mode == 'combined':
        for name in ('box_discriminator', 'mask_discriminator'):
            getattr(replicated_task, name).set_weights(getattr(task, name).get_weights())
    dataset = tf.data.Dataset.from_tensors(batch).unbatch().batch(2)
    inputs = next(iter(two_replicas.experimental_distribute_dataset(dataset)))

    @tf.function
    def step(inputs):
        two_replicas.run(replicated_task.train_step, (inputs, replicated_model, optimizer))

    before = [variable.numpy() for variable in networks(task, model)]
    step(inputs)
    task.train_step(batch, model, sgd())
    pairs = zip(networks(task, model), networks(replicated_task, replicated_model))
    for (one, both), start in zip(pairs, before):
        first, second = (x.numpy() for x in two_replicas.experimental_local_results(both))
        np.testing.assert_array_equal(first, second)
        assert_same_after_a_step(one, first, start)


def assert_same_after_a_step(one, of_both, start):
    """That a variable of one device has the value `of_both` that two have; BatchNorm, its
    statistics included, is over the images and RoIs of both."""
    assert np.isfinite(of_both).all()
    if 'moving_variance' not in one.name:
        np.testing.assert_allclose(of_both, one, atol=5e-5, rtol=1e-4, err_msg=one.name)
        return
    # One device has the fused kernel, which notes the unbiased variance: N / (N - 1) times that of
    # the N values. The synchronized one notes the other.
    both_noted, one_noted = of_both - 0.9 * start, one.numpy() - 0.9 * start
    factor = np.median(one_noted / both_noted)
    assert 1 < factor < 2, one.name
    np.testing.assert_allclose(
        one_noted, factor * both_noted, atol=5e-5, rtol=1e-3, err_msg=one.name
    )


def networks(task, model):
    """Variables of the generator and of the discriminators, where there are some."""
    parts = [model]
    if task.has_discriminators:
        parts += [task.box_discriminator, task.mask_discriminator]
    return [variable for part in parts for variable in part.variables]


# A processor has no arithmetic of its own for float16 and takes half a minute.
@pytest.mark.parametrize(
    'dtype, gan',
    [
        ('bfloat16', {}),
        ('bfloat16', STRONGEST),
        pytest.param('float16', {}, marks=pytest.mark.slow),
        pytest.param('float16', STRONGEST, marks=pytest.mark.slow),
    ],
)
def test_mixed_precision_takes_a_step(dtype, gan):
    tf.keras.mixed_precision.set_global_policy(f'mixed_{dtype}')
    try:
        task, model = make_task(gan=gan)
        optimizer = sgd()
        if dtype == 'float16':
            optimizer = tf.keras.mixed_precision.LossScaleOptimizer(optimizer)
            task.discriminator_optimizer = tf.keras.mixed_precision.LossScaleOptimizer(sgd())
        before = values(model.trainable_variables)
        # The first steps in float16 may only find the loss scale.
        for _ in range(3 if dtype == 'float16' else 1):
            task.train_step(make_batch(task.task_config), model, optimizer)
    finally:
        tf.keras.mixed_precision.set_global_policy('float32')
    assert any(changed(before, model.trainable_variables))
    # The penalty's own gradient would vanish in float16.
    kinds = {x.compute_dtype for x in task.box_discriminator.submodules if 'conv' in x.name}
    assert kinds == {'float32' if gan else dtype}
    for variable in model.variables + task.discriminator_variables:
        assert variable.dtype == tf.float32 or not variable.dtype.is_floating
        assert np.isfinite(variable.numpy()).all(), variable.name
