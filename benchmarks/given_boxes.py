# SPDX-License-Identifier: Apache-2.0
"""Outlines and boxes where the objects are given: what the heads can do, without detection.

    python benchmarks/given_boxes.py RUNS [--checkpoint last] [--split test]

RUNS is the folder of `gan-mrcnn ablate`, whose runs are ARM-SEED. AP asks for more than an outline:
that an object is found, once, and ranked well. Here every ground-truth box is a RoI, and what the
mask head makes of it is compared with the ground-truth mask: IoU, and IoU within the band along the
outline (Cheng et al. 2021). The box head gets ground-truth boxes whose edges are moved, the same
for every run, and the IoU of what it makes of them is shown beside theirs.

Figures are means over the objects of the split, by run; arms are compared over seeds.
"""

import argparse
import os
import pathlib
import re
import sys

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import _runs  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from pycocotools import mask as mask_api  # noqa: E402

from gan_mrcnn.evaluation import statistics  # noqa: E402
from gan_mrcnn.metrics import boundary, coco, matching, predictions  # noqa: E402
from gan_mrcnn.modeling import generator  # noqa: E402
from gan_mrcnn.prediction import checkpoint  # noqa: E402
from gan_mrcnn.utils import run_lengths  # noqa: E402

FIGURES = ('mask IoU', 'boundary IoU', 'box IoU', 'box IoU before')
# Standard deviation of a moved edge, of the box's side: IoU .8 on the mean, as of a good proposal.
JITTER = 0.08
MOVED = 4


def head_outputs(model, images, image_shape, boxes, moved, classes, moved_classes):
    """What the heads make of given RoIs.

    Args:
      model: the generator.
      images: [1, H, W, 3], normalized.
      image_shape: [1, 2], height and width inside the padding.
      boxes: [1, N, 4], RoIs of the mask head in pixels of the input.
      moved: [1, P, 4], RoIs of the box head.
      classes: [1, N] int32.
      moved_classes: [1, P] int32.

    Returns:
      Masks [N, 28, 28], probabilities, and boxes [P, 4].
    """
    features = model.decoder(model.backbone(images))
    # The Model Garden's heads want to know how many RoIs an image has: here each has one.
    one_each = lambda x: x[0][:, tf.newaxis]  # noqa: E731
    crops = one_each(model.mask_roi_aligner(features, boxes))
    logits = model.mask_head([crops, one_each(classes)])
    _, deltas = model.detection_head[0](one_each(model.roi_aligner(features, moved)))
    deltas = tf.reshape(tf.cast(deltas, tf.float32), [1, tf.shape(moved)[1], -1, 4])
    own = tf.minimum(moved_classes, tf.shape(deltas)[2] - 1)
    deltas = tf.gather(deltas, own, batch_dims=2)
    refined = generator.predicted_boxes(deltas, moved, image_shape)
    return tf.sigmoid(tf.cast(logits, tf.float32))[:, 0], refined[0]


def ious(first, second):
    """[N] of boxes [N, 4] each with its own."""
    low, high = np.maximum(first[:, :2], second[:, :2]), np.minimum(first[:, 2:], second[:, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    areas = [np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (first, second)]
    return common / (areas[0] + areas[1] - common)


def mask_ious(masks, boxes, rles):
    """[N, 2], IoU and boundary IoU of predicted [N, 28, 28] over `boxes` [N, 4] in image pixels."""
    found = []
    for mask, box, truth in zip(masks, boxes, rles):
        pasted = predictions.paste_mask(mask, box, *truth['size'])
        (predicted,) = run_lengths.encode_masks(pasted[np.newaxis])
        bands = boundary.encode_band(truth), boundary.encode_band(predicted)
        pairs = (truth, predicted), bands
        found.append([mask_api.iou([one], [other], [0])[0, 0] for one, other in pairs])
    return np.array(found)


def measure(model, batches, ground_truth):
    """Means of `FIGURES` over the objects.

    Args:
      model: the generator.
      batches: images and labels, as `GanMaskRCNNTask.build_inputs` gives them.
      ground_truth: the split's, a COCO.
    """
    rois, classes_of = tf.TensorSpec([1, None, 4]), tf.TensorSpec([1, None], tf.int32)
    run = tf.function(
        lambda *given: head_outputs(model, *given),
        input_signature=[
            tf.TensorSpec([1, *batches.element_spec[0].shape[1:]]),
            tf.TensorSpec([1, 2]),
            *(rois, rois, classes_of, classes_of),
        ],
    )
    ids = {category: i + 1 for i, category in enumerate(sorted(ground_truth.getCatIds()))}
    rows, rng = [], np.random.default_rng(0)
    for images, labels in batches:
        for i, image_id in enumerate(labels['source_id'].numpy()):
            found = ground_truth.loadAnns(ground_truth.getAnnIds([image_id], iscrowd=False))
            if image_id < 0 or not found:
                continue
            info = labels['image_info'][i].numpy()
            boxes = np.array([one['bbox'] for one in found])[:, [1, 0, 3, 2]]
            boxes[:, 2:] += boxes[:, :2]
            classes = np.array([ids[one['category_id']] for one in found], np.int32)
            scaled = boxes * np.tile(info[2], 2)
            repeated = np.repeat(scaled, MOVED, axis=0)
            sides = np.tile(repeated[:, 2:] - repeated[:, :2], 2)
            moved = repeated + JITTER * sides * rng.standard_normal(repeated.shape)
            moved = np.clip(moved, 0, np.tile(info[1], 2))
            masks, refined = run(
                images[i : i + 1],
                info[np.newaxis, 1],
                tf.constant(scaled[np.newaxis], tf.float32),
                tf.constant(moved[np.newaxis], tf.float32),
                classes[np.newaxis],
                np.repeat(classes, MOVED)[np.newaxis],
            )
            of_boxes = [ious(x, repeated).reshape(-1, MOVED).mean(1) for x in (refined, moved)]
            of_masks = mask_ious(masks.numpy(), boxes, [ground_truth.annToRLE(x) for x in found])
            rows.append(np.column_stack([of_masks, *of_boxes]))
    return dict(zip(FIGURES, np.concatenate(rows).mean(axis=0).tolist()))


def measure_runs(folder, which, split):
    """(arm, seed) -> figures of every finished run in `folder`; shown as they come."""
    measured = {}
    for run in sorted(folder.iterdir()):
        named = re.fullmatch(r'(.+)-(\d+)', run.name)
        if not named or not (run / 'eval').is_dir():
            continue
        task = _runs.saved_task(run)
        model = checkpoint.restored_model(task, checkpoint.find_checkpoint(str(run), which))
        record_set, batches = _runs.split_inputs(task, task.task_config.validation_data, split)
        truth = matching.index(coco.load_annotations(record_set.annotation_file))
        figures = measure(model, batches, truth)
        print(run.name, *(f'{name} {value:.4f}' for name, value in figures.items()), flush=True)
        measured[named[1], int(named[2])] = figures
        tf.keras.backend.clear_session()
    return measured


def table(measured, reference):
    """Lines of Markdown: means of the arms, and their differences from `reference`."""
    arms = [reference, *sorted({arm for arm, _ in measured} - {reference})]
    of = {
        arm: [
            [row[name] for name in FIGURES] for (name_, _), row in measured.items() if name_ == arm
        ]
        for arm in arms
    }
    lines = [f'| | {" | ".join(FIGURES)} |', '|---' * (1 + len(FIGURES)) + '|']
    for arm in arms:
        cells = (statistics.summarize(x) for x in zip(*of[arm]))
        lines.append(
            f'| {arm} | {" | ".join(f"{c.mean:.4f} ± {c.spread or 0:.4f}" for c in cells)} |'
        )
    for arm in arms[1:]:
        cells = []
        for first, second in zip(zip(*of[reference]), zip(*of[arm])):
            cell = f'{np.mean(second) - np.mean(first):+.4f}'
            if interval := statistics.welch_interval(first, second):
                cell += ' [{:+.4f}, {:+.4f}]'.format(*interval)
                cell += f', p {statistics.permutation_p(first, second):.3f}'
            cells.append(cell)
        lines.append(f'| {arm} less {reference} | {" | ".join(cells)} |')
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('runs', type=pathlib.Path, help='--model_dir of gan-mrcnn ablate')
    parser.add_argument('--checkpoint', default='last')
    parser.add_argument('--split', default='test')
    parser.add_argument('--reference', default='baseline', help='arm that others are compared with')
    flags = parser.parse_args()
    measured = measure_runs(flags.runs, flags.checkpoint, flags.split)
    print(*table(measured, flags.reference), sep='\n')


if __name__ == '__main__':
    main()
