# SPDX-License-Identifier: Apache-2.0
"""The model card: what a client should know about an exported model beyond its tensors.

It travels as assets of the SavedModel: `model.json` (this), `class_names.txt` (one a line) and
`params.yaml` (the training configuration).
"""

import dataclasses
import json
import pathlib
import typing
from typing import Any, Optional, Union

from gan_mrcnn.utils import files
from gan_mrcnn.utils.errors import UserError

FILE_NAME, CLASS_NAMES, PARAMS = 'model.json', 'class_names.txt', 'params.yaml'


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """The card of an exported model, or of a checkpoint that is used as one.

    class_names: without the background; `detection_classes` 1 is the first.
    category_ids: the data set's own ids of these classes.
    score_threshold: detections from this score on are worth showing; lower ones are given, too.
    input_size: height and width that images are padded to, in pixels.
    short_side: what the shorter side of an image is scaled to, in pixels.
    mean_rgb, stddev_rgb: of the normalization, which the graph does; for pixels from 0 to 255.
    checkpoint: its file's name.
    step: of the training.
    version: of this package.
    micrometres_per_pixel: of the training images; None where it is not known, or there is none.
    image_size: height and width of most training images, in pixels; None where it is not known.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    score_threshold: float
    input_size: tuple[int, int]
    short_side: int
    mean_rgb: tuple[float, ...]
    stddev_rgb: tuple[float, ...]
    checkpoint: str
    step: int
    version: str
    # What cards have that were written before these were there.
    micrometres_per_pixel: Optional[float] = None
    image_size: Optional[tuple[int, int]] = None


def write(card: ModelCard, folder: pathlib.Path) -> None:
    """Writes `model.json` and `class_names.txt`."""
    text = json.dumps(dataclasses.asdict(card), indent=1, ensure_ascii=False)
    files.write_text(folder / FILE_NAME, f'{text}\n')
    files.write_text(folder / CLASS_NAMES, ''.join(f'{name}\n' for name in card.class_names))


def read(folder: pathlib.Path) -> ModelCard:
    """Reads `model.json`.

    Raises:
      UserError: it is missing or not what `write` writes.
    """
    path = folder / FILE_NAME
    try:
        values = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path) from error
    return from_values(values, path)


def from_values(values: Any, source: files.PathLike) -> ModelCard:
    """The card whose fields a JSON object has.

    Raises:
      UserError: it is not such an object; `source` is named.
    """
    try:
        card = ModelCard(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except (TypeError, AttributeError) as error:
        raise _unreadable(source) from error
    for name, hint in typing.get_type_hints(ModelCard).items():
        if not _fits(getattr(card, name), hint):
            raise UserError(f'{source} has no {name} that can be one; export the model again')
    if len(card.class_names) != len(card.category_ids):
        raise UserError(f'{source} has not as many category_ids as class_names; export again')
    return card


def _unreadable(source: files.PathLike) -> UserError:
    return UserError(f'{source} cannot be read; give a model that gan-mrcnn export wrote')


def _fits(value, hint) -> bool:
    """Whether `value` is of the type that a field of `ModelCard` has."""
    if typing.get_origin(hint) is Union:
        return any(_fits(value, kind) for kind in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        any_length = kinds[-1] is ...
        return (
            isinstance(value, tuple)
            and (any_length or len(value) == len(kinds))
            and all(_fits(part, kinds[0]) for part in value)
        )
    if isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, (int, float)) and abs(value) < float('inf')
    return isinstance(value, hint)
