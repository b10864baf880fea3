# SPDX-License-Identifier: Apache-2.0
"""Export of a run as a SavedModel.

Writes `OUT/model/VERSION`, the numbered layout that TF Serving watches: under another name, renamed
when whole, so that a server never sees half a model. Server and client need none of this package:
the graph holds stock TensorFlow operations alone (each one is checked), its assets say what the
numbers mean (`prediction.model_card`), and `assets.extra` has requests that warm up a server.
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
from gan_mrcnn.utils import disk, paths
from gan_mrcnn.utils.errors import UserError

MODEL_NAME = 'model'


def export(module, card, config, export_dir: str, version: Optional[int] = None) -> pathlib.Path:
    """Writes the SavedModel and gives its folder.

    Args:
      module: `signatures.InferenceModule`.
      card: `model_card.ModelCard`.
      config: of the run.
      export_dir: see above.
      version: positive; None for one more than the highest.

    Raises:
      UserError: the version exists, or the graph holds an operation that a server does not have.
    """
    if version is not None and version < 1:
        raise UserError(f'--version {version} is not positive; give 1 or more')
    root = pathlib.Path(export_dir) / MODEL_NAME
    disk.check_folder(root, '--export_dir')
    target = root / str(_free_version(root) if version is None else version)
    if target.exists():
        raise UserError(f'{target} exists; give another --version, or remove it')
    requests = warmup.make_requests(card.input_size)
    # Beside the target, for a rename must not cross disks; a server reads numbers only.
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f'.{target.name}.', dir=root))
    try:
        with disk.errors_named(f'--export_dir {export_dir}'):
            with paths.plain_folder(partial) as plain:
                _save(module, card, config, pathlib.Path(plain))
                warmup.write_requests(pathlib.Path(plain), requests)
            # mkdtemp gives access to this user alone, and a server runs as another one.
            partial.chmod(0o755)
            os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _save(module, card, config, folder: pathlib.Path) -> None:
    """Writes module and assets; UserError where the graph is not one for a stock server."""
    with tempfile.TemporaryDirectory() as assets:
        module.assets = [
            tf.saved_model.Asset(path) for path in write_assets(card, config, pathlib.Path(assets))
        ]
        tf.saved_model.save(module, str(folder), signatures=module.signatures('tensorflow'))
    foreign = sorted(set(operations(folder)) - set(dir(tf.raw_ops)))
    if foreign:
        raise UserError(
            f'the graph holds {", ".join(foreign)}, which TF Serving does not have; export '
            'a network of stock TensorFlow operations'
        )


def operations(saved_model: pathlib.Path) -> Iterator[str]:
    """Name of every operation in a SavedModel's graphs and functions, but for calls of these."""
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


def write_assets(card, config, folder: pathlib.Path) -> list[str]:
    """Writes the model card and the settings; gives the paths of all files in `folder`."""
    model_card.write(card, folder)
    params = without_paths(config.as_dict())
    (folder / model_card.PARAMS).write_text(yaml.safe_dump(params), encoding='utf-8')
    return [str(path) for path in sorted(folder.iterdir())]


def without_paths(params: dict[str, Any]) -> dict[str, Any]:
    """Settings without the paths of the machine that trained it, which are private."""
    task = params['task']
    for part, names in (
        (task, ('data_dir', 'cache_dir', 'annotation_file', 'init_checkpoint')),
        (task['train_data'], ('input_path',)),
        (task['validation_data'], ('input_path',)),
    ):
        part.update(dict.fromkeys(names, ''))
    task['backbone_weights'] = os.path.basename(task['backbone_weights'])
    # What stands behind the ? of an address may be a password.
    task['weights'] = os.path.basename(task['weights'].partition('#')[0].partition('?')[0])
    # Files in the data set's folder are named by their place in it, others by their place here.
    task['annotations'] = [
        os.path.basename(path) if os.path.isabs(path) else path for path in task['annotations']
    ]
    return params
