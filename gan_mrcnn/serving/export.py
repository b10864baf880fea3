# SPDX-License-Identifier: Apache-2.0
"""Exports a run: `gan-mrcnn export --model_dir RUN --export_dir OUT`.

Writes `OUT/model/VERSION`, the numbered layout that TF Serving watches: under another name, renamed
when whole, so that a server never sees half a model. Server and client need none of this package:
the graph holds stock TensorFlow operations (looked at, operation by operation), its assets say what
the numbers mean (`card.py`), and `assets.extra` has requests that a server warms up with.
"""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, Optional

import tensorflow as tf
import yaml

from gan_mrcnn.prediction import model_card
from gan_mrcnn.serving import warmup
from gan_mrcnn.utils.errors import UserError

MODEL_NAME = 'model'


def export(module, card, config, export_dir: str, version: Optional[int] = None) -> pathlib.Path:
    """Writes the SavedModel and gives its folder.

    Args:
      module: `inference.InferenceModule`.
      card: `model_card.ModelCard`.
      config: of the run.
      export_dir: see above.
      version: positive; None for one more than there is.

    Raises:
      UserError: the version is there already, or the graph holds an operation that a server does
        not know.
    """
    root = pathlib.Path(export_dir) / MODEL_NAME
    target = root / str(_free_version(root) if version is None else version)
    if version is not None and version < 1:
        raise UserError(f'--version {version} is no version; 1, 2, 3, ... are')
    if target.exists():
        raise UserError(f'{target} is there already; give another --version, or remove it')
    requests = warmup.make_requests(card.input_size)
    root.mkdir(parents=True, exist_ok=True)
    # Beside the target, for a rename must not cross disks; a server looks at numbers only.
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f'.{target.name}.', dir=root))
    try:
        with tempfile.TemporaryDirectory() as assets:
            module.assets = [
                tf.saved_model.Asset(path)
                for path in _write_assets(card, config, pathlib.Path(assets))
            ]
            tf.saved_model.save(module, str(partial), signatures=module.signatures())
        foreign = sorted(set(operations(partial)) - set(dir(tf.raw_ops)))
        if foreign:
            raise UserError(
                f'the graph holds {", ".join(foreign)}, which TF Serving does not have; export '
                'a network of stock TensorFlow operations'
            )
        warmup.write_requests(partial, requests)
        # mkdtemp lets nobody else in, and a server runs as another user.
        partial.chmod(0o755)
        os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def operations(saved_model: pathlib.Path) -> Iterator[str]:
    """Name of every operation in a SavedModel's graphs and functions, functions left out."""
    from tensorflow.core.protobuf import saved_model_pb2

    content = saved_model_pb2.SavedModel()
    content.ParseFromString((saved_model / 'saved_model.pb').read_bytes())
    for graph in (meta_graph.graph_def for meta_graph in content.meta_graphs):
        functions = {function.signature.name for function in graph.library.function}
        nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
        yield from (node.op for node in nodes if node.op not in functions)


def _free_version(root: pathlib.Path) -> int:
    numbers = [int(path.name) for path in root.glob('*') if path.name.isdecimal()]
    return max(numbers, default=0) + 1


def _write_assets(card, config, folder: pathlib.Path) -> list[str]:
    model_card.write(card, folder)
    params = _without_paths(config.as_dict())
    (folder / model_card.PARAMS).write_text(yaml.safe_dump(params), encoding='utf-8')
    return [str(path) for path in sorted(folder.iterdir())]


def _without_paths(params: dict[str, Any]) -> dict[str, Any]:
    """Without the places of the machine that trained it, which are nobody's business."""
    task = params['task']
    for part, names in (
        (task, ('data_dir', 'cache_dir', 'annotation_file')),
        (task['train_data'], ('input_path',)),
        (task['validation_data'], ('input_path',)),
    ):
        part.update(dict.fromkeys(names, ''))
    task['backbone_weights'] = os.path.basename(task['backbone_weights'])
    return params
