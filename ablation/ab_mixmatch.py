"""MixMatch: A Holistic Approach to Semi-Supervised Learning (Berthelot et al. 2019), and every ablation of it.

python ablation/ab_mixmatch.py --dataset=cifar10.3@250-5000 --mixmode=xxy.yxy
"""

from libml import quiet

if __name__ == '__main__':
    quiet.import_tensorflow()  # Before anything below imports it, with its remarks.

import functools
import os
import shlex
import sys

import tensorflow.compat.v1 as tf
from easydict import EasyDict

from libml import checkpoints, data_pair, hardware, layers, models, networks, options, runs, train, utils
from libml.options import Option, above, at_least, below, between

PARAMS = dict(  # The model's hyperparameters. With the class they name the run's folder.
    batch=Option(64, 'Labelled images in an update, and as many unlabelled ones.', *between(1, 65536)),
    lr=Option(0.002, "Adam's learning rate.", *above(0)),
    wd=Option(0.02, 'Weight decay, times lr, at each update.', *at_least(0)),
    ema=Option(0.999, 'Decay of the moving average of the weights.', *below(0, 1)),
    beta=Option(0.5, "Both parameters of MixUp's Beta distribution.", *at_least(1e-6)),
    nu=Option(2, "Augmentations of each unlabelled image (the paper's K).", *between(1, 1024)),
    T=Option(0.5, 'Sharpening temperature; 1 leaves the guess as it is.', *at_least(1e-6)),
    use_ema_guess=Option(False, 'Guess labels with the averaged weights.'),
    mixmode=Option('xxy.yxy', 'What is mixed with what: <labelled>.<unlabelled>.', choices=layers.MixMode.MODES),
    w_match=Option(100.0, "Weight of the unlabelled loss (the paper's lambda_U).", *at_least(0)),
    warmup_kimg=Option(128, 'kimg over which the unlabelled loss gains its weight.', *at_least(0)),
    **models.PARAMS,  # arch, scales, filters, repeat
)
OPTIONS = {**PARAMS, **data_pair.TRAINING_OPTIONS, **train.OPTIONS}


def adam(loss, weights, lr):
    """Returns the op of one step of Adam. No name scope: its variables keep the published names."""
    with tf.name_scope(None):
        loss = utils.share_of_replica(loss)
        return tf.train.AdamOptimizer(lr).minimize(loss, var_list=weights, name='update/Adam')


class AblationMixMatch(models.MultiModel):
    """MixMatch. Every ablation is a value of an argument."""

    PARAMS = PARAMS

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
                train_op: one update. tune_op: updates only batch norm's averages, as one update would.
                classify_raw, classify_op: float32 [None, nclass], the class probabilities of x by the weights, and by
                    their moving average.
                losses, monitors: dicts from a tag of TensorBoard to float32 [].
        """
        # Inputs: x and y arrive augmented, y in nu different ways.
        x, y, label = self.inputs(batch, nu)  # [B, H, W, C]  [B, nu, H, W, C]  [B]
        classifier = functools.partial(self.classifier, **kwargs)
        weights = self.weights(**kwargs)
        average = tf.train.ExponentialMovingAverage(ema)
        average.apply(weights)  # This makes the averages. They move in the update below.
        getter_ema = functools.partial(utils.getter_ema, average)

        # Guess and sharpen: one label for all augmentations of an unlabelled image, taken as given.
        views = tf.unstack(y, axis=1)  # nu * [B, H, W, C]
        guess = self.guess_label(views, classifier, T, getter=getter_ema if use_ema_guess else None)
        label_x = tf.one_hot(label, nclass)  # [B, nclass]
        label_y = tf.stop_gradient(guess.p_target)  # [B, nclass]

        # Mix: labelled and unlabelled images, and their labels, as the mode says.
        with tf.name_scope('mixup'):
            mix = layers.MixMode(mixmode)
            images, labels = [x] + views, [label_x] + [label_y] * nu  # (1 + nu) * [B, ...]
            xy, labels = mix(images, labels, [beta, beta], self.keys('mixup'))  # (1 + nu) * [B, ...]

        # Interleave and classify: every batch is a mixture, and is normalised by its own statistics.
        with tf.name_scope('interleave'):
            batches = layers.interleave(xy, batch)  # (1 + nu) * [B, H, W, C]
        moments = []  # Batch norm's, of the first batch alone: the batches are alike, so one represents them all.
        logits = [classifier(batches[0], training=True, moments=moments)]
        logits += [classifier(b, training=True) for b in batches[1:]]
        with tf.name_scope('interleave'):
            logits = layers.interleave(logits, batch)  # (1 + nu) * [B, nclass]

        # Losses, and what an update changes, in this order.
        with tf.name_scope('losses'):
            loss_xe = layers.labeled_loss(labels[0], logits[0])
            loss_l2u = layers.unlabeled_loss(tf.concat(labels[1:], 0), tf.concat(logits[1:], 0))
            weight_l2u = w_match * layers.ramp(self.step, warmup_kimg)
            loss = loss_xe + weight_l2u * loss_l2u
        with tf.name_scope('update'):
            kernels = [v for v in weights if v.name.endswith('kernel:0')]
            train_op = utils.in_order(
                lambda: adam(loss, weights, lr),
                lambda: [v.assign(v * (1 - wd * lr)) for v in kernels],
                lambda: average.apply(weights),
                lambda: layers.update_moments(moments),
                lambda: self.advance(batch),
            )

        # Evaluation: by the weights, and by their moving average.
        classify_raw = tf.nn.softmax(classifier(x, training=False))  # [B, nclass]
        classify_op = tf.nn.softmax(classifier(x, training=False, getter=getter_ema))  # [B, nclass]
        return EasyDict(
            x=x,
            y=y,
            label=label,
            train_op=train_op,
            tune_op=layers.update_moments(moments),
            classify_raw=classify_raw,
            classify_op=classify_op,
            losses={'losses/xe': loss_xe, 'losses/l2u': loss_l2u},
            monitors={'monitors/weight_l2u': weight_l2u, **layers.guess_monitors(label_y)},
        )

    def augment(self, *args, **kwargs):
        raise NotImplementedError('Examples are mixed by layers.MixMode, in model().')

    def remedy(self):
        """See train.Model.remedy: a smaller lr or w_match, whichever is further above its default."""
        excess = {name: self.params[name] / PARAMS[name].default for name in ('lr', 'w_match')}
        if excess['w_match'] > max(1, excess['lr']):
            return '--w_match=%g' % PARAMS['w_match'].default
        return super().remedy()

    @staticmethod
    def flop(shape, batch, nu, arch, nclass, scales, filters, repeat, **_):
        """Returns the floating-point operations of an update; a backward pass counts twice."""
        forward = networks.describe(arch, shape, nclass, scales, filters, repeat).flop
        return forward * (nu + 3 * (nu + 1)) * batch

    @classmethod
    def check(cls, devices=1, **params):
        """See train.Model.check."""
        super().check(devices, **params)
        nu, batch, wd = params['nu'], params['batch'], params['wd']
        where = ' on each of %d devices' % devices if devices > 1 else ''
        least = 'at least nu + 1 = %d%s, to be interleaved' % (nu + 1, where)
        utils.check('batch', batch, batch // devices >= nu + 1, least)
        utils.check('wd', wd, wd * params['lr'] < 1, 'at least 0, and below 1 when multiplied by lr')


def model_params(given, family):
    """Returns the arguments of the model: PARAMS of the options given, completed from the data's Family.

    Raises:
        utils.Error: an argument is out of range.
    """
    params = {name: given[name] for name in PARAMS}
    AblationMixMatch.check(**params)
    params.update(scales=params['scales'] or max(1, utils.ilog2(family.width) - 2), nclass=family.nclass)
    return params


def what_next(folder, data_dir):
    """Returns the lines that say how to use a finished run; data_dir: as it was given, None for $ML_DATA."""
    run = shlex.quote(folder)
    place = ' --data_dir=%s' % shlex.quote(data_dir) if data_dir else ''
    return (
        'What it has learned:\n'
        f'  python scripts/evaluate.py {run}{place}\n'
        f'  python scripts/predict.py {run} PICTURES --out predictions.csv{place}\n'
        f'  python scripts/export.py {run} OUT{place}'
    )


def join_hosts(machine, given, seeded):
    """Makes sure that all hosts of a run were started alike. Host 0 prints for all from here on.

    Args:
        machine: hardware.Machine.
        given: dict of OPTIONS.
        seeded: whether the seed is given, or the run has one already.

    Raises:
        utils.Error: hosts differ, or each would draw a seed of its own.
    """
    machine.check_hosts(repr(sorted(given.items())))
    utils.check('seed', given['seed'], seeded or machine.hosts == 1, 'given, the same on all hosts')
    if machine.host:
        sys.stdout = utils.nowhere()


def run(**given):
    """Trains a run, or evaluates a checkpoint.

    Args:
        **given: see OPTIONS; what is not given has its default.

    Raises:
        utils.Error, SystemExit: see train.Model.train.
    """
    o = EasyDict(options.fill(OPTIONS, given))
    split, data_dir = data_pair.parse(o.dataset), data_pair.find_data_dir(o.data_dir)
    family = data_pair.find_family(data_dir, split.name)
    params, train_nimg = model_params(o, family), o.train_kimg << 10
    train_dir = os.path.join(o.train_dir, str(split))
    chosen = dict(whiten=o.whiten, p_unlabeled=o.p_unlabeled)
    saved = runs.Run(AblationMixMatch.run_dir(train_dir, o.seed, precision=o.precision, **chosen, **params))
    saved.check_name()
    if o.eval_ckpt:
        # The training graph re-tunes batch norm, so the classifier of predict.py (libml.trained) cannot serve here.
        o.eval_ckpt = checkpoints.resolve(o.eval_ckpt)
    elif saved.is_finished(train_nimg, precision=o.precision, **chosen):
        data_pair.check_unchanged(split, data_dir, saved.args.get('data'), saved.folder)
        print('%s is finished: a larger --train_kimg than %d continues from there' % (saved.folder, o.train_kimg))
        return
    else:
        checkpoints.initial(saved.checkpoint_dir, o.init_ckpt)  # Raises what is wrong, before the data is read.
    xla = saved.args.get('xla') if o.xla is None else o.xla  # As the run began, or as asked for.
    updates = 0 if o.eval_ckpt else train_nimg // o.batch
    machine = hardware.choose(AblationMixMatch.flop(family.shape, **params), updates, xla, o.devices)
    AblationMixMatch.check(machine.replicas, **params)
    join_hosts(machine, o, seeded=o.seed is not None or bool(saved.args))
    print('Reading %s' % split, flush=True)
    dataset = data_pair.read_dataset(split, data_dir, seed=o.seed or 0, needs_unlabeled=o.w_match > 0, **chosen)
    model = AblationMixMatch(train_dir, dataset, seed=o.seed, precision=o.precision, machine=machine, **params)
    model.config.log_device_placement = o.log_device_placement
    if o.eval_ckpt:
        source = runs.Run(runs.folder_of(o.eval_ckpt))
        dataset.check_identity(source.args, source.folder)
        model.eval_checkpoint(o.eval_ckpt)
    else:
        model.train(train_nimg, o.report_kimg << 10, o.save_kimg << 10, o.keep_ckpt, o.init_ckpt)
        print(what_next(saved.folder, o.data_dir))


def main():
    """Does what the command line asks for."""
    options.run(run, OPTIONS, 'give flags only, such as --dataset=digits.1@20-100')


if __name__ == '__main__':
    main()
