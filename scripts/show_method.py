"""Draws what MixMatch does with a few unlabelled pictures: augment, guess, average, sharpen, mix.

    python scripts/show_method.py RUN --out method.png

Each picture is a column. Its rows, from above: the original; its K augmentations, each with the network's prediction;
their mean; the sharpened guess; the partner with its label; the mixed picture with its label. Everything is computed by
the functions that the training uses, with the weights of a checkpoint, and drawn anew for the picture.
"""

import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # The libml beside this file.
    from libml.cli import quiet

    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

import numpy as np
import tensorflow.compat.v1 as tf
from easydict import EasyDict
from matplotlib.figure import Figure

from ablation.ab_mixmatch import PARAMS, AblationMixMatch
from libml import data_pair, layers, trained, utils
from libml.cli import drawing, script
from libml.cli.options import SEED, Option, Range
from libml.running import runs

OPTIONS = dict(
    out=Option('method.png', 'Where the picture goes; an older one is replaced.', path=True),
    number=Option(4, 'Pictures to show.', Range(1, 12)),
    seed=Option(1, 'Chooses the pictures and the draws.', SEED),
    ckpt=trained.OPTIONS['ckpt'],
    **data_pair.OPTIONS,
)
MOST_NAMES = 20  # Classes whose names stand below the bars.


class NotedMixMode(layers.MixMode):
    """A MixMode that keeps what it draws for the unlabelled side: `noted`, (m, partners); see MixMode.draw."""

    noted = None

    def draw(self, side, *args):
        """See MixMode."""
        found = super().draw(side, *args)
        if side == 'y':
            self.noted = found
        return found


def build(model, dataset):
    """Builds the steps of the method on a batch; returns tensors, each [B, ...] or a list of these.

    Returns:
        EasyDict of original uint8 [B, H, W, C]; label int32 [B]; views, list of nu float32 [B, H, W, C]; predictions,
        list of nu float32 [B, nclass]; mean, guess float32 [B, nclass]; and, of the first views, if they are mixed, m
        float32 [B], partner and mixed float32 [B, H, W, C], partner_label and mixed_label float32 [B, nclass].
    """
    p, averages = model.params, {v.op.name: v for v in tf.global_variables()}

    def average(getter, name, *args, **kwargs):
        variable = getter(name, *args, **kwargs)
        return averages.get(name + trained.AVERAGE, variable)

    getter = average if p.use_ema_guess else None
    labeled, unlabeled = (model.next_batch(name, p.batch) for name in ('labeled', 'unlabeled'))
    x = dataset.augment(labeled['image'], model.keys('show'))
    views = [dataset.augment(unlabeled['image'], model.keys('show')) for _ in range(p.nu)]
    logits = model.classify_each(views, [], getter=getter)
    guess = model.guess_label(views, model.classifier, p.T, getter=getter)
    found = EasyDict(original=unlabeled['image'], label=unlabeled['label'], views=views)
    found.update(predictions=[tf.nn.softmax(v) for v in logits], mean=guess.p_model, guess=guess.p_target)
    mode = NotedMixMode(p.mixmode)
    images, labels = [x, *views], [tf.one_hot(labeled['label'], dataset.nclass)] + [guess.p_target] * p.nu
    mixed_images, mixed_labels = mode(images, labels, [p.beta, p.beta], model.keys('show'))
    if mode.noted:
        pool = {'x': slice(1), 'y': slice(1, None), 'xy': slice(None)}[layers.MIXES[p.mixmode][1][0]]
        m, partner = (v[: p.batch] for v in mode.noted)
        partner, partner_label = (tf.gather(tf.concat(v[pool], 0), partner) for v in (images, labels))
        found.update(
            m=m, partner=partner, partner_label=partner_label, mixed=mixed_images[1], mixed_label=mixed_labels[1]
        )
    return found


def compute(run, seed, ckpt='', data_dir=None):
    """Returns the run's data.DataSet, its args, and what `build` returns, as arrays, by a checkpoint of the run.

    Raises:
        utils.Error: the run is another method's, or its dataset or its checkpoint is gone or another.
    """
    folder = runs.find_folder(run)
    with runs.resolve(ckpt or run) as held:
        args = trained.read_args(folder)
        missing = sorted(set(PARAMS) - set(args))
        text = '%s is a run of %s: only those of MixMatch can be shown'
        if missing or args.get('class', 'AblationMixMatch') != 'AblationMixMatch':
            raise utils.Error(text % (folder, utils.escape(args.get('class', 'another method'))))
        dataset = trained.read_dataset(folder, args, data_dir, args.get('whiten', False), needs_unlabeled=True)
        with tf.Graph().as_default():
            model = AblationMixMatch('', dataset, seed=seed, nclass=dataset.nclass, **{n: args[n] for n in PARAMS})
            with model.trainer.opening_session() as session:
                model.trainer.checkpoints.restore(session, held)
                session.run(tf.assign(model.step, 0))  # The seed alone chooses the pictures.
                found = build(model, dataset)
                session.run([iterator.initializer for iterator in model.iterators])
                return dataset, args, session.run(found)


def draw(dataset, args, found, number):
    """Returns the Figure of what `compute` returned, for the first `number` pictures."""
    number = min(number, len(found['original']))
    rows = [('original', found['original'], None)]
    rows += [
        ('view %d' % (k + 1), *both) for k, both in enumerate(zip(found['views'], found['predictions'], strict=True))
    ]
    rows += [
        ('mean of the\npredictions', None, found['mean']),
        ('sharpened,\nT = %g' % args['T'], None, found['guess']),
    ]
    if 'm' in found:
        rows += [('partner', found['partner'], found['partner_label']), ('mixed', found['mixed'], found['mixed_label'])]
    figure = Figure(figsize=(1.2 + 3.2 * number, 0.6 + 1.15 * len(rows)), layout='constrained')
    axes = figure.subplots(len(rows), 2 * number, squeeze=False, width_ratios=[1, 2] * number)
    for i, (title, images, labels) in enumerate(rows):
        axes[i, 0].set_ylabel(title, rotation=0, ha='right', va='center')
        for j in range(number):
            picture, bars = axes[i, 2 * j : 2 * j + 2]
            for side in (picture, bars):
                side.set(xticks=[], yticks=[])
                side.spines[:].set_visible(False)
            if images is not None:
                show_picture(picture, images[j])
            if labels is None:
                label = found['label'][j]
                bars.set_title(
                    'class unknown' if label < 0 else 'class: %s' % dataset.family.names[label], fontsize=8, y=0.4
                )
            else:
                show_bars(bars, labels[j], dataset.family.names, last=i == len(rows) - 1)
            if title == 'mixed':
                picture.set_title("λ' = %.2f" % found['m'][j], fontsize=8, pad=2)
    return figure


def show_picture(axes, image):
    """Draws a picture: uint8, or float32 in [-1, 1]; [H, W, C]."""
    pixels = image if image.dtype == np.uint8 else np.round((image + 1) * 127.5).astype(np.uint8)
    axes.imshow(np.broadcast_to(pixels, [*pixels.shape[:2], 3]))


def show_bars(axes, p, names, last):
    """Draws a bar for each class of p, float32 [nclass]; the likeliest has a title. The last row has the names."""
    best = int(p.argmax())
    axes.bar(range(len(p)), p, color=['tab:orange' if c == best else 'tab:blue' for c in range(len(p))])
    axes.set(ylim=(0, 1), xlim=(-0.6, len(p) - 0.4))
    axes.spines['bottom'].set_visible(True)
    axes.set_title('%s: %.0f %%' % (names[best][:20], 100 * p[best]), fontsize=8, pad=2)
    if last and len(p) <= MOST_NAMES:
        axes.set_xticks(range(len(p)), [name[:12] for name in names], rotation=90, fontsize=7)


def show(run, out='method.png', number=4, seed=1, ckpt='', data_dir=None):
    """Writes the picture of a run; the arguments are the options."""
    utils.require('out', out, out, 'a path')
    dataset, args, found = compute(run, seed, ckpt, data_dir)
    with drawing.styling():
        drawing.save(draw(dataset, args, found, number), out)
    print('picture: %s' % out)


if __name__ == '__main__':
    script.run(show, OPTIONS, 'which run? Such as: python scripts/show_method.py RUN --out method.png')
