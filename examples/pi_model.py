"""The Pi-Model (Laine and Aila 2017, algorithm 1): xe + w(t) ‖p(y|Augment(u)) - p(y|Augment(u))‖² / nclass.

docs/methods.md shows and explains this file.
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
    consistency_weight=Option(10.0, 'Weight of the unlabelled loss.', Range(low=0)),
    warmup_kimg=experiment.WARMUP_KIMG,
    **experiment.PARAMS,  # batch, lr, wd, ema
    **models.PARAMS,  # arch, scales, filters, repeat
)


class PiModel(models.MultiModel):
    """A classifier that learns to say the same about two augmentations of an unlabelled image."""

    PARAMS = PARAMS

    def model(self, batch, lr, wd, ema, consistency_weight, warmup_kimg, nclass, **kwargs):
        x, y, label = self.inputs(batch, nu=2)  # [B, H, W, C]  [B, 2, H, W, C]  [B]
        weights = self.weights()
        average = self.create_average(weights, ema)

        moments = []  # Batch norm's statistics of the labelled batch.
        batches = [x, *tf.unstack(y, axis=1)]  # 3 * [B, H, W, C]
        logits_x, logits_1, logits_2 = self.classify_each(batches, moments)  # 3 * [B, nclass]

        loss_xe = layers.labeled_loss(tf.one_hot(label, nclass), logits_x)
        target = tf.stop_gradient(tf.nn.softmax(logits_1))  # [B, nclass]
        loss_pm = layers.unlabeled_loss(target, logits_2)
        loss = loss_xe + consistency_weight * layers.ramp(self.step, warmup_kimg) * loss_pm

        train_op = layers.update(loss, weights, lr, wd, average, moments)
        losses = {'losses/xe': loss_xe, 'losses/pm': loss_pm}
        return self.finish(x, train_op, moments, average, y=y, label=label, losses=losses)


if __name__ == '__main__':
    experiment.main(PiModel)
