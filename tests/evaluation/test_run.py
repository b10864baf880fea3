"""evaluate.py on files of predictions for glands: thresholds, manifests, what is printed."""

import json

import pytest

from gan_mrcnn import settings
from gan_mrcnn.data.readers import gland_demo
from gan_mrcnn.data.records import records
from gan_mrcnn.evaluation import run as evaluation_run
from gan_mrcnn.evaluation import scoring
from gan_mrcnn.metrics import predictions
from gan_mrcnn.utils.errors import UserError
from tests.metrics import shapes

DATASET = gland_demo.DemoGlands()


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """Settings, and files of predictions: the ground truth with a score of .33, and of
    'val' false ones of .2."""
    folder = tmp_path_factory.mktemp('glands')
    flags = settings.Flags(
        dataset='gland',
        cache_dir=str(folder / 'cache'),
    )
    config = settings.load_config(flags, DATASET)
    for split in ('val', 'test'):
        (record_set,) = records.ensure_splits(DATASET, [split], config.task)
        with open(record_set.annotation_file, encoding='utf-8') as file:
            annotations = json.load(file)['annotations']
        keys = ('image_id', 'category_id', 'bbox', 'segmentation')
        found = [{**{key: one[key] for key in keys}, 'score': 0.33} for one in annotations]
        if split == 'val':
            height, width = annotations[0]['segmentation']['size']
            wrong = shapes.rectangle(0, 0, 12, 12, height, width)
            found += [shapes.result(image_id, wrong, 0.2) for image_id in record_set.image_ids]
        manifest = scoring.manifest(DATASET, split, record_set)
        predictions.save_predictions(str(folder / f'{split}.json'), found, manifest)
    return config, folder


def evaluate(world, validation=None, name='test.json', split='test', **outputs):
    config, folder = world
    return evaluation_run.evaluate_file(
        config,
        DATASET,
        split,
        str(folder / name),
        validation and str(folder / validation),
        evaluation_run.Outputs(**outputs),
    )['figures']


def test_the_ground_truth_scores_one_in_every_table(world, capsys, tmp_path):
    figures = evaluate(world, 'val.json', results=str(tmp_path / 'out.json'))
    for kind in ('box', 'mask', 'boundary'):
        assert figures[kind]['AP'] == pytest.approx(1)
    assert figures['glands']['test'] == pytest.approx(
        {'F1': 1, 'precision': 1, 'recall': 1, 'dice': 1, 'hausdorff': 0}
    )
    # Above the false positives of the validation images: .2 itself would still be painted.
    assert figures['score_threshold']['value'] == 0.25
    printed = capsys.readouterr().out
    assert 'chosen on the validation split' in printed and 'DEMO DATA' in printed
    # Rendered glands do not stand beside those of the paper or of the contest.
    assert 'paper' not in printed.replace('any paper', '').replace('the paper has none', '')
    assert 'winner' not in printed
    written = json.loads((tmp_path / 'out.json').read_text())
    assert written['figures'] == figures and 'DEMO DATA' in written['notice']


def test_without_validation_the_threshold_is_a_half(world, capsys):
    figures = evaluate(world)
    assert figures['score_threshold']['value'] == 0.5
    assert figures['mask']['AP'] == pytest.approx(1)
    assert figures['glands']['test']['F1'] == 0.0
    assert 'the default' in capsys.readouterr().out


def test_predictions_of_another_split_are_refused(world, capsys):
    with pytest.raises(UserError, match="split 'val', not 'test'"):
        evaluate(world, name='val.json')
    with pytest.raises(UserError, match='split'):
        evaluate(world, split='nosuch')
    assert capsys.readouterr().out == ''
