"""An exported model is evaluated as its checkpoint is."""

import json

import numpy as np
import pytest

from gan_mrcnn import settings
from gan_mrcnn.evaluation import run as evaluation_run
from gan_mrcnn.prediction import checkpoint
from gan_mrcnn.utils.errors import UserError


def evaluate(exported, model_dir, saved_model):
    flags = settings.Flags(
        dataset='label_images',
        data_dir=str(exported.run.parent / 'data'),
        model_dir=str(exported.run),
        cache_dir=str(exported.run.parent / 'cache'),
    )
    checkpoint.use_saved_settings(flags, saved_model)
    dataset = settings.load_dataset(flags)
    config = settings.load_config(flags, dataset)
    results = evaluation_run.evaluate(
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
    flags = settings.Flags(dataset='gland')
    with pytest.raises(UserError, match='holds no SavedModel'):
        checkpoint.use_saved_settings(flags, str(tmp_path))

    class Other:
        name, class_names, splits = 'other', ('cell',), ('val',)

    with pytest.raises(UserError, match='knows gland, vessel, but the classes of other are cell'):
        evaluation_run.evaluate(
            None, Other(), 'val', str(tmp_path), 'best', saved_model=str(exported.version)
        )
