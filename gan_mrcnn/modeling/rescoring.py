# SPDX-License-Identifier: Apache-2.0
"""The box discriminator at work after training: detections ranked by its opinion, too.

The class score says what an object is, the box discriminator how much its box looks like a
ground-truth one. Jiang et al. (IoU-Net, ECCV 2018) rank by such a second score; here it costs no
further training. `gan.rescore_exponent` says how much it counts.

Shapes: B images, D detections at most, C channels.
"""

from collections.abc import Mapping
from typing import Optional

import tensorflow as tf

from custom_ops.prroi_pool import multilevel_prroi_pool
from gan_mrcnn.modeling import roi_align

# By detection; what else the generator returns stays as it is.
_ROWS = ('detection_boxes', 'detection_scores', 'detection_classes', 'detection_masks')


def opinions(
    box_discriminator: tf.keras.Model,
    features: Mapping[str, tf.Tensor],
    boxes: tf.Tensor,
    implementation: str = 'auto',
) -> tf.Tensor:
    """The box discriminator's score of every box, with its stored statistics.

    Args:
      box_discriminator: `discriminators.BoxDiscriminator`.
      features: FPN level -> [B, H, W, C].
      boxes: [B, D, 4], [y1, x1, y2, x2] in pixels of the network's input.
      implementation: as in `custom_ops.prroi_pool.prroi_pool`.

    Returns:
      [B, D] float32, between 0 and 1; of no meaning where the box has no area.
    """
    num_images, num_boxes = tf.shape(boxes)[0], tf.shape(boxes)[1]
    pooled = multilevel_prroi_pool(
        {level: features[level] for level in roi_align.POOLED_LEVELS},
        tf.reshape(boxes, [-1, 4]),
        tf.repeat(tf.range(num_images), num_boxes),
        implementation=implementation,
    )
    logits = box_discriminator(pooled, training=False)
    return tf.reshape(tf.sigmoid(logits), tf.shape(boxes)[:2])


def rescore(
    detections: Mapping[str, tf.Tensor], opinions: tf.Tensor, exponent: float
) -> dict[str, tf.Tensor]:
    """Detections with the score times opinion**exponent, best first again.

    Args:
      detections: the generator's, see `Generator.call`; scores behind the last one are 0.
      opinions: [B, D], in [0, 1].
      exponent: how much the opinion counts.

    Returns:
      The same names; rows behind the last detection stay there.
    """
    scores = detections['detection_scores'] * tf.pow(opinions, exponent)
    order = tf.argsort(scores, direction='DESCENDING', stable=True)
    rows = {**{name: detections[name] for name in _ROWS}, 'detection_scores': scores}
    ranked = {name: tf.gather(x, order, batch_dims=1) for name, x in rows.items()}
    return {**detections, **ranked}


def detect(
    model: tf.keras.Model,
    images: tf.Tensor,
    image_shape: tf.Tensor,
    box_discriminator: Optional[tf.keras.Model] = None,
    exponent: float = 0.0,
    nms: str = 'auto',
) -> dict[str, tf.Tensor]:
    """The generator's detections, rescored where the exponent is above 0.

    Args:
      model: the generator.
      images: [B, H, W, 3], normalized.
      image_shape: [B, 2] height and width of the image inside its padding.
      box_discriminator: wanted where it rescores.
      exponent: `gan.rescore_exponent`.
      nms: see `Generator.call`; with 'tensorflow' the graph holds stock operations alone.
    """
    outputs = model(images, image_shape=image_shape, training=False, nms=nms)
    if not exponent:
        return outputs
    found = opinions(
        box_discriminator,
        outputs['decoder_features'],
        outputs['detection_boxes'],
        implementation='tensorflow' if nms == 'tensorflow' else 'auto',
    )
    return rescore(outputs, found, exponent)
