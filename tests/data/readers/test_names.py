"""Names as other systems write them: which file is meant, and which only looks like it."""

import os
import pathlib
import unicodedata
import urllib.parse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gan_mrcnn.data.readers import names


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'')


def finder(folder):
    return names.Finder([folder / 'images', folder], ('.jpg', '.png'))


LETTERS = st.text(st.sampled_from('abZ09 -_()äßéÅ한'), min_size=1, max_size=12).filter(
    lambda text: text.strip() == text
)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    stem=LETTERS,
    form=st.sampled_from(['NFC', 'NFD']),
    before=st.sampled_from(['', 'images/', './images/', '/home/ann/set/images/', 'C:/set/images/']),
    windows=st.booleans(),
    quoted=st.booleans(),
    suffix=st.sampled_from(['.png', '.PNG', '.jpg', '.JPG', '']),
)
def test_a_file_is_found_by_any_spelling_of_its_name(
    tmp_path_factory, stem, form, before, windows, quoted, suffix
):
    folder = tmp_path_factory.mktemp('set')
    path = folder / 'images' / f'{unicodedata.normalize("NFC", stem)}.png'
    touch(path, folder / 'images/another one.png')
    name = unicodedata.normalize(form, stem) + suffix
    name = before + (urllib.parse.quote(name) if quoted else name)
    name = name.replace('/', '\\') if windows else name
    assert finder(folder).find(name, ()) == ([path], [path])


@pytest.mark.parametrize('encoding', ['latin-1', 'cp437'])
def test_a_name_in_another_encoding_is_that_of_its_text(tmp_path, encoding):
    (tmp_path / 'images').mkdir()
    raw = os.fsencode(tmp_path / 'images') + b'/' + 'Drüse.png'.encode(encoding)
    path = pathlib.Path(os.fsdecode(raw))
    touch(path)
    assert finder(tmp_path).find('Drüse.png', ()) == ([path], [path])
    assert names.printable(path.name) in ('Dr\\udcfcse.png', 'Dr\\udc81se.png')


def test_what_is_not_clear_is_not_found_and_is_named(tmp_path):
    one, two = tmp_path / 'images/one/a.png', tmp_path / 'images/two/a.png'
    touch(one, two)
    find = finder(tmp_path).find
    # Of no folder that the name has; of each of two that it does not have.
    assert find('three/a.png', ()) == ([], [one, two])
    assert find('a.png', ()) == ([], [one, two])
    assert find('C:\\set\\two\\a.jpg', ()) == ([two], [one, two])
    assert find('b.png', ()) == ([], [])
    # Two names that differ in case, where neither is the one that is looked for.
    touch(tmp_path / 'images/X.png', tmp_path / 'images/x.PNG')
    assert len(finder(tmp_path).find('x.png', ())[0]) == 2


def test_a_file_that_another_name_has_is_not_found(tmp_path):
    png = tmp_path / 'images/a.png'
    touch(png)
    assert finder(tmp_path).find('a.jpg', {png}) == ([], [])


def test_a_walk_leaves_out_what_is_hidden_and_ends_in_spite_of_links(tmp_path):
    shown = [tmp_path / 'a.png', tmp_path / 'deep/b.png']
    touch(*shown, tmp_path / '._a.png', tmp_path / '.ipynb_checkpoints/a-checkpoint.png')
    (tmp_path / 'deep/up').symlink_to(tmp_path)
    assert sorted(names.walk(tmp_path)) == sorted(shown)
    # By whichever name it is met first.
    assert len(list(names.walk(tmp_path / 'deep', tmp_path))) == 2
