# SPDX-License-Identifier: Apache-2.0
"""Exports of annotation tools, made into a folder in COCO's format.

`source` is what a reader is given and what it hands back, `shapes` turns outlines and painted masks
into COCO's segmentations, `folder` writes. There is one reader for each tool.
"""

from gan_mrcnn.data.importing import (
    cvat,
    folder,
    labelme,
    labelstudio,
    qupath,
    roboflow,
    via,
    yolo,
)
from gan_mrcnn.data.importing.source import Source

READERS = {
    'labelme': labelme.read,
    'cvat': cvat.read,
    'via': via.read,
    'yolo': yolo.read,
    'labelstudio': labelstudio.read,
    'roboflow': roboflow.read,
    'qupath': qupath.read,
}


def convert(tool: str, source: Source, out: str) -> list[str]:
    """Writes what a tool exported as a folder that `--dataset coco_format` reads.

    Args:
      tool: a key of `READERS`.
      source: the export, and what to do about what cannot be used.
      out: the new folder.

    Returns:
      Lines for the user: what was written, and what was left out.

    Raises:
      UserError: the export, an image or an annotation cannot be used, nothing is left to write, or
        the folder is not new or cannot be written.
    """
    folder.check_new(out, source.path)
    summary = folder.write(READERS[tool](source), source, out)
    return folder.describe(summary, source, out)
