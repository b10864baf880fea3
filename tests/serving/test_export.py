"""The exported model, as a process that does not know this package sees it."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from custom_ops.prroi_pool import build
from gan_mrcnn import settings
from gan_mrcnn.prediction import checkpoint, model_card, signatures
from gan_mrcnn.prediction import predictor as predictor_lib
from gan_mrcnn.serving import export as export_lib
from gan_mrcnn.serving import warmup
from gan_mrcnn.utils.errors import UserError
from tests.serving.tiny import HERE, photo

SIZES = [(60, 80), (33, 100), (200, 150)]


def encoded_photos():
    """Several sizes, both encodings."""
    photos = [photo(size, seed) for seed, size in enumerate(SIZES)]
    return [tf.io.encode_png(p).numpy() for p in photos] + [
        tf.io.encode_jpeg(p, quality=95).numpy() for p in photos
    ]


@pytest.fixture(scope='module')
def of_checkpoint(exported):
    """What the checkpoint detects, by the layers as Python runs them, image by image."""
    module = checkpoint.open_run(str(exported.run)).module()
    outputs = [module.detect_encoded(tf.constant([image])) for image in encoded_photos()]
    return {name: np.concatenate([one[name].numpy() for one in outputs]) for name in outputs[0]}


def test_an_export_in_a_folder_whose_name_is_a_pattern(exported, tmp_path):
    moved = shutil.copytree(exported.model, tmp_path / 'ex[2]*' / 'model')
    (found,) = predictor_lib.load_saved_model(str(moved)).detect(encoded_photos()[:1])
    (wanted,) = predictor_lib.load_saved_model(str(exported.model)).detect(encoded_photos()[:1])
    np.testing.assert_array_equal(found.scores, wanted.scores)


def assert_same(found, wanted):
    assert set(found) == set(wanted)
    assert (wanted['num_detections'] > 1).all()
    np.testing.assert_array_equal(found['num_detections'], wanted['num_detections'])
    np.testing.assert_array_equal(found['detection_classes'], wanted['detection_classes'])
    np.testing.assert_allclose(found['detection_scores'], wanted['detection_scores'], atol=1e-5)
    np.testing.assert_allclose(found['detection_boxes'], wanted['detection_boxes'], atol=1e-2)
    np.testing.assert_allclose(found['detection_masks'], wanted['detection_masks'], atol=1e-3)


def signature_of(version, name='serving_default'):
    content = saved_model_pb2.SavedModel()
    content.ParseFromString((version / 'saved_model.pb').read_bytes())
    return content.meta_graphs[0].signature_def[name]


def test_another_process_without_this_package_detects_the_same(exported, of_checkpoint, tmp_path):
    images = encoded_photos()
    for i, image in enumerate(images):
        (tmp_path / str(i)).write_bytes(image)
    script = (
        'import sys\n'
        'for name in ("gan_mrcnn", "custom_ops", "official"):\n'
        '    sys.modules[name] = None\n'
        'import numpy as np, tensorflow as tf\n'
        'loaded = tf.saved_model.load(sys.argv[1])\n'
        'images = [open(path, "rb").read() for path in sys.argv[3:]]\n'
        'found = loaded.signatures["serving_default"](image_bytes=tf.constant(images))\n'
        'np.savez(sys.argv[2], **{name: value.numpy() for name, value in found.items()})\n'
    )
    files = [str(tmp_path / str(i)) for i in range(len(images))]
    command = [sys.executable, '-I', '-c', script, str(exported.version), str(tmp_path / 'o.npz')]
    subprocess.run(command + files, check=True)
    with np.load(tmp_path / 'o.npz') as found:
        assert_same(found, of_checkpoint)


def test_the_c_api_loads_it_and_detects_the_same(exported, of_checkpoint, tmp_path):
    images = encoded_photos()
    for i, image in enumerate(images):
        (tmp_path / str(i)).write_bytes(image)
    signature = signature_of(exported.version)
    names = {
        'input': signature.inputs['image_bytes'].name,
        'outputs': {name: info.name for name, info in signature.outputs.items()},
    }
    files = [str(tmp_path / str(i)) for i in range(len(images))]
    command = [sys.executable, '-I', str(HERE / 'c_api.py'), str(exported.version)]
    subprocess.run([*command, json.dumps(names), str(tmp_path / 'o.npz'), *files], check=True)
    with np.load(tmp_path / 'o.npz') as found:
        assert_same(found, of_checkpoint)


def test_all_signatures_agree(predictor, exported):
    loaded = tf.saved_model.load(str(exported.version))
    pixels = np.stack([photo((60, 80), 1), photo((60, 80), 2)])
    files = [tf.io.encode_png(one).numpy() for one in pixels]
    examples = [
        tf.train.Example(
            features=tf.train.Features(
                feature={
                    'image/encoded': tf.train.Feature(bytes_list=tf.train.BytesList(value=[file]))
                }
            )
        ).SerializeToString()
        for file in files
    ]
    by_bytes = loaded.signatures['serving_default'](image_bytes=tf.constant(files))
    by_pixels = loaded.signatures['image_tensor'](image_tensor=tf.constant(pixels))
    by_example = loaded.signatures['tf_example'](tf_example=tf.constant(examples))
    for other in (by_pixels, by_example):
        assert_same(
            {name: value.numpy() for name, value in other.items()},
            {name: value.numpy() for name, value in by_bytes.items()},
        )


def test_the_signature_says_how_to_call_it(exported):
    for name, wanted in (
        ('serving_default', ('image_bytes', tf.string, [-1])),
        ('image_tensor', ('image_tensor', tf.uint8, [-1, -1, -1, 3])),
        ('tf_example', ('tf_example', tf.string, [-1])),
        ('full_masks', ('image_bytes', tf.string, [-1])),
    ):
        signature = signature_of(exported.version, name)
        ((key, info),) = signature.inputs.items()
        shape = [dim.size for dim in info.tensor_shape.dim]
        assert (key, info.dtype, shape) == (wanted[0], wanted[1].as_datatype_enum, wanted[2])
        masks = 'label_map' if name == 'full_masks' else 'detection_masks'
        assert set(signature.outputs) == {
            'detection_boxes',
            'detection_scores',
            'detection_classes',
            'num_detections',
            masks,
        }


def test_only_the_generator_is_in_it(exported):
    names = [
        name for name, _ in tf.train.list_variables(str(exported.version / 'variables/variables'))
    ]
    module = checkpoint.open_run(str(exported.run)).module()
    weights = [name for name in names if name.startswith('generator_variables/')]
    assert len(weights) == len(module.generator_variables)
    assert set(names) - set(weights) == {'_CHECKPOINTABLE_OBJECT_GRAPH'}


def test_an_operation_of_our_own_is_refused_by_name(exported, tmp_path, monkeypatch):
    # PrRoIPool's own, which a server has not: into the list of what the graph holds.
    monkeypatch.setattr(export_lib, 'operations', lambda folder: ['Conv2D', 'PrRoIPool'])
    module = tf.Module()
    call = tf.function(lambda x: {'y': x}, input_signature=[tf.TensorSpec([], tf.float32)])
    module.signatures = lambda nms: {'serving_default': call}
    card = model_card.read(exported.version / 'assets')
    config = settings.saved_config(exported.run / 'params.yaml')
    with pytest.raises(UserError, match='PrRoIPool'):
        export_lib.export(module, card, config, str(tmp_path))
    assert list((tmp_path / 'model').iterdir()) == []


@pytest.mark.skipif(build.find_compiler() is None, reason='no C++ compiler')
def test_the_export_has_stock_operations_where_a_checkpoint_has_ours(exported, tmp_path):
    ours, theirs = 'GroupedNonMaxSuppression', 'CombinedNonMaxSuppression'
    module = checkpoint.open_run(str(exported.run)).module()
    tf.saved_model.save(module, str(tmp_path), signatures=module.signatures('compiled'))
    assert ours in set(export_lib.operations(tmp_path))
    stock = set(export_lib.operations(exported.version))
    assert theirs in stock and stock <= set(dir(tf.raw_ops))


def test_operations_of_functions_are_listed_too(tmp_path):
    module = tf.Module()
    module.inner = tf.function(
        lambda x: tf.while_loop(lambda i: i < 3.0, lambda i: [tf.math.asinh(i) + 1.0], [x])
    )
    call = tf.function(lambda x: {'y': module.inner(x)[0]})
    signature = call.get_concrete_function(tf.TensorSpec([], tf.float32))
    tf.saved_model.save(module, str(tmp_path / 'm'), signatures=signature)
    assert 'Asinh' in set(export_lib.operations(tmp_path / 'm'))


def test_versions_count_up_and_none_is_replaced(exported, tmp_path, monkeypatch):
    assert exported.version.name == '1'
    (tmp_path / 'model' / '4').mkdir(parents=True)
    (tmp_path / 'model' / 'eval').mkdir()
    assert export_lib._free_version(tmp_path / 'model') == 5
    with pytest.raises(UserError, match='model/4 exists'):
        export_lib.export(None, None, None, str(tmp_path), version=4)
    with pytest.raises(UserError, match='--version 0'):
        export_lib.export(None, None, None, str(tmp_path), version=0)


def test_assets_say_what_the_numbers_mean(exported):
    assets = exported.version / 'assets'
    assert (assets / 'class_names.txt').read_text() == 'gland\nvessel\n'
    card = model_card.read(assets)
    assert card.class_names == ('gland', 'vessel') and card.category_ids == (1, 2)
    assert card.step == 7 and card.score_threshold == 0.5
    assert card.input_size == (64, 64) and card.short_side == 32
    # Its pixels, normalized by hand, are what the network is shown.
    pixels = photo((32, 32))
    normalized = (pixels - np.array(card.mean_rgb)) / np.array(card.stddev_rgb)
    module = checkpoint.open_run(str(exported.run)).module()
    shown, _ = module._resize(tf.constant(pixels))
    np.testing.assert_allclose(shown[:32, :32], normalized, atol=1e-5)
    params = (assets / 'params.yaml').read_text()
    assert 'input_size' in params and str(exported.run.parent) not in params


def test_warm_up_requests_parse_and_run(exported):
    from tensorflow_serving.apis import prediction_log_pb2

    loaded = tf.saved_model.load(str(exported.version))
    seen = []
    for record in tf.data.TFRecordDataset(str(exported.version / warmup.FILE_NAME)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
        inputs = {name: tf.constant(value) for name, value in inputs.items()}
        outputs = loaded.signatures[request.model_spec.signature_name](**inputs)
        assert outputs['num_detections'].shape == [1]
        seen.append(request.model_spec.signature_name)
    assert seen == list(signatures.SIGNATURES)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match='holds no SavedModel'):
        predictor_lib.load_saved_model(str(tmp_path))
    with pytest.raises(UserError, match='nowhere does not exist'):
        predictor_lib.load_saved_model(str(tmp_path / 'nowhere'))
    with pytest.raises(UserError, match='params.yaml'):
        checkpoint.open_run(str(tmp_path))


@pytest.mark.parametrize('name', ['saved_model.pb', 'variables/variables.data-00000-of-00001'])
def test_a_model_that_is_cut_short_is_named(exported, tmp_path, name):
    folder = tmp_path / 'model'
    shutil.copytree(exported.version, folder)
    os.truncate(folder / name, (folder / name).stat().st_size // 2)
    with pytest.raises(UserError, match='is damaged') as caught:
        predictor_lib.load_saved_model(str(folder))
    assert str(folder) in str(caught.value) and '\n' not in str(caught.value)


def test_a_model_of_another_program_is_named(exported, tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path))
    with pytest.raises(UserError, match='model.json cannot be read'):
        predictor_lib.load_saved_model(str(tmp_path))
    model_card.write(model_card.read(exported.version / 'assets'), tmp_path / 'assets')
    with pytest.raises(UserError, match='no signature serving_default'):
        predictor_lib.load_saved_model(str(tmp_path))


@pytest.mark.parametrize(
    'change',
    [
        {'class_names': 'gland'},
        {'category_ids': [1, 2, 3, 4, 5, 6, 7]},
        {'score_threshold': 'high'},
        {'input_size': [256]},
        {'step': 7.5},
        {'mean_rgb': [1, 2, float('nan')]},
    ],
)
def test_a_description_of_another_shape_is_named(exported, tmp_path, change):
    content = json.loads((exported.version / 'assets/model.json').read_text())
    (tmp_path / 'model.json').write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError, match=next(iter(change))):
        model_card.read(tmp_path)
