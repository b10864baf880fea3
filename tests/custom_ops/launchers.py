# SPDX-License-Identifier: Apache-2.0
"""The C launchers of custom_ops/prroi_pool/cc/kernels_cuda.h, through ctypes.

Pointers are integers: of NumPy arrays where the kernels are emulated, of device memory on a GPU.
"""

import ctypes

# By the names of NumPy and ml_dtypes.
TYPES = {'float16': 0, 'bfloat16': 1, 'float32': 2, 'float64': 3}


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

    `name` is 'Forward', 'FeatureGradient' or 'BoxGradient'; pointers are in the order of
    kernels_cuda.h, the stream is the default one.
    """

    def __init__(self, path):
        self._library = ctypes.CDLL(str(path))
        self._library.PrRoiPoolCudaErrorString.restype = ctypes.c_char_p

    def workspace_size(self, name, shape, dtype):
        """Bytes of workspace; -1 for an unknown type."""
        function = getattr(self._library, f'PrRoiPoolCuda{name}Workspace')
        function.restype = ctypes.c_int64
        return function(ctypes.byref(shape), TYPES.get(dtype, 99))

    def launch(self, name, shape, dtype, boxes_dtype, *pointers):
        """Enqueues one pass; raises LaunchError."""
        error = getattr(self._library, f'PrRoiPoolCuda{name}')(
            TYPES.get(dtype, 99),
            int(boxes_dtype == 'float64'),
            ctypes.byref(shape),
            *(ctypes.c_void_p(pointer) for pointer in pointers),
            ctypes.c_void_p(None),
        )
        if error:
            raise LaunchError(self._library.PrRoiPoolCudaErrorString(error).decode())
