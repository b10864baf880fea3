# SPDX-License-Identifier: Apache-2.0
"""RoIAlign with 2x2 samples per bin from P2-P5, the paper's baseline's.

He et al., Mask R-CNN (2017), section 3. The Model Garden takes one sample per bin and also pools
from P6. Averaging 2x2 of its samples at twice the resolution puts samples exactly where RoIAlign
with `sampling_ratio=2` has them.

In training the compiled operation pools from all levels at once (`custom_ops/prroi_pool`). Where it
could not be built, the samples are the Model Garden's on a CPU. It gathers the four neighbours of
each: with 1000 boxes and 256 channels, 800 MB an image. On a GPU without the operation, and in
inference, whose graph holds stock operations only, `tf.image.crop_and_resize` takes the same
samples, level by level; in inference some boxes at a time, so that samples are averaged while they
are in the cache.
"""

import functools
from collections.abc import Mapping
from typing import Optional

import tensorflow as tf
from official.vision.modeling.layers import roi_aligner

from custom_ops.prroi_pool import is_compiled, multilevel_roi_align
from gan_mrcnn.utils import devices

POOLED_LEVELS = ('2', '3', '4', '5')
# Boxes that inference samples at a time, by the kind of device. On a CPU enough for every core, and
# few enough for the cache. On a GPU every further part waits for kernels to be started, and memory
# is the limit: 50 MB a part with 256 channels. A number that is fixed also spares the log the
# complaints of TensorFlow's graph optimizer, which cannot tell the cost of any other.
_BOXES_AT_A_TIME = {'CPU': 32, 'GPU': 256}


class MultilevelRoIAligner(roi_aligner.MultilevelROIAligner):
    """[B, N, crop_size, crop_size, C] features of [B, N, 4] boxes in pixels of the input."""

    def __init__(
        self, crop_size: int, samples_per_bin: int = 2, fuse_levels: bool = False, **kwargs
    ):
        """Makes a layer without variables.

        Args:
          crop_size: bins along each side of a box.
          samples_per_bin: samples along each side of a bin.
          fuse_levels: pool every box from every level and take the maximum, as the authors' code
            does; otherwise from the level that goes with its size.
          **kwargs: the Model Garden's.
        """
        super().__init__(crop_size=crop_size * samples_per_bin, **kwargs)
        self._samples_per_bin = samples_per_bin
        self._fuse_levels = fuse_levels

    def call(
        self,
        features: Mapping[str, tf.Tensor],
        boxes: tf.Tensor,
        training: Optional[bool] = None,
    ) -> tf.Tensor:
        """Pools boxes that lie in the image from P2 to P5."""
        if self._fuse_levels:
            pooled = (
                self._align({level: features[level]}, boxes, training) for level in POOLED_LEVELS
            )
            return functools.reduce(tf.maximum, pooled)
        return self._align({level: features[level] for level in POOLED_LEVELS}, boxes, training)

    def _align(self, features, boxes, training):
        """Pools each box from the one of `features` whose level is nearest to its size."""
        shape = tf.shape(boxes)
        flat, images = tf.reshape(boxes, [-1, 4]), tf.repeat(tf.range(shape[0]), shape[1])
        if training and is_compiled():
            pooled = self._pool_at_once(features, flat, images)
        elif training and not devices.has_gpu():
            samples = super().call(features, boxes)
            size, channels = samples.shape[2], samples.shape[4]
            pooled = self._pool(tf.reshape(samples, [-1, size, size, channels]))
        else:
            pooled = self._pool_by_level(features, flat, images, training)
        size, channels = pooled.shape[1], pooled.shape[3]
        pooled = tf.reshape(pooled, [shape[0], shape[1], size, size, channels])
        pooled.set_shape([None, boxes.shape[1], size, size, channels])
        return pooled

    def _pool_at_once(self, features, boxes, images):
        """[M, crop_size, crop_size, C] features of boxes [M, 4], each in one of the `images`."""
        levels = sorted(features)
        box_levels = _levels(boxes, levels[0], levels[-1]) - float(levels[0])
        return multilevel_roi_align(
            features,
            boxes,
            images,
            box_levels,
            self._config_dict['crop_size'] // self._samples_per_bin,
            self._samples_per_bin,
            self._config_dict['sample_offset'],
            levels,
        )

    def _pool(self, samples):
        """Means of a bin's samples, [M, S, S, C] to [M, crop_size, crop_size, C]."""
        if self._samples_per_bin == 1:
            return samples
        return tf.nn.avg_pool2d(samples, self._samples_per_bin, self._samples_per_bin, 'VALID')

    def _pool_by_level(self, features, boxes, images, training):
        """[M, crop_size, crop_size, C] features of boxes [M, 4], each in one of the `images`."""
        levels = sorted(features)
        box_levels = _levels(boxes, levels[0], levels[-1])
        places, pooled = [], []
        for level in levels:
            place = tf.where(box_levels == float(level))[:, 0]
            scaled = tf.gather(boxes, place) / 2 ** int(level)
            places.append(tf.cast(place, tf.int32))
            pooled.append(self._crop(features[level], scaled, tf.gather(images, place), training))
        return tf.cast(tf.dynamic_stitch(places, pooled), features[levels[0]].dtype)

    def _crop(self, feature, boxes, images, training):
        """[M, crop_size, crop_size, C] of boxes [M, 4] in pixels of `feature`."""
        feature = tf.cast(feature, tf.float32)
        # The border is repeated by two pixels: samples may lie up to one pixel beyond the last, and
        # what rounding puts beyond the end `crop_and_resize` would fill with zeros.
        for _ in range(2):
            feature = tf.pad(feature, [[0, 0], [0, 1], [0, 1], [0, 0]], 'SYMMETRIC')
        if training:
            return self._mean_of_crops(feature, boxes, images)
        count, size = tf.shape(boxes)[0], self._config_dict['crop_size']
        samples = self._samples(boxes, tf.shape(feature)[1:3], [0, 0], size - 1)
        at_a_time = _BOXES_AT_A_TIME['GPU' if devices.has_gpu() else 'CPU']
        filling = -count % at_a_time
        pooled = tf.map_fn(
            lambda part: self._pool(tf.image.crop_and_resize(feature, *part, [size, size])),
            (
                tf.reshape(tf.pad(samples, [[0, filling], [0, 0]]), [-1, at_a_time, 4]),
                tf.reshape(tf.pad(images, [[0, filling]]), [-1, at_a_time]),
            ),
            fn_output_signature=tf.float32,
        )
        size //= self._samples_per_bin
        return tf.reshape(pooled, [-1, size, size, feature.shape[-1]])[:count]

    def _mean_of_crops(self, feature, boxes, images):
        """The same without samples side by side, which a GPU is slow to average: a crop for each
        place of a sample in its bin."""
        per_bin, total = self._samples_per_bin, self._config_dict['crop_size']
        size = total // per_bin
        crops = [
            tf.image.crop_and_resize(
                feature,
                self._samples(boxes, tf.shape(feature)[1:3], [y, x], total - per_bin),
                images,
                [size, size],
            )
            for y in range(per_bin)
            for x in range(per_bin)
        ]
        return tf.add_n(crops) / per_bin**2

    def _samples(self, boxes, feature_size, first, step):
        """Sample number `first` (y, x) of each box along its sides, and the one `step` after it,
        over the last index, as `crop_and_resize` wants it."""
        low, high = tf.split(boxes, 2, axis=1)
        pitch = (high - low) / self._config_dict['crop_size']
        first = low + pitch * (tf.constant(first, tf.float32) + self._config_dict['sample_offset'])
        last_index = tf.tile(tf.cast(feature_size - 1, tf.float32), [2])
        return tf.concat([first, first + pitch * step], axis=1) / last_index


def _levels(boxes, lowest, highest):
    """Level of each of the boxes [M, 4] (Lin et al., 2017, Eq. 1), as the Model Garden rounds; as
    float32, because TensorFlow computes with int32 on the host."""
    sides = boxes[:, 2:] - boxes[:, :2]
    octave = tf.math.floordiv(
        tf.math.log(tf.sqrt(tf.maximum(sides[:, 0] * sides[:, 1], 0.0)) / 224.0), tf.math.log(2.0)
    )
    return tf.clip_by_value(octave + 4.0, float(lowest), float(highest))
