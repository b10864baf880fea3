# SPDX-License-Identifier: Apache-2.0
"""Time of box, mask and boundary AP on COCO-sized images, beside plain pycocotools.

    python benchmarks/evaluation.py [--images 5000] [--objects 36] [--processes N] [--json F]

Both score the same random objects and predictions, and their figures must be equal. pycocotools
has no boundary AP and needs one core; the same for boxes and masks is what is compared.
"""

import argparse
import contextlib
import io
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gan_mrcnn.metrics import coco, matching
from gan_mrcnn.utils.cores import num_cores

HEIGHT, WIDTH, CLASSES = 480, 640, 80


def make_case(num_images, num_objects, seed=0):
    """COCO annotations of ellipses, and predictions: shifted ones, and one wrong one in four."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image_id in range(1, num_images + 1):
        classes = rng.integers(1, CLASSES + 1, num_objects)
        for number, class_id in enumerate(classes):
            # Log-normal sizes, as small, medium and large ones of COCO.
            axes = np.maximum(3, rng.lognormal(3.2, 0.7, 2)).astype(int).tolist()
            centre = (int(rng.integers(WIDTH)), int(rng.integers(HEIGHT)))
            ground_truth = encode(centre, axes)
            place = {'image_id': image_id, 'category_id': int(class_id)}
            annotations.append(
                {
                    **place,
                    'id': len(annotations) + 1,
                    'iscrowd': 0,
                    'bbox': mask_api.toBbox(ground_truth).tolist(),
                    'area': int(mask_api.area(ground_truth)),
                    'segmentation': ground_truth,
                }
            )
            shift = rng.normal(0, 0.15 if number % 4 else 3, 2) * axes
            found = encode((int(centre[0] + shift[0]), int(centre[1] + shift[1])), axes)
            bbox = mask_api.toBbox(found).tolist()
            score = float(rng.random())
            results.append({**place, 'bbox': bbox, 'score': score, 'segmentation': found})
    images = [{'id': i, 'height': HEIGHT, 'width': WIDTH} for i in range(1, num_images + 1)]
    categories = [{'id': i, 'name': str(i)} for i in range(1, CLASSES + 1)]
    return {'images': images, 'annotations': annotations, 'categories': categories}, results


def encode(centre, axes):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(mask, centre, axes, 0, 0, 360, 1, -1)
    encoded = mask_api.encode(np.asfortranarray(mask))
    return {'size': encoded['size'], 'counts': encoded['counts'].decode()}


def run_plain(ground_truth, results):
    """pycocotools alone: AP to APL and AR of boxes and masks."""
    figures = {}
    for kind, iou_type, left_out in (('box', 'bbox', 'segmentation'), ('mask', 'segm', 'bbox')):
        annotations = COCO()
        annotations.dataset = {
            **ground_truth,
            'annotations': [dict(x) for x in ground_truth['annotations']],
        }
        annotations.createIndex()
        found = [{k: v for k, v in one.items() if k != left_out} for one in results]
        evaluation = COCOeval(annotations, annotations.loadRes(found), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        figures[kind] = evaluation.stats[[0, 1, 2, 3, 4, 5, 8]].tolist()
    return figures


def run_ours(ground_truth, results, kinds, processes):
    matches = matching.match(ground_truth, results, kinds, 'ours', processes)
    return {kind: list(coco.figures(one)[0].values()) for kind, one in matches.items()}


def timed(name, function, *args):
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        figures = function(*args)
    seconds = time.perf_counter() - start
    print(f'{name:<44}{seconds:8.1f} s', flush=True)
    return figures, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--images', type=int, default=5000)
    parser.add_argument('--objects', type=int, default=36, help='in each image')
    parser.add_argument('--processes', type=int, default=num_cores())
    parser.add_argument('--json', help='where the figures go')
    options = parser.parse_args()
    ground_truth, results = make_case(options.images, options.objects)
    print(f'{options.images} images of {WIDTH}x{HEIGHT} with {options.objects} objects each')
    two = ('box', 'mask')
    plain, plain_time = timed('pycocotools, box and mask', run_plain, ground_truth, results)
    name = f'ours, box and mask, {options.processes} processes'
    ours, our_time = timed(name, run_ours, ground_truth, results, two, options.processes)
    name = f'ours, with boundary, {options.processes} processes'
    _, all_time = timed(name, run_ours, ground_truth, results, matching.KINDS, options.processes)
    difference = max(np.abs(np.subtract(plain[kind], ours[kind])).max() for kind in two)
    print(f'largest difference of a figure: {difference:.1e}; {plain_time / our_time:.2f} times')
    if difference > 1e-12:
        sys.exit('the figures differ')
    if options.json:
        times = {'pycocotools': plain_time, 'ours': our_time, 'ours with boundary': all_time}
        content = {**vars(options), 'seconds': times, 'difference': difference}
        pathlib.Path(options.json).write_text(json.dumps(content, indent=1))


if __name__ == '__main__':
    main()
