"""Comparison of runs: groups, intervals against resampled data sets, and the page."""

import json

import numpy as np
import pytest

from gan_mrcnn.evaluation.report import compare
from gan_mrcnn.utils.errors import UserError


def load(world, *names):
    return compare.load_runs(
        [str(world / name) for name in names], 'train', None, str(world / 'cache')
    )


def test_runs_that_differ_in_their_seed_are_one_system(world):
    systems = compare.group(load(world, 'bad-0', 'good-0', 'good-1'))
    assert [(s.name, [run.name for run in s.runs]) for s in systems] == [
        ('bad-0', ['bad-0']),
        ('good', ['good-0', 'good-1']),
    ]
    figures = [run.figures()['mask AP'] for run in systems[1].runs]
    assert figures[0] == pytest.approx(1) and figures[1] < 1
    assert systems[1].mean()['mask AP'] == pytest.approx(np.mean(figures))
    assert systems[1].spread()['mask AP'] == pytest.approx(
        abs(figures[0] - figures[1]) / np.sqrt(2)
    )
    assert systems[0].spread()['mask AP'] is None


def test_a_system_beside_itself_differs_by_nothing(world):
    (system,) = compare.group(load(world, 'good-0'))
    again = compare.System('again', system.runs)
    for one in compare.compare([system, again], 20)['differences']['again'].values():
        assert one == {'difference': 0.0, 'interval': (0.0, 0.0)}


def test_images_are_drawn_with_replacement_the_same_for_all_runs(world):
    runs = load(world, 'bad-0', 'good-0')
    resampled = compare.resample(runs, 50, seed=3)
    # The same draws, and each run by itself.
    rng = np.random.default_rng(3)
    count = runs[0].scored.record_set.num_examples
    for sample in range(50):
        weights = rng.multinomial(count, np.full(count, 1 / count))
        for number, run in enumerate(runs):
            expected = run.figures(weights)['mask AP']
            found = resampled['mask AP'][sample, number]
            assert np.isnan(found) if expected is None else found == expected


def test_intervals_are_percentiles_of_resampled_differences(world):
    systems = compare.group(load(world, 'bad-0', 'good-0', 'good-1'))
    bad, good, other = compare.resample([r for s in systems for r in s.runs], 50)['mask AP'].T
    differences = (good + other) / 2 - bad
    low, high = compare.compare(systems, 50)['differences']['good']['mask AP']['interval']
    assert (low, high) == pytest.approx(np.nanpercentile(differences, (2.5, 97.5)))
    difference = systems[1].mean()['mask AP'] - systems[0].mean()['mask AP']
    assert low <= difference <= high


def test_the_page_and_the_figures(world, tmp_path, capsys):
    names = ['bad-0', 'good-0', 'good-1']
    folders = [str(world / name) for name in names]
    compare.run(folders, 'train', None, str(world / 'cache'), 20, str(tmp_path))
    result = json.loads((tmp_path / 'comparison.json').read_text())
    assert result['compared_with'] == 'bad-0'
    assert [one['name'] for one in result['systems']] == ['bad-0', 'good']
    one = result['differences']['good']['mask AP']
    mean = np.mean([x['mask AP'] for x in result['systems'][1]['runs'].values()])
    before = result['systems'][0]['mean']['mask AP']
    assert one['difference'] == pytest.approx(mean - before) and one['difference'] > 0
    page = (tmp_path / 'index.html').read_text()
    for text in ('bad-0 (n = 1)', 'good (n = 2)', 'good minus bad-0', 'good is better', *names):
        assert text in page
    assert 'mask AP' in capsys.readouterr().out


@pytest.mark.parametrize(
    'figure, one, text, clear',
    [
        ('mask AP', (0.05, (0.01, 0.09)), '+0.0500 [0.0100, 0.0900]', True),
        ('mask AP', (-0.05, (-0.1, 0.01)), '-0.0500 [-0.1000, 0.0100]', False),
        ('gland Hausdorff', (-5, (-9, -1)), '-5.0 [-9.0, -1.0]', True),
        ('mask AP', (None, None), '-', False),
    ],
)
def test_differences_in_words(figure, one, text, clear):
    one = dict(zip(('difference', 'interval'), one))
    assert compare.describe(one, figure) == text
    assert compare.is_clear(one) == clear


def test_what_cannot_be_compared_is_named(world, tmp_path):
    with pytest.raises(UserError, match='params.yaml'):
        load(world, 'good-0', 'data')
    # The set has no test images, so that the validation ones are meant.
    with pytest.raises(UserError, match='evaluate the run first: evaluate.py --split val'):
        compare.load_runs([str(world / 'good-0')], None, None, str(world / 'cache'))
    with pytest.raises(UserError, match='evaluate the run first'):
        compare.load_runs([str(world / 'good-0')], 'val', None, str(world / 'cache'))
    with pytest.raises(UserError, match='has the splits train, val only'):
        compare.load_runs([str(world / 'good-0')], 'test', None, str(world / 'cache'))
