# SPDX-License-Identifier: Apache-2.0
"""The result of `check.py`: counts and problems, as text and as an HTML page (`page.html.j2`).

Shapes: N objects in an image.
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np

from gan_mrcnn.data.readers import base
from gan_mrcnn.utils.errors import UserError
from gan_mrcnn.utils.html import render

# COCO's bounds between small, medium and large, in pixels of area.
AREA_BOUNDS = (32**2, 96**2)
# Of equal problems, in text; a page has all of them.
_MOST_NAMED = 10
# One that stands alone, or two of a size; not one that is part of a name.
_NUMBER = re.compile(r'(?<![\w./-])-?\d+(\.\d+)?(x-?\d+(\.\d+)?)?(?!\.?\w)')
_QUOTED = re.compile(r"'[^']*'")
_TEMPLATE = pathlib.Path(__file__).with_name('page.html.j2')


@dataclasses.dataclass
class Examined:
    """One image after reading it.

    size: (width, height), None where it cannot be used.
    digest: of its pixels.
    classes, areas, is_crowd, at_border: [N], of its objects.
    thumbnail: with the outlines, where one was asked for.
    """

    file_name: str
    problems: list[base.Problem]
    size: Optional[tuple[int, int]] = None
    digest: str = ''
    classes: Sequence[int] = ()
    areas: Sequence[float] = ()
    is_crowd: Sequence[bool] = ()
    at_border: Sequence[bool] = ()
    thumbnail: Optional[render.Image] = None


@dataclasses.dataclass
class SplitReport:
    """Counts over the images of one split; objects are counted without crowds."""

    num_images: int = 0
    num_unreadable: int = 0
    num_without_objects: int = 0
    num_objects: int = 0
    num_crowds: int = 0
    small: int = 0
    medium: int = 0
    large: int = 0
    num_at_border: int = 0
    objects_per_image: list[int] = dataclasses.field(default_factory=list)
    sizes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    objects_per_class: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    images_per_class: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    thumbnails: list[tuple[str, render.Image]] = dataclasses.field(default_factory=list)

    @property
    def most_objects(self) -> int:
        return max(self.objects_per_image, default=0)

    def add(self, image: Examined) -> None:
        """Counts one more image."""
        self.num_images += 1
        if image.size is None:
            self.num_unreadable += 1
            return
        self.sizes[image.size] += 1
        is_object = ~np.asarray(image.is_crowd, bool)
        classes = np.asarray(image.classes, int)[is_object]
        areas = np.asarray(image.areas)[is_object]
        self.num_objects += len(classes)
        self.num_crowds += len(image.classes) - len(classes)
        self.num_without_objects += not len(classes)
        self.objects_per_image.append(len(classes))
        small, medium, large = np.bincount(np.digitize(areas, AREA_BOUNDS), minlength=3).tolist()
        self.small += small
        self.medium += medium
        self.large += large
        self.num_at_border += int(np.asarray(image.at_border, bool)[is_object].sum())
        self.objects_per_class.update(classes.tolist())
        self.images_per_class.update(set(classes.tolist()))
        if image.thumbnail:
            objects = _count(len(classes), 'object')
            self.thumbnails.append((f'{image.file_name}: {objects}', image.thumbnail))


class Report(NamedTuple):
    """The whole result; `problems` by split, '' for what concerns several."""

    dataset: base.Dataset
    splits: dict[str, SplitReport]
    problems: list[tuple[str, base.Problem]]

    @property
    def num_errors(self) -> int:
        return sum(problem.severity == 'error' for _, problem in self.problems)


# The report as text.


def to_text(report: Report) -> str:
    """Tables of splits and classes, sizes, and every problem; equal ones in one line."""
    lines = [f'data set {report.dataset.name}']
    lines += [*_aligned(split_table(report)), '', *_aligned(class_table(report)), '']
    for split, counts in report.splits.items():
        lines.append(f'sizes of {split}: {sizes_text(counts)}')
    lines += ['', *(f'{line[0].upper()}: {line[1]}' for line in problem_lines(report, _MOST_NAMED))]
    lines.append(verdict(report))
    return '\n'.join(lines)


def split_table(report: Report) -> render.Table:
    """A column for each split; objects are without crowds."""
    counts = {
        'images': 'num_images',
        'that cannot be used': 'num_unreadable',
        'without objects': 'num_without_objects',
        'objects': 'num_objects',
        'most in one image': 'most_objects',
        'small': 'small',
        'medium': 'medium',
        'large': 'large',
        'at the border': 'num_at_border',
        'crowds': 'num_crowds',
    }
    rows = [
        [name, *(getattr(split, field) for split in report.splits.values())]
        for name, field in counts.items()
    ]
    return render.Table(['', *report.splits], rows)


def class_table(report: Report) -> render.Table:
    """Objects of each class and the number of images with them, by split."""
    rows = [
        [
            name,
            *(
                f'{split.objects_per_class[number]} in {split.images_per_class[number]}'
                for split in report.splits.values()
            ),
        ]
        for number, name in enumerate(report.dataset.class_names, start=1)
    ]
    return render.Table(['objects in images', *report.splits], rows)


def sizes_text(split: SplitReport, most: int = 5) -> str:
    """The most frequent sizes, width x height."""
    listed = [f'{w}x{h} ({count})' for (w, h), count in split.sizes.most_common(most)]
    others = len(split.sizes) - most
    return ', '.join(listed) + (f' and {others} others' if others > 0 else '') or 'none'


def problem_lines(report: Report, most_named: Optional[int] = None) -> list[tuple[str, str]]:
    """Severity and text of every problem, errors first.

    Problems of a split that differ in files and numbers alone are one line, with the text of the
    first and the names of the others: `most_named` of them at most.
    """
    ordered = sorted(report.problems, key=lambda entry: entry[1].severity != 'error')
    alike: dict[tuple[str, str, str], list[base.Problem]] = {}
    for split, problem in ordered:
        alike.setdefault((problem.severity, split, _kind(problem)), []).append(problem)
    return [
        (
            severity,
            f'{split + ": " if split else ""}{_sentence(ones[0])}{_others(ones, most_named)}',
        )
        for (severity, split, _), ones in alike.items()
    ]


def _kind(problem: base.Problem) -> str:
    """Equal for problems that differ in the file and in numbers alone."""
    stem = re.escape(pathlib.PurePath(problem.file_name).stem)
    text = re.sub(rf'\S*(?<!\w){stem}(_\w+)?\.\w+', '', problem.text)
    return _NUMBER.sub('0', _QUOTED.sub('', text))


def _others(problems: Sequence[base.Problem], most: Optional[int]) -> str:
    """How many there are behind the first, and where, '' where there are none."""
    first, *others = (problem.file_name for problem in problems)
    if not others:
        return ''
    # The annotation file, which the first has named.
    known, separator, _ = first.rpartition(': ')
    listed = ', '.join(name.removeprefix(known + separator) for name in others[:most])
    more = ', ...' if most is not None and len(others) > most else ''
    return f' (and {len(others)} more like it: {listed}{more})'


def _sentence(problem: base.Problem) -> str:
    # A reader's own message names the file itself.
    if problem.file_name in problem.text:
        return problem.text
    return f'{problem.file_name}: {problem.text}'


def verdict(report: Report) -> str:
    """The last line."""
    warnings = len(report.problems) - report.num_errors
    if not report.problems:
        return 'No problems.'
    counts = f'{_count(report.num_errors, "error")}, {_count(warnings, "warning")}'
    return f'{counts}: {"training would go wrong" if report.num_errors else "training can start"}.'


def _count(number: int, thing: str) -> str:
    return f'{number} {thing}{"" if number == 1 else "s"}'


def _aligned(table: render.Table) -> list[str]:
    cells = [list(map(str, row)) for row in (table.header, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return [
        '  '.join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))])
        for row in cells
    ]


# The report as a page.


def write(report: Report, path: str) -> None:
    """Writes the page, with thumbnails inside.

    Raises:
      UserError: that is not possible.
    """
    try:
        render.write(
            pathlib.Path(path),
            _TEMPLATE,
            title=f'Data set {report.dataset.name}',
            notice=report.dataset.notice,
            grade='error' if report.num_errors else 'warning' if report.problems else 'good',
            verdict=verdict(report),
            problems=problem_lines(report),
            splits=split_table(report),
            classes=class_table(report),
            sizes={name: sizes_text(split) for name, split in report.splits.items()},
            images={name: split.thumbnails for name, split in report.splits.items()},
        )
    except OSError as error:
        raise UserError(f'--html {path} cannot be written ({error})') from error
