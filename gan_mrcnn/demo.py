# SPDX-License-Identifier: Apache-2.0
"""The page of `gan-mrcnn demo`: an image in, outlines and files out.

Gradio makes the page and serves it. Nothing of it comes from other servers: no fonts, no counting
of visits. What was uploaded is deleted after an hour.
"""

import json
import os
import pathlib
import tempfile
import threading
from typing import NamedTuple, Optional

import cv2
import numpy as np

from gan_mrcnn import api
from gan_mrcnn.utils import files
from gan_mrcnn.utils.errors import UserError

# Objects below it are never shown: the slider begins here.
LOWEST_SCORE = 0.05
# Longest side of the picture that is shown, in pixels; files are of the image's size.
SHOWN = 1600
_KEPT_SECONDS = 3600
_COLUMNS = ('object', 'class', 'score', 'area')
_FONTS = ('system-ui', 'sans-serif')


class Found(NamedTuple):
    """What the network found in the image of one visitor, and where its files are.

    result: all objects from LOWEST_SCORE on.
    folder: removed when nothing refers to it any more.
    """

    result: api.Result
    folder: tempfile.TemporaryDirectory


def serve(
    model: api.Model,
    tile: Optional[tuple[int, int]],
    overlap: Optional[int],
    host: str,
    port: int,
) -> None:
    """Serves the page until Ctrl-C.

    Raises:
      UserError: the address cannot be had.
    """
    # Read when Gradio is imported.
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    import gradio

    page = make_page(model, tile, overlap)
    theme = gradio.themes.Base(font=_FONTS, font_mono=('ui-monospace', 'monospace'))
    try:
        page.launch(
            server_name=host,
            server_port=port,
            theme=theme,
            share=False,
            ssr_mode=False,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
            max_file_size='512mb',
        )
    except OSError as error:
        raise UserError(
            f'--host {host} --port {port} cannot be had ({error}); give another --port'
        ) from error
    shown = 'localhost' if host == '127.0.0.1' else host
    print(f'http://{shown}:{port} shows the page; Ctrl-C ends it', flush=True)
    try:
        # Gradio's own waiting takes Ctrl-C for itself.
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def make_page(model: api.Model, tile: Optional[tuple[int, int]], overlap: Optional[int]):
    """The page, a gradio.Blocks."""
    import gradio

    def detect(path, score):
        if path is None:
            return None, *show(None, score)
        try:
            result = model(path, LOWEST_SCORE, tile, overlap)
        except UserError as error:
            raise gradio.Error(_without_folder(error, path), title='', duration=None) from error
        found = Found(result, tempfile.TemporaryDirectory(prefix='gan_mrcnn_demo_'))
        return found, *show(found, score)

    def show(found, score):
        if found is None:
            return '', None, None, None
        kept = found.result.at_least(score)
        return summary(kept), shown(kept), table(kept), write(kept, found.folder.name)

    names = ', '.join(model.card.class_names)
    with gradio.Blocks(
        title='GAN Mask R-CNN', analytics_enabled=False, delete_cache=(60, _KEPT_SECONDS)
    ) as page:
        found = gradio.State(time_to_live=_KEPT_SECONDS)
        gradio.Markdown(f'# GAN Mask R-CNN\nFinds: {names}. Not for diagnosis.')
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                file = gradio.File(label='Image (PNG, JPEG, TIFF, BMP)', height=140)
                score = gradio.Slider(
                    LOWEST_SCORE,
                    1,
                    model.card.score_threshold,
                    step=0.01,
                    label='Objects from this score on',
                )
                said = gradio.Markdown()
                taken = gradio.File(label='To take with you', height=240, interactive=False)
            with gradio.Column(scale=3, min_width=320):
                picture = gradio.Image(
                    label='Objects',
                    format='png',
                    interactive=False,
                    buttons=['download', 'fullscreen'],
                )
                rows = gradio.Dataframe(headers=list(_COLUMNS), interactive=False, max_height=320)
        views = [said, picture, rows, taken]
        # One image at a time: the network uses all cores.
        file.change(
            detect, [file, score], [found, *views], concurrency_limit=1, api_visibility='private'
        )
        score.change(
            show,
            [found, score],
            views,
            api_visibility='private',
            show_progress='hidden',
            trigger_mode='always_last',
        )
    return page


def summary(result: api.Result) -> str:
    """One line, such as '31 objects: 30 gland, 1 debris.'"""
    return f'{len(result)} objects{": " if len(result) else ""}{result.counts()}.'


def shown(result: api.Result) -> np.ndarray:
    """The picture with outlines, [H, W, 3] uint8 RGB, at most SHOWN pixels to a side."""
    drawn = result.draw()
    scale = SHOWN / max(drawn.shape[:2])
    if scale >= 1:
        return drawn
    return cv2.resize(drawn, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def table(result: api.Result) -> list[list]:
    """Rows of object, class, score and area in pixels."""
    return [
        [number, name, round(one.score, 3), one.area]
        for number, (one, name) in enumerate(zip(result.objects, result.class_names), start=1)
    ]


def write(result: api.Result, folder: str) -> list[str]:
    """Paths of GeoJSON, label image and table, written into `folder`."""
    place = pathlib.Path(folder)
    stem = pathlib.Path(result.source).stem
    outlines, labels, rows = (
        place / f'{stem}{suffix}' for suffix in ('.geojson', '_labels.png', '.csv')
    )
    files.write_text(outlines, json.dumps(result.to_geojson()))
    files.write_bytes(labels, cv2.imencode('.png', result.to_label_image())[1].tobytes())
    named = result.to_dataframe().assign(file=pathlib.Path(result.source).name)
    files.write_text(rows, named.to_csv(index=False))
    return [str(outlines), str(labels), str(rows)]


def _without_folder(error, path):
    """The message with the file's name alone: a visitor knows no path of this machine."""
    return str(error).replace(f'{pathlib.Path(path).parent}{os.sep}', '')
