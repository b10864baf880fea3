"""SIGKILL aimed at each file that a run writes: the next start goes on, and nothing is lost."""

import signal

import pytest

from tests.faults import runs

pytestmark = pytest.mark.faults


def test_killed_while_files_are_written_a_run_ends_as_a_whole_one(site, whole):
    """Aimed at each file that a run writes."""
    model_dir = site.folder / 'killed_while_writing'
    assert site.start(model_dir).kill_at(model_dir / 'ckpt-2_temp*')
    for name in runs.some(('validations.json', 'status.json', 'params.yaml')):
        done = site.train(model_dir, faults=[f'SIGKILL@replacing:{name}'])
        assert done.status == -signal.SIGKILL, name
    for pattern in runs.some(('best/*_temp*', 'ckpt-4_temp*', 'ckpt-6_temp*')):
        assert site.start(model_dir).kill_at(model_dir / pattern), pattern
    assert runs.ended_well(site.train(model_dir))
    runs.same_run(model_dir, whole)
    assert not [path for path in model_dir.rglob('*') if path.suffix == '.tmp']


def test_killed_while_records_are_written_a_run_is_as_without(site, whole, tmp_path):
    model_dir = site.folder / 'killed_while_converting'
    cache = tmp_path / 'cache'
    patterns = runs.some(
        [
            'coco_format-train-*.unfinished',
            'coco_format-train-*.unfinished/*.tmp',
            'coco_format-train-*.unfinished/records-*.json',
            'coco_format-train-*.unfinished/annotations.json',
            'coco_format-val-*.unfinished',
            'coco_format-val-*.unfinished/manifest.json',
        ],
        2,
    )
    killed = sum(site.start(model_dir, cache=cache).kill_at(cache / one) for one in patterns)
    print(f'{killed} of {len(patterns)} killed while records were written')
    assert killed >= len(patterns) / 2
    assert runs.ended_well(site.train(model_dir, cache=cache))
    runs.same_run(model_dir, whole)
