# SPDX-License-Identifier: Apache-2.0
"""What `check.py` found: the counts, as text, and as one HTML page that needs no other file.

Shapes: N objects in a picture.
"""

import base64
import collections
import dataclasses
import html
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np

from gan_mrcnn.data.readers import base
from gan_mrcnn.utils.errors import UserError

# COCO's bounds between small, medium and large, in pixels of area.
AREA_BOUNDS = (32**2, 96**2)
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #8881; --bad: #c62828; --odd: #b26a00;
  --good: #2e7d32; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a80; --odd: #ffcc80; --good: #a5d6a7; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.verdict { border-left: .3rem solid; padding: .3rem .8rem; margin: 1rem 0; font-weight: 600; }
.error { color: var(--bad); } .warning { color: var(--odd); } .good { color: var(--good); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; } td:not(:first-child) { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
ul { padding-left: 0; list-style: none; } li { padding: .2rem 0; overflow-wrap: anywhere; }
.tag { display: inline-block; min-width: 5.2rem; font-weight: 600; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem;
  align-items: start; }
figure { margin: 0; } img { width: 100%; display: block; background: var(--faint); }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) { .pictures { grid-template-columns: 1fr 1fr; gap: .6rem; }
  th, td { padding: .3rem .5rem; } .tag { display: block; } }
"""


@dataclasses.dataclass
class Found:
    """What reading one picture showed.

    size: (width, height), None where it could not be read.
    digest: of its pixels.
    classes, areas, is_crowd, at_border: [N], of its objects.
    thumbnail: JPEG with the outlines, where one was wanted.
    """

    file_name: str
    problems: list[base.Problem]
    size: Optional[tuple[int, int]] = None
    digest: str = ''
    classes: Sequence[int] = ()
    areas: Sequence[float] = ()
    is_crowd: Sequence[bool] = ()
    at_border: Sequence[bool] = ()
    thumbnail: bytes = b''


@dataclasses.dataclass
class SplitReport:
    """Counts over the pictures of one split; objects are counted without crowds."""

    num_images: int = 0
    num_unreadable: int = 0
    num_without_objects: int = 0
    num_objects: int = 0
    num_crowds: int = 0
    most_objects: int = 0
    small: int = 0
    medium: int = 0
    large: int = 0
    num_at_border: int = 0
    sizes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    objects_per_class: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    images_per_class: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    thumbnails: list[tuple[str, bytes]] = dataclasses.field(default_factory=list)

    def add(self, found: Found) -> None:
        """Counts one more picture."""
        self.num_images += 1
        if found.size is None:
            self.num_unreadable += 1
            return
        self.sizes[found.size] += 1
        is_object = ~np.asarray(found.is_crowd, bool)
        classes = np.asarray(found.classes, int)[is_object]
        areas = np.asarray(found.areas)[is_object]
        self.num_objects += len(classes)
        self.num_crowds += len(found.classes) - len(classes)
        self.num_without_objects += not len(classes)
        self.most_objects = max(self.most_objects, len(classes))
        small, medium, large = np.bincount(np.digitize(areas, AREA_BOUNDS), minlength=3).tolist()
        self.small += small
        self.medium += medium
        self.large += large
        self.num_at_border += int(np.asarray(found.at_border, bool)[is_object].sum())
        self.objects_per_class.update(classes.tolist())
        self.images_per_class.update(set(classes.tolist()))
        if found.thumbnail:
            objects = _count(len(classes), 'object')
            self.thumbnails.append((f'{found.file_name}: {objects}', found.thumbnail))


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
    """Tables of splits and classes, sizes, and every problem with its file."""
    lines = [f'data set {report.dataset.name}']
    lines += [*_table(*split_table(report)), '', *_table(*class_table(report)), '']
    for split, found in report.splits.items():
        lines.append(f'sizes of {split}: {sizes_text(found)}')
    lines += ['', *(f'{line[0].upper()}: {line[1]}' for line in problem_lines(report))]
    lines.append(verdict(report))
    return '\n'.join(lines)


def split_table(report: Report) -> tuple[list[str], list[list[Any]]]:
    """Head and rows, a column for each split; objects are without crowds."""
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
        [name, *(getattr(found, field) for found in report.splits.values())]
        for name, field in counts.items()
    ]
    return ['', *report.splits], rows


def class_table(report: Report) -> tuple[list[str], list[list[Any]]]:
    """Head and rows: objects of each class and the images that they are in, by split."""
    rows = [
        [
            name,
            *(
                f'{found.objects_per_class[number]} in {found.images_per_class[number]}'
                for found in report.splits.values()
            ),
        ]
        for number, name in enumerate(report.dataset.class_names, start=1)
    ]
    return ['objects in images', *report.splits], rows


def sizes_text(found: SplitReport, most: int = 5) -> str:
    """The most frequent sizes, width x height."""
    listed = [f'{w}x{h} ({count})' for (w, h), count in found.sizes.most_common(most)]
    others = len(found.sizes) - most
    return ', '.join(listed) + (f' and {others} others' if others > 0 else '') or 'none was read'


def problem_lines(report: Report) -> list[tuple[str, str]]:
    """Severity and text of every problem, errors first."""
    ordered = sorted(report.problems, key=lambda entry: entry[1].severity != 'error')
    return [
        (problem.severity, f'{split + ": " if split else ""}{_sentence(problem)}')
        for split, problem in ordered
    ]


def _sentence(problem: base.Problem) -> str:
    # A reader's own message names the file itself.
    if problem.file_name in problem.text:
        return problem.text
    return f'{problem.file_name}: {problem.text}'


def verdict(report: Report) -> str:
    """The last line."""
    warnings = len(report.problems) - report.num_errors
    if not report.problems:
        return 'No problem was found.'
    counts = f'{_count(report.num_errors, "error")}, {_count(warnings, "warning")}'
    return f'{counts}: {"training would go wrong" if report.num_errors else "training can start"}.'


def _count(number: int, thing: str) -> str:
    return f'{number} {thing}{"" if number == 1 else "s"}'


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    cells = [list(map(str, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return [
        '  '.join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))])
        for row in cells
    ]


# The report as a page.


def to_html(report: Report) -> str:
    """The page, with thumbnails inside."""
    name = html.escape(report.dataset.name)
    grade = 'error' if report.num_errors else 'warning' if report.problems else 'good'
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<title>Data set {name}</title><style>{_STYLE}</style></head><body>',
        f'<h1>Data set {name}</h1>',
        f'<p>{html.escape(report.dataset.notice)}</p>' if report.dataset.notice else '',
        f'<p class="verdict {grade}">{html.escape(verdict(report))}</p>',
        _html_problems(problem_lines(report)),
        '<h2>Splits</h2>',
        _html_table(*split_table(report)),
        '<p>Small, medium and large are those of COCO: an area below 32&sup2; pixels, below '
        '96&sup2;, and the rest. Objects are counted without crowds.</p>',
        '<h2>Classes</h2>',
        _html_table(*class_table(report)),
        '<h2>Sizes</h2><ul>',
    ]
    for split, found in report.splits.items():
        sizes = html.escape(sizes_text(found))
        parts.append(f'<li><span class="tag">{html.escape(split)}</span> {sizes}</li>')
    parts.append('</ul>')
    for split, found in report.splits.items():
        if found.thumbnails:
            parts.append(f'<h2>Some images of {html.escape(split)}</h2><div class="pictures">')
            parts += [_figure(caption, picture) for caption, picture in found.thumbnails]
            parts.append('</div>')
    parts.append('</body></html>\n')
    return '\n'.join(parts)


def write(report: Report, path: str) -> None:
    """Writes the page; UserError where that cannot be."""
    target = pathlib.Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(to_html(report), encoding='utf-8')
    except OSError as error:
        raise UserError(f'--html {path} cannot be written ({error})') from error


def _html_problems(lines: Sequence[tuple[str, str]]) -> str:
    if not lines:
        return ''
    items = [
        f'<li><span class="tag {severity}">{severity}</span> {html.escape(text)}</li>'
        for severity, text in lines
    ]
    return f'<h2>Problems</h2><ul>{"".join(items)}</ul>'


def _html_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def row(kind: str, cells: Sequence[Any]) -> str:
        inside = ''.join(f'<{kind}>{html.escape(str(cell))}</{kind}>' for cell in cells)
        return f'<tr>{inside}</tr>'

    body = ''.join(row('td', cells) for cells in rows)
    return f'<div class="wide"><table>{row("th", head)}{body}</table></div>'


def _figure(caption: str, jpeg: bytes) -> str:
    source = f'data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}'
    text = html.escape(caption)
    return (
        f'<figure><img src="{source}" alt="{text}" loading="lazy">'
        f'<figcaption>{text}</figcaption></figure>'
    )
