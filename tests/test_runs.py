"""A run's folder: what is written there, what is read back, and what a second process finds."""

import glob
import itertools
import os
import re
import shutil
import signal
import sys

import pytest
import tensorflow.compat.v1 as tf
import tiny
from conftest import PARAMS, QUICK, assert_one_line_error, make_model
from tensorboard.plugins.hparams import plugin_data_pb2

from ablation.ab_mixmatch import AblationMixMatch
from libml import files, utils
from libml.running import checkpoints, runs, setting, trainer


def train_model(train_dir, train_nimg=8, **params):
    """Trains a tiny model in a graph of its own, reporting at each update; returns it."""
    with tf.Graph().as_default():
        model = make_model(train_dir, **{**QUICK, **params})
        model.train(train_nimg, 4)
    return model


def is_finished(run, train_nimg, **args):
    """Returns runs.Run.is_finished of the newest whole checkpoint."""
    held, _ = checkpoints.find_newest_whole(os.path.join(run, 'tf'))
    return bool(held) and runs.Run(run).is_finished(held.ckpt, train_nimg, **args)


def hparams(run):
    """Returns what each event file of a run says of hyper-parameters, a list of dicts, oldest file first."""
    found = []
    for path in sorted(glob.glob(os.path.join(glob.escape(run), 'tf', 'events.*')), key=os.path.getmtime):
        for event in tf.train.summary_iterator(path):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == 'hparams':
                    content = plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
                    info = content.session_start_info.hparams
                    found.append({name: getattr(info[name], info[name].WhichOneof('kind')) for name in info})
    return found


# --- Continuing ---


def test_hparams_are_the_arguments_and_the_same_when_the_run_goes_on(tmp_path):
    run = train_model(tmp_path, nu=3, T=0.25, w_match=7).train_dir
    train_model(tmp_path, 16, nu=3, T=0.25, w_match=7)
    first, second = hparams(run)
    assert first == second
    args = runs.Run(run).args
    assert args['train_kimg'] == 16 / 1024
    assert first == {name: value for name, value in args.items() if name not in runs.NOT_HPARAMS}
    assert (first['nu'], first['T'], first['w_match'], first['use_ema_guess']) == (3, 0.25, 7, False)


def test_each_step_is_reported_once(tmp_path):
    run = train_model(tmp_path, 12).train_dir
    for path in glob.glob(os.path.join(glob.escape(run), 'tf', 'model.ckpt-*12*')):
        os.remove(path)  # As if it had been killed before the last checkpoint.
    train_model(tmp_path, 20)
    assert [step for step, _ in runs.read_accuracies(run)] == [4, 8, 12, 16, 20]


def test_reading_the_reports_takes_no_longer_than_the_files_are_many(tmp_path):
    def count_calls(number):
        folder, counter = tmp_path / str(number), itertools.count()
        (folder / 'tf').mkdir(parents=True)
        for i in range(number):
            with tf.io.TFRecordWriter(str(folder / 'tf' / ('events.out.tfevents.%010d.x' % i))) as writer:
                value = tf.Summary.Value(tag='accuracy', simple_value=50)
                writer.write(tf.Event(step=i, summary=tf.Summary(value=[value])).SerializeToString())
        sys.setprofile(lambda *_: next(counter))
        try:
            found = runs.read_accuracies(str(folder))
        finally:
            sys.setprofile(None)
        assert found == [(i, 50) for i in range(number)]
        return next(counter)

    count_calls(1)  # What the first call loads does not count.
    assert count_calls(80) < 2.2 * count_calls(40)


def test_a_run_without_a_seed_goes_on_with_the_one_it_began_with(tmp_path):
    first = train_model(tmp_path, seed=None)
    second = train_model(tmp_path, 16, seed=None)
    assert first.train_dir == second.train_dir and first.setting.seed == second.setting.seed
    assert make_model(tmp_path / 'other', seed=None).setting.seed != first.setting.seed


def test_a_run_keeps_its_precision_but_not_how_it_is_compiled(tmp_path):
    run = train_model(tmp_path, precision='bfloat16').train_dir
    train_model(tmp_path, 16, precision='bfloat16', xla=True)
    assert utils.get_latest_global_step(os.path.join(run, 'tf')) == 16
    assert (runs.Run(run).args['precision'], runs.Run(run).args['xla']) == ('bfloat16', True)


def test_runs_that_do_not_say_their_precision_are_float32(tmp_path):
    run = train_model(tmp_path).train_dir
    args = runs.Run(run).args
    del args['precision'], args['xla']
    files.write_json(runs.Run(run).args_file, args)
    assert is_finished(run, 8, precision='float32')
    assert train_model(tmp_path, 16).train_dir == run
    assert utils.get_latest_global_step(os.path.join(run, 'tf')) == 16


# --- The start ---


def test_variables_are_listed_by_kind_and_in_debugging_one_by_one(tmp_path):
    make_model(tmp_path)
    total = sum(v.shape.num_elements() for v in utils.model_vars())
    for debug in (False, True):
        out = trainer.describe_start('folder', {}, debug)
        assert ('  all     %-9d  %d\n' % (len(utils.model_vars()), total)) in out
        assert all((v.op.name in out) == debug for v in utils.model_vars())


# --- The end ---


def test_finished_is_the_last_checkpoint_whole_and_the_same_arguments(tmp_path):
    run = train_model(tmp_path, 8).train_dir
    args = {'whiten': False, 'p_unlabeled': '', 'precision': 'float32'}
    assert is_finished(run, 8, **args) and is_finished(run, 4, **args)
    assert not is_finished(run, 9, **args)
    assert not is_finished(run, 8, **dict(args, whiten=True))
    assert not is_finished(run, 8, **dict(args, precision='bfloat16'))
    assert not is_finished(str(tmp_path / 'none'), 1)
    path = utils.find_latest_checkpoint(os.path.join(run, 'tf')) + '.data-00000-of-00001'
    with open(path, 'r+b') as file:
        file.truncate(os.path.getsize(path) // 2)
    assert not is_finished(run, 8, **args)


@pytest.mark.parametrize('seed', [None, 3])
def test_the_folder_is_known_before_the_model_is_built(tmp_path, seed):
    model = make_model(tmp_path, seed=seed)
    assert setting.locate_run(type(model), str(tmp_path), seed, **model.params) == model.train_dir


def test_a_named_run_is_continued_with_its_own_arguments_alone(tmp_path):
    params = dict(PARAMS, nclass=3)
    runs.Run(str(tmp_path / 'first')).write_args({**params, 'class': 'AblationMixMatch', 'seed': 3, 'whiten': False})

    def name(**changed):
        given = dict(seed=changed.pop('seed', None), whiten=changed.pop('whiten', False), name='first')
        return setting.Setting(AblationMixMatch, str(tmp_path), {**params, **changed}, **given)

    assert name().run.folder == str(tmp_path / 'first') and name().seed == name(seed=3).seed == 3
    for changed, words in [
        (dict(lr=0.1), 'lr=0.002, not 0.1'),
        (dict(seed=4), 'seed=3, not 4'),
        (dict(whiten=True), 'not True'),
    ]:
        with pytest.raises(utils.Error, match='first holds a run with .*%s: take another --run_name' % words):
            name(**changed)


def test_a_finished_run_started_again_needs_no_data(server, digits_dir, tmp_path):
    shutil.copytree(digits_dir, tmp_path / 'data')

    def start(**changed):
        given = dict(tiny.RUN, data_dir=tmp_path / 'data', train_dir=tmp_path / 'runs', run_name='one', **QUICK)
        given['whiten'] = True
        return server.run('ablation/ab_mixmatch.py', *tiny.flags(**{**given, **changed}))

    done = start()
    assert done.returncode == 0 and not re.search(r'^[WEF]\d{4} ', done.stderr, re.MULTILINE), done.stderr
    assert 'Warning: --whiten changes nothing with --arch=convnet' in done.stderr
    assert '\n  RUN=%s\n' % (tmp_path / 'runs' / 'digits.1@20-100' / 'one') in done.stdout
    shutil.rmtree(tmp_path / 'data')
    (tmp_path / 'data').mkdir()

    done = start()
    assert (done.returncode, done.stderr) == (0, '')
    (run,) = runs.find_runs(str(tmp_path / 'runs'))
    assert done.stdout == '%s is finished: to train it longer, give a --train_kimg above 1\n' % run
    done = start(train_kimg=2)
    assert done.returncode == 1 and 'is not installed' in done.stderr
    done = start(lr=0.1)
    assert_one_line_error(done, 'one holds a run with lr=0.002, not 0.1')


# --- Signals ---


@pytest.mark.parametrize('name', ['SIGHUP', 'SIGTERM', 'SIGUSR1', 'SIGUSR2', 'SIGXCPU'])
def test_a_batch_system_may_repeat_its_signals(name):
    with trainer.catching_signals() as stopped:
        for _ in range(3):
            signal.raise_signal(signal.Signals[name])
    assert stopped == [name] * 3


def test_a_second_ctrl_c_does_not_wait():
    with trainer.catching_signals() as stopped:
        signal.raise_signal(signal.SIGINT)
        assert stopped == ['SIGINT']
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


# --- Reading ---


def test_runs_are_found_wherever_they_are(tmp_path):
    for name in ('a/b/tf', 'a/c/args', 'd/tf', 'd/args', 'e/stats'):
        os.makedirs(tmp_path / name)
    assert runs.find_runs(str(tmp_path)) == [str(tmp_path / name) for name in ('a/b', 'a/c', 'd')]
    assert runs.find_runs(str(tmp_path / 'd')) == [str(tmp_path / 'd')]


def test_links_are_followed_and_a_folder_counts_once(tmp_path):
    for name in ('all/a/tf', 'far/b/args', 'far/c/real'):
        os.makedirs(tmp_path / name)
    os.symlink('real', tmp_path / 'far/c/tf')
    for link, target in (('all/big', 'far'), ('all/twice', 'far/b'), ('far/round', 'all'), ('all/lost', 'nowhere')):
        os.symlink(tmp_path / target, tmp_path / link)
    os.symlink('self', tmp_path / 'all/self')
    assert runs.find_runs(str(tmp_path / 'all')) == [str(tmp_path / 'all' / name) for name in ('a', 'big/b', 'big/c')]


def test_runs_are_found_deeper_than_python_recurses(tmp_path):
    limit = sys.getrecursionlimit()
    os.makedirs(tmp_path / '/'.join('d' * 400) / 'tf')
    sys.setrecursionlimit(300)
    try:
        assert len(runs.find_runs(str(tmp_path))) == 1
    finally:
        sys.setrecursionlimit(limit)


def test_medians_are_of_the_last_reports():
    assert runs.take_medians([1, 2, 3, 10, 20]) == dict(last01=20, last10=3, last20=3, last50=3)
    assert runs.take_medians(list(range(100))) == dict(last01=99, last10=94.5, last20=89.5, last50=74.5)
