# SPDX-License-Identifier: Apache-2.0
"""Configuration: the Model Garden's Mask R-CNN dataclasses plus what the paper adds.

Defaults are the paper's (and, where it is silent, its baseline's: maskrcnn-benchmark). A YAML file
in `configs/` reads like the experiment section of the paper; `--params_override` changes single
values.
"""

import dataclasses
import math
from typing import Optional

from official.core import config_definitions as cfg
from official.core import exp_factory
from official.modeling import hyperparams, optimization
from official.vision.configs import backbones, common, maskrcnn

from gan_mrcnn.utils.cli import GAN_MODES
from gan_mrcnn.utils.errors import UserError

EXPERIMENT = 'gan_maskrcnn'

# What a setting with few possible values can be.
NUM_LAYERS = (3, 4, 5)
LOSS_NORMALIZATIONS = ('paper', 'model_garden')
HEAD_NORMS = ('none', 'group_norm', 'batch_norm')
MODEL_IDS = (18, 34, 50, 101)
PADDINGS = ('symmetric', 'same')
NMS = ('batched',)
FREEZE_STAGES = (0, 1, 2)
# Weights of the adversarial losses by convention: the paper's Eq. 2 and 3 have none; the authors'
# code weighs both sides alike; 'one_sided' weighs the generator's side as the authors' code and the
# discriminators' as Eq. 3. With the authors' weight of .025 the box discriminator hardly learns in
# 300 steps (docs/results.md).
WEIGHTINGS = {
    'paper': {
        'box_weight': 1.0,
        'mask_weight': 1.0,
        'discriminator_box_weight': 1.0,
        'discriminator_mask_weight': 1.0,
    },
    'authors_code': {
        'box_weight': 0.025,
        'mask_weight': 0.5,
        'discriminator_box_weight': 0.025,
        'discriminator_mask_weight': 0.5,
    },
    'one_sided': {
        'box_weight': 0.025,
        'mask_weight': 0.5,
        'discriminator_box_weight': 1.0,
        'discriminator_mask_weight': 1.0,
    },
}
NORMALIZATIONS = ('batch', 'spectral')
MASK_JUDGEMENTS = ('roi', 'pixel')
BOX_LOSSES = ('cross_entropy', 'hinge')
CONTROLS = ('', 'frozen', 'shuffled')
NONFINITE_POLICIES = ('stop', 'skip', 'go_back')


@dataclasses.dataclass
class Parser(maskrcnn.Parser):
    """Input sizes as the paper gives them: the shorter side, in pixels.

    Images are scaled so that the shorter side has the wanted length (less where the longer side
    would not fit into `model.input_size`) and padded at the bottom and right to that size.
    `mask_crop_size` is the records', 112 (`gan_mrcnn.data.records.mask_crops`), and no other.
    `aug_photometric` changes training images by noise, blur, sharpness, lightness or contrast,
    `aug_stain` (0: off) the stains of tissue by as much, see `gan_mrcnn.data.augment`.
    `aug_quarter_turns` turns training images and their objects by 0, 90, 180 or 270 degrees; half
    of the batches then lie upright, see `input_pipeline.training_canvases`.
    `aug_scale_min`, `aug_scale_max`: the scale of a training image is multiplied by a number drawn
    from this range, and a random window of the canvas' size is what is seen of a larger one.
    `aug_copy_paste` (0: off) is the chance of each object of the next image to be copied into this
    one, see `gan_mrcnn.data.geometric.paste`.
    """

    train_short_side: list[int] = dataclasses.field(default_factory=lambda: [800, 800])
    test_short_side: int = 800
    aug_photometric: bool = False
    aug_stain: float = 0.0
    aug_quarter_turns: bool = False
    aug_copy_paste: float = 0.0


@dataclasses.dataclass
class DataConfig(maskrcnn.DataConfig):
    """Where examples come from.

    `input_path`, `num_examples`, `num_upright` (images higher than wide) and `aspect_ratios` (the
    largest of longer to shorter side, of wide or square images and of upright ones) are filled in
    from the records.
    """

    dtype: str = 'float32'
    parser: Parser = dataclasses.field(default_factory=Parser)
    split: str = ''
    # Examples held in memory for shuffling, encoded.
    shuffle_buffer_size: int = 1000
    # Training images, the rest of which are copies changed by `datasets.augment` when converted;
    # fewer than there are: none.
    expand_to: int = 0
    num_upright: int = 0
    aspect_ratios: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class RoIAligner(maskrcnn.ROIAligner):
    """`samples_per_bin` along each side; 1 with P6 among the levels is the Model Garden's own.

    `fuse_levels`: the maximum over P2-P5 as in the authors' code, another change to the baseline.
    """

    samples_per_bin: int = 2
    fuse_levels: bool = False


@dataclasses.dataclass
class MaskRoIAligner(maskrcnn.MaskROIAligner):
    samples_per_bin: int = 2
    fuse_levels: bool = False


@dataclasses.dataclass
class DetectionHead(maskrcnn.DetectionHead):
    """Two fully connected layers of 1024 (the Model Garden's default: four convolutions, one)."""

    num_convs: int = 0
    num_fcs: int = 2


@dataclasses.dataclass
class ROIGenerator(maskrcnn.ROIGenerator):
    """2000 proposals in training, 1000 in testing; `use_batched_nms` is the only way there is.

    The smallest side, in pixels, is torchvision's: proposals without area are none.
    """

    num_proposals: int = 2000
    pre_nms_min_size_threshold: float = 1e-3
    test_pre_nms_min_size_threshold: float = 1e-3
    use_batched_nms: bool = True


@dataclasses.dataclass
class DetectionGenerator(maskrcnn.DetectionGenerator):
    """`nms_version`: 'batched' is the only one that there is."""

    nms_version: str = 'batched'


@dataclasses.dataclass
class ResNet(backbones.ResNet):
    """`model_id` chooses 18, 34, 50 or 101.

    `bn_trainable` and `freeze_stages` are for a network that starts from weights; one that starts
    from scratch is trained whole (`settings.load_config` sees to it).

    padding: 'symmetric' as in the networks that torchvision's weights were trained in, 'same' for
      TensorFlow's own.
    freeze_stages: 0 none, 1 the stem, 2 the stem and stage 1.
    """

    bn_trainable: bool = False
    padding: str = 'symmetric'
    freeze_stages: int = 2


@dataclasses.dataclass
class Backbone(backbones.Backbone):
    type: Optional[str] = 'resnet'
    resnet: ResNet = dataclasses.field(default_factory=ResNet)


@dataclasses.dataclass
class Generator(maskrcnn.MaskRCNN):
    """The generator: the Model Garden's Mask R-CNN.

    head_norm: 'none' or 'group_norm' in FPN and heads, 'batch_norm' for the Model Garden's own.
    """

    head_norm: str = 'none'
    backbone: Backbone = dataclasses.field(default_factory=Backbone)
    detection_head: DetectionHead = dataclasses.field(default_factory=DetectionHead)
    roi_generator: ROIGenerator = dataclasses.field(default_factory=ROIGenerator)
    roi_aligner: RoIAligner = dataclasses.field(default_factory=RoIAligner)
    mask_roi_aligner: MaskRoIAligner = dataclasses.field(default_factory=MaskRoIAligner)
    detection_generator: DetectionGenerator = dataclasses.field(default_factory=DetectionGenerator)
    norm_activation: common.NormActivation = dataclasses.field(
        default_factory=lambda: common.NormActivation(
            activation='relu', norm_momentum=0.9, norm_epsilon=1e-5, use_sync_bn=True
        )
    )


@dataclasses.dataclass
class Losses(maskrcnn.Losses):
    """`normalization`: 'paper' or 'model_garden', see `gan_mrcnn.losses`.

    The smooth L1 of the boxes bends at 1/9 (RPN) and 1 (box head), as in maskrcnn-benchmark.
    """

    normalization: str = 'paper'
    l2_weight_decay: float = 1e-4


@dataclasses.dataclass
class Gan(hyperparams.Config):
    """The adversarial part.

    mode: 'combined' (Eq. 2), 'baseline' (no discriminators) or 'adversarial_only' (Table 5: the
      box and the mask loss of Mask R-CNN are not there).
    preset: what the weights are that are not given (None), a key of `WEIGHTINGS`.
    box_weight, mask_weight: of the generator's adversarial losses (Eq. 4 and 6).
    discriminator_box_weight, discriminator_mask_weight: of the discriminators' own (Eq. 5 and 6).
    clip_norm: largest global norm of the discriminators' gradient, 0 for no clipping.
    num_layers: convolutions of each discriminator, 3, 4 or 5 (Table 6).
    learning_rate_ratio: discriminators' learning rate over the generator's.
    detach_features: whether the adversarial gradient stops at box coordinates and mask logits; not
      detached, the generator can also change the features that the discriminators see.
    mask_judgement: what the mask discriminator says: of a RoI as a whole, the distance of Eq. 6
      ('roi'), or of every cell whether it is of a ground-truth mask, by Eq. 4 and 5 for each
      ('pixel').
    box_loss: of box discriminator and generator, 'cross_entropy' (Eq. 4 and 5) or 'hinge'.
    normalization: of the discriminators, 'batch' or 'spectral'.
    r1: weight of the box discriminator's gradient penalty on ground-truth boxes, r1 / 2 times the
      mean squared norm; 0 for none. It wants spectral normalization.
    ramp: fraction of the training, from its start, over which the weights of the generator's
      adversarial losses rise linearly from 0 to what they are; 0 for none, a quarter is usual.
    rescore_exponent: detections get their score times the box discriminator's opinion of their box
      to this power, see `gan_mrcnn.modeling.rescoring`; 0 leaves them as they are.
    control: '', or what a gain of the game is to be compared with: 'frozen', discriminators that
      keep their initial weights, or 'shuffled', an adversarial gradient that each RoI gets of
      another one.
    """

    mode: str = 'combined'
    preset: str = 'one_sided'
    box_weight: Optional[float] = None
    mask_weight: Optional[float] = None
    discriminator_box_weight: Optional[float] = None
    discriminator_mask_weight: Optional[float] = None
    clip_norm: float = 0.0
    num_layers: int = 5
    learning_rate_ratio: float = 0.2
    detach_features: bool = True
    mask_judgement: str = 'roi'
    box_loss: str = 'cross_entropy'
    normalization: str = 'batch'
    r1: float = 0.0
    ramp: float = 0.0
    rescore_exponent: float = 0.0
    control: str = ''

    def weight(self, name: str) -> float:
        """The weight of that name: what is given, otherwise the preset's."""
        given = getattr(self, name)
        return WEIGHTINGS[self.preset][name] if given is None else given


@dataclasses.dataclass
class Nonfinite(hyperparams.Config):
    """What a non-finite loss or gradient leads to, see `gan_mrcnn.training.nonfinite`.

    policy: 'stop', 'skip' (the batch is skipped) or 'go_back' (to the newest checkpoint, and on
      from there with the learning rates times `rate_factor`).
    limit: how many a run may have before it stops whatever the policy.
    """

    policy: str = 'stop'
    limit: int = 10
    rate_factor: float = 0.5


@dataclasses.dataclass
class GanMaskRCNNTask(maskrcnn.MaskRCNNTask):
    """Everything that is trained and what it is trained on.

    dataset, data_dir, cache_dir, skip_bad: see `gan_mrcnn.data.readers`.
    share, split_seed, group_by, annotations, crowds, objects, skip_bad_annotations: how the data
      are divided and read, `data.readers.options.Options`.
    learning_rate_batch: filled in where the learning rate was scaled: the batch that it was for.
    backbone_weights: ImageNet weights, see `gan_mrcnn.modeling.backbone_weights`; '' trains from
      scratch.
    weights: of a whole generator to go on from, see `gan_mrcnn.utils.published`; '' for none.
      `backbone_weights` are not read then.
    clip_norm: largest global norm of the generator's gradient, 0 for no clipping.
    patience: validations in a row without a better mask AP that end the run, 0 for none.
    deterministic: whether every operation gives the same bits each time, where it can.
    micrometres_per_pixel: of the training images, for predicting whole slides at the same
      resolution; 0 for what the data set says, if it does.
    """

    model: Generator = dataclasses.field(default_factory=Generator)
    gan: Gan = dataclasses.field(default_factory=Gan)
    losses: Losses = dataclasses.field(default_factory=Losses)
    train_data: DataConfig = dataclasses.field(
        default_factory=lambda: DataConfig(is_training=True, split='train')
    )
    validation_data: DataConfig = dataclasses.field(
        default_factory=lambda: DataConfig(is_training=False, split='val', drop_remainder=False)
    )
    dataset: str = ''
    data_dir: str = ''
    share: float = 0.0
    split_seed: int = 0
    group_by: str = ''
    annotations: list[str] = dataclasses.field(default_factory=list)
    crowds: str = 'ignored'
    objects: str = ''
    skip_bad_annotations: bool = False
    cache_dir: str = ''
    skip_bad: bool = False
    backbone_weights: str = ''
    weights: str = ''
    clip_norm: float = 10.0
    learning_rate_batch: int = 0
    nonfinite: Nonfinite = dataclasses.field(default_factory=Nonfinite)
    patience: int = 0
    seed: int = 0
    deterministic: bool = False
    micrometres_per_pixel: float = 0.0


def check(task: GanMaskRCNNTask) -> None:
    """Raises UserError where a setting is none of its few possible values."""
    model, resnet = task.model, task.model.backbone.resnet
    for key, value, choices in (
        ('gan.mode', task.gan.mode, GAN_MODES),
        ('gan.num_layers', task.gan.num_layers, NUM_LAYERS),
        ('gan.preset', task.gan.preset, tuple(WEIGHTINGS)),
        ('gan.mask_judgement', task.gan.mask_judgement, MASK_JUDGEMENTS),
        ('gan.box_loss', task.gan.box_loss, BOX_LOSSES),
        ('gan.normalization', task.gan.normalization, NORMALIZATIONS),
        ('gan.control', task.gan.control, CONTROLS),
        ('nonfinite.policy', task.nonfinite.policy, NONFINITE_POLICIES),
        ('losses.normalization', task.losses.normalization, LOSS_NORMALIZATIONS),
        ('model.head_norm', model.head_norm, HEAD_NORMS),
        ('model.roi_generator.use_batched_nms', model.roi_generator.use_batched_nms, (True,)),
        ('model.detection_generator.nms_version', model.detection_generator.nms_version, NMS),
        ('model.backbone.resnet.model_id', resnet.model_id, MODEL_IDS),
        ('model.backbone.resnet.padding', resnet.padding, PADDINGS),
        ('model.backbone.resnet.freeze_stages', resnet.freeze_stages, FREEZE_STAGES),
        ('train_data.parser.mask_crop_size', task.train_data.parser.mask_crop_size, (112,)),
    ):
        if value not in choices:
            names = ', '.join(str(choice) or "''" for choice in choices)
            raise UserError(f'task.{key} is {value!r}, not one of {names}')
    _check_gan(task.gan)
    if task.train_data.parser.max_num_instances < 1:
        raise UserError(
            '--max_instances (task.train_data.parser.max_num_instances) is '
            f'{task.train_data.parser.max_num_instances}, but at least 1 is wanted'
        )
    chance = task.train_data.parser.aug_copy_paste
    if not 0 <= chance <= 1:
        raise UserError(
            f'task.train_data.parser.aug_copy_paste is {chance}, not a chance from 0 (off) to 1'
        )
    stain = task.train_data.parser.aug_stain
    if not 0 <= stain < 1:
        raise UserError(
            f'task.train_data.parser.aug_stain is {stain}, not 0 (off) or between 0 and 1'
        )
    low, high = task.train_data.parser.aug_scale_min, task.train_data.parser.aug_scale_max
    if not 0 < low <= high:
        raise UserError(
            f'task.train_data.parser.aug_scale_min is {low} and aug_scale_max {high}, but positive '
            'numbers are wanted, the smaller one first'
        )
    if not 0 <= task.micrometres_per_pixel < math.inf:
        raise UserError(
            f'task.micrometres_per_pixel is {task.micrometres_per_pixel:g}, but 0 (unknown) or '
            'more is wanted'
        )
    if not 0 <= task.seed < 1 << 32:
        raise UserError(f'--seed (task.seed) is {task.seed}, not between 0 and {(1 << 32) - 1}')
    for key, value in (
        ('model.roi_generator.num_proposals', model.roi_generator.num_proposals),
        ('model.roi_generator.test_num_proposals', model.roi_generator.test_num_proposals),
        ('model.roi_sampler.num_sampled_rois', model.roi_sampler.num_sampled_rois),
        ('model.mask_sampler.num_sampled_masks', model.mask_sampler.num_sampled_masks),
        (
            'model.detection_generator.max_num_detections',
            model.detection_generator.max_num_detections,
        ),
    ):
        if value < 1:
            raise UserError(f'task.{key} is {value}, but at least 1 is wanted')
    given = task.train_data.parser.max_num_instances if model.roi_sampler.mix_gt_boxes else 0
    most = model.roi_generator.num_proposals + given
    if model.roi_sampler.num_sampled_rois > most:
        raise UserError(
            f'task.model.roi_sampler.num_sampled_rois is {model.roi_sampler.num_sampled_rois}, but '
            f'there are {most} RoIs to sample from, which are task.model.roi_generator.'
            'num_proposals and --max_instances; lower it, or raise num_proposals'
        )
    size, stride = task.model.input_size, 2**task.model.max_level
    if len(size) != 3 or size[0] % stride or size[1] % stride or size[2] != 3:
        raise UserError(
            f'task.model.input_size is {size}, but [height, width, 3] with multiples of {stride} '
            'is wanted'
        )


def _check_gan(gan: Gan) -> None:
    """Raises UserError for settings of the adversarial part that contradict each other."""
    for is_wrong, text in (
        (not 0 <= gan.ramp <= 1, f'ramp is {gan.ramp:g}, not a fraction between 0 and 1'),
        (not 0 <= gan.r1 < math.inf, f'r1 is {gan.r1:g}, but 0 or more is wanted'),
        (
            not 0 <= gan.rescore_exponent < math.inf,
            f'rescore_exponent is {gan.rescore_exponent:g}, but 0 or more is wanted',
        ),
        (
            gan.rescore_exponent and gan.mode == 'baseline',
            f'rescore_exponent is {gan.rescore_exponent:g}, but gan.mode is baseline, which has no '
            'box discriminator to ask; set it to 0',
        ),
        (
            gan.r1 and gan.normalization == 'batch',
            f'r1 is {gan.r1:g}, but with batch normalization the gradient of one RoI is also '
            'that of the others; set task.gan.normalization=spectral',
        ),
        (
            gan.control and gan.mode == 'baseline',
            f'control is {gan.control}, but gan.mode is baseline, which has no adversarial part; '
            "set it to ''",
        ),
        (
            gan.control == 'shuffled' and not gan.detach_features,
            'control is shuffled, but gan.detach_features is off: the gradient to the features '
            'cannot be exchanged between RoIs; set detach_features=true',
        ),
    ):
        if is_wrong:
            raise UserError(f'task.gan.{text}')


def optimizer_config(
    learning_rate: float, boundaries: list[int], warmup_steps: int
) -> optimization.OptimizationConfig:
    """SGD, momentum 0.9, a tenth of the rate after each boundary, linear warm-up from a tenth."""
    values = [learning_rate * 0.1**i for i in range(len(boundaries) + 1)]
    return optimization.OptimizationConfig(
        {
            'optimizer': {'type': 'sgd_experimental', 'sgd_experimental': {'momentum': 0.9}},
            'learning_rate': {
                'type': 'stepwise',
                'stepwise': {'boundaries': boundaries, 'values': values},
            },
            'warmup': {
                'type': 'linear',
                'linear': {
                    'warmup_steps': warmup_steps,
                    'warmup_learning_rate': 0.1 * learning_rate,
                },
            },
        }
    )


@exp_factory.register_config_factory(EXPERIMENT)
def gan_maskrcnn() -> cfg.ExperimentConfig:
    """The experiment that every YAML file of `configs/` changes into one row of the paper."""
    return cfg.ExperimentConfig(
        runtime=cfg.RuntimeConfig(mixed_precision_dtype='float32'),
        task=GanMaskRCNNTask(),
        trainer=cfg.TrainerConfig(
            best_checkpoint_export_subdir='best',
            best_checkpoint_eval_metric='mask_AP',
            max_to_keep=2,
            # `task.nonfinite` is for that; the Model Garden's own checks too late.
            recovery_max_trials=-1,
            optimizer_config=optimizer_config(0.01, [1500], 200),
        ),
    )
