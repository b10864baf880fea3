# SPDX-License-Identifier: Apache-2.0
"""Images a second and core of the conversion to TFRecords, beside plain decoding of the same files.

    python benchmarks/convert.py [--images 64] [--json F]

Makes two data sets in a temporary folder: COCO's form (640x480 JPEGs, polygons of 7 objects) and
Cityscapes' (2048x1024 PNGs, label images with 20 objects). One process decodes and converts them in
turn, image by image, so that what else the machine does meets both; its own CPU time counts, since
cores may be shared. Then all cores convert, by the clock, the start of the processes included.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from gan_mrcnn.data import readers  # noqa: E402
from gan_mrcnn.data.records import mask_crops, records, shards  # noqa: E402
from gan_mrcnn.utils import files  # noqa: E402
from gan_mrcnn.utils.cores import num_cores  # noqa: E402


def make_image(rng, height, width):
    """Smooth shapes and a little noise: about as many bytes as a photograph of that size."""
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3)).astype(np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = rng.normal(0, 2, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def outlines(rng, count, height, width):
    """Ellipses with `count` random places, [P, 2] each, x and y in pixels."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for _ in range(count):
        reach = rng.uniform(0.02, 0.12, 2) * height
        centre = rng.uniform(0.15, 0.85, 2) * [width, height]
        yield centre + reach * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def make_coco(folder, count):
    """A folder of COCO's form, read by `coco_format`."""
    rng = np.random.default_rng(0)
    (folder / 'images').mkdir(parents=True)
    content = {'images': [], 'annotations': [], 'categories': [{'id': 1, 'name': 'thing'}]}
    for number in range(1, count + 1):
        name = f'{number:06d}.jpg'
        cv2.imwrite(str(folder / 'images' / name), make_image(rng, 480, 640))
        entry = {'id': number, 'file_name': name, 'width': 640, 'height': 480}
        content['images'].append(entry)
        for outline in outlines(rng, 7, 480, 640):
            annotation = {'id': len(content['annotations']) + 1, 'image_id': number}
            polygon = outline.round(2).ravel().tolist()
            annotation.update(category_id=1, iscrowd=0, segmentation=[polygon])
            content['annotations'].append(annotation)
    (folder / 'train.json').write_text(json.dumps(content))
    (folder / 'val.json').write_text(json.dumps(content))
    dataset = readers.load_dataset(
        'coco_format',
        str(folder),
        readers.options.Options(annotations=('train.json', 'val.json')),
    )
    return dataset, lambda item: [folder / 'images' / item.file_name]


def make_cityscapes(folder, count):
    """A part of the official tree."""
    rng = np.random.default_rng(1)
    for split in ('train', 'val'):
        for part in ('leftImg8bit', 'gtFine'):
            (folder / part / split / 'city').mkdir(parents=True)
        for number in range(count if split == 'train' else 1):
            name = f'city_{number:06d}_000019'
            image = make_image(rng, 1024, 2048)
            labels = np.full((1024, 2048), 7, np.uint16)
            for i, outline in enumerate(outlines(rng, 20, 1024, 2048)):
                cv2.fillPoly(labels, [outline.astype(np.int32)], int(26000 + i))
            cv2.imwrite(
                str(folder / 'leftImg8bit' / split / 'city' / f'{name}_leftImg8bit.png'), image
            )
            path = folder / 'gtFine' / split / 'city' / f'{name}_gtFine_instanceIds.png'
            cv2.imwrite(str(path), labels)
    dataset = readers.load_dataset('cityscapes', str(folder))
    return dataset, lambda item: [item.path, item.labels_path]


def decode(paths):
    """What any reader has to do."""
    for path in paths:
        np.asarray(Image.open(path))


def convert_timed(dataset, item):
    """CPU seconds of the parts of converting one image, and the record."""
    times = [time.process_time()]
    example = dataset.read(item)
    times.append(time.process_time())
    annotations = shards.coco_annotations(example)
    mask_crops.encode(example.rles, [one['bbox'] for one in annotations])
    times.append(time.process_time())
    record = shards.tf_example(example, annotations)
    times.append(time.process_time())
    read, mask, rest = np.diff(times)
    # `tf_example` encodes the masks once more.
    return {'reading': read, 'masks': mask, 'record': max(rest - mask, 0.0)}, len(record)


def measure(dataset, files_of):
    """Medians over the images, in milliseconds."""
    parts = {'decoding': [], 'reading': [], 'masks': [], 'record': []}
    sizes = []
    for item in dataset.items('train'):
        start = time.process_time()
        decode(files_of(item))
        parts['decoding'].append(time.process_time() - start)
        times, size = convert_timed(dataset, item)
        sizes.append(size)
        for name, value in times.items():
            parts[name].append(value)
    found = {name: 1000 * statistics.median(values) for name, values in parts.items()}
    found['total'] = found['reading'] + found['masks'] + found['record']
    found['ratio'] = found['total'] / found['decoding']
    found['images_per_second_and_core'] = 1000 / found['total']
    found['megabytes_per_record'] = statistics.mean(sizes) / 1e6
    return found


def measure_all_cores(dataset, folder):
    """Images a second by the clock."""
    start = time.perf_counter()
    records.ensure_records(dataset, 'train', str(folder))
    return dataset.num_examples('train') / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=64)
    parser.add_argument('--json', help='also writes the figures here')
    options = parser.parse_args()
    cv2.setNumThreads(1)
    results = {}
    for name, make in (('COCO, JPEG', make_coco), ('Cityscapes, PNG', make_cityscapes)):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            dataset, files_of = make(folder / 'data', options.images)
            found = measure(dataset, files_of)
            found['images_per_second_all_cores'] = measure_all_cores(dataset, folder / 'cache')
        results[name] = found
        print(
            f'{name}: {found["images_per_second_and_core"]:.0f} images/s and core, '
            f'{found["ratio"]:.2f} times plain decoding ({found["decoding"]:.1f} ms).\n'
            f'  reading {found["reading"]:.1f} ms (the decoding in it), masks '
            f'{found["masks"]:.1f} ms, record {found["record"]:.1f} ms; '
            f'{found["megabytes_per_record"]:.2f} MB per image.\n'
            f'  {num_cores()} cores: {found["images_per_second_all_cores"]:.0f} images/s '
            'by the clock.'
        )
    if options.json:
        files.write_json(pathlib.Path(options.json), results)


if __name__ == '__main__':
    main()
