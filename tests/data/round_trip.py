"""Whether a data set, converted and read back by the training input, is what was put in."""

import contextlib
import io

import numpy as np
import tensorflow as tf
from pycocotools import coco

from gan_mrcnn.data import input_pipeline
from gan_mrcnn.data.records import records
from gan_mrcnn.utils.errors import UserError
from tests.utils.cells import cell_means


def check(dataset, split, ground_truths, cache_dir):
    """Compares images, masks, boxes, classes and crowds of every record with `ground_truths`."""
    record_set = records.ensure_records(dataset, split, str(cache_dir), num_processes=1)
    names = {item.image_id: item.file_name for item in dataset.items(split)}
    files = sorted(tf.io.gfile.glob(record_set.input_path))
    found = {}
    for record in tf.data.TFRecordDataset(files):
        data = {key: np.asarray(value) for key, value in input_pipeline.decode(record).items()}
        found[names[int(data['source_id'].item())]] = data
    wanted = {gt.file_name: gt for gt in ground_truths}
    assert found.keys() == wanted.keys()
    for name, gt in wanted.items():
        _check_record(found[name], gt, dataset.class_names)
    _check_annotations(record_set.annotation_file, wanted, dataset.class_names)


def _check_record(data, gt, class_names):
    pixels = data['image'].astype(int)
    assert pixels.shape == gt.pixels.shape, gt.file_name
    assert np.abs(pixels - gt.pixels.astype(int)).max() <= gt.tolerance, gt.file_name
    classes = [class_names[number - 1] for number in data['groundtruth_classes']]
    assert classes == [thing.name for thing in gt.objects], gt.file_name
    crowds = [thing.is_crowd for thing in gt.objects]
    assert data['groundtruth_is_crowd'].astype(bool).tolist() == crowds, gt.file_name
    assert len(data['groundtruth_mask_crops']) == len(gt.objects)
    for i, thing in enumerate(gt.objects):
        pixels = data['groundtruth_boxes'][i].astype(float) * np.tile(thing.mask.shape, 2)
        np.testing.assert_allclose(
            data['groundtruth_mask_crops'][i],
            255 * cell_means(thing.mask, pixels, 112),
            # A record keeps eight bits, and boxes 24.
            atol=0.5 + 0.01,
            err_msg=f'{gt.file_name} {i}',
        )
        y, x = np.nonzero(thing.mask)
        box = np.array([y.min(), x.min(), y.max() + 1, x.max() + 1]) / np.tile(thing.mask.shape, 2)
        np.testing.assert_allclose(data['groundtruth_boxes'][i], box, atol=1e-6)


def _check_annotations(path, wanted, class_names):
    with contextlib.redirect_stdout(io.StringIO()):
        annotation_file = coco.COCO(path)
    assert {image['file_name'] for image in annotation_file.imgs.values()} == wanted.keys()
    for image in annotation_file.imgs.values():
        annotations = annotation_file.imgToAnns[image['id']]
        objects = wanted[image['file_name']].objects
        assert len(annotations) == len(objects)
        for annotation, thing in zip(annotations, objects):
            np.testing.assert_array_equal(annotation_file.annToMask(annotation), thing.mask)
            assert class_names[annotation['category_id'] - 1] == thing.name
            assert annotation['iscrowd'] == thing.is_crowd


def error_of(action):
    """The one line of the UserError that `action` must end with."""
    try:
        action()
    except UserError as error:
        message = str(error)
    else:
        raise AssertionError('no error')
    assert '\n' not in message
    return message


def read_all(dataset, split='train'):
    """Reads all of a split as the conversion does."""
    dataset.stop_at_problems(split)
    return list(dataset.examples(split))
