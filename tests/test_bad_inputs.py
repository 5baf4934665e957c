"""What a user can get wrong, one row each: it gives one line and a non-zero exit code, and the disk stays as it was.

The rows of a training are called in this process, the others are real command lines, in forks (see forked.py).
`{world}` is a folder with a dataset, a run and a lot that is broken. What libml's functions refuse without a command
line, such as names of datasets, is in the tests of their modules.
"""

import glob
import os
import shutil
import subprocess

import fakes
import numpy as np
import pytest
import tiny
from absl import flags
from conftest import assert_one_line_error, command, tree

from ablation.ab_mixmatch import AblationMixMatch
from libml import experiment, records, utils
from libml.cli import options
from libml.cli import script as script_module

TRAIN = 'ablation/ab_mixmatch.py'
NAME = tiny.DATASET
TINY = tiny.flags(**tiny.RUN)
RUN = '{world}/runs/digits.1@20-100/RUN'


# --- The rows: script, arguments, and a word that the line must hold ---

BEYOND = '10000000000'  # Every machine.
FLAGS = {  # Flag: values that are refused.
    'batch': ['0', '-1', '2', 'x', '1.5', '', BEYOND],
    'nu': ['0', '-1', 'x', '1' + 30 * '0'],
    'lr': ['0', '-1', 'nan', 'inf', '1e-400', 'x'],
    'wd': ['-1', 'nan', 'inf', '500', 'x'],
    'ema': ['-.1', '1', '2', 'nan'],
    'beta': ['0', '-1', 'inf', 'nan', '1e-38', '1e38'],
    'T': ['0', '-1', 'inf', 'nan', '1e-38', '1e308'],
    'w_match': ['-1', 'inf', 'nan', '1e308'],
    'warmup_kimg': ['-1', 'x', '1.5'],
    'scales': ['-1', '11', 'x'],
    'filters': ['0', '-1', 'x', BEYOND],
    'repeat': ['0', '-1', 'x', BEYOND],
    'arch': ['', 'resnet50', 'RESNET'],
    'mixmode': ['', '..', 'xx', 'xy.yx', 'yy.xx', 'xxy.yxx', 'XX.YY', 'xx.yy.'],
    'use_ema_guess': ['maybe'],
    'train_kimg': ['0', '-1', 'x', '1.5'],
    'report_kimg': ['0', '-1', 'x'],
    'save_kimg': ['0', '-1', 'x'],
    'keep_ckpt': ['0', '-1', 'x'],
    'run_name': ['.', '..', '-x', 'a/b', 'a b', 'tf', 'args', 'a\n'],
    'seed': ['-1', '4294967296', 'x'],
    'shuffle': ['0', 'x'],
    'para_parse': ['0'],
    'para_augment': ['0'],
    'whiten': ['perhaps'],
    'precision': ['', 'float16', 'FLOAT32'],
    'xla': ['perhaps'],
    'train_dir': [''],
    'devices': ['0', '-1', '1.5', 'some', ''],
    'p_unlabeled': ['1', '1,2', 'a,b,c,d,e,f,g,h,i,j', ','.join('0' * 10), ','.join(['-1'] * 10), 'nan' + ',1' * 9],
}
DATASETS = {  # Name: a word of the line.
    '': 'form',
    'digits.1@20-100\n': 'form',
    'DIGITS.1@20-100': 'unknown',
    'nope.1@20-100': 'Known',
    'digits.2@1288-0': 'used up',
    'digits.1@all-0': 'all 1287 pictures have a label',
    'cifar10.3@250-5000': 'create_datasets.py cifar10',
    'digits.1@20-1268': 'validation',
    'digits.1@20-1267': 'no unlabelled images',
}
FILES = ('SSL/digits.1@20-label.tfrecord', 'SSL/digits.1@20-unlabel.tfrecord', 'digits-test.tfrecord')
MAP = 'SSL/digits.1@20-map.json'


def rubbish(path):
    write(path, b'rubbish\x00\xff' * 20)


def folder(path):
    os.remove(path)
    os.mkdir(path)


def write(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as file:
        file.write(content.encode() if isinstance(content, str) else content)


HARMS = (fakes.flip, rubbish, folder)  # Besides those of test_data_pair.py.
TRAIN_HARMS = (fakes.cut, fakes.flip, fakes.empty, rubbish)
EXAMPLES = {  # What is wrong with the last record of the labelled ones: (PNG, label).
    'label -1': (np.zeros([8, 8, 1]), -1),
    'label 10': (np.zeros([8, 8, 1]), 10),
    'size': (np.zeros([9, 8, 1]), 0),
    'colors': (np.zeros([8, 8, 3]), 0),
    'no PNG': (b'rubbish', 0),
    'no pixels': (None, 0),
}


def flag_rows():
    for flag, values in FLAGS.items():
        for value in values:
            yield TRAIN, ['--%s=%s' % (flag, value)], flag
    yield TRAIN, ['--batch=3', '--nu=3'], 'batch'
    yield TRAIN, ['--batch=9', '--devices=2'], 'a multiple of devices=2'
    yield TRAIN, ['--batch=4', '--devices=2'], 'at least nu + 1 = 3 on each of 2 devices'
    yield TRAIN, ['--arch=cnn13', '--scales=3'], 'at least 12'
    yield TRAIN, ['--arch=cnn13', '--scales=2'], 'scales'
    yield TRAIN, ['--arch=convnet', '--scales=4'], 'at least 2^scales'
    yield TRAIN, ['--arch=shake', '--scales=5'], 'multiple'


def dataset_rows():
    for name, word in DATASETS.items():
        yield TRAIN, ['--dataset=' + name], word
    yield 'scripts/check_split.py', ['--data_dir={data}', 'nope.1@20-100'], 'Known'
    yield 'scripts/check_split.py', ['--data_dir={data}', 'digits.1@20-100\n'], 'cannot be seen'
    for data_dir in ('{world}/nowhere', '{world}/file', '/proc/nowhere', ''):
        yield TRAIN, ['--data_dir=' + data_dir], 'datasets'
        yield 'scripts/create_split.py', ['--data_dir=' + data_dir, '--size=20', 'digits'], 'datasets'
    for i, _ in enumerate(FILES):
        for harm in HARMS:
            yield TRAIN, ['--data_dir={world}/harmed-%d-%s' % (i, harm.__name__)], FILES[i]
    yield TRAIN, ['--data_dir={world}/map'], MAP
    for name in EXAMPLES:
        yield TRAIN, ['--data_dir={world}/example ' + name], 'record 19'
    yield TRAIN, ['--data_dir={world}/family', '--dataset=mine.1@20-100'], 'mine.json'


def run_rows():
    yield TRAIN, ['--train_dir={world}/file'], 'file'
    yield TRAIN, ['--train_dir=/proc/runs'], '/proc/runs'
    yield TRAIN, ['--p_unlabeled=' + ','.join(['0.' + 20 * '1'] * 10)], 'longer than 255 bytes'
    yield TRAIN, ['--train_dir={world}/whitened', '--train_kimg=2'], 'whiten=True, not False'
    yield TRAIN, ['--train_dir={world}/others', '--train_kimg=2'], 'seed'
    yield TRAIN, ['--train_dir={world}/misfit', '--train_kimg=2'], 'does not fit'
    for flag in ('eval_ckpt', 'init_ckpt'):
        for ckpt in ('{world}/nowhere', '{world}/file', '{data}', RUN + '/tf/harmed', '{world}/weights*'):
            yield TRAIN, ['--%s=%s' % (flag, ckpt)], 'whole'
        yield TRAIN, ['--filters=3', '--%s=%s/tf/model.ckpt-0000001024' % (flag, RUN)], 'does not fit'
    for script in ('extract_accuracy', 'report'):
        script, out = 'scripts/%s.py' % script, ['--out={world}/out'] if script == 'report' else []
        yield script, out, 'argument'
        yield script, [*out, '--no_such_flag', RUN], 'no_such_flag'
        yield script, [*out, '{world}/nowhere'], 'nowhere'
        yield script, [*out, '{world}/\x1b[31m'], r'\x1b[31m'
    yield 'scripts/report.py', [], 'one folder of runs or more'
    yield 'scripts/report.py', ['.', '--beside_paper=300'], '250 or 4000'
    for run in ('{world}/file', '{world}/empty', '{world}/run-zero', '{world}/run-rubbish'):
        yield 'scripts/extract_accuracy.py', [run], 'report'
    yield 'scripts/extract_accuracy.py', ['{world}'], 'runs, see above, the newest last'


def split_rows():
    script, data_dir = 'scripts/create_split.py', '--data_dir={data}'
    for args, word in [
        ([], 'which dataset'),
        (['--all', 'nope'], 'unknown'),
        (['--size=20', ''], 'unknown'),
        (['--size=0', 'digits'], 'size'),
        (['--size=-1', 'digits'], 'size'),
        (['--size=x', 'digits'], 'size'),
        (['--size=20', '--seed=-1', 'digits'], 'seed'),
        (['--size=20', '--seed=4294967296', 'digits'], 'seed'),
        (['--size=20', '--seed=x', 'digits'], 'seed'),
        (['--size=20', '{world}/SSL/digits', '{world}/nowhere'], 'nowhere'),
        (['--size=20', '{world}/SSL/digits', '{world}/file'], 'file'),
        (['--size=20', '{world}/SSL/digits', '{data}/digits-train.tfrecord', '{world}/empty'], 'empty'),
        (['--size=20', '{world}/file/digits', '{data}/digits-train.tfrecord'], 'file'),
    ]:
        yield script, [data_dir, *args], word
    for harm in TRAIN_HARMS:
        path = '{world}/train-%s.tfrecord' % harm.__name__
        yield script, ['--size=20', '{world}/SSL/digits', path], os.path.basename(path)


def archive_rows():
    script = 'scripts/create_datasets.py'
    for args, word in [
        (['cifar10', '--source={world}/file'], 'file'),
        (['cifar10', '--source={world}/empty'], 'cifar-10-binary.tar.gz is missing'),
        (['cifar10', '--source={world}/archives'], 'published'),
        (['svhn', '--source={world}/archives', '--noverify'], 'cut or damaged'),
        (['cifar100', '--source={world}/archives', '--noverify'], 'damaged'),
        (['stl10', '--source={world}/archives', '--noverify'], 'lacks'),
        (['--noverify', '--no_such_flag'], 'no_such_flag'),
    ]:
        yield script, ['--data_dir={world}/made', *args], word
    yield script, ['--data_dir={world}/file', 'digits'], 'file'
    yield script, ['--data_dir=/proc/made', 'digits'], '/proc/made'


def picture_rows():
    pictures = ['--from_folder={world}/pictures', '--name=mine', '--test_fraction=.5']
    for args, word in [
        (['--from_folder={world}/file', '--name=mine'], 'file'),
        ([*pictures, '--labels={world}/file'], "0 columns named 'file'"),
        ([*pictures, '--from_folder={world}/pictures-loop'], 'remove this link'),
        ([*pictures, '--seed=4294967296'], 'seed'),
        ([*pictures, '--from_folder={world}/pictures-one'], 'at least 2'),
        ([*pictures, '--from_folder={world}/pictures-empty'], 'no picture'),
        ([*pictures, '--from_folder={world}/pictures-bad'], 'cannot be read'),
    ]:
        yield 'scripts/create_datasets.py', ['--data_dir={world}/made', *args], word


def inspect_rows():
    for script in ('inspect_dataset', 'check_split'):
        yield 'scripts/%s.py' % script, ['--data_dir={data}'], 'which dataset'
        yield 'scripts/%s.py' % script, ['--data_dir={data}', NAME, NAME], 'which dataset'
        yield 'scripts/%s.py' % script, ['--data_dir={data}', '--no_such_flag'], 'no_such_flag'
    yield 'scripts/inspect_dataset.py', ['--data_dir={data}', NAME, '--png={world}/nowhere/a.png'], 'nowhere'
    yield 'scripts/inspect_dataset.py', ['--data_dir={data}', NAME, '--png={world}'], 'world'


ROWS = [
    row
    for rows in (flag_rows, dataset_rows, run_rows, split_rows, archive_rows, picture_rows, inspect_rows)
    for row in rows()
]
IDS = [' '.join([os.path.basename(script), *args]) for script, args, _ in ROWS]


# --- The world ---


@pytest.fixture(scope='module')
def world(server, digits_dir, tmp_path_factory):
    """Returns the folder in which everything is that the rows name."""
    world = str(tmp_path_factory.mktemp('world'))
    os.mkdir(world + '/empty')
    write(world + '/file', 'text')
    for i, path in enumerate(FILES):
        for harm in HARMS:
            there = shutil.copytree(digits_dir, '%s/harmed-%d-%s' % (world, i, harm.__name__))
            harm(os.path.join(there, path))
    write(os.path.join(shutil.copytree(digits_dir, world + '/map'), MAP), b'\xff')
    for name, (image, label) in EXAMPLES.items():
        there = os.path.join(shutil.copytree(digits_dir, '%s/example %s' % (world, name)), FILES[0])
        examples = [records.parse(record) for record in records.RecordFile(there).raw()]
        if image is None:
            image = examples[0][0][:-30]
        elif not isinstance(image, bytes):
            image = fakes.encode_png(image)
        os.remove(there)
        records.write(there, [*examples[:-1], (image, label)])
    write(world + '/family/mine.json', '[' * 100000)
    for harm in TRAIN_HARMS:
        source = os.path.join(digits_dir, 'digits-train.tfrecord')
        harm(shutil.copy(source, '%s/train-%s.tfrecord' % (world, harm.__name__)))
    make_archives(world)
    make_pictures(world)
    make_runs(world, server, digits_dir)
    return world


@pytest.fixture(scope='module')
def untouched(world, digits_dir):
    """Returns what is in `world` and in the folder of the digits before any row is tried."""
    return tree(world, times=False), tree(digits_dir)


def make_archives(world):
    os.mkdir(world + '/archives')
    fakes.cifar10(world + '/archives')
    for name in ('train_32x32.mat', 'cifar-100-binary.tar.gz'):
        write('%s/archives/%s' % (world, name), 'rubbish')
    fakes.tar_gz(world + '/archives/stl10_binary.tar.gz', {'stl10_binary/other': b''})


def make_pictures(world):
    for pictures in ('pictures', 'pictures-one', 'pictures-empty', 'pictures-bad'):
        for i, label in enumerate(['cat'] if pictures == 'pictures-one' else ['cat', 'dog']):
            for j in range(3):
                path = '%s/%s/train/%s/%d.png' % (world, pictures, label, j)
                fakes.save_picture(path, fakes.random_images(1, 9, 9, 3, seed=10 * i + j)[0])
    os.mkdir(world + '/pictures-empty/train/eel')
    shutil.copytree(world + '/pictures', world + '/pictures-loop')
    os.symlink('..', world + '/pictures-loop/train/cat/loop')
    write(world + '/pictures-bad/train/cat/1.png', 'rubbish')


def make_runs(world, server, digits_dir):
    given = *TINY, '--data_dir=%s' % digits_dir
    done = server.run(TRAIN, *given, '--train_dir=%s/runs' % world)
    assert done.returncode == 0, done.stderr
    (run,) = glob.glob(world + '/runs/*/*')
    for other in ('others', 'whitened', 'misfit'):
        shutil.copytree(world + '/runs', '%s/%s' % (world, other))
    for other, text in ('others', '{"seed": "x"}'), ('whitened', '{"whiten": true}'):
        (args,) = glob.glob('%s/%s/*/*/args/args.json' % (world, other))
        write(args, text)
    other = server.run(TRAIN, *given, '--train_dir=%s/wider' % world, '--filters=3')
    assert other.returncode == 0, other.stderr
    for path in glob.glob(world + '/wider/*/*/tf/model.ckpt-*'):
        (there,) = glob.glob(world + '/misfit/*/*/tf')
        shutil.copy(path, there)
    for path in glob.glob(run + '/tf/model.ckpt-0000001024.*'):
        shutil.copy(path, path.replace('model.ckpt-0000001024', 'harmed'))
    fakes.flip(run + '/tf/harmed.data-00000-of-00001')
    write(world + '/run-zero/tf/events.out.tfevents.1.a', '')
    write(world + '/run-rubbish/tf/events.out.tfevents.1.a', b'rubbish' * 99)


def fill_in(world, digits_dir, script, args):
    """Returns the arguments of a row with what training needs before them, names of folders filled in."""
    if script == TRAIN:
        args = [*TINY, '--data_dir={data}', '--train_dir={world}/new', *args]
    (run,) = glob.glob(world + '/runs/*/*')
    return [arg.replace(RUN, run).replace('{world}', world).replace('{data}', str(digits_dir)) for arg in args]


# --- The tests ---


def test_there_are_rows_enough():
    assert len(ROWS) >= 150
    assert len({(script, *args) for script, args, _ in ROWS}) == len(ROWS)


def train(*words):
    """Does what the command line of a training does, in this process; the error is raised."""
    table = experiment.list_options(AblationMixMatch)
    experiment.run(AblationMixMatch, **options.parse(table, words))


@pytest.mark.parametrize(('script', 'args', 'word'), ROWS, ids=IDS)
def test_a_bad_input_is_one_line_and_harms_nothing(
    world, untouched, server, digits_dir, script, args, word, monkeypatch, capsys
):
    args = fill_in(world, digits_dir, script, args)
    if script == TRAIN:
        monkeypatch.setenv('ML_DATA', '')
        with pytest.raises((utils.Error, OSError, flags.Error)) as error:
            train(*args)
        said = capsys.readouterr().out
        assert not said or word != 'whole'  # A checkpoint is looked at before anything is read.
        script_module.fail(error.value, 1)
        done = subprocess.CompletedProcess(args, 1, '', capsys.readouterr().err)
    else:
        done = server.run(script, *args, env={'ML_DATA': ''})
    assert_one_line_error(done, word, codes=(1, 2))
    assert (tree(world, times=False), tree(digits_dir)) == untouched


@pytest.mark.parametrize(
    ('script', 'args'),
    [
        (TRAIN, ['--nu=0']),
        ('scripts/create_datasets.py', ['--data_dir={data}', 'nope']),
        ('scripts/create_split.py', ['--data_dir={data}', '--size=20', 'nope']),
        ('scripts/extract_accuracy.py', ['{world}/empty']),
        ('scripts/report.py', ['{world}/nowhere']),
        ('scripts/check_split.py', ['--data_dir={data}', 'nope']),
        ('scripts/inspect_dataset.py', ['--data_dir={data}', 'nope']),
    ],
)
def test_debug_shows_the_traceback(world, server, digits_dir, script, args):
    done = server.run(script, *fill_in(world, digits_dir, script, [*args, '--debug']))
    assert done.returncode == 1
    assert 'Traceback' in done.stderr


def test_a_command_line_says_what_is_wrong_with_it(server):
    bad = {'--nu=0': ('nu=0', 1), '--nu=x': ('nu', 2), 'resnet': ('resnet', 1), '--no_such_flag=1': ('no_such_flag', 2)}
    for argument, (word, code) in bad.items():
        assert_one_line_error(server.run(TRAIN, '--dataset=' + NAME, argument), word, codes=(code,))
    done = command(TRAIN, '--nu=0')  # In a process of its own.
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr == 'Error: nu=0 is not allowed: it must be 1 to 1024\n'
