# SPDX-License-Identifier: Apache-2.0
"""Puts ImageNet weights into the backbone (the paper starts from an ImageNet-pretrained ResNet).

Two sources: a ResNet in torchvision's names and layouts (.npz, .safetensors, and .pth where torch
is installed), every tensor accounted for by name before anything is written, and a checkpoint of
the Model Garden's image classification. Weights in torchvision's layout want a backbone with
padding 'symmetric' and epsilon 1e-5; only then C2-C5 are the source network's.
"""

import dataclasses
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
import safetensors
import tensorflow as tf
from official.vision.modeling.backbones import resnet
from official.vision.modeling.layers import nn_blocks

from gan_mrcnn.modeling import backbone as backbone_lib
from gan_mrcnn.utils import paths
from gan_mrcnn.utils.errors import UserError

# safetensors' names of the types that are read. Its own reader for NumPy has bfloat16 in some
# versions only.
_SAFETENSORS_DTYPES = {
    'F64': np.float64,
    'F32': np.float32,
    'F16': np.float16,
    'BF16': tf.bfloat16.as_numpy_dtype,
    'I64': np.int64,
    'I32': np.int32,
}
# What NumPy, zipfile and safetensors raise over a damaged file. MemoryError: of a tensor of
# terabytes. RuntimeError: its bytes say encrypted or packed in another way.
_DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, OverflowError),
    *(MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error, safetensors.SafetensorError),
)
# All tensors of a .npz, unpacked: a megabyte can be a gigabyte of zeros. ResNet-101 is 180 MB.
_MOST_BYTES = 1 << 30
_BATCH_COUNTER = '.num_batches_tracked'


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What was loaded; `str()` is one line for the log.

    source: the path it came from.
    num_tensors, num_parameters: how much was written into the backbone from it.
    ignored: names in the file that have no place in a backbone.
    """

    source: str
    num_tensors: int
    num_parameters: int
    ignored: tuple[str, ...] = ()

    def __str__(self):
        line = (
            f'backbone initialized from {self.source}: {self.num_tensors} tensors, '
            f'{self.num_parameters:,} parameters'
        )
        counters = sum(name.endswith(_BATCH_COUNTER) for name in self.ignored)
        ignored = [name for name in self.ignored if not name.endswith(_BATCH_COUNTER)]
        ignored += [f'{counters} x *{_BATCH_COUNTER}'] if counters else []
        return line + (f'; ignored {", ".join(ignored)}' if ignored else '')


def load_backbone(backbone: tf.keras.Model, path: str) -> LoadReport:
    """Loads `path` by its form: .npz, .safetensors, .pth, or a TensorFlow checkpoint.

    Args:
      backbone: from `build_backbone`; written only if all of a torchvision-layout file fits.
      path: the file, or the checkpoint's folder or prefix.

    Returns:
      What was loaded.

    Raises:
      UserError: not there, of another form, or not of this ResNet.
    """
    if os.path.isfile(path):
        return load_torchvision_resnet(backbone, path)
    if os.path.isdir(path) or os.path.isfile(f'{path}.index'):
        return load_model_garden_checkpoint(backbone, path)
    raise UserError(
        f'backbone weights {path}: no such file, folder or checkpoint prefix; '
        f'expected {", ".join(_READERS)} or a TensorFlow checkpoint'
    )


def load_torchvision_resnet(backbone: tf.keras.Model, path: str) -> LoadReport:
    """Loads a file with torchvision's ResNet names, OIHW kernels, any float type.

    The classifier `fc.*` and BatchNorm's `num_batches_tracked` are ignored and reported. The
    projection that torchvision's ResNet-18 and -34 lack becomes an identity.

    Args:
      backbone: from `build_backbone`; untouched if anything in the file does not fit.
      path: .npz, .safetensors or .pth.

    Returns:
      What was loaded.

    Raises:
      UserError: the file cannot be read; a tensor is missing, misshapen, not finite or unknown.
    """
    tensors = _read(path)
    variables = _torchvision_variables(backbone)
    _check_names(tensors, variables, backbone, path)
    values = {
        name: _fitting_value(name, tensors[name], variable, path)
        for name, variable in variables.items()
    }
    for name, variable in variables.items():
        variable.assign(values[name])
    _make_identity_projection(backbone)
    return LoadReport(
        source=str(path),
        num_tensors=len(values),
        num_parameters=sum(value.size for value in values.values()),
        ignored=tuple(sorted(set(tensors) - set(variables))),
    )


def load_model_garden_checkpoint(backbone: tf.keras.Model, path: str) -> LoadReport:
    """Loads the `backbone` of a checkpoint written by the Model Garden's image classification.

    Args:
      backbone: from `build_backbone`.
      path: the checkpoint's prefix, or its folder, of which the latest is taken.

    Returns:
      What was loaded.

    Raises:
      UserError: no checkpoint there, or one of another network.
    """
    if os.path.isdir(path):
        with paths.plain_folder(path) as plain:
            latest = tf.train.latest_checkpoint(plain)
        prefix = latest and os.path.join(path, os.path.basename(latest))
    else:
        prefix = path
    if prefix is None or not os.path.isfile(f'{prefix}.index'):
        raise UserError(f'backbone weights {path}: there is no TensorFlow checkpoint')
    # TensorFlow answers a misfit with a warning per variable, so shapes are checked before reading.
    _check_checkpoint(backbone, prefix)
    try:
        with paths.plain_checkpoint(prefix) as plain:
            status = tf.train.Checkpoint(backbone=backbone).read(plain)
            status.expect_partial().assert_existing_objects_matched()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        raise UserError(
            f'backbone weights {prefix}: not a readable checkpoint of the Model Garden: '
            f'{_one_line(error)}'
        ) from error
    shapes = [variable.shape.num_elements() for variable in backbone.variables]
    return LoadReport(source=prefix, num_tensors=len(shapes), num_parameters=sum(shapes))


def _model_id(backbone):
    return backbone.get_config()['model_id']


# The names below are built from the architecture and the blocks' order, not from the variables'
# names, which Keras numbers through a whole process, nor from the order of a block's variables,
# which says nothing where two have one shape. `_conv1`, `_norm1`, `_shortcut` and `_norm0` are
# attributes of the Model Garden's blocks and at the same time the keys under which its published
# checkpoints store them, so that they cannot change from one release to the next.


def _blocks(backbone) -> Iterator[tuple[str, int, int, tf.keras.layers.Layer]]:
    """Yields torchvision's name, the stage, the index (from 0) and the layer of every block."""
    blocks = (layer for layer in backbone.layers if isinstance(layer, backbone_lib.BLOCKS))
    for stage, (_, _, repeats) in enumerate(resnet.RESNET_SPECS[_model_id(backbone)], start=1):
        for index in range(repeats):
            yield f'layer{stage}.{index}', stage, index, next(blocks)


def _is_identity_projection(block, stage, index):
    return stage == 1 and index == 0 and isinstance(block, nn_blocks.ResidualBlock)


def named_layers(backbone: tf.keras.Model) -> dict[str, tf.keras.layers.Layer]:
    """Every convolution and BatchNorm of a backbone by the name that it has in torchvision.

    The projection that torchvision's ResNet-18 and -34 lack is `layer1.0.downsample`.
    """
    stem = (tf.keras.layers.Conv2D, tf.keras.layers.BatchNormalization)
    conv, norm = (layer for layer in backbone.layers if isinstance(layer, stem))
    layers = {'conv1': conv, 'bn1': norm}
    for name, _, index, block in _blocks(backbone):
        for i in range(1, 3 if isinstance(block, nn_blocks.ResidualBlock) else 4):
            layers[f'{name}.conv{i}'] = getattr(block, f'_conv{i}')
            layers[f'{name}.bn{i}'] = getattr(block, f'_norm{i}')
        if index == 0:
            layers[f'{name}.downsample.0'] = block._shortcut
            layers[f'{name}.downsample.1'] = block._norm0
    return layers


def _torchvision_layers(backbone) -> dict[str, tf.keras.layers.Layer]:
    """Those of `named_layers` that torchvision has."""
    lacking = tuple(
        f'{name}.downsample.'
        for name, stage, index, block in _blocks(backbone)
        if _is_identity_projection(block, stage, index)
    )
    layers = named_layers(backbone)
    return {name: layer for name, layer in layers.items() if not name.startswith(lacking)}


def _torchvision_variables(backbone) -> dict[str, tf.Variable]:
    """Every variable that torchvision has, by its name there."""
    variables = {}
    for name, layer in _torchvision_layers(backbone).items():
        if isinstance(layer, tf.keras.layers.Conv2D):
            variables[f'{name}.weight'] = layer.kernel
        else:
            variables[f'{name}.weight'] = layer.gamma
            variables[f'{name}.bias'] = layer.beta
            variables[f'{name}.running_mean'] = layer.moving_mean
            variables[f'{name}.running_var'] = layer.moving_variance
    return variables


def _make_identity_projection(backbone):
    """Identity kernel and identity BatchNorm where torchvision's shortcut is the input itself."""
    for _, stage, index, block in _blocks(backbone):
        if not _is_identity_projection(block, stage, index):
            continue
        block._shortcut.kernel.assign(np.eye(block._shortcut.filters)[np.newaxis, np.newaxis])
        norm = block._norm0
        norm.moving_mean.assign(tf.zeros_like(norm.moving_mean))
        norm.moving_variance.assign(tf.ones_like(norm.moving_variance))
        # BatchNorm divides by sqrt(1 + epsilon).
        norm.gamma.assign(tf.fill(norm.gamma.shape, math.sqrt(1.0 + norm.epsilon)))
        norm.beta.assign(tf.zeros_like(norm.beta))


def _checkpoint_variables(backbone) -> dict[str, tf.Variable]:
    """Every variable of the backbone by its key in a checkpoint."""
    parts = ('_shortcut', '_norm0', '_conv1', '_norm1', '_conv2', '_norm2', '_conv3', '_norm3')
    kinds = ('kernel', 'gamma', 'beta', 'moving_mean', 'moving_variance')
    variables = {}
    for i, layer in enumerate(layer for layer in backbone.layers if layer.weights):
        key = f'backbone/layer_with_weights-{i}'
        sublayers = {f'{key}/{part}': getattr(layer, part, None) for part in parts}
        for name, sublayer in {key: layer, **sublayers}.items():
            for kind in kinds:
                if hasattr(sublayer, kind):
                    variables[f'{name}/{kind}'] = getattr(sublayer, kind)
    return variables


def _check_checkpoint(backbone, prefix):
    place = f'backbone weights {prefix} for ResNet-{_model_id(backbone)}'
    try:
        with paths.plain_checkpoint(prefix) as plain:
            shapes = dict(tf.train.list_variables(plain))
    except (ValueError, tf.errors.OpError) as error:
        raise UserError(f'{place}: not a readable checkpoint: {_one_line(error)}') from error
    shapes = {key.replace('/.ATTRIBUTES/VARIABLE_VALUE', ''): shapes[key] for key in shapes}
    variables = _checkpoint_variables(backbone)
    missing = [key for key in variables if key not in shapes]
    if missing:
        raise UserError(
            f"{place}: missing {_listing(missing)}; is it the Model Garden's, of this depth?"
        )
    for key, variable in variables.items():
        if shapes[key] != variable.shape:
            raise UserError(
                f'{place}: {key} has shape {shapes[key]}, {variable.shape.as_list()} is wanted'
            )


def _check_names(tensors, variables, backbone, path):
    place = f'backbone weights {path} for ResNet-{_model_id(backbone)}'
    missing = [name for name in variables if name not in tensors]
    if missing:
        raise UserError(f'{place}: missing {_listing(missing)}; is it another depth?')
    unknown = [
        name
        for name in tensors
        if name not in variables
        and not name.startswith('fc.')
        and not name.endswith(_BATCH_COUNTER)
    ]
    if unknown:
        raise UserError(f'{place}: unknown {_listing(unknown)}; is it another depth or network?')


def _one_line(error: BaseException) -> str:
    return ' '.join(str(error).split())[:160]


def _listing(names: list[str]) -> str:
    rest = f' and {len(names) - 5} more' if len(names) > 5 else ''
    return ', '.join(names[:5]) + rest


def _fitting_value(name, tensor, variable, path) -> np.ndarray:
    """Returns `tensor` as float32 in the variable's layout (OIHW kernels become HWIO)."""
    wanted = tuple(variable.shape)
    if len(wanted) == 4:
        wanted = (wanted[3], wanted[2], wanted[0], wanted[1])
    if tensor.shape != wanted:
        raise UserError(
            f'backbone weights {path}: {name} has shape {list(tensor.shape)}, '
            f'{list(wanted)} is wanted'
        )
    if not np.issubdtype(tensor.dtype, np.floating):
        raise UserError(f'backbone weights {path}: {name} has type {tensor.dtype}, not a float')
    value = tensor.astype(np.float32)
    if not np.isfinite(value).all():
        raise UserError(f'backbone weights {path}: {name} has values that are not finite')
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value


def _read(path) -> Mapping[str, np.ndarray]:
    """Reads all tensors of a file by its suffix."""
    suffix = os.path.splitext(path)[1].lower()
    reader = _READERS.get(suffix)
    if reader is None:
        raise UserError(
            f'backbone weights {path}: unknown kind of file, expected one of '
            f'{", ".join(_READERS)} or the prefix of a TensorFlow checkpoint'
        )
    if not os.path.isfile(path):
        raise UserError(f'backbone weights {path}: no such file')
    try:
        return reader(path)
    except _DAMAGE as error:
        raise UserError(
            f'backbone weights {path}: not a readable {suffix} file: {_one_line(error)}; download '
            'or convert it again'
        ) from error


def _read_npz(path):
    with np.load(path, allow_pickle=False) as archive:
        if sum(entry.file_size for entry in archive.zip.infolist()) > _MOST_BYTES:
            raise ValueError(f'it unpacks to more than {_MOST_BYTES} bytes')
        return {name: archive[name] for name in archive.files}


def _read_safetensors(path):
    with open(path, 'rb') as file:
        entries = safetensors.deserialize(file.read())
    return {name: _safetensor(name, entry) for name, entry in entries}


def _safetensor(name, entry):
    if entry['dtype'] not in _SAFETENSORS_DTYPES:
        raise ValueError(f'{name} has type {entry["dtype"]}')
    value = np.frombuffer(entry['data'], _SAFETENSORS_DTYPES[entry['dtype']])
    # bfloat16 is no floating type of NumPy's.
    value = value.astype(np.float32) if entry['dtype'] == 'BF16' else value
    return value.reshape(entry['shape'])


def _read_pth(path):
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f'backbone weights {path}: reading .pth needs torch, which is not installed; '
            'install it or convert the file to .safetensors or .npz'
        ) from error
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
        return {
            name: tensor.to(torch.float32).numpy() if tensor.is_floating_point() else tensor.numpy()
            for name, tensor in state.items()
        }
    except Exception as error:  # torch raises what its unpickler meets
        raise UserError(f'backbone weights {path}: not a state dict: {_one_line(error)}') from error


_READERS = {'.npz': _read_npz, '.safetensors': _read_safetensors, '.pth': _read_pth}
