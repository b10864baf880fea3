"""The ONNX file: that it answers as the SavedModel does, and how its parts are converted."""

import argparse
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

REASON = "the extra onnx is not installed: pip install 'gan-mrcnn[onnx]'"
onnx = pytest.importorskip('onnx', reason=REASON)
onnxruntime = pytest.importorskip('onnxruntime', reason=REASON)
pytest.importorskip('tf2onnx', reason=REASON)

from custom_ops.nms import combined_non_max_suppression  # noqa: E402
from gan_mrcnn import settings  # noqa: E402
from gan_mrcnn.commands import evaluate as evaluate_command  # noqa: E402
from gan_mrcnn.commands import export as export_command  # noqa: E402
from gan_mrcnn.prediction import checkpoint, model_card, onnx_file, tta  # noqa: E402
from gan_mrcnn.prediction import exported as exported_lib  # noqa: E402
from gan_mrcnn.serving import onnx_export  # noqa: E402
from gan_mrcnn.utils import cli  # noqa: E402
from gan_mrcnn.utils.errors import UserError  # noqa: E402
from tests.custom_ops import nms_reference  # noqa: E402
from tests.serving.tiny import photo  # noqa: E402


def convert(function, *shape, dtype=tf.float32):
    """A function of arrays, which a TensorFlow function of one of such a shape was made into."""
    spec = tf.TensorSpec(shape, dtype, name='x')
    model = onnx_export.convert(tf.function(lambda x: {'y': function(x)}), spec)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=['CPUExecutionProvider']
    )
    return lambda x: session.run(['y'], {'x': x})[0]


# Parts.


def test_an_image_is_scaled_as_tensorflow_does_it():
    def scale(image):
        halves = tf.shape(image)[:2] * [1, 2] // [2, 1]
        return tf.image.resize(image, halves, antialias=True)

    converted = convert(scale, None, None, 3)
    for size in ((40, 30), (41, 7), (3, 5)):
        image = photo(size).astype(np.float32)
        found = converted(image)
        assert found.shape == (size[0] // 2, 2 * size[1], 3)
        np.testing.assert_allclose(found, scale(image), atol=1e-3)


def test_crops_are_those_of_tensorflow():
    maps = np.random.default_rng(1).normal(size=[2, 9, 14, 5]).astype(np.float32)

    def crop(boxes):
        return tf.image.crop_and_resize(maps, boxes, [0, 1, 1, 0], [4, 6])

    # Also such that end before they begin; not to the last pixel, which TensorFlow may round out.
    boxes = np.random.default_rng(0).uniform(0, 0.99, [4, 4]).astype(np.float32)
    np.testing.assert_allclose(convert(crop, None, 4)(boxes), crop(boxes), atol=1e-5)


def test_the_border_is_repeated():
    def pad(image):
        return tf.pad(image, [[0, 0], [0, 1], [1, 1], [0, 0]], 'SYMMETRIC')

    image = np.arange(24, dtype=np.float32).reshape([1, 3, 4, 2])
    np.testing.assert_array_equal(convert(pad, 1, None, None, 2)(image), pad(image))


def test_a_remainder_has_the_sign_of_the_divisor():
    numbers = np.arange(-9, 10, dtype=np.int32)
    converted = convert(lambda x: x % 4, None, dtype=tf.int32)
    np.testing.assert_array_equal(converted(numbers), [number % 4 for number in range(-9, 10)])


def test_an_axis_can_be_counted_from_the_end():
    logits = np.random.default_rng(0).normal(size=[2, 3, 4, 5, 6]).astype(np.float32)
    classes = np.array([[0, 5, 2], [1, 1, 3]])
    converted = convert(
        lambda x: tf.gather(x, tf.constant(classes), axis=-1, batch_dims=2), None, 3, 4, 5, 6
    )
    wanted = [[logits[b, n, :, :, classes[b, n]] for n in range(3)] for b in range(2)]
    np.testing.assert_array_equal(converted(logits), wanted)


def test_a_map_is_enlarged_pixel_by_pixel():
    features = np.random.default_rng(0).normal(size=[2, 3, 5, 4]).astype(np.float32)
    converted = convert(tf.keras.layers.UpSampling2D(2), None, 3, 5, 4)
    np.testing.assert_array_equal(converted(features), features.repeat(2, 1).repeat(2, 2))


def test_the_best_boxes_of_each_class_are_chosen():
    boxes, scores = nms_reference.images(3, 2, 50, 3, False)

    def choose(scores, way):
        numbers = (20, 30, 0.4, 0.3)
        found = combined_non_max_suppression(boxes, scores, *numbers, way)
        return tf.concat([tf.reshape(tf.cast(x, tf.float32), [2, -1]) for x in found], axis=1)

    converted = convert(lambda x: choose(x, 'tensorflow_by_class'), 2, 50, 3)
    # The second image has none in the end.
    for factors in ([[[1]], [[1]]], [[[1]], [[0]]]):
        some = (scores * factors).astype(np.float32)
        found, wanted = converted(some), choose(some, 'tensorflow').numpy()
        assert wanted[0, -1] > 3
        np.testing.assert_array_equal(found, wanted)


def test_what_onnx_does_not_have_is_named():
    with pytest.raises(UserError, match='holds Betainc, which ONNX does not have') as error:
        convert(lambda x: tf.math.betainc(x, x, x), None)
    assert '\n' not in str(error.value)


# The whole.


@pytest.fixture(scope='module')
def onnx_path(exported, tmp_path_factory):
    """The tiny run as an ONNX file."""
    folder = tmp_path_factory.mktemp('onnx')
    opened = checkpoint.open_run(str(exported.run))
    return onnx_export.export(opened.module(), opened.card, opened.config, str(folder))


@pytest.fixture(scope='module')
def network(onnx_path):
    return exported_lib.load(str(onnx_path))


def assert_same(found, wanted):
    for name, tolerance in onnx_export.TOLERANCES.items():
        np.testing.assert_allclose(
            getattr(found, name), getattr(wanted, name), rtol=0, atol=tolerance, err_msg=name
        )


def test_it_detects_what_the_saved_model_detects(network, predictor):
    photos = [photo(size, 1) for size in ((60, 80), (33, 100), (200, 150), (17, 9))]
    files = [tf.io.encode_png(one).numpy() for one in photos]
    files.append(tf.io.encode_jpeg(photos[0]).numpy())
    for found, wanted in zip(network.detect(files), predictor.detect(files)):
        assert len(wanted.scores) > 1
        assert_same(found, wanted)
    assert network.most_detections == predictor.most_detections == 9


def test_images_of_one_size_go_in_one_batch(network):
    pixels = np.stack([photo((60, 80), seed) for seed in range(3)])
    for i, found in enumerate(network.detect_pixels(pixels)):
        (alone,) = network.detect_pixels(pixels[i : i + 1])
        assert_same(found, alone)


def test_a_bad_image_is_named_as_by_the_saved_model(network):
    with pytest.raises(UserError, match='image 0 of the request is no JPEG or PNG: 3 bytes'):
        network.detect([b'bad'])


def test_it_can_be_shown_mirrored_images(onnx_path, predictor):
    pixels = photo((60, 80))[np.newaxis]
    (found,) = exported_lib.load(str(onnx_path), 'flip').detect_pixels(pixels)
    (wanted,) = tta.augment_saved_model(predictor, 'flip').detect_pixels(pixels)
    assert len(wanted.scores) > 1
    assert_same(found, wanted)


def test_the_file_is_enough_without_this_package_and_tensorflow(onnx_path, network, tmp_path):
    np.save(tmp_path / 'pixels.npy', photo((60, 80)))
    program = (
        'import sys\n'
        'for name in ("gan_mrcnn", "custom_ops", "tensorflow", "onnx", "tf2onnx"):\n'
        '    sys.modules[name] = None\n'
        'import json, numpy as np, onnxruntime\n'
        'session = onnxruntime.InferenceSession(sys.argv[1])\n'
        'card = json.loads(session.get_modelmeta().custom_metadata_map["model.json"])\n'
        'print(*card["class_names"], sep=",")\n'
        'names = [one.name for one in session.get_outputs()]\n'
        'values = session.run(names, {"image_tensor": np.load(sys.argv[2])[np.newaxis]})\n'
        'np.savez(sys.argv[3], **dict(zip(names, values)))\n'
    )
    places = [onnx_path, tmp_path / 'pixels.npy', tmp_path / 'found.npz']
    done = subprocess.run(
        [sys.executable, '-c', program, *map(str, places)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == 'gland,vessel\n' and not done.stderr
    (wanted,) = network.detect_pixels(photo((60, 80))[np.newaxis])
    with np.load(tmp_path / 'found.npz') as found:
        count = found['num_detections'][0]
        np.testing.assert_array_equal(found['detection_boxes'][0, :count], wanted.boxes)
        assert not found['detection_boxes'][0, count:].any()
        assert [found[f'detection_{name}'].dtype for name in ('classes', 'masks')] == [
            np.int32,
            np.float32,
        ]


def test_the_file_says_what_it_is(onnx_path, exported):
    model = onnx.load(str(onnx_path))
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import if not one.domain] == [
        ('', onnx_export.OPSET)
    ]
    shapes = {
        one.name: [d.dim_param or d.dim_value for d in one.type.tensor_type.shape.dim]
        for one in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        'image_tensor': ['batch', 'height', 'width', 3],
        'detection_boxes': ['batch', 9, 4],
        'detection_scores': ['batch', 9],
        'detection_classes': ['batch', 9],
        'detection_masks': ['batch', 9, 28, 28],
        'num_detections': ['batch'],
    }
    for entry in model.metadata_props:
        for assets in (onnx_path.parent / 'assets', exported.version / 'assets'):
            assert (assets / entry.key).read_text(encoding='utf-8') == entry.value
    assert {entry.key for entry in model.metadata_props} == {
        'model.json',
        'class_names.txt',
        'params.yaml',
    }


def test_evaluate_finds_settings_and_place_of_results(onnx_path):
    assert (exported_lib.assets_of(str(onnx_path)) / 'params.yaml').is_file()
    assert evaluate_command._beside(str(onnx_path)) == str(onnx_path.parent.resolve())


# What is refused.


def assert_refused(match, function, *arguments):
    with pytest.raises(UserError, match=match) as error:
        function(*arguments)
    assert '\n' not in str(error.value)


def test_a_file_is_not_replaced(onnx_path):
    assert_refused(
        'model.onnx exists; remove it', onnx_export.export, None, None, None, str(onnx_path.parent)
    )


def test_scores_that_ask_the_discriminator_are_refused(exported, tmp_path):
    config = settings.saved_config(exported.run / 'params.yaml')
    config.task.gan.rescore_exponent = 0.5
    assert_refused(
        'rescore_exponent is 0.5.*--format saved_model',
        onnx_export.export,
        None,
        None,
        config,
        str(tmp_path),
    )


def test_damaged_files_and_those_of_others_are_named(onnx_path, tmp_path):
    path = tmp_path / 'model.onnx'
    assert_refused('model.onnx is missing or damaged', exported_lib.load, str(path))
    content = onnx_path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert_refused(f'{path} is missing or damaged', exported_lib.load, str(path))
    identity = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[1] x) => (float[1] y) {y = Identity(x)}'
    )
    path.write_bytes(identity.SerializeToString())
    assert_refused(f'{path} has no model card', exported_lib.load, str(path))
    identity.metadata_props.add(key=model_card.FILE_NAME, value=json.dumps({'step': 1}))
    path.write_bytes(identity.SerializeToString())
    assert_refused(f'{path} cannot be read', exported_lib.load, str(path))


@pytest.mark.parametrize(
    'change, words',
    [
        ({'num_detections': lambda n: n // 2}, 'ONNX Runtime finds . objects.*TensorFlow .;'),
        (
            {'detection_boxes': lambda boxes: boxes + 0.1},
            'boxes from ONNX Runtime differ.* by 0.1 ',
        ),
        ({'detection_scores': lambda scores: scores * np.nan}, 'scores .* differ.* by nan '),
    ],
)
def test_a_file_that_answers_otherwise_is_not_written(onnx_path, predictor, change, words):
    signature = predictor._functions['image_tensor']

    @tf.function
    def other(image_tensor):
        outputs = signature(image_tensor=image_tensor)
        return {name: change.get(name, tf.identity)(value) for name, value in outputs.items()}

    spec = tf.TensorSpec([None, None, None, 3], tf.uint8, name='image_tensor')
    assert_refused(words, onnx_export.check, onnx_path.read_bytes(), other, spec)


def test_a_missing_extra_and_a_flag_of_the_other_format_are_named():
    assert_refused(
        r"nosuch is not installed; pip install 'gan-mrcnn\[onnx\]'",
        cli.check_extra,
        'onnx',
        'onnxruntime',
        'nosuch',
    )
    options = argparse.Namespace(model_dir='run', published=None, format='onnx', version=3)
    assert_refused('--version numbers SavedModels', export_command.main, options)


# Real images.


@pytest.mark.slow
def test_real_images_are_answered_as_by_the_saved_model(network, predictor, glas_dir, coco_dir):
    paths = sorted(glas_dir.glob('testA_?.png'))[:3] + sorted(coco_dir.glob('val2017/*.jpg'))[:5]
    files = [path.read_bytes() for path in paths]
    assert len(files) >= 5
    for path, found, wanted in zip(paths, network.detect(files), predictor.detect(files)):
        assert len(found.scores) == len(wanted.scores), path
        assert_same(found, wanted)


def test_onnx_runtime_is_quiet(onnx_path, capfd):
    onnx_file.load(os.fspath(onnx_path), 'it')
    assert capfd.readouterr() == ('', '')
