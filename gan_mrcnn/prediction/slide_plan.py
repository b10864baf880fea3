# SPDX-License-Identifier: Apache-2.0
"""What is to be done with a slide: at which resolution it is seen, in which tiles, and where.

The network scales the shorter side of whatever it is given to the same length. It sees objects at
the scale that it knows where two things are as in training: the micrometres to a pixel, and the
size of the image in pixels. So a slide is seen at the resolution of the training images, in
tiles of their size. Tiles without tissue are left out.
"""

import dataclasses
import itertools
import os
from typing import Any, NamedTuple, Optional

import numpy as np

from gan_mrcnn.prediction import model_card, slide_files, slides, tiles, tissue
from gan_mrcnn.utils.errors import UserError

# Raise it when rows are written otherwise, or other ones for the same settings.
FORMAT_VERSION = 1

Window = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Options:
    """How slides are predicted.

    model: path that the network is from: another one is another prediction.
    tta: as the command line has it.
    score_threshold: objects below it are dropped; None for the model's own.
    batch_size: tiles that the network sees at a time.
    tile: height and width in pixels of the training images; None for the size of these images.
    overlap: of neighbouring tiles, in those pixels; None for a quarter of a tile's shorter side.
    mpp: micrometres per pixel of the training images; None for what the model says.
    slide_mpp: of level 0 of the slides; None for what their files say.
    finds_tissue: whether tiles without tissue are left out.
    """

    model: str
    tta: Optional[str] = None
    score_threshold: Optional[float] = None
    batch_size: int = 4
    tile: Optional[tuple[int, int]] = None
    overlap: Optional[int] = None
    mpp: Optional[float] = None
    slide_mpp: Optional[float] = None
    finds_tissue: bool = True


class Plan(NamedTuple):
    """What is to be done with a slide.

    view: the slide at the resolution of the training images.
    rows: windows of the tiles with tissue, by row from top to bottom; no row is empty.
    num_tiles: with those without tissue.
    scale: of the view.
    picture: the slide, small, [h, w, 3] uint8 RGB.
    mask: where tissue is, [h', w'] bool; all of it where none is looked for.
    """

    view: slides.View
    rows: list[list[Window]]
    num_tiles: int
    scale: slide_files.Scale
    picture: np.ndarray
    mask: np.ndarray


def micrometres_of(slide: slides.Slide, given: Optional[float]) -> tuple[float, float]:
    """Micrometres per pixel of level 0, vertical and horizontal.

    Raises:
      SlideError: neither the file nor --slide_mpp says.
    """
    if given is not None:
        return (_checked(given, '--slide_mpp'),) * 2
    if slide.micrometres_per_pixel is None:
        hint = f' (its objective: {slide.objective})' if slide.objective else ''
        raise slides.SlideError(
            f'{slide.path} does not say its resolution{hint}; give the micrometres per pixel of '
            'level 0 by --slide_mpp'
        )
    return slide.micrometres_per_pixel


def model_micrometres(card: model_card.ModelCard, given: Optional[float]) -> float:
    """Micrometres per pixel of the training images.

    Raises:
      UserError: neither the card nor --mpp says.
    """
    if given is not None:
        return _checked(given, '--mpp')
    found = card.micrometres_per_pixel
    if found is None or not slides.LEAST_MPP <= found <= slides.MOST_MPP:
        raise UserError(
            'the model does not say the resolution of its training images; give their micrometres '
            'per pixel by --mpp'
        )
    return found


def _checked(micrometres: float, flag: str) -> float:
    if not slides.LEAST_MPP <= micrometres <= slides.MOST_MPP:
        raise UserError(
            f'{flag} {micrometres:g} is no resolution of a microscope; give micrometres per pixel, '
            'such as 0.5'
        )
    return micrometres


def tile_of(card: model_card.ModelCard, options: Options) -> tuple[tuple[int, int], int]:
    """Height and width of a tile, and the overlap of neighbours, in pixels.

    Raises:
      UserError: neither the card nor --tile says the size, or the overlap cannot be one.
    """
    tile = options.tile or card.image_size
    if tile is None:
        raise UserError(
            'the model does not say the size of its training images; give their height and width '
            'by --tile'
        )
    return tuple(tile), tiles.check(tile, options.overlap)


def settings_of(
    slide: slides.Slide, card: model_card.ModelCard, options: Options
) -> dict[str, Any]:
    """All that the results depend on, as JSON.

    The batch is not among it, so that a run that ran out of memory goes on with a smaller one.

    Raises:
      UserError: see `micrometres_of`, `model_micrometres` and `tile_of`.
    """
    tile, overlap = tile_of(card, options)
    threshold = card.score_threshold
    if options.score_threshold is not None:
        threshold = options.score_threshold
    return {
        'format': FORMAT_VERSION,
        'slide': slide.path.name,
        'bytes': slide.path.stat().st_size,
        'size': list(slide.size),
        'slide_mpp': list(micrometres_of(slide, options.slide_mpp)),
        'model': os.path.realpath(options.model),
        'checkpoint': card.checkpoint,
        'step': card.step,
        'classes': list(card.class_names),
        'mpp': model_micrometres(card, options.mpp),
        'tile': list(tile),
        'overlap': overlap,
        'score_threshold': threshold,
        'tta': options.tta,
        'tissue': options.finds_tissue,
    }


def make_plan(slide: slides.Slide, settings: dict[str, Any]) -> Plan:
    """Which tiles of a slide are predicted, and at what scale.

    Raises:
      SlideError: the slide is damaged, or has no tissue.
    """
    own = tuple(settings['slide_mpp'])
    view = view_of(slide, settings)
    height, width = view.height, view.width
    mask = _tissue(slide, own) if settings['tissue'] else np.ones((1, 1), bool)
    windows = tiles.make_tiles(height, width, settings['tile'], settings['overlap'])
    chosen = [window for window in windows if tissue.is_in(mask, window, height, width)]
    if not chosen:
        raise slides.SlideError(f'{slide.path} has no tissue; --tissue off predicts all of it')
    return Plan(
        view=view,
        rows=[list(row) for _, row in itertools.groupby(chosen, key=lambda window: window[0])],
        num_tiles=len(windows),
        scale=slide_files.Scale((slide.size.height / height, slide.size.width / width), own),
        picture=slide_files.overview_of(slide),
        mask=mask,
    )


def view_of(slide: slides.Slide, settings: dict[str, Any]) -> slides.View:
    """The slide at the resolution of the training images."""
    height, width = (
        max(1, round(side * mpp / settings['mpp']))
        for side, mpp in zip(slide.size, settings['slide_mpp'])
    )
    return slide.view(height, width)


def _tissue(slide, micrometres):
    height, width = (
        max(1, round(side * mpp / tissue.MICROMETRES_PER_PIXEL))
        for side, mpp in zip(slide.size, micrometres)
    )
    pixels = slide.view(height, width).read((0, 0, height, width))
    return tissue.find(pixels, tissue.MICROMETRES_PER_PIXEL)
