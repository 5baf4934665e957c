"""MixUp (Zhang et al. 2018), as MixMatch's paper adapts it: xe of mixed labelled + xe of mixed unlabelled images.

Images and labels are mixed alike (equations 8 to 11 of MixMatch's paper). Predictions label the unlabelled images.
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
    beta=Option(0.5, "Both parameters of MixUp's Beta distribution.", Range(low=1e-6)),
    **experiment.PARAMS,  # batch, lr, wd, ema
    **models.PARAMS,  # arch, scales, filters, repeat
)


class Mixup(models.MultiModel):
    """A classifier whose predictions change linearly from image to image."""

    PARAMS = PARAMS

    def model(self, batch, lr, wd, ema, beta, nclass, **kwargs):
        x, y, label = self.inputs(batch, nu=1)  # [B, H, W, C]  [B, 1, H, W, C]  [B]
        weights = self.weights()
        average = self.create_average(weights, ema)

        (logits,) = self.classify_each([y[:, 0]], [])  # [B, nclass]
        images = [x, y[:, 0]]  # 2 * [B, H, W, C]
        labels = [tf.one_hot(label, nclass), tf.stop_gradient(tf.nn.softmax(logits))]  # 2 * [B, nclass]
        mixed, (target_x, target_y) = layers.MixMode('xx.yy')(images, labels, [beta, beta], self.keys('mixup'))

        moments = []  # Batch norm's statistics of the mixed labelled batch.
        logits_x, logits_y = self.classify_each(mixed, moments)  # 2 * [B, nclass]
        loss_xe = layers.labeled_loss(target_x, logits_x)
        loss_xeu = layers.labeled_loss(target_y, logits_y)

        train_op = layers.update(loss_xe + loss_xeu, weights, lr, wd, average, moments)
        losses = {'losses/xe': loss_xe, 'losses/xeu': loss_xeu}
        return self.finish(x, train_op, moments, average, y=y, label=label, losses=losses)


if __name__ == '__main__':
    experiment.main(Mixup)
