# SPDX-License-Identifier: Apache-2.0
"""The one list of predictions that every metric reads: COCO results at the images' own size.

The mask head (paper, Section 3) predicts 28x28 probabilities per box; AP is measured on masks of
the whole image. Masks are pasted one by one into their box's window and kept as run lengths, so
that neither memory nor time grow with the image's area. Pasting follows Detectron2's
`paste_masks_in_image`: the box is not rounded and pixels are sampled at their centres.

Beside a file of predictions lies its manifest: data set, split, classes, and the checkpoint. Files
of other systems need none; every entry is checked before anything is scored.

Shapes: N detections, S side of the predicted masks (28).
"""

import os
from typing import Any

import numpy as np

from gan_mrcnn.utils import coco_annotations, files, run_lengths
from gan_mrcnn.utils.errors import UserError

# Of a block that is pasted at a time: it fits a core's cache, and is too small for NumPy's BLAS to
# spread over threads, which would get in the way of those that paste other images.
_MULTIPLICATIONS = 1 << 18
_RESULT_KEYS = ('image_id', 'category_id', 'bbox', 'score', 'segmentation')


def tent_weights(centres, low, high, num_cells):
    """Bilinear weights of the cells of a mask that is stretched over [low, high), on one axis.

    Operators only, so that NumPy and a TensorFlow graph compute the same, to the bit.

    Args:
      centres: float64 [P], array or tensor, places of the pixels' centres on the axis.
      low: where the first cell begins, a number or scalar float64 tensor.
      high: where the last cell ends, above `low`.
      num_cells: S, an int.

    Returns:
      float64 [P, S]. Cells outside the mask count as zero, so a pixel within half a cell of the
      border has weights that sum to less than one.
    """
    cells = (centres - low) / (high - low) * num_cells - 0.5
    nearness = 1.0 - abs(cells[:, None] - np.arange(num_cells, dtype=np.float64))
    # max(0, nearness), and exact: x + x and its half are, and -x + x is 0.
    return (nearness + abs(nearness)) / 2.0


def paste_window(mask, box, height, width, threshold=0.5):
    """Stretches one predicted mask over its box and thresholds it, in image pixels.

    Args:
      mask: float [S, S'], probabilities.
      box: float [y1, x1, y2, x2] in image pixels, neither rounded nor clipped.
      height: of the image, in pixels.
      width: of the image, in pixels.
      threshold: pixels of at least this probability belong to the object.

    Returns:
      Top and left of the window of pixels that the box touches, and the window, bool [h, w], by
      columns in memory, as run lengths are. Bilinear interpolation at pixel centres, zero outside
      the mask (`grid_sample` with align_corners=False, as in Detectron2). A box that is empty or
      lies outside the image gives a window without pixels.

    Raises:
      ValueError: the box is not finite.
    """
    if not np.all(np.isfinite(box)):
        raise ValueError(f'cannot paste a mask into the box {list(box)}: it is not finite')
    mask = np.asarray(mask, np.float64)
    y1, x1, y2, x2 = (float(value) for value in box)
    # Half a cell beyond the box the interpolant is not zero yet, but below one half: like the
    # published versions, only pixels that the box touches are filled.
    top, bottom = max(int(np.floor(y1)), 0), min(int(np.ceil(y2)), height)
    left, right = max(int(np.floor(x1)), 0), min(int(np.ceil(x2)), width)
    if y2 <= y1 or x2 <= x1 or bottom <= top or right <= left:
        return 0, 0, np.zeros((0, 0), bool)
    rows = tent_weights(np.arange(top, bottom) + 0.5, y1, y2, mask.shape[0])
    columns = tent_weights(np.arange(left, right) + 0.5, x1, x2, mask.shape[1])
    by_rows = (rows @ mask).T
    by_columns = np.empty((right - left, bottom - top), bool)
    step = max(1, _MULTIPLICATIONS // by_rows.size)
    for first in range(0, len(columns), step):
        part = slice(first, first + step)
        np.greater_equal(columns[part] @ by_rows, threshold, out=by_columns[part])
    return top, left, by_columns.T


def paste_mask(mask, box, height, width, threshold=0.5):
    """`paste_window` in a mask of the image's size, uint8 [height, width], 1 inside."""
    top, left, window = paste_window(mask, box, height, width, threshold)
    pasted = np.zeros((height, width), np.uint8)
    pasted[top : top + window.shape[0], left : left + window.shape[1]] = window
    return pasted


def detections_to_coco(image_id, boxes_yx, scores, classes, masks, image_info):
    """Turns one image's detections into COCO results in the image's own pixels.

    Args:
      image_id: int.
      boxes_yx: float [N, 4], [y1, x1, y2, x2] in pixels of the network's input.
      scores: float [N]; rows without a positive score are padding and are skipped.
      classes: int [N], 1-based.
      masks: float [N, S, S], probabilities of the detection's own class.
      image_info: float [4, 2], the Model Garden's: original (height, width), scaled (height,
        width), (y, x) scale, (y, x) offset of the crop in scaled pixels.

    Returns:
      A list of COCO result dicts; 'bbox' is [x, y, width, height] clipped to the image. The mask
      is pasted into the box before clipping, because that is where the network saw it.

    Raises:
      UserError: a detection with a positive score has a box that is not finite.
    """
    image_info = np.asarray(image_info, np.float64)
    height, width = (int(side) for side in np.round(image_info[0]))
    scale, offset = np.tile(image_info[2], 2), np.tile(image_info[3], 2)
    boxes = (np.asarray(boxes_yx, np.float64).reshape(-1, 4) + offset) / scale
    clipped = np.clip(boxes, 0, [height, width, height, width])
    results = []
    rows = np.flatnonzero(np.asarray(scores) > 0)
    if not np.all(np.isfinite(boxes[rows])):
        raise UserError(
            f'image {image_id}: a predicted box is not finite; the network of this checkpoint has '
            'diverged, take an earlier one'
        )
    for row in rows:
        top, left, window = paste_window(masks[row], boxes[row], height, width)
        y1, x1, y2, x2 = (float(value) for value in clipped[row])
        if y2 <= y1 or x2 <= x1:
            continue
        results.append(
            {
                'image_id': int(image_id),
                'category_id': int(classes[row]),
                'bbox': [x1, y1, x2 - x1, y2 - y1],
                'score': float(scores[row]),
                'segmentation': run_lengths.encode_window(window, top, left, height, width),
            }
        )
    return results


def manifest_path(path: str) -> str:
    """Where the manifest of a file of predictions is: beside it, `NAME.manifest.json`."""
    return f'{os.path.splitext(path)[0]}.manifest.json'


def save_predictions(path, predictions, manifest):
    """Writes COCO results, and beside them what they are predictions of.

    Args:
      path: of the JSON file; each of the two is written whole or not at all.
      predictions: list of COCO results, category ids as the data set has them.
      manifest: dict with at least 'dataset', 'split' and 'categories' (of COCO: id and name).
    """
    files.write_json(path, predictions, indent=None)
    files.write_json(manifest_path(path), manifest)


def load_manifest(path: str) -> dict[str, Any]:
    """The manifest beside a file of predictions, empty without one.

    Raises:
      UserError: it cannot be read.
    """
    manifest = manifest_path(path)
    if not os.path.exists(manifest):
        return {}
    content = files.load_json(manifest, 'a manifest that evaluate.py wrote, or remove the file')
    if not isinstance(content, dict):
        raise UserError(f'{manifest} is not a JSON object; remove the file or evaluate again')
    return content


def check_manifest(path: str, manifest: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raises UserError where predictions are of other data or classes than expected."""
    for key in ('dataset', 'split', 'categories'):
        if key in manifest and manifest[key] != expected[key]:
            raise UserError(
                f'{manifest_path(path)}: the predictions have the {key} {manifest[key]!r}, not '
                f'{expected[key]!r}; score them on the data they were made for'
            )


def load_predictions(path, ground_truth, category_ids):
    """Reads COCO results with boxes and masks, ours or another system's.

    Args:
      path: of a JSON file.
      ground_truth: COCO annotations of the predicted images, with categories 1, 2, ...
      category_ids: the data set's own id of each of these, which the file has.

    Returns:
      A list of COCO results whose category ids are those of `ground_truth`.

    Raises:
      UserError: the file cannot be read, or an entry cannot be scored; it is named.
    """
    predictions = files.load_json(path, 'a JSON file of COCO results')
    if not isinstance(predictions, list):
        raise UserError(f'{path} does not hold a list; give a JSON file of COCO results')
    sizes = {image['id']: (image['height'], image['width']) for image in ground_truth['images']}
    own = {category_id: place for place, category_id in enumerate(category_ids, start=1)}
    for number, prediction in enumerate(predictions):
        if isinstance(prediction, dict):
            for key in ('image_id', 'category_id'):
                if key in prediction:
                    prediction[key] = coco_annotations.whole(prediction[key])
        text = _error_in_entry(prediction, sizes, own)
        if text:
            raise UserError(f'{path}: entry {number} {text}')
    return [{**one, 'category_id': own[one['category_id']]} for one in predictions]


def _error_in_entry(prediction, sizes, category_ids) -> str:
    """Why one entry cannot be scored, '' where it can.

    Args:
      prediction: should be a COCO result with box and mask.
      sizes: (height, width) by image id.
      category_ids: that it may have.
    """
    short = coco_annotations.short
    entry = prediction if isinstance(prediction, dict) else {}
    missing = [key for key in _RESULT_KEYS if key not in entry]
    if missing:
        return f'has no {", ".join(missing)}; give COCO results with boxes and masks'
    image_id = prediction['image_id']
    if not coco_annotations.is_id(image_id) or image_id not in sizes:
        return (
            f'has the image_id {short(image_id)}, which is not in this split; give the split that '
            'was predicted'
        )
    where = f'(image_id {image_id}) '
    category_id = prediction['category_id']
    if not coco_annotations.is_id(category_id) or category_id not in category_ids:
        known = sorted(category_ids)
        return f'{where}has the category_id {short(category_id)}; the data set has {known}'
    if not coco_annotations.is_number(prediction['score']):
        return f'{where}has the score {short(prediction["score"])}; expected a finite number'
    box = prediction['bbox']
    if not isinstance(box, list) or len(box) != 4 or not all(map(coco_annotations.is_number, box)):
        return f'{where}has the box {short(box)}; expected [x, y, width, height] in pixels'
    if box[2] < 0 or box[3] < 0:
        return f'{where}has the box {box!r} of negative size; expected [x, y, width, height]'
    mask = prediction['segmentation']
    if not isinstance(mask, dict) or not isinstance(mask.get('counts'), str):
        return f'{where}has a segmentation that is not compressed run lengths of pycocotools'
    text = coco_annotations.error_in(prediction, *sizes[image_id], category_ids)
    return f'{where}{text}' if text else ''
