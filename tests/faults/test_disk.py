"""Disks that are full or read-only, folders that are not what they should be: one line, no loss."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess

import pytest

from tests.faults import runs

# Room for the checkpoint that is kept, the best, a new one and little more; see `Tmpfs`.
ROOM_MB = 600


class Tmpfs:
    """A small file system of its own in a folder."""

    def __init__(self, folder: pathlib.Path, megabytes: float):
        self.folder = folder
        self.filling = folder / 'filling'
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', f'size={int(megabytes * 1024)}k', 'tmpfs', folder],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            pytest.skip(f'a tmpfs cannot be mounted here ({done.stderr.strip()})')

    def fill(self, free=0) -> None:
        """Takes all room but `free` bytes."""
        with open(self.filling, 'wb', buffering=0) as file, contextlib.suppress(OSError):
            left = shutil.disk_usage(self.folder).free - free
            while left > 0:
                left -= file.write(bytes(min(left, 1 << 20)))

    def make_room(self) -> None:
        self.filling.unlink()

    def remount(self, option: str) -> None:
        subprocess.run(['mount', '-o', f'remount,{option}', self.folder], check=True)

    def unmount(self) -> None:
        subprocess.run(['umount', '-l', self.folder], check=True)


@pytest.fixture
def disk(tmp_path):
    """Makes `Tmpfs`es of a number of MB, which are unmounted at the end."""
    made = []

    def make(megabytes):
        made.append(Tmpfs(tmp_path / f'disk{len(made)}', megabytes))
        return made[-1]

    yield make
    for one in made:
        one.unmount()


@pytest.mark.slow
def test_a_disk_without_room_is_reported_before_the_first_step(site, disk):
    small = disk(8)
    line = runs.refusal(site.train(small.folder / 'run'))
    assert str(small.folder / 'run') in line and 'MB of room' in line and '--model_dir' in line


@pytest.mark.faults
def test_a_cache_without_room_is_reported(site, disk):
    small = disk(0.02)
    line = runs.refusal(site.train(site.folder / 'no_cache', cache=small.folder))
    assert str(small.folder) in line and '--cache_dir' in line
    assert not (site.folder / 'no_cache').exists()


@pytest.mark.faults
@pytest.mark.parametrize(
    'moment', runs.some(['saved:2', 'validation', 'step:1', 'step:3', 'saved:4'])
)
def test_a_disk_that_fills_in_the_middle(moment, site, whole, disk):
    """The run is halted at the moment, the disk filled to the last byte, and the run let go on."""
    place = disk(ROOM_MB)
    model_dir = place.folder / 'run'
    process = site.start(model_dir, faults=[f'SIGSTOP@{moment}'])
    assert process.says(f'SIGSTOP at {moment}')
    place.fill()
    before = checkpoint_hashes(model_dir)
    process.send(signal.SIGCONT)
    line = runs.refusal(process.finish())
    assert str(model_dir) in line and os.strerror(28) in line and 'make room' in line
    # What had been saved is as it was.
    after = checkpoint_hashes(model_dir)
    assert {name: after[name] for name in before if name in after} == {
        name: bits for name, bits in before.items() if name in after
    }
    if moment in ('saved:2', 'step:3'):
        assert [name for name in after if name.startswith('ckpt-2.')]
    place.make_room()
    assert runs.ended_well(site.train(model_dir))
    runs.same_run(model_dir, whole)


def checkpoint_hashes(model_dir):
    return {
        name: bits
        for name, bits in runs.hashes(model_dir).items()
        if name.startswith('ckpt-') and '_temp' not in name
    }


@pytest.mark.faults
def test_a_disk_that_cannot_be_written_at_all(site, disk, whole):
    place = disk(ROOM_MB)
    model_dir = place.folder / 'run'
    shutil.copytree(whole, model_dir)
    before = runs.hashes(model_dir)
    place.remount('ro')
    try:
        line = runs.refusal(site.train(model_dir, steps=runs.STEPS + 1))
        assert str(model_dir) in line and os.strerror(30) in line
        line = runs.refusal(site.train(place.folder / 'new'))
        assert str(place.folder / 'new') in line and os.strerror(30) in line
    finally:
        place.remount('rw')
    assert runs.hashes(model_dir) == before


@pytest.mark.faults
def test_a_file_in_place_of_the_folder(site, tmp_path):
    path = tmp_path / 'file'
    path.write_text('notes')
    line = runs.refusal(site.train(path))
    assert str(path) in line
    line = runs.refusal(site.train(path / 'run'))
    assert str(path / 'run') in line
    assert path.read_text() == 'notes'


@pytest.mark.faults
@pytest.mark.parametrize(
    'flag, key',
    runs.some(
        [
            ('task.gan.num_layers=4', 'task.gan.num_layers'),
            ('task.model.backbone.resnet.model_id=34', 'task.model.backbone'),
            ('task.gan.mode=baseline', 'task.gan.mode'),
        ]
    ),
)
def test_a_checkpoint_of_another_network(flag, key, site, whole):
    before = runs.hashes(whole)
    line = runs.refusal(site.train(whole, flag, steps=runs.STEPS + 1))
    assert str(whole) in line and key in line
    assert runs.hashes(whole) == before


@pytest.mark.faults
def test_a_checkpoint_of_other_classes(site, whole, tmp_path):
    """The same flags, but the annotations have got a second class; and without params.yaml."""
    other = runs.Site(tmp_path)
    for path in (tmp_path / 'data').glob('*.json'):
        text = path.read_text().replace(
            '"categories": [', '"categories": [{"id": 2, "name": "nucleus"}, '
        )
        path.write_text(text)
    before = runs.hashes(whole)
    line = runs.refusal(other.train(whole, steps=runs.STEPS + 1))
    assert str(whole) in line and 'num_classes' in line
    assert runs.hashes(whole) == before
    copy = shutil.copytree(whole, tmp_path / 'copy')
    (copy / 'params.yaml').unlink()
    checkpoints = {k: v for k, v in runs.hashes(copy).items() if k.startswith(('ckpt', 'best'))}
    line = runs.refusal(other.train(copy, steps=runs.STEPS + 1))
    assert str(copy) in line and 'another network' in line
    after = runs.hashes(copy)
    assert {name: after[name] for name in checkpoints} == checkpoints
