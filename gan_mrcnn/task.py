# SPDX-License-Identifier: Apache-2.0
"""The task: models, inputs, losses, the two-tape train step and validation.

Le et al., sections 3.1 and 3.2: Mask R-CNN is the generator; a box and a mask discriminator and the
generator are trained in turn, the discriminators first.

Shapes: B images and K RoIs with a mask per image.
"""

import collections
import copy
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from official.core import task_factory
from official.modeling import optimization
from official.vision.tasks import maskrcnn

from custom_ops.prroi_pool import multilevel_prroi_pool
from gan_mrcnn import configs, losses
from gan_mrcnn.data import input_pipeline
from gan_mrcnn.metrics import coco, collector, matching
from gan_mrcnn.modeling import (
    backbone_weights,
    discriminators,
    rescoring,
    roi_align,
    weights_file,
)
from gan_mrcnn.modeling import generator as generator_lib
from gan_mrcnn.utils import devices, published

DETECTION_TERMS = (
    'rpn_score_loss',
    'rpn_box_loss',
    'frcnn_cls_loss',
    'frcnn_box_loss',
    'mask_loss',
)
ADVERSARIAL_TERMS = (
    'box_generator_loss',
    'mask_generator_loss',
    'box_discriminator_loss',
    'mask_discriminator_loss',
    'box_score_real',
    'box_score_fake',
    'discriminator_gradient_norm',
)

# The generator's and the box discriminator's loss, by `gan.box_loss`.
BOX_LOSSES = {
    'cross_entropy': (losses.box_generator_loss, losses.box_discriminator_loss),
    'hinge': (losses.box_generator_hinge, losses.box_discriminator_hinge),
}

# Both networks' inputs for the same N RoIs, [2N, 28, 28, C]: first all real, then all fake ones.
# `weights` [N] is 1 for a RoI with an object and 0 for one that fills up the number.
Samples = collections.namedtuple('Samples', ['box', 'mask', 'weights'])
# What the discriminators say of samples: logits [N] of the box discriminator, and the mask
# discriminator's layers, a tuple of [N, ...]; one map of logits [N, 28, 28] where it judges pixels.
Judgement = collections.namedtuple('Judgement', ['box_real', 'box_fake', 'mask_real', 'mask_fake'])


@task_factory.register_task_cls(configs.GanMaskRCNNTask)
class GanMaskRCNNTask(maskrcnn.MaskRCNNTask):
    """One replica's view of training and evaluation."""

    def __init__(
        self,
        *args,
        first_batch: int = 0,
        train_steps: int = 0,
        **kwargs,
    ):
        """Makes a task without models.

        Args:
          *args: the parent's, as are `kwargs`.
          first_batch: number of the first training batch, for a resumed run.
          train_steps: of the whole training, for `gan.ramp`.
        """
        super().__init__(*args, **kwargs)
        self._first_batch = first_batch
        self._train_steps = train_steps
        self.box_discriminator = None
        self.mask_discriminator = None
        self.discriminator_optimizer = None

    @property
    def has_discriminators(self) -> bool:
        return self.task_config.gan.mode != 'baseline'

    @property
    def rescores(self) -> bool:
        """Whether detections depend on the box discriminator."""
        return self.task_config.gan.rescore_exponent > 0

    # Models.

    def build_model(self) -> generator_lib.Generator:
        """The generator."""
        return generator_lib.build_generator(self.task_config.model, self._regularizer())

    def build_discriminators(self, optimizer: tf.keras.optimizers.Optimizer) -> None:
        """Makes both discriminators, their variables and `optimizer`'s slots."""
        gan = self.task_config.gan
        self.box_discriminator = self._make_box_discriminator()
        judges_pixels = gan.mask_judgement == 'pixel'
        mask_discriminator = (
            discriminators.PixelDiscriminator if judges_pixels else discriminators.MaskDiscriminator
        )
        self.mask_discriminator = mask_discriminator(
            gan.num_layers,
            kernel_regularizer=self._regularizer(),
            normalization=gan.normalization,
        )
        for model in (self.box_discriminator, self.mask_discriminator):
            model(self._roi_features())
        optimizer.build(self.discriminator_variables)
        self.discriminator_optimizer = optimizer

    def build_box_discriminator(self) -> None:
        """Makes that alone and its variables, for where detections depend on it (`rescores`)."""
        self.box_discriminator = self._make_box_discriminator()
        self.box_discriminator(self._roi_features())

    def _make_box_discriminator(self) -> discriminators.BoxDiscriminator:
        gan = self.task_config.gan
        return discriminators.BoxDiscriminator(
            gan.num_layers,
            kernel_regularizer=self._regularizer(),
            normalization=gan.normalization,
            # The penalty's gradient has no loss scale that would keep it in 16 bits.
            layer_dtype=tf.keras.mixed_precision.global_policy().variable_dtype if gan.r1 else None,
        )

    def _roi_features(self):
        """A symbolic input of the discriminators, to make their variables by."""
        channels = self.task_config.model.decoder.get().num_filters
        return tf.keras.Input([generator_lib.MASK_SIZE, generator_lib.MASK_SIZE, channels])

    @classmethod
    def create_optimizer(cls, optimizer_config, runtime_config=None, dp_config=None):
        """The configured optimizer, with loss scaling in float16; `dp_config` is not used.

        Averages of the weights are no part of it, see `gan_mrcnn.training.averages`.
        """
        optimizer_config = copy.deepcopy(optimizer_config)
        optimizer_config.ema = None
        factory = optimization.OptimizerFactory(optimizer_config)
        optimizer = factory.build_optimizer(
            factory.build_learning_rate(), use_legacy_optimizer=False
        )
        if runtime_config and runtime_config.mixed_precision_dtype == 'float16':
            optimizer = tf.keras.mixed_precision.LossScaleOptimizer(optimizer)
        return optimizer

    @property
    def discriminator_variables(self) -> list[tf.Variable]:
        return (
            self.box_discriminator.trainable_variables + self.mask_discriminator.trainable_variables
        )

    def _regularizer(self):
        # Keras' l2(c) is c * |w|^2; weight decay d in SGD is the gradient of d / 2 * |w|^2.
        decay = self.task_config.losses.l2_weight_decay
        return tf.keras.regularizers.l2(decay / 2.0) if decay else None

    def initialize(self, model: tf.keras.Model) -> None:
        """Loads the weights that are given; called where there is no checkpoint yet.

        Published weights give the whole generator, but for what is as wide as another number of
        classes; the discriminators start anew with each run.
        """
        source, backbone = self.task_config.weights, self.task_config.backbone_weights
        if source:
            path = published.find(source, self.task_config.cache_dir)
            anew = weights_file.load(model, path, new_classes=True)
            print(f'generator initialized from {source}')
            if anew:
                print(f'another number of classes there: {", ".join(anew)} start anew')
        elif backbone:
            print(backbone_weights.load_backbone(model.backbone, backbone))
        else:
            print('No backbone weights given: all networks are trained from scratch.')

    # Inputs.

    def build_inputs(self, params, input_context=None) -> tf.data.Dataset:
        """Batches of `params.split`'s records."""
        model, seed = self.task_config.model, self.task_config.seed
        if params.is_training:
            return input_pipeline.training_dataset(
                model, params, seed, self._first_batch, input_context
            )
        parser = input_pipeline.Parser(model, params.parser, seed)
        return input_pipeline.evaluation_dataset(params, parser, input_context)

    # Losses.

    def detection_losses(self, outputs, labels) -> dict[str, tf.Tensor]:
        """The five losses of Mask R-CNN, unweighted, and their weighted sum `model_loss`."""
        if self.task_config.losses.normalization == 'model_garden':
            terms = super().build_losses(outputs, labels)
            terms = {name: terms[name] for name in DETECTION_TERMS}
        else:
            terms = {
                'rpn_score_loss': losses.rpn_score_loss(
                    outputs['rpn_scores'], labels['rpn_score_targets']
                ),
                'rpn_box_loss': losses.rpn_box_loss(
                    outputs['rpn_boxes'], labels['rpn_box_targets'], labels['rpn_score_targets']
                ),
                'frcnn_cls_loss': losses.class_loss(
                    outputs['class_outputs'], outputs['class_targets']
                ),
                'frcnn_box_loss': losses.box_loss(
                    outputs['box_outputs'], outputs['class_targets'], outputs['box_targets']
                ),
                'mask_loss': losses.mask_loss(
                    outputs['mask_outputs'], outputs['mask_targets'], outputs['mask_class_targets']
                ),
            }
        weights = self.task_config.losses
        kept = 0.0 if self.task_config.gan.mode == 'adversarial_only' else 1.0
        terms['model_loss'] = _sum(
            [
                weights.rpn_score_weight * terms['rpn_score_loss'],
                weights.rpn_box_weight * terms['rpn_box_loss'],
                weights.frcnn_class_weight * terms['frcnn_cls_loss'],
                weights.frcnn_box_weight * terms['frcnn_box_loss'] * kept,
                weights.mask_weight * terms['mask_loss'] * kept,
            ]
        )
        return terms

    def adversarial_samples(self, outputs: Mapping[str, Any]) -> Samples:
        """What the discriminators see, real and fake (Fig. 2 and 3).

        Features are detached (`gan.detach_features`), so that the generator's gradient reaches
        nothing but the coordinates of the predicted boxes, through PrRoIPool, and the mask logits.

        Args:
          outputs: the generator's training outputs.

        Returns:
          `Samples` in the features' dtype, of the RoIs with an object of all images.
        """
        features = {level: outputs['decoder_features'][level] for level in roi_align.POOLED_LEVELS}
        if self.task_config.gan.detach_features:
            features = tf.nest.map_structure(tf.stop_gradient, features)
        places, weights = _positive_places(outputs['mask_class_targets'])
        part = lambda name: tf.gather_nd(outputs[name], places)  # noqa: E731
        pool = functools.partial(multilevel_prroi_pool, features)
        boxes = [tf.stop_gradient(part('mask_gt_boxes')), part('mask_predicted_boxes')]
        mask_features = pool(tf.stop_gradient(part('mask_rois')), box_indices=places[:, 0])
        masks = [part('mask_targets'), tf.sigmoid(part('mask_outputs'))]
        return Samples(
            box=pool(tf.concat(boxes, 0), box_indices=tf.tile(places[:, 0], [2])),
            mask=tf.concat(
                [mask_features * tf.cast(x, mask_features.dtype)[..., tf.newaxis] for x in masks], 0
            ),
            weights=weights,
        )

    def judge(self, samples: Samples) -> Judgement:
        """Both discriminators on all samples, with the batch's statistics.

        Real and fake share one batch, so that BatchNorm cannot tell one from the other. Moves the
        stored statistics.
        """
        # What fills up the number of RoIs must not count in the statistics.
        is_counted = samples.weights > 0.0
        is_counted |= tf.math.logical_not(_any_replica(tf.reduce_any(is_counted)))
        is_counted = tf.tile(is_counted, [2])
        box_logits = self.box_discriminator(samples.box, training=True, is_counted=is_counted)
        layers = self.mask_discriminator(samples.mask, training=True, is_counted=is_counted)
        mask_real, mask_fake = zip(*(tf.split(layer, 2) for layer in layers))
        return Judgement(*tf.split(box_logits, 2), mask_real, mask_fake)

    def discriminator_losses(self, samples: Samples) -> dict[str, tf.Tensor]:
        """Eq. 3: the box discriminator's Eq. 5 and the mask discriminator's part of Eq. 6."""
        judgement = self.judge(samples)
        _, box_loss = BOX_LOSSES[self.task_config.gan.box_loss]
        penalty = {}
        if self.task_config.gan.r1:
            penalty['box_gradient_penalty'] = self.box_gradient_penalty(samples)
        return {
            **penalty,
            'box_discriminator_loss': box_loss(
                judgement.box_real, judgement.box_fake, samples.weights
            ),
            **self._mask_discriminator_terms(judgement, samples.weights),
            'box_score_real': losses.mean_over_rois(
                tf.sigmoid(judgement.box_real), samples.weights
            ),
            'box_score_fake': losses.mean_over_rois(
                tf.sigmoid(judgement.box_fake), samples.weights
            ),
        }

    def _mask_discriminator_terms(self, judgement, weights) -> dict[str, tf.Tensor]:
        """Its loss, and where it judges pixels also its mean scores."""
        real, fake = judgement.mask_real, judgement.mask_fake
        if self.task_config.gan.mask_judgement == 'roi':
            layer_weights = self.mask_discriminator.layer_weights
            loss = losses.mask_discriminator_loss(real, fake, weights, layer_weights)
            return {'mask_discriminator_loss': loss}
        (real,), (fake,) = real, fake
        score = lambda x: losses.mean_over_rois(tf.reduce_mean(tf.sigmoid(x), [1, 2]), weights)  # noqa: E731
        return {
            'mask_discriminator_loss': losses.pixel_discriminator_loss(real, fake, weights),
            'mask_score_real': score(real),
            'mask_score_fake': score(fake),
        }

    def mask_generator_loss(self, judgement: Judgement, weights: tf.Tensor) -> tf.Tensor:
        """Eq. 6, or Eq. 4 for every cell (`gan.mask_judgement`)."""
        if self.task_config.gan.mask_judgement == 'pixel':
            return losses.pixel_generator_loss(judgement.mask_fake[0], weights)
        return losses.mask_generator_loss(
            judgement.mask_real,
            judgement.mask_fake,
            weights,
            self.mask_discriminator.layer_weights,
        )

    def box_gradient_penalty(self, samples: Samples) -> tf.Tensor:
        """R1 without its weight, of the box discriminator as `judge` has left it."""
        real, _ = tf.split(tf.cast(samples.box, self.box_discriminator.variable_dtype), 2)
        with tf.GradientTape() as tape:
            tape.watch(real)
            # The RoIs do not know each other (`configs.check`): the sum has each one's gradient.
            logits = tf.reduce_sum(self.box_discriminator(real, training=False))
        return losses.gradient_penalty(tape.gradient(logits, real), samples.weights)

    def generator_losses(self, samples: Samples) -> dict[str, tf.Tensor]:
        """Eq. 4 and 6, judged as the discriminators were trained; their statistics stay."""
        statistics = _statistics(self.box_discriminator, self.mask_discriminator)
        judgement = self.judge(samples)
        _restore(statistics)
        box_loss, _ = BOX_LOSSES[self.task_config.gan.box_loss]
        return {
            'box_generator_loss': box_loss(judgement.box_fake, samples.weights),
            'mask_generator_loss': self.mask_generator_loss(judgement, samples.weights),
        }

    def weighted_adversarial_loss(self, terms: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The adversarial part of Eq. 2, from `generator_losses`."""
        gan = self.task_config.gan
        return (
            gan.weight('box_weight') * terms['box_generator_loss']
            + gan.weight('mask_weight') * terms['mask_generator_loss']
        )

    def weighted_discriminator_loss(self, terms: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Eq. 3, from `discriminator_losses`."""
        gan = self.task_config.gan
        box_loss = terms['box_discriminator_loss']
        if gan.r1:
            box_loss += gan.r1 / 2 * terms['box_gradient_penalty']
        return (
            gan.weight('discriminator_box_weight') * box_loss
            + gan.weight('discriminator_mask_weight') * terms['mask_discriminator_loss']
        )

    # Steps.

    def forward(self, inputs, model) -> dict[str, tf.Tensor]:
        """The generator's training outputs on a batch, all but the features in float32."""
        images, labels = inputs
        outputs = model(
            images,
            image_shape=labels['image_info'][:, 1],
            gt_boxes=labels['gt_boxes'],
            gt_classes=labels['gt_classes'],
            gt_masks=labels['gt_masks'],
            sampling_seed=labels['sampling_seed'],
            training=True,
        )
        in_float32 = lambda x: tf.cast(x, tf.float32) if x.dtype.is_floating else x  # noqa: E731
        return {
            name: x if name.endswith('features') else tf.nest.map_structure(in_float32, x)
            for name, x in outputs.items()
        }

    def train_step(self, inputs, model, optimizer, metrics=None):
        """Trains the discriminators, then the generator against them, on one batch.

        Args:
          inputs: images [B, H, W, 3] and labels, see `input_pipeline.Parser.parse_train`.
          model: the generator.
          optimizer: the generator's.
          metrics: running means by name of loss term, updated in place.

        A step with a term or gradient that is not finite changes nothing of a network that it would
        be applied to, nor its BatchNorm statistics; see `apply_gradients`.

        Returns:
          The generator's whole loss by its name, `finite`, a scalar bool that is the same on all
          replicas, and `terms`, this replica's share of every term by name.
        """
        statistics = _statistics(model)
        with tf.GradientTape() as generator_tape:
            outputs = self.forward(inputs, model)
            terms = self.detection_losses(outputs, inputs[1])
            total_loss = _sum([terms['model_loss'], *model.losses])

            if self.has_discriminators:
                if self.task_config.gan.control == 'shuffled':
                    outputs = _with_shuffled_gradients(outputs, inputs[1])
                samples = self.adversarial_samples(outputs)
                with generator_tape.stop_recording():
                    terms.update(self._train_discriminators(samples, terms))
                terms.update(self.generator_losses(samples))
                adversarial_loss = self.weighted_adversarial_loss(terms)
                if self.task_config.gan.ramp:
                    terms['adversarial_ramp'] = self._ramp(
                        optimizer.iterations, adversarial_loss.dtype
                    )
                    adversarial_loss *= terms['adversarial_ramp']
                total_loss = _sum([total_loss, adversarial_loss])
            loss = _share_of_replica(total_loss, optimizer)
        terms['total_loss'] = total_loss
        terms['gradient_norm'] = self.apply_gradients(
            generator_tape,
            loss,
            model.trainable_variables,
            optimizer,
            terms,
            self.task_config.clip_norm,
        )
        finite = _all_finite(terms, optimizer)
        _restore_unless(finite, statistics)
        for metric in metrics or []:
            term = terms[metric.name]
            metric.update_state(
                tf.where(finite, term, tf.zeros_like(term)), tf.cast(finite, term.dtype)
            )
        return {self.loss: total_loss, 'finite': finite, 'terms': terms}

    def _ramp(self, step, dtype) -> tf.Tensor:
        """What the adversarial losses' weights are multiplied with at a step, see `gan.ramp`."""
        length = max(1.0, self.task_config.gan.ramp * self._train_steps)
        return tf.minimum(tf.cast(step, dtype) / length, 1.0)

    def _train_discriminators(self, samples: Samples, terms) -> dict[str, tf.Tensor]:
        """One step of both discriminators on detached samples; `terms` are the step's so far.

        Without objects, or with `gan.control` at 'frozen', nothing is learnt from it.
        """
        samples = Samples(*(tf.stop_gradient(x) for x in samples))
        optimizer = self.discriminator_optimizer
        learns = _any_replica(tf.reduce_any(samples.weights > 0.0))
        learns &= self.task_config.gan.control != 'frozen'
        statistics = _statistics(self.box_discriminator, self.mask_discriminator)
        with tf.GradientTape() as discriminator_tape:
            own_terms = self.discriminator_losses(samples)
            total_loss = _sum(
                [
                    self.weighted_discriminator_loss(own_terms),
                    *self.box_discriminator.losses,
                    *self.mask_discriminator.losses,
                ]
            )
            loss = _share_of_replica(total_loss, optimizer)
        terms = {**terms, **own_terms}
        own_terms['discriminator_gradient_norm'] = self.apply_gradients(
            discriminator_tape,
            loss,
            self.discriminator_variables,
            optimizer,
            terms,
            self.task_config.gan.clip_norm,
            wanted=learns,
        )
        finite = _all_finite({**terms, **own_terms}, optimizer)
        _restore_unless(finite & learns, statistics)
        return own_terms

    def apply_gradients(
        self, tape, loss, variables, optimizer, terms, clip_norm, wanted=True
    ) -> tf.Tensor:
        """Sums gradients over replicas, clips and applies them; returns their global norm.

        Where it is not `wanted`, or the norm or one of `terms` is not finite, on whichever replica,
        nothing is changed but the optimizer's count of steps, so that its schedule stays the run's.
        In float16 an overflow of the gradients is the loss scale's, which has its own way of
        skipping a step.
        """
        gradients = tape.gradient(
            loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        if _is_scaled(optimizer):
            gradients = optimizer.get_unscaled_gradients(gradients)
        replicas = tf.distribute.get_replica_context()
        gradients = replicas.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        norm = tf.sqrt(_sum([tf.reduce_sum(tf.square(gradient)) for gradient in gradients]))
        if clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, clip_norm, use_norm=norm)

        def apply(gradients):
            optimizer.apply_gradients(zip(gradients, variables), skip_gradients_aggregation=True)

        def apply_where(strategy, applies, gradients):
            # A condition cannot hold what replicas do together; here they are one.
            tf.cond(
                strategy.experimental_local_results(applies)[0],
                lambda: _no_output(strategy.run(apply, args=(gradients,))),
                lambda: _no_output(optimizer.iterations.assign_add(1)),
            )

        applies = _all_finite({**terms, 'norm': norm}, optimizer) & wanted
        replicas.merge_call(apply_where, args=(applies, gradients))
        return norm

    def build_metrics(self, training: bool = True) -> list[tf.keras.metrics.Metric]:
        """Running means of every term that `train_step` reports; none for validation."""
        if not training:
            return []
        names = DETECTION_TERMS + ('model_loss', 'total_loss', 'gradient_norm')
        if self.has_discriminators:
            names += ADVERSARIAL_TERMS
            if self.task_config.gan.mask_judgement == 'pixel':
                names += ('mask_score_real', 'mask_score_fake')
            if self.task_config.gan.r1:
                names += ('box_gradient_penalty',)
            if self.task_config.gan.ramp:
                names += ('adversarial_ramp',)
        return [tf.keras.metrics.Mean(name, dtype=tf.float32) for name in names]

    # Validation.

    def validation_step(self, inputs, model, metrics=None) -> dict[str, Any]:
        """Detections of one batch."""
        images, labels = inputs
        outputs = rescoring.detect(
            model,
            images,
            labels['image_info'][:, 1],
            self.box_discriminator,
            self.task_config.gan.rescore_exponent,
        )
        names = ('boxes', 'scores', 'classes', 'masks')
        return {
            'detections': {name: outputs[f'detection_{name}'] for name in names},
            'labels': labels,
        }

    def aggregate_logs(self, state=None, step_outputs=None) -> collector.Collector:
        """Gives one batch's detections to `state`, which makes COCO results at the images' size."""
        state = collector.Collector() if state is None else state
        for replica in range(len(step_outputs['labels']['source_id'])):
            labels, detections = (
                {name: np.asarray(value[replica]) for name, value in step_outputs[part].items()}
                for part in ('labels', 'detections')
            )
            for i, image_id in enumerate(labels['source_id']):
                if image_id >= 0:
                    state.add(
                        int(image_id),
                        detections['boxes'][i],
                        detections['scores'][i],
                        detections['classes'][i],
                        detections['masks'][i],
                        labels['image_info'][i],
                    )
        return state

    def reduce_aggregated_logs(self, aggregated_logs, global_step=None) -> dict[str, float]:
        """COCO AP of boxes and masks from COCO results, as `box_AP`, `mask_AP50` and so on."""
        most = self.task_config.model.detection_generator.max_num_detections
        figures = coco.evaluate_coco(
            self.task_config.annotation_file, aggregated_logs, matching.counted(most)
        )
        return {
            f'{kind}_{name}': value
            for kind, values in figures.items()
            for name, value in values.items()
            if value is not None
        }


def _positive_places(classes):
    """Where the RoIs with an object are, of all images, and their weights.

    Args:
      classes: [B, K], 0 for the background.

    Returns:
      [N, 2] int64, image and place; and [N] float32, 1, or 0 for what fills up the number: at least
      one where there is no object, since BatchNorm cannot take the mean of nothing.
    """
    places, count = devices.fill_up(tf.where(classes > 0), tf.size(classes))
    weights = tf.cast(tf.range(tf.shape(places)[0]) < count, tf.float32)
    return tf.ensure_shape(places, [None, 2]), weights


def _with_shuffled_gradients(outputs, labels):
    """The same outputs of the generator, where the adversarial gradient to the mask logits and box
    deltas of a RoI with an object is another one's. Its norm over all RoIs stays."""
    # The seeds go with the images' numbers in the run: a resumed one draws the same.
    givers = _givers(outputs['mask_class_targets'], labels['sampling_seed'][0])
    deltas = _with_gradients_of(givers, outputs['mask_box_deltas'])
    return {
        **outputs,
        'mask_outputs': _with_gradients_of(givers, outputs['mask_outputs']),
        'mask_predicted_boxes': generator_lib.predicted_boxes(
            deltas, outputs['mask_rois'], labels['image_info'][:, 1]
        ),
    }


def _givers(classes, seed):
    """Whose gradient each RoI gets, so that none gets its own where there are several.

    Args:
      classes: [B, K], 0 for the background.
      seed: [2] int32.

    Returns:
      [B * K] int32: the next one in a circle of the RoIs with an object in random order; the
      background's own.
    """
    is_object = tf.reshape(classes, [-1]) > 0
    keys = tf.random.stateless_uniform(tf.shape(is_object), seed)
    # Those with an object first.
    order = tf.argsort(tf.where(is_object, keys, keys + 1.0))
    # Not as integers of 32 bits: a GPU's are compared on the host.
    places, count = (tf.cast(x, tf.int64) for x in (tf.range(tf.size(keys)), is_object))
    last = tf.reduce_sum(count) - 1
    following = tf.where(places < last, places + 1, tf.where(places > last, places, 0))
    rank = tf.argsort(tf.cast(order, tf.float32))
    return tf.gather(tf.gather(order, following), rank)


def _with_gradients_of(givers, tensor):
    """`tensor` [B, K, ...], where row n of its gradient, of B * K, is that of row `givers[n]`."""

    @tf.custom_gradient
    def exchange(x):
        def gradient(upstream):
            rows = tf.reshape(upstream, tf.concat([[-1], tf.shape(upstream)[2:]], axis=0))
            return tf.reshape(tf.gather(rows, givers), tf.shape(upstream))

        return tf.identity(x), gradient

    return exchange(tensor)


def _sum(scalars) -> tf.Tensor:
    """The sum of scalars, added up alike in every process.

    TensorFlow's graph optimizer rearranges chains of additions and `tf.add_n`, in every process in
    another way: the norm that gradients are clipped by would differ in its last bit, and from the
    next step on the whole run.
    """
    return tf.reduce_sum(tf.stack(scalars))


def _share_of_replica(loss, optimizer):
    """What one replica adds to the sum over replicas, scaled for float16 where that is in use."""
    loss /= tf.cast(tf.distribute.get_strategy().num_replicas_in_sync, loss.dtype)
    if _is_scaled(optimizer):
        return optimizer.get_scaled_loss(loss)
    return loss


def _is_scaled(optimizer) -> bool:
    return isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer)


def _all_finite(terms, optimizer) -> tf.Tensor:
    """Whether every term is finite on every replica; of norms in float16 see `apply_gradients`."""
    wanted = [
        tf.reduce_all(tf.math.is_finite(term))
        for name, term in terms.items()
        if not (_is_scaled(optimizer) and name.endswith('norm'))
    ]
    return tf.math.logical_not(_any_replica(tf.math.logical_not(tf.reduce_all(wanted))))


def _any_replica(condition) -> tf.Tensor:
    """Whether a scalar bool is true on any replica."""
    replicas = tf.distribute.get_replica_context()
    count = replicas.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(condition, tf.float32))
    return count > 0.0


def _statistics(*models) -> list[tuple[tf.Variable, tf.Tensor]]:
    """What a forward pass in training changes, and its values now."""
    return [
        (variable, tf.identity(variable))
        for model in models
        for layer in model.submodules
        for variable in _moved_by(layer)
    ]


def _moved_by(layer) -> tuple[tf.Variable, ...]:
    """A layer's means and variances, or the state of its power iteration."""
    if isinstance(layer, tf.keras.layers.BatchNormalization) and layer.trainable:
        return layer.moving_mean, layer.moving_variance
    if isinstance(layer, discriminators.SpectralConv2D):
        return (layer.direction,)
    return ()


def _restore(statistics) -> None:
    for variable, before in statistics:
        variable.assign(before)


def _restore_unless(finite, statistics) -> None:
    for variable, before in statistics:
        variable.assign(tf.where(finite, variable, before))


def _no_output(_):
    """What both sides of a condition return that is there for what it does."""
    return None
