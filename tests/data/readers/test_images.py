"""Images and label images of every kind: the right pixels, or one line."""

import struct
import zlib

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import EpsImagePlugin, Image, PngImagePlugin

from gan_mrcnn.data.readers import images
from gan_mrcnn.prediction import image_files
from tests.data import layouts
from tests.data.round_trip import error_of

KINDS = {
    'rgb': ('png', 'bmp', 'tif'),
    'grey': ('png', 'bmp', 'tif', 'jpg'),
    '16 bits': ('png', 'tif'),
    'alpha': ('png', 'tif'),
    'palette': ('png', 'bmp', 'tif'),
    'jpeg': ('jpg',),
    'turned': ('jpg',),
}


@pytest.mark.parametrize(
    'kind, suffix', [(kind, suffix) for kind, suffixes in KINDS.items() for suffix in suffixes]
)
def test_an_image_is_what_was_saved(kind, suffix, tmp_path):
    path = tmp_path / f'image.{suffix}'
    pixels, tolerance = layouts.save_image(path, kind, 5)
    found = images.read_image(path)
    assert found.pixels.dtype == np.uint8 and found.pixels.shape == pixels.shape
    tolerance = tolerance or (3 if suffix == 'jpg' else 0)
    assert np.abs(found.pixels.astype(int) - pixels.astype(int)).max() <= tolerance
    if found.encoded is not None:
        # What goes into the records as it is must give TensorFlow the same image.
        decoded = tf.io.decode_image(found.encoded, channels=3).numpy()
        assert np.abs(decoded.astype(int) - pixels.astype(int)).max() <= tolerance
    assert (found.encoded is None) == (
        suffix in ('bmp', 'tif') or kind in ('16 bits', 'alpha', 'palette', 'turned')
    )


def turned(path, orientation, stored):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(path, quality=100, subsampling=0, exif=exif)


# What a viewer does with the stored pixels, by hand.
VIEWS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize('orientation', VIEWS)
def test_annotations_follow_what_is_displayed(orientation, tmp_path):
    path, stored = tmp_path / 'a.jpg', layouts.smooth(3)
    turned(path, orientation, stored)
    view = VIEWS[orientation](stored)
    for size in (None, view.shape[1::-1]):
        found = images.read_image(path, size)
        assert np.abs(found.pixels.astype(int) - view).max() <= 6
        assert (found.encoded is not None) == (orientation == 1)


@pytest.mark.parametrize('orientation', [5, 6, 7, 8])
def test_unless_their_size_says_that_they_follow_what_is_stored(orientation, tmp_path):
    path, stored = tmp_path / 'a.jpg', layouts.smooth(3)
    turned(path, orientation, stored)
    found = images.read_image(path, (48, 32))
    assert np.abs(found.pixels.astype(int) - stored).max() <= 6
    # TensorFlow does not turn either.
    decoded = tf.io.decode_image(found.encoded).numpy()
    assert np.abs(decoded.astype(int) - stored).max() <= 6
    message = error_of(lambda: images.read_image(path, (48, 33)))
    assert 'a.jpg is 32x48, turned by EXIF, but its annotations are for 48x33' in message


def test_a_jpeg_with_a_second_one_behind_it(tmp_path):
    """As many cameras write them."""
    path, pixels = tmp_path / 'a.jpg', layouts.smooth(4)
    small = Image.fromarray(pixels[::2, ::2])
    Image.fromarray(pixels).save(
        path, 'MPO', save_all=True, append_images=[small], quality=100, subsampling=0
    )
    found = images.read_image(path)
    decoded = tf.io.decode_image(found.encoded, channels=3).numpy()
    for image in (found.pixels, decoded):
        assert np.abs(image.astype(int) - pixels).max() <= 6


def test_a_jpeg_of_four_inks_is_not_passed_on(tmp_path):
    path, pixels = tmp_path / 'a.jpg', layouts.smooth(4)
    Image.fromarray(pixels).convert('CMYK').save(path, quality=100)
    found = images.read_image(path)
    assert found.encoded is None
    assert np.abs(found.pixels.astype(int) - pixels).max() <= 8


def test_of_16_bits_the_upper_8_are_kept(tmp_path):
    deep = np.array([[0, 255, 256, 4095, 65535]], np.uint16)
    for suffix in ('png', 'tif'):
        path = tmp_path / f'a.{suffix}'
        cv2.imwrite(str(path), deep)
        assert images.read_image(path).pixels[0, :, 0].tolist() == [0, 0, 1, 15, 255]


def pages(path):
    first = Image.new('L', (8, 6))
    first.save(path, save_all=True, append_images=[first])


BAD = {
    'missing': (lambda path: None, 'is missing'),
    'empty': (lambda path: path.write_bytes(b''), 'cannot be read'),
    'text': (lambda path: path.write_text('no image'), 'cannot be read'),
    'folder': (lambda path: path.mkdir(), 'cannot be read'),
    'several pages': (pages, 'has 2 pages'),
    'fractions': (
        lambda path: Image.fromarray(np.full((4, 4), 1.5, np.float32)).save(path),
        'fractions',
    ),
}


@pytest.mark.parametrize('read', [images.read_image, images.read_labels])
@pytest.mark.parametrize('case', BAD)
def test_a_file_that_cannot_be_used_is_named(case, read, tmp_path):
    make, said = BAD[case]
    path = tmp_path / 'a.tif'
    make(path)
    message = error_of(lambda: read(path))
    assert str(path) in message and said in message


def test_pixels_of_32_bits_are_named(tmp_path):
    path = tmp_path / 'a.tif'
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(path)
    assert '32 bits' in error_of(lambda: images.read_image(path))
    assert images.read_labels(path).tolist() == [[70000] * 4] * 4


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'bmp', 'tif'])
def test_a_file_cut_short_is_never_half_an_image(suffix, tmp_path):
    """OpenCV would fill up the rest with grey."""
    whole = tmp_path / f'whole.{suffix}'
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(whole)
    content = whole.read_bytes()
    pixels = images.read_image(whole).pixels
    for share in (0.1, 0.5, 0.9):
        path = tmp_path / f'cut.{suffix}'
        path.write_bytes(content[: int(share * len(content))])
        try:
            found = images.read_image(path).pixels
        except Exception as error:
            assert type(error).__name__ == 'UserError' and str(path) in str(error)
        else:
            np.testing.assert_array_equal(found, pixels)


def write_bomb(path, width, height):
    """A PNG of a few bytes with the header of an image of that size."""
    chunks = [
        (b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)),
        (b'IDAT', zlib.compress(bytes(1000))),
    ]
    body = b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        for kind, data in chunks
    )
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + body)


@pytest.mark.parametrize('read', [images.read_image, images.read_labels])
@pytest.mark.parametrize(
    'size, said',
    [
        ((60000, 60000), f'more than {1 << 28}; make it smaller, or set GAN_MRCNN_MAX_PIXELS'),
        ((70000, 1), 'a side above 65535'),
        ((2**31 - 1, 2**31 - 1), 'more than'),
    ],
)
@pytest.mark.filterwarnings('error')
def test_a_bomb_is_named_before_it_is_decoded(tmp_path, monkeypatch, read, size, said):
    monkeypatch.setattr(PngImagePlugin.PngImageFile, 'load', lambda self: pytest.fail('decoded'))
    path = tmp_path / 'a.png'
    write_bomb(path, *size)
    message = error_of(lambda: read(path))
    assert message.startswith(f'{path} has {size[0]}x{size[1]} pixels') and said in message


def test_the_limit_is_ours_to_raise_and_to_lower(tmp_path, monkeypatch):
    path = tmp_path / 'a.png'
    Image.new('L', (20, 20)).save(path)
    monkeypatch.setenv('GAN_MRCNN_MAX_PIXELS', '399')
    assert 'has 20x20 pixels, more than 399' in error_of(lambda: images.read_image(path))
    monkeypatch.setenv('GAN_MRCNN_MAX_PIXELS', '400')
    assert images.read_image(path).pixels.shape == (20, 20, 3)
    monkeypatch.setenv('GAN_MRCNN_MAX_PIXELS', 'many')
    assert "GAN_MRCNN_MAX_PIXELS='many'" in error_of(lambda: images.read_image(path))


@pytest.mark.filterwarnings('error')
def test_pillows_own_limit_is_not_in_the_way(tmp_path):
    """It would warn from 89 million pixels on."""
    path = tmp_path / 'a.png'
    Image.new('L', (10000, 10000)).save(path)
    assert images.read_labels(path).shape == (10000, 10000)


def test_a_program_is_not_run(tmp_path, monkeypatch):
    """PostScript is one; Pillow has Ghostscript run it, whatever the file is called."""
    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *_: pytest.fail('run'))
    path = tmp_path / 'a.png'
    path.write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n')
    assert f'{path} cannot be read' in error_of(lambda: images.read_image(path))


# One label image in every encoding.


def as_palette(labels, colours):
    image = Image.frombytes('P', labels.shape[::-1], labels.astype(np.uint8).tobytes())
    image.putpalette([value for colour in colours for value in colour])
    return image


BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (255, 0, 0)
# Of numbers up to 255.
ENCODINGS = {
    '8 bits': lambda labels: Image.fromarray(labels.astype(np.uint8)),
    '16 bits': lambda labels: Image.fromarray(labels.astype(np.uint16)),
    '32 bits': lambda labels: Image.fromarray(labels.astype(np.int32)),
    'floats': lambda labels: Image.fromarray(labels.astype(np.float32)),
    'palette': lambda labels: as_palette(labels, [BLACK, *[RED] * 255]),
    'palette with a white background': lambda labels: as_palette(labels, [WHITE, *[RED] * 255]),
    'equal colours': lambda labels: Image.fromarray(np.dstack([labels.astype(np.uint8)] * 3)),
    'grey and opaque': lambda labels: Image.fromarray(
        np.dstack([labels, np.full_like(labels, 255)]).astype(np.uint8), 'LA'
    ),
    'equal colours and opaque': lambda labels: Image.fromarray(
        np.dstack([labels] * 3 + [np.full_like(labels, 255)]).astype(np.uint8)
    ),
}
# Those that PNG has none for.
TIFF_ONLY = ('32 bits', 'floats')


@pytest.mark.parametrize('suffix', ['png', 'tif'])
@pytest.mark.parametrize('encoding', ENCODINGS)
def test_numbers_are_the_same_in_every_encoding(encoding, suffix, tmp_path):
    if suffix == 'png' and encoding in TIFF_ONLY:
        pytest.skip('PNG has no such values')
    labels = np.random.default_rng(2).integers(0, 256, (7, 9))
    ENCODINGS[encoding](labels).save(tmp_path / f'a.{suffix}')
    np.testing.assert_array_equal(images.read_labels(tmp_path / f'a.{suffix}'), labels)


@pytest.mark.parametrize('suffix', ['png', 'tif'])
@pytest.mark.parametrize('channels', [3, 4])
def test_numbers_of_16_bits_are_whole_in_equal_colours(channels, suffix, tmp_path):
    """Pillow reads the upper half of them alone, which is empty for the first 255 objects."""
    labels = np.random.default_rng(3).choice([0, 1, 2, 300, 65535], (7, 9)).astype(np.uint16)
    opaque = np.full_like(labels, 65535)
    stored = np.dstack([labels, labels, labels, opaque][:channels])
    assert cv2.imwrite(str(tmp_path / f'a.{suffix}'), stored)
    np.testing.assert_array_equal(images.read_labels(tmp_path / f'a.{suffix}'), labels)


MASKS = {
    '1 bit': lambda mask: Image.fromarray(mask).convert('1'),
    'palette, black first': lambda mask: as_palette(mask, [BLACK, WHITE]),
    'palette, white first': lambda mask: as_palette(~mask, [WHITE, BLACK]),
    'palette of many colours, white first': lambda mask: as_palette(
        np.where(mask, 0, 255), [WHITE, *[RED] * 254, BLACK]
    ),
    'web colours': lambda mask: Image.fromarray(np.dstack([mask * np.uint8(255)] * 3)).convert('P'),
    '0 and 1': lambda mask: Image.fromarray(mask.astype(np.uint8)),
    '0 and 255': lambda mask: Image.fromarray(mask * np.uint8(255)),
    '0 and 65535': lambda mask: Image.fromarray(mask * np.uint16(65535)),
    'colours': lambda mask: Image.fromarray(np.dstack([mask * np.uint8(255)] * 3)),
}


@pytest.mark.parametrize('suffix', ['png', 'tif', 'bmp'])
@pytest.mark.parametrize('encoding', MASKS)
def test_a_mask_has_the_same_pixels_in_every_encoding(encoding, suffix, tmp_path):
    if suffix == 'bmp' and encoding == '0 and 65535':
        pytest.skip('BMP has no 16 bits')
    mask = np.random.default_rng(4).random((7, 9)) < 0.4
    MASKS[encoding](mask).save(tmp_path / f'a.{suffix}')
    labels = images.read_labels(tmp_path / f'a.{suffix}')
    np.testing.assert_array_equal(labels > 0, mask)
    assert len(np.unique(labels)) == 2


def test_numbers_with_one_colour_for_all_objects_stay_numbers(tmp_path):
    """Black and white to look at, and yet several objects."""
    labels = np.array([[0, 1, 2], [0, 3, 3]])
    as_palette(labels, [BLACK, WHITE, WHITE, WHITE]).save(tmp_path / 'a.png')
    assert images.read_labels(tmp_path / 'a.png').tolist() == labels.tolist()
    as_palette(labels + 1, [BLACK, WHITE, WHITE, WHITE, WHITE]).save(tmp_path / 'a.png')
    assert images.read_labels(tmp_path / 'a.png').tolist() == (labels + 1).tolist()


def test_a_mask_of_one_colour_is_all_or_nothing(tmp_path):
    path, none = tmp_path / 'a.png', np.zeros((4, 5), bool)
    for filled in (none, ~none):
        as_palette(~filled, [WHITE, BLACK]).save(path)
        np.testing.assert_array_equal(images.read_labels(path) > 0, filled)
    # Of many colours, white is the background where it is the first.
    as_palette(none, [WHITE, *[RED] * 255]).save(path)
    assert not images.read_labels(path).any()


@pytest.mark.parametrize(
    'stored, said',
    [
        (np.dstack([np.arange(6).reshape(2, 3)] * 2 + [np.ones((2, 3))]), '3 channels that differ'),
        (np.dstack([np.arange(6).reshape(2, 3)] * 4), 'transparent in places'),
    ],
)
def test_colours_and_transparency_are_no_labels(stored, said, tmp_path):
    Image.fromarray(stored.astype(np.uint8)).save(tmp_path / 'a.png')
    assert said in error_of(lambda: images.read_labels(tmp_path / 'a.png'))


@pytest.mark.parametrize('value', [0.5, -1, np.nan, np.inf, 2.0**31])
def test_floats_that_are_no_numbers_of_objects_are_refused(value, tmp_path):
    Image.fromarray(np.full((2, 3), value, np.float32)).save(tmp_path / 'a.tif')
    assert 'fractions or negative' in error_of(lambda: images.read_labels(tmp_path / 'a.tif'))


@pytest.mark.parametrize('suffix', ['png', 'tif'])
@pytest.mark.parametrize('channels', [1, 3])
def test_16_bits_of_which_12_are_used_get_a_warning(channels, suffix, tmp_path):
    path = tmp_path / f'a.{suffix}'
    for highest, said in ((200, True), (4095, True), (4096, False), (65535, False)):
        stored = np.full((4, 5, channels), 100, np.uint16)
        stored[1, 2] = highest
        assert cv2.imwrite(str(path), stored)
        assert ('almost black' in images.read_image(path).warning) == said
    # 8 bits may be as dark as they like.
    cv2.imwrite(str(path), np.zeros((4, 5), np.uint8))
    assert images.read_image(path).warning == ''


def test_hidden_files_and_labels_beside_their_image_are_no_images(tmp_path, capsys):
    for name in ('a.bmp', 'a_anno.bmp', 'b.PNG', 'b_Mask.png', 'c_anno.png', 'd.jpg', 'd_mask.jpg'):
        (tmp_path / name).write_bytes(b'')
    for name in ('.ipynb_checkpoints/a-checkpoint.png', '._a.bmp', '_anno.bmp', 'a.txt'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'')
    found = [path.name for path in images.list_images(tmp_path)]
    # Without a `c`, `c_anno` is an image; a JPEG is no label image.
    assert found == ['_anno.bmp', 'a.bmp', 'b.PNG', 'c_anno.png', 'd.jpg', 'd_mask.jpg']
    assert '2 label images' in capsys.readouterr().out


@pytest.mark.parametrize(
    'stem, image',
    [
        *(('a_anno', 'a'), ('A_Masks', 'A'), ('a_gt', 'a'), ('a_b_segmentation', 'a_b')),
        *(('a', ''), ('_mask', ''), ('a_masked', ''), ('amask', ''), ('', '')),
    ],
)
def test_one_list_of_names_says_what_a_label_image_is_of(stem, image, tmp_path, capsys):
    assert images.stem_of_labelled(stem) == image
    if image:
        for name in (stem, image):
            Image.new('L', (2, 2)).save(tmp_path / f'{name}.png')
        assert images.list_images(tmp_path) == [tmp_path / f'{image}.png']
        found = image_files.find_sources([str(tmp_path)])
        assert [source.path for source in found] == [tmp_path / f'{image}.png']
