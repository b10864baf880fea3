# SPDX-License-Identifier: Apache-2.0
"""Speed of torchvision's Mask R-CNN with the numbers of `gpu.py`'s configuration.

Runs in an environment of its own (torch, torchvision, NumPy, OpenCV) and imports neither TensorFlow
nor this project's package. The network is that of `maskrcnn_resnet50_fpn` as ImageNet weights would
make it (frozen BatchNorm, three stages trained) with random weights; the learning rate is so small
that every step does the same work. Images are on the device already; torchvision's own transform,
which finds them at their size and pads them, is part of the times.

float32 is torch's default: TF32 in convolutions and not in matrix products. bfloat16 is
torch.autocast's.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import _card
import _peer_plan as peer
import torch
import torchvision
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.misc import FrozenBatchNorm2d

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
TRAINABLE_LAYERS = 3
LEARNING_RATE = 1e-6
WARM_UP = 3
BATCH_SIZES = (1, 8)
BATCHES = 4


def build_model(numbers):
    """torchvision's Mask R-CNN for two classes; what is not named here has its default."""
    resnet = getattr(torchvision.models, f'resnet{numbers["model_id"]}')
    body = resnet(weights=None, norm_layer=FrozenBatchNorm2d)
    return MaskRCNN(
        _resnet_fpn_extractor(body, TRAINABLE_LAYERS),
        num_classes=2,
        min_size=numbers['short_side'],
        max_size=numbers['input_size'][1],
        size_divisible=numbers['size_divisible'],
        rpn_pre_nms_top_n_train=numbers['pre_nms'],
        rpn_pre_nms_top_n_test=numbers['test_pre_nms'],
        rpn_post_nms_top_n_train=numbers['proposals'],
        rpn_post_nms_top_n_test=numbers['test_proposals'],
        rpn_batch_size_per_image=numbers['anchors'],
        box_batch_size_per_image=numbers['rois'],
    ).to(DEVICE)


def load_batches(data_dir, numbers):
    """A few batches of gland images at the canvas' full size, with their targets."""
    canvas = numbers['input_size']
    limits = canvas[0], numbers['input_size'][1]
    batches, examples = [], []
    paths = sorted(
        path
        for suffix in peer.SUFFIXES
        for path in pathlib.Path(data_dir).glob(f'train_*[0-9]{suffix}')
    )
    for path in paths:
        labels = path.with_name(f'{path.stem}_anno{path.suffix}')
        height, width = peer.read_labels(str(labels)).shape
        scale = numbers['short_side'] / min(height, width)
        if round(height * scale) > limits[0] or round(width * scale) > limits[1]:
            continue
        fit = min(limits[0] / height, limits[1] / width)
        entry = {'image': str(path), 'labels': str(labels), 'flip': False, 'scale': scale / fit}
        examples.append(to_example(*peer.training_example(entry, canvas)))
        if len(examples) == numbers['batch']:
            batches.append(tuple(zip(*examples)))
            examples = []
        if len(batches) == BATCHES:
            break
    return batches


def to_example(image, masks, boxes):
    """An image and its target as torchvision wants them, boxes [x1, y1, x2, y2]."""
    target = {
        'boxes': torch.from_numpy(boxes[:, [1, 0, 3, 2]]).to(DEVICE),
        'labels': torch.ones(len(boxes), dtype=torch.int64, device=DEVICE),
        'masks': torch.from_numpy(masks).to(DEVICE),
    }
    return torch.from_numpy(image).to(DEVICE).permute(2, 0, 1).float() / 255, target


def synchronize():
    if DEVICE.type == 'cuda':
        torch.cuda.synchronize()


def autocast(dtype):
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=dtype == 'bfloat16')


def peak_bytes():
    return torch.cuda.max_memory_allocated() if DEVICE.type == 'cuda' else None


def time_calls(call, rounds):
    """Median seconds of a call that is waited for, and seconds of calls in a row."""
    waited = []
    for number in range(rounds):
        start = time.perf_counter()
        call(number)
        synchronize()
        waited.append(time.perf_counter() - start)
    start = time.perf_counter()
    for number in range(rounds):
        call(number)
    synchronize()
    return statistics.median(waited), (time.perf_counter() - start) / rounds


def time_training(numbers, batches, dtype, steps, figures):
    """Seconds and memory of a training step."""
    torch.manual_seed(0)
    model = build_model(numbers).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
    terms = {}

    def step(number):
        images, targets = batches[number % len(batches)]
        with autocast(dtype):
            losses = model(list(images), list(targets))
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        terms.update(losses)

    with _card.shared():
        for number in range(WARM_UP):
            step(number)
        synchronize()
    with _card.exclusive():
        waited, free = time_calls(step, steps)
    batch = numbers['batch']
    row = {
        'step_seconds': waited,
        'free_running_seconds': free,
        'images_per_second': batch / waited,
        'free_running_images_per_second': batch / free,
        'peak_bytes': peak_bytes(),
        'losses': {name: value.item() for name, value in terms.items()},
    }
    figures.update(**{f'training {dtype}': row})
    peak = f', peak {row["peak_bytes"] / 2**30:.1f} GiB' if row['peak_bytes'] else ''
    figures.say(
        f'training {dtype}: {1000 * waited:.0f} ms a step ({batch / waited:.1f} images/s), '
        f'free-running {1000 * free:.0f} ms ({batch / free:.1f}){peak}'
    )


@torch.no_grad()
def time_inference(numbers, images, dtype, rounds, figures):
    """Images per second of the network alone, and with masks pasted into the images."""
    torch.manual_seed(0)
    model = build_model(numbers).eval()

    def network(inputs):
        batch, _ = model.transform(inputs)
        features = model.backbone(batch.tensors)
        proposals, _ = model.rpn(batch, features)
        return model.roi_heads(features, proposals, batch.image_sizes)[0]

    for name, function in (('network', network), ('network and pasting', model)):
        rows = {}
        for size in BATCH_SIZES:
            inputs = (list(images) * size)[:size]
            with autocast(dtype), _card.shared():
                for _ in range(WARM_UP):
                    found = function(inputs)
                synchronize()
            with autocast(dtype), _card.exclusive():
                waited, free = time_calls(lambda _, f=function, i=inputs: f(i), rounds)
            rows[size] = {
                'seconds': waited,
                'images_per_second': size / waited,
                'free_running_images_per_second': size / free,
                'detections_per_image': sum(len(one['boxes']) for one in found) / size,
            }
        figures.update(**{f'{name} {dtype}': rows})
        rates = ', '.join(f'batch {n} {row["images_per_second"]:.1f}' for n, row in rows.items())
        found = rows[max(BATCH_SIZES)]['detections_per_image']
        figures.say(f'{name} {dtype}, images/s: {rates}; {found:.0f} detections an image')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data_dir', required=True, help='folder of the gland contest')
    parser.add_argument('--numbers', type=json.loads, required=True, help='of gpu.py, as JSON')
    parser.add_argument('--dtypes', nargs='+', default=['float32', 'bfloat16'])
    parser.add_argument('--steps', type=int, default=10, help='that are timed')
    parser.add_argument('--on_card', action='store_true', help='end at once without a GPU')
    parser.add_argument('--json', help='a file for the figures, whole at any time')
    options = parser.parse_args()
    if options.on_card and DEVICE.type != 'cuda':
        sys.exit('torch sees no GPU')
    figures = _card.Figures(options.json)
    figures.update(
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        tf32_convolutions=torch.backends.cudnn.allow_tf32,
        tf32_matrix_products=torch.backends.cuda.matmul.allow_tf32,
        numbers=options.numbers,
    )
    batches = load_batches(options.data_dir, options.numbers)
    for dtype in options.dtypes:
        if DEVICE.type == 'cuda':
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        time_training(options.numbers, batches, dtype, options.steps, figures)
        time_inference(options.numbers, batches[0][0], dtype, options.steps, figures)


if __name__ == '__main__':
    main()
