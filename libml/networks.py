"""The classifiers: plain functions of images, in one table. Imports utils and layers only.

A new architecture is a function here and a row in ARCHS.
"""

import dataclasses
import functools
import inspect

import numpy as np
import tensorflow.compat.v1 as tf

from libml import layers, utils


def check_size(arch, x, fits, allowed):
    """Raises utils.Error where the height or width of x, [N, H, W, C], does not fit the architecture."""
    for name, side in (('height', int(x.shape[1])), ('width', int(x.shape[2]))):
        utils.require('image ' + name, side, fits(side), '%s for %s' % (allowed, arch))


def conv_he(x, filters, size, strides=1, use_bias=True):
    """A convolution whose kernel starts normal, with He's standard deviation for fan-out; see layers.conv2d."""
    deviation = np.sqrt(2 / (size * size * filters))
    normal = functools.partial(tf.random_normal_initializer, stddev=deviation)
    return layers.conv2d(x, filters, size, strides, use_bias=use_bias, initializer=normal)


def resnet(x, nclass, scales, filters, repeat, batch_norm, whiten, **_):
    """Wide ResNet (Zagoruyko and Komodakis 2016); WRN-28-2 with filters 32, repeat 4, scales 3.

    The arguments of every architecture, of which each takes what it needs:
        x: [N, H, W, C] in [-1, 1], float32 or bfloat16: the precision of everything up to the last layer.
        nclass: int, classes.
        scales: int, stages, between which height and width are halved.
        filters: int, width of the first stage; doubled at each of the next.
        repeat: int, residual blocks a stage.
        batch_norm: function [N, H, W, C] -> the same.
        whiten: function that normalises x by the data's mean and standard deviation. (The published cnn13 and convnet
            do without.)
        training: bool.
        noise: [N, scales * repeat, 2], in the precision of x, uniform in [0, 1): the random draws of each block. The
            caller draws them, because XLA and TensorFlow draw different numbers: only for a function that names this
            argument, for others they are zeros.

    Returns:
        float32 [N, nclass], the logits.
    """

    def activate(x):
        return tf.nn.leaky_relu(batch_norm(x), 0.1)

    def block(x, filters, strides, activate_first):
        branch = activate(x)
        shortcut = branch if activate_first else x
        branch = conv_he(branch, filters, 3, strides)
        branch = conv_he(activate(branch), filters, 3)
        if shortcut.shape[3] != filters:
            shortcut = conv_he(shortcut, filters, 1, strides)
        return shortcut + branch

    x = conv_he(whiten(x), 16, 3)  # [N, H, W, 16]
    for stage in range(scales):
        for i in range(repeat):
            strides = 2 if stage and i == 0 else 1
            x = block(x, filters << stage, strides, activate_first=stage == i == 0)  # [N, H/2^s, W/2^s, f·2^s]
    x = layers.mean_pixel(activate(x))  # [N, f·2^(scales-1)]
    return layers.dense(x, nclass, tf.glorot_normal_initializer)  # [N, nclass]


def shake(x, nclass, scales, filters, repeat, batch_norm, whiten, training, noise):
    """Shake-Shake (Gastaldi 2017). Arguments and result as for resnet."""
    halvings = 2 ** (scales - 1)
    check_size('shake', x, lambda side: side % halvings == 0, 'a multiple of 2^(scales - 1) = %d' % halvings)
    conv = functools.partial(conv_he, use_bias=False)

    def branch(x, filters, strides):
        x = batch_norm(conv(tf.nn.relu(x), filters, 3, strides))
        return batch_norm(conv(tf.nn.relu(x), filters, 3))

    def shortcut(x, filters, strides):
        if strides == 2:
            x = tf.nn.relu(x)
            even, odd = x[:, ::2, ::2], x[:, 1::2, 1::2]
            return batch_norm(tf.concat([conv(even, filters // 2, 1), conv(odd, filters // 2, 1)], axis=3))
        return x if x.shape[3] == filters else batch_norm(conv(x, filters, 1))

    x = conv(whiten(x), 16, 3)  # [N, H, W, 16]
    for stage in range(scales):
        for i in range(repeat):
            with tf.variable_scope('layer%d.%d' % (stage + 1, i)):
                width, strides = filters << stage, 2 if stage and i == 0 else 1
                a, b = branch(x, width, strides), branch(x, width, strides)
                blend = layers.shakeshake(a, b, training, noise[:, stage * repeat + i])
                x = shortcut(x, width, strides) + blend  # [N, H/2^s, W/2^s, f·2^s]
    x = layers.mean_pixel(x)  # [N, f·2^(scales-1)]
    return layers.dense(x, nclass, tf.glorot_normal_initializer)  # [N, nclass]


def cnn13(x, nclass, scales, filters, batch_norm, **_):
    """Mean Teacher's 13 layers (Tarvainen and Valpola 2017), simplified. Arguments and result as for resnet."""
    utils.require('scales', scales, scales == 3, '3 for cnn13')
    check_size('cnn13', x, lambda side: side >= 12, 'at least 12')

    def conv(x, filters, size=3, padding='same'):
        return batch_norm(tf.nn.leaky_relu(layers.conv2d(x, filters, size, padding=padding), 0.2))

    for width in (filters, 2 * filters):
        for _ in range(3):
            x = conv(x, width)
        x = tf.nn.max_pool2d(x, 2, 2, 'VALID')  # [N, H/2, W/2, f], then [N, H/4, W/4, 2f]
    x = conv(x, 4 * filters, padding='valid')  # [N, H/4-2, W/4-2, 4f]
    x = conv(x, 2 * filters, 1)
    x = conv(x, filters, 1)  # [N, H/4-2, W/4-2, f]
    return layers.dense(layers.mean_pixel(x), nclass)  # [N, nclass]


def convnet(x, nclass, scales, filters, **_):
    """Convolutions and average pooling, no batch norm. Arguments and result as for resnet."""
    check_size('convnet', x, lambda side: side >= 2**scales, 'at least 2^scales = %d' % 2**scales)

    def conv(x, filters):
        return tf.nn.leaky_relu(layers.conv2d(x, filters, 3), 0.2)

    x = conv(x, filters)  # [N, H, W, f]
    for scale in range(scales):
        x = conv(conv(x, filters << scale), filters << (scale + 1))
        x = tf.nn.avg_pool2d(x, 2, 2, 'VALID')  # [N, H/2^(s+1), W/2^(s+1), f·2^(s+1)]
    return layers.mean_pixel(layers.conv2d(x, nclass, 3))  # [N, nclass]


ARCHS = dict(cnn13=cnn13, convnet=convnet, resnet=resnet, shake=shake)
MODELS = tuple(ARCHS)
UNMAPPED = ('cnn13', 'convnet')  # TensorFlow's remapper fails at their gradients, and would say so in each run.


def takes(arch, name):
    """Returns whether the function of an architecture names an argument, see resnet, and so uses it."""
    return name in inspect.signature(ARCHS[arch]).parameters


def build(arch, x, noise, training=False, moments=None, getter=None, groups=1, **size):
    """Builds a network in scope `classify`. Arguments as for resnet, layers.batch_norm and MultiModel.classifier."""
    with tf.variable_scope('classify', reuse=tf.AUTO_REUSE, custom_getter=getter):
        batch_norm = functools.partial(layers.batch_norm, training=training, moments=moments, groups=groups)
        return ARCHS[arch](x, batch_norm=batch_norm, training=training, noise=noise, **size)


@dataclasses.dataclass(frozen=True)
class Description:
    """What a network is made of.

    Attributes:
        variables: the arguments of tf.get_variable for each variable, in the order in which the network asks for them.
        flop: int, floating-point operations of classifying one image.
        largest: int, values of the largest layer for one image.
    """

    variables: tuple
    flop: int
    largest: int


@functools.lru_cache
def describe(arch, shape, nclass, scales, filters, repeat, /):  # Positional only, so that the cache finds equal calls.
    """Returns the Description of a network for images of a shape (H, W, C), see resnet for the other arguments.

    The network is built in a graph that is thrown away.

    Raises:
        utils.Error: the images or the scales do not fit the architecture.
    """
    variables = []

    def note(getter, name, shape=None, **kwargs):
        chosen = {key: kwargs[key] for key in ('initializer', 'trainable', 'aggregation')}
        variables.append(dict(name=name.removeprefix('classify/'), shape=shape, **chosen))
        return getter(name, shape=shape, **kwargs)

    with tf.Graph().as_default() as graph:
        size = dict(nclass=nclass, scales=scales, filters=filters, repeat=repeat)
        noise = tf.zeros([1, scales * repeat, 2])
        build(arch, tf.zeros([1, *shape]), noise, True, [], getter=note, whiten=tf.identity, **size)
        options = tf.profiler.ProfileOptionBuilder(tf.profiler.ProfileOptionBuilder.float_operation())
        flop = tf.profiler.profile(graph, options=options.with_empty_output().build()).total_float_ops
        shapes = [op.outputs[0].shape for op in graph.get_operations() if op.outputs]
    sizes = [shape.num_elements() for shape in shapes if shape.rank == 4 and shape[0] == 1]  # Layers are [1, H, W, C].
    return Description(tuple(variables), flop, max(sizes))


class Network:
    """A classifier as a function of images and weights, traced once for training and once for inference.

    Weights are arguments of the traces. So the same two traces serve raw and averaged weights, the guess and the
    update: the graph stays small.

    Args:
        arch: one of MODELS.
        shape: (H, W, C) of the images.
        dtype: tf.float32 or tf.bfloat16, the type of the layers. Images, weights, logits and statistics are float32.
        whiten: function that normalises images.
        **size: nclass, scales, filters, repeat.
    """

    def __init__(self, arch, shape, dtype, whiten, **size):
        self.dtype = dtype
        self.layers = functools.partial(build, arch, whiten=whiten, **size)
        images = tf.TensorSpec([None, *shape], tf.float32)
        self.draws = takes(arch, 'noise')
        self.noise = tf.TensorSpec([None, size['scales'] * size['repeat'], 2], tf.float32)
        counts = (size[name] for name in ('nclass', 'scales', 'filters', 'repeat'))
        self.described = describe(arch, tuple(shape), *counts).variables
        self.moving = [i for i, variable in enumerate(self.described) if not variable['trainable']]
        self.variables = {}  # (variables, values) by getter. Safe to share: an update writes after all calls have read.
        weights = [tf.TensorSpec(variable['shape'], tf.float32) for variable in self.described]
        self.signature = [images, self.noise, weights]
        self.get_function = functools.cache(self.get_function)

    def get_function(self, training, groups):
        """Returns the network of given weights, traced: a function of images, noise and weights, see `trace`."""
        with tf.Graph().as_default():  # Without a strategy, which would tie the trace to a device.
            traced = functools.partial(self.trace, training, groups)
            return tf.function(traced, self.signature, autograph=False).get_concrete_function()

    def trace(self, training, groups, x, noise, weights):
        """Builds the network with given weights; returns the logits, and batch norm's statistics in training."""
        values = {'classify/' + variable['name']: w for variable, w in zip(self.described, weights, strict=True)}
        moments = []
        x, noise = tf.cast(x, self.dtype), tf.cast(noise, self.dtype)
        logits = self.layers(x, noise, training, moments, getter=lambda getter, name, **_: values[name], groups=groups)
        return logits, [value for _, value in moments]

    def get_variables(self, getter):
        """Returns the network's variables, which the first call creates, and their values, as two lists."""
        if getter not in self.variables:
            with tf.variable_scope('classify', reuse=tf.AUTO_REUSE, custom_getter=getter):
                variables = [tf.get_variable(**described) for described in self.described]
            self.variables[getter] = variables, [tf.convert_to_tensor(v) for v in variables]
        return self.variables[getter]

    def __call__(self, x, training, keys, getter=None, moments=None):
        """See MultiModel.classifier; keys: one for each group that x holds, see layers.batch_norm."""
        variables, values = self.get_variables(getter)
        shape = [tf.shape(x)[0] // len(keys), *self.noise.shape[1:]]
        drawn = [tf.random.stateless_uniform(shape, key) if self.draws else tf.zeros(shape) for key in keys]
        noise = tf.concat(drawn, axis=0)
        logits, statistics = self.get_function(training, len(keys))(x, noise, values)
        if training:
            found = list(zip([variables[i] for i in self.moving], statistics, strict=True))
            if moments is None:
                tf.get_default_graph().add_to_collections(tf.GraphKeys.UPDATE_OPS, layers.update_moments(found))
            else:
                moments += found
        return logits
