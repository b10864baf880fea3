# SPDX-License-Identifier: Apache-2.0
"""HTML in one file: style, tables and pictures inside, so that it opens from disk, offline."""

import base64
import html
import os
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 16px; color: #1a1a1a; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 8px 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 40px 0 4px; padding-top: 12px; border-top: 1px solid #ddd; }
h3 { font-size: 1rem; margin: 16px 0 6px; }
p { margin: 4px 0 12px; max-width: 75ch; }
.facts, figcaption, .note { color: #555; font-size: .9rem; overflow-wrap: anywhere; }
.notice { border-left: 5px solid #d55e00; background: #fff4ec; padding: 8px 12px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #1a1a1a; }
tbody tr { border-bottom: 1px solid #e5e5e5; }
tr.ours td { font-weight: 600; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr));
  gap: 20px 28px; }
.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr)); }
figure { margin: 0; }
figure img, figure > svg { display: block; width: 100%; height: auto; }
svg { font-family: inherit; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: .9rem; }
.legend svg { width: 30px; height: 10px; margin-right: 6px; }
.swatch { display: inline-block; width: 1em; height: .35em; margin: 0 .3em .2em 0;
  vertical-align: middle; outline: 1px solid #333; }
"""
_JPEG_QUALITY = 85


def write(folder: str, title: str, sections: Iterable[str]) -> str:
    """Writes FOLDER/index.html.

    Args:
      folder: made where it is not there.
      title: plain text.
      sections: HTML.

    Returns:
      Its path.
    """
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, 'index.html')
    with open(path, 'w', encoding='utf-8') as file:
        file.write(
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n'
            f'<h1>{html.escape(title)}</h1>\n'
        )
        for section in sections:
            file.write(section + '\n')
        file.write('</body>\n</html>\n')
    return path


def section(title: str, text: str, *parts: str) -> str:
    """A heading, what is to be seen below it (plain text), and HTML."""
    return f'<h2>{html.escape(title)}</h2>\n<p>{html.escape(text)}</p>\n{"".join(parts)}'


def paragraph(text: str, kind: str = '') -> str:
    """Plain text as a paragraph; `kind` is a class of the style."""
    return f'<p class="{kind}">{html.escape(text)}</p>'


def table(header: Sequence[str], rows: Sequence[tuple[Sequence[str], bool]]) -> str:
    """A table of plain text that scrolls sideways where the screen is narrow.

    Args:
      header: names of the columns.
      rows: cells, and whether the row stands out.
    """
    head = ''.join(f'<th>{html.escape(cell)}</th>' for cell in header)
    body = ''.join(
        f'<tr{" class=ours" if stands_out else ""}>'
        + ''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)
        + '</tr>'
        for cells, stands_out in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        '</div>'
    )


def grid(figures: Iterable[str], small: bool = False) -> str:
    """Figures side by side, as many as fit."""
    return f'<div class="grid{" small" if small else ""}">{"".join(figures)}</div>'


def figure(content: str, caption: str) -> str:
    """A chart or picture with its caption, plain text."""
    return f'<figure>{content}<figcaption>{html.escape(caption)}</figcaption></figure>'


def picture(rgb: np.ndarray, described: str, width: int = 720) -> str:
    """An image tag with the picture inside, as JPEG of at most `width` pixels.

    Args:
      rgb: uint8 [H, W, 3].
      described: for those who cannot see it.
      width: in pixels.
    """
    if rgb.shape[1] > width:
        height = round(rgb.shape[0] * width / rgb.shape[1])
        rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    _, encoded = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    data = base64.b64encode(encoded.tobytes()).decode('ascii')
    return (
        f'<img width="{rgb.shape[1]}" height="{rgb.shape[0]}" loading="lazy" '
        f'alt="{html.escape(described)}" src="data:image/jpeg;base64,{data}">'
    )


def swatches(colours: dict[str, tuple[int, int, int]]) -> str:
    """What lines of a colour mean, by name: RGB."""
    items = ''.join(
        f'<span><i class="swatch" style="background:rgb{tuple(colour)}"></i>'
        f'{html.escape(name)}</span>'
        for name, colour in colours.items()
    )
    return f'<div class="legend">{items}</div>'
