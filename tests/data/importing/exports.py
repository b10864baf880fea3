"""Runs imports, reads what they wrote, and writes images of exports.

The tests of each tool write its export literally, with all keys that the tool writes.
"""

import json
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import coco as coco_api

from gan_mrcnn import __main__ as program
from gan_mrcnn.utils.errors import UserError
from tests.data import layouts

HEIGHT, WIDTH = layouts.HEIGHT, layouts.WIDTH
rectangle = layouts.rectangle


class Imported(NamedTuple):
    """An image of the result: its file, and class and mask [H, W] bool of each object."""

    path: pathlib.Path
    objects: list

    @property
    def areas(self):
        return [(name, int(mask.sum())) for name, mask in self.objects]


def image(path, seed=0, height=HEIGHT, width=WIDTH):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(layouts.smooth(seed, height, width)).save(path)
    return path


def turned_image(path):
    """Stored lying on its side; displayed it is HEIGHT x WIDTH."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layouts.save_image(path, 'turned', 3)
    return path


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), 'utf-8')
    return path


def run(tool, source, to, *flags):
    """The command in this process."""
    arguments = ['--from', tool, str(source), '--to', str(to), *map(str, flags)]
    command, options = program.parse('import', arguments, 'gan-mrcnn import')
    command.main(options)
    return read(to)


def error(tool, source, to, *flags):
    """The one line that an import must end with; it must leave nothing behind."""
    before = set(pathlib.Path(to).parent.iterdir())
    try:
        run(tool, source, to, *flags)
    except UserError as problem:
        message = str(problem)
    else:
        raise AssertionError('no error')
    assert '\n' not in message
    assert set(pathlib.Path(to).parent.iterdir()) == before
    return message


def read(folder):
    """{split: {file name: Imported}}; the split is '' where there are none."""
    found = {}
    for path in sorted(folder.rglob('annotations.json')):
        split = path.parent.relative_to(folder).as_posix().replace('.', '')
        images = path.parent if split else path.parent / 'images'
        content = json.loads(path.read_bytes())
        names = {category['id']: category['name'] for category in content['categories']}
        coco = coco_api.COCO()
        coco.imgs = {entry['id']: entry for entry in content['images']}
        found[split] = {
            entry['file_name']: Imported(images / entry['file_name'], [])
            for entry in content['images']
        }
        for annotation in content['annotations']:
            mask = coco.annToMask(annotation).astype(bool)
            y, x = np.nonzero(mask)
            box = [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
            assert annotation['bbox'] == box and annotation['area'] == mask.sum()
            file_name = coco.imgs[annotation['image_id']]['file_name']
            found[split][file_name].objects.append((names[annotation['category_id']], mask))
        assert all(one.path.is_file() for one in found[split].values())
    return found


def classes(folder, split=''):
    content = json.loads((folder / split / 'annotations.json').read_bytes())
    return [category['name'] for category in content['categories']]


def ring(y1, x1, y2, x2):
    """x and y of the corners of a rectangle of pixels."""
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]


def same(objects, wanted):
    """Whether classes and masks are these, in this order."""
    assert [name for name, _ in objects] == [name for name, _ in wanted]
    for (name, mask), (_, other) in zip(objects, wanted):
        np.testing.assert_array_equal(mask, other, err_msg=name)
    return True
