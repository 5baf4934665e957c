"""The networks in NumPy, float64 or complex128, written from their description. Imports nothing of libml."""

import collections

import numpy as np


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
    height, width = [(side - k) // strides + 1 for side in x.shape[1:3]]
    result = 0
    for i in range(k):
        for j in range(k):
            seen = x[:, i : i + strides * height : strides, j : j + strides * width : strides]
            result = result + seen @ kernel[i, j]
    return result


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

    `moments` is filled with what the batch says of each moving average, variance with N - 1 below the line.
    """

    def __init__(self, values, training, mean=0, std=1):
        self.values, self.training, self.mean, self.std = values, training, mean, std
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

        assert not self.training, 'its draws are not known here'
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
                x = x + sum(branches) / 2
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
