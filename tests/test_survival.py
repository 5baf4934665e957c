"""Runs that are killed, damaged, or have no room left: they continue as if nothing had happened, or say why not.

Real command lines on the digits, in forks (see forked.py). --all --kills=400 kills 200 processes, and lets the disk of
200 fail (see faults.c).
"""

import ctypes
import errno
import glob
import os
import pathlib
import pkgutil
import random
import shlex
import shutil
import signal
import threading
from functools import partial

import fakes
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import (
    LONGER,
    SAVE_KIMG,
    TRAIN_KIMG,
    assert_one_line_error,
    assert_same_end,
    command,
    first_is_fast,
    scalars,
    tf_dir,
)
from forked import before

from libml import train, utils
from libml.running import checkpoints, runs, trainer

FAULTS = [  # What fails, and how.
    ('read', errno.EIO), ('write', errno.EIO), ('write', errno.ENOSPC), ('open', errno.EMFILE),
    ('open', errno.ESTALE), ('read', errno.ESTALE), ('write', errno.ESTALE),
]  # fmt: skip


def damage(ckpt):
    """Returns what is wrong with a checkpoint, '' where nothing is."""
    try:
        checkpoints.Held(ckpt)
    except utils.Error as error:
        return str(error)
    return ''


# --- Kills ---


def kill(method, n=1, seconds=0):
    """Arranges for a SIGKILL so long after the n-th call of a method of the model; where it is '', after the start."""

    def end(*_):
        if not seconds:
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGKILL]).start()

    if method:
        owner = {'save': trainer.Loop, 'report': train.ClassifySemi}.get(method, trainer.Trainer)
        before(owner, method, lambda call, *_: call == n and end())
    else:
        end()


def note_progress(path):
    """Arranges for the step to be written to a file after each update."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    before(trainer.Trainer, 'check_finite', lambda n, model, values, step: os.pwrite(file, b'%010d' % step, 0))


def moments(seed):
    """Yields arguments of `kill`: random moments, two in five around the writing of a checkpoint."""
    draw = random.Random(seed)
    while True:
        yield draw.choice(
            [
                ['save', draw.choice([1, 1, 2])],
                ['save', draw.choice([1, 1, 2]), draw.uniform(0, 0.006)],
                ['report', draw.choice([1, 2]), draw.uniform(0, 0.1)],
                ['check_finite', draw.randint(1, 200), draw.uniform(0, 0.02)],
                ['', 0, draw.uniform(0.1, 8)],
            ]
        )


def inject(folder, kind, number, n, count):
    """Arranges for system calls on files in a folder to fail with an errno: the n-th of a kind, and what count says."""
    arm = ctypes.CDLL(None).arm_faults  # Of the process, which has faults.c loaded.
    arm(os.fsencode(folder), dict(open=1, read=2, write=4)[kind], number, ctypes.c_long(n), ctypes.c_long(count))


def disk_faults(folder, seed):
    """Yields random faults of the disk, the arguments of `inject`."""
    draw = random.Random(seed)
    while True:
        kind, number = draw.choice(FAULTS)
        n = int(2 ** draw.uniform(0, 9 if kind == 'write' else 6))
        yield folder, kind, number, n, draw.choice([1, 1, 1 << 30])


def snapshot(train_dir):
    """Returns the whole checkpoints of a run, {prefix: the bytes of its files}."""
    found = checkpoints.find(tf_dir(train_dir)) if list(train_dir.glob('*/*/tf')) else []
    whole = [ckpt for ckpt in found if not damage(ckpt)]
    return {ckpt: [pathlib.Path(path).read_bytes() for path in checkpoints.list_files(ckpt)] for ckpt in whole}


def storm(start, whole, folder, count, harms):
    """Trains run after run until `count` processes were harmed. Each run is started until it ends, and ends as `whole`.

    A process that is not killed ends well, or with one line that names a file of the run.

    Args:
        harms: function of a run's train_dir and number; returns an iterator of functions for `first`, one a process.
    """
    reached, harmed, number = folder / 'reached', 0, 0
    while harmed < count:
        train_dir, number, returncode = folder / str(number), number + 1, None
        harm = harms(train_dir, number)
        while returncode != 0:
            held, last = snapshot(train_dir), harmed >= count
            done = start(train_dir, first=[partial(note_progress, reached), *([] if last else [next(harm)])])
            returncode = done.returncode
            assert returncode == 0 or not last, done
            if returncode not in (0, -signal.SIGKILL):
                assert_one_line_error(done, str(train_dir))
            harmed += returncode != 0

            holds = snapshot(train_dir)
            assert all(holds.get(ckpt) == content for ckpt, content in held.items()), done
            assert 'Continuing without' not in done.stdout
            assert not held or 'Continuing from' not in done.stdout or next(reversed(held)) in done.stdout
            if step := int(reached.read_text() or 0) if reached.exists() else 0:
                assert step - max(map(checkpoints.step, holds), default=0) <= SAVE_KIMG << 10
            reached.unlink(missing_ok=True)
        assert_same_end(train_dir, whole)
        shutil.rmtree(train_dir)


@pytest.mark.slow
def test_a_run_ends_the_same_however_often_it_is_killed(start, whole, tmp_path, request):
    count, moment = request.config.getoption('--kills') // 2, moments(seed=6)
    storm(start, whole, tmp_path, count, lambda train_dir, number: (partial(kill, *m) for m in moment))


@pytest.mark.slow
def test_a_run_ends_the_same_however_often_its_disk_fails(start, whole, tmp_path, request, faults):
    if not faults:
        pytest.skip('no C compiler (cc) makes the library that lets system calls fail')
    count = request.config.getoption('--kills') // 2
    storm(start, whole, tmp_path, count, lambda *run: (partial(inject, *fault) for fault in disk_faults(*run)))


def test_what_a_killed_process_left_half_written_is_removed(start, whole, copy):
    for ending in ('index', 'data-00000-of-00001'):
        os.remove(os.path.join(tf_dir(copy), 'model.ckpt-%010d.%s' % (TRAIN_KIMG << 10, ending)))
    left = [
        os.path.join(tf_dir(copy), 'model.ckpt-%010d.data-00000-of-00001.tempstate123' % (TRAIN_KIMG << 10)),
        os.path.join(tf_dir(copy), 'model.ckpt-%010d.index.tempstate45' % (TRAIN_KIMG << 10)),
        os.path.join(tf_dir(copy), 'checkpoint.tmp0a1b'),
        os.path.join(tf_dir(copy), '..', 'args', 'args.json.part-7-0123456789ab'),
    ]
    for path in left:
        with open(path, 'wb') as file:
            file.write(b'half')
    assert start(copy).returncode == 0
    assert not any(map(os.path.exists, left))
    assert_same_end(copy, whole)


# --- Damage ---


@pytest.mark.parametrize(
    ('newest', 'before'),
    first_is_fast(
        ((fakes.cut, 'data-00000-of-00001'), (fakes.flip, 'index')),
        ((fakes.flip, 'data-00000-of-00001'), (fakes.cut, 'index')),
        ((os.remove, 'data-00000-of-00001'), (fakes.empty, 'index')),
    ),
)
def test_damaged_checkpoints_are_skipped(start, whole, copy, newest, before):
    ckpts = checkpoints.find(tf_dir(copy))
    for ckpt, (harm, ending) in zip(reversed(ckpts), (newest, before), strict=False):
        harm('%s.%s' % (ckpt, ending))
    done = start(copy)
    assert done.returncode == 0, done.stderr
    for ckpt in ckpts[-2:]:
        (line,) = [line for line in done.stdout.splitlines() if '%s is not a whole checkpoint: ' % ckpt in line]
        assert line.startswith('Continuing without a damaged checkpoint, which is kept as damaged-*: ')
    assert 'Continuing from %s\n' % ckpts[-3] in done.stdout
    assert_same_end(copy, whole)


@pytest.mark.parametrize('ending', ['index', 'data-00000-of-00001'])
def test_no_flipped_bit_of_a_checkpoint_goes_unseen(whole, tmp_path, ending):
    ckpt = utils.find_latest_checkpoint(tf_dir(whole))
    right = checkpoints.read(ckpt)
    for path in glob.glob(ckpt + '.*'):
        shutil.copy(path, tmp_path)
    ckpt = str(tmp_path / os.path.basename(ckpt))
    with open('%s.%s' % (ckpt, ending), 'r+b') as file:
        content = file.read()
        for position in random.Random(1).sample(range(len(content)), 300):
            file.seek(position)
            file.write(bytes([content[position] ^ 1 << position % 8]))
            file.flush()
            if not damage(ckpt):  # The index ends in some bytes that mean nothing.
                found = checkpoints.read(ckpt)
                assert found.keys() == right.keys()
                assert all(np.array_equal(found[name], right[name]) for name in right), position
            file.seek(position)
            file.write(content[position : position + 1])
    assert not damage(ckpt)


def test_a_damaged_checkpoint_costs_no_whole_one(start, copy):
    ckpts = checkpoints.find(tf_dir(copy))
    fakes.flip(ckpts[-1] + '.index')
    # The first checkpoint, at 7 kimg, is saved once more.
    done = start(copy, '--keep_ckpt=1', '--save_kimg=1', first=[partial(kill, 'save', 2)])
    assert done.returncode == -9 or done.returncode == 0
    whole = [ckpt for ckpt in checkpoints.find(tf_dir(copy)) if not damage(ckpt)]
    assert whole


def test_a_whole_checkpoint_of_another_model_is_an_error(start, copy, whole):
    newest = utils.find_latest_checkpoint(tf_dir(copy))
    for path in glob.glob(newest + '.*'):
        os.remove(path)
    with tf.Session() as session:
        tf.train.get_or_create_global_step()
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, newest, write_meta_graph=False)
    before = checkpoints.read(newest)
    assert_one_line_error(start(copy, LONGER), newest, 'does not fit')
    assert checkpoints.read(newest).keys() == before.keys()


@pytest.mark.parametrize('text', ['', '{"seed": 3', '[]', '3', '[' * 100000, '\x00\xff'])
def test_an_unreadable_args_json_is_said_and_gone_on_with(copy, capfd, text):
    run = runs.Run(os.path.dirname(tf_dir(copy)))
    with open(run.args_file, 'w') as file:
        file.write(text)
    assert run.args == {}
    assert capfd.readouterr().err.startswith('Ignoring %s' % run.args_file)


def test_damaged_event_files_hide_no_others(whole, copy):
    (events,) = glob.glob(os.path.join(tf_dir(copy), 'events.*'))
    fakes.empty(shutil.copy(events, events.replace('tfevents.', 'tfevents.0')))
    shutil.copy(events, events.replace('.tfevents.', '.tfevents.9'))
    fakes.cut(events.replace('.tfevents.', '.tfevents.9'))
    assert scalars(tf_dir(copy)).keys() == scalars(tf_dir(whole)).keys()


# --- No room ---


def fill_disk_at_second_checkpoint():
    before(tf.train.Saver, 'save', lambda n, *_: n == 2 and fakes.limit_files(4096))


def fill_disk_at_first_report():
    before(train.ClassifySemi, 'report', lambda *_: fakes.limit_files(4096))


def remove_folder(method, step, folder):
    """Removes a folder of the run when a method is called after a step."""
    owner = {'save': trainer.Loop, 'report': train.ClassifySemi}[method]

    def remove(n, its, *args):
        if (its.step if method == 'save' else args[0]) > step:
            shutil.rmtree(getattr(its.trainer.model if method == 'save' else its, folder))

    before(owner, method, remove)


def test_a_disk_that_is_full_when_a_checkpoint_is_written(start, whole, tmp_path):
    done = start(tmp_path, first=[fill_disk_at_second_checkpoint])
    line = assert_one_line_error(done, 'cannot write', 'model.ckpt-%010d' % (2 * SAVE_KIMG << 10))
    (ckpt,) = checkpoints.find(tf_dir(tmp_path))
    assert not damage(ckpt)
    assert not glob.glob(os.path.join(tf_dir(tmp_path), '*tempstate*')), line
    assert start(tmp_path).returncode == 0
    assert_same_end(tmp_path, whole)


def test_a_disk_that_is_full_when_a_report_is_written(start, copy):
    before = checkpoints.find(tf_dir(copy))
    for path in glob.glob(os.path.join(tf_dir(copy), 'events.*')):  # So that the next one begins with the graph.
        os.remove(path)
    assert_one_line_error(start(copy, LONGER, first=[fill_disk_at_first_report]), 'cannot write', 'events.out')
    assert checkpoints.find(tf_dir(copy))[: len(before)] == before
    assert not any(map(damage, checkpoints.find(tf_dir(copy))))


@pytest.mark.parametrize(
    ('method', 'step', 'folder'), first_is_fast(('report', 4000, 'checkpoint_dir'), ('save', 7000, 'train_dir'))
)
def test_a_run_folder_removed_under_way(start, tmp_path, method, step, folder):
    assert_one_line_error(start(tmp_path, first=[partial(remove_folder, method, step, folder)]), 'cannot write')


# --- Divergence ---


def test_a_run_that_diverges_says_how_to_go_on_and_that_works(start, whole, tmp_path):
    ckpt = checkpoints.find(tf_dir(whole))[-2]
    line = assert_one_line_error(start(tmp_path, '--wd=0', '--lr=1e30', '--init_ckpt=%s' % ckpt), 'not finite', ckpt)
    assert checkpoints.find(tf_dir(tmp_path)) == []
    advice = shlex.split(line.split(' by ')[1])
    assert advice == ['--lr=5e+29', '--init_ckpt=%s' % ckpt]
    shutil.rmtree(tmp_path)
    done = start(tmp_path, '--lr=.001', advice[1])
    assert done.returncode == 0
    assert 'Continuing from %s\n' % ckpt in done.stdout
    assert utils.get_latest_global_step(tf_dir(tmp_path)) == TRAIN_KIMG << 10
    assert min(step for step, _ in scalars(tf_dir(tmp_path))['accuracy']) > checkpoints.step(ckpt)


def test_without_a_checkpoint_a_smaller_lr_is_advised(start, tmp_path):
    assert_one_line_error(start(tmp_path, '--wd=0', '--lr=1e30'), 'not finite', 'no checkpoint', '--lr=5e+29')


def make_infinite():
    """Makes a weight nan after the update of 6 kimg: its loss was fine, and what it led to is not."""

    def harm(n, model, values, step):
        if step == 6 << 10:
            bias = next(v for v in tf.global_variables() if v.op.name == 'classify/conv2d/bias')
            bias.load(np.full(bias.shape, np.nan), tf.get_default_session())

    before(trainer.Trainer, 'check_finite', harm)


def test_weights_that_are_not_finite_are_never_saved(start, tmp_path):
    done = start(tmp_path, first=[make_infinite])
    assert_one_line_error(done, 'weights are not finite', 'model.ckpt-%010d' % (3 << 10))
    assert utils.get_latest_global_step(tf_dir(tmp_path)) == 3 << 10
    assert [step for step, _ in scalars(tf_dir(tmp_path))['accuracy']] == [2 << 10, 4 << 10]


# --- Ctrl-C ---


def press_ctrl_c(place):
    """Arranges for a Ctrl-C where a function is called, such as 'libml.running.trainer.Loop.save'."""

    def interrupt(*_):
        raise KeyboardInterrupt

    owner, name = place.rsplit('.', 1)
    before(pkgutil.resolve_name(owner), name, interrupt)


@pytest.mark.parametrize(
    'place',
    ['libml.data_pair.read_dataset', 'libml.running.trainer.Trainer.restore', 'libml.running.trainer.Loop.save'],
)
def test_ctrl_c_is_one_line(start, tmp_path, place):
    done = start(tmp_path, first=[partial(press_ctrl_c, place)])
    assert done.returncode == 130
    assert done.stderr.rstrip().splitlines()[-1] == 'Error: interrupted'
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    ('error', 'words', 'returncode'),
    [
        ('KeyboardInterrupt', 'interrupted', 130),
        ('MemoryError', 'MemoryError: there is too little memory', 1),
        ('ImportError("x.so: failed to map segment from shared object")', 'object: there is too little memory', 1),
        ('ImportError("x")', 'x: is the environment active', 1),
        ('OSError("no cache")', 'Error: no cache', 1),
    ],
)
def test_what_ends_the_loading_of_tensorflow_is_one_line(tmp_path, error, words, returncode):
    (tmp_path / 'tensorflow.py').write_text('raise ' + error)
    code = 'import sys; sys.path.insert(0, %r); from libml.cli import quiet; quiet.import_tensorflow()'
    done = command('-c', code % str(tmp_path))
    line = assert_one_line_error(done, words, codes=(returncode,))
    assert ('environment' in line) == ('environment' in words)


def test_ctrl_c_while_a_script_is_loaded_is_one_line(tmp_path):
    (tmp_path / 'tensorflow.py').write_text('')
    code = 'import sys; sys.path.insert(0, %r); from libml.cli import quiet; quiet.import_tensorflow(); '
    done = command('-c', code % str(tmp_path) + 'raise KeyboardInterrupt')
    assert (done.returncode, done.stderr) == (-signal.SIGINT, 'Error: interrupted\n')
