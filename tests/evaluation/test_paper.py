"""The printed table and the result file."""

import datetime
import json
import sys

import numpy as np
import pytest

from gan_mrcnn.evaluation import paper

_RESULTS = {
    'box': {
        'AP': 0.1234,
        'AP50': 0.25,
        'AP75': 0.0999,
        'APS': 0.5,
        'APM': None,
        'APL': 1.0,
        'AR': 0.3,
    },
    'mask': {
        'AP': 0.4321,
        'AP50': 0.5,
        'AP75': 0.0,
        'APS': None,
        'APM': 0.6,
        'APL': 0.7,
        'AR': 0.8,
    },
}


_GLANDS = paper.TABLES['gland']


def test_the_table_holds_the_papers_figures_as_printed():
    # Table 4 of the paper, typed again.
    lines = paper.format_table(_RESULTS, 'gland', _GLANDS).splitlines()
    assert lines[0].split() == ['AP', 'AP50', 'AP75', 'APM', 'APL', 'AR']
    assert lines[2].split()[-6:-1] == ['0.5689', '0.8174', '0.6419', '0.5940', '0.5717']
    assert lines[3].split()[-6:-1] == ['0.5855', '0.8398', '0.6668', '0.6057', '0.5983']
    assert lines[5].split()[-6:-1] == ['0.5892', '0.8014', '0.9814*', '0.5890', '0.6189']
    assert lines[6].split()[-6:-1] == ['0.6156', '0.8236', '0.7054', '0.6054', '0.6516']
    assert 'misprint' in lines[7] and 'No APS' in lines[8]


def test_our_figures_stand_in_their_columns():
    lines = paper.format_table(_RESULTS, 'gland', _GLANDS).splitlines()
    box, mask = '0.1234 0.2500 0.0999 - 1.0000 0.3000', '0.4321 0.5000 0.0000 0.6000 0.7000 0.8000'
    assert lines[1].split() == ['box', 'this', 'run', *box.split()]
    assert lines[4].split() == ['mask', 'this', 'run', *mask.split()]


def test_columns_are_aligned():
    lines = paper.format_table(_RESULTS, 'gland', _GLANDS).splitlines()
    # Every figure ends where its column's name ends; a star hangs over.
    ends = [i + 1 for i in range(len(lines[0])) if lines[0][i:].strip() and lines[0][i] != ' ']
    ends = [i for i in ends if i == len(lines[0]) or lines[0][i] == ' ']
    for line in lines[1:7]:
        assert all(line[end - 1] != ' ' and line[end : end + 1] in ('', ' ', '*') for end in ends)


def test_other_images_stand_without_the_papers_figures():
    text = paper.format_table(_RESULTS, 'gland', None)
    assert len(text.splitlines()) == 4
    assert '0.5689' not in text and 'misprint' not in text and 'Mask R-CNN' not in text
    assert 'No APS' in text and '0.1234' in text


@pytest.mark.parametrize(
    'images, number',
    [
        (('gland', False, 'test', 80), 4),
        (('gland', True, 'test', 80), None),
        (('gland', False, 'testA', 60), None),
        (('gland', False, 'test', 79), None),
        (('coco', False, 'val', 5000), 3),
        (('cityscapes', False, 'val', 500), 2),
        (('coco_format', False, 'val', 5000), None),
    ],
)
def test_the_papers_figures_go_with_its_images_only(images, number):
    table = paper.table_for(*images)
    assert (table and table.number) == number


def test_averages_of_table_2_fit_its_classes():
    """A figure typed wrong would show: what the paper prints as average is the mean of the ten."""
    table = paper.TABLES['cityscapes']
    for kind, systems in table.per_class.items():
        for system, levels in systems.items():
            for level, classes in levels.items():
                assert len(classes) == 10
                assert abs(np.mean(classes) - table.rows[kind][system][level]) < 0.001


def _results():
    return {
        'figures': _RESULTS,
        'config': {'rate': np.float32(0.5), 'sides': (1, 2)},
        'seed': np.int64(3),
        'data_fingerprint': 'abc',
        'notice': 'demo set',
    }


def test_the_result_file_says_where_the_figures_come_from(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['evaluate.py', '--data_dir', 'my glands'])
    path = tmp_path / 'results.json'
    written = paper.write_results(str(path), _results())
    read = json.loads(path.read_text())
    assert set(written) == set(read)
    assert read['figures'] == _RESULTS
    assert read['config'] == {'rate': 0.5, 'sides': [1, 2]}
    assert (read['seed'], read['data_fingerprint'], read['notice']) == (3, 'abc', 'demo set')
    assert read['command_line'] == "evaluate.py --data_dir 'my glands'"
    assert read['versions']['numpy'] == np.__version__
    assert read['versions']['python'] == '.'.join(map(str, sys.version_info[:3]))
    assert set(read['versions']) == {
        'python',
        'gan_mrcnn',
        'tensorflow',
        'tf-models-official',
        'numpy',
        'pycocotools',
    }
    age = datetime.datetime.now(datetime.timezone.utc) - datetime.datetime.fromisoformat(
        read['date_utc']
    )
    assert datetime.timedelta(0) <= age + datetime.timedelta(seconds=1)
    assert age < datetime.timedelta(minutes=1)
    assert [one.name for one in tmp_path.iterdir()] == ['results.json']


@pytest.mark.parametrize('key', ['figures', 'config', 'seed', 'data_fingerprint', 'notice'])
def test_a_result_without_its_origin_is_refused(tmp_path, key):
    results = _results()
    del results[key]
    with pytest.raises(ValueError, match=key):
        paper.write_results(str(tmp_path / 'results.json'), results)
    assert not list(tmp_path.iterdir())


def test_other_data_sets_get_cocos_columns_and_nothing_of_the_glands():
    lines = paper.format_table(_RESULTS, 'coco', None).splitlines()
    assert lines[0].split() == ['AP', 'AP50', 'AP75', 'APS', 'APM', 'APL', 'AR']
    assert lines[1].endswith('0.1234   0.2500   0.0999   0.5000        -   1.0000   0.3000')
    assert lines[2].endswith('0.4321   0.5000   0.0000        -   0.6000   0.7000   0.8000')
    assert len(lines) == 3


def test_a_line_for_each_class():
    per_class = {
        kind: {
            'cat': {'AP': base + 0.01, 'AP50': base + 0.02, 'AP75': base + 0.03},
            'dog': {'AP': None, 'AP50': None, 'AP75': None},
        }
        for kind, base in (('box', 0.1), ('mask', 0.2), ('boundary', 0.3))
    }
    lines = paper.format_classes({'per_class': per_class}).splitlines()
    assert lines[0].split() == ['box', 'mask', 'boundary']
    assert lines[2].split() == ['cat'] + [f'0.{a}{b}00' for a in '123' for b in ('1', '2', '3')]
    assert lines[3].split() == ['dog'] + ['-'] * 9
    one = {kind: {'cat': classes['cat']} for kind, classes in per_class.items()}
    assert paper.format_classes({'per_class': one}) == ''


def test_table_2_has_a_column_for_each_class():
    names = ('person', 'rider', 'car', 'truck', 'bus', 'caravan', 'trailer', 'train')
    names += ('motorcycle', 'bicycle')
    figures = {'AP': 0.1, 'AP50': 0.2, 'AP75': None}
    classes = {name: figures for name in names}
    results = {
        'per_class': {'box': classes},
        'cityscapes': {**figures, 'per_class': classes},
    }
    lines = paper.format_table2(results, paper.TABLES['cityscapes']).splitlines()
    assert [name.lower() for name in lines[0].split()] == ['average', *names]
    assert len(lines) == 1 + 2 * 3 * 3 + 1
    assert lines[1].split()[4:] == ['0.1000'] * 11
    assert 'eight classes' in lines[-1]
    # The paper's own, typed again: masks of its system, AP50.
    expected = [0.736, 0.703, 0.844, 0.825, 0.676, 0.792, 0.888, 0.763, 0.701, 0.59, 0.582]
    row = next(line for line in lines[10:] if line.split()[:3] == ['mask', 'AP50', 'GAN'])
    assert [float(cell) for cell in row.split()[3:]] == expected


def test_gland_figures_stand_beside_those_of_others():
    one = {'F1': 0.9, 'dice': 0.8, 'hausdorff': 12.34}
    figures = {
        'glands': {'test': one, 'testA': one, 'testB': one},
        'score_threshold': {'value': 0.35, 'origin': 'chosen by hand'},
    }
    lines = paper.format_glands(figures, True).splitlines()
    assert lines[1].split() == ['test', '0.9000', '0.8000', '12.3']
    assert lines[3].split() == ['contest', 'winner', '0.9120', '0.8970', '45.4']
    assert lines[-1] == 'Scores of at least 0.35, chosen by hand.'
    assert 'winner' not in paper.format_glands(figures, False)
