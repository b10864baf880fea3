"""Figures that are not defined, and limits on what can be found, in every place they are shown."""

import json

import numpy as np
import pytest

from gan_mrcnn.data.readers import base
from gan_mrcnn.data.records import records
from gan_mrcnn.evaluation import paper, scoring
from gan_mrcnn.evaluation.report import compare, page
from gan_mrcnn.metrics import error_types
from tests import tiny
from tests.metrics import shapes

SIZE = (tiny.HEIGHT, tiny.WIDTH)


class Uneven(tiny.Rectangles):
    """Two classes; what each image holds is said by `content`: class and whether it is a crowd."""

    class_names = ('first', 'second')
    ids = {'train': range(1, 3)}
    splits = ('train',)

    def __init__(self, *content, name='uneven'):
        self.name, self._content = name, content
        self.ids = {'train': range(1, 1 + len(content))}

    def fingerprint(self, split):
        return f'{self.name}-{self._content}'.encode().hex()

    def read(self, item):
        example = super().read(item)
        objects = self._content[item.image_id - 1]
        return base.Example(
            example.image_id,
            example.file_name,
            example.image,
            (example.rles * len(objects))[: len(objects)],
            np.array([number for number, _ in objects], np.int32),
            np.array([is_crowd for _, is_crowd in objects], bool),
        )


def result(image_id=1, score=0.9, class_id=1):
    return shapes.result(image_id, shapes.rectangle(2, 3, 20, 30, *SIZE), score, class_id)


NOTHING = ((), ())
CASES = {
    'no object, no prediction': (NOTHING, []),
    'no object': (NOTHING, [result()]),
    'crowds only': ((((1, True),), ((2, True),)), [result()]),
    'no prediction': ((((1, False),), ((2, False),)), []),
    'a class without an object': ((((1, False),), ()), [result(1, 0.9, 2)]),
    'one picture': ((((1, False),),), [result()]),
    'one picture without an object': (((),), []),
}


@pytest.mark.parametrize('is_gland', [False, True])
@pytest.mark.parametrize('case', CASES)
def test_figures_that_are_not_defined(case, is_gland, tmp_path):
    content, found = CASES[case]
    dataset = Uneven(*content, name='gland' if is_gland else 'uneven')
    record_set = records.ensure_records(dataset, 'train', str(tmp_path / 'cache'), num_processes=1)
    scored = scoring.score(dataset, 'train', record_set, found, scoring.DEFAULT_THRESHOLD)
    results = {
        'figures': scored.figures,
        'config': None,
        'seed': None,
        'data_fingerprint': 'x' * 12,
    }
    results.update(notice='', num_images=record_set.num_examples, predictions='x.json')
    written = paper.write_results(str(tmp_path / 'results.json'), results)

    def refuse(text):
        raise AssertionError(text)

    json.loads((tmp_path / 'results.json').read_text(), parse_constant=refuse)
    text = scoring.format_text(scored)
    html = (tmp_path / 'page').joinpath('index.html')
    page.write(scored, written, str(html.parent))
    for shown in (text, html.read_text()):
        assert 'nan' not in shown.replace('nano', '').lower().split() and 'None' not in shown
    has_objects = any(not is_crowd for objects in content for _, is_crowd in objects)
    assert (scored.figures['mask']['AP'] is None) == (not has_objects)
    if not has_objects:
        assert '0.0000' not in text.splitlines()[1] and ' - ' in text.splitlines()[1] + ' '
    # A system beside itself, which has no figure either.
    systems = [compare.System(n, [compare.Run(n, {}, scored)]) for n in ('a', 'b')]
    compared = compare.compare(systems, 3)
    compare.write(systems, compared, str(tmp_path / 'compared'))
    json.loads((tmp_path / 'compared/comparison.json').read_text(), parse_constant=refuse)
    for shown in (
        compare.format_text(compared),
        (tmp_path / 'compared/index.html').read_text(),
    ):
        assert ' nan' not in shown and 'None' not in shown
    assert (compared['systems'][0]['mean']['mask AP'] is None) == (not has_objects)


def test_objects_beyond_what_counts_are_said():
    """A perfect prediction of 625 objects of one class has an AP of 100 / 625 or little more."""
    pixels = [
        shapes.rectangle(y, x, y + 2, x + 2, 75, 75)
        for y in range(0, 75, 3)
        for x in range(0, 75, 3)
    ]
    assert len(pixels) == 625
    few = [(pixels[0], 1), (pixels[1], 2), (pixels[2], 1, True)]
    truth = shapes.ground_truth([[(one, 1) for one in pixels], few], 2)
    (line,) = scoring.limits(truth, None)
    assert line.startswith('1 of 2 images have more than 100 objects of a class')
    assert '525 of 627 objects cannot be found' in line
    _, line = scoring.limits(truth, 1)
    assert line.startswith('2 of 2 images have more than 1 objects, ')
    assert 'max_num_detections' in line and '625 of 627 objects' in line
    assert scoring.limits(shapes.ground_truth([few], 2), 2) == []
    found = [shapes.result(1, one, 0.9) for one in pixels]
    found += [shapes.result(2, one[0], 0.9, one[1]) for one in few[:2]]
    for most, missed in ((100, 525), (700, 0)):
        errors = error_types.classify(truth, found, max_detections=most)
        assert np.count_nonzero(errors.gt_missed) == missed
    (line,) = scoring.limits(truth, 700)
    assert 'the 700 best-scored predictions count' in line and "COCO's own rule it is 100" in line
