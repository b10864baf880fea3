# SPDX-License-Identifier: Apache-2.0
"""Predicts whole slides, row by row of tiles, and goes on where it was stopped.

What is detected in a row of tiles is written at once (`row_files`). When all rows are there, they
are read once more, from top to bottom: the parts of an object that several tiles show are joined,
and what no later row can add to is written (`slide_files`). So memory holds one row and what
reaches into the next one, whatever the slide's size, and the results are a function of the rows: a
run that was stopped ends with the same files as one that was not.

`slide.json` in the folder of a slide says with which settings, and whether it is finished.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any, Callable, Optional

import numpy as np

from gan_mrcnn.prediction import (
    image_files,
    objects,
    row_files,
    slide_files,
    slide_plan,
    slides,
    tiles,
)
from gan_mrcnn.prediction import predictor as predictor_lib
from gan_mrcnn.utils import cli, disk, files, progress_bar
from gan_mrcnn.utils.cores import num_cores
from gan_mrcnn.utils.errors import UserError

ROWS = 'rows'
# Colour of what lies beyond a slide that is smaller than a tile.
_GLASS = 255
# A class may have a name that is no text, as in `files.write_text`.
_TEXT = {'encoding': 'utf-8', 'errors': 'backslashreplace'}


def usable(
    sources: Sequence[image_files.Source], slide_mpp: Optional[float], problems: list[str]
) -> list[image_files.Source]:
    """The slides that can be opened and whose resolution is known; before a network is loaded.

    Args:
      sources: all slides.
      slide_mpp: see `slide_plan.Options`.
      problems: filled with a line for each that is left out.

    Raises:
      UserError: the extra is missing.
    """
    slides.check_installed()
    found = []
    for source in sources:
        try:
            with slides.Slide(source.path) as slide:
                slide_plan.micrometres_of(slide, slide_mpp)
        except slides.SlideError as error:
            _skip(error, problems)
        else:
            found.append(source)
    return found


def predict(
    sources: Sequence[image_files.Source],
    network: predictor_lib.Predictor,
    out: str,
    options: slide_plan.Options,
    problems: list[str],
) -> None:
    """Predicts slides into folders of their names in the folder `out`.

    Args:
      sources: see `usable`.
      network: see there.
      out: folder of the results.
      options: see there.
      problems: filled with a line for each slide that is skipped.

    Raises:
      UserError: the model's resolution or tile is not known, or a folder holds the results of other
        settings.
    """
    slide_plan.tile_of(network.card, options)
    slide_plan.model_micrometres(network.card, options.mpp)
    for source in sources:
        try:
            with slides.Slide(source.path) as slide:
                _predict_slide(slide, source, network, pathlib.Path(out) / source.name, options)
        except slides.SlideError as error:
            _skip(error, problems)


def stop_at(problems: Sequence[str], num_slides: int) -> None:
    """Raises UserError where slides were skipped: with the reason, where there is one slide."""
    if problems and num_slides == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError(f'{len(problems)} of {num_slides} slides are skipped, see above')


def _skip(error, problems):
    problems.append(str(error))
    print(f'skipped: {cli.one_line(str(error))}', flush=True)


def _predict_slide(slide, source, network, folder, options):
    settings = slide_plan.settings_of(slide, network.card, options)
    if is_finished(folder, settings):
        print(f'{slide.path}: {folder} is finished already')
        return
    plan = slide_plan.make_plan(slide, settings)
    missing = [n for n in range(len(plan.rows)) if not row_path(folder, n).exists()]
    num_tiles = sum(map(len, plan.rows))
    num_done = num_tiles - sum(len(plan.rows[number]) for number in missing)
    print(_text(slide, plan, settings, num_done), flush=True)
    title = cli.one_line(source.name)
    with progress_bar.Bar(total=num_tiles, initial=num_done, desc=title, unit='tile') as bar:
        for number in missing:
            windows = plan.rows[number]
            parts = detect(plan.view, windows, network, settings, options.batch_size, bar.update)
            write_row(folder, number, parts)
    with progress_bar.Bar(total=len(plan.rows), desc=f'write {title}', unit='row') as bar:
        num_objects = finish(folder, plan, settings, bar.update)
    print(f'{num_objects} objects of at least {settings["score_threshold"]:g}; wrote {folder}')


def row_path(folder: pathlib.Path, number: int) -> pathlib.Path:
    """The file of a row of tiles, by its number among those of the plan."""
    return folder / ROWS / f'{number:05}.npz'


def _text(slide, plan, settings, num_done) -> str:
    kept = f', {num_done} of them done' if num_done else ''
    coarse = '; the slide is coarser and is enlarged' if max(plan.scale.pixels) < 0.9 else ''
    return (
        f'{slide.path}: {slide.size.width}x{slide.size.height} pixels of '
        f'{settings["slide_mpp"][1]:g} um, seen at {settings["mpp"]:g} um{coarse}; tissue in '
        f'{sum(map(len, plan.rows))} of {plan.num_tiles} tiles of '
        f'{settings["tile"][0]}x{settings["tile"][1]}{kept}'
    )


def is_finished(folder: pathlib.Path, settings: dict[str, Any]) -> bool:
    """Whether a slide was predicted; False where it is begun, which is noted.

    Args:
      folder: of the slide's results.
      settings: see `slide_plan.settings_of`.

    Raises:
      UserError: it was begun or predicted with other settings.
    """
    disk.check_folder(folder, '--out')
    path = folder / image_files.SUMMARY
    found = files.read_json(path, None)
    if not isinstance(found, dict) or not isinstance(found.get('settings'), dict):
        # What a kill has left of it begins with its name.
        if any(not one.name.startswith(path.name) for one in folder.iterdir()):
            raise UserError(
                f'--out: {folder} holds files, but no {image_files.SUMMARY} of a slide; give '
                'another folder'
            )
        found = {'finished': False, 'settings': settings}
        with disk.errors_named(f'--out {folder}'):
            files.write_json(path, found)
    check_same(folder, found['settings'], settings)
    files.remove_unfinished(folder)
    done = bool(found.get('finished'))
    if done and (folder / ROWS).exists():
        shutil.rmtree(folder / ROWS)
    return done


def check_same(folder: pathlib.Path, before: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raises UserError where what is in a folder was begun with other settings."""
    for name in (*settings, *before):
        if before.get(name) != settings.get(name):
            raise UserError(
                f'--out: {folder} was begun with {name} {before.get(name)}, now '
                f'{settings.get(name)}; give the same, another --out, or remove that folder'
            )


def detect(
    view: slides.View,
    windows: Sequence[slide_plan.Window],
    network: predictor_lib.Predictor,
    settings: dict[str, Any],
    batch_size: int,
    progress: Callable[[int], Any],
) -> row_files.Parts:
    """Every object of some tiles, with its tile. While the network works, the next are read.

    Args:
      view: see `slide_plan.view_of`.
      windows: of the tiles, at least one.
      network: see there.
      settings: see `slide_plan.settings_of`.
      batch_size: tiles that the network sees at a time.
      progress: called with the number of tiles after each batch.

    Raises:
      SlideError: the file is damaged there.
    """
    batches = [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]
    parts = []
    # Its threads end before the slide is closed, also where this is stopped.
    with futures.ThreadPoolExecutor(num_cores()) as pool:
        coming = pool.map(view.read, batches[0])
        for batch, following in zip(batches, [*batches[1:], []]):
            crops, coming = list(coming), pool.map(view.read, following)
            shown = np.stack([_padded(crop, settings['tile']) for crop in crops])
            for window, detections in zip(batch, network.detect_pixels(shown)):
                found = objects.from_detections(detections, window, settings['score_threshold'])
                parts += [(window, one) for one in found]
            progress(len(batch))
    return parts


def _padded(pixels, tile):
    """A tile of full size: of a smaller one the network would see all objects larger."""
    missing = [(0, side - have) for side, have in zip(tile, pixels.shape)]
    return np.pad(pixels, [*missing, (0, 0)], constant_values=_GLASS)


def write_row(folder: pathlib.Path, number: int, parts: row_files.Parts) -> None:
    """Keeps what was detected in a row of tiles; written twice, it is the same file."""
    with disk.errors_named(f'--out {folder}'):
        row_files.write(row_path(folder, number), parts)


def finish(
    folder: pathlib.Path,
    plan: slide_plan.Plan,
    settings: dict[str, Any],
    progress: Callable[[], Any],
) -> int:
    """Writes the results of all rows, and gives the number of objects.

    Args:
      folder: of the slide's results, with all rows.
      plan: of the slide.
      settings: see `slide_plan.settings_of`.
      progress: called after each row.
    """
    with disk.errors_named(f'--out {folder}'):
        num_objects = _write(folder, plan, settings['classes'], progress)
        num_tiles = sum(map(len, plan.rows))
        counts = {'objects': num_objects, 'tiles': num_tiles, 'of_tiles': plan.num_tiles}
        summary = {'finished': True, 'settings': settings, **counts}
        files.write_json(folder / image_files.SUMMARY, summary)
        shutil.rmtree(folder / ROWS)
    return num_objects


def _write(folder, plan, class_names, progress) -> int:
    """Writes objects and overview."""
    overview = slide_files.Overview(plan.picture, plan.mask, plan.view.height, plan.view.width)
    with contextlib.ExitStack() as stack:
        paths = [
            stack.enter_context(files.named_when_whole(folder / name))
            for name in (slide_files.GEOJSON, slide_files.TABLE)
        ]
        collection, table = (
            stack.enter_context(open(path, 'w', newline='', **_TEXT)) for path in paths
        )
        writer = slide_files.Writer(collection, table, class_names, plan.scale)
        for one in _merged(folder, plan, progress):
            writer.add(one)
            overview.add(one)
        writer.close()
    overview.save(folder / slide_files.OVERVIEW)
    return writer.num_objects


def _merged(folder, plan, progress) -> Iterator[objects.Object]:
    """The objects of a slide, from top to bottom."""
    merger = tiles.RowMerger()
    tops = [row[0][0] for row in plan.rows[1:]]
    for number, next_top in enumerate([*tops, None]):
        yield from merger.add(row_files.read(row_path(folder, number)), next_top)
        progress()
