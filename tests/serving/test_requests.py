"""What a server is sent: every kind of image, and what is none."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gan_mrcnn.metrics import predictions
from gan_mrcnn.prediction import signatures
from gan_mrcnn.utils.errors import UserError
from tests.serving.tiny import photo


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PHOTO = Image.fromarray(photo((60, 80)))
GOOD = encode(PHOTO, 'PNG')


@pytest.fixture(scope='module')
def decode():
    """The graph's decoder, for image number 3 of a request."""
    function = tf.function(lambda encoded: signatures.decode(encoded, 3))
    return function.get_concrete_function(tf.TensorSpec([], tf.string))


def huge_png():
    """20,000 x 20,000 pixels in a few hundred kilobytes."""

    def chunk(kind, content):
        crc = zlib.crc32(kind + content)
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', crc)

    header = struct.pack('>IIBBBBB', 20000, 20000, 8, 0, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', header)
        + chunk(b'IDAT', zlib.compress(bytes(20001 * 100)))
        + chunk(b'IEND', b'')
    )


BAD = {
    'nothing': (b'', 'image 3 of the request is no JPEG or PNG: 0 bytes'),
    'text': (b'<html>not found</html>', 'image 3 of the request is no JPEG or PNG'),
    'start of a JPEG': (b'\xff\xd8\xff', 'image 3 of the request is no JPEG or PNG'),
    'start of a PNG': (b'\x89PNG\r\n\x1a\n', 'image 3 of the request is no JPEG or PNG'),
    'truncated JPEG': (
        encode(PHOTO, 'JPEG')[:1200],
        'image 3 of the request is damaged or cut short: 1200 bytes',
    ),
    'truncated PNG': (GOOD[:1000], 'image 3 of the request is damaged or cut short'),
    'animated GIF': (
        encode(PHOTO, 'GIF', save_all=True, append_images=[PHOTO.rotate(90)]),
        'image 3 of the request is no JPEG or PNG',
    ),
    'WebP': (encode(PHOTO, 'WEBP'), 'image 3 of the request is no JPEG or PNG'),
    'huge PNG': (huge_png(), 'image 3 of the request has more than 67108864 pixels: 20000 20000'),
}


@pytest.mark.parametrize('name', BAD)
def test_a_bad_image_names_itself(name, decode):
    encoded, message = BAD[name]
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        decode(tf.constant(encoded))
    assert message in str(error.value).replace('[', '').replace(']', '')


def test_one_bad_image_of_a_batch_names_itself_and_the_model_lives(predictor):
    for encoded, message in BAD.values():
        message = message.replace('image 3', 'image 1')
        with pytest.raises(UserError) as error:
            predictor.detect([GOOD, encoded, GOOD])
        assert message in str(error.value) and '\n' not in str(error.value)
    assert len(predictor.detect([GOOD, GOOD])) == 2


def test_no_image_is_an_error(predictor):
    with pytest.raises(UserError, match='no image'):
        predictor.detect_pixels(np.zeros([0, 8, 8, 3], np.uint8))
    with pytest.raises(UserError, match='no image'):
        predictor.detect_pixels(np.zeros([1, 0, 8, 3], np.uint8))


def sixteen_bits():
    grey = np.asarray(PHOTO.convert('L'))
    noise = np.random.default_rng(0).integers(0, 256, grey.shape)
    return Image.fromarray((grey.astype(np.uint16) << 8) + noise.astype(np.uint16))


GREY = np.repeat(np.asarray(PHOTO.convert('L'))[..., np.newaxis], 3, axis=2)
ALPHA = PHOTO.copy()
ALPHA.putalpha(Image.fromarray(GREY[..., 0]))
TURNED = Image.Exif()
TURNED[0x0112] = 6
# The file, and the pixels that it has, made without it.
KINDS = {
    'grey': (encode(PHOTO.convert('L'), 'PNG'), GREY),
    'transparent': (encode(ALPHA, 'PNG'), np.asarray(PHOTO)),
    'grey and transparent': (encode(PHOTO.convert('LA'), 'PNG'), GREY),
    '16 bits': (encode(sixteen_bits(), 'PNG'), GREY),
    'palette': (
        encode(PHOTO.quantize(16), 'PNG'),
        np.asarray(PHOTO.quantize(16).convert('RGB')),
    ),
    'interlaced or not': (encode(PHOTO, 'PNG', compress_level=0), np.asarray(PHOTO)),
    'animated': (
        encode(PHOTO, 'PNG', save_all=True, append_images=[PHOTO.rotate(180)]),
        np.asarray(PHOTO),
    ),
    # As it is stored: `detection_boxes` are in these pixels.
    'turned by EXIF': (encode(PHOTO, 'PNG', exif=TURNED), np.asarray(PHOTO)),
}


@pytest.mark.parametrize('name', KINDS)
def test_every_kind_of_image_has_its_pixels(name, decode):
    encoded, pixels = KINDS[name]
    np.testing.assert_array_equal(decode(tf.constant(encoded)), pixels)


@pytest.mark.parametrize('options', [{'progressive': True}, {'exif': TURNED}])
def test_jpegs_have_their_pixels(options, decode):
    encoded = encode(PHOTO, 'JPEG', quality=95, **options)
    found = decode(tf.constant(encoded)).numpy().astype(int)
    assert np.abs(found - np.asarray(PHOTO)).mean() < 3


def test_a_strip_of_one_pixel_is_answered(predictor):
    for size in ((1, 1), (5000, 1), (1, 5000)):
        (found,) = predictor.detect([encode(PHOTO.resize(size), 'PNG')])
        limits = [size[1], size[0], size[1], size[0]]
        assert (found.boxes >= 0).all() and (found.boxes <= np.array(limits) + 1e-3).all()


@settings(
    deadline=None,
    derandomize=True,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    base=st.sampled_from(
        [GOOD, encode(PHOTO, 'JPEG'), encode(PHOTO, 'JPEG', progressive=True), b'']
    ),
    cut=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    tail=st.binary(max_size=20),
)
def test_damaged_files_give_pixels_or_an_error_that_names_them(decode, base, cut, changes, tail):
    content = bytearray(base[: round(len(base) * cut)])
    for place, value in changes:
        if content:
            content[min(int(place * len(content)), len(content) - 1)] = value
    try:
        pixels = decode(tf.constant(bytes(content) + tail))
    except tf.errors.InvalidArgumentError as error:
        assert 'of the request' in str(error)
    else:
        assert pixels.shape.rank == 3 and pixels.shape[2] == 3 and tf.size(pixels) > 0


def slow_label_map(boxes, masks, height, width):
    """The evaluation's masks, the best on top."""
    labels = np.zeros((height, width), np.int32)
    for number in range(len(boxes), 0, -1):
        pasted = predictions.paste_mask(masks[number - 1], boxes[number - 1], height, width)
        labels[pasted > 0] = number
    return labels


def test_the_label_map_is_the_evaluations_masks(predictor):
    rng = np.random.default_rng(0)
    boxes = np.array(
        [[3.3, 5.7, 31.2, 40.9], [-8, -3, 20, 25], [20, 30, 61, 77], [5, 5, 5, 9], [0, 0, 40, 50]],
        np.float32,
    )
    masks = rng.random((5, 28, 28)).astype(np.float32)
    found = signatures.label_map(tf.constant(boxes), tf.constant(masks), tf.constant([40, 50]))
    wanted = slow_label_map(boxes, masks, 40, 50)
    np.testing.assert_array_equal(found, wanted)
    assert set(np.unique(wanted)) == {0, 1, 2, 3, 5}
    empty = signatures.label_map(tf.zeros([0, 4]), tf.zeros([0, 28, 28]), tf.constant([4, 5]))
    np.testing.assert_array_equal(empty, np.zeros((4, 5)))


def test_full_masks_draws_what_reaches_the_threshold(predictor, exported):
    loaded = tf.saved_model.load(str(exported.version))
    outputs = loaded.signatures['full_masks'](image_bytes=tf.constant([GOOD]))
    (found,) = predictor.detect([GOOD])
    drawn = int(np.sum(found.scores >= predictor.card.score_threshold))
    assert 0 < drawn < len(found.scores)
    wanted = slow_label_map(found.boxes[:drawn], found.masks[:drawn], 60, 80)
    assert np.mean(outputs['label_map'][0] != wanted) < 1e-3
    assert outputs['label_map'].dtype == tf.int32 and wanted.any()
    with pytest.raises(tf.errors.InvalidArgumentError, match='one image a request'):
        loaded.signatures['full_masks'](image_bytes=tf.constant([GOOD, GOOD]))
