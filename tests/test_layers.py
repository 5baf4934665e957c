"""The pieces of the method against NumPy, written from the paper."""

import numpy as np
import pytest
import scipy.stats
import tensorflow.compat.v1 as tf
from conftest import evaluate
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import interleaved, mixed, rows

from libml import layers, utils

# --- Interleaving ---


@given(batch=st.integers(1, 300), nu=st.integers(1, 12))
def test_offsets_cut_the_batch_and_the_last_groups_take_the_remainder(batch, nu):
    offsets = layers.interleave_offsets(batch, nu)
    sizes = np.diff(offsets)
    assert (offsets[0], offsets[-1], len(sizes)) == (0, batch, nu + 1)
    assert [sizes[-1 - i] for i in range(nu + 1)] == [batch // (nu + 1) + (i < batch % (nu + 1)) for i in range(nu + 1)]


@settings(max_examples=12, deadline=None)
@given(batch=st.integers(1, 40), nu=st.integers(1, 6))
def test_interleave_swaps_groups_and_is_its_own_inverse(batch, nu):
    xy = list(np.arange(batch * (nu + 1) * 2).reshape(nu + 1, batch, 2))
    with tf.Graph().as_default():
        once = layers.interleave([tf.constant(v) for v in xy], batch)
        once, twice = evaluate([once, layers.interleave(once, batch)])
    np.testing.assert_array_equal(once, interleaved(xy))
    np.testing.assert_array_equal(twice, xy)


# --- Mixing ---


BATCH = 5
DRAWN = {  # Lengths of the draws of m and of the permutations, in units of B; y's are nu B.
    '.': ('', ''),
    'xx.': ('x', 'x'),
    '.yy': ('y', 'y'),
    'xx.yy': ('xy', 'xy'),
    'xx.yx': ('xy', 'x'),
}


def run_mode(mode, nu, draws, betal=(0.5, 0.5), **kwargs):
    """Returns the inputs, the outputs (images and labels each) and what was drawn: lists of m and of partners."""
    random = np.random.RandomState(0)
    images = [random.randn(BATCH, 4, 3, 2).astype(np.float32) for _ in range(nu + 1)]
    labels = [random.dirichlet(np.ones(3), BATCH).astype(np.float32) for _ in range(nu + 1)]
    constants = [[tf.constant(v) for v in vs] for vs in (images, labels)]
    result = layers.MixMode(mode)(*constants, list(betal), **kwargs)
    outputs, m, partner = evaluate([result, draws['m'], draws['partner']])
    return (images, labels), outputs, m, partner


def a_key(*values):
    return tf.constant(values or (1, 2), tf.int64)


@pytest.mark.parametrize('nu', [1, 2, 3])
@pytest.mark.parametrize('mode', layers.MixMode.MODES)
def test_mix_mode_equals_numpy(mode, nu, draws):
    inputs, outputs, m, partner = run_mode(mode, nu, draws, key=a_key())
    for p in partner:
        np.testing.assert_array_equal(np.sort(p), np.arange(len(p)))
    for before, after in zip(inputs, outputs, strict=True):
        expected = mixed(mode, before, m, partner)
        assert len(after) == nu + 1
        for a, e in zip(after, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)


def test_modes_in_their_order():
    assert ' '.join(layers.MixMode.MODES) == 'xx.yy xxy.yxy xx.yxy xx.yx xx. .yy xxy. .yxy .'


@pytest.mark.parametrize('nu', [1, 2, 3])
@pytest.mark.parametrize('mode, lengths', DRAWN.items())
def test_draws_cover_who_is_mixed_and_whom_with(mode, lengths, nu, draws):
    *_, m, partner = run_mode(mode, nu, draws, key=a_key())
    of = dict(x=BATCH, y=nu * BATCH)
    assert [len(v) for v in m] == [of[side] for side in lengths[0]]
    expected = [BATCH] * (1 + nu) if mode == 'xx.yx' else [of[side] for side in lengths[1]]
    assert [len(v) for v in partner] == expected


@pytest.mark.parametrize('nu', [1, 2])
def test_one_permutation_serves_both_sides_of_xxy_yxy(nu, draws):
    *_, m, partner = run_mode('xxy.yxy', nu, draws, key=a_key())
    for drawn in (m, partner):
        assert [len(v) for v in drawn] == [(nu + 1) * BATCH] * 2
        np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize('nu', [1, 2])
@pytest.mark.parametrize('mode', ['xx.yy', 'xx.yxy', 'xx.yx'])
def test_the_sides_of_other_modes_draw_for_themselves(mode, nu, draws, monkeypatch):
    monkeypatch.setattr('test_layers.BATCH', 500)
    *_, m, partner = run_mode(mode, nu, draws, key=a_key())
    for part in np.split(m[1], len(m[1]) // 500):
        assert scipy.stats.spearmanr(m[0], part).pvalue > 1e-3
    for i, a in enumerate(partner):
        for b in partner[i + 1 :]:
            assert len(a) != len(b) or np.mean(a == b) < 0.5


@pytest.mark.parametrize(
    'mode, betas',
    {
        '.': [],
        'xx.': [0.2],
        '.yy': [0.8],
        'xx.yy': [0.2, 0.8],
        'xxy.': [0.5],
        '.yxy': [0.5],
        'xxy.yxy': [0.5, 0.5],
        'xx.yxy': [0.2, 0.8],  # The exception: a mix over both, but not with the mean.
        'xx.yx': [0.2, 0.8],
    }.items(),
)
def test_beta_of_each_side(mode, betas, draws):
    run_mode(mode, 2, draws, betal=[0.2, 0.8])
    np.testing.assert_allclose(draws['beta'], betas)


def test_mix_without_a_key_draws_anew_at_every_run(draws):
    xl = [tf.constant(np.random.RandomState(i).randn(8, 1, 1, 1), tf.float32) for i in range(2)]
    images, _ = layers.MixMode('xxy.yxy')(xl, xl, [0.5, 0.5])
    with tf.Session() as session:
        first, second = session.run(images), session.run(images)
    assert not np.allclose(first, second)


@given(st.text(alphabet='xy.', max_size=8) | st.text(max_size=8))
def test_a_mode_is_one_of_nine_or_refused_in_one_line_that_lists_them(text):
    if text in layers.MixMode.MODES:
        assert layers.MixMode(text).mode == text
    else:
        with pytest.raises(utils.Error, match=r'xx\.yy xxy\.yxy') as error:
            layers.MixMode(text)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize('beta', [0.1, 0.5, 0.75, 1.0, 3.0])
def test_mix_weight_is_the_larger_of_lambda_and_its_rest(beta):
    m = evaluate(layers.mix_weights(20000, beta, a_key()))
    assert m.dtype == np.float32 and m.shape == (20000,)
    assert m.min() >= 0.5 and m.max() <= 1
    below = m[m < 1 - 1e-6]  # Rounding to float32 piles the others up at 1.
    top = 2 * scipy.stats.beta.cdf(1 - 1e-6, beta, beta) - 1
    assert abs(len(below) / len(m) - top) < 0.01

    def cdf(v):  # Of max(λ, 1 - λ): both tails of Beta(beta, beta).
        return (2 * scipy.stats.beta.cdf(v, beta, beta) - 1) / top

    assert scipy.stats.kstest(below, cdf).pvalue > 1e-3


@pytest.mark.parametrize('beta', [1e-3, 1e-6])
def test_tiny_beta_mixes_next_to_nothing(beta):
    m = evaluate(layers.mix_weights(20000, beta, a_key()))
    assert np.all((m >= 0.5) & (m <= 1))
    expected = 2 * scipy.stats.beta.cdf(0.99, beta, beta) - 1
    assert abs(np.mean(m < 0.99) - expected) < 3 * np.sqrt(expected / len(m)) + 1e-4


def test_permutations_are_equally_likely():
    keys = tf.stack([tf.range(6000, dtype=tf.int64), tf.ones(6000, tf.int64)], axis=1)
    drawn = evaluate(tf.map_fn(lambda key: layers.permutation(3, key), keys, dtype=tf.int32))
    kinds, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(kinds) == 6
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


# --- Guess and losses ---


@pytest.mark.parametrize('T', [0.01, 0.1, 0.5, 1.0, 2.0])
def test_sharpen(T):
    p = np.random.RandomState(0).dirichlet(np.ones(10), 32)
    q = evaluate(layers.sharpen(tf.constant(p.astype(np.float32)), T))
    powers = p ** (1 / T)
    np.testing.assert_allclose(q, powers / powers.sum(1, keepdims=True), rtol=2e-5 / T, atol=1e-7)
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-5)


def test_sharpen_takes_a_sure_guess_and_a_small_T():
    p = np.array([[1, 0, 0], [0.25, 0.5, 0.25], [1e-30, 1 - 1e-6, 1e-6]], np.float32)
    q = evaluate(layers.sharpen(tf.constant(p), 1e-3))
    np.testing.assert_allclose(q, [[1, 0, 0], [0, 1, 0], [0, 1, 0]], atol=1e-6)


def test_losses_are_means_over_examples_and_over_examples_and_classes():
    random = np.random.RandomState(0)
    labels, logits = random.dirichlet(np.ones(4), 6), 3 * random.randn(6, 4)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    given = [tf.constant(v.astype(np.float32)) for v in (labels, logits)]
    xe, l2u = evaluate([layers.labeled_loss(*given), layers.unlabeled_loss(*given)])
    np.testing.assert_allclose(xe, -(labels * np.log(p)).sum() / 6, rtol=1e-5)
    np.testing.assert_allclose(l2u, ((labels - p) ** 2).sum() / 24, rtol=1e-5)


def test_entropy_and_divergence_are_means_over_examples():
    a, b = 3 * np.random.RandomState(0).randn(2, 6, 4)
    p, q = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (a, b))
    given = [tf.constant(v.astype(np.float32)) for v in (a, b)]
    found = evaluate([layers.entropy(given[0]), layers.divergence(*given), layers.divergence(given[0], given[0])])
    expected = [scipy.stats.entropy(p, axis=1).mean(), scipy.stats.entropy(p, q, axis=1).mean(), 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('scale', [1e-30, 1, 1e30])
def test_normalize_gives_each_example_the_norm_1_and_leaves_zeros(scale):
    d = np.random.RandomState(0).randn(3, 4, 5, 2)
    d[1] = 0
    found = evaluate(layers.normalise(tf.constant((scale * d).astype(np.float32))))
    norms = np.array([np.linalg.norm(v) or 1 for v in d])
    np.testing.assert_allclose(found, d / norms[:, None, None, None], rtol=1e-5)


@pytest.mark.parametrize(
    'step, kimg, expected',
    [(0, 1, 0), (512, 1, 0.5), (1024, 1, 1), (5000, 1, 1), (1 << 16, 128, 0.5), (0, 0, 1), (7, 0, 1)],
)
def test_ramp(step, kimg, expected):
    np.testing.assert_allclose(evaluate(layers.ramp(tf.constant(step, tf.int64), kimg)), expected)


# --- Networks ---


def some_images(n=6, channels=3, scale=2.0):
    return (scale * np.random.RandomState(0).randn(n, 4, 5, channels) + 1).astype(np.float32)


def batch_norm_variables(channels=3):
    """Assigns random values to the variables of a batch norm and returns them by name."""
    random = np.random.RandomState(1)
    values = {v.op.name.split('/')[-1]: random.uniform(0.5, 2, channels) for v in tf.global_variables()}
    assert set(values) == {'gamma', 'beta', 'moving_mean', 'moving_variance'}
    return values, [v.assign(values[v.op.name.split('/')[-1]]) for v in tf.global_variables()]


@pytest.mark.parametrize('training', [True, False])
def test_batch_norm(training):
    x = some_images()
    y = layers.batch_norm(tf.constant(x), training)
    values, assign = batch_norm_variables()
    with tf.Session() as session:
        session.run(assign)
        y = session.run(y)
    mean, variance = values['moving_mean'], values['moving_variance']
    if training:
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    expected = values['gamma'] * (x - mean) / np.sqrt(variance + 1e-3) + values['beta']
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_moments_are_handed_over_when_asked_for():
    x = some_images()
    moments = []
    layers.batch_norm(tf.constant(x), training=True)
    assert not tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    layers.batch_norm(tf.constant(x), training=False, moments=moments)
    assert moments == []
    layers.batch_norm(tf.constant(x), training=True, moments=moments)
    assert [average.op.name for average, _ in moments] == [
        'batch_normalization_2/moving_mean',
        'batch_normalization_2/moving_variance',
    ]
    mean, variance = evaluate([value for _, value in moments])
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(variance, x.var((0, 1, 2), ddof=1), rtol=1e-5)


def test_update_moments_moves_averages_by_a_thousandth():
    x = some_images()
    moments = []
    layers.batch_norm(tf.constant(x), training=True, moments=moments)
    values, assign = batch_norm_variables()
    update = layers.update_moments(moments)
    with tf.Session() as session:
        session.run(assign)
        session.run(update)
        after = session.run({v.op.name.split('/')[-1]: v for v in tf.global_variables()})
    expected = dict(
        values,
        moving_mean=0.999 * values['moving_mean'] + 0.001 * x.mean((0, 1, 2)),
        moving_variance=0.999 * values['moving_variance'] + 0.001 * x.var((0, 1, 2), ddof=1),
    )
    for name, value in expected.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-6, err_msg=name)


def test_batch_norm_variables_that_are_trained():
    layers.batch_norm(tf.constant(some_images()), training=True)
    assert [v.op.name.split('/')[-1] for v in tf.trainable_variables()] == ['gamma', 'beta']


def test_kernels_start_from_their_name_and_the_seed():
    def kernels(seed, *names):
        with tf.Graph().as_default():
            tf.set_random_seed(seed)
            for name in names:
                with tf.variable_scope(name):
                    layers.get_kernel([3, 3], tf.glorot_uniform_initializer)
            return evaluate({v.op.name: v for v in tf.global_variables()})

    both, one, other = kernels(1, 'a', 'b'), kernels(1, 'b'), kernels(2, 'b')
    np.testing.assert_array_equal(both['b/kernel'], one['b/kernel'])
    assert not np.array_equal(both['a/kernel'], both['b/kernel'])
    assert not np.array_equal(one['b/kernel'], other['b/kernel'])


def test_shakeshake_blends_with_other_weights_backward():
    random = np.random.RandomState(0)
    a, b = (random.randn(20, 2, 2, 3).astype(np.float32) for _ in range(2))
    noise = random.uniform(size=[20, 2]).astype(np.float32)
    at, bt = tf.constant(a), tf.constant(b)
    y = layers.shakeshake(at, bt, True, tf.constant(noise))
    y, da, db = evaluate([y, *tf.gradients(y, [at, bt])])  # Of the sum of y.
    np.testing.assert_allclose(y, rows(noise[:, 0], b, a), atol=1e-5)
    ones = np.ones_like(a)
    np.testing.assert_allclose(db, rows(noise[:, 1], ones, 0 * ones), rtol=1e-5)
    np.testing.assert_allclose(da, rows(noise[:, 1], 0 * ones, ones), rtol=1e-5)


def test_shakeshake_takes_the_middle_outside_training():
    a, b = some_images(), some_images()[::-1]
    y = evaluate(layers.shakeshake(tf.constant(a), tf.constant(b), False, tf.ones([len(a), 2])))
    np.testing.assert_allclose(y, (a + b) / 2, rtol=1e-6)


# --- Keys ---


def test_a_key_is_a_function_of_seed_step_and_name():
    def keys(seed, step, names='abca'):
        source = layers.Keys(seed, tf.constant(step, tf.int64))
        return [tuple(key) for key in evaluate([source(name) for name in names])]

    assert keys(3, 640) == keys(3, 640)
    assert keys(3, 640, 'ca') == [keys(3, 640)[2], keys(3, 640)[0]]  # Other draws change nothing.
    assert keys(3, 640, 'aa') == [keys(3, 640)[0], keys(3, 640)[3]]
    found = [key for seed in (0, 1, 2) for step in (0, 64, 128) for key in keys(seed, step)]
    assert len(set(found)) == len(found) == 36


# --- Convolutions ---


@pytest.mark.parametrize('side', [6, 7])
def test_a_strided_1x1_convolution_is_that_of_every_other_pixel(side):
    x = np.random.RandomState(0).uniform(-1, 1, [2, side, side, 3]).astype(np.float32)
    found = layers.conv2d(tf.constant(x), 4, 1, strides=2)
    (kernel,) = [v for v in tf.trainable_variables() if v.op.name == 'conv2d/kernel']
    ops = [op for op in tf.get_default_graph().get_operations() if op.type == 'Conv2D']
    assert [op.get_attr('strides') for op in ops] == [[1, 1, 1, 1]]  # oneDNN's gradient of others corrupts memory.
    found, expected = evaluate([found, tf.nn.conv2d(x, kernel, 2, 'SAME')])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
