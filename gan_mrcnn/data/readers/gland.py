# SPDX-License-Identifier: Apache-2.0
"""The gland segmentation contest of MICCAI 2015 (GlaS, Warwick-QU), as its folder is downloaded.

Paper, section 4.6: 85 training and 80 test images of H&E-stained tissue; one class. Every image
(`train_1.bmp`) has a label image (`train_1_anno.bmp`) that holds a number per gland, and
`Grade.csv` the patient and the grade of each. BMP and PNG are read.

Sirinukunwattana et al., Gland Segmentation in Colon Histology Images: The GlaS Challenge Contest
(2017).
"""

import csv
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple, Optional

import numpy as np

from gan_mrcnn.data.readers import base, gland_demo, images, options, text_files
from gan_mrcnn.utils import run_lengths
from gan_mrcnn.utils.errors import UserError

DEFAULT_DIR = 'data/gland'
SUFFIXES = ('.bmp', '.png')
PARTS = {'train': 0, 'testA': 1000, 'testB': 2000}

# Patients of the validation split: the fixed choice that comes closest to a sixth of the training
# images and to their share of benign ones, with both grades. See `validation_patients`.
VALIDATION_SHARE = 1 / 6


class Case(NamedTuple):
    """A row of Grade.csv: name of the image, patient, 'benign' or 'malignant'."""

    name: str
    patient: int
    grade: str


def load(data_dir: Optional[str], chosen: options.Options) -> base.Dataset:
    """The contest's data in `data_dir` or in `data/gland`, or the demo set where neither is.

    Raises:
      UserError: `data_dir` is given and does not hold the data.
    """
    if data_dir is not None:
        return Glands(data_dir)
    if (pathlib.Path(DEFAULT_DIR) / 'Grade.csv').is_file():
        return Glands(DEFAULT_DIR)
    return gland_demo.DemoGlands()


class Glands(base.Dataset):
    """Splits: 'train' and 'val' (by patient, together 'trainval'), 'test' ('testA', 'testB')."""

    name = 'gland'
    class_names = ('gland',)
    splits = ('train', 'val', 'trainval', 'test', 'testA', 'testB')
    parts = ('train', 'val', 'testA', 'testB')
    # Scanned at 0.465 and scaled to what 20x is (Sirinukunwattana et al., section 2).
    micrometres_per_pixel = 0.62
    image_size = (522, 775)
    origin = (
        'Warwick-QU (GlaS, MICCAI 2015; Sirinukunwattana et al. 2017), for research use: '
        'https://warwick.ac.uk/fac/cross_fac/tia/data/glascontest/ has the terms.'
    )

    def __init__(self, data_dir: str):
        """Reads Grade.csv and lists the images.

        Raises:
          UserError: the folder, Grade.csv or all of the images are missing.
        """
        self._dir = pathlib.Path(os.path.expanduser(data_dir))
        if not self._dir.is_dir():
            raise UserError(f'--data_dir {data_dir} is no folder; {_EXPECTED}')
        if not (self._dir / 'Grade.csv').is_file():
            inner = [path.parent for path in sorted(self._dir.glob('*/Grade.csv'))]
            hint = f'did you mean {inner[0]}? ' if inner else ''
            raise UserError(f'--data_dir {data_dir} has no Grade.csv; {hint}{_EXPECTED}')
        self.cases = {case.name: case for case in read_grades(self._dir / 'Grade.csv')}
        self._paths = _list_images(self._dir)
        if not any(self._find(name) for name in self.cases):
            raise UserError(
                f'--data_dir {data_dir} has none of the images that its Grade.csv names; '
                f'{_EXPECTED}'
            )
        validation = validation_patients(self._part('train'))
        is_validation = lambda case: case.patient in validation  # noqa: E731
        train = self._part('train')
        self._splits = {
            'train': [case for case in train if not is_validation(case)],
            'val': [case for case in train if is_validation(case)],
            'trainval': train,
            'test': self._part('testA') + self._part('testB'),
            'testA': self._part('testA'),
            'testB': self._part('testB'),
        }

    def grade(self, name: str) -> str:
        """'benign' or 'malignant', of an image's name without suffix."""
        return self.cases[name].grade

    def patients(self, split: str) -> set:
        """Patients whose tissue is in `split`."""
        return {case.patient for case in self._splits[split]}

    def items(self, split: str) -> list[base.Item]:
        names = [case.name for case in self._splits[split]]
        paths = [self._find(name) or self._expected(name) for name in names]
        return [base.Item(image_id(name), path.name) for name, path in zip(names, paths)]

    def fingerprint(self, split: str) -> str:
        digest = hashlib.sha256()
        for case in self._splits[split]:
            for name in (case.name, f'{case.name}_anno'):
                path = self._find(name)
                digest.update(name.encode() + b'\0')
                if path:
                    digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def problems(self, split: str) -> Iterator[base.Problem]:
        for case in self._splits[split]:
            for name in (case.name, f'{case.name}_anno'):
                if not self._find(name):
                    yield base.Problem(f'{self._expected(name)} (or .png)', 'is missing', 'error')

    def _part(self, part: str) -> list[Case]:
        cases = [case for case in self.cases.values() if case.name.startswith(f'{part}_')]
        return sorted(cases, key=lambda case: image_id(case.name))

    def _find(self, name: str) -> Optional[pathlib.Path]:
        path = self._paths.get(name)
        return path if path and path.is_file() else None

    def _expected(self, name: str) -> pathlib.Path:
        return self._dir / f'{name}{SUFFIXES[0]}'

    def _path(self, name: str) -> pathlib.Path:
        path = self._find(name)
        if path is None:
            raise UserError(f'{self._expected(name)} (or .png) is missing')
        return path

    def read(self, item: base.Item) -> base.Example:
        name = pathlib.Path(item.file_name).stem
        image_path, labels_path = self._path(name), self._path(f'{name}_anno')
        image = images.read_image(image_path)
        labels = images.read_labels(labels_path, image.pixels.shape[1::-1])
        numbers = [number for number in run_lengths.numbers_in(labels) if number]
        if not len(numbers):
            raise UserError(f'{labels_path} has no gland in it')
        return base.Example(
            image_id=item.image_id,
            file_name=image_path.name,
            image=image.pixels,
            rles=run_lengths.encode_labels(labels, numbers),
            classes=np.ones(len(numbers), np.int32),
            is_crowd=np.zeros(len(numbers), bool),
            encoded=image.encoded,
            warning=image.warning,
        )


def _list_images(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """BMP and PNG files by their name without suffix; of two, the BMP."""
    found = {}
    for suffix in reversed(SUFFIXES):
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() == suffix and not path.name.startswith('.'):
                found[path.stem] = path
    return found


# Images in each part; a file that lists fewer would pass for the paper's 85 and 80.
_COUNTS = {'train': 85, 'testA': 60, 'testB': 20}
_EXPECTED = (
    'expected there: Grade.csv, train_1.bmp and train_1_anno.bmp to train_85, testA_1 to testA_60 '
    'and testB_1 to testB_20, BMP or PNG'
)


def image_id(name: str) -> int:
    """A number for an image: 1 to 85 for train, from 1001 for testA, from 2001 for testB."""
    part, number = name.split('_')
    return PARTS[part] + int(number)


def read_grades(path: pathlib.Path) -> list[Case]:
    """Rows of Grade.csv, whatever its line ends (the contest's are bare carriage returns).

    Raises:
      UserError: unreadable, a line without name, patient and grade, or not the 165 images.
    """
    try:
        lines = re.split(r'[\r\n]+', text_files.read(path).strip())
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error}); download it again') from error
    cases = []
    for number, row in enumerate(csv.reader(lines[1:], skipinitialspace=True), start=2):
        row = [field.strip() for field in row]
        pattern = r'(train|testA|testB)_\d+'
        if len(row) < 3 or not re.fullmatch(pattern, row[0]) or not row[1].isdigit():
            raise UserError(f'{path}, line {number}: wanted name, patient, grade, found {row}')
        if row[2] not in ('benign', 'malignant'):
            raise UserError(f'{path}, line {number}: grade {row[2]!r} is not benign or malignant')
        cases.append(Case(row[0], int(row[1]), row[2]))
    names = [case.name for case in cases]
    wanted = [f'{part}_{k}' for part, count in _COUNTS.items() for k in range(1, count + 1)]
    wrong = [n for n in wanted if names.count(n) != 1] + [n for n in names if n not in wanted]
    if wrong:
        raise UserError(
            f'{path} has {names.count(wrong[0])} rows of {wrong[0]}, unlike the file of the '
            'contest; download it again'
        )
    return cases


def validation_patients(cases: list[Case]) -> set:
    """Patients held out of training, the same for the same `cases`.

    Patients are taken in the order of the SHA-256 of their number; each is kept while the held-out
    images stay within a sixth of all, benign and malignant apart, so that both are there.

    Of the contest's 85 these are the patients 4, 8, 11, 13, 14, 15 and 16 with 14 images (8
    malignant, 6 benign); 8 patients with 71 images (40, 31) are left to train on. The contest
    itself has patients on both sides of train and test: 11 of the 15 in its training part are in
    its test parts too, and only patient 12 is in the test parts alone.

    Args:
      cases: of the training part.

    Returns:
      Patient numbers.
    """
    by_patient: dict[int, list[Case]] = {}
    for case in cases:
        by_patient.setdefault(case.patient, []).append(case)
    order = sorted(by_patient, key=lambda p: hashlib.sha256(str(p).encode()).hexdigest())
    room = {
        grade: VALIDATION_SHARE * sum(case.grade == grade for case in cases)
        for grade in ('benign', 'malignant')
    }
    chosen = set()
    for patient in order:
        used = {g: sum(case.grade == g for case in by_patient[patient]) for g in room}
        if all(used[grade] <= room[grade] for grade in room):
            chosen.add(patient)
            room = {grade: room[grade] - used[grade] for grade in room}
    return chosen
