"""The registry: names, what is installed, and what is said where it is not or is damaged."""

import json
import os
import shutil

import fakes
import numpy as np
import pytest
from conftest import command
from hypothesis import given
from hypothesis import strategies as st

from libml import data_pair, records, utils
from libml.data_pair import DATASETS
from scripts import create_split

NAMES = st.from_regex(r'[A-Za-z0-9_][A-Za-z0-9_-]{0,9}', fullmatch=True)
SHAPE = (8, 8, 1)


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """A folder with 60 pictures of digits' shape, 20 for testing, and the split digits.1@12."""
    folder = str(tmp_path_factory.mktemp('data'))
    for seed, (part, n) in enumerate((('train', 60), ('test', 20))):
        examples = zip(records.encode(fakes.random_images(n, *SHAPE, seed)), np.arange(n) * 3 % 10, strict=True)
        records.write(data_pair.record_file(folder, 'digits', part), examples)
    targets = data_pair.split_files(os.path.join(folder, 'SSL'), 'digits', 1, 12)
    create_split.create(create_split.Source('digits', data_pair.train_files(folder, 'digits')), targets, 12, 1)
    return folder


@pytest.fixture
def folder(installed, tmp_path):
    """A copy of `installed` to be damaged."""
    return shutil.copytree(installed, tmp_path / 'data')


# --- Names ---


@given(name=NAMES, seed=st.integers(0, 10**9 - 1), size=st.integers(1, 10**9 - 1), valid=st.integers(0, 10**9 - 1))
def test_a_name_says_its_parts(name, seed, size, valid):
    split = data_pair.parse('%s.%d@%d-%d' % (name, seed, size, valid))
    assert (split.name, split.seed, split.size, split.valid) == (name, seed, size, valid)
    assert data_pair.parse(str(split)) == split


@given(text=st.one_of(st.text(max_size=30), st.text('a1.@-/ \n', max_size=12)))
def test_any_other_text_is_refused_in_one_line(text):
    try:
        split = data_pair.parse(text)
    except utils.Error as error:
        assert 'such as cifar10.3@250-5000' in str(error) and '\n' not in str(error)
    else:
        name, rest = text.split('.')
        assert (split.name, rest) == (name, '%s@%s' % tuple(text.split('.')[1].split('@')))
        assert '/' not in name and split.size >= 1


BAD_NAMES = ['', 'cifar10', 'cifar10.3', 'cifar10.3@250', 'cifar10@250-5000', 'cifar10.3@0-10', 'cifar10.-3@250-1']
BAD_NAMES += [
    '../x.1@2-3',
    'a/b.1@2-3',
    '.1@2-3',
    'x.1@2-3\n',
    ' x.1@2-3',
    'x.1@2-3-4',
    'x.1@2.5-3',
    'x.１@2-3',
    '-x.1@2-3',
]
BAD_NAMES += ['x.1@2-3.tfrecord', 'x.1@%d-3' % 10**12]


@pytest.mark.parametrize('name', BAD_NAMES)
def test_bad_names_are_refused(name):
    with pytest.raises(utils.Error, match='is not of the form'):
        DATASETS[name]


# --- Reading ---


def test_an_installed_dataset_is_read(installed):
    dataset = DATASETS['digits.1@12-15'](installed)
    assert {name: len(images) for name, images in dataset.sets.items()} == dict(
        labeled=12, unlabeled=33, valid=15, test=20
    )
    assert (dataset.name, dataset.height, dataset.width, dataset.colors, dataset.nclass) == (
        'digits.1@12-15',
        8,
        8,
        1,
        10,
    )
    assert (dataset.family.mirror, dataset.family.shift) == (False, 1)
    images, labels = records.read(os.path.join(installed, 'SSL', 'digits.1@12-unlabel.tfrecord'))
    for part, begin in ((dataset.sets['valid'], 0), (dataset.sets['unlabeled'], 15)):
        np.testing.assert_array_equal(part.gather(np.arange(len(part))), images[begin : begin + len(part)])
        np.testing.assert_array_equal(part.labels, labels[begin : begin + len(part)])


def test_the_folder_is_taken_from_the_environment_when_it_is_needed(installed, monkeypatch):
    load = DATASETS['digits.1@12-15']
    monkeypatch.delenv('ML_DATA', raising=False)
    with pytest.raises(utils.Error, match=r'--data_dir=FOLDER.*ML_DATA'):
        load()
    monkeypatch.setenv('ML_DATA', installed)
    assert len(load().sets['labeled']) == 12
    with pytest.raises(utils.Error, match='/nowhere, does not exist'):
        load('/nowhere')


def test_classes_of_the_unlabelled_images_can_be_thinned(installed):
    dataset = DATASETS['digits.1@12-15'](installed, p_unlabeled='0,1,1,1,1,1,1,1,1,2')
    whole = DATASETS['digits.1@12-15'](installed)
    assert 0 not in dataset.sets['unlabeled'].labels and 0 in whole.sets['unlabeled'].labels
    assert (dataset.sets['unlabeled'].labels == 9).sum() == (whole.sets['unlabeled'].labels == 9).sum()
    with pytest.raises(utils.Error, match='10 comma-separated weights'):
        DATASETS['digits.1@12-15'](installed, p_unlabeled='1,1')


def test_all_other_images_may_be_for_validation(installed):
    dataset = DATASETS['digits.1@12-48'](installed)
    assert (len(dataset.sets['valid']), len(dataset.sets['unlabeled'])) == (48, 0)
    with pytest.raises(utils.Error, match='asks for 49 validation images, but only 48'):
        DATASETS['digits.1@12-49'](installed)


# --- What is not there ---


def test_an_unknown_name_lists_what_is_known(installed):
    with pytest.raises(utils.Error, match=r"unknown dataset 'birds'. Known: cifar10, .*digits.*: digits.1@12$"):
        DATASETS['birds.1@12-15'](installed)


@pytest.mark.parametrize('name,seed,size', [('cifar10', 3, 250), ('digits', 1, 13), ('digits', 2, 12)])
def test_what_is_not_installed_names_the_commands(installed, name, seed, size):
    with pytest.raises(utils.Error) as error:
        DATASETS['%s.%d@%d-1' % (name, seed, size)](installed)
    assert '`python scripts/create_datasets.py %s`' % name in str(error.value)
    assert '`python scripts/create_split.py --seed=%d --size=%d %s`' % (seed, size, name) in str(error.value)


FILES = ['SSL/digits.1@12-label.tfrecord', 'SSL/digits.1@12-unlabel.tfrecord', 'SSL/digits.1@12-map.json']


@pytest.mark.parametrize('name', [*FILES, 'digits-test.tfrecord'])
def test_a_dataset_with_a_file_missing_is_not_installed(folder, name):
    os.remove(os.path.join(folder, name))
    with pytest.raises(utils.Error, match='not installed, as .*%s is missing' % name):
        DATASETS['digits.1@12-15'](folder)


@pytest.mark.parametrize('name', [*FILES[:2], 'digits-test.tfrecord'])
def test_a_damaged_file_is_named(folder, name):
    path = os.path.join(folder, name)
    for damage, words in ((os.path.getsize(path) - 3, 'is cut'), (0, 'is empty')):
        os.truncate(path, damage)
        with pytest.raises(utils.Error, match='%s %s' % (name, words)):
            DATASETS['digits.1@12-15'](folder)


MAPS = [
    '',
    '[]',
    '{}',
    '{"label": 3, "unlabel": 4}',
    '{"label": [1], "unlabel": [2]}',
    'null',
    '\xff',
    '{"label": [1, 2',
]


@pytest.mark.parametrize('text', MAPS)
def test_a_map_that_does_not_fit_is_named(folder, text):
    with open(os.path.join(folder, FILES[2]), 'w', encoding='latin1') as f:
        f.write(text)
    with pytest.raises(utils.Error, match=r'digits.1@12-map.json .*make the split again'):
        DATASETS['digits.1@12-15'](folder)


def test_a_split_renamed_to_another_size_is_refused(folder):
    for name in FILES:
        os.rename(os.path.join(folder, name), os.path.join(folder, name.replace('@12', '@13')))
    with pytest.raises(utils.Error, match='lists 12 labelled'):
        DATASETS['digits.1@13-15'](folder)


@pytest.mark.parametrize('nclass,shape', [(10, (8, 9, 1)), (10, (8, 8, 3)), (2, SHAPE)])
def test_records_of_another_kind_are_refused(folder, nclass, shape):
    family = data_pair.Family(*shape, nclass, mirror=False, shift=0)
    data_pair.write_family(os.path.join(folder, 'mine.json'), family)
    for name in [*FILES, 'digits-test.tfrecord']:
        shutil.copy(os.path.join(folder, name), os.path.join(folder, name.replace('digits', 'mine')))
    with pytest.raises(utils.Error, match=r'record \d+ (is a picture of 8x8x1|has label)'):
        DATASETS['mine.1@12-15'](folder)


# --- Families of the user's own ---


def test_a_family_is_read_as_written(folder):
    family = data_pair.Family(*SHAPE, 10, mirror=True, shift=2, classes=tuple('abcdefghij'))
    data_pair.write_family(data_pair.family_file(folder, 'mine'), family)
    assert data_pair.find_family(folder, 'mine') == family
    for name in [*FILES, 'digits-test.tfrecord']:
        shutil.copy(os.path.join(folder, name), os.path.join(folder, name.replace('digits', 'mine')))
    dataset = DATASETS['mine.1@12-15'](folder)
    assert (dataset.name, dataset.family.mirror, dataset.family.shift, len(dataset.sets['labeled'])) == (
        'mine.1@12-15',
        True,
        2,
        12,
    )
    with pytest.raises(utils.Error, match=r'Known: .*digits, mine. Splits in .*: digits.1@12, mine.1@12'):
        DATASETS['yours.1@12-15'](folder)
    with pytest.raises(utils.Error, match='--from_folder PICTURES --name mine'):
        DATASETS['mine.1@13-15'](folder)


GOOD = dict(height=8, width=8, colors=1, nclass=10, mirror=True, shift=2)
BAD_FAMILIES = [
    dict(GOOD, height=0),
    dict(GOOD, height='8'),
    dict(GOOD, width=10**6),
    dict(GOOD, colors=2),
    dict(GOOD, nclass=1),
    dict(GOOD, nclass=2.5),
    dict(GOOD, mirror=1),
    dict(GOOD, shift=8),
    dict(GOOD, shift=-1),
    dict(GOOD, parts=['../../etc']),
    dict(GOOD, parts='train'),
    dict(GOOD, source='../other'),
    dict(GOOD, classes=['a', 'b']),
    dict(GOOD, classes=3),
    dict(GOOD, other=1),
    {},
    [],
    None,
]


@pytest.mark.parametrize('fields', BAD_FAMILIES, ids=str)
def test_a_family_that_cannot_be_is_refused(tmp_path, fields):
    path = tmp_path / 'mine.json'
    path.write_text(json.dumps(fields))
    with pytest.raises(utils.Error, match=r'mine.json does not describe a dataset'):
        data_pair.find_family(str(tmp_path), 'mine')


def test_a_family_that_is_no_text_is_refused(tmp_path):
    for content in b'', b'\xff\xfe', b'{"height": 8,':
        (tmp_path / 'mine.json').write_bytes(content)
        with pytest.raises(utils.Error, match=r'mine.json does not describe a dataset'):
            data_pair.find_family(str(tmp_path), 'mine')


# --- Import ---


def test_importing_the_data_side_touches_nothing(tmp_path):
    modules = 'libml.data_pair libml.pictures libml.archives scripts.create_datasets scripts.create_split'
    modules += ' scripts.check_split scripts.inspect_dataset'
    code = """
import os, sys
import libml  # TensorFlow, which looks at the machine, is not what is watched here.
import numpy, PIL.Image, PIL.ImageDraw, PIL.ImageOps, tqdm, absl.flags, urllib.request, tarfile, json
seen = []
def watch(event, args):
    if event in ('open', 'os.listdir', 'os.scandir', 'glob.glob', 'socket.connect', 'os.putenv', 'os.mkdir'):
        path = str(args[0])
        if event == 'os.listdir' and path.startswith(os.getcwd()):
            return  # The import system itself looks for modules there.
        if not (path.endswith(('.py', '.pyc')) or 'site-packages' in path or '__pycache__' in path or path in sys.path):
            seen.append((event, path))
sys.addaudithook(watch)
import %s
assert not seen, seen
""" % ', '.join(modules.split())
    env = dict(os.environ, ML_DATA=str(tmp_path / 'nowhere'), PYTHONPATH=os.getcwd(), PYTHONDONTWRITEBYTECODE='1')
    done = command('-c', code, env=env)
    assert done.returncode == 0, done.stderr
