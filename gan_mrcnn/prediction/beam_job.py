# SPDX-License-Identifier: Apache-2.0
"""What the workers of an Apache Beam job do with pictures and slides; Beam itself is in `beam_run`.

Nothing is predicted, drawn or joined here: workers call what one machine calls, on parts of the
work. A part is a batch of pictures, or a row of a slide's tiles. It is the same part whichever
worker has it, so that the network sees the same batches.

Each part ends in a file of its own, whole or not there, under a name that follows from its number:
`OUT/.beam/NUMBER.json` for pictures, `OUT/SLIDE/rows/NUMBER.npz` for a row. A runner may give the
same part to two workers, or again after a loss: the file is the same one. Tables are made of these
files, in their order, so that each object is in them once. What has its file is not predicted
again, so that the same command goes on where a job has ended.

A failure is of two kinds. What a file holds does not change: a damaged picture or slide is named at
once. All else, such as a disk that does not answer or memory that is short, may pass: it is tried
again, some times, and named then, and the same command tries again.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import pathlib
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any, Callable, NamedTuple, Optional, TypeVar, Union

from gan_mrcnn.data.readers import images
from gan_mrcnn.prediction import (
    image_files,
    model_card,
    row_files,
    slide_plan,
    slide_run,
    slides,
    tiles,
    writing,
)
from gan_mrcnn.prediction import predictor as predictor_lib
from gan_mrcnn.utils import disk, files
from gan_mrcnn.utils.errors import UserError

FOLDER, SOURCES, SETTINGS, REPORT = '.beam', 'sources.json', 'settings.json', 'report.json'
# Raise it when parts of pictures are written otherwise, or other ones for the same settings.
FORMAT_VERSION = 1
# Seconds between one try and the next.
WAITS = (1.0, 5.0)

_T = TypeVar('_T')
_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Job:
    """What every worker knows; paths are absolute.

    out: folder of the results.
    working_folder: that sources are relative to.
    num_pictures: of all.
    card: of the network.
    options: of the command, for pictures as for slides.
    """

    out: pathlib.Path
    working_folder: pathlib.Path
    num_pictures: int
    card: model_card.ModelCard
    options: slide_plan.Options

    @property
    def folder(self) -> pathlib.Path:
        """Of what is kept until the job is finished."""
        return self.out / FOLDER

    @property
    def score_threshold(self) -> float:
        """Objects below it are dropped."""
        given = self.options.score_threshold
        return self.card.score_threshold if given is None else given

    @property
    def num_batches(self) -> int:
        """Of pictures."""
        return -(-self.num_pictures // self.options.batch_size)

    def part(self, number: int) -> pathlib.Path:
        """The file of a batch of pictures."""
        return self.folder / f'{number:06}.json'


class Pictures(NamedTuple):
    """A batch of pictures and its number."""

    number: int
    sources: list[image_files.Source]


class Row(NamedTuple):
    """A row of a slide's tiles.

    slide: its number among the slides.
    source: of the slide.
    settings: see `slide_plan.settings_of`.
    number: among the rows of the plan.
    windows: of the tiles.
    """

    slide: int
    source: image_files.Source
    settings: dict[str, Any]
    number: int
    windows: list[slide_plan.Window]


class Predicted(NamedTuple):
    """A part of the work after the network.

    part: see there.
    content: `image_files.Result` of each picture, or the objects of a row; None where the part has
      its file already, or failed.
    problems: a line for each picture, or for the slide, that cannot be used.
    failures: the same for what was given up.
    """

    part: Union[Pictures, Row]
    content: Optional[Union[list[image_files.Result], row_files.Parts]]
    problems: list[str]
    failures: list[str]


class PassingError(Exception):
    """A failure that may have passed at the next try."""


def begin(
    job: Job, pictures: Sequence[image_files.Source], whole_slides: Sequence[image_files.Source]
) -> None:
    """Makes the folder of the job, with the sources, and the settings that parts are made with.

    The sources of a large job are more than some runners take as a job's description.

    Raises:
      UserError: there are parts of other settings or pictures.
    """
    disk.make_folder(job.folder, '--out')
    with disk.errors_named(f'--out {job.out}'):
        (job.folder / REPORT).unlink(missing_ok=True)
        if pictures:
            _begin_pictures(job, pictures)
        listed = [
            [(str(source.path), source.name) for source in sources]
            for sources in (pictures, whole_slides)
        ]
        files.write_json(job.folder / SOURCES, listed, indent=None)


def _begin_pictures(job, sources):
    names = '\n'.join(f'{source.path}\t{source.name}' for source in sources)
    options = job.options
    settings = {
        'format': FORMAT_VERSION,
        'model': os.path.realpath(options.model),
        'checkpoint': job.card.checkpoint,
        'step': job.card.step,
        'score_threshold': job.score_threshold,
        'tile': list(options.tile) if options.tile else None,
        'overlap': _overlap(options),
        'tta': options.tta,
        'batch': options.batch_size,
        'images': len(sources),
        'images by hash': hashlib.sha256(os.fsencode(names)).hexdigest()[:8],
    }
    path = job.folder / SETTINGS
    if path.exists():
        slide_run.check_same(job.folder, files.read_json(path, {}), settings)
        # Of workers that were killed.
        for place in (image_files.OVERLAYS, image_files.LABELS):
            for left in (job.out / place).rglob('*.tmp'):
                left.unlink()
    files.write_json(path, settings)


def sources(job: Job) -> tuple[list[Pictures], list[image_files.Source]]:
    """The pictures in batches, and the slides, on a worker.

    Raises:
      UserError: the worker does not see the folder of the results.
    """
    check_shared(job)
    listed = files.load_json(job.folder / SOURCES, 'the same command again')
    pictures, whole_slides = (
        [image_files.Source(pathlib.Path(path), name) for path, name in half] for half in listed
    )
    size = job.options.batch_size
    starts = range(0, len(pictures), size)
    return [Pictures(n, pictures[i : i + size]) for n, i in enumerate(starts)], whole_slides


def check_shared(job: Job) -> None:
    """Raises UserError on a worker that does not see the folder of the results."""
    if not (job.folder / SOURCES).exists():
        raise UserError(
            f'{job.folder} is not there on the worker {socket.gethostname()}; give --out on a disk '
            'that all workers share, by a path that is the same on all'
        )


def tried(function: Callable[..., _T], *arguments) -> _T:
    """What `function` gives, tried again where its failure may pass.

    Raises:
      Exception: whatever the last try has raised.
    """
    for seconds in WAITS:
        try:
            return function(*arguments)
        except Exception as error:
            if not may_pass(error):
                raise
            _LOGGER.warning('failed, and is tried again in %g s', seconds, exc_info=True)
        time.sleep(seconds)
    return function(*arguments)


def may_pass(error: BaseException) -> bool:
    """Whether another try may be without the failure.

    What is said of a file's content will be said again, and is a `UserError`, unless it was caused
    by the operating system; Pillow's own errors are of the same class, but without a number.
    """
    if not isinstance(error, UserError):
        return True
    return isinstance(error.__cause__, OSError) and error.__cause__.errno is not None


def plan_slide(job: Job, number: int, source: image_files.Source) -> list[Row]:
    """The rows of a slide that are missing.

    Raises:
      UserError: it cannot be used, or was begun with other settings.
    """
    with slides.Slide(job.working_folder / source.path) as slide:
        settings = slide_plan.settings_of(slide, job.card, job.options)
        folder = job.out / source.name
        if slide_run.is_finished(folder, settings):
            return []
        rows = slide_plan.make_plan(slide, settings).rows
    return [
        Row(number, source, settings, row, windows)
        for row, windows in enumerate(rows)
        if not slide_run.row_path(folder, row).exists()
    ]


def predict(job: Job, part: Union[Pictures, Row], network: predictor_lib.Predictor) -> Predicted:
    """Has the network predict a part of the work; whatever fails is in what it gives."""
    if isinstance(part, Row):
        return _predict_row(job, part, network)
    if job.part(part.number).exists():
        return Predicted(part, None, [], [])
    return Predicted(part, *_predict_pictures(job, part.sources, network))


def _predict_row(job, row, network):
    folder = job.out / row.source.name
    # A worker that was taken for lost may come after the slide was joined.
    joined = files.read_json(folder / image_files.SUMMARY, {}).get('finished')
    if joined or slide_run.row_path(folder, row.number).exists():
        return Predicted(row, None, [], [])
    try:
        return Predicted(row, tried(_detect_row, job, row, network), [], [])
    except Exception as error:
        return Predicted(row, None, [why_skipped(row.source, error)], [])


def _detect_row(job, row, network):
    with slides.Slide(job.working_folder / row.source.path) as slide:
        view = slide_plan.view_of(slide, row.settings)
        batch_size = job.options.batch_size
        return slide_run.detect(
            view, row.windows, network, row.settings, batch_size, lambda _: None
        )


def _predict_pictures(job, sources, network):
    """Results, problems and failures of a batch."""
    try:
        return (*tried(_detect_pictures, job, sources, network), [])
    except Exception as error:
        if len(sources) == 1:
            return [], [], [why_skipped(sources[0], error)]
    # One of them may be to blame.
    apart = [_predict_pictures(job, [source], network) for source in sources]
    return [sum(lists, []) for lists in zip(*apart)]


def _detect_pictures(job, sources, network):
    def read_image(path):
        try:
            return images.read_image(job.working_folder / path)
        except UserError as error:
            if may_pass(error):
                raise PassingError(str(error)) from error
            raise

    problems: list[str] = []
    options = job.options
    found = image_files.detect(
        image_files.read(sources, problems, read_image),
        network,
        job.score_threshold,
        options.batch_size,
        options.tile,
        _overlap(options),
        problems,
    )
    return list(found), problems


def _overlap(options):
    return tiles.check(options.tile, options.overlap) if options.tile else 0


def why_skipped(source: image_files.Source, error: Exception) -> str:
    """A line that says why a picture or slide is skipped."""
    if not may_pass(error):
        return str(error)
    text = ' '.join(str(error).split())[:200]
    if not isinstance(error, (PassingError, UserError)):
        text = f'{type(error).__name__}: {text}'
    return f'{source.path} failed {len(WAITS) + 1} times ({text}); the same command tries again'


def write(job: Job, predicted: Predicted) -> None:
    """Writes what was predicted, and last the part's own file.

    Raises:
      UserError: the folder cannot be written.
    """
    part, content, problems, failures = predicted
    if content is None:
        return
    if isinstance(part, Row):
        slide_run.write_row(job.out / part.source.name, part.number, content)
        return
    problems, entries = list(problems), []
    for result in content:
        try:
            writing.write_images(job.out, result)
        except writing.TooManyObjects as error:
            problems.append(f'{result.source.path}: {error}')
        else:
            entries.append(writing.entry(result, job.card))
    written = {'entries': entries, 'problems': problems, 'failures': failures}
    with disk.errors_named(f'--out {job.out}'):
        files.write_json(job.part(part.number), written, indent=None)


def join_slide(job: Job, source: image_files.Source) -> None:
    """Writes the results of a slide of which all rows are there.

    Raises:
      UserError: it cannot be used, or a row is damaged.
    """
    with slides.Slide(job.working_folder / source.path) as slide:
        settings = slide_plan.settings_of(slide, job.card, job.options)
        folder = job.out / source.name
        if not slide_run.is_finished(folder, settings):
            plan = slide_plan.make_plan(slide, settings)
            slide_run.finish(folder, plan, settings, lambda: None)


def join_pictures(job: Job) -> dict[str, Any]:
    """Writes the table and JSON of all pictures, in the order of the sources.

    Returns:
      The number of objects, and lines for the pictures that are skipped.
    """
    problems: list[str] = []
    failures: list[str] = []
    num_objects = 0
    writer = writing.Writer(str(job.out), job.card)
    for part in _parts(job):
        problems += part['problems'] + part['failures']
        failures += part['failures']
        for entry in part['entries']:
            writer.add_entry(entry)
            num_objects += len(entry['annotations'])
    writer.close()
    return {'objects': num_objects, 'problems': problems, 'failures': len(failures)}


def _parts(job) -> Iterator[dict[str, Any]]:
    for number in range(job.num_batches):
        path = job.part(number)
        yield files.load_json(path, 'the same command again, with that file removed')


def tidy(job: Job, num_failures: int) -> None:
    """Removes what was kept until here.

    Where pictures were given up, only their parts: the same command predicts no others again.
    """
    (job.folder / REPORT).unlink()
    if not job.num_pictures:
        (job.folder / SOURCES).unlink()
        # There may be parts of another job, of pictures.
        with contextlib.suppress(OSError):
            job.folder.rmdir()
    elif not num_failures:
        shutil.rmtree(job.folder)
    else:
        for number in range(job.num_batches):
            if files.load_json(job.part(number), 'that folder as it was')['failures']:
                job.part(number).unlink()
