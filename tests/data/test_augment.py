"""Noise, blur, sharpness, lightness and contrast: their values, and where they are drawn from."""

import dataclasses
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance

from gan_mrcnn import compat
from gan_mrcnn.data import augment
from gan_mrcnn.data.readers import base
from gan_mrcnn.data.records import records
from tests.data.blocks import Blocks, make_example

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)


def change(operation, strength, seed=0):
    """By NumPy and by TensorFlow, as uint8."""
    found = augment.change(IMAGE, operation, strength, np.random.default_rng(seed))
    pixels = tf.cast(IMAGE, tf.float32)
    function = tf.function(augment._TENSOR_CHANGES[operation])
    tensor = function(pixels, tf.constant(strength), tf.constant([seed, 1]))
    return found, tf.saturate_cast(tf.round(tensor), tf.uint8).numpy()


def test_lightness_and_contrast_by_hand():
    for strength in (0.75, 1.3):
        wanted = np.clip(np.round(IMAGE * strength), 0, 255)
        for found in change('lightness', strength):
            np.testing.assert_allclose(found, wanted, atol=1)
        wanted = np.clip(np.round(128 + (IMAGE - 128.0) * strength), 0, 255)
        for found in change('contrast', strength):
            np.testing.assert_allclose(found, wanted, atol=1)


@pytest.fixture(params=['with addons', 'without'])
def either_set(request, monkeypatch):
    """tensorflow_addons' functions where it is installed, and what stands in for them."""
    if request.param == 'without':
        monkeypatch.setattr(compat, 'HAS_ADDONS', False)
    elif not compat.HAS_ADDONS:
        pytest.skip('tensorflow_addons is not installed')


def test_blur_is_a_gaussian_of_that_deviation(either_set):
    """Against the sum over all pixels, the edge mirrored."""
    for sigma in (0.5, 1.25, 2.0):
        reach = np.arange(-4, 5)
        kernel = np.exp(-(reach**2) / (2 * sigma**2))
        kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
        padded = np.pad(IMAGE.astype(float), [(4, 4), (4, 4), (0, 0)], mode='reflect')
        windows = np.lib.stride_tricks.sliding_window_view(padded, (9, 9), axis=(0, 1))
        wanted = np.einsum('yxcij,ij->yxc', windows, kernel)
        for found in change('blur', sigma):
            np.testing.assert_allclose(found, wanted, atol=1)


def test_sharpness_is_pillows(either_set):
    for strength in (1.5, 4.0):
        wanted = np.asarray(ImageEnhance.Sharpness(Image.fromarray(IMAGE)).enhance(strength))
        for found in change('sharpness', strength):
            # Pillow rounds the smoothed image before the difference is enlarged.
            np.testing.assert_allclose(found.astype(int), wanted, atol=1 + strength)


@pytest.mark.skipif(not compat.HAS_ADDONS, reason='tensorflow_addons is not installed')
# No strength that puts sums of whole numbers exactly between two.
@pytest.mark.parametrize(('operation', 'strength'), [('blur', 1.25), ('sharpness', 3.1416)])
def test_what_stands_in_for_the_addons_gives_their_values(operation, strength, monkeypatch):
    function = augment._TENSOR_CHANGES[operation]
    pixels = tf.cast(IMAGE, tf.float32)
    with_addons = function(pixels, strength, None)
    monkeypatch.setattr(compat, 'HAS_ADDONS', False)
    without = function(pixels, strength, None)
    np.testing.assert_array_equal(
        *(tf.saturate_cast(tf.round(found), tf.uint8) for found in (with_addons, without))
    )


def test_noise_has_the_deviation_and_another_seed_gives_other_noise():
    grey = np.full((200, 200, 3), 128, np.uint8)
    by_numpy = augment.change(grey, 'noise', 9.0, np.random.default_rng(3)).astype(float) - 128
    pixels = tf.cast(grey, tf.float32)
    by_tensorflow = augment._TENSOR_CHANGES['noise'](pixels, 9.0, tf.constant([3, 1])) - 128.0
    for found in (by_numpy, by_tensorflow.numpy()):
        assert abs(found.mean()) < 0.1 and abs(found.std() - 9) < 0.1
    for first, other in zip(change('noise', 9.0, 1), change('noise', 9.0, 2)):
        assert (first != other).mean() > 0.8


def kind_of(image, found):
    """Which of the changes made `found`, as far as its statistics tell."""
    if (found == image).all():
        return 'none'
    difference = found.astype(float) - image
    for operation, fixed in (('lightness', 0.0), ('contrast', 128.0)):
        unclipped = (found > 0) & (found < 255) & (np.abs(image - fixed) > 20)
        ratios = (found[unclipped] - fixed) / (image[unclipped] - fixed)
        if ratios.std() < 0.05:
            return operation
    smooth = cv2.GaussianBlur(image, (9, 9), 1.0).astype(float) - image
    likeness = np.corrcoef(smooth.ravel(), difference.ravel())[0, 1]
    if abs(likeness) < 0.2:
        return 'noise'
    return 'blur' if likeness > 0 else 'sharpness'


def test_every_change_is_drawn_and_the_same_seed_draws_the_same():
    image = IMAGE // 2 + 60
    draws = tf.data.Dataset.range(60).map(
        lambda number: augment.distort(image, tf.stack([number, 7]))
    )
    first, second = ([found.numpy() for found in draws] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    kinds = [kind_of(image, found) for found in first]
    assert {*augment.OPERATIONS, 'none'} == set(kinds)
    assert max(kinds.count(kind) for kind in set(kinds)) < 25
    assert first[0].dtype == np.uint8


def expanded(size=13, seed=5, **options):
    return augment.Expanded(Blocks(4, **options), size, seed)


def test_an_expanded_set_has_its_own_images_and_changed_copies():
    examples = list(expanded().examples('train'))
    assert len(examples) == 13 == expanded().num_examples('train')
    assert len({example.image_id for example in examples}) == 13
    assert min(example.image_id for example in examples) > 0
    for place, example in enumerate(examples):
        source = make_example(place % 4)
        assert example.rles == source.rles
        np.testing.assert_array_equal(example.classes, source.classes)
        assert (example.image == source.image).all() == (place < 4)
        if place >= 4:
            # Noise, then blur, then sharpness: a copy of each image for one after the other.
            assert example.file_name.startswith(f'{source.file_name}+')
    images = {example.image.tobytes() for example in examples}
    assert len(images) == 13


def test_an_expanded_set_is_the_same_each_time_and_for_any_order():
    items = expanded().items('train')
    forwards = [expanded().read(item).image for item in items]
    backwards = [expanded().read(item).image for item in items[::-1]][::-1]
    for image, again in zip(forwards, backwards):
        np.testing.assert_array_equal(image, again)
    others = [expanded(seed=6).read(item).image for item in items]
    assert [(a == b).all() for a, b in zip(forwards, others)] == [True] * 4 + [False] * 9


def test_an_expanded_set_keeps_what_its_source_says():
    class Numbered(Blocks):
        category_ids = (7, 90)

        def problems(self, split):
            yield base.Problem('2.png', 'is odd', 'warning')

    found = augment.Expanded(Numbered(4), 8, 0)
    assert found.category_ids == (7, 90) and found.class_names == Blocks.class_names
    assert [problem.file_name for problem in found.problems('train')] == ['2.png']
    assert found.num_examples('empty') == 0
    assert augment.Expanded(Blocks(4), 2, 0).num_examples('train') == 4
    prints = {expanded(**options).fingerprint('train') for options in ({}, {'version': '2'})}
    prints |= {expanded(size=14).fingerprint('train'), expanded(seed=6).fingerprint('train')}
    assert len(prints) == 4


def test_a_copy_of_a_jpeg_is_stored_as_one_of_its_size():
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8), (640, 480))
    jpeg = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()

    class Photos(Blocks):
        def read(self, item):
            return dataclasses.replace(super().read(item), image=image, encoded=jpeg)

    photos = augment.Expanded(Photos(1), 6, 0)
    original, *copies = [photos.read(item) for item in photos.items('train')]
    assert original.encoded == jpeg
    for copy in copies:
        assert copy.encoded.startswith(b'\xff\xd8') and copy.encoded != jpeg
        stored = tf.io.decode_image(copy.encoded).numpy().astype(int)
        assert np.abs(stored - copy.image).mean() < 4
    # Not the one with noise.
    assert max(len(copy.encoded) for copy in copies[1:]) < 2 * len(jpeg)


def test_an_expanded_set_is_converted(tmp_path):
    record_set = records.ensure_records(expanded(), 'train', str(tmp_path), num_processes=1)
    assert record_set.num_examples == 13


@pytest.mark.parametrize('module', ['augment', 'input_pipeline'])
def test_who_does_not_augment_does_not_import_tensorflow_addons(module):
    program = (
        f"import sys; from gan_mrcnn.data import {module}; sys.exit('tensorflow_addons' in "
        'sys.modules)'
    )
    assert subprocess.run([sys.executable, '-c', program]).returncode == 0


# Of haematoxylin, eosin and DAB, typed again from Ruifrok & Johnston (2001).
OPTICAL_DENSITIES = [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]


def stains_of(image):
    """Amounts of the three stains, [H, W, 3], of which the colours are mixed."""
    densities = -np.log10((image.astype(float) + 1) / 256)
    return np.linalg.solve(np.transpose(OPTICAL_DENSITIES), densities[..., np.newaxis])[..., 0]


def light_of(stains):
    """[H, W, 3] float colour values."""
    return 256 * 10 ** -(stains @ OPTICAL_DENSITIES) - 1


@pytest.mark.parametrize('strength', [0.05, 0.2])
def test_stain_jitter_scales_and_shifts_each_stain(strength):
    """Each seed has a factor and a summand a stain, as a regression finds them, in their range."""
    stains = np.random.default_rng(0).uniform(0.15, 0.45, (40, 50, 3))
    image = np.round(light_of(stains)).astype(np.uint8)
    assert image.min() > 0 and image.max() < 255
    stains, factors, summands = stains_of(image), [], []
    for number in range(20):
        found = augment.stain(image, strength, tf.constant([number, 7])).numpy()
        assert found.dtype == np.uint8 and found.min() > 0
        np.testing.assert_array_equal(
            found, augment.stain(image, strength, tf.constant([number, 7]))
        )
        jittered, fitted = stains_of(found), np.empty_like(stains)
        for channel in range(3):
            before, after = stains[..., channel], jittered[..., channel]
            factor, summand = np.polyfit(before.ravel(), after.ravel(), 1)
            fitted[..., channel] = factor * before + summand
            factors.append(factor)
            summands.append(summand)
        # A colour value is off by half of one where it was rounded.
        np.testing.assert_allclose(found, light_of(fitted), atol=1.5)
    for draws, middle in ((factors, 1), (summands, 0)):
        draws = (np.array(draws) - middle) / strength
        assert np.abs(draws).max() < 1.1
        assert draws.min() < -0.7 and draws.max() > 0.7 and abs(draws.mean()) < 0.3
    assert abs(np.corrcoef(factors, summands)[0, 1]) < 0.4


def test_no_stain_jitter_is_no_change():
    np.testing.assert_array_equal(augment.stain(IMAGE, 0.0, tf.constant([1, 2])), IMAGE)
