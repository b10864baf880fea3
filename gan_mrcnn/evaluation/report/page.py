# SPDX-License-Identifier: Apache-2.0
"""One HTML page about one system on one split: tables, charts, errors, pictures, outlines.

Says what AP hides: whether scores can be believed, which kind of error costs most, on which
pictures it fails, and what its outlines look like from near.
"""

import os
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
from pycocotools import mask as mask_api

from gan_mrcnn.evaluation import paper, scoring
from gan_mrcnn.evaluation.report import charts
from gan_mrcnn.metrics import boundary, error_types, matching, parallel
from gan_mrcnn.utils import html_page, visualization

# Pictures on each side of best and worst; zooms of worst and of typical outlines.
NUM_PICTURES = 4
NUM_ZOOMS = 4
# Found objects whose outlines are looked at, the best-scored ones: COCO has a hundred thousand.
_MOST_OUTLINES = 1000
_GOOD_OVERLAP = 0.75
_ZOOM_SIDE, _ZOOM_SCALE = 112, 4
# Classes shown as bars; a table has all.
_MOST_BARS = 25
_CURVES = (('mask', 0.5), ('mask', 0.75), ('mask', 0.9), ('boundary', 0.5), ('boundary', 0.75))


def write(scored: scoring.Scored, results: dict[str, Any], folder: str) -> str:
    """Writes FOLDER/index.html.

    Args:
      scored: the predictions and what was found out.
      results: what results.json holds.
      folder: made where it is not there.

    Returns:
      Path of the page.
    """
    title = f'{scored.dataset.name}/{scored.split}: {_system(results)}'
    sections = [
        _facts(results),
        _headline(scored),
        _charts(scored),
        _classes(scored),
        _errors(scored),
        _pictures(scored),
        _outlines(scored),
    ]
    return html_page.write(folder, title, [section for section in sections if section])


def _system(results) -> str:
    if results.get('checkpoint'):
        mode = (results.get('config') or {}).get('task', {}).get('gan', {}).get('mode', '')
        name = os.path.basename(os.path.dirname(os.path.dirname(results['checkpoint'])))
        return f'{name} ({mode})' if mode else name
    return results['predictions']


def _facts(results) -> str:
    facts = [f'{results["num_images"]} images', f'data {results["data_fingerprint"][:12]}']
    for key in ('checkpoint', 'step', 'seed', 'date_utc'):
        if results.get(key) is not None:
            facts.append(f'{key.replace("_utc", "")} {results[key]}')
    notice = html_page.paragraph(results['notice'], 'notice') if results['notice'] else ''
    return notice + html_page.paragraph(', '.join(facts), 'facts')


# Tables.


def _headline(scored) -> str:
    figures, table = scored.figures, scored.table
    columns = paper.columns_for(scored.dataset.name)
    rows = []
    for kind in paper.KINDS:
        rows.append(([f'{kind}, this system', *(_cell(figures[kind][c]) for c in columns)], True))
        for system, row in (table.rows.get(kind, {}) if table else {}).items():
            cells = [_cell(row.get(column)) for column in columns]
            for place, column in enumerate(columns):
                if (table.number, kind, system, column) in paper.MISPRINTS:
                    cells[place] += '*'
            rows.append(([f'{kind}, paper: {system}', *cells], False))
    text = (
        'Average precision as COCO defines it. For boundary AP only the band inside the outline '
        'counts, 2% of the diagonal wide. AR is the average recall.'
    )
    parts = [html_page.table(['', *columns], rows)]
    if table and table.number == 4:
        parts.append(html_page.paragraph('* a misprint: AP75 cannot exceed AP50', 'note'))
    if 'glands' in figures:
        parts.append(_glands(figures, table is not None))
    if 'cityscapes' in figures:
        parts.append(_cityscapes(figures, table))
    return html_page.section('Figures', text, *parts)


def _glands(figures, compare) -> str:
    rows = []
    cells = lambda one: [_cell(one['F1']), _cell(one['dice']), f'{one["hausdorff"]:.1f}']  # noqa: E731
    for part, one in figures['glands'].items():
        rows.append(([f'{part}, this system', *cells(one)], True))
        for system, parts in paper.CONTEST.items() if compare else ():
            if part in parts:
                rows.append(([f'{part}, {system}', *cells(parts[part])], False))
    threshold = figures['score_threshold']
    text = (
        'The gland contest on label maps, at object level: a gland is found if half of it is '
        'covered; Hausdorff distance in pixels, where less is better. Painted from a score of '
        f'{threshold["value"]:.2f} on: {threshold["origin"]}.'
    )
    return html_page.paragraph(text) + html_page.table(['', 'F1', 'Dice', 'Hausdorff'], rows)


def _cityscapes(figures, table) -> str:
    masks = figures['cityscapes']
    names = list(masks['per_class'])
    rows = []
    for level in ('AP', 'AP50', 'AP75'):
        cells = [_cell(masks['per_class'][name][level]) for name in names]
        rows.append(([f'{level}, this system', _cell(masks[level]), *cells], True))
        for system, levels in (table.per_class['mask'] if table else {}).items():
            cells = [_cell(value) for value in levels[level]]
            rows.append(([f'{level}, paper: {system}', '', *cells], False))
    text = 'Masks by the official code of Cityscapes; its average is of eight of the ten classes.'
    return html_page.paragraph(text) + html_page.table(['', 'official', *names], rows)


def _cell(value: Optional[float]) -> str:
    return '-' if value is None else f'{value:.4f}'


# Charts.


def _charts(scored) -> str:
    figures = scored.figures
    sizes = {
        size: {kind: figures[kind][name] for kind in paper.KINDS}
        for size, name in (('small', 'APS'), ('medium', 'APM'), ('large', 'APL'))
    }
    shown = [
        html_page.figure(
            charts.lines(precision_recall(scored.matches), 'recall', 'precision'),
            'Precision over recall at several overlaps.',
        ),
        html_page.figure(charts.bars(sizes, 'AP'), 'AP by size of the object.'),
        _calibration_chart(scored.matches['mask']),
    ]
    return html_page.section(
        'Precision, size, scores',
        'Curves are means of the classes. Small is below 32 x 32 pixels, large above 96 x 96.',
        html_page.grid(shown),
    )


def _calibration_chart(matches) -> str:
    if len(matches.score) and not 0 <= matches.score.min() <= matches.score.max() <= 1:
        return html_page.paragraph('Scores are not between 0 and 1: no probabilities to look at.')
    curve, error = calibration(matches)
    return html_page.figure(
        charts.lines({'predictions': curve}, 'score', 'share that is right', True, True),
        'Are scores what they say? On the dotted line, of predictions with a score of .7 seven in '
        f'ten find an object (mask overlap of .5). Mean distance: {error:.3f}.',
    )


def precision_recall(matches) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Curves by name, recall and precision, means of the classes that have objects."""
    curves = {}
    for kind, threshold in _CURVES:
        place = int(np.flatnonzero(np.isclose(matching.THRESHOLDS, threshold))[0])
        found = [matches[kind].curve(k) for k in matches[kind].class_ids]
        precisions = [curve[0][place] for curve in found if curve is not None]
        if precisions:
            name = f'{kind} at {threshold:g}'
            curves[name] = (matching.RECALLS, np.mean(precisions, axis=0))
    return curves


def calibration(matches, num_bins=10) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """Mean score and share of right ones in each bin of scores; the mean distance of the two.

    Right is what finds an object with an overlap of at least 0.5. Scores are from 0 to 1. Naeini et
    al., Obtaining Well Calibrated Probabilities Using Bayesian Binning (2015).
    """
    kept = ~matches.ignored[0, 0]
    scores, right = matches.score[kept], matches.matched[0, 0][kept]
    if not len(scores):
        return (np.zeros(0), np.zeros(0)), 0.0
    bins = np.minimum((scores * num_bins).astype(int), num_bins - 1)
    there = np.unique(bins)
    mean_scores = np.array([scores[bins == k].mean() for k in there])
    shares = np.array([right[bins == k].mean() for k in there])
    sizes = np.array([np.count_nonzero(bins == k) for k in there])
    error = float(np.abs(mean_scores - shares) @ sizes / sizes.sum())
    return (mean_scores, shares), error


def _classes(scored) -> str:
    per_class = scored.figures['per_class']
    names = list(per_class['mask'])
    if len(names) == 1:
        return ''
    ranked = sorted(names, key=lambda name: -(per_class['mask'][name]['AP'] or 0))
    header = ['class', *(f'{kind} {level}' for kind in paper.KINDS for level in ('AP', 'AP50'))]
    rows = [
        (
            [name]
            + [_cell(per_class[k][name][level]) for k in paper.KINDS for level in ('AP', 'AP50')],
            False,
        )
        for name in ranked
    ]
    text = 'From the best to the worst by mask AP.'
    if len(names) <= _MOST_BARS:
        bars = charts.rows({name: per_class['mask'][name]['AP'] for name in ranked}, {})
        chart = html_page.figure(bars, 'Mask AP by class.')
        return html_page.section(
            'Classes', text, html_page.grid([chart]), html_page.table(header, rows)
        )
    return html_page.section('Classes', text, html_page.table(header, rows))


def _errors(scored) -> str:
    errors = scored.figures['errors']
    notes = {kind: f'({count})' for kind, count in errors['counts'].items()}
    return html_page.section(
        'Errors',
        'AP50 of masks that would be gained if one kind of error alone were mended, and in '
        'brackets how many there are (TIDE). Localization: the overlap with an object of the class '
        'is .1 to .5. Classification: it would be right in another class. Both: both of these. '
        'Duplicate: a second find. Background: on nothing. Missed: no prediction meant the object.',
        html_page.grid([html_page.figure(charts.rows(errors['costs'], notes), 'Cost in AP50.')]),
    )


# Pictures.


def _pictures(scored) -> str:
    threshold = scored.figures['score_threshold']['value']
    ids = scored.record_set.image_ids
    qualities = error_types.image_qualities(scored.errors, ids, threshold)
    ranked = sorted(ids, key=lambda image_id: (-qualities[image_id], image_id))
    count = min(NUM_PICTURES, (len(ranked) + 1) // 2)
    best, worst = ranked[:count], ranked[::-1][: min(count, len(ranked) - count)]
    pictures = read_pictures(scored.dataset, scored.split, [*best, *worst])
    show = lambda image_id: show_picture(  # noqa: E731
        scored, pictures[image_id], image_id, threshold, qualities[image_id]
    )
    return html_page.section(
        'Best and worst pictures',
        f'Predictions with a score of at least {threshold:.2f}. Ranked by panoptic quality: the '
        'overlaps of the found objects, over the found ones plus half of the false and half of the '
        'missed ones.',
        html_page.swatches(OUTLINE_COLOURS),
        '<h3>Best</h3>' + html_page.grid(map(show, best)),
        '<h3>Worst</h3>' + html_page.grid(map(show, worst)) if worst else '',
    )


OUTLINE_COLOURS = {'truth': visualization.TRUTH, 'prediction': visualization.FOUND}


def read_pictures(dataset, split: str, image_ids: Sequence[int]) -> dict[int, np.ndarray]:
    """Pictures, uint8 [H, W, 3] RGB, by id, from the data set itself."""
    wanted = set(image_ids)
    return {
        item.image_id: dataset.read(item).image
        for item in dataset.items(split)
        if item.image_id in wanted
    }


def show_picture(scored, image, image_id, threshold, quality, system='') -> str:
    """One picture with both kinds of outlines; its caption says what was found, by which system."""
    errors = scored.errors
    own = (errors.image == image_id) & (errors.score >= threshold)
    right = np.count_nonzero(own & (errors.kind == error_types.RIGHT))
    false = np.count_nonzero(own & (errors.kind >= 0))
    total = np.count_nonzero(errors.truth_image == image_id)
    objects = parallel.by_image(scored.truth['annotations'])[image_id]
    found = [scored.predictions[place] for place in errors.prediction[own]]
    drawn = visualization.draw_outlines(image, map(decode, objects), map(decode, found))
    name = next(i['file_name'] for i in scored.truth['images'] if i['id'] == image_id)
    caption = f'{name}: quality {quality:.2f}, {right} of {total} found, {false} false'
    caption = f'{system}, {caption}' if system else caption
    return html_page.figure(html_page.picture(drawn, caption), caption)


def decode(entry) -> np.ndarray:
    """The mask of an annotation or result, bool [H, W]."""
    return mask_api.decode(entry['segmentation']).astype(bool)


def _outlines(scored) -> str:
    pairs = _boundary_overlaps(scored)
    if not pairs:
        return ''
    middle = len(pairs) // 2
    chosen = {
        'Farthest off': pairs[:NUM_ZOOMS],
        'Typical': pairs[max(NUM_ZOOMS, middle - NUM_ZOOMS // 2) :][:NUM_ZOOMS],
    }
    places = [pair for group in chosen.values() for pair in group]
    ids = [int(scored.errors.image[row]) for _, row in places]
    pictures = read_pictures(scored.dataset, scored.split, ids)
    parts = [html_page.swatches(OUTLINE_COLOURS)]
    for name, group in chosen.items():
        if group:
            shown = [_zoom(scored, pictures, overlap, row) for overlap, row in group]
            parts.append(f'<h3>{name}</h3>' + html_page.grid(shown, small=True))
    return html_page.section(
        'Outlines from near',
        f'Objects that are found with a mask overlap of at least {_GOOD_OVERLAP}: by area all is '
        f'well. Shown is where the two outlines are farthest apart, {_ZOOM_SCALE} times enlarged.',
        *parts,
    )


def _boundary_overlaps(scored) -> list[tuple[float, int]]:
    """Boundary IoU and row of `Errors` of well-found objects, the smallest first."""
    errors = scored.errors
    rows = np.flatnonzero(
        (errors.kind == error_types.RIGHT)
        & (errors.overlap >= _GOOD_OVERLAP)
        & (errors.score >= scored.figures['score_threshold']['value'])
    )
    rows = rows[np.argsort(-errors.score[rows], kind='stable')][:_MOST_OUTLINES]
    pairs = []
    for row in rows:
        bands = [boundary.encode_band(one['segmentation']) for one in _pair(scored, row)]
        pairs.append((float(mask_api.iou(bands[:1], bands[1:], [0])[0, 0]), int(row)))
    return sorted(pairs)


def _pair(scored, row):
    """Annotation and result of a found object."""
    errors = scored.errors
    return (
        scored.truth['annotations'][errors.truth[errors.target[row]]],
        scored.predictions[errors.prediction[row]],
    )


def _zoom(scored, pictures, overlap, row) -> str:
    image_id = int(scored.errors.image[row])
    truth, found = (decode(one) for one in _pair(scored, row))
    shown = visualization.zoom(pictures[image_id], truth, found, _ZOOM_SIDE, _ZOOM_SCALE)
    name = next(i['file_name'] for i in scored.truth['images'] if i['id'] == image_id)
    caption = (
        f'{name}: overlap of masks {scored.errors.overlap[row]:.2f}, of boundaries {overlap:.2f}'
    )
    return html_page.figure(html_page.picture(shown, caption), caption)
