"""What the tests share: TensorFlow in graph mode, a fresh graph for each test, small datasets in memory."""

import functools
import glob
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys

import fakes
import forked
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ablation.ab_mixmatch import AblationMixMatch
from libml import data, data_pair, layers, records, utils
from libml.running import checkpoints, hardware

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PARAMS = dict(
    tiny.SIZE, arch='resnet', batch=4, nu=2, mixmode='xxy.yxy', use_ema_guess=False,
    lr=0.002, wd=0.02, ema=0.9, beta=0.5, T=0.5, w_match=100, warmup_kimg=1,
)  # fmt: skip
SAVE_KIMG, TRAIN_KIMG = 3, 7  # Of the fixture `start`. Reports, every 2 kimg, fall beside checkpoints and on them.
LONGER = '--train_kimg=%d' % (TRAIN_KIMG + 1)
QUICK = dict(arch='convnet', nu=1)  # For tests that ask nothing of the network: it is built in half the time.


def pytest_addoption(parser):
    parser.addoption('--all', action='store_true', help='also run the tests that are marked as slow')
    parser.addoption('--kills', type=int, default=20, help='how often test_survival.py harms a run; with --all')


def pytest_collection_modifyitems(config, items):
    if not config.option.all:
        for item in items:
            if item.get_closest_marker('slow'):
                item.add_marker(pytest.mark.skip(reason='slow: run with --all'))


def first_is_fast(*cases):
    """Returns cases for pytest.mark.parametrize, all but the first marked as slow; a tuple is of several arguments."""
    cases = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=[pytest.mark.slow] * (i > 0)) for i, case in enumerate(cases)]


def pytest_configure():
    # What is compared with NumPy, or bit by bit, is the CPU's: GPUs round convolutions to fewer bits.
    os.environ.setdefault('CUDA_VISIBLE_DEVICES', '-1')
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # Under nohup it is ignored.
    utils.setup_tf()
    hardware.set_operation_threads(threads=1)  # One thread, so that test numbers match those of real small runs.


@pytest.fixture(autouse=True)
def fresh_graph():
    """Gives every test a graph of its own."""
    with tf.Graph().as_default():
        yield


def evaluate(fetches, feed=None):
    """Returns what tensors of the current graph hold, variables at their first values."""
    with tf.Session(config=utils.get_config()) as session:
        session.run(tf.global_variables_initializer())
        return session.run(fetches, feed)


def make_dataset(height=8, width=8, colors=1, nclass=3, count=24, whiten=False):
    """Returns a data.DataSet of random pictures."""
    random = np.random.RandomState(0)

    def images(n):
        pixels = random.randint(0, 256, [n, height, width, colors])
        return data.Images(pixels.astype(np.uint8), random.randint(0, nclass, n))

    family = data.Family(height, width, colors, nclass, mirror=False, shift=1)
    sets = dict(zip(data.SETS, map(images, (count, count + 6, 5, 7)), strict=True))
    return data.DataSet('random.1@%d-5' % count, family, sets, whiten)


def write_records(folder, name, labels, part='train', shape=(2, 2, 1), seed=0):
    """Writes a record file of a dataset, of random pictures; labels: of each, a class or (class, group).

    Returns the serialized records.
    """
    os.makedirs(folder, exist_ok=True)
    pngs = records.encode(fakes.random_images(len(labels), *shape, seed))
    labels = [label if isinstance(label, tuple) else (label,) for label in labels]
    examples = [records.Example(png, *label) for png, label in zip(pngs, labels, strict=True)]
    records.write(data_pair.locate_records(str(folder), name, part), examples)
    return [records.serialize(*example) for example in examples]


def place(folder, *names, value=90):
    """Saves a picture of 8x8 pixels of one colour under each name in a folder."""
    for name in names:
        fakes.save_picture(os.path.join(folder, name), np.full([8, 8, 3], value, np.uint8))


def put(folder, *names, content=b'no picture'):
    """Writes a file of some bytes under each name in a folder."""
    for name in names:
        os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
        with open(os.path.join(folder, name), 'wb') as file:
            file.write(content)


def make_model(train_dir, dataset=None, seed=1, xla=False, devices=1, cls=AblationMixMatch, **params):
    """Returns a tiny AblationMixMatch in the current graph; `params` change PARAMS."""
    dataset = dataset or make_dataset()
    machine = hardware.Machine(xla, hardware.find_devices(devices))
    return cls(str(train_dir), dataset, nclass=dataset.nclass, seed=seed, machine=machine, **{**PARAMS, **params})


def fitting(arch):
    """Returns a dataset and a number of scales that an architecture takes."""
    return (make_dataset(12, 12), 3) if arch == 'cnn13' else (make_dataset(), 1)


def variables(session):
    """Returns all global variables by name."""
    return session.run({v.op.name: v for v in tf.global_variables()})


def assign(session, values):
    """Gives values, by name, to variables."""
    chosen = {v.op.name: v for v in tf.global_variables() if v.op.name in values}
    assert len(chosen) == len(values)
    given = {name: tf.placeholder(v.dtype.base_dtype, v.shape) for name, v in chosen.items()}
    session.run([v.assign(given[name]) for name, v in chosen.items()], {given[name]: values[name] for name in chosen})


@pytest.fixture
def draws(monkeypatch):
    """Notes what MixMode draws: draws['m'] and draws['partner'], lists of tensors in the order of the calls."""
    noted = dict(m=[], beta=[], partner=[])
    mix_weights, permutation = layers.mix_weights, layers.permutation

    def noted_weights(n, beta, key):
        noted['m'].append(mix_weights(n, beta, key))
        noted['beta'].append(beta)
        return noted['m'][-1]

    def noted_permutation(n, key):
        noted['partner'].append(permutation(n, key))
        return noted['partner'][-1]

    monkeypatch.setattr(layers, 'mix_weights', noted_weights)
    monkeypatch.setattr(layers, 'permutation', noted_permutation)
    return noted


def command(*args, env=None, cwd=ROOT):
    """Runs python with arguments from the repository's root; returns subprocess.CompletedProcess with text."""
    env = dict(env or os.environ, PYTHONPATH=ROOT)
    return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=env, capture_output=True, encoding='utf-8')


def assert_one_line_error(done, *words, codes=(1,)):
    """Asserts that a process failed, its last line a single `Error:` that holds the words; returns the line."""
    assert done.returncode in codes, (done.returncode, done.stderr)
    errors = done.stderr.replace('\r', '\n')  # Progress bars return to the line's beginning.
    (line,) = re.findall('^Error: .*', errors, re.MULTILINE)
    assert errors.endswith(line + '\n'), errors
    assert 'Traceback' not in done.stdout + errors
    assert len(line) < 1000 and 'Node:' not in line and 'Graph execution' not in line, line
    for word in words:
        assert str(word) in line, line
    return line


def scalars(folder):
    """Returns what TensorBoard shows of the event files in a folder: {tag: [(step, value)]}."""
    events = EventAccumulator(str(folder), size_guidance={'scalars': 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()['scalars']}


def tree(folder, times=True):
    """Returns what is below a folder: {path: (digest, time of the last change) of a file, None of a folder}."""
    found = {}
    for here, folders, names in os.walk(folder):
        found.update((os.path.join(here, name), None) for name in folders)
        for path in (os.path.join(here, name) for name in names):
            stat = os.stat(path)
            content = digest(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            found[path] = content, times and stat.st_mtime_ns
    return found


@functools.cache
def digest(path, *_):
    """Returns the digest of a file, read again only where the system says that something was done to it."""
    with open(path, 'rb') as file:
        return hashlib.sha256(file.read()).hexdigest()


@pytest.fixture(scope='session')
def faults(tmp_path_factory):
    """The path of the library that faults.c becomes, None where it cannot be compiled."""
    compiler, path = shutil.which('cc'), str(tmp_path_factory.mktemp('faults') / 'faults.so')
    if not compiler or not sys.platform.startswith('linux'):
        return None
    subprocess.run([compiler, '-O2', '-shared', '-fPIC', '-o', path, ROOT + '/tests/faults.c', '-ldl'], check=True)
    return path


@pytest.fixture(scope='session')
def server(faults, tmp_path_factory):
    """Runs command lines in forks of one process, see forked.Server."""
    return forked.Server(tmp_path_factory.mktemp('output'), faults)


@pytest.fixture(scope='session')
def digits_dir(server, tmp_path_factory):
    """A data_dir with the digits and their split digits.1@20, made by the scripts; to be left as it is."""
    folder = tmp_path_factory.mktemp('data')
    for script, *args in (['create_datasets', 'digits'], ['create_split', '--seed=1', '--size=20', 'digits']):
        done = server.run('scripts/%s.py' % script, '--data_dir=%s' % folder, *args)
        assert done.returncode == 0, done.stderr
    return folder


# --- Runs on the digits ---


@pytest.fixture(scope='session')
def start(server, digits_dir):
    """Returns a function that trains: (train_dir, *flags, first=()), the last two as those of forked.Server.run."""
    how = dict(tiny.SIZE, **QUICK, dataset=tiny.DATASET, batch=32, ema=0.9, warmup_kimg=1, seed=3)
    how.update(report_kimg=2, save_kimg=SAVE_KIMG, train_kimg=TRAIN_KIMG)

    def start(train_dir, *flags, first=()):
        given = *tiny.flags(**how, data_dir=digits_dir, train_dir=train_dir), *flags
        return server.run('ablation/ab_mixmatch.py', *given, first=first)

    return start


@pytest.fixture(scope='session')
def whole(start, tmp_path_factory):
    """The train_dir of a run by `start` that nothing happened to; to be left as it is."""
    folder = tmp_path_factory.mktemp('whole')
    done = start(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of `whole` to do harm to."""
    return shutil.copytree(whole, tmp_path / 'copy')


def tf_dir(train_dir):
    """Returns the folder of checkpoints of the only run in a train_dir."""
    (folder,) = glob.glob(os.path.join(str(train_dir), '*', '*', 'tf'))
    return folder


def read_newest(folder):
    """Returns all that the newest checkpoint of a run holds."""
    return checkpoints.read(utils.find_latest_checkpoint(os.path.join(folder, 'tf')))


def assert_same_end(train_dir, whole):
    """Asserts that two runs have the same checkpoints, the same curves, and nothing else but what was put aside."""
    ours, theirs = checkpoints.find(tf_dir(train_dir)), checkpoints.find(tf_dir(whole))
    assert list(map(os.path.basename, ours)) == list(map(os.path.basename, theirs))
    for our, their in zip(map(checkpoints.read, ours), map(checkpoints.read, theirs), strict=True):
        assert our.keys() == their.keys()
        assert all(our[name].tobytes() == their[name].tobytes() for name in their)
    assert scalars(tf_dir(train_dir)) == scalars(tf_dir(whole))
    ckpt = r'(damaged-)?model\.ckpt-\d{10}\.(index|data-00000-of-00001|note\.json)'
    for name in os.listdir(tf_dir(train_dir)):
        assert re.fullmatch(r'checkpoint|events\..*|' + ckpt, name), name
