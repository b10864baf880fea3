# SPDX-License-Identifier: Apache-2.0
"""The C launchers of custom_ops/prroi_pool/cc/kernels_cuda.h, through ctypes.

Tests run them on a CPU (emulated_kernels.py), benchmarks/prroi_pool_gpu.py on a GPU; both hold them
against reference.py on the cases below. TensorFlow is not needed.
"""

import ctypes
import pathlib

import ml_dtypes
import numpy as np

KERNELS = pathlib.Path(__file__).resolve().parents[2] / 'custom_ops/prroi_pool/cc/kernels_cuda.cu'
DTYPES = {
    'float16': np.dtype(np.float16),
    'bfloat16': np.dtype(ml_dtypes.bfloat16),
    'float32': np.dtype(np.float32),
    'float64': np.dtype(np.float64),
}
# Largest error of pooled features and their gradient, and of the gradient to the boxes, over the
# largest value: half a step of the 16-bit types, whose sums are kept in float32.
TOLERANCES = {
    'float16': (2**-11, 1e-5),
    'bfloat16': (2**-8, 1e-5),
    'float32': (1e-5, 1e-5),
    'float64': (1e-11, 1e-11),
}
# PrRoIPoolType by name.
_CODES = {name: code for code, name in enumerate(DTYPES)}
_UNKNOWN = 99


class Shape(ctypes.Structure):
    """prroi::Shape of geometry.h."""

    _fields_ = [
        ('num_images', ctypes.c_int64),
        ('height', ctypes.c_int64),
        ('width', ctypes.c_int64),
        ('channels', ctypes.c_int64),
        ('num_boxes', ctypes.c_int64),
        ('output_height', ctypes.c_int64),
        ('output_width', ctypes.c_int64),
        ('spatial_scale', ctypes.c_double),
    ]


class LaunchError(RuntimeError):
    """A launcher's error code, in CUDA's words."""


class Launchers:
    """The functions of one library.

    `name` is 'Forward', 'FeatureGradient' or 'BoxGradient'; pointers are integers, in the order of
    kernels_cuda.h. Without a stream it is the default one.
    """

    def __init__(self, path):
        self._library = ctypes.CDLL(str(path))
        self._library.PrRoiPoolCudaErrorString.restype = ctypes.c_char_p

    def workspace_size(self, name, shape, dtype):
        """Bytes of workspace; -1 for an unknown type."""
        function = getattr(self._library, f'PrRoiPoolCuda{name}Workspace')
        function.restype = ctypes.c_int64
        return function(ctypes.byref(shape), _CODES.get(dtype, _UNKNOWN))

    def launch(self, name, shape, dtype, boxes_dtype, *pointers, stream=None):
        """Enqueues one pass; raises LaunchError."""
        error = getattr(self._library, f'PrRoiPoolCuda{name}')(
            _CODES.get(dtype, _UNKNOWN),
            int(boxes_dtype == 'float64'),
            ctypes.byref(shape),
            *(ctypes.c_void_p(pointer) for pointer in pointers),
            ctypes.c_void_p(stream),
        )
        if error:
            raise LaunchError(self._library.PrRoiPoolCudaErrorString(error).decode())


class Kernels:
    """The three passes, NumPy in and out.

    features [B, H, W, C]; boxes [N, 4], pixels, float32 or float64; box_indices [N]; upstream
    [N, h, w, C]. Keyword arguments go to `_call`, which a subclass has:

        _call(name, shape, dtype, inputs, result_shape, result_dtype) -> array
    """

    def forward(self, features, boxes, box_indices, output_size, scale, **options):
        shape = Shape(*features.shape, len(boxes), *output_size, scale)
        inputs = [features, boxes, np.asarray(box_indices, np.int32)]
        result = (len(boxes), *output_size, features.shape[-1]), features.dtype
        return self._call('Forward', shape, features.dtype, inputs, *result, **options)

    def feature_gradient(self, map_shape, boxes, box_indices, upstream, scale, **options):
        shape = Shape(*map_shape, len(boxes), *upstream.shape[1:3], scale)
        inputs = [boxes, np.asarray(box_indices, np.int32), upstream]
        result = map_shape, upstream.dtype
        return self._call('FeatureGradient', shape, upstream.dtype, inputs, *result, **options)

    def box_gradient(self, features, boxes, box_indices, upstream, scale, **options):
        shape = Shape(*features.shape, len(boxes), *upstream.shape[1:3], scale)
        inputs = [features, boxes, np.asarray(box_indices, np.int32), upstream]
        result = boxes.shape, boxes.dtype
        return self._call('BoxGradient', shape, features.dtype, inputs, *result, **options)

    def all(self, features, boxes, box_indices, upstream, scale):
        """Forward, gradient to the features, gradient to the boxes."""
        boxes_and_images = boxes, box_indices
        return (
            self.forward(features, *boxes_and_images, upstream.shape[1:3], scale),
            self.feature_gradient(features.shape, *boxes_and_images, upstream, scale),
            self.box_gradient(features, *boxes_and_images, upstream, scale),
        )


def fixed_cases():
    """Names and arguments of Kernels.all that reach every kernel, dtype, path and kind of box."""
    rng = np.random.default_rng(5)
    boxes = np.array(
        [
            [3.3, 2.1, 9.2, 12.7],
            [-5, -7, 4, 30],  # Over the border.
            [2, 4, 10, 14],  # On nodes.
            [-40000, -3000, 50000, 5000],  # Thousands wide.
            [5.2, 6.1, 5.9, 6.3],  # Inside a cell.
            [100, 3, 120, 9],  # Outside.
            [4, 3, 4, 9],  # Without area.
            [9, 9, 2, 3],  # Reversed.
            [np.nan, 1, 5, 5],
            [1, 1, np.inf, 5],
            [1, 1, 5, 5],  # Of an image that is not there.
            [1, 1, 5, 5],
            [0, 0, 13.9, 17.9],
        ]
    )
    indices = np.array([0, 2, 0, 2, 0, 0, 2, 0, 0, 2, 3, -1, 2])
    for name, dtype in DTYPES.items():
        for channels in (1, 3, 8, 520):
            features = rng.normal(size=(3, 7, 9, channels)).astype(dtype)
            upstream = rng.normal(size=(len(boxes), 3, 4, channels)).astype(dtype)
            yield f'{name}, {channels} channels', (features, boxes, indices, upstream, 0.5)
