"""What a disk or a folder refuses is one line that names it; a bug is none."""

import errno
import os

import pytest
import tensorflow as tf

from gan_mrcnn.utils import disk
from gan_mrcnn.utils.errors import UserError


@pytest.mark.parametrize(
    'number', [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EFBIG]
)
def test_disk_errors_are_named(number):
    text = os.strerror(number)
    errors = [OSError(number, text), tf.errors.UnknownError(None, None, f'/a/b; {text}')]
    for error in errors:
        with pytest.raises(UserError) as named, disk.errors_named('out/x'):
            raise error
        assert str(named.value).startswith(f'out/x cannot be written ({text}); ')
        assert '\n' not in str(named.value)
    moved = OSError(number, text, 'x.tmp', None, 'out/x')
    assert disk.line_of(moved).startswith(f'out/x cannot be used ({text}); ')


@pytest.mark.parametrize('error', [ValueError('x'), OSError(errno.EBADF, 'x'), OSError('x')])
def test_other_errors_stay_what_they_are(error):
    assert disk.line_of(error) is None
    with pytest.raises(type(error)), disk.errors_named('out/x'):
        raise error


def test_outputs_are_tried_before_the_work(tmp_path):
    (tmp_path / 'file').write_text('notes')
    disk.check_folder(tmp_path / 'new/deep', '--out')
    disk.check_file(tmp_path / 'new/x.json', '--results')
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['deep']
    with pytest.raises(UserError, match='^--out .*n cannot be written'):
        disk.check_folder(tmp_path / ('n' * 300), '--out')
    with pytest.raises(UserError, match='^--results .* is a folder'):
        disk.check_file(tmp_path / 'new', '--results')
    assert (tmp_path / 'file').read_text() == 'notes'


def test_what_is_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / 'file').write_text('notes')
    (tmp_path / 'lost').symlink_to(tmp_path / 'nowhere')
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    for name, what in (
        ('file', 'a file, not a folder'),
        ('lost', 'a link that leads nowhere'),
        ('loop', 'a link that leads nowhere'),
    ):
        place = tmp_path / name
        wanted = {
            place: f'--out {place} is {what}; give another path',
            place / 'x': f'--out {place / "x"}: {place} is {what}; give another path',
            place / 'x/y': f'--out {place / "x/y"}: {place} is {what}; give another path',
        }
        for folder, text in wanted.items():
            for make in (disk.make_folder, disk.check_folder):
                with pytest.raises(UserError) as error:
                    make(folder, '--out')
                assert str(error.value) == text
            with pytest.raises(UserError) as error:
                disk.check_file(folder / 'x.json', '--out')
            assert str(error.value) == text
    (tmp_path / 'here').symlink_to(tmp_path)
    disk.check_folder(tmp_path / 'here/new', '--out')
    assert (tmp_path / 'new').is_dir() and not (tmp_path / 'nowhere').exists()
