"""The network from Python: what it is given, and every view of what it finds."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

import gan_mrcnn
from gan_mrcnn.prediction import geojson
from tests import programs
from tests.serving.tiny import photo


@pytest.fixture(scope='module')
def model(exported):
    return gan_mrcnn.load(exported.model)


def test_importing_it_does_not_wait_for_tensorflow():
    code = 'import sys, gan_mrcnn; print("tensorflow" in sys.modules, "load" in dir(gan_mrcnn))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == 'False True\n'
    with pytest.raises(AttributeError, match='no attribute lod'):
        _ = gan_mrcnn.lod


def test_all_views_show_the_same_objects(model):
    pixels = photo((60, 80), 1)
    result = model(pixels, score_threshold=0)
    count = len(result)
    assert count > 3
    np.testing.assert_array_equal(result.image, pixels)
    assert result.boxes.shape == (count, 4) and result.masks.shape == (count, 60, 80)
    assert (np.diff(result.scores) <= 0).all()
    assert set(result.class_names) <= set(model.card.class_names)
    ids = [model.card.class_names.index(name) + 1 for name in result.class_names]
    assert result.class_ids.tolist() == ids
    for one, rle, mask, box, score in zip(
        result.to_coco(7), result.rles, result.masks, result.boxes, result.scores
    ):
        np.testing.assert_array_equal(mask_api.decode(rle), mask)
        assert one['segmentation'] == rle and one['image_id'] == 7 and one['score'] == score
        x, y, width, height = one['bbox']
        np.testing.assert_allclose([y, x, y + height, x + width], box)
        assert one['area'] == mask.sum()
    labels = result.to_label_image()
    wanted = np.zeros((60, 80), int)
    for number in range(count, 0, -1):
        wanted[result.masks[number - 1]] = number
    np.testing.assert_array_equal(labels, wanted)
    shapes = json.loads(json.dumps(result.to_geojson(0.5)))
    assert shapes['type'] == 'FeatureCollection' and len(shapes['features']) == count
    for feature, mask, name in zip(shapes['features'], result.masks, result.class_names):
        assert feature['geometry'] == geojson.geometry(geojson.polygons(mask))
        assert feature['properties']['classification']['name'] == name
        assert feature['properties']['measurements']['Area um^2'] == mask.sum() / 4
    assert result.draw().shape == pixels.shape and (result.draw() != pixels).any()
    assert result._repr_png_().startswith(b'\x89PNG')


def test_a_table_has_the_columns_of_objects_csv(model):
    pandas = pytest.importorskip('pandas', reason='a table is made where pandas is installed')
    result = model(photo((60, 80), 1), score_threshold=0)
    table = result.to_dataframe()
    assert isinstance(table, pandas.DataFrame) and len(table) == len(result)
    assert list(table.columns[:5]) == ['file', 'object', 'class', 'score', 'area']
    np.testing.assert_allclose(table['score'], result.scores)
    np.testing.assert_allclose(table[['y1', 'x1', 'y2', 'x2']], result.boxes)


def test_it_finds_what_the_command_finds(model, exported, tmp_path):
    """For a file, its pixels, several at once, and in tiles."""
    Image.fromarray(photo((60, 80), 1)).save(tmp_path / 'a.png')
    Image.fromarray(photo((50, 70), 2)).save(tmp_path / 'b.png')
    flags = ('--model', exported.model, '--score_threshold', '0.01')
    programs.run('predict', *flags, tmp_path / 'a.png', tmp_path / 'b.png', '--out', tmp_path / 'o')
    saved = json.loads((tmp_path / 'o/predictions.json').read_text())['annotations']
    wanted = [[one for one in saved if one['image_id'] == number] for number in (1, 2)]
    paths = [tmp_path / 'a.png', str(tmp_path / 'b.png')]
    several = model(paths, score_threshold=0.01)
    assert [result.source for result in several] == list(map(str, paths))
    for found, of_file in zip(several, wanted):
        assert [one['segmentation'] for one in found.to_coco()] == [
            one['segmentation'] for one in of_file
        ]
    alone = model(photo((60, 80), 1), score_threshold=0.01)
    assert alone.source == 'image 1' and alone.rles == several[0].rles
    tiled = model(paths[0], score_threshold=0.01, tile=(40, 50), overlap=20)
    flags = (*flags, '--tile', '40', '50', '--overlap', '20')
    programs.run('predict', *flags, tmp_path / 'a.png', '--out', tmp_path / 't')
    saved = json.loads((tmp_path / 't/predictions.json').read_text())['annotations']
    assert tiled.rles == [one['segmentation'] for one in saved]


def test_grey_pixels_are_spread_over_three_channels(model):
    grey = photo((40, 40), 3)[..., 0]
    one, other = model([grey, np.repeat(grey[..., None], 3, axis=2)], score_threshold=0)
    assert one.rles == other.rles and one.image.shape == (40, 40, 3)


def test_images_come_one_after_the_other(model):
    taken = []

    def endless():
        while True:
            taken.append(photo((40, 50), len(taken)))
            yield taken[-1]

    results = model.stream(endless(), batch_size=2)
    sizes = [next(results).image.shape for _ in range(3)]
    assert sizes == [(40, 50, 3)] * 3 and len(taken) == 4


def test_nothing_found_is_empty_and_not_an_error(model):
    result = model(np.zeros((30, 40), np.uint8), score_threshold=1)
    assert len(result) == 0 and result.boxes.shape == (0, 4) and result.masks.shape == (0, 30, 40)
    assert result.to_geojson()['features'] == [] and not result.to_label_image().any()
    assert repr(result) == '<image 1, 40x30: nothing>'


@pytest.mark.parametrize(
    'image, wanted',
    [
        (np.zeros((4, 5, 3), np.float32), r'image 1 is float32 \[4, 5, 3\]; give uint8'),
        (np.zeros((4, 5, 4), np.uint8), r'image 1 is uint8 \[4, 5, 4\]; give uint8'),
        (np.zeros((0, 5), np.uint8), r'image 1 is uint8 \[0, 5\]'),
        ('nowhere.png', 'nowhere.png'),
    ],
)
def test_what_is_no_image_is_named(model, image, wanted):
    with pytest.raises(gan_mrcnn.UserError, match=wanted):
        model(image)
    with pytest.raises(gan_mrcnn.UserError, match=wanted.replace('image 1', 'image 2')):
        model([np.zeros((20, 20), np.uint8), image])


@pytest.mark.parametrize(
    'image, wanted',
    [
        (Image.new('RGB', (4, 4)), r'image 1 is of type Image; give paths or pixels \(of Pillow'),
        (b'abc', 'image 1 is of type bytes'),
        (None, 'image 1 is of type NoneType'),
        ([[1, 2]], 'image 1 is of type list'),
        ('http://x/y.png', 'http://x/y.png is an address'),
        ('/', '/ is a folder; give the images in it'),
    ],
)
def test_other_things_than_images_are_named(model, image, wanted):
    with pytest.raises(gan_mrcnn.UserError, match=wanted):
        model([image])


@pytest.mark.parametrize('several', [None, 5, {}, 'a.png'])
def test_what_is_not_several_images_is_named(model, several):
    with pytest.raises(gan_mrcnn.UserError, match='is not several images; give a list'):
        model.stream(several)


def test_a_slide_is_for_the_command(model, tmp_path):
    (tmp_path / 'a.svs').touch()
    with pytest.raises(gan_mrcnn.UserError, match='a.svs is a whole slide; gan-mrcnn predict'):
        model(tmp_path / 'a.svs')


@pytest.mark.parametrize('size', [0, -1, float('nan'), float('inf'), '0.62'])
def test_a_pixel_has_a_positive_size(model, size):
    with pytest.raises(gan_mrcnn.UserError, match='is no positive number'):
        model(np.zeros((20, 20), np.uint8)).to_geojson(size)


@pytest.mark.parametrize('tile', [300, 'a', ('20', '20'), (200,), (20.5, 20), (0, 5)])
def test_tiles_have_two_sides(model, tile):
    with pytest.raises(gan_mrcnn.UserError, match='--tile .*give height and width in pixels'):
        model(np.zeros((20, 20), np.uint8), tile=tile)
    found = model(np.zeros((20, 20), np.uint8), tile=np.array([300, 300]))
    assert len(found) == len(model(np.zeros((20, 20), np.uint8)))


def test_wrong_settings_are_named(model):
    pixels = np.zeros((20, 20), np.uint8)
    with pytest.raises(gan_mrcnn.UserError, match='1.5 is not between 0 and 1'):
        model(pixels, score_threshold=1.5)
    with pytest.raises(gan_mrcnn.UserError, match="score_threshold 'x' is no number"):
        model(pixels, score_threshold='x')
    with pytest.raises(gan_mrcnn.UserError, match='overlap 9 '):
        model(pixels, tile=(9, 9), overlap=9)
    with pytest.raises(gan_mrcnn.UserError, match='overlap 9 is of tiles; give tile, too'):
        model(pixels, overlap=9)
    with pytest.raises(gan_mrcnn.UserError, match='batch_size 0 is not positive'):
        model([pixels], batch_size=0)


def test_a_run_its_export_and_its_published_weights_load_alike(exported, model, tmp_path):
    programs.run('publish', exported.run, tmp_path / 'published')
    pixels = photo((60, 80), 1)
    wanted = model(pixels)
    for other in (exported.run, tmp_path / 'published', tmp_path / 'published/model.safetensors'):
        found = gan_mrcnn.load(other, checkpoint='last')(pixels)
        np.testing.assert_allclose(found.scores, wanted.scores, atol=2e-3)
        assert found.class_names == wanted.class_names


def test_what_is_no_model_is_named(tmp_path, exported):
    (tmp_path / 'a.png').touch()
    for name, said in (('a.png', 'is no model'), ('b', 'does not exist'), ('b.onnx', 'does not')):
        with pytest.raises(gan_mrcnn.UserError, match=f'{name} {said}.*; give the folder of a run'):
            gan_mrcnn.load(tmp_path / name)
    with pytest.raises(gan_mrcnn.UserError, match="tta 'foo' is none of flip, all"):
        gan_mrcnn.load(exported.model, tta='foo')
    with pytest.raises(gan_mrcnn.UserError, match=str(tmp_path)):
        gan_mrcnn.load(tmp_path)
