"""A class written for the published libml runs here: placeholders, UPDATE_OPS, summaries, no PARAMS, no step."""

import functools

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import PARAMS, QUICK, assign, first_is_fast, make_dataset, make_model, scalars, variables
from easydict import EasyDict

from libml import data_pair, layers, models, trained, utils
from libml.running import checkpoints, runs


class OldStyle(models.MultiModel):
    """MixMatch as a user of the published code would write it."""

    def guess_label(self, y, classifier, T, getter=None, **kwargs):
        del getter
        logits_y = [classifier(yi, training=True, **kwargs) for yi in y]
        p_model = tf.reduce_mean(tf.nn.softmax(logits_y), axis=0)
        p_target = tf.pow(p_model, 1.0 / T)
        p_target /= tf.reduce_sum(p_target, axis=1, keepdims=True)
        return EasyDict(p_target=p_target, p_model=p_model)

    def model(self, nu, w_match, warmup_kimg, batch, lr, wd, ema, beta, mixmode, use_ema_guess, **kwargs):
        hwc = [self.dataset.height, self.dataset.width, self.dataset.colors]
        x_in = tf.placeholder(tf.float32, [None] + hwc, 'x')
        y_in = tf.placeholder(tf.float32, [None, nu] + hwc, 'y')
        l_in = tf.placeholder(tf.int32, [None], 'labels')
        weight = w_match * tf.clip_by_value(tf.cast(self.step, tf.float32) / (warmup_kimg << 10), 0, 1)
        classifier = functools.partial(self.classifier, **kwargs)

        guess = self.guess_label(tf.unstack(y_in, axis=1), classifier, **kwargs)
        ly = tf.stop_gradient(guess.p_target)
        mix = layers.MixMode(mixmode)
        xy, labels = mix([x_in, *tf.unstack(y_in, axis=1)], [tf.one_hot(l_in, self.nclass)] + [ly] * nu, [beta, beta])
        batches = layers.interleave(xy, batch)
        before = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        logits = [classifier(batches[0], training=True)]
        moves = [op for op in tf.get_collection(tf.GraphKeys.UPDATE_OPS) if op not in before]
        logits = layers.interleave(logits + [classifier(b, training=True) for b in batches[1:]], batch)

        loss_xe = tf.nn.softmax_cross_entropy_with_logits_v2(labels=labels[0], logits=logits[0])
        loss_xe = tf.reduce_mean(loss_xe)
        loss_l2u = tf.square(tf.concat(labels[1:], 0) - tf.nn.softmax(tf.concat(logits[1:], 0)))
        loss_l2u = tf.reduce_mean(loss_l2u)
        tf.summary.scalar('losses/xe', loss_xe)
        tf.summary.scalar('losses/l2u', loss_l2u)

        average = tf.train.ExponentialMovingAverage(decay=ema)
        train_op = tf.train.AdamOptimizer(lr).minimize(loss_xe + weight * loss_l2u)
        with tf.control_dependencies([train_op]):
            decay = [tf.assign(v, v * (1 - wd * lr)) for v in utils.model_vars('classify') if 'kernel' in v.name]
        with tf.control_dependencies(decay):
            ema_op = average.apply(utils.model_vars())
        with tf.control_dependencies([ema_op]):
            train_op = tf.group(*moves)
        getter = functools.partial(utils.getter_ema, average)
        return EasyDict(
            x=x_in,
            y=y_in,
            label=l_in,
            train_op=train_op,
            tune_op=tf.group(*moves),
            classify_raw=tf.nn.softmax(classifier(x_in, training=False)),
            classify_op=tf.nn.softmax(classifier(x_in, getter=getter, training=False)),
        )


OLD = {**PARAMS, 'warmup_kimg': 1, 'ema': 0.9}


def make_old(train_dir, dataset, cls=OldStyle, **params):
    return cls(str(train_dir), dataset, **{'nclass': dataset.nclass, **OLD, **params})


@pytest.mark.parametrize(('arch', 'mixmode'), first_is_fast(('resnet', 'xxy.yxy'), ('shake', '.')))
def test_its_update_is_ours(arch, mixmode, tmp_path, monkeypatch):
    mix = layers.MixMode.__call__
    monkeypatch.setattr(
        layers.MixMode, '__call__', lambda self, xl, ll, betal, _=None: mix(self, xl, ll, betal, [3, 4])
    )
    dataset, after, checked = make_dataset(), {}, 0
    batch = [np.random.RandomState(0).uniform(-1, 1, shape).astype('f') for shape in ([4, 8, 8, 1], [4, 2, 8, 8, 1])]
    for name in ('ours', 'theirs'):
        with tf.Graph().as_default():
            model = make_model(tmp_path, dataset, **OLD | dict(arch=arch, mixmode=mixmode)) if name == 'ours' else None
            model = model or make_old(tmp_path, dataset, arch=arch, mixmode=mixmode, seed=1)
            with model.trainer.opening_session() as session:
                assign(session, dict(global_step=512))
                feed = dict(zip((model.ops.x, model.ops.y, model.ops.label), [*batch, [0, 1, 2, 0]], strict=True))
                session.run(model.ops.train_op, feed)
                after[name] = variables(session)
    for name, value in after['ours'].items():
        # A bias before batch norm has no gradient but rounding, of which Adam makes steps of any size.
        if '/bias' not in name and 'moving_mean' not in name and not name.startswith('update/'):
            np.testing.assert_allclose(after['theirs'][name], value, rtol=1e-4, atol=1e-5, err_msg=name)
            checked += name.startswith('classify/')
    assert checked > 20
    assert after['theirs']['global_step'] == 516


def test_it_trains_resumes_reports_and_predicts(tmp_path):
    dataset = make_dataset()
    for train_nimg in (8, 16):
        with tf.Graph().as_default():
            model = make_old(tmp_path, dataset, seed=1, nu=1)
            start = model.eval_checkpoint(model.checkpoint_dir) if train_nimg > 8 else None
            model.train(train_nimg, 8)
    assert [step for step, _ in runs.read_accuracies(model.train_dir)] == [8, 16]
    found = scalars(model.checkpoint_dir)
    assert start['ema'][2] == pytest.approx(found['accuracy'][0][1])
    assert {'losses/xe', 'losses/l2u'} <= set(found)
    moved = checkpoints.read(utils.find_latest_checkpoint(model.checkpoint_dir))
    assert moved['global_step'] == 16 and np.any(moved['classify/batch_normalization/moving_mean'])
    args = trained.read_args(model.train_dir)
    assert args['class'] == 'OldStyle' and args['nclass'] == dataset.nclass


class OneView(OldStyle):
    """A method whose `y` has one view of each image, [None, H, W, C], as the published vat, pseudo_label and mixup."""

    def model(self, batch, nu, w_match, warmup_kimg, lr, wd, ema, beta, mixmode, use_ema_guess, **kwargs):
        hwc = [self.dataset.height, self.dataset.width, self.dataset.colors]
        x_in, y_in = (tf.placeholder(tf.float32, [None] + hwc, name) for name in 'xy')
        l_in = tf.placeholder(tf.int32, [None], 'labels')
        classifier = functools.partial(self.classifier, **kwargs)
        logits = classifier(x_in, training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=l_in, logits=logits))
        loss += tf.reduce_mean(tf.square(classifier(y_in, training=True)))
        train_op = tf.train.AdamOptimizer(lr).minimize(loss)
        probabilities = tf.nn.softmax(classifier(x_in, training=False))
        both = dict(classify_raw=probabilities, classify_op=probabilities)
        return EasyDict(x=x_in, y=y_in, label=l_in, train_op=train_op, tune_op=tf.no_op(), **both)


def test_one_view_of_unlabelled_images_is_fed_without_an_axis_of_views(tmp_path):
    model = make_old(tmp_path, make_dataset(), OneView, seed=1)
    model.train(8, 8)
    assert [step for step, _ in runs.read_accuracies(model.train_dir)] == [8]
    with model.trainer.opening_session() as session:
        session.run(model.trainer.init_input_op)
        assert model.draw_feed(session)[model.ops.y].shape == (4, 8, 8, 1)
    assert model.eval_batch == 4 * 2


def test_a_name_that_is_no_argument_is_an_error(tmp_path):
    model = make_old(tmp_path, make_dataset(), **QUICK)
    with pytest.raises(TypeError, match='no argument filtres'):
        model.classifier(model.ops.x, filtres=4)


def test_what_it_has_learned_is_used_as_ours_is(digits_dir, tmp_path):
    dataset = data_pair.DATASETS['digits.1@20-100'](str(digits_dir))
    with tf.Graph().as_default():
        model = make_old(tmp_path / dataset.name, dataset, seed=1)
        model.train(8, 8)
    classifier = trained.load(model.train_dir, data_dir=str(digits_dir))
    images = dataset.sets['test'].select(slice(40))
    with tf.Graph().as_default():
        model = make_old(tmp_path / dataset.name, dataset, seed=1)
        with model.trainer.opening_session() as session:
            with checkpoints.Held(classifier.ckpt) as held:
                model.trainer.checkpoints.restore(session, held)
            pixels = images.gather(np.arange(40))
            expected = session.run(model.ops.classify_op, {model.ops.x: dataset.to_float(pixels)})
    np.testing.assert_allclose(classifier.classify(pixels), expected, atol=1e-5)
