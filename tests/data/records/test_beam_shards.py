"""Records that Apache Beam's workers write: the bytes of the local conversion, whatever happens."""

import functools
import threading

import numpy as np
import pytest

from gan_mrcnn.data import augment, readers
from gan_mrcnn.data.readers import options
from gan_mrcnn.data.records import beam_shards, shards
from gan_mrcnn.utils import beam_runner
from gan_mrcnn.utils.errors import UnfinishedError, UserError
from tests.data import layouts
from tests.data.blocks import Blocks
from tests.data.records.test_records import contents, convert, run_program
from tests.utils.beam_jobs import HERE

pytest.importorskip('apache_beam', reason="the extra 'beam' is not installed")


def convert_by_beam(source, cache, *flags, **chosen):
    runner = beam_runner.from_flags('DirectRunner', [*HERE, *flags])
    write = functools.partial(beam_shards.write_shards, runner=runner)
    return convert(source, cache, write=write, **chosen)


@pytest.mark.parametrize('flags', [(), ('--direct_runner_bundle_repeat=1',)])
def test_bytes_are_those_of_the_local_conversion(flags, tmp_path):
    """Also where every job is done twice."""
    here = convert(Blocks(70), tmp_path / 'here')
    there = convert_by_beam(Blocks(70), tmp_path / 'there', *flags)
    assert contents(there) == contents(here)
    assert there.image_ids == here.image_ids
    assert len(list((tmp_path / 'there').iterdir())) == 1


def test_damaged_images_are_named_or_skipped_as_there(tmp_path):
    bad = Blocks(70, bad=(5, 40))
    said = r'^5\.png cannot be read; --skip_bad skips such images \(and 1 more\)$'
    with pytest.raises(UserError, match=said):
        convert_by_beam(bad, tmp_path)
    assert not list(tmp_path.iterdir())
    here = convert(bad, tmp_path / 'here', skip_bad=True)
    there = convert_by_beam(bad, tmp_path / 'there', skip_bad=True)
    assert there.num_examples == 68 and contents(there) == contents(here)


def test_what_is_finished_stays_and_the_rest_is_written(tmp_path):
    def write_first(dataset, missing, skip_bad, progress):
        shards.write_shards(dataset, missing[:1], skip_bad, 1, progress)
        raise UnfinishedError('the machine is gone')

    with pytest.raises(UnfinishedError):
        convert(Blocks(70), tmp_path, write=write_first)
    (first,) = tmp_path.glob('*.unfinished/*.tfrecord')
    before = first.stat().st_mtime_ns
    there = convert_by_beam(Blocks(70), tmp_path)
    (first,) = tmp_path.glob('*/records-00000.tfrecord')
    assert first.stat().st_mtime_ns == before
    assert contents(there) == contents(convert(Blocks(70), tmp_path / 'here'))


def test_a_damaged_shard_is_written_again(tmp_path):
    expected = contents(convert_by_beam(Blocks(70), tmp_path))
    (shard,) = tmp_path.glob('*/records-00001.tfrecord')
    shard.write_bytes(b'')
    assert contents(convert_by_beam(Blocks(70), tmp_path)) == expected


def test_a_runner_that_ends_too_early_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(beam_runner, 'run', lambda *_: None)
    with pytest.raises(UnfinishedError, match='ended without writing .*records-00000'):
        convert_by_beam(Blocks(70), tmp_path)


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path):
    with pytest.raises(UserError, match='--cache_dir on a disk that all workers share'):
        beam_shards._write(tmp_path / 'nosuch/dataset.tmp', 'records-00000.tmp')


class Meeting(Blocks):
    """Of which two readers wait for each other at every image."""

    def __init__(self):
        super().__init__(3)
        self.barrier = threading.Barrier(2, timeout=60)

    def read(self, item):
        self.barrier.wait()
        return super().read(item)


def test_two_who_write_the_same_shard_leave_one_good_shard(tmp_path):
    meeting = Meeting()
    shard = shards.Shard(meeting.items('train'), tmp_path / 'records-00000.tfrecord')
    seen = []

    def write():
        shards.write_shard(meeting, shard, False, lambda: seen.append(set(tmp_path.iterdir())))

    both = [threading.Thread(target=write) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    # Both were at work, each in a file of its own; the later may see what the other has finished.
    unfinished = [[path for path in paths if path.suffix == '.tmp'] for paths in seen]
    assert max(map(len, unfinished)) == 2 and shard.is_finished()
    assert {path.name for path in tmp_path.iterdir()} == {
        'records-00000.tfrecord',
        'records-00000.json',
    }
    alone = shards.Shard(shard.items, tmp_path / 'alone.tfrecord')
    shards.write_shard(Blocks(3), alone, False, lambda: None)
    assert alone.path.read_bytes() == shard.path.read_bytes()
    assert alone.read_ground_truth() == shard.read_ground_truth()


LAYOUTS = {
    'coco_format': (layouts.write_own_coco, {'share': 0.7}),
    'coco': (layouts.write_coco_2017, {}),
    'phone': (layouts.write_phones, {'share': 0.9}),
    'cityscapes': (layouts.write_cityscapes, {}),
    'label_images': (layouts.write_label_images, {'share': 0.6}),
    'gland': (None, {}),
}


def test_all_readers_are_here():
    assert set(LAYOUTS) == set(readers.DATASETS)


@pytest.mark.parametrize('name', LAYOUTS)
def test_every_reader_travels_by_beams_pickler(name, tmp_path):
    from apache_beam.internal import pickler

    write, chosen = LAYOUTS[name]
    if write:
        write(tmp_path)
        folder = str(tmp_path)
    else:
        folder = None
    source = readers.load_dataset(name, folder, options.Options(**chosen))
    for dataset in (source, augment.Expanded(source, 30, seed=0)):
        item = dataset.items('train')[-1]
        copy, copied_item = pickler.loads(pickler.dumps((dataset, item)))
        expected, found = dataset.read(item), copy.read(copied_item)
        np.testing.assert_array_equal(found.image, expected.image)
        assert found.rles == expected.rles and found.encoded == expected.encoded


@pytest.mark.slow
def test_a_killed_worker_process_is_one_line_and_the_same_command_goes_on(tmp_path):
    flags = ['--direct_num_workers=2']
    text = (
        'import functools; from gan_mrcnn.data.records import beam_shards; '
        'from gan_mrcnn.utils import beam_runner; '
        f"runner = beam_runner.from_flags('DirectRunner', {flags}); "
        'write = functools.partial(beam_shards.write_shards, runner=runner); '
        "records.ensure_records({blocks}, 'train', sys.argv[1], write=write)"
    )
    said = []
    for blocks, status in (('Blocks(128, dies_at=120)', 2), ('Blocks(128)', 0)):
        process = run_program(text.format(blocks=blocks), str(tmp_path))
        said += process.communicate(timeout=600)
        assert process.returncode == status, said
    assert 'a worker process of DirectRunner was killed, most likely for lack of memory' in said[1]
    assert 'Traceback' not in ''.join(said)
    there = convert(Blocks(128), tmp_path)
    assert contents(there) == contents(convert(Blocks(128), tmp_path / 'here'))
