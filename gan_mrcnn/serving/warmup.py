# SPDX-License-Identifier: Apache-2.0
"""Warm-up requests, which TF Serving sends to a model before it answers clients.

Without them the first client waits while TensorFlow optimizes the graph and allocates memory. They
are `PredictionLog` records in `assets.extra/tf_serving_warmup_requests`, one per signature.
"""

import pathlib

import numpy as np
import tensorflow as tf

from gan_mrcnn.prediction import signatures
from gan_mrcnn.utils.errors import UserError

FILE_NAME = 'assets.extra/tf_serving_warmup_requests'


def write_requests(saved_model: pathlib.Path, requests: list) -> None:
    """Writes `make_requests` below `saved_model`, the folder of one version."""
    path = saved_model / FILE_NAME
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            writer.write(request.SerializeToString())


def make_requests(input_size: tuple[int, int]) -> list:
    """A `PredictionLog` per signature, with one image of noise each.

    Args:
      input_size: height and width of the images, in pixels.

    Raises:
      UserError: the extra `serving` is not installed.
    """
    prediction_log_pb2 = _protos()
    # Noise, so that there are proposals; a real image could be private.
    pixels = np.random.default_rng(0).integers(0, 256, [*input_size, 3], np.uint8)
    encoded = tf.io.encode_jpeg(pixels).numpy()
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    example = tf.train.Example(features=tf.train.Features(feature={'image/encoded': feature}))
    inputs = {
        'serving_default': ('image_bytes', [encoded]),
        'image_tensor': ('image_tensor', pixels[np.newaxis]),
        'tf_example': ('tf_example', [example.SerializeToString()]),
        'full_masks': ('image_bytes', [encoded]),
    }
    logs = []
    for signature in signatures.SIGNATURES:
        name, value = inputs[signature]
        log = prediction_log_pb2.PredictionLog()
        request = log.predict_log.request
        request.model_spec.signature_name = signature
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        logs.append(log)
    return logs


def _protos():
    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except ImportError as error:
        raise UserError(
            "tensorflow-serving-api is not installed; pip install 'gan-mrcnn[serving]'"
        ) from error
    return prediction_log_pb2
