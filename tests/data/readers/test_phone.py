"""The phones: the layout, the eleven classes, and a division that holds each model out."""

import pytest

from gan_mrcnn.data import augment, readers
from gan_mrcnn.data.readers import options
from gan_mrcnn.data.records import records
from tests.data import layouts, round_trip
from tests.data.round_trip import error_of


@pytest.fixture(scope='module')
def phones(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'phone'
    return folder, layouts.write_phones(folder)


def load(folder, **chosen):
    return readers.load_dataset('phone', str(folder), options.Options(**chosen))


@pytest.mark.parametrize('split', ['train', 'val'])
def test_what_is_read_back_is_what_was_put_in(phones, split, tmp_path):
    folder, ground_truths = phones
    dataset = load(folder)
    assert dataset.class_names == tuple(f'part {i}' for i in range(1, 12))
    round_trip.check(dataset, split, ground_truths[split], tmp_path)


def test_the_folder_above_will_do(phones):
    assert len(load(phones[0].parent).items('train')) == len(phones[1]['train'])


@pytest.mark.parametrize('share', [0.9, 0.5])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_a_division_holds_each_model_out_and_trains_on_it(phones, share, seed, tmp_path):
    folder, ground_truths = phones
    dataset = load(folder, share=share, split_seed=seed)
    sides = {s: [item.file_name for item in dataset.items(s)] for s in ('train', 'val')}
    every = [gt.file_name for part in ground_truths.values() for gt in part]
    assert sorted(sides['train'] + sides['val']) == sorted(every)
    for model in layouts.PHONE_MODELS:
        held_out = sum(name.startswith(model) for name in sides['val'])
        # Of four: one at 90%, two at 50%.
        assert held_out == (1 if share == 0.9 else 2)
    if seed == 0:
        both = [gt for part in ground_truths.values() for gt in part]
        wanted = [gt for gt in both if gt.file_name in sides['val']]
        round_trip.check(dataset, 'val', wanted, tmp_path)


def test_images_of_both_parts_keep_different_ids(phones):
    dataset = load(phones[0], share=0.9)
    ids = [item.image_id for split in ('train', 'val') for item in dataset.items(split)]
    assert len(ids) == len(set(ids)) == 13


def test_the_papers_copies_have_the_objects_of_their_image(phones, tmp_path):
    dataset = augment.Expanded(load(phones[0], share=0.9), 30, 0)
    record_set = records.ensure_records(dataset, 'train', str(tmp_path), num_processes=1)
    assert record_set.num_examples == 30
    # Ten are left of 13, so each is there three times.
    assert sorted(record_set.objects_per_image)[::3] == sorted(record_set.objects_per_image[:10])


def test_missing_files_and_options_that_do_not_fit(phones, tmp_path):
    message = error_of(lambda: load(tmp_path))
    assert 'instances_phone_train.json is missing' in message and 'images/train/' in message
    message = error_of(lambda: load(phones[0], group_by='model'))
    assert '--group_by is not for phone, which takes --split, --split_seed' in message
    for share in (90.0, 1.0, 0.0, -0.5):
        assert f'--split {share:g} ' in error_of(lambda share=share: load(phones[0], share=share))
