# SPDX-License-Identifier: Apache-2.0
"""Checks a data set before anything is trained on it: counts its contents and lists its problems.

`check` reads every image once; `quick` reads the records alone, before a training's first step.

Shapes: N objects in an image of H x W pixels.
"""

import collections
import concurrent.futures
import hashlib
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Optional

import cv2
import numpy as np
from pycocotools import mask as mask_api

from gan_mrcnn.data.check import page as check_page
from gan_mrcnn.data.readers import base
from gan_mrcnn.data.records import records, shards
from gan_mrcnn.utils import progress_bar, visualization
from gan_mrcnn.utils.cores import num_cores
from gan_mrcnn.utils.errors import UserError
from gan_mrcnn.utils.html import render

THUMBNAILS_PER_SPLIT = 12
_THUMBNAIL_SIDE = 480
# Fewer images than this are read faster than another process starts.
_IMAGES_PER_PROCESS = 16


class Limits(NamedTuple):
    """Objects of an image that a run goes as far as.

    learnt: in a step.
    found: by the network.
    settings: where both numbers are from.
    """

    learnt: int
    found: int
    settings: str


def check(
    dataset: base.Dataset, num_processes: Optional[int] = None, limits: Optional[Limits] = None
) -> check_page.Report:
    """Reads all images of `dataset.parts`, counts their objects and collects their problems."""
    splits: dict[str, check_page.SplitReport] = {}
    problems: list[tuple[str, base.Problem]] = []
    seen: dict[str, tuple[str, str]] = {}
    items = {split: dataset.items(split) for split in dataset.parts}
    total = sum(map(len, items.values()))
    with progress_bar.Bar(total=total, desc=f'check {dataset.name}', unit='image') as bar:
        for split in dataset.parts:
            splits[split] = check_page.SplitReport()
            listed = list(dataset.problems(split))
            problems += [(split, problem) for problem in listed]
            known = {f'{p.file_name}{gap} {p.text}' for p in listed for gap in ('', ':')}
            # This one goes on: of what it is, or what may be meant.
            known |= {
                f'{p.file_name} is missing' for p in listed if p.text.startswith('is missing')
            }
            for image in _examine_all(dataset, items[split], num_processes):
                splits[split].add(image)
                problems += [(split, p) for p in image.problems if p.text not in known]
                if image.digest:
                    first = seen.setdefault(image.digest, (split, image.file_name))
                    if first != (split, image.file_name):
                        problems.append((split, _same_image(image.file_name, split, *first)))
                bar.update()
    ids = {split: [item.image_id for item in items[split]] for split in items}
    counts = {split: report.objects_per_class for split, report in splits.items()}
    problems += [('', problem) for problem in _id_problems(ids)]
    problems += [('', problem) for problem in _class_problems(dataset.class_names, counts)]
    for split, report in splits.items():
        problems += [
            (split, problem)
            for problem in (
                *_crowd_problems(dataset, report.num_crowds, report.num_objects),
                *_limit_problems(limits, report.objects_per_image, split == dataset.parts[0]),
            )
        ]
    return check_page.Report(dataset, splits, problems)


def quick(dataset: base.Dataset, record_sets: Mapping[str, records.RecordSet]) -> list[str]:
    """Checks the records before the first step, without reading an image.

    Args:
      dataset: what is trained on.
      record_sets: by split.

    Returns:
      Warnings, a line each.

    Raises:
      UserError: two images of a split have one id, or there is nothing to learn.
    """
    parts = {name: one for name, one in record_sets.items() if name in dataset.parts}
    problems = list(_id_problems({name: one.image_ids for name, one in parts.items()}))
    problems += _class_problems(
        dataset.class_names,
        {
            split: dict(enumerate(one.objects_per_class, start=1))
            for split, one in record_sets.items()
        },
    )
    for split, one in parts.items():
        for problem in _crowd_problems(dataset, one.num_crowds, sum(one.objects_per_image)):
            problems.append(problem._replace(file_name=f'{split}: {problem.file_name}'))
    for problem in problems:
        if problem.severity == 'error':
            raise UserError(f'{dataset.name}: {problem.file_name}: {problem.text}')
    return [f'{problem.file_name}: {problem.text}' for problem in problems]


def _id_problems(ids: Mapping[str, Sequence[int]]) -> Iterator[base.Problem]:
    """Two annotation files may each count from 1; within a split an id is one image."""
    for split, own in ids.items():
        for image_id, count in collections.Counter(own).items():
            if count > 1:
                text = f'is in {split} {count} times; give each image an id of its own'
                yield base.Problem(f'image id {image_id}', text, 'error')


def _class_problems(
    class_names: Sequence[str], counts: Mapping[str, Mapping[int, int]]
) -> Iterator[base.Problem]:
    """`counts`: number of objects by split and class; the first split is the one to train on."""
    train, *others = counts
    if not sum(counts[train].values()):
        yield base.Problem(train, 'has no object to learn', 'error')
    for split in others:
        if not sum(counts[split].values()):
            text = (
                'has no object: its AP is not defined, and no best checkpoint can be chosen by it; '
                'add images with objects (--split_seed divides anew what came undivided)'
            )
            yield base.Problem(split, text, 'warning')
    for number, name in enumerate(class_names, start=1):
        where = [split for split in counts if counts[split].get(number)]
        if not where:
            yield base.Problem(f'class {name}', 'has no object in any split', 'warning')
        elif train not in where:
            text = f'is in {", ".join(where)}, but not in {train}: it cannot be learnt'
            yield base.Problem(f'class {name}', text, 'warning')
        elif others and where == [train]:
            text = f'is in {train} alone: its AP will not be measured'
            yield base.Problem(f'class {name}', text, 'warning')


def _crowd_problems(dataset, num_crowds: int, num_objects: int) -> Iterator[base.Problem]:
    if num_crowds and dataset.crowds_hint:
        text = (
            f'{num_crowds} of {num_crowds + num_objects} are groups (iscrowd 1), which are neither '
            f'learnt nor scored; {dataset.crowds_hint}'
        )
        yield base.Problem('annotations', text, 'warning')


def _limit_problems(
    limits: Optional[Limits], objects_per_image: Sequence[int], is_learnt: bool
) -> Iterator[base.Problem]:
    if limits is None:
        return
    for concerns, most, text in (
        (
            is_learnt,
            limits.learnt,
            'a step learns {} of them, each time others; --max_instances sets how many',
        ),
        (
            True,
            limits.found,
            'the network finds {} of them at most; task.model.detection_generator.'
            'max_num_detections sets how many are found and count',
        ),
    ):
        beyond = [count for count in objects_per_image if concerns and count > most]
        if beyond:
            about = f'{len(beyond)} have more than {most} objects, up to {max(beyond)}'
            text = f'{about}: {text.format(most)} ({most} by {limits.settings})'
            yield base.Problem('images', text, 'warning')


def _same_image(file_name, split, first_split, first_name) -> base.Problem:
    if split == first_split:
        return base.Problem(file_name, f'is the same image as {first_name}', 'warning')
    text = f'is the same image as {first_name} of {first_split}; remove one of them'
    return base.Problem(file_name, text, 'error')


# One image, in a process of its own.

_reader: dict[str, base.Dataset] = {}


def _start_reader(dataset: base.Dataset) -> None:
    _reader['dataset'] = dataset
    shards.settle_in()


def _examine_in_process(job: tuple[base.Item, bool]) -> check_page.Examined:
    return examine(_reader['dataset'], *job)


def _examine_all(
    dataset: base.Dataset, items: Sequence[base.Item], num_processes: Optional[int]
) -> Iterator[check_page.Examined]:
    """In the order of `items`."""
    places = np.linspace(0, len(items) - 1, min(len(items), THUMBNAILS_PER_SPLIT)).round()
    jobs = [(item, place in places) for place, item in enumerate(items)]
    processes = min(num_processes or num_cores(), len(items) // _IMAGES_PER_PROCESS)
    if processes <= 1:
        yield from (examine(dataset, *job) for job in jobs)
        return
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(
        processes, context, _start_reader, (dataset,)
    ) as pool:
        try:
            with shards.interrupts_held():
                examined = pool.map(_examine_in_process, jobs, chunksize=4)
            yield from examined
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def examine(dataset: base.Dataset, item: base.Item, with_thumbnail: bool) -> check_page.Examined:
    """Reads one image."""
    try:
        example = dataset.read(item)
    except UserError as error:
        return check_page.Examined(
            item.file_name, [base.Problem(item.file_name, str(error), 'error')]
        )
    height, width = example.image.shape[:2]
    problems = list(_example_problems(dataset, example))
    if any(problem.severity == 'error' for problem in problems):
        return check_page.Examined(item.file_name, problems)
    x, y, w, h = mask_api.toBbox(example.rles).reshape(-1, 4).T
    return check_page.Examined(
        file_name=example.file_name,
        problems=problems,
        size=(width, height),
        digest=hashlib.sha256(
            repr(example.image.shape).encode() + example.image.tobytes()
        ).hexdigest(),
        classes=example.classes.tolist(),
        # One by one: with NumPy 2, pycocotools' `area` takes no list of more than 255.
        areas=[int(mask_api.area(rle)) for rle in example.rles],
        is_crowd=example.is_crowd.tolist(),
        at_border=((x == 0) | (y == 0) | (x + w == width) | (y + h == height)).tolist(),
        thumbnail=_thumbnail(example) if with_thumbnail else None,
    )


def _example_problems(dataset, example) -> Iterator[base.Problem]:
    name = example.file_name
    sizes = {tuple(rle['size']) for rle in example.rles} - {example.image.shape[:2]}
    if sizes:
        height, width = sizes.pop()
        text = (
            f'has a mask of {width}x{height} on {example.image.shape[1]}x{example.image.shape[0]}'
        )
        yield base.Problem(name, text, 'error')
    wrong = [c for c in example.classes.tolist() if not 1 <= c <= len(dataset.class_names)]
    if wrong:
        text = f'has an object of class {wrong[0]}; there are {len(dataset.class_names)}'
        yield base.Problem(name, text, 'error')
    if example.warning:
        yield base.Problem(name, example.warning, 'warning')
    num_empty = sum(not mask_api.area(rle) for rle in example.rles)
    if num_empty:
        text = f'has objects without a pixel ({num_empty}), which are skipped'
        yield base.Problem(name, text, 'warning')


def _thumbnail(example: base.Example) -> render.Image:
    """The image with its objects drawn at that size; tiny ones are enlarged."""
    masks = (mask_api.decode(rle) for rle in example.rles)
    image, masks = visualization.shrink(example.image, masks, _THUMBNAIL_SIDE)
    for mask in masks:
        if mask.sum() < 9:
            mask[:] = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return render.encode_image(visualization.draw_instances(image, masks))
