"""Folders, files and addresses of published weights: what is read is what was published."""

import contextlib
import functools
import hashlib
import http.server
import re
import threading

import pytest

from gan_mrcnn.utils import files, published
from gan_mrcnn.utils.errors import UserError
from tests import programs

CONTENT = bytes(range(256)) * 9000


def sum_of(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def folder(tmp_path):
    """What `publish` writes, as far as this is about files."""
    folder = tmp_path / 'published'
    folder.mkdir()
    for name, content in ((published.WEIGHTS, CONTENT), ('README.md', b'# Glands\n')):
        (folder / name).write_bytes(content)
    lines = [f'{files.sha256(path)}  {path.name}\n' for path in sorted(folder.iterdir())]
    (folder / published.SUMS).write_text(''.join(lines))
    return folder


@contextlib.contextmanager
def served(folder):
    """A web server of the folder: its address, and the paths that it was asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f'http://127.0.0.1:{server.server_port}', asked
        finally:
            server.shutdown()
            thread.join()


def refusal(source, cache):
    with pytest.raises(UserError) as error:
        published.find(str(source), str(cache))
    assert '\n' not in str(error.value)
    return str(error.value)


def test_a_folder_and_a_file_are_checked(folder, tmp_path):
    path = str(folder / published.WEIGHTS)
    assert published.find(str(folder), 'nowhere') == published.find(path, 'nowhere') == path
    alone = tmp_path / 'alone.safetensors'
    alone.write_bytes(CONTENT)
    assert published.find(str(alone), 'nowhere') == str(alone)


@pytest.mark.parametrize('name', [published.WEIGHTS, 'README.md'])
def test_a_damaged_file_is_named(name, folder, tmp_path):
    content = bytearray((folder / name).read_bytes())
    content[3] ^= 1
    (folder / name).write_bytes(content)
    assert re.search(f'{name} is damaged', refusal(folder, tmp_path))
    if name == published.WEIGHTS:
        assert 'is damaged' in refusal(folder / name, tmp_path)


def test_missing_files_are_named(folder, tmp_path):
    assert 'is neither a folder nor' in refusal(tmp_path / 'nowhere', tmp_path)
    assert 'is neither a folder nor' in refusal(folder / 'README.md', tmp_path)
    (folder / 'README.md').unlink()
    assert 'README.md cannot be read (No such file' in refusal(folder, tmp_path)
    (folder / published.SUMS).unlink()
    assert f'has no {published.SUMS} that lists' in refusal(folder, tmp_path)


@pytest.mark.parametrize('line', ['x', f'{"0" * 64}  ../../etc/passwd', f'{"0" * 63}  a'])
def test_a_list_of_sums_names_files_beside_it(line, folder, tmp_path):
    (folder / published.SUMS).write_text(f'{line}\n')
    assert 'is not a list of sums' in refusal(folder, tmp_path)


def test_an_address_is_read_once_and_kept(folder, tmp_path):
    with served(folder) as (address, asked):
        source = f'{address}/{published.WEIGHTS}#sha256={sum_of(CONTENT)}'
        path = published.find(source, str(tmp_path / 'cache'))
        assert published.find(source, str(tmp_path / 'cache')) == path
    assert len(asked) == 1
    with open(path, 'rb') as file:
        assert file.read() == CONTENT
    # Also without the network, and read anew where the file was damaged.
    assert published.find(source, str(tmp_path / 'cache')) == path
    with open(path, 'ab') as file:
        file.write(b'x')
    assert 'cannot be read' in refusal(source, tmp_path / 'cache')


def test_an_address_of_a_local_file(folder, tmp_path):
    source = f'{(folder / published.WEIGHTS).as_uri()}#sha256={sum_of(CONTENT)}'
    with open(published.find(source, str(tmp_path / 'cache')), 'rb') as file:
        assert file.read() == CONTENT


def test_another_sum_is_refused_and_nothing_is_kept(folder, tmp_path):
    with served(folder) as (address, _):
        line = refusal(f'{address}/{published.WEIGHTS}#sha256={"0" * 64}', tmp_path / 'cache')
        assert 'has another SHA-256' in line
        assert not programs.files_in(tmp_path / 'cache')
        line = refusal(f'{address}/nowhere#sha256={"0" * 64}', tmp_path / 'cache')
        assert 'cannot be read (HTTP Error 404' in line


def test_without_a_network_there_is_one_line(folder, tmp_path):
    with served(folder) as (address, _):
        pass
    line = refusal(f'{address}/x#sha256={"0" * 64}', tmp_path)
    assert 'cannot be read' in line and 'check address and network' in line


@pytest.mark.parametrize('fragment', ['', '#', '#sha256=12', f'#sha256={"0" * 65}', '#md5=0'])
def test_an_address_without_a_sum_is_refused(fragment, tmp_path):
    assert 'has no #sha256=' in refusal(f'http://127.0.0.1:9/x{fragment}', tmp_path)


@pytest.mark.parametrize('scheme', ['ftp', 'gs', 's3', 'data'])
def test_other_addresses_are_refused(scheme, tmp_path):
    line = refusal(f'{scheme}://127.0.0.1:9/x#sha256={"0" * 64}', tmp_path)
    assert 'is none of http, https, file' in line


@pytest.mark.parametrize('address', ['http://[::1', 'http://h:x/', 'file:///nosuch', 'http://ü b'])
def test_addresses_that_cannot_be_ones_are_refused(address, tmp_path):
    assert 'cannot be read' in refusal(f'{address}#sha256={"0" * 64}', tmp_path)


def test_a_server_that_does_not_end_is_cut_off(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(published, '_MOST_BYTES', len(CONTENT) - 1)
    source = f'{(folder / published.WEIGHTS).as_uri()}#sha256={sum_of(CONTENT)}'
    assert 'is larger than' in refusal(source, tmp_path / 'cache')
    assert not programs.files_in(tmp_path / 'cache')
