# SPDX-License-Identifier: Apache-2.0
"""Our Mask R-CNN without discriminators against torchvision's, on equal terms.

A gain from the paper's adversarial losses means something over a good baseline only. Here both
systems train on the real glands with the same backbone weights, images, order, flips, sizes and
learning rates, and are scored by one evaluation on the 80 test images at several steps. One plan
file holds all of that (`make_plan`); each system is a worker that reads it in a process of its own,
torchvision's in a virtual environment that has torch and torchvision.

    python benchmarks/peer_torchvision.py --data_dir GLANDS --backbone resnet34.npz \
        --torch_python TORCH_ENV/bin/python --out runs/peer

The folder --out gets plan.json, SYSTEM/seedN/ with predictions and timings, and results.json.
`docs/baseline.md` says what is equal and what cannot be. Test images choose nothing here: the steps
that are reported are fixed beforehand.
"""

import argparse
import json
import pathlib
import random
import re
import statistics
import subprocess
import sys

import _peer_plan as peer
import numpy as np
from pycocotools import mask as rle

from gan_mrcnn.metrics.coco import evaluate_coco
from gan_mrcnn.utils.errors import UserError

_HERE = pathlib.Path(__file__).resolve().parent
_WORKERS = {'ours': '_ours_worker.py', 'torchvision': '_torchvision_worker.py'}
_MIN_SCALE = 0.8
_WARMUP_FACTOR = 0.1


def find_images(data_dir, prefixes):
    """Image and label files of the contest's folder, in the order of their numbers.

    Args:
      data_dir: pathlib.Path of the folder.
      prefixes: 'train', 'testA', 'testB', those that are wanted, in this order.

    Returns:
      list of (image path, label path).

    Raises:
      UserError: the folder has no such image, or one without its label image.
    """
    pairs = []
    for prefix in prefixes:
        images = [
            path
            for path in data_dir.glob(f'{prefix}_*')
            if re.fullmatch(rf'{prefix}_\d+', path.stem) and path.suffix in peer.SUFFIXES
        ]
        if not images:
            raise UserError(
                f'--data_dir {data_dir} has no {prefix}_*.png or .bmp; give the contest folder'
            )
        for image in sorted(images, key=lambda path: int(path.stem.split('_')[1])):
            labels = image.with_name(f'{image.stem}_anno{image.suffix}')
            if not labels.is_file():
                raise UserError(f'{labels} is missing; {image.name} needs its label image')
            pairs.append((image, labels))
    return pairs


def learning_rates(steps, peak, warmup, decay_at):
    """The learning rate of every step.

    Rises linearly from a tenth of `peak` over `warmup` steps; a tenth from each step of `decay_at`.
    """
    rates = []
    for step in range(steps):
        rise = min(1.0, _WARMUP_FACTOR + (1 - _WARMUP_FACTOR) * step / max(warmup, 1))
        rates.append(peak * rise * 0.1 ** sum(step >= drop for drop in decay_at))
    return rates


def draw_training(pairs, steps, batch, seed):
    """Per step, `batch` entries: each image once per pass, flip and scale drawn from `seed`."""
    draw = random.Random(seed)
    queue, plan = [], []
    for _ in range(steps):
        entries = []
        for _ in range(batch):
            if not queue:
                queue = draw.sample(pairs, len(pairs))
            image, labels = queue.pop()
            entries.append(
                {
                    'image': str(image),
                    'labels': str(labels),
                    'flip': draw.random() < 0.5,
                    'scale': draw.uniform(_MIN_SCALE, 1.0),
                }
            )
        plan.append(entries)
    return plan


def make_plan(flags):
    """Everything that is equal for both systems, as a dict that JSON can hold.

    Keys: 'settings' (numbers for the network and the optimizer, canvas as (height, width) in
    pixels), 'learning_rates' (one per step), 'train' (per seed, per step, the images with 'flip'
    and 'scale'; the scale multiplies the size that fits the canvas) and 'test' (the images with
    id, height and width).
    """
    train = find_images(flags.data_dir, ['train'])
    test = find_images(flags.data_dir, ['testA', 'testB'])[: flags.max_test_images]
    eval_steps = sorted({*range(flags.eval_every, flags.steps, flags.eval_every), flags.steps})
    settings = {
        'backbone': str(flags.backbone),
        'trainable_layers': flags.trainable_layers,
        'canvas': flags.size,
        'batch': flags.batch,
        'anchors': 256,
        'pre_nms': flags.pre_nms,
        'proposals': flags.proposals,
        'rois': flags.rois,
        'learning_rate': flags.lr,
        'momentum': 0.9,
        'weight_decay': 1e-4,
        'eval_steps': eval_steps,
        'threads': flags.threads,
    }
    return {
        'settings': settings,
        'learning_rates': learning_rates(flags.steps, flags.lr, flags.warmup, flags.decay_at),
        'train': {
            str(seed): draw_training(train, flags.steps, flags.batch, seed) for seed in flags.seeds
        },
        'test': [test_entry(i, *pair) for i, pair in enumerate(test, start=1)],
    }


def test_entry(image_id, image, labels):
    """What the plan says about one test image.

    Raises:
      UserError: its label image cannot be read.
    """
    try:
        height, width = peer.read_labels(str(labels)).shape
    except ValueError as error:
        raise UserError(f'{error}; give the contest folder as it is downloaded') from error
    return {
        'image_id': image_id,
        'image': str(image),
        'labels': str(labels),
        'height': height,
        'width': width,
    }


def make_annotations(test):
    """The plan's test images as a COCO annotation dict."""
    annotations = []
    for entry in test:
        masks = peer.instance_masks(peer.read_labels(entry['labels']))
        for mask, (y1, x1, y2, x2) in zip(masks, peer.mask_boxes(masks).tolist()):
            segmentation = rle.encode(np.asfortranarray(mask))
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': entry['image_id'],
                    'category_id': 1,
                    'bbox': [x1, y1, x2 - x1, y2 - y1],
                    'area': int(mask.sum()),
                    'iscrowd': 0,
                    'segmentation': {**segmentation, 'counts': segmentation['counts'].decode()},
                }
            )
    images = [
        {
            'id': entry['image_id'],
            'file_name': pathlib.Path(entry['image']).name,
            'height': entry['height'],
            'width': entry['width'],
        }
        for entry in test
    ]
    return {
        'images': images,
        'annotations': annotations,
        'categories': [{'id': 1, 'name': 'gland'}],
    }


def run_worker(system, python, plan_path, seed, out):
    """Trains `system` with one seed; its predictions and timings are in `out` afterwards.

    Raises:
      UserError: the interpreter is missing or the worker failed; its own message stands above.
    """
    print(f'{system}, seed {seed}', flush=True)
    command = [str(python), str(_HERE / _WORKERS[system])]
    command += ['--plan', str(plan_path), '--seed', str(seed), '--out', str(out)]
    try:
        code = subprocess.run(command, check=False).returncode
    except OSError as error:
        raise UserError(f'cannot start {python}: {error}; give an interpreter') from error
    if code:
        raise UserError(f'{system}, seed {seed}: the worker ended with {code}; its output is above')


def score_run(system, seed, steps, annotations, out):
    """One row per checkpoint of a finished run: AP of boxes and masks, and the step time."""
    timings = json.loads((out / 'timings.json').read_text(encoding='utf-8'))
    rows = []
    for step in steps:
        path = out / f'predictions_step{step}.json'
        figures = evaluate_coco(annotations, json.loads(path.read_text(encoding='utf-8')))
        rows.append(
            {
                'system': system,
                'version': timings['system'],
                'seed': seed,
                'step': step,
                'median_step_seconds': timings['median_step_seconds'],
                **figures,
            }
        )
    return rows


def format_table(rows, systems):
    """The learning curves: mean over the seeds, lowest and highest seed in brackets."""
    lines = ['| step |' + ''.join(f' {system} box AP | {system} mask AP |' for system in systems)]
    lines.append('|---' * (1 + 2 * len(systems)) + '|')
    for step in sorted({row['step'] for row in rows}):
        cells = [str(step)]
        for system in systems:
            chosen = [row for row in rows if (row['system'], row['step']) == (system, step)]
            for kind in ('box', 'mask'):
                cells.append(format_spread([row[kind]['AP'] for row in chosen]))
        lines.append('| ' + ' | '.join(cells) + ' |')
    for system in systems:
        seconds = [row['median_step_seconds'] for row in rows if row['system'] == system]
        lines.append(f'{system}: {1000 * statistics.mean(seconds):.0f} ms a step (median)')
    return '\n'.join(lines)


def format_spread(values):
    mean = f'{statistics.mean(values):.3f}'
    return mean if len(values) == 1 else f'{mean} ({min(values):.3f}-{max(values):.3f})'


def parse_flags(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add('--data_dir', type=pathlib.Path, required=True, help='folder of the gland contest')
    add('--backbone', type=pathlib.Path, required=True, help='ResNet-34 .npz, torchvision layout')
    add('--torch_python', default=None, help='interpreter with torch and torchvision')
    add('--out', type=pathlib.Path, required=True, help='folder for plan, predictions and results')
    add('--systems', nargs='+', choices=sorted(_WORKERS), default=sorted(_WORKERS))
    add('--seeds', nargs='+', type=int, default=[0, 1, 2])
    add('--steps', type=int, default=300)
    add('--eval_every', type=int, default=100, help='steps between checkpoints')
    add('--size', nargs=2, type=int, default=[256, 384], help='canvas, height and width in pixels')
    add('--batch', type=int, default=2, help='images a step')
    add('--lr', type=float, default=0.01, help='learning rate after the warm-up')
    add('--warmup', type=int, default=50, help='steps of linear warm-up')
    add('--decay_at', nargs='*', type=int, default=[], help='steps that divide the rate by ten')
    add('--rois', type=int, default=64, help='RoIs sampled per image')
    add('--proposals', type=int, default=300, help='proposals per image after NMS')
    add('--pre_nms', type=int, default=2000, help='proposals per level before NMS')
    add('--trainable_layers', type=int, default=3, help='stages trained; 3 freezes stem, stage 1')
    add('--threads', type=int, default=2, help='CPU threads of each worker')
    add('--max_test_images', type=int, default=None, help='only the first so many, for a trial')
    flags = parser.parse_args(arguments)
    if 'torchvision' in flags.systems and not flags.torch_python:
        raise UserError('--torch_python is missing; torchvision runs in an environment of its own')
    if not flags.backbone.is_file():
        raise UserError(f'--backbone {flags.backbone} is not there; give a ResNet-34 as .npz')
    if any(size % 64 for size in flags.size):
        raise UserError(f'--size {flags.size} has a side that 64 (P6) does not divide')
    flags.backbone, flags.data_dir = flags.backbone.resolve(), flags.data_dir.resolve()
    return flags


def run(flags):
    """Plan, training of all systems and seeds, scores, table; a row per checkpoint in a file."""
    plan = make_plan(flags)
    flags.out.mkdir(parents=True, exist_ok=True)
    plan_path = flags.out / 'plan.json'
    plan_path.write_text(json.dumps(plan, indent=1), encoding='utf-8')
    annotations = make_annotations(plan['test'])
    pythons = {'ours': sys.executable, 'torchvision': flags.torch_python}
    rows = []
    for seed in flags.seeds:
        for system in flags.systems:
            out = flags.out / system / f'seed{seed}'
            run_worker(system, pythons[system], plan_path, seed, out)
            rows += score_run(system, seed, plan['settings']['eval_steps'], annotations, out)
            content = {'settings': plan['settings'], 'num_test': len(plan['test']), 'rows': rows}
            (flags.out / 'results.json').write_text(json.dumps(content, indent=1), encoding='utf-8')
    print(format_table(rows, flags.systems))


def main():
    try:
        run(parse_flags())
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    main()
