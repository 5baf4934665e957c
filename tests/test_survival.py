"""Runs that are killed, damaged, or have no room left: they go on as if nothing had happened, or say why they do not.

Real command lines on the digits, in forks (see forked.py). --kills=200 makes the kill test thorough.
"""

import glob
import os
import random
import re
import shlex
import shutil

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from libml import runs, utils

SAVE_KIMG, TRAIN_KIMG = 3, 10  # Reports, every 2 kimg, fall beside checkpoints and on them.
TINY = ['--batch=32', '--filters=2', '--repeat=1', '--scales=1', '--ema=.9', '--warmup_kimg=1', '--seed=3']
PERIODS = ['--report_kimg=2', '--save_kimg=%d' % SAVE_KIMG, '--train_kimg=%d' % TRAIN_KIMG]


@pytest.fixture(scope='module')
def start(server, digits_dir):
    """Returns the function that runs the training command line: (train_dir, *flags, **how of forked.child) -> Done."""

    def start(train_dir, *flags, **how):
        where = '--dataset=digits.1@20-100', '--data_dir=%s' % digits_dir, '--train_dir=%s' % train_dir
        return server.run('ablation/ab_mixmatch.py', *where, *TINY, *PERIODS, *flags, **how)

    return start


@pytest.fixture(scope='module')
def whole(start, tmp_path_factory):
    """The folder of the runs of a process that nothing happened to."""
    folder = tmp_path_factory.mktemp('whole')
    done = start(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of `whole` to do harm to."""
    return shutil.copytree(whole, tmp_path / 'copy')


def tf_dir(train_dir):
    (folder,) = glob.glob(os.path.join(str(train_dir), '*', '*', 'tf'))
    return folder


def tensors(ckpt):
    reader = tf.train.load_checkpoint(ckpt)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def damage(ckpt):
    """Returns what is wrong with a checkpoint, '' where nothing is."""
    try:
        utils.check_checkpoint(ckpt)
    except utils.Error as error:
        return str(error)
    return ''


def points(folder):
    """Returns what TensorBoard shows: {tag: [(step, value)]}."""
    events = EventAccumulator(folder, size_guidance={'scalars': 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()['scalars']}


def assert_same_end(train_dir, whole):
    """Asserts that two runs have the same checkpoints, the same curves, and nothing else beside them."""
    ours, theirs = utils.checkpoints(tf_dir(train_dir)), utils.checkpoints(tf_dir(whole))
    assert list(map(os.path.basename, ours)) == list(map(os.path.basename, theirs))
    for our, their in zip(map(tensors, ours), map(tensors, theirs), strict=True):
        assert our.keys() == their.keys()
        assert all(our[name].tobytes() == their[name].tobytes() for name in their)
    assert points(tf_dir(train_dir)) == points(tf_dir(whole))
    for name in os.listdir(tf_dir(train_dir)):
        assert re.fullmatch(r'checkpoint|model\.ckpt-\d{10}\.(index|data-00000-of-00001)|events\..*', name), name


def assert_error(done, *words):
    """Asserts that a command line failed in one line that holds the words; returns the line."""
    assert done.returncode == 1, (done.returncode, done.stderr)
    (line,) = re.findall(r'^Error: .*', done.stderr, re.MULTILINE)
    assert 'Traceback' not in done.stderr + done.stdout
    assert done.stderr.rstrip().endswith(line)
    assert len(line) < 1000 and 'Node:' not in line and 'Graph execution' not in line, line
    for word in words:
        assert word in line, line
    return line


# --- Kills ---


def moments(seed):
    """Yields random moments to be killed at, see forked.child; two in five around the writing of a checkpoint."""
    draw = random.Random(seed)
    while True:
        yield draw.choice(
            [
                ['save', draw.choice([1, 1, 2]), 0],  # Reported, but not saved.
                ['save', draw.choice([1, 1, 2]), draw.uniform(0, 0.006)],
                ['report', draw.choice([1, 2]), draw.uniform(0, 0.1)],
                ['check_finite', draw.randint(1, 200), draw.uniform(0, 0.02)],
                ['', 0, draw.uniform(0.1, 8)],
            ]
        )


def test_a_run_ends_the_same_however_often_it_is_killed(start, whole, tmp_path, request):
    reached, kills, chain = tmp_path / 'reached', 0, 0
    moment = moments(seed=6)
    while kills < request.config.getoption('--kills'):
        train_dir, chain, newest, finished = tmp_path / str(chain), chain + 1, None, False
        while not finished:
            last = kills >= request.config.getoption('--kills')
            done = start(train_dir, kill=None if last else next(moment), progress=str(reached))
            finished = done.returncode == 0
            assert finished or done.returncode == -9, done.stderr
            kills += not finished
            assert newest is None or 'Going on from' not in done.stdout or newest in done.stdout
            newest = utils.find_latest_checkpoint(tf_dir(train_dir)) if list(train_dir.glob('*/*/tf')) else None
            if newest:
                assert not damage(newest)
            if step := int(reached.read_text() or 0) if reached.exists() else 0:
                saved = utils.checkpoint_step(newest) if newest else 0
                assert step - saved <= SAVE_KIMG << 10
            reached.unlink(missing_ok=True)
        assert_same_end(train_dir, whole)
        shutil.rmtree(train_dir)


def test_what_a_killed_process_left_half_written_is_removed(start, whole, copy):
    for ending in ('index', 'data-00000-of-00001'):
        os.remove(os.path.join(tf_dir(copy), 'model.ckpt-%010d.%s' % (TRAIN_KIMG << 10, ending)))
    left = [
        os.path.join(tf_dir(copy), 'model.ckpt-%010d.data-00000-of-00001.tempstate123' % (TRAIN_KIMG << 10)),
        os.path.join(tf_dir(copy), 'model.ckpt-%010d.index.tempstate45' % (TRAIN_KIMG << 10)),
        os.path.join(tf_dir(copy), 'checkpoint.tmp0a1b'),
        os.path.join(tf_dir(copy), '..', 'args', 'args.json.part-7'),
    ]
    for path in left:
        with open(path, 'wb') as file:
            file.write(b'half')
    assert start(copy).returncode == 0
    assert not any(map(os.path.exists, left))
    assert_same_end(copy, whole)


# --- Damage ---


def cut(path):
    os.truncate(path, os.path.getsize(path) // 2)


def flip(path):
    with open(path, 'r+b') as file:
        content = bytearray(file.read())
        content[len(content) // 3] ^= 16
        file.seek(0)
        file.write(content)


def empty(path):
    os.truncate(path, 0)


@pytest.mark.parametrize(
    ('newest', 'before'),
    [
        ((cut, 'data-00000-of-00001'), (flip, 'index')),
        ((flip, 'data-00000-of-00001'), (cut, 'index')),
        ((os.remove, 'data-00000-of-00001'), (empty, 'index')),
    ],
)
def test_damaged_checkpoints_are_skipped(start, whole, copy, newest, before):
    ckpts = utils.checkpoints(tf_dir(copy))
    for ckpt, (harm, ending) in zip(reversed(ckpts), (newest, before), strict=False):
        harm('%s.%s' % (ckpt, ending))
    done = start(copy)
    assert done.returncode == 0, done.stderr
    for ckpt in ckpts[-2:]:
        (line,) = [line for line in done.stdout.splitlines() if ckpt in line]
        assert line.startswith('Skipping a damaged checkpoint: %s is not a whole checkpoint: ' % ckpt)
    assert 'Going on from %s\n' % ckpts[-3] in done.stdout
    assert_same_end(copy, whole)


@pytest.mark.parametrize('ending', ['index', 'data-00000-of-00001'])
def test_no_flipped_bit_of_a_checkpoint_goes_unseen(whole, tmp_path, ending):
    ckpt = utils.find_latest_checkpoint(tf_dir(whole))
    right = tensors(ckpt)
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
                found = tensors(ckpt)
                assert found.keys() == right.keys()
                assert all(np.array_equal(found[name], right[name]) for name in right), position
            file.seek(position)
            file.write(content[position : position + 1])
    assert not damage(ckpt)


def test_a_damaged_checkpoint_costs_no_whole_one(start, copy):
    ckpts = utils.checkpoints(tf_dir(copy))
    flip(ckpts[-1] + '.index')
    done = start(copy, '--keep_ckpt=1', '--save_kimg=1', kill=['save', 2, 0])  # Saved at 10 kimg - once more - is next.
    assert done.returncode == -9 or done.returncode == 0
    whole = [ckpt for ckpt in utils.checkpoints(tf_dir(copy)) if not damage(ckpt)]
    assert whole


def test_a_whole_checkpoint_of_another_model_is_an_error(start, copy, whole):
    newest = utils.find_latest_checkpoint(tf_dir(copy))
    for path in glob.glob(newest + '.*'):
        os.remove(path)
    with tf.Session() as session:
        tf.train.get_or_create_global_step()
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, newest, write_meta_graph=False)
    before = tensors(newest)
    assert_error(start(copy, '--train_kimg=11'), newest, 'does not fit')
    assert tensors(newest).keys() == before.keys()


@pytest.mark.parametrize('text', ['', '{"seed": 3', '[]', '3', '[' * 100000, '\x00\xff'])
def test_an_unreadable_args_json_is_said_and_gone_on_with(copy, capfd, text):
    run = os.path.dirname(tf_dir(copy))
    with open(runs.args_file(run), 'w') as file:
        file.write(text)
    assert runs.read_args(run) == {}
    assert capfd.readouterr().err.startswith('Ignoring %s' % runs.args_file(run))


def test_damaged_event_files_hide_no_others(whole, copy):
    (events,) = glob.glob(os.path.join(tf_dir(copy), 'events.*'))
    empty(shutil.copy(events, events.replace('tfevents.', 'tfevents.0')))
    shutil.copy(events, events.replace('.tfevents.', '.tfevents.9'))
    cut(events.replace('.tfevents.', '.tfevents.9'))
    assert points(tf_dir(copy)).keys() == points(tf_dir(whole)).keys()


# --- No room ---

LIMIT = """
import resource
import tensorflow.compat.v1 as tf

def save(*args, original=tf.train.Saver.save, **kwargs):
    save.calls += 1
    if save.calls == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    return original(*args, **kwargs)

save.calls = 0
tf.train.Saver.save = save
"""
REMOVE = """
import shutil
from libml import train

def removed(self, *args, original=train.{method}, **kwargs):
    if {condition}:
        shutil.rmtree(self.{folder})
    return original(self, *args, **kwargs)

train.{method} = removed
"""


def test_a_disk_that_is_full_when_a_checkpoint_is_written(start, whole, tmp_path):
    line = assert_error(start(tmp_path, patch=LIMIT), 'cannot write', 'model.ckpt-%010d' % (2 * SAVE_KIMG << 10))
    (ckpt,) = utils.checkpoints(tf_dir(tmp_path))
    assert not damage(ckpt)
    assert not glob.glob(os.path.join(tf_dir(tmp_path), '*tempstate*')), line
    assert start(tmp_path).returncode == 0
    assert_same_end(tmp_path, whole)


def test_a_disk_that_is_full_when_a_report_is_written(start, copy):
    before = utils.checkpoints(tf_dir(copy))
    assert_error(start(copy, '--train_kimg=11', file_size=4096), 'cannot write', 'events.out')
    assert utils.checkpoints(tf_dir(copy)) == before
    assert not any(map(damage, before))


@pytest.mark.parametrize(
    'harm',
    [
        dict(method='Model.save', condition='args[0] > 7000', folder='train_dir'),
        dict(method='ClassifySemi.report', condition='args[0] > 4000', folder='checkpoint_dir'),
    ],
)
def test_a_run_folder_removed_under_way(start, tmp_path, harm):
    assert_error(start(tmp_path, patch=REMOVE.format(**harm)), 'cannot write')


def test_a_folder_that_cannot_be_written(start, tmp_path):
    assert_error(start('/proc/runs'), '/proc/runs')
    (tmp_path / 'file').touch()
    assert_error(start(tmp_path / 'file'), 'file')


# --- Divergence ---


def test_a_run_that_diverges_says_how_to_go_on_and_that_works(start, whole, tmp_path):
    ckpt = utils.checkpoints(tf_dir(whole))[-2]
    line = assert_error(start(tmp_path, '--wd=0', '--lr=1e30', '--init_ckpt=%s' % ckpt), 'not finite', ckpt)
    assert utils.checkpoints(tf_dir(tmp_path)) == []
    advice = shlex.split(line.split(' by ')[1])
    assert advice == ['--lr=5e+29', '--init_ckpt=%s' % ckpt]
    shutil.rmtree(tmp_path)
    done = start(tmp_path, '--lr=.001', advice[1])
    assert done.returncode == 0
    assert 'Going on from %s\n' % ckpt in done.stdout
    assert utils.get_latest_global_step(tf_dir(tmp_path)) == TRAIN_KIMG << 10
    assert min(step for step, _ in points(tf_dir(tmp_path))['accuracy']) > utils.checkpoint_step(ckpt)


def test_without_a_checkpoint_a_smaller_lr_is_advised(start, tmp_path):
    assert_error(start(tmp_path, '--wd=0', '--lr=1e30'), 'not finite', 'no checkpoint', '--lr=5e+29')


INFINITE = """
import numpy as np
import tensorflow.compat.v1 as tf
from libml import train

def check_finite(self, losses, step, original=train.Model.check_finite):
    original(self, losses, step)
    if step == 6 << 10:  # The loss was fine, and what it led to is not.
        bias = next(v for v in tf.global_variables() if v.op.name == 'classify/dense/bias')
        bias.load(np.full(bias.shape, np.nan), self.session)

train.Model.check_finite = check_finite
"""


def test_weights_that_are_not_finite_are_never_saved(start, tmp_path):
    assert_error(start(tmp_path, patch=INFINITE), 'weights are not finite', 'model.ckpt-%010d' % (3 << 10))
    assert utils.get_latest_global_step(tf_dir(tmp_path)) == 3 << 10
    assert [step for step, _ in points(tf_dir(tmp_path))['accuracy']] == [2 << 10, 4 << 10]


# --- Ctrl-C ---


@pytest.mark.parametrize(
    'where', ['libml.data_pair.read_dataset', 'libml.train.Model.resume', 'libml.train.Model.save']
)
def test_ctrl_c_is_one_line(start, tmp_path, where):
    owner, name = where.rsplit('.', 1)
    patch = 'import libml.train, libml.data_pair\ndef stop(*_, **__): raise KeyboardInterrupt\n%s.%s = stop'
    done = start(tmp_path, patch=patch % (owner, name))
    assert done.returncode == 130
    assert done.stderr.rstrip().splitlines()[-1] == 'Error: interrupted'
    assert 'Traceback' not in done.stderr


def test_ctrl_c_while_tensorflow_is_loaded_is_one_line(tmp_path):
    (tmp_path / 'tensorflow.py').write_text('raise KeyboardInterrupt')
    done = command('-c', 'import sys; sys.path.insert(0, %r); import libml' % str(tmp_path))
    assert (done.returncode, done.stderr) == (130, 'Error: interrupted\n')
