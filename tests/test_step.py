"""One update of MixMatch: against NumPy, and what it may and may not touch."""

import functools

import numpy as np
import pytest
import reference
import tensorflow.compat.v1 as tf
import tiny
from conftest import PARAMS, QUICK, assign, fitting, make_dataset, make_model, variables
from reference import AVERAGE

from ablation.ab_mixmatch import AblationMixMatch
from libml import networks, utils
from libml.running import hardware


def random_batch(dataset, batch, nu, seed=0):
    """Returns x, y, labels to feed, float32 [B, H, W, C], float32 [B, nu, H, W, C], int32 [B]."""
    random = np.random.RandomState(seed)
    shape = [dataset.height, dataset.width, dataset.colors]
    x, y = (random.uniform(-1, 1, [batch, *more, *shape]).astype(np.float32) for more in ([], [nu]))
    return x, y, random.randint(0, dataset.nclass, batch).astype(np.int32)


def feed(model, x, y, label):
    """Returns the feed_dict of a batch."""
    return {model.ops.x: x, model.ops.y: y, model.ops.label: label}


def changed(before, after):
    """Returns the names of the variables that differ."""
    assert set(before) == set(after)
    return {name for name in before if not np.array_equal(before[name], after[name])}


# --- Against NumPy ---

# Rates so large that the order of the updates shows.
LARGE = dict(tiny.SIZE, lr=0.01, wd=5.0, ema=0.9)
CASES = {
    'ramp': dict(LARGE, batch=5, nu=2, mixmode='xxy.yxy', scales=1, warmup_kimg=1, w_match=30),
    'ema_guess': dict(LARGE, batch=4, nu=1, mixmode='xx.yx', scales=2, warmup_kimg=0, use_ema_guess=True, T=0.8),
    'three_devices': dict(LARGE, batch=6, nu=1, mixmode='xxy.yxy', scales=1, w_match=30, use_ema_guess=True, devices=3),
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
    with model.trainer.opening_session() as session:
        shake_up(session)
        assign(session, dict(global_step=512))
        for seed in range(2):
            before = variables(session)
            devices = params.get('devices', 1)
            batch = random_batch(dataset, params['batch'], params['nu'], seed)
            shares = list(zip(*(np.split(v, devices) for v in batch), strict=True))  # One for each device.
            losses, m, partner, _ = session.run(
                [model.ops.losses, draws['m'], draws['partner'], model.ops.train_op],
                {
                    '%s%s:0' % ('replica_%d/' % r if r else '', name): value
                    for r, share in enumerate(shares)
                    for name, value in zip(('x', 'y', 'labels'), share, strict=True)
                },
            )
            drawn = [[v[r * len(v) // devices :][: len(v) // devices] for v in (m, partner)] for r in range(devices)]
            expected_losses, expected, gradients = reference.update(
                {name: value.astype(np.float64) for name, value in before.items()},
                [(*share, *draw) for share, draw in zip(shares, drawn, strict=True)],
                *(model.params, dataset.nclass, dataset.mean.astype(np.float64), dataset.std.astype(np.float64)),
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


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """A model that many tests share, as it takes long to build."""

    class Noting(AblationMixMatch):
        def guess_label(self, *args, **kwargs):
            self.guess = super().guess_label(*args, **kwargs)
            return self.guess

    with tf.Graph().as_default():
        return make_model(tmp_path_factory.mktemp('built'), cls=Noting)


@pytest.fixture
def model(built):
    with built.graph.as_default():
        yield built


@pytest.fixture
def session(model):
    """A session with the input streams started, variables far from their first values."""
    with model.trainer.opening_session() as session:
        shake_up(session)
        session.run(model.trainer.init_input_op)
        yield session


def test_train_op_changes_every_variable(model, session):
    before = variables(session)
    session.run(model.ops.train_op)
    after = variables(session)
    still = set(before) - changed(before, after)
    assert all('/bias' in name for name in still)  # Those before a batch norm have no gradient but rounding.
    assert after['global_step'] == PARAMS['batch']


def test_tune_op_changes_moving_averages_alone(model, session):
    before = variables(session)
    session.run(model.ops.tune_op)
    found = changed(before, variables(session))
    assert found == {name for name in before if name.endswith(('/moving_mean', '/moving_variance'))}


def test_tune_op_equals_numpy(draws, tmp_path):
    dataset = make_dataset()
    model = make_model(tmp_path, dataset, nu=1, mixmode='.')
    x, y, label = random_batch(dataset, 4, 1)
    with model.trainer.opening_session() as session:
        before = shake_up(session)
        session.run(model.ops.tune_op, feed(model, x, y, label))
        after = variables(session)
    first = reference.interleaved([x, y[:, 0]])[0].astype(np.float64)
    network = reference.Network(before, training=True)
    network.resnet(first, *(PARAMS[name] for name in ('scales', 'filters', 'repeat')))
    assert len(network.moments) == 6
    for name, value in network.moments.items():
        np.testing.assert_allclose(after[name], 0.999 * before[name] + 0.001 * value, rtol=0, atol=5e-7)


def test_classify_ops_change_nothing_and_use_raw_and_averaged_weights(model, session):
    x = random_batch(model.dataset, 9, 2)[0]  # As many as one likes.
    before = variables(session)
    raw, averaged = session.run([model.ops.classify_raw, model.ops.classify_op], {model.ops.x: x})
    assert not changed(before, variables(session))
    weights = {name.removesuffix(AVERAGE): value for name, value in before.items() if name.endswith(AVERAGE)}
    for found, values in (raw, before), (averaged, {**before, **weights}):
        logits = reference.Network(values, training=False).resnet(x.astype(np.float64), 1, 2, 1)
        np.testing.assert_allclose(found, reference.softmax(logits), rtol=1e-3, atol=1e-5)
    assert not np.allclose(raw, averaged, atol=1e-3)


def test_no_gradient_flows_through_the_guess(model):
    for loss in model.ops.losses.values():
        assert tf.gradients(loss, [model.guess.p_target, model.guess.p_model]) == [None, None]


def test_guess_is_the_sharpened_mean_over_augmentations(model, session):
    y = random_batch(model.dataset, 6, 3)[1]

    def classifier(x, **kwargs):
        return model.classifier(x, 'resnet', **tiny.SIZE, **kwargs)

    guess = model.guess_label([tf.constant(y[:, k]) for k in range(3)], classifier, T=0.25)
    p_model, p_target = session.run([guess.p_model, guess.p_target])
    networks = [reference.Network(variables(session), training=True) for _ in range(3)]
    p = np.mean([reference.softmax(net.resnet(y[:, k], **tiny.SIZE)) for k, net in enumerate(networks)], axis=0)
    np.testing.assert_allclose(p_model, p, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(p_target, p**4 / (p**4).sum(1, keepdims=True), rtol=2e-3, atol=1e-5)


# --- The graph ---


def test_placeholders(model):
    found = {name: model.ops[name] for name in ('x', 'y', 'label')}
    assert {name: (v.op.name, v.dtype, v.shape.as_list()) for name, v in found.items()} == {
        'x': ('x', tf.float32, [None, 8, 8, 1]),
        'y': ('y', tf.float32, [None, 2, 8, 8, 1]),
        'label': ('labels', tf.int32, [None]),
    }


def test_what_is_fed_is_what_is_learnt_from(model, session):
    batches = [feed(model, *random_batch(model.dataset, 4, 2, seed)) for seed in (0, 0, 1)]
    model.step.load(1024, session)
    losses = [session.run(model.ops.losses, batch) for batch in batches]
    assert losses[0] == losses[1]
    assert all(losses[0][name] != losses[2][name] for name in ('losses/xe', 'losses/l2u'))


def test_name_scopes_bear_the_words_of_the_paper(model):
    scopes = {op.name.split('/')[0] for op in model.graph.get_operations()}
    assert {'guess_label', 'mixup', 'interleave', 'losses', 'update', 'classify'} <= scopes


def test_variables_of_a_checkpoint_are_named_as_the_published_code_names_them(model):
    trained = {v.op.name for v in tf.trainable_variables()}
    assert all(name.startswith('classify/') for name in trained)
    expected = trained | {'global_step', 'beta1_power', 'beta2_power'}
    expected |= {name + end for name in trained for end in ('/Adam', '/Adam_1', AVERAGE)}
    found = {v.op.name for v in tf.global_variables()}
    assert {name for name in found if '/moving_' not in name} == expected
    assert model.step.dtype.base_dtype == tf.int64


def test_augment_raises(model):
    with pytest.raises(NotImplementedError, match='MixMode'):
        model.augment()


NOT_ALLOWED = dict(nu=0, batch=2, lr=float('nan'), wd=1e3, arch='vgg', filters=0, repeat=0)


@pytest.mark.parametrize('name, value', NOT_ALLOWED.items())
def test_an_argument_out_of_range_is_refused_before_anything_is_built(name, value, tmp_path):
    with pytest.raises(utils.Error, match=name):
        make_model(tmp_path, **{name: value})
    assert not tf.get_default_graph().get_operations()
    assert not list(tmp_path.iterdir())


# --- Evaluation ---


@pytest.mark.parametrize('batch', [None, 4, 36])
def test_accuracies_are_those_of_each_set(batch, model, session):
    expected = []
    for images in (model.dataset.sets[name] for name in ('labeled', 'valid', 'test')):
        p = session.run(model.ops.classify_op, {model.ops.x: model.dataset.to_float(images.gather(slice(None)))})
        expected.append(100 * np.mean(p.argmax(1) == images.labels))
    assert len(set(expected)) == 3
    with session.as_default():
        np.testing.assert_allclose(model.eval_stats(batch), expected)


def test_a_set_without_images_has_no_accuracy(tmp_path, capsys):
    dataset = make_dataset()
    dataset.sets['valid'] = dataset.sets['valid'].select(slice(0))
    model = make_model(tmp_path, dataset)
    with model.trainer.opening_session():
        train, valid, test = model.eval_stats()
        model.report(2048)
    assert np.isnan(valid) and 0 <= train <= 100 and 0 <= test <= 100
    assert capsys.readouterr().out == 'kimg 2      accuracy train/valid/test  %.2f  -  %.2f\n' % (train, test)


# --- Repeatability ---


def updates(model, count, state=None, feed=None):
    """Makes updates in a new session, from `state`; returns the losses of each, and all variables at the end."""
    with model.graph.as_default(), model.trainer.opening_session() as session:
        assign(session, state or {})
        session.run(model.trainer.init_input_op)
        trainer = model.trainer
        found = [session.run([trainer.values, trainer.train_op], feed)[0] for _ in range(count)]
        return [dict(zip(trainer.scalars, map(float, values), strict=True)) for values in found], variables(session)


def test_one_seed_gives_bit_identical_updates_across_a_stop(model, tmp_path):
    losses, after = updates(model, 4)
    with tf.Graph().as_default():
        again = make_model(tmp_path)
    first, state = updates(again, 2)
    second, after_again = updates(again, 2, state)
    assert losses == first + second
    assert not changed(after, after_again)


def test_random_blends_and_partners_are_the_seeds_too(tmp_path):
    model = make_model(tmp_path, arch='shake', mixmode='xx.yx', warmup_kimg=0)
    (losses, after), (losses_again, after_again) = updates(model, 2), updates(model, 2)
    assert losses == losses_again
    assert not changed(after, after_again)


def labels(model, count):
    """Returns the classes of the first labelled batches."""
    with model.trainer.opening_session() as session:
        session.run(model.trainer.init_input_op)
        return [session.run(model.ops.label).tolist() for _ in range(count)]


def test_other_seeds_start_and_go_elsewhere(model, tmp_path):
    with tf.Graph().as_default():
        other = make_model(tmp_path, seed=2)
    (losses, state), (other_losses, other_state) = updates(model, 1), updates(other, 1)
    assert losses != other_losses
    assert labels(model, 5) != labels(other, 5)
    assert {name for name in state if name.endswith('/kernel')} <= changed(state, other_state)
    # Other images come by; from the same weights, other losses; with the same images, other partners.
    assert updates(model, 1, state)[0] != updates(other, 1, state)[0]
    batch = random_batch(model.dataset, 4, 2)
    assert updates(model, 1, state, feed(model, *batch))[0] != updates(other, 1, state, feed(other, *batch))[0]


# --- Other ways to compute the same ---

UPDATES, DRAWS = 15, 5
# How far the losses of these updates may be from those of the plain graph in float32, relatively.
BOUNDS = {
    'compiled': (dict(xla=True), 1e-4),
    'bfloat16': (dict(precision='bfloat16'), 3e-2),
    'bfloat16 compiled': (dict(precision='bfloat16', xla=True), 3e-2),
}


@pytest.fixture(scope='module')
def build(tmp_path_factory):
    """A function that builds a model of a network with options, once for equal ones."""

    @functools.cache
    def build(arch, **options):
        dataset, scales = fitting(arch)
        with tf.Graph().as_default():
            return make_model(
                tmp_path_factory.mktemp('built'), dataset, arch=arch, scales=scales, warmup_kimg=0, **options
            )

    return build


def find_losses(model):
    """Returns losses of a model, float [n, 2].

    They are those of UPDATES in turn. In cnn13 small differences grow too fast for that, as a pixel is the largest of
    four or is not: there they are means over DRAWS of the first update.
    """
    if model.params['arch'] != 'cnn13':
        return np.array([[v['losses/xe'], v['losses/l2u']] for v in updates(model, UPDATES)[0]])
    trainer, found = model.trainer, []
    with model.graph.as_default(), trainer.opening_session() as session:
        session.run(trainer.init_input_op)
        for draw in range(DRAWS):
            session.run(trainer.init_op)
            values, _ = session.run([trainer.values, trainer.train_op], {model.update_key: draw})
            losses = dict(zip(trainer.scalars, values, strict=True))
            found.append([losses['losses/xe'], losses['losses/l2u']])
    return np.mean(found, axis=0, keepdims=True)


@pytest.fixture(scope='module')
def plain_losses(build):
    """A function that returns `find_losses` of a network's plain graph in float32."""
    return functools.cache(lambda arch: find_losses(build(arch)))


# Both at once add nothing to what each does but for the compilation in bfloat16: one network shows it. The compiled
# update of that network in float32 is in test_program.py.
KINDS = [('compiled', 'cnn13'), ('compiled', 'convnet'), ('compiled', 'shake'), ('bfloat16 compiled', 'resnet')]
KINDS += [('bfloat16', arch) for arch in networks.MODELS]
CURVES = [  # XLA's compilation takes long.
    pytest.param(arch, *BOUNDS[kind], id='-'.join([kind, arch]), marks=[pytest.mark.slow] * ('compiled' in kind))
    for kind, arch in KINDS
]


@pytest.mark.parametrize('arch, options, bound', CURVES)
def test_losses_stay_within_a_bound_of_the_plain_graphs(options, bound, arch, build, plain_losses):
    expected, found = plain_losses(arch), find_losses(build(arch, **options))
    np.testing.assert_allclose(found, expected, rtol=bound)
    if options.get('precision') == 'bfloat16':  # It is another precision.
        assert np.abs(found / expected - 1).max() > 1e-5


@pytest.mark.slow
def test_what_xla_compiles_on_several_gpus_gives_the_plain_graphs_losses(build, plain_losses, monkeypatch):
    expected = plain_losses('shake')
    monkeypatch.setattr(hardware.Machine, 'config', clustering)
    found = find_losses(build('shake'))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert not np.array_equal(found, expected)  # It was computed in another way.


def clustering(_):
    """Returns the ConfigProto of a machine that compiles on the CPU what would be compiled on several GPUs."""
    config = utils.get_config()
    options = config.graph_options.optimizer_options
    options.global_jit_level, options.cpu_global_jit = tf.OptimizerOptions.ON_2, True
    return config


@pytest.mark.parametrize('arch', networks.MODELS)
def test_in_bfloat16_logits_statistics_and_variables_are_float32(arch, build):
    model, moments = build(arch, precision='bfloat16'), []
    size = {name: model.params[name] for name in ('scales', 'filters', 'repeat')}
    with model.graph.as_default():
        logits = model.classifier(model.ops.x, arch, **size, training=True, moments=moments)
    assert bool(moments) == (arch != 'convnet')
    found = [logits, *[value for _, value in moments], *model.trainer.floats, *model.ops.losses.values()]
    assert {v.dtype.base_dtype for v in found} == {tf.float32}
    (network,) = model.networks.values()
    operations = network.get_function(True, 1).graph.get_operations()
    assert {op.outputs[0].dtype for op in operations if op.type == 'Conv2D'} == {tf.bfloat16}


@pytest.mark.parametrize('precision', ['float32', 'tf32', 'bfloat16'])
def test_products_are_rounded_to_tf32_only_where_asked_for(precision, tmp_path):
    is_on = tf.config.experimental.tensor_float_32_execution_enabled
    before = is_on()
    with make_model(tmp_path, precision=precision, **QUICK).trainer.opening_session():
        assert is_on() == (precision == 'tf32')
    assert is_on() == before  # It is a switch of the whole process.


def test_batches_that_wait_on_a_device_are_the_same(model, tmp_path, monkeypatch):
    losses, after = updates(model, 3)
    monkeypatch.setattr(utils, 'get_available_gpus', lambda: ['/device:CPU:1'])  # As if it were a GPU.
    # A switch of the whole process, which changes the rounding of CPUs too.
    monkeypatch.setattr(tf.compat.v2.config.experimental, 'enable_op_determinism', lambda: None)
    with tf.Graph().as_default() as graph:
        fetched = make_model(tmp_path)
        config = fetched.machine.config()
        config.device_count['CPU'] = 2
        monkeypatch.setattr(hardware.Machine, 'config', lambda _: config)
        found = {op.device for op in graph.get_operations() if op.type == 'IteratorGetNext'}
        assert found == {'/device:CPU:1'}
        assert updates(fetched, 3)[0] == losses
        assert not changed(after, updates(fetched, 3)[1])
