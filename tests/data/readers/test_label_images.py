"""Images with a label image each: what is read, classes from the CSV, divisions, damage."""

import os
import shutil
import unicodedata

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gan_mrcnn.data import readers
from gan_mrcnn.data.readers import label_images, options
from tests.data import layouts, round_trip
from tests.data.readers import test_images
from tests.data.round_trip import error_of, read_all


@pytest.fixture
def cells(tmp_path):
    """A folder with images and label images of every kind, each object with its class."""
    folder = tmp_path / 'cells'
    return folder, layouts.write_label_images(folder)


def load(folder, **chosen):
    return readers.load_dataset('label_images', str(folder), options.Options(**chosen))


def names(dataset, split):
    return [item.file_name for item in dataset.items(split)]


@pytest.mark.parametrize('classes', [True, False])
def test_what_is_read_back_is_what_was_put_in(classes, tmp_path):
    ground_truths = layouts.write_label_images(tmp_path / 'cells', classes)
    dataset = load(tmp_path / 'cells', share=0.7)
    assert dataset.class_names == (('gland', 'vessel') if classes else ('object',))
    seen = []
    for split in ('train', 'val'):
        wanted = [ground_truths[name] for name in names(dataset, split)]
        round_trip.check(dataset, split, wanted, tmp_path / 'cache')
        seen += names(dataset, split)
    assert sorted(seen) == sorted(ground_truths)


@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    st.integers(1, 14).flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from([0, 0, 1, 2, 300, 65535]), min_size=width, max_size=width),
            min_size=1,
            max_size=14,
        )
    )
)
def test_a_label_image_comes_back_through_the_records_unchanged(tmp_path_factory, rows):
    labels = np.array(rows, np.uint16)
    folder = tmp_path_factory.mktemp('labels')
    for name in ('images', 'labels'):
        (folder / name).mkdir()
    for stem in 'ab':
        Image.fromarray(np.zeros(labels.shape, np.uint8)).save(folder / f'images/{stem}.png')
        cv2.imwrite(str(folder / f'labels/{stem}.png'), labels)
    pixels = np.zeros((*labels.shape, 3), np.uint8)
    numbers = [number for number in np.unique(labels) if number]
    objects = [layouts.Object('object', labels == number) for number in numbers]
    dataset = load(folder, objects='numbers')
    (name,) = names(dataset, 'val')
    gt = layouts.GroundTruth(name, pixels, objects)
    round_trip.check(dataset, 'val', [gt], folder / 'cache')


def move_into_splits(folder, ground_truths):
    parts = {'train': ['a.jpg', 'b.png', 'c.tif'], 'val': ['d.png'], 'test': ['f.bmp']}
    for split, inside in parts.items():
        for kind in ('images', 'labels'):
            (folder / kind / split).mkdir()
            for name in inside:
                (path,) = (folder / kind).glob(f'{name[0]}.*')
                path.rename(folder / kind / split / path.name)
    for path in [*folder.glob('*/e*'), *folder.glob('*/deep/*')]:
        path.unlink()
    (folder / 'classes.csv').unlink()
    return parts


def test_folders_train_and_val_are_the_splits(cells):
    folder, ground_truths = cells
    parts = move_into_splits(folder, ground_truths)
    dataset = load(folder)
    assert dataset.splits == ('train', 'val', 'test')
    for split, inside in parts.items():
        assert names(dataset, split) == [f'{split}/{name}' for name in inside]
    again = load(folder, share=0.5)
    assert len(names(again, 'train')) == len(names(again, 'val')) == 2
    assert names(again, 'test') == ['test/f.bmp']
    assert '--split' in error_of(lambda: load(folder, split_seed=3))


def test_a_test_folder_does_not_need_the_others(cells):
    folder, ground_truths = cells
    parts = move_into_splits(folder, ground_truths)
    shutil.rmtree(folder / 'images/val')
    dataset = load(folder, share=0.7)
    assert dataset.splits == ('train', 'val', 'test')
    held_out = names(dataset, 'val')
    assert len(held_out) == 1 and len(names(dataset, 'train')) == 2
    together = sorted(names(dataset, 'train') + held_out)
    assert together == [f'train/{name}' for name in parts['train']]
    shutil.rmtree(folder / 'images/train')
    # As evaluate.py asks for it with what the run had.
    alone = load(folder, share=0.7, group_by='patient')
    assert alone.splits == ('test',) and names(alone, 'test') == ['test/f.bmp']


def test_images_of_a_patient_stay_together(cells):
    folder, ground_truths = cells
    patient = {name: f'P{i % 3}' for i, name in enumerate(ground_truths)}
    lines = ['file;patient;age', *(f'{name};{who};7' for name, who in patient.items())]
    # As a spreadsheet writes it: semicolons, a byte order mark, other line ends.
    (folder / 'pictures.csv').write_bytes('\ufeff'.encode() + '\r\n'.join(lines).encode())
    for seed in range(4):
        dataset = load(folder, group_by='patient', share=0.6, split_seed=seed)
        sides = [{patient[name] for name in names(dataset, split)} for split in ('train', 'val')]
        assert not sides[0] & sides[1] and sides[0] | sides[1] == {'P0', 'P1', 'P2'}
    message = error_of(lambda: load(folder, group_by='scene'))
    assert 'pictures.csv' in message and "'scene'" in message
    (folder / 'pictures.csv').write_text('\n'.join(lines[:-1]))
    assert 'does not give the patient of' in error_of(lambda: load(folder, group_by='patient'))
    (folder / 'pictures.csv').unlink()
    assert 'pictures.csv' in error_of(lambda: load(folder, group_by='patient'))


def test_fingerprint_follows_every_file(cells):
    folder, _ = cells
    prints = {load(folder).fingerprint('train')}
    path = folder / 'labels/c.bmp'
    content = bytearray(path.read_bytes())
    # A BMP keeps its size when a pixel changes.
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    prints.add(load(folder).fingerprint('train'))
    text = (folder / 'classes.csv').read_text()
    (folder / 'classes.csv').write_text(text.replace('b.png,1,gland', 'b.png,1,vessel'))
    prints.add(load(folder).fingerprint('train'))
    assert len(prints) == 3
    assert load(folder).fingerprint('train') in prints


def test_a_wrong_folder_is_described(tmp_path):
    for folder in (tmp_path, tmp_path / 'nosuch'):
        message = error_of(lambda folder=folder: load(folder))
        assert str(folder) in message and 'images/' in message and 'labels/' in message


def test_options_of_other_data_sets_are_refused(cells):
    message = error_of(lambda: load(cells[0], annotations=('a.json',)))
    assert '--annotations is not for label_images' in message


def edit_csv(old, new):
    def damage(folder):
        path = folder / 'classes.csv'
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return damage


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def label_image(array, name='labels/b.tif'):
    return lambda folder: Image.fromarray(array).save(folder / name)


FRAME = {
    'two images of a name': (write('images/a.png', b'x'), 'a.jpg'),
    'two label images of a name': (write('labels/a.bmp', b'x'), 'a.bmp'),
    'empty csv': (write('classes.csv', b''), 'classes.csv cannot be read'),
    'csv of another encoding': (
        write('classes.csv', b'file,object,class\na.jpg,1,Dr\xfcse'),
        'classes.csv is not in UTF-8 (line 2 has the byte 0xfc); save it as UTF-8',
    ),
    'column missing': (edit_csv('object', 'number'), "has no column 'object'"),
    'cells missing': (edit_csv('a.jpg,1,gland', 'a.jpg,1'), 'line 2: 2 cells'),
    'number a word': (
        edit_csv('a.jpg,1,gland', 'a.jpg,one,gland'),
        "line 2: 'one' is not an object number",
    ),
    'number zero': (
        edit_csv('a.jpg,1,gland', 'a.jpg,0,gland'),
        "line 2: '0' is not an object number",
    ),
    'class empty': (edit_csv('a.jpg,1,gland', 'a.jpg,1,'), 'class of object 1 is empty'),
    'no such image': (edit_csv('a.jpg,1', 'z.jpg,1'), 'no image z.jpg'),
    'two classes': (edit_csv('a.jpg,2,vessel', 'a.jpg,1,vessel'), 'has another class above'),
}


@pytest.mark.parametrize('case', FRAME)
def test_a_damaged_frame_is_named(cells, case):
    damage, said = FRAME[case]
    damage(cells[0])
    message = error_of(lambda: load(cells[0]))
    assert str(cells[0]) in message and said in message


PICTURE = {
    'label image missing': (lambda f: (f / 'labels/b.tif').unlink(), 'labels/b.png: is missing'),
    'label image as jpeg': (
        lambda f: (f / 'labels/b.tif').rename(f / 'labels/b.jpg'),
        'labels/b.png: is missing',
    ),
    'label image of another size': (
        label_image(np.ones((20, 30), np.uint8)),
        'images/b.png is 48x32, but its annotations are for 30x20',
    ),
    'label image in colours': (
        label_image(layouts.smooth(1)),
        'b.tif has 3 channels',
    ),
    'fractions': (label_image(np.full((32, 48), 0.5, np.float32)), 'b.tif holds fractions'),
    'negative numbers': (label_image(np.full((32, 48), -1, np.int32)), 'negative numbers'),
    'black and white': (
        lambda f: [
            (f / 'classes.csv').unlink(),
            label_image(np.where(layouts.numbered(np.uint8)[2][2], 255, 0).astype(np.uint8))(f),
        ],
        'b.tif is a black and white mask of 2 pieces',
    ),
    'cut short': (
        lambda f: (f / 'labels/b.tif').write_bytes((f / 'labels/b.tif').read_bytes()[:60]),
        'b.tif cannot be read',
    ),
    'object without a class': (edit_csv('b.png,1,gland\n', ''), 'an object 1, of which classes'),
    'class of no object': (edit_csv('b.png,1,gland', 'b.png,9,gland'), 'has no object 9'),
    'image cut short': (
        lambda f: (f / 'images/b.png').write_bytes((f / 'images/b.png').read_bytes()[:-40]),
        'images/b.png cannot be read',
    ),
    'image without a byte': (write('images/b.png', b''), 'images/b.png cannot be read'),
}


@pytest.mark.filterwarnings('ignore:Corrupt EXIF data')
@pytest.mark.parametrize('case', PICTURE)
def test_a_damaged_image_is_named_and_can_be_skipped(cells, case):
    folder, _ = cells
    damage, said = PICTURE[case]
    damage(folder)
    dataset = load(folder)
    split = 'train' if 'b.png' in names(dataset, 'train') else 'val'
    message = error_of(lambda: read_all(dataset, split))
    assert str(folder) in message and said in message and '--skip_bad' in message
    left = [example.file_name for example in dataset.examples(split, skip_bad=True)]
    assert left == [name for name in names(dataset, split) if name != 'b.png']


# One mask of several pieces, however it is stored.


def masks(folder, encode, suffix='png'):
    """Images of which each has a mask of two squares that `encode` turns into an image."""
    for k in range(4):
        mask = np.zeros((20, 30), bool)
        mask[2:6, 3:9] = mask[10:18, 12 + k : 20 + k] = True
        for name in ('images', 'labels'):
            (folder / name).mkdir(parents=True, exist_ok=True)
        image = np.full((20, 30, 3), 50 * k, np.uint8)
        Image.fromarray(image).save(folder / f'images/{k}.png')
        encode(mask).save(folder / f'labels/{k}.{suffix}')


ALL_MASKS = {**test_images.MASKS, 'floats': lambda mask: Image.fromarray(mask.astype(np.float32))}


@pytest.mark.parametrize('encoding', ALL_MASKS)
def test_a_mask_of_several_pieces_has_the_same_answer_in_every_encoding(encoding, tmp_path):
    masks(tmp_path, ALL_MASKS[encoding], 'tif')
    message = error_of(lambda: read_all(load(tmp_path)))
    assert 'is a black and white mask of 2 pieces' in message
    assert '--objects components' in message and '--objects numbers' in message
    for objects, areas in (('components', [24, 64]), ('numbers', [88])):
        for example in read_all(load(tmp_path, objects=objects)):
            assert sorted(example.decode_masks().sum((1, 2)).tolist()) == areas
            assert example.classes.tolist() == [1] * len(areas)


def test_a_mask_of_one_piece_is_an_object_in_any_case(tmp_path):
    masks(tmp_path, lambda mask: Image.fromarray(np.ones_like(mask, np.uint8) * 255))
    for objects in ('', 'numbers', 'components'):
        assert [len(e.rles) for e in read_all(load(tmp_path, objects=objects))] == [1] * 3


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    st.lists(
        st.lists(st.sampled_from([0, 0, 1, 2, 300]), min_size=9, max_size=9),
        min_size=9,
        max_size=9,
    )
)
def test_components_are_pieces_of_one_number_that_touch(rows):
    """Against a flood by hand: eight neighbours, and never across two numbers."""
    labels = np.array(rows)
    left = {(y, x) for y in range(9) for x in range(9) if labels[y, x]}
    wanted = set()
    while left:
        piece, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            piece.add((y, x))
            for place in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if place in left and labels[place] == labels[y, x]:
                    left.discard(place)
                    edge.append(place)
        wanted.add(frozenset(piece))
    found = label_images._components(labels)
    assert found.max() == len(wanted) and (found > 0).tolist() == (labels > 0).tolist()
    numbers = range(1, found.max() + 1)
    assert {frozenset(map(tuple, np.argwhere(found == n).tolist())) for n in numbers} == wanted


def test_records_of_another_answer_are_others(tmp_path):
    masks(tmp_path, lambda mask: Image.fromarray(mask.astype(np.uint8)))
    prints = {load(tmp_path, objects=o).fingerprint('train') for o in ('', 'numbers', 'components')}
    assert len(prints) == 3


def test_classes_by_number_do_not_go_with_components(cells):
    message = error_of(lambda: load(cells[0], objects='components'))
    assert 'classes.csv' in message and '--objects components' in message
    assert '--objects pieces is unknown' in error_of(lambda: load(cells[0], objects='pieces'))


# Names.


@pytest.mark.parametrize('change', [str.upper, str.capitalize])
def test_suffixes_are_read_in_any_case(cells, tmp_path, change):
    folder, ground_truths = cells
    for path in [*folder.glob('images/*.*'), *folder.glob('labels/*.*')]:
        path.rename(path.with_suffix(change(path.suffix)))
    dataset = load(folder, share=0.7)
    assert not list(dataset.problems('train')) and not list(dataset.problems('val'))
    found = {len(read_all(dataset, split)) for split in ('train', 'val')}
    assert sum(found) == len(ground_truths)


def test_two_label_images_that_differ_in_the_case_of_the_suffix_are_named(cells):
    folder, _ = cells
    shutil.copy(folder / 'labels/d.png', folder / 'labels/d.PNG')
    assert 'both exist' in error_of(lambda: load(folder))


def test_accents_as_characters_of_their_own_are_the_same_name(cells):
    folder, _ = cells
    (folder / 'images/a.jpg').rename(folder / 'images/ü.jpg')
    (folder / 'labels/a.png').rename(folder / unicodedata.normalize('NFD', 'labels/ü.png'))
    edit_csv('a.jpg', unicodedata.normalize('NFD', 'ü.jpg'))(folder)
    text = (folder / 'classes.csv').read_text()
    (folder / 'classes.csv').write_text(text.replace('a.jpg', 'ü.jpg'))
    dataset = load(folder)
    assert [item.labels_path.is_file() for item in dataset.items('train')] == [True] * 7
    assert len(read_all(dataset)) == 7


def test_a_name_with_bytes_that_are_no_text_is_read_and_printed_with_escapes(tmp_path):
    folder = tmp_path / 'set'
    ground_truths = layouts.write_label_images(folder, classes=False)
    raw = os.fsdecode(b'Dr\xfcse')
    (folder / 'images/f.bmp').rename(folder / f'images/{raw}.bmp')
    (folder / 'labels/f.png').rename(folder / f'labels/{raw}.png')
    name = 'Dr\\udcfcse.bmp'
    ground_truths[name] = ground_truths.pop('f.bmp')._replace(file_name=name)
    dataset = load(folder, share=0.7)
    for split in ('train', 'val'):
        wanted = [ground_truths[name] for name in names(dataset, split)]
        round_trip.check(dataset, split, wanted, tmp_path / 'cache')
    assert name in names(dataset, 'train') + names(dataset, 'val')


def test_hidden_files_are_no_images(cells):
    folder, ground_truths = cells
    (folder / 'images/.ipynb_checkpoints').mkdir()
    shutil.copy(folder / 'images/a.jpg', folder / 'images/.ipynb_checkpoints/a-checkpoint.jpg')
    (folder / 'images/._a.jpg').write_bytes(b'x')
    (folder / 'labels/._a.png').write_bytes(b'x')
    dataset = load(folder)
    found = names(dataset, 'train') + names(dataset, 'val')
    assert sorted(found) == sorted(ground_truths)


def test_csv_files_may_have_backslashes_and_numbers_with_a_point(cells):
    folder, _ = cells
    before = load(folder)
    edit_csv('deep/g.png,1,', 'deep\\g.png,1.0,')(folder)
    after = load(folder)
    for split in ('train', 'val'):
        assert after.items(split) == before.items(split)
