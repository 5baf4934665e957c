"""The pieces of the method and of the networks, each a function of tensors. May import utils only.

Layers are named and numbered as TF1's layer functions were (`conv2d`, `conv2d_1`, ...), so that checkpoints are
interchangeable with the published code's. Every random draw is a function of a key, an integer tensor [2].
"""

import itertools
import zlib

from libml import utils

import numpy as np
import tensorflow.compat.v1 as tf

BN_MOMENTUM = 0.999
BN_EPSILON = 1e-3


# Networks.


def get_kernel(shape, initializer):
    """Returns the variable `kernel` of the current scope; it starts from its name and the graph's seed alone.

    Args:
        shape: list of ints.
        initializer: one of TF1's initializer classes, or a partial of it; called with `seed`.
    """
    # A seed of its own: numbered by the graph's size instead, it would change with every op added anywhere.
    seed = zlib.crc32(tf.get_variable_scope().name.encode()) & 0x7FFFFFFF
    return tf.get_variable('kernel', shape, initializer=initializer(seed=seed))


def conv2d(x, filters, size, strides=1, padding='same', use_bias=True, initializer=tf.glorot_uniform_initializer):
    """A size×size convolution in the precision of x, [N, H, W, C] -> [N, H / strides, W / strides, filters].

    Args:
        x: float32 or bfloat16 [N, H, W, C].
        filters, size, strides: ints.
        padding: 'same' or 'valid'.
        use_bias: adds a bias that starts at zero.
        initializer: of the kernel [size, size, C, filters], see get_kernel.
    """
    if size == 1 and strides > 1:  # The same; oneDNN's gradient of it writes beyond its memory where channels are few.
        x, strides = x[:, ::strides, ::strides], 1
    with tf.variable_scope(None, default_name='conv2d'):
        kernel = get_kernel([size, size, int(x.shape[3]), filters], initializer)
        x = tf.nn.conv2d(x, tf.cast(kernel, x.dtype), strides, padding.upper())
        return tf.nn.bias_add(x, tf.cast(get_bias(filters), x.dtype)) if use_bias else x


def mean_pixel(x):
    """Returns the mean over height and width, float32 [N, C], of x [N, H, W, C]."""
    return tf.reduce_mean(tf.cast(x, tf.float32), [1, 2])


def dense(x, units, initializer=tf.glorot_uniform_initializer):
    """A matrix product and a bias, float32 [N, C] -> [N, units]."""
    with tf.variable_scope(None, default_name='dense'):
        return tf.matmul(x, get_kernel([int(x.shape[1]), units], initializer)) + get_bias(units)


def get_bias(units):
    """Returns the variable `bias` [units] of the current scope, zero at the start."""
    return tf.get_variable('bias', [units], initializer=tf.zeros_initializer())


def batch_norm(x, training, moments=None):
    """Normalises each channel of x, [N, H, W, C], by statistics in float32 (Ioffe and Szegedy 2015).

    Args:
        x: float32 or bfloat16 [N, H, W, C].
        training: True takes the mean and variance of x itself, False the moving averages.
        moments: a list to which `(moving average, value in x)` is added twice, for the mean and for the variance
            (with N·H·W - 1 below the line, as TF1's layer did); what is not asked for is not updated.
    """
    channels = [int(x.shape[3])]
    with tf.variable_scope(None, default_name='batch_normalization'):
        gamma = tf.get_variable('gamma', channels, initializer=tf.ones_initializer())
        beta = tf.get_variable('beta', channels, initializer=tf.zeros_initializer())
        mean = tf.get_variable('moving_mean', channels, initializer=tf.zeros_initializer(), trainable=False)
        variance = tf.get_variable('moving_variance', channels, initializer=tf.ones_initializer(), trainable=False)
        if not training:
            return tf.nn.fused_batch_norm(x, gamma, beta, mean, variance, BN_EPSILON, is_training=False)[0]
        x, x_mean, x_variance = tf.nn.fused_batch_norm(x, gamma, beta, epsilon=BN_EPSILON)
        if moments is not None:
            moments += [(mean, x_mean), (variance, x_variance)]
        return x


def update_moments(moments):
    """Returns the op that moves batch norm's averages: average <- 0.999 average + 0.001 value.

    Args:
        moments: the list that batch_norm filled, (variable [C], float32 [C]) pairs.
    """
    return tf.group(*[average.assign_sub((1 - BN_MOMENTUM) * (average - value)) for average, value in moments])


def shakeshake(a, b, training, noise):
    """Blends two branches into a + μ (b - a), Shake-Shake regularisation (Gastaldi 2017).

    Args:
        a, b: [N, H, W, C], float32 or bfloat16 as the noise is.
        training: True takes an example's μ from noise, False 0.5.
        noise: [N, 2] in [0, 1): μ of the forward pass, and of the backward pass.
    """
    if not training:
        return 0.5 * (a + b)
    forward, backward = tf.unstack(noise[:, :, None, None, None], axis=1)
    seen = a + forward * (b - a)
    felt = a + backward * (b - a)
    return felt + tf.stop_gradient(seen - felt)


# Random keys.


class Keys:
    """A source of keys for random draws: call it for the next one.

    The n-th key is a function of the seed, the step and n: a resumed run draws what it would have drawn anyway.

    Args:
        seed: int, the run's.
        step: int64 [], the update's.
    """

    def __init__(self, seed, step):
        self.root = tf.random.fold_in(tf.constant([seed, 0], tf.int64), tf.cast(step, tf.int64))
        self.count = 0

    def __call__(self):
        self.count += 1
        return tf.random.fold_in(self.root, tf.constant(self.count, tf.int64))


# The method.


class MovingAverage:
    """Exponential moving averages of variables, kept in `<variable>/ExponentialMovingAverage`; they start like them.

    Args:
        decay: float in [0, 1).
        variables: list of variables.
    """

    def __init__(self, decay, variables):
        self.decay = decay
        self.averages = {v.ref(): self.make(v) for v in variables}

    @staticmethod
    def make(variable):
        name = variable.op.name + '/ExponentialMovingAverage'
        return tf.get_variable(name, initializer=tf.identity(variable.initial_value), trainable=False)

    def average(self, variable):
        """Returns the average of a variable; None where it has none."""
        return self.averages.get(variable.ref())

    def update(self):
        """Returns the ops of average <- decay average + (1 - decay) variable."""
        return [a.assign_sub((1 - self.decay) * (a - v.deref())) for v, a in self.averages.items()]


def sharpen(p, T):
    """Returns p^(1/T) normalised over classes (equation 7 of the paper), float32 [B, nclass].

    In logarithms, as a small T would take every p^(1/T) to zero.
    """
    return tf.nn.softmax(tf.log(p) / T)


def interleave_offsets(batch, nu):
    """Returns the nu + 2 borders of the nu + 1 groups into which a batch is cut, the last groups taking the remainder.

    interleave_offsets(64, 2) is [0, 21, 42, 64].
    """
    size, longer = divmod(batch, nu + 1)
    sizes = [size] * (nu + 1 - longer) + [size + 1] * longer
    return [0, *np.cumsum(sizes).tolist()]


def interleave(xy, batch):
    """Swaps group i of batch 0 with group i of batch i, for i = 1..nu; applied twice, it changes nothing.

    Each result holds labelled and unlabelled examples, so that batch norm sees both in every batch.

    Args:
        xy: a list of nu + 1 tensors [batch, ...].
        batch: int.

    Returns:
        A list like xy.
    """
    offsets = interleave_offsets(batch, len(xy) - 1)
    groups = [[v[begin:end] for begin, end in itertools.pairwise(offsets)] for v in xy]
    for i in range(1, len(xy)):
        groups[0][i], groups[i][i] = groups[i][i], groups[0][i]
    return [tf.concat(g, axis=0) for g in groups]


def mix_weights(n, beta, key):
    """Draws m = max(λ, 1 - λ) with λ ~ Beta(beta, beta), float32 [n] in [0.5, 1].

    λ = g / (g + h) of two Gamma(beta) draws. Drawn as Gamma(beta + 1) · U^(1 / beta) and kept in logarithms, they do
    not run to 0 / 0 where beta is small; then m = sigmoid(|log g - log h|).
    """
    gamma_key, uniform_key = tf.unstack(tf.random.split(key))
    log_gamma = tf.log(tf.random.stateless_gamma([2, n], gamma_key, alpha=beta + 1.0))
    tiny = np.finfo(np.float32).tiny
    log_uniform = tf.log(tf.random.stateless_uniform([2, n], uniform_key, minval=tiny))
    log_g, log_h = tf.unstack(log_gamma + log_uniform / beta)
    return tf.sigmoid(tf.abs(log_g - log_h))


def permutation(n, key):
    """Draws a permutation of 0..n-1, int32 [n]."""
    return tf.argsort(tf.random.stateless_uniform([n], key), stable=True)


class MixMode:
    """Who is mixed with whom, read off the mode's name: `<side of x>.<side of y>`.

    A side's first letter is who it is, the others are the pool its partners come from; an empty side is left alone.
    `xx.yxy` mixes x with x, and y with x and y. Partners come from a permutation of the pool, the part of it where the
    side's own examples stand in the pool; a side that is not in its pool (`yx`) takes a permutation for each batch.

    Args:
        mode: one of MixMode.MODES. Raises utils.Error for others.
    """

    MODES = ('xx.yy', 'xxy.yxy', 'xx.yxy', 'xx.yx', 'xx.', '.yy', 'xxy.', '.yxy', '.')

    def __init__(self, mode):
        if mode not in self.MODES:
            raise utils.Error('mixmode %r is unknown: take one of %s' % (mode, ' '.join(self.MODES)))
        self.mode = mode

    def __call__(self, xl, ll, betal, key=None):
        """Mixes images and their labels alike: x' = m x + (1 - m) x_partner (equations 8 to 11 of the paper).

        Args:
            xl: [x, y_1, .., y_nu], each float32 [B, H, W, C].
            ll: their labels, each float32 [B, nclass].
            betal: [beta of x, beta of y].
            key: integer [2] that decides the draws; None draws a new one at every run of the graph.

        Returns:
            The mixed xl and ll.
        """
        if key is None:
            key = tf.random.uniform([2], maxval=tf.int64.max, dtype=tf.int64)
        rules = dict(zip('xy', self.mode.split('.'), strict=True))
        images, labels = ({'x': v[:1], 'y': v[1:], 'xy': v} for v in (xl, ll))
        # A key for each pool that one permutation mixes, and one for y's permutations of x.
        keys = dict(zip([*images, 'yx'], tf.unstack(tf.random.split(key, 4), num=4), strict=True))
        mixed_images, mixed_labels = [], []
        for who, rule in rules.items():
            if not rule:
                mixed_images += images[who]
                mixed_labels += labels[who]
                continue
            pool = rule[1:]
            m, partner = self.draw(who, pool, images, self.beta(rules, who, betal), keys[pool if who in pool else rule])
            mixed_images += mix(images[who], images[pool], m, partner)
            mixed_labels += mix(labels[who], labels[pool], m, partner)
        return mixed_images, mixed_labels

    @staticmethod
    def draw(who, pool, images, beta, key):
        """Draws for the n examples of a side: m, float32 [n], and the partners' positions in the pool, int32 [n]."""
        sizes = {name: sum(tf.shape(v)[0] for v in batches) for name, batches in images.items()}
        n = sizes[who]
        weight_key, partner_key = tf.unstack(tf.random.split(key))
        if who not in pool:
            keys = tf.unstack(tf.random.split(partner_key, len(images[who])), num=len(images[who]))
            partner = tf.concat([permutation(sizes[pool], k) for k in keys], axis=0)
            return mix_weights(n, beta, weight_key), partner
        begin = 0 if pool.startswith(who) else sizes['x']
        m, partner = mix_weights(sizes[pool], beta, weight_key), permutation(sizes[pool], partner_key)
        return m[begin : begin + n], partner[begin : begin + n]

    @staticmethod
    def beta(rules, who, betal):
        """Returns a side's beta: the mean of both where one mix over x and y is all there is, else the side's own."""
        x, y = betal
        shared = set(filter(None, rules.values())) <= {'xxy', 'yxy'}
        return 0.5 * (x + y) if shared else {'x': x, 'y': y}[who]


def mix(batches, pool, m, partner):
    """Returns m · batches + (1 - m) · pool[partner], in batches again.

    Args:
        batches: list of float32 [B, ...], n examples together.
        pool: list of float32 [B, ...].
        m: float32 [n].
        partner: int32 [n], positions in the concatenated pool.
    """
    own = tf.concat(batches, axis=0)
    m = tf.reshape(m, [-1] + [1] * (own.shape.rank - 1))
    mixed = m * own + (1 - m) * tf.gather(tf.concat(pool, axis=0), partner)
    return tf.split(mixed, len(batches))


def labeled_loss(labels, logits):
    """Returns the mean over examples of the cross-entropy (equation 3 of the paper), float32 [].

    Args:
        labels: float32 [B, nclass], rows that sum to 1.
        logits: float32 [B, nclass].
    """
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits_v2(labels=labels, logits=logits))


def unlabeled_loss(labels, logits):
    """Returns the mean over examples and classes of (labels - softmax(logits))² (equation 4 of the paper), float32 [].

    Args:
        labels: float32 [nu * B, nclass], guesses.
        logits: float32 [nu * B, nclass].
    """
    return tf.reduce_mean(tf.square(labels - tf.nn.softmax(logits)))


def ramp(step, kimg):
    """Returns how much of the unlabelled loss counts: 0 at step 0, linearly up to 1 after kimg · 1024 images.

    Args:
        step: int64 [], images seen.
        kimg: number; 0 gives 1 from the start.
    """
    return tf.clip_by_value(tf.cast(step, tf.float32) / (1024 * kimg), 0, 1) if kimg else tf.constant(1.0)
