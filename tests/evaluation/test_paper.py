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


def test_the_table_holds_the_papers_figures_as_printed():
    # Table 4 of the paper, typed again.
    lines = paper.format_table4(_RESULTS).splitlines()
    assert lines[0].split() == ['AP', 'AP50', 'AP75', 'APM', 'APL']
    assert lines[2].split()[-5:] == ['0.5689', '0.8174', '0.6419', '0.5940', '0.5717']
    assert lines[3].split()[-5:] == ['0.5855', '0.8398', '0.6668', '0.6057', '0.5983']
    assert lines[5].split()[-5:] == ['0.5892', '0.8014', '0.9814*', '0.5890', '0.6189']
    assert lines[6].split()[-5:] == ['0.6156', '0.8236', '0.7054', '0.6054', '0.6516']
    assert 'misprint' in lines[7] and 'No APS' in lines[8]


def test_our_figures_stand_in_their_columns():
    lines = paper.format_table4(_RESULTS).splitlines()
    assert lines[1].split() == ['box', 'this', 'run', '0.1234', '0.2500', '0.0999', '-', '1.0000']
    assert lines[4].split() == [
        'mask',
        'this',
        'run',
        '0.4321',
        '0.5000',
        '0.0000',
        '0.6000',
        '0.7000',
    ]


def test_columns_are_aligned():
    lines = paper.format_table4(_RESULTS).splitlines()
    ends = [
        [
            i
            for i in range(24, len(line) + 1)
            if line[:i].rstrip('*') == line[:i]
            and line[i - 1 : i].strip()
            and not line[i : i + 1].strip(' *')
        ]
        for line in lines[:7]
    ]
    assert all(one == ends[0] for one in ends)


def test_other_data_stand_without_the_papers_figures():
    text = paper.format_table4(_RESULTS, paper=False)
    assert len(text.splitlines()) == 4
    assert '0.5689' not in text and 'misprint' not in text and 'Mask R-CNN' not in text
    assert 'No APS' in text and '0.1234' in text


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
    lines = paper.format_figures(_RESULTS).splitlines()
    assert lines[0].split() == ['AP', 'AP50', 'AP75', 'APS', 'APM', 'APL']
    assert lines[1].split()[3:] == ['0.1234', '0.2500', '0.0999', '0.5000', '-', '1.0000']
    assert lines[2].split()[3:] == ['0.4321', '0.5000', '0.0000', '-', '0.6000', '0.7000']
    assert len(lines) == 3
