"""Pseudo-Label (Lee 2013): xe of labelled images + w(t) xe of unlabelled ones, whose label is their likeliest class.

As in the baseline of MixMatch's paper, only a class whose probability is above a threshold becomes a label.
"""

import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # The libml beside this file.
    from libml.cli import quiet

    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

import tensorflow.compat.v1 as tf

from libml import experiment, layers, models
from libml.cli.options import Option, Range

PARAMS = dict(
    consistency_weight=Option(1.0, 'Weight of the unlabelled loss.', Range(low=0)),
    threshold=Option(0.95, 'Probability above which a guess becomes a label.', Range(0, 1)),
    warmup_kimg=experiment.WARMUP_KIMG,
    **experiment.PARAMS,  # batch, lr, wd, ema
    **models.PARAMS,  # arch, scales, filters, repeat
)


class PseudoLabel(models.MultiModel):
    """A classifier that takes its own confident guesses for labels."""

    PARAMS = PARAMS

    def model(self, batch, lr, wd, ema, consistency_weight, threshold, warmup_kimg, nclass, **kwargs):
        x, y, label = self.inputs(batch, nu=1)  # [B, H, W, C]  [B, 1, H, W, C]  [B]
        weights = self.weights()
        average = self.create_average(weights, ema)

        moments = []  # Batch norm's statistics of the labelled batch.
        logits_x, logits_y = self.classify_each([x, y[:, 0]], moments)  # 2 * [B, nclass]
        p = tf.stop_gradient(tf.nn.softmax(logits_y))  # [B, nclass]
        confident = tf.cast(tf.reduce_max(p, axis=1) > threshold, tf.float32)  # [B]

        loss_xe = layers.labeled_loss(tf.one_hot(label, nclass), logits_x)
        xe_y = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.argmax(p, axis=1), logits=logits_y)  # [B]
        loss_pl = tf.reduce_mean(confident * xe_y)  # Over all images, also those that have no label.
        loss = loss_xe + consistency_weight * layers.ramp(self.step, warmup_kimg) * loss_pl

        train_op = layers.update(loss, weights, lr, wd, average, moments)
        losses = {'losses/xe': loss_xe, 'losses/pl': loss_pl}
        monitors = {'monitors/labeled': tf.reduce_mean(confident), **layers.guess_monitors(p)}
        return self.finish(x, train_op, moments, average, y=y, label=label, losses=losses, monitors=monitors)


if __name__ == '__main__':
    experiment.main(PseudoLabel)
