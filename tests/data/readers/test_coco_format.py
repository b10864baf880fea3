"""Any COCO-style file: which files are taken, how images are divided, what damage is called."""

import json
import os
import pickle
import shutil

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_api

from gan_mrcnn.data import augment, readers
from gan_mrcnn.data.readers import options
from gan_mrcnn.data.records import records
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
    shutil.copy(folder / 'all.json', folder / 'other.json')
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
    'image id a word': (setting('images', 2, id='x'), "image number 3 has the id 'x'"),
    'half an image id': (setting('images', 2, id=7.5), 'image number 3 has the id 7.5'),
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
    'width a word': (setting('images', 0, width='48px'), "the width '48px'"),
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
        setting('annotations', 0, image_id='case0'),
        "annotation 1 is of image 'case0'",
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


# What other tools write.


@pytest.mark.parametrize('write', [float, str, lambda value: f'{value}.0'])
def test_whole_numbers_are_read_in_every_spelling(own, tmp_path, write):
    folder, ground_truths = own
    before = load(folder)

    def edit(content):
        for entry in content['images']:
            entry.update({key: write(entry[key]) for key in ('id', 'width', 'height')})
        for entry in content['categories']:
            entry['id'] = write(entry['id'])
        for entry in content['annotations']:
            keys = ('id', 'image_id', 'category_id', 'iscrowd')
            entry.update({key: write(entry[key]) for key in keys})
            mask = entry['segmentation']
            if isinstance(mask, dict):
                mask['size'] = [write(side) for side in mask['size']]
                if isinstance(mask['counts'], list):
                    mask['counts'] = [write(count) for count in mask['counts']]

    change(folder / 'all.json', edit)
    dataset = load(folder)
    assert dataset.category_ids == (2, 7)
    for split in ('train', 'val'):
        assert dataset.items(split) == before.items(split)
        inside = set(names(dataset, split))
        wanted = [gt for gt in ground_truths if gt.file_name in inside]
        round_trip.check(dataset, split, wanted, tmp_path / split)


SPELLINGS = {
    'backslashes': lambda name: f'images\\{name}',
    'a folder of another machine': lambda name: f'/home/ann/set/images/{name}',
    'a drive': lambda name: f'C:\\set\\{name}',
    'a link': lambda name: f'http://host/files/images/{name}',
    'per cent': lambda name: name.replace('e', '%65'),
    'another suffix': lambda name: name.replace('.png', '.jpg'),
    'no suffix': lambda name: name.replace('.png', ''),
    'another case': str.upper,
}


@pytest.mark.parametrize('count', [1, 12])
@pytest.mark.parametrize('kind', SPELLINGS)
def test_an_image_is_found_by_what_its_name_means_and_that_is_said(own, kind, count, capsys):
    folder, _ = own
    before = load(folder)
    spell = SPELLINGS[kind]

    def edit(content):
        for entry in content['images'][:count]:
            entry['file_name'] = spell(entry['file_name'])

    change(folder / 'all.json', edit)
    dataset = load(folder, share=0.9)
    assert f'{count} images are found by names that are nearly theirs' in capsys.readouterr().out
    found = {item.path for split in ('train', 'val') for item in dataset.items(split)}
    assert found == {item.path for split in ('train', 'val') for item in before.items(split)}
    problems = [problem for split in ('train', 'val') for problem in dataset.problems(split)]
    assert len(problems) == count and {problem.severity for problem in problems} == {'warning'}
    assert all('which is not there' in problem.text for problem in problems)


@pytest.mark.parametrize(
    'name, place, said',
    [
        # A mask, or an image of another series: of the same name, and not what is meant.
        ('a.png', 'masks/a.png', 'did you mean'),
        ('one/a.png', 'images/two/a.png', 'did you mean'),
        ('b.png', 'images/a.png', 'is missing'),
    ],
)
def test_an_image_that_may_be_another_is_missing(own, name, place, said):
    folder, _ = own
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / 'images/case3.png').rename(folder / place)
    change(folder / 'all.json', setting('images', 3, file_name=name))
    dataset = load(folder)
    (problem,) = [p for split in ('train', 'val') for p in dataset.problems(split)]
    assert problem.severity == 'error' and said in problem.text
    assert ('did you mean' in problem.text) == (str(folder / place) in problem.text)


def test_an_image_that_another_entry_has_is_not_taken(own):
    folder, _ = own
    (folder / 'images/case3.png').unlink()
    change(folder / 'all.json', setting('images', 3, file_name='case4.jpg'))
    dataset = load(folder)
    (problem,) = [p for split in ('train', 'val') for p in dataset.problems(split)]
    assert 'case4.jpg' in problem.file_name and problem.text == 'is missing'
    # And two entries that mean one file have none.
    change(folder / 'all.json', setting('images', 4, file_name='case4.bmp'))
    dataset = load(folder)
    problems = [p for split in ('train', 'val') for p in dataset.problems(split)]
    assert [p.severity for p in problems] == ['error'] * 2


def test_a_name_that_leads_out_of_the_folder_may_mean_one_inside(own):
    folder, _ = own
    change(folder / 'all.json', setting('images', 3, file_name='/elsewhere/masks/case3.png'))
    found = {item.path for split in ('train', 'val') for item in load(folder).items(split)}
    assert folder / 'images/case3.png' in found
    (folder / 'deep').mkdir()
    (folder / 'images/case3.png').rename(folder / 'deep/case3.png')
    message = error_of(lambda: load(folder))
    assert 'leads out of' in message and f'did you mean {folder / "deep/case3.png"}?' in message


def painted(folder, every=2):
    """Every second object as CVAT writes what was painted: run lengths, iscrowd 1."""

    def edit(content):
        for number, annotation in enumerate(content['annotations']):
            mask = annotation['segmentation']
            if number % every == 0 and isinstance(mask, list):
                rle = mask_api.merge(mask_api.frPyObjects(mask, layouts.HEIGHT, layouts.WIDTH))
                annotation['segmentation'] = layouts.run_lengths(mask_api.decode(rle) > 0)
                annotation['iscrowd'] = 1

    change(folder / 'all.json', edit)


def test_groups_become_objects_where_the_user_says_so(own, tmp_path):
    folder, _ = own
    number = sum(len(e.rles) for split in ('train', 'val') for e in read_all(load(folder), split))
    painted(folder)
    for crowds, is_learnt in (('ignored', False), ('objects', True)):
        dataset = load(folder, crowds=crowds)
        assert bool(dataset.crowds_hint) == (not is_learnt)
        found = [
            is_crowd
            for split in ('train', 'val')
            for example in read_all(dataset, split)
            for is_crowd in example.is_crowd
        ]
        assert len(found) == number and any(found) == (not is_learnt)
    prints = {load(folder, crowds=c).fingerprint('train') for c in ('ignored', 'objects')}
    assert len(prints) == 2
    record_set = records.ensure_records(load(folder), 'train', str(tmp_path), num_processes=1)
    learnt = sum(record_set.objects_per_image)
    train = read_all(load(folder))
    assert record_set.num_crowds == sum(e.is_crowd.sum() for e in train) > learnt / 2
    assert '--crowds groups is unknown' in error_of(lambda: load(folder, crowds='groups'))


BAD_ANNOTATIONS = {
    'empty': [],
    'an empty polygon': [[]],
    'two points': [[1, 1, 9, 9]],
    'two points beside a good polygon': [[1, 1, 9, 1, 9, 9], [1, 1, 9, 9]],
    'null': None,
    'damaged run lengths': {'size': [32, 48], 'counts': [5]},
}


@pytest.mark.parametrize('kind', BAD_ANNOTATIONS)
def test_an_annotation_that_cannot_be_used_costs_itself_and_not_its_image(
    own, tmp_path, kind, capsys
):
    folder, _ = own
    change(folder / 'all.json', setting('annotations', 8, segmentation=BAD_ANNOTATIONS[kind]))
    strict = load(folder)
    split = 'train' if 'case2.png' in names(strict, 'train') else 'val'
    assert '--skip_bad_annotations' in error_of(lambda: read_all(strict, split))
    dataset = load(folder, skip_bad_annotations=True)
    (problem,) = dataset.problems(split)
    assert problem.severity == 'warning' and problem.text.endswith('it is skipped')
    (example,) = [e for e in read_all(dataset, split) if e.file_name == 'case2.png']
    assert (len(example.rles), example.num_skipped) == (1, 1)
    assert dataset.fingerprint(split) != strict.fingerprint(split)
    records.ensure_records(dataset, split, str(tmp_path), num_processes=1)
    said = capsys.readouterr().out
    assert 'annotations that cannot be used are skipped: 1, in 1 of' in said and 'case2.png' in said


@pytest.mark.parametrize('name', ['coco', 'phone', 'coco_format'])
def test_the_flag_that_an_error_names_is_taken(name, tmp_path):
    {
        'coco': layouts.write_coco_2017,
        'phone': layouts.write_phones,
        'coco_format': layouts.write_own_coco,
    }[name](tmp_path)
    for path in tmp_path.rglob('*.json'):
        change(path, setting('annotations', 0, segmentation=[]))
    assert '--skip_bad_annotations' in error_of(
        lambda: read_all(readers.load_dataset(name, str(tmp_path)), 'train')
    )
    chosen = options.Options(skip_bad_annotations=True)
    dataset = readers.load_dataset(name, str(tmp_path), chosen)
    skipped = [e.num_skipped for split in ('train', 'val') for e in read_all(dataset, split)]
    assert sum(skipped) == len(list(tmp_path.rglob('*.json')))


def write_roboflow(folder, source):
    """train/, valid/ and test/ with their images, and the category that is above the others."""
    content = json.loads((source / 'all.json').read_text())
    root = {'id': 0, 'name': 'tissue', 'supercategory': 'none'}
    categories = [root, *({**c, 'supercategory': 'tissue'} for c in content['categories'])]
    for split, part in (('train', slice(0, 8)), ('valid', slice(8, 10)), ('test', slice(10, 12))):
        (folder / split).mkdir(parents=True)
        entries = content['images'][part]
        for entry in entries:
            shutil.copy(source / 'images' / entry['file_name'], folder / split)
        ids = {entry['id'] for entry in entries}
        own = [a for a in content['annotations'] if a['image_id'] in ids]
        text = json.dumps({'images': entries, 'annotations': own, 'categories': categories})
        (folder / split / '_annotations.coco.json').write_text(text)


def test_folders_of_roboflow_are_the_splits_and_their_root_is_no_class(own, tmp_path):
    folder, ground_truths = own
    write_roboflow(tmp_path / 'export', folder)
    dataset = load(tmp_path / 'export')
    assert dataset.splits == ('train', 'val', 'test')
    assert dataset.class_names == ('nucleus', 'cell') and dataset.category_ids == (2, 7)
    for split, part in (('train', slice(0, 8)), ('val', slice(8, 10)), ('test', slice(10, 12))):
        round_trip.check(dataset, split, ground_truths[part], tmp_path / 'cache' / split)
    shutil.rmtree(tmp_path / 'export/valid')
    divided = load(tmp_path / 'export')
    assert divided.splits == ('train', 'val', 'test')
    assert len(names(divided, 'train') + names(divided, 'val')) == 8
    assert len(names(divided, 'test')) == 2


def test_a_category_above_others_that_objects_have_is_a_class(own):
    def edit(content):
        content['categories'][0]['supercategory'] = 'none'
        content['categories'][1]['supercategory'] = 'cell'

    change(own[0] / 'all.json', edit)
    assert load(own[0]).class_names == ('nucleus', 'cell')


@pytest.mark.parametrize('content', ['{"images": [{"id": 1}], "categories": []}', '{"a": 1}'])
@pytest.mark.parametrize('name', ['image_info_test2017.json', 'package.json'])
def test_a_file_without_annotations_is_not_used_and_that_is_said(own, name, content, capsys):
    folder, _ = own
    (folder / name).write_text(content)
    assert load(folder).splits == ('train', 'val')
    assert f'{folder / name} has no annotations and is not used' in capsys.readouterr().out


def test_hidden_files_are_no_annotations(own):
    folder, _ = own
    (folder / '._all.json').write_bytes(b'\0\5\x16\7')
    (folder / '.all.json.swp.json').write_text('{}')
    assert len(names(load(folder), 'train')) == 11


def test_a_validation_file_of_images_without_objects_is_read(own):
    folder, _ = own
    content = json.loads((folder / 'all.json').read_text())
    (folder / 'val.json').write_text(
        json.dumps({**content, 'images': content['images'][:2], 'annotations': []})
    )
    (folder / 'all.json').rename(folder / 'train.json')
    dataset = load(folder)
    assert [len(example.rles) for example in read_all(dataset, 'val')] == [0, 0]


def test_a_file_in_another_encoding_is_to_be_saved_as_utf_8(own):
    folder, _ = own
    text = (folder / 'all.json').read_text().replace('nucleus', 'Drüse')
    (folder / 'all.json').write_bytes(text.encode('latin-1'))
    message = error_of(lambda: load(folder))
    assert 'all.json is not in UTF-8' in message and 'save it as UTF-8' in message
    (folder / 'all.json').write_bytes('\ufeff'.encode() + text.encode())
    assert 'Drüse' in load(folder).class_names
