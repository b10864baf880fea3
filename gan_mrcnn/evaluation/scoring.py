# SPDX-License-Identifier: Apache-2.0
"""All metrics of one list of predictions: what `evaluate.py` prints, writes and reports.

Reads predictions and ground truth only, never a model, so that any system is scored alike.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from gan_mrcnn.data.readers import base, cityscapes, gland
from gan_mrcnn.data.records import records
from gan_mrcnn.evaluation import paper
from gan_mrcnn.metrics import cityscapes as cityscapes_metrics
from gan_mrcnn.metrics import coco, error_types, matching
from gan_mrcnn.metrics import gland as gland_metrics

# Lowest score of what is painted and drawn without predictions of the validation split.
DEFAULT_THRESHOLD = {'value': 0.5, 'origin': 'the default: no predictions of the validation split'}


@dataclasses.dataclass
class Scored:
    """Predictions of one split with their figures and what these are computed from.

    dataset, split, record_set: have ground truth and images.
    ground_truth: COCO annotations.
    predictions: COCO results with the category ids of `ground_truth`.
    matches: `matching.Matches` by kind.
    errors: `error_types.Errors`.
    gland_scores: by image id, for glands; empty for others.
    figures: for results.json.
    """

    dataset: base.Dataset
    split: str
    record_set: records.RecordSet
    ground_truth: dict[str, Any]
    predictions: list[dict[str, Any]]
    matches: dict[str, matching.Matches]
    errors: error_types.Errors
    gland_scores: dict[int, gland_metrics.ImageScore]
    figures: dict[str, Any]

    @property
    def table(self) -> Optional[paper.Table]:
        """The paper's table of these very images, None where there is none."""
        return paper.table_for(
            self.dataset.name, self.dataset.is_demo, self.split, self.record_set.num_examples
        )


def score(
    dataset: base.Dataset,
    split: str,
    record_set: records.RecordSet,
    predictions: Sequence[dict[str, Any]],
    threshold: Mapping[str, Any],
    most_detections: Optional[int] = None,
) -> Scored:
    """Computes every metric that the data set has.

    Args:
      dataset: of the images.
      split: of them.
      record_set: its ground truth.
      predictions: COCO results with category ids from 1.
      threshold: 'value', the lowest score of what is painted into label maps, and 'origin', what
        chose it.
      most_detections: that the network gives in an image; None where not known. If more than
        COCO's 100, as many count.
    """
    ground_truth = coco.load_annotations(record_set.annotation_file)
    counted = matching.counted(most_detections)
    matches = matching.match(
        ground_truth, predictions, title='compare masks', max_detections=counted
    )
    errors = error_types.classify(
        ground_truth, predictions, title='classify errors', max_detections=counted
    )
    figures = _figures(dataset.class_names, matches)
    figures['errors'] = error_types.summarize(errors)
    figures['score_threshold'] = dict(threshold)
    figures['max_detections'] = counted
    figures['limits'] = limits(ground_truth, most_detections)
    gland_scores = {}
    if dataset.name == 'gland':
        gland_scores = gland_metrics.score_images(
            ground_truth, predictions, threshold['value'], title='compare glands'
        )
        figures['glands'] = {
            part: gland_metrics.summarize([gland_scores[i] for i in ids])
            for part, ids in gland_parts(dataset, split, ground_truth).items()
        }
    if isinstance(dataset, cityscapes.Cityscapes):
        figures['cityscapes'] = _score_cityscapes(dataset, split, record_set, predictions)
    return Scored(
        dataset,
        split,
        record_set,
        ground_truth,
        list(predictions),
        matches,
        errors,
        gland_scores,
        figures,
    )


def limits(ground_truth: Mapping[str, Any], most_detections: Optional[int]) -> list[str]:
    """Lines about the limits on the number of predictions: what counts, what cannot be found.

    Args:
      ground_truth: COCO annotations.
      most_detections: see `score`.
    """
    objects = [one for one in ground_truth['annotations'] if not one['iscrowd']]
    by_class = collections.Counter((one['image_id'], one['category_id']) for one in objects)
    by_image = collections.Counter(one['image_id'] for one in objects)
    counted, lines = matching.counted(most_detections), []
    if counted > matching.MAX_DETECTIONS:
        lines.append(
            f'Of each image and class the {counted} best-scored predictions count, as many as the '
            f"network gives; by COCO's own rule it is {matching.MAX_DETECTIONS}."
        )
    for counts, most, what, reason in (
        (
            by_class,
            counted,
            'objects of a class',
            'only so many predictions of an image and class count, the best-scored ones',
        ),
        (
            by_image,
            most_detections,
            'objects',
            'the network gives only so many in an image '
            '(task.model.detection_generator.max_num_detections)',
        ),
    ):
        beyond = {key: n - most for key, n in counts.items() if most is not None and n > most}
        if beyond:
            images = {key[0] if isinstance(key, tuple) else key for key in beyond}
            lines.append(
                f'{len(images)} of {len(ground_truth["images"])} images have more than {most} '
                f'{what}, and {reason}: {sum(beyond.values())} of {len(objects)} objects cannot be '
                'found.'
            )
    return lines


def _figures(class_names, matches) -> dict[str, Any]:
    """COCO's figures by kind, and of each class under 'per_class'."""
    figures: dict[str, Any] = {'per_class': {}}
    for kind, one in matches.items():
        figures[kind], per_class = coco.figures(one)
        figures['per_class'][kind] = dict(zip(class_names, per_class))
    return figures


def _score_cityscapes(dataset, split, record_set, predictions) -> dict[str, Any]:
    ids = set(record_set.image_ids)
    label_files = {
        item.image_id: item.labels_path for item in dataset.items(split) if item.image_id in ids
    }
    return cityscapes_metrics.evaluate(label_files, predictions, 'Cityscapes')


def gland_parts(
    dataset: base.Dataset, split: str, ground_truth: dict[str, Any]
) -> dict[str, list[int]]:
    """Image ids by part: the split, the contest's two tests in it, and each grade if known."""
    names = {image['id']: image['file_name'].rpartition('.')[0] for image in ground_truth['images']}
    parts = {split: list(names)}
    if isinstance(dataset, gland.Glands):
        for part in ('testA', 'testB') if split == 'test' else ():
            parts[part] = [i for i, name in names.items() if name.startswith(f'{part}_')]
        for grade in ('benign', 'malignant'):
            parts[grade] = [i for i, name in names.items() if dataset.grade(name) == grade]
    return {part: ids for part, ids in parts.items() if ids}


def threshold_from_validation(
    record_set: records.RecordSet, predictions: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The score threshold that the validation split chooses, as `score` takes it."""
    ground_truth = coco.load_annotations(record_set.annotation_file)
    value = gland_metrics.choose_threshold(ground_truth, predictions)
    return {'value': value, 'origin': 'chosen on the validation split by F1 plus object Dice'}


def manifest(dataset: base.Dataset, split: str, record_set: records.RecordSet) -> dict[str, Any]:
    """What predictions are of: the part of a manifest that every file of them must agree with."""
    return {
        'dataset': dataset.name,
        'split': split,
        'categories': [
            {'id': number, 'name': name}
            for number, name in zip(dataset.category_ids, dataset.class_names)
        ],
        'num_images': record_set.num_examples,
        'data_fingerprint': record_set.fingerprint,
    }


def format_text(scored: Scored) -> str:
    """The tables for a terminal."""
    name, table, figures = scored.dataset.name, scored.table, scored.figures
    parts = [paper.format_table(figures, name, table), paper.format_classes(figures)]
    if 'glands' in figures:
        parts.append(paper.format_glands(figures, table is not None))
    if 'cityscapes' in figures:
        parts.append(paper.format_table2(figures, table))
    costs = figures['errors']['costs']
    if all(cost is not None for cost in costs.values()):
        texts = [f'{kind} {cost:.3f}' for kind, cost in costs.items()]
        parts.append(f'AP50 of masks lost by kind of error: {", ".join(texts)}')
    parts += figures['limits']
    return '\n\n'.join(part for part in parts if part)
