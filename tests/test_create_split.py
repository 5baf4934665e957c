"""Splits by the published rule, against a straightforward implementation of it; and what two sets have in common."""

import dataclasses
import json
import os
from functools import partial

import fakes
import numpy as np
import pytest
from conftest import ROOT, assert_one_line_error, tree
from forked import before
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


def write(path, labels, seed=0, shape=(2, 2, 1)):
    """Writes records of random pictures of these classes; returns the serialized records."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    examples = list(zip(records.encode(fakes.random_images(len(labels), *shape, seed)), labels, strict=True))
    records.write(path, examples)
    return [records.serialize(*example) for example in examples]


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


def test_a_hand_made_example():
    # Shares 1, 1/2, 1/2; the order of the picks worked out by hand: 0 1 2, then behind by 0, -1/2, -1/2: 0, then ties.
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    stats = splits.compute_shares(labels, 3)
    assert stats.tolist() == [1, 0.5, 0.5]
    assert splits.pick_labeled(labels, stats, 4, seed=0) == [0, 4, 6, 1]
    assert splits.order_unlabeled(labels, stats, [0, 4, 6, 1]) == [2, 5, 7, 3]


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


def test_a_split_of_groups_is_made(tmp_path, capsys):
    path = str(tmp_path / 'digits-train.tfrecord')
    pngs = records.encode(fakes.random_images(60, 2, 2, 1))
    records.write(path, [records.Example(png, i % 10, i // 10) for i, png in enumerate(pngs)])
    make('digits', seed=1, size=10, data_dir=tmp_path)
    label, unlabel, _ = read_split(tmp_path / 'SSL', 'digits', 1, 10)
    taken, others = ([records.parse(record).group for record in found] for found in (label, unlabel))
    free = sum(group not in taken for group in others)
    assert all(group not in taken for group in others[:free])
    text = '%d unlabelled pictures share a group with a labelled one: at most the other %d can validate'
    assert text % (50 - free, free) in capsys.readouterr().err


# --- What may not be meant ---


def test_classes_without_a_label_are_named(tmp_path, capsys):
    write(str(tmp_path / 'cifar10-train.tfrecord'), (np.arange(60) % 10).tolist())
    make('cifar10', size=4, data_dir=tmp_path)
    words = 'cifar10.0@4: 6 of 10 classes have no labelled picture, so they cannot be learned: deer, dog, frog, horse'
    assert words in capsys.readouterr().err
    make('cifar10', size=10, data_dir=tmp_path)
    assert 'Warning' not in capsys.readouterr().err


def test_records_of_ones_own_need_a_description(tmp_path, capsys):
    write(str(tmp_path / 'mine-train.tfrecord'), [0, 1, 2] * 4)
    hint = '`python scripts/create_datasets.py --describe mine`'
    make(tmp_path / 'SSL' / 'mine', tmp_path / 'mine-train.tfrecord', size=3)
    assert hint in capsys.readouterr().err
    for use in (lambda: make('mine', size=6, data_dir=tmp_path), lambda: DATASETS['mine.0@3-1'](str(tmp_path))):
        with pytest.raises(utils.Error, match="unknown dataset 'mine': .*%s" % hint):
            use()


def test_without_a_size_all_labels_are_taken(tmp_path, capsys):
    labels = [0, NO_CLASS, 1, 1, NO_CLASS, 0, 1, NO_CLASS]
    write(str(tmp_path / 'mine-train.tfrecord'), labels)
    data_pair.write_family(str(tmp_path / 'mine.json'), data.Family(2, 2, 1, 2, mirror=False, shift=0))
    make('mine', seed=1, data_dir=tmp_path)
    printed = capsys.readouterr()
    assert 'mine.1@all: 5 labelled, 3 unlabelled\n' in printed.out and 'not used' not in printed.err
    assert read_split(tmp_path / 'SSL', 'mine', 1, 'all')[2]['label'] == [0, 2, 3, 5, 6]
    make('mine', seed=1, size=3, data_dir=tmp_path)
    assert 'Warning: mine.1@3: 2 of 5 labels are not used\n' in capsys.readouterr().err


# --- Splits that a run makes itself ---


def end_at_last_name():
    before(os, 'link', lambda count, part, path: path.endswith('.json') and os._exit(9))


def provide(folder, name):
    splits.provide(data_pair.parse(name), str(folder))


def test_a_missing_split_is_made_once_and_said(digits, capsys):
    write(str(digits / 'digits-test.tfrecord'), list(range(10)))
    provide(digits, 'digits.3@20-5')
    out = capsys.readouterr().out
    assert '`python scripts/create_split.py --seed=3 --size=20 digits`' in out and '20 labelled, 40 unlab' in out
    made = read_split(digits / 'SSL', 'digits', 3, 20)
    os.rename(digits / 'SSL', digits / 'first')
    make('digits', seed=3, size=20, data_dir=digits)
    assert read_split(digits / 'SSL', 'digits', 3, 20) == made
    before, _ = tree(digits), capsys.readouterr()
    provide(digits, 'digits.3@20-7')
    assert (tree(digits), capsys.readouterr().out) == (before, '')


def test_no_split_is_made_without_all_records_or_beside_a_part_of_it(digits, monkeypatch):
    monkeypatch.setattr(splits, 'PATIENCE', 0)
    provide(digits, 'digits.3@20-5')  # There is no test set.
    assert os.listdir(digits) == ['digits-train.tfrecord']
    write(str(digits / 'digits-test.tfrecord'), list(range(10)))
    write(str(digits / 'SSL' / 'digits.3@20-label.tfrecord'), [0])
    before = tree(digits)
    provide(digits, 'digits.3@20-5')
    assert tree(digits) == before


def test_two_processes_may_make_one_split(digits, monkeypatch):
    write(str(digits / 'digits-test.tfrecord'), list(range(10)))
    sources = splits.Source

    def slower(*args):  # The other one is done first.
        monkeypatch.setattr(splits, 'Source', sources)
        provide(digits, 'digits.3@20-5')
        return sources(*args)

    monkeypatch.setattr(splits, 'Source', slower)
    provide(digits, 'digits.3@20-5')
    assert len(read_split(digits / 'SSL', 'digits', 3, 20)[0]) == 20


@pytest.mark.parametrize('again', [provide, lambda folder, name: make('digits', seed=3, size=20, data_dir=folder)])
def test_a_split_whose_process_was_killed_between_the_names_is_made_again(digits, server, again):
    write(str(digits / 'digits-test.tfrecord'), list(range(10)))
    argv = ['scripts/create_split.py', '--seed=3', '--size=20', '--data_dir=%s' % digits, 'digits']
    assert server.run(*argv, first=[end_at_last_name]).returncode == 9
    assert (digits / 'SSL' / 'digits.3@20-label.tfrecord').exists()
    again(digits, 'digits.3@20-5')
    assert len(os.listdir(digits / 'SSL')) == 3
    assert len(read_split(digits / 'SSL', 'digits', 3, 20)[0]) == 20


@pytest.mark.parametrize('script', ['ablation/ab_mixmatch.py', 'scripts/check_split.py', 'scripts/inspect_dataset.py'])
def test_commands_make_a_missing_split(digits, server, script):
    write(str(digits / 'digits-test.tfrecord'), list(range(10)), shape=(8, 8, 1))
    os.remove(digits / 'digits-train.tfrecord')
    write(str(digits / 'digits-train.tfrecord'), [i % 10 for i in range(60)], shape=(8, 8, 1))
    done = server.run(script, '--data_dir=%s' % digits, '--dataset=digits.3@20-41')
    assert_one_line_error(done, 'validation')  # Read at once, and refused only then.
    assert 'is made now' in done.stdout and len(os.listdir(digits / 'SSL')) == 3


# --- Files ---


@pytest.mark.parametrize('seed', [0, 3])
def test_a_split_holds_the_records_by_the_rule(tmp_path, seed):
    labels = np.random.RandomState(0).randint(0, 10, 150).tolist()
    serialized = write(str(tmp_path / 'cifar10-train.tfrecord'), labels)
    make('cifar10', seed=seed, size=30, data_dir=str(tmp_path))
    label, unlabel, found = read_split(tmp_path / 'SSL', 'cifar10', seed, 30)
    expected = rule(labels, 30, seed)
    source = {'cifar10-train.tfrecord': records.RecordFile(str(tmp_path / 'cifar10-train.tfrecord')).fingerprint}
    assert found == dict(label=sorted(expected[0]), unlabel=expected[1], source=source)
    assert label == [serialized[i] for i in sorted(expected[0])]
    assert unlabel == [serialized[i] for i in expected[1]]
    assert sorted(found['label'] + found['unlabel']) == list(range(150))


def test_the_published_form_and_the_name_give_the_same(tmp_path):
    parts = [str(tmp_path / ('svhn-%s.tfrecord' % part)) for part in ('train', 'extra')]
    for i, part in enumerate(parts):
        write(part, np.random.RandomState(i).randint(0, 10, 60).tolist(), seed=i)
    make('svhn', seed=2, size=20, data_dir=str(tmp_path))
    make(tmp_path / 'other' / 'svhn', *parts, seed=2, size=20)
    assert read_split(tmp_path / 'SSL', 'svhn', 2, 20) == read_split(tmp_path / 'other', 'svhn', 2, 20)
    assert len(read_split(tmp_path / 'SSL', 'svhn', 2, 20)[1]) == 100
    make('svhn_noextra', seed=2, size=20, data_dir=str(tmp_path))
    assert len(read_split(tmp_path / 'SSL', 'svhn_noextra', 2, 20)[1]) == 40


def test_all_makes_the_missing_splits_of_the_paper(tmp_path, monkeypatch):
    write(str(tmp_path / 'cifar10-train.tfrecord'), (np.arange(60) % 10).tolist())
    monkeypatch.setitem(PUBLISHED, 'cifar10', dataclasses.replace(PUBLISHED['cifar10'], sizes=(20, 30)))
    make('cifar10', seed=2, size=20, data_dir=str(tmp_path))
    before = read_split(tmp_path / 'SSL', 'cifar10', 2, 20)
    for _ in range(2):
        make('cifar10', all=True, data_dir=str(tmp_path))
        expected = ['cifar10.%d@%d' % (seed, size) for seed in (1, 2, 3, 4, 5) for size in (20, 30)]
        assert data_pair.list_splits(str(tmp_path)) == expected
    assert read_split(tmp_path / 'SSL', 'cifar10', 2, 20) == before
    assert len(os.listdir(tmp_path / 'SSL')) == 30


# --- stl10 ---


@pytest.fixture
def stl10(tmp_path):
    """A folder with records of stl10: 1200 with a class, 40 without (labelled 0, as the published ones are), folds."""
    labels = (np.arange(1200) * 7 % 10).tolist()
    write(str(tmp_path / 'stl10-train.tfrecord'), labels)
    write(str(tmp_path / 'stl10-unlabeled.tfrecord'), [0] * 40, seed=1)
    folds = [np.random.RandomState(i).permutation(1200)[:1000].tolist() for i in range(10)]
    (tmp_path / 'stl10_fold_indices.txt').write_text(''.join(' '.join(map(str, fold)) + ' \n' for fold in folds))
    return tmp_path, folds


def test_stl10_takes_the_published_folds(stl10):
    folder, folds = stl10
    for seed in (0, 3):
        make('stl10', seed=seed, size=1000, data_dir=str(folder))
        label, unlabel, found = read_split(folder / 'SSL', 'stl10', seed, 1000)
        assert found['label'] == sorted(folds[seed])
        assert sorted(found['unlabel']) == sorted(set(range(1240)) - set(folds[seed]))
        assert (len(label), len(unlabel)) == (1000, 240)
    with pytest.raises(utils.Error, match='has 10 folds, so that seed=10 is too large'):
        make('stl10', seed=10, size=1000, data_dir=str(folder))


def test_pictures_without_a_class_are_never_picked(stl10):
    folder, _ = stl10
    make('stl10', seed=1, size=1200, data_dir=str(folder))
    _, unlabel, found = read_split(folder / 'SSL', 'stl10', 1, 1200)
    assert found['label'] == list(range(1200)) and found['unlabel'] == list(range(1200, 1240))
    assert len(unlabel) == 40


@pytest.mark.parametrize('text', ['', '1 2 3\n', '0 ' * 1000 + '\n', ' '.join(map(str, range(300, 1300))), 'x ' * 1000])
def test_damaged_folds_are_refused(stl10, text):
    folder, _ = stl10
    (folder / 'stl10_fold_indices.txt').write_text(text)
    with pytest.raises(utils.Error, match=r'stl10_fold_indices.txt'):
        make('stl10', seed=0, size=1000, data_dir=str(folder))
    os.remove(folder / 'stl10_fold_indices.txt')
    with pytest.raises(utils.Error, match=r'stl10_fold_indices.txt is missing'):
        make('stl10', seed=0, size=1000, data_dir=str(folder))
    assert not (folder / 'SSL').exists()


# --- What cannot be ---


@pytest.fixture
def digits(tmp_path):
    write(str(tmp_path / 'digits-train.tfrecord'), (np.arange(60) % 10).tolist())
    return tmp_path


@pytest.mark.parametrize('name', ['digits.1@20-label.tfrecord', 'digits.1@20-unlabel.tfrecord', 'digits.1@20-map.json'])
def test_an_existing_split_is_never_overwritten(digits, name):
    (digits / 'SSL').mkdir()
    (digits / 'SSL' / name).write_text('kept')
    with pytest.raises(utils.Error, match='%s exists already' % name):
        make('digits', seed=1, size=20, data_dir=str(digits))
    assert os.listdir(digits / 'SSL') == [name]
    assert (digits / 'SSL' / name).read_text() == 'kept'


@pytest.mark.parametrize('broken', [1, 2])
def test_what_breaks_off_leaves_nothing(digits, monkeypatch, broken):
    write_part, calls = records.write_part, []

    def interrupted(*args):
        calls.append(args)
        write_part(*args)
        if len(calls) == broken:
            raise KeyboardInterrupt

    monkeypatch.setattr(records, 'write_part', interrupted)
    with pytest.raises(KeyboardInterrupt):
        make('digits', seed=1, size=20, data_dir=str(digits))
    assert os.listdir(digits) == ['digits-train.tfrecord']


def test_a_full_disk_leaves_nothing(tmp_path):
    write(str(tmp_path / 'digits-train.tfrecord'), (np.arange(60) % 10).tolist(), shape=(30, 30, 3))
    with fakes.full_disk(80_000), pytest.raises(utils.Error, match=r'cannot write .*digits.1@20-unlabel.tfrecord'):
        make('digits', seed=1, size=20, data_dir=str(tmp_path))
    assert os.listdir(tmp_path) == ['digits-train.tfrecord']


BAD = [
    (('digits',), dict(), 'all 60 pictures have a label, .*by --size=N'),
    (('digits',), dict(size=3, all=True), 'either --size=N'),
    (('birds',), dict(size=3), "unknown dataset 'birds'"),
    (('../digits',), dict(size=3), 'unknown dataset'),
    (('cifar10',), dict(size=3), r'cifar10-train.tfrecord is missing: scripts/create_datasets.py makes it'),
    (('digits',), dict(size=61), 'class 0 are used up after 60 labels'),
    (('digits',), dict(size=3, data_dir='/nowhere'), 'does not exist'),
    (('{}/SSL/x', '{}/y.tfrecord'), dict(size=3), r'y.tfrecord is missing'),
    (('{}/SSL/x', '{}/digits-train.tfrecord'), dict(all=True), 'the paper has no splits of x'),
]


@pytest.mark.parametrize('argv,flags,words', BAD, ids=[words for _, _, words in BAD])
def test_bad_arguments_change_nothing(digits, argv, flags, words):
    with pytest.raises(utils.Error, match=words) as error:
        make(*[arg.format(digits) for arg in argv], **dict(dict(data_dir=str(digits)), **flags))
    assert '\n' not in str(error.value)
    assert os.listdir(digits) == ['digits-train.tfrecord']


@pytest.mark.parametrize('labels,words', [([0, 1, 3] * 5, 'has no record of class 2'), ([10, 0], 'has 10 classes')])
def test_classes_that_do_not_fit_are_refused(tmp_path, labels, words):
    write(str(tmp_path / 'digits-train.tfrecord'), labels)
    with pytest.raises(utils.Error, match=words):
        make('digits', seed=1, size=2, data_dir=str(tmp_path))


def test_the_command_line(digits, server):
    args = 'scripts/create_split.py', '--data_dir', digits, '--seed=3', '--size=20', 'digits'
    done = server.run(*args)
    assert done.returncode == 0, done.stderr
    assert 'digits.3@20: 20 labelled, 40 unlabelled' in done.stdout
    assert_one_line_error(server.run(*args), 'digits.3@20-label.tfrecord exists already')


def test_the_home_is_known(digits, server):
    how = dict(env=dict(HOME=str(digits.parent), ML_DATA='~/%s' % digits.name), first=[partial(os.chdir, str(digits))])
    for names in ['digits'], ['~/%s/%s' % (digits.name, name) for name in ('SSL/other', 'digits-train.tfrecord')]:
        done = server.run(os.path.join(ROOT, 'scripts', 'create_split.py'), '--size=20', *names, **how)
        assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(digits)) == ['SSL', 'digits-train.tfrecord'] and len(os.listdir(digits / 'SSL')) == 6


# --- check_split ---


def test_pictures_under_two_classes_are_found():
    hashed = dict(labeled=['a', 'b'], unlabeled=['a', 'c', 'c', 'd'], test=['d', 'b', 'e', 'e'])
    labels = dict(labeled=[0, 1], unlabeled=[2, 1, 0, NO_CLASS], test=[1, 1, 2, 2])
    found = check_split.find_conflicts(hashed, {name: np.array(values) for name, values in labels.items()})
    assert found == [
        {0: ('labeled', 0), 2: ('unlabeled', 0)},
        {1: ('unlabeled', 1), 0: ('unlabeled', 2)},
    ]


def test_overlaps_are_counted(tmp_path, capsys):
    assert check_split.count_overlaps([[1, 2, 2], [2, 3], [], [9, 1, 3]]).tolist() == [
        [1, 2, 0, 1],
        [1, 0, 0, 1],
        [0, 0, 0, 0],
        [1, 1, 0, 0],
    ]
    shape = (8, 8, 1)
    write(str(tmp_path / 'digits-train.tfrecord'), (np.arange(60) % 10).tolist(), shape=shape)
    make('digits', seed=1, size=20, data_dir=str(tmp_path))
    train, _ = records.read(str(tmp_path / 'digits-train.tfrecord'))
    _, _, found = read_split(tmp_path / 'SSL', 'digits', 1, 20)
    # Five test pictures are training pictures: one labelled, one for validation, three unlabelled, one of them twice.
    chosen = [found['label'][4], found['unlabel'][0], found['unlabel'][20], found['unlabel'][30], found['unlabel'][30]]
    test = np.concatenate([train[chosen], fakes.random_images(6, *shape, seed=9)])
    records.write(str(tmp_path / 'digits-test.tfrecord'), zip(records.encode(test), range(10), strict=False))
    dataset = DATASETS['digits.1@20-10'](str(tmp_path))
    sets = [check_split.hash_all(dataset.sets[name]) for name in data.SETS]
    assert check_split.count_overlaps(sets).tolist() == [[0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 1], [1, 3, 1, 1]]
    check_split.check_split('digits.1@20-10', str(tmp_path))
    printed = capsys.readouterr().out
    assert 'Some sets share pictures' in printed and 'pictures stand under two classes or more' in printed
    # The first picture of the test set has class 0 there.
    place = '%d as picture 4 of labeled' % (found['label'][4] % 10)
    assert found['label'][4] % 10 == 0 or place + ', 0 as picture 0 of test' in printed
