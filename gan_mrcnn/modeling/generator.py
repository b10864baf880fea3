# SPDX-License-Identifier: Apache-2.0
"""The generator: the Model Garden's Mask R-CNN, which also returns the RoIs it sampled.

Shapes: B images, N sampled RoIs and K of them with a mask per image, M ground-truth objects, all
boxes in pixels of the network's input.
"""

from collections.abc import Mapping
from typing import Any, Optional

import tensorflow as tf
from official.vision.modeling import factory, maskrcnn_model
from official.vision.ops import anchor, box_ops

from gan_mrcnn import configs
from gan_mrcnn.modeling import backbone as backbone_lib
from gan_mrcnn.modeling import fpn, heads, roi_align
from gan_mrcnn.modeling.detection_generator import DetectionGenerator
from gan_mrcnn.modeling.roi_generator import RoIGenerator
from gan_mrcnn.modeling.roi_sampler import RoISampler
from gan_mrcnn.utils import cell_means, devices

# Scale of the box head's targets (Ren et al. 2015), the same as in the Model Garden's first stage.
BOX_WEIGHTS = [10.0, 10.0, 5.0, 5.0]
MASK_SIZE = 28
PAPER_HEADS = {
    'rpn_head': heads.RPNHead,
    'detection_head': heads.DetectionHead,
    'mask_head': heads.MaskHead,
}


class Generator(maskrcnn_model.MaskRCNNModel):
    """Mask R-CNN whose training outputs hold what the discriminators need."""

    def call(
        self,
        images: tf.Tensor,
        image_shape: tf.Tensor,
        anchor_boxes: Optional[Mapping[str, tf.Tensor]] = None,
        gt_boxes: Optional[tf.Tensor] = None,
        gt_classes: Optional[tf.Tensor] = None,
        gt_masks: Optional[tf.Tensor] = None,
        sampling_seed: Optional[tf.Tensor] = None,
        training: Optional[bool] = None,
        nms: str = 'auto',
    ) -> dict[str, tf.Tensor]:
        """Runs the network.

        Args:
          images: [B, H, W, 3], normalized.
          image_shape: [B, 2] height and width of the image inside its padding.
          anchor_boxes: level -> [B, h, w, 4 * anchors]; made here where missing.
          gt_boxes: [B, M, 4] padded with -1; only in training, as are the next three.
          gt_classes: [B, M] padded with -1.
          gt_masks: [B, M, S, S] uint8, 255 times the masks inside their boxes, padded with 0.
          sampling_seed: [B, 2] int32, decides which RoIs are sampled.
          training: whether to sample RoIs and return targets, or to return detections.
          nms: `implementation` of `custom_ops.nms`.

        Returns:
          In training, the Model Garden's training outputs and, of the K RoIs that have a mask,
          `mask_rois` [B, K, 4], `mask_gt_boxes` [B, K, 4], `mask_box_deltas` [B, K, 4] (encoded, of
          the RoI's own class) and the `mask_predicted_boxes` [B, K, 4] that they make. Otherwise
          the Model Garden's detections.
        """
        backbone_features = self.backbone(images)
        features = self.decoder(backbone_features)
        if anchor_boxes is None:
            anchor_boxes = self._anchors(images)
        rpn_outputs, rois = self._propose(features, anchor_boxes, image_shape, training, nms)
        outputs = {
            'backbone_features': backbone_features,
            'decoder_features': features,
            **rpn_outputs,
        }
        if training:
            targets = self._sample(tf.stop_gradient(rois), gt_boxes, gt_classes, sampling_seed)
            outputs.update(self._box_outputs(features, targets))
            outputs.update(self._mask_outputs(features, outputs, targets, gt_masks, image_shape))
        else:
            outputs.update(self._detections(features, rois, image_shape, nms))
        return outputs

    def _anchors(self, images):
        config = self._config_dict
        boxes = anchor.build_anchor_generator(
            config['min_level'],
            config['max_level'],
            config['num_scales'],
            config['aspect_ratios'],
            config['anchor_size'],
        )(images.shape[1:3])
        return {
            level: tf.tile(x[tf.newaxis], [tf.shape(images)[0], 1, 1, 1])
            for level, x in boxes.items()
        }

    def _propose(self, features, anchor_boxes, image_shape, training, nms):
        """The RPN's scores and boxes in float32, and the proposals [B, N, 4] that they make."""
        scores, boxes = (
            {level: tf.cast(x, tf.float32) for level, x in part.items()}
            for part in self.rpn_head(features)
        )
        rois, _ = self.roi_generator(boxes, scores, anchor_boxes, image_shape, training, nms)
        return {'rpn_scores': scores, 'rpn_boxes': boxes}, rois

    def _sample(self, rois, gt_boxes, gt_classes, sampling_seed):
        """RoIs of the box head with their targets."""
        rois, boxes, classes, indices = self.roi_sampler[0](
            rois, gt_boxes, gt_classes, sampling_seed
        )
        deltas = box_ops.encode_boxes(boxes, rois, weights=BOX_WEIGHTS)
        positive = tf.greater(classes, 0)[..., tf.newaxis]
        return {
            'rois': rois,
            'gt_boxes': boxes,
            'gt_indices': indices,
            'class_targets': classes,
            'box_targets': tf.where(positive, deltas, 0.0),
        }

    def _box_outputs(self, features, targets):
        class_logits, deltas = self.detection_head[0](
            self.roi_aligner(features, targets['rois'], training=True)
        )
        return {
            'class_outputs': class_logits,
            'box_outputs': deltas,
            'class_targets': targets['class_targets'],
            'box_targets': targets['box_targets'],
        }

    def _mask_outputs(self, features, outputs, targets, gt_masks, image_shape):
        """Masks and boxes of the first K RoIs; the sampler puts positive RoIs first."""
        num_masks = self.mask_sampler.get_config()['num_sampled_masks']
        first = {name: value[:, :num_masks] for name, value in targets.items()}
        # Not as bytes: those are gathered by CPUs only.
        masks = tf.cast(gt_masks, tf.float32)
        masks = tf.gather(masks, tf.maximum(first['gt_indices'], 0), batch_dims=1) / 255.0
        mask_targets = cell_means.of_box_masks(masks, first['gt_boxes'], first['rois'], MASK_SIZE)
        logits = self.mask_head(
            [
                self.mask_roi_aligner(features, first['rois'], training=True),
                first['class_targets'],
            ]
        )
        deltas = self._own_deltas(outputs['box_outputs'][:, :num_masks], first['class_targets'])
        return {
            'mask_outputs': logits,
            'mask_targets': tf.stop_gradient(mask_targets),
            'mask_class_targets': first['class_targets'],
            'mask_rois': first['rois'],
            'mask_gt_boxes': first['gt_boxes'],
            'mask_box_deltas': deltas,
            'mask_predicted_boxes': predicted_boxes(deltas, first['rois'], image_shape),
        }

    def _own_deltas(self, deltas, classes):
        """Encoded boxes [B, K, 4] of each RoI's own class."""
        deltas = tf.cast(deltas, tf.float32)
        if not self._config_dict['class_agnostic_bbox_pred']:
            shape = tf.shape(deltas)
            deltas = tf.reshape(deltas, [shape[0], shape[1], -1, 4])
            deltas = tf.gather(deltas, classes, batch_dims=2)
        return deltas

    def _detections(self, features, rois, image_shape, nms):
        class_logits, deltas = self.detection_head[0](
            self.roi_aligner(features, rois, training=False)
        )
        detections = self.detection_generator(
            tf.cast(deltas, tf.float32),
            tf.cast(class_logits, tf.float32),
            rois,
            image_shape,
            BOX_WEIGHTS,
            bbox_per_class=not self._config_dict['class_agnostic_bbox_pred'],
            nms=nms,
        )
        return {**detections, 'detection_masks': self._detected_masks(features, detections)}

    def _detected_masks(self, features, detections):
        """Masks [B, N, 28, 28]; zero in the rows without a detection.

        Most of the N rows are such padding, and masks for all of them would be a third of the
        arithmetic of the whole network.
        """
        scores, counts = detections['detection_scores'], detections['num_detections']
        # Detections come first.
        present = tf.maximum(tf.reduce_max(counts), 1)
        places = tf.cast(tf.where(tf.sequence_mask(counts, present)), tf.int32)
        places, count = devices.fill_up(places, tf.size(scores))
        features, classes = (
            tf.gather_nd(rows, places)
            for rows in (
                self.mask_roi_aligner(features, detections['detection_boxes'][:, :present]),
                detections['detection_classes'],
            )
        )
        logits = self.mask_head([features[:, tf.newaxis], classes[:, tf.newaxis]])[:, 0]
        masks = tf.scatter_nd(
            places[:count],
            tf.sigmoid(tf.cast(logits[:count], tf.float32)),
            tf.concat([tf.shape(scores), [MASK_SIZE, MASK_SIZE]], axis=0),
        )
        return tf.ensure_shape(masks, [None, scores.shape[1], MASK_SIZE, MASK_SIZE])


def predicted_boxes(deltas: tf.Tensor, rois: tf.Tensor, image_shape: tf.Tensor) -> tf.Tensor:
    """Boxes [B, K, 4] inside their image, differentiable in `deltas`.

    Args:
      deltas: [B, K, 4], encoded with `BOX_WEIGHTS`.
      rois: [B, K, 4], what they are encoded by.
      image_shape: [B, 2] height and width of the image inside its padding.
    """
    boxes = box_ops.decode_boxes(deltas, rois, weights=BOX_WEIGHTS)
    return box_ops.clip_boxes(boxes, image_shape[:, tf.newaxis])


def build_generator(
    config: configs.Generator,
    kernel_regularizer: Optional[tf.keras.regularizers.Regularizer] = None,
) -> Generator:
    """Builds the generator with the Model Garden's factory and puts the paper's parts in.

    Args:
      config: see `configs.Generator`; height and width must be multiples of 64 (P6).
      kernel_regularizer: of every kernel that is trained.

    Returns:
      The network, its variables made.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        # Nothing to synchronize, and the fused normalization is faster.
        config = config.replace(norm_activation={'use_sync_bn': False})
    model = Generator(**_parts(config, kernel_regularizer))
    # A symbolic call makes the variables without running anything, or compiling what would run.
    inputs = {'images': tf.keras.Input(config.input_size), 'image_shape': tf.keras.Input([2])}
    model(**inputs, training=False, nms='tensorflow')
    return model


def _parts(config: configs.Generator, kernel_regularizer) -> dict[str, Any]:
    """Arguments of `Generator`: the Model Garden's parts, with the paper's in their places."""
    # Training has canvases of its own.
    input_specs = tf.keras.layers.InputSpec(shape=[None, None, None, config.input_size[2]])
    backbone = _build_backbone(config, input_specs, kernel_regularizer)
    is_papers = config.head_norm != 'batch_norm'
    decoder = None
    if is_papers:
        decoder = fpn.FPN(
            backbone.output_specs,
            num_filters=config.decoder.get().num_filters,
            normalization=config.head_norm,
            kernel_regularizer=kernel_regularizer,
        )
    parts = factory.build_maskrcnn(
        input_specs, config, kernel_regularizer, backbone=backbone, decoder=decoder
    ).get_config()
    parts['roi_sampler'] = _build_sampler(config.roi_sampler)
    # 16 bits are too few for pixel coordinates, and NMS takes float32 only.
    proposals = parts['roi_generator']
    parts['roi_generator'] = RoIGenerator(**proposals.get_config(), dtype='float32')
    parts['detection_generator'] = DetectionGenerator(**parts['detection_generator'].get_config())
    if is_papers:
        for name, head_class in PAPER_HEADS.items():
            parts[name] = heads.with_normalization(parts[name], head_class, config.head_norm)
        for name in ('roi_aligner', 'mask_roi_aligner'):
            parts[name] = _build_aligner(getattr(config, name))
    return parts


def _build_backbone(config: configs.Generator, input_specs, kernel_regularizer):
    norm, resnet = config.norm_activation, config.backbone.get()
    return backbone_lib.build_backbone(
        input_specs,
        model_id=resnet.model_id,
        padding=resnet.padding,
        norm_epsilon=norm.norm_epsilon,
        norm_momentum=norm.norm_momentum,
        use_sync_bn=norm.use_sync_bn,
        bn_trainable=resnet.bn_trainable,
        frozen_stages=resnet.freeze_stages,
        kernel_regularizer=kernel_regularizer,
    )


def _build_sampler(config) -> RoISampler:
    return RoISampler(
        mix_gt_boxes=config.mix_gt_boxes,
        num_sampled_rois=config.num_sampled_rois,
        foreground_fraction=config.foreground_fraction,
        foreground_iou_threshold=config.foreground_iou_threshold,
        background_iou_high_threshold=config.background_iou_high_threshold,
        background_iou_low_threshold=config.background_iou_low_threshold,
        dtype='float32',
    )


def _build_aligner(config) -> roi_align.MultilevelRoIAligner:
    return roi_align.MultilevelRoIAligner(
        config.crop_size,
        config.samples_per_bin,
        config.fuse_levels,
        sample_offset=config.sample_offset,
        # Features may have 16 bits, boxes keep 32.
        autocast=False,
    )
