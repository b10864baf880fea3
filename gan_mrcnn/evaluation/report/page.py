# SPDX-License-Identifier: Apache-2.0
"""The HTML report of one evaluation: values and images for `page.html.j2`, which has the words.

Tables as in the terminal, curves, kinds of error, the best and the worst images, and outlines
enlarged where they are farthest from the ground truth.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
from pycocotools import mask as mask_api

from gan_mrcnn.evaluation import paper, scoring
from gan_mrcnn.evaluation.report import charts
from gan_mrcnn.metrics import boundary, error_types, matching, parallel
from gan_mrcnn.utils import visualization
from gan_mrcnn.utils.html import render

OUTLINE_COLOURS = {
    'ground truth': visualization.GROUND_TRUTH,
    'prediction': visualization.PREDICTION,
}
_TEMPLATE = pathlib.Path(__file__).with_name('page.html.j2')
# Images on each side of best and worst; enlarged parts of worst and of typical outlines.
_NUM_IMAGES = 4
_NUM_ZOOMS = 4
# Detected objects whose outlines are compared, the best-scored ones: COCO has a hundred thousand.
_MOST_OUTLINES = 1000
_GOOD_OVERLAP = 0.75
_ZOOM_SIDE, _ZOOM_SCALE = 112, 4
# Classes shown as bars; a table has all.
_MOST_BARS = 25
_CURVES = (('mask', 0.5), ('mask', 0.75), ('mask', 0.9), ('boundary', 0.5), ('boundary', 0.75))


class Shown(NamedTuple):
    """An image of the page and what stands below it."""

    image: render.Image
    caption: str


def write(scored: scoring.Scored, results: dict[str, Any], folder: str) -> str:
    """Writes FOLDER/index.html.

    Args:
      scored: the predictions and their figures.
      results: what results.json holds.
      folder: made where it does not exist.

    Returns:
      Path of the page.
    """
    path = pathlib.Path(folder) / 'index.html'
    figures = scored.figures
    compare = scored.table is not None
    render.write(
        path,
        _TEMPLATE,
        title=f'{scored.dataset.name}/{scored.split}: {_system(results)}',
        notice=results['notice'],
        facts=[*_facts(results), *figures['limits']],
        threshold=figures['score_threshold'],
        headline=_headline(scored),
        has_misprint=compare and any(m[0] == scored.table.number for m in paper.MISPRINTS),
        glands=_glands(figures, compare) if 'glands' in figures else None,
        cityscapes=_cityscapes(figures, scored.table) if 'cityscapes' in figures else None,
        curves=charts.lines(precision_recall(scored.matches), 'recall', 'precision'),
        sizes=_sizes(figures),
        calibration=_calibration(scored.matches['mask']),
        classes=_classes(figures['per_class']),
        errors=_errors(figures['errors']),
        images=_best_and_worst(scored),
        outlines=_outlines(scored),
        outline_colours=OUTLINE_COLOURS,
        good_overlap=_GOOD_OVERLAP,
        zoom_scale=_ZOOM_SCALE,
    )
    return str(path)


def _system(results) -> str:
    if results.get('checkpoint'):
        mode = (results.get('config') or {}).get('task', {}).get('gan', {}).get('mode', '')
        name = os.path.basename(os.path.dirname(os.path.dirname(results['checkpoint'])))
        return f'{name} ({mode})' if mode else name
    return results['predictions']


def _facts(results) -> list[str]:
    facts = [f'{results["num_images"]} images', f'data {results["data_fingerprint"][:12]}']
    for key in ('checkpoint', 'step', 'seed', 'date_utc'):
        if results.get(key) is not None:
            facts.append(f'{key.replace("_utc", "")} {results[key]}')
    return facts


# Tables.


def _table(header, rows) -> render.Table:
    """A table of (what, system, cells); rows of this system, which has no name, are bold."""
    return render.Table(
        ['', *header],
        [[f'{what}, {system or "this system"}', *cells] for what, system, cells in rows],
        [place for place, (_, system, _) in enumerate(rows) if not system],
    )


def _headline(scored) -> render.Table:
    rows = [
        (kind, system and f'paper: {system}', cells)
        for kind, system, cells in paper.figure_rows(
            scored.figures, scored.dataset.name, scored.table
        )
    ]
    return _table(paper.columns_for(scored.dataset.name), rows)


def _glands(figures, compare) -> render.Table:
    return _table(paper.CONTEST_COLUMNS, paper.contest_rows(figures['glands'], compare))


def _cityscapes(figures, table) -> render.Table:
    masks = figures['cityscapes']
    names = list(masks['per_class'])
    rows = []
    for level in ('AP', 'AP50', 'AP75'):
        cells = [paper.cell(masks['per_class'][name][level]) for name in names]
        rows.append((level, '', [paper.cell(masks[level]), *cells]))
        for system, levels in (table.per_class['mask'] if table else {}).items():
            rows.append((level, f'paper: {system}', ['', *map(paper.cell, levels[level])]))
    return _table(['official', *names], rows)


# Charts.


def _sizes(figures):
    sizes = {
        size: {kind: figures[kind][name] for kind in paper.KINDS}
        for size, name in (('small', 'APS'), ('medium', 'APM'), ('large', 'APL'))
    }
    return charts.bars(sizes, 'AP')


def _calibration(matches) -> Optional[dict[str, Any]]:
    if len(matches.score) and not 0 <= matches.score.min() <= matches.score.max() <= 1:
        return None
    curve, error = calibration(matches)
    chart = charts.lines({'predictions': curve}, 'score', 'share of true positives', True, True)
    return {'chart': chart, 'error': error}


def precision_recall(matches) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Curves by name, recall and precision, means of the classes that have objects."""
    curves = {}
    for kind, threshold in _CURVES:
        place = int(np.flatnonzero(np.isclose(matching.THRESHOLDS, threshold))[0])
        per_class = [matches[kind].curve(class_id) for class_id in matches[kind].class_ids]
        precisions = [curve[0][place] for curve in per_class if curve is not None]
        if precisions:
            name = f'{kind} at {threshold:g}'
            curves[name] = (matching.RECALLS, np.mean(precisions, axis=0))
    return curves


def calibration(matches, num_bins=10) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """Mean score and share of true positives in each bin of scores; the mean distance of the two.

    True positives match an object with an overlap of at least 0.5. Scores are from 0 to 1. Naeini
    et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning (2015).
    """
    kept = ~matches.ignored[0, 0]
    scores, correct = matches.score[kept], matches.matched[0, 0][kept]
    if not len(scores):
        return (np.zeros(0), np.zeros(0)), 0.0
    bins = np.minimum((scores * num_bins).astype(int), num_bins - 1)
    filled = np.unique(bins)
    mean_scores = np.array([scores[bins == k].mean() for k in filled])
    shares = np.array([correct[bins == k].mean() for k in filled])
    sizes = np.array([np.count_nonzero(bins == k) for k in filled])
    error = float(np.abs(mean_scores - shares) @ sizes / sizes.sum())
    return (mean_scores, shares), error


def _classes(per_class) -> Optional[dict[str, Any]]:
    """Table and, for few classes, chart of classes, the best first; None for a single class."""
    names = list(per_class['mask'])
    if len(names) == 1:
        return None
    ranked = sorted(names, key=lambda name: -(per_class['mask'][name]['AP'] or 0))
    columns = [(kind, level) for kind in paper.KINDS for level in ('AP', 'AP50')]
    rows = [
        [name, *(paper.cell(per_class[kind][name][level]) for kind, level in columns)]
        for name in ranked
    ]
    chart = None
    if len(names) <= _MOST_BARS:
        chart = charts.rows({name: per_class['mask'][name]['AP'] for name in ranked}, {})
    return {'table': render.Table(['class', *map(' '.join, columns)], rows), 'chart': chart}


def _errors(errors):
    notes = {kind: f'({count})' for kind, count in errors['counts'].items()}
    return charts.rows(errors['costs'], notes)


# Images.


def _best_and_worst(scored) -> dict[str, list[Shown]]:
    threshold = scored.figures['score_threshold']['value']
    ids = scored.record_set.image_ids
    qualities = error_types.image_qualities(scored.errors, ids, threshold)
    ranked = sorted(ids, key=lambda image_id: (-qualities[image_id], image_id))
    count = min(_NUM_IMAGES, (len(ranked) + 1) // 2)
    chosen = {'Best': ranked[:count], 'Worst': ranked[::-1][: min(count, len(ranked) - count)]}
    images = read_images(scored.dataset, scored.split, sum(chosen.values(), []))
    return {
        name: [
            show_image(scored, images[image_id], image_id, threshold, qualities[image_id])
            for image_id in group
        ]
        for name, group in chosen.items()
    }


def read_images(dataset, split: str, image_ids: Sequence[int]) -> dict[int, np.ndarray]:
    """Images, uint8 [H, W, 3] RGB, by id, from the data set itself."""
    wanted = set(image_ids)
    return {
        item.image_id: dataset.read(item).image
        for item in dataset.items(split)
        if item.image_id in wanted
    }


def show_image(scored, image, image_id, threshold, quality, system='') -> Shown:
    """An image with both kinds of outlines; the caption counts true and false positives.

    Args:
      scored: the predictions.
      image: uint8 [H, W, 3], RGB.
      image_id: its id.
      threshold: predictions from this score on are drawn.
      quality: panoptic quality, for the caption.
      system: whose predictions, for the caption; '' for none.
    """
    errors = scored.errors
    own = (errors.image == image_id) & (errors.score >= threshold)
    correct = np.count_nonzero(own & (errors.kind == error_types.CORRECT))
    false = np.count_nonzero(own & (errors.kind >= 0))
    total = np.count_nonzero(errors.gt_image == image_id)
    objects = parallel.by_image(scored.ground_truth['annotations'])[image_id]
    predictions = [scored.predictions[place] for place in errors.prediction[own]]
    drawn = visualization.draw_outlines(image, map(_decode, objects), map(_decode, predictions))
    caption = (
        f'{_file_name(scored, image_id)}: quality {quality:.2f}, {correct} of {total} detected, '
        f'false positives: {false}'
    )
    return Shown(render.encode_image(drawn), f'{system}, {caption}' if system else caption)


def _file_name(scored, image_id) -> str:
    return next(i['file_name'] for i in scored.ground_truth['images'] if i['id'] == image_id)


def _decode(entry) -> np.ndarray:
    """The mask of an annotation or result, bool [H, W]."""
    return mask_api.decode(entry['segmentation']).astype(bool)


def _outlines(scored) -> Optional[dict[str, list[Shown]]]:
    pairs = _boundary_overlaps(scored)
    if not pairs:
        return None
    middle = len(pairs) // 2
    chosen = {
        'Largest distance': pairs[:_NUM_ZOOMS],
        'Typical': pairs[max(_NUM_ZOOMS, middle - _NUM_ZOOMS // 2) :][:_NUM_ZOOMS],
    }
    ids = [int(scored.errors.image[row]) for group in chosen.values() for _, row in group]
    images = read_images(scored.dataset, scored.split, ids)
    return {
        name: [_zoom(scored, images, overlap, row) for overlap, row in group]
        for name, group in chosen.items()
    }


def _boundary_overlaps(scored) -> list[tuple[float, int]]:
    """Boundary IoU and row of `Errors` of objects detected well by area, the smallest first."""
    errors = scored.errors
    rows = np.flatnonzero(
        (errors.kind == error_types.CORRECT)
        & (errors.overlap >= _GOOD_OVERLAP)
        & (errors.score >= scored.figures['score_threshold']['value'])
    )
    rows = rows[np.argsort(-errors.score[rows], kind='stable')][:_MOST_OUTLINES]
    pairs = []
    for row in rows:
        bands = [boundary.encode_band(one['segmentation']) for one in _matched_pair(scored, row)]
        pairs.append((float(mask_api.iou(bands[:1], bands[1:], [0])[0, 0]), int(row)))
    return sorted(pairs)


def _matched_pair(scored, row):
    """Annotation and result of a detected object."""
    errors = scored.errors
    return (
        scored.ground_truth['annotations'][errors.gt[errors.target[row]]],
        scored.predictions[errors.prediction[row]],
    )


def _zoom(scored, images, overlap, row) -> Shown:
    image_id = int(scored.errors.image[row])
    masks = [_decode(one) for one in _matched_pair(scored, row)]
    enlarged = visualization.zoom(images[image_id], *masks, _ZOOM_SIDE, _ZOOM_SCALE)
    caption = (
        f'{_file_name(scored, image_id)}: overlap of masks {scored.errors.overlap[row]:.2f}, '
        f'of boundaries {overlap:.2f}'
    )
    return Shown(render.encode_image(enlarged), caption)
