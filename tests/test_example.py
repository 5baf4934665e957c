"""The example of docs/methods.md: another method trains, continues and is evaluated, and the page shows it as it is."""

import os

import conftest
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import tiny

from examples import pi_model
from libml import utils
from libml.running import runs

PARAMS = dict(tiny.SIZE, arch='resnet', batch=4, lr=0.002, wd=0.02, ema=0.9)
OWN = dict(consistency_weight=10, warmup_kimg=0)


def make(folder, **params):
    """Returns a tiny PiModel in a graph of its own."""
    with tf.Graph().as_default():
        dataset = conftest.make_dataset()
        return pi_model.PiModel(str(folder), dataset, nclass=dataset.nclass, seed=1, **{**PARAMS, **OWN, **params})


def test_another_method_trains_two_updates_and_is_evaluated(tmp_path):
    model = make(tmp_path)
    model.train(train_nimg=8, report_nimg=8)
    ckpt = utils.find_latest_checkpoint(model.checkpoint_dir)
    assert ckpt.endswith('-%010d' % 8)
    (report,) = runs.read_accuracies(model.train_dir)
    results = make(tmp_path).eval_checkpoint(ckpt)
    assert set(results) == {'raw', 'ema', 'tuned_raw', 'tuned_ema'}
    assert results['ema'][2] == pytest.approx(report[1])


def test_another_method_goes_on_as_if_it_had_not_been_stopped(tmp_path):
    weights = {}
    for name, stops in dict(once=[16], twice=[8, 16]).items():
        for stop in stops:
            model = make(tmp_path / name)
            model.train(train_nimg=stop, report_nimg=8)
        reader = tf.train.load_checkpoint(utils.find_latest_checkpoint(model.checkpoint_dir))
        weights[name] = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
    assert weights['once'].keys() == weights['twice'].keys()
    for key, value in weights['once'].items():
        np.testing.assert_array_equal(value, weights['twice'][key], err_msg=key)


def test_another_method_checks_its_arguments(tmp_path):
    with pytest.raises(utils.Error, match='consistency_weight=-1 is not allowed: it must be at least 0'):
        make(tmp_path, consistency_weight=-1)


def test_the_page_shows_the_example_as_it_is():
    with open(os.path.join(conftest.ROOT, 'examples', 'pi_model.py'), encoding='utf-8') as file:
        code = file.read()
    with open(os.path.join(conftest.ROOT, 'docs', 'methods.md'), encoding='utf-8') as file:
        assert code in file.read()
