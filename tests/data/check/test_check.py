"""What the check counts, which problems it lists, and how it ends."""

import base64
import dataclasses
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from PIL import Image

from gan_mrcnn.data.check import check
from gan_mrcnn.data.check import page as check_page
from gan_mrcnn.data.readers import base
from gan_mrcnn.data.records import records
from gan_mrcnn.utils import run_lengths
from gan_mrcnn.utils.errors import UserError
from tests.data.blocks import Blocks, make_example


class Split(Blocks):
    """Images 0 to 3 to train on, 4 and 5 for validation; `change` is made to what is read."""

    splits = ('train', 'val')

    def __init__(self, change=lambda k, example: example, **options):
        super().__init__(**options)
        self.change = change

    def items(self, split):
        numbers = range(4) if split == 'train' else range(4, 6)
        return [base.Item(100 + k, f'{k}.png') for k in numbers]

    def read(self, item):
        return self.change(item.image_id - 100, super().read(item))


def changed(number, **values):
    """A data set with other values in one image."""
    return Split(
        lambda k, example: dataclasses.replace(example, **values) if k == number else example
    )


def problems_of(dataset):
    report = check.check(dataset)
    return [(split, *problem) for split, problem in report.problems]


def test_a_sound_set_has_no_problem_and_its_objects_are_counted():
    def enlarge(k, example):
        # 200 x 310: the objects of `blocks` with areas times a hundred.
        masks = np.kron(example.decode_masks(), np.ones((1, 10, 10), np.uint8))
        image = np.kron(example.image, np.ones((10, 10, 1), np.uint8))
        return dataclasses.replace(example, image=image, rles=run_lengths.encode_masks(masks))

    report = check.check(Split(enlarge))
    assert report.problems == [] and report.num_errors == 0
    train, val = report.splits['train'], report.splits['val']
    assert (train.num_images, val.num_images) == (4, 2)
    # Two objects and a crowd each: 35 * 100 pixels, and 11 * (10, 11 or 12) * 100.
    assert (train.num_objects, train.num_crowds, train.most_objects) == (8, 4, 2)
    assert (train.small, train.medium, train.large) == (0, 4, 4)
    assert (val.small, val.medium, val.large) == (0, 2, 2)
    # The first object begins in the corner, the second one ends at the lower edge.
    assert train.num_at_border == 8
    assert train.objects_per_class == {1: 4, 2: 4} == train.images_per_class
    assert train.sizes == {(310, 200): 2, (310, 210): 1, (310, 220): 1}


def test_small_is_below_and_medium_from_1024_pixels_on():
    masks = np.zeros((4, 100, 100), np.uint8)
    masks[0, :32, :32] = masks[1, :31, :33] = masks[2, :96, :96] = masks[3, :97, :95] = 1
    example = make_example(0)
    example = dataclasses.replace(
        example,
        image=np.zeros((100, 100, 3), np.uint8),
        rles=run_lengths.encode_masks(masks),
        classes=np.array([1, 1, 2, 2]),
        is_crowd=np.zeros(4, bool),
    )
    report = check.check(Split(lambda k, _: dataclasses.replace(example, image=example.image + k)))
    found = report.splits['val']
    # 1024 and 1023; 9216 and 9215.
    assert (found.small, found.medium, found.large) == (2, 4, 2)


def test_an_unreadable_image_is_an_error_and_the_others_are_still_read():
    report = check.check(Split(bad=(2,)))
    assert [(s, *p) for s, p in report.problems] == [
        ('train', '2.png', '2.png cannot be read', 'error')
    ]
    assert report.splits['train'].num_unreadable == 1 and report.splits['train'].num_objects == 6


def test_what_the_data_set_itself_says_is_said_once():
    class Listed(Split):
        def problems(self, split):
            if split == 'train':
                yield base.Problem('1.png', 'cannot be read', 'error')
                yield base.Problem('train.json', 'annotation 7 has an odd box', 'warning')

    assert problems_of(Listed(bad=(1,))) == [
        ('train', '1.png', 'cannot be read', 'error'),
        ('train', 'train.json', 'annotation 7 has an odd box', 'warning'),
    ]


def test_a_mask_of_another_size_is_an_error():
    rles = run_lengths.encode_masks(np.ones((3, 31, 20), np.uint8))
    (problem,) = problems_of(changed(1, rles=rles))
    assert problem == ('train', '1.png', 'has a mask of 20x31 on 31x21', 'error')


def test_a_class_that_there_is_not_is_an_error():
    (problem,) = problems_of(changed(5, classes=np.array([1, 2, 3], np.int32)))
    assert problem[:2] == ('val', '5.png') and 'class 3' in problem[2] and problem[3] == 'error'


def test_an_object_without_a_pixel_is_a_warning():
    masks = make_example(0).decode_masks()
    masks[1] = 0
    (problem,) = problems_of(changed(0, rles=run_lengths.encode_masks(masks)))
    assert problem[:2] == ('train', '0.png') and problem[3] == 'warning'
    assert 'objects without a pixel (1)' in problem[2]


def test_the_same_image_in_two_splits_is_an_error_and_twice_in_one_a_warning():
    def same_pixels(k, example):
        return dataclasses.replace(make_example({4: 1, 3: 0}.get(k, k)), file_name=f'{k}.png')

    first, second = problems_of(Split(same_pixels))
    assert first == ('train', '3.png', 'is the same image as 0.png', 'warning')
    assert second[:2] == ('val', '4.png') and second[3] == 'error'
    assert 'same image as 1.png of train' in second[2]


def test_ids_that_are_there_twice_are_an_error():
    class Twice(Split):
        def items(self, split):
            items = super().items(split)
            return [dataclasses.replace(items[0], image_id=items[1].image_id), *items[1:]]

    found = [problem for problem in problems_of(Twice()) if problem[1].startswith('image id')]
    assert [(p[1], p[3]) for p in found] == [('image id 101', 'error'), ('image id 105', 'error')]
    assert 'is in train 2 times' in found[0][2]


def test_files_of_two_splits_may_each_count_from_one():
    class Alike(Split):
        def items(self, split):
            items = super().items(split)
            return [dataclasses.replace(item, image_id=100 + i) for i, item in enumerate(items)]

    assert [problem for problem in problems_of(Alike()) if 'image id' in problem[1]] == []


def test_classes_that_are_in_one_split_alone_are_named():
    def one_class(in_train, in_val):
        classes = {True: in_train, False: in_val}
        return lambda k, example: dataclasses.replace(
            example, classes=np.full(3, classes[k < 4], np.int32)
        )

    only_val, only_train = sorted(problems_of(Split(one_class(1, 2))), key=lambda p: p[2])[::-1]
    found = {problem[1]: problem[2:] for problem in (only_val, only_train)}
    assert found['class gland'] == ('is in train alone: its AP will not be measured', 'warning')
    assert 'not in train: it cannot be learnt' in found['class other'][0]
    (nowhere,) = problems_of(Split(one_class(1, 1)))
    assert nowhere[1:3] == ('class other', 'has no object in any split')


def test_nothing_to_learn_is_an_error():
    only_crowds = lambda k, example: dataclasses.replace(  # noqa: E731
        example, is_crowd=np.full(3, k < 4)
    )
    found = problems_of(Split(only_crowds))
    assert ('', 'train', 'has no object to learn', 'error') in found


def test_several_processes_find_what_one_finds():
    dataset = Blocks(40, bad=(7,))
    alone, together = (check.check(dataset, num_processes=count) for count in (1, 2))
    assert alone.problems == together.problems and alone.splits == together.splits
    assert alone.num_errors == 1


def test_a_warning_about_an_image_is_listed():
    found = problems_of(changed(1, warning='is almost black'))
    assert found == [('train', '1.png', 'is almost black', 'warning')]


class Hinted(Split):
    crowds_hint = 'they may be objects'


def test_groups_that_may_be_objects_are_counted_with_what_to_do():
    """Of each image's three annotations one is a group."""
    text = (
        '{} of {} are groups (iscrowd 1), which are neither learnt nor scored; they may be objects'
    )
    assert problems_of(Hinted()) == [
        ('train', 'annotations', text.format(4, 12), 'warning'),
        ('val', 'annotations', text.format(2, 6), 'warning'),
    ]
    assert problems_of(Split()) == []
    train, val = record_set([1, 2], [3, 1]), record_set([3], [1, 1])
    train = dataclasses.replace(train, objects_per_image=[2, 2], num_crowds=5)
    (warning,) = check.quick(Hinted(), {'train': train, 'val': val})
    assert warning == f'train: annotations: {text.format(5, 9)}'
    assert check.quick(Split(), {'train': train, 'val': val}) == []


def test_images_with_more_objects_than_a_run_goes_as_far_as_are_counted():
    limits = check.Limits(learnt=1, found=2, settings='some.yaml')
    report = check.check(Split(), limits=limits)
    # Of the validation images nothing is learnt.
    ((split, problem),) = report.problems
    assert split == 'train' and problem.text.startswith('4 have more than 1 objects, up to 2: ')
    assert '--max_instances' in problem.text and '(1 by some.yaml)' in problem.text
    limits = limits._replace(learnt=2, found=1)
    report = check.check(Split(), limits=limits)
    assert [split for split, _ in report.problems] == ['train', 'val']
    assert all('max_num_detections' in problem.text for _, problem in report.problems)
    assert check.check(Split(), limits=limits._replace(found=2)).problems == []


@pytest.mark.parametrize('kind', ['negatives', 'groups'])
def test_a_validation_part_without_an_object_is_a_warning_before_it_is_trained_on(kind):
    def change(k, example):
        if k < 4:
            return example
        if kind == 'groups':
            return dataclasses.replace(example, is_crowd=np.ones(3, bool))
        nothing = np.zeros(0, np.int32)
        return dataclasses.replace(example, rles=[], classes=nothing, is_crowd=nothing > 0)

    report = check.check(Split(change))
    assert report.num_errors == 0
    said = [problem.text for _, problem in report.problems if problem.file_name == 'val']
    assert len(said) == 1 and 'has no object: its AP is not defined' in said[0]
    empty = record_set([3], [0, 0])
    warnings = check.quick(Split(change), {'train': record_set([1], [1, 1]), 'val': empty})
    assert [w for w in warnings if w.startswith('val: ')] == [f'val: {said[0]}']


def test_equal_problems_are_one_line_with_their_number():
    def report_of(*problems):
        problems = [('train', base.Problem(*problem, 'warning')) for problem in problems]
        return check_page.Report(Split(), {}, problems)

    boxes = [
        (f'a.json: annotation {k} of im_{k}.png', f'has a box of 0x{k} pixels; that of its mask')
        for k in range(1, 30)
    ]
    report = report_of(*boxes, ('a.json: annotation 99 of b.png', 'has no segmentation'))
    (_, first), (_, second) = check_page.problem_lines(report, 2)
    assert first == (
        'train: a.json: annotation 1 of im_1.png: has a box of 0x1 pixels; that of its mask (and '
        '28 more like it: annotation 2 of im_2.png, annotation 3 of im_3.png, ...)'
    )
    assert second == 'train: a.json: annotation 99 of b.png: has no segmentation'
    # A page names all.
    assert 'annotation 29 of im_29.png' in check_page.problem_lines(report)[0][1]
    assert '0 errors, 30 warnings' in check_page.verdict(report)
    # Readers name the file by its whole path, and label images by their own suffix.
    missing = [(f'{k}.jpg', f'/data/labels/{k}_anno.png is missing') for k in (7, 8, 19)]
    ((_, line),) = check_page.problem_lines(report_of(*missing))
    assert line == (
        'train: 7.jpg: /data/labels/7_anno.png is missing (and 2 more like it: 8.jpg, 19.jpg)'
    )


@pytest.mark.parametrize(
    'one, other',
    [
        ('has a polygon of 2 points', 'has no segmentation'),
        ('is the same image as c1.png', 'is the same image as d2.png'),
        ('has a mask of class a', 'has a mask of class b'),
    ],
)
def test_problems_that_differ_in_more_than_numbers_are_lines_of_their_own(one, other):
    problems = [
        ('', base.Problem('x.png', one, 'error')),
        ('', base.Problem('y.png', other, 'error')),
    ]
    assert len(check_page.problem_lines(check_page.Report(Split(), {}, problems))) == 2


class Page(HTMLParser):
    """Collects text and images, and complains about tags that are not closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.images = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == 'img':
            self.images.append(dict(attributes)['src'])
        if tag not in ('img', 'meta'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_has_the_images_and_nothing_from_elsewhere(tmp_path):
    def name(k, example):
        return dataclasses.replace(example, file_name=f'<b>{k} & co</b>.png')

    path = tmp_path / 'new' / 'page.html'
    check_page.write(check.check(Split(name, bad=(1,))), str(path))
    page = path.read_text()
    parsed = Page(page)
    assert parsed.open == []
    text = ''.join(parsed.text)
    assert '<b>3 & co</b>.png: 2 objects' in text and '1.png cannot be read' in text
    assert '1 error, 0 warnings: training would go wrong' in text
    assert len(parsed.images) == 5
    for source in parsed.images:
        kind, data = source.split(',')
        assert kind == 'data:image/jpeg;base64'
        # The size of the images: they are smaller than a thumbnail may be.
        assert Image.open(io.BytesIO(base64.b64decode(data))).size[0] == 31
    assert not re.search(r'(src|href)="(?!data:)|url\(|@import|<script', page)


def test_a_thumbnail_of_a_large_image_shows_even_the_smallest_object():
    image = np.full((1024, 2048, 3), 90, np.uint8)
    masks = np.zeros((2, 1024, 2048), np.uint8)
    masks[0, 100:300, 200:600] = 1
    masks[1, 900, 1900] = 1
    example = dataclasses.replace(
        make_example(0),
        image=image,
        rles=run_lengths.encode_masks(masks),
        classes=np.array([1, 1]),
        is_crowd=np.zeros(2, bool),
    )
    jpeg = check._thumbnail(example).jpeg
    thumbnail = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert thumbnail.shape == (240, 480, 3)
    differs = np.abs(thumbnail.astype(int) - 90).max(-1) > 12
    assert differs[40, 100] and differs[208:214, 442:450].any() and not differs[100:200, :400].any()


def record_set(image_ids, objects_per_class):
    return records.RecordSet(
        '', len(image_ids), 0, [1, 1], '', '', image_ids, [], objects_per_class
    )


def test_training_is_told_of_classes_and_stopped_by_what_would_go_wrong():
    train, val = record_set([1, 2], [5, 0]), record_set([3], [1, 4])
    (warning,) = check.quick(Split(), {'train': train, 'val': val})
    assert warning.startswith('class other: is in val, but not in train')
    with pytest.raises(UserError, match='image id 2: is in val 2 times'):
        check.quick(Split(), {'train': train, 'val': record_set([2, 2], [1, 1])})
    with pytest.raises(UserError, match='no object to learn'):
        check.quick(Split(), {'train': record_set([1], [0, 0]), 'val': val})


def test_splits_that_are_made_of_others_may_share_images():
    class Composed(Split):
        splits = ('train', 'val', 'all')
        parts = ('train', 'val')

    whole, val = record_set([1, 2, 3], [5, 5]), record_set([3], [1, 4])
    assert check.quick(Composed(), {'all': whole, 'val': val}) == []


def run(*arguments):
    command = [sys.executable, '-m', 'gan_mrcnn', 'check', *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def folder(tmp_path):
    """Images and label images of one class."""
    for k in range(12):
        rng = np.random.default_rng(k)
        labels = np.zeros((40, 50), np.uint8)
        labels[5:20, 5:20], labels[25:35, 30:45] = 1, 2
        for name in ('images', 'labels'):
            (tmp_path / 'set' / name).mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 256, (40, 50, 3), np.uint8)
        cv2.imwrite(str(tmp_path / 'set/images' / f'{k}.png'), image)
        cv2.imwrite(str(tmp_path / 'set/labels' / f'{k}.png'), labels)
    return tmp_path / 'set'


def test_ctrl_c_ends_the_check_without_a_stack_trace(folder):
    for k in range(12, 60):
        for name in ('images', 'labels'):
            shutil.copy(folder / name / '0.png', folder / name / f'{k}.png')
    process = subprocess.Popen(
        [sys.executable, '-m', 'gan_mrcnn', 'check', '--dataset', 'label_images']
        + ['--data_dir', str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    # The bar begins when the processes are about to start.
    said = process.stderr.read(len('check label_images'))
    os.killpg(process.pid, signal.SIGINT)
    said += process.communicate(timeout=60)[1]
    assert 'Traceback' not in said
    assert process.returncode == 130, said


def test_the_command_ends_with_zero_one_or_two(folder, tmp_path):
    options = ['--dataset', 'label_images', '--data_dir', str(folder)]
    page = tmp_path / 'new' / 'page.html'
    good = run(*options, '--html', str(page))
    assert good.returncode == 0, good.stderr
    assert 'No problems.' in good.stdout and page.read_text().count('<img') == 12
    (folder / 'images/3.png').write_bytes(b'not an image')
    bad = run(*options)
    assert bad.returncode == 1 and 'Traceback' not in bad.stderr
    assert '3.png cannot be read' in bad.stdout and 'training would go wrong' in bad.stdout
    wrong = run('--dataset', 'label_images', '--data_dir', '/nowhere')
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1


def test_a_name_with_bytes_that_are_no_text_is_named_with_escapes(folder, tmp_path):
    raw = os.fsdecode(b'Dr\xfcse.png')
    for name in ('images', 'labels'):
        (folder / name / '3.png').rename(folder / name / raw)
    options = ['--dataset', 'label_images', '--data_dir', str(folder)]
    page = tmp_path / 'page.html'
    good = run(*options, '--html', str(page))
    assert good.returncode == 0, good.stderr
    assert 'Dr\\udcfcse.png: 2 objects' in page.read_text(encoding='utf-8')
    (folder / 'images' / raw).write_bytes(b'not an image')
    # The folder above, too.
    other = folder.with_name(os.fsdecode(b'\xe4'))
    folder.rename(other)
    bad = run(*options[:-1], str(other), '--html', str(page))
    assert bad.returncode == 1 and 'Traceback' not in bad.stderr
    assert 'Dr\\udcfcse.png cannot be read' in bad.stdout
    assert '1 error, 0 warnings' in page.read_text(encoding='utf-8')


def test_a_crowded_image_is_told_with_the_numbers_of_the_settings(folder):
    labels = np.zeros((40, 50), np.uint8)
    labels[::2, ::2] = np.arange(500).reshape(20, 25) % 120 + 1
    cv2.imwrite(str(folder / 'labels/0.png'), labels)
    done = run('--dataset', 'label_images', '--data_dir', str(folder))
    assert done.returncode == 0, done.stderr
    assert '1 have more than 100 objects, up to 120' in done.stdout
    assert done.stdout.count('(100 by own_data.yaml)') == 2
