"""Faults that were found in a run's folder and around it: links, notes, leftovers, signals, what belongs together."""

import json
import os
import pathlib
import shutil
import tempfile
import threading

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import tiny
from conftest import LONGER, QUICK, assert_one_line_error, make_dataset, make_model, scalars, tf_dir

from ablation.ab_mixmatch import AblationMixMatch
from libml import data, experiment, files, trained, utils
from libml.intake import labels
from libml.running import checkpoints, hardware, trainer
from scripts import evaluate, extract_accuracy

# --- Links ---


@pytest.mark.parametrize('name', ['lock', 'tf', 'args', 'stats'])
def test_nothing_is_written_or_removed_through_a_link_in_a_runs_folder(start, copy, tmp_path, name):
    run = pathlib.Path(tf_dir(copy)).parent
    other = tmp_path / 'other'
    if name == 'lock':
        other.write_text("somebody's")
    elif (run / name).exists():
        shutil.copytree(run / name, other)
        (other / 'thesis.part-1').write_text("somebody's")
        shutil.rmtree(run / name)
    else:
        other.mkdir()
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(other)
    before = {path: path.read_bytes() for path in (other.rglob('*') if other.is_dir() else [other]) if path.is_file()}
    assert_one_line_error(start(copy, LONGER, '--keep_ckpt=1'), run / name, 'is a link')
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize('name', ['stats', 'evaluation'])
def test_no_result_is_written_through_a_link(name, copy, digits_dir, tmp_path):
    run, other = os.path.dirname(tf_dir(copy)), tmp_path / 'other'
    other.mkdir()
    os.symlink(other, os.path.join(run, name))
    with pytest.raises(utils.Error, match='is a link'):
        extract_accuracy.extract_accuracy(run) if name == 'stats' else evaluate.evaluate(run, data_dir=str(digits_dir))
    assert not os.listdir(other)


def test_what_other_programs_leave_in_a_runs_folder_stays(start, copy):
    folder = pathlib.Path(tf_dir(copy))
    others = [folder / name for name in ('notes.part-1', 'model.ckpt-0000000032.txt', 'x.index.tempstate1')]
    for path in others:
        path.write_text("somebody's")
    assert start(copy, LONGER, '--keep_ckpt=1').returncode == 0
    assert [path.read_text() for path in others] == ["somebody's"] * 3


# --- What is beside a checkpoint ---


def test_a_note_that_is_not_what_is_expected_stops_no_run(tmp_path):
    model = make_model(tmp_path, **QUICK)
    model.train(8, 8)
    for note in {}, [10**400, [1] * 5]:  # Of new and of old runs.
        ckpt = utils.find_latest_checkpoint(model.checkpoint_dir)
        pathlib.Path(ckpt + checkpoints.NOTE).write_text(json.dumps(note))
        model.train(checkpoints.step(ckpt) + 8, 8)
        assert utils.get_latest_global_step(model.checkpoint_dir) == checkpoints.step(ckpt) + 8, note
    for note in {}, [float('inf'), []], [-1, [0] * 5], [10**400, [1] * 5], 'x', [1, 2]:
        means = trainer.Means(['a'], note)
        assert means.count == 0 and not means.sums.any(), note


def test_no_named_pipe_is_waited_for(start, copy):
    ckpt = checkpoints.find(tf_dir(copy))[-1]
    args = os.path.join(tf_dir(copy), '..', 'args', 'args.json')
    for path in (checkpoints.list_files(ckpt)[0], ckpt + checkpoints.NOTE, args):
        os.remove(path)
        os.mkfifo(path)
    assert_one_line_error(start(copy, LONGER), 'args.json is no file, and is not replaced')
    os.remove(args)
    assert start(copy, LONGER).returncode == 0


def test_the_graph_is_written_once_a_run(start, copy):
    assert start(copy, LONGER).returncode == 0
    sizes = sorted(os.path.getsize(path) for path in pathlib.Path(tf_dir(copy)).glob('events.*'))
    assert len(sizes) == 2 and sizes[0] < 100_000 < sizes[1]  # The smaller one has a sheet.


def test_a_table_that_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe.csv')
    for path in (tmp_path, tmp_path / 'pipe.csv'):
        with pytest.raises(utils.Error, match='is no file'):
            labels.read_table(str(path))


def test_what_cannot_be_read_is_not_called_a_result_that_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'), trained.creating_result(str(tmp_path / 'x')):
        (tmp_path / 'nowhere').read_text()
    with pytest.raises(utils.Error, match='cannot write'), trained.creating_result(str(tmp_path / 'x')) as part:
        pathlib.Path(part, 'y').write_text('')


# --- Room for temporary files ---


def lose_temporary_folder():
    tempfile.tempdir = '/dev/null/none'


def test_without_a_folder_for_temporary_files_a_run_continues(start, copy):
    assert start(copy, LONGER, first=[lose_temporary_folder]).returncode == 0


def test_copies_that_killed_processes_left_go(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    with files.making_temporary() as folder:
        left = folder.replace('-%d-' % os.getpid(), '-999999999-')
        os.mkdir(left)
        os.mkdir(tmp_path / 'mixmatch-7')
        with files.making_temporary():
            pass
        assert os.path.isdir(folder) and not os.path.exists(left)
    assert os.listdir(tmp_path) == ['mixmatch-7']


def test_the_name_of_a_killed_process_for_an_odd_path_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    if not os.fork():
        with checkpoints.aliasing('/a[1]/x'):
            os._exit(9)
    os.wait()
    assert len(os.listdir(tmp_path)) == 1
    with files.making_temporary():
        pass
    assert not os.listdir(tmp_path)


# --- Threads, graphs, switches ---


def test_training_in_a_thread_does_without_signals(tmp_path, capsys):
    model = make_model(tmp_path, **QUICK)

    def train():
        with model.graph.as_default():
            model.train(8, 8)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert utils.get_latest_global_step(model.checkpoint_dir) == 8
    assert 'not the main thread' in capsys.readouterr().err


def test_one_model_trains_again_and_again(tmp_path):
    model = make_model(tmp_path, **QUICK)
    for train_nimg in (8, 8, 8, 16):
        model.train(train_nimg, 8)
    assert [step for step, _ in scalars(model.checkpoint_dir)['accuracy']] == [8, 16]


def test_a_second_model_in_a_graph_is_said(tmp_path):
    make_model(tmp_path, **QUICK)
    with pytest.raises(utils.Error, match=r'tf\.Graph of its own'):
        make_model(tmp_path, **QUICK)


def test_two_trainings_in_one_process(digits_dir, tmp_path, capsys):
    for lr in 0.001, 0.002:  # In one graph of the caller's, as far as he knows.
        experiment.run(AblationMixMatch, lr=lr, **tiny.RUN, data_dir=str(digits_dir), train_dir=str(tmp_path))
    assert capsys.readouterr().out.count('What it has learned') == 2


def test_a_classifier_leaves_the_switches_of_the_process(start, copy, digits_dir):
    is_on = tf.config.experimental.tensor_float_32_execution_enabled
    before = is_on()
    classifier = trained.load(os.path.dirname(tf_dir(copy)), data_dir=str(digits_dir))
    classifier.classify(np.zeros([1, 8, 8, 1], np.uint8))
    assert is_on() == before


@pytest.mark.parametrize('text', ['', ' ', '{}'])
def test_an_empty_tf_config_is_none(text, monkeypatch):
    monkeypatch.setenv('TF_CONFIG', text)
    assert hardware.find_cluster() is None


# --- Where a run begins ---


def make_named(tmp_path, classes, seed=0, **params):
    """Returns a tiny model whose dataset has names of classes and fingerprints."""
    family = data.Family(8, 8, 1, 3, mirror=False, shift=1, classes=classes)
    fingerprints = dict(label='l', unlabel='u', test='t%d' % seed)
    dataset = data.DataSet('named.1@24-5', family, make_dataset().sets, fingerprints=fingerprints)
    with tf.Graph().as_default():
        return make_model(tmp_path, dataset, **QUICK, **params)


def test_init_ckpt_of_other_classes_is_refused_and_of_another_test_set_said(tmp_path, capsys):
    first = make_named(tmp_path / 'first', ('ape', 'cat', 'dog'))
    first.train(8, 8)
    ckpt = utils.find_latest_checkpoint(first.checkpoint_dir)
    other = make_named(tmp_path / 'other', ('cat', 'ape', 'dog'), lr=0.001)
    with pytest.raises(utils.Error, match='ape, cat, dog'):
        other.train(16, 8, init_ckpt=ckpt)
    assert not (tmp_path / 'other').exists()
    make_named(tmp_path / 'same', ('ape', 'cat', 'dog'), lr=0.001).train(16, 8, init_ckpt=ckpt)
    assert 'another test set' not in capsys.readouterr().err
    make_named(tmp_path / 'next', ('ape', 'cat', 'dog'), seed=1, lr=0.001).train(16, 8, init_ckpt=ckpt)
    assert 'another test set' in capsys.readouterr().err
    assert scalars(os.path.dirname(ckpt))['accuracy']
