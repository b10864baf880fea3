"""The generator's weights as a file: names, rounding, damage, other classes."""

import json

import numpy as np
import pytest
import tensorflow as tf
from safetensors import numpy as safetensors_numpy

from gan_mrcnn import task as task_lib
from gan_mrcnn.modeling import weights_file
from gan_mrcnn.utils.errors import UserError
from tests import tiny

NOTES = {'card': {}, 'settings': {}}


def build(num_classes=3, model_id=18, head_norm='none', seed=0):
    """A generator with weights of its own, statistics included."""
    config = tiny.make_task_config('baseline')
    config.model.num_classes = num_classes
    config.model.head_norm = head_norm
    config.model.backbone.resnet.model_id = model_id
    tf.keras.utils.set_random_seed(seed)
    model = task_lib.GanMaskRCNNTask(config).build_model()
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if 'moving' in variable.name:
            variable.assign(rng.uniform(1e-7, 2, variable.shape))
    return model


@pytest.fixture(scope='module')
def model():
    return build()


@pytest.fixture
def path(model, tmp_path):
    path = tmp_path / 'model.safetensors'
    path.write_bytes(weights_file.to_bytes(model, NOTES))
    return path


def values(model):
    return {name: x.numpy() for name, x in weights_file.named_variables(model).items()}


@pytest.fixture(scope='module')
def other():
    """Another one of the same shapes."""
    return build(seed=1)


@pytest.mark.parametrize(
    'model_id, head_norm',
    [
        (50, 'batch_norm'),
        pytest.param(34, 'group_norm', marks=pytest.mark.slow),
        pytest.param(101, 'none', marks=pytest.mark.slow),
    ],
)
def test_every_variable_has_one_name_in_any_network(model_id, head_norm):
    model = build(model_id=model_id, head_norm=head_norm)
    named = weights_file.named_variables(model)
    assert len({id(x) for x in named.values()}) == len(named) == len(model.variables)
    assert {id(x) for x in named.values()} == {id(x) for x in model.variables}


def test_names_say_what_a_weight_is_and_do_not_depend_on_earlier_networks(model, other):
    named = weights_file.named_variables(model)
    # Keras has numbered the layers of this one on.
    assert list(named) == list(weights_file.named_variables(other))
    shapes = {name: tuple(x.shape) for name, x in named.items()}
    assert shapes['backbone.conv1.kernel'] == (7, 7, 3, 64)
    assert shapes['backbone.layer1.0.downsample.0.kernel'] == (1, 1, 64, 64)
    assert shapes['backbone.layer2.0.conv1.kernel'] == (3, 3, 64, 128)
    assert shapes['backbone.layer4.1.bn2.moving_variance'] == (512,)
    assert shapes['decoder.lateral_3.kernel'] == (1, 1, 128, 32)
    assert shapes['rpn_head.rpn-boxes.bias'] == (12,)
    assert shapes['detection_head.detection-scores.kernel'] == (32, 3)
    assert shapes['mask_head.mask-logits.bias'] == (3,)


def test_a_variable_without_a_name_is_an_error(model):
    class Other:
        backbone, decoder, rpn_head = model.backbone, model.decoder, model.rpn_head
        detection_head, mask_head = model.detection_head, model.mask_head
        variables = [*model.variables, tf.Variable(0.0)]

    with pytest.raises(ValueError, match='names for'):
        weights_file.named_variables(Other())


def test_weights_come_back_rounded_to_float16_and_statistics_as_they_were(model, other, path):
    assert weights_file.load(other, str(path)) == []
    found = values(other)
    for name, wanted in values(model).items():
        if 'moving' not in name:
            wanted = wanted.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(found[name], wanted, err_msg=name)


def test_the_same_weights_make_the_same_file_and_another_program_reads_it(model, path):
    assert weights_file.to_bytes(model, NOTES) == path.read_bytes()
    tensors = safetensors_numpy.load_file(path)
    assert set(tensors) == set(values(model))
    assert {x.dtype for name, x in tensors.items() if 'moving' in name} == {np.dtype('float32')}
    assert {x.dtype for name, x in tensors.items() if 'moving' not in name} == {np.dtype('float16')}
    assert weights_file.read_notes(str(path)) == {'format': weights_file.FORMAT, **NOTES}


@pytest.mark.parametrize(
    'value, dtype',
    [
        ([1.0, -65504.0, 0.0], np.float16),
        ([1.0, 65520.0], np.float32),
        # Lost in the sum with others, and not by itself.
        ([1.0, 1e-9], np.float16),
        ([1e-6, 3e-6], np.float32),
        ([0.0, 0.0], np.float16),
        ([0.1, 0.3, 1e-4], np.float16),
    ],
)
def test_what_float16_cannot_hold_stays_float32(value, dtype):
    stored = weights_file._as_stored('decoder.x.kernel', np.array(value, np.float32))
    assert stored.dtype == dtype
    np.testing.assert_allclose(stored, value, rtol=1e-3, atol=1e-6 if dtype == np.float16 else 0)


def test_a_network_that_has_diverged_is_not_written(model):
    variable = weights_file.named_variables(model)['decoder.lateral_2.bias']
    before = variable.numpy()
    variable.assign(np.full(32, np.nan))
    try:
        with pytest.raises(UserError, match=r'decoder\.lateral_2\.bias has values that are not'):
            weights_file.to_bytes(model, NOTES)
    finally:
        variable.assign(before)


def test_with_another_number_of_classes_the_last_layers_keep_what_they_have(model, path):
    other = build(num_classes=5, seed=1)
    before = values(other)
    anew = weights_file.load(other, str(path), new_classes=True)
    assert anew == sorted(weights_file.CLASS_LAYERS)
    found, wanted = values(other), values(model)
    for name in found:
        is_new = name.rpartition('.')[0] in anew
        source = before[name] if is_new else wanted[name]
        np.testing.assert_allclose(found[name], source, rtol=1e-3, atol=1e-7, err_msg=name)
    with pytest.raises(UserError, match='another network.*detection-boxes.bias is 12 there and 20'):
        weights_file.load(other, str(path))


def test_another_network_is_refused_and_nothing_is_changed(path):
    other = build(model_id=34, seed=1)
    before = values(other)
    with pytest.raises(UserError, match=r'layer1\.2\.bn1\.beta is missing there and 64 here'):
        weights_file.load(other, str(path), new_classes=True)
    for name, value in values(other).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(
    'damage, message',
    [
        (lambda content: content[: len(content) // 2], 'cannot be read'),
        (lambda content: content[:4], 'cannot be read'),
        (lambda content: b'', 'cannot be read'),
        (lambda content: b'\xff' * 8 + content[8:], 'cannot be read'),
    ],
)
def test_damaged_files_are_one_line(damage, message, model, path):
    path.write_bytes(damage(path.read_bytes()))
    for read in (weights_file.read_notes, weights_file.read_tensors):
        with pytest.raises(UserError, match=message) as error:
            read(str(path))
        assert str(path) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    'header',
    [None, '[]', '{', json.dumps({'format': 2, **NOTES}), json.dumps({'format': 1, 'card': 3})],
)
def test_files_of_others_are_told(header, tmp_path):
    path = tmp_path / 'x.safetensors'
    metadata = None if header is None else {'gan_mrcnn': header}
    safetensors_numpy.save_file({'x': np.zeros(3, np.float32)}, path, metadata)
    with pytest.raises(UserError, match='is not what this version|cannot be read'):
        weights_file.read_notes(str(path))


@pytest.mark.parametrize('value', [np.zeros(3, np.int32), np.array([np.inf], np.float32)])
def test_other_numbers_are_refused(value, tmp_path):
    path = tmp_path / 'x.safetensors'
    safetensors_numpy.save_file({'odd': value}, path)
    with pytest.raises(UserError, match='odd is not of finite numbers'):
        weights_file.read_tensors(str(path))
