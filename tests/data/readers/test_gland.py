"""The reader of the gland contest: files, labels, grades, splits and what it says of bad files."""

import pathlib

import cv2
import numpy as np
import pytest
from absl import logging

from gan_mrcnn.data import readers
from gan_mrcnn.data.readers import base, gland, images
from gan_mrcnn.utils.errors import UserError
from tests.data import layouts

PARTS = {'train': 85, 'testA': 60, 'testB': 20}
NAMES = [f'{part}_{k}' for part, count in PARTS.items() for k in range(1, count + 1)]


def grade_text(line_end, rows=None):
    """A `Grade.csv` of 20 patients; those with an even number are malignant."""
    rows = rows or [
        f'{name},{i % 20 + 1}, {("benign", "malignant")[i % 2]}, whatever'
        for i, name in enumerate(NAMES)
    ]
    return line_end.join(['name,patient ID, grade (GlaS), grade (Sirinukunwattana)', *rows])


@pytest.fixture
def folder(tmp_path):
    """A small folder of the contest's form in which testB is whole: 20 images of 24 x 32."""
    folder = tmp_path / 'glas'
    folder.mkdir()
    (folder / 'Grade.csv').write_bytes(grade_text('\r').encode())
    rng = np.random.default_rng(0)
    for k in range(1, 21):
        image = rng.integers(0, 256, (24, 32, 3), np.uint8)
        labels = np.zeros((24, 32), np.uint8)
        labels[2:9, 3:12], labels[12:20, 15:30] = 1, 5
        cv2.imwrite(str(folder / f'testB_{k}.bmp'), image)
        cv2.imwrite(str(folder / f'testB_{k}_anno.bmp'), labels)
    return folder


def read_all(folder, split='testB', **options):
    return list(gland.Glands(str(folder)).examples(split, **options))


def error_of(action):
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert '\n' not in message
    return message


def test_an_example_is_what_is_in_the_files(folder):
    examples = read_all(folder)
    assert [e.file_name for e in examples] == [f'testB_{k}.bmp' for k in range(1, 21)]
    assert [e.image_id for e in examples] == list(range(2001, 2021))
    first = examples[0]
    bgr = cv2.imread(str(folder / 'testB_1.bmp'))
    np.testing.assert_array_equal(first.image, bgr[..., ::-1])
    assert first.decode_masks().shape == (2, 24, 32)
    assert first.decode_masks().sum((1, 2)).tolist() == [7 * 9, 8 * 15]
    assert first.decode_masks()[1, 12:20, 15:30].all()
    assert first.classes.tolist() == [1, 1] and not first.is_crowd.any()


def test_a_gland_in_pieces_stays_one_object(folder):
    labels = np.zeros((24, 32), np.uint8)
    labels[0:3, 0:3] = labels[10:13, 20:23] = 7
    cv2.imwrite(str(folder / 'testB_3_anno.bmp'), labels)
    assert read_all(folder)[2].decode_masks().sum((1, 2)).tolist() == [18]


def test_labels_of_16_bits(folder):
    labels = np.zeros((24, 32), np.uint16)
    labels[0:3, 0:3], labels[5:9, 5:9] = 256, 512
    (folder / 'testB_3_anno.bmp').unlink()
    cv2.imwrite(str(folder / 'testB_3_anno.png'), labels)
    assert read_all(folder)[2].decode_masks().sum((1, 2)).tolist() == [9, 16]


def test_of_a_palette_the_index_counts(tmp_path):
    from PIL import Image

    indices = np.zeros((6, 8), np.uint8)
    indices[:2], indices[4:] = 1, 2
    image = Image.fromarray(indices, 'L').convert('P')
    image.putdata(indices.ravel().tolist())
    # The glands' colours are equal in red, and the background is not black.
    image.putpalette([10, 20, 30, 200, 0, 0, 200, 0, 90] + [0] * 759)
    for suffix in ('bmp', 'png'):
        image.save(tmp_path / f'labels.{suffix}')
        np.testing.assert_array_equal(images.read_labels(tmp_path / f'labels.{suffix}'), indices)


@pytest.mark.parametrize('line_end', ['\r', '\n', '\r\n'])
@pytest.mark.parametrize('last', ['', 'line end'])
def test_grades_with_any_line_end(tmp_path, line_end, last):
    path = tmp_path / 'Grade.csv'
    path.write_bytes((grade_text(line_end) + (line_end if last else '')).encode())
    cases = gland.read_grades(path)
    assert [case.name for case in cases] == NAMES
    assert ('train_2', 2, 'malignant') in cases and ('train_21', 1, 'benign') in cases


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (lambda rows: rows[:-1], '0 rows of testB_20'),
        (lambda rows: [*rows, 'train_86,1, benign, x'], '1 rows of train_86'),
        (lambda rows: ['train_1,one, benign, x', *rows[1:]], "'one'"),
        (lambda rows: ['train_1,1, fine, x', *rows[1:]], "'fine'"),
        (lambda rows: ['train_1', *rows[1:]], "'train_1'"),
    ],
)
def test_wrong_grades_are_named(tmp_path, change, said):
    path = tmp_path / 'Grade.csv'
    path.write_text(grade_text('\n', change(grade_text('\n').split('\n')[1:])))
    message = error_of(lambda: gland.read_grades(path))
    assert str(path) in message and said in message


def cut_short(folder):
    path = folder / 'testB_4_anno.bmp'
    path.write_bytes(path.read_bytes()[:-300])


def cut_image_short(folder):
    path = folder / 'testB_4.bmp'
    path.write_bytes(path.read_bytes()[:-300])


BAD = {
    'label image missing': (lambda f: (f / 'testB_4_anno.bmp').unlink(), 'testB_4_anno'),
    'image missing': (lambda f: (f / 'testB_4.bmp').unlink(), 'testB_4.bmp'),
    'label image cut short': (cut_short, 'testB_4_anno.bmp cannot be read'),
    'image cut short': (cut_image_short, 'testB_4.bmp cannot be read'),
    'not an image': (
        lambda f: (f / 'testB_4_anno.bmp').write_text('x' * 99),
        'testB_4_anno.bmp cannot be read',
    ),
    'empty file': (
        lambda f: (f / 'testB_4_anno.bmp').write_text(''),
        'testB_4_anno.bmp cannot be read',
    ),
    'another size': (
        lambda f: cv2.imwrite(str(f / 'testB_4_anno.bmp'), np.ones((32, 24), np.uint8)),
        'testB_4_anno.bmp is 24x32, but its image is 32x24',
    ),
    'no object': (
        lambda f: cv2.imwrite(str(f / 'testB_4_anno.bmp'), np.zeros((24, 32), np.uint8)),
        'testB_4_anno.bmp has no gland',
    ),
    'in colours': (
        lambda f: cv2.imwrite(str(f / 'testB_4_anno.bmp'), layouts.smooth(1)[:24, :32]),
        'testB_4_anno.bmp has 3 channels',
    ),
}


@pytest.mark.parametrize('case', BAD)
def test_a_bad_file_is_named_and_the_choice_is_the_users(folder, case, monkeypatch):
    damage, said = BAD[case]
    damage(folder)
    message = error_of(lambda: read_all(folder))
    assert said in message and str(folder) in message and '--skip_bad' in message

    warnings = []
    monkeypatch.setattr(logging, 'warning', lambda text, *args: warnings.append(text % args))
    examples = read_all(folder, skip_bad=True)
    assert [e.image_id for e in examples] == [2000 + k for k in range(1, 21) if k != 4]
    assert len(warnings) == 1 and said in warnings[0]


def test_an_incomplete_folder_is_noticed_before_anything_is_read(folder):
    (folder / 'testB_1.bmp').write_text('not an image')
    (folder / 'testB_19.bmp').unlink()
    (folder / 'testB_20_anno.bmp').unlink()
    dataset = gland.Glands(str(folder))
    message = error_of(lambda: dataset.stop_at_problems('testB'))
    assert 'testB_19.bmp' in message and '1 more' in message and '--skip_bad' in message


def test_a_wrong_data_dir_never_falls_back(tmp_path, folder, monkeypatch):
    # Neither to the default place nor to the demo set.
    work = tmp_path / 'work'
    (work / 'data').mkdir(parents=True)
    (work / 'data/gland').symlink_to(folder)
    monkeypatch.chdir(work)
    for wrong in (tmp_path / 'nothing', tmp_path, folder / 'Grade.csv'):
        message = error_of(lambda wrong=wrong: readers.load_dataset('gland', str(wrong)))
        assert str(wrong) in message
        assert 'Grade.csv' in message and 'train_1.bmp' in message and 'train_1_anno' in message
    # The folder above the right one is a likely slip.
    assert str(folder) in error_of(lambda: readers.load_dataset('gland', str(tmp_path)))
    error_of(lambda: readers.load_dataset('gland', ''))


def test_grades_without_images_are_a_wrong_folder(tmp_path):
    (tmp_path / 'Grade.csv').write_text(grade_text('\n'))
    assert 'none of the images' in error_of(lambda: readers.load_dataset('gland', str(tmp_path)))


def test_without_data_dir_the_default_place_then_the_demo_set(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo = readers.load_dataset('gland')
    assert demo.is_demo and '--data_dir' in demo.notice and 'DEMO' in demo.notice
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/gland').symlink_to(folder)
    real = readers.load_dataset('gland')
    assert not real.is_demo and real.notice == ''


def test_an_unknown_data_set_gets_the_valid_names():
    message = error_of(lambda: readers.load_dataset('glands'))
    assert '--dataset glands' in message and 'gland' in message.split('there are')[1]


def test_fingerprint_follows_content_and_split(folder):
    before = gland.Glands(str(folder))
    first = before.fingerprint('testB')
    assert first == gland.Glands(str(folder)).fingerprint('testB')
    assert len({before.fingerprint(split) for split in before.splits}) == len(before.splits)
    path = folder / 'testB_7_anno.bmp'
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert gland.Glands(str(folder)).fingerprint('testB') != first


def test_validation_split_is_by_patient_and_of_both_grades(tmp_path):
    path = tmp_path / 'Grade.csv'
    rng = np.random.default_rng(3)
    for _ in range(5):
        rows = [
            f'{name},{rng.integers(1, 30)}, {rng.choice(["benign", "malignant"])}, x'
            for name in NAMES
        ]
        path.write_text(grade_text('\n', rows))
        cases = [case for case in gland.read_grades(path) if case.name.startswith('train')]
        patients = gland.validation_patients(cases)
        inside = [case.grade for case in cases if case.patient in patients]
        for grade in ('benign', 'malignant'):
            assert 0 < inside.count(grade) <= sum(case.grade == grade for case in cases) / 6


def test_the_contest_as_it_is(glas_dir):
    """Counts of the paper and the split that the docstring tells of, counted anew."""
    dataset = gland.Glands(str(glas_dir))
    counts = {split: dataset.num_examples(split) for split in dataset.splits}
    assert counts == {
        'train': 71, 'val': 14, 'trainval': 85, 'test': 80, 'testA': 60, 'testB': 20
    }  # fmt: skip
    lines = (glas_dir / 'Grade.csv').read_bytes().split(b'\r')[1:]
    fields = [[field.strip().decode() for field in line.split(b',')] for line in lines]
    patient = {name: int(number) for name, number, *_ in fields}
    grade = {name: text for name, _, text, _ in fields}
    names = {split: [c.name for c in dataset._splits[split]] for split in dataset.splits}
    assert sorted(names['train'] + names['val']) == sorted(names['trainval'])
    sides = {split: {patient[name] for name in names[split]} for split in names}
    assert sides['val'] == {4, 8, 11, 13, 14, 15, 16}
    assert not sides['val'] & sides['train'] and len(sides['train']) == 8
    assert sum(grade[name] == 'malignant' for name in names['val']) == 8
    assert sum(grade[name] == 'malignant' for name in names['train']) == 40
    assert len(sides['trainval'] & sides['test']) == 11
    assert sides['test'] - sides['trainval'] == {12}
    assert all(dataset.grade(name) == grade[name] for name in grade)
    assert all(dataset.patients(split) == sides[split] for split in sides)


def test_the_glands_of_the_contest(glas_dir):
    """Every label image, against OpenCV's reading and the known number of glands."""
    dataset = gland.Glands(str(glas_dir))
    total = 0
    for name in NAMES:
        labels = images.read_labels(glas_dir / f'{name}_anno.png')
        other = cv2.imread(str(glas_dir / f'{name}_anno.png'), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(labels, other)
        total += len(np.unique(other)) - 1
    assert total == 1530
    example = next(dataset.examples('val'))
    other = cv2.imread(str(glas_dir / f'{pathlib.Path(example.file_name).stem}_anno.png'), -1)
    areas = np.unique(other, return_counts=True)[1][1:]
    np.testing.assert_array_equal(example.decode_masks().sum((1, 2)), areas)


def test_bmp_as_shipped_equals_png(glas_dir):
    sample = glas_dir.parent / 'glas_official_sample'
    if not sample.is_dir():
        pytest.skip(f'the four images as shipped are not in {sample}')
    names = sorted(path.stem for path in sample.glob('*.bmp') if 'anno' not in path.stem)
    assert len(names) == 4
    for name in names:
        item = base.Item(gland.image_id(name), f'{name}.bmp')
        shipped = gland.Glands(str(sample)).read(item)
        converted = gland.Glands(str(glas_dir)).read(item)
        assert shipped.image_id == converted.image_id
        np.testing.assert_array_equal(shipped.image, converted.image)
        assert shipped.rles == converted.rles
    assert 'testA_2' in error_of(lambda: list(gland.Glands(str(sample)).examples('testA')))
    (only,) = gland.Glands(str(sample)).examples('testA', skip_bad=True)
    assert only.file_name == 'testA_1.bmp' and only.image_id == 1001


@pytest.mark.parametrize('change', [str.upper, str.capitalize])
def test_suffixes_are_read_in_any_case(folder, change):
    before = gland.Glands(str(folder)).fingerprint('testB')
    for path in folder.glob('testB_*.bmp'):
        path.rename(path.with_suffix(change(path.suffix)))
    dataset = gland.Glands(str(folder))
    assert not list(dataset.problems('testB')) and dataset.fingerprint('testB') == before
    assert [len(example.rles) for example in read_all(folder)] == [2] * 20


def test_a_table_in_another_encoding_is_to_be_saved_as_utf_8(folder):
    (folder / 'Grade.csv').write_bytes((folder / 'Grade.csv').read_bytes() + b'\rDr\xfcse')
    message = error_of(lambda: gland.Glands(str(folder)))
    assert 'Grade.csv is not in UTF-8' in message and 'save it as UTF-8' in message
