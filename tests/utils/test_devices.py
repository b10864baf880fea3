# SPDX-License-Identifier: Apache-2.0
"""What is said of this machine's devices, and what is set for them before anything is built."""

import pathlib
import stat
import types

import pytest
import tensorflow as tf

from gan_mrcnn.utils import devices
from gan_mrcnn.utils.errors import UserError

_LISTED = 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-5d8c)'


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Installs an nvidia-smi that prints `listed`, on a machine without a driver otherwise."""
    exists = pathlib.Path.exists
    monkeypatch.setattr(
        pathlib.Path, 'exists', lambda self: str(self) != '/dev/nvidia0' and exists(self)
    )
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda _: [])
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setenv('PATH', str(tmp_path))
    devices.prepare_gpus.cache_clear()

    def install(listed, status=0):
        program = tmp_path / 'nvidia-smi'
        program.write_text(
            f'#!/bin/sh\necho x >> {tmp_path}/calls\necho "{listed}"\nexit {status}\n'
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    yield install
    devices.prepare_gpus.cache_clear()


def test_a_gpu_that_tensorflow_cannot_use_is_named_once_with_the_remedy(
    machine, monkeypatch, capfd
):
    machine(_LISTED)
    built = {'is_cuda_build': True, 'cuda_version': '12.5.1', 'cudnn_version': '9'}
    monkeypatch.setattr(tf.sysconfig, 'get_build_info', lambda: built)
    devices.prepare_gpus()
    devices.prepare_gpus()
    said = capfd.readouterr()
    assert said.out == ''
    (line,) = said.err.splitlines()
    assert line.startswith(f'warning: there is an NVIDIA GPU, but TensorFlow {tf.__version__} sees')
    remedy = f"pip install 'tensorflow[and-cuda]=={tf.__version__}'"
    assert f'it needs CUDA 12.5.1 and cuDNN 9, which {remedy} brings' in line


def test_a_tensorflow_without_cuda_has_another_remedy(machine, monkeypatch, capfd):
    machine(_LISTED)
    monkeypatch.setattr(tf.sysconfig, 'get_build_info', lambda: {'is_cuda_build': False})
    devices.prepare_gpus()
    assert 'built without CUDA; install the package tensorflow' in capfd.readouterr().err


@pytest.mark.parametrize(
    ('listed', 'status'), [('No devices were found', 6), ('NVIDIA-SMI has failed', 9)]
)
def test_a_driver_without_a_gpu_is_not_named(machine, capfd, listed, status):
    machine(listed, status)
    devices.prepare_gpus()
    assert capfd.readouterr().err == ''


@pytest.mark.parametrize('hidden', ['', '-1'])
def test_a_gpu_that_was_hidden_on_purpose_is_not_named(
    machine, monkeypatch, tmp_path, capfd, hidden
):
    machine(_LISTED)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', hidden)
    devices.prepare_gpus()
    assert capfd.readouterr().err == ''
    assert not (tmp_path / 'calls').exists()


def test_without_a_driver_no_program_is_started(machine, monkeypatch, capfd):
    monkeypatch.setattr(devices.subprocess, 'run', None)
    devices.prepare_gpus()
    assert capfd.readouterr().err == ''


def test_memory_is_taken_as_needed_on_every_gpu(machine, monkeypatch, capfd):
    machine(_LISTED)
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda _: ['first', 'second', 'third'])
    grows = []

    def set_memory_growth(gpu, enable):
        if gpu == 'second':
            raise RuntimeError('Physical devices cannot be modified after being initialized')
        grows.append((gpu, enable))

    monkeypatch.setattr(tf.config.experimental, 'set_memory_growth', set_memory_growth)
    devices.prepare_gpus()
    assert grows == [('first', True), ('third', True)]
    assert capfd.readouterr().err == ''


def _gpus(monkeypatch, *details):
    """Has TensorFlow use GPUs with these names and compute capabilities."""
    known = [dict(zip(('device_name', 'compute_capability'), one)) for one in details]
    monkeypatch.setattr(tf.config, 'get_visible_devices', lambda _: list(range(len(known))))
    monkeypatch.setattr(tf.config.experimental, 'get_device_details', known.__getitem__)


@pytest.mark.parametrize(
    ('details', 'number', 'workers', 'text'),
    [
        ([], 1, 1, '1 x CPU, float32'),
        ([], 4, 2, '4 x CPU of 2 workers, float32'),
        ([('NVIDIA H100', (9, 0))], 1, 1, '1 x GPU (NVIDIA H100), float32 (TF32)'),
        ([('NVIDIA H100', (9, 0))] * 2, 2, 1, '2 x GPU (NVIDIA H100), float32 (TF32)'),
        ([('Tesla T4', (7, 5))], 1, 1, '1 x GPU (Tesla T4), float32'),
        ([('NVIDIA A100', (8, 0)), ('Tesla T4', (7, 5))], 2, 1, '2 x GPU (NVIDIA A100, Tesla T4)'),
        ([()], 1, 1, '1 x GPU (unknown), float32'),
    ],
)
def test_devices_are_described(monkeypatch, details, number, workers, text):
    _gpus(monkeypatch, *details)
    assert devices.describe(number, workers).startswith(text)


@pytest.mark.parametrize(
    ('policy', 'has_tf32', 'text'),
    [
        ('mixed_bfloat16', True, 'bfloat16 (mixed)'),
        ('mixed_float16', True, 'float16 (mixed)'),
        ('float32', True, 'float32 (TF32)'),
        ('float32', False, 'float32'),
    ],
)
def test_the_number_format_is_described(monkeypatch, policy, has_tf32, text):
    _gpus(monkeypatch, ('NVIDIA H100', (9, 0)))
    monkeypatch.setattr(
        tf.keras.mixed_precision, 'global_policy', lambda: tf.keras.mixed_precision.Policy(policy)
    )
    monkeypatch.setattr(
        tf.config.experimental, 'tensor_float_32_execution_enabled', lambda: has_tf32
    )
    assert devices.describe() == f'1 x GPU (NVIDIA H100), {text}'


@pytest.mark.parametrize(('capability', 'stays'), [((9, 0), True), ((7, 5), False)])
def test_maps_stay_as_they_are_where_convolutions_want_them_so(monkeypatch, capability, stays):
    options = []
    monkeypatch.setattr(tf.config.optimizer, 'set_experimental_options', options.append)
    _gpus(monkeypatch, ('a GPU', capability))
    devices.set_up('', deterministic=False)
    assert options == ([{'layout_optimizer': False}] if stays else [])


@pytest.mark.parametrize(
    ('name', 'reduction'),
    [
        ('nccl', tf.distribute.NcclAllReduce),
        ('hierarchical_copy', tf.distribute.HierarchicalCopyAllReduce),
        ('one_device', tf.distribute.ReductionToOneDevice),
    ],
)
def test_the_setting_chooses_how_gradients_are_added(monkeypatch, name, reduction):
    made = {}
    monkeypatch.setattr(
        tf.distribute, 'MirroredStrategy', lambda _, **options: made.update(options)
    )
    devices.mirrored_strategy(name)
    assert isinstance(made['cross_device_ops'], reduction)


def test_without_the_setting_tensorflow_chooses(monkeypatch):
    made = {}
    monkeypatch.setattr(
        tf.distribute, 'MirroredStrategy', lambda _, **options: made.update(options)
    )
    devices.mirrored_strategy()
    assert made['cross_device_ops'] is None


def test_an_unknown_reduction_is_named():
    with pytest.raises(UserError, match='is ring; for one machine set it to nccl, hierarch'):
        devices.mirrored_strategy('ring')


@pytest.mark.parametrize('name', ['ring', 'nccl', None])
def test_the_reduction_of_several_workers_is_the_setting(name, monkeypatch):
    made = {}
    monkeypatch.setattr(
        tf.distribute, 'MultiWorkerMirroredStrategy', lambda **options: made.update(options)
    )
    devices.multi_worker_strategy(name)
    assert made['communication_options'].implementation.value == (name or 'auto').upper()


def test_several_workers_have_other_reductions():
    with pytest.raises(UserError, match='one_device; for several workers set it to ring, nccl'):
        devices.multi_worker_strategy('one_device')
    assert devices.other_reductions(2) == ['ring']
    assert devices.other_reductions(2, 'ring') == ['nccl']
    assert devices.other_reductions(1) == ['hierarchical_copy', 'one_device']


def test_devices_that_cannot_share_a_batch_are_named():
    strategy = types.SimpleNamespace(num_replicas_in_sync=2)
    devices.check_batch(strategy, 4)
    with pytest.raises(UserError, match='global_batch_size is 3, which 2 devices cannot share'):
        devices.check_batch(strategy, 3)


def test_the_batch_that_is_meant_is_named(two_replicas):
    with pytest.raises(UserError, match='task.validation_data.global_batch_size is 3, which 2'):
        devices.check_batch(two_replicas, 3, 'validation_data')
    with pytest.raises(UserError, match='task.train_data.global_batch_size is 0'):
        devices.check_batch(two_replicas, 0)
