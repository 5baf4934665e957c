"""The Pi-Model (Laine and Aila 2017), an example of another method. docs/methods.md shows and explains this file."""

import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # The libml beside this file.
    from libml.cli import quiet

    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

import tensorflow.compat.v1 as tf

from libml import experiment, layers, models, utils
from libml.cli.options import Option, Range
from libml.running import replicas

PARAMS = dict(
    batch=Option(64, 'Labelled images in an update, and as many unlabelled ones.', Range(1, 65536)),
    lr=Option(0.002, "Adam's learning rate.", Range(above=0)),
    ema=Option(0.999, 'Decay of the moving average of the weights.', Range(0, below=1)),
    w_match=Option(10.0, 'Weight of the unlabelled loss.', Range(low=0)),
    warmup_kimg=Option(128, 'kimg over which the unlabelled loss gains its weight.', Range(low=0)),
    **models.PARAMS,  # arch, scales, filters, repeat
)


class PiModel(models.MultiModel):
    """A classifier that learns to say the same about two augmentations of an unlabelled image."""

    PARAMS = PARAMS

    def model(self, batch, lr, ema, w_match, warmup_kimg, nclass, **kwargs):
        x, y, label = self.inputs(batch, nu=2)  # [B, H, W, C]  [B, 2, H, W, C]  [B]
        weights = self.weights()
        average = self.create_average(weights, ema)

        moments = []  # Batch norm's statistics of the labelled batch.
        batches = [x, *tf.unstack(y, axis=1)]  # 3 * [B, H, W, C]
        logits_x, logits_1, logits_2 = self.classify_each(batches, moments)  # 3 * [B, nclass]

        loss_xe = layers.labeled_loss(tf.one_hot(label, nclass), logits_x)
        loss_l2u = layers.unlabeled_loss(tf.nn.softmax(logits_1), logits_2)
        loss = loss_xe + w_match * layers.ramp(self.step, warmup_kimg) * loss_l2u
        train_op = utils.in_order(
            lambda: tf.train.AdamOptimizer(lr).minimize(replicas.share_loss(loss), var_list=weights),
            lambda: average.apply(weights),
            lambda: layers.update_moments(moments),
        )

        losses = {'losses/xe': loss_xe, 'losses/l2u': loss_l2u}
        return self.finish(x, train_op, moments, average, y=y, label=label, losses=losses)


if __name__ == '__main__':
    experiment.main(PiModel)
