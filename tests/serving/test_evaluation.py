"""An exported model is evaluated as its checkpoint is."""

import argparse
import json

import numpy as np
import pytest

from gan_mrcnn import evaluating, experiment
from gan_mrcnn.errors import UserError


def evaluate(exported, model_dir, saved_model):
    flags = argparse.Namespace(
        dataset='label_images',
        data_dir=str(exported.run.parent / 'data'),
        model_dir=str(exported.run),
        saved_model=saved_model,
        config_file=None,
        params_override=[],
        gan=None,
        seed=None,
        skip_bad=False,
        cache_dir=str(exported.run.parent / 'cache'),
    )
    evaluating.take_saved_settings(flags)
    dataset = experiment.load_dataset(flags)
    config = experiment.load_config(flags, dataset)
    results = evaluating.evaluate(
        config,
        dataset,
        'train',
        str(model_dir),
        str(exported.run / 'ckpt-7'),
        saved_model=saved_model,
    )
    return results, json.loads((model_dir / 'eval/train/predictions.json').read_text())


def test_an_exported_model_has_the_figures_of_its_checkpoint(exported, tmp_path):
    wanted, wanted_predictions = evaluate(exported, tmp_path / 'a', None)
    found, found_predictions = evaluate(exported, tmp_path / 'b', str(exported.version))
    assert found['figures'] == wanted['figures']
    assert (found['step'], found['num_images']) == (7, wanted['num_images'])
    assert len(found_predictions) == len(wanted_predictions) > 9
    for one, other in zip(found_predictions, wanted_predictions):
        assert (one['image_id'], one['category_id']) == (other['image_id'], other['category_id'])
        np.testing.assert_allclose(one['score'], other['score'], atol=1e-5)
        np.testing.assert_allclose(one['bbox'], other['bbox'], atol=1e-2)


def test_an_exported_model_of_other_classes_is_refused(exported, tmp_path):
    flags = argparse.Namespace(dataset='gland', data_dir=None, saved_model=str(tmp_path))
    with pytest.raises(UserError, match='holds no SavedModel'):
        evaluating.take_saved_settings(flags)

    class Other:
        name, class_names, splits = 'other', ('cell',), ('val',)

    with pytest.raises(UserError, match='knows gland, vessel, but the classes of other are cell'):
        evaluating.evaluate(
            None, Other(), 'val', str(tmp_path), 'best', saved_model=str(exported.version)
        )
