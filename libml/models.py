"""A semi-supervised model whose classifier is any of libml.networks."""

import functools
from collections.abc import Callable

import tensorflow.compat.v1 as tf
from easydict import EasyDict
from tensorflow.core.protobuf import rewriter_config_pb2

from libml import layers, networks, train, utils
from libml.cli.options import Option, Range
from libml.data import DataSet
from libml.family import Family
from libml.running import replicas

PARAMS = dict(  # The classifier's hyperparameters.
    arch=Option('resnet', 'Classifier.', choices=networks.MODELS),
    scales=Option(
        0, "Stages of the classifier; 0: chosen by the images' width w: max(1, ceil(log2 w) - 2).", Range(0, 10)
    ),
    filters=Option(32, 'Width of the classifier.', Range(1, 4096)),
    repeat=Option(4, 'Residual blocks a stage.', Range(1, 256)),
)


class Method:
    """What the running of a model asks of a method; each answer here is that of a method with nothing to say."""

    @classmethod
    def check_params(cls, devices: int = 1, batch: int = 1, wd: float = 0, lr: float = 0, **params) -> None:
        """Raises utils.Error if arguments do not go together, or the batch is no multiple of the devices.

        A method with weight decay, see layers.update, must not change the sign of its kernels by it.
        """
        allowed = 'a multiple of devices=%d, which share it equally' % devices
        utils.require('batch', batch, batch % devices == 0, allowed)
        utils.require('wd', wd, wd * lr < 1, 'below 1 when multiplied by lr')

    @classmethod
    def needs_unlabeled(cls, **params) -> bool:
        """Returns whether the method learns from unlabelled images, given its arguments."""
        return True

    @staticmethod
    def flop(shape, batch, arch, nclass, scales, filters, repeat, **_):
        """Returns the floating-point operations of an update on labelled and as many unlabelled images [H, W, C].

        A backward pass counts as two forward passes.
        """
        return networks.describe(arch, shape, nclass, scales, filters, repeat).flop * 3 * 2 * batch

    def build_sheet(self):
        """Builds, besides the update, what TensorBoard's page of images shows at each report.

        Returns an object whose method draw(session) returns a PIL.Image.Image, such as sheet.Sheet; None for nothing.
        """
        return None

    def remedy(self) -> str:
        """Returns the flags that are likely to help against a loss that is not finite; '' if none is known."""
        return ''

    def remark(self, point: dict[str, float]) -> str:
        """Returns a line for the user on a point of the curves, {tag: float}; '' if there is nothing to say."""
        return ''


class MultiModel(Method, train.ClassifySemi):
    """A semi-supervised model whose classifier is any of networks.ARCHS.

    An algorithm is a subclass that defines PARAMS and `model`, see train.Model.model.

    Args:
        train_dir, dataset, nclass, **params: see train.ClassifySemi and train.Model.
    """

    MODELS = networks.MODELS
    PARAMS = PARAMS

    def __init__(self, train_dir: str, dataset: DataSet, nclass: int, **params):
        self.networks = {}  # One network for each replica: each device traces its own.
        super().__init__(train_dir, dataset, nclass, **params)
        if dataset.whiten and not networks.takes(self.params.arch, 'whiten'):
            utils.warn('--whiten changes nothing with --arch=%s' % self.params.arch)

    @classmethod
    def arguments(cls, given: dict, family: Family) -> dict:
        """Returns the arguments of `model`: the values of PARAMS, and the scales and classes that follow from the data.

        Args:
            given: dict, a value for each of PARAMS.
            family: family.Family.
        """
        params = {name: given[name] for name in cls.PARAMS}
        return dict(params, scales=params['scales'] or max(1, utils.ilog2(family.width) - 2), nclass=family.nclass)

    def network(self, arch, scales, filters, repeat):
        """Returns the networks.Network of these arguments; the first call creates its variables in scope `classify`."""
        key = (replicas.get_number(), arch, scales, filters, repeat)
        if key not in self.networks:
            size = dict(nclass=self.nclass, scales=scales, filters=filters, repeat=repeat)
            dtype = tf.bfloat16 if self.setting.precision == 'bfloat16' else tf.float32
            found = networks.Network(arch, self.dataset.shape, dtype, self.whiten, **size)
            found.get_variables(getter=None)
            self.networks[key] = found
        return self.networks[key]

    def weights(self) -> list[tf.Variable]:
        """Returns the trainable variables of the network, which the first call creates."""
        self.network(**{name: self.params[name] for name in PARAMS})
        return utils.model_vars('classify')

    def whiten(self, x: tf.Tensor) -> tf.Tensor:
        """Normalises images by the mean and standard deviation of the training images, if --whiten asks for it."""
        return (x - tf.constant(self.dataset.mean, x.dtype)) / tf.constant(self.dataset.std, x.dtype)

    def classifier(
        self,
        x: tf.Tensor,
        arch: str | None = None,
        training: bool = False,
        getter: Callable | None = None,
        moments: list | None = None,
        groups: int = 1,
        **params,
    ) -> tf.Tensor:
        """Classifies images with the variables of scope `classify`, which the first call creates.

        Args:
            x: float32 [N, H, W, C] in [-1, 1].
            arch: one of MODELS; None: the model's own.
            training: True normalises by the batch's own statistics, and draws at random if the network does so.
            getter: a custom getter for the variables, such as utils.getter_ema with its average filled in.
            moments: a list that collects batch norm's statistics in training, see layers.batch_norm. None: an op that
                moves batch norm's averages by them joins tf.GraphKeys.UPDATE_OPS, as TF1's layers do it.
            groups: int, batches of one size that x holds, see layers.batch_norm.
            **params: arguments of the model, such as filters, as the published code gives them; the model's
                own values where they are not given. The network takes what it needs.

        Returns:
            float32 [N, nclass], the logits.

        Raises:
            TypeError: the model has no argument of a name.
        """
        unknown = sorted(set(params) - set(self.params))
        if unknown:
            raise TypeError('the model has no argument %s' % unknown[0])
        size = {name: params.get(name, self.params[name]) for name in PARAMS}
        size['arch'] = arch or size['arch']
        keys = [self.keys('network') for _ in range(groups)]
        return self.network(**size)(x, training, keys, getter, moments)

    def classify_each(
        self, batches: list[tf.Tensor], moments: list, classifier: Callable | None = None, **kwargs
    ) -> list[tf.Tensor]:
        """Classifies batches in training, each normalised by its own statistics.

        Where XLA compiles the update, all go through the network in one pass.

        Args:
            batches: list of n float32 [B, H, W, C].
            moments: a list that gets the statistics of the first batch, see `classifier`: those of one batch are enough
                to move batch norm's averages.
            classifier: function of images; None: the model's own.
            **kwargs: further arguments of the classifier.

        Returns:
            n float32 [B, nclass], the logits.
        """
        classifier = classifier or self.classifier
        if self.machine.compiles_update and classifier == self.classifier:  # On a CPU without XLA, this is slower.
            joined = classifier(tf.concat(batches, 0), training=True, moments=moments, groups=len(batches), **kwargs)
            return tf.split(joined, len(batches))
        lists = [moments] + [[] for _ in batches[1:]]
        return [classifier(x, training=True, moments=m, **kwargs) for x, m in zip(batches, lists, strict=True)]

    def create_average(self, weights: list[tf.Variable], ema: float) -> tf.train.ExponentialMovingAverage:
        """Returns the tf.train.ExponentialMovingAverage of weights, created; an update moves it by its `apply`."""
        average = tf.train.ExponentialMovingAverage(ema)
        average.apply(weights)
        return average

    def finish(
        self,
        x: tf.Tensor,
        train_op: tf.Operation,
        moments: list,
        average: tf.train.ExponentialMovingAverage,
        **more,
    ) -> EasyDict:
        """Returns what `model` must return: the update, the evaluation by the weights and by their moving average.

        Args:
            x: float32 [None, H, W, C], the images to classify.
            train_op: one update.
            moments: batch norm's statistics, which an update of its averages takes in, see `classifier`.
            average: tf.train.ExponentialMovingAverage of the weights.
            **more: y, label, losses, monitors; see train.Model.model.
        """
        averaged = functools.partial(utils.getter_ema, average)
        return EasyDict(
            x=x,
            train_op=train_op,
            tune_op=layers.update_moments(moments),
            classify_raw=tf.nn.softmax(self.classifier(x)),  # [B, nclass]
            classify_op=tf.nn.softmax(self.classifier(x, getter=averaged)),  # [B, nclass]
            **more,
        )

    def configure(self, config: tf.ConfigProto) -> None:
        """Changes the configuration of the session that trains."""
        if self.params.arch in networks.UNMAPPED:
            config.graph_options.rewrite_options.remapping = rewriter_config_pb2.RewriterConfig.OFF
