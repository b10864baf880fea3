"""Sizes, boxes and masks after scaling and flipping, and the order of examples."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from gan_mrcnn import configs
from gan_mrcnn.data import input_pipeline
from gan_mrcnn.data.readers import gland_demo
from gan_mrcnn.data.records import mask_crops, records
from gan_mrcnn.utils import run_lengths
from tests.utils.cells import cell_means

SIZE = [128, 192]
MODEL = configs.Generator(num_classes=2, input_size=[*SIZE, 3])


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    dataset = gland_demo.DemoGlands(seed=0)
    return records.ensure_records(dataset, 'val', str(tmp_path_factory.mktemp('cache')))


def make_parser(**changes):
    settings = {'train_short_side': [96, 128], 'test_short_side': 128, **changes}
    return input_pipeline.Parser(MODEL, configs.Parser(**settings), seed=7)


def make_params(demo, **changes):
    params = configs.DataConfig(global_batch_size=2, **changes)
    demo.feed(params)
    return params


def crops(masks, rectangles):
    """Masks [N, H, W] as they come out of a record; their boxes are [y1, x1, y2, x2] in pixels."""
    boxes = [(x1, y1, x2 - x1, y2 - y1) for y1, x1, y2, x2 in rectangles]
    encoded = mask_crops.encode(run_lengths.encode_masks(masks), boxes)
    return mask_crops.decode(tf.constant(encoded))


def example(*rectangles, size=(200, 300)):
    """A decoded example with rectangles, [y1, x1, y2, x2] in pixels, of the classes 1, 2, 3..."""
    height, width = size
    image = np.zeros([height, width, 3], np.uint8)
    masks = np.zeros([len(rectangles), height, width], np.uint8)
    for mask, (y1, x1, y2, x2) in zip(masks, rectangles):
        mask[y1:y2, x1:x2] = 1
        image[y1:y2, x1:x2] = 255
    boxes = np.reshape(rectangles, [-1, 4]) / [height, width, height, width]
    return {
        'image': tf.constant(image),
        'source_id': tf.constant('12'),
        'groundtruth_boxes': tf.constant(boxes, tf.float32),
        'groundtruth_classes': tf.range(1, len(rectangles) + 1, dtype=tf.int64),
        'groundtruth_is_crowd': tf.zeros([len(rectangles)], tf.bool),
        'groundtruth_mask_crops': crops(masks, rectangles),
    }


RECTANGLE = (40, 60, 120, 240)


@pytest.mark.parametrize('size', [(200, 300), (300, 200), (64, 640), (1, 900), (900, 1)])
def test_test_images_have_the_wanted_shorter_side_and_fit(size):
    image, labels = make_parser(test_short_side=100).parse_eval(example(size=size))
    original, scaled, scale, offset = labels['image_info'].numpy()
    assert image.shape == (*SIZE, 3)
    np.testing.assert_array_equal(original, size)
    factor = min(100 / min(size), SIZE[0] / size[0], SIZE[1] / size[1])
    # A strip keeps one pixel.
    np.testing.assert_allclose(scaled, np.maximum(np.array(size) * factor, 1), atol=0.5)
    np.testing.assert_allclose(scale, scaled / original)
    assert (offset == 0).all()
    outside = image.numpy().copy()
    outside[: int(scaled[0]), : int(scaled[1])] = 0
    assert (outside == 0).all()


@pytest.mark.parametrize('hflip, vflip', [(False, False), (True, False), (False, True)])
def test_boxes_and_masks_follow_the_image(hflip, vflip):
    parser = make_parser(aug_rand_hflip=hflip, aug_rand_vflip=vflip)
    seen = set()
    for number in range(12):
        image, labels = parser.parse_train(example(RECTANGLE), tf.constant(number, tf.int64))
        y1, x1, y2, x2 = labels['gt_boxes'].numpy()[0]
        scale = labels['image_info'].numpy()[2]
        assert 96 <= labels['image_info'].numpy()[1].min() <= 128
        bright = image.numpy()[..., 0] > 0
        rows, columns = np.where(bright.any(1))[0], np.where(bright.any(0))[0]
        np.testing.assert_allclose(
            [y1, x1, y2, x2], [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], atol=1.5
        )
        top_left = np.round(np.array([y1, x1]) / scale).astype(int)
        seen.add(tuple(top_left))
        assert labels['gt_masks'].numpy()[0].mean() > 0.98 * 255
        assert (labels['gt_boxes'].numpy()[1:] == -1).all()
    wanted = {(40, 60)} | ({(40, 60)} if not hflip else {(40, 300 - 240)})
    wanted |= {(200 - 120, 60)} if vflip else set()
    assert {(y // 2, x // 2) for y, x in seen} <= {
        ((y + d) // 2, (x + e) // 2) for y, x in wanted for d in (-1, 0, 1) for e in (-1, 0, 1)
    }
    if vflip:
        assert len({y > 60 for y, _ in seen}) == 2


def test_masks_are_means_over_the_cells_of_their_boxes():
    rng = np.random.default_rng(0)
    data = example((0, 0, 200, 300))
    mask = rng.integers(0, 2, [200, 300]).astype(np.uint8)
    y1, x1, y2, x2 = 21, 33, 98, 174
    data['groundtruth_mask_crops'] = crops([mask], [(y1, x1, y2, x2)])
    data['groundtruth_boxes'] = tf.constant([[y1 / 200, x1 / 300, y2 / 200, x2 / 300]])
    masks = make_parser().parse_train(data, tf.constant(0, tf.int64))[1]['gt_masks'].numpy()
    assert masks.dtype == np.uint8 and not masks[1:].any()
    found = masks[0] / 255
    wanted = cell_means(mask, (y1, x1, y2, x2), 112)
    # A record keeps eight bits.
    np.testing.assert_allclose(found, wanted, atol=1 / 510 + 1e-6)
    assert np.abs(found - wanted).mean() > 1e-4


def test_a_flipped_mask_is_the_mirror_image():
    """An L: its mask goes with the image, not only its box."""
    data = example((0, 0, 200, 300))
    mask = np.zeros([200, 300], np.uint8)
    mask[40:120, 60:100] = mask[100:120, 60:240] = 1
    data['groundtruth_mask_crops'] = crops([mask], [RECTANGLE])
    data['groundtruth_boxes'] = tf.constant([[40 / 200, 60 / 300, 120 / 200, 240 / 300]])
    plain = make_parser().parse_train(data, tf.constant(0, tf.int64))[1]['gt_masks'].numpy()[0]
    assert plain[:80].mean() < 0.3 * 255 and plain[:80, :20].min() > 0.8 * 255
    for flips, mirrored in (({'aug_rand_hflip': True}, 1), ({'aug_rand_vflip': True}, 0)):
        parser = make_parser(**flips)
        found = [
            parser.parse_train(data, tf.constant(number, tf.int64))[1]['gt_masks'].numpy()[0]
            for number in range(8)
        ]
        same = [np.array_equal(mask, plain) for mask in found]
        mirror = [np.array_equal(mask, np.flip(plain, mirrored)) for mask in found]
        assert all(a != b for a, b in zip(same, mirror)) and 0 < sum(same) < 8


@pytest.mark.parametrize('size', [(200, 300), (300, 200), (200, 200)])
@pytest.mark.parametrize('canvas', [(128, 192), (192, 128), (192, 192)])
def test_quarter_turns_make_an_image_lie_as_its_canvas(size, canvas):
    """Each of the turns that do, and image, box and mask alike: an F."""
    (height, width), seen = size, []
    mask = np.zeros(size, np.uint8)
    mask[20:140, 30:60] = mask[20:50, 30:130] = mask[70:95, 30:100] = 1
    box = np.array([20, 30, 140, 130])
    data = example(size=size)
    data['image'] = tf.constant(np.repeat(255 * mask[..., np.newaxis], 3, axis=2))
    data['groundtruth_mask_crops'] = crops([mask], [box])
    data['groundtruth_boxes'] = tf.constant([box / [height, width, height, width]], tf.float32)
    data['groundtruth_classes'] = tf.constant([1], tf.int64)
    data['groundtruth_is_crowd'] = tf.constant([False])
    config = configs.Parser(train_short_side=[100, 100], aug_quarter_turns=True)
    parser = input_pipeline.Parser(MODEL, config, seed=7, canvas=canvas)
    for number in range(24):
        pixels, labels = parser.parse_train(data, tf.constant(number, tf.int64))
        found = labels['gt_boxes'].numpy()[0]
        (matching,) = [
            turns
            for turns in range(4)
            if abs(found - 0.5 * box_of(np.rot90(mask, turns))).max() < 1e-3
        ]
        seen.append(matching)
        turned = np.rot90(mask, matching)
        wanted = cell_means(turned, box_of(turned), 112)
        np.testing.assert_allclose(labels['gt_masks'][0] / 255, wanted, atol=1 / 510 + 1e-6)
        scaled = labels['image_info'].numpy()[1].astype(int)
        np.testing.assert_array_equal(scaled, np.array(turned.shape) / 2)
        light = pixels.numpy()[: scaled[0], : scaled[1], 0] * 0.229 + 0.485
        means = turned.reshape(scaled[0], 2, scaled[1], 2).mean(axis=(1, 3))
        # Antialiasing looks a pixel further.
        assert abs(light - means).mean() < 0.02
    if canvas[0] == canvas[1]:
        assert set(seen) == {0, 1, 2, 3}
    else:
        wanted = {1, 3} if (height > width) != (canvas[0] > canvas[1]) else {0, 2}
        assert set(seen) == wanted and 6 < seen.count(min(wanted)) < 18


def box_of(mask):
    rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])


# Class, scaled size, sampling seed and box, as they were when flips and scale were all there was.
EARLIER_DRAWS = [
    [3, 128, 192, 2047084104, 6, 26, 32, 64],
    [2, 124, 186, -362585630, 112, 0, 124, 12],
    [2, 111, 166, -1546186450, 0, 155, 11, 166],
    [2, 106, 159, 918943345, 0, 148, 11, 159],
]


def test_draws_of_earlier_versions_stay():
    """Runs of an earlier version go on as they would have; their settings have nothing newer."""
    parser = make_parser(aug_rand_hflip=True, aug_rand_vflip=True, max_num_instances=1)
    found = []
    for number in range(4):
        data = example(RECTANGLE, (0, 0, 20, 20), (150, 200, 190, 260))
        labels = parser.parse_train(data, tf.constant(number, tf.int64))[1]
        found.append(
            [
                labels['gt_classes'].numpy()[0],
                *labels['image_info'].numpy()[1],
                labels['sampling_seed'].numpy()[0],
                *np.round(labels['gt_boxes'].numpy()[0]),
            ]
        )
    assert found == EARLIER_DRAWS


def labels_of(parser, data, number):
    labels = parser.parse_train(data, tf.constant(number, tf.int64))[1]
    return {name: labels[name].numpy() for name in ('gt_classes', 'gt_boxes', 'gt_masks')}


def test_of_too_many_objects_each_time_others_are_learnt():
    rectangles = [(10 * i, 20 * i, 10 * i + 8, 20 * i + 16) for i in range(6)]
    parser = make_parser(max_num_instances=4)
    data = example(*rectangles)
    scale = np.tile(parser.parse_eval(data)[1]['image_info'].numpy()[2], 2)
    seen = []
    for number in range(20):
        labels = labels_of(
            make_parser(max_num_instances=4, train_short_side=[128, 128]), data, number
        )
        classes = labels['gt_classes'].tolist()
        assert classes == sorted(set(classes)) and len(classes) == 4
        # Each with its own box.
        wanted = np.array(rectangles)[labels['gt_classes'] - 1] * scale
        np.testing.assert_allclose(labels['gt_boxes'], wanted, rtol=1e-5)
        seen.append(tuple(classes))
    assert len(set(seen)) > 5
    assert set(sum(seen, ())) == {1, 2, 3, 4, 5, 6}
    again = labels_of(parser, data, 3)
    np.testing.assert_array_equal(again['gt_classes'], seen[3])


def test_photometric_augmentation_changes_pixels_alone_and_repeats():
    data = example(RECTANGLE)
    data['image'] = tf.random.stateless_uniform([200, 300, 3], [0, 0], 60, 180, tf.int32)
    data['image'] = tf.cast(data['image'], tf.uint8)
    plain, changed = make_parser(), make_parser(aug_photometric=True)
    differences = []
    for number in range(6):
        image, labels = plain.parse_train(data, tf.constant(number, tf.int64))
        found, found_labels = changed.parse_train(data, tf.constant(number, tf.int64))
        again, _ = changed.parse_train(data, tf.constant(number, tf.int64))
        np.testing.assert_array_equal(found, again)
        tf.nest.map_structure(np.testing.assert_array_equal, labels, found_labels)
        differences.append(bool((image != found).numpy().any()))
    # One in six stays as it is.
    assert sum(differences) >= 4


def test_copied_objects_come_with_their_pixels_classes_and_masks():
    """The target is black with one white object, the other grey: who is whose can be seen."""
    parser = make_parser(aug_copy_paste=1.0, train_short_side=[128, 128], max_num_instances=4)
    own = example((40, 60, 120, 180), size=SIZE)
    copied = [(10, 8, 90, 40), (84, 24, 128, 192)]
    other = example(*copied, size=SIZE)
    other['image'] = tf.fill([*SIZE, 3], tf.constant(100, tf.uint8))
    other['groundtruth_classes'] = tf.constant([7, 9], tf.int64)
    image, labels = parser.parse_train(own, tf.constant(0, tf.int64), other)
    assert labels['gt_classes'].numpy().tolist() == [1, 7, 9, -1]
    np.testing.assert_allclose(labels['gt_boxes'][1:3], copied, rtol=1e-5)
    pixels = image.numpy()[..., 0] * 0.229 + 0.485
    wanted = np.zeros(SIZE)
    wanted[40:120, 60:180] = 1
    for y1, x1, y2, x2 in copied:
        wanted[y1:y2, x1:x2] = 100 / 255
    np.testing.assert_allclose(pixels, wanted, atol=1e-4)
    # The own object keeps what is not covered, to a cell.
    np.testing.assert_allclose(labels['gt_boxes'][0], [40, 60, 84, 180], atol=80 / 112)
    assert labels['gt_masks'].numpy()[:3].mean() > 253


def test_no_more_objects_are_copied_than_there_is_room_for():
    own, other = example(RECTANGLE), example(*[(10 * i, 0, 10 * i + 8, 20) for i in range(9)])
    parse = lambda number, **changes: make_parser(**changes).parse_train(  # noqa: E731
        own, tf.constant(number, tf.int64), other
    )[1]
    for room in (1, 3):
        labels = parse(0, aug_copy_paste=1.0, max_num_instances=room)
        assert (labels['gt_classes'].numpy() > 0).all()
        assert labels['gt_classes'].numpy()[0] == 1
    counts = [
        int((parse(i, aug_copy_paste=0.5, max_num_instances=20)['gt_classes'] > 0).numpy().sum())
        for i in range(12)
    ]
    # One of its own and about half of nine.
    assert 4 < np.mean(counts) < 7 and len(set(counts)) > 2


@pytest.mark.parametrize('turns', [False, True])
def test_copies_are_of_the_next_image_and_the_same_after_a_stop(demo, turns):
    params = make_params(
        demo,
        parser=configs.Parser(
            train_short_side=[64, 128], aug_copy_paste=0.5, aug_quarter_turns=turns
        ),
    )
    whole = input_pipeline.training_dataset(MODEL, params, 7).take(9)
    resumed = input_pipeline.training_dataset(MODEL, params, 7, first_batch=5).take(4)
    whole, resumed = list(whole), list(resumed)
    tf.nest.map_structure(np.testing.assert_array_equal, whole[5:], resumed)
    plain = dataclasses.replace(params.parser, aug_copy_paste=0.0)
    plain = input_pipeline.training_dataset(MODEL, dataclasses.replace(params, parser=plain), 7)
    more = [
        (pasted[1]['gt_classes'] > 0).numpy().sum() - (alone[1]['gt_classes'] > 0).numpy().sum()
        for pasted, alone in zip(whole, plain)
    ]
    np.testing.assert_array_equal(
        [x[1]['source_id'] for x in whole], [x[1]['source_id'] for x in plain.take(9)]
    )
    assert np.mean(more) > 1


def test_a_crowd_is_no_object_to_learn():
    data = example((0, 0, 20, 20), (30, 30, 90, 90), (100, 100, 120, 130))
    data['groundtruth_is_crowd'] = tf.constant([False, True, False])
    labels = labels_of(make_parser(max_num_instances=3), data, 0)
    assert labels['gt_classes'].tolist() == [1, 3, -1]


def test_an_image_without_objects_is_all_background():
    image, labels = make_parser().parse_train(example(), tf.constant(0, tf.int64))
    assert (labels['gt_boxes'].numpy() == -1).all() and (labels['gt_classes'].numpy() == -1).all()
    scores = np.concatenate([x.numpy().ravel() for x in labels['rpn_score_targets'].values()])
    assert set(scores) == {-1, 0} and (scores == 0).sum() == 256
    for targets in labels['rpn_box_targets'].values():
        assert np.isfinite(targets).all()


def test_positive_anchors_overlap_their_object_and_decode_to_it():
    _, labels = make_parser().parse_train(example(RECTANGLE), tf.constant(3, tf.int64))
    box = labels['gt_boxes'].numpy()[0]
    found = 0
    for level, scores in labels['rpn_score_targets'].items():
        stride = 2 ** int(level)
        for y, x, a in np.argwhere(scores.numpy() == 1):
            ratio = [0.5, 1.0, 2.0][a]  # width over height
            height, width = 8 * stride / np.sqrt(ratio), 8 * stride * np.sqrt(ratio)
            centre = (np.array([y, x]) + 0.5) * stride
            ty, tx, th, tw = labels['rpn_box_targets'][level].numpy()[y, x, 4 * a : 4 * a + 4]
            decoded_centre = centre + [ty * height, tx * width]
            half = np.array([np.exp(th) * height, np.exp(tw) * width]) / 2
            np.testing.assert_allclose(
                np.concatenate([decoded_centre - half, decoded_centre + half]), box, atol=0.05
            )
            found += 1
    assert found


@pytest.mark.parametrize('size', [(200, 200), (64, 640)])
def test_anchors_that_are_learnt_are_centred_in_the_image(size):
    _, labels = make_parser().parse_train(
        example((0, 0, 60, 60), size=size), tf.constant(3, tf.int64)
    )
    scaled = labels['image_info'].numpy()[1]
    assert (scaled < SIZE).any()
    for level, scores in labels['rpn_score_targets'].items():
        nodes = np.argwhere(scores.numpy() >= 0)[:, :2]
        assert ((nodes + 0.5) * 2 ** int(level) < scaled).all()


def ids(dataset, num_batches):
    return [labels['source_id'].numpy().tolist() for _, labels in dataset.take(num_batches)]


def test_every_epoch_has_every_image_once_in_its_own_order(demo):
    dataset = input_pipeline.training_dataset(MODEL, make_params(demo), seed=1)
    steps = demo.num_examples // 2
    seen = ids(dataset, 2 * steps)
    first, second = sum(seen[:steps], []), sum(seen[steps:], [])
    assert sorted(first) == sorted(second) == sorted(demo.image_ids)
    assert first != second


def test_resumed_order_goes_on_where_it_stopped(demo):
    build = lambda first: input_pipeline.training_dataset(  # noqa: E731
        MODEL, make_params(demo), seed=1, first_batch=first
    )
    whole = list(build(0).take(9))
    for (image, labels), (image_again, labels_again) in zip(whole[5:], build(5).take(4)):
        np.testing.assert_array_equal(image, image_again)
        tf.nest.map_structure(np.testing.assert_array_equal, labels, labels_again)


def test_evaluation_covers_every_image_once_and_fills_the_last_batch(demo):
    params = make_params(demo)
    params.global_batch_size = 5
    dataset = input_pipeline.evaluation_dataset(params, make_parser())
    # Whose thread may sleep for minutes while the end of the data waits for it.
    assert not dataset.options().autotune.enabled
    seen = ids(dataset, 100)
    assert all(len(batch) == 5 for batch in seen)
    flat = sum(seen, [])
    assert sorted(i for i in flat if i >= 0) == sorted(demo.image_ids)
    assert flat.count(-1) == -demo.num_examples % 5


@pytest.mark.parametrize('batch, cores, at_a_time', [(8, 2, 2), (2, 96, 16), (64, 96, 64)])
def test_as_many_images_are_made_at_a_time_as_cores_and_memory_allow(
    batch, cores, at_a_time, monkeypatch
):
    monkeypatch.setattr(input_pipeline, 'num_cores', lambda: cores)
    params = configs.DataConfig(global_batch_size=batch)
    assert input_pipeline._num_parallel_calls(params) == at_a_time
