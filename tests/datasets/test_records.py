"""TFRecords read back by the Model Garden's decoder, COCO ground truth, and the cache."""

import contextlib
import io
import json
import multiprocessing
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from official.vision.dataloaders import tf_example_decoder
from pycocotools import coco
from pycocotools import mask as coco_mask

from gan_mrcnn.datasets import records
from gan_mrcnn.errors import UserError
from tests.datasets.blocks import Blocks, make_example, make_masks


def decode(record_set):
    decoder = tf_example_decoder.TfExampleDecoder(include_mask=True)
    files = sorted(tf.io.gfile.glob(record_set.input_path))
    return [decoder.decode(record) for record in tf.data.TFRecordDataset(files)]


def load_coco(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return coco.COCO(path)


def files_and_times(cache):
    return {str(p): p.stat().st_mtime_ns for p in pathlib.Path(cache).rglob('*')}


def test_the_model_gardens_decoder_gives_back_the_source(tmp_path):
    record_set = records.ensure_records(Blocks(), 'train', str(tmp_path))
    decoded = decode(record_set)
    assert len(decoded) == record_set.num_examples == 40
    assert len(tf.io.gfile.glob(record_set.input_path)) == 2
    for k, data in enumerate(decoded):
        source = make_example(k)
        height, width = source.image.shape[:2]
        assert int(data['source_id'].numpy()) == source.image_id == record_set.image_ids[k]
        assert (data['height'], data['width']) == (height, width)
        np.testing.assert_array_equal(data['image'], source.image)
        np.testing.assert_array_equal(data['groundtruth_instance_masks'], make_masks(k))
        np.testing.assert_array_equal(data['groundtruth_classes'], source.classes)
        np.testing.assert_array_equal(data['groundtruth_is_crowd'], source.is_crowd)
        np.testing.assert_array_equal(data['groundtruth_area'], [35, (height - 10) * 11, 4])
        # ymin, xmin, ymax, xmax by hand; the ends are exclusive.
        pixels = [[0, 0, 5, 7], [10, 20, height, width], [6, 8, 9, 10]]
        expected = np.array(pixels) / [height, width, height, width]
        np.testing.assert_allclose(data['groundtruth_boxes'], expected, atol=1e-7)


def test_coco_ground_truth(tmp_path):
    record_set = records.ensure_records(Blocks(), 'train', str(tmp_path))
    truth = load_coco(record_set.annotation_file)
    assert truth.getImgIds() == record_set.image_ids == list(range(100, 140))
    assert truth.loadCats([1, 2]) == [{'id': 1, 'name': 'gland'}, {'id': 2, 'name': 'other'}]
    assert 'NOTICE' in truth.dataset['info']['description']
    assert sorted(truth.anns) == list(range(1, 121))
    for k in range(40):
        source = make_example(k)
        height, width = source.image.shape[:2]
        image = truth.imgs[100 + k]
        assert (image['height'], image['width']) == (height, width)
        found = truth.loadAnns(truth.getAnnIds(imgIds=[100 + k]))
        assert [a['category_id'] for a in found] == [1, 2, 1]
        assert [a['iscrowd'] for a in found] == [0, 0, 1]
        assert [a['area'] for a in found] == [35, (height - 10) * 11, 4]
        assert [a['bbox'] for a in found] == [
            [0, 0, 7, 5],
            [20, 10, 11, height - 10],
            [8, 6, 2, 3],
        ]
        for annotation, mask in zip(found, make_masks(k)):
            np.testing.assert_array_equal(coco_mask.decode(annotation['segmentation']), mask)


def test_a_second_call_writes_nothing(tmp_path):
    source = Blocks()
    first = records.ensure_records(source, 'train', str(tmp_path))
    before = files_and_times(tmp_path)
    assert records.ensure_records(source, 'train', str(tmp_path)) == first
    assert files_and_times(tmp_path) == before and len(source.reads) == 40


def test_what_the_records_depend_on_is_in_the_key(tmp_path, monkeypatch):
    cache = str(tmp_path)
    paths = {records.ensure_records(Blocks(), 'train', cache).input_path}
    paths.add(records.ensure_records(Blocks(version='2'), 'train', cache).input_path)
    skipped = records.ensure_records(Blocks(bad=(3,)), 'train', cache, skip_bad=True)
    assert skipped.num_examples == 39 and 103 not in skipped.image_ids
    assert len(decode(skipped)) == 39
    paths.add(skipped.input_path)
    monkeypatch.setattr(records, 'FORMAT_VERSION', records.FORMAT_VERSION + 1)
    paths.add(records.ensure_records(Blocks(), 'train', cache).input_path)
    assert len(paths) == 4


def test_an_interrupted_conversion_leaves_nothing_and_is_not_read(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        records.ensure_records(Blocks(stop_after=37), 'train', str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert records.ensure_records(Blocks(), 'train', str(tmp_path)).num_examples == 40


@pytest.mark.parametrize('damage', ['shard gone', 'shard cut', 'no manifest', 'half a manifest'])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    record_set = records.ensure_records(Blocks(), 'train', str(tmp_path))
    expected = [data['image'].numpy() for data in decode(record_set)]
    folder = pathlib.Path(record_set.annotation_file).parent
    shard = folder / 'records-00001.tfrecord'
    if damage == 'shard gone':
        shard.unlink()
    elif damage == 'shard cut':
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == 'no manifest':
        (folder / 'manifest.json').unlink()
    else:
        (folder / 'manifest.json').write_text((folder / 'manifest.json').read_text()[:40])
    again = records.ensure_records(Blocks(), 'train', str(tmp_path))
    assert again == record_set
    found = decode(again)
    assert len(found) == len(expected) == 40
    for data, image in zip(found, expected):
        np.testing.assert_array_equal(data['image'], image)
    assert list(tmp_path.iterdir()) == [folder]


def test_whoever_is_whole_first_stays(tmp_path):
    """Another process finishes the same conversion while this one is at work."""

    class Overtaken(Blocks):
        def read(self, item):
            if item.image_id == 139:
                records.ensure_records(Blocks(), 'train', str(tmp_path))
                self.theirs = files_and_times(tmp_path)
            return super().read(item)

    source = Overtaken()
    record_set = records.ensure_records(source, 'train', str(tmp_path))
    folder = pathlib.Path(record_set.annotation_file).parent
    assert list(tmp_path.iterdir()) == [folder]
    for path, time in files_and_times(folder).items():
        assert source.theirs[path] == time
    assert len(decode(record_set)) == 40


def _convert_in_process(cache, results):
    record_set = records.ensure_records(Blocks(), 'train', cache)
    results.put((record_set.num_examples, record_set.input_path))


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    context = multiprocessing.get_context('spawn')
    results = context.Queue()
    workers = [
        context.Process(target=_convert_in_process, args=(str(tmp_path), results)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    answers = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert answers[0] == answers[1] and answers[0][0] == 40
    assert len(list(tmp_path.iterdir())) == 1


def test_a_split_without_a_usable_image(tmp_path):
    with pytest.raises(UserError, match='blocks/empty has no usable image'):
        records.ensure_records(Blocks(), 'empty', str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='--cache_dir') as caught:
        records.ensure_records(Blocks(), 'train', str(tmp_path / 'file'))
    assert '\n' not in str(caught.value) and str(tmp_path / 'file') in str(caught.value)


def test_a_cache_in_a_folder_with_odd_characters(tmp_path):
    cache = tmp_path / 'a [b] *c'
    record_set = records.ensure_records(Blocks(3), 'train', str(cache))
    assert len(decode(record_set)) == 3


def test_manifest_tells_what_is_inside(tmp_path):
    record_set = records.ensure_records(Blocks(), 'train', str(tmp_path))
    folder = pathlib.Path(record_set.annotation_file).parent
    manifest = json.loads((folder / 'manifest.json').read_text())
    assert manifest['classes'] == ['gland', 'other']
    assert (len(manifest['image_ids']), manifest['num_objects']) == (40, 120)
    assert manifest['fingerprint'] == record_set.fingerprint


def test_moving_the_cache_does_not_spoil_it(tmp_path):
    source = Blocks(3)
    records.ensure_records(source, 'train', str(tmp_path / 'a'))
    shutil.move(tmp_path / 'a', tmp_path / 'b')
    assert len(decode(records.ensure_records(source, 'train', str(tmp_path / 'b')))) == 3
    assert len(source.reads) == 3
