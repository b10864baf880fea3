# SPDX-License-Identifier: Apache-2.0
"""The official instance evaluation of Cityscapes, by cityscapesscripts.

Predictions are written in the official file format (a text file per image, a mask image per
object, ids of labels and scores) and read back by the official code; that keeps ours out of what
is measured. It wants masks as files, so one image at a time is written and removed.

The benchmark has eight classes. The paper's Table 2 has ten: caravan and trailer, too, which the
official labels set aside. Figures of each class do not depend on the others, so all ten are
computed at once and the official average is that of the eight. Pixels of caravans and trailers
are void to the official code: a false prediction on them is forgiven.
"""

import copy
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import cv2
import numpy as np
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official
from cityscapesscripts.evaluation import instances2dict
from cityscapesscripts.helpers import labels as cityscapes_labels
from pycocotools import mask as mask_api

from gan_mrcnn.metrics import parallel

# Those with instances, as the data set's reader numbers them.
CLASSES = tuple(
    label.name for label in cityscapes_labels.labels if label.hasInstances and label.id >= 0
)
OFFICIAL = tuple(name for name in CLASSES if not cityscapes_labels.name2label[name].ignoreInEval)


def write_predictions(
    folder: pathlib.Path, stem: str, predictions: Sequence[dict[str, Any]]
) -> pathlib.Path:
    """Writes one image's predictions in Cityscapes' format.

    Args:
      folder: where to.
      stem: of the text file; masks are STEM_0.png, ...
      predictions: COCO results whose category ids are indices into `CLASSES`, from 1.

    Returns:
      Path of the text file: a line per object with mask file, label id and score.
    """
    lines = []
    for number, prediction in enumerate(predictions):
        name = f'{stem}_{number}.png'
        cv2.imwrite(str(folder / name), mask_api.decode(prediction['segmentation']) * 255)
        label = cityscapes_labels.name2label[CLASSES[prediction['category_id'] - 1]]
        lines.append(f'{name} {label.id} {prediction["score"]!r}')
    path = folder / f'{stem}.txt'
    path.write_text('\n'.join(lines), encoding='ascii')
    return path


def evaluate(
    label_files: Mapping[int, pathlib.Path],
    predictions: Sequence[dict[str, Any]],
    title: str = '',
    num_processes: Optional[int] = None,
) -> dict[str, Any]:
    """Official figures of images.

    Args:
      label_files: the official label image of each image, by image id.
      predictions: COCO results, see `write_predictions`.
      title: of the progress bar, '' for none.
      num_processes: at most; None for as many as there are cores.

    Returns:
      'AP', 'AP50' and 'AP75', averages of the official eight classes that have objects, and
      'per_class', the same for each of the ten; None where there is no object.
    """
    predicted = parallel.by_image(predictions)
    jobs = [(path, predicted.get(image_id, [])) for image_id, path in label_files.items()]
    parts = parallel.map_jobs(_match_image, jobs, [1] * len(jobs), title, num_processes)
    matches = {key: value for part in parts for key, value in part.items()}
    args = _arguments()
    # [distances, classes, overlaps]; distances need depth, which is not used here.
    figures = official.evaluateMatches(matches, args)[0]
    per_class = {
        name: {
            'AP': _figure(figures[row]),
            'AP50': _figure(figures[row, np.isclose(args.overlaps, 0.5)]),
            'AP75': _figure(figures[row, np.isclose(args.overlaps, 0.75)]),
        }
        for row, name in enumerate(CLASSES)
    }
    averages = {
        name: _mean([per_class[label][name] for label in OFFICIAL])
        for name in ('AP', 'AP50', 'AP75')
    }
    return {**averages, 'per_class': per_class}


def _arguments():
    args = copy.copy(official.args)
    args.quiet = True
    args.instLabels = list(CLASSES)
    return args


def _match_image(job) -> dict[str, Any]:
    labels_path, predictions = job
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name).resolve()
        args = _arguments()
        args.predictionPath = str(folder)
        text_file = write_predictions(folder, 'image', predictions)
        ground_truth = instances2dict.instances2dict([str(labels_path)])
        return official.matchGtWithPreds([str(text_file)], [str(labels_path)], ground_truth, args)


def _figure(values: np.ndarray) -> Optional[float]:
    return None if np.isnan(values).any() else float(np.mean(values))


def _mean(values) -> Optional[float]:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
