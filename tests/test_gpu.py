"""What can be known of GPUs without one: every operation has a kernel there, by TensorFlow's own registry.

The CPU build of TensorFlow registers the GPU kernels that its sources declare, without their code.
"""

import collections
import functools

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import QUICK, first_is_fast, fitting, make_model
from tensorflow.python.framework import config, kernels

from libml import networks, trained, utils

GPUS = ['/device:GPU:0', '/device:GPU:1']


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

    return any(map(fits, find_kernels(node.op)))


@functools.cache
def find_kernels(op):
    """Returns what TensorFlow's registry says of an operation."""
    return kernels.get_registered_kernels_for_op(op).kernel


def without_kernel(graph, fetches):
    """Returns the operations that would not run on a GPU, each with its types, and the names of their nodes."""
    missing = collections.defaultdict(list)
    for node in operations(graph, fetches):
        if not on_host(node) and not has_kernel(node):
            types = {name: tf.as_dtype(v.type).name for name, v in node.attr.items() if v.WhichOneof('value') == 'type'}
            missing['%s(%s)' % (node.op, ', '.join('%s=%s' % item for item in sorted(types.items())))].append(node.name)
    return dict(missing)


@pytest.fixture
def gpus(monkeypatch):
    """Builds graphs as if there were two GPUs."""
    monkeypatch.setattr(utils, 'get_available_gpus', lambda: GPUS)
    yield
    config.disable_op_determinism()


# A kernel depends on the network and on the precision; several devices add the same operations to each.
BUILDS = first_is_fast(
    ('convnet', 'bfloat16', 2), ('resnet', 'float32', 2), ('cnn13', 'bfloat16', 1), ('shake', 'bfloat16', 1),
    ('convnet', 'float32', 1), ('resnet', 'bfloat16', 1), ('cnn13', 'float32', 1), ('shake', 'float32', 1),
)  # fmt: skip


@pytest.mark.parametrize('arch, precision, devices', BUILDS)
def test_every_operation_of_an_update_and_an_evaluation_has_a_gpu_kernel(arch, precision, devices, gpus, tmp_path):
    dataset, scales = fitting(arch)
    model = make_model(tmp_path, dataset, arch=arch, scales=scales, precision=precision, devices=devices, batch=6)
    ops, trainer = model.ops, model.trainer
    fetches = [ops.train_op, ops.tune_op, trainer.values, trainer.init_op, ops.classify_op, ops.classify_raw]
    found = {node.op for node in operations(model.graph, fetches)}
    assert {'IteratorGetNext', 'Conv2D', 'Conv2DBackpropFilter', 'ResourceApplyAdam'} <= found
    assert without_kernel(model.graph, fetches) == {}
    assert {GPUS[r] in node.device for r in range(devices) for node in model.graph.as_graph_def().node} == {True, False}


@pytest.mark.parametrize('arch', networks.MODELS)
def test_every_operation_of_the_exported_graph_has_a_gpu_kernel(arch):
    dataset, scales = fitting(arch)
    sizes = dataset.nclass, scales, 2, 1
    variables = networks.describe(arch, dataset.shape, *sizes).variables
    values = {'classify/' + v['name']: np.zeros(v['shape'], np.float32) for v in variables}
    images = tf.placeholder(tf.uint8, [None, *dataset.shape])
    probabilities = tf.nn.softmax(trained.build_logits(images, arch, sizes, values, normalisation=(0, 1)))
    assert without_kernel(tf.get_default_graph(), [probabilities]) == {}


@pytest.mark.parametrize('devices, xla', [(1, True), (2, False), (2, True)])
def test_several_gpus_leave_to_tensorflow_what_xla_compiles(devices, xla, gpus, tmp_path):
    model = make_model(tmp_path, xla=xla, devices=devices, batch=6, nu=1)
    levels = tf.OptimizerOptions.ON_2 if xla and devices > 1 else tf.OptimizerOptions.DEFAULT
    assert model.machine.config().graph_options.optimizer_options.global_jit_level == levels
    draws = [op for op in model.graph.get_operations() if 'Random' in op.type and 'Normal' not in op.type]
    assert draws and not any(op.get_attr('_XlaCompile') for op in draws)


def test_a_gpus_memory_is_taken_as_it_is_needed(monkeypatch):
    growing = []
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind: GPUS)
    monkeypatch.setattr(tf.config.experimental, 'set_memory_growth', lambda *gpu: growing.append(gpu))
    utils.setup_tf()
    assert growing == [(gpu, True) for gpu in GPUS] and utils.get_config().gpu_options.allow_growth


def test_a_seed_makes_a_gpu_deterministic(gpus, tmp_path, monkeypatch):
    def is_deterministic(seed):
        with tf.Graph().as_default() as graph:
            make_model(tmp_path, seed=seed, **QUICK)
        # A GPU refuses this operation at its first run if operations are to be deterministic.
        return 'SoftmaxCrossEntropyWithLogits' not in {op.type for op in graph.get_operations()}

    assert [is_deterministic(seed) for seed in (None, 1)] == [False, True]
    config.disable_op_determinism()
    monkeypatch.setattr(utils, 'get_available_gpus', lambda: [])
    assert not is_deterministic(1)


def test_an_operation_that_is_not_deterministic_is_named_in_one_line():
    text = 'A deterministic GPU implementation of SegmentSum is not available.\n\t [[{{node update/SegmentSum}}]]'
    error = tf.errors.UnimplementedError(None, None, text)
    assert utils.explain(error) == text.split('\n')[0]


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
