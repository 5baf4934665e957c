"""Virtual Adversarial Training (Miyato et al. 2018): xe + w(t) vat KL(p(y|u) ‖ p(y|u + r)) + entmin_weight H(p(y|u)).

r, of norm vat_eps, is what changes p most. One power iteration finds it (algorithm 1): r = vat_eps g / ‖g‖,
where g is the gradient of KL(p(y|u) ‖ p(y|u + d)) by d, at a random d of norm ξ.
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
    vat=Option(0.3, 'Weight of the unlabelled loss.', Range(low=0)),
    vat_eps=Option(6.0, 'Norm of the perturbation of an image, whose pixels are from -1 to 1.', Range(low=0)),
    entmin_weight=Option(0.06, 'Weight of the entropy of the predictions for unlabelled images.', Range(low=0)),
    warmup_kimg=experiment.WARMUP_KIMG,
    **experiment.PARAMS,  # batch, lr, wd, ema
    **models.PARAMS,  # arch, scales, filters, repeat
)
XI = 1e-2  # The published 1e-6 is too small for float32: rounding then decides most of the direction.


class VAT(models.MultiModel):
    """A classifier that keeps its predictions where an unlabelled image changes a little, in the worst direction."""

    PARAMS = PARAMS

    def model(self, batch, lr, wd, ema, vat, vat_eps, entmin_weight, warmup_kimg, nclass, **kwargs):
        x, y, label = self.inputs(batch, nu=1)  # [B, H, W, C]  [B, 1, H, W, C]  [B]
        weights, moments = self.weights(), []  # Batch norm's statistics of the labelled batch.
        average = self.create_average(weights, ema)
        u = tf.ensure_shape(y[:, 0], [batch, *self.dataset.shape])  # So that no draw waits for r to learn its shape.
        logits_x, logits_u = self.classify_each([x, u], moments)  # 2 * [B, nclass]
        d = XI * layers.normalise(tf.random.stateless_normal(tf.shape(u), self.keys('vat')))  # [B, H, W, C]
        (logits_d,) = self.classify_each([u + d], [])  # [B, nclass]
        (g,) = tf.gradients(layers.divergence(logits_u, logits_d), d)  # [B, H, W, C]
        r = tf.stop_gradient(vat_eps * layers.normalise(g))  # [B, H, W, C]
        (logits_r,) = self.classify_each([u + r], [])  # [B, nclass]

        loss_xe = layers.labeled_loss(tf.one_hot(label, nclass), logits_x)
        loss_vat = layers.divergence(tf.stop_gradient(logits_u), logits_r)
        loss_entmin = layers.entropy(logits_u)
        loss = loss_xe + vat * layers.ramp(self.step, warmup_kimg) * loss_vat + entmin_weight * loss_entmin

        train_op = layers.update(loss, weights, lr, wd, average, moments)
        losses = {'losses/xe': loss_xe, 'losses/vat': loss_vat, 'losses/entmin': loss_entmin}
        return self.finish(x, train_op, moments, average, y=y, label=label, losses=losses)


if __name__ == '__main__':
    experiment.main(VAT)
