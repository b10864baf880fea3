# SPDX-License-Identifier: Apache-2.0
"""A step that was not finite, repeated with the weights that it met, without changing them.

Says the value of every term of the loss, what the images hold, and where in the networks the first
number that is not finite comes up.
"""

import pathlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from gan_mrcnn import settings
from gan_mrcnn import task as task_lib
from gan_mrcnn.prediction import checkpoint
from gan_mrcnn.training import nonfinite
from gan_mrcnn.utils.errors import UserError


def replay(path: str) -> list[str]:
    """Repeats the step that `path`, `nonfinite/step-N.npz` of a run, was saved in.

    Returns:
      Lines that tell of it.

    Raises:
      UserError: there is no such file, or what was saved with it is missing or damaged.
    """
    file = pathlib.Path(path)
    arrays = _read(file)
    config = settings.saved_config(file.parents[1] / checkpoint.PARAMS_NAME)
    task, model = _restored(config, str(file.with_suffix('')))
    lines = [f'step {int(arrays["step"])}: {len(arrays["images"])} images', *_images(arrays)]
    parts = _parts(task, model)
    for name, variables in parts.items():
        lines += _not_finite(f'weights of the {name}', {v.name: v for v in variables})
    images, labels = nonfinite.unflatten(arrays)
    with tf.GradientTape(persistent=True) as tape:
        outputs = task.forward((images, labels), model)
        terms = task.detection_losses(outputs, labels)
        generator_loss, discriminator_loss = terms['model_loss'], tf.constant(0.0)
        if task.has_discriminators:
            samples = task.adversarial_samples(outputs)
            # First as the generator sees them: the discriminators' own pass moves statistics.
            terms.update(task.generator_losses(samples))
            generator_loss += task.weighted_adversarial_loss(terms)
            terms.update(task.discriminator_losses(samples))
            discriminator_loss = task.weighted_discriminator_loss(terms)
    lines += _not_finite('outputs', _floating(outputs))
    lines += [f'{name:>27}: {float(value):.6g}' for name, value in terms.items()]
    for name, variables in parts.items():
        loss = discriminator_loss if name.endswith('discriminator') else generator_loss
        lines += _gradients(tape, loss, name, variables)
    return lines


def _restored(config, path: str) -> tuple[task_lib.GanMaskRCNNTask, tf.keras.Model]:
    """The task with its discriminators, and the generator, with the weights of `path`."""
    task = task_lib.GanMaskRCNNTask(config.task)
    model = task.build_model()
    others = {}
    if task.has_discriminators:
        task.build_discriminators(tf.keras.optimizers.SGD())
        others['box_discriminator'] = task.box_discriminator
        others['mask_discriminator'] = task.mask_discriminator
    checkpoint.restore(model, path, as_trained=True, **others)
    return task, model


def _gradients(tape, loss, name: str, variables) -> list[str]:
    """The norm of a network's gradient, and which of it are not finite."""
    gradients = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    line = f'{"gradient, " + name:>27}: {float(tf.linalg.global_norm(gradients)):.6g}'
    return [
        line,
        *_not_finite(f'gradients of the {name}', {v.name: g for v, g in zip(variables, gradients)}),
    ]


def _read(file: pathlib.Path) -> Mapping:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise UserError(f'{file} is not there; give nonfinite/step-N.npz of a run') from error
    except Exception as error:  # What a damaged archive raises depends on where the damage is.
        raise UserError(f'{file} is no batch that a run has saved ({error})') from error


def _images(arrays) -> list[str]:
    """What each image holds: the cause may be in the data."""
    return [
        f'image {int(arrays["source_id"][i])}: {int((arrays["gt_classes"][i] > 0).sum())} objects, '
        f'pixels from {image.min():.3g} to {image.max():.3g}, mean {image.mean():.3g}, '
        f'standard deviation {image.std():.3g}'
        for i, image in enumerate(arrays['images'])
    ]


def _parts(task, model) -> dict[str, list]:
    """Variables that are trained, by the part of the networks that they are of."""
    parts = {
        name: part.trainable_variables
        for name, part in model.checkpoint_items.items()
        if part is not None
    }
    if task.has_discriminators:
        parts['box discriminator'] = task.box_discriminator.trainable_variables
        parts['mask discriminator'] = task.mask_discriminator.trainable_variables
    return parts


def _floating(outputs: Mapping, prefix: str = '') -> dict:
    """Tensors of a nested mapping by their path, without those of whole numbers."""
    found = {}
    for name, value in outputs.items():
        if isinstance(value, Mapping):
            found.update(_floating(value, f'{prefix}{name}/'))
        elif value.dtype.is_floating:
            found[f'{prefix}{name}'] = value
    return found


def _not_finite(what: str, tensors: Mapping) -> list[str]:
    """A line where some of them are not finite, with the first of them."""
    bad = [name for name, value in tensors.items() if not np.isfinite(np.asarray(value)).all()]
    return [f'not finite: {len(bad)} of {len(tensors)} {what}, first {bad[0]}'] if bad else []
