# SPDX-License-Identifier: Apache-2.0
"""Trains torchvision's Mask R-CNN by a plan of `peer_torchvision.py` and writes its predictions.

Runs in a virtual environment of its own (torch, torchvision, pycocotools, OpenCV) and imports
neither TensorFlow nor this project's package. torchvision's classes and defaults are left as they
are; what the plan fixes is passed to them: weights, image sizes, order, flips, learning rates and
the numbers of anchors, proposals and RoIs.

Writes into --out: predictions_step{N}.json (COCO results with box and mask, in the images' own
pixels) at each of the plan's evaluation steps, and timings.json.
"""

import argparse
import json
import pathlib
import statistics
import time

import _peer_plan as peer
import numpy as np
import torch
import torchvision
from pycocotools import mask as rle
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.misc import FrozenBatchNorm2d

_IMAGENET_MEAN = [0.485, 0.456, 0.406]
_IMAGENET_STD = [0.229, 0.224, 0.225]
_NUM_CLASSES = 2  # background and gland
_DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')


class CanvasTransform(GeneralizedRCNNTransform):
    """Normalizes and pads images that have their size already.

    torchvision's own transform would resize them again and pad to the largest image of the batch.
    The padding, bottom and right, is 0 after normalization, as in torchvision. Boxes are clipped to
    the image, not to the canvas.
    """

    def __init__(self, canvas):
        super().__init__(min(canvas), max(canvas), _IMAGENET_MEAN, _IMAGENET_STD)
        self.canvas = tuple(canvas)

    def forward(self, images, targets=None):
        batch = images[0].new_zeros((len(images), 3, *self.canvas))
        for i, image in enumerate(images):
            batch[i, :, : image.shape[1], : image.shape[2]] = self.normalize(image)
        return ImageList(batch, [tuple(image.shape[1:]) for image in images]), targets


def build_backbone(path, trainable_layers):
    """ResNet-34 with frozen BatchNorm and FPN; the ResNet's weights come from the npz at `path`.

    Raises:
      ValueError: the file lacks a weight or has one that the network does not know.
    """
    body = torchvision.models.resnet34(weights=None, norm_layer=FrozenBatchNorm2d)
    with np.load(path) as weights:
        state = {
            name: torch.from_numpy(weights[name].astype(np.float32))
            for name in weights.files
            if not name.startswith('fc.') and not name.endswith('num_batches_tracked')
        }
    missing, unexpected = body.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.startswith('fc.')]
    if missing or unexpected:
        raise ValueError(f'{path}: missing {missing}, unexpected {unexpected}')
    return _resnet_fpn_extractor(body, trainable_layers)


def build_model(settings):
    """torchvision's Mask R-CNN; what is not named here has torchvision's default."""
    model = MaskRCNN(
        build_backbone(settings['backbone'], settings['trainable_layers']),
        num_classes=_NUM_CLASSES,
        rpn_pre_nms_top_n_train=settings['pre_nms'],
        rpn_pre_nms_top_n_test=settings['pre_nms'],
        rpn_post_nms_top_n_train=settings['proposals'],
        rpn_post_nms_top_n_test=settings['proposals'],
        rpn_batch_size_per_image=settings['anchors'],
        box_batch_size_per_image=settings['rois'],
    )
    model.transform = CanvasTransform(settings['canvas'])
    return model.to(_DEVICE)


def to_tensor(image):
    """float32 [3, h, w] in [0, 1] of a uint8 [h, w, 3] image."""
    return torch.from_numpy(image).to(_DEVICE).permute(2, 0, 1).float() / 255


def make_batch(entries, canvas):
    """Images and targets as torchvision wants them, boxes [x1, y1, x2, y2]."""
    images, targets = [], []
    for entry in entries:
        image, masks, boxes = peer.training_example(entry, canvas)
        images.append(to_tensor(image))
        targets.append(
            {
                'boxes': torch.from_numpy(boxes[:, [1, 0, 3, 2]]).to(_DEVICE),
                'labels': torch.ones(len(boxes), dtype=torch.int64, device=_DEVICE),
                'masks': torch.from_numpy(masks).to(_DEVICE),
            }
        )
    return images, targets


def train_step(model, optimizer, learning_rate, images, targets):
    """One update; returns the loss terms as floats.

    Raises:
      FloatingPointError: a term is not finite.
    """
    for group in optimizer.param_groups:
        group['lr'] = learning_rate
    losses = model(images, targets)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    losses = {name: value.item() for name, value in losses.items()}
    if not np.isfinite(list(losses.values())).all():
        raise FloatingPointError(f'a loss is not finite: {losses}')
    return losses


@torch.no_grad()
def predict(model, entry, canvas):
    """COCO results of one test image, boxes and masks in the pixels of its file."""
    images, _ = model.transform([to_tensor(peer.test_image(entry, canvas))])
    features = model.backbone(images.tensors)
    proposals, _ = model.rpn(images, features)
    detections, _ = model.roi_heads(features, proposals, images.image_sizes)
    size = (entry['height'], entry['width'])
    # MaskRCNN.forward would stop at the resized image's pixels; its own postprocess goes further.
    found = model.transform.postprocess(detections, images.image_sizes, [size])[0]
    masks = (found['masks'][:, 0] > 0.5).cpu().numpy().astype(np.uint8)
    return [
        result(entry['image_id'], *prediction)
        for prediction in zip(found['boxes'].tolist(), found['scores'].tolist(), masks)
    ]


def result(image_id, box, score, mask):
    """One COCO result of a box [x1, y1, x2, y2] and a mask uint8 [H, W]."""
    x1, y1, x2, y2 = box
    segmentation = rle.encode(np.asfortranarray(mask))
    segmentation['counts'] = segmentation['counts'].decode('ascii')
    return {
        'image_id': image_id,
        'category_id': 1,
        'bbox': [x1, y1, x2 - x1, y2 - y1],
        'score': score,
        'segmentation': segmentation,
    }


def evaluate(model, plan, path):
    """Writes the predictions on all test images to `path`; returns the seconds it took."""
    start = time.perf_counter()
    model.eval()
    predictions = []
    for entry in plan['test']:
        predictions += predict(model, entry, plan['settings']['canvas'])
    model.train()
    path.write_text(json.dumps(predictions), encoding='utf-8')
    return time.perf_counter() - start


def train(plan, seed, out):
    """Trains by the plan of `seed`; returns what goes into timings.json."""
    settings = plan['settings']
    torch.manual_seed(seed)
    model = build_model(settings).train()
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=settings['learning_rate'],
        momentum=settings['momentum'],
        weight_decay=settings['weight_decay'],
    )
    step_seconds, evaluation_seconds, losses = [], {}, []
    for step, entries in enumerate(plan['train'][str(seed)], start=1):
        images, targets = make_batch(entries, settings['canvas'])
        start = time.perf_counter()
        rate = plan['learning_rates'][step - 1]
        losses.append(train_step(model, optimizer, rate, images, targets))
        step_seconds.append(time.perf_counter() - start)
        if step % 10 == 0:
            total = sum(losses[-1].values())
            print(f'step {step}: loss {total:.3f}, {step_seconds[-1]:.2f} s', flush=True)
        if step in settings['eval_steps']:
            path = out / f'predictions_step{step}.json'
            evaluation_seconds[step] = evaluate(model, plan, path)
    return {
        'system': f'torchvision {torchvision.__version__}, torch {torch.__version__}',
        'median_step_seconds': statistics.median(step_seconds),
        'step_seconds': step_seconds,
        'evaluation_seconds': evaluation_seconds,
        'losses': losses,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--plan', required=True, help='plan file of peer_torchvision.py')
    parser.add_argument('--seed', type=int, required=True, help='one of the seeds of the plan')
    parser.add_argument('--out', type=pathlib.Path, required=True, help='folder to write into')
    flags = parser.parse_args()
    plan = peer.load_plan(flags.plan)
    torch.set_num_threads(plan['settings']['threads'])
    flags.out.mkdir(parents=True, exist_ok=True)
    timings = train(plan, flags.seed, flags.out)
    (flags.out / 'timings.json').write_text(json.dumps(timings, indent=1), encoding='utf-8')


if __name__ == '__main__':
    main()
