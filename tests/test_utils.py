"""Errors, variables, order of ops, JSON files; and what importing a module may not do."""

import functools
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from absl import flags
from absl.testing import flagsaver
from tqdm import tqdm

from libml import files, utils
from libml.cli import options, progress, script

# --- Small functions ---


@pytest.mark.parametrize('x', [1, 2, 3, 8, 9, 31, 32, 33, 96, 1 << 20])
def test_ilog2_rounds_up(x):
    assert utils.ilog2(x) == int(np.ceil(np.log2(x)))


def test_ilog2_of_nothing():
    with pytest.raises(ValueError, match='0'):
        utils.ilog2(0)


@pytest.mark.parametrize('leave', [True, False])
def test_a_bar_on_a_log_file_writes_whole_lines(monkeypatch, capsys, leave):
    monkeypatch.setattr(os, 'isatty', lambda _: False)
    monkeypatch.setattr(progress, 'PERIOD', 0)
    for _ in progress.make_bar('abc', 'letters', leave=leave, miniters=1):
        tqdm.write('said')
    out, err = capsys.readouterr()
    lines = err.split('\n')
    assert out == 3 * 'said\n' and '\r' not in err and '\x1b' not in err
    assert len(lines) >= 4 and lines.pop() == '' and all(line.startswith('letters: ') for line in lines), err


def test_a_short_work_leaves_no_bar_on_a_log_file(monkeypatch, capsys):
    monkeypatch.setattr(os, 'isatty', lambda _: False)
    assert list(progress.make_bar('abc')) == [*'abc'] and capsys.readouterr() == ('', '')


def test_check_says_what_is_allowed():
    utils.require('nu', 1, True, 'at least 1')
    with pytest.raises(utils.Error, match=r'nu=0.*at least 1'):
        utils.require('nu', 0, False, 'at least 1')


def test_model_vars_are_the_trainable_ones_of_a_scope():
    for scope in ('a', 'b'):
        with tf.variable_scope(scope):
            tf.get_variable('v', [])
            tf.get_variable('w', [], trainable=False)
    assert [v.op.name for v in utils.model_vars()] == ['a/v', 'b/v']
    assert [v.op.name for v in utils.model_vars('b')] == ['b/v']


def test_getter_ema_replaces_what_has_an_average():
    averaged, plain = (tf.get_variable(name, [2]) for name in ('averaged', 'plain'))
    ema = tf.train.ExponentialMovingAverage(0.9)
    ema.apply([averaged])
    getter = functools.partial(utils.getter_ema, ema)
    with tf.variable_scope('', reuse=True, custom_getter=getter):
        found = [tf.get_variable(name, [2]) for name in ('averaged', 'plain')]
    assert found[0] is ema.average(averaged) and found[0] is not averaged
    assert found[1] is plain


def test_in_order_runs_each_step_on_what_the_last_one_left():
    count = 60
    vs = [tf.get_variable('v%d' % i, [], tf.float64, tf.ones_initializer()) for i in range(count)]
    total = tf.get_variable('total', [], tf.float64, tf.zeros_initializer())
    op = utils.in_order(
        lambda: [v.assign(v * 3) for v in vs],
        lambda: [v.assign_add(i) for i, v in enumerate(vs)],
        lambda: total.assign_add(tf.add_n([tf.convert_to_tensor(v) for v in vs])),
        lambda: [v.assign(v * v) for v in vs],
    )
    expected, expected_total = np.ones(count), 0
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for _ in range(3):
            session.run(op)
            expected = 3 * expected + np.arange(count)
            expected_total += expected.sum()
            expected = expected**2
        np.testing.assert_allclose(session.run(vs), expected)
        np.testing.assert_allclose(session.run(total), expected_total)


def test_json_is_written_whole_and_read_back(tmp_path, capsys):
    path = str(tmp_path / 'a' / 'b.json')
    assert files.read_json(path, default={1: 2}) == {1: 2}
    files.write_json(path, {'x': [1, None, 'é']})
    assert files.read_json(path, default={}) == {'x': [1, None, 'é']}
    assert os.listdir(tmp_path / 'a') == ['b.json']
    with open(path, 'w') as file:
        file.write('{"x": ')
    assert files.read_json(path, default={}) == {}
    assert path in capsys.readouterr().err


# --- Running a script ---


def run(main, *args):
    """Returns the exit code of script.run."""
    with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver(), pytest.raises(SystemExit) as stop:
        patch.setattr(sys, 'argv', ['script.py', *args])
        script.run(main, {})
    return stop.value.code or 0


def failing(error):
    def main(*words):
        raise error

    return main


@pytest.mark.parametrize(
    'error, line',
    [
        (utils.Error('x is bad:\n  take y'), 'Error: x is bad: take y\n'),
        (FileNotFoundError(2, 'No such file', 'a.txt'), "Error: [Errno 2] No such file: 'a.txt'\n"),
        (tf.errors.DataLossError(None, None, 'cut\nshort'), 'Error: cut short\n'),
        (MemoryError(), 'Error: MemoryError\n'),
    ],
)
def test_run_turns_an_error_into_one_line(error, line, capsys):
    assert run(failing(error)) == 1
    assert capsys.readouterr() == ('', line)


@pytest.mark.parametrize('args', [['--no_such_flag=1'], ['--debug=maybe']])
def test_run_refuses_a_bad_flag(args, capsys):
    assert run(failing(AssertionError), *args) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith('Error: ') and err.count('\n') == 1
    assert args[0].split('=')[0].strip('-') in err


def test_run_hands_over_what_is_no_flag():
    seen = []
    assert run(lambda *words: seen.append((words, flags.FLAGS.debug)), 'a', '--debug') == 0
    assert seen == [(('a',), True)]


NO_PATHS = {
    **dict.fromkeys(
        ['gs://b/x', 's3://b', 'hdfs://h/x', 'file:///tmp/x', 'dbfs:/x', 'C:\\x'], 'is no path of this machine'
    ),
    '~nobody-of-that-name/x': 'there is no such user',
    **dict.fromkeys(['x\r', 'x\n', 'x\xa0', '\ufeffx', 'x\u200b', 'x\t'], 'a character that cannot be seen'),
}


@pytest.mark.parametrize('path', NO_PATHS)
def test_what_is_no_path_of_this_machine_is_refused(path):
    with pytest.raises(utils.Error, match=NO_PATHS[path]) as error:
        utils.expand(path)
    assert str(error.value).isprintable()


def test_paths_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / '~backup.png').write_text('')
    for path in ('', None, 'a b ', 'a:b', 'x:/y', '/a/gs:/b', '~backup.png', 'é\r.png'):
        assert utils.expand(path) == path


def test_run_when_interrupted(capsys):
    assert run(failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == 'Error: interrupted\n'


def test_run_shows_a_traceback_of_faults_of_its_own_and_when_asked_to():
    for error, *args in (ZeroDivisionError(),), (utils.Error('x'), '--debug'):
        with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver(), pytest.raises(type(error)):
            patch.setattr(sys, 'argv', ['script.py', *args])
            script.run(failing(error), {})


def test_numbers_of_programs_are_those_of_the_command_line():
    table = dict(n=options.Option(1, '.'), x=options.Option(0.5, '.'), seed=options.Option(None, '.', type=int))
    found = options.fill(table, dict(n=np.int64(3), x=np.float32(2), seed=4.0))
    assert repr(found) == "{'n': 3, 'x': 2.0, 'seed': 4}"
    assert options.fill(table, {}) == dict(n=1, x=0.5, seed=None)
    for name, value in dict(n=1.5, x='1', seed=True).items():
        with pytest.raises(utils.Error, match='%s=%s is not allowed: it must be a' % (name, value)):
            options.fill(table, {name: value})


def test_truth_values_and_texts_of_programs_are_those_of_the_command_line():
    table = dict(on=options.Option(False, '.'), off=options.Option(None, '.', type=bool), name=options.Option('', '.'))
    assert repr(options.fill(table, dict(on=np.True_, name=Path('a')))) == ("{'on': True, 'off': None, 'name': 'a'}")
    assert options.fill(table, dict(on=None, name=2)) == dict(on=False, off=None, name='2')
    for name, value in [('on', 'False'), ('on', 0), ('off', 1), ('name', ['a']), ('name', True)]:
        with pytest.raises(utils.Error, match='%s=.* is not allowed: it must be' % name):
            options.fill(table, {name: value})
