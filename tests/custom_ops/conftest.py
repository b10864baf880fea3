# SPDX-License-Identifier: Apache-2.0
"""PrRoIPool's CUDA kernels as tests run them without a GPU."""

import shutil

import pytest

from tests.custom_ops import emulated_kernels


@pytest.fixture(scope='session')
def library(tmp_path_factory):
    if shutil.which('g++') is None:
        pytest.skip('the emulation of the CUDA kernels wants g++')
    path = tmp_path_factory.mktemp('emulation') / 'kernels.so'
    emulated_kernels.build(path)
    return path


@pytest.fixture
def kernels(library):
    kernels = emulated_kernels.EmulatedKernels(library)
    kernels.set_seed(1)
    kernels.set_max_grid(0)
    return kernels
