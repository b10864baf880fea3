# SPDX-License-Identifier: Apache-2.0
"""Renders Jinja2 templates to HTML pages of one file each, which open from disk, offline.

A page's own template is beside the Python that fills it and extends `base.html.j2` of this folder,
which inlines `style.css`; `parts.html.j2` has what several pages show. Images become data URIs.
Everything that a template prints is escaped, except `markupsafe.Markup`.
"""

import base64
import pathlib
from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import cv2
import jinja2
import numpy as np

from gan_mrcnn.utils import files

_FOLDER = pathlib.Path(__file__).parent
_JPEG_QUALITY = 85


class Table(NamedTuple):
    """Arguments of the macro `table`: column names, rows of cells, indices of the bold rows."""

    header: Sequence[Any]
    rows: Sequence[Sequence[Any]]
    bold: Container[int] = ()


class Image(NamedTuple):
    """A JPEG and its size in pixels."""

    jpeg: bytes
    width: int
    height: int

    @property
    def source(self) -> str:
        """Data URI for the `src` of an image tag."""
        return f'data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode("ascii")}'


def encode_image(rgb: np.ndarray, max_width: int = 720) -> Image:
    """An image for a page.

    Args:
      rgb: uint8 [H, W, 3].
      max_width: in pixels; a wider image is shrunk.
    """
    if rgb.shape[1] > max_width:
        height = max(1, round(rgb.shape[0] * max_width / rgb.shape[1]))
        rgb = cv2.resize(rgb, (max_width, height), interpolation=cv2.INTER_AREA)
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    _, encoded = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return Image(encoded.tobytes(), rgb.shape[1], rgb.shape[0])


def render(template: pathlib.Path, **values: Any) -> str:
    """The HTML of a page.

    Args:
      template: path of the page's own template.
      **values: what it prints; a name that is missing is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _FOLDER]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)


def write(path: pathlib.Path, template: pathlib.Path, **values: Any) -> None:
    """Writes `render(template, **values)` to `path`, whole or not at all; makes the folder.

    Raises:
      OSError: that is not possible.
    """
    files.write_text(path, render(template, **values))
