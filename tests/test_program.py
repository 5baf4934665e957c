"""An update as one XLA program, and the networks' passes over several batches at once."""

import functools

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import QUICK, evaluate, fitting, make_model
from tensorflow.python.framework import kernels
from test_step import changed, updates

from ablation.ab_mixmatch import AblationMixMatch
from libml import layers, networks, utils
from libml.running import program

CASES = dict(resnet=('float32', 2), convnet=('tf32', 4), shake=('bfloat16', 1), cnn13=('float32', 3))  # Precision, nu.
ARCHS = [pytest.param(arch, marks=[pytest.mark.slow] * (arch == 'cnn13')) for arch in CASES]


@pytest.fixture(scope='module')
def build(tmp_path_factory):
    """A function that builds a model of a network, once, compiled or not; to be left as it is."""

    @functools.cache
    def build(arch, xla):
        (dataset, scales), (precision, nu) = fitting(arch), CASES[arch]
        how = dict(arch=arch, scales=scales, precision=precision, nu=nu, batch=6, warmup_kimg=0, xla=xla)
        with tf.Graph().as_default():
            return make_model(tmp_path_factory.mktemp('built'), dataset, **how)

    return build


def find_losses_and_gradients(model):
    """Returns the losses of the first update and their gradients, float [n] and list of arrays, by the plain graph.

    Left out are the biases: before batch norm, their gradients are rounding alone.
    """
    with model.graph.as_default(), model.trainer.opening_session() as session:
        losses = list(model.ops.losses.values())
        weights = [v for v in utils.model_vars() if not v.op.name.endswith('bias')]
        gradients = tf.gradients(losses[0] + 100 * losses[1], weights)
        session.run(model.trainer.init_input_op)
        return session.run([losses, gradients])


@pytest.mark.parametrize('arch', ARCHS)
def test_one_pass_over_several_batches_equals_several_passes(arch, build):
    (losses, gradients), (again, gradients_again) = (
        find_losses_and_gradients(build(arch, xla)) for xla in (False, True)
    )
    rounded = CASES[arch][0] == 'bfloat16'
    np.testing.assert_allclose(again, losses, rtol=1e-2 if rounded else 5e-6)
    for value, expected in zip(gradients_again, gradients, strict=True):
        np.testing.assert_allclose(value, expected, rtol=0, atol=(0.15 if rounded else 1e-3) * np.abs(expected).max())


@pytest.mark.parametrize('training_dtype, bound', [(tf.float32, 1e-6), (tf.bfloat16, 1e-2)])
def test_batch_norm_of_groups_equals_that_of_each(training_dtype, bound):
    x = tf.constant(np.random.RandomState(0).normal(3, 2, (12, 5, 4, 2)), training_dtype)
    moments, alone = [], []
    with tf.variable_scope('net', reuse=tf.AUTO_REUSE):
        joined = layers.batch_norm(x, True, moments, groups=3)
    with tf.variable_scope('net', reuse=tf.AUTO_REUSE):
        parts = [layers.batch_norm(part, True, alone) for part in tf.split(x, 3)[:1]]
    for part in tf.split(x, 3)[1:]:
        with tf.variable_scope('net', reuse=tf.AUTO_REUSE):
            parts.append(layers.batch_norm(part, True))
    assert joined.dtype == training_dtype and [v for v, _ in moments] == [v for v, _ in alone]
    separate = tf.concat(parts, 0)
    slopes = [tf.gradients(tf.cast(y, tf.float32)[..., 0] ** 3, x)[0] for y in (joined, separate)]
    pairs = [(joined, separate), slopes, *zip([v for _, v in moments], [v for _, v in alone], strict=True)]
    for found, expected in evaluate([[tf.cast(v, tf.float32) for v in pair] for pair in pairs]):
        np.testing.assert_allclose(found, expected, rtol=bound, atol=bound * np.abs(expected).max())


def test_every_network_is_a_case():
    assert set(CASES) == set(networks.MODELS)


@pytest.mark.parametrize('arch', ARCHS)
def test_a_program_is_the_whole_update_and_draws_nothing(arch, build):
    model = build(arch, xla=True)
    trainer = model.trainer
    assert trainer.values.op.inputs[0].op is trainer.train_op or trainer.values.op is trainer.train_op
    (name,) = {trainer.train_op.get_attr('f').name}
    functions = {f.signature.name: f for f in model.graph.as_graph_def().library.function}
    assert functions[name].attr['_XlaMustCompile'].b
    outside = {op.type for op in program.find_parts([trainer.train_op])[0]} - {'StatefulPartitionedCall'}
    assert not any(word in type for type in outside for word in ('Conv', 'Assign', 'Apply', 'MatMul'))
    inside = {node.op for node in follow(functions, name)}
    assert {'Conv2D', 'Conv2DBackpropFilter', 'ResourceApplyAdam', 'AssignVariableOp', 'AssignAddVariableOp'} <= inside
    assert not any('Random' in type for type in inside)
    noises = [t for t in trainer.train_op.inputs if 'Random' in t.op.type and t.shape.rank == 3]
    assert bool(noises) == (arch == 'shake')  # The others take none.
    # TensorFlow registers XLA's kernels when it first compiles.
    compiled = tf.function(lambda: tf.constant(1.0) + 1, jit_compile=True)()
    assert evaluate(compiled) == 2
    assert [type for type in inside if 'XLA_GPU_JIT' not in find_devices(type)] == []
    assert 'XLA_GPU_JIT' not in find_devices('StatelessRandomGammaV3')  # So the registry knows what cannot be compiled.


def find_devices(type):
    """Returns the kinds of devices for which TensorFlow has a kernel of an operation."""
    return {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(type).kernel}


def follow(functions, name):
    """Yields the nodes of a function, and of those that it calls."""
    for node in functions[name].node_def:
        yield node
        if node.attr['f'].func.name:
            yield from follow(functions, node.attr['f'].func.name)


def test_a_program_is_repeatable_and_gives_what_the_plain_update_beside_it_gives(build, monkeypatch):
    model = build('resnet', xla=True)
    (losses, after), (again, after_again) = updates(model, 2), updates(model, 2)
    assert losses == again and not changed(after, after_again)
    with model.graph.as_default():
        monkeypatch.setattr(model.trainer, 'values', tf.stack(list(model.trainer.scalars.values())))
    monkeypatch.setattr(model.trainer, 'train_op', model.ops.train_op)
    plain, plain_after = updates(model, 2)
    for found, expected in zip(losses, plain, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    for name in after:
        if '/moving_' in name or name.endswith('/Adam'):  # The averages, and the means of the gradients.
            np.testing.assert_allclose(after[name], plain_after[name], rtol=1e-3, atol=1e-5, err_msg=name)
    assert after['global_step'] == plain_after['global_step'] == 2 * model.batch


def test_a_draw_that_waits_for_the_update_cannot_be_compiled():
    v = tf.get_variable('v', initializer=1.0)
    with tf.control_dependencies([v.assign(2.0)]):
        noise = tf.random.stateless_uniform([], [1, 2])
    value = v * noise
    with tf.control_dependencies([value]):
        train_op = tf.group(v.assign(noise))
    with pytest.raises(utils.Error, match=r'draw waits for .*--noxla'):
        program.compile_update(value, train_op)


def fill_memory(p):
    raise MemoryError


@pytest.mark.parametrize(
    'xla, change, error',
    [
        (True, lambda p: [p], r'try --noxla: .*PyFunc'),
        (False, fill_memory, 'memory of the device is full: see nvidia-smi'),
    ],
)
def test_an_update_that_cannot_be_compiled_or_held_names_the_way_out(xla, change, error, tmp_path):
    class Unusual(AblationMixMatch):
        def guess_label(self, *args, **kwargs):
            guess = super().guess_label(*args, **kwargs)
            (changed,) = tf.numpy_function(change, [guess.p_target], [tf.float32])
            guess.p_target = tf.ensure_shape(changed, guess.p_target.shape)
            return guess

    model = make_model(tmp_path, cls=Unusual, xla=xla, **QUICK)
    with pytest.raises(utils.Error, match=error):
        model.train(model.batch, model.batch)
