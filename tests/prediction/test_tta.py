"""Test-time augmentation: exact geometry, and what is merged."""

import dataclasses
import json
import types

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gan_mrcnn import configs
from gan_mrcnn.prediction import checkpoint, image_files, tta
from gan_mrcnn.prediction.predictor import Detections
from gan_mrcnn.utils import cli
from gan_mrcnn.utils.errors import UserError
from tests import programs, tiny
from tests.prediction.test_run import make_card
from tests.serving.tiny import photo
from tests.utils.cells import cell_means

SIDE = 28


class Symmetric:
    """A network that sees objects by their grey, the same however the image lies.

    Class and score follow from the grey, box and mask from the pixels.
    """

    card = make_card()
    most_detections = 10

    def detect_pixels(self, images):
        return [self._detect(image[..., 0]) for image in images]

    def _detect(self, grey):
        rows = []
        for value in sorted(set(np.unique(grey)) - {0}, reverse=True):
            mask = grey == value
            ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = np.array([ys[0], xs[0], ys[-1] + 1, xs[-1] + 1], np.float32)
            rows.append((box, value / 256, 1 + value % 2, cell_means(mask, box, SIDE)))
        if not rows:
            return nothing()
        boxes, scores, classes, masks = map(np.array, zip(*rows))
        return Detections(
            boxes, scores.astype(np.float32), classes.astype(np.int32), masks.astype(np.float32)
        )


def nothing():
    return Detections(
        *(np.zeros(shape, np.float32) for shape in ([0, 4], [0])),
        np.zeros(0, np.int32),
        np.zeros([0, SIDE, SIDE], np.float32),
    )


def one(box, score, class_id=1, mask=1.0):
    return Detections(
        np.array([box], np.float32),
        np.array([score], np.float32),
        np.array([class_id], np.int32),
        np.full([1, SIDE, SIDE], mask, np.float32),
    )


@st.composite
def scenes(draw):
    """Images with up to five rectangles over each other, grey on black."""
    height, width = draw(st.integers(3, 40)), draw(st.integers(3, 40))
    image = np.zeros([height, width, 3], np.uint8)
    for value in draw(st.lists(st.integers(1, 255), max_size=5, unique=True)):
        y, x = draw(st.integers(0, height - 2)), draw(st.integers(0, width - 2))
        image[y : y + draw(st.integers(1, height)), x : x + draw(st.integers(1, width))] = value
    return image


def assert_same(found, wanted):
    np.testing.assert_array_equal(found.classes, wanted.classes)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
    np.testing.assert_allclose(found.boxes, wanted.boxes, atol=1e-4)
    np.testing.assert_allclose(found.masks, wanted.masks, atol=1e-4)


def test_the_flag_and_the_orientations_have_the_same_names():
    assert tuple(tta.ORIENTATIONS) == cli.TTA


def test_all_eight_orientations_are_different():
    pixels = np.arange(6).reshape(2, 3)
    for kind, count in (('flip', 2), ('all', 8)):
        shown = [tta.turn(pixels, x).tolist() for x in tta.ORIENTATIONS[kind]]
        assert len({str(x) for x in shown}) == count and shown[0] == pixels.tolist()


@settings(max_examples=40, deadline=None)
@given(image=scenes())
def test_what_is_detected_in_a_turned_image_turns_back_to_its_place(image):
    network = Symmetric()
    (wanted,) = network.detect_pixels([image])
    for orientation in tta.ORIENTATIONS['all']:
        (found,) = network.detect_pixels([tta.turn(image, orientation)])
        assert_same(tta.turn_back(found, orientation, *image.shape[:2]), wanted)


@settings(max_examples=25, deadline=None)
@given(image=scenes(), kind=st.sampled_from(cli.TTA))
def test_a_symmetric_network_finds_the_same_with_and_without(image, kind):
    """Also where its own boxes of a class overlap by more than half."""
    network = Symmetric()
    augmented = tta.AugmentedPredictor(network, kind, network)
    for found, wanted in zip(
        augmented.detect_pixels(np.stack([image, image[::-1]])),
        network.detect_pixels([image, image[::-1]]),
    ):
        assert_same(found, wanted)


def test_files_of_different_sizes_are_detected_one_by_one():
    network = Symmetric()
    images = [np.zeros([20, 30, 3], np.uint8), np.zeros([9, 5, 3], np.uint8)]
    images[0][3:10, 4:25], images[1][2:4] = 200, 90
    files = [tf.io.encode_png(x).numpy() for x in images]
    augmented = tta.AugmentedPredictor(network, 'all', network)
    for found, image in zip(augmented.detect(files), images):
        assert_same(found, network.detect_pixels([image])[0])
    with pytest.raises(UserError, match='image 1 of the request is no JPEG or PNG'):
        augmented.detect([files[0], b'x'])


def test_boxes_and_masks_are_means_weighted_by_score():
    found = tta.merge([one([0, 0, 10, 20], 0.9), one([1, 0, 14, 22], 0.3)], 10)
    assert found.scores.tolist() == pytest.approx([0.6])
    np.testing.assert_allclose(found.boxes, [[0.25, 0, 11, 20.5]], atol=1e-5)
    # By hand: the worse mask begins below the first row of cells, and the better one ends within
    # the 26th.
    mask = found.masks[0]
    assert mask[13, 13] == pytest.approx(1.0)
    assert mask[0, 0] == pytest.approx(0.75, abs=1e-6)
    cell = 10.75 / 28
    inside = (10 - (0.25 + 25 * cell)) / cell
    assert 0 < inside < 1 and mask[25, 10] == pytest.approx(0.75 * inside + 0.25, abs=1e-5)
    assert mask[26, 10] == pytest.approx(0.25, abs=1e-6)


def test_what_one_orientation_alone_shows_counts_less():
    shown = [one([0, 0, 10, 10], 0.8), *[nothing()] * 3]
    found = tta.merge(shown, 10)
    assert found.scores.tolist() == pytest.approx([0.2])
    assert_same(found._replace(scores=shown[0].scores), shown[0])


@pytest.mark.parametrize('other', [one([0, 0, 10, 10], 0.6, class_id=2), one([0, 6, 10, 16], 0.6)])
def test_other_classes_and_places_are_other_objects(other):
    found = tta.merge([one([0, 0, 10, 10], 0.8), other], 10)
    assert found.scores.tolist() == pytest.approx([0.4, 0.3])
    np.testing.assert_array_equal(found.boxes[1], other.boxes[0])


def test_an_orientation_gives_one_detection_to_an_object():
    """The one that overlaps most; the other remains by itself."""
    both = Detections(*(np.concatenate(x) for x in zip(*BOTH)))
    found = tta.merge([one([0, 0, 10, 10], 0.9), both], 10)
    assert found.scores.tolist() == pytest.approx([0.8, 0.4])


BOTH = (one([0, 0, 10, 8], 0.8), one([0, 0, 10, 9], 0.7))


def test_the_best_are_kept_and_nothing_is_nothing():
    found = tta.merge([one([0, 0, 10, 10], 0.2), one([50, 0, 60, 10], 0.8)], 1)
    assert found.scores.tolist() == pytest.approx([0.4])
    assert_same(tta.merge([nothing()] * 2, 1), nothing())


def test_tiles_are_augmented_too(tmp_path):
    image = np.zeros([70, 300, 3], np.uint8)
    image[10:30, 30:50], image[20:50, 85:115], image[5:60, 180:230] = 250, 200, 150
    Image.fromarray(image).save(tmp_path / 'large.png')
    sources = image_files.find_sources([str(tmp_path / 'large.png')])
    network = Symmetric()
    results = [
        next(image_files.detect(image_files.read(sources, []), one_way, 0.5, 3, (70, 100), 40, []))
        for one_way in (network, tta.AugmentedPredictor(network, 'all', network))
    ]
    plain, augmented = ([x.box for x in result.objects] for result in results)
    assert len(plain) == 3
    np.testing.assert_allclose(augmented, plain, atol=1e-3)


def test_turned_images_get_a_turned_canvas():
    """So that their objects keep their size; a wide canvas would shrink an upright image."""
    seen = set()

    class Network:
        variables = ()

        def __call__(self, images, image_shape, training, nms='auto'):
            seen.add(tuple(images.shape[1:3]))
            count = tf.shape(images)[0]
            return {
                'num_detections': tf.ones([count], tf.int32),
                # The whole image: it must come back as such, however it was shown and scaled.
                'detection_boxes': tf.concat([tf.zeros([count, 2]), image_shape], 1)[:, None],
                'detection_scores': tf.fill([count, 1], 0.5),
                'detection_classes': tf.ones([count, 1], tf.int32),
                'detection_masks': tf.ones([count, 1, SIDE, SIDE]),
            }

    config = configs.GanMaskRCNNTask()
    config.model.input_size = [64, 128, 3]
    config.validation_data.parser.override({'test_short_side': 64})
    opened = checkpoint.Opened(Network(), make_card(), types.SimpleNamespace(task=config))
    for kind, canvases in (('flip', {(64, 128)}), ('all', {(64, 128), (128, 64)})):
        seen.clear()
        (found,) = opened.predictor(kind).detect_pixels(np.zeros([1, 50, 90, 3], np.uint8))
        assert seen == canvases
        np.testing.assert_allclose(found.boxes, [[0, 0, 50, 90]], atol=1e-3)
        assert found.scores.tolist() == [0.5]
    assert config.model.input_size == [64, 128, 3]


def test_an_export_that_is_not_square_takes_flips_only():
    network = Symmetric()
    assert isinstance(tta.augment_saved_model(network, 'all'), tta.AugmentedPredictor)
    wide = types.SimpleNamespace(card=dataclasses.replace(make_card(), input_size=(64, 96)))
    assert isinstance(tta.augment_saved_model(wide, 'flip'), tta.AugmentedPredictor)
    with pytest.raises(UserError, match='this export has an input of 64x96'):
        tta.augment_saved_model(wide, 'all')


def test_predict_and_evaluate_as_they_are_typed(exported, tmp_path):
    Image.fromarray(photo((60, 80))).save(tmp_path / 'a.png')
    command = ['predict', '--model', exported.model, tmp_path / 'a.png', '--tta', 'all']
    done = programs.run(*command, '--out', tmp_path / 'out')
    assert done.status == 0, done.err
    assert (tmp_path / 'out/predictions.json').is_file()
    done = programs.run(
        *('evaluate', '--dataset', 'label_images', '--data_dir', exported.run.parent / 'data'),
        *('--saved_model', exported.model, '--model_dir', tmp_path, '--split', 'val'),
        *('--cache_dir', tmp_path / 'cache', '--tta', 'flip'),
    )
    assert done.status == 0, done.err
    # Beside the figures without, which it does not replace.
    assert not (tmp_path / 'eval/val').exists()
    results = json.loads((tmp_path / 'eval/val-tta-flip/results.json').read_text())
    assert results['tta'] == 'flip' and results['split'] == 'val'
    manifest = (tmp_path / 'eval/val-tta-flip/predictions.manifest.json').read_text()
    assert json.loads(manifest)['tta'] == 'flip'
    line = programs.refusal(
        programs.run(
            *('evaluate', '--dataset', 'label_images', '--predictions', 'x', '--tta', 'flip'),
            *('--params_override', tiny.SETTINGS),
        ),
        'evaluate',
    )
    assert line.endswith('--tta goes without --predictions; leave it out')
