# SPDX-License-Identifier: Apache-2.0
"""Predicts many image files and writes the objects of each."""

import pathlib
from collections.abc import Sequence
from typing import Optional, Union

from gan_mrcnn.prediction import checkpoint as checkpoint_lib
from gan_mrcnn.prediction import exported, image_files, predictor, writing
from gan_mrcnn.utils import cli, devices, progress_bar
from gan_mrcnn.utils.errors import UserError


def load(
    model: Optional[str],
    checkpoint: str,
    data_dir: Optional[str],
    weights: Optional[str],
    augmentation: Optional[str],
) -> Union[predictor.Predictor, predictor.PixelPredictor]:
    """The network of a run's folder, where `model` is one, of an export, or of a published file.

    Args:
      model: folder of a run, or what was exported, see `exported.load`.
      checkpoint: of a run.
      data_dir: of a run.
      weights: path of published weights, in place of `model`.
      augmentation: a key of `tta.ORIENTATIONS`; None for images as they are.
    """
    devices.prepare_gpus()
    if weights:
        return checkpoint_lib.open_published(weights).predictor(augmentation)
    if (pathlib.Path(model) / checkpoint_lib.PARAMS_NAME).is_file():
        return checkpoint_lib.open_run(model, checkpoint, data_dir=data_dir).predictor(augmentation)
    return exported.load(model, augmentation)


def predict(
    sources: Sequence[image_files.Source],
    network: predictor.Predictor,
    out: str,
    score_threshold: Optional[float],
    batch_size: int,
    tile: Optional[tuple[int, int]],
    overlap: int,
) -> None:
    """Predicts image files and writes into the folder `out`.

    Args:
      sources: see `image_files.find_sources`.
      network: see there.
      out: see `writing.Writer`.
      score_threshold: None for the model's own.
      batch_size: see `image_files.detect`, as for `tile` and `overlap`.

    Raises:
      UserError: some images were skipped; the others are written then.
    """
    threshold = network.card.score_threshold if score_threshold is None else score_threshold
    problems: list[str] = []
    writer = writing.Writer(out, network.card)
    num_objects = 0
    try:
        with progress_bar.Bar(total=len(sources), desc='predict', unit='image') as bar:
            for result in image_files.detect(
                image_files.read(sources, problems),
                network,
                threshold,
                batch_size,
                tile,
                overlap,
                problems,
            ):
                try:
                    writer.add(result)
                except writing.TooManyObjects as error:
                    problems.append(f'{result.source.path}: {error}')
                else:
                    num_objects += len(result.objects)
                bar.update()
    finally:
        writer.close()
    report(num_objects, threshold, len(sources), problems, out)


def report(
    num_objects: int, threshold: float, num_images: int, problems: Sequence[str], out: str
) -> None:
    """Says what was written, and which images are skipped, a line of `problems` for each.

    Raises:
      UserError: some are.
    """
    print(
        f'{num_objects} objects of at least {threshold:g} in {num_images - len(problems)} '
        f'images; wrote {out}'
    )
    if problems:
        print('\n'.join(map(cli.one_line, problems)))
        raise UserError(f'{len(problems)} of {num_images} images are skipped, see above')
