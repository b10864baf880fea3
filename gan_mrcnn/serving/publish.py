# SPDX-License-Identifier: Apache-2.0
"""Weights of a run as a folder that can be passed on, for others who have this package.

`gan-mrcnn export` writes a program for servers, of all that a checkpoint's network does; this
writes numbers, which run nothing when they are read. `model.safetensors` is enough by itself: its
header has settings and classes. The other files say the same to people, and SHA256SUMS checks all.
"""

import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import jinja2
import numpy as np
import yaml

from gan_mrcnn.modeling import weights_file
from gan_mrcnn.prediction import checkpoint as checkpoint_lib
from gan_mrcnn.prediction import model_card
from gan_mrcnn.serving import export
from gan_mrcnn.utils import disk, files, published
from gan_mrcnn.utils.errors import UserError

_TEMPLATE = pathlib.Path(__file__).with_name('published.md.j2')
_COLUMNS = ('AP', 'AP50', 'AP75')


class Published(NamedTuple):
    """What was written.

    num_bytes: of the file of weights.
    num_tensors, num_float32: in it, and how many of these are not float16.
    notes: lines for the user.
    """

    num_bytes: int
    num_tensors: int
    num_float32: int
    notes: list[str]


class Evaluation(NamedTuple):
    """Figures of one split for the model card.

    split, num_images, fingerprint, seed, notice, tta: as in results.json.
    rows: kind and figures of COCO.
    glands: the contest's figures on the split; None for other data.
    """

    split: str
    num_images: int
    fingerprint: str
    seed: int
    notice: str
    tta: Any
    rows: list[tuple[str, list[str]]]
    glands: Any


def check_new(out: str) -> None:
    """Raises UserError where `out` exists, or its parent cannot be written."""
    path = pathlib.Path(out)
    if os.path.lexists(path):
        raise UserError(f'{out} exists; give another OUT, or remove it')
    disk.check_folder(path.parent, 'OUT')


def publish(opened: checkpoint_lib.Opened, run: str, out: str) -> Published:
    """Writes the folder, whole or not at all.

    Args:
      opened: the network of the run.
      run: its folder, whose evaluations of this very checkpoint become figures of the model card.
      out: the new folder.

    Raises:
      UserError: `out` exists or cannot be written, a weight is not finite, or detections depend on
        more than the generator.
    """
    check_new(out)
    if opened.box_discriminator is not None:
        raise UserError(
            f'{run}: detections are ranked by the box discriminator, too, which is not published; '
            'set task.gan.rescore_exponent to 0 in its params.yaml'
        )
    settings = export.without_paths(opened.config.as_dict())
    content = weights_file.to_bytes(
        opened.model, {'card': dataclasses.asdict(opened.card), 'settings': settings}
    )
    evaluations, notes = _evaluations(run, opened.card.step)
    target = pathlib.Path(out)
    # Beside the target, for a rename must not cross disks.
    partial = pathlib.Path(tempfile.mkdtemp(prefix='.publish.', dir=target.parent))
    try:
        with disk.errors_named(f'OUT {out}'):
            files.write_bytes(partial / published.WEIGHTS, content)
            model_card.write(opened.card, partial)
            files.write_text(partial / model_card.PARAMS, yaml.safe_dump(settings))
            tensors = weights_file.read_tensors(str(partial / published.WEIGHTS))
            text = _readme(opened, settings, evaluations, files.sha256(partial / published.WEIGHTS))
            files.write_text(partial / 'README.md', text)
            sums = {path.name: files.sha256(path) for path in sorted(partial.iterdir())}
            lines = [f'{value}  {name}\n' for name, value in sums.items()]
            files.write_text(partial / published.SUMS, ''.join(lines))
            # mkdtemp gives access to this user alone.
            partial.chmod(0o755)
            os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    in_float32 = sum(value.dtype == np.float32 for value in tensors.values())
    return Published(len(content), len(tensors), in_float32, notes)


def _evaluations(run: str, step: int) -> tuple[list[Evaluation], list[str]]:
    """What `evaluate` has written into the run of the checkpoint of that step."""
    found, notes = [], []
    for path in sorted(pathlib.Path(run).glob('eval/*/results.json')):
        results = files.read_json(path, None)
        try:
            if results['step'] != step:
                notes.append(f'{path} is of step {results["step"]} and not in the model card')
                continue
            found.append(_evaluation(results))
        except (KeyError, TypeError, ValueError):
            notes.append(f'{path} cannot be read and is not in the model card')
    if not found:
        notes.append(
            'no figures in the model card: evaluate the run with the same --checkpoint, and '
            'publish again'
        )
    return found, notes


def _evaluation(results: Mapping[str, Any]) -> Evaluation:
    figures = results['figures']
    rows = [
        (kind, [_text(figures[kind][column]) for column in _COLUMNS])
        for kind in ('box', 'mask', 'boundary')
    ]
    glands = figures.get('glands', {}).get(results['split'])
    return Evaluation(
        results['split'],
        results['num_images'],
        results['data_fingerprint'],
        results['seed'],
        ' '.join(results['notice'].split()),
        results.get('tta'),
        rows,
        glands and {name: _text(glands[name]) for name in ('F1', 'dice', 'hausdorff')},
    )


def _text(figure) -> str:
    return 'none' if figure is None else f'{figure:.3f}'


def _readme(opened, settings: Mapping[str, Any], evaluations, weights_sum: str) -> str:
    """The model card as Markdown."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Names of classes come from the user's files, and a line break would end what is said of them.
    environment.filters['line'] = lambda text: ' '.join(str(text).split())
    template = environment.from_string(_TEMPLATE.read_text(encoding='utf-8'))
    return template.render(
        card=opened.card,
        task=settings['task'],
        dataset=opened.dataset,
        columns=_COLUMNS,
        evaluations=evaluations,
        weights_sum=weights_sum,
    )
