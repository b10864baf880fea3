# SPDX-License-Identifier: Apache-2.0
"""Draws instances on images, as in the paper's Figures 4 to 8; nothing else in the package draws.

Instances get a translucent fill and an outline that lies inside the mask, so that two touching
glands stay two. Colours are told apart by colour-blind readers and stand out on the pink and
violet of H&E stains; neighbours get different ones.

Shapes: N instances, H and W height and width of the image in pixels.
"""

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from gan_mrcnn.utils import files

# After Okabe and Ito's colour-blind-friendly set, RGB, brighter, and without what sinks into H&E
# stains (purple, black); vermilion is kept for predictions that match no object.
PALETTE = ((0, 90, 220), (255, 225, 40), (0, 205, 130), (80, 205, 255))
UNMATCHED = (255, 85, 0)
# Outlines of both on one image: dark under bright, told apart without colour, too.
GROUND_TRUTH, PREDICTION = (0, 90, 220), (255, 225, 40)
_FILL = 0.25
_WHITE, _INK = (255, 255, 255), (40, 40, 40)
_FONT = cv2.FONT_HERSHEY_DUPLEX
# In pixels, of its capitals at a scale of 1.
_FONT_HEIGHT = 22.0
# Share of an instance that its score may cover.
_MOST_COVERED = 0.5
_MATCH_IOU = 0.5
_NEIGHBOUR_PIXELS = 12


def _line_width(height, width):
    return max(1, round(min(height, width) / 150))


def _erode(mask, radius):
    """Mask without its outermost `radius` pixels; beyond the image counts as outside."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    eroded = cv2.erode(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return eroded.astype(bool)


def neighbour_colours(masks):
    """Colours for masks bool [N, H, W]: uint8-valued tuples from PALETTE, RGB.

    Greedy: each instance takes, of the colours that no nearby instance has, the least used one.
    If all are taken nearby, the least used of all.
    """
    kernel = np.ones((_NEIGHBOUR_PIXELS + 1,) * 2, np.uint8)
    grown = [cv2.dilate(np.asarray(mask, np.uint8), kernel).astype(bool) for mask in masks]
    chosen = []
    for row, mask in enumerate(grown):
        near = {chosen[other] for other in range(row) if np.any(mask & grown[other])}
        free = [index for index in range(len(PALETTE)) if index not in near]
        chosen.append(min(free or range(len(PALETTE)), key=chosen.count))
    return [PALETTE[index] for index in chosen]


def _blend(canvas, where, colour, opacity):
    canvas[where] = np.round(canvas[where] * (1 - opacity) + np.multiply(colour, opacity))


def _draw_outline(canvas, mask, colour, width):
    """A line of `width` pixels in the colour, with a dark one-pixel rim; both inside the mask."""
    rim = _erode(mask, 1)
    canvas[mask & ~rim] = np.multiply(colour, 0.35).astype(np.uint8)
    canvas[rim & ~_erode(mask, 1 + width)] = colour


def _text_area(text, size):
    (width, height), _ = cv2.getTextSize(text, _FONT, size / _FONT_HEIGHT, 1)
    return width * height


def _put_text(canvas, text, centre_yx, size, colour=_WHITE, halo=_INK):
    """Text of about `size` pixels' height around a point, kept inside the canvas."""
    scale = size / _FONT_HEIGHT
    (width, height), _ = cv2.getTextSize(text, _FONT, scale, 1)
    x = int(np.clip(centre_yx[1] - width // 2, 1, max(1, canvas.shape[1] - width - 1)))
    y = int(np.clip(centre_yx[0] + height // 2, height + 1, max(height + 1, canvas.shape[0] - 2)))
    if halo is not None:
        cv2.putText(canvas, text, (x, y), _FONT, scale, halo, 3, cv2.LINE_AA)
    cv2.putText(canvas, text, (x, y), _FONT, scale, colour, 1, cv2.LINE_AA)


def _deepest_point(mask):
    """(y, x) of the pixel farthest from the mask's border: where a label covers least."""
    padded = np.pad(mask.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    return np.unravel_index(int(np.argmax(distance)), mask.shape)


def draw_instances(image, masks, boxes=None, scores=None, colours=None):
    """Draws instances on a copy of the image.

    Args:
      image: uint8 [H, W, 3], RGB.
      masks: bool [N, H, W].
      boxes: optional float [N, 4], [y1, x1, y2, x2] in pixels, drawn as thin frames.
      scores: optional float [N], written into the instances that are large enough.
      colours: optional N RGB tuples; by default neighbours get different ones.

    Returns:
      uint8 [H, W, 3], RGB. Without boxes and scores, pixels outside all masks are unchanged.

    Raises:
      ValueError: the masks are not of the image's size.
    """
    canvas = np.array(image, np.uint8)
    masks = np.asarray(masks, bool)
    if len(masks) == 0:
        return canvas
    if masks.shape[1:] != canvas.shape[:2]:
        raise ValueError(f'masks of {masks.shape[1:]} on an image of {canvas.shape[:2]}')
    colours = neighbour_colours(masks) if colours is None else colours
    line = _line_width(*canvas.shape[:2])
    # Large ones first, so that a small instance on a large one stays visible.
    order = np.argsort(-masks.sum((1, 2)), kind='stable')
    for row in order:
        _blend(canvas, masks[row], colours[row], _FILL)
    for row in order:
        _draw_outline(canvas, masks[row], colours[row], line)
    if boxes is not None:
        for row in order:
            y1, x1, y2, x2 = (int(round(float(value))) for value in boxes[row])
            cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), tuple(map(int, colours[row])), 1)
    if scores is not None:
        size = max(9, round(min(canvas.shape[:2]) / 38))
        for row in order:
            text = f'{scores[row]:.2f}'.replace('0.', '.')
            # On a small one it would be all that is seen.
            if _text_area(text, size) <= _MOST_COVERED * np.count_nonzero(masks[row]):
                _put_text(canvas, text, _deepest_point(masks[row]), size)
    return canvas


def shrink(image, masks, longest_side):
    """Image and masks at the size of the drawing.

    Args:
      image: uint8 [H, W, 3].
      masks: iterable of [H, W], read one by one, so that few are in memory.
      longest_side: of the result, in pixels, at most; a smaller image stays as it is.

    Returns:
      uint8 [h, w, 3] and bool [N, h, w]. A mask of less than half a pixel keeps one.
    """
    height, width = image.shape[:2]
    scale = min(1.0, longest_side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resize = lambda x: cv2.resize(x, size, interpolation=cv2.INTER_AREA)  # noqa: E731
    shrunk = []
    for mask in masks:
        cover = resize(np.asarray(mask, np.float32))
        shrunk.append((cover >= min(0.5, cover.max())) & (cover > 0))
    return resize(image), np.array(shrunk, bool).reshape(-1, size[1], size[0])


def _match_colours(gt_masks, gt_colours, masks):
    """Each mask [N, H, W], best first, takes the colour of the object it matches (IoU >= 0.5)."""
    colours = []
    free = dict(enumerate(gt_masks))
    for mask in masks:
        overlaps = {row: np.sum(mask & gt) / max(1, np.sum(mask | gt)) for row, gt in free.items()}
        best = max(overlaps, key=overlaps.get, default=None)
        if best is not None and overlaps[best] >= _MATCH_IOU:
            del free[best]
            colours.append(gt_colours[best])
        else:
            colours.append(UNMATCHED)
    return colours


def _decode(predictions, height, width):
    """Masks bool [N, height, width] of COCO results; ValueError if one has another size."""
    masks = np.zeros((len(predictions), height, width), bool)
    for row, prediction in enumerate(predictions):
        size = tuple(prediction['segmentation']['size'])
        if size != (height, width):
            raise ValueError(f'a predicted mask of {size} on an image of {(height, width)}')
        masks[row] = mask_utils.decode(prediction['segmentation'])
    return masks


def _with_title(panel, title, strip):
    head = np.full((strip, panel.shape[1], 3), 255, np.uint8)
    _put_text(head, title, (strip // 2, panel.shape[1] // 2), strip * 0.5, _INK, halo=None)
    return np.concatenate([head, panel])


def side_by_side(image, gt_masks, predictions, score_threshold=0.5):
    """Image, ground truth and predictions in a row, each under its title.

    A prediction has the colour of the object that it matches (IoU of at least 0.5, best score
    first); one that matches none, or one already matched, is vermilion.

    Args:
      image: uint8 [H, W, 3], RGB.
      gt_masks: bool [N, H, W], ground truth.
      predictions: COCO results of this image with 'score' and 'segmentation' (run lengths of size
        [H, W]); may be empty.
      score_threshold: predictions below it are not drawn.

    Returns:
      uint8 [strip + H, 3 W + 2 gap, 3], RGB, where strip and gap grow with the image.

    Raises:
      ValueError: a mask is not of the image's size.
    """
    height, width = image.shape[:2]
    gt_masks = np.asarray(gt_masks, bool).reshape(-1, height, width)
    shown = sorted(
        (prediction for prediction in predictions if prediction['score'] >= score_threshold),
        key=lambda one: -one['score'],
    )
    masks = _decode(shown, height, width)
    colours = neighbour_colours(gt_masks)
    panels = {
        'image': np.asarray(image, np.uint8),
        'ground truth': draw_instances(image, gt_masks, colours=colours),
        'predictions': draw_instances(
            image,
            masks,
            scores=[one['score'] for one in shown],
            colours=_match_colours(gt_masks, colours, masks),
        ),
    }
    strip, gap = max(20, height // 14), max(4, width // 80)
    titled = [_with_title(panel, title, strip) for title, panel in panels.items()]
    space = np.full((strip + height, gap, 3), 255, np.uint8)
    return np.concatenate([titled[0], space, titled[1], space, titled[2]], axis=1)


def draw_outlines(image, gt_masks, predicted_masks):
    """Outlines of the ground truth and of predictions on one copy of the image.

    Those of the ground truth are wider and lie below, so that where both agree both are seen.

    Args:
      image: uint8 [H, W, 3], RGB.
      gt_masks, predicted_masks: iterables of bool [H, W], read one by one.

    Returns:
      uint8 [H, W, 3], RGB.
    """
    canvas = np.array(image, np.uint8)
    line = max(2, round(min(canvas.shape[:2]) / 180))
    for mask in gt_masks:
        _draw_outline(canvas, mask, GROUND_TRUTH, line + 2)
    for mask in predicted_masks:
        _draw_outline(canvas, mask, PREDICTION, line)
    return canvas


def zoom(image, gt_mask, predicted_mask, side, scale):
    """Where two outlines are farthest apart, enlarged, with both drawn.

    Args:
      image: uint8 [H, W, 3], RGB.
      gt_mask, predicted_mask: bool [H, W], neither empty.
      side: of the square that is shown, in pixels of the image; smaller where the image is.
      scale: whole number that it is enlarged by.

    Returns:
      uint8 [scale * side, scale * side, 3], RGB.
    """
    y, x = _farthest_apart(gt_mask, predicted_mask)
    height, width = gt_mask.shape
    top = int(np.clip(y - side // 2, 0, max(0, height - side)))
    left = int(np.clip(x - side // 2, 0, max(0, width - side)))
    window = (slice(top, top + side), slice(left, left + side))
    # With a margin of repeated pixels, so that an object that continues beyond gets no line there.
    grow = lambda part: np.pad(part, [(4, 4), (4, 4)] + [(0, 0)] * (part.ndim - 2), 'edge')  # noqa: E731
    enlarge = lambda mask: np.kron(grow(mask[window]), np.ones((scale, scale), bool))  # noqa: E731
    shown = cv2.resize(grow(image[window]), None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    drawn = draw_outlines(shown, [enlarge(gt_mask)], [enlarge(predicted_mask)])
    return drawn[4 * scale : -4 * scale, 4 * scale : -4 * scale]


def _farthest_apart(first, second):
    """(y, x) halfway from the point of one outline that is farthest from the other to the other."""
    outlines = [mask & ~_erode(mask, 1) for mask in (first, second)]
    points = []
    for mine, other in (outlines, outlines[::-1]):
        distances = cv2.distanceTransform((~other).astype(np.uint8), cv2.DIST_L2, 5) * mine
        place = np.unravel_index(int(np.argmax(distances)), mine.shape)
        points.append((distances[place], place, other))
    _, place, other = max(points, key=lambda point: point[0])
    candidates = np.argwhere(other)
    nearest = candidates[np.argmin(((candidates - place) ** 2).sum(1))]
    return (nearest + place) // 2


def contact_sheet(rows):
    """Stacks images uint8 [H_i, W_i, 3] from top to bottom, white at the right of narrow ones.

    Returns uint8 [sum of H_i and the gaps, largest W_i, 3].

    Raises:
      ValueError: `rows` is empty.
    """
    if not rows:
        raise ValueError('a contact sheet needs at least one image')
    width = max(row.shape[1] for row in rows)
    gap = np.full((max(4, width // 240), width, 3), 255, np.uint8)
    stacked = []
    for row in rows:
        padding = ((0, 0), (0, width - row.shape[1]), (0, 0))
        stacked += [gap, np.pad(row, padding, constant_values=255)]
    return np.concatenate(stacked[1:])


def save_png(path, rgb):
    """Writes uint8 [H, W, 3] RGB as PNG, whole or not at all; makes the folder."""
    _, encoded = cv2.imencode('.png', np.ascontiguousarray(rgb[..., ::-1]))
    files.write_bytes(path, encoded.tobytes())
