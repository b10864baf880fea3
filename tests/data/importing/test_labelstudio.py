"""Import from Label Studio: the export `JSON` as version 1 writes it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gan_mrcnn.data.importing import labelstudio, shapes
from tests.data.importing import exports
from tests.data.importing.exports import HEIGHT, WIDTH, rectangle


def result(kind, value, label='cell', number='aB1', **fields):
    labels = {kind: [label]} if kind.endswith('labels') and label else {}
    return {
        'original_width': WIDTH,
        'original_height': HEIGHT,
        'image_rotation': 0,
        'value': {**value, **labels},
        'id': number,
        'from_name': 'label',
        'to_name': 'image',
        'type': kind,
        'origin': 'manual',
        **fields,
    }


def polygon(box, label='cell', kind='polygonlabels', **fields):
    points = [[x / WIDTH * 100, y / HEIGHT * 100] for x, y in exports.ring(*box)]
    return result(kind, {'points': points, 'closed': True}, label, **fields)


def annotation(*results, number=1, **fields):
    return {
        'id': number,
        'completed_by': 1,
        'result': list(results),
        'was_cancelled': False,
        'ground_truth': False,
        'created_at': '2026-01-05T10:11:12.131415Z',
        'updated_at': f'2026-01-05T10:11:{number:02d}.131415Z',
        'draft_created_at': None,
        'lead_time': 12.3,
        'prediction': {},
        'result_count': len(results),
        'unique_id': '0b9c2a4e-0000-4000-8000-000000000000',
        'import_id': None,
        'last_action': None,
        'bulk_created': False,
        'task': 1,
        'project': 3,
        'updated_by': 1,
        'parent_prediction': None,
        'parent_annotation': None,
        'last_created_by': None,
        **fields,
    }


def task(image, *annotations, number=1, **data):
    return {
        'id': number,
        'annotations': list(annotations),
        'file_upload': image.rpartition('/')[2],
        'drafts': [],
        'predictions': [],
        'data': {'image': image, **data},
        'meta': {},
        'created_at': '2026-01-05T09:11:12.131415Z',
        'updated_at': '2026-01-05T10:11:12.131415Z',
        'inner_id': number,
        'total_annotations': len(annotations),
        'cancelled_annotations': 0,
        'total_predictions': 0,
        'comment_count': 0,
        'unresolved_comment_count': 0,
        'last_comment_updated_at': None,
        'project': 3,
        'updated_by': 1,
        'comment_authors': [],
    }


def brush(mask, opacity=255):
    """Label Studio's run lengths, written bit by bit: 8 bits a word, lengths of 3, 4, 8, 16 bits.

    Runs of the mask's channels are written as runs, single values as themselves.
    """
    pixels = np.zeros((*mask.shape, 4), np.uint8)
    pixels[mask] = (7, 7, 7, opacity)
    values = pixels.ravel().tolist()
    bits = f'{len(values):032b}{8 - 1:05b}' + ''.join(f'{n - 1:04b}' for n in (3, 4, 8, 16))
    start = 0
    while start < len(values):
        end = start
        while end < len(values) and values[end] == values[start] and end - start < 1 << 16:
            end += 1
        length = end - start
        kind = next(k for k, n in enumerate((3, 4, 8, 16)) if length <= 1 << n)
        if length == 1:
            # Up to eight values one by one.
            end = min(start + 8, len(values))
            words = ''.join(f'{value:08b}' for value in values[start:end])
            bits += f'0{0:02b}{end - start - 1:03b}{words}'
        else:
            bits += f'1{kind:02b}{length - 1:0{(3, 4, 8, 16)[kind]}b}{values[start]:08b}'
        start = end
    bits += '0' * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


@given(hnp.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_brushes(mask):
    decoded = labelstudio.decode_brush(brush(mask), *mask.shape)
    np.testing.assert_array_equal(decoded, mask)


@pytest.mark.parametrize(
    'rle, message',
    [
        (None, 'no rle of bytes'),
        ([300], 'no rle of bytes'),
        ([], 'ends too early'),
        (brush(rectangle(0, 0, 3, 3))[:-3], 'ends too early'),
        (brush(np.ones((3, 3), bool)), 'has an rle of 36 values for an image of 48x32'),
    ],
)
def test_a_damaged_brush(rle, message):
    with pytest.raises(shapes.Unusable, match=message):
        labelstudio.decode_brush(rle, HEIGHT, WIDTH)


def test_regions_of_every_kind(tmp_path, capsys):
    exports.image(tmp_path / 'images/Bild ä.png')
    exports.image(tmp_path / 'images/b.png', 1)
    painted = (rectangle(20, 2, 30, 12) & ~rectangle(22, 4, 24, 8)) | rectangle(0, 40, 3, 47)
    ellipse = {'x': 62.5, 'y': 50, 'radiusX': 100 * 8 / WIDTH, 'radiusY': 12.5, 'rotation': 90}
    box = {'x': 50, 'y': 25, 'width': 100 * 10 / WIDTH, 'height': 12.5, 'rotation': 90}
    results = (
        polygon((2, 3, 10, 12)),
        result('brushlabels', {'format': 'rle', 'rle': brush(painted)}, 'nucleus'),
        result('ellipselabels', ellipse),
        result('rectanglelabels', box),
        result('keypointlabels', {'x': 1, 'y': 1, 'width': 0.3}),
        # A region and its class apart, as with <Polygon> and <Labels>.
        polygon((24, 30, 28, 40), kind='polygon', number='x1'),
        result('labels', {}, 'mitosis', number='x1'),
        result('choices', {'choices': ['late']}, number='x1', from_name='stage'),
        {'from_id': 'aB1', 'to_id': 'x1', 'type': 'relation', 'direction': 'right'},
    )
    tasks = [
        # As uploaded, with what Label Studio puts before the name.
        task('/data/upload/3/0f3a9b1c-Bild%20%C3%A4.png', annotation(*results)),
        task(
            '/data/local-files/?d=images/b.png',
            annotation(),
            number=2,
            caption='some text',
            preview='/data/local-files/?d=preview/b.png',
        ),
        task('/data/upload/3/00000000-c.png', number=3),
    ]
    path = exports.write_json(tmp_path / 'project-3.json', tasks)
    found = exports.run('labelstudio', path, tmp_path / 'out')['']
    assert found['b.png'].objects == []
    first, second, third, last = found['Bild ä.png'].objects
    wanted = [
        ('cell', rectangle(2, 3, 10, 12)),
        ('nucleus', painted),
        ('mitosis', rectangle(24, 30, 28, 40)),
    ]
    assert exports.same([first, second, last], wanted)
    y, x = np.nonzero(third[1])
    assert third[0] == 'cell'
    assert (y.min(), y.max() + 1, x.min(), x.max() + 1) == (8, 24, 26, 34)
    said = capsys.readouterr().out
    assert (
        "left out: 1 boxes, 1 points, 1 results of the kind 'relation', "
        '1 tasks without an annotation, 1 attributes (stage 1)'
    ) in said
    found = exports.run('labelstudio', path, tmp_path / 'boxes', '--boxes', 'objects')
    # 10 x 4 pixels, a quarter turn around the upper left corner at y 8, x 24.
    assert exports.same(found['']['Bild ä.png'].objects[3:4], [('cell', rectangle(8, 20, 18, 24))])


def test_one_of_several_annotations_is_taken(tmp_path, capsys):
    exports.image(tmp_path / 'set/a.png')
    exports.image(tmp_path / 'set/b.png', 1)
    several = [annotation(polygon((0, 0, 4, number)), number=number) for number in (5, 7, 6)]
    cancelled = annotation(polygon((0, 0, 4, 20)), number=20, was_cancelled=True)
    truth = annotation(polygon((0, 0, 4, 3)), number=3, ground_truth=True)
    tasks = [
        task('a.png', *several, cancelled),
        task('b.png', *several, truth, number=2),
    ]
    exports.write_json(tmp_path / 'set/export.json', tasks)
    found = exports.run('labelstudio', tmp_path / 'set', tmp_path / 'out')['']
    assert found['a.png'].areas == [('cell', 28)]
    assert found['b.png'].areas == [('cell', 12)]
    assert '5 further annotations of the same image' in capsys.readouterr().out


@pytest.mark.parametrize(
    'bad, message',
    [
        (polygon((0, 0, 4, 4), image_rotation=90), 'is of an image that was turned by 90 degrees'),
        (result('polygonlabels', {'points': [[1, 1]]}), 'has an outline of 1 points'),
        (result('polygonlabels', {}), 'has the points None'),
        (result('polygonlabels', {'labels': 3}, label=''), 'has the points None'),
        (polygon((0, 0, 4, 4), original_width=0), 'has the size [0, 32]'),
        (polygon((0, 0, 4, 4), label=3), 'has the class 3'),
        (polygon((0, 0, 4, 4), label=''), 'has no class, while others have one'),
        (result('brushlabels', {'rle': [1, 2]}), 'has an rle that ends too early'),
    ],
)
def test_a_result_that_cannot_be_used(tmp_path, bad, message):
    exports.image(tmp_path / 'set/a.png')
    tasks = [task('a.png', annotation(polygon((0, 0, 4, 4)), bad))]
    exports.write_json(tmp_path / 'set/export.json', tasks)
    said = exports.error('labelstudio', tmp_path / 'set', tmp_path / 'out')
    assert f'export.json: task 1, result 2: {message}' in said
    found = exports.run('labelstudio', tmp_path / 'set', tmp_path / 'out', '--skip_bad_annotations')
    assert found['']['a.png'].areas == [('cell', 16)]


@pytest.mark.parametrize(
    'content, message',
    [
        ({}, 'is not the export JSON of Label Studio'),
        ([{'id': 1, 'image': 'a.png', 'label': []}], 'is not the export JSON of Label Studio'),
        ([task('a.txt', annotation())], 'has 0 images among its data'),
        ([{'annotations': [annotation()], 'data': {'one': 'a.png', 'two': 'b.png'}}],
         'has 2 images among its data'),
        ([task('http://[1/a.png', annotation())], 'has 0 images among its data'),
        ([task('a.png', annotation(polygon((0, 0, 4, 4), original_width=47)))], 'are for 47x32'),
        ([task('a.png', annotation(polygon((0, 0, 4, 4)),
                                   polygon((0, 0, 4, 4), original_width=47)))],
         'has results for images of different sizes'),
        ([{'annotations': 3, 'data': {}}], 'has 3 as its annotations'),
        ([{'annotations': [{'result': 3}], 'data': {}}], 'has 3 as its result'),
    ],
)  # fmt: skip
def test_what_is_not_the_export(tmp_path, content, message):
    exports.image(tmp_path / 'set/a.png')
    exports.write_json(tmp_path / 'set/export.json', content)
    assert message in exports.error('labelstudio', tmp_path / 'set', tmp_path / 'out')
