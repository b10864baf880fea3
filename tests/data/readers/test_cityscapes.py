"""Cityscapes in its official layout: ids, groups as crowds, subsets, and damaged label images."""

import shutil

import cv2
import numpy as np
import pytest

from gan_mrcnn.data import readers
from gan_mrcnn.data.readers import cityscapes
from tests.data import layouts, round_trip
from tests.data.round_trip import error_of, read_all

# The paper's ten, by hand, with the ids of the published label table.
CLASSES = {
    'person': 24,
    'rider': 25,
    'car': 26,
    'truck': 27,
    'bus': 28,
    'caravan': 29,
    'trailer': 30,
    'train': 31,
    'motorcycle': 32,
    'bicycle': 33,
}
STREET = 'aachen_000000_000019'


@pytest.fixture
def streets(tmp_path):
    folder = tmp_path / 'streets'
    return folder, layouts.write_cityscapes(folder)


def load(folder):
    return readers.load_dataset('cityscapes', str(folder))


@pytest.mark.parametrize('split', ['train', 'val'])
def test_what_is_read_back_is_what_was_put_in(streets, split, tmp_path):
    folder, ground_truths = streets
    assert {False, True} == {thing.is_crowd for t in ground_truths[split] for thing in t.objects}
    round_trip.check(load(folder), split, ground_truths[split], tmp_path)


def test_the_papers_ten_classes_with_their_own_ids(streets):
    dataset = load(streets[0])
    assert dict(zip(dataset.class_names, dataset.category_ids)) == CLASSES
    assert dataset.splits == ('train', 'val')


def test_a_part_of_the_set_is_said(streets, monkeypatch):
    notice = load(streets[0]).notice
    assert '4 of 2975 train' in notice and '2 of 500 val' in notice
    assert not load(streets[0]).is_demo
    monkeypatch.setattr(cityscapes, '_COUNTS', {'train': 4, 'val': 2})
    assert load(streets[0]).notice == ''


def test_a_part_alone_will_do(streets):
    folder, _ = streets
    shutil.rmtree(folder / 'leftImg8bit/train')
    assert load(folder).splits == ('val',)
    assert len(load(folder).items('val')) == 2


def test_images_go_into_the_records_as_they_are(streets):
    dataset = load(streets[0])
    for item, example in zip(dataset.items('val'), dataset.examples('val')):
        assert example.encoded == item.path.read_bytes()


def test_a_wrong_folder_is_described(streets, tmp_path):
    message = error_of(lambda: load(tmp_path))
    assert 'leftImg8bit/train/CITY' in message and 'gtFine_instanceIds.png' in message
    assert f'did you mean {streets[0]}?' in message
    assert 'nosuch' in error_of(lambda: load(tmp_path / 'nosuch'))


def labels_path(folder):
    return folder / f'gtFine/train/aachen/{STREET}_gtFine_instanceIds.png'


def relabel(value):
    def damage(folder):
        labels = cv2.imread(str(labels_path(folder)), cv2.IMREAD_UNCHANGED)
        labels[:2] = value
        cv2.imwrite(str(labels_path(folder)), labels)

    return damage


DAMAGE = {
    'labels missing': (lambda folder: labels_path(folder).unlink(), 'is missing'),
    'labels cut short': (
        lambda folder: labels_path(folder).write_bytes(labels_path(folder).read_bytes()[:-30]),
        'cannot be read',
    ),
    'labels in colours': (
        lambda folder: cv2.imwrite(str(labels_path(folder)), layouts.smooth(1)),
        'has 3 channels',
    ),
    'number of no class': (relabel(34001), 'has the number 34001'),
    'number of a class without instances': (relabel(7001), 'has the number 7001'),
    'label of no class': (relabel(40), 'has the number 40'),
}


@pytest.mark.parametrize('case', DAMAGE)
def test_damage_is_named_and_can_be_skipped(streets, case):
    folder, _ = streets
    damage, said = DAMAGE[case]
    damage(folder)
    message = error_of(lambda: read_all(load(folder)))
    assert str(labels_path(folder)) in message and said in message and '--skip_bad' in message
    assert len(list(load(folder).examples('train', skip_bad=True))) == 3


def test_an_image_of_another_size_is_named(streets):
    folder, _ = streets
    path = folder / f'leftImg8bit/train/aachen/{STREET}_leftImg8bit.png'
    cv2.imwrite(str(path), np.zeros((16, 24, 3), np.uint8))
    message = error_of(lambda: read_all(load(folder)))
    assert f'{path} is 24x16, but its annotations are for 48x32' in message


def test_labels_without_an_image_are_a_warning(streets):
    folder, _ = streets
    (folder / f'leftImg8bit/train/aachen/{STREET}_leftImg8bit.png').unlink()
    (problem,) = load(folder).problems('train')
    assert problem.file_name == str(labels_path(folder)) and problem.severity == 'warning'


def test_fingerprint_follows_labels(streets):
    folder, _ = streets
    first = load(folder).fingerprint('train')
    assert load(folder).fingerprint('train') == first != load(folder).fingerprint('val')
    relabel(24002)(folder)
    assert load(folder).fingerprint('train') != first
