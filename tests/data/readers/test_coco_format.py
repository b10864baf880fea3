"""Any COCO-style file: which files are taken, how images are divided, what damage is called."""

import json
import os
import pickle
import shutil

import cv2
import numpy as np
import pytest

from gan_mrcnn.data import augment, readers
from gan_mrcnn.data.readers import options
from gan_mrcnn.utils.errors import UserError
from tests.data import layouts, round_trip
from tests.data.round_trip import error_of, read_all


@pytest.fixture
def own(tmp_path):
    """A folder with an annotation file of twelve images of four patients, and ground truth."""
    folder = tmp_path / 'own'
    folder.mkdir()
    return folder, layouts.write_own_coco(folder)


def load(folder, **chosen):
    return readers.load_dataset('coco_format', str(folder), options.Options(**chosen))


def names(dataset, split):
    return [item.file_name for item in dataset.items(split)]


def change(path, edit):
    content = json.loads(path.read_text())
    content = edit(content) or content
    path.write_text(json.dumps(content))


def test_what_is_read_back_is_what_was_put_in(own, tmp_path):
    folder, ground_truths = own
    dataset = load(folder)
    # The order of the ids, which is not that of the file.
    assert dataset.class_names == ('nucleus', 'cell') and dataset.category_ids == (2, 7)
    for split in ('train', 'val'):
        inside = set(names(dataset, split))
        wanted = [gt for gt in ground_truths if gt.file_name in inside]
        round_trip.check(dataset, split, wanted, tmp_path / split)


def test_one_file_is_divided_the_same_way_each_time(own):
    folder, ground_truths = own
    dataset = load(folder)
    train, val = names(dataset, 'train'), names(dataset, 'val')
    assert sorted(train + val) == sorted(gt.file_name for gt in ground_truths)
    # A tenth of twelve is one.
    assert len(val) == 1
    assert names(load(folder), 'val') == val
    assert len(names(load(folder, share=0.5), 'val')) == 6
    others = {tuple(names(load(folder, share=0.5, split_seed=seed), 'val')) for seed in range(5)}
    assert len(others) > 1


@pytest.mark.parametrize('seed', range(4))
def test_no_patient_is_on_both_sides(own, seed):
    folder, _ = own
    entries = json.loads((folder / 'all.json').read_text())['images']
    patient = {entry['file_name']: entry['patient'] for entry in entries}
    dataset = load(folder, share=0.7, group_by='patient', split_seed=seed)
    sides = [{patient[name] for name in names(dataset, split)} for split in ('train', 'val')]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == {'P0', 'P1', 'P2', 'P3'}


def test_an_unknown_key_is_named_with_those_there_are(own):
    message = error_of(lambda: load(own[0], group_by='scene'))
    assert 'all.json' in message and "'scene'" in message and 'patient' in message


def test_train_val_and_test_files_are_found_or_given(own, tmp_path):
    folder, ground_truths = own
    specs = [('t.png', 'rgb', 50, layouts.blocks(50, 'cell'), {})]
    ids = {'cell': 7, 'nucleus': 2}
    for name in ('my_val', 'my_test'):
        layouts.write_coco(folder / f'annotations/{name}.json', folder / name[3:], specs, ids)
    (folder / 'all.json').rename(folder / 'annotations/my_train.json')
    dataset = load(folder)
    assert dataset.splits == ('train', 'val', 'test')
    assert len(names(dataset, 'train')) == 12 and names(dataset, 'test') == ['t.png']
    # By name, by place in the folder, or as the shell completes it.
    place = os.path.relpath(folder / 'annotations/my_test.json')
    for last in ('my_test.json', 'annotations/my_test.json', place):
        given = load(folder, annotations=('my_train.json', last))
        assert given.splits == ('train', 'val') and names(given, 'val') == ['t.png']
    # A share divides the images of both anew; the test images stay where they are.
    again = load(folder, share=0.5)
    assert len(names(again, 'train')) == 7 and len(names(again, 'val')) == 6
    assert names(again, 'test') == ['t.png']
    ids = [item.image_id for split in ('train', 'val') for item in again.items(split)]
    assert len(set(ids)) == 13


def test_files_may_each_count_from_zero(own, tmp_path):
    """Predictions keep the ids of their file; only what is put together gets others."""
    folder, _ = own
    change(
        folder / 'all.json',
        lambda content: (
            [
                entry.update({key: (entry[key] - 100) // 3})
                for name, key in (('images', 'id'), ('annotations', 'image_id'))
                for entry in content[name]
            ]
            and None
        ),
    )
    (folder / 'val.json').write_text((folder / 'all.json').read_text())
    dataset = load(folder, annotations=('all.json', 'val.json'))
    for split in ('train', 'val'):
        assert [item.image_id for item in dataset.items(split)] == list(range(12))
        dataset.stop_at_problems(split)
    expanded = augment.Expanded(dataset, 40, 0)
    ids = [item.image_id for item in expanded.items('train')]
    assert len(set(ids)) == len(ids) == 40
    round_trip.check(dataset, 'train', own[1], tmp_path / 'cache')


def test_options_without_an_effect_are_refused(own):
    folder, _ = own
    message = error_of(
        lambda: load(folder, annotations=('all.json', 'all.json'), group_by='patient')
    )
    assert '--group_by' in message and '--split' in message


def test_several_files_without_a_clear_name_have_to_be_named(own):
    folder, _ = own
    (folder / 'other.json').write_text('{}')
    message = error_of(lambda: load(folder))
    assert 'all.json, other.json' in message and '--annotations' in message
    assert 'nosuch.json' in error_of(lambda: load(folder, annotations=('nosuch.json',)))


def test_workers_get_their_items_one_by_one(own):
    """All of COCO's annotations, sent to every process, would fill the memory."""
    folder, _ = own
    dataset = load(folder)
    (item, *_) = [i for i in dataset.items('train') if i.file_name == 'case0.png']
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(dataset)) < 2000 < len(pickle.dumps(dataset.items('train')))
    one, other = dataset.read(item), copy.read(pickle.loads(pickle.dumps(item)))
    np.testing.assert_array_equal(one.decode_masks(), other.decode_masks())
    assert one.classes.tolist() == other.classes.tolist()


def test_fingerprint_follows_annotations_images_and_division(own):
    folder, _ = own
    first = load(folder).fingerprint('train')
    assert load(folder).fingerprint('train') == first
    assert load(folder).fingerprint('val') != first
    assert load(folder, share=0.5).fingerprint('train') != first
    path = folder / 'images' / names(load(folder), 'train')[0]
    cv2.imwrite(str(path), cv2.imread(str(path)) // 2)
    second = load(folder).fingerprint('train')
    assert second != first
    change(folder / 'all.json', lambda content: content['annotations'].pop() and None)
    assert load(folder).fingerprint('train') not in (first, second)


# Damage. The frame of the file: nothing goes on.


def without(name):
    return lambda content: content.pop(name) and None


def setting(entries, number, **values):
    return lambda content: content[entries][number].update(values)


def repeat(name):
    return lambda content: content[name].append(content[name][0])


FRAME = {
    'a list': (lambda content: content['annotations'], 'no list of images'),
    'no images': (without('images'), 'no list of images'),
    'no annotations': (without('annotations'), 'no list of annotations'),
    'no categories': (without('categories'), 'no list of categories'),
    'empty images': (lambda content: content['images'].clear(), 'empty list of images'),
    'images by name': (lambda content: content.update(images={'a': 1}), 'no list of images'),
    'image a word': (lambda content: content['images'].append('a.png'), 'no list of images'),
    'image id twice': (repeat('images'), 'image id 100 is used twice'),
    'image id a word': (setting('images', 2, id='7'), "image number 3 has the id '7'"),
    'image without id': (setting('images', 2, id=None), 'image number 3 has the id None'),
    'negative image id': (setting('images', 2, id=-4), 'image number 3 has the id -4'),
    'no file name': (setting('images', 0, file_name=''), 'image 100 has no file_name'),
    'file name of two lines': (setting('images', 0, file_name='a\nb'), 'has no file_name'),
    'half a character': (setting('images', 0, file_name='\ud800.png'), 'has no file_name'),
    'file name with a zero': (setting('images', 0, file_name='a\0b'), 'has no file_name'),
    'gigabytes': (setting('images', 0, width=10**5, height=10**5), 'GAN_MRCNN_MAX_PIXELS'),
    'one row of gigabytes': (setting('images', 0, width=1 << 28, height=1), 'a side above 65535'),
    'no width': (setting('images', 0, width=None), 'the width None'),
    'height zero': (setting('images', 0, height=0), 'the height 0'),
    'width a word': (setting('images', 0, width='48'), "the width '48'"),
    'category id twice': (setting('categories', 0, id=2), 'category id 2 is used twice'),
    'category name twice': (
        setting('categories', 0, name='nucleus'),
        "two categories are named 'nucleus'",
    ),
    'category without name': (setting('categories', 0, name=None), 'category 7 has no name'),
    'annotation of no image': (
        setting('annotations', 0, image_id=5),
        'annotation 1 is of image 5',
    ),
    'image id of an annotation a word': (
        setting('annotations', 0, image_id='100'),
        "annotation 1 is of image '100'",
    ),
}


@pytest.mark.parametrize(
    'name',
    [
        '/etc/passwd',
        '../../secret.png',
        '../own/../../secret.png',
        'case0.png/../../../secret.png',
        '//secret.png',
    ],
)
def test_a_name_that_leads_out_of_the_folder_is_refused(own, name):
    folder, _ = own
    cv2.imwrite(str(folder.parent / 'secret.png'), np.zeros((32, 48), np.uint8))
    change(folder / 'all.json', setting('images', 3, file_name=name))
    message = error_of(lambda: load(folder))
    assert f'has the file_name {name!r}' in message and f'leads out of {folder}' in message


def test_a_name_that_stays_inside_may_go_up(own):
    folder, ground_truths = own
    before = load(folder)
    name = ground_truths[0].file_name
    change(folder / 'all.json', setting('images', 0, file_name=f'../images/{name}'))
    assert {item.path for item in load(folder).items('train')} | {
        item.path for item in load(folder).items('val')
    } == {item.path for split in ('train', 'val') for item in before.items(split)}


def test_links_of_the_user_are_followed_and_names_do_not_leave_by_them(own, tmp_path):
    """`link/..` is the folder above the link's target for the system, and not for us."""
    folder, ground_truths = own
    (tmp_path / 'disk').mkdir()
    (folder / 'images').rename(tmp_path / 'disk/images')
    (folder / 'images').symlink_to(tmp_path / 'disk/images')
    (tmp_path / 'data').symlink_to(folder)
    assert len(read_all(load(tmp_path / 'data'), 'train')) == 11
    name = ground_truths[0].file_name
    shutil.copy(tmp_path / 'disk/images' / name, tmp_path / 'disk/secret.png')
    (tmp_path / 'disk/images/link').symlink_to(tmp_path / 'disk/images')
    change(folder / 'all.json', setting('images', 0, file_name='link/../secret.png'))
    message = error_of(lambda: [read_all(load(folder), split) for split in ('train', 'val')])
    assert 'images/secret.png' in message and 'is missing' in message


def test_a_name_longer_than_any_file_has_is_missing(own):
    folder, _ = own
    change(folder / 'all.json', setting('images', 0, file_name='a' * 5000))
    dataset = load(folder)
    found = [problem for split in ('train', 'val') for problem in dataset.problems(split)]
    assert [problem.text for problem in found] == ['is missing']


@pytest.mark.parametrize('case', FRAME)
def test_a_damaged_frame_is_named(own, case):
    edit, said = FRAME[case]
    change(own[0] / 'all.json', edit)
    message = error_of(lambda: load(own[0]))
    assert str(own[0] / 'all.json') in message and said in message


@pytest.mark.parametrize('text', ['', '{"images": [', 'x', '\x00', '[' * 100000])
def test_a_file_that_is_no_json_is_named(own, text):
    (own[0] / 'all.json').write_text(text)
    message = error_of(lambda: load(own[0]))
    assert str(own[0] / 'all.json') in message and 'cannot be read as JSON' in message


def test_images_that_are_not_there_at_all(own):
    folder, _ = own
    (folder / 'images').rename(folder / 'photos')
    message = error_of(lambda: load(folder))
    assert 'case0.png' in message and str(folder / 'images') in message


def test_files_with_other_categories(own):
    folder, _ = own
    (folder / 'val.json').write_text((folder / 'all.json').read_text())
    change(folder / 'val.json', setting('categories', 0, name='tissue'))
    message = error_of(lambda: load(folder, annotations=('all.json', 'val.json')))
    assert 'val.json' in message and "category 7 is 'tissue'" in message
    # Of one that has a category less, the ids are still the same.
    change(folder / 'val.json', lambda content: content['categories'].pop(0) and None)
    assert len(load(folder, annotations=('all.json', 'val.json')).class_names) == 2


# Damage of one image: it is named, and the rest can be used.


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-40])


PICTURE = {
    'missing': (lambda path: path.unlink(), 'is missing'),
    'cut short': (cut_short, 'cannot be read'),
    'empty': (lambda path: path.write_bytes(b''), 'cannot be read'),
    'a text': (lambda path: path.write_text('hello'), 'cannot be read'),
    'another size': (
        lambda path: cv2.imwrite(str(path), np.zeros((20, 30, 3), np.uint8)),
        'is 30x20, but its annotations are for 48x32',
    ),
}


@pytest.mark.parametrize('case', PICTURE)
def test_a_damaged_image_is_named_and_can_be_skipped(own, case):
    folder, _ = own
    damage, said = PICTURE[case]
    dataset = load(folder)
    item = dataset.items('train')[3]
    damage(item.path)
    message = error_of(lambda: read_all(dataset))
    assert str(item.path) in message and said in message and '--skip_bad' in message
    rest = [example.file_name for example in dataset.examples('train', skip_bad=True)]
    assert rest == [name for name in names(dataset, 'train') if name != item.file_name]


@pytest.mark.parametrize(
    'edit, said',
    [
        ({'category_id': 3}, 'category id 3'),
        ({'segmentation': [[1, 1, 9, 9]]}, 'polygon of 2 points'),
        ({'segmentation': [[100, 1, 109, 9, 100, 9]]}, 'outside its image'),
    ],
)
def test_a_damaged_annotation_is_named_with_its_file(own, edit, said):
    folder, _ = own
    number = 0
    change(folder / 'all.json', setting('annotations', number, **edit))
    dataset = load(folder)
    split = 'train' if 'case0.png' in names(dataset, 'train') else 'val'
    message = error_of(lambda: read_all(dataset, split))
    assert f'{folder / "all.json"}: annotation 1 of case0.png' in message and said in message
    problems = list(dataset.problems(split))
    assert [problem.severity for problem in problems] == ['error']
    (item,) = [item for item in dataset.items(split) if item.file_name == 'case0.png']
    with pytest.raises(UserError, match='annotation 1 of case0.png'):
        dataset.read(item)


def test_what_does_no_harm_is_a_warning(own):
    folder, _ = own

    def edit(content):
        content['annotations'][1]['id'] = 1
        content['annotations'][0]['bbox'] = [0, 0, 0, 0]
        content['images'][2]['file_name'] = content['images'][1]['file_name']

    change(folder / 'all.json', edit)
    dataset = load(folder)
    problems = [problem for split in ('train', 'val') for problem in dataset.problems(split)]
    assert {problem.severity for problem in problems} == {'warning'}
    text = ' | '.join(problem.text for problem in problems)
    assert 'have the id 1' in text and 'a box of 0x0 pixels' in text and 'another id' in text
    assert len(read_all(dataset)) == len(dataset.items('train'))
