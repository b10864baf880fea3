# SPDX-License-Identifier: Apache-2.0
"""Export of a run as an ONNX file, for runtimes without TensorFlow.

Writes `OUT/model.onnx` and `OUT/assets`, beside the SavedModels in `OUT/model`. The file holds what
a SavedModel has as `image_tensor`, from pixels of any size to detections, in standard operations of
ONNX alone. The assets are in its metadata, too, so that the file is enough by itself. Before it is
written, ONNX Runtime must answer as TensorFlow does.
"""

import logging
import pathlib
import tempfile

import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

from gan_mrcnn.prediction import onnx_file, predictor
from gan_mrcnn.serving import export as export_lib
from gan_mrcnn.serving import onnx_operations
from gan_mrcnn.utils import disk, files
from gan_mrcnn.utils.errors import UserError

FILE_NAME = 'model.onnx'
# The first whose Resize can be antialiased.
OPSET = 18
_SIGNATURE = 'image_tensor'
# Of an input's sizes, in the file; outputs have the first.
_DIMENSIONS = ('batch', 'height', 'width')
# How far ONNX Runtime may be off: boxes in pixels of the image, scores and masks as they are.
TOLERANCES = {'boxes': 1e-2, 'scores': 1e-4, 'classes': 0, 'masks': 1e-3}


def export(module, card, config, export_dir: str) -> pathlib.Path:
    """Writes the file and its assets, and gives the file's path.

    Args:
      module: `signatures.InferenceModule`.
      card: `model_card.ModelCard`.
      config: of the run.
      export_dir: see above.

    Raises:
      UserError: the file exists, the graph holds what ONNX has not, or ONNX Runtime answers
        otherwise than TensorFlow.
    """
    root = pathlib.Path(export_dir)
    disk.check_folder(root, '--export_dir')
    target = root / FILE_NAME
    if target.exists():
        raise UserError(f'{target} exists; remove it, or give another --export_dir')
    exponent = config.task.gan.rescore_exponent
    if exponent:
        raise UserError(
            f'task.gan.rescore_exponent is {exponent:g}, and an ONNX file cannot ask the box '
            'discriminator; export with --format saved_model'
        )
    print('converting into ONNX; this takes a minute or two', flush=True)
    function, spec = module.function(_SIGNATURE, nms='tensorflow_by_class')
    model = convert(function, spec)
    with tempfile.TemporaryDirectory() as folder:
        for path in map(pathlib.Path, export_lib.write_assets(card, config, pathlib.Path(folder))):
            model.metadata_props.add(key=path.name, value=path.read_text(encoding='utf-8'))
    content = model.SerializeToString()
    check(content, function, spec)
    with disk.errors_named(f'--export_dir {export_dir}'):
        for asset in model.metadata_props:
            files.write_text(root / 'assets' / asset.key, asset.value)
        files.write_bytes(target, content)
    return target


def convert(function, spec: tf.TensorSpec) -> onnx.ModelProto:
    """A `tf.function` of one tensor as an ONNX model.

    Raises:
      UserError: it holds an operation that ONNX has not, nor can be converted into.
    """
    # What is wrong is said in one line below.
    logging.getLogger('tf2onnx').setLevel(logging.CRITICAL)
    model, _ = tf2onnx.convert.from_function(
        function, [spec], opset=OPSET, custom_op_handlers=onnx_operations.HANDLERS
    )
    foreign = sorted({kind for kind in _operations(model.graph) if not onnx.defs.has(kind)})
    if foreign:
        raise UserError(
            f'the graph holds {", ".join(foreign)}, which ONNX does not have; export with '
            '--format saved_model'
        )
    for value in model.graph.input:
        _name_dimensions(value, _DIMENSIONS)
    for value in model.graph.output:
        _name_dimensions(value, _DIMENSIONS[:1])
    return model


def _operations(graph):
    """Name of every operation of a graph and those in it."""
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            yield from _operations(attribute.g)


def _name_dimensions(value, names):
    for dimension, name in zip(value.type.tensor_type.shape.dim, names):
        dimension.dim_param = name


def check(content: bytes, function, spec: tf.TensorSpec) -> None:
    """Raises UserError where ONNX Runtime detects otherwise than TensorFlow.

    Two images of noise in coarse patches are shown: one that is scaled up, and one that is scaled
    down, which goes another way.

    Args:
      content: of the file.
      function: what it was converted from.
      spec: of its input.
    """
    network = onnx_file.load(content, FILE_NAME)
    in_tensorflow = predictor.Predictor(
        {_SIGNATURE: function.get_concrete_function(spec)}, network.card
    )
    height, width = network.card.input_size
    coarse = np.random.default_rng(0).integers(0, 256, [1, 12, 16, 3], np.uint8)
    for size in ((height // 2, width // 2), (2 * height, 2 * width)):
        pixels = tf.cast(tf.image.resize(coarse, size), tf.uint8).numpy()
        (found,), (wanted,) = (one.detect_pixels(pixels) for one in (network, in_tensorflow))
        if len(found.scores) != len(wanted.scores):
            raise UserError(
                f'ONNX Runtime finds {len(found.scores)} objects in a test image, TensorFlow '
                f'{len(wanted.scores)}; export with --format saved_model'
            )
        for name, tolerance in TOLERANCES.items():
            errors = np.abs(getattr(found, name) - getattr(wanted, name))
            if not np.all(errors <= tolerance):
                raise UserError(
                    f'{name} from ONNX Runtime differ from those of TensorFlow by '
                    f'{errors.max():.2g} in a test image; export with --format saved_model'
                )
