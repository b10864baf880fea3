# SPDX-License-Identifier: Apache-2.0
"""What moves the objects of a training image: image, boxes and masks together.

Masks are [N, S, S], means over the cells of their own boxes; docs/geometry.md has the convention.
"""

import tensorflow as tf


def turn(
    image: tf.Tensor, boxes: tf.Tensor, masks: tf.Tensor, turns: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Turns an image and its objects by quarters, counter-clockwise.

    Args:
      image: [h, w, 3].
      boxes: [N, 4] [y1, x1, y2, x2] relative to the image, from 0 to 1.
      masks: [N, S, S].
      turns: scalar int32 from 0 to 3.

    Returns:
      The same three, the image [w, h, 3] after an odd number of turns.
    """
    y1, x1, y2, x2 = tf.unstack(boxes, axis=1)
    turned = tf.stack(
        [
            tf.stack(edges, axis=1)
            for edges in (
                [y1, x1, y2, x2],
                [1 - x2, y1, 1 - x1, y2],
                [1 - y2, 1 - x2, 1 - y1, 1 - x1],
                [x1, 1 - y2, x2, 1 - y1],
            )
        ]
    )
    return (
        tf.image.rot90(image, turns),
        tf.gather(turned, turns),
        tf.image.rot90(masks[..., tf.newaxis], turns)[..., 0],
    )
