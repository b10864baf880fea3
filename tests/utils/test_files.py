"""A file is there with all of its content, or as it was."""

import pathlib

import pytest

from gan_mrcnn.utils import files


def test_what_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / 'x.json'
    files.write_json(path, {'a': 1})
    with pytest.raises(TypeError):
        files.write_json(path, {'a': object()})
    with pytest.raises(RuntimeError), files.named_when_whole(path) as temporary:
        temporary.write_text('half')
        raise RuntimeError
    assert files.read_json(path, None) == {'a': 1}
    assert [found.name for found in tmp_path.iterdir()] == ['x.json']


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / 'nonfinite').mkdir()
    for name in ('x.json.123.tmp', 'nonfinite/y.npz.123.tmp', 'x.json'):
        (tmp_path / name).write_text('{}')
    files.remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.rglob('*') if path.is_file()] == ['x.json']


@pytest.mark.parametrize('content', [b'', b'{"a": ', b'\xff\xfe', None])
def test_what_is_no_json_is_the_default(content, tmp_path):
    path = pathlib.Path(tmp_path / 'x.json')
    if content is not None:
        path.write_bytes(content)
    assert files.read_json(path, []) == []
