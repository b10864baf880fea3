# SPDX-License-Identifier: Apache-2.0
"""Predicts pictures and slides as one Apache Beam job; what workers do in it is in `beam_job`.

    list ─┬─> slides ──> plan ──> rows of tiles ─┐
          └─> batches of pictures ───────────────┴─> network (RunInference) ──> write ─┐
                                                      report <── join <── by slide <───┘

Each worker process loads the network once. Rows and batches go to whichever worker is free. When
all are written, each slide is joined by one worker, and so are the tables of the pictures. The
report is a file in the folder of the results, where the command finds it.

Needs the extra beam.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Optional

import apache_beam as beam
from apache_beam.ml.inference import base as inference

from gan_mrcnn.prediction import beam_job, image_files, slide_plan, slide_run, slides
from gan_mrcnn.prediction import checkpoint as checkpoint_lib
from gan_mrcnn.prediction import run as prediction_run
from gan_mrcnn.utils import beam_runner, cli, files

# What is joined of the pictures, among the numbers of slides.
_PICTURES = -1


class Network(inference.ModelHandler):
    """RunInference's way to our network.

    RunInference's own batches depend on what a worker has at hand, and no library promises that
    what else is in a batch leaves the last bits of a result alone. So each of its examples is a
    part of the work that is several images already, always the same ones.
    """

    def __init__(self, job: beam_job.Job, arguments: Sequence[Optional[str]]):
        """Loads nothing.

        Args:
          job: what is predicted.
          arguments: of `prediction.run.load`.
        """
        super().__init__(min_batch_size=1, max_batch_size=1)
        self._job, self._arguments = job, tuple(arguments)

    def load_model(self):
        """Once in each worker process."""
        beam_job.check_shared(self._job)
        return prediction_run.load(*self._arguments)

    def run_inference(self, batch, model, inference_args=None):
        """A `beam_job.Predicted` for each part."""
        return [beam_job.predict(self._job, part, model) for part in batch]


def predict(
    pictures: Sequence[image_files.Source],
    whole_slides: Sequence[image_files.Source],
    arguments: Sequence[Optional[str]],
    out: str,
    options: slide_plan.Options,
    runner: beam_runner.Runner,
) -> None:
    """Predicts on the workers of a runner, and says what was written and what is skipped.

    Args:
      pictures: see `image_files.find_sources`.
      whole_slides: see there.
      arguments: of `prediction.run.load`.
      out: folder of the results, which all workers reach.
      options: for pictures as for slides.
      runner: see there.

    Raises:
      UserError: some are skipped; the others are written then. Or the job cannot be done, or has
        ended early.
    """
    arguments = _absolute(*arguments)
    options = dataclasses.replace(options, model=os.path.realpath(options.model))
    # Here, too: what is wrong with it is said before a job is sent.
    card = prediction_run.load(*arguments).card
    if whole_slides:
        slides.check_installed()
        slide_plan.tile_of(card, options)
        slide_plan.model_micrometres(card, options.mpp)
    absolute = pathlib.Path(out).absolute()
    job = beam_job.Job(absolute, pathlib.Path.cwd(), len(pictures), card, options)
    beam_job.begin(job, pictures, whole_slides)
    print(
        f'{runner.name}: {len(pictures)} images in {job.num_batches} batches, '
        f'{len(whole_slides)} slides',
        flush=True,
    )
    beam_runner.run_pipeline(functools.partial(_build, job, Network(job, arguments)), runner)
    found = files.load_json(job.folder / beam_job.REPORT, 'a folder that all workers reach')
    beam_job.tidy(job, found['pictures']['failures'] if pictures else 0)
    _say(job, found, len(pictures), len(whole_slides), out)


def _absolute(model, checkpoint, data_dir, weights, augmentation):
    """The arguments of `prediction.run.load` for processes that are in other folders."""
    if checkpoint not in checkpoint_lib.NAMES:
        checkpoint = os.path.abspath(checkpoint)
    model, data_dir, weights = (
        path and os.path.abspath(path) for path in (model, data_dir, weights)
    )
    return model, checkpoint, data_dir, weights, augmentation


def _build(job, network, pipeline):
    """Puts the steps into an empty pipeline."""
    listed = (
        pipeline
        | 'begin' >> beam.Create([None])
        | 'list' >> _each(beam.FlatMap, _list, job).with_outputs('batches', 'slides', main='begun')
    )
    planned = (
        listed.slides
        | 'share slides' >> beam.Reshuffle()
        | 'plan' >> _each(beam.FlatMap, _plan, job).with_outputs('rows', main='begun')
    )
    written = (
        (planned.rows, listed.batches)
        | 'parts' >> beam.Flatten()
        | 'share parts' >> beam.Reshuffle()
        | 'network' >> inference.RunInference(network)
        | 'write' >> _each(beam.Map, _write, job)
    )
    _ = (
        (listed.begun, planned.begun, written)
        | 'all' >> beam.Flatten()
        | 'by slide' >> beam.GroupByKey()
        | 'join' >> _each(beam.Map, _join, job)
        | 'all joined' >> beam.combiners.ToList()
        | 'report' >> _each(beam.Map, _report, job)
    )


def _each(kind, function, job):
    """A step that calls `function` with the job and each value.

    Of any type, which is pickled: Beam would take named tuples for rows of a table.
    """
    return kind(functools.partial(function, job)).with_output_types(Any)


# The steps before `_join` give a slide's number or `_PICTURES`, and with it the slide's source, the
# number of a row or batch, and why the slide is skipped or ''. A number of -1 makes sure that what
# has no part left to predict is joined.


def _list(job, _):
    batches, whole_slides = beam_job.sources(job)
    if batches:
        yield _PICTURES, (None, -1, '')
    for batch in batches:
        yield beam.pvalue.TaggedOutput('batches', batch)
    for numbered in enumerate(whole_slides):
        yield beam.pvalue.TaggedOutput('slides', numbered)


def _plan(job, numbered):
    beam_job.check_shared(job)
    number, source = numbered
    problem = ''
    try:
        for row in beam_job.tried(beam_job.plan_slide, job, number, source):
            yield beam.pvalue.TaggedOutput('rows', row)
    except Exception as error:
        problem = beam_job.why_skipped(source, error)
    yield number, (source, -1, problem)


def _write(job, predicted):
    part = predicted.part
    beam_job.tried(beam_job.write, job, predicted)
    if isinstance(part, beam_job.Row):
        return part.slide, (part.source, part.number, ''.join(predicted.problems[:1]))
    return _PICTURES, (None, part.number, '')


def _join(job, keyed):
    """Of pictures what `beam_job.join_pictures` gives, of a slide why it is skipped or ''."""
    key, values = keyed
    if key == _PICTURES:
        return key, beam_job.tried(beam_job.join_pictures, job)
    values = sorted(values, key=lambda value: value[1])
    source = values[0][0]
    problem = next((problem for _, _, problem in values if problem), '')
    if not problem:
        try:
            beam_job.tried(beam_job.join_slide, job, source)
        except Exception as error:
            problem = beam_job.why_skipped(source, error)
    return key, problem


def _report(job, joined):
    found = dict(joined)
    pictures = found.pop(_PICTURES, None)
    skipped = [problem for _, problem in sorted(found.items()) if problem]
    files.write_json(job.folder / beam_job.REPORT, {'pictures': pictures, 'slides': skipped})


def _say(job, found, num_pictures, num_slides, out):
    """What the command says at its end."""
    if num_slides:
        finished = num_slides - len(found['slides'])
        print(f'{finished} of {num_slides} slides are finished; wrote {out}')
        for problem in found['slides']:
            print(f'skipped: {cli.one_line(problem)}')
    if num_pictures:
        counted, problems = found['pictures']['objects'], found['pictures']['problems']
        prediction_run.report(counted, job.score_threshold, num_pictures, problems, out)
    slide_run.stop_at(found['slides'], num_slides)
