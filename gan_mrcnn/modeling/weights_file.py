# SPDX-License-Identifier: Apache-2.0
"""The generator's weights as one safetensors file that can be passed on.

A checkpoint holds both optimizers and the discriminators, in files that only TensorFlow reads, by
names that follow from the order of Keras' layers. Here every weight of the generator, and nothing
else, has a name that says what it is: `backbone.layer1.0.conv1.kernel` (torchvision's names of a
ResNet's layers), `decoder.lateral_2.bias`, `detection_head.detection-scores.kernel`. Layouts are
TensorFlow's. What the numbers are for is in the file's header, under one key, as JSON.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import safetensors
import tensorflow as tf
from safetensors import numpy as safetensors_numpy

from gan_mrcnn.modeling import backbone_weights
from gan_mrcnn.utils.errors import UserError

# Of what is in the header; a file with another one was written by another version.
FORMAT = 1
# One key, since the order in which safetensors writes several differs from one process to the next.
_KEY = 'gan_mrcnn'
# As wide as the number of classes.
CLASS_LAYERS = (
    'detection_head.detection-scores',
    'detection_head.detection-boxes',
    'mask_head.mask-logits',
)
_STATISTICS = ('moving_mean', 'moving_variance')
_FLOATS = (np.float16, np.float32)
_DAMAGE = (OSError, ValueError, LookupError, TypeError, MemoryError, safetensors.SafetensorError)


def named_variables(model: tf.keras.Model) -> dict[str, tf.Variable]:
    """Every variable of the generator by its name in a file, in the order of the names.

    Names follow from the architecture alone: not from how many networks this process has built,
    as Keras' own names do, nor from the set of packages.

    Args:
      model: a `generator.Generator`.

    Raises:
      ValueError: a variable would have no name, or two.
    """
    parts = {
        'decoder': [model.decoder],
        'rpn_head': [model.rpn_head],
        'detection_head': model.detection_head,
        'mask_head': [model.mask_head],
    }
    layers = {
        f'backbone.{name}': layer
        for name, layer in backbone_weights.named_layers(model.backbone).items()
    }
    for part, networks in parts.items():
        # Those of FPN and heads have names of their own, which Keras does not number.
        layers.update({f'{part}.{layer.name}': layer for layer in _leaves(networks)})
    variables = {
        f'{name}.{_kind(variable)}': variable
        for name, layer in layers.items()
        for variable in layer.weights
    }
    if sorted(map(id, variables.values())) != sorted(map(id, model.variables)):
        raise ValueError(
            f'{len(variables)} names for {len(model.variables)} variables of the generator'
        )
    return dict(sorted(variables.items()))


def _leaves(networks: Iterable[tf.keras.layers.Layer]):
    """The layers of `networks` with weights that no layer inside them has."""
    for network in networks:
        for layer in network.submodules:
            if not isinstance(layer, tf.keras.layers.Layer) or not layer.weights:
                continue
            if not any(isinstance(x, tf.keras.layers.Layer) for x in layer.submodules):
                yield layer


def _kind(variable: tf.Variable) -> str:
    """Such as 'kernel' or 'moving_mean'."""
    return variable.name.rpartition('/')[2].partition(':')[0]


def to_bytes(model: tf.keras.Model, notes: Mapping[str, Any]) -> bytes:
    """The content of the file; the same for the same weights and notes.

    Weights are rounded to float16. BatchNorm's stored means and variances stay float32: they are
    few, the network divides by the variances, and in one tensor they are of different orders of
    magnitude. So does a tensor that float16 cannot hold, see `_as_stored`.

    Args:
      model: a `generator.Generator`.
      notes: `card`, what its numbers mean (`prediction.model_card`), and `settings` of its run.

    Raises:
      UserError: a weight is not finite.
    """
    tensors = {
        name: _as_stored(name, variable.numpy())
        for name, variable in named_variables(model).items()
    }
    header = json.dumps({'format': FORMAT, **notes}, sort_keys=True)
    return safetensors_numpy.save(tensors, {_KEY: header})


def _as_stored(name: str, value: np.ndarray) -> np.ndarray:
    """`value` in float16, or in float32 where it is a statistic or does not fit.

    Rounding a normal number of float16 changes it by 2^-11 of it at most, so that the rounded
    tensor is off by that share of its norm, unless numbers overflow (above 65504), or so many are
    below float16's normal numbers (6e-5) that they make up the tensor.
    """
    value = np.ascontiguousarray(value, np.float32)
    if not np.isfinite(value).all():
        raise UserError(
            f'{name} has values that are not finite: the network has diverged; give another '
            '--checkpoint'
        )
    if name.rpartition('.')[2] in _STATISTICS:
        return value
    with np.errstate(over='ignore'):
        rounded = value.astype(np.float16)
    lost = np.linalg.norm((value - rounded).ravel().astype(np.float64))
    fits = lost <= 2.0**-11 * np.linalg.norm(value.ravel().astype(np.float64))
    return rounded if fits else value


def read_notes(path: str) -> dict[str, Any]:
    """What `to_bytes` was given as notes; reads the file's header only.

    Raises:
      UserError: it cannot be read, or another program or a later version wrote it.
    """
    try:
        with safetensors.safe_open(path, framework='np') as file:
            header = (file.metadata() or {}).get(_KEY)
        notes = json.loads(header) if header is not None else {}
    except (*_DAMAGE, RecursionError) as error:
        raise _damaged(path, error) from error
    if (
        not isinstance(notes, dict)
        or notes.get('format') != FORMAT
        or not all(isinstance(notes.get(part), dict) for part in ('card', 'settings'))
    ):
        raise UserError(
            f'{path} is not what this version of gan-mrcnn publish writes; give such a file, or '
            'for a backbone alone task.backbone_weights'
        )
    return notes


def read_tensors(path: str) -> dict[str, np.ndarray]:
    """All tensors of a file by name, as they are stored.

    Raises:
      UserError: the file cannot be read, or holds other types than `to_bytes` writes.
    """
    try:
        with open(path, 'rb') as file:
            tensors = safetensors_numpy.load(file.read())
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    for name, value in tensors.items():
        if value.dtype not in _FLOATS or not np.isfinite(value).all():
            raise UserError(f'{path}: {name} is not of finite numbers in float16 or float32')
    return tensors


def _damaged(path, error) -> UserError:
    reason = ' '.join(str(error).split())[:160] or type(error).__name__
    return UserError(f'{path} cannot be read ({reason}); get it again')


def load(model: tf.keras.Model, path: str, new_classes: bool = False) -> list[str]:
    """Gives `model` the weights of a file; all of them, or raises before it has changed one.

    Args:
      model: a `generator.Generator`.
      path: of the file.
      new_classes: whether layers that are as wide as the number of classes keep the weights that
        they have where the file's are of another number.

    Returns:
      The names of those layers; empty where all weights were taken.

    Raises:
      UserError: the file cannot be read, or is of another network.
    """
    tensors, variables = read_tensors(path), named_variables(model)
    kept = set()
    for name in sorted(variables.keys() | tensors.keys()):
        wanted = tuple(variables[name].shape) if name in variables else None
        found = tensors[name].shape if name in tensors else None
        if wanted == found:
            continue
        layer = name.rpartition('.')[0]
        if new_classes and layer in CLASS_LAYERS and None not in (wanted, found):
            kept.add(layer)
            continue
        raise UserError(
            f'{path} is of another network than the settings describe: {name} is '
            f'{_shape_text(found)} there and {_shape_text(wanted)} here; give the settings of its '
            'params.yaml by --config_file'
        )
    for name, variable in variables.items():
        if name.rpartition('.')[0] not in kept:
            variable.assign(tensors[name].astype(np.float32))
    return sorted(kept)


def _shape_text(shape) -> str:
    return 'missing' if shape is None else 'x'.join(map(str, shape)) or 'a number'
