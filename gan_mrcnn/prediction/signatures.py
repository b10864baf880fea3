# SPDX-License-Identifier: Apache-2.0
"""The generator from encoded images to detections in the images' own pixels: what is exported.

Decoding, scaling and padding are the evaluation's, inside the graph, so that a client sends a file
as it is. An export is traced with TensorFlow's own NMS: a server has stock operations only.

A bad image ends its request with an error that names it, by its number in the batch. The errors of
TensorFlow's own decoders name no image: they run inside a data set that drops errors, and an empty
result is named here.

Shapes: B images of H x W pixels, N detections per image at most, S side of a predicted mask (28).
"""

import functools
from collections.abc import Sequence
from typing import Callable, Optional

import tensorflow as tf

from gan_mrcnn.data import input_pipeline
from gan_mrcnn.metrics import predictions
from gan_mrcnn.modeling import generator as generator_lib
from gan_mrcnn.modeling import rescoring

# The largest image that is decoded, in pixels: 200 MB. A few kilobytes of PNG can claim gigabytes.
MAX_PIXELS = 1 << 26
_JPEG, _PNG = b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n'
# A PNG's width and height stand behind the signature, a length and the word IHDR.
_PNG_SIZE_AT = 16
# Signatures by name, the default one first.
SIGNATURES = ('serving_default', 'image_tensor', 'tf_example', 'full_masks')


class InferenceModule(tf.Module):
    """The generator behind one function per signature.

    Only its variables are tracked: saving the Keras model would trace every layer, also for
    training.
    """

    def __init__(
        self,
        model: generator_lib.Generator,
        task_config,
        score_threshold: float,
        box_discriminator: Optional[tf.keras.Model] = None,
    ):
        """Makes a module without tracing anything.

        Args:
          model: with its weights.
          task_config: `configs.GanMaskRCNNTask`; says how images are scaled.
          score_threshold: detections from this score on are drawn into the label map.
          box_discriminator: with its weights, where `gan.rescore_exponent` is above 0.
        """
        super().__init__()
        self.generator_variables = list(model.variables)
        if box_discriminator is not None:
            self.discriminator_variables = list(box_discriminator.variables)
        parser = task_config.validation_data.parser
        resize = input_pipeline.Parser(task_config.model, parser, task_config.seed).resize
        self._resize = lambda image: resize(image, parser.test_short_side)
        self._detect = functools.partial(
            rescoring.detect,
            model,
            box_discriminator=box_discriminator,
            exponent=task_config.gan.rescore_exponent,
        )
        self._size = task_config.model.input_size
        self._score_threshold = score_threshold

    def signatures(
        self, nms: str = 'auto', names: Sequence[str] = SIGNATURES
    ) -> dict[str, Callable]:
        """A traced function of each of the `names`, some of `SIGNATURES`; see `function`."""
        traced = (self.function(name, nms) for name in names)
        return {
            name: function.get_concrete_function(spec)
            for name, (function, spec) in zip(names, traced)
        }

    def function(self, name: str, nms: str = 'auto') -> tuple[Callable, tf.TensorSpec]:
        """One of `SIGNATURES`, not traced yet, and what it takes.

        `nms` is the `implementation` of `custom_ops.nms`, here and in the functions below; with
        'tensorflow', stock operations are all that the graphs hold.
        """
        strings = tf.TensorSpec([None], tf.string, name='image_bytes')
        pixels = tf.TensorSpec([None, None, None, 3], tf.uint8, name='image_tensor')
        function, spec = {
            'serving_default': (self.detect_encoded, strings),
            'image_tensor': (self.detect_pixels, pixels),
            'tf_example': (
                self.detect_examples,
                tf.TensorSpec([None], tf.string, name='tf_example'),
            ),
            'full_masks': (self.detect_with_label_map, strings),
        }[name]
        return tf.function(functools.partial(function, nms=nms)), spec

    def detect_encoded(self, image_bytes: tf.Tensor, nms: str = 'auto') -> dict[str, tf.Tensor]:
        """Detections in JPEG or PNG files, [B] strings, of any sizes.

        Returns:
          `detection_boxes` float32 [B, N, 4], [y1, x1, y2, x2] in pixels of the image as it is
          stored (EXIF does not turn it); `detection_scores` float32 [B, N], best first;
          `detection_classes` int32 [B, N], 1 for the first; `num_detections` int32 [B];
          `detection_masks` float32 [B, N, S, S], probabilities inside the boxes. Rows behind the
          detections are zero.
        """
        with tf.control_dependencies([_assert_any(image_bytes)]):
            numbers = tf.range(tf.shape(image_bytes)[0])
        images, info = tf.map_fn(
            lambda one: self._resize(decode(one[1], one[0])),
            (numbers, image_bytes),
            fn_output_signature=(
                tf.TensorSpec(self._size, tf.float32),
                tf.TensorSpec([4, 2], tf.float32),
            ),
        )
        return self._run(images, info, nms)

    def detect_pixels(self, image_tensor: tf.Tensor, nms: str = 'auto') -> dict[str, tf.Tensor]:
        """The same for uint8 [B, H, W, 3], RGB."""
        with tf.control_dependencies([_assert_any(image_tensor)]):
            image_tensor = tf.identity(image_tensor)
        images, info = tf.map_fn(
            self._resize,
            image_tensor,
            fn_output_signature=(
                tf.TensorSpec(self._size, tf.float32),
                tf.TensorSpec([4, 2], tf.float32),
            ),
        )
        return self._run(images, info, nms)

    def detect_examples(self, tf_example: tf.Tensor, nms: str = 'auto') -> dict[str, tf.Tensor]:
        """The same for serialized `tf.train.Example`s [B] with the file in `image/encoded`."""
        parsed = tf.io.parse_example(
            tf_example, {'image/encoded': tf.io.FixedLenFeature([], tf.string)}
        )
        return self.detect_encoded(parsed['image/encoded'], nms)

    def detect_with_label_map(
        self, image_bytes: tf.Tensor, nms: str = 'auto'
    ) -> dict[str, tf.Tensor]:
        """The same for a single file, with its masks at the image's own size.

        Returns:
          As above without `detection_masks`, and `label_map` int32 [1, H, W]: the number of the
          detection, 1 for the first, 0 where there is none. Of two on one pixel the better one has
          it. Detections below the score threshold are not in it.
        """
        single = tf.debugging.Assert(
            tf.equal(tf.shape(image_bytes)[0], 1), ['full_masks takes one image a request']
        )
        with tf.control_dependencies([single]):
            encoded = image_bytes[0]
        pixels = decode(encoded, 0)
        image, info = self._resize(pixels)
        outputs = self._run(image[tf.newaxis], info[tf.newaxis], nms)
        drawn = tf.reduce_sum(
            tf.cast(outputs['detection_scores'][0] >= self._score_threshold, tf.int32)
        )
        drawn = tf.minimum(drawn, outputs['num_detections'][0])
        labels = label_map(
            outputs['detection_boxes'][0, :drawn],
            outputs.pop('detection_masks')[0, :drawn],
            tf.shape(pixels)[:2],
        )
        return {**outputs, 'label_map': labels[tf.newaxis]}

    def _run(self, images, info, nms):
        found = self._detect(images, info[:, 1], nms=nms)
        counts, scores = found['num_detections'], found['detection_scores']
        exists = tf.sequence_mask(counts, scores.shape[1])
        scale = tf.tile(info[:, 2], [1, 2])[:, tf.newaxis]
        return {
            'detection_boxes': found['detection_boxes'] / scale,
            'detection_scores': scores,
            'detection_classes': tf.where(exists, found['detection_classes'], 0),
            'num_detections': counts,
            'detection_masks': found['detection_masks'],
        }


def _assert_any(images):
    return tf.debugging.Assert(
        tf.reduce_all(tf.shape(images) > 0), ['the request holds no image, or one without pixels']
    )


def decode(encoded: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """Pixels of a JPEG or PNG, [H, W, 3] uint8 RGB.

    Grey is spread, transparency dropped, of 16 bits the upper 8 are kept, and an animated PNG gives
    its first frame.

    Args:
      encoded: scalar string.
      number: of the image in the request, for errors.

    Raises (when it runs): InvalidArgumentError that names the image and what is wrong with it.
    """
    length = tf.strings.length(encoded)
    size = _or_else(_read_size, encoded, tf.zeros([2], tf.int32))
    height, width = size[0], size[1]
    known = tf.debugging.Assert(
        tf.reduce_all(size > 0),
        ['image', number, 'of the request is no JPEG or PNG:', length, 'bytes'],
    )
    fits = tf.debugging.Assert(
        tf.cast(height, tf.int64) * tf.cast(width, tf.int64) <= MAX_PIXELS,
        ['image', number, f'of the request has more than {MAX_PIXELS} pixels:', height, width],
    )
    with tf.control_dependencies([known, fits]):
        pixels = _or_else(_decode_pixels, encoded, tf.zeros([0, 0, 3], tf.uint8))
    whole = tf.debugging.Assert(
        tf.size(pixels) > 0,
        ['image', number, 'of the request is damaged or cut short:', length, 'bytes'],
    )
    with tf.control_dependencies([whole]):
        return tf.ensure_shape(pixels, [None, None, 3])


def _or_else(function, encoded, otherwise):
    """`function(encoded)`, or `otherwise` where that fails."""
    options = tf.data.Options()
    # For one element, optimizing takes longer than decoding.
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    results = tf.data.Dataset.from_tensors(encoded).map(function).ignore_errors()
    results = results.with_options(options)
    return results.reduce(otherwise, lambda _, result: result)


def _decode_pixels(encoded):
    pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(pixels, [None, None, 3])


def _read_size(encoded):
    """Height and width, from the file's header; zeros where it is neither JPEG nor PNG."""

    def of_png():
        size = tf.strings.substr(encoded, _PNG_SIZE_AT, 8)
        return tf.reverse(tf.io.decode_raw(size, tf.int32, little_endian=False), [0])

    def starts_with(signature):
        return tf.equal(tf.strings.substr(encoded, 0, len(signature)), signature)

    return tf.ensure_shape(
        tf.case(
            [
                (starts_with(_PNG), of_png),
                (starts_with(_JPEG), lambda: tf.io.extract_jpeg_shape(encoded)[:2]),
            ],
            default=lambda: tf.zeros([2], tf.int32),
        ),
        [2],
    )


def label_map(boxes: tf.Tensor, masks: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Masks at the image's size, as one int32 [H, W]; see `detect_with_label_map`.

    `metrics.predictions.paste_mask` in TensorFlow, for a server runs no Python; the same pixels.

    Args:
      boxes: [K, 4], [y1, x1, y2, x2] in pixels, best first.
      masks: [K, S, S] probabilities.
      size: [2] int32, H and W.
    """
    boxes, masks = tf.cast(boxes, tf.float64), tf.cast(masks, tf.float64)

    def paste(labels, row):
        y1, x1, y2, x2 = tf.unstack(boxes[row])
        rows, inside_rows = _stretched(y1, y2, size[0], masks.shape[1])
        columns, inside_columns = _stretched(x1, x2, size[1], masks.shape[2])
        inside = inside_rows[:, tf.newaxis] & inside_columns
        pasted = tf.linalg.matmul(rows @ masks[row], columns, transpose_b=True) >= 0.5
        return tf.where(pasted & inside, row + 1, labels)

    worst_first = tf.range(tf.shape(boxes)[0] - 1, -1, -1)
    return tf.foldl(paste, worst_first, tf.zeros(size, tf.int32))


def _stretched(low, high, length, num_cells):
    """Weights [length, num_cells] of cells stretched over [low, high), and which of the pixels the
    box touches."""
    pixels = tf.range(length)
    inside = (pixels >= tf.cast(tf.floor(low), tf.int32)) & (
        pixels < tf.cast(tf.math.ceil(high), tf.int32)
    )
    centres = tf.cast(pixels, tf.float64) + 0.5
    return predictions.tent_weights(centres, low, high, num_cells), inside & (high > low)
