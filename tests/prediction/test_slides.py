"""Slides are read at any resolution, whoever has written them, or refused in one line."""

import pathlib
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gan_mrcnn.prediction import slides
from gan_mrcnn.utils.errors import UserError
from tests.prediction import made_slides
from tests.serving.tiny import photo


@pytest.fixture
def tifffile():
    pytest.importorskip('openslide', reason='the extra slides is not installed')
    return pytest.importorskip('tifffile', reason='the extra slides is not installed')


LEVELS = [slides.Size(4000, 8000), slides.Size(1000, 2000), slides.Size(249, 500)]


@pytest.mark.parametrize(
    ('size', 'level'),
    [
        ((4000, 8000), 0),
        ((5000, 10000), 0),
        ((1100, 2200), 0),
        ((1000, 2000), 1),
        ((700, 1400), 1),
        # A level that was cut to whole pixels is still the fourth of the one before.
        ((250, 500), 2),
        ((3, 6), 2),
    ],
)
def test_the_coarsest_level_that_is_fine_enough_is_read(size, level):
    assert slides.choose_level(LEVELS, slides.Size(*size)) == level


def literal(pixels, size, window):
    """A window of an image that is shrunk by the tent filter, pixel by pixel."""
    weights = []
    for full, side, begin, end in zip(pixels.shape, size, window[:2], window[2:]):
        factor = full / side
        centres = (np.arange(begin, end) + 0.5) * factor
        places = np.arange(full) + 0.5
        tent = np.maximum(1 - abs(places - centres[:, None]) / max(factor, 1), 0)
        weights.append(tent / tent.sum(1, keepdims=True))
    return np.einsum('yi,xj,ijc->yxc', *weights, pixels.astype(float))


def view_of(pixels, size):
    levels = [slides.Size(*pixels.shape[:2])]
    read = lambda level, w: pixels[w[0] : w[2], w[1] : w[3]]  # noqa: E731
    return slides.View(read, levels, slides.Size(*size))


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    begin=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    end=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_a_window_is_what_the_filter_makes_of_the_whole(size, begin, end):
    pixels = np.random.default_rng(0).integers(0, 256, [60, 71, 3]).astype(np.uint8)
    low = [int(share * (side - 1)) for share, side in zip(begin, size)]
    high = [
        bottom + 1 + int(share * (side - bottom - 1)) for bottom, share, side in zip(low, end, size)
    ]
    found = view_of(pixels, size).read((*low, *high))
    wanted = literal(pixels, size, (*low, *high))
    assert np.abs(found - wanted).max() <= 1


def test_at_level_0_pixels_are_as_they_are():
    pixels = photo((60, 71))
    found = view_of(pixels, (60, 71)).read((3, 5, 40, 60))
    np.testing.assert_array_equal(found, pixels[3:40, 5:60])


def test_a_slide_without_levels_is_read_in_pieces(monkeypatch):
    pixels = photo((300, 410))
    at_once = view_of(pixels, (30, 41)).read((0, 0, 30, 41))
    monkeypatch.setattr(slides, '_MOST_PIXELS', 900)
    largest = []

    def read(level, window):
        largest.append((window[2] - window[0]) * (window[3] - window[1]))
        return pixels[window[0] : window[2], window[1] : window[3]]

    view = slides.View(read, [slides.Size(300, 410)], slides.Size(30, 41))
    np.testing.assert_allclose(view.read((0, 0, 30, 41)), at_once.astype(int), atol=1)
    # Pieces of at most 900, and what the filter sees around them.
    assert len(largest) > 100 and max(largest) < 5000


def test_pyramids_are_read_alike_by_both_libraries(tifffile, tmp_path):
    pixels = photo((300, 410))
    made_slides.write_pyramid(tmp_path / 'a.tif', pixels, 0.25)
    assert slides.is_slide(tmp_path / 'a.tif')
    with slides.Slide(tmp_path / 'a.tif') as slide:
        assert slide.size == (300, 410)
        assert slide.micrometres_per_pixel == pytest.approx((0.25, 0.25))
        other = slides._Tiff(tmp_path / 'a.tif')
        assert other.levels == slide._reader.levels == [(300, 410), (150, 205), (75, 102)]
        assert other.micrometres_per_pixel == pytest.approx((0.25, 0.25))
        for level, window in ((0, (50, 10, 200, 400)), (2, (0, 0, 75, 102))):
            np.testing.assert_array_equal(
                slide._reader.read(level, window), other.read(level, window)
            )
        np.testing.assert_array_equal(
            slide.view(300, 410).read((50, 10, 200, 400)), pixels[50:200, 10:400]
        )
        other.close()


@pytest.mark.parametrize('options', [{'tile': (64, 64)}, {'rowsperstrip': 7}])
@pytest.mark.parametrize('channels', [1, 3])
def test_ome_tiff_has_its_levels_and_units(tifffile, tmp_path, options, channels):
    pixels = photo((200, 300))[..., :channels].squeeze()
    path = tmp_path / 'a.ome.tif'
    kind = {**options, 'photometric': 'rgb' if channels == 3 else 'minisblack'}
    with tifffile.TiffWriter(path) as file:
        metadata = {
            'axes': 'YXS' if channels == 3 else 'YX',
            **{'PhysicalSizeX': 250.0, 'PhysicalSizeXUnit': 'nm'},
            **{'PhysicalSizeY': 260.0, 'PhysicalSizeYUnit': 'nm'},
        }
        file.write(pixels, subifds=1, metadata=metadata, **kind)
        file.write(pixels[::2, ::2], subfiletype=1, **kind)
    with slides.Slide(path) as slide:
        assert isinstance(slide._reader, slides._Tiff)
        assert slide.micrometres_per_pixel == pytest.approx((0.26, 0.25))
        assert slide._reader.levels == [(200, 300), (100, 150)]
        wanted = np.broadcast_to(pixels.reshape(200, 300, channels), (200, 300, 3))
        found = slide.view(200, 300).read((10, 20, 190, 280))
        np.testing.assert_array_equal(found, wanted[10:190, 20:280])
        half = slide.view(100, 150).read((0, 0, 100, 150))
        np.testing.assert_array_equal(half, wanted[::2, ::2])


def test_a_resolution_that_no_microscope_has_is_none(tifffile, tmp_path):
    made_slides.write_pyramid(tmp_path / 'a.tif', photo((100, 100)), 25400 / 72)
    made_slides.write_pyramid(tmp_path / 'b.tif', photo((100, 100)), None)
    for name in ('a.tif', 'b.tif'):
        with slides.Slide(tmp_path / name) as slide:
            assert slide.micrometres_per_pixel is None


class Scanned:
    """OpenSlide of a slide of which only a part was scanned, and only every other pixel of it."""

    dimensions = (400, 300)
    level_dimensions = ((400, 300), (100, 75))
    level_downsamples = (1.0, 4.0)
    properties = {
        'openslide.bounds-x': '40',
        'openslide.bounds-y': '20',
        'openslide.bounds-width': '200',
        'openslide.bounds-height': '120',
        'openslide.mpp-x': '0.2',
        'openslide.mpp-y': '0.25',
        'openslide.background-color': 'F0E0D0',
        'openslide.objective-power': '40',
    }
    asked: list

    def __init__(self, path):
        self.asked = []

    def read_region(self, place, level, size):
        self.asked.append((tuple(place), level, size))
        pixels = np.zeros((*size[::-1], 4), np.uint8)
        pixels[:, ::2] = (10, 20, 30, 255)
        return Image.fromarray(pixels, 'RGBA')

    def close(self):
        pass


def test_places_count_from_what_was_scanned(tifffile, monkeypatch):
    import openslide

    monkeypatch.setattr(openslide, 'OpenSlide', Scanned)
    reader = slides._OpenSlide(pathlib.Path('a.mrxs'))
    assert reader.levels == [(120, 200), (30, 50)]
    assert reader.micrometres_per_pixel == (0.25, 0.2) and reader.objective == '40x'
    found = reader.read(1, (5, 10, 15, 40))
    assert reader._slide.asked == [((40 + 40, 20 + 20), 1, (30, 10))]
    assert found.shape == (10, 30, 3)
    assert (found[:, ::2] == (10, 20, 30)).all() and (found[:, 1::2] == (0xF0, 0xE0, 0xD0)).all()


def test_what_is_a_slide_is_told_by_name_and_kind(tmp_path):
    for name in ('a.svs', 'A.NDPI', 'b.mrxs', 'c.ome.tif', 'd.OME.TIFF'):
        assert slides.is_slide(pathlib.Path(name))
    for name in ('a.png', 'a.jpg', 'missing.tif'):
        assert not slides.is_slide(pathlib.Path(name))
    Image.fromarray(photo((50, 50))).save(tmp_path / 'strips.tif')
    (tmp_path / 'text.tif').write_text('no image')
    assert not slides.is_slide(tmp_path / 'strips.tif')
    assert not slides.is_slide(tmp_path / 'text.tif')


def test_a_tiled_picture_is_a_slide_only_where_it_could_not_be_read(
    tifffile, tmp_path, monkeypatch
):
    made_slides.write_pyramid(tmp_path / 'a.tif', photo((200, 200)), factors=(1,))
    assert not slides.is_slide(tmp_path / 'a.tif')
    monkeypatch.setenv('GAN_MRCNN_MAX_PIXELS', '30000')
    assert slides.is_slide(tmp_path / 'a.tif')


def test_a_damaged_or_other_file_is_refused_in_one_line(tifffile, tmp_path):
    made_slides.write_pyramid(tmp_path / 'whole.tif', photo((400, 400)), factors=(1, 2))
    content = (tmp_path / 'whole.tif').read_bytes()
    cases = {
        'gone.svs': None,
        'text.svs': b'no slide',
        'empty.ome.tif': b'',
        'head.ome.tif': content[:300],
        'head.tif': content[:100],
    }
    for name, text in cases.items():
        if text is not None:
            (tmp_path / name).write_bytes(text)
        with pytest.raises(slides.SlideError, match=name) as caught:
            # A head without the rest can be opened.
            slides.Slide(tmp_path / name).view(9, 9).read((0, 0, 9, 9))
        assert '\n' not in str(caught.value) and '; give' in str(caught.value)


def test_a_slide_that_is_damaged_within_says_where(tifffile, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, [400, 400, 3]).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / 'a.ome.tif') as file:
        kind = {'photometric': 'rgb', 'compression': 'deflate'}
        file.write(pixels, tile=(64, 64), metadata={'axes': 'YXS'}, **kind)
    content = bytearray((tmp_path / 'a.ome.tif').read_bytes())
    with tifffile.TiffFile(tmp_path / 'a.ome.tif') as file:
        begin = file.pages[0].dataoffsets[-1]
    content[begin : begin + 20] = bytes(20)
    (tmp_path / 'a.ome.tif').write_bytes(content)
    with slides.Slide(tmp_path / 'a.ome.tif') as slide:
        slide.view(400, 400).read((0, 0, 64, 64))
        with pytest.raises(slides.SlideError, match=r'at y 3\d\d, x 3\d\d of level 0: '):
            slide.view(400, 400).read((350, 350, 400, 400))


def test_other_pixels_are_refused(tifffile, tmp_path):
    deep = np.zeros((100, 100), np.uint16)
    tifffile.imwrite(tmp_path / 'a.ome.tif', deep, metadata={'axes': 'YX'})
    with pytest.raises(slides.SlideError, match='uint16; slides of 8 bits'):
        slides.Slide(tmp_path / 'a.ome.tif')


def test_a_picture_in_one_piece_is_refused(tifffile, tmp_path, monkeypatch):
    monkeypatch.setattr(slides, '_MOST_OF_A_PIECE', 9999)
    for rows, is_read in ((99, True), (100, False)):
        pixels = np.zeros((200, 100), np.uint8)
        tifffile.imwrite(tmp_path / 'a.ome.tif', pixels, rowsperstrip=rows)
        if is_read:
            assert slides.Slide(tmp_path / 'a.ome.tif').size == (200, 100)
        else:
            with pytest.raises(slides.SlideError, match='in pieces of 10000 pixels.*save it in'):
                slides.Slide(tmp_path / 'a.ome.tif')


def test_without_the_extra_its_name_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, 'openslide', None)
    with pytest.raises(UserError, match=r"pip install 'gan-mrcnn\[slides\]'"):
        slides.Slide(pathlib.Path('a.svs'))


def test_a_real_slide(tifffile, real_slide):
    import openslide

    with slides.Slide(real_slide) as slide:
        assert slide.size == (2967, 2220)
        assert slide.micrometres_per_pixel == (0.499, 0.499) and slide.objective == '20x'
        found = slide.view(2967, 2220).read((1000, 1200, 1522, 1975))
        wanted = (
            openslide.OpenSlide(real_slide).read_region((1200, 1000), 0, (775, 522)).convert('RGB')
        )
        np.testing.assert_array_equal(found, np.asarray(wanted))
        other = slides._Tiff(real_slide)
        np.testing.assert_array_equal(other.read(0, (1000, 1200, 1522, 1975)), found)
        other.close()
