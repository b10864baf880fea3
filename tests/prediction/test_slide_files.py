"""The files of a slide: places in level 0 and micrometres, checked by hand."""

import csv
import io
import json

import cv2
import numpy as np
import pytest

from gan_mrcnn.prediction import slide_files
from gan_mrcnn.prediction.objects import Object

# A pixel of the view is 2 x 4 pixels of level 0, each 0.5 micrometres high and 0.25 wide.
SCALE = slide_files.Scale((2.0, 4.0), (0.5, 0.25))
RING = np.ones((5, 6), bool)
RING[2, 2:4] = False


def written(*objects):
    collection, table = io.StringIO(), io.StringIO(newline='')
    writer = slide_files.Writer(collection, table, ('gland', '腺'), SCALE)
    for one in objects:
        writer.add(one)
    writer.close()
    assert writer.num_objects == len(objects)
    return json.loads(collection.getvalue()), list(csv.DictReader(io.StringIO(table.getvalue())))


def test_an_object_has_its_places_in_level_0_and_micrometres():
    (content, (row,)) = written(Object(1, 0.75, (9.5, 20.0, 15.0, 26.25), 10, 20, RING))
    (feature,) = content['features']
    outer, hole = feature['geometry']['coordinates']
    assert content['type'] == 'FeatureCollection' and feature['geometry']['type'] == 'Polygon'
    # Rows 10 to 14 and columns 20 to 25 of the view.
    assert sorted(map(tuple, outer[1:])) == [(80, 20), (80, 30), (104, 20), (104, 30)]
    assert sorted(map(tuple, hole[1:])) == [(88, 24), (88, 26), (96, 24), (96, 26)]
    properties = feature['properties']
    assert properties['objectType'] == 'detection'
    assert properties['classification']['name'] == row['class'] == 'gland'
    # 28 pixels of 1 x 1 micrometres.
    assert properties['measurements']['Area um^2'] == float(row['area_um2']) == 28
    assert properties['measurements']['Score'] == float(row['score']) == 0.75
    assert float(row['perimeter_um']) == pytest.approx(
        properties['measurements']['Perimeter um'], abs=0.01
    )
    assert 22 + 4 < float(row['perimeter_um']) * 1.25 < 1.3 * (22 + 6)
    places = {name: float(row[name]) for name in slide_files.PLACES}
    assert places == {'y': 25, 'x': 92, 'y1': 19, 'x1': 80, 'y2': 30, 'x2': 105}
    micrometres = {name: float(row[f'{name}_um']) for name in slide_files.PLACES}
    assert micrometres == {'y': 12.5, 'x': 23, 'y1': 9.5, 'x1': 20, 'y2': 15, 'x2': 26.25}


def test_pieces_are_a_multipolygon_and_rows_are_numbered():
    apart = np.eye(2, dtype=bool)
    content, rows = written(
        Object(2, 0.5, (0, 0, 2, 2), 0, 0, apart), Object(1, 0.5, (0, 0, 5, 6), 0, 0, RING)
    )
    first, _ = content['features']
    assert first['geometry']['type'] == 'MultiPolygon'
    assert [piece[0][0] for piece in first['geometry']['coordinates']] == [[0, 0], [4, 2]]
    assert [(row['object'], row['class']) for row in rows] == [('1', '腺'), ('2', 'gland')]


def test_without_objects_files_are_whole():
    content, rows = written()
    assert content == {'type': 'FeatureCollection', 'features': []} and rows == []


def test_the_overview_shows_objects_and_tissue(tmp_path):
    mask = np.zeros((5, 10), bool)
    mask[1:4, 2:8] = True
    overview = slide_files.Overview(np.full((100, 200, 3), 250, np.uint8), mask, 1000, 2000)
    overview.add(Object(1, 0.9, (300, 600, 500, 900), 300, 600, np.ones((200, 300), bool)))
    overview.save(tmp_path / 'overview.png')
    drawn = cv2.imread(str(tmp_path / 'overview.png'))[..., ::-1].astype(int)
    blue = (drawn[..., 2] - drawn[..., 0] > 60).nonzero()
    assert abs(np.min(blue, 1) - [30, 60]).max() <= 2 and abs(np.max(blue, 1) - [50, 90]).max() <= 2
    dark = (drawn.max(2) < 100).nonzero()
    assert (
        abs(np.min(dark, 1) - [20, 40]).max() <= 1 and abs(np.max(dark, 1) - [79, 159]).max() <= 1
    )
    assert (drawn[40, 75] == 250).all()
