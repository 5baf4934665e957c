"""What show_method draws is what the training computes."""

import functools
import glob
import os
import shutil

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import tiny
from conftest import first_is_fast
from PIL import Image

from ablation.ab_mixmatch import AblationMixMatch
from libml import experiment, files, sheet, utils
from scripts import show_method

TINY = dict(tiny.RUN, batch=24, T=0.25)


@pytest.fixture(scope='module')
def train(digits_dir, tmp_path_factory):
    """A function that trains a tiny run, once for equal arguments; returns its folder, to be left as it is."""

    @functools.cache
    def train(**given):
        folder = str(tmp_path_factory.mktemp('run'))
        with tf.Graph().as_default():
            experiment.run(AblationMixMatch, data_dir=str(digits_dir), train_dir=folder, **TINY, **given)
        return glob.glob(os.path.join(folder, '*', '*'))[0]

    return train


MIXED, AVERAGED = dict(mixmode='xxy.yxy', nu=3), dict(mixmode='xx.yx', use_ema_guess=True)


@pytest.mark.parametrize('how', first_is_fast(MIXED, AVERAGED))
def test_the_steps_follow_from_each_other(how, train, digits_dir):
    run = train(**how)
    dataset, args, found = show_method.compute(run, seed=2, data_dir=str(digits_dir))
    predictions = np.array(found['predictions'])
    assert predictions.shape == (args['nu'], 24, 10)
    np.testing.assert_allclose(predictions.sum(2), 1, rtol=1e-5)
    np.testing.assert_allclose(found['mean'], predictions.mean(0), rtol=1e-5)
    powers = found['mean'].astype(float) ** 4
    np.testing.assert_allclose(found['guess'], powers / powers.sum(1, keepdims=True), rtol=1e-4, atol=1e-6)
    m = found['m'][:, None, None, None]
    assert np.all(m >= 0.5)
    np.testing.assert_allclose(found['mixed'], m * found['views'][0] + (1 - m) * found['partner'], atol=1e-5)
    mixed_label = m[..., 0, 0] * found['guess'] + (1 - m[..., 0, 0]) * found['partner_label']
    np.testing.assert_allclose(found['mixed_label'], mixed_label, atol=1e-5)
    for image, label in zip(found['original'], found['label'], strict=True):  # The dataset's own unlabelled pictures.
        images = dataset.sets['unlabeled']
        same = np.flatnonzero((images.gather(np.arange(len(images))) == image).all((1, 2, 3)))
        assert label in images.labels[same]
    again = show_method.compute(run, seed=2, data_dir=str(digits_dir))[2]
    other = show_method.compute(run, seed=3, data_dir=str(digits_dir))[2]
    assert np.array_equal(found['mixed'], again['mixed']) and not np.array_equal(found['original'], other['original'])


@pytest.mark.slow
def test_the_averaged_weights_guess_where_the_run_says_so(train, digits_dir, tmp_path):
    run, guesses = shutil.copytree(train(**AVERAGED), tmp_path / 'run'), []
    path = os.path.join(run, 'args', 'args.json')
    args = files.read_json(path, {})
    for use in (True, False):
        files.write_json(path, dict(args, use_ema_guess=use))
        guesses.append(show_method.compute(run, seed=2, data_dir=str(digits_dir))[2]['guess'])
    assert not np.array_equal(*guesses)


@pytest.mark.parametrize('how, rows', first_is_fast((MIXED, 8), (dict(mixmode='xxy.', nu=2), 5)))
def test_the_picture_has_a_row_for_each_step(how, rows, train, digits_dir, tmp_path):
    run, out = train(**how), str(tmp_path / 'm.png')
    show_method.show(run, out, number=3, data_dir=str(digits_dir))
    assert Image.open(out).size[0] == sheet.TITLES + 3 * (sheet.SIDE + sheet.BARS + 2 * sheet.GAP)
    found = show_method.compute(run, 1, data_dir=str(digits_dir))[2]
    assert len(sheet.list_rows(found, T=0.25)) == rows


def test_a_run_of_another_method_is_an_error(train, digits_dir, tmp_path):
    run = shutil.copytree(train(**MIXED), tmp_path / 'run')
    path = os.path.join(run, 'args', 'args.json')
    args = files.read_json(path, {})
    files.write_json(path, dict(args, **{'class': 'PiModel'}))
    with pytest.raises(utils.Error, match='run of PiModel: only those of MixMatch'):
        show_method.compute(run, seed=1, data_dir=str(digits_dir))


def test_an_empty_name_is_refused_before_anything_is_read():
    with pytest.raises(utils.Error, match='a path'):
        show_method.show('nowhere', out='')
