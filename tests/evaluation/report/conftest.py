"""Evaluated runs without a network, which pages are made of."""

import json

import pytest
import yaml

from gan_mrcnn.data.readers import label_images
from gan_mrcnn.data.records import records
from gan_mrcnn.evaluation import scoring
from gan_mrcnn.metrics import predictions
from tests.data import layouts


@pytest.fixture(scope='package')
def world(tmp_path_factory):
    """A data set with runs: two seeds of 'good' and of 'bad', evaluated on 'train'."""
    folder = tmp_path_factory.mktemp('world')
    layouts.write_label_images(folder / 'data') if (folder / 'data').mkdir() is None else None
    cache = str(folder / 'cache')
    dataset = label_images.load(str(folder / 'data'), label_images.options.DEFAULT)
    record_set = records.ensure_records(dataset, 'train', cache, num_processes=1)
    with open(record_set.annotation_file, encoding='utf-8') as file:
        annotations = json.load(file)['annotations']
    keys = ('image_id', 'category_id', 'bbox', 'segmentation')
    found = [{**{key: one[key] for key in keys}, 'score': 0.9} for one in annotations]
    for name, mode, seed, kept in (
        ('good-0', 'combined', 0, found),
        ('bad-0', 'baseline', 0, found[::2]),
        ('good-1', 'combined', 1, found[:-1]),
        ('bad-1', 'baseline', 1, found[1::2]),
    ):
        run = folder / name
        manifest = scoring.manifest(dataset, 'train', record_set)
        predictions.save_predictions(str(run / 'eval/train/predictions.json'), kept, manifest)
        task = {
            'dataset': 'label_images',
            'data_dir': str(folder / 'data'),
            # Where records were kept is no setting.
            'cache_dir': f'{cache}-{name}',
            'annotation_file': f'{cache}-{name}/annotations.json',
            'train_data': {'input_path': f'{cache}-{name}/records-*'},
            'seed': seed,
            'gan': {'mode': mode},
        }
        (run / 'params.yaml').write_text(yaml.safe_dump({'task': task}))
    return folder
