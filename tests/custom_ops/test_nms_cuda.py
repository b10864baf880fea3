# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of non-maximum suppression on a CPU, as test_kernels_cuda.py has PrRoIPool's."""

import ctypes
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from custom_ops.prroi_pool import build
from tests.custom_ops import emulated_kernels, nms_reference

KERNELS = build._SOURCES[1] / 'nms_cuda.cu'


class Problem(ctypes.Structure):
    """nms::Problem of overlap.h."""

    _fields_ = [
        ('num_groups', ctypes.c_int64),
        ('num_boxes', ctypes.c_int64),
        ('max_output', ctypes.c_int64),
        ('iou_threshold', ctypes.c_float),
        ('score_threshold', ctypes.c_float),
    ]


@pytest.fixture(scope='module')
def library(tmp_path_factory):
    if shutil.which('g++') is None:
        pytest.skip('the emulation of the CUDA kernels wants g++')
    path = tmp_path_factory.mktemp('emulation') / 'nms.so'
    emulated_kernels.build(path, '-ffp-contract=off', source=KERNELS)
    library = ctypes.CDLL(str(path))
    library.NmsCudaWorkspace.restype = ctypes.c_int64
    library.NmsCudaErrorString.restype = ctypes.c_char_p
    return library


def run(library, boxes, scores, iou_threshold, score_threshold, max_output, seed=1, max_grid=0):
    """Indices and counts of the kernels, everything between guard bytes and poisoned before."""
    library.EmulationSetSeed(ctypes.c_uint(seed))
    library.EmulationSetMaxGrid(ctypes.c_int64(max_grid))
    groups, size = np.shape(scores)
    problem = Problem(groups, size, max_output, iou_threshold, score_threshold)
    sizes = {
        'boxes': groups * size * 16,
        'scores': groups * size * 4,
        'workspace': library.NmsCudaWorkspace(ctypes.byref(problem)),
        'indices': groups * max_output * 4,
        'counts': groups * 4,
    }
    # Boxes lie on no boundary of 16 bytes.
    held = {
        name: emulated_kernels.Guarded(size, 256, 4 * (name == 'boxes'))
        for name, size in sizes.items()
    }
    held['boxes'].array(np.float32, [groups, size, 4])[...] = boxes
    held['scores'].array(np.float32, [groups, size])[...] = scores
    pointers = [ctypes.c_void_p(x.pointer) for x in held.values()]
    error = library.NmsCuda(ctypes.byref(problem), *pointers, ctypes.c_void_p(None))
    assert error == 0, library.NmsCudaErrorString(error).decode()
    for buffer in held.values():
        buffer.check()
    return (
        held['indices'].array(np.int32, [groups, max_output]).copy(),
        held['counts'].array(np.int32, [groups]).copy(),
    )


def assert_right(library, case, **options):
    for found, wanted in zip(run(library, **case, **options), nms_reference.suppress(**case)):
        np.testing.assert_array_equal(found, wanted)


@settings(max_examples=150)
@given(case=nms_reference.cases(), seed=st.integers(1, 10**6))
def test_the_kernels_are_the_definition(library, case, seed):
    assert_right(library, case, seed=seed)


def crowded_case(groups, boxes, max_output, seed=0, iou_threshold=0.5):
    corners, scores = nms_reference.crowded(groups, boxes, seed)
    return {
        'boxes': corners,
        'scores': scores,
        'iou_threshold': iou_threshold,
        'score_threshold': 0.0,
        'max_output': max_output,
    }


# Around the tiles of 64, and with more words than there are threads side by side.
@pytest.mark.parametrize('boxes', [1, 63, 64, 65, 128, 129, 300])
@pytest.mark.parametrize('seed', [1, 2])
def test_sizes_around_the_tiles(library, boxes, seed):
    assert_right(library, crowded_case(2, boxes, boxes, seed), seed=seed)


@pytest.mark.parametrize('max_output', [1, 5, 33, 400])
def test_ends_when_enough_are_chosen(library, max_output):
    case = crowded_case(2, 200, max_output)
    assert_right(library, case)
    _, counts = run(library, **case)
    assert np.all(counts == max_output) or max_output > 33


@pytest.mark.parametrize('max_grid', [1, 3])
@pytest.mark.parametrize('seed', [1, 2, 3])
def test_neither_grid_nor_order_matters(library, max_grid, seed):
    """Groups share a block, one after the other; threads take their turns at random."""
    assert_right(library, crowded_case(4, 150, 100), seed=seed, max_grid=max_grid)


def test_more_words_than_threads_side_by_side(library):
    """4200 boxes have 66 words; few overlap, and the last ones their twins."""
    side = np.arange(4200) % 4150
    boxes = np.stack([side * 2, side * 0, side * 2 + 1, side * 0 + 1], axis=1)[np.newaxis]
    scores = np.linspace(1, 0.1, 4200)[np.newaxis]
    indices, counts = run(library, boxes, scores, 0.5, 0.0, 4200)
    assert counts[0] == 4150
    np.testing.assert_array_equal(indices[0], np.append(np.arange(4150), np.zeros(50)))


@pytest.mark.parametrize('shape', [(0, 5), (3, 0), (0, 0)])
def test_nothing_gives_nothing(library, shape):
    indices, counts = run(library, np.zeros([*shape, 4]), np.zeros(shape), 0.5, 0.0, 7)
    assert not indices.any() and not counts.any()


def test_too_many_boxes_are_refused(library):
    problem = Problem(1, 65537, 10, 0.5, 0.0)
    nowhere = [ctypes.c_void_p(None)] * 6
    error = library.NmsCuda(ctypes.byref(problem), *nowhere)
    assert library.NmsCudaErrorString(error) == b'invalid argument'
