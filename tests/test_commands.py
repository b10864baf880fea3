"""train.py and evaluate.py as they are typed, on a tiny folder of each data set: two steps."""

import json
import pathlib
import subprocess
import sys

import pytest
import yaml

from tests import tiny
from tests.data import layouts

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
# What makes the folder, further flags of train.py, images of the validation split, and the
# category ids that predictions may have.
DATASETS = {
    'coco_format': (
        layouts.write_own_coco,
        [*('--split', '0.7', '--group_by', 'patient', '--split_seed', '1'), '--gan', 'baseline'],
        3,
        {2, 7},
    ),
    'coco': (layouts.write_coco_2017, [], 4, set(layouts.COCO_IDS.values())),
    'phone': (layouts.write_phones, ['--split', '0.9'], 3, set(range(1, 12))),
    'cityscapes': (layouts.write_cityscapes, [], 2, set(range(24, 34))),
    'label_images': (layouts.write_label_images, ['--split', '0.6'], 3, {1, 2}),
}


def run(*args):
    done = subprocess.run(
        [sys.executable, *args], cwd=REPOSITORY, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def quick(name):
    """One data set with every kind of flag runs by default; the others take as long again."""
    return name if name == 'coco_format' else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize('name', [quick(name) for name in DATASETS])
def test_two_steps_and_an_evaluation(name, tmp_path):
    write, flags, num_images, ids = DATASETS[name]
    (tmp_path / 'data').mkdir()
    write(tmp_path / 'data')
    model_dir = tmp_path / 'run'
    common = ['--dataset', name, '--model_dir', str(model_dir), '--cache_dir', str(tmp_path / 'c')]
    printed = run(
        *('train.py', *common, '--data_dir', str(tmp_path / 'data')),
        *('--params_override', tiny.SETTINGS, *flags),
    )
    assert 'linear rule' in printed
    # Neither the folder nor the division is said again.
    printed = run('evaluate.py', *common)
    assert 'These images chose the checkpoint' in printed and 'APS' in printed
    results = json.loads((model_dir / 'eval/val/results.json').read_text())
    assert (results['dataset'], results['step']) == (name, 2)
    assert results['num_images'] == num_images
    predictions = json.loads((model_dir / 'eval/val/predictions.json').read_text())
    assert predictions and {p['category_id'] for p in predictions} <= ids
    saved = yaml.safe_load((model_dir / 'params.yaml').read_text())['task']
    assert saved['share'] == (float(flags[1]) if flags else 0)
    assert results['config']['task']['share'] == saved['share']
