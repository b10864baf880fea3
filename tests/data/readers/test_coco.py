"""COCO 2017 in its official layout: every encoding and kind of image, and COCO's own ids."""

import json

import numpy as np
import pytest
from pycocotools import mask as mask_api

from gan_mrcnn.data import readers
from gan_mrcnn.data.readers import options
from gan_mrcnn.data.records import records
from gan_mrcnn.metrics.coco import evaluate_coco
from tests.data import layouts, round_trip
from tests.data.round_trip import error_of


@pytest.fixture(scope='module')
def coco_2017(tmp_path_factory):
    folder = tmp_path_factory.mktemp('coco')
    return folder, layouts.write_coco_2017(folder)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_what_is_read_back_is_what_was_put_in(coco_2017, split, tmp_path):
    folder, ground_truths = coco_2017
    dataset = readers.load_dataset('coco', str(folder))
    assert dataset.splits == ('train', 'val')
    # As many as there are, each with its own image; one of them has no object.
    assert [gt.objects for gt in ground_truths[split]].count([]) == 1
    round_trip.check(dataset, split, ground_truths[split], tmp_path)


def test_ids_have_no_gaps_inside_and_are_cocos_own_outside(coco_2017):
    dataset = readers.load_dataset('coco', str(coco_2017[0]))
    assert dataset.class_names == ('person', 'car', 'cat', 'toothbrush')
    assert dataset.category_ids == (1, 3, 17, 90)
    (example, *_) = dataset.examples('val')
    assert example.classes.tolist() == [4, 4]


def test_images_may_be_below_images(coco_2017, tmp_path):
    folder, _ = coco_2017
    (tmp_path / 'images').mkdir()
    (tmp_path / 'annotations').symlink_to(folder / 'annotations')
    for split in ('train2017', 'val2017'):
        (tmp_path / 'images' / split).symlink_to(folder / split)
    dataset = readers.load_dataset('coco', str(tmp_path))
    assert len(list(dataset.examples('train'))) == 7


def test_the_large_file_is_read_when_it_is_needed(coco_2017, tmp_path):
    """To evaluate, nobody waits for the training file, and nobody needs it."""
    folder, _ = coco_2017
    (tmp_path / 'annotations').mkdir()
    name = 'annotations/instances_val2017.json'
    (tmp_path / name).symlink_to(folder / name)
    (tmp_path / 'val2017').symlink_to(folder / 'val2017')
    dataset = readers.load_dataset('coco', str(tmp_path))
    assert len(dataset.items('val')) == 4
    message = error_of(lambda: dataset.items('train'))
    assert 'instances_train2017.json is missing' in message


@pytest.mark.parametrize('change', [{'share': 0.9}, {'group_by': 'x'}, {'annotations': ('a',)}])
def test_the_splits_are_fixed(coco_2017, change):
    chosen = options.Options(**change)
    message = error_of(lambda: readers.load_dataset('coco', str(coco_2017[0]), chosen))
    assert 'coco' in message and options.FLAGS[next(iter(change))] in message


def test_jpegs_go_into_the_records_as_they_are(coco_2017):
    folder, _ = coco_2017
    dataset = readers.load_dataset('coco', str(folder))
    for item, example in zip(dataset.items('train'), dataset.examples('train')):
        kept = example.encoded is not None
        # A turned one would lie on its side; 16 bits, a palette and alpha are not what is learnt.
        assert kept == (example.file_name in ('000000000000.jpg', '000000000001.png',
                                              '000000000099.jpg')), example.file_name  # fmt: skip
        if kept:
            assert example.encoded == item.path.read_bytes()


def fractional(seed):
    """An annotation file with polygons between the pixels, and results that nearly fit it."""
    rng = np.random.default_rng(seed)
    images, annotations, results = [], [], []
    for image_id in (4, 9, 11):
        images.append({'id': image_id, 'file_name': f'{image_id}.png', 'width': 48, 'height': 32})
        for _ in range(6):
            angle = np.sort(rng.uniform(0, 2 * np.pi, 9))
            centre, radius = rng.uniform((9, 9), (39, 23)), rng.uniform(2, 9)
            shape = centre + radius * np.stack([np.cos(angle), np.sin(angle)], 1)
            (x1, y1), (x2, y2) = shape.min(0), shape.max(0)
            x, y = shape.T
            category = int(rng.choice([3, 17]))
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': category,
                    'iscrowd': 0,
                    'bbox': [x1, y1, x2 - x1, y2 - y1],
                    'area': abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2,
                    'segmentation': [shape.ravel().round(2).tolist()],
                }
            )
            moved = shape + rng.normal(0, 0.6, 2)
            (rle,) = mask_api.frPyObjects([moved.ravel().tolist()], 32, 48)
            (x1, y1), (x2, y2) = moved.min(0), moved.max(0)
            results.append(
                {
                    'image_id': image_id,
                    'category_id': category,
                    'score': rng.uniform(),
                    'bbox': [x1, y1, x2 - x1, y2 - y1],
                    'segmentation': {'size': rle['size'], 'counts': rle['counts'].decode()},
                }
            )
    categories = [{'id': 3, 'name': 'car'}, {'id': 17, 'name': 'cat'}]
    return {'images': images, 'annotations': annotations, 'categories': categories}, results


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_ap_is_that_by_the_official_file(seed, tmp_path):
    """The paper's gain in box AP is 0.0002: boxes of whole pixels would drown it."""
    gt, results = fractional(seed)
    for split in ('train', 'val'):
        path = tmp_path / f'annotations/instances_{split}2017.json'
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(gt))
        for image in gt['images']:
            layouts.save_image(tmp_path / f'{split}2017' / image['file_name'], 'rgb', 0)
    official = evaluate_coco(gt, results)
    dataset = readers.load_dataset('coco', str(tmp_path))
    record_set = records.ensure_records(dataset, 'val', str(tmp_path / 'cache'), num_processes=1)
    inside = [
        {**result, 'category_id': dataset.category_ids.index(result['category_id']) + 1}
        for result in results
    ]
    ours = evaluate_coco(record_set.annotation_file, inside)
    assert ours == official and 0 < ours['box']['AP'] < 1


def test_a_missing_layout_is_described(tmp_path):
    message = error_of(lambda: readers.load_dataset('coco', str(tmp_path)))
    assert str(tmp_path) in message and 'instances_val2017.json' in message
    assert 'train2017/' in message
    message = error_of(lambda: readers.load_dataset('coco', str(tmp_path / 'nosuch')))
    assert 'nosuch' in message and 'annotations/' in message


def test_sizes_of_the_examples(coco_2017):
    for example in readers.load_dataset('coco', str(coco_2017[0])).examples('train'):
        assert example.image.dtype == np.uint8
        assert example.image.shape == (layouts.HEIGHT, layouts.WIDTH, 3)
