"""Import from CVAT: `CVAT for images 1.1` as CVAT 2 writes it."""

import numpy as np
import pytest

from tests.data.importing import exports
from tests.data.importing.exports import HEIGHT, WIDTH, rectangle

META = """  <version>1.1</version>
  <meta>
    <{kind}>
      <id>12</id>
      <name>Zellen</name>
      <size>2</size>
      <mode>annotation</mode>
      <overlap>0</overlap>
      <bugtracker></bugtracker>
      <created>2026-01-05 10:11:12.131415+00:00</created>
      <updated>2026-01-05 11:11:12.131415+00:00</updated>
      <subset>default</subset>
      <start_frame>0</start_frame>
      <stop_frame>1</stop_frame>
      <frame_filter></frame_filter>
      <segments>
        <segment>
          <id>9</id>
          <start>0</start>
          <stop>1</stop>
          <url>http://localhost:8080/api/jobs/9</url>
        </segment>
      </segments>
      <owner>
        <username>anna</username>
        <email>anna@example.org</email>
      </owner>
      <assignee></assignee>
      <labels>
        <label>
          <name>cell</name>
          <color>#ff007c</color>
          <type>any</type>
          <attributes>
            <attribute>
              <name>stage</name>
              <mutable>False</mutable>
              <input_type>select</input_type>
              <default_value></default_value>
              <values>early
late</values>
            </attribute>
          </attributes>
        </label>
        <label>
          <name>mitosis</name>
          <color>#33ddff</color>
          <type>any</type>
          <attributes>
          </attributes>
        </label>
        <label>
          <name>pose</name>
          <color>#33ddff</color>
          <type>skeleton</type>
          <attributes>
          </attributes>
          <svg></svg>
        </label>
        <label>
          <name>1</name>
          <color>#33ddff</color>
          <type>points</type>
          <attributes>
          </attributes>
          <parent>pose</parent>
        </label>
      </labels>
    </{kind}>
    <dumped>2026-01-05 12:11:12.131415+00:00</dumped>
  </meta>
"""
POLYGON = (
    '    <polygon label="{label}" source="manual" occluded="{occluded}" points="{points}" '
    'z_order="{z_order}"{group}>\n{inner}    </polygon>\n'
)


def points(y1, x1, y2, x2):
    return ';'.join(f'{x:.2f},{y:.2f}' for x, y in exports.ring(y1, x1, y2, x2))


def polygon(box, label='cell', group=0, inner='', occluded=0, z_order=0):
    return POLYGON.format(
        label=label,
        points=points(*box),
        inner=inner,
        occluded=occluded,
        z_order=z_order,
        group=f' group_id="{group}"' if group else '',
    )


def image(number, name, shapes='', size=(WIDTH, HEIGHT), subset=''):
    more = f'subset="{subset}" task_id="12" ' if subset else ''
    return (
        f'  <image id="{number}" name="{name}" {more}width="{size[0]}" height="{size[1]}">\n'
        f'{shapes}  </image>\n'
    )


def write(path, *images, kind='task'):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n' + META.format(kind=kind)
    path.write_text(f'{text}{"".join(images)}</annotations>\n', 'utf-8')
    return path


def test_shapes_of_every_kind(tmp_path, capsys):
    exports.image(tmp_path / 'set/images/a 1.png')
    exports.image(tmp_path / 'set/images/leer.png', 1)
    attribute = '      <attribute name="stage">late</attribute>\n'
    shapes = (
        polygon((2, 3, 10, 12), inner=attribute, occluded=1, z_order=2)
        + '    <mask label="cell" source="semi-auto" occluded="0" rle="1, 3, 2" left="40" top="4" '
        'width="3" height="2" z_order="0">\n    </mask>\n'
        '    <ellipse label="cell" source="manual" occluded="0" cx="30.00" cy="16.00" rx="8.00" '
        'ry="4.00" rotation="90.00" z_order="0">\n    </ellipse>\n'
        '    <box label="cell" source="manual" occluded="0" xtl="4.00" ytl="20.00" xbr="14.00" '
        'ybr="24.00" rotation="90.00" z_order="0">\n    </box>\n'
        '    <polyline label="cell" source="manual" occluded="0" points="1.00,1.00;2.00,2.00" '
        'z_order="0">\n    </polyline>\n'
        '    <points label="cell" source="manual" occluded="0" points="1.00,1.00" z_order="0">\n'
        '    </points>\n'
        '    <skeleton label="pose" source="manual" z_order="0">\n'
        '      <points label="1" source="manual" outside="0" occluded="0" points="5.0,5.0">\n'
        '      </points>\n    </skeleton>\n'
        '    <tag label="cell" source="manual">\n    </tag>\n'
    )
    write(tmp_path / 'set/annotations.xml', image(0, 'a 1.png', shapes), image(1, 'leer.png'))
    found = exports.run('cvat', tmp_path / 'set', tmp_path / 'out')['']
    assert found['leer.png'].objects == []
    objects = found['a 1.png'].objects
    painted = np.zeros((HEIGHT, WIDTH), bool)
    # Along the rows: one pixel without, three with, two without.
    painted[4, 41:43] = painted[5, 40] = True
    assert exports.same(objects[:2], [('cell', rectangle(2, 3, 10, 12)), ('cell', painted)])
    # A quarter turn: 8 is the half height now.
    y, x = np.nonzero(objects[2][1])
    assert objects[2][1].sum() == pytest.approx(np.pi * 32, abs=4)
    assert (y.min(), y.max() + 1, x.min(), x.max() + 1) == (8, 24, 26, 34)
    assert exports.classes(tmp_path / 'out') == ['cell', 'mitosis']
    said = capsys.readouterr().out
    assert (
        'left out: 1 boxes, 1 lines, 1 points, 1 skeletons, 1 tags of whole images, '
        '3 attributes (occluded 1, stage 1, z_order 1)'
    ) in said
    assert 'classes without an object: mitosis' in said and '1 without objects' in said
    found = exports.run('cvat', tmp_path / 'set', tmp_path / 'boxes', '--boxes', 'objects')
    np.testing.assert_array_equal(found['']['a 1.png'].objects[3][1], rectangle(17, 7, 27, 11))


def test_a_group_is_one_object_of_each_label(tmp_path):
    exports.image(tmp_path / 'set/images/a.png')
    mask = (
        '    <mask label="cell" source="manual" occluded="0" rle="0, 6" left="40" top="4" '
        'width="3" height="2" z_order="0" group_id="7">\n    </mask>\n'
    )
    shapes = (
        polygon((0, 0, 4, 4), group=7)
        + polygon((8, 0, 12, 4), 'mitosis', group=7)
        + polygon((0, 20, 4, 30), group=7)
        + mask
        + polygon((20, 20, 24, 30), group=8)
    )
    write(tmp_path / 'set/annotations.xml', image(0, 'a.png', shapes))
    assert exports.same(
        exports.run('cvat', tmp_path / 'set', tmp_path / 'out')['']['a.png'].objects,
        [
            (
                'cell',
                rectangle(0, 0, 4, 4) | rectangle(0, 20, 4, 30) | rectangle(4, 40, 6, 43),
            ),
            ('mitosis', rectangle(8, 0, 12, 4)),
            ('cell', rectangle(20, 20, 24, 30)),
        ],
    )


def test_the_mask_that_cvat_documents(tmp_path):
    exports.image(tmp_path / 'set/images/a.png')
    mask = (
        '<mask label="cell" source="manual" occluded="0" rle="3, 5, 7, 7, 5, 9, 3, 11, 2, 11, 2, '
        '12, 1, 12, 1, 26, 1, 12, 1, 12, 2, 11, 3, 9, 5, 7, 7, 5, 3" left="7" top="8" width="13" '
        'height="15" z_order="0"></mask>'
    )
    write(tmp_path / 'set/annotations.xml', image(0, 'a.png', mask))
    ((_, found),) = exports.run('cvat', tmp_path / 'set', tmp_path / 'out')['']['a.png'].objects
    # A round brush: the pixels in each of its rows.
    rows = [5, 7, 9, 11, 11, 12, 12, 13, 13, 12, 12, 11, 9, 7, 5]
    assert found.sum(axis=1).tolist() == [0] * 8 + rows + [0] * 9
    assert np.flatnonzero(found.any(axis=0)).tolist() == list(range(7, 20))


def test_subsets_of_a_project_are_splits(tmp_path):
    images = []
    for number, (subset, name) in enumerate(
        (('Train', 'a.png'), ('Train', 'deep/b.png'), ('Validation', 'a.png'))
    ):
        exports.image(tmp_path / 'set/images' / subset / name, number)
        images.append(image(number, name, polygon((number, 0, 9, 9)), subset=subset))
    write(tmp_path / 'set/annotations.xml', *images, kind='project')
    found = exports.run('cvat', tmp_path / 'set', tmp_path / 'out')
    assert {split: sorted(images) for split, images in found.items()} == {
        'train': ['a.png', 'deep/b.png'],
        'val': ['a.png'],
    }
    for split, name, number in (('train', 'a.png', 0), ('val', 'a.png', 2)):
        assert found[split][name].areas == [('cell', (9 - number) * 9)]
        folder = 'Train' if split == 'train' else 'Validation'
        source = tmp_path / 'set/images' / folder / name
        assert found[split][name].path.read_bytes() == source.read_bytes()


def test_images_in_another_folder_and_turned_by_exif(tmp_path):
    exports.turned_image(tmp_path / 'pictures/a.jpg')
    path = write(tmp_path / 'annotations.xml', image(0, 'a.jpg', polygon((2, 3, 10, 40))))
    message = exports.error('cvat', path, tmp_path / 'out', '--images', tmp_path / 'nowhere')
    assert message == f'--images {tmp_path}/nowhere does not exist'
    found = exports.run('cvat', path, tmp_path / 'out', '--images', tmp_path / 'pictures')
    assert found['']['a.jpg'].areas == [('cell', 8 * 37)]


@pytest.mark.parametrize(
    'shape, message',
    [
        (polygon((0, 0, 4, 4), label=' '), 'has no class, while others have one'),
        (polygon((40, 0, 44, 4)), 'lies outside its image of 48x32 pixels'),
        (POLYGON.format(label='cell', points='1,2;a,3', z_order=0, group='', inner='', occluded=0),
         "has the points '1,2;a,3'"),
        ('<mask label="cell" rle="1, 3" left="0" top="0" width="3" height="2"/>',
         'has run lengths that do not fill its 3x2 pixels'),
        ('<mask label="cell" rle="x" left="0" top="0" width="9999999999" height="2"/>',
         'is a mask of 9999999999x2 pixels'),
        ('<ellipse label="cell" cx="3" cy="3" rx="0" ry="4"/>', 'has the radii 0 and 4'),
    ],
)  # fmt: skip
def test_a_shape_that_cannot_be_used(tmp_path, shape, message):
    exports.image(tmp_path / 'set/images/a.png')
    good = polygon((0, 0, 4, 4))
    write(tmp_path / 'set/annotations.xml', image(0, 'a.png', good + shape))
    said = exports.error('cvat', tmp_path / 'set', tmp_path / 'out')
    assert said.startswith(f'{tmp_path}/set/annotations.xml: image 0 (a.png), ')
    assert f' 2: {message}' in said and '--skip_bad_annotations skips it alone' in said
    found = exports.run('cvat', tmp_path / 'set', tmp_path / 'out', '--skip_bad_annotations')
    assert found['']['a.png'].areas == [('cell', 16)]


@pytest.mark.parametrize(
    'text, message',
    [
        ('<annotations><track id="0"/></annotations>', 'is CVAT for video'),
        ('<annotation/>', "it begins with 'annotation'"),
        ('<annotations>', 'no element found'),
        ('<?xml version="1.0" encoding="utf-99"?><a/>', 'unknown encoding'),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>', 'has a DOCTYPE'),
        ('<annotations/>', 'has no image that can be used'),
    ],
)
def test_what_is_not_the_export(tmp_path, text, message):
    (tmp_path / 'set').mkdir()
    (tmp_path / 'set/annotations.xml').write_text(text)
    assert message in exports.error('cvat', tmp_path / 'set', tmp_path / 'out')
