# SPDX-License-Identifier: Apache-2.0
"""What of a train step a GPU could not do by itself: operations without a kernel for one, and
values that are computed on the GPU, then needed in the host's memory.

Each of the latter makes the host wait for the GPU and the GPU for the host. The graphs are traced
on the CPU. TensorFlow's wheels for Linux register the kernels for GPUs wherever they run; which
these are, and which of their arguments lie in the host's memory, only a private function says.
"""

import collections

import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.python.framework import kernels, op_def_registry

from custom_ops.prroi_pool import build, serving
from tests import tiny

pytestmark = [
    pytest.mark.skipif(build.find_compiler() is None, reason='no C++ compiler'),
    pytest.mark.skipif(not tf.test.is_built_with_cuda(), reason='no kernels for GPUs to ask for'),
]

# Ours. Their kernels for GPUs are there where nvcc compiled the library.
OURS = {
    'GroupedNonMaxSuppression',
    'PrRoiPoolPyramid',
    'PrRoiPoolPyramidGradBoxes',
    'RoiAlignPyramid',
    'RoiAlignPyramidGradFeatures',
}
# Arguments, results and control flow, which run anywhere.
BOOKKEEPING = {'NoOp', 'Placeholder', 'If', 'StatelessIf'}
# TensorFlow has no deterministic gradient of `tf.image.crop_and_resize` on a GPU, and under
# `--deterministic` raises an error for it.
NOT_DETERMINISTIC = {'CropAndResizeGradImage', 'CropAndResizeGradBoxes'}
# The Model Garden's own code, by its names in the graph: the gradient of the mask head's choice of
# a class.
OF_OTHERS = ('/mask_head',)
# Where values come from that differ from step to step.
SOURCES = {'Placeholder', 'ReadVariableOp'}


def host_arguments(node):
    """Names of a node's arguments that its kernel for GPUs has in the host's memory; None without
    such a kernel."""
    candidates = kernels.get_registered_kernels_for_op(node.op).kernel
    # What is registered for any device serves where nothing is for this one.
    for device in ('GPU', 'DEFAULT'):
        for kernel in candidates:
            if kernel.device_type == device and all(
                set(_types(node.attr[one.name])) <= set(one.allowed_values.list.type)
                for one in kernel.constraint
                if one.allowed_values.list.type  # Others are of strings, which all kernels take.
            ):
                return set(kernel.host_memory_arg)
    return None


def _types(attribute):
    return attribute.list.type or [attribute.type]


def all_nodes(graph):
    """The graph's nodes and those of the functions that it calls."""
    return [*graph.node, *(node for f in graph.library.function for node in f.node_def)]


def missing_kernels(graph):
    """Operations, with their type, that have no kernel for GPUs, and how many nodes are such."""
    exempt = BOOKKEEPING if 'CUDA' in serving() else BOOKKEEPING | OURS
    return collections.Counter(
        f'{node.op} {types_pb2.DataType.Name(node.attr["T"].type)}'
        for node in all_nodes(graph)
        if node.op not in exempt and host_arguments(node) is None
    )


def _names(arguments, node):
    """The argument that each tensor belongs to."""
    for argument in arguments:
        if argument.number_attr:
            count = node.attr[argument.number_attr].i
        elif argument.type_list_attr:
            count = len(node.attr[argument.type_list_attr].list.type)
        else:
            count = 1
        yield from [argument.name] * count


def round_trips(graph):
    """Nodes that want a value in the host's memory which comes from the GPU's, and the node that
    it is from. Values that follow from shapes alone are left out: they are known before a step."""
    producers, from_data, on_gpu = {}, set(), set()
    for node in graph.node:  # Inputs come before what they are inputs of.
        host = host_arguments(node) or set()
        tensors = [x if ':' in x else f'{x}:0' for x in node.input if not x.startswith('^')]
        for name, tensor in zip(_names(op_def_registry.get(node.op).input_arg, node), tensors):
            if name in host and tensor in on_gpu & from_data and 'Shape' not in node.op:
                yield node, producers[tensor]
        is_data = node.op in SOURCES or (
            node.op not in ('Shape', 'ShapeN') and not from_data.isdisjoint(tensors)
        )
        for i, name in enumerate(_names(op_def_registry.get(node.op).output_arg, node)):
            tensor = f'{node.name}:{i}'
            producers[tensor] = node
            if is_data:
                from_data.add(tensor)
            if node.op not in BOOKKEEPING and name not in host:
                on_gpu.add(tensor)


@pytest.fixture(
    scope='module',
    params=[
        ('baseline', {}),
        ('combined', {}),
        pytest.param(
            ('combined', {**tiny.STRONGEST, 'control': 'shuffled'}), marks=pytest.mark.slow
        ),
    ],
    ids=['baseline', 'combined', 'strongest'],
)
def graph(request):
    """The train step's graph."""
    mode, gan = request.param
    task, model = tiny.make_task(mode, gan)
    optimizer = tiny.sgd()
    optimizer.build(model.trainable_variables)
    step = tf.function(lambda inputs: task.train_step(inputs, model, optimizer))
    return step.get_concrete_function(tiny.make_batch(task.task_config)).graph.as_graph_def()


def test_every_operation_has_a_kernel_for_gpus(graph):
    assert missing_kernels(graph) == {}


def test_ours_pool_the_rois_and_every_one_can_be_deterministic(graph):
    operations = {node.op for node in all_nodes(graph)}
    assert operations & NOT_DETERMINISTIC == set()
    # The baseline has no discriminators and with them no PrRoIPool.
    assert operations & OURS in ({x for x in OURS if not x.startswith('PrRoiPool')}, OURS)


def test_nothing_that_the_gpu_computes_is_awaited_by_the_host(graph):
    found = [
        f'{node.op} of {node.name} waits for {source.op} of {source.name}'
        for node, source in round_trips(graph)
        if node.op not in BOOKKEEPING and not any(part in node.name for part in OF_OTHERS)
    ]
    assert found == []


def test_a_round_trip_is_found():
    """Integers of 32 bits are compared on the host, those of 64 on the GPU; shapes are known."""

    @tf.function(input_signature=[tf.TensorSpec([7])])
    def compare(scores):
        indices = tf.math.top_k(scores, 3).indices
        tf.cast(indices, tf.int64) > tf.cast(tf.shape(scores), tf.int64)  # noqa: B015
        return indices > 1

    graph = compare.get_concrete_function().graph.as_graph_def()
    found = [(node.op, source.op) for node, source in round_trips(graph)]
    assert found == [('Greater', 'TopKV2')] and missing_kernels(graph) == {}


def test_an_operation_without_a_kernel_is_found():
    suppress = tf.function(
        lambda boxes, scores: tf.image.combined_non_max_suppression(boxes, scores, 3, 3),
        input_signature=[tf.TensorSpec([1, 5, 1, 4]), tf.TensorSpec([1, 5, 2])],
    )
    graph = suppress.get_concrete_function().graph.as_graph_def()
    assert list(missing_kernels(graph)) == ['CombinedNonMaxSuppression DT_INVALID']
