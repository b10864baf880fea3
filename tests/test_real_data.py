"""The programs as they are typed on real data: a sample of COCO 2017, and nuclei as label images.

A network of three steps finds nothing. What must hold all the same are the counts, that every image
is read, predicted and scored, and that figures are those of the images' own annotations.

NUCLEI_DIR: 579 images of the 2018 Data Science Bowl's stage 1 (masks as lopuhin's
kaggle-dsbowl-2018-dataset-fixes has them), as `images/NAME.png` and `labels/NAME.png`, a number for
each nucleus. COCO_DIR: 80 training and 80 validation images of COCO 2017 (zzowenzz/COCO_Tiny).
"""

import csv
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import coco as coco_api
from pycocotools import cocoeval
from pycocotools import mask as mask_api

from tests import programs

pytestmark = pytest.mark.slow

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
# configs/small.yaml on small images, for three steps.
SETTINGS = """
task:
  model:
    input_size: [192, 192, 3]
    decoder: {fpn: {num_filters: 64}}
    rpn_head: {num_filters: 64}
    detection_head: {fc_dims: 128}
    mask_head: {num_convs: 1, num_filters: 64}
    roi_generator: {num_proposals: 100, test_num_proposals: 100}
  train_data: {parser: {train_short_side: [128, 144]}}
  validation_data: {parser: {test_short_side: 144}}
trainer: {train_steps: 3, steps_per_loop: 1, checkpoint_interval: 3, validation_interval: 3}
"""
KINDS = ('box', 'mask', 'boundary')


def run(*args):
    """What `python ARGS` prints."""
    done = subprocess.run(
        [sys.executable, *map(str, args)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def train(model_dir, *flags):
    """Three steps; what was printed."""
    small = ['--config_file', 'configs/small.yaml', '--params_override', SETTINGS]
    return run('train.py', '--model_dir', model_dir, *small, *flags)


def export_and_predict(model_dir, images, out, *flags):
    """What `predict` has written by the export of a run, and what it printed."""
    served, command = out / 'served', ('-m', 'gan_mrcnn')
    run(*command, 'export', '--model_dir', model_dir, '--export_dir', served)
    model = served / 'model'
    printed = run(*command, 'predict', '--model', model, images, '--out', out / 'found', *flags)
    return json.loads((out / 'found/predictions.json').read_text()), printed


def check(*flags):
    """The counts of `gan-mrcnn check` by the word that begins the line, [train, val]."""
    done = programs.run('check', *flags)
    assert done.status == 0, done
    rows = re.findall(r'^(\S[^:\n]*?) {2,}(\d+)(?: in \d+)? +(\d+)(?: in \d+)?$', done.out, re.M)
    return {name: np.array([int(train), int(val)]) for name, train, val in rows}


# Nuclei.


def test_check_counts_every_nucleus(nuclei_dir):
    counted = check('--dataset', 'label_images', '--data_dir', nuclei_dir)
    labels = [np.asarray(Image.open(path)) for path in sorted(nuclei_dir.glob('labels/*.png'))]
    numbers = [len(np.unique(one[one > 0])) for one in labels]
    assert counted['images'].sum() == len(numbers) == 579
    assert counted['objects'].sum() == counted['object'].sum() == sum(numbers) == 20_990
    assert counted['most in one image'].max() == max(numbers) == 313
    assert counted['crowds'].sum() == counted['that cannot be used'].sum() == 0


@pytest.fixture(scope='module')
def nuclei(nuclei_dir, tmp_path_factory):
    """Folder with `data`, 24 of the images, and `run`, trained on 18 of them."""
    folder = tmp_path_factory.mktemp('nuclei')
    names = sorted(path.name for path in nuclei_dir.glob('images/*.png'))
    for kind in ('images', 'labels'):
        (folder / 'data' / kind).mkdir(parents=True)
        for name in np.random.default_rng(3).choice(names, 24, replace=False):
            os.symlink(nuclei_dir / kind / name, folder / 'data' / kind / name)
    flags = ['--dataset', 'label_images', '--data_dir', folder / 'data', '--split', '0.75']
    printed = train(folder / 'run', *flags, '--cache_dir', folder / 'cache')
    assert '18 images to train on' in printed
    return folder


def test_nuclei_are_evaluated_on_every_validation_image(nuclei):
    flags = ['--model_dir', nuclei / 'run', '--cache_dir', nuclei / 'cache']
    printed = run('evaluate.py', '--dataset', 'label_images', *flags)
    assert 'These images chose the checkpoint' in printed
    results = json.loads((nuclei / 'run/eval/val/results.json').read_text())
    assert (results['num_images'], results['step']) == (6, 3)
    for kind in KINDS:
        assert 0 <= results['figures'][kind]['AP'] <= 1
    assert json.loads((nuclei / 'run/eval/val/predictions.json').read_text())


def test_an_export_predicts_every_nuclei_image_and_no_label_image(nuclei):
    found, printed = export_and_predict(
        nuclei / 'run', nuclei / 'data', nuclei, '--score_threshold', '0'
    )
    assert 'left out: 24 label images' in printed
    sizes = {image['file_name']: (image['height'], image['width']) for image in found['images']}
    assert sizes == {
        str(path): np.asarray(Image.open(path)).shape[:2]
        for path in (nuclei / 'data/images').iterdir()
    }
    rows = list(csv.DictReader((nuclei / 'found/objects.csv').open()))
    assert len(rows) == len(found['annotations']) > 0
    by_id = {image['id']: image['file_name'] for image in found['images']}
    for number, one in enumerate(found['annotations']):
        mask = mask_api.decode(one['segmentation'])
        assert mask.shape == sizes[by_id[one['image_id']]]
        assert mask.sum() == one['area'] == int(rows[number]['area'])
    for name, size in sizes.items():
        path = nuclei / 'found/labels/images' / pathlib.Path(name).name
        assert np.asarray(Image.open(path)).shape == size


# COCO.


def annotations(coco_dir, split):
    return coco_dir / f'annotations/instances_{split}2017.json'


def test_check_counts_every_annotation_of_coco(coco_dir):
    counted = check('--dataset', 'coco', '--data_dir', coco_dir)
    total = num_crowds = 0
    names = set()
    for place, split in enumerate(('train', 'val')):
        stored = json.loads(annotations(coco_dir, split).read_text())
        crowds = [bool(one['iscrowd']) for one in stored['annotations']]
        assert counted['images'][place] == len(stored['images']) == 80
        assert counted['crowds'][place] == sum(crowds)
        assert counted['objects'][place] == len(crowds) - sum(crowds)
        total, num_crowds = total + len(crowds), num_crowds + sum(crowds)
        for category in stored['categories']:
            names.add(category['name'])
            wanted = sum(
                one['category_id'] == category['id'] and not one['iscrowd']
                for one in stored['annotations']
            )
            assert counted[category['name']][place] == wanted
    assert (total, num_crowds, len(names)) == (705 + 815, 17, 80)


@pytest.fixture(scope='module')
def coco(coco_dir, tmp_path_factory):
    """Folder with `run`, trained on COCO, and with the records in `cache`."""
    folder = tmp_path_factory.mktemp('coco')
    flags = ['--dataset', 'coco', '--data_dir', coco_dir, '--cache_dir', folder / 'cache']
    printed = train(folder / 'run', *flags, '--mode', 'train')
    assert '80 images to train on' in printed
    return folder


def test_coco_is_evaluated_on_every_validation_image(coco, coco_dir):
    flags = ['--model_dir', coco / 'run', '--cache_dir', coco / 'cache']
    run('evaluate.py', '--dataset', 'coco', *flags, '--checkpoint', 'last')
    results = json.loads((coco / 'run/eval/val/results.json').read_text())
    assert (results['num_images'], results['step']) == (80, 3)
    for kind in KINDS:
        assert 0 <= results['figures'][kind]['AP'] <= 1
        assert len(results['figures']['per_class'][kind]) == 80
    found = json.loads((coco / 'run/eval/val/predictions.json').read_text())
    stored = json.loads(annotations(coco_dir, 'val').read_text())
    for key, entries in (('image_id', 'images'), ('category_id', 'categories')):
        assert {one[key] for one in found} <= {one['id'] for one in stored[entries]}


def test_an_export_predicts_every_image_of_coco(coco, coco_dir):
    found, _ = export_and_predict(coco / 'run', coco_dir / 'val2017', coco)
    names = {image['file_name'] for image in found['images']}
    assert names == {str(path) for path in (coco_dir / 'val2017').glob('*.jpg')}
    stored = json.loads(annotations(coco_dir, 'val').read_text())['categories']
    assert {one['id']: one['name'] for one in found['categories']} == {
        one['id']: one['name'] for one in stored
    }


def perturbed(api):
    """COCO results made of four fifths of the annotations, moved by some pixels, some misnamed."""
    rng = np.random.default_rng(5)
    found = []
    for one in api.anns.values():
        if one['iscrowd'] or rng.random() < 0.2:
            continue
        mask = np.roll(api.annToMask(one), rng.integers(-3, 4, 2), (0, 1))
        encoded = mask_api.encode(np.asfortranarray(mask))
        right = rng.random() > 0.1
        found.append(
            {
                'image_id': one['image_id'],
                'category_id': one['category_id'] if right else int(rng.choice(api.getCatIds())),
                'bbox': mask_api.toBbox(encoded).tolist(),
                'segmentation': {**encoded, 'counts': encoded['counts'].decode()},
                'score': float(rng.random()),
            }
        )
    return found


def test_predictions_of_coco_have_the_figures_of_its_own_annotation_file(coco_dir, tmp_path):
    """By COCO's own evaluation, of the file as it is shipped and not of our records."""
    api = coco_api.COCO(str(annotations(coco_dir, 'val')))
    found = perturbed(api)
    (tmp_path / 'found.json').write_text(json.dumps(found))
    done = programs.run(
        *('evaluate', '--dataset', 'coco', '--data_dir', coco_dir, '--cache_dir', tmp_path / 'c'),
        *('--predictions', tmp_path / 'found.json', '--results', tmp_path / 'results.json'),
    )
    assert done.status == 0, done
    figures = json.loads((tmp_path / 'results.json').read_text())['figures']
    for kind, theirs in (('box', 'bbox'), ('mask', 'segm')):
        # Where there are boxes it takes areas from them, for masks, too.
        left = [{k: v for k, v in one.items() if k != 'bbox' or kind == 'box'} for one in found]
        evaluation = cocoeval.COCOeval(api, api.loadRes(left), theirs)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        wanted = dict(zip(('AP', 'AP50', 'AP75', 'APS', 'APM', 'APL'), evaluation.stats))
        assert wanted['AP'] > 0.2
        for name, value in wanted.items():
            assert figures[kind][name] == pytest.approx(value, abs=1e-6), (kind, name)
    assert 0 < figures['boundary']['AP'] <= figures['mask']['AP']
