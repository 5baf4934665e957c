"""The registry: names, what is installed, and what is said where it is not or is damaged."""

import json
import os
import shutil

import fakes
import numpy as np
import pytest
from conftest import write_records
from hypothesis import given
from hypothesis import strategies as st

from libml import data, data_pair, records, utils
from libml.data_pair import DATASETS
from libml.family import Family, write_family
from libml.published import FAMILIES
from scripts import create_split

NAMES = st.from_regex(r'[A-Za-z0-9_][A-Za-z0-9_-]{0,9}', fullmatch=True)
SHAPE = (8, 8, 1)


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """A folder with 60 pictures of digits' shape, 20 for testing, and the split digits.1@12."""
    folder = str(tmp_path_factory.mktemp('data'))
    write_records(folder, 'digits', np.arange(60) * 3 % 10, shape=SHAPE)
    write_records(folder, 'digits', np.arange(20) * 3 % 10, 'test', SHAPE, seed=1)
    create_split.make('digits', size=12, seed=1, data_dir=folder)
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
BAD_NAMES += ['../x.1@2-3', 'a/b.1@2-3', '.1@2-3', 'x.1@2-3\n', ' x.1@2-3', 'x.1@2-3 ', 'x.1@2-3-4', 'x.1@2--3']
BAD_NAMES += ['x.1@2.5-3', 'x.y@2-3', 'x.１@2-3', 'x.\u0661@2-3', '-x.1@2-3', 'x.1@2-3.tfrecord', 'x.1@%d-3' % 10**12]
BAD_NAMES += ['/etc/passwd', 'digits.1@alle-0']


def test_bad_names_are_refused():
    for name in BAD_NAMES:
        with pytest.raises(utils.Error, match='is not of the form'):
            DATASETS[name]


# --- Reading ---


def test_an_installed_dataset_is_read(installed):
    dataset = DATASETS['digits.1@12-15'](installed)
    assert [len(dataset.sets[name]) for name in data.SETS] == [12, 33, 15, 20]
    assert (dataset.name, dataset.shape, dataset.nclass) == ('digits.1@12-15', SHAPE, 10)
    assert (dataset.family.mirror, dataset.family.shift) == (False, 1)
    images, labels = records.read(os.path.join(installed, 'SSL', 'digits.1@12-unlabel.tfrecord'))
    for part, begin in ((dataset.sets['valid'], 0), (dataset.sets['unlabeled'], 15)):
        np.testing.assert_array_equal(part.gather(np.arange(len(part))), images[begin : begin + len(part)])
        np.testing.assert_array_equal(part.labels, labels[begin : begin + len(part)])
    files = dict(zip(('label', 'unlabel', 'test'), [*FILES[:2], 'digits-test.tfrecord'], strict=True))
    expected = {k: records.RecordFile(os.path.join(installed, name)).fingerprint for k, name in files.items()}
    assert dataset.fingerprints == expected


def test_the_folder_is_taken_from_the_environment_when_it_is_needed(installed, monkeypatch):
    load = DATASETS['digits.1@12-15']
    monkeypatch.delenv('ML_DATA', raising=False)
    with pytest.raises(utils.Error, match=r'--data_dir=FOLDER.*ML_DATA'):
        load()
    monkeypatch.setenv('ML_DATA', installed)
    assert len(load().sets['labeled']) == 12
    with pytest.raises(utils.Error, match='/nowhere, does not exist'):
        load('/nowhere')
    monkeypatch.setenv('HOME', os.path.dirname(installed))
    for path in '~/' + os.path.basename(installed), None:
        assert len(load(path).sets['labeled']) == 12
        monkeypatch.setenv('ML_DATA', '~/' + os.path.basename(installed))


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
    with pytest.raises(utils.Error, match='asks for 49 validation images, but has only 48'):
        DATASETS['digits.1@12-49'](installed)


# --- What is not there ---


@pytest.mark.parametrize('name,seed,size', [('cifar10', 3, 250), ('digits', 1, 13), ('digits', 2, 12)])
def test_what_is_not_installed_names_the_commands(installed, name, seed, size, monkeypatch):
    with pytest.raises(utils.Error) as error:
        DATASETS['%s.%d@%d-1' % (name, seed, size)](installed)
    assert '`python scripts/create_datasets.py %s --data_dir=%s`' % (name, installed) in str(error.value)
    split = '`python scripts/create_split.py --seed=%d --size=%d %s --data_dir=%s`' % (seed, size, name, installed)
    assert split in str(error.value)
    monkeypatch.setenv('ML_DATA', '%s/' % installed)
    with pytest.raises(utils.Error, match='--size=%d %s`$' % (size, name)):
        DATASETS['%s.%d@%d-1' % (name, seed, size)]()


FILES = ['SSL/digits.1@12-label.tfrecord', 'SSL/digits.1@12-unlabel.tfrecord', 'SSL/digits.1@12-map.json']


@pytest.mark.parametrize('name', [*FILES, 'digits-test.tfrecord'])
def test_a_file_that_is_damaged_or_missing_is_named(folder, name):
    path = os.path.join(folder, name)
    harms = [(lambda: os.remove(path), 'not installed, as .*%s is missing' % name)]
    if name.endswith('.tfrecord'):
        harms = [(lambda: fakes.cut(path), name + ' is cut'), (lambda: fakes.empty(path), name + ' is empty'), *harms]
    for harm, words in harms:
        harm()
        with pytest.raises(utils.Error, match=words):
            DATASETS['digits.1@12-15'](folder, needs_unlabeled=False)


MAPS = [
    *('', '[]', '{}', 'null', '3', '{', '{"label": [1, 2', '[' * 100000, '\xff'),
    *('{"label": 3, "unlabel": 4}', '{"label": 3}', '{"label": [1], "unlabel": [2]}', '{"label": [], "unlabel": []}'),
    *('{"label": [0.5], "unlabel": []}', '{"label": [1], "unlabel": [], "source": []}'),
    '{"label": [1], "unlabel": [], "source": {"\\u001b[31m": 3}}',
]


def test_a_map_that_does_not_fit_is_named(folder):
    for text in MAPS:
        with open(os.path.join(folder, FILES[2]), 'w', encoding='latin1') as f:
            f.write(text)
        with pytest.raises(utils.Error, match=r'digits.1@12-map.json .*make the split again'):
            DATASETS['digits.1@12-15'](folder)


def test_a_split_renamed_to_another_size_is_refused(folder):
    for name in FILES:
        os.rename(os.path.join(folder, name), os.path.join(folder, name.replace('@12', '@13')))
    with pytest.raises(utils.Error, match='lists 12 labelled'):
        DATASETS['digits.1@13-15'](folder)


def make_own(folder, *args, **fields):
    """Makes the digits in a folder a dataset `mine`, of a Family that may not fit them; returns the Family."""
    family = Family(*args, **fields)
    write_family(data_pair.locate_family(folder, 'mine'), family)
    for name in [*FILES, 'digits-test.tfrecord']:
        shutil.copy(os.path.join(folder, name), os.path.join(folder, name.replace('digits', 'mine')))
    return family


@pytest.mark.parametrize('nclass,shape', [(10, (8, 9, 1)), (10, (8, 8, 3)), (2, SHAPE)])
def test_records_of_another_kind_are_refused(folder, nclass, shape):
    make_own(folder, *shape, nclass, mirror=False, shift=0)
    with pytest.raises(utils.Error, match=r'record \d+ (is a picture of 8x8x1|has label)'):
        DATASETS['mine.1@12-15'](folder)


# --- Identity ---


def rewrite(path, change):
    """Writes a record file again, its list of Example changed."""
    examples = list(records.RecordFile(path).examples(unlabeled=True))
    change(examples)
    os.remove(path)
    records.write(path, examples)


def swap_classes(examples):
    examples[:] = [example._replace(label=(example.label + 1) % 10) for example in examples]


@pytest.mark.parametrize('part', ['train', 'test'])
@pytest.mark.parametrize(
    'change', [swap_classes, lambda x: x.pop(), lambda x: x.reverse()], ids=['classes', 'fewer', 'order']
)
def test_a_split_of_other_records_is_refused(folder, part, change):
    rewrite(data_pair.locate_records(folder, 'digits', part), change)
    with pytest.raises(utils.Error, match='digits.1@12 was made from another digits-%s.tfrecord' % part) as error:
        DATASETS['digits.1@12-15'](folder)
    for name in FILES:
        assert os.path.join(folder, name) in str(error.value)
        os.remove(os.path.join(folder, name))
    command = str(error.value).split('`')[1].split()
    assert command[:2] == ['python', 'scripts/create_split.py'] and '\n' not in str(error.value)
    create_split.make('digits', size=12, seed=1, data_dir=folder)  # What the message says helps.
    DATASETS['digits.1@12-15'](folder)


def test_a_split_made_again_of_the_same_records_is_the_same(folder):
    rewrite(data_pair.locate_records(folder, 'digits', 'train'), lambda examples: None)
    DATASETS['digits.1@12-15'](folder)
    os.remove(data_pair.locate_records(folder, 'digits', 'train'))  # It is not needed to train.
    DATASETS['digits.1@12-15'](folder)


def test_a_map_without_a_source_is_read_as_before(folder):
    path = os.path.join(folder, FILES[2])
    with open(path) as f:
        found = json.load(f)
    assert set(found.pop('source')) == {'digits-train.tfrecord', 'digits-test.tfrecord'}
    with open(path, 'w') as f:
        json.dump(found, f)
    rewrite(data_pair.locate_records(folder, 'digits', 'train'), swap_classes)
    assert len(DATASETS['digits.1@12-15'](folder).sets['labeled']) == 12


def test_an_index_is_walked_once(installed, monkeypatch):
    walk, walked = records._walk, []
    monkeypatch.setattr(records, '_walk', lambda file, size: walked.append(size) or walk(file, size))
    DATASETS['digits.1@12-15'](installed)
    names = [*FILES[:2], 'digits-test.tfrecord', 'digits-train.tfrecord']
    assert sorted(walked) == sorted(os.path.getsize(os.path.join(installed, name)) for name in names)


def test_the_classes_of_cifar100_are_the_sorted_fine_labels():
    classes = FAMILIES['cifar100'].classes
    assert len(set(classes)) == 100 and list(classes) == sorted(classes)
    assert (classes[0], classes[1], classes[50], classes[99]) == ('apple', 'aquarium_fish', 'mouse', 'worm')


def test_a_run_is_of_the_data_that_it_began_with_and_may_be_from_before_classes_had_names():
    pictures = data.Images(fakes.random_images(2, 32, 32, 3), [0, 99])
    dataset = data.DataSet('cifar100.1@1-1', FAMILIES['cifar100'], dict.fromkeys(data.SETS, pictures))
    for args in {}, dict(classes=[]), dict(classes=list(dataset.family.classes)):
        dataset.check_identity(args, 'run')
    dataset.fingerprints = dict(test='a')
    for name, words in ('cifar100.1@1-1', 'another --train_dir'), ('cifar100.2@1-1', '--dataset=cifar100.2@1-1'):
        with pytest.raises(utils.Error, match='was trained on other data.*%s' % words):
            dataset.check_identity(dict(data=dict(test='b'), dataset=name), 'run')
    with pytest.raises(utils.Error, match='was trained on classes of other names'):
        dataset.check_identity(dict(classes=list(map(str, range(100)))), 'run')


# --- Legal, and perhaps not meant ---


def own(folder, train, unlabeled=(), nclass=3, size=6):
    """Makes a dataset `own`, see conftest.write_records, and its split of `size` labels; returns the folder."""
    folder = str(folder)
    parts = dict(train=train, **dict(unlabeled=unlabeled) if unlabeled else {})
    for seed, part in enumerate(parts):
        write_records(folder, 'own', parts[part], part, SHAPE, seed)
    write_records(folder, 'own', range(nclass), 'test', SHAPE, seed=2)
    family = Family(*SHAPE, nclass, mirror=True, shift=1, parts=tuple(parts), classes=tuple('abcdefghij'[:nclass]))
    write_family(data_pair.locate_family(folder, 'own'), family)
    create_split.make('own', size=size, seed=1, data_dir=folder)
    return folder


SIX = [0, 1, 2] * 2


def test_where_all_pictures_are_labelled_only_the_unlabelled_loss_is_lost(tmp_path, capsys):
    folder = own(tmp_path, SIX)
    assert 'own.1@6: no picture is left to be unlabelled: train own.1@6-0 with --w_match=0' in capsys.readouterr().err
    dataset = DATASETS['own.1@6-0'](folder)
    assert [len(dataset.sets[name]) for name in ('labeled', 'unlabeled', 'valid')] == [6, 0, 0]
    with pytest.raises(utils.Error, match='--w_match=0, which needs none'):
        dataset.stream('unlabeled', 2, seed=0)
    dataset = DATASETS['own.1@6-0'](folder, needs_unlabeled=False)
    assert dataset.sets['unlabeled'] is dataset.sets['labeled']
    dataset.stream('unlabeled', 2, seed=0)
    assert 'the labelled ones take their place' in capsys.readouterr().err
    with pytest.raises(utils.Error, match='asks for 1 validation images, but has only 0'):
        DATASETS['own.1@6-1'](folder)


@pytest.mark.parametrize('valid,classless', [(1, 0), (3, 2), (4, 3)])
def test_validation_pictures_may_have_no_class(tmp_path, capsys, valid, classless):
    folder = own(tmp_path, [*SIX, 0], [records.NO_CLASS] * 5)
    dataset = DATASETS['own.1@6-%d' % valid](folder)
    assert (dataset.sets['valid'].labels == records.NO_CLASS).sum() == classless
    words = '%d of the %d validation images have no class' % (classless, valid)
    assert (words in capsys.readouterr().err) == (classless > 0)


def test_a_validation_accuracy_of_nothing_is_announced(tmp_path, capsys):
    folder = own(tmp_path, SIX, [records.NO_CLASS] * 5)
    said = capsys.readouterr().err
    assert 'own.1@6: no picture with a class is left to validate' in said and 'cannot be learned' not in said
    assert len(DATASETS['own.1@6-1'](folder).sets['unlabeled']) == 4
    assert 'no validation image has a class: there will be no validation accuracy' in capsys.readouterr().err


def test_classes_without_a_label_are_named(tmp_path, capsys):
    folder = own(tmp_path, SIX, size=2)
    words = 'own.1@2%s: 1 of 3 classes have no labelled picture, so they cannot be learned: c\n'
    assert words % '' in capsys.readouterr().err
    DATASETS['own.1@2-1'](folder)
    assert words % '-1' in capsys.readouterr().err


# --- Groups ---


def test_groups_stay_on_one_side(tmp_path, capsys):
    # Ten groups of 4 pictures; 6 pictures without a class belong to the first and the last of them.
    train = [(i % 3, i // 4) for i in range(40)]
    unlabeled = [(records.NO_CLASS, group) for group in (0, 9) * 3]
    folder = own(tmp_path, train, unlabeled, size=3)
    remark = capsys.readouterr().err
    dataset = DATASETS['own.1@3-9'](folder)
    said = capsys.readouterr().err
    labeled, rest, valid = (set(dataset.sets[name].groups) for name in ('labeled', 'unlabeled', 'valid'))
    assert len(valid) == 2 and not valid & labeled and not valid & rest
    groups = [group for _, group in train + unlabeled]
    left_out = sum(group in valid for group in groups) - 9
    assert left_out and '%d unlabelled images are left out, as they share a group' % left_out in said
    assert len(dataset.sets['unlabeled']) == 46 - 3 - 9 - left_out

    free = sum(group not in labeled for group in groups)
    text = '%d unlabelled pictures share a group with a labelled one: at most the other %d can validate'
    assert text % (len(groups) - 3 - free, free) in remark
    DATASETS['own.1@3-%d' % free](folder)
    with pytest.raises(utils.Error, match='at most %d images can validate: the next unlabelled one is of' % free):
        DATASETS['own.1@3-%d' % (free + 1)](folder)


# --- Families of the user's own ---


def test_a_family_is_read_as_written(folder):
    family = make_own(folder, *SHAPE, 10, mirror=True, shift=2, classes=tuple('abcdefghij'), range=(0, 4095.5))
    assert data_pair.find_family(folder, 'mine') == family
    assert DATASETS['mine.1@12-15'](folder).family == family
    with pytest.raises(
        utils.Error,
        match=r"unknown dataset 'yours'. Known: cifar10, .*digits, mine. Splits in .*: digits.1@12, mine.1@12$",
    ):
        DATASETS['yours.1@12-15'](folder)
    with pytest.raises(utils.Error, match='--from_folder PICTURES --name mine'):
        DATASETS['mine.1@13-15'](folder)


GOOD = dict(height=8, width=8, colors=1, nclass=10, mirror=True, shift=2)
NINE = [*'abcdefghi']
BAD_FIELDS = {  # Field: values that are refused.
    'height': [0, '8'],
    'width': [10**6],
    'colors': [2],
    'nclass': [1, 1 << 30, 2.5],
    'mirror': [1],
    'shift': [8, -1, '\x1b[31m'],
    'parts': [['../../etc'], 'train', [], ['unlabeled']],
    'source': ['../other'],
    'classes': [
        ['a', 'b'],
        3,
        list(range(10)),
        'abcdefghij',
        [*NINE, ''],
        [*NINE, 'a'],
        [*NINE, 'j\n'],
        [*NINE, '\udcff'],
    ]
    + [[*NINE, '\x1b[31m']],
    'range': [[1], [0, '4095'], [0, True], [4095, 0], [0, float('inf')], 5, [0, 10**400]],
    'other': [1],
    '\x1b[31m': [1],
}


@pytest.mark.parametrize('name', BAD_FIELDS, ids=ascii)
def test_a_family_that_cannot_be_is_refused(tmp_path, name):
    for value in BAD_FIELDS[name]:
        (tmp_path / 'mine.json').write_text(json.dumps({**GOOD, name: value}))
        with pytest.raises(utils.Error, match=r'mine.json does not describe a dataset') as error:
            data_pair.find_family(str(tmp_path), 'mine')
        assert str(error.value).isprintable() and utils.escape(name) in str(error.value)


def test_a_description_that_is_none_is_refused(tmp_path):
    for content in b'', b'\xff\xfe', b'{"height": 8,', b'{"height": 1}', b'[' * 100000, b'{}', b'[]', b'null':
        (tmp_path / 'mine.json').write_bytes(content)
        with pytest.raises(utils.Error, match=r'mine.json does not describe a dataset'):
            data_pair.find_family(str(tmp_path), 'mine')


def test_the_registry_knows_what_is_installed(installed, monkeypatch):
    monkeypatch.setenv('ML_DATA', str(installed))
    assert 'digits.1@12-15' in DATASETS and 'digits.9@12-15' not in DATASETS and 'digits' not in DATASETS
    assert 'digits.1@12-1' in list(DATASETS)
    assert DATASETS['digits.1@12-15'](nu=3).train_unlabeled.element_spec['image'].shape == (3, 8, 8, 1)
