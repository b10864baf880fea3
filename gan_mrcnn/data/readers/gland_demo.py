# SPDX-License-Identifier: Apache-2.0
"""The embedded demo set: rendered glands, so that everything runs before the real data are there.

Not in the paper. Each image is drawn from a seed and its number: stroma with fibres and nuclei, and
glands as a ring of dark nuclei around a pale lumen, benign-like (smooth, a layer of nuclei, a wide
lumen) or malignant-like (ragged, crowded nuclei in several layers, small irregular lumens). Some
glands touch. Nothing about the figures on it is medical.

Shapes: H x W = 256 x 384, about half of the real images' resolution; drawing is done at twice that.
"""

import hashlib
import math
from typing import Optional

import cv2
import numpy as np

from gan_mrcnn.data.readers import base
from gan_mrcnn.utils import run_lengths

# Part of the fingerprint: to be raised when the same seed would give other images.
DEMO_VERSION = 1
HEIGHT, WIDTH = 256, 384

_SCALE = 2
_SIZE = (_SCALE * HEIGHT, _SCALE * WIDTH)
# Images of a split, by number.
_SPLITS = {
    'train': range(0, 48),
    'val': range(48, 60),
    'trainval': range(0, 60),
    'test': range(60, 80),
}
# No object is smaller, in pixels of the finished image.
MIN_AREA = 150
# Colours are RGB, of a haematoxylin and eosin stain.
_STROMA, _FIBRE = (224, 158, 194), (243, 214, 228)
_CYTOPLASM = {'benign': (206, 152, 196), 'malignant': (184, 122, 178)}
_LUMEN = (244, 238, 243)
_NUCLEUS = {'benign': (104, 58, 138), 'malignant': (84, 42, 122)}


class DemoGlands(base.Dataset):
    """48 rendered images to train on, 12 to choose checkpoints, 20 to test, half of each grade."""

    name = 'gland'
    class_names = ('gland',)
    splits = tuple(_SPLITS)
    parts = ('train', 'val', 'test')
    is_demo = True
    origin = 'Glands that gan-mrcnn has rendered; nobody else has a right to them.'
    notice = (
        'DEMO DATA: rendered glands, not tissue. The figures mean nothing medically and cannot be '
        'compared\nwith any paper. To use the real data: download the Warwick-QU data set (GlaS, '
        'MICCAI 2015) from\nhttps://warwick.ac.uk/fac/cross_fac/tia/data/glascontest/, unpack it '
        'and pass --data_dir DIR'
    )

    def __init__(self, seed: int = 0):
        """`seed` is that of the images: each one depends on it and on its own number only."""
        self._seed = seed

    def items(self, split: str) -> list[base.Item]:
        return [base.Item(index + 1, f'demo_{index + 1}.png') for index in _SPLITS[split]]

    def fingerprint(self, split: str) -> str:
        # Another OpenCV or NumPy may draw a pixel differently.
        parts = (DEMO_VERSION, self._seed, split, _SPLITS[split], cv2.__version__, np.__version__)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def read(self, item: base.Item) -> base.Example:
        image, labels = render(self._seed, item.image_id - 1)
        numbers = range(1, labels.max() + 1)
        return base.Example(
            image_id=item.image_id,
            file_name=item.file_name,
            image=image,
            rles=run_lengths.encode_labels(labels, numbers),
            classes=np.ones(len(numbers), np.int32),
            is_crowd=np.zeros(len(numbers), bool),
        )


def render(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws image `index`; even ones are benign-like, odd ones malignant-like.

    Returns:
      The image [H, W, 3] uint8, RGB, and its labels [H, W] uint8: 0 outside, glands from 1 on.
    """
    rng = np.random.default_rng([seed, index])
    grade = ('benign', 'malignant')[index % 2]
    labels = _place_glands(rng, grade)
    canvas = _draw_stroma(rng)
    for number in range(1, labels.max() + 1):
        _draw_gland(rng, canvas, labels == number, grade)
    image = cv2.resize(canvas, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return _stain(rng, image), labels[::_SCALE, ::_SCALE].copy()


def _outline(rng, grade, radius) -> np.ndarray:
    """A closed outline [P, 2] around 0, x and y: an ellipse with waves of random phase."""
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    waves = np.arange(2, 5) if grade == 'benign' else np.arange(2, 13)
    strength = 0.07 if grade == 'benign' else 0.3
    amplitudes = rng.normal(0, strength, len(waves)) / waves**0.9
    phases = rng.uniform(0, 2 * np.pi, (len(waves), 1))
    reach = radius * (1 + amplitudes @ np.cos(waves[:, None] * angle + phases))
    reach = np.maximum(reach, 0.4 * radius)
    aspect = np.sqrt(rng.uniform(1, 1.9))
    points = np.stack([reach * np.cos(angle) * aspect, reach * np.sin(angle) / aspect], -1)
    turn = rng.uniform(0, np.pi)
    cos, sin = np.cos(turn), np.sin(turn)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _fill(outline) -> np.ndarray:
    mask = np.zeros(_SIZE, np.uint8)
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
    return mask.astype(bool)


def _place_glands(rng, grade) -> np.ndarray:
    """Labels [2H, 2W] uint8 of glands that lie apart, except for some touching pairs."""
    labels = np.zeros(_SIZE, np.uint8)
    centres = []
    wanted = rng.integers(7, 17)
    for _ in range(70):
        if len(centres) == wanted:
            break
        radius = _SCALE * np.clip(rng.lognormal(np.log(30), 0.4), 15, 66)
        shape = _outline(rng, grade, radius)
        if centres and rng.random() < 0.3:
            placed = _slide_to_touch(rng, shape, labels, centres)
        else:
            placed = _place_apart(rng, shape, labels)
        if placed is not None:
            centre, mask = placed
            centres.append(centre)
            labels[mask] = len(centres)
    return labels


def _place_apart(rng, shape, labels) -> Optional[tuple[np.ndarray, np.ndarray]]:
    """Centre and mask at a random place with stroma all around, None if it is taken."""
    centre = rng.uniform((0, 0), (_SIZE[1], _SIZE[0]))
    mask = _fill(shape + centre)
    around = cv2.dilate(mask.astype(np.uint8), np.ones((15, 15), np.uint8)).astype(bool)
    if labels[around].any() or not _is_one_piece(mask):
        return None
    return centre, mask


def _slide_to_touch(rng, shape, labels, centres) -> Optional[tuple[np.ndarray, np.ndarray]]:
    """Moves `shape` towards a gland until they touch; None if it meets another one."""
    target = rng.integers(len(centres))
    turn = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(turn), np.sin(turn)])
    for distance in range(300, 20, -6):
        centre = centres[target] + distance * direction
        mask = _fill(shape + centre)
        met = labels[mask]
        met = met[met != 0]
        if (met != target + 1).any():
            return None
        if len(met) > 60:
            # Two of these pixels are one of the finished image: what is left between the two.
            taken = cv2.dilate((labels != 0).astype(np.uint8), np.ones((5, 5), np.uint8))
            mask &= taken == 0
            return (centre, mask) if _is_one_piece(mask) else None
    return None


def _is_one_piece(mask) -> bool:
    """Whether `mask` is connected and large enough in the finished image."""
    small = mask[::_SCALE, ::_SCALE].astype(np.uint8)
    return small.sum() >= MIN_AREA and cv2.connectedComponents(small, connectivity=4)[0] == 2


def _noise(rng, cells_y, cells_x) -> np.ndarray:
    """Smooth noise [2H, 2W] float32 of about unit variance, with so many cells down and across."""
    coarse = rng.standard_normal((cells_y, cells_x)).astype(np.float32)
    return cv2.resize(coarse, _SIZE[::-1], interpolation=cv2.INTER_CUBIC)


def _fibres(rng) -> np.ndarray:
    """Noise [2H, 2W] that is long in one direction, bent by a slow wave."""
    turn = rng.uniform(0, np.pi)
    y, x = np.mgrid[: _SIZE[0], : _SIZE[1]].astype(np.float32)
    bend = 22 * _noise(rng, 4, 6)
    # Python's own numbers: NumPy 2 would make float64 of its float32 arrays for one of NumPy's.
    cosine, sine = math.cos(turn), math.sin(turn)
    along = (x * cosine + y * sine) / 14
    across = (y * cosine - x * sine + bend) / 2.2
    tile = rng.standard_normal((512, 128)).astype(np.float32)
    return cv2.remap(tile, along, across, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _draw_stroma(rng) -> np.ndarray:
    """Canvas [2H, 2W, 3] uint8: pink fibres and the long nuclei that lie between the glands."""
    share = 0.35 + 0.22 * _fibres(rng) + 0.2 * _noise(rng, 10, 15) + 0.12 * _noise(rng, 64, 96)
    share = np.clip(share, 0, 1)[..., None]
    canvas = np.float32(_STROMA) * (1 - share) + np.float32(_FIBRE) * share
    canvas = np.clip(canvas, 0, 255).astype(np.uint8)
    number = rng.integers(700, 1400)
    places = rng.uniform((0, 0), (_SIZE[1], _SIZE[0]), (number, 2))
    # Nuclei come in crowds: kept where a slow noise is high.
    crowd = _noise(rng, 5, 8)[places[:, 1].astype(int), places[:, 0].astype(int)]
    places = places[crowd > rng.uniform(-1.2, 1.2, number)]
    turns = rng.normal(rng.uniform(0, 180), 35, len(places))
    _draw_nuclei(rng, canvas, places, turns, (6.5, 2.6), (128, 82, 152))
    return canvas


def _draw_nuclei(rng, canvas, places, turns, axes, colour) -> None:
    """Ellipses at `places` [K, 2], turned by `turns` degrees, half-axes about `axes`."""
    sizes = np.array(axes) * rng.uniform(0.7, 1.25, (len(places), 2))
    shades = np.array(colour) + rng.normal(0, 12, (len(places), 1))
    shades = np.clip(shades + rng.normal(0, 5, (len(places), 3)), 0, 255)
    for place, turn, size, shade in zip(places, turns, sizes, shades.tolist()):
        _ellipse(canvas, place, size, turn, shade)
        # Lighter inside: chromatin gathers at the nucleus's edge.
        _ellipse(canvas, place, size * 0.5, turn, [value + 22 for value in shade])


def _ellipse(canvas, place, size, turn, colour) -> None:
    # In sixteenths of a pixel.
    centre = tuple(int(value) for value in np.round(place * 16))
    axes = tuple(int(value) for value in np.round(size * 16))
    cv2.ellipse(canvas, centre, axes, float(turn), 0, 360, colour, -1, cv2.LINE_AA, 4)


def _draw_gland(rng, canvas, mask, grade) -> None:
    """Draws one gland into `canvas` inside `mask` [2H, 2W], with a thin pale cleft around it."""
    box = _window(mask, margin=6)
    own, part = mask[box].astype(np.uint8), canvas[box]
    depth = cv2.GaussianBlur(cv2.distanceTransform(own, cv2.DIST_L2, 5), (0, 0), 1.5)
    shade = 26 * cv2.GaussianBlur(rng.standard_normal(own.shape).astype(np.float32), (0, 0), 2)
    shade += rng.normal(0, 6)
    gland = np.float32(_CYTOPLASM[grade]) + shade[..., None]
    gland = np.ascontiguousarray(np.clip(gland, 0, 255).astype(np.uint8))
    if grade == 'benign':
        _draw_benign_inside(rng, gland, depth)
    else:
        _draw_malignant_inside(rng, gland, depth)
    cleft = (cv2.dilate(own, np.ones((5, 5), np.uint8)) > own) & (part.mean(-1) > 120)
    part[cleft] = (0.4 * part[cleft] + 0.6 * np.array(_FIBRE)).astype(np.uint8)
    part[own > 0] = gland[own > 0]


def _draw_benign_inside(rng, gland, depth) -> None:
    """A wide round lumen, goblet cells, and one layer of nuclei that stand on the outline."""
    wall = min(rng.uniform(26, 38), 0.62 * depth.max())
    _draw_lumen(rng, gland, depth + 1.5 * _small_noise(rng, depth, 3) > wall)
    places, turns = _ring(rng, depth, 0.62 * wall, spacing=11, jitter=2)
    goblets = rng.random(len(places)) < rng.uniform(0.3, 0.9)
    for place, turn in zip(places[goblets], turns[goblets]):
        size = np.array([0.24, 0.15]) * wall * rng.uniform(0.7, 1.15)
        _ellipse(gland, place, size, turn, (228, 205, 226))
    places, turns = _ring(rng, depth, min(9, 0.3 * wall), spacing=7.5, jitter=1)
    _draw_nuclei(rng, gland, places, turns, (6.8, 3.7), _NUCLEUS['benign'])


def _draw_malignant_inside(rng, gland, depth) -> None:
    """Small irregular lumens with debris, and crowded nuclei in layers without order."""
    wall = min(rng.uniform(24, 34), 0.66 * depth.max())
    lumen = (depth > wall) & (_small_noise(rng, depth, 9) > rng.uniform(-0.7, 0.5))
    _draw_lumen(rng, gland, lumen)
    inside = np.argwhere(lumen)[:, ::-1]
    debris = inside[rng.integers(0, len(inside), len(inside) // 350)] if len(inside) else inside
    turns = rng.uniform(0, 180, len(debris))
    _draw_nuclei(rng, gland, debris, turns, (3, 2.2), (150, 104, 160))
    for level in np.arange(7, wall, 9.5):
        places, turns = _ring(rng, depth, level, spacing=10, jitter=3)
        turns = turns + rng.normal(0, 22, len(turns))
        _draw_nuclei(rng, gland, places, turns, (7.2, 4.5), _NUCLEUS['malignant'])


def _draw_lumen(rng, gland, lumen) -> None:
    """Fills `lumen` with the pale colour and some streaks of mucus."""
    mucus = 7 * cv2.GaussianBlur(_small_noise(rng, lumen, 6), (0, 0), 2)
    colour = np.float32(_LUMEN) - np.abs(mucus)[..., None] * np.float32([0.8, 1.6, 0.6])
    share = cv2.GaussianBlur(lumen.astype(np.float32), (0, 0), 1.2)[..., None]
    gland[:] = np.clip(gland * (1 - share) + colour * share, 0, 255).astype(np.uint8)


def _ring(rng, depth, level, spacing, jitter):
    """Places [K, 2] along the line of equal `depth`, and the direction inwards there in degrees."""
    lines, _ = cv2.findContours(
        (depth > level).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
    )
    places = [np.empty((0, 2))]
    for line in lines:
        step = spacing * rng.uniform(0.9, 1.1)
        chosen = np.arange(rng.uniform(0, step), len(line), step).astype(int)
        places.append(line[chosen, 0].astype(np.float64))
    places = np.concatenate(places)
    column, row = places.astype(int).T
    # Where a gland is cut by the edge of the image there is no outline.
    kept = (column > 1) & (row > 1) & (column < depth.shape[1] - 2) & (row < depth.shape[0] - 2)
    places, column, row = places[kept], column[kept], row[kept]
    slope_y, slope_x = np.gradient(depth)
    turns = np.degrees(np.arctan2(slope_y[row, column], slope_x[row, column]))
    return places + rng.normal(0, jitter, places.shape), turns + rng.normal(0, 6, len(turns))


def _window(mask, margin) -> tuple[slice, slice]:
    """The smallest window around `mask` with a margin, within the canvas."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (
        slice(max(rows[0] - margin, 0), rows[-1] + margin + 1),
        slice(max(columns[0] - margin, 0), columns[-1] + margin + 1),
    )


def _small_noise(rng, like, cell) -> np.ndarray:
    """Smooth noise of about unit variance in the shape of `like`, in cells of so many pixels."""
    height, width = like.shape
    coarse = rng.standard_normal((height // cell + 2, width // cell + 2)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _stain(rng, image) -> np.ndarray:
    """What differs from slide to slide: strength of the two stains, light, blur and noise."""
    density = -np.log((image.astype(np.float32) + 1) / 256)
    density *= rng.uniform(0.8, 1.25) * rng.uniform(0.94, 1.06, 3).astype(np.float32)
    image = 256 * np.exp(-density) - 1
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.35, 0.7))
    image += rng.normal(0, 2.5, image.shape).astype(np.float32)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)
