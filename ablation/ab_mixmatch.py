"""MixMatch: A Holistic Approach to Semi-Supervised Learning (Berthelot et al. 2019), and every ablation of it.

python ablation/ab_mixmatch.py --dataset=cifar10.3@250-5000 --mixmode=xxy.yxy
"""

import functools
import os

from libml import data_pair, layers, models, runs, train, utils

import numpy as np
import tensorflow.compat.v1 as tf
from absl import flags
from easydict import EasyDict

FLAGS = flags.FLAGS
flags.DEFINE_enum('arch', 'resnet', models.MODELS, 'Classifier.')
flags.DEFINE_integer('batch', 64, 'Labelled images in an update, and as many unlabelled ones.')
flags.DEFINE_float('lr', 0.002, "Adam's learning rate.")
flags.DEFINE_float('wd', 0.02, 'Weight decay, times lr, at each update.')
flags.DEFINE_float('ema', 0.999, 'Decay of the moving average of the weights.')
flags.DEFINE_float('beta', 0.5, "Both parameters of MixUp's Beta distribution.")
flags.DEFINE_integer('nu', 2, "Augmentations of each unlabelled image (the paper's K).")
flags.DEFINE_float('T', 0.5, 'Sharpening temperature; 1 leaves the guess as it is.')
flags.DEFINE_bool('use_ema_guess', False, 'Guess labels with the averaged weights.')
flags.DEFINE_enum('mixmode', 'xxy.yxy', layers.MixMode.MODES, 'What is mixed with what: <labelled>.<unlabelled>.')
flags.DEFINE_float('w_match', 100, "Weight of the unlabelled loss (the paper's lambda_U).")
flags.DEFINE_integer('warmup_kimg', 128, 'kimg over which the unlabelled loss gains its weight.')
flags.DEFINE_integer('scales', 0, "Stages of the classifier; 0 for ilog2 of the images' width less 2.")
flags.DEFINE_integer('filters', 32, 'Width of the classifier.')
flags.DEFINE_integer('repeat', 4, 'Residual blocks a stage.')


def adam(loss, weights, lr):
    """Returns the op of one step of Adam; it stands outside all name scopes, which `beta1_power` would be named by."""
    with tf.name_scope(None):
        return tf.train.AdamOptimizer(lr).minimize(loss, var_list=weights, name='update/Adam')


class AblationMixMatch(models.MultiModel):
    """MixMatch. Every ablation is a value of an argument."""

    def guess_label(self, y, classifier, T, getter=None, **kwargs):
        """Guesses one label for all augmentations of each unlabelled image (section 3.2 of the paper).

        Args:
            y: list of nu float32 [B, H, W, C], augmentations of the same images.
            classifier: function of one of them, see MultiModel.classifier; kwargs are for it.
            T: float, sharpening temperature.
            getter: custom getter for the classifier's variables, or None.

        Returns:
            EasyDict of p_target, the sharpened guess, and p_model, the mean prediction, both float32 [B, nclass].
        """
        with tf.name_scope('guess_label'):
            logits = [classifier(y_k, training=True, getter=getter, **kwargs) for y_k in y]  # nu * [B, nclass]
            p_model = tf.reduce_mean(tf.nn.softmax(tf.stack(logits)), axis=0)  # [B, nclass]
            p_target = layers.sharpen(p_model, T)  # [B, nclass]
        return EasyDict(p_target=p_target, p_model=p_model)

    def model(self, nu, w_match, warmup_kimg, batch, lr, wd, ema, beta, mixmode, use_ema_guess, T, nclass, **kwargs):
        """Builds one update: Algorithm 1 of the paper, its losses (equations 2 to 5), and what the update moves.

        Args:
            nu, w_match, ...: the flags of the same names.
            nclass: int, classes.
            kwargs: the classifier's arch, scales, filters, repeat.

        Returns:
            EasyDict of
                x, y, label: what an update is made from, see ClassifySemi.inputs.
                train_op: one update. tune_op: batch norm's averages of one, and nothing else.
                classify_raw, classify_op: float32 [None, nclass], the class probabilities of x by the weights, and by
                    their moving average.
                losses: dict from a tag of TensorBoard to float32 [].
        """
        # Inputs, and the classifier as it is evaluated: by its weights, and by their moving average.
        x, y, label = self.inputs(batch, nu)  # [B, H, W, C]  [B, nu, H, W, C]  [B]
        classifier = functools.partial(self.classifier, **kwargs)
        classify_raw = tf.nn.softmax(classifier(x, training=False))  # [B, nclass]
        average = layers.MovingAverage(ema, utils.model_vars())
        getter_ema = functools.partial(utils.getter_ema, average)
        classify_op = tf.nn.softmax(classifier(x, training=False, getter=getter_ema))  # [B, nclass]

        # Guess and sharpen: one label for all augmentations of an unlabelled image, taken as given.
        views = tf.unstack(y, axis=1)  # nu * [B, H, W, C]
        guess = self.guess_label(views, classifier, T, getter=getter_ema if use_ema_guess else None)
        label_x = tf.one_hot(label, nclass)  # [B, nclass]
        label_y = tf.stop_gradient(guess.p_target)  # [B, nclass]

        # Mix: labelled and unlabelled images, and their labels, as the mode says.
        with tf.name_scope('mixup'):
            mix = layers.MixMode(mixmode)
            xy, labels = mix([x] + views, [label_x] + [label_y] * nu, [beta, beta], self.keys())  # (1 + nu) * [B, ...]

        # Interleave and classify: every batch is a mixture, and is normalised by its own statistics.
        with tf.name_scope('interleave'):
            batches = layers.interleave(xy, batch)  # (1 + nu) * [B, H, W, C]
        moments = []  # Batch norm's, of the first batch alone: the batches are alike, so one is sample enough.
        logits = [classifier(batches[0], training=True, moments=moments)]
        logits += [classifier(b, training=True) for b in batches[1:]]
        with tf.name_scope('interleave'):
            logits = layers.interleave(logits, batch)  # (1 + nu) * [B, nclass]

        # Losses, and what an update moves, in this order.
        with tf.name_scope('losses'):
            loss_xe = layers.labeled_loss(labels[0], logits[0])
            loss_l2u = layers.unlabeled_loss(tf.concat(labels[1:], 0), tf.concat(logits[1:], 0))
            loss = loss_xe + w_match * layers.ramp(self.step, warmup_kimg) * loss_l2u
        with tf.name_scope('update'):
            weights = utils.model_vars('classify')
            kernels = [v for v in weights if v.op.name.endswith('kernel')]
            train_op = utils.in_order(
                lambda: adam(loss, weights, lr),
                lambda: [v.assign(v * (1 - wd * lr)) for v in kernels],
                average.update,
                lambda: layers.update_moments(moments),
                lambda: self.step.assign_add(batch),
            )
        return EasyDict(
            x=x,
            y=y,
            label=label,
            train_op=train_op,
            tune_op=layers.update_moments(moments),
            classify_raw=classify_raw,
            classify_op=classify_op,
            losses={'losses/xe': loss_xe, 'losses/l2u': loss_l2u},
        )

    def augment(self, *args, **kwargs):
        raise NotImplementedError('Examples are mixed by layers.MixMode, in model().')

    @staticmethod
    def flop(shape, batch, nu, arch, nclass, scales, filters, repeat, **_):
        """Returns the floating-point operations of an update; a backward pass counts twice."""
        _, forward = models.describe(arch, shape, nclass, scales, filters, repeat)
        return forward * (nu + 3 * (nu + 1)) * batch

    @classmethod
    def check(cls, nu, w_match, warmup_kimg, batch, lr, wd, ema, beta, mixmode, use_ema_guess, T, **kwargs):
        """Raises utils.Error where an argument is out of range; see the flags for what they are."""
        super().check(**kwargs)
        layers.MixMode(mixmode)
        utils.check('nu', nu, nu >= 1, 'at least 1')
        utils.check('batch', batch, batch >= nu + 1, 'at least nu + 1 = %d, to be interleaved' % (nu + 1))
        utils.check('lr', lr, 0 < lr < np.inf, 'a number above 0')
        utils.check('wd', wd, 0 <= wd * lr < 1, 'at least 0, and below 1 when multiplied by lr')
        utils.check('ema', ema, 0 <= ema < 1, 'at least 0 and below 1')
        utils.check('beta', beta, 1e-6 <= beta < np.inf, 'a number of at least 1e-6')
        utils.check('T', T, 1e-6 <= T < np.inf, 'a number of at least 1e-6')
        utils.check('w_match', w_match, 0 <= w_match < np.inf, 'a number of at least 0')
        utils.check('warmup_kimg', warmup_kimg, 0 <= warmup_kimg < np.inf, 'at least 0')


# The flags that are arguments of the model.
MODEL_FLAGS = ('arch', 'batch', 'beta', 'ema', 'filters', 'lr', 'mixmode', 'nu', 'repeat', 'scales', 'T',
               'use_ema_guess', 'w_match', 'warmup_kimg', 'wd')  # fmt: skip


def model_params(split):
    """Returns what the flags ask for on a data_pair.Split, or raises utils.Error.

    Returns:
        The arguments of the model, a dict, and the shape of the images, (H, W, C).
    """
    params = {name: FLAGS[name].value for name in MODEL_FLAGS}
    AblationMixMatch.check(**params)
    family = data_pair.find_family(data_pair.find_data_dir(FLAGS.data_dir), split.name)
    params.update(scales=params['scales'] or max(1, utils.ilog2(family.width) - 2), nclass=family.nclass)
    return params, family.shape


def main(argv):
    utils.check('argument', argv[-1], len(argv) == 1, 'a flag, such as --dataset=digits.1@20-100')
    split = data_pair.parse(FLAGS.dataset)
    params, shape = model_params(split)
    train_dir = os.path.join(FLAGS.train_dir, str(split))
    run, train_nimg = AblationMixMatch.run_dir(train_dir, FLAGS.seed, **params), FLAGS.train_kimg << 10
    chosen = dict(whiten=FLAGS.whiten, p_unlabeled=FLAGS.p_unlabeled)
    if not FLAGS.eval_ckpt and runs.is_finished(run, train_nimg, precision=FLAGS.precision, **chosen):
        print('%s is finished: a larger --train_kimg than %d goes on from there' % (run, FLAGS.train_kimg))
        return
    flop = AblationMixMatch.flop(shape, **params)
    utils.share_operations(train.threads_that_pay(flop))
    print('Reading %s' % split, flush=True)
    dataset = data_pair.read_dataset(split, FLAGS.data_dir, seed=FLAGS.seed or 0, **chosen)
    xla = runs.read_args(run).get('xla') if FLAGS.xla is None else FLAGS.xla  # As the run began, or as asked for.
    if xla is None:
        xla = not FLAGS.eval_ckpt and train.compiling_pays(flop, train_nimg // FLAGS.batch)
    model = AblationMixMatch(train_dir, dataset, seed=FLAGS.seed, xla=xla, precision=FLAGS.precision, **params)
    model.config.log_device_placement = FLAGS.log_device_placement
    if FLAGS.eval_ckpt:
        model.eval_checkpoint(FLAGS.eval_ckpt)
    else:
        model.train(train_nimg, FLAGS.report_kimg << 10, FLAGS.save_kimg << 10, FLAGS.keep_ckpt, FLAGS.init_ckpt)


if __name__ == '__main__':
    utils.setup_tf()
    utils.run(main)
