# SPDX-License-Identifier: Apache-2.0
"""Operations of the exported graph that tf2onnx cannot convert, or not as they are meant.

A handler gets a node of TensorFlow and puts nodes of ONNX in its place, with the same output. What
it says holds for what `prediction.signatures` makes, not for any graph.
"""

import numpy as np
from onnx import TensorProto
from tf2onnx import utils
from tf2onnx.graph_builder import GraphBuilder
from tf2onnx.onnx_opset import nn, tensor

_TO_PLANES, _FROM_PLANES = [0, 3, 1, 2], [0, 2, 3, 1]


class _Replacement:
    """Takes a node away; `operation` and the others add what comes in its place."""

    def __init__(self, ctx, node):
        self._ctx, self._name = ctx, node.name
        self.inputs = list(node.input)
        self._output = {
            'outputs': list(node.output),
            'shapes': node.output_shapes,
            'dtypes': node.output_dtypes,
        }
        ctx.remove_node(node.name)

    def operation(self, kind: str, *inputs: str, **attributes) -> str:
        """Adds an operation; gives the name of its output."""
        return self._ctx.make_node(kind, list(inputs), attr=attributes).output[0]

    def finish(self, kind: str, *inputs: str, **attributes) -> None:
        """Adds the operation whose output is the node's."""
        self._ctx.make_node(kind, list(inputs), attr=attributes, name=self._name, **self._output)

    def constant(self, values, dtype) -> str:
        return self._ctx.make_const(utils.make_name('constant'), np.array(values, dtype)).output[0]

    def cast(self, values: str, dtype: int) -> str:
        return self.operation('Cast', values, to=dtype)

    def part(self, values: str, axis: int, start: int, end: int) -> str:
        """`values` from `start` to `end` along an axis."""
        where = {'data': values, 'axes': [axis], 'starts': [start], 'ends': [end]}
        return GraphBuilder(self._ctx).make_slice(where)


def _scale_and_translate(ctx, node, name, args):
    """Of `tf.image.resize` with `antialias`: the triangle filter, no translation."""
    new = _Replacement(ctx, node)
    image, size = new.inputs[:2]
    planes = new.operation('Transpose', image, perm=_TO_PLANES)
    kept = new.part(new.operation('Shape', planes), 0, 0, 2)
    sizes = new.operation('Concat', kept, new.cast(size, TensorProto.INT64), axis=0)
    resized = new.operation(
        'Resize',
        planes,
        '',
        '',
        sizes,
        mode='linear',
        antialias=1,
        # Or the border would be repeated, and weigh more.
        exclude_outside=1,
        coordinate_transformation_mode='half_pixel',
    )
    new.finish('Transpose', resized, perm=_FROM_PLANES)


def _crop_and_resize(ctx, node, name, args):
    """As RoIAlign with a sample per bin: tf2onnx makes a loop over the boxes.

    A box says where its first and last samples are, as a share of the map, and RoIAlign wants the
    edges of the bins around them. Samples outside the map are not filled with zeros.
    """
    height, width = (int(side) for side in node.inputs[3].get_tensor_value())
    new = _Replacement(ctx, node)
    image, boxes, images = new.inputs[:3]
    size = new.cast(new.part(new.operation('Shape', image), 0, 1, 3), TensorProto.FLOAT)
    last_pixel = new.operation('Sub', size, new.constant([1, 1], np.float32))
    first, last = (
        new.operation('Mul', new.part(boxes, 1, corner, corner + 2), last_pixel)
        for corner in (0, 2)
    )
    gaps = new.constant([2 * (height - 1), 2 * (width - 1)], np.float32)
    half_bin = new.operation('Div', new.operation('Sub', last, first), gaps)
    # 'half_pixel' has pixel centres at 0.5.
    half_pixel = new.constant([0.5, 0.5], np.float32)
    start = new.operation('Add', new.operation('Sub', first, half_bin), half_pixel)
    end = new.operation('Add', new.operation('Add', last, half_bin), half_pixel)
    # [x1, y1, x2, y2]
    swap = new.constant([1, 0, 3, 2], np.int64)
    rois = new.operation('Gather', new.operation('Concat', start, end, axis=1), swap, axis=1)
    pooled = new.operation(
        'RoiAlign',
        new.operation('Transpose', image, perm=_TO_PLANES),
        rois,
        new.cast(images, TensorProto.INT64),
        output_height=height,
        output_width=width,
        sampling_ratio=1,
        coordinate_transformation_mode='half_pixel',
    )
    new.finish('Transpose', pooled, perm=_FROM_PLANES)


def _mirror_pad(ctx, node, name, args):
    """By one pixel, symmetric: the border again, in one operation where tf2onnx makes eight."""
    pads = node.inputs[1].get_tensor_value(as_list=False)
    utils.make_sure(pads.max() <= 1, '%s pads by more than a pixel', name)
    new = _Replacement(ctx, node)
    new.finish('Pad', new.inputs[0], new.constant(pads.T.ravel(), np.int64), mode='edge')


def _floor_mod(ctx, node, name, args):
    """Of integers, also negative ones, which tf2onnx divides towards zero."""
    new = _Replacement(ctx, node)
    new.finish('Mod', *new.inputs)


def _gather(ctx, node, name, args):
    """Along an axis that is counted from the end, which tf2onnx counts from the beginning."""
    axis = int(node.inputs[2].get_tensor_value())
    if axis < 0:
        axis += ctx.get_rank(node.input[0])
        constant = ctx.make_const(utils.make_name('axis'), np.array(axis, np.int32))
        ctx.replace_input(node, node.input[2], constant.output[0], 2)
    tensor.GatherV2.version_12(ctx, node)


def _resize_nearest(ctx, node, name, args):
    """With pixel centres at 0.5, for which tf2onnx takes a mode that opset 13 has no more."""
    output = node.output[0]
    nn.Resize.version_11(ctx, node)
    resize = ctx.get_node_by_output(output).inputs[0]
    resize.set_attr('coordinate_transformation_mode', 'half_pixel')
    resize.set_attr('nearest_mode', 'round_prefer_ceil')


# As tf2onnx takes them: TensorFlow's operation -> handler and its arguments.
HANDLERS = {
    'CropAndResize': (_crop_and_resize, []),
    'FloorMod': (_floor_mod, []),
    'GatherV2': (_gather, []),
    'MirrorPad': (_mirror_pad, []),
    'ResizeNearestNeighbor': (_resize_nearest, []),
    'ScaleAndTranslate': (_scale_and_translate, []),
}
