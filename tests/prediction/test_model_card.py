"""What a model says of the resolution that it was trained at, and cards that say nothing of it."""

import dataclasses
import json
import types

import pytest

from gan_mrcnn import configs
from gan_mrcnn.data.readers import base, gland
from gan_mrcnn.prediction import checkpoint, model_card
from gan_mrcnn.utils.errors import UserError
from tests.prediction.made_slides import CARD


def read(folder, **changes):
    content = {**dataclasses.asdict(CARD), **changes}
    content = {name: value for name, value in content.items() if value != 'left out'}
    (folder / model_card.FILE_NAME).write_text(json.dumps(content))
    return model_card.read(folder)


def test_a_card_comes_back_as_it_was_written(tmp_path):
    for card in (CARD, dataclasses.replace(CARD, micrometres_per_pixel=None, image_size=None)):
        model_card.write(card, tmp_path)
        assert model_card.read(tmp_path) == card


def test_a_card_from_before_says_nothing_of_resolution(tmp_path):
    card = read(tmp_path, micrometres_per_pixel='left out', image_size='left out')
    assert card.micrometres_per_pixel is None and card.image_size is None
    assert dataclasses.replace(card, micrometres_per_pixel=0.5, image_size=(96, 128)) == CARD


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('micrometres_per_pixel', 'fine'),
        ('micrometres_per_pixel', float('inf')),
        ('micrometres_per_pixel', True),
        ('image_size', [522]),
        ('image_size', [522.5, 775]),
        ('image_size', 522),
    ],
)
def test_what_cannot_be_one_is_named(tmp_path, name, value):
    with pytest.raises(UserError, match=f'no {name} that can be one'):
        read(tmp_path, **{name: value})


@pytest.mark.parametrize(
    ('setting', 'own', 'said'),
    [(0.0, None, None), (0.0, 0.62, 0.62), (0.5, None, 0.5), (0.5, 0.62, 0.5)],
)
def test_the_setting_comes_before_the_data_set(monkeypatch, setting, own, said):
    monkeypatch.setattr(checkpoint, 'step_of', lambda path: 3)
    dataset = types.SimpleNamespace(
        class_names=('a',), category_ids=(1,), micrometres_per_pixel=own, image_size=(5, 6)
    )
    task = configs.GanMaskRCNNTask(micrometres_per_pixel=setting)
    card = checkpoint.make_card(task, dataset, 'run/ckpt-3')
    assert card.micrometres_per_pixel == said and card.image_size == (5, 6)


def test_the_glands_have_a_resolution_and_others_only_if_it_is_set():
    assert gland.Glands.micrometres_per_pixel == 0.62 and gland.Glands.image_size == (522, 775)
    assert base.Dataset.micrometres_per_pixel is None and base.Dataset.image_size is None
    task = configs.GanMaskRCNNTask(micrometres_per_pixel=-1.0)
    task.model.input_size = [64, 64, 3]
    with pytest.raises(UserError, match=r'task\.micrometres_per_pixel is -1'):
        configs.check(task)
