"""Files from outside, cut, flipped and filled with anything: a good result or one line.

Never a stack trace, never more than a bounded time and memory. `pytest -m faults` does the same
with thousands of files for each kind.
"""

import io
import json
import pathlib
import resource
import time

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
import yaml
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from official.core import exp_factory
from PIL import Image

from gan_mrcnn import configs, settings
from gan_mrcnn.data import readers
from gan_mrcnn.data.readers import images, options
from gan_mrcnn.data.records import records
from gan_mrcnn.metrics import predictions
from gan_mrcnn.modeling import backbone_weights
from gan_mrcnn.prediction import checkpoint, model_card
from gan_mrcnn.prediction import predictor as predictor_lib
from gan_mrcnn.utils import run_lengths, yaml_files
from gan_mrcnn.utils.errors import UserError
from tests.data import layouts
from tests.data.blocks import Blocks
from tests.faults import runs

FEW = 25
MOST_SECONDS, MOST_BYTES = 20, 1_500_000_000
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def damaged(data, content):
    """`content` cut, with flipped bits, overwritten, repeated, or with something in between."""
    place = data.draw(st.integers(0, max(len(content) - 1, 0)))
    kind = data.draw(st.sampled_from(['cut', 'flip', 'flip', 'overwrite', 'insert', 'repeat']))
    if kind == 'cut':
        return content[:place]
    if kind == 'flip':
        changed = bytearray(content)
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
            changed[place] ^= 1 << data.draw(st.integers(0, 7))
        return bytes(changed)
    if kind == 'repeat':
        return content[:place] + content[place : place + 40] * 3 + content[place:]
    filling = data.draw(st.binary(min_size=1, max_size=8))
    return content[:place] + filling + content[place + (kind == 'overwrite') * len(filling) :]


# What a key may hold that nobody expects.
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**400), 10**400),
    st.sampled_from([0, -1, 1 << 31, 1 << 63, 1 << 64, 10**9, 1e308, 1e400, -1e400, 2.5]),
    st.just(float('nan')),
    st.text(max_size=6),
    st.sampled_from(['../../etc/passwd', '/etc/passwd', '\ud800', 'a\nb', 'a\0b', 'x' * 5000]),
    st.lists(st.one_of(st.integers(-9, 9), st.floats(), st.text(max_size=2)), max_size=9),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.integers(900, 5000).map(lambda depth: Nested(depth)),
)


class Nested:
    """So many lists in each other, in JSON and YAML alike."""

    def __init__(self, depth):
        self.depth = depth


def with_any_values(data, value):
    """A copy of `value`, some of whose parts are anything."""
    value = json.loads(json.dumps(value))
    for _ in range(data.draw(st.integers(1, 3))):
        node, parent, key = value, None, None
        while isinstance(node, (dict, list)) and node:
            parent, keys = node, list(node) if isinstance(node, dict) else range(len(node))
            key = data.draw(st.sampled_from(keys))
            node = node[key]
            if data.draw(st.integers(0, 3)) == 0:
                break
        if parent is not None:
            parent[key] = data.draw(ANYTHING)
    return value


def as_json(value):
    """The file; `Nested` becomes that many brackets, which no serializer would write."""
    found = {}

    def name(nested):
        found[f'"@{len(found)}@"'] = '[' * nested.depth + ']' * nested.depth
        return list(found)[-1][1:-1]

    text = json.dumps(value, default=name)
    for mark, brackets in found.items():
        text = text.replace(mark, brackets)
    return text.encode()


def changed_json(data, value):
    if data.draw(st.booleans()):
        return damaged(data, as_json(value))
    return as_json(with_any_values(data, value))


class ImageFile:
    """An image of any kind, read as one and as a label image."""

    def __init__(self, folder):
        self._path = folder / 'a.png'
        rng = np.random.default_rng(0)
        self._contents = []
        for mode, channels, kinds in (
            ('RGB', 3, ('PNG', 'JPEG', 'BMP', 'TIFF', 'WEBP', 'GIF')),
            ('L', 1, ('PNG', 'JPEG', 'BMP', 'TIFF')),
        ):
            pixels = rng.integers(0, 9, (24, 31, channels), np.uint8).squeeze()
            for kind in kinds:
                file = io.BytesIO()
                exif = Image.Exif()
                exif[0x0112] = 6
                Image.fromarray(pixels, mode).save(file, kind, exif=exif)
                self._contents.append(file.getvalue())

    def __call__(self, data):
        content = data.draw(st.sampled_from(self._contents))
        self._path.write_bytes(damaged(data, content))
        if data.draw(st.booleans()):
            pixels = images.read_image(self._path).pixels
            assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)
        else:
            labels = images.read_labels(self._path)
            assert labels.dtype == np.int32 and labels.ndim == 2
            run_lengths.encode_labels(labels, run_lengths.numbers_in(labels))


class CocoFile:
    """An annotation file: read, checked, and all of its images read."""

    def __init__(self, folder):
        self._folder = folder
        layouts.write_own_coco(folder)
        self._content = json.loads((folder / 'all.json').read_text())

    def __call__(self, data):
        (self._folder / 'all.json').write_bytes(changed_json(data, self._content))
        dataset = readers.load_dataset('coco_format', str(self._folder), options.DEFAULT)
        for split in dataset.splits:
            problems = list(dataset.problems(split))
            assert all('\n' not in f'{one.file_name}{one.text}' for one in problems)
            for item in dataset.items(split):
                assert self._folder in item.path.parents
                dataset.read(item)


class Predictions:
    """A file of COCO results."""

    def __init__(self, folder):
        self._path = folder / 'predictions.json'
        (rle,) = run_lengths.encode_masks([np.ones((8, 9))])
        rle['counts'] = rle['counts'].decode()
        one = {'image_id': 3, 'category_id': 7, 'bbox': [0, 0, 9, 8], 'score': 0.5}
        self._content = [{**one, 'segmentation': rle} for _ in range(3)]
        self._ground_truth = {'images': [{'id': 3, 'height': 8, 'width': 9}]}

    def __call__(self, data):
        self._path.write_bytes(changed_json(data, self._content))
        loaded = predictions.load_predictions(str(self._path), self._ground_truth, [7])
        assert all(one['category_id'] == 1 for one in loaded)


class Settings:
    """A configuration file."""

    def __init__(self, folder):
        self._text = (REPOSITORY / 'configs/gland_small.yaml').read_bytes()
        self._content = yaml.safe_load(self._text)

    def __call__(self, data):
        if data.draw(st.booleans()):
            text = damaged(data, self._text)
        else:
            text = as_json(with_any_values(data, self._content))
        values = yaml_files.parse(text, 'a.yaml')
        settings.override(exp_factory.get_exp_config(configs.EXPERIMENT), values or {}, 'a.yaml')


class SavedSettings:
    """`params.yaml` of a run, and what travels with an export."""

    def __init__(self, folder):
        self._folder = folder
        self._settings = {'task': {'dataset': 'gland', 'data_dir': '', 'model': {'a': [1, 2]}}}
        model_card.write(ABOUT, folder)
        self._card = json.loads((folder / model_card.FILE_NAME).read_text())

    def __call__(self, data):
        if data.draw(st.booleans()):
            path = self._folder / 'params.yaml'
            path.write_bytes(changed_json(data, self._settings))
            assert isinstance(yaml_files.read_task(path)['dataset'], str)
        else:
            path = self._folder / model_card.FILE_NAME
            path.write_bytes(changed_json(data, self._card))
            card = model_card.read(self._folder)
            assert len(card.class_names) == len(card.category_ids)


class Cache:
    """Any file of a cache of records: the next start has what was written, and so has training."""

    def __init__(self, folder):
        self._cache = str(folder)
        self._records = self._ensure()
        self._folder = pathlib.Path(self._records.annotation_file).parent
        self._contents = {path: path.read_bytes() for path in self._folder.iterdir()}

    def _ensure(self):
        return records.ensure_records(Blocks(34), 'train', self._cache, num_processes=1)

    def __call__(self, data):
        path = data.draw(st.sampled_from(sorted(self._contents)))
        path.write_bytes(damaged(data, self._contents[path]))
        if data.draw(st.booleans()):
            records.set_damaged_aside(self._records)
        assert self._ensure() == self._records
        found = {path: path.read_bytes() for path in self._folder.iterdir()}
        assert found.keys() == self._contents.keys()
        for path, content in found.items():
            # A key that is there twice with one value says the same.
            wanted = self._contents[path]
            is_manifest = path.name == 'manifest.json'
            assert json.loads(content) == json.loads(wanted) if is_manifest else content == wanted


class Weights:
    """A file of backbone weights."""

    def __init__(self, folder):
        tensors = {
            'conv1.weight': np.ones((2, 3, 2, 2), np.float32),
            'bn1.bias': np.zeros(4, np.float16),
        }
        np.savez(folder / 'a.npz', **tensors)
        np.savez_compressed(folder / 'b.npz', **tensors)
        place, header, body = 0, {'__metadata__': {'format': 'pt'}}, b''
        for name, tensor in tensors.items():
            header[name] = {
                'dtype': {'float32': 'F32', 'float16': 'F16'}[tensor.dtype.name],
                'shape': tensor.shape,
                'data_offsets': [place, place + tensor.nbytes],
            }
            place, body = place + tensor.nbytes, body + tensor.tobytes()
        self._header, self._body = header, body
        self._write(folder / 'c.safetensors', as_json(header))
        self._contents = {path: path.read_bytes() for path in folder.iterdir()}

    def _write(self, path, header):
        path.write_bytes(len(header).to_bytes(8, 'little') + header + self._body)

    def __call__(self, data):
        path = data.draw(st.sampled_from(sorted(self._contents)))
        if path.suffix == '.safetensors' and data.draw(st.booleans()):
            self._write(path, as_json(with_any_values(data, self._header)))
        else:
            path.write_bytes(damaged(data, self._contents[path]))
        assert all(
            isinstance(tensor, np.ndarray) for tensor in backbone_weights._read(str(path)).values()
        )


class Checkpoint:
    """The files of a checkpoint, and the one that says which is the last."""

    def __init__(self, folder):
        self._folder = folder
        self._model = tf.Module()
        self._model.kernel = tf.Variable(tf.reshape(tf.range(600.0), [20, 30]))
        self._model.bias = tf.Variable(tf.range(30.0))
        checkpoint = tf.train.Checkpoint(model=self._model)
        tf.train.CheckpointManager(checkpoint, str(folder), 1).save()
        self._contents = {path: path.read_bytes() for path in folder.iterdir()}

    def __call__(self, data):
        path = data.draw(st.sampled_from(sorted(self._contents)))
        path.write_bytes(damaged(data, self._contents[path]))
        try:
            checkpoint.restore(self._model, checkpoint.find_checkpoint(str(self._folder), 'last'))
            # Checksums are there for this: no damaged weight is taken over.
            np.testing.assert_array_equal(self._model.bias, np.arange(30.0))
        finally:
            path.write_bytes(self._contents[path])


class SavedModel:
    """A SavedModel with the signatures and assets of ours."""

    def __init__(self, folder):
        self._folder = folder / '1'
        module = tf.Module()
        module.scale = tf.Variable(tf.range(30.0))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def detect(image_bytes):
            return {'found': module.scale[0] + tf.cast(tf.size(image_bytes), tf.float32)}

        module.detect = detect
        signatures = dict.fromkeys(('serving_default', 'image_tensor'), detect)
        tf.saved_model.save(module, str(self._folder), signatures=signatures)
        model_card.write(ABOUT, self._folder / 'assets')
        paths = [path for path in self._folder.rglob('*') if path.is_file()]
        self._contents = {path: path.read_bytes() for path in paths}

    def __call__(self, data):
        path = data.draw(st.sampled_from(sorted(self._contents)))
        path.write_bytes(damaged(data, self._contents[path]))
        try:
            predictor_lib.load_saved_model(str(self._folder.parent))
        finally:
            path.write_bytes(self._contents[path])


ABOUT = model_card.ModelCard(
    class_names=('gland',),
    category_ids=(1,),
    score_threshold=0.5,
    input_size=(256, 384),
    short_side=256,
    mean_rgb=(1.0, 2.0, 3.0),
    stddev_rgb=(1.0, 2.0, 3.0),
    checkpoint='ckpt-7',
    step=7,
    version='1.0',
)
KINDS = (
    ImageFile,
    CocoFile,
    Predictions,
    Settings,
    SavedSettings,
    Cache,
    Weights,
    Checkpoint,
    SavedModel,
)
# YAML is parsed in Python, slowly, and a cache is made again.
MANY = {kind: 500 if kind in (Settings, Cache) else 2000 for kind in KINDS}


def cause(kind, folder, number):
    """Gives `kind` that many damaged files."""
    folder = folder / 'a' / 'b'
    folder.mkdir(parents=True)
    read = kind(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @hypothesis.settings(
        deadline=None,
        derandomize=True,
        database=None,
        max_examples=number,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def check(data):
        start = time.process_time()
        try:
            read(data)
        except UserError as error:
            text = str(error)
            assert text and '\n' not in text and len(text) < 9000
            text.encode()
        assert time.process_time() - start < MOST_SECONDS

    check()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MOST_BYTES


@pytest.mark.parametrize('kind', KINDS)
def test_a_damaged_file_is_one_line_or_as_good(kind, tmp_path):
    cause(kind, tmp_path, FEW)


@pytest.mark.faults
@pytest.mark.parametrize('kind', KINDS)
def test_thousands_of_damaged_files(kind, tmp_path):
    cause(kind, tmp_path, runs.count(MANY[kind]))
