# SPDX-License-Identifier: Apache-2.0
"""A client of TF Serving, over REST or gRPC.

REST needs neither TensorFlow nor anything of the model; gRPC needs the extra `serving`. Masks
arrive as 28x28 probabilities and are pasted here: at the image's size, a hundred of them would be
40 MB a response.
"""

import base64
import http.client
import json
import os
import pathlib
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np

from gan_mrcnn.data.readers import images
from gan_mrcnn.metrics import predictions
from gan_mrcnn.utils import disk, visualization
from gan_mrcnn.utils.errors import UserError

OUTPUTS = {
    'detection_boxes': np.float32,
    'detection_scores': np.float32,
    'detection_classes': np.int32,
    'num_detections': np.int32,
    'detection_masks': np.float32,
}
_URL = re.compile(
    r'(?P<scheme>https?|grpc)://(?P<host>[^/]+)(?P<v1>/v1/models)?/(?P<model>[^/:]+)'
    r'(/versions/(?P<version>\d+)|/labels/(?P<label>\w+))?(:predict)?/?'
)
_NOT_AS_OURS = 'does not answer as this model would'
# gRPC's own limit is 4 MB, less than one large image.
_MOST_BYTES = 256 << 20


class Address(NamedTuple):
    """Address of a model. `version` and `label` are both None for the newest."""

    scheme: str
    host: str
    model: str
    version: Optional[int] = None
    label: Optional[str] = None


def parse_url(url: str) -> Address:
    """Parses `http://HOST:8501/v1/models/NAME` (REST) or `grpc://HOST:8500/NAME`.

    `/versions/N` behind either chooses a version, `/labels/NAME` the one that has that label.

    Raises:
      UserError: it has neither form.
    """
    match = _URL.fullmatch(url)
    if not match or (match['scheme'] != 'grpc') != bool(match['v1']):
        raise UserError(
            f'--url {url} is neither http://HOST:8501/v1/models/NAME nor grpc://HOST:8500/NAME'
        )
    version = match['version'] and int(match['version'])
    return Address(match['scheme'], match['host'], match['model'], version, match['label'])


def rest_path(address: Address) -> str:
    """Path of a REST request to predict."""
    chosen = ''
    if address.version is not None:
        chosen = f'/versions/{address.version}'
    elif address.label is not None:
        chosen = f'/labels/{address.label}'
    return f'/v1/models/{urllib.parse.quote(address.model, safe="%")}{chosen}:predict'


def rest_request(encoded: bytes) -> bytes:
    """Body of a REST request for one JPEG or PNG."""
    image = {'image_bytes': {'b64': base64.b64encode(encoded).decode('ascii')}}
    return json.dumps({'signature_name': 'serving_default', 'instances': [image]}).encode()


def read_rest_response(body: bytes) -> dict[str, np.ndarray]:
    """Outputs of the one image, without the dimension of the batch."""
    (answer,) = json.loads(body)['predictions']
    return check_outputs({name: np.array(answer[name], dtype) for name, dtype in OUTPUTS.items()})


def check_outputs(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same outputs; ValueError where they are not of one image, as this network's are."""
    shapes = [outputs[name].shape for name in OUTPUTS]
    boxes, scores, classes, count, masks = shapes
    number = boxes[:1]
    if (
        len(number) != 1
        or (boxes, scores, classes, count) != ((*number, 4), number, number, ())
        or len(masks) != 3
        or 0 in masks[1:]
        or masks[:1] != number
    ):
        raise ValueError(f'the outputs have the shapes {", ".join(map(str, shapes))}')
    if not 0 <= outputs['num_detections'] <= number[0]:
        raise ValueError(f'{outputs["num_detections"]} detections in {number[0]} rows')
    if not all(np.isfinite(outputs[name]).all() for name in OUTPUTS):
        raise ValueError('a number is not finite')
    return outputs


def grpc_request(encoded: bytes, address: Address):
    """`PredictRequest` for one JPEG or PNG."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = address.model
    request.model_spec.signature_name = 'serving_default'
    if address.version is not None:
        request.model_spec.version.value = address.version
    elif address.label is not None:
        request.model_spec.version_label = address.label
    request.inputs['image_bytes'].CopyFrom(tf.make_tensor_proto([encoded]))
    return request


def read_grpc_response(response) -> dict[str, np.ndarray]:
    """As `read_rest_response`."""
    import tensorflow as tf

    return check_outputs({name: tf.make_ndarray(response.outputs[name])[0] for name in OUTPUTS})


def ask(address: Address, encoded: bytes, timeout: float) -> dict[str, np.ndarray]:
    """Detections in one JPEG or PNG: `OUTPUTS` without the dimension of the batch.

    Shapes and units are those of `prediction.signatures.InferenceModule.detect_encoded`.

    Raises:
      UserError: no server answers, or it answers with an error, which the message quotes.
    """
    if address.scheme == 'grpc':
        return _ask_grpc(address, encoded, timeout)
    url = f'{address.scheme}://{address.host}{rest_path(address)}'
    headers = {'Content-Type': 'application/json'}
    try:
        request = urllib.request.Request(url, rest_request(encoded), headers)
    except ValueError as error:
        raise UserError(f'{url} is no address ({error}); check --url') from error
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return read_rest_response(response.read())
    except urllib.error.HTTPError as error:
        raise UserError(f'{url} answers {error.code}: {_error_text(error.read())}') from error
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f'{url} does not answer ({error}); is the server up?') from error
    except (LookupError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f'{url} {_NOT_AS_OURS} ({_reason(error)}); check --url') from error


def _reason(error: Exception) -> str:
    return ' '.join(str(error).split())[:200] or type(error).__name__


def _error_text(body):
    try:
        text = json.loads(body)['error']
    except (ValueError, LookupError, TypeError, RecursionError):
        text = body.decode('utf-8', 'replace')
    text = text if isinstance(text, str) else str(text)
    return ' '.join(text.split())[:500] or 'nothing'


def _ask_grpc(address, encoded, timeout):
    try:
        import grpc
        from tensorflow_serving.apis import prediction_service_pb2_grpc
    except ImportError as error:
        raise UserError(
            "gRPC needs tensorflow-serving-api; pip install 'gan-mrcnn[serving]', or use REST"
        ) from error
    limits = [(f'grpc.max_{way}_message_length', _MOST_BYTES) for way in ('send', 'receive')]
    with grpc.insecure_channel(address.host, options=limits) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            return read_grpc_response(stub.Predict(grpc_request(encoded, address), timeout=timeout))
        except grpc.RpcError as error:
            details = ' '.join((error.details() or '').split())[:500]
            raise UserError(
                f'grpc://{address.host}/{address.model} answers {error.code().name}: {details}'
            ) from error
        except (LookupError, ValueError, TypeError) as error:
            raise UserError(
                f'grpc://{address.host}/{address.model} {_NOT_AS_OURS} ({_reason(error)}); check '
                '--url'
            ) from error


def encode(path: pathlib.Path) -> tuple[np.ndarray, bytes]:
    """Pixels [H, W, 3] of an image as it is displayed, and a file that a server decodes to them.

    A JPEG or PNG is sent as it is, unless EXIF says that it is rotated: a server ignores EXIF.
    """
    image = images.read_image(path)
    return image.pixels, image.encoded or images.as_png(image.pixels)


def draw(pixels: np.ndarray, outputs: dict[str, np.ndarray], score_threshold: float) -> np.ndarray:
    """The image with its detections, [H, W, 3] uint8 RGB."""
    shown = _shown(outputs, score_threshold)
    masks = [
        predictions.paste_mask(mask, box, *pixels.shape[:2])
        for mask, box in zip(outputs['detection_masks'][:shown], outputs['detection_boxes'])
    ]
    return visualization.draw_instances(
        pixels, np.array(masks, bool), scores=outputs['detection_scores'][:shown]
    )


def _shown(outputs, score_threshold):
    """How many to show; the best come first."""
    scores = outputs['detection_scores'][: int(outputs['num_detections'])]
    return int(np.sum(scores >= score_threshold))


def run(
    paths: Sequence[pathlib.Path],
    url: str,
    out: pathlib.Path,
    class_names: Optional[pathlib.Path],
    score_threshold: float,
    timeout: float,
) -> None:
    """Sends each file, prints its detections and writes an overlay into `out`.

    Args:
      paths: of images.
      url: see `parse_url`.
      out: folder of the overlays.
      class_names: the model's `class_names.txt`; None prints numbers.
      score_threshold: detections below it are not shown.
      timeout: seconds.

    Raises:
      UserError: a file cannot be read, or the server does not answer as it should.
    """
    address = parse_url(url)
    names = []
    if class_names:
        try:
            names = class_names.read_text(encoding='utf-8-sig').splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f'--class_names {class_names} cannot be read ({error})') from error
    targets = _targets(paths, out)
    disk.check_folder(out, '--out')
    for path, target in targets.items():
        pixels, encoded = encode(path)
        try:
            outputs = ask(address, encoded, timeout)
        except UserError as error:
            raise UserError(f'{path}: {error}') from error
        with disk.errors_named(f'--out {out}'):
            visualization.save_png(target, draw(pixels, outputs, score_threshold))
        print(f'{path}: {target}')
        for i in range(_shown(outputs, score_threshold)):
            number = int(outputs['detection_classes'][i])
            name = names[number - 1] if 0 < number <= len(names) else f'class {number}'
            box = ', '.join(f'{value:.1f}' for value in outputs['detection_boxes'][i])
            print(f'  {name} {outputs["detection_scores"][i]:.2f} [{box}]')


def _targets(paths, out) -> dict[pathlib.Path, pathlib.Path]:
    """Where the overlay of each file goes; a file that is named twice is asked for once.

    Raises:
      UserError: two files would have the same overlay, or it would replace a file that is given.
    """
    given = {os.path.realpath(path): path for path in reversed(paths)}
    targets: dict[pathlib.Path, pathlib.Path] = {}
    for path in reversed(given.values()):
        target = out / f'{path.stem}.detections.png'
        others = [other for other, taken in targets.items() if taken == target]
        if others:
            raise UserError(
                f'{others[0]} and {path} would both become {target}; give each another --out'
            )
        if os.path.realpath(target) in given:
            raise UserError(
                f'the detections of {path} would replace {target}, which is to be sent as well; '
                'leave it out, or give another --out'
            )
        targets[path] = target
    return targets
