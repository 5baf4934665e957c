"""What can be known of GPUs without one: every operation has a kernel there, by TensorFlow's own registry.

The CPU build of TensorFlow registers the GPU kernels that its sources declare, without their code.
"""

import collections

import pytest
import tensorflow.compat.v1 as tf
from conftest import fitting, make_model
from tensorflow.python.framework import kernels

from libml import networks, utils

GPU = '/device:GPU:0'


def operations(graph, fetches):
    """Returns the node_defs that a session runs for fetches, those of the functions they call included.

    What a tf.data pipeline calls is not followed: pipelines run on the CPU.
    """
    definition = graph.as_graph_def()
    functions = {function.signature.name: function.node_def for function in definition.library.function}
    names = [fetch.name.split(':')[0] for fetch in fetches]
    found = list(tf.graph_util.extract_sub_graph(definition, names).node)
    followed = set()
    for node in found:  # It grows meanwhile.
        for attribute in () if on_host(node) else node.attr.values():
            for function in (attribute.func, *attribute.list.func):
                if function.name and function.name not in followed:
                    followed.add(function.name)
                    found += functions[function.name]
    return found


def on_host(node):
    """Returns whether an operation is a part of a tf.data pipeline, or a text for one, and so runs on the CPU."""
    return 'Dataset' in node.op or node.attr['dtype'].type == tf.string


def has_kernel(node):
    """Returns whether a kernel is registered that runs an operation of such types on a GPU."""

    def fits(kernel):  # DEFAULT: on every device.
        return kernel.device_type in ('GPU', 'DEFAULT') and not kernel.label and all(map(allowed, kernel.constraint))

    def allowed(constraint):
        value = node.attr[constraint.name]
        return set(value.list.type or [value.type]) <= set(constraint.allowed_values.list.type)

    return any(map(fits, kernels.get_registered_kernels_for_op(node.op).kernel))


def without_kernel(graph, fetches):
    """Returns the operations that would not run on a GPU, each with its types, and the names of their nodes."""
    missing = collections.defaultdict(list)
    for node in operations(graph, fetches):
        if not on_host(node) and not has_kernel(node):
            types = {name: tf.as_dtype(v.type).name for name, v in node.attr.items() if v.WhichOneof('value') == 'type'}
            missing['%s(%s)' % (node.op, ', '.join('%s=%s' % item for item in sorted(types.items())))].append(node.name)
    return dict(missing)


@pytest.fixture
def one_gpu(monkeypatch):
    """Builds graphs as if there were a GPU."""
    monkeypatch.setattr(utils, 'get_available_gpus', lambda: [GPU])


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
@pytest.mark.parametrize('arch', networks.MODELS)
def test_every_operation_of_an_update_and_an_evaluation_has_a_gpu_kernel(arch, precision, one_gpu, tmp_path):
    dataset, scales = fitting(arch)
    model = make_model(tmp_path, dataset, arch=arch, scales=scales, precision=precision)
    ops = model.ops
    fetches = [ops.train_op, ops.tune_op, model.scalar_values, model.init_op, ops.classify_op, ops.classify_raw]
    found = {node.op for node in operations(model.graph, fetches)}
    assert {'IteratorGetNext', 'Conv2D', 'Conv2DBackpropFilter', 'ResourceApplyAdam'} <= found
    assert without_kernel(model.graph, fetches) == {}


def test_an_operation_without_a_gpu_kernel_names_itself():
    images, rows = (tf.zeros([4, 2], dtype) for dtype in (tf.float32, tf.uint8))
    gathered = [tf.gather(v, [1, 0], name=name) for v, name in ((images, 'floats'), (rows, 'bytes'))]
    shuffled = tf.random.shuffle(images, name='shuffled')
    assert without_kernel(tf.get_default_graph(), [*gathered, shuffled]) == {
        'GatherV2(Taxis=int32, Tindices=int32, Tparams=uint8)': ['bytes'],
        'RandomShuffle(T=float32)': ['shuffled'],
    }


def test_an_operation_inside_a_function_is_seen():
    @tf.function(autograph=False)
    def inner(x):
        return tf.random.shuffle(x, name='shuffled')

    outer = tf.function(inner, autograph=False)
    assert without_kernel(tf.get_default_graph(), [outer(tf.zeros([4]))]) == {'RandomShuffle(T=float32)': ['shuffled']}
