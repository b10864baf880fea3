# SPDX-License-Identifier: Apache-2.0
"""An ONNX file that `serving.onnx_export` wrote, called as a SavedModel is.

Needs the extra onnx, of which ONNX Runtime runs the network.
"""

import json
from typing import Union

import numpy as np
import onnxruntime

from gan_mrcnn.prediction import model_card
from gan_mrcnn.prediction import predictor as predictor_lib
from gan_mrcnn.utils.errors import UserError

# Its log for errors only, which come as exceptions as well.
_FATAL = 4


class OnnxPredictor(predictor_lib.PixelPredictor):
    """A network in ONNX Runtime, on the CPU."""

    def __init__(self, session: onnxruntime.InferenceSession, card: model_card.ModelCard):
        super().__init__(card)
        self._session = session
        self._outputs = {one.name: one for one in session.get_outputs()}

    def detect_pixels(self, images: np.ndarray) -> list[predictor_lib.Detections]:
        """As `Predictor.detect_pixels`."""
        values = self._session.run(list(self._outputs), {'image_tensor': images})
        return predictor_lib.split_batch(dict(zip(self._outputs, values)))

    @property
    def most_detections(self) -> int:
        """As `Predictor.most_detections`."""
        return self._outputs['detection_scores'].shape[1]


def load(model: Union[str, bytes], name: str) -> OnnxPredictor:
    """Opens a file.

    Args:
      model: its path, or its content.
      name: what messages call it.

    Raises:
      UserError: it is missing or damaged, or another program wrote it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    try:
        session = onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # ONNX Runtime's exceptions have no common class.
        reason = ' '.join(str(error).split())[:200]
        raise UserError(f'{name} is missing or damaged ({reason}); export it again') from error
    try:
        values = json.loads(session.get_modelmeta().custom_metadata_map[model_card.FILE_NAME])
    except (KeyError, ValueError) as error:
        raise UserError(
            f'{name} has no model card; give a file that gan-mrcnn export --format onnx wrote'
        ) from error
    return OnnxPredictor(session, model_card.from_values(values, name))
