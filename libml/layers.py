"""The pieces of the method and of the networks, each a function of tensors.

Layers are named and numbered as TF1's layer functions were (`conv2d`, `conv2d_1`, ...), so that checkpoints are
interchangeable with the published code's. Every random draw is a function of a key, an integer tensor [2].
"""

import collections
import functools
import itertools
import zlib

import numpy as np
import tensorflow.compat.v1 as tf

from libml import utils
from libml.running import replicas

BN_MOMENTUM = 0.999
BN_EPSILON = 1e-3


# Networks.


def get_kernel(shape, initializer):
    """Returns the variable `kernel` of the current scope; the scope's name and the graph's seed decide its first value.

    initializer is one of TF1's initializer classes, or a partial of it; it is called with `seed`.
    """
    # Without a seed of its own, a kernel's first values would depend on how many ops the graph has so far.
    seed = zlib.crc32(tf.get_variable_scope().name.encode()) & 0x7FFFFFFF
    return tf.get_variable('kernel', shape, initializer=initializer(seed=seed))


def conv2d(x, filters, size, strides=1, padding='same', use_bias=True, initializer=tf.glorot_uniform_initializer):
    """A size×size convolution in the precision of x, [N, H, W, C] -> [N, H', W', filters].

    Args:
        x: float32 or bfloat16 [N, H, W, C].
        filters, size, strides: ints.
        padding: 'same': H' is H / strides, rounded up; 'valid': no padding.
        use_bias: adds a bias that starts at zero.
        initializer: of the kernel [size, size, C, filters], see get_kernel.
    """
    # A 1×1 kernel with strides is the same as slicing first, which avoids a memory bug of oneDNN's gradient.
    if size == 1 and strides > 1:
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


def batch_norm(x, training, moments=None, groups=1):
    """Normalises each channel of x, [N, H, W, C], by statistics in float32 (Ioffe and Szegedy 2015).

    Args:
        x: float32 or bfloat16 [N, H, W, C].
        training: True normalises by the mean and variance of x itself, False by the moving averages.
        moments: a list to which two pairs are added: (moving mean, mean of x) and (moving variance, variance of x,
            unbiased). update_moments takes the list; without a list, nothing is updated.
        groups: int, batches of N / groups that x holds one after another. In training, each is normalised by its own
            statistics; `moments` gets those of the first.
    """
    channels = [int(x.shape[3])]
    with tf.variable_scope(None, default_name='batch_normalization'):
        gamma = tf.get_variable('gamma', channels, initializer=tf.ones_initializer())
        beta = tf.get_variable('beta', channels, initializer=tf.zeros_initializer())
        average = functools.partial(tf.get_variable, trainable=False, aggregation=tf.VariableAggregation.MEAN)
        mean = average('moving_mean', channels, initializer=tf.zeros_initializer())
        variance = average('moving_variance', channels, initializer=tf.ones_initializer())
        if not training:
            return tf.nn.fused_batch_norm(x, gamma, beta, mean, variance, BN_EPSILON, is_training=False)[0]
        if groups > 1:
            x, x_mean, x_variance = normalise_groups(x, gamma, beta, groups)
        else:
            x, x_mean, x_variance = tf.nn.fused_batch_norm(x, gamma, beta, epsilon=BN_EPSILON)
        if moments is not None:
            moments += [(mean, x_mean), (variance, x_variance)]
        return x


def normalise_groups(x, gamma, beta, groups):
    """Normalises several batches, each by its own statistics: elementary operations, which XLA fuses.

    The variance is E[x²] - E[x]², so that one pass over x gives both statistics.

    Args: as for batch_norm; gamma, beta: float32 [C].

    Returns:
        Of the type and shape of x; the mean and the unbiased variance of the first group, float32 [C].
    """
    batches = tf.cast(tf.reshape(x, [groups, -1, *x.shape[1:]]), tf.float32)  # [G, N / G, H, W, C]
    mean = tf.reduce_mean(batches, [1, 2, 3], keepdims=True)  # [G, 1, 1, 1, C]
    square = tf.reduce_mean(tf.square(batches), [1, 2, 3], keepdims=True)
    variance = tf.maximum(square - tf.square(mean), 0.0)  # Rounding may make it negative.
    normalised = tf.nn.batch_normalization(batches, mean, variance, beta, gamma, BN_EPSILON)
    count = tf.cast(tf.size(batches[0, ..., 0]), tf.float32)
    result = tf.reshape(tf.cast(normalised, x.dtype), tf.shape(x))
    return result, mean[0, 0, 0, 0], variance[0, 0, 0, 0] * (count / (count - 1))


def update_moments(moments):
    """Returns the op that moves batch norm's averages: average <- 0.999 average + 0.001 value.

    If several devices share the update, each average becomes the mean over the devices.

    moments is the list that batch_norm filled: pairs of a variable [C] and float32 [C].
    """
    averages = [average for average, _ in moments]
    return replicas.subtract_means(averages, [(1 - BN_MOMENTUM) * (average - value) for average, value in moments])


def shakeshake(a, b, training, noise):
    """Blends two branches into a + μ (b - a), Shake-Shake regularisation (Gastaldi 2017).

    Args:
        a, b: [N, H, W, C], of the type of noise, float32 or bfloat16.
        training: True takes an example's μ from noise; False takes μ = 0.5.
        noise: [N, 2] in [0, 1): μ of the forward pass, and of the backward pass.
    """
    if not training:
        return 0.5 * (a + b)
    forward, backward = tf.unstack(noise[:, :, None, None, None], axis=1)
    in_forward = a + forward * (b - a)
    in_backward = a + backward * (b - a)
    return in_backward + tf.stop_gradient(in_forward - in_backward)


# Random keys.


class Keys:
    """Keys for the random draws of an update, asked for by name: `keys('mixup')`.

    A key depends on the run's seed, the update's step and the name. So a resumed run draws what it would have drawn,
    and a new draw elsewhere changes no other draw. The second call with a name returns another key, as TensorFlow names
    a second layer `conv2d_1`. Each replica of a model has keys of its own.

    Args:
        seed: int, the run's.
        step: int64 [], the update's.
    """

    def __init__(self, seed, step):
        self.root = fold_in(tf.constant([seed, 0], tf.int64), tf.cast(step, tf.int64))
        self.counts = collections.Counter()

    def __call__(self, name):
        """Returns the next key of a name, int64 [2]."""
        replica = replicas.get_number()
        number = zlib.crc32(('%s_%d' % (name, self.counts[replica, name])).encode())
        self.counts[replica, name] += 1
        root = fold_in(self.root, tf.constant(replica, tf.int64)) if replica else self.root
        return fold_in(root, tf.constant(number, tf.int64))


def fold_in(key, number):
    """Returns the key, int64 [2], that follows from a key and a number, int64 [].

    It is made on the CPU, where a draw on a GPU reads its key.
    """
    with tf.device('/cpu:0'):
        return tf.random.fold_in(key, number)


def split(key, count=2):
    """Returns `count` keys that follow from one, a list of integer [2]; made on the CPU, as by fold_in."""
    with tf.device('/cpu:0'):
        return tf.unstack(tf.random.split(key, count), num=count)


# The method.


def sharpen(p, T):
    """Returns p^(1/T) normalised over classes (equation 7 of the paper), float32 [B, nclass].

    Computed as softmax(log(p) / T): with a small T, every p^(1/T) would round to zero.
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
    """Swaps group i of batch 0 with group i of batch i, for i = 1..nu. A second `interleave` swaps them back.

    Each new batch holds labelled and unlabelled examples, so that batch norm sees both in every batch. xy, and what is
    returned, is a list of nu + 1 tensors [batch, ...].
    """
    offsets = interleave_offsets(batch, len(xy) - 1)
    groups = [[v[begin:end] for begin, end in itertools.pairwise(offsets)] for v in xy]
    for i in range(1, len(xy)):
        groups[0][i], groups[i][i] = groups[i][i], groups[0][i]
    return [tf.concat(g, axis=0) for g in groups]


def mix_weights(n, beta, key):
    """Draws m = max(λ, 1 - λ) with λ ~ Beta(beta, beta), float32 [n] in [0.5, 1].

    m is the paper's λ'. λ = g / (g + h) of two draws g, h of Gamma(beta), so m = sigmoid(|log g - log h|). For a small
    beta, g and h both round to 0. So their logarithms are drawn: Gamma(beta) is Gamma(beta + 1) · U^(1 / beta).
    """
    gamma_key, uniform_key = split(key)
    log_gamma = tf.log(tf.random.stateless_gamma([2, n], gamma_key, alpha=beta + 1.0))
    tiny = np.finfo(np.float32).tiny
    log_uniform = tf.log(tf.random.stateless_uniform([2, n], uniform_key, minval=tiny))
    log_g, log_h = tf.unstack(log_gamma + log_uniform / beta)
    return tf.sigmoid(tf.abs(log_g - log_h))


def permutation(n, key):
    """Draws a permutation of 0..n-1, int32 [n]."""
    return tf.argsort(tf.random.stateless_uniform([n], key), stable=True)


X, Y, MEAN = (1, 0), (0, 1), (0.5, 0.5)  # Weights of (beta of x, beta of y).
MIXES = {  # Mode: (pool of x's partners, beta), (pool of y's partners, beta); None leaves a side unmixed.
    'xx.yy':   (('x',  X),    ('y',  Y)),
    'xxy.yxy': (('xy', MEAN), ('xy', MEAN)),
    'xx.yxy':  (('x',  X),    ('xy', Y)),
    'xx.yx':   (('x',  X),    ('x',  Y)),
    'xx.':     (('x',  X),    None),
    '.yy':     (None,         ('y',  Y)),
    'xxy.':    (('xy', MEAN), None),
    '.yxy':    (None,         ('xy', MEAN)),
    '.':       (None,         None),
}  # fmt: skip


class MixMode:
    """Which images are mixed with which, and by which beta: one row of MIXES.

    A pool is what partners come from: x, y, or x and y. The example at position i of a pool gets the partner at
    permutation[i]. Both sides of `xxy.yxy` share one permutation.

    Args:
        mode: one of MixMode.MODES. Raises utils.Error for others.
    """

    MODES = tuple(MIXES)

    def __init__(self, mode):
        if mode not in MIXES:
            raise utils.Error('mixmode %r is unknown: take one of %s' % (mode, ' '.join(self.MODES)))
        self.mode = mode

    def __call__(self, xl, ll, betal, key=None):
        """Mixes images and their labels alike: x' = m x + (1 - m) x_partner (equations 8 to 11 of the paper).

        Args:
            xl: [x, y_1, .., y_nu], each float32 [B, H, W, C].
            ll: their labels, each float32 [B, nclass].
            betal: [beta of x, beta of y]. The published code has two; --beta gives the same twice.
            key: integer [2] that decides the draws; None draws a new one at every run of the graph.

        Returns:
            The mixed xl and ll.
        """
        if key is None:
            key = tf.random.uniform([2], maxval=tf.int64.max, dtype=tf.int64)
        images, labels = ({'x': v[:1], 'y': v[1:], 'xy': v} for v in (xl, ll))
        # A key for each pool. In xx.yx both sides use the pool x, so y gets a key of its own, 'yx'.
        keys = dict(zip(['x', 'y', 'xy', 'yx'], split(key, 4), strict=True))
        mixed_images, mixed_labels = [], []
        for side, row in zip('xy', MIXES[self.mode], strict=True):
            if row is None:
                mixed_images += images[side]
                mixed_labels += labels[side]
                continue
            pool, (share_x, share_y) = row
            beta = share_x * betal[0] + share_y * betal[1]
            m, partner = self.draw(side, pool, images, beta, keys[pool if side in pool else side + pool])
            mixed_images += mix(images[side], images[pool], m, partner)
            mixed_labels += mix(labels[side], labels[pool], m, partner)
        return mixed_images, mixed_labels

    @staticmethod
    def draw(side, pool, images, beta, key):
        """Draws for the n examples of a side: m, float32 [n], and the partners' positions in the pool, int32 [n]."""
        size = {name: sum(tf.shape(v)[0] for v in batches) for name, batches in images.items()}
        weight_key, partner_key = split(key)
        if side in pool:
            # Draws are made for the whole pool, x first. The side takes those at its own examples' positions.
            own = slice(size['x'], None) if (side, pool) == ('y', 'xy') else slice(size[side])
            return mix_weights(size[pool], beta, weight_key)[own], permutation(size[pool], partner_key)[own]
        # y of xx.yx: each of its batches takes a permutation of x.
        keys = split(partner_key, len(images[side]))
        partner = tf.concat([permutation(size[pool], k) for k in keys], axis=0)
        return mix_weights(size[side], beta, weight_key), partner


def mix(batches, pool, m, partner):
    """Mixes examples with their partners: m · example + (1 - m) · partner. Returns batches of the same sizes.

    Args:
        batches, pool: lists of float32 [B, ...]; the batches hold n examples together.
        m: float32 [n], the weights of the examples.
        partner: int32 [n], their partners' positions in the concatenated pool.
    """
    own = tf.concat(batches, axis=0)
    m = tf.reshape(m, [-1] + [1] * (own.shape.rank - 1))
    mixed = m * own + (1 - m) * tf.gather(tf.concat(pool, axis=0), partner)
    return tf.split(mixed, len(batches))


def labeled_loss(labels, logits):
    """Returns the mean over examples of the cross-entropy (equation 3 of the paper), float32 [].

    labels and logits are float32 [B, nclass]; a row of labels sums to 1.
    """
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits_v2(labels=labels, logits=logits))


def unlabeled_loss(labels, logits):
    """Returns the mean over examples and classes of (labels - softmax(logits))² (equation 4 of the paper), float32 [].

    labels, the guesses, and logits are float32 [nu * B, nclass].
    """
    return tf.reduce_mean(tf.square(labels - tf.nn.softmax(logits)))


def entropy(logits):
    """Returns the mean over examples of H(p) = -Σ p log p, p = softmax(logits), float32 [].

    logits are float32 [B, nclass]. This is the entropy term of Grandvalet and Bengio (2005).
    """
    return labeled_loss(tf.nn.softmax(logits), logits)


def divergence(logits_p, logits_q):
    """Returns the mean over examples of KL(p ‖ q) = Σ p log (p / q), of p and q = softmax(logits_q), float32 [].

    logits_p and logits_q are float32 [B, nclass].
    """
    return labeled_loss(tf.nn.softmax(logits_p), logits_q) - entropy(logits_p)


def normalise(d):
    """Returns d / ‖d‖₂ of each example of d, float32 [B, ...]; an example of zeros stays as it is."""
    axes = list(range(1, d.shape.rank))
    d = tf.math.divide_no_nan(d, tf.reduce_max(tf.abs(d), axes, keepdims=True))  # Squares of small numbers would be 0.
    return tf.math.l2_normalize(d, axes)


def guess_monitors(p):
    """Returns how sure and how varied the guesses p are: a dict from a tag of TensorBoard to float32 [] from 0 to 1.

    Confidence is the mean of the guesses' largest probabilities. Entropy is the entropy of the mean guess, divided by
    log(nclass): 0 if all guesses are one class. p is float32 [B, nclass].
    """
    mean = replicas.average(tf.reduce_mean(p, axis=0))  # [nclass]
    entropy = -tf.reduce_sum(tf.math.xlogy(mean, mean)) / np.log(int(p.shape[1]))
    confidence = tf.reduce_mean(tf.reduce_max(p, axis=1))
    return {'monitors/guess_confidence': confidence, 'monitors/guess_entropy': entropy}


def ramp(step, kimg):
    """Returns how much of the unlabelled loss counts: 0 at step 0, linearly up to 1 after kimg · 1024 images.

    step, int64 [], counts images. If kimg is 0, all counts from the start.
    """
    return tf.clip_by_value(tf.cast(step, tf.float32) / (1024 * kimg), 0, 1) if kimg else tf.constant(1.0)


def update(loss, weights, lr, wd, average, moments):
    """Returns the op of one update: Adam, weight decay, the weights' average, batch norm's averages, in this order.

    Each part is built and run after the part before.

    Args:
        loss: float32 [], of this device.
        weights: list of variables, the network's. Those named `kernel` decay: v <- v (1 - wd lr).
        lr: float, Adam's learning rate.
        wd: float, weight decay.
        average: tf.train.ExponentialMovingAverage of the weights.
        moments: list that batch_norm filled.
    """

    def adam():
        with tf.name_scope(None):  # So that its variables have the published names.
            return tf.train.AdamOptimizer(lr).minimize(replicas.share_loss(loss), var_list=weights, name='update/Adam')

    kernels = [v for v in weights if v.name.endswith('kernel:0')]  # Biases and batch norm do not decay.
    with tf.name_scope('update'):
        return utils.in_order(
            adam,
            lambda: [v.assign(v * (1 - wd * lr)) for v in kernels],
            lambda: average.apply(weights),
            lambda: update_moments(moments),
        )
