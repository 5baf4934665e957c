"""What surrounds a run: its output, signals, paths and locks, and the checkpoints that it is given.

Real command lines on the digits, in forks (see forked.py).
"""

import errno
import fcntl
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import sys

import pytest
from conftest import LONGER, TRAIN_KIMG, assert_one_line_error, assert_same_end, first_is_fast, tf_dir
from forked import before, encode_output

from libml import train, utils
from libml.running import checkpoints, runs, trainer

STREAMS = ('stdin', 'stdout', 'stderr')
ENDINGS = ('index', 'data-00000-of-00001')


# --- Output ---


def close(number, name):
    """Closes a standard stream, as `2>&-` does before Python starts."""
    os.close(number)
    setattr(sys, name, None)


def lead_to(number, file):
    """Makes a standard stream, 1 or 2, lead to an open file."""
    os.dup2(file, number)
    setattr(sys, STREAMS[number], open(number, 'w', closefd=False))  # noqa: SIM115


def full(number):
    """Makes a standard stream a file on a disk without room."""
    lead_to(number, os.open('/dev/full', os.O_WRONLY))


def unread_pipe():
    """Returns the file descriptor of a pipe that nobody reads any more, such as what `| head` leaves."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def unread(number):
    """Makes a standard stream a pipe that nobody reads any more."""
    lead_to(number, unread_pipe())


BROKEN = {
    'stdout is full': [functools.partial(full, 1)],
    'all are closed': [functools.partial(close, *stream) for stream in enumerate(STREAMS)],
    'nobody reads stdout': [functools.partial(unread, 1)],
    'nobody reads anything': [functools.partial(unread, 1), functools.partial(unread, 2)],
    'stdout is closed': [functools.partial(close, 1, 'stdout')],
    'stderr is closed': [functools.partial(close, 2, 'stderr')],
}


@pytest.mark.parametrize('first', first_is_fast(*BROKEN.values()), ids=BROKEN)
def test_a_run_whose_output_is_gone_goes_on_to_the_end(start, whole, tmp_path, first):
    done = start(tmp_path, first=first)
    assert done.returncode == 0, done
    assert 'Traceback' not in done.stderr and 'Exception ignored' not in done.stderr
    if first in (BROKEN['stdout is full'], BROKEN['nobody reads stdout']):
        assert len(re.findall('What is printed is lost from here on: ', done.stderr)) == 1
    assert_same_end(tmp_path, whole)


def test_an_output_that_has_only_ascii(start, whole, tmp_path):
    ascii_only = [functools.partial(encode_output, 'ascii')]
    done = start(tmp_path / 'é', first=ascii_only)
    assert done.returncode == 0, done
    assert str(tmp_path / '?') in done.stdout
    assert_same_end(tmp_path / 'é', whole)
    assert_one_line_error(start(tmp_path / 'é', '--dataset=é', first=ascii_only), '\\xe9')


# --- Signals ---


def stop(owner, method, n, name):
    """Arranges for a signal at the n-th call of a method, and for stdout to have no reader from then on."""

    def come(call, *_):
        if call == n:
            os.dup2(unread_pipe(), 1)
            signal.raise_signal(signal.Signals[name])

    before(owner, method, come)


@pytest.mark.slow
def test_each_signal_saves_even_where_nobody_reads_the_output(start, whole, tmp_path):
    for n, name in enumerate(['SIGHUP', 'SIGTERM', 'SIGUSR1', 'SIGUSR2', 'SIGXCPU', 'SIGINT'], 1):
        done = start(tmp_path, first=[functools.partial(stop, trainer.Trainer, 'check_finite', 10, name)])
        assert done.returncode == trainer.EXIT_INTERRUPTED, (name, done)
        steps = [checkpoints.step(ckpt) for ckpt in checkpoints.find(tf_dir(tmp_path))]
        assert steps == [10 * 32 * i for i in range(1, n + 1)], name  # Each goes on where the one before it stopped.
    assert 'Continuing from' in start(tmp_path).stdout
    for ckpt in checkpoints.find(tf_dir(tmp_path))[:n]:  # Those that `whole` has not.
        checkpoints.remove(ckpt)
    assert_same_end(tmp_path, whole)


def test_a_signal_during_a_report_leaves_the_report_to_the_resumed_run(start, whole, tmp_path):
    done = start(tmp_path, first=[functools.partial(stop, train.ClassifySemi, 'predict_classes', 1, 'SIGTERM')])
    assert done.returncode == trainer.EXIT_INTERRUPTED, done
    assert 'kimg 2 ' not in done.stdout
    assert [checkpoints.step(ckpt) for ckpt in checkpoints.find(tf_dir(tmp_path))] == [2 << 10]
    done = start(tmp_path)
    assert 'kimg 2 ' in done.stdout
    checkpoints.remove(checkpoints.find(tf_dir(tmp_path))[0])
    assert_same_end(tmp_path, whole)


# --- Paths ---


@pytest.mark.parametrize('name', first_is_fast('a[1-2] b*? c\\d', os.fsdecode(b'[e\nf\xff')))
def test_a_run_in_any_folder_goes_on_and_ends(start, whole, tmp_path, name):
    folder = shutil.copytree(whole, tmp_path / name)
    for path in checkpoints.list_files(checkpoints.find(tf_dir(whole))[-1]):
        os.remove(os.path.join(folder, os.path.relpath(tf_dir(whole), whole), os.path.basename(path)))
    for words in 'Continuing from', 'is finished':
        done = start(folder)
        assert done.returncode == 0, done
        assert any(words in line and utils.escape(name) in line for line in done.stdout.splitlines()), done
    inside = tmp_path / 'plain'
    folder.rename(inside)
    assert_same_end(inside, whole)


def live_in(home):
    os.environ['HOME'] = home


def test_a_home_is_expanded(start, whole, tmp_path):
    ckpt = shutil.copytree(tf_dir(whole), tmp_path / 'tf')
    done = start('~/runs', '--init_ckpt=~/tf', LONGER, first=[functools.partial(live_in, str(tmp_path))])
    assert done.returncode == 0, done
    assert 'Continuing from %s' % ckpt in done.stdout
    assert (tmp_path / 'runs').is_dir() and not os.path.exists('~')


# --- Locks ---


def no_locks(*errors):
    """Lets flock and lockf fail with these errnos, as some disks do."""
    for name, number in zip(('flock', 'lockf'), errors, strict=False):
        setattr(fcntl, name, functools.partial(fail, number))


def fail(number, *_):
    raise OSError(number, os.strerror(number))


@pytest.mark.parametrize('number', first_is_fast(errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP))
def test_a_disk_without_locks_is_said_and_trained_on(start, whole, tmp_path, number):
    done = start(tmp_path, first=[functools.partial(no_locks, number, number)])
    assert done.returncode == 0, done
    assert len(re.findall('^Warning: this file system has no locks', done.stderr, re.MULTILINE)) == 1
    assert_same_end(tmp_path, whole)


def test_a_disk_without_flock_has_its_other_locks(start, tmp_path):
    done = start(tmp_path, '--train_kimg=1', first=[functools.partial(no_locks, errno.ENOSYS)])
    assert done.returncode == 0 and 'no locks' not in done.stderr


def test_a_lock_that_fails_otherwise_names_its_file(start, tmp_path):
    assert_one_line_error(start(tmp_path, first=[functools.partial(no_locks, errno.EIO)]), '/lock', 'Input/output')


@pytest.mark.parametrize(
    'owner, refused',
    [(os.getpid(), True), (2**22 + 1, False), ('x\udcff', False)],
    ids=['living', 'dead', 'no number'],  # Not the pid: each process of pytest-xdist has another.
)
def test_where_there_are_no_locks_a_living_process_is_respected(start, copy, owner, refused):
    text = 'process %s on %s\n' % (owner, os.uname().nodename)
    pathlib.Path(tf_dir(copy), '..', 'lock').write_bytes(os.fsencode(text))
    done = start(copy, LONGER, first=[functools.partial(no_locks, errno.ENOLCK, errno.ENOLCK)])
    if refused:
        assert_one_line_error(done, 'is being trained by process %d' % owner)
    else:
        assert done.returncode == 0, done


# --- Checkpoints that are given ---


def unreadable(path):
    os.remove(path)
    os.mkdir(path)


@pytest.mark.parametrize('ending', ENDINGS)
def test_a_checkpoint_that_cannot_be_read_stops_the_run_and_stays(start, copy, ending):
    ckpt = checkpoints.find(tf_dir(copy))[-1]
    unreadable('%s.%s' % (ckpt, ending))
    before = sorted(os.listdir(tf_dir(copy)))
    assert_one_line_error(start(copy, LONGER), ckpt, 'cannot be read', 'Is a directory')
    assert sorted(os.listdir(tf_dir(copy))) == before


def test_a_checkpoint_is_known_by_what_belongs_to_it(start, whole, tmp_path):
    ckpt, run = checkpoints.find(tf_dir(whole))[-1], os.path.dirname(tf_dir(whole))
    for path in (run, run + '/', tf_dir(whole), ckpt, ckpt + '.index', ckpt + '.data-00000-of-00001'):
        held = runs.resolve(path)
        assert held.ckpt == ckpt
        held.close()
    for flag, words in ('eval_ckpt', 'tuned_ema'), ('init_ckpt', 'Continuing from %s' % ckpt):
        done = start(tmp_path / 'runs', '--%s=%s' % (flag, run), LONGER)
        assert done.returncode == 0 and words in done.stdout, done


def test_init_ckpt_is_for_runs_without_a_checkpoint_of_their_own(start, whole, tmp_path):
    source = shutil.copytree(tf_dir(whole), tmp_path / 'source')
    assert start(tmp_path / 'runs', '--init_ckpt=%s' % source, '--lr=.001', LONGER).returncode == 0
    shutil.rmtree(source)
    for n, path in enumerate(['%s/../source' % source, '']):
        done = start(tmp_path / 'runs', '--init_ckpt=%s' % path, '--lr=.001', '--train_kimg=%d' % (TRAIN_KIMG + 2 + n))
        assert done.returncode == 0, done
        args = json.loads(pathlib.Path(tf_dir(tmp_path / 'runs'), '../args/args.json').read_text())
        assert args['init_ckpt'] == str(source)  # As it began.


def test_a_run_whose_checkpoints_are_gone_begins_anew_and_says_so(start, copy):
    checkpoints.remove(*checkpoints.find(tf_dir(copy)))
    done = start(copy, '--train_kimg=3')
    assert done.returncode == 0 and 'it begins anew' in done.stderr and 'kimg 2 ' in done.stdout


def test_nothing_to_train_is_an_error_that_leaves_no_run(start, whole, tmp_path):
    done = start(tmp_path, '--init_ckpt=%s' % tf_dir(whole), '--train_kimg=5')
    assert_one_line_error(done, 'nothing would be trained', '--train_kimg is 5')
    assert os.listdir(tmp_path) == []


# --- Arguments ---


@pytest.mark.parametrize('seed', [None, 'x', 1.5, [1], -1, True])
def test_a_damaged_seed_is_one_line(start, copy, seed):
    path = pathlib.Path(tf_dir(copy), '../args/args.json')
    path.write_text(json.dumps(dict(json.loads(path.read_text()), seed=seed)))
    assert_one_line_error(start(copy, LONGER), 'args.json', 'seed')


def test_a_divergence_by_w_match_is_not_blamed_on_lr(start, tmp_path):
    assert_one_line_error(start(tmp_path, '--w_match=1e37'), 'not finite', '--w_match=100')
