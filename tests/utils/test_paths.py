"""Every path works, whatever characters it has, and nothing is found by a pattern by accident."""

import os

import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gan_mrcnn.prediction import checkpoint
from gan_mrcnn.training import checkpoints
from gan_mrcnn.utils import paths
from gan_mrcnn.utils.errors import UserError

# Names that mean something to a pattern, a shell, an address, a page, or TensorFlow.
NAMES = (
    *('lr[0.01]', 'a*', 'b?', '[!x]', 'c\\d', '#1', 'with space', 'Ünï çødé', '腺', '100%20', '%s'),
    *("it's", 'say "so"', 'line\nbreak', '<b>&amp;', '$HOME', '~', '{x}', 'a;b|c', 'a:b', '-x'),
    os.fsdecode(b'latin\xfc'),
)


def save_three(folder):
    """Three checkpoints through the run's own manager, which keeps two."""
    step, value = tf.Variable(0, dtype=tf.int64), tf.Variable([0.0, 1.0])
    saved = tf.train.Checkpoint(global_step=step, model=value)
    with paths.plain_folder(folder) as plain:
        manager = checkpoints.Checkpoints(saved, str(folder), step, 2, True, plain)
        for number in (1, 2, 3):
            step.assign(number)
            value.assign([0.0, float(number)])
            manager.save()
    best = checkpoints.BestCheckpoint(str(folder), 'mask_AP', True)
    best.add(saved, {'mask_AP': 0.5}, 3)
    return value


@pytest.mark.parametrize('name', NAMES)
def test_checkpoints_in_a_folder_of_any_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / name
    neighbours = [tmp_path / other for other in ('lr0', 'ab', 'bb', 'y', 'cd')]
    for one in (folder, *neighbours):
        one.mkdir()
    for one in neighbours:
        (one / 'ckpt-1.index').write_text('mine')
        (one / 'ckpt-1.data-00000-of-00001').write_text('mine')
    value = save_three(folder)
    # Those of the folder are kept, counted and read as those of any other.
    assert sorted(path.name for path in folder.iterdir() if path.suffix == '.index') == [
        'ckpt-2.index',
        'ckpt-3.index',
    ]
    for spelled in (str(folder), f'{folder}/', os.path.join('.', name)):
        newest = checkpoints.newest_sound(spelled)
        assert os.path.samefile(f'{newest}.index', folder / 'ckpt-3.index')
        found = checkpoint.find_checkpoint(spelled, 'best')
        assert os.path.basename(found) == 'best_ckpt-3' and checkpoint.step_of(found) == 3
    assert not (folder / 'damaged').exists()
    value.assign([0.0, 0.0])
    checkpoint.restore(value, checkpoint.find_checkpoint(str(folder), 'last'))
    assert value.numpy().tolist() == [0.0, 3.0]
    checkpoint.restore(value, str(folder / 'ckpt-2'))
    assert value.numpy().tolist() == [0.0, 2.0]
    # Not the neighbours', although the name is a pattern that they match.
    assert all((one / 'ckpt-1.index').read_text() == 'mine' for one in neighbours)
    # What is moved is found where it is.
    moved = folder.rename(tmp_path / 'moved')
    assert checkpoints.newest_sound(str(moved)) == str(moved / 'ckpt-3')


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.text(st.characters(blacklist_characters='/\0'), min_size=1, max_size=20))
def test_a_folder_by_another_name_is_that_folder(tmp_path, name):
    try:
        folder = tmp_path / os.fsdecode(os.fsencode(name))
        folder.mkdir(exist_ok=True)
    except (OSError, UnicodeError):  # '.', '..', and what the file system has no bytes for.
        return
    with paths.plain_folder(folder) as plain:
        assert paths.is_plain(plain)
        tf.io.write_file(f'{plain}/x', 'content')
        assert tf.io.gfile.glob(f'{plain}/x') == [f'{plain}/x']
    assert (folder / 'x').read_text() == 'content'
    assert os.path.exists(plain) == paths.is_plain(folder)


def test_paths_as_users_give_them(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    wanted = {
        'runs/a/': 'runs/a',
        './runs//a': 'runs/a',
        '~/runs': '/home/me/runs',
        '~': '/home/me',
        '~nosuchuser/x': '~nosuchuser/x',
        './~': '~',
        '-x': './-x',
        'a*[b]': 'a*[b]',
        '../x': '../x',
    }
    assert {text: paths.from_user(text, '--model_dir') for text in wanted} == wanted
    for text in ('', 'gs://bucket/run', 'file:///tmp/x'):
        with pytest.raises(UserError, match='--model_dir'):
            paths.from_user(text, '--model_dir')


def test_without_a_home_folder_the_flag_to_give_is_named(monkeypatch):
    """A user of a container: no HOME, and no entry in passwd."""
    import pwd

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.delenv('HOME', raising=False)
    monkeypatch.setattr(pwd, 'getpwuid', unknown)
    with pytest.raises(UserError, match='cannot tell the home folder .*give --cache_dir'):
        paths.from_user('~/.cache/gan_mrcnn', '--cache_dir')
    assert paths.from_user('/tmp/x', '--cache_dir') == '/tmp/x'
