"""One update of MixMatch: against NumPy, and what it may and may not touch."""

import contextlib

from ablation.ab_mixmatch import AblationMixMatch
from libml import utils

import numpy as np
import pytest
import reference
import tensorflow.compat.v1 as tf
from conftest import PARAMS, assign, changed, feed, make_dataset, make_model, random_batch, variables
from reference import AVERAGE

# --- Against NumPy ---

# Rates so large that the order of the updates shows.
LARGE = dict(lr=0.01, wd=5.0, ema=0.9, filters=2, repeat=1)
CASES = {
    'ramp': dict(LARGE, batch=5, nu=2, mixmode='xxy.yxy', scales=1, warmup_kimg=1, w_match=30),
    'ema_guess': dict(LARGE, batch=4, nu=1, mixmode='xx.yx', scales=2, warmup_kimg=0, use_ema_guess=True, T=0.8),
}


def shake_up(session):
    """Gives every trained variable and average a value of its own; returns all variables."""
    random = np.random.RandomState(3)
    values = variables(session)
    for name, value in values.items():
        if name.startswith('classify/') and '/Adam' not in name and not name.endswith('/kernel'):
            values[name] = value + random.uniform(-0.4, 0.4, value.shape)
    assign(session, values)
    return variables(session)


@pytest.mark.parametrize('params', CASES.values(), ids=CASES)
def test_two_updates_equal_numpy(params, draws, tmp_path):
    dataset = make_dataset(6, 6, 1, nclass=3, whiten=True)
    model = make_model(tmp_path, dataset, **params)
    with model.open_session() as session:
        shake_up(session)
        model.step.load(512, session)
        for seed in range(2):
            before = variables(session)
            batch = random_batch(dataset, params['batch'], params['nu'], seed)
            losses, m, partner, _ = session.run(
                [model.ops.losses, draws['m'], draws['partner'], model.ops.train_op], feed(model, *batch)
            )
            expected_losses, expected, gradients = reference.update(
                {name: value.astype(np.float64) for name, value in before.items()},
                *batch,
                *(m, partner, model.params),
                *(dataset.nclass, dataset.mean.astype(np.float64), dataset.std.astype(np.float64)),
            )
            found = [losses['losses/xe'], losses['losses/l2u']]
            np.testing.assert_allclose(found, expected_losses, rtol=1e-4)
            compare(variables(session), expected, gradients, params['lr'])


def compare(found, expected, gradients, lr):
    """Asserts that the variables are as expected.

    Biases before a batch norm have no effect: their gradient is rounding noise, of which Adam makes whole steps.
    """
    largest = max(np.abs(g).max() for g in gradients.values())
    felt = {name: np.abs(g) > 1e-5 * largest for name, g in gradients.items()}
    assert sum(v.sum() for v in felt.values()) > 0.9 * sum(v.size for v in felt.values())
    assert set(found) == set(expected)
    for name, value in expected.items():
        value, seen = np.asarray(value), np.asarray(found[name])
        base = name.removesuffix(AVERAGE)
        tolerance = dict(rtol=1e-4, atol=1e-6)
        if base in felt:
            value, seen, tolerance = value[felt[base]], seen[felt[base]], dict(rtol=1e-6, atol=0.01 * lr)
        elif '/moving_' in name:  # They move by a thousandth.
            tolerance = dict(rtol=0, atol=5e-7)
        elif '/Adam' in name:
            tolerance = dict(rtol=2e-3, atol=1e-5 * largest)
        np.testing.assert_allclose(seen, value, **tolerance, err_msg=name)


# --- What each op may touch ---


@contextlib.contextmanager
def started(model):
    """Opens a session with the input streams started, variables far from their first values."""
    with model.open_session() as session:
        shake_up(session)
        session.run(model.init_input_op)
        yield session


def kinds(names):
    """Sorts names of variables by their last part."""
    return {name.rsplit('/', 1)[-1] for name in names}


def test_train_op_changes_every_variable(tmp_path):
    model = make_model(tmp_path)
    with started(model) as session:
        before = variables(session)
        session.run(model.ops.train_op)
        after = variables(session)
    # Biases before a batch norm have no gradient but rounding.
    still = {name for name in set(before) - changed(before, after) if '/bias' not in name}
    assert not still
    assert after['global_step'] == PARAMS['batch']


def test_tune_op_changes_moving_averages_alone(tmp_path):
    model = make_model(tmp_path)
    with started(model) as session:
        before = variables(session)
        session.run(model.ops.tune_op)
        found = changed(before, variables(session))
    assert found == {name for name in before if name.endswith(('/moving_mean', '/moving_variance'))}


def test_tune_op_equals_numpy(draws, tmp_path):
    dataset = make_dataset()
    model = make_model(tmp_path, dataset, nu=1, mixmode='.')
    x, y, label = random_batch(dataset, 4, 1)
    with started(model) as session:
        before = variables(session)
        session.run(model.ops.tune_op, feed(model, x, y, label))
        after = variables(session)
    first = reference.interleaved([x, y[:, 0]])[0].astype(np.float64)
    network = reference.Network(before, training=True)
    network.resnet(first, *(PARAMS[name] for name in ('scales', 'filters', 'repeat')))
    assert len(network.moments) == 6
    for name, value in network.moments.items():
        np.testing.assert_allclose(after[name], 0.999 * before[name] + 0.001 * value, rtol=0, atol=5e-7)


def test_classify_ops_change_nothing_and_use_raw_and_averaged_weights(tmp_path):
    dataset = make_dataset()
    model = make_model(tmp_path, dataset)
    x = random_batch(dataset, 9, 2)[0]  # As many as one likes.
    with started(model) as session:
        before = variables(session)
        raw, averaged = session.run([model.ops.classify_raw, model.ops.classify_op], {model.ops.x: x})
        assert not changed(before, variables(session))
    weights = {name.removesuffix(AVERAGE): value for name, value in before.items() if name.endswith(AVERAGE)}
    for found, values in (raw, before), (averaged, {**before, **weights}):
        logits = reference.Network(values, training=False).resnet(x.astype(np.float64), 1, 2, 1)
        np.testing.assert_allclose(found, reference.softmax(logits), rtol=1e-3, atol=1e-5)
    assert not np.allclose(raw, averaged, atol=1e-3)


@pytest.mark.parametrize('mixmode', ['.', 'xxy.yxy'])
def test_no_gradient_flows_through_the_guess(mixmode, tmp_path):
    class Noting(AblationMixMatch):
        def guess_label(self, *args, **kwargs):
            self.guess = super().guess_label(*args, **kwargs)
            return self.guess

    model = make_model(tmp_path, cls=Noting, mixmode=mixmode)
    for loss in model.ops.losses.values():
        assert tf.gradients(loss, [model.guess.p_target, model.guess.p_model]) == [None, None]


def test_guess_is_the_sharpened_mean_over_augmentations(tmp_path):
    dataset = make_dataset()
    model = make_model(tmp_path, dataset)
    y = random_batch(dataset, 6, 3)[1]
    size = dict(scales=1, filters=2, repeat=1)

    def classifier(x, **kwargs):
        return model.classifier(x, 'resnet', **size, **kwargs)

    guess = model.guess_label([tf.constant(y[:, k]) for k in range(3)], classifier, T=0.25)
    with started(model) as session:
        values = variables(session)
        p_model, p_target = session.run([guess.p_model, guess.p_target])
    networks = [reference.Network(values, training=True) for _ in range(3)]
    p = np.mean([reference.softmax(net.resnet(y[:, k], **size)) for k, net in enumerate(networks)], axis=0)
    np.testing.assert_allclose(p_model, p, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(p_target, p**4 / (p**4).sum(1, keepdims=True), rtol=2e-3, atol=1e-5)


# --- The graph ---


def test_placeholders(tmp_path):
    model = make_model(tmp_path, make_dataset(8, 6, 3), nu=3)
    found = {name: model.ops[name] for name in ('x', 'y', 'label')}
    assert {name: (v.op.name, v.dtype, v.shape.as_list()) for name, v in found.items()} == {
        'x': ('x', tf.float32, [None, 8, 6, 3]),
        'y': ('y', tf.float32, [None, 3, 8, 6, 3]),
        'label': ('labels', tf.int32, [None]),
    }


def test_what_is_fed_is_what_is_learnt_from(tmp_path):
    dataset = make_dataset()
    model = make_model(tmp_path, dataset)
    batches = [feed(model, *random_batch(dataset, 4, 2, seed)) for seed in (0, 0, 1)]
    with model.open_session() as session:
        model.step.load(1024, session)
        losses = [session.run(model.ops.losses, batch) for batch in batches]
    assert losses[0] == losses[1]
    assert all(losses[0][name] != losses[2][name] for name in ('losses/xe', 'losses/l2u'))


def test_name_scopes_bear_the_words_of_the_paper(tmp_path):
    make_model(tmp_path)
    scopes = {op.name.split('/')[0] for op in tf.get_default_graph().get_operations()}
    assert {'guess_label', 'mixup', 'interleave', 'losses', 'update', 'classify'} <= scopes


def test_variables_of_a_checkpoint_are_named_as_the_published_code_names_them(tmp_path):
    make_model(tmp_path)
    trained = {v.op.name for v in tf.trainable_variables()}
    assert all(name.startswith('classify/') for name in trained)
    expected = trained | {'global_step', 'beta1_power', 'beta2_power'}
    expected |= {name + end for name in trained for end in ('/Adam', '/Adam_1', AVERAGE)}
    found = {v.op.name for v in tf.global_variables()}
    assert {name for name in found if '/moving_' not in name} == expected
    assert tf.train.get_global_step().dtype.base_dtype == tf.int64


def test_augment_raises(tmp_path):
    with pytest.raises(NotImplementedError, match='MixMode'):
        make_model(tmp_path).augment()


@pytest.mark.parametrize(
    'name, value',
    [
        *[('nu', 0), ('batch', 2), ('lr', 0.0), ('lr', float('nan')), ('wd', -1.0), ('wd', 1e3), ('ema', 1.0)],
        *[('ema', -0.1), ('beta', 0.0), ('beta', float('inf')), ('T', 0.0), ('T', -1.0), ('w_match', -1.0)],
        *[('w_match', float('nan')), ('warmup_kimg', -1), ('mixmode', 'xy.yx'), ('arch', 'vgg')],
    ],
)
def test_an_argument_out_of_range_is_refused_before_anything_is_built(name, value, tmp_path):
    with pytest.raises(utils.Error, match=name):
        make_model(tmp_path, **{name: value})
    assert not tf.get_default_graph().get_operations()
    assert not list(tmp_path.iterdir())


# --- Repeatability ---


def run_updates(tmp_path, seed, count=3, state=None, **params):
    """Builds a model in a fresh graph and makes updates; returns the losses of each, and all variables at the end."""
    with tf.Graph().as_default():
        model = make_model(tmp_path, seed=seed, **params)
        with model.open_session() as session:
            assign(session, state or {})
            session.run(model.init_input_op)
            losses = [session.run([model.ops.losses, model.ops.train_op])[0] for _ in range(count)]
            return losses, variables(session)


@pytest.mark.parametrize('params', [{}, dict(arch='shake', mixmode='xx.yx', warmup_kimg=0)], ids=['resnet', 'shake'])
def test_one_seed_gives_bit_identical_updates(params, tmp_path):
    losses, values = run_updates(tmp_path, 1, **params)
    again, values_again = run_updates(tmp_path, 1, **params)
    assert losses == again
    assert not changed(values, values_again)


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    losses, values = run_updates(tmp_path, 1, count=4)
    first, state = run_updates(tmp_path, 1, count=2)
    second, after = run_updates(tmp_path, 1, count=2, state=state)
    assert losses == first + second
    assert not changed(values, after)


def test_other_seeds_start_and_go_elsewhere(tmp_path):
    (losses, values), (other_losses, other_values) = (run_updates(tmp_path, seed, count=1) for seed in (1, 2))
    assert losses != other_losses
    kernels = {name for name in values if name.endswith('/kernel')}
    assert kernels <= changed(values, other_values)
    # From the same weights, other images and draws.
    losses, _ = run_updates(tmp_path, 1, count=1, state=values)
    other_losses, _ = run_updates(tmp_path, 2, count=1, state=values)
    assert losses != other_losses
