"""The methods of examples/: losses and updates against NumPy, and the command line of each."""

import os

import numpy as np
import pytest
import reference
import tensorflow.compat.v1 as tf
import tiny
from conftest import ROOT, assign, first_is_fast, make_dataset, variables
from reference import Network, complex_step_gradient, rows, softmax
from test_step import compare, random_batch, shake_up

from examples import mean_teacher, mixup, pi_model, pseudo_label, vat
from libml import layers, utils
from libml.running import checkpoints, hardware, program, runs

# Rates so large that the order of the updates shows.
LARGE = dict(tiny.SIZE, arch='resnet', batch=4, lr=0.01, wd=5.0, ema=0.9)


# --- The methods in NumPy: each returns its losses, and their weights ---


def cross_entropy(q, logits):
    """Returns the mean over examples of -Σ q log softmax(logits)."""
    return -(q * np.log(softmax(logits))).sum() / len(q)


def divergence(logits_p, logits_q):
    """Returns the mean over examples of Σ p log(p / q)."""
    p = softmax(logits_p)
    return (p * (np.log(p) - np.log(softmax(logits_q)))).sum() / len(p)


def normalize(d):
    return d / np.sqrt((d**2).sum((1, 2, 3), keepdims=True))


def pi_model_losses(learn, fixed, averaged, x, y, label, drawn, params):
    target = softmax(fixed(y[:, 0]))
    losses = dict(xe=cross_entropy(label, learn(x)), pm=np.mean((target - softmax(learn(y[:, 1]))) ** 2))
    return losses, dict(xe=1, pm=params['consistency_weight'])


def mean_teacher_losses(learn, fixed, averaged, x, y, label, drawn, params):
    target = softmax(averaged(y[:, 0]))
    losses = dict(xe=cross_entropy(label, learn(x)), mt=np.mean((target - softmax(learn(y[:, 1]))) ** 2))
    return losses, dict(xe=1, mt=params['consistency_weight'])


def pseudo_label_losses(learn, fixed, averaged, x, y, label, drawn, params):
    p = softmax(fixed(y[:, 0]))
    target = np.eye(p.shape[1])[p.argmax(1)] * (p.max(1, keepdims=True) > params['threshold'])
    assert 0 < target.sum() < len(target)  # Some images have a label, and some have none.
    losses = dict(xe=cross_entropy(label, learn(x)), pl=cross_entropy(target, learn(y[:, 0])))
    return losses, dict(xe=1, pl=params['consistency_weight'])


def mixup_losses(learn, fixed, averaged, x, y, label, drawn, params):
    (m_x, m_y), (partner_x, partner_y) = drawn
    label_y = softmax(fixed(y[:, 0]))
    mixed_x, target_x = (rows(m_x, v, v[partner_x]) for v in (x, label))
    mixed_y, target_y = (rows(m_y, v, v[partner_y]) for v in (y[:, 0], label_y))
    losses = dict(xe=cross_entropy(target_x, learn(mixed_x)), xeu=cross_entropy(target_y, learn(mixed_y)))
    return losses, dict(xe=1, xeu=1)


def vat_losses(learn, fixed, averaged, x, y, label, drawn, params):
    direction, logits = drawn[1], fixed(y[:, 0])
    xe, logits_y = cross_entropy(label, learn(x)), learn(y[:, 0])
    kl = divergence(logits, learn(y[:, 0] + params['vat_eps'] * direction))
    return dict(xe=xe, vat=kl, entmin=cross_entropy(softmax(logits_y), logits_y)), dict(
        xe=1, vat=params['vat'], entmin=params['entmin_weight']
    )


METHODS = {  # Script: (class, arguments besides those of LARGE, losses, the losses whose weight grows).
    'pi_model': (pi_model.PiModel, dict(consistency_weight=30.0, warmup_kimg=1), pi_model_losses, ['pm']),
    'mean_teacher': (
        mean_teacher.MeanTeacher,
        dict(consistency_weight=30.0, warmup_kimg=1),
        mean_teacher_losses,
        ['mt'],
    ),
    'pseudo_label': (
        pseudo_label.PseudoLabel,
        dict(consistency_weight=3.0, warmup_kimg=1, threshold=0.42),
        pseudo_label_losses,
        ['pl'],
    ),
    'mixup': (mixup.Mixup, dict(beta=0.5), mixup_losses, []),
    'vat': (vat.VAT, dict(vat=3.0, vat_eps=0.5, entmin_weight=2.0, warmup_kimg=1), vat_losses, ['vat']),
}


@pytest.fixture
def noted(monkeypatch, draws):
    """Notes what the methods draw at random, and the directions of VAT: a function that returns the tensors."""
    directions, normalize = [], layers.normalise
    monkeypatch.setattr(layers, 'normalise', lambda d: directions.append(normalize(d)) or directions[-1])
    return lambda: directions or [draws['m'], draws['partner']]


def make(name, folder, **params):
    """Returns a tiny model of a method."""
    dataset, (method, own, *_) = make_dataset(6, 6, 1, nclass=3, whiten=True), METHODS[name]
    return method(str(folder), dataset, nclass=dataset.nclass, seed=1, **{**LARGE, **own, **params})


def make_tower(name, drawn, seen):
    """Returns the function of a method that reference.update asks for; drawn: values; `seen` gets the losses."""
    *_, losses, growing = METHODS[name]

    def tower(values, averaged, x, y, label, params, nclass, mean, std):
        size = [params[key] for key in ('scales', 'filters', 'repeat')]

        def build(values, moments=None):
            def classify(images):
                network = Network(values, True, mean, std)
                logits = network.resnet(images, *size)
                if moments is not None:
                    moments.append(network.moments)
                return logits

            return classify

        def compute(moved, moments=None):
            others = build(values), build({**values, **averaged})
            found, weights = losses(build(moved, moments), *others, x, y, np.eye(nclass)[label], drawn, params)
            ramp = values['global_step'] / 1024
            total = sum(found[key] * weights[key] * (ramp if key in growing else 1) for key in found)
            return found, total

        moments = []
        found, _ = compute(values, moments)
        seen.update(found)
        return np.array([*found.values()]), moments[0], complex_step_gradient(lambda v: compute(v)[1], values, averaged)

    return tower


@pytest.mark.parametrize('name', METHODS)
def test_an_update_equals_numpy(name, noted, tmp_path):
    model, seen = make(name, tmp_path), {}
    batch = random_batch(model.dataset, 4, int(model.ops.y.shape[1]))
    with model.trainer.opening_session() as session:
        shake_up(session)
        assign(session, dict(global_step=512))
        before = variables(session)
        feed = dict(zip((model.ops.x, model.ops.y, model.ops.label), batch, strict=True))
        losses, drawn, _ = session.run([model.ops.losses, noted(), model.ops.train_op], feed)
        after = variables(session)
    _, expected, gradients = reference.update(
        {name: value.astype(np.float64) for name, value in before.items()},
        [batch],
        *(model.params, 3, model.dataset.mean.astype(np.float64), model.dataset.std.astype(np.float64)),
        tower=make_tower(name, drawn, seen),
    )
    assert losses == pytest.approx({'losses/' + key: value for key, value in seen.items()}, rel=1e-4)
    compare(after, expected, gradients, model.params['lr'])


def test_vats_direction_is_that_of_finite_differences(noted, tmp_path):
    model = make('vat', tmp_path)
    x, y, label = random_batch(model.dataset, 4, 1)
    with model.trainer.opening_session() as session:
        values = {name: value.astype(np.float64) for name, value in shake_up(session).items()}
        start, found = session.run(noted(), {model.ops.x: x, model.ops.y: y, model.ops.label: label})
    mean, std = (v.astype(np.float64) for v in (model.dataset.mean, model.dataset.std))

    def classify(images):
        return Network(values, True, mean, std).resnet(images, 1, 2, 1)

    u, gradient, step = y[:, 0].astype(np.float64), np.zeros(start.shape), 1e-5
    for index in np.ndindex(start.shape):
        ends = []
        for sign in (1, -1):
            d = vat.XI * start.astype(np.float64)
            d[index] += sign * step
            ends.append(divergence(classify(u), classify(u + d)))
        gradient[index] = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose((start**2).sum((1, 2, 3)), 1, rtol=1e-5)
    np.testing.assert_allclose(found, normalize(gradient), atol=5e-3)


@pytest.mark.parametrize('name', first_is_fast(*METHODS))
def test_xla_compiles_all_of_an_update(name, tmp_path):
    """No part of it precedes a random draw, which stays outside of the program."""
    model = make(name, tmp_path, machine=hardware.Machine(xla=True))
    ops, given = program.find_parts([model.trainer.train_op])
    ops += program.find_parts([tensor.op for tensor in given])[0]
    assert [op.type for op in ops if 'Call' in op.type] == ['StatefulPartitionedCall']


# --- The command line ---


def test_every_example_is_tested():
    assert set(METHODS) == {name[:-3] for name in os.listdir(os.path.join(ROOT, 'examples')) if name.endswith('.py')}


@pytest.mark.slow
@pytest.mark.parametrize('name', METHODS)
def test_a_method_has_a_command_line(name, server, digits_dir, tmp_path):
    flags = tiny.flags(**tiny.RUN, data_dir=digits_dir, train_dir=tmp_path)
    done = server.run('examples/%s.py' % name, *flags)
    assert done.returncode == 0, done.stderr
    (run,) = runs.find_runs(tmp_path)
    method = METHODS[name][0].__name__
    assert os.path.basename(run).startswith(method + '_archresnet_batch64_') and runs.read_accuracies(run)
    if name == 'vat':  # The class is a word in args.json: what is evaluated is the network.
        done = server.run('scripts/evaluate.py', run, '--data_dir=%s' % digits_dir)
        assert done.returncode == 0, done.stderr


def test_a_method_checks_its_own_arguments(tmp_path):
    with pytest.raises(utils.Error, match=r'consistency_weight=-1\.0 is not allowed: it must be at least 0'):
        make('pi_model', tmp_path, consistency_weight=-1)


@pytest.mark.parametrize('name', METHODS)
def test_a_weight_decay_that_flips_kernels_is_refused(name, tmp_path):
    with pytest.raises(utils.Error, match=r'wd=100\.0 is not allowed: it must be below 1 when multiplied by lr'):
        make(name, tmp_path, wd=100.0)


def test_the_page_shows_the_example_as_it_is():
    with open(os.path.join(ROOT, 'examples', 'pi_model.py'), encoding='utf-8') as file:
        code = file.read()
    with open(os.path.join(ROOT, 'docs', 'methods.md'), encoding='utf-8') as file:
        assert code in file.read()


def test_a_method_goes_on_as_if_it_had_not_been_stopped_and_is_evaluated(tmp_path):
    weights = {}
    for folder, stops in dict(once=[16], twice=[8, 16]).items():
        for stop in stops:
            with tf.Graph().as_default():
                model = make('pi_model', tmp_path / folder)
                model.train(train_nimg=stop, report_nimg=8)
        weights[folder] = checkpoints.read(utils.find_latest_checkpoint(model.checkpoint_dir))
    assert weights['once'].keys() == weights['twice'].keys()
    for key, value in weights['once'].items():
        np.testing.assert_array_equal(value, weights['twice'][key], err_msg=key)
    with tf.Graph().as_default():
        results = make('pi_model', tmp_path / 'once').eval_checkpoint(model.checkpoint_dir)
    assert set(results) == {'raw', 'ema', 'tuned_raw', 'tuned_ema'}
    assert results['ema'][2] == pytest.approx(runs.read_accuracies(model.train_dir)[-1][1])
