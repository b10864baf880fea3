"""Pretrained weights: C2-C5 against an independent forward pass, and files that do not fit."""

import io
import json
import os
import pathlib
import struct
import tracemalloc
import zipfile

import cv2
import numpy as np
import pytest
import tensorflow as tf
from official.vision.modeling import classification_model
from official.vision.modeling.backbones import resnet

from gan_mrcnn.modeling import backbone as backbone_lib
from gan_mrcnn.modeling import backbone_weights
from gan_mrcnn.utils.errors import UserError

_SPECS = tf.keras.layers.InputSpec(shape=[None, None, None, 3])
_DATA = pathlib.Path(__file__).resolve().parents[3] / 'shared/data'
# Blocks per stage and whether they are bottlenecks (He et al., table 1).
_ARCHITECTURES = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
}


def _reference_features(tensors, images, model_id):
    """torchvision's ResNet, written from its definition with torchvision's names."""

    def conv(x, name, stride=1):
        kernel = tf.constant(tensors[f'{name}.weight'], tf.float32)
        half = kernel.shape[-1] // 2
        x = tf.pad(x, [[0, 0], [half, half], [half, half], [0, 0]])
        return tf.nn.conv2d(x, tf.transpose(kernel, [2, 3, 1, 0]), stride, 'VALID')

    def norm(x, name):
        mean, variance, gamma, beta = (
            tensors[f'{name}.{part}'].astype(np.float32)
            for part in ('running_mean', 'running_var', 'weight', 'bias')
        )
        return (x - mean) / np.sqrt(variance + np.float32(1e-5)) * gamma + beta

    def block(x, name, stride, bottleneck):
        out = x
        for i in range(1, 4 if bottleneck else 3):
            strided = i == (2 if bottleneck else 1)
            out = norm(conv(out, f'{name}.conv{i}', stride if strided else 1), f'{name}.bn{i}')
            if i < (3 if bottleneck else 2):
                out = tf.nn.relu(out)
        if f'{name}.downsample.0.weight' in tensors:
            x = norm(conv(x, f'{name}.downsample.0', stride), f'{name}.downsample.1')
        return tf.nn.relu(out + x)

    repeats, bottleneck = _ARCHITECTURES[model_id]
    x = tf.nn.relu(norm(conv(images, 'conv1', 2), 'bn1'))
    x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=-np.inf)
    x = tf.nn.max_pool2d(x, 3, 2, 'VALID')
    features = {}
    for stage, count in enumerate(repeats, start=1):
        for index in range(count):
            stride = 2 if stage > 1 and index == 0 else 1
            x = block(x, f'layer{stage}.{index}', stride, bottleneck)
        features[str(stage + 1)] = x.numpy()
    return features


def _random_tensors(model_id, seed=0):
    """Random weights in torchvision's names and layouts, with BatchNorm far from identity."""
    rng = np.random.default_rng(seed)
    tensors = {}

    def add(conv_name, norm_name, outputs, inputs, size):
        scale = np.sqrt(2.0 / (inputs * size * size))
        kernel = rng.standard_normal((outputs, inputs, size, size), dtype=np.float32)
        tensors[f'{conv_name}.weight'] = kernel * np.float32(scale)
        for part, low, high in (
            ('weight', 0.2, 0.6),
            ('bias', -0.2, 0.2),
            ('running_mean', -0.2, 0.2),
            ('running_var', 0.5, 1.5),
        ):
            tensors[f'{norm_name}.{part}'] = rng.uniform(low, high, outputs).astype(np.float32)
        tensors[f'{norm_name}.num_batches_tracked'] = np.array(7, np.int64)

    repeats, bottleneck = _ARCHITECTURES[model_id]
    add('conv1', 'bn1', 64, 3, 7)
    inputs = 64
    for stage, count in enumerate(repeats, start=1):
        width = 32 * 2**stage
        outputs = 4 * width if bottleneck else width
        for index in range(count):
            name = f'layer{stage}.{index}'
            channels = [inputs, width, width, outputs] if bottleneck else [inputs, width, width]
            sizes = [1, 3, 1] if bottleneck else [3, 3]
            for i, size in enumerate(sizes, start=1):
                add(f'{name}.conv{i}', f'{name}.bn{i}', channels[i], channels[i - 1], size)
            if inputs != outputs:
                add(f'{name}.downsample.0', f'{name}.downsample.1', outputs, inputs, 1)
            inputs = outputs
    tensors['fc.weight'] = np.zeros((1000, inputs), np.float32)
    tensors['fc.bias'] = np.zeros(1000, np.float32)
    return tensors


def _safetensors(tensors, dtype='F32'):
    """The bytes of a safetensors file, by hand from the format's description."""
    header = {'__metadata__': {'format': 'pt'}}
    chunks, position = [], 0
    for name, value in tensors.items():
        if value.dtype == np.int64:
            kind, raw = 'I64', value.astype('<i8').tobytes()
        elif dtype == 'BF16':
            kind, raw = dtype, (value.astype('<f4').view('<u4') >> 16).astype('<u2').tobytes()
        else:
            kind = dtype
            raw = value.astype({'F16': '<f2', 'F32': '<f4', 'F64': '<f8'}[dtype]).tobytes()
        span = [position, position + len(raw)]
        header[name] = {'dtype': kind, 'shape': list(value.shape), 'data_offsets': span}
        chunks.append(raw)
        position += len(raw)
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + b''.join(chunks)


def _assert_features(model, tensors, images, model_id):
    expected = _reference_features(tensors, images, model_id)
    actual = model(images)
    for level in ('2', '3', '4', '5'):
        assert expected[level].std() > 1e-2
        np.testing.assert_allclose(actual[level], expected[level], atol=1e-3)


@pytest.fixture(scope='module')
def tensors_18():
    return _random_tensors(18)


@pytest.fixture(scope='module')
def model_18():
    return backbone_lib.build_backbone(_SPECS, 18)


@pytest.fixture(scope='module')
def resnet_34_path():
    path = _DATA / 'backbones/resnet34_torchvision_layout_fp16.npz'
    if not path.is_file():
        pytest.skip(f'the ResNet-34 weights are not in {path}')
    return str(path)


@pytest.fixture(scope='module')
def gland_image(glas_dir):
    """[1, H, W, 3] float32, RGB normalized with ImageNet's mean and standard deviation."""
    image = cv2.imread(str(glas_dir / 'train_1.png'))[:, :, ::-1].astype(np.float32) / 255.0
    image = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return image[np.newaxis].astype(np.float32)


def test_resnet_34_on_a_gland_image_equals_torchvisions(resnet_34_path, gland_image):
    model = backbone_lib.build_backbone(_SPECS, 34)
    report = backbone_weights.load_backbone(model, resnet_34_path)
    with np.load(resnet_34_path) as archive:
        tensors = dict(archive)
    assert (report.num_tensors, report.ignored) == (180, ())
    assert report.num_parameters == sum(value.size for value in tensors.values())
    for height, width in ((128, 192), (96, 160), (97, 131)):
        _assert_features(model, tensors, gland_image[:, 40 : 40 + height, 60 : 60 + width], 34)


def test_same_padding_gives_other_features(resnet_34_path, gland_image):
    """The reason for the option: with 'same' the very same weights are another function."""
    model = backbone_lib.build_backbone(_SPECS, 34, padding='same')
    backbone_weights.load_backbone(model, resnet_34_path)
    with np.load(resnet_34_path) as archive:
        tensors = dict(archive)
    images = gland_image[:, :128, :192]
    expected = _reference_features(tensors, images, 34)
    actual = model(images)
    for level in expected:
        correlation = np.corrcoef(np.ravel(actual[level]), expected[level].ravel())[0, 1]
        assert correlation < 0.8


@pytest.mark.parametrize('model_id', [18, 50])
def test_random_weights_round_trip(model_id, tmp_path):
    tensors = _random_tensors(model_id)
    path = tmp_path / 'weights.npz'
    np.savez(path, **tensors)
    model = backbone_lib.build_backbone(_SPECS, model_id)
    report = backbone_weights.load_backbone(model, str(path))
    counters = [name for name in tensors if name.endswith('num_batches_tracked')]
    assert set(report.ignored) == {'fc.weight', 'fc.bias', *counters}
    assert report.num_tensors == len(tensors) - 2 - len(counters)
    assert str(report).count('\n') == 0
    assert f'fc.bias, fc.weight, {len(counters)} x *.num_batches_tracked' in str(report)
    images = tf.random.stateless_normal([2, 64, 96, 3], seed=[1, 2])
    _assert_features(model, tensors, images, model_id)


def test_projection_that_torchvision_lacks_is_exactly_the_identity(tensors_18, tmp_path):
    path = tmp_path / 'weights.npz'
    np.savez(path, **tensors_18)
    model = backbone_lib.build_backbone(_SPECS, 18, norm_epsilon=0.1)
    backbone_weights.load_backbone(model, str(path))
    block = next(layer for layer in model.layers if isinstance(layer, backbone_lib.BLOCKS))
    x = tf.random.stateless_normal([1, 4, 4, 64], seed=[3, 4])
    np.testing.assert_allclose(block._norm0(block._shortcut(x)), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [('F32', 0.0), ('F64', 0.0), ('F16', 2**-11), ('BF16', 2**-7)]
)
def test_safetensors(dtype, tolerance, tensors_18, model_18, tmp_path):
    path = tmp_path / 'weights.safetensors'
    path.write_bytes(_safetensors(tensors_18, dtype))
    backbone_weights.load_backbone(model_18, str(path))
    kernel = next(v for v in model_18.variables if v.shape.rank == 4)
    expected = tensors_18['conv1.weight'].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(
        kernel.numpy(), expected, rtol=tolerance, atol=1e-7 * (dtype == 'F16')
    )


def _broken_safetensors(tensors, what):
    content = _safetensors(tensors)
    (length,) = struct.unpack_from('<Q', content)
    header = json.loads(content[8 : 8 + length])
    if what == 'short':
        return content[:5]
    if what == 'header':
        return struct.pack('<Q', 2**62) + content[8:]
    if what == 'truncated':
        return content[:-4]
    if what == 'no json':
        return content[:8] + b'x' * length + content[8 + length :]
    if what == 'shape':
        header['conv1.weight']['shape'] = [64, 3, 7, 8]
    if what == 'negative':
        header['conv1.weight']['data_offsets'] = [-37632, 0]
    if what == 'type':
        header['conv1.weight'] = {**header['conv1.weight'], 'dtype': 'F8_E4M3', 'shape': [37632]}
    if what == 'terabytes':
        header['conv1.weight'] = {'dtype': 'F32', 'shape': [1 << 40], 'data_offsets': [0, 1 << 42]}
    if what == 'overflow':
        header['conv1.weight']['shape'] = [1 << 40, 1 << 40]
    if what == 'gap':
        header = {name: entry for name, entry in header.items() if name != 'conv1.weight'}
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + content[8 + length :]


@pytest.mark.parametrize(
    ('what', 'message'),
    [
        ('short', 'header too small'),
        ('header', 'header too large'),
        ('truncated', 'file not fully covered'),
        ('no json', 'invalid JSON in header'),
        ('shape', 'invalid shape, data type, or offset'),
        ('negative', '-37632'),
        ('type', 'conv1.weight has type F8_E4M3'),
        ('terabytes', 'not a readable .safetensors'),
        ('overflow', 'overflow'),
        ('gap', 'invalid offset'),
    ],
)
def test_damaged_safetensors(what, message, tensors_18, model_18, tmp_path):
    path = tmp_path / 'weights.safetensors'
    path.write_bytes(_broken_safetensors(tensors_18, what))
    with pytest.raises(UserError, match=message) as error:
        backbone_weights.load_backbone(model_18, str(path))
    assert str(path) in str(error.value) and 'download or convert it again' in str(error.value)
    assert '\n' not in str(error.value)


def test_sizes_that_lie_take_no_memory(tensors_18, tmp_path):
    for what in ('header', 'terabytes', 'overflow'):
        path = tmp_path / f'{what}.safetensors'
        path.write_bytes(_broken_safetensors({'conv1.weight': tensors_18['conv1.weight']}, what))
        tracemalloc.start()
        try:
            with pytest.raises(UserError, match='not a readable .safetensors'):
                backbone_weights._read(str(path))
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()


def _without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda t: _without(t, 'layer3.1.bn2.running_var'),
            r'missing layer3\.1\.bn2\.running_var;',
        ),
        (
            lambda t: {**t, 'layer2.0.conv1.weight': t['layer2.0.conv1.weight'][:, :, :, :2]},
            r'layer2\.0\.conv1\.weight has shape \[128, 64, 3, 2\], \[128, 64, 3, 3\] is wanted',
        ),
        (
            lambda t: {**t, 'layer1.0.downsample.0.weight': np.zeros((64, 64, 1, 1), np.float32)},
            r'unknown layer1\.0\.downsample\.0\.weight;',
        ),
        (
            lambda t: {**t, 'bn1.bias': np.full(64, np.inf, np.float32)},
            r'bn1\.bias has values that are not finite',
        ),
        (lambda t: {**t, 'bn1.bias': np.zeros(64, np.int32)}, r'bn1\.bias has type int32'),
    ],
    ids=['missing', 'misshapen', 'unknown', 'not finite', 'not a float'],
)
def test_wrong_tensor_is_named_and_nothing_is_written(
    change, message, tensors_18, model_18, tmp_path
):
    path = tmp_path / 'weights.npz'
    np.savez(path, **change(tensors_18))
    before = [variable.numpy() for variable in model_18.variables]
    with pytest.raises(UserError, match=message):
        backbone_weights.load_backbone(model_18, str(path))
    for variable, value in zip(model_18.variables, before):
        np.testing.assert_array_equal(variable, value)


def test_weights_of_another_depth(tensors_18, model_18, tmp_path):
    """Of many missing names the first few are listed, and how many more there are."""
    path = tmp_path / 'weights.npz'
    np.savez(path, **{k: v for k, v in tensors_18.items() if not k.startswith('layer4.')})
    with pytest.raises(
        UserError, match=r'ResNet-18: missing layer4\.0\.conv1\.weight, .* 20 more;'
    ):
        backbone_weights.load_backbone(model_18, str(path))


def test_file_that_is_not_what_it_says(model_18, tmp_path):
    for name, content in (('a.npz', b'no archive'), ('b.npz', None), ('c.txt', b'')):
        path = tmp_path / name
        if content is None:
            with open(path, 'wb') as file:
                np.save(file, np.zeros(3))
        else:
            path.write_bytes(content)
        with pytest.raises(UserError, match=name):
            backbone_weights.load_backbone(model_18, str(path))
    with pytest.raises(UserError, match=r'missing\.npz: no such file'):
        backbone_weights.load_backbone(model_18, str(tmp_path / 'missing.npz'))


def test_pth_needs_torch(tensors_18, model_18, tmp_path):
    path = tmp_path / 'weights.pth'
    path.write_bytes(b'')
    try:
        import torch
    except ImportError:
        with pytest.raises(UserError, match='needs torch, which is not installed'):
            backbone_weights.load_backbone(model_18, str(path))
        return
    torch.save({name: torch.from_numpy(value) for name, value in tensors_18.items()}, path)
    report = backbone_weights.load_backbone(model_18, str(path))
    assert report.num_tensors == 100


def _save_checkpoint(model, folder):
    """As the Model Garden's trainer does: the classifier, and beside it its `checkpoint_items`."""
    classifier = classification_model.ClassificationModel(model, num_classes=2, input_specs=_SPECS)
    checkpoint = tf.train.Checkpoint(
        global_step=tf.Variable(3), model=classifier, **classifier.checkpoint_items
    )
    return checkpoint.save(os.path.join(folder, 'ckpt'))


@pytest.mark.parametrize(('model_id', 'padding'), [(18, 'same'), (50, 'symmetric')])
def test_model_garden_checkpoint(model_id, padding, tmp_path):
    source = resnet.ResNet(model_id, _SPECS)
    prefix = _save_checkpoint(source, str(tmp_path))
    target = backbone_lib.build_backbone(_SPECS, model_id, padding, norm_epsilon=1e-3)
    for path in (prefix, str(tmp_path)):
        report = backbone_weights.load_backbone(target, path)
        assert report.num_tensors == len(target.variables)
        assert report.source == prefix
    # On odd sizes 'same' pads both sides alike, so that either padding is the source's function.
    images = tf.random.stateless_normal([1, 65, 97, 3], seed=[5, 6])
    expected, actual = source(images), target(images)
    for level in expected:
        np.testing.assert_allclose(actual[level], expected[level], rtol=1e-4, atol=1e-4)


def test_checkpoint_of_another_network(model_18, tmp_path):
    before = [variable.numpy() for variable in model_18.variables]
    shallow = _save_checkpoint(resnet.ResNet(10, _SPECS), str(tmp_path / 'shallow'))
    narrow = _save_checkpoint(resnet.ResNet(18, _SPECS, depth_multiplier=0.5), str(tmp_path / 'n'))
    tf.train.Checkpoint(step=tf.Variable(1)).save(str(tmp_path / 'none' / 'ckpt'))
    (tmp_path / 'empty').mkdir()
    for path, message in (
        (
            shallow,
            r'ResNet-18: missing backbone/layer_with_weights-6/_shortcut/kernel, .* 45 more;',
        ),
        (narrow, r'layer_with_weights-0/kernel has shape \[7, 7, 3, 32\], \[7, 7, 3, 64\] is'),
        (tmp_path / 'none', r'missing backbone/layer_with_weights-0/kernel, .* more;'),
        (tmp_path / 'empty', 'there is no TensorFlow checkpoint'),
    ):
        with pytest.raises(UserError, match=message) as error:
            backbone_weights.load_backbone(model_18, str(path))
        assert '\n' not in str(error.value)
    for variable, value in zip(model_18.variables, before):
        np.testing.assert_array_equal(variable, value)


def test_damaged_checkpoint(model_18, tmp_path):
    prefix = _save_checkpoint(model_18, str(tmp_path))
    pathlib.Path(f'{prefix}.index').write_bytes(b'damaged')
    with pytest.raises(UserError, match='not a readable checkpoint'):
        backbone_weights.load_backbone(model_18, prefix)


def test_every_variable_has_a_key_in_the_checkpoint(model_18, tmp_path):
    saved = dict(tf.train.list_variables(_save_checkpoint(model_18, str(tmp_path))))
    keys = {key.split('/.ATTRIBUTES')[0] for key in saved if key.startswith('backbone/')}
    assert set(backbone_weights._checkpoint_variables(model_18)) == keys


def test_a_file_that_unpacks_to_gigabytes_is_named(tmp_path):
    path = tmp_path / 'a.npz'
    with (
        zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file,
        file.open('conv1.weight.npy', 'w') as member,
    ):
        for _ in range(33):
            member.write(bytes(1 << 25))
    assert path.stat().st_size < 2_000_000
    with pytest.raises(UserError, match='a.npz.*unpacks to more than'):
        backbone_weights._read(str(path))


def test_a_tensor_of_terabytes_is_named(tmp_path):
    path = tmp_path / 'a.npz'
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {'descr': '<f4', 'fortran_order': False, 'shape': (1 << 50,)}
    )
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('conv1.weight.npy', header.getvalue())
    with pytest.raises(UserError, match='a.npz.*not a readable .npz'):
        backbone_weights._read(str(path))
