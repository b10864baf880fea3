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
    for path in ('file', 'file/x', 'n' * 300):
        with pytest.raises(UserError, match='^--out .*cannot be written'):
            disk.check_folder(tmp_path / path, '--out')
    with pytest.raises(UserError, match='^--results .* is a folder'):
        disk.check_file(tmp_path / 'new', '--results')
    assert (tmp_path / 'file').read_text() == 'notes'
