"""`gan-mrcnn records`: a training finds what it has converted, here or by Apache Beam."""

import pytest

from gan_mrcnn import settings
from gan_mrcnn.training import run as training_run
from tests import programs, tiny
from tests.data import layouts
from tests.utils.beam_jobs import HERE


@pytest.fixture(scope='module')
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp('cells')
    layouts.write_label_images(folder)
    return ['--dataset', 'label_images', '--data_dir', folder, '--split', '0.6']


def trees(cache):
    return {path: path.read_bytes() for path in cache.rglob('*') if path.is_file()}


def by_name(cache):
    return {path.relative_to(cache): content for path, content in trees(cache).items()}


@pytest.mark.parametrize('expand_to', [0, 20])
def test_a_training_converts_nothing_more(expand_to, flags, tmp_path, capsys):
    overrides = [tiny.SETTINGS, f'task.train_data.expand_to={expand_to}']
    given = [text for value in overrides for text in ('--params_override', value)]
    done = programs.run('records', *flags, '--cache_dir', tmp_path, *given)
    assert done.status == 0, done.err
    assert f'/train: {expand_to or 5} images in {tmp_path}' in done.out
    before = trees(tmp_path)
    assert len({path.parent for path in before}) == 2
    same = settings.Flags(
        *('label_images', str(flags[3]), 0.6),
        cache_dir=str(tmp_path),
        params_override=overrides,
    )
    dataset = settings.load_dataset(same)
    training_run.prepare_data(settings.load_config(same, dataset), dataset)
    assert trees(tmp_path) == before
    assert 'rebuilding' not in capsys.readouterr().out


def test_beam_writes_the_same_files_and_a_second_call_none(flags, tmp_path, monkeypatch):
    pytest.importorskip('apache_beam', reason="the extra 'beam' is not installed")
    here, there = tmp_path / 'here', tmp_path / 'there'
    assert programs.run('records', *flags, '--cache_dir', here).status == 0
    monkeypatch.chdir(flags[3].parent)
    relative = ['--data_dir', flags[3].name, '--runner', 'DirectRunner', *HERE]
    done = programs.run('records', *flags, *relative, '--cache_dir', there)
    assert done.status == 0, done.err
    assert by_name(there) == by_name(here)
    times = {path: path.stat().st_mtime_ns for path in there.rglob('*')}
    assert programs.run('records', *flags, *relative, '--cache_dir', there).status == 0
    assert {path: path.stat().st_mtime_ns for path in there.rglob('*')} == times


def test_other_splits(flags, tmp_path):
    command = ['records', *flags, '--cache_dir', tmp_path, '--splits']
    assert programs.run(*command, 'val').status == 0
    assert [path.name.split('-')[1] for path in tmp_path.iterdir()] == ['val']
    line = programs.refusal(programs.run(*command, 'val', 'nosuch'), 'records')
    assert "split 'nosuch' of label_images does not exist; there are train, val" in line


@pytest.mark.parametrize(
    ('wrong', 'said'),
    [
        (['--skip_bda'], '--skip_bda is no flag of this command without --runner'),
        (['--cache_dir', 'gs://b/x'], 'gs://b/x is an address; buckets are neither read nor'),
        (['--data_dir', 's3://b/x'], 's3://b/x is an address; buckets are neither read nor'),
    ],
)
def test_mistakes_are_one_line(wrong, said, flags, tmp_path):
    done = programs.run('records', *flags, '--cache_dir', tmp_path, *wrong)
    assert said in programs.refusal(done, 'records')
    assert not list(tmp_path.iterdir())
