"""Mean Teacher (Tarvainen and Valpola 2017): xe + w(t) ‖p(y|Augment(u); θ') - p(y|Augment(u); θ)‖² / nclass.

The teacher's weights θ' are the moving average of the student's: θ' <- ema θ' + (1 - ema) θ (equation 1).
"""

import functools
import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # The libml beside this file.
    from libml.cli import quiet

    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

import tensorflow.compat.v1 as tf

from libml import experiment, layers, models, utils
from libml.cli.options import Option, Range

PARAMS = dict(
    consistency_weight=Option(50.0, 'Weight of the unlabelled loss.', Range(low=0)),
    warmup_kimg=experiment.WARMUP_KIMG,
    **experiment.PARAMS,  # batch, lr, wd, ema
    **models.PARAMS,  # arch, scales, filters, repeat
)


class MeanTeacher(models.MultiModel):
    """A classifier that learns what the average of its past weights says about unlabelled images."""

    PARAMS = PARAMS

    def model(self, batch, lr, wd, ema, consistency_weight, warmup_kimg, nclass, **kwargs):
        x, y, label = self.inputs(batch, nu=2)  # [B, H, W, C]  [B, 2, H, W, C]  [B]
        weights = self.weights()
        average = self.create_average(weights, ema)
        averaged = functools.partial(utils.getter_ema, average)

        moments = []  # Batch norm's statistics of the labelled batch.
        logits_x, logits_student = self.classify_each([x, y[:, 1]], moments)  # 2 * [B, nclass]
        (logits_teacher,) = self.classify_each([y[:, 0]], [], getter=averaged)  # [B, nclass]

        loss_xe = layers.labeled_loss(tf.one_hot(label, nclass), logits_x)
        target = tf.stop_gradient(tf.nn.softmax(logits_teacher))  # [B, nclass]
        loss_mt = layers.unlabeled_loss(target, logits_student)
        loss = loss_xe + consistency_weight * layers.ramp(self.step, warmup_kimg) * loss_mt

        train_op = layers.update(loss, weights, lr, wd, average, moments)
        losses = {'losses/xe': loss_xe, 'losses/mt': loss_mt}
        return self.finish(x, train_op, moments, average, y=y, label=label, losses=losses)


if __name__ == '__main__':
    experiment.main(MeanTeacher)
