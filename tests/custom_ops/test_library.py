# SPDX-License-Identifier: Apache-2.0
"""Building and loading the compiled operation, and what happens where that cannot be done."""

import os
import shutil
import stat
import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from custom_ops.prroi_pool import build, library, prroi_pool, serving

needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason='no C++ compiler')


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """No library is anywhere, and this process has not loaded one."""
    monkeypatch.setattr(build, 'folders', lambda: [tmp_path])
    library.load.cache_clear()
    yield tmp_path
    library.load.cache_clear()


def pool(implementation='auto'):
    features = np.arange(16.0, dtype=np.float32).reshape(1, 4, 4, 1)
    return prroi_pool(features, [[0.0, 0, 2, 2]], [0], (1, 1), 1.0, implementation)


def fake_compiler(folder, script):
    path = folder / 'compiler'
    path.write_text(f'#!/bin/sh\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_names_say_the_version_of_tensorflow_and_the_sources(tmp_path, monkeypatch):
    name = build.library_name(cuda=False)
    assert name.startswith(f'prroi_pool-tf{tf.__version__}-')
    assert build.library_name(cuda=True).startswith(f'prroi_pool-tf{tf.__version__}-cuda-')
    copies = tuple(tmp_path / folder.parent.name for folder in build._SOURCES)
    for folder, copy in zip(build._SOURCES, copies):
        shutil.copytree(folder, copy)
    monkeypatch.setattr(build, '_SOURCES', copies)
    assert build.library_name(cuda=False) == name
    for changed in (copies[0] / 'geometry.h', copies[1] / 'overlap.h'):
        before = changed.read_text()
        changed.write_text('changed')
        assert build.library_name(cuda=False) != name
        changed.write_text(before)


@needs_compiler
def test_says_what_serves():
    assert serving().startswith('compiled operation, CPU')


def test_without_a_compiler_tensorflow_serves_and_says_so_once(empty_folder, monkeypatch, capfd):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    monkeypatch.setenv('PATH', str(empty_folder))
    np.testing.assert_allclose(pool(), [[[[5.0]]]], rtol=1e-6)
    pool()
    said = capfd.readouterr().err
    assert said.count('there is no C++ compiler: install g++') == 1
    assert serving().startswith('TensorFlow (there is no C++ compiler')
    with pytest.raises(tf.errors.UnavailableError, match='no C.. compiler'):
        pool('compiled')


@needs_compiler
def test_a_failing_compiler_is_tried_once_and_its_messages_are_kept(
    empty_folder, monkeypatch, capfd
):
    marker = empty_folder / 'calls'
    monkeypatch.setenv(
        'CXX', fake_compiler(empty_folder, f'echo x >> {marker}; echo broken >&2; exit 1')
    )
    pool()
    calls = marker.read_text()
    (log,) = empty_folder.glob('*.failed.txt')
    assert 'broken' in log.read_text()
    assert str(log) in capfd.readouterr().err
    library.load.cache_clear()  # As another process would.
    pool()
    assert marker.read_text() == calls
    assert 'compiling failed before' in capfd.readouterr().err


def test_a_library_of_another_tensorflow_is_not_loaded(empty_folder, monkeypatch, capfd):
    (empty_folder / 'prroi_pool-tf2.14.0-00000000.so').write_bytes(b'not for this one')
    monkeypatch.setattr(build, 'build_library', _refuse)
    pool()
    said = capfd.readouterr().err
    assert 'prroi_pool-tf2.14.0-00000000.so is for another TensorFlow or other sources' in said
    assert f'Compiling PrRoIPool and NMS for TensorFlow {tf.__version__}' in said


def test_a_damaged_library_is_not_a_crash(empty_folder, capfd):
    (empty_folder / build.library_name(cuda=True)).write_bytes(b'\x7fELF damaged')
    np.testing.assert_allclose(pool(), [[[[5.0]]]], rtol=1e-6)
    assert 'served by their slower versions' in capfd.readouterr().err


def test_no_folder_can_be_written_to(monkeypatch, tmp_path):
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr(build, 'folders', lambda: [tmp_path / 'file' / 'folder'])
    with pytest.raises(build.BuildError, match='none of .* can be written to'):
        build.build_library('no')


@pytest.fixture
def gpu(monkeypatch):
    """TensorFlow says that there is a GPU; what is put there runs on the CPU."""
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda _: ['GPU:0'])
    library.load.cache_clear()
    yield
    library.load.cache_clear()


def serve(monkeypatch, folder, cuda, ops):
    """Has `ops` be what the library of that name, in `folder`, holds."""
    path = folder / build.library_name(cuda)
    path.write_bytes(b'')
    monkeypatch.setattr(tf, 'load_op_library', lambda _: ops)
    return path


def operations(message=None):
    """Operations that work, or fail with what TensorFlow says of CUDA's errors."""

    def pr_roi_pool(**inputs):
        if message:
            raise tf.errors.InternalError(None, None, message)
        return tf.zeros([1, 1, 1, 1])

    return types.SimpleNamespace(pr_roi_pool=pr_roi_pool)


def test_the_kernels_serve_on_a_gpu_that_runs_them(gpu, empty_folder, monkeypatch, capfd):
    ops = operations()
    serve(monkeypatch, empty_folder, True, ops)
    assert library.load() == (ops, 'compiled operation, CPU and CUDA')
    assert capfd.readouterr().err == ''


def test_kernels_that_the_gpu_cannot_run_are_named_with_the_remedy(
    gpu, empty_folder, monkeypatch, capfd
):
    reason = 'PrRoiPool: CUDA says CUDA driver version is insufficient for CUDA runtime version'
    serve(monkeypatch, empty_folder, True, operations(reason))
    assert library.load().ops is None
    library.load()
    (line,) = capfd.readouterr().err.splitlines()
    assert f'({reason}; a newer driver helps, or a compiler of its CUDA: python ' in line


def test_a_library_for_the_cpu_does_not_serve_on_a_gpu(gpu, empty_folder, monkeypatch, capfd):
    monkeypatch.setattr(build, 'find_nvcc', lambda: None)
    serve(monkeypatch, empty_folder, False, operations())
    assert library.load().ops is None
    (line,) = capfd.readouterr().err.splitlines()
    assert "no nvcc: pip install 'cuda-toolkit[nvcc,cccl]==13.0.*' brings it" in line


def test_a_library_for_the_cpu_is_compiled_again_where_there_is_nvcc(
    gpu, empty_folder, monkeypatch, capfd
):
    serve(monkeypatch, empty_folder, False, operations())
    monkeypatch.setattr(build, 'find_nvcc', lambda: '/somewhere/nvcc')
    monkeypatch.setattr(tf.test, 'is_built_with_cuda', lambda: True)
    monkeypatch.setattr(
        build, 'build_library', lambda cuda: empty_folder / build.library_name(cuda != 'no')
    )
    assert library.load().text == 'compiled operation, CPU and CUDA'


def test_nvcc_is_found_in_the_python_package_after_that_of_the_machine(tmp_path, monkeypatch):
    package, machine = tmp_path / 'nvidia' / 'cu13' / 'bin', tmp_path / 'bin'
    for folder in (package, machine):
        folder.mkdir(parents=True)
        (folder / 'nvcc').write_text('#!/bin/sh\n')
        (folder / 'nvcc').chmod(0o755)
    (tmp_path / 'nvidia' / '__init__.py').write_text('')
    monkeypatch.delitem(sys.modules, 'nvidia', raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv('CUDA_HOME', str(tmp_path / 'none'))
    monkeypatch.setenv('PATH', str(machine))
    assert build.find_nvcc() == str(machine / 'nvcc')
    monkeypatch.setenv('PATH', '')
    assert build.find_nvcc() == str(package / 'nvcc')


@needs_compiler
@pytest.mark.slow
def test_builds_and_replaces_older_sources_of_the_same_tensorflow(empty_folder):
    other = empty_folder / 'prroi_pool-tf2.14.0-00000000.so'
    older = empty_folder / f'prroi_pool-tf{tf.__version__}-00000000.so'
    for path in (other, older):
        path.write_bytes(b'')
    path = build.build_library('no')
    assert sorted(os.listdir(empty_folder)) == sorted([path.name, other.name])
    assert build.find_library() == path


def _refuse(*arguments, **settings):
    raise build.BuildError('not now')
