"""The classifiers: variables by name and shape, sizes, and what they compute, against NumPy."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import assign, evaluate, make_dataset, make_model, variables
from easydict import EasyDict
from reference import Network

from libml import models, networks, utils

# Layers in order of creation, with filters=4, scales=2, repeat=2 (cnn13: scales=3), 3 colors, 5 classes.
BLOCK = {  # conv, norm, conv, norm: a branch of shake.
    '16-4': 'conv 3x3x16x4, norm 4, conv 3x3x4x4, norm 4',
    '4-4': 'conv 3x3x4x4, norm 4, conv 3x3x4x4, norm 4',
    '4-8': 'conv 3x3x4x8, norm 8, conv 3x3x8x8, norm 8',
    '8-8': 'conv 3x3x8x8, norm 8, conv 3x3x8x8, norm 8',
}
LAYERS = {
    'resnet': {
        '': """conv 3x3x3x16,
            norm 16, conv 3x3x16x4, norm 4, conv 3x3x4x4, conv 1x1x16x4,
            norm 4, conv 3x3x4x4, norm 4, conv 3x3x4x4,
            norm 4, conv 3x3x4x8, norm 8, conv 3x3x8x8, conv 1x1x4x8,
            norm 8, conv 3x3x8x8, norm 8, conv 3x3x8x8,
            norm 8, dense 8x5"""
    },
    'cnn13': {
        '': """conv 3x3x3x4, norm 4, conv 3x3x4x4, norm 4, conv 3x3x4x4, norm 4,
            conv 3x3x4x8, norm 8, conv 3x3x8x8, norm 8, conv 3x3x8x8, norm 8,
            conv 3x3x8x16, norm 16, conv 1x1x16x8, norm 8, conv 1x1x8x4, norm 4, dense 4x5"""
    },
    'convnet': {'': """conv 3x3x3x4, conv 3x3x4x4, conv 3x3x4x8, conv 3x3x8x8, conv 3x3x8x16, conv 3x3x16x5"""},
    'shake': {
        '': 'conv 3x3x3x16',
        'layer1.0/': '{16-4}, {16-4}, conv 1x1x16x4, norm 4',
        'layer1.1/': '{4-4}, {4-4}',
        'layer2.0/': '{4-8}, {4-8}, conv 1x1x4x4, conv 1x1x4x4, norm 8',
        'layer2.1/': '{8-8}, {8-8}',
        ' ': 'dense 8x5',
    },
}


def golden(arch):
    """Returns the (name, shape) of each variable of an architecture, in order."""
    found, counts = [], {}
    for scope, text in LAYERS[arch].items():
        for name, branch in BLOCK.items():
            text = text.replace('{%s}' % name, branch)
        for layer in text.split(','):
            kind, shape = layer.split()
            shape = [int(n) for n in shape.split('x')]
            long = dict(conv='conv2d', norm='batch_normalization', dense='dense')[kind]
            number = counts[scope, kind] = counts.get((scope, kind), -1) + 1
            prefix = 'classify/' + scope.strip() + long + ('_%d' % number if number else '')
            if kind == 'norm':
                found += [(prefix + end, shape) for end in ('/gamma', '/beta', '/moving_mean', '/moving_variance')]
            else:
                found += [(prefix + '/kernel', shape)]
                found += [(prefix + '/bias', shape[-1:])] if arch != 'shake' or kind == 'dense' else []
    return found


class Classifier(models.MultiModel):
    """Nothing but the classifier, in its two modes."""

    def model(self, nclass, batch, **kwargs):
        size = [self.dataset.height, self.dataset.width, self.dataset.colors]
        x = tf.placeholder(tf.float32, [None, *size])
        return EasyDict(
            x=x,
            logits=self.classifier(x, **kwargs),
            training_logits=self.classifier(x, training=True, **kwargs),
            train_op=tf.no_op(),
        )


def build(tmp_path, arch, size=(8, 8, 1), nclass=3, whiten=False, **params):
    dataset = make_dataset(*size, nclass=nclass, whiten=whiten)
    params = {**dict(scales=3 if arch == 'cnn13' else 2, filters=4, repeat=2, batch=4), **params}
    return Classifier(str(tmp_path), dataset, nclass, arch=arch, seed=1, **params)


def test_fewer_classes_than_the_data_are_refused(tmp_path):
    with pytest.raises(utils.Error, match='nclass=2 is not allowed: it must be at least 3, as in the data'):
        Classifier(
            str(tmp_path), make_dataset(nclass=3), nclass=2, arch='convnet', scales=1, filters=4, repeat=1, batch=4
        )


def test_names_of_the_architectures():
    assert networks.MODELS == models.MultiModel.MODELS == ('cnn13', 'convnet', 'resnet', 'shake')


@pytest.mark.parametrize('arch', networks.MODELS)
def test_variables(arch, tmp_path):
    build(tmp_path, arch, (16, 16, 3), nclass=5)
    found = [(v.op.name, v.shape.as_list()) for v in tf.global_variables() if v.op.name != 'global_step']
    assert found == golden(arch)
    averages = ('moving_mean', 'moving_variance')
    assert [v.op.name for v in tf.trainable_variables()] == [n for n, _ in found if not n.endswith(averages)]


def test_parameters_of_the_default_classifier(tmp_path):
    build(tmp_path, 'resnet', (32, 32, 3), nclass=10, scales=3, filters=32, repeat=4)
    assert sum(v.shape.num_elements() for v in utils.model_vars()) == 1469642


@pytest.mark.parametrize('arch', ['resnet', 'shake'])
def test_first_values_of_kernels_biases_and_norms(arch, tmp_path):
    build(tmp_path, arch, (32, 32, 3), nclass=10, scales=3, filters=32, repeat=1)
    values = evaluate({v.op.name.removeprefix('classify/'): v for v in tf.global_variables()})
    values.pop('global_step')
    for name, value in values.items():
        if name.endswith('kernel') and value.ndim == 4:
            size, _, _, out = value.shape
            deviation, error = np.sqrt(2 / (size * size * out)), 4 / np.sqrt(2 * value.size)
            np.testing.assert_allclose(value.std(), deviation, rtol=error, err_msg=name)
            assert np.abs(value).max() > 2.3 * deviation, name  # Normal: neither uniform nor cut.
        elif not name.endswith('kernel'):
            assert np.all(value == name.endswith(('gamma', 'moving_variance'))), name
    limit = 2 * np.sqrt(2 / (128 + 10)) / 0.87962566103423978  # Glorot's normal is cut at two deviations.
    assert 0.9 * limit < np.abs(values['dense/kernel']).max() <= limit
    np.testing.assert_allclose(values['dense/kernel'].std(), np.sqrt(2 / (128 + 10)), rtol=0.1)


@pytest.mark.parametrize('arch', ['cnn13', 'convnet'])
def test_glorot_uniform_kernels(arch, tmp_path):
    build(tmp_path, arch, (16, 16, 3), filters=16, nclass=40)  # So many that the dense layer's kernel is large enough.
    for name, value in evaluate({v.op.name: v for v in utils.model_vars()}).items():
        if name.endswith('kernel') and value.size > 500:
            *size, fan_in, fan_out = value.shape
            limit = np.sqrt(6 / (np.prod(size) * (fan_in + fan_out)))
            assert 0.97 * limit < np.abs(value).max() <= limit, name
            np.testing.assert_allclose(value.std(), limit / np.sqrt(3), rtol=0.1, err_msg=name)


@pytest.mark.parametrize(
    'arch, size',
    [('cnn13', (32, 32, 3)), ('convnet', (32, 32, 3)), ('resnet', (32, 32, 3)), ('shake', (8, 8, 1))],
)
def test_every_architecture_runs_and_learns_at(arch, size, tmp_path):
    model = build(tmp_path, arch, size, repeat=1)
    gradients = tf.gradients(tf.square(model.ops.training_logits), utils.model_vars())
    assert None not in gradients
    x = np.random.RandomState(0).uniform(-1, 1, (3, *size))
    *logits, gradients = evaluate([model.ops.logits, model.ops.training_logits, gradients], {model.ops.x: x})
    for v in logits:
        assert v.shape == (3, 3) and np.all(np.isfinite(v))
    assert all(np.all(np.isfinite(g)) for g in gradients)


@pytest.mark.parametrize(
    'arch, size, scales, words',
    [
        ('cnn13', (8, 8, 1), 3, 'height=8.*at least 12'),
        ('cnn13', (12, 11, 1), 3, 'width=11.*at least 12'),
        ('cnn13', (16, 16, 1), 2, 'scales=2.*must be 3'),
        ('convnet', (8, 8, 1), 4, 'height=8.*at least.*16'),
        ('shake', (8, 6, 1), 3, 'width=6.*multiple.*4'),
        ('resnet', (8, 8, 1), -1, 'scales=-1'),
    ],
)
def test_a_size_that_does_not_fit_is_an_error(arch, size, scales, words, tmp_path):
    with pytest.raises(utils.Error, match=words):
        build(tmp_path, arch, size, scales=scales)


@pytest.mark.parametrize('name', ['dropout', 'filter', 'trainning'])
def test_an_unknown_keyword_is_an_error(name, tmp_path):
    with pytest.raises(TypeError, match=name):
        build(tmp_path, 'resnet', **{name: 1})
    with tf.Graph().as_default(), pytest.raises(TypeError, match=name):
        make_model(tmp_path, **{name: 1})


@pytest.fixture
def noise(monkeypatch):
    """The next stateless_uniform that a network draws from, in a list."""
    drawn = []
    stateless_uniform = tf.random.stateless_uniform

    def noted(*args, **kwargs):
        drawn.append(stateless_uniform(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(tf.random, 'stateless_uniform', noted)
    return drawn


@pytest.mark.parametrize('arch', networks.MODELS)
def test_forward_equals_numpy(arch, noise, tmp_path):
    size = (12, 16, 3) if arch == 'cnn13' else (8, 6, 3)
    model = build(tmp_path, arch, size, whiten=True)
    random = np.random.RandomState(0)
    x = random.uniform(-1, 1, (4, *size))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        values = variables(session)
        values.pop('global_step')
        for name, value in values.items():
            if not name.endswith('kernel'):
                values[name] = random.uniform(0.5, 1.5, value.shape)
        assign(session, values)
        logits, noise = session.run([[model.ops.logits, model.ops.training_logits], noise[:2]], {model.ops.x: x})
    assert model.dataset.std.min() < 0.9  # Whitening is seen.
    for training in False, True:
        network = Network(values, training, model.dataset.mean, model.dataset.std, noise[training])
        params = [model.params[name] for name in ('scales', 'filters', 'repeat')]
        expected = getattr(network, arch)(x, *params)
        np.testing.assert_allclose(logits[training], expected, rtol=1e-3, atol=1e-4)
        drawn = noise[training]
        assert drawn.min() >= 0 and drawn.max() < 1 and len(np.unique(drawn)) == drawn.size


def test_the_training_mode_of_shake_draws_for_each_call_and_example(tmp_path):
    model = build(tmp_path, 'shake', (8, 8, 1))
    kwargs = {name: value for name, value in model.params.items() if name != 'nclass'}
    again = model.classifier(model.ops.x, training=True, **kwargs)
    x = np.repeat(np.random.RandomState(0).uniform(-1, 1, (1, 8, 8, 1)), 4, axis=0)
    first, second, still = evaluate([model.ops.training_logits, again, model.ops.logits], {model.ops.x: x})
    assert not np.allclose(first, second)
    assert not np.allclose(first[0], first[1])
    np.testing.assert_allclose(still, still[[0]].repeat(4, 0), rtol=1e-5)
