# SPDX-License-Identifier: Apache-2.0
"""What gan-mrcnn export wrote, whichever of its formats: a SavedModel or an ONNX file."""

import pathlib
from typing import Optional, Union

from gan_mrcnn.prediction import predictor, tta
from gan_mrcnn.utils import cli

_ONNX = '.onnx'


def is_onnx(path: str) -> bool:
    """Whether a path is that of an ONNX file, by its name."""
    return path.endswith(_ONNX)


def load(
    path: str, augmentation: Optional[str] = None
) -> Union[predictor.Predictor, predictor.PixelPredictor]:
    """A predictor.

    Args:
      path: of an ONNX file, or a folder, see `predictor.find_version`.
      augmentation: a key of `tta.ORIENTATIONS`; None for images as they are.

    Raises:
      UserError: there is none, it is damaged, another program wrote it, or it does not go with the
        augmentation.
    """
    if is_onnx(path):
        cli.check_extra('onnx', 'onnxruntime')
        from gan_mrcnn.prediction import onnx_file

        network = onnx_file.load(path, path)
    else:
        network = predictor.load_saved_model(path)
    return tta.augment_saved_model(network, augmentation) if augmentation else network


def assets_of(path: str) -> pathlib.Path:
    """Folder of an export's assets."""
    parent = pathlib.Path(path).parent if is_onnx(path) else predictor.find_version(path)
    return parent / 'assets'


def root_of(path: str) -> pathlib.Path:
    """The folder `OUT` that was given as --export_dir."""
    if is_onnx(path):
        return pathlib.Path(path).resolve().parent
    return predictor.find_version(path).resolve().parents[1]
