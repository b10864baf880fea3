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
_MAX_LEVELS = 4
# Arguments of the launchers after the pyramid and before the stream, as kernels_cuda.h has them.
_ARGUMENTS = {
    'Forward': 'features boxes box_indices box_levels workspace output winners',
    'FeatureGradient': 'boxes box_indices box_levels upstream winners workspace d_features',
    'BoxGradient': 'features boxes box_indices upstream winners workspace d_boxes',
}
# What stands for several pointers, one of each level, and what may be null.
_LISTS = ('features', 'd_features')
_OPTIONAL = ('box_levels', 'winners')


class Shape(ctypes.Structure):
    """prroi::Shape of geometry.h; without the last two fields PrRoIPool's."""

    _fields_ = [
        ('num_images', ctypes.c_int64),
        ('height', ctypes.c_int64),
        ('width', ctypes.c_int64),
        ('channels', ctypes.c_int64),
        ('num_boxes', ctypes.c_int64),
        ('output_height', ctypes.c_int64),
        ('output_width', ctypes.c_int64),
        ('spatial_scale', ctypes.c_double),
        ('samples_per_bin', ctypes.c_int64),
        ('sample_offset', ctypes.c_double),
    ]


class Pyramid(ctypes.Structure):
    """prroi::Pyramid of geometry.h."""

    _fields_ = [
        ('num_levels', ctypes.c_int64),
        ('levels_per_box', ctypes.c_int64),
        ('levels', Shape * _MAX_LEVELS),
    ]

    @classmethod
    def of(cls, shapes, levels_per_box=1):
        return cls(len(shapes), levels_per_box, (Shape * _MAX_LEVELS)(*shapes))


class LaunchError(RuntimeError):
    """A launcher's error code, in CUDA's words."""


class Launchers:
    """The functions of one library.

    `name` is 'Forward', 'FeatureGradient' or 'BoxGradient'. A shape stands for a pyramid of one
    level. Pointers are integers. Without a stream it is the default one.
    """

    def __init__(self, path):
        self._library = ctypes.CDLL(str(path))
        self._library.PrRoiPoolCudaErrorString.restype = ctypes.c_char_p

    def workspace_size(self, name, shape, dtype):
        """Bytes of workspace; -1 for an unknown type."""
        function = getattr(self._library, f'PrRoiPoolCuda{name}Workspace')
        function.restype = ctypes.c_int64
        return function(ctypes.byref(_pyramid(shape)), _CODES.get(dtype, _UNKNOWN))

    def launch(self, name, shape, dtype, boxes_dtype, *pointers, stream=None):
        """Enqueues one pass over one level; pointers are those of kernels_cuda.h that must not be
        null, in its order. Raises LaunchError."""
        names = [n for n in _ARGUMENTS[name].split() if n not in _OPTIONAL]
        self.launch_pyramid(name, shape, dtype, boxes_dtype, stream, **dict(zip(names, pointers)))

    def launch_pyramid(self, name, pyramid, dtype, boxes_dtype, stream=None, **pointers):
        """Enqueues one pass; pointers by the names of kernels_cuda.h, for features and their
        gradient a list of them (or one, of one level). Raises LaunchError."""
        arguments = []
        for argument in _ARGUMENTS[name].split():
            pointer = pointers.pop(argument, None)
            if argument in _LISTS:
                several = pointer if isinstance(pointer, list) else [pointer]
                arguments.append((ctypes.c_void_p * len(several))(*several))
            else:
                arguments.append(ctypes.c_void_p(pointer))
        assert not pointers, f'{name} has no {", ".join(pointers)}'
        error = getattr(self._library, f'PrRoiPoolCuda{name}')(
            _CODES.get(dtype, _UNKNOWN),
            int(boxes_dtype == 'float64'),
            ctypes.byref(_pyramid(pyramid)),
            *arguments,
            ctypes.c_void_p(stream),
        )
        if error:
            raise LaunchError(self._library.PrRoiPoolCudaErrorString(error).decode())


def _pyramid(shape):
    return shape if isinstance(shape, Pyramid) else Pyramid.of([shape])


class Kernels:
    """The passes over one level and over several, NumPy in and out.

    features [B, H, W, C], over several levels a list of them; boxes [N, 4], pixels, float32 or
    float64; box_indices [N]; upstream [N, h, w, C]. Keyword arguments go to `_call` and
    `_call_pyramid`, which a subclass has:

        _call(name, shape, dtype, inputs, result_shape, result_dtype) -> array
        _call_pyramid(name, pyramid, dtype, inputs, results) -> arrays by name

    Inputs and results of the second are by their names in kernels_cuda.h, an array or a list of one
    of each level; results are given as (shape, dtype).
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

    def maximum(self, features, boxes, box_indices, output_size, scales, **options):
        """Pooled features and winners."""
        pyramid = _pyramid_of(features, boxes, output_size, scales, levels_per_box=len(features))
        shape = len(boxes), *output_size, features[0].shape[-1]
        results = self._call_pyramid(
            'Forward',
            pyramid,
            features[0].dtype,
            {'features': features, 'boxes': boxes, 'box_indices': _int32(box_indices)},
            {'output': (shape, features[0].dtype), 'winners': (shape, np.dtype(np.uint8))},
            **options,
        )
        return results['output'], results['winners']

    def maximum_gradients(self, features, boxes, box_indices, upstream, winners, scales, **options):
        """Gradients to the boxes and to each level's features."""
        size = upstream.shape[1:3]
        pyramid = _pyramid_of(features, boxes, size, scales, levels_per_box=len(features))
        inputs = {'boxes': boxes, 'box_indices': _int32(box_indices)}
        inputs |= {'upstream': upstream, 'winners': winners}
        to_boxes = self._call_pyramid(
            'BoxGradient',
            pyramid,
            upstream.dtype,
            {**inputs, 'features': features},
            {'d_boxes': (boxes.shape, boxes.dtype)},
            **options,
        )
        d_features = [(level.shape, level.dtype) for level in features]
        to_features = self._call_pyramid(
            'FeatureGradient',
            pyramid,
            upstream.dtype,
            inputs,
            {'d_features': d_features},
            **options,
        )
        return to_boxes['d_boxes'], to_features['d_features']

    def roi_align(
        self, features, boxes, box_indices, box_levels, upstream, scales, samples, offset, **options
    ):
        """Pooled features and the gradient to each level's."""
        size = upstream.shape[1:3]
        pyramid = _pyramid_of(features, boxes, size, scales, samples, offset)
        inputs = {'boxes': boxes, 'box_indices': _int32(box_indices)}
        inputs['box_levels'] = _int32(box_levels)
        pooled = self._call_pyramid(
            'Forward',
            pyramid,
            upstream.dtype,
            {**inputs, 'features': features},
            {'output': (upstream.shape, upstream.dtype)},
            **options,
        )
        d_features = [(level.shape, level.dtype) for level in features]
        gradient = self._call_pyramid(
            'FeatureGradient',
            pyramid,
            upstream.dtype,
            {**inputs, 'upstream': upstream},
            {'d_features': d_features},
            **options,
        )
        return pooled['output'], gradient['d_features']


def _int32(values):
    return np.asarray(values, np.int32)


def _pyramid_of(features, boxes, size, scales, samples=0, offset=0.0, levels_per_box=1):
    shapes = [
        Shape(*level.shape, len(boxes), *size, scale, samples, offset)
        for level, scale in zip(features, scales)
    ]
    return Pyramid.of(shapes, levels_per_box)


def pyramid_cases():
    """Names and (features, boxes, box_indices, box_levels, upstream, scales): every dtype and path,
    every kind of box, on four levels."""
    rng = np.random.default_rng(6)
    # Without the box that is thousands wide: RoIAlign goes on to its start along a line, and loses
    # all digits there.
    boxes, indices = (np.delete(values, 3, 0) for values in _KINDS_OF_BOXES)
    levels = np.arange(len(boxes)) % 4
    levels[-2:] = 4, -1  # Not there.
    scales = [0.5, 0.25, 0.125, 0.0625]
    for name, dtype in DTYPES.items():
        for channels in (1, 3, 8, 520):
            features = [
                rng.normal(size=(3, *size, channels)).astype(dtype)
                for size in ((10, 13), (5, 7), (3, 4), (1, 2))
            ]
            upstream = rng.normal(size=(len(boxes), 3, 9, channels)).astype(dtype)
            case = features, boxes, indices, levels, upstream, scales
            yield f'{name}, {channels} channels', case


def all_of_pyramid(kernels, case, samples=2, offset=0.5, **options):
    """Results of a case of `pyramid_cases`: of the maximum the pooled features, winners, gradients
    to the boxes and to each level's features; of RoIAlign the pooled features and gradients."""
    features, boxes, indices, levels, upstream, scales = case
    size = upstream.shape[1:3]
    pooled, winners = kernels.maximum(features, boxes, indices, size, scales, **options)
    d_boxes, d_features = kernels.maximum_gradients(
        features, boxes, indices, upstream, winners, scales, **options
    )
    aligned, d_aligned = kernels.roi_align(*case, samples, offset, **options)
    return pooled, winners, d_boxes, *d_features, aligned, *d_aligned


# Boxes in pixels and the image of each, of three images; most maps have 7 x 9 nodes at scale 0.5.
_KINDS_OF_BOXES = (
    np.array(
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
            [0, 0, 19.9, 25.5],
            [3, 3, 11, 11],
        ]
    ),
    np.array([0, 2, 0, 2, 0, 0, 2, 0, 0, 2, 3, -1, 2, 1, 0]),
)


def fixed_cases():
    """Names and arguments of Kernels.all that reach every kernel, dtype, path and kind of box."""
    rng = np.random.default_rng(5)
    boxes, indices = _KINDS_OF_BOXES
    for name, dtype in DTYPES.items():
        for channels in (1, 3, 8, 520):
            features = rng.normal(size=(3, 7, 9, channels)).astype(dtype)
            upstream = rng.normal(size=(len(boxes), 3, 4, channels)).astype(dtype)
            yield f'{name}, {channels} channels', (features, boxes, indices, upstream, 0.5)
