"""The page of an ablation: its figures against those of the runs, and what it says."""

import json

import numpy as np
import pytest

from gan_mrcnn.evaluation.report import ablation, learning_curves
from gan_mrcnn.evaluation.report import compare as compare_report


@pytest.fixture(scope='module')
def arms(world):
    """'bad' with the seeds 0 and 1, and 'good' with the same."""
    folders = {
        name: {seed: str(world / f'{name}-{seed}') for seed in (0, 1)} for name in ('bad', 'good')
    }
    return ablation.load({**folders, 'none': {}}, 'train', None, str(world / 'cache'))


def make_arm(name, **figures):
    """An arm whose runs have a mask AP by seed, and nothing else."""
    runs = {int(key[1:]): Run(f'{name}-{key[1:]}', value) for key, value in figures.items()}
    return ablation.Arm(name, runs, {})


class Run:
    def __init__(self, name, value):
        self.name, self._value = name, value
        self.scored = type('Scored', (), {'matches': {'mask': type('M', (), {'num_images': 4})}})

    def figures(self, weights=None):
        return {'mask AP': self._value, 'gland Hausdorff': self._value and 100 * self._value}


def test_arms_are_loaded_by_seed_and_empty_ones_left_out(arms):
    assert [(arm.name, list(arm.runs)) for arm in arms] == [('bad', [0, 1]), ('good', [0, 1])]
    assert [run.name for run in arms[1].runs.values()] == ['good-0', 'good-1']


def test_figures_of_arms_and_differences(arms):
    result = ablation.compare(arms, 30)
    bad, good = ([run.figures()['mask AP'] for run in arm.runs.values()] for arm in arms)
    assert result['compared_with'] == 'bad'
    assert result['arms'][1]['mean']['mask AP'] == pytest.approx(np.mean(good))
    assert result['arms'][1]['spread']['mask AP'] == pytest.approx(np.std(good, ddof=1))
    assert result['arms'][1]['n']['mask AP'] == 2
    one = result['differences']['good']['mask AP']
    assert one['difference'] == pytest.approx(np.mean(good) - np.mean(bad))
    assert one['paired']['difference'] == pytest.approx(one['difference'])
    # The images' part is that of the page that compares runs without an ablation.
    systems = [arm.system for arm in arms]
    expected = compare_report.compare(systems, 30)['differences']['good']['mask AP']
    assert one['images'] == pytest.approx(expected['interval'])
    assert one['seeds_and_images'][0] <= one['difference'] <= one['seeds_and_images'][1]
    # Of two and two seeds, two of six regroupings put both good ones on one side.
    assert one['permutation_p'] == pytest.approx(2 / 6)


def test_pairs_are_of_the_same_seed_whatever_the_order():
    first = make_arm('first', s3=0.1, s1=0.2, s2=0.4)
    second = make_arm('second', s1=0.25, s4=0.9, s3=0.2)
    paired = ablation.compare([first, second], 5)['differences']['second']['mask AP']['paired']
    assert paired['n'] == 2 and paired['difference'] == pytest.approx((0.05 + 0.1) / 2)


def test_a_single_seed_has_means_and_no_interval_over_seeds():
    result = ablation.compare([make_arm('a', s0=0.1), make_arm('b', s0=0.3)], 5)
    assert result['arms'][1]['spread']['mask AP'] is None
    one = result['differences']['b']['mask AP']
    assert one['difference'] == pytest.approx(0.2)
    for key in ('seeds_and_images', 'welch', 'permutation_p'):
        assert one[key] is None
    assert set(one['seeds_needed'].values()) == {None}
    assert 'b 0.3000 (n = 1), +0.2000\n' in ablation.format_text(result) + '\n'


def test_figures_that_are_undefined_are_left_out():
    first = make_arm('a', s0=None, s1=0.1, s2=0.2)
    second, nothing = make_arm('b', s0=0.3, s1=0.3), make_arm('c', s0=None)
    result = ablation.compare([first, second, nothing], 5)
    assert [arm['n']['mask AP'] for arm in result['arms']] == [2, 2, 0]
    assert result['differences']['b']['mask AP']['difference'] == pytest.approx(0.15)
    assert result['differences']['b']['mask AP']['paired']['n'] == 1
    assert result['differences']['c']['mask AP']['difference'] is None
    assert '    c - (n = 0)' in ablation.format_text(result).splitlines()


def test_seeds_are_not_asked_for_a_fraction_of_a_pixel():
    arms = [make_arm(name, s0=0.1, s1=x) for name, x in (('a', 0.2), ('b', 0.4))]
    wanted = {
        figure: set(one['seeds_needed'])
        for figure, one in ablation.compare(arms, 5)['differences']['b'].items()
    }
    assert wanted == {'mask AP': {'observed', '0.02', '0.01'}, 'gland Hausdorff': {'observed'}}


def test_rows_are_bold_where_neither_interval_over_seeds_holds_zero():
    def one(seeds_and_images, welch):
        paired = {'difference': 0.1, 'interval': None, 'p': None, 'n': 2}
        return {
            **{'difference': 0.1, 'permutation_p': 0.333, 'images': None, 'paired': paired},
            **{'seeds_and_images': seeds_and_images, 'welch': welch},
        }

    above, around = (0.05, 0.15), (-0.05, 0.25)
    found = {'box AP': one(above, around), 'mask AP': one(above, above), 'x': one(above, None)}
    table = ablation._differences({**found, 'y': one(None, None), 'z': one(around, above)})
    assert list(table.bold) == [1]
    expected = ['+0.1000', '[0.0500, 0.1500]', '[-0.0500, 0.2500]', '0.333', '-']
    assert list(table.rows[0][1:6]) == expected


def test_the_page_and_its_json(arms, tmp_path):
    band = learning_curves.Band(*np.array([[5, 10], [2.0, 1.0], [0.5, np.nan], [2, 1]]))
    drawn = [ablation.Arm(arms[0].name, arms[0].runs, {'mask_loss': band}), arms[1]]
    result = {**ablation.compare(drawn, 10), 'failed': {'good-2': 'train: no <glass> (log.txt)'}}
    ablation.write(drawn, result, tmp_path / 'ablation-x.html')
    page = (tmp_path / 'ablation-x.html').read_text()
    for text in (
        *('good-2', 'no &lt;glass&gt;', 'bad (n = 2)', 'good minus bad', 'Seeds that would be'),
        *('mask loss over step: bad', 'good is better', 'bad-1', 'Precision over recall'),
    ):
        assert text in page, text
    saved = json.loads((tmp_path / 'ablation-x.json').read_text())
    assert saved['curves']['bad']['mask_loss']['spread'] == [0.5, None]
    assert saved['differences']['good']['mask AP']['paired']['n'] == 2
    assert saved['failed'] == result['failed']


def test_a_single_arm_is_a_page_without_differences(arms, tmp_path):
    result = {**ablation.compare(arms[:1], 5), 'failed': {}}
    ablation.write(arms[:1], result, tmp_path / 'ablation-x.html')
    page = (tmp_path / 'ablation-x.html').read_text()
    assert 'bad (n = 2)' in page and 'Against' not in page and 'Missing' not in page
