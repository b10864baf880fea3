# SPDX-License-Identifier: Apache-2.0
"""One way to call the network, whether it is a SavedModel or a run's checkpoint."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple, Optional

import numpy as np
import tensorflow as tf

from gan_mrcnn.data.records import records
from gan_mrcnn.metrics import collector
from gan_mrcnn.prediction import model_card, signatures
from gan_mrcnn.utils import paths, progress_bar
from gan_mrcnn.utils.errors import UserError

# Those that `Predictor` calls.
SIGNATURES = ('serving_default', 'image_tensor')


class Detections(NamedTuple):
    """Detections in one image, best first.

    boxes: [N, 4] float32, [y1, x1, y2, x2] in pixels of the image.
    scores: [N] float32.
    classes: [N] int32, 1 for the first.
    masks: [N, S, S] float32, probabilities inside the boxes.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: np.ndarray


class Predictor:
    """Encoded images to `Detections`."""

    def __init__(self, functions: Mapping[str, Callable], card: model_card.ModelCard, owner=None):
        """Wraps either of the two.

        Args:
          functions: as `InferenceModule.signatures` or a loaded SavedModel has them, by name.
          card: the model.
          owner: what holds the variables of `functions`; they live as long as it does.
        """
        self._functions = functions
        self._owner = owner
        self.card = card

    def detect(self, images: Sequence[bytes]) -> list[Detections]:
        """Detections in JPEG or PNG files of any sizes, one batch.

        Raises:
          UserError: one of them cannot be decoded; the message has its number in the batch.
        """
        return self._call('serving_default', image_bytes=tf.constant(images))

    def detect_pixels(self, images: np.ndarray) -> list[Detections]:
        """The same for pixels, uint8 [B, H, W, 3]."""
        return self._call('image_tensor', image_tensor=tf.constant(images))

    @property
    def most_detections(self) -> int:
        """How many detections an image can have."""
        shapes = self._functions['image_tensor'].structured_outputs
        return int(shapes['detection_scores'].shape[1])

    def _call(self, signature, **inputs):
        try:
            outputs = self._functions[signature](**inputs)
        except tf.errors.InvalidArgumentError as error:
            raise UserError(reason(error)) from error
        return split_batch({name: value.numpy() for name, value in outputs.items()})


class PixelPredictor:
    """The same for what takes pixels alone: files are decoded first, as the signatures do it."""

    def __init__(self, card: model_card.ModelCard):
        self.card = card
        # In a graph, whose errors name the image.
        self._decode = tf.function(
            signatures.decode,
            input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32)],
        )

    def detect(self, images: Sequence[bytes]) -> list[Detections]:
        """As `Predictor.detect`; image by image, since their sizes differ."""
        found = []
        for number, encoded in enumerate(images):
            try:
                pixels = self._decode(tf.constant(encoded), tf.constant(number))
            except tf.errors.InvalidArgumentError as error:
                raise UserError(reason(error)) from error
            found += self.detect_pixels(pixels.numpy()[np.newaxis])
        return found

    def detect_pixels(self, images: np.ndarray) -> list[Detections]:
        """As `Predictor.detect_pixels`."""
        raise NotImplementedError


def split_batch(outputs: Mapping[str, np.ndarray]) -> list[Detections]:
    """The outputs of a batch, without the padding behind the detections, image by image."""
    return [
        Detections(*(outputs[f'detection_{name}'][i, :count] for name in Detections._fields))
        for i, count in enumerate(outputs['num_detections'])
    ]


def reason(error: tf.errors.InvalidArgumentError) -> str:
    """What the graph's assertion says, without TensorFlow's frame around it."""
    lines = str(error).splitlines()
    said = [line for line in lines if 'assertion failed' in line] or lines
    return said[0].split('assertion failed: ')[-1].translate(str.maketrans('', '', '[]')).strip()


def find_version(path: str) -> pathlib.Path:
    """Folder of a SavedModel: `OUT/model/1`, or the newest one of `OUT/model`.

    Raises:
      UserError: there is none.
    """
    folder = _newest_version(pathlib.Path(path))
    if not os.path.exists(path):
        raise UserError(f'{path} does not exist; give the folder of a model')
    if folder is None:
        raise UserError(f'{path} holds no SavedModel; gan-mrcnn export writes one')
    return folder


def check_no_saved_model(folder: str, flag: str) -> None:
    """Raises UserError where `find_version` would find one."""
    if os.path.isdir(folder) and _newest_version(pathlib.Path(folder)):
        raise UserError(f'{flag} {folder} holds an export; give another folder')


def _newest_version(folder: pathlib.Path) -> Optional[pathlib.Path]:
    versions = [child for child in folder.glob('*') if child.name.isdecimal() and child.is_dir()]
    if versions and not (folder / 'saved_model.pb').is_file():
        folder = max(versions, key=lambda child: int(child.name))
    return folder if (folder / 'saved_model.pb').is_file() else None


def load_saved_model(path: str) -> Predictor:
    """A SavedModel that `export` wrote, see `find_version`.

    Its graph is run: it can do whatever TensorFlow can, such as reading and writing files.

    Raises:
      UserError: there is none, it is damaged, or another program wrote it.
    """
    folder = find_version(path)
    card = model_card.read(folder / 'assets')
    try:
        with paths.plain_folder(folder) as plain:
            loaded = tf.saved_model.load(plain)
    except Exception as error:  # TensorFlow raises anything where a graph is damaged.
        reason = ' '.join(str(error).split())[:200] or type(error).__name__
        raise UserError(f'{folder} is damaged ({reason}); export the model again') from error
    missing = [name for name in SIGNATURES if name not in getattr(loaded, 'signatures', ())]
    if missing:
        raise UserError(
            f'{folder} has no signature {missing[0]}; give a model that gan-mrcnn export wrote'
        )
    return Predictor(loaded.signatures, card, loaded)


def predict_records(
    predictor: Predictor, record_set: records.RecordSet, batch_size: int
) -> list[dict[str, Any]]:
    """COCO results of every image of a split, as the evaluation of a checkpoint makes them."""
    keys = {'image/encoded': tf.string, 'image/height': tf.int64, 'image/width': tf.int64}
    keys['image/source_id'] = tf.string
    features = {key: tf.io.FixedLenFeature([], dtype) for key, dtype in keys.items()}
    files = records.files_of(record_set.input_path)
    batches = tf.data.TFRecordDataset(files).batch(batch_size)
    with (
        progress_bar.Bar(total=record_set.num_examples, desc='evaluate', unit='image') as bar,
        collector.Collector(bar.update) as found,
    ):
        for serialized in batches:
            batch = tf.io.parse_example(serialized, features)
            batch = [batch[key].numpy() for key in keys]
            for detections, height, width, image_id in zip(predictor.detect(batch[0]), *batch[1:]):
                size = [height, width]
                found.add(int(image_id), *detections, [size, size, [1, 1], [0, 0]])
        return found.results()
