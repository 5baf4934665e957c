"""Splits by the published rule, against a straightforward implementation of it; and what two sets have in common."""

import dataclasses
import json
import os
from functools import partial

import fakes
import numpy as np
import pytest
from conftest import ROOT, assert_one_line_error, put, tree, write_records
from hypothesis import given, settings
from hypothesis import strategies as st

from libml import data, data_pair, records, utils
from libml.data_pair import DATASETS
from libml.intake import splits
from libml.published import PUBLISHED
from scripts import check_split, create_split


def rule(labels, size, seed):
    """The rule as the specification words it, one thing after the other. Returns (labelled, unlabelled) positions."""
    nclass = max(labels) + 1
    per_class = [[i for i, c in enumerate(labels) if c == k] for k in range(nclass)]
    largest = max(len(positions) for positions in per_class)
    stats = [len(positions) / largest for positions in per_class]

    def named(n):
        behind = [stats[c] - n[c] / max(max(n), 1) for c in range(nclass)]
        return behind.index(max(behind))

    if seed:
        np.random.seed(seed)
        for positions in per_class:
            np.random.shuffle(positions)
    label, n = [], [0] * nclass
    for _ in range(size):
        c = named(n)
        label.append(per_class[c][n[c]])
        n[c] += 1
    unlabel, n, queue = [], [0] * nclass, [[] for _ in range(nclass)]
    for position, c in enumerate(labels):
        if position in label:
            continue
        queue[c].append(position)
        while True:
            c = named(n)
            if not queue[c]:
                break
            unlabel.append(queue[c].pop(0))
            n[c] += 1
    for remaining in queue:
        unlabel += remaining
    return label, unlabel


TEN, SHAPE = list(range(10)), (8, 8, 1)


@pytest.fixture
def digits(tmp_path):
    """A folder with 60 pictures of the digits' shape for training, and 10 for testing."""
    write_records(tmp_path, 'digits', TEN * 6, shape=SHAPE)
    write_records(tmp_path, 'digits', TEN, 'test', SHAPE)
    return tmp_path


def make(*paths, data_dir=None, **options):
    create_split.make(*map(str, paths), data_dir=data_dir and str(data_dir), **options)


def read_split(folder, name, seed, size):
    """Returns (labelled records, unlabelled records, map) of a split, serialized."""
    label, unlabel, map_file = data_pair.locate_split(str(folder), name, seed, size)
    with open(map_file) as f:
        return list(records.RecordFile(label).raw()), list(records.RecordFile(unlabel).raw()), json.load(f)


# --- The rule ---


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_picks_follow_the_rule(data):
    nclass = data.draw(st.integers(1, 5))
    labels = list(range(nclass)) + data.draw(st.lists(st.integers(0, nclass - 1), max_size=60))
    labels = data.draw(st.permutations(labels))
    size, seed = data.draw(st.integers(1, len(labels))), data.draw(st.integers(0, 2**32 - 1))
    stats = splits.compute_shares(np.array(labels), nclass)
    try:
        expected = rule(labels, size, seed)
    except IndexError:  # A class is used up.
        with pytest.raises(utils.Error, match='are used up after'):
            splits.pick_labeled(np.array(labels), stats, size, seed)
        return
    picked = splits.pick_labeled(np.array(labels), stats, size, seed)
    assert picked == expected[0]
    assert splits.order_unlabeled(np.array(labels), stats, picked) == expected[1]


# --- Groups ---

NO_GROUP, NO_CLASS = records.NO_GROUP, records.NO_CLASS


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_groups_without_a_labelled_picture_come_first_and_whole(data):
    count = data.draw(st.integers(1, 30))
    labels = np.array(data.draw(st.lists(st.integers(NO_CLASS, 2), min_size=count, max_size=count)))
    groups = np.array(data.draw(st.lists(st.integers(NO_GROUP, 4), min_size=count, max_size=count)))
    labeled = data.draw(st.sets(st.integers(0, count - 1), max_size=count))
    positions = data.draw(st.permutations(sorted(set(range(count)) - labeled)))
    order, free = splits.order_groups(positions, labels, groups, sorted(labeled))
    assert sorted(order) == sorted(positions)
    if (groups == NO_GROUP).all():
        assert order == positions and free == len(positions)
        return
    taken = {groups[i] for i in labeled} - {NO_GROUP}
    assert [groups[i] in taken for i in order] == [False] * free + [True] * (len(order) - free)
    for group in {groups[i] for i in order} - {NO_GROUP}:
        where = [k for k, i in enumerate(order) if groups[i] == group]
        assert where == list(range(where[0], where[0] + len(where)))  # Together,
        assert [i for i in positions if groups[i] == group] == [order[k] for k in where]  # and in their old order.
    kinds = [(labels[groups == groups[i]] if groups[i] != NO_GROUP else labels[[i]]) for i in order[:free]]
    with_class = [bool((found != NO_CLASS).any()) for found in kinds]
    assert with_class == sorted(with_class, reverse=True)


# --- What may not be meant ---


def test_records_of_ones_own_need_a_description(tmp_path, capsys):
    write_records(tmp_path, 'mine', [0, 1, 2] * 4)
    hint = '`python scripts/create_datasets.py --describe mine --data_dir=%s`' % tmp_path
    make(tmp_path / 'SSL' / 'mine', tmp_path / 'mine-train.tfrecord', size=3)
    assert hint in capsys.readouterr().err
    for use in (lambda: make('mine', size=6, data_dir=tmp_path), lambda: DATASETS['mine.0@3-1'](str(tmp_path))):
        with pytest.raises(utils.Error, match="unknown dataset 'mine': .*%s" % hint):
            use()


def test_without_a_size_all_labels_are_taken(tmp_path, capsys):
    labels = [0, NO_CLASS, 1, 1, NO_CLASS, 0, 1, NO_CLASS]
    write_records(tmp_path, 'mine', labels)
    data_pair.write_family(str(tmp_path / 'mine.json'), data.Family(2, 2, 1, 2, mirror=False, shift=0))
    make('mine', seed=1, data_dir=tmp_path)
    printed = capsys.readouterr()
    assert 'mine.1@all: 5 labelled, 3 unlabelled\n' in printed.out and 'not used' not in printed.err
    assert read_split(tmp_path / 'SSL', 'mine', 1, 'all')[2]['label'] == [0, 2, 3, 5, 6]
    make('mine', seed=1, size=3, data_dir=tmp_path)
    assert 'Warning: mine.1@3: 2 of 5 labels are not used\n' in capsys.readouterr().err


# --- Splits that a run makes itself ---


def provide(folder, name):
    splits.provide(data_pair.parse(name), str(folder))


def test_a_missing_split_is_made_once_and_said(digits, capsys):
    provide(digits, 'digits.3@20-5')
    out = capsys.readouterr().out
    assert '`python scripts/create_split.py --seed=3 --size=20 digits --data_dir=%s`' % digits in out
    assert '20 labelled, 40 unlab' in out
    made = read_split(digits / 'SSL', 'digits', 3, 20)
    os.rename(digits / 'SSL', digits / 'first')
    make('digits', seed=3, size=20, data_dir=digits)
    assert read_split(digits / 'SSL', 'digits', 3, 20) == made
    before, _ = tree(digits), capsys.readouterr()
    provide(digits, 'digits.3@20-7')
    assert (tree(digits), capsys.readouterr().out) == (before, '')


def test_no_split_is_made_without_all_records_or_beside_a_part_of_it(digits, monkeypatch):
    monkeypatch.delattr(splits.time, 'sleep')  # Nothing is waited for.
    os.rename(digits / 'digits-test.tfrecord', digits / 'later')
    provide(digits, 'digits.3@20-5')  # There is no test set.
    assert sorted(os.listdir(digits)) == ['digits-train.tfrecord', 'later']
    os.rename(digits / 'later', digits / 'digits-test.tfrecord')
    put(digits, 'SSL/digits.3@20-label.tfrecord')
    before = tree(digits)
    provide(digits, 'digits.3@20-5')
    assert tree(digits) == before


def test_two_processes_may_make_one_split(digits, monkeypatch):
    sources = splits.Source

    def slower(*args):  # The other one is done first.
        monkeypatch.setattr(splits, 'Source', sources)
        provide(digits, 'digits.3@20-5')
        return sources(*args)

    monkeypatch.setattr(splits, 'Source', slower)
    provide(digits, 'digits.3@20-5')
    assert len(read_split(digits / 'SSL', 'digits', 3, 20)[0]) == 20


def test_a_split_that_another_process_is_naming_is_waited_for(digits, monkeypatch):
    provide(digits, 'digits.3@20-5')
    path = digits / 'SSL' / 'digits.3@20-map.json'
    part = path.rename(str(path) + '.part-1-000000000000')  # Of another machine.
    monkeypatch.setattr(splits.time, 'sleep', lambda _: part.rename(path))
    provide(digits, 'digits.3@20-5')
    assert path.exists()


def test_a_training_makes_its_split(digits, server):
    done = server.run('ablation/ab_mixmatch.py', '--data_dir=%s' % digits, '--dataset=digits.3@20-41')
    assert_one_line_error(done, 'validation')  # Read at once, and refused only then.
    assert 'is made now' in done.stdout and len(os.listdir(digits / 'SSL')) == 3


# --- Files ---


@pytest.mark.parametrize('seed', [0, 3])
def test_a_split_holds_the_records_by_the_rule(tmp_path, seed):
    labels = np.random.RandomState(0).randint(0, 10, 150).tolist()
    serialized = write_records(tmp_path, 'cifar10', labels)
    make('cifar10', seed=seed, size=30, data_dir=tmp_path)
    label, unlabel, found = read_split(tmp_path / 'SSL', 'cifar10', seed, 30)
    expected = rule(labels, 30, seed)
    source = {'cifar10-train.tfrecord': records.RecordFile(str(tmp_path / 'cifar10-train.tfrecord')).fingerprint}
    assert found == dict(label=sorted(expected[0]), unlabel=expected[1], source=source)
    assert label == [serialized[i] for i in sorted(expected[0])]
    assert unlabel == [serialized[i] for i in expected[1]]
    assert sorted(found['label'] + found['unlabel']) == list(range(150))


def test_the_published_form_and_the_name_give_the_same(tmp_path):
    for i, part in enumerate(('train', 'extra')):
        write_records(tmp_path, 'svhn', np.random.RandomState(i).randint(0, 10, 60).tolist(), part, seed=i)
    parts = tmp_path / 'svhn-train.tfrecord', tmp_path / 'svhn-extra.tfrecord'
    make('svhn', seed=2, size=20, data_dir=tmp_path)
    make(tmp_path / 'other' / 'svhn', *parts, seed=2, size=20)
    assert read_split(tmp_path / 'SSL', 'svhn', 2, 20) == read_split(tmp_path / 'other', 'svhn', 2, 20)
    assert len(read_split(tmp_path / 'SSL', 'svhn', 2, 20)[1]) == 100
    make('svhn_noextra', seed=2, size=20, data_dir=tmp_path)
    assert len(read_split(tmp_path / 'SSL', 'svhn_noextra', 2, 20)[1]) == 40


def test_all_makes_the_missing_splits_of_the_paper(tmp_path, monkeypatch):
    write_records(tmp_path, 'cifar10', TEN * 6)
    monkeypatch.setitem(PUBLISHED, 'cifar10', dataclasses.replace(PUBLISHED['cifar10'], sizes=(20, 30)))
    make('cifar10', seed=2, size=20, data_dir=tmp_path)
    before = read_split(tmp_path / 'SSL', 'cifar10', 2, 20)
    for _ in range(2):
        make('cifar10', all=True, data_dir=tmp_path)
        expected = ['cifar10.%d@%d' % (seed, size) for seed in (1, 2, 3, 4, 5) for size in (20, 30)]
        assert data_pair.list_splits(str(tmp_path)) == expected
    assert read_split(tmp_path / 'SSL', 'cifar10', 2, 20) == before
    assert len(os.listdir(tmp_path / 'SSL')) == 30


# --- stl10 ---


@pytest.fixture
def stl10(tmp_path):
    """A folder with records of stl10: 1200 with a class, 40 without (labelled 0, as the published ones are), folds."""
    labels = (np.arange(1200) * 7 % 10).tolist()
    write_records(tmp_path, 'stl10', labels)
    write_records(tmp_path, 'stl10', [0] * 40, 'unlabeled', seed=1)
    folds = [np.random.RandomState(i).permutation(1200)[:1000].tolist() for i in range(10)]
    (tmp_path / 'stl10_fold_indices.txt').write_text(''.join(' '.join(map(str, fold)) + ' \n' for fold in folds))
    return tmp_path, folds


def test_stl10_takes_the_published_folds(stl10):
    folder, folds = stl10
    for seed in (0, 3):
        make('stl10', seed=seed, size=1000, data_dir=folder)
        label, unlabel, found = read_split(folder / 'SSL', 'stl10', seed, 1000)
        assert found['label'] == sorted(folds[seed])
        assert sorted(found['unlabel']) == sorted(set(range(1240)) - set(folds[seed]))
        assert (len(label), len(unlabel)) == (1000, 240)
    with pytest.raises(utils.Error, match='has 10 folds, so that seed=10 is too large'):
        make('stl10', seed=10, size=1000, data_dir=folder)
    make('stl10', seed=1, size=1200, data_dir=folder)  # No fold: of the pictures with a class.
    found = read_split(folder / 'SSL', 'stl10', 1, 1200)[2]
    assert found['label'] == list(range(1200)) and found['unlabel'] == list(range(1200, 1240))


def test_damaged_folds_are_refused(stl10):
    folder, _ = stl10
    path, few, too_far = folder / 'stl10_fold_indices.txt', '0 ' * 1000 + '\n', ' '.join(map(str, range(300, 1300)))
    for text, words in (
        ('', 'has 0 folds'),
        ('1 2 3\n', 'line 1'),
        (few, 'line 1'),
        (too_far, 'line 1'),
        ('x ' * 1000, ''),
    ):
        path.write_text(text)
        with pytest.raises(utils.Error, match='stl10_fold_indices.txt.*' + words):
            make('stl10', size=1000, data_dir=folder)
    os.remove(path)
    with pytest.raises(utils.Error, match=r'stl10_fold_indices.txt is missing'):
        make('stl10', size=1000, data_dir=folder)
    assert not (folder / 'SSL').exists()


# --- What cannot be ---


@pytest.mark.parametrize('name', ['digits.1@20-label.tfrecord', 'digits.1@20-map.json'])
def test_an_existing_split_is_never_overwritten(digits, name):
    put(digits, 'SSL/' + name)
    before = tree(digits)
    with pytest.raises(utils.Error, match='%s exists already' % name):
        make('digits', seed=1, size=20, data_dir=digits)
    assert tree(digits) == before


BAD = [
    (('digits',), dict(), 'all 60 pictures have a label, .*by --size=N'),
    (('digits',), dict(size=3, all=True), 'either --size=N'),
    (('../digits',), dict(size=3), 'unknown dataset'),
    (('cifar10',), dict(size=3), r'cifar10-train.tfrecord is missing: scripts/create_datasets.py makes it'),
    (('digits',), dict(size=61), 'class 0 are used up after 60 labels'),
    (('{}/SSL/x', '{}/digits-train.tfrecord'), dict(all=True), 'the paper has no splits of x'),
]


@pytest.mark.parametrize('argv,flags,words', BAD, ids=[words for _, _, words in BAD])
def test_bad_arguments_change_nothing(digits, argv, flags, words):
    with pytest.raises(utils.Error, match=words) as error:
        make(*[arg.format(digits) for arg in argv], **dict(dict(data_dir=digits), **flags))
    assert '\n' not in str(error.value)
    assert sorted(os.listdir(digits)) == ['digits-test.tfrecord', 'digits-train.tfrecord']


@pytest.mark.parametrize('labels,words', [([0, 1, 3] * 5, 'has no record of class 2'), ([10, 0], 'has 10 classes')])
def test_classes_that_do_not_fit_are_refused(tmp_path, labels, words):
    write_records(tmp_path, 'digits', labels)
    with pytest.raises(utils.Error, match=words):
        make('digits', seed=1, size=2, data_dir=tmp_path)


def test_the_home_is_known(digits, server):
    how = dict(env=dict(HOME=str(digits.parent), ML_DATA='~/%s' % digits.name), first=[partial(os.chdir, str(digits))])
    for names in ['digits'], ['~/%s/%s' % (digits.name, name) for name in ('SSL/other', 'digits-train.tfrecord')]:
        done = server.run(os.path.join(ROOT, 'scripts', 'create_split.py'), '--size=20', *names, **how)
        assert done.returncode == 0, done.stderr
    assert not (digits / '~').exists() and len(os.listdir(digits / 'SSL')) == 6


# --- check_split ---


def test_pictures_under_two_classes_are_found():
    hashed = dict(labeled=['a', 'b'], unlabeled=['a', 'c', 'c', 'd'], test=['d', 'b', 'e', 'e'])
    labels = dict(labeled=[0, 1], unlabeled=[2, 1, 0, NO_CLASS], test=[1, 1, 2, 2])
    found = check_split.find_conflicts(hashed, {name: np.array(values) for name, values in labels.items()})
    assert found == [{0: ('labeled', 0), 2: ('unlabeled', 0)}, {1: ('unlabeled', 1), 0: ('unlabeled', 2)}]


def test_overlaps_are_counted(digits, capsys):
    expected = [[1, 2, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]]
    assert check_split.count_overlaps([[1, 2, 2], [2, 3], [], [9, 1, 3]]).tolist() == expected
    train, _ = records.read(str(digits / 'digits-train.tfrecord'))
    label, unlabel = rule(TEN * 6, 20, 1)
    # Five test pictures are training pictures: one labelled, one for validation, three unlabelled, one of them twice.
    chosen = [sorted(label)[4], unlabel[0], unlabel[20], unlabel[30], unlabel[30]]
    test = np.concatenate([train[chosen], fakes.random_images(6, *SHAPE, seed=9)])
    os.remove(digits / 'digits-test.tfrecord')
    classes = [(label + 1) % 10 for label in chosen] + TEN[:6]
    records.write(str(digits / 'digits-test.tfrecord'), zip(records.encode(test), classes, strict=True))
    check_split.check_split('digits.1@20-10', str(digits))
    lines = capsys.readouterr().out.splitlines()[1:]  # The first one says that the split is made.
    cells = [[int(cell) for cell in line.split()[2:]] for line in lines if line.startswith(data.SETS)]
    assert cells == [[0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 1], [1, 3, 1, 1]]
    text = '\n'.join(lines)
    assert 'Some sets share pictures' in text and '4 pictures stand under two classes or more' in text
    assert '%d as picture 4 of labeled, %d as picture 0 of test' % (chosen[0] % 10, classes[0]) in text
