"""The report as a reader sees it: figures, images, captions; and evaluate.py on a file."""

import base64
import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

from gan_mrcnn.data.readers import label_images
from gan_mrcnn.data.records import records
from gan_mrcnn.evaluation import scoring
from gan_mrcnn.evaluation.report import page as report_page
from gan_mrcnn.metrics import error_types, matching
from tests import test_commands
from tests.data import layouts
from tests.metrics import shapes


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('own')
    layouts.write_label_images(folder)
    return folder


@pytest.fixture(scope='module')
def case(folder, tmp_path_factory):
    """A data set, its records of 'train', and their annotations."""
    dataset = label_images.load(str(folder), label_images.options.DEFAULT)
    cache = tmp_path_factory.mktemp('cache')
    record_set = records.ensure_records(dataset, 'train', str(cache), num_processes=1)
    with open(record_set.annotation_file, encoding='utf-8') as file:
        return dataset, record_set, json.load(file)


def as_predictions(ground_truth, score=1.0):
    keys = ('image_id', 'category_id', 'bbox', 'segmentation')
    return [
        {**{key: one[key] for key in keys}, 'score': score} for one in ground_truth['annotations']
    ]


def write(case, found, path):
    dataset, record_set, _ = case
    scored = scoring.score(dataset, 'train', record_set, found, scoring.DEFAULT_THRESHOLD)
    results = {
        'num_images': record_set.num_examples,
        'data_fingerprint': record_set.fingerprint,
        'notice': 'Not <real> data.',
        'predictions': 'some.json',
    }
    report_page.write(scored, results, str(path))
    return scored, (path / 'index.html').read_text()


def test_the_ground_truth_scores_one_in_everything(case, tmp_path):
    scored, text = write(case, as_predictions(case[2]), tmp_path)
    for kind in ('box', 'mask', 'boundary'):
        assert scored.figures[kind]['AP'] == pytest.approx(1)
    assert all(count == 0 for count in scored.figures['errors']['counts'].values())
    assert all(cost == 0 for cost in scored.figures['errors']['costs'].values())
    assert re.findall(r'quality ([\d.]+)', text)[:2] == ['1.00', '1.00']
    assert 'Not &lt;real&gt; data.' in text and '1.0000' in text
    for name in scored.dataset.class_names:
        assert name in text


def test_images_are_inside_and_small(case, tmp_path):
    _, text = write(case, as_predictions(case[2]), tmp_path)
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert images
    for image in images:
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(image), np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None and pixels.shape[1] <= 720
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)


def test_no_predictions_are_a_report_too(case, tmp_path):
    scored, text = write(case, [], tmp_path)
    assert scored.figures['mask']['AP'] == 0.0
    assert scored.figures['errors']['counts']['missed'] == len(case[2]['annotations'])
    assert 'quality 0.00' in text


def test_calibration_by_hand():
    # Three predictions of .91 on average of which two are correct, one of .25 that is correct.
    gland, far = shapes.rectangle(10, 10, 30, 30), shapes.rectangle(40, 50, 60, 70)
    ground_truth = shapes.ground_truth([[(gland, 1), (far, 1)], [(gland, 1)]])
    results = [
        shapes.result(1, gland, 0.92),
        shapes.result(1, far, 0.90),
        shapes.result(1, shapes.rectangle(0, 60, 8, 70), 0.91),
        shapes.result(2, gland, 0.25),
    ]
    (scores, shares), error = report_page.calibration(matching.match(ground_truth, results)['mask'])
    assert scores == pytest.approx([0.25, 0.91])
    assert shares == pytest.approx([1, 2 / 3])
    assert error == pytest.approx((3 * (0.91 - 2 / 3) + 0.75) / 4)


def test_quality_is_overlap_over_matches_and_half_of_errors():
    gland, far = shapes.rectangle(10, 10, 30, 30), shapes.rectangle(40, 50, 60, 70)
    ground_truth = shapes.ground_truth([[(gland, 1), (far, 1)], [], [(gland, 1)]])
    # In the first image one is detected with an overlap of 16 / 24, one is missed, one is false.
    results = [
        shapes.result(1, shapes.rectangle(10, 14, 30, 34), 0.9),
        shapes.result(1, shapes.rectangle(0, 60, 8, 70), 0.8),
        shapes.result(1, shapes.rectangle(0, 70, 8, 80), 0.3),
        shapes.result(3, gland, 0.4),
    ]
    errors = error_types.classify(ground_truth, results)
    qualities = error_types.image_qualities(errors, [1, 2, 3], 0.5)
    assert qualities == pytest.approx({1: (16 / 24) / 2, 2: 1.0, 3: 0.0})


def evaluate(folder, tmp_path, *flags, split='train'):
    return subprocess.run(
        [sys.executable, 'evaluate.py', '--dataset', 'label_images', '--data_dir', str(folder)]
        + ['--cache_dir', str(tmp_path / 'cache'), '--split', split, *flags],
        cwd=test_commands.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_file_is_scored_without_a_model(case, folder, tmp_path):
    path, out = tmp_path / 'p.json', tmp_path / 'out.json'
    path.write_text(json.dumps(as_predictions(case[2])))
    flags = ['--predictions', str(path), '--results', str(out), '--report', str(tmp_path / 'page')]
    done = evaluate(folder, tmp_path, *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(out.read_text())
    assert results['figures']['mask']['AP'] == pytest.approx(1)
    assert (results['dataset'], results['split']) == ('label_images', 'train')
    assert results['predictions'] == str(path)
    assert '1.0000' in done.stdout
    assert (tmp_path / 'page' / 'index.html').stat().st_size > 1000


def test_a_bad_file_prints_and_writes_nothing(case, folder, tmp_path):
    path, out = tmp_path / 'p.json', tmp_path / 'out.json'
    found = as_predictions(case[2])
    found[1]['score'] = float('nan')
    path.write_text(json.dumps(found))
    done = evaluate(folder, tmp_path, '--predictions', str(path), '--results', str(out))
    assert done.returncode == 2
    assert 'entry 1' in done.stderr.splitlines()[-1] and 'nan' in done.stderr.splitlines()[-1]
    assert done.stdout == '' and not out.exists()
