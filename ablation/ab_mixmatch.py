"""MixMatch: A Holistic Approach to Semi-Supervised Learning (Berthelot et al. 2019), and every ablation of it.

python ablation/ab_mixmatch.py --dataset=cifar10.3@250-5000 --mixmode=xxy.yxy
"""

import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # The libml beside this file.
    from libml.cli import quiet

    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

import functools

import tensorflow.compat.v1 as tf
from easydict import EasyDict

from libml import experiment, layers, models, networks, sheet, utils
from libml.cli.options import Option, Range

PARAMS = dict(  # The hyperparameters. They are part of the name of the run's folder.
    **experiment.PARAMS,  # batch, lr, wd, ema
    beta=Option(0.5, "Both parameters of MixUp's Beta distribution.", Range(low=1e-6)),
    nu=Option(2, "Augmentations of each unlabelled image (the paper's K).", Range(1, 1024)),
    T=Option(0.5, 'Sharpening temperature; 1 leaves the guess as it is.', Range(low=1e-6)),
    use_ema_guess=Option(False, 'Guess labels with the averaged weights.'),
    mixmode=Option('xxy.yxy', 'What is mixed with what: <labelled>.<unlabelled>.', choices=layers.MixMode.MODES),
    w_match=Option(100.0, "Weight of the unlabelled loss (the paper's lambda_U).", Range(low=0)),
    warmup_kimg=Option(128, 'kimg over which the unlabelled loss gains its weight.', Range(low=0)),
    **models.PARAMS,  # arch, scales, filters, repeat
)
COLLAPSED = 0.1  # Below this guess_entropy, the program warns. If two classes of ten share all guesses, it is 0.3.


class AblationMixMatch(models.MultiModel):
    """MixMatch. An ablation sets one argument or more."""

    PARAMS = PARAMS

    def guess_label(self, y, classifier, T, getter=None, **kwargs):
        """Guesses one label for all augmentations of each unlabelled image (section 3.2 of the paper).

        Args:
            y: list of nu float32 [B, H, W, C], augmentations of the same images.
            classifier: function of images, such as MultiModel.classifier.
            T: float, sharpening temperature.
            getter: custom getter for the classifier's variables, or None.
            kwargs: further arguments of the classifier.

        Returns:
            EasyDict of p_target, the sharpened guess, and p_model, the mean prediction, both float32 [B, nclass].
        """
        with tf.name_scope('guess_label'):
            # Their statistics change no average of batch norm.
            logits = self.classify_each(y, [], classifier, getter=getter, **kwargs)  # nu * [B, nclass]
            p_model = tf.reduce_mean(tf.nn.softmax(tf.stack(logits)), axis=0)  # [B, nclass]
            p_target = layers.sharpen(p_model, T)  # [B, nclass]
        return EasyDict(p_target=p_target, p_model=p_model)

    def model(self, nu, w_match, warmup_kimg, batch, lr, wd, ema, beta, mixmode, use_ema_guess, T, nclass, **kwargs):
        """Builds one update: Algorithm 1 of the paper, and the losses (equations 3 to 5).

        The names are the published code's. In the paper, y (unlabelled images) is u, nu is K, p_model and p_target are
        q̄ and q, beta is α, and w_match is λ_U.

        Args:
            batch: int, this device's share of the labelled images of an update.
            nclass: int, classes.
            nu, w_match, ...: the options of the same names; kwargs: those of the classifier.

        Returns:
            See train.Model.model.
        """
        # Lines 2 to 6, the augmentation, happen in `inputs`: x once, y nu times.
        x, y, label = self.inputs(batch, nu)  # [B, H, W, C]  [B, nu, H, W, C]  [B]
        views = tf.unstack(y, axis=1)  # nu * [B, H, W, C]

        # The network, its weights, and their moving average.
        weights = self.weights()
        average = self.create_average(weights, ema)
        getter_ema = functools.partial(utils.getter_ema, average)

        # Lines 7 and 8: guess and sharpen. All views of an image share one label, and no gradient flows through it.
        guess = self.guess_label(views, self.classifier, T, getter=getter_ema if use_ema_guess else None)
        label_x = tf.one_hot(label, nclass)  # [B, nclass]
        label_y = tf.stop_gradient(guess.p_target)  # [B, nclass]

        # Lines 10 to 14: shuffle and mix. In mode xxy.yxy, images of x and y are mixed with images of both.
        with tf.name_scope('mixup'):
            images, labels = [x, *views], [label_x] + [label_y] * nu  # (1 + nu) * [B, ...]
            mixed = layers.MixMode(mixmode)(images, labels, [beta, beta], self.keys('mixup'))
            (mixed_x, *mixed_y), (target_x, *target_y) = mixed  # Each [B, ...].

        # Classify in interleaved batches, so that each batch is a mixture. Each is normalised by its own statistics.
        with tf.name_scope('interleave'):
            batches = layers.interleave([mixed_x, *mixed_y], batch)  # (1 + nu) * [B, H, W, C]
        # Only the first batch's statistics move batch norm's averages. One batch is enough, because each has about the
        # same mixture of labelled and unlabelled images.
        moments = []
        logits = self.classify_each(batches, moments)  # (1 + nu) * [B, nclass]
        with tf.name_scope('interleave'):
            logits_x, *logits_y = layers.interleave(logits, batch)  # (1 + nu) * [B, nclass]

        # Equations 3 to 5: the losses.
        with tf.name_scope('losses'):
            loss_xe = layers.labeled_loss(target_x, logits_x)
            loss_l2u = layers.unlabeled_loss(tf.concat(target_y, 0), tf.concat(logits_y, 0))
            weight_l2u = w_match * layers.ramp(self.step, warmup_kimg)
            loss = loss_xe + weight_l2u * loss_l2u

        # The update: Adam, weight decay, the weights' average, batch norm's averages.
        train_op = layers.update(loss, weights, lr, wd, average, moments)

        return self.finish(
            x,
            train_op,
            moments,
            average,
            y=y,
            label=label,
            losses={'losses/xe': loss_xe, 'losses/l2u': loss_l2u},
            monitors={'monitors/weight_l2u': weight_l2u, **layers.guess_monitors(label_y)},
        )

    def augment(self, *args, **kwargs):
        """Kept for the published interface; it only raises."""
        raise NotImplementedError('Examples are mixed by layers.MixMode, in model().')

    def build_sheet(self):
        """Returns the steps of the method for a few pictures; None if there are none, or several devices."""
        needed = self.needs_unlabeled(**self.params) and self.machine.replicas == 1
        return sheet.Sheet(self) if needed else None

    def remedy(self):
        """Blames w_match if it is further above its default than lr is above its own; else halves lr."""
        excess = {name: self.params[name] / PARAMS[name].default for name in ('lr', 'w_match')}
        if excess['w_match'] > max(1, excess['lr']):
            return '--w_match=%g' % PARAMS['w_match'].default
        return '--lr=%g' % (self.params.lr / 2)

    def remark(self, point):
        """Says if the guesses have become one class."""
        entropy = point['monitors/guess_entropy']
        if not point['monitors/weight_l2u'] or entropy >= COLLAPSED:
            return ''
        return (
            'Nearly all guesses are one class (monitors/guess_entropy %.2f): the network no longer learns from the '
            'unlabelled images. Try a smaller --w_match, or a larger --warmup_kimg.' % entropy
        )

    @classmethod
    def needs_unlabeled(cls, w_match, **_):
        """See train.Model.needs_unlabeled."""
        return w_match > 0

    @staticmethod
    def flop(shape, batch, nu, arch, nclass, scales, filters, repeat, **_):
        """Returns the floating-point operations of an update; a backward pass counts as two forward passes."""
        forward = networks.describe(arch, shape, nclass, scales, filters, repeat).flop
        return forward * (nu + 3 * (nu + 1)) * batch

    @classmethod
    def check_params(cls, devices=1, **params):
        """See train.Model.check_params."""
        super().check_params(devices, **params)
        nu, batch = params['nu'], params['batch']
        where = ' on each of %d devices' % devices if devices > 1 else ''
        least = 'at least nu + 1 = %d%s, to be interleaved' % (nu + 1, where)
        utils.require('batch', batch, batch // devices >= nu + 1, least)


def main():
    """Does what the command line asks for."""
    experiment.main(AblationMixMatch)


if __name__ == '__main__':
    main()
