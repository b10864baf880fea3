"""TFRecords read back, COCO ground truth, and the cache."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib

import cv2
import numpy as np
import pytest
import tensorflow as tf
from pycocotools import coco
from pycocotools import mask as coco_mask

from gan_mrcnn.data import input_pipeline
from gan_mrcnn.data.records import mask_crops, records
from gan_mrcnn.utils import files, run_lengths
from gan_mrcnn.utils.errors import UserError
from tests.data.blocks import Blocks, make_example, make_masks
from tests.utils.cells import cell_means

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]


def convert(source, cache, num_processes=1, **options):
    """In this process, where the test can see what was read, unless told otherwise."""
    return records.ensure_records(
        source, 'train', str(cache), num_processes=num_processes, **options
    )


def contents(record_set):
    """Files of a cache by name."""
    folder = pathlib.Path(record_set.annotation_file).parent
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def decode(record_set):
    files = sorted(tf.io.gfile.glob(record_set.input_path))
    return [input_pipeline.decode(record) for record in tf.data.TFRecordDataset(files)]


def check_crops(data, masks):
    """Whether masks of a decoded record are those [N, H, W], inside their boxes."""
    boxes = data['groundtruth_boxes'] * np.tile(masks.shape[1:], 2)
    found = data['groundtruth_mask_crops'].numpy()
    assert found.dtype == np.uint8 and len(found) == len(masks)
    for crop, mask, box in zip(found, masks, boxes.numpy()):
        np.testing.assert_allclose(crop, 255 * cell_means(mask, box, 112), atol=0.5 + 1e-3)


def load_coco(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return coco.COCO(path)


def files_and_times(cache):
    return {str(p): p.stat().st_mtime_ns for p in pathlib.Path(cache).rglob('*')}


def test_the_model_gardens_decoder_gives_back_the_source(tmp_path):
    record_set = convert(Blocks(), tmp_path)
    decoded = decode(record_set)
    assert len(decoded) == record_set.num_examples == 40
    assert len(tf.io.gfile.glob(record_set.input_path)) == 2
    for k, data in enumerate(decoded):
        source = make_example(k)
        height, width = source.image.shape[:2]
        assert int(data['source_id'].numpy()) == source.image_id == record_set.image_ids[k]
        assert (data['height'], data['width']) == (height, width)
        np.testing.assert_array_equal(data['image'], source.image)
        check_crops(data, make_masks(k))
        np.testing.assert_array_equal(data['groundtruth_classes'], source.classes)
        np.testing.assert_array_equal(data['groundtruth_is_crowd'], source.is_crowd)
        np.testing.assert_array_equal(data['groundtruth_area'], [35, (height - 10) * 11, 4])
        # ymin, xmin, ymax, xmax by hand; the ends are exclusive.
        pixels = [[0, 0, 5, 7], [10, 20, height, width], [6, 8, 9, 10]]
        expected = np.array(pixels) / [height, width, height, width]
        np.testing.assert_allclose(data['groundtruth_boxes'], expected, atol=1e-7)


def test_coco_ground_truth(tmp_path):
    record_set = convert(Blocks(), tmp_path)
    gt = load_coco(record_set.annotation_file)
    assert gt.getImgIds() == record_set.image_ids == list(range(100, 140))
    assert gt.loadCats([1, 2]) == [{'id': 1, 'name': 'gland'}, {'id': 2, 'name': 'other'}]
    assert 'NOTICE' in gt.dataset['info']['description']
    assert sorted(gt.anns) == list(range(1, 121))
    for k in range(40):
        source = make_example(k)
        height, width = source.image.shape[:2]
        image = gt.imgs[100 + k]
        assert (image['height'], image['width']) == (height, width)
        found = gt.loadAnns(gt.getAnnIds(imgIds=[100 + k]))
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
    first = convert(source, tmp_path)
    before = files_and_times(tmp_path)
    assert convert(source, tmp_path) == first
    assert files_and_times(tmp_path) == before and len(source.reads) == 40


def test_what_the_records_depend_on_is_in_the_key(tmp_path, monkeypatch):
    cache = str(tmp_path)
    paths = {convert(Blocks(), cache).input_path}
    paths.add(convert(Blocks(version='2'), cache).input_path)
    skipped = convert(Blocks(bad=(3,)), cache, skip_bad=True)
    assert skipped.num_examples == 39 and 103 not in skipped.image_ids
    assert len(decode(skipped)) == 39
    paths.add(skipped.input_path)
    monkeypatch.setattr(records, 'FORMAT_VERSION', records.FORMAT_VERSION + 1)
    paths.add(convert(Blocks(), cache).input_path)
    assert len(paths) == 4


def test_an_interrupted_conversion_is_not_read_and_goes_on_where_it_was(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        convert(Blocks(stop_after=37), tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == ['.unfinished']
    second = Blocks()
    record_set = convert(second, tmp_path)
    # The first 32 are a shard of their own.
    assert second.reads == list(range(32, 40)) and record_set.num_examples == 40
    assert [int(data['source_id'].numpy()) for data in decode(record_set)] == record_set.image_ids
    whole = convert(Blocks(), tmp_path / 'other')
    assert contents(record_set) == contents(whole)


def test_a_shard_that_is_cut_short_is_not_taken_over(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        convert(Blocks(stop_after=37), tmp_path)
    (shard,) = tmp_path.glob('*.unfinished/*.tfrecord')
    shard.write_bytes(shard.read_bytes()[:-7])
    second = Blocks()
    assert contents(convert(second, tmp_path)) == contents(convert(Blocks(), tmp_path / 'other'))
    assert second.reads == list(range(40))


def test_a_shard_of_other_data_is_not_taken_over(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        convert(Blocks(stop_after=37), tmp_path)
    second = Blocks(version='2')
    convert(second, tmp_path)
    assert second.reads == list(range(40))


def test_a_damaged_image_is_named_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match='^35.png cannot be read; --skip_bad') as caught:
        convert(Blocks(bad=(35, 36)), tmp_path)
    assert '\n' not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_what_is_skipped_is_said(tmp_path, capsys):
    record_set = convert(Blocks(bad=(3, 35)), tmp_path, skip_bad=True)
    said = capsys.readouterr().out
    assert '3.png cannot be read' in said and '35.png cannot be read' in said
    assert record_set.num_examples == 38 and not {103, 135} & set(record_set.image_ids)


def folder_of(record_set):
    return pathlib.Path(record_set.annotation_file).parent


def flip(path, place=100, keep_time=False):
    """Another bit in one byte; on a disk that loses bits no time changes."""
    state = path.stat()
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    # The clock of a file system may be too coarse for what a test does in a row.
    later = 0 if keep_time else 10**9
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + later))


DAMAGES = {
    'shard gone': lambda folder: (folder / 'records-00001.tfrecord').unlink(),
    'shard cut': lambda folder: os.truncate(folder / 'records-00001.tfrecord', 700),
    'shard flipped': lambda folder: flip(folder / 'records-00001.tfrecord'),
    'no manifest': lambda folder: (folder / 'manifest.json').unlink(),
    'half a manifest': lambda folder: os.truncate(folder / 'manifest.json', 40),
    'manifest flipped': lambda folder: flip(folder / 'manifest.json', 200),
    'manifest of another shape': lambda folder: (folder / 'manifest.json').write_text('[[]]'),
    'annotations flipped': lambda folder: flip(folder / 'annotations.json', 200),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_what_is_damaged_is_made_again_and_no_more(tmp_path, capsys, damage):
    record_set = convert(Blocks(), tmp_path)
    folder = folder_of(record_set)
    expected = contents(record_set)
    DAMAGES[damage](folder)
    source = Blocks()
    assert convert(source, tmp_path) == record_set
    assert contents(record_set) == expected
    assert source.reads == list(range(32, 40) if 'shard' in damage else range(40))
    assert list(tmp_path.iterdir()) == [folder]
    name = 'records-00001.tfrecord' if 'shard' in damage else damage.split()[-2]
    said = capsys.readouterr().out
    assert 'rebuilding' in said and (name in said or 'manifest.json' in said)
    assert convert(source, tmp_path) == record_set and 'rebuilding' not in capsys.readouterr().out


def test_a_shard_that_becomes_other_bytes_is_not_mixed_with_the_rest(tmp_path, monkeypatch):
    """As with another version of OpenCV."""
    record_set = convert(Blocks(), tmp_path)
    (folder_of(record_set) / 'records-00001.tfrecord').unlink()
    encode = mask_crops.encode
    other = lambda *masks: zlib.compress(zlib.decompress(encode(*masks)), 1)  # noqa: E731
    monkeypatch.setattr(mask_crops, 'encode', other)
    again = convert(Blocks(), tmp_path)
    assert contents(again) == contents(convert(Blocks(), tmp_path / 'other'))


def test_a_large_cache_is_read_where_it_changed_only(tmp_path, monkeypatch):
    monkeypatch.setattr(records, '_ALWAYS_READ', 0)
    record_set = convert(Blocks(), tmp_path)
    names = ['records-00000.tfrecord', 'records-00001.tfrecord']
    flip(folder_of(record_set) / names[0], keep_time=True)
    flip(folder_of(record_set) / names[1])
    source = Blocks()
    convert(source, tmp_path)
    assert source.reads == list(range(32, 40))
    # The first one shows when TensorFlow reads it.
    with pytest.raises(tf.errors.DataLossError):
        decode(record_set)
    assert records.set_damaged_aside(record_set) == names[:1]
    source = Blocks()
    assert convert(source, tmp_path) == record_set and source.reads == list(range(32))
    assert len(decode(record_set)) == 40 and records.set_damaged_aside(record_set) == []
    assert not list(tmp_path.rglob('*.damaged'))


def test_a_large_cache_that_was_copied_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(records, '_ALWAYS_READ', 0)
    record_set = convert(Blocks(), tmp_path)
    read = []
    sha256 = files.sha256
    monkeypatch.setattr(files, 'sha256', lambda path: (read.append(path.name), sha256(path))[1])
    assert convert(Blocks(), tmp_path) == record_set and read == []
    written = (folder_of(record_set) / 'manifest.json').stat().st_mtime_ns
    for path in folder_of(record_set).glob('*.tfrecord'):
        os.utime(path, ns=(0, written + 10**6))
    time.sleep(0.05)
    for _ in range(2):
        assert convert(Blocks(), tmp_path) == record_set
        assert sorted(read) == ['records-00000.tfrecord', 'records-00001.tfrecord']


@pytest.mark.parametrize('name', ['manifest.json', 'annotations.json', 'records-00000.tfrecord'])
def test_damage_anywhere_is_set_aside_and_mended(tmp_path, name):
    record_set = convert(Blocks(), tmp_path)
    expected = contents(record_set)
    flip(folder_of(record_set) / name, 200, keep_time=True)
    assert records.set_damaged_aside(record_set) == [name]
    assert not (folder_of(record_set) / name).exists()
    assert convert(Blocks(), tmp_path) == record_set and contents(record_set) == expected


@pytest.mark.parametrize('num_processes', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_is_one_line(tmp_path, num_processes):
    """By the largest file that the process may write."""
    process = run_program(
        f"records.ensure_records(Blocks(64), 'train', sys.argv[1], num_processes={num_processes})",
        str(tmp_path),
        preexec_fn=lambda: (
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        ),
    )
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2 and 'Traceback' not in said
    assert 'cannot be written' in said.splitlines()[-1] and '--cache_dir' in said


def test_several_processes_write_what_one_writes(tmp_path):
    alone = convert(Blocks(70), tmp_path / 'one')
    together = convert(Blocks(70), tmp_path / 'two', num_processes=2)
    assert together.image_ids == alone.image_ids
    assert contents(together) == contents(alone)
    assert {path.suffix for path in pathlib.Path(together.annotation_file).parent.iterdir()} == {
        '.tfrecord',
        '.json',
    }


def run_program(text, *arguments, **options):
    """Starts a program that has the real beginning of ours; its output is text."""
    program = f"""
import sys
from gan_mrcnn.data.readers import base
from gan_mrcnn.data.records import records, shards
from gan_mrcnn.utils import cli
from tests.data.blocks import Blocks
def main():
    {text}
if __name__ == '__main__':
    cli.run_main(main, 'program.py')
"""
    path = pathlib.Path(arguments[0]) / 'program.py'
    path.write_text(program)
    return subprocess.Popen(
        [sys.executable, str(path), *arguments],
        env={**os.environ, 'PYTHONPATH': str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def convert_slowly(folder):
    """A program that converts two shards and takes its time for the second."""
    process = run_program(
        "records.ensure_records(Blocks(64, slow_from=35), 'train', sys.argv[1], num_processes=2)",
        str(folder),
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob('*.unfinished/records-00000.json')):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


def wait_until_gone(group):
    """Until no process of the group is left; Python's own tracker of resources ends last."""
    deadline = time.monotonic() + 30
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.05)
        pytest.fail('processes are left')


def test_ctrl_c_stops_all_processes_and_the_next_call_goes_on(tmp_path):
    process = convert_slowly(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert 'Traceback' not in said and 'stopped' in said
    wait_until_gone(process.pid)
    second = Blocks(64)
    assert convert(second, tmp_path).num_examples == 64
    assert second.reads == list(range(32, 64))


def test_a_killed_conversion_leaves_no_process_and_the_next_call_goes_on(tmp_path):
    process = convert_slowly(tmp_path)
    process.kill()
    process.communicate(timeout=30)
    wait_until_gone(process.pid)
    second = Blocks(64)
    record_set = convert(second, tmp_path)
    assert second.reads == list(range(32, 64))
    assert contents(record_set) == contents(convert(Blocks(64), tmp_path / 'other'))
    assert not list(tmp_path.rglob('*.tmp'))


def last_line_of_failure(blocks, folder):
    """What a program says at last that cannot convert `blocks` by two processes."""
    call = f"records.ensure_records({blocks}, 'train', sys.argv[1], num_processes=2)"
    process = run_program(call, str(folder))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2 and 'Traceback' not in said
    return said.splitlines()[-1]


@pytest.mark.slow
def test_a_damaged_image_in_another_process_is_one_line(tmp_path):
    said = last_line_of_failure('Blocks(64, bad=(5, 40))', tmp_path)
    assert 'cannot be read; --skip_bad skips such images' in said
    assert [path.name for path in tmp_path.iterdir()] == ['program.py']


@pytest.mark.slow
def test_a_process_that_is_killed_is_one_line_and_the_next_call_goes_on(tmp_path):
    """As the system does where memory is short."""
    said = last_line_of_failure('Blocks(64, dies_at=60)', tmp_path)
    assert 'was killed, most likely for lack of memory' in said
    second = Blocks(64)
    assert convert(second, tmp_path).num_examples == 64
    # At least: the first shard may not have been ready.
    assert second.reads[-32:] == list(range(32, 64))


def test_two_at_once_do_the_work_once(tmp_path):
    """The second one waits for the first and finds its records."""
    blocks = 'Blocks(64, slow_from=60)'
    call = f"records.ensure_records({blocks}, 'train', sys.argv[1], num_processes=1)"
    text = f'print({call}.input_path)'
    both = [run_program(text, str(tmp_path)) for _ in range(2)]
    answers = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert len(list(tmp_path.glob('blocks*'))) == 1


@pytest.mark.parametrize(
    ('second', 'options', 'said'),
    [
        (Blocks(version='2'), {}, 'these data have not been converted yet; conversions of other'),
        (
            Blocks(),
            {'skip_bad': True},
            'settings changed (skip_bad from False to True): rebuilding',
        ),
        (Blocks(), {}, ''),
    ],
)
def test_a_second_conversion_says_why_and_keeps_the_first(tmp_path, capsys, second, options, said):
    convert(Blocks(), tmp_path)
    assert capsys.readouterr().out == ''
    first = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
    convert(second, tmp_path, **options)
    out = capsys.readouterr().out
    assert said in out and bool(out) == bool(said)
    after = {path: path.stat().st_mtime_ns for path in first}
    assert after == first and len(list(tmp_path.iterdir())) == 1 + bool(said)


def test_a_split_without_a_usable_image(tmp_path):
    with pytest.raises(UserError, match='blocks/empty has no usable image'):
        records.ensure_records(Blocks(), 'empty', str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='--cache_dir') as caught:
        convert(Blocks(), tmp_path / 'file')
    assert '\n' not in str(caught.value) and str(tmp_path / 'file') in str(caught.value)


def test_a_cache_in_a_folder_with_odd_characters(tmp_path):
    cache = tmp_path / 'a [b] *c'
    record_set = convert(Blocks(3), cache)
    assert len(decode(record_set)) == 3


def test_manifest_tells_what_is_inside(tmp_path):
    record_set = convert(Blocks(), tmp_path)
    folder = pathlib.Path(record_set.annotation_file).parent
    manifest = json.loads((folder / 'manifest.json').read_text())
    assert manifest['classes'] == ['gland', 'other']
    # The third object of each image, of the first class, is a crowd.
    assert manifest['objects_per_class'] == {'gland': 40, 'other': 40}
    counts = manifest['num_images'], manifest['num_objects'], manifest['num_crowds']
    assert counts == (40, 80, 40)
    assert record_set.objects_per_image == [2] * 40
    assert record_set.objects_per_class == [40, 40]
    assert manifest['fingerprint'] == record_set.fingerprint


def test_an_object_without_a_pixel_is_skipped_and_counted(tmp_path, capsys):
    class Empty(Blocks):
        def read(self, item):
            example = super().read(item)
            if item.image_id == 101:
                masks = make_masks(1)
                masks[1] = 0
                example.rles = run_lengths.encode_masks(masks)
            return example

    record_set = convert(Empty(4), tmp_path)
    assert 'objects without a pixel are skipped: 1, in 1 of 4 images, such as 1.png' in (
        capsys.readouterr().out
    )
    assert record_set.objects_per_image == [2, 1, 2, 2]
    data = decode(record_set)[1]
    np.testing.assert_array_equal(data['groundtruth_classes'], [1, 1])
    check_crops(data, make_masks(1)[[0, 2]])


def test_what_is_odd_in_images_and_annotations_is_counted(tmp_path, capsys):
    class Odd(Blocks):
        def read(self, item):
            example = super().read(item)
            example.warning = 'is almost black' if item.image_id > 100 else ''
            example.num_skipped = 2 if item.image_id == 102 else 0
            return example

    convert(Odd(4), tmp_path)
    said = capsys.readouterr().out
    assert 'warning: 1.png (and 2 other images) is almost black' in said
    assert 'annotations that cannot be used are skipped: 2, in 1 of 4 images, such as 2.png' in said


def test_what_is_not_learnt_of_crowded_images_is_counted():
    crowded = records.RecordSet('', 4, 0, [1, 1], '', '', [1, 2, 3, 4], [3, 9, 4, 6], [22]).crowded
    assert crowded(9) == ''
    said = crowded(4)
    # Five of the 9 and two of the 6.
    assert (
        said.startswith('2 of 4 images have more than 4 objects') and 'another 7 of all 22' in said
    )
    assert '--max_instances' in said


def test_an_image_without_objects(tmp_path):
    class Plain(Blocks):
        def read(self, item):
            nothing = np.zeros(0, int)
            return dataclasses.replace(
                super().read(item), rles=[], classes=nothing, is_crowd=nothing
            )

    record_set = convert(Plain(2), tmp_path)
    assert record_set.objects_per_image == [0, 0]
    data = decode(record_set)[1]
    assert data['groundtruth_boxes'].shape == (0, 4)
    np.testing.assert_array_equal(data['image'], make_example(1).image)
    assert load_coco(record_set.annotation_file).getAnnIds() == []


def test_the_images_own_file_goes_into_the_records(tmp_path):
    class Photos(Blocks):
        def read(self, item):
            example = super().read(item)
            _, encoded = cv2.imencode('.jpg', example.image)
            example.encoded = encoded.tobytes()
            return example

    record_set = convert(Photos(1), tmp_path)
    (path,) = tf.io.gfile.glob(record_set.input_path)
    (record,) = tf.data.TFRecordDataset(path).as_numpy_iterator()
    example = tf.train.Example.FromString(record)
    (stored,) = example.features.feature['image/encoded'].bytes_list.value
    assert stored == cv2.imencode('.jpg', make_example(0).image)[1].tobytes()


def test_moving_the_cache_does_not_spoil_it(tmp_path):
    source = Blocks(3)
    convert(source, tmp_path / 'a')
    shutil.move(tmp_path / 'a', tmp_path / 'b')
    assert len(decode(convert(source, tmp_path / 'b'))) == 3
    assert len(source.reads) == 3
