"""The curves that show the method at work: means over updates, the weight of the unlabelled loss, the guesses."""

import os
import signal
from unittest import mock

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import PARAMS, QUICK, evaluate, make_dataset, make_model, scalars

from ablation.ab_mixmatch import AblationMixMatch
from libml import layers
from libml.running import trainer

BATCH = PARAMS['batch']
POINT = 3 * BATCH  # Images between points of the curves.
REPORT = POINT * trainer.POINTS
LENGTH = 8 * BATCH  # The run's: two points, and a shorter one at its end.


def run(train_dir, stop=None, length=LENGTH, **params):
    """Trains a tiny run in a graph of its own, SIGTERM comes during update `stop`.

    Returns:
        (the values of each update, list of dicts by tag; the curves, see conftest.scalars)
    """
    values = []
    with tf.Graph().as_default():
        model = make_model(train_dir, **{**QUICK, **params})
        check = model.trainer.check_finite

        def noted(found, step):
            values.append(dict(zip(model.trainer.scalars, map(float, found), strict=True)))
            if len(values) == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return check(found, step)

        model.trainer.check_finite = noted
        try:
            model.train(length, REPORT, save_nimg=length)
        except SystemExit as stopped:
            assert stop and stopped.code == trainer.EXIT_INTERRUPTED
    return values, scalars(model.checkpoint_dir)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """What `run` returns of a run that nothing stops."""
    return run(tmp_path_factory.mktemp('whole'))


def test_points_are_means_over_all_updates_since_the_last(whole):
    values, curves = whole
    updates = [range(0, 3), range(3, 6), range(6, 8)]
    assert set(values[0]) == {
        *('losses/xe', 'losses/l2u'),
        *('monitors/weight_l2u', 'monitors/guess_confidence', 'monitors/guess_entropy'),
    }
    for tag in values[0]:
        expected = [np.mean([values[i][tag] for i in some]) for some in updates]
        assert [step for step, _ in curves[tag]] == [POINT, 2 * POINT, LENGTH]
        np.testing.assert_allclose([value for _, value in curves[tag]], expected, rtol=1e-6)


def test_a_run_that_was_stopped_between_points_and_at_one_has_the_same_curves(whole, tmp_path):
    values = []
    for stop in 1, 3, 2, None:  # After the updates 1, 4 and 6, of which the last is a point's.
        more, curves = run(tmp_path, stop)
        assert stop in (None, len(more))
        values += more
    assert (values, curves) == whole


def test_no_more_points_than_updates(tmp_path):
    _, curves = run(tmp_path, nu=2, length=4 * BATCH, batch=POINT)  # A batch reaches from one point to the next.
    assert [step for step, _ in curves['losses/xe']] == [POINT, 2 * POINT]


def test_the_weight_is_the_ramps(whole):
    expected = [PARAMS['w_match'] * i * BATCH / 1024 for i in range(len(whole[0]))]
    np.testing.assert_allclose([value['monitors/weight_l2u'] for value in whole[0]], expected, rtol=1e-6)


@pytest.mark.parametrize(
    'guesses, confidence, entropy',
    [
        ([[1, 0, 0, 0]] * 3, 1, 0),
        (np.eye(4), 1, 1),
        (np.full([2, 4], 0.25), 0.25, 1),
        ([[0.5, 0.5, 0, 0]] * 2, 0.5, 0.5),
        (
            [[1, 0, 0, 0], [0, 0.6, 0.4, 0]],
            0.8,
            -(0.5 * np.log(0.5) + 0.3 * np.log(0.3) + 0.2 * np.log(0.2)) / np.log(4),
        ),
    ],
    ids=['one class', 'sure and varied', 'unsure', 'two classes', 'mixed'],
)
def test_what_is_said_of_guesses(guesses, confidence, entropy):
    found = evaluate(layers.guess_monitors(tf.constant(guesses, tf.float32)))
    assert found['monitors/guess_confidence'] == pytest.approx(confidence, abs=1e-6)
    assert found['monitors/guess_entropy'] == pytest.approx(entropy, abs=1e-6)


def test_a_collapse_is_said_once(tmp_path, capsys):
    model = make_model(tmp_path, **QUICK)
    means = trainer.Means(['monitors/weight_l2u', 'monitors/guess_entropy'])
    with model.trainer.opening_session() as session:
        loop = trainer.Loop(model.trainer, session, 0, means, None, mock.Mock(), None, [])

    def said(weight, entropy):
        means.add([weight, entropy])
        loop.write_point()
        return capsys.readouterr().out

    assert said(weight=0.0, entropy=0.01) == ''  # The guesses do not count yet.
    assert said(weight=1.0, entropy=0.31) == ''  # Two classes of ten.
    line = said(weight=1.0, entropy=0.01)
    assert '--w_match' in line and '--warmup_kimg' in line and line.count('\n') == 1
    assert said(weight=1.0, entropy=0.0) == ''


def test_a_run_whose_guesses_collapse_says_so(tmp_path, capsys, monkeypatch):
    def collapsed(self, y, classifier, T, getter=None, **kwargs):
        guess = guess_label(self, y, classifier, T, getter, **kwargs)
        guess.p_target = tf.one_hot(tf.zeros([BATCH], tf.int32), 3)
        return guess

    guess_label = AblationMixMatch.guess_label
    monkeypatch.setattr(AblationMixMatch, 'guess_label', collapsed)
    run(tmp_path)
    assert capsys.readouterr().out.count('Nearly all guesses are one class') == 1


@pytest.mark.parametrize('test_labels, balanced', [([0, 0, 0, 0, 0, 1, 2], 100 * 2 / 3), ([0, 0, 1, 1, 2, 2], None)])
def test_balanced_accuracy_where_classes_are_unequal(test_labels, balanced, tmp_path, monkeypatch):
    dataset = make_dataset()
    dataset.sets['test'] = dataset.sets['test'].select(np.arange(len(test_labels)))
    dataset.sets['test'].labels[:] = test_labels
    model = make_model(tmp_path, dataset, **QUICK)
    guesses = np.where(np.equal(test_labels, 1), 0, test_labels)
    monkeypatch.setattr(
        model, 'predict_classes', lambda **_: [*(dataset.sets[name].labels for name in ('labeled', 'valid')), guesses]
    )
    found = model.report(1024)
    assert found['accuracy'] == pytest.approx(100 * np.mean(guesses == test_labels))
    assert found.get('accuracy/balanced') == (balanced and pytest.approx(balanced))
