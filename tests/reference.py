"""The method and the networks in NumPy, float64, written from their description. Imports nothing of libml."""

import collections

import numpy as np

# --- The method ---


def interleaved(xy):
    """Swaps the groups by index, one example after the other."""
    result = [v.copy() for v in xy]
    nu, batch = len(xy) - 1, len(xy[0])
    sizes = np.full(nu + 1, batch // (nu + 1))
    sizes[nu + 1 - batch % (nu + 1) :] += 1
    group = np.repeat(np.arange(nu + 1), sizes)
    for position in range(batch):
        i = group[position]
        if i:
            result[0][position], result[i][position] = xy[i][position], xy[0][position]
    return result


def rows(weights, a, b):
    """Returns w a + (1 - w) b, a weight for each example."""
    weights = weights.reshape([-1] + [1] * (a.ndim - 1))
    return weights * a + (1 - weights) * b


def mixed(mode, v, m, partner):
    """Mixes [x, y_1, ..], float [B, ...] each: the table of mix modes written out, mode by mode.

    Args:
        mode: its name.
        v: list of nu + 1 arrays.
        m, partner: lists of what was drawn, the labelled side first; for 'x and y' they cover the concatenation.
    """
    x, y, xy = v[0], np.concatenate(v[1:]), np.concatenate(v)

    def split(a):
        return list(a.reshape(-1, *x.shape))

    if mode == '.':
        return v
    if mode == 'xx.':
        return [rows(m[0], x, x[partner[0]]), *v[1:]]
    if mode == '.yy':
        return [x, *split(rows(m[0], y, y[partner[0]]))]
    if mode == 'xx.yy':
        return [rows(m[0], x, x[partner[0]]), *split(rows(m[1], y, y[partner[1]]))]
    if mode == 'xxy.':
        return split(rows(m[0], xy, xy[partner[0]]))[:1] + v[1:]
    if mode == '.yxy':
        return [x, *split(rows(m[0], xy, xy[partner[0]]))[1:]]
    if mode == 'xxy.yxy':
        return split(rows(m[0], xy, xy[partner[0]]))
    if mode == 'xx.yxy':
        return [rows(m[0], x, x[partner[0]]), *split(rows(m[1], xy, xy[partner[1]]))[1:]]
    if mode == 'xx.yx':
        return [rows(m[0], x, x[partner[0]]), *split(rows(m[1], y, np.concatenate([x[p] for p in partner[1:]])))]
    raise AssertionError(mode)


# --- The networks ---


def leaky(x, slope):
    """Leaky ReLU; of complex numbers, by the sign of the real part."""
    return np.where(x.real > 0, x, slope * x)


def softmax(x):
    e = np.exp(x - x.real.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def convolve(x, kernel, strides=1, padding='same'):
    """Cross-correlation [N, H, W, C] * [k, k, C, F]; 'same' pads as TensorFlow does, the odd pixel at the end."""
    k = len(kernel)
    if padding == 'same':
        total = [max((-(-side // strides) - 1) * strides + k - side, 0) for side in x.shape[1:3]]
        x = np.pad(x, [(0, 0), *[(t // 2, t - t // 2) for t in total], (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (1, 2))[:, ::strides, ::strides]  # [N, H, W, C, k, k]
    return np.tensordot(windows, kernel, ([4, 5, 3], [0, 1, 2]))


def pool(x, reduce):
    """Reduces each 2x2 window; an odd last row or column is dropped."""
    n, height, width, c = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2].reshape(n, height // 2, 2, width // 2, 2, c)
    return reduce(x, (2, 4))


class Network:
    """Takes the layers of a network out of a dict of arrays, by TF1's names, in the order of their creation.

    Args:
        values: dict from variable names to arrays.
        training: whether batch norm goes by the batch's own statistics.
        mean, std: whitening of the input.
        noise: [N, scales * repeat, 2], of shake in training: the forward weights come first.

    `moments` collects the batch statistics for the moving averages: means, and unbiased variances.
    """

    def __init__(self, values, training, mean=0, std=1, noise=None):
        self.values, self.training, self.mean, self.std, self.noise = values, training, mean, std, noise
        self.scope, self.counts, self.moments = 'classify/', collections.Counter(), {}

    def layer(self, kind):
        """Returns the name of the next layer of a kind."""
        name = self.scope + kind
        self.counts[name] += 1
        return name if self.counts[name] == 1 else '%s_%d' % (name, self.counts[name] - 1)

    def conv(self, x, strides=1, padding='same'):
        name = self.layer('conv2d')
        return convolve(x, self.values[name + '/kernel'], strides, padding) + self.values.get(name + '/bias', 0)

    def dense(self, x):
        name = self.layer('dense')
        return x @ self.values[name + '/kernel'] + self.values[name + '/bias']

    def norm(self, x):
        name = self.layer('batch_normalization')
        gamma, beta, mean, variance = (
            self.values[name + end] for end in ('/gamma', '/beta', '/moving_mean', '/moving_variance')
        )
        if self.training:
            mean = x.mean((0, 1, 2))
            variance = ((x - mean) ** 2).mean((0, 1, 2))
            count = x[..., 0].size
            self.moments[name + '/moving_mean'] = mean
            self.moments[name + '/moving_variance'] = variance * count / (count - 1)
        return gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta

    def resnet(self, x, scales, filters, repeat):
        x = self.conv((x - self.mean) / self.std)
        for stage in range(scales):
            for i in range(repeat):
                strides = 2 if i == 0 and stage > 0 else 1
                z = leaky(self.norm(x), 0.1)
                if i == 0 and stage == 0:
                    x = z
                z = self.conv(z, strides)
                z = self.conv(leaky(self.norm(z), 0.1))
                x = z + (x if x.shape[3] == filters * 2**stage else self.conv(x, strides))
        return self.dense(leaky(self.norm(x), 0.1).mean((1, 2)))

    def shake(self, x, scales, filters, repeat):
        def relu(v):
            return leaky(v, 0)

        x = self.conv((x - self.mean) / self.std)
        for stage in range(scales):
            for i in range(repeat):
                self.scope = 'classify/layer%d.%d/' % (stage + 1, i)
                halve = i == 0 and stage > 0
                branches = []
                for _ in range(2):
                    z = self.norm(self.conv(relu(x), 2 if halve else 1))
                    branches.append(self.norm(self.conv(relu(z))))
                if halve:
                    halves = [self.conv(relu(x[:, start::2, start::2])) for start in (0, 1)]
                    x = self.norm(np.concatenate(halves, 3))
                elif x.shape[3] != filters * 2**stage:
                    x = self.norm(self.conv(x))
                mu = self.noise[:, stage * repeat + i, 0] if self.training else np.full(len(x), 0.5)
                x = x + rows(mu, branches[1], branches[0])
        self.scope = 'classify/'
        return self.dense(x.mean((1, 2)))

    def cnn13(self, x, scales, filters, repeat):
        for _ in range(2):
            for _ in range(3):
                x = self.norm(leaky(self.conv(x), 0.2))
            x = pool(x, np.max)
        for padding in ('valid', 'same', 'same'):
            x = self.norm(leaky(self.conv(x, padding=padding), 0.2))
        return self.dense(x.mean((1, 2)))

    def convnet(self, x, scales, filters, repeat):
        x = leaky(self.conv(x), 0.2)
        for _ in range(scales):
            for _ in range(2):
                x = leaky(self.conv(x), 0.2)
            x = pool(x, np.mean)
        return self.conv(x).mean((1, 2))


# --- One update ---


def guess(values, ys, scales, filters, repeat, T, mean, std):
    """Returns the sharpened mean prediction over the augmentations, [B, nclass]."""
    networks = [Network(values, True, mean, std) for _ in ys]
    p = sum(softmax(net.resnet(y, scales, filters, repeat)) for net, y in zip(networks, ys, strict=True)) / len(ys)
    return p ** (1 / T) / (p ** (1 / T)).sum(1, keepdims=True)


def losses(values, batches, labels, scales, filters, repeat, mean, std):
    """Returns L_x, L_u of mixed and interleaved batches, and what the first batch says of the moving averages."""
    networks = [Network(values, True, mean, std) for _ in batches]
    logits = [net.resnet(b, scales, filters, repeat) for net, b in zip(networks, batches, strict=True)]
    p = [softmax(v) for v in interleaved(logits)]
    loss_xe = -(labels[0] * np.log(p[0])).sum() / len(labels[0])
    loss_l2u = np.mean([(l - q) ** 2 for l, q in zip(labels[1:], p[1:], strict=True)])
    return loss_xe, loss_l2u, networks[0].moments


def complex_step_gradient(f, values, names):
    """Returns the derivative of the real function f(values) by each entry of the named arrays, exact to rounding."""
    gradients = {}
    for name in names:
        gradients[name] = np.zeros_like(values[name])
        for index in np.ndindex(values[name].shape):
            moved = values[name].astype(complex)
            moved[index] += 1e-30j
            gradients[name][index] = f({**values, name: moved}).imag / 1e-30
    return gradients


AVERAGE = '/ExponentialMovingAverage'


def tower(values, averaged, x, y, label, m, partner, params, nclass, mean, std):
    """Returns the losses, the moving averages' news and the gradients of a device; arguments as of `update`."""
    size = [params[name] for name in ('scales', 'filters', 'repeat')]
    ys = list(np.moveaxis(y, 1, 0))
    q = guess({**values, **averaged} if params['use_ema_guess'] else values, ys, *size, params['T'], mean, std)
    labels = mixed(params['mixmode'], [np.eye(nclass)[label]] + [q] * len(ys), m, partner)
    batches = interleaved(mixed(params['mixmode'], [x, *ys], m, partner))
    step, warmup = values['global_step'], 1024 * params['warmup_kimg']
    weight = params['w_match'] * (min(step / warmup, 1) if warmup else 1)

    def loss(values):
        loss_xe, loss_l2u, _ = losses(values, batches, labels, *size, mean, std)
        return loss_xe + weight * loss_l2u

    *found, moments = losses(values, batches, labels, *size, mean, std)
    return np.array(found), moments, complex_step_gradient(loss, values, averaged)


def mean_of_dicts(dicts):
    return {name: np.mean([d[name] for d in dicts], axis=0) for name in dicts[0]}


def update(values, parts, params, nclass, mean, std, tower=tower):
    """Makes one update.

    Args:
        values: all variables by name, float64 arrays.
        parts: for each device, x [B, H, W, C], y [B, nu, H, W, C], label [B], and m, partner, which MixMode drew, see
            `mixed`.
        params: dict of the model's arguments.
        tower: a method's losses and gradients, a function as `tower` above.

    Returns:
        losses: (L_x, L_u), or those of another method.
        after: the variables after the update.
        gradients: by name.
    """
    trained = [name.removesuffix(AVERAGE) for name in values if name.endswith(AVERAGE)]
    averaged = {name: values[name + AVERAGE] for name in trained}
    towers = [tower(values, averaged, *part, params, nclass, mean, std) for part in parts]
    losses, moments, gradients = zip(*towers, strict=True)
    losses, moments, gradients = np.mean(losses, axis=0), mean_of_dicts(moments), mean_of_dicts(gradients)

    after = dict(values)
    rate = params['lr'] * np.sqrt(1 - values['beta2_power']) / (1 - values['beta1_power'])
    for name in trained:
        first = after[name + '/Adam'] = 0.9 * values[name + '/Adam'] + 0.1 * gradients[name]
        second = after[name + '/Adam_1'] = 0.999 * values[name + '/Adam_1'] + 0.001 * gradients[name] ** 2
        after[name] = values[name] - rate * first / (np.sqrt(second) + 1e-8)
        if name.endswith('/kernel'):
            after[name] *= 1 - params['wd'] * params['lr']
        after[name + AVERAGE] = params['ema'] * averaged[name] + (1 - params['ema']) * after[name]
    for name, value in moments.items():
        after[name] = 0.999 * values[name] + 0.001 * value
    after['beta1_power'], after['beta2_power'] = 0.9 * values['beta1_power'], 0.999 * values['beta2_power']
    after['global_step'] = values['global_step'] + params['batch']
    return losses, after, gradients
