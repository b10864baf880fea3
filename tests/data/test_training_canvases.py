"""Wide and upright images in training: each batch on a canvas of its kind, no image more often."""

import collections
import dataclasses
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from gan_mrcnn import configs, settings
from gan_mrcnn.data import input_pipeline
from gan_mrcnn.data.records import records
from tests import tiny

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs'
MODEL = configs.Generator(num_classes=2, input_size=[128, 128, 3])
PARSER = configs.Parser(train_short_side=[32, 64], aug_rand_hflip=True, max_num_instances=5)
BATCH = 4


class Seven(tiny.Turned):
    ids = {'train': range(1, 8)}


@pytest.fixture(scope='module')
def convert(tmp_path_factory):
    folder = tmp_path_factory.mktemp('mixed')

    def convert(step):
        params = configs.DataConfig(
            parser=PARSER, global_batch_size=BATCH, shuffle_buffer_size=3, is_training=True
        )
        records.ensure_records(Seven(step), 'train', str(folder)).feed(params)
        return params

    return convert


def read(params, batches, first_batch=0, context=None):
    """Shapes of the images and their ids, by batch."""
    dataset = input_pipeline.training_dataset(MODEL, params, 3, first_batch, context)
    return [
        (images.shape[1:3], labels['source_id'].tolist())
        for images, labels in dataset.take(batches).as_numpy_iterator()
    ]


def canvases(model, short_sides, ratios, num=2, num_upright=1):
    parser = configs.Parser(train_short_side=list(short_sides))
    params = configs.DataConfig(
        parser=parser, aspect_ratios=ratios, num_examples=num, num_upright=num_upright
    )
    return input_pipeline.training_canvases(model, params)


@pytest.mark.parametrize(
    'name, ratios, wanted',
    [
        # 640x480 and 427x640 are usual, panoramas are there.
        ('coco', [2.5, 2.0], [(832, 1344), (1344, 832)]),
        ('own_data', [4 / 3, 1.25], [(832, 1088), (1024, 832)]),
        ('own_data', [1, 1.03], [(832, 832)]),
        ('phone', [16 / 9, 16 / 9], [(640, 1088), (1088, 640)]),
        ('small', [1.5, 5000], [(320, 384), (384, 320)]),
    ],
)
def test_canvases_of_the_settings_that_come_with_the_project(name, ratios, wanted):
    task = settings.saved_config(CONFIGS / f'{name}.yaml').task
    assert canvases(task.model, task.train_data.parser.train_short_side, ratios) == wanted


@pytest.mark.parametrize('name', ['gland', 'gland_small', 'cityscapes'])
def test_canvases_of_settings_for_images_of_one_size(name):
    task = settings.saved_config(CONFIGS / f'{name}.yaml').task
    ratios = [2 if name == 'cityscapes' else 775 / 522, 1]
    short_sides = task.train_data.parser.train_short_side
    wanted = [tuple(task.model.input_size[:2])]
    assert canvases(task.model, short_sides, ratios, num_upright=0) == wanted


@given(
    size=st.tuples(st.integers(1, 700), st.integers(1, 700)),
    low=st.integers(8, 128),
    longer=st.integers(0, 60),
    number=st.integers(0, 2**40),
)
def test_an_image_is_as_large_on_its_canvas_as_on_that_for_both(size, low, longer, number):
    ratio = size[0] / size[1]
    ratios = [max(1 / ratio, 1.0), max(ratio, 1.0)]
    (canvas,) = canvases(MODEL, [low, low + longer], ratios, 1, int(ratio > 1))
    image = tf.ones([*size, 3], tf.uint8)
    short_side = tf.constant(low + number % (longer + 1))
    (pixels, info), (all_pixels, all_info) = (
        input_pipeline.Parser(MODEL, PARSER, 0, which).resize(image, short_side)
        for which in (canvas, None)
    )
    np.testing.assert_array_equal(info, all_info)
    assert tuple(pixels.shape[:2]) == canvas and max(canvas) <= 128
    height, width = info[1].numpy().astype(int)
    assert height <= canvas[0] and width <= canvas[1]
    np.testing.assert_array_equal(pixels[:height, :width], all_pixels[:height, :width])


@pytest.mark.parametrize('step, num_upright', [(2, 3), (3, 2), (7, 1)])
def test_a_batch_is_of_one_kind_and_every_image_comes_equally_often(convert, step, num_upright):
    params = convert(step)
    assert (params.num_examples, params.num_upright) == (7, num_upright)
    assert params.aspect_ratios == [1.5, 1.5]
    batches = read(params, 21)
    for shape, ids in batches:
        is_upright = {i % step == 0 for i in ids}
        assert is_upright == {shape == (128, 64)} and shape in ((128, 64), (64, 128))
    counts = collections.Counter(i for _, ids in batches for i in ids)
    assert set(counts) == set(range(1, 8))
    # 84 examples of 7 images.
    assert set(counts.values()) == {12}
    # No long time without either kind.
    kinds = [shape == (128, 64) for shape, _ in batches]
    for first in range(14):
        assert abs(sum(kinds[first : first + 7]) - num_upright) <= 1


def test_epochs_of_either_kind_have_every_image_once_in_their_own_order(convert):
    batches = read(convert(2), 21)
    for shape, number in (((128, 64), 3), ((64, 128), 4)):
        ids = sum((ids for found, ids in batches if found == shape), [])
        epochs = [tuple(ids[i : i + number]) for i in range(0, len(ids), number)]
        assert all(len(set(epoch)) == number for epoch in epochs)
        assert len(set(epochs)) > 2


def assert_resumes(params, first_batch):
    """From a batch on, a resumed run sees what the whole one would have."""
    build = lambda first: input_pipeline.training_dataset(MODEL, params, 3, first)  # noqa: E731
    wanted = build(0).skip(first_batch).take(3).as_numpy_iterator()
    for whole, again in zip(wanted, build(first_batch).as_numpy_iterator()):
        tf.nest.map_structure(np.testing.assert_array_equal, whole, again)


@pytest.mark.parametrize('first_batch', [4, 26])
def test_a_resumed_run_sees_what_the_whole_one_would_have(convert, first_batch):
    assert_resumes(convert(3), first_batch)


@pytest.mark.parametrize('pipelines, replicas', [(1, 2), (2, 4)])
def test_replicas_share_the_batches_of_the_run(convert, pipelines, replicas):
    """All of a step have one kind, together what one replica alone would have had."""
    assert_shared(convert(3), pipelines, replicas)


def assert_shared(params, pipelines, replicas):
    per_pipeline = replicas // pipelines
    shares = [
        read(params, 7 * per_pipeline, context=tf.distribute.InputContext(pipelines, i, replicas))
        for i in range(pipelines)
    ]
    for step, (shape, ids) in enumerate(read(params, 7)):
        parts = [
            part
            for share in shares
            for part in share[step * per_pipeline : (step + 1) * per_pipeline]
        ]
        assert {found for found, _ in parts} == {shape}
        assert sorted(i for _, part in parts for i in part) == sorted(ids)


@pytest.mark.parametrize('step, canvas', [(8, (64, 128)), (1, (128, 64))])
def test_one_kind_alone_has_a_static_canvas(convert, step, canvas):
    dataset = input_pipeline.training_dataset(MODEL, convert(step), 3)
    assert dataset.element_spec[0].shape == (BATCH, *canvas, 3)
    ids = [i for _, batch in read(convert(step), 7) for i in batch]
    assert [sorted(ids[i : i + 7]) for i in range(0, 28, 7)] == [list(range(1, 8))] * 4


# Quarter turns: both canvases for every image.


@pytest.mark.parametrize(
    'input_size, ratios, num_upright, wanted',
    [
        # One kind of images, and a network's input that an upright one would not fit.
        ([128, 192, 3], [1.5, 1.0], 0, (64, 128)),
        ([128, 192, 3], [5.0, 1.0], 0, (64, 192)),
        ([192, 128, 3], [1.0, 1.5], 2, (64, 128)),
        ([128, 128, 3], [1.2, 1.9], 1, (64, 128)),
        ([128, 128, 3], [1.0, 1.0], 0, (64, 64)),
    ],
)
def test_turned_images_have_both_canvases(input_size, ratios, num_upright, wanted):
    params = configs.DataConfig(
        parser=configs.Parser(train_short_side=[32, 64], aug_quarter_turns=True),
        aspect_ratios=ratios,
        num_examples=2,
        num_upright=num_upright,
    )
    found = input_pipeline.training_canvases(configs.Generator(input_size=input_size), params)
    assert found == ([wanted, wanted[::-1]] if wanted[0] != wanted[1] else [wanted])


@pytest.fixture
def turning(convert):
    params = convert(3)
    return dataclasses.replace(params, parser=dataclasses.replace(PARSER, aug_quarter_turns=True))


def test_canvases_take_turns_and_every_image_comes_once_an_epoch_on_either(turning):
    batches = read(turning, 56)
    assert [shape for shape, _ in batches] == [(64, 128), (128, 64)] * 28
    ids = sum((found for _, found in batches), [])
    epochs = [ids[i : i + 7] for i in range(0, len(ids), 7)]
    assert all(sorted(epoch) == list(range(1, 8)) for epoch in epochs) and len(epochs) == 32
    upright = collections.Counter(i for shape, found in batches if shape[0] == 128 for i in found)
    assert all(8 <= upright[i] <= 24 for i in range(1, 8))


@pytest.mark.parametrize('first_batch', [3, 8])
def test_a_resumed_run_turns_the_same_images(turning, first_batch):
    assert_resumes(turning, first_batch)


@pytest.mark.parametrize('pipelines, replicas', [(1, 2), (2, 4)])
def test_replicas_share_turned_batches(turning, pipelines, replicas):
    assert_shared(turning, pipelines, replicas)
