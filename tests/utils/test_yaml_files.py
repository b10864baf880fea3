"""YAML of any origin: plain values, or an error of one line."""

import time

import pytest
import yaml

from gan_mrcnn.utils import yaml_files
from gan_mrcnn.utils.errors import UserError

BOMBS = {
    'a list that stands for 10^9 values': 'a: &a [1]\n'
    + '\n'.join(
        f'{name}: &{name} [{", ".join([f"*{before}"] * 10)}]'
        for before, name in zip('abcdefghi', 'bcdefghij')
    ),
    'a list in itself': 'a: &a [*a]',
    'ten thousand nested lists': '[' * 10_000,
    'an object of Python': 'a: !!python/object/apply:os.system [false]',
    'a date that is none': 'a: 2001-13-45',
    'bytes that are no text': 'a: \x00',
    'megabytes': 'a: 1\n' * 300_000,
}


@pytest.mark.parametrize('bomb', BOMBS)
def test_a_bomb_is_one_line(bomb, tmp_path):
    path = tmp_path / 'params.yaml'
    path.write_text(BOMBS[bomb])
    start = time.process_time()
    with pytest.raises(UserError, match='params.yaml') as caught:
        yaml_files.read_task(path)
    assert '\n' not in str(caught.value) and time.process_time() - start < 10


@pytest.mark.parametrize('text', ['', '[]', 'task: 1', 'task: {data_dir: a}', 'task: {dataset: 3}'])
def test_what_are_no_settings_of_a_run_is_said(text, tmp_path):
    path = tmp_path / 'params.yaml'
    path.write_text(text)
    with pytest.raises(UserError, match='not the settings of a run'):
        yaml_files.read_task(path)
    with pytest.raises(UserError, match='cannot be read'):
        yaml_files.read_task(tmp_path / 'other.yaml')


def test_values_come_back_and_references_are_followed(tmp_path):
    shared = [1, 2.5]
    content = {'task': {'dataset': 'gland', 'a': shared, 'b': [shared, None, 'x']}}
    path = tmp_path / 'params.yaml'
    path.write_text(yaml.safe_dump(content))
    # PyYAML writes what is there twice as a reference.
    assert '&' in path.read_text()
    assert yaml_files.read_task(path) == content['task']


def test_settings_of_version_0_1_have_the_names_of_this_version(tmp_path):
    """A comparison of runs takes those with equal settings for repetitions of one system."""
    read = []
    for name in ('blow_ups', 'nonfinite'):
        path = tmp_path / 'params.yaml'
        path.write_text(yaml.safe_dump({'task': {'dataset': 'gland', name: {'limit': 3}}}))
        read.append(yaml_files.read_task(path))
    assert read[0] == read[1] == {'dataset': 'gland', 'nonfinite': {'limit': 3}}


def test_what_the_newer_set_saves_of_its_own_is_read_by_both():
    """By the values that it always saves; others are refused where they are not known."""
    saved = {'ram_budget': None, 'parser': {'keep_aspect_ratio': True, 'a': True}, 'b': None}
    other = {'ram_budget': 3, 'parser': {'keep_aspect_ratio': False}}
    read = yaml_files.up_to_date({'train_data': saved, 'validation_data': other})
    assert read == {'train_data': {'parser': {'a': True}, 'b': None}, 'validation_data': other}
