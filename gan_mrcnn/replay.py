# SPDX-License-Identifier: Apache-2.0
"""Looks at a batch that blew up: `python -m gan_mrcnn.replay RUN/blow_ups/step-N.npz`.

The step is taken again with the weights that it met, without changing them: every term of the loss,
what the images hold, and where in the networks the first number that is not finite comes up.
"""

import argparse
import pathlib
from collections.abc import Mapping

from gan_mrcnn import flags
from gan_mrcnn.errors import UserError


def parse_flags() -> argparse.Namespace:
    """Flags, before TensorFlow is imported."""
    parser = argparse.ArgumentParser(
        prog='python -m gan_mrcnn.replay', description='Takes a step that blew up again.'
    )
    parser.add_argument('file', help='blow_ups/step-N.npz in the folder of a run')
    return parser.parse_args()


def replay(path: str) -> list[str]:
    """Takes the step of `path` again; the lines that tell of it.

    Raises:
      UserError: there is no such file, or what was saved with it is missing or damaged.
    """
    import tensorflow as tf

    from gan_mrcnn import blow_ups, evaluating, experiment, training
    from gan_mrcnn import task as task_lib

    file = pathlib.Path(path)
    arrays = _read(file)
    config = experiment.saved_config(file.parents[1] / training.PARAMS_NAME)
    task = task_lib.GanMaskRCNNTask(config.task)
    model = task.build_model()
    others = {}
    if task.has_discriminators:
        task.build_discriminators(tf.keras.optimizers.SGD())
        others['box_discriminator'] = task.box_discriminator
        others['mask_discriminator'] = task.mask_discriminator
    evaluating.restore(model, str(file.with_suffix('')), **others)
    inputs = blow_ups.unflatten(arrays)
    lines = [f'step {int(arrays["step"])}: {len(arrays["images"])} images', *_images(arrays)]
    for name, variables in _parts(task, model).items():
        lines += _not_finite(f'weights of the {name}', {v.name: v for v in variables})
    with tf.GradientTape(persistent=True) as tape:
        outputs = task.forward(inputs, model)
        terms = task.detection_losses(outputs, inputs[1])
        generator_loss, discriminator_loss = terms['model_loss'], tf.constant(0.0)
        if task.has_discriminators:
            samples = task.adversarial_samples(outputs)
            # First as the generator sees them: the discriminators' own pass moves statistics.
            terms.update(task.generator_losses(samples))
            gan = config.task.gan
            generator_loss += gan.box_weight * terms['box_generator_loss']
            generator_loss += gan.mask_weight * terms['mask_generator_loss']
            terms.update(task.discriminator_losses(samples))
            discriminator_loss = (
                terms['box_discriminator_loss'] + terms['mask_discriminator_loss']
            )
    lines += _not_finite('outputs', _floating(outputs))
    lines += [f'{name:>27}: {float(value):.6g}' for name, value in terms.items()]
    for name, variables in _parts(task, model).items():
        loss = discriminator_loss if name.endswith('discriminator') else generator_loss
        gradients = tape.gradient(
            loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        lines.append(f'{"gradient, " + name:>27}: {float(tf.linalg.global_norm(gradients)):.6g}')
        lines += _not_finite(
            f'gradients of the {name}', {v.name: g for v, g in zip(variables, gradients)}
        )
    return lines


def _read(file: pathlib.Path) -> Mapping:
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise UserError(f'{file} is not there; give blow_ups/step-N.npz of a run') from error
    except Exception as error:  # What a damaged archive raises depends on where the damage is.
        raise UserError(f'{file} is no batch that a run has saved ({error})') from error


def _images(arrays) -> list[str]:
    """What each image holds: it may be the picture that is odd."""
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
    import numpy as np

    bad = [name for name, value in tensors.items() if not np.isfinite(np.asarray(value)).all()]
    return [f'not finite: {len(bad)} of {len(tensors)} {what}, first {bad[0]}'] if bad else []


def main() -> None:
    for line in replay(parse_flags().file):
        print(line)


if __name__ == '__main__':
    flags.run_main(main, stopped='stopped')
