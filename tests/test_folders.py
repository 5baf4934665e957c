"""The user's own pictures: from a folder, with or without a table of labels, to a dataset that every script knows."""

import collections
import csv
import os
import re
import shutil
import unicodedata

import fakes
import numpy as np
import pytest
from conftest import place, put, tree
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from libml import data_pair, records, utils
from libml.data_pair import DATASETS
from libml.family import Family, check_distinct, parse_augment, read_class
from libml.intake import folders, labels, pictures
from libml.intake.folders import Item
from scripts import create_datasets, create_split

CLASSES = ['blackbird', 'crow', 'robin']


def make_folder(folder, each=6, test=2, unlabeled=0, size=(12, 10)):
    """Makes PICTURES with three classes of grey level 40, 120 and 200, in several formats; returns its path."""
    for part, count in (('train', each), ('test', test)):
        for label, name in enumerate(CLASSES):
            for i in range(count):
                pixels = np.full([*size, 3], 40 + 80 * label, np.uint8)
                ending = ('png', 'jpg', 'bmp', 'PNG', 'webp', 'gif')[i % 6]
                fakes.save_picture(os.path.join(folder, part, name, '%s%d.%s' % (part, i, ending)), pixels)
    for i in range(unlabeled):
        path = os.path.join(folder, 'unlabeled', 'a' * (i % 3 + 1), 'b', '%d.png' % i)
        fakes.save_picture(path, fakes.random_images(1, *size, 3, i)[0])
    return str(folder)


def refused(words, folder, data_dir, **given):
    """Asserts that a dataset is refused, in one line with some words, and that nothing is written."""
    with pytest.raises((utils.Error, OSError), match=words) as error:
        run(folder, data_dir, **given)
    assert '\n' not in str(error.value) and len(str(error.value)) < 500 and not os.path.exists(data_dir)


def run(folder, data_dir, **given):
    """Calls create_datasets as the command line does."""
    given = {**dict(from_folder=str(folder), data_dir=str(data_dir), name='birds', size='8x8'), **given}
    create_datasets.create(**given)


def read(data_dir, part, name='birds'):
    return records.read(data_pair.locate_records(str(data_dir), name, part), unlabeled=True)


def find_family(tmp_path):
    return data_pair.find_family(str(tmp_path / 'data'), 'birds')


def table_of(lines):
    """Returns ({class: counts}, {reason: count}) of the lines that a table of counts has."""
    counts, unused = {}, {}
    for line in lines[1:]:
        if line.startswith('  '):
            number, rest = line.split(None, 1)
            unused[rest.split(', such as ')[0]] = int(number)
        elif not line.startswith('not used') and line.split()[-1].isdecimal():
            counts[line.split()[0]] = [int(word) for word in line.split()[1:]]
    return counts, unused


# --- A folder ---


def test_a_folder_becomes_a_dataset(tmp_path, capsys):
    folder = make_folder(tmp_path / 'pictures', unlabeled=7)
    put(folder, 'train/.hidden/x.png', 'train/crow/.x.png', 'train/crow/notes.txt', 'unlabeled/Thumbs.db')
    run(folder, tmp_path / 'data', size='10x12', augment='mirror,shift2')
    family = find_family(tmp_path)
    assert family == Family(12, 10, 3, 3, True, 2, parts=('train', 'unlabeled'), classes=tuple(CLASSES))
    for part, each in (('train', 6), ('test', 2)):
        images, labels = read(tmp_path / 'data', part)
        assert images.shape == (3 * each, 12, 10, 3)
        assert np.bincount(labels).tolist() == [each] * 3
        assert np.abs(images.astype(int) - (40 + 80 * labels)[:, None, None, None]).max() <= 2
    assert read(tmp_path / 'data', 'train')[1].tolist() != sorted(read(tmp_path / 'data', 'train')[1])
    images, labels = read(tmp_path / 'data', 'unlabeled')
    expected = {fakes.random_images(1, 12, 10, 3, i).tobytes() for i in range(7)}
    assert {image.tobytes() for image in images} == expected and (labels == -1).all()
    counts, unused = table_of(capsys.readouterr().out.splitlines())
    assert counts == {**{name: [6, 2] for name in CLASSES}, 'unlabelled': [7], 'all': [25, 6]}
    assert unused == {pictures.HIDDEN: 2, pictures.OTHER: 2}

    create_split.make('birds', size=6, seed=1, data_dir=str(tmp_path / 'data'))
    dataset = DATASETS['birds.1@6-3'](str(tmp_path / 'data'))
    sets = [dataset.sets[part] for part in ('labeled', 'unlabeled', 'valid', 'test')]
    assert [len(part) for part in sets] == [6, 16, 3, 6]
    assert np.bincount(sets[0].labels).tolist() == [2, 2, 2]
    assert dataset.family == family


def test_grey_pictures_of_the_default_size_and_two_spellings_of_unlabelled(tmp_path):
    folder = make_folder(tmp_path / 'pictures', unlabeled=3)
    place(folder, 'unlabelled/deep/x.png', 'unlabelled/y.png')
    run(folder, tmp_path / 'data', colors=1, size='')
    images, labels = read(tmp_path / 'data', 'train')
    assert images.shape == (18, 32, 32, 1)
    assert np.abs(images.astype(int) - (40 + 80 * labels)[:, None, None, None]).max() <= 2
    family = find_family(tmp_path)
    assert (family.mirror, family.shift) == (True, 4) and len(read(tmp_path / 'data', 'unlabeled')[1]) == 5
    for size, shift in ((96, 64), 8), ((8, 8), 1), ((4, 4), 0):
        assert parse_augment(None, size) == (True, shift)


def test_classes_may_lie_in_the_folder_itself(tmp_path, capsys):
    folder = str(tmp_path / 'pictures')
    place(folder, *('%s/%d.png' % (name, i) for name in CLASSES for i in range(5)), 'unlabelled/x.png', 'loose.png')
    run(folder, tmp_path / 'data', test_fraction=0.4, augment='')
    assert not find_family(tmp_path).mirror
    counts, unused = table_of(capsys.readouterr().out.splitlines())
    assert {name: sum(counts[name]) for name in counts} == {**dict.fromkeys(CLASSES, 5), 'unlabelled': 1, 'all': 16}
    assert all(min(counts[name]) > 0 for name in CLASSES)
    assert unused == {folders.BESIDE_CLASSES: 1}


def test_what_is_no_part_of_the_layout_is_named(tmp_path, capsys):
    folder = make_folder(tmp_path / 'pictures')
    place(folder, 'val/crow/a.png', 'val/crow/b.png', 'train/loose.png', 'test/loose.png', 'loose.png')
    place(folder, 'train/crow/@eaDir/x.png/thumb.jpg', 'train/unlabeled/a.png', 'test/unlabelled/a.png')
    os.symlink('/nowhere/eel', os.path.join(folder, 'train', 'eel'))
    put(folder, 'train/crow/x.heic')
    run(folder, tmp_path / 'data')
    lines = capsys.readouterr().out.splitlines()
    counts, unused = table_of(lines)
    assert counts['all'] == [18, 6]
    others = dict.fromkeys((pictures.SYSTEM, pictures.NOWHERE, pictures.UNKNOWN_FORMAT), 1)
    assert unused == {folders.BESIDE_LAYOUT: 3, folders.BESIDE_CLASSES: 4, **others}
    assert any(line.endswith('such as train/crow/x.heic') for line in lines)


LEFT = {  # A picture that is the only one of its kind, and not used: words of the line.
    'train/crow/x.heic': r'of class crow for train; not used: 1 \(a picture of a format',
    'train/crow/x.png': r'of class crow for train; not used: 1 \(cannot be read',
    'unlabeled/x.png': r'without a class; not used: 1 \(cannot be read',
}


@pytest.mark.parametrize('name', LEFT)
def test_a_set_without_a_picture_says_what_was_not_used(tmp_path, name):
    folder = make_folder(tmp_path / 'pictures', each=1)
    shutil.rmtree(os.path.join(folder, os.path.dirname(name)), ignore_errors=True)
    put(folder, name)
    refused('no picture ' + LEFT[name], folder, tmp_path / 'data', skip_bad=True)


LINKS = [
    (os.symlink, 'train/robin/z.png', 'test/crow/test0.png'),
    (os.symlink, 'test/robin/z.png', 'train/crow/train0.png'),
    (os.link, 'unlabeled/z.png', 'test/crow/test0.png'),
]


@pytest.mark.parametrize(('link', 'new', 'old'), LINKS)
def test_a_file_in_train_and_in_test_is_told(tmp_path, capsys, link, new, old):
    folder = make_folder(tmp_path / 'pictures', unlabeled=1)
    link(os.path.join(folder, old), os.path.join(folder, new))
    os.symlink(os.path.join(folder, 'train/crow/train1.jpg'), os.path.join(folder, 'unlabeled/harmless.jpg'))
    folders.plan_folders(folder)
    err = capsys.readouterr().err
    assert err.startswith('Warning: 1 test pictures train as well, through links: ') and err.count('\n') == 1
    assert new in err and old in err


# --- Names of classes ---


@pytest.mark.parametrize('form', ['NFC', 'NFD'])
def test_two_spellings_of_one_name_are_one_class(tmp_path, capsys, form):
    other = {'NFC': 'NFD', 'NFD': 'NFC'}[form]
    folder = str(tmp_path / 'pictures')
    place(folder, 'train/%s/a.png' % unicodedata.normalize('NFC', 'café'), 'train/tea/a.png', 'test/tea/a.png')
    place(folder, 'train/%s/b.png' % unicodedata.normalize('NFD', 'café'))
    place(folder, 'test/%s/a.png' % unicodedata.normalize(other, 'café'))
    run(folder, tmp_path / 'data')
    out = capsys.readouterr().out
    assert 'train: 2 folders are one class, caf' in out
    assert table_of(out.splitlines()[1:])[0]['all'] == [3, 2]
    family = find_family(tmp_path)
    assert family.classes == (unicodedata.normalize('NFC', 'café'), 'tea')


NO_NAMES = {  # Words of the line: names of classes.
    'is not UTF-8 or has a control character': ['cr\udcf6w', 'a\nb', 'a\tb', '\x1b[31mred', 'a\u202eb', 'a\u2028b'],
    'has an invisible character': ['cat\u200b', '\ufeffcat', 'black-\u00adbear', 'a\u200eb', 'a\u2060b'],
}


def test_a_name_that_is_no_text_is_refused_with_its_place(tmp_path):
    for words, names in NO_NAMES.items():
        for name in names:
            with pytest.raises(utils.Error) as error:
                read_class(name, 'here')
            assert str(error.value) == 'here holds the class %s, whose name %s: rename it' % (ascii(name), words)
    table = write_csv(tmp_path / 'x.csv', [('a.png', 'dog'), ('b.png', names[0])])
    with pytest.raises(utils.Error, match=r'x.csv, line 3 holds the class'):
        labels.read_labels(table)
    place(tmp_path / 'pics', *('train/%s/a.png' % each for each in (names[0], 'dog')))
    with pytest.raises(utils.Error, match='pics/train holds the class'):
        folders.plan_folders(str(tmp_path / 'pics'), 0.3)


LONG = 'Animalia_' + 'x' * 200 + '_Lumbricus'


@pytest.mark.parametrize('name', ['می\u200cخواهم', 'Ünïcode 猫', "it's", LONG])
def test_a_name_in_any_script_is_kept_and_does_not_widen_the_table(tmp_path, name, capsys):
    place(tmp_path / 'pics', *('train/%s/%d.png' % (each, i) for each in (name, 'dog') for i in range(3)))
    run(tmp_path / 'pics', tmp_path / 'data', test_fraction=0.3)
    assert set(find_family(tmp_path).classes) == {name, 'dog'}
    table = capsys.readouterr().out.partition('\nall')[0]
    assert name[:9] in table and name[-9:] in table and max(map(len, table.splitlines())) < 80


def test_names_that_are_hardly_meant_are_told(tmp_path, capsys):
    place(tmp_path, *('train/%s/%d.png' % (name, i) for name in ('val', 'Cat', 'cat', 'nan') for i in range(3)))
    assert len(folders.plan_folders(str(tmp_path), 0.3, similar=True).classes) == 4
    told = ["Warning: '%s' is taken for the name of a class" % name for name in ('nan', 'val')]
    assert capsys.readouterr().err.splitlines() == told


ALIKE = [  # Names of classes that a person takes for one.
    *[('Car', 'car'), ('ABC', '\uff21\uff22\uff23'), ('True', 'TRUE'), ('007', '7'), ('1', '1.0'), ('x²', 'x2')],
    *[('polar bear', 'polar_bear'), ('polar bear', 'polar-bear'), ('class 07', 'class_7'), ('straße', 'STRASSE')],
    *[('می\u200cخواهم', 'میخواهم'), ('Käfer', 'KÃ¤fer'), ('a\ufe0f', 'a')],
]


def test_classes_that_a_person_takes_for_one_are_refused():
    for one, other in ALIKE:
        with pytest.raises(utils.Error, match=r'\(here\) and .* \(there\): .* --similar_classes'):
            check_distinct({one: 'here', 'dog': 'here', other: 'there'})
    for pair in ('A A-', '1 -1', '12 1-2', '10 1', '0.5 5', '1.0.1 1.1', 'x1 x01', 'é e'):
        check_distinct(dict.fromkeys(pair.split(), ''))


def test_where_classes_that_a_person_takes_for_one_stand_is_said(tmp_path):
    table = write_csv(tmp_path / 'x.csv', [('%d.png' % i, ('Car', 'car', 'dog')[i % 3]) for i in range(9)])
    place(tmp_path / 'pics', *('%d.png' % i for i in range(9)))
    with pytest.raises(utils.Error, match=r'\(line 2 and 2 more\) and .* \(line 3 and 2 more\)'):
        folders.plan_table(str(tmp_path / 'pics'), table, 0.3)
    assert len(folders.plan_table(str(tmp_path / 'pics'), table, 0.3, similar=True).classes) == 3
    place(tmp_path, 'train/Car/a.png', 'train/dog/a.png', 'test/car/a.png', 'test/dog/a.png')
    with pytest.raises(utils.Error, match=r'train/Car.* and .*/test/car|test/car.* and .*/train/Car'):
        folders.plan_folders(str(tmp_path))


# --- Setting aside ---


@settings(max_examples=150, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.sampled_from([None] * 8 + [*'pqrstuvw'])), min_size=2, max_size=90),
    fraction=st.floats(0.01, 0.6),
    seed=st.integers(0, 2**32 - 1),
)
def test_each_class_is_on_both_sides_each_group_on_one_and_nothing_is_lost(pairs, fraction, seed):
    items = [Item(str(i), label, group) for i, (label, group) in enumerate(pairs)]
    counts = collections.Counter(label for label, _ in pairs)
    short = any(max(1, round(fraction * count)) >= count for count in counts.values())
    try:
        rest, aside = folders.take_test(items, 'abcde', fraction, seed)
    except utils.Error as error:
        assert 'too few to set' in str(error) if short else 'too few groups' in str(error)
        assert short or any(group for _, group in pairs)
        return
    assert not short and sorted(rest + aside, key=str) == sorted(items, key=str)
    assert not {item.group for item in rest} & {item.group for item in aside} - {None}
    assert {item.label for item in rest} == {item.label for item in aside} == set(counts)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), groups=st.sampled_from([None, 80]), turn=st.integers(0, 2))
def test_a_picture_stays_on_its_side_when_others_are_added_or_its_class_changes(seed, groups, turn):
    def split(numbers, turn):
        items = [Item('%d.png' % i, (i + turn) % 3, groups and 'g%d' % (i % groups)) for i in numbers]
        return [{item.path for item in side} for side in folders.take_test(items, 'abc', 0.4, seed)]

    rest, aside = split(range(100, 300), 0)
    more, further = split(range(400), turn)
    assert rest <= more and aside <= further


def test_with_many_groups_about_the_fraction_is_set_aside_by_the_seed():
    items = [Item('%d' % i, i % 3, 'g%d' % (i // 7)) for i in range(2100)]
    first, again, other = (folders.take_test(items, 'abc', 0.2, seed) for seed in (1, 1, 2))
    assert first == again != other
    for _, aside in first, other:
        counts = collections.Counter(item.label for item in aside)
        assert len(counts) == 3 and all(120 <= count <= 160 for count in counts.values())


# --- A table of labels ---


def write_csv(path, rows, header=('file', 'class')):
    with open(path, 'w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


@pytest.fixture
def kaggle(tmp_path):
    """A folder of 30 pictures beside each other, of which a table names the classes of 20."""
    place(tmp_path / 'pics', *('images/%02d.png' % i for i in range(30)))
    rows = [('%02d.png' % i, 'cat' if i % 2 else 'dog') for i in range(20)]
    return str(tmp_path / 'pics'), write_csv(tmp_path / 'labels.csv', rows)


def test_one_folder_and_a_table_need_no_file_moved_and_a_tilde_is_the_home_folder(
    tmp_path, kaggle, capsys, monkeypatch
):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(kaggle[0])
    run('~/pics', '~/data', labels='~/labels.csv', test_fraction=0.2)
    counts, unused = table_of(capsys.readouterr().out.splitlines())
    assert {name: sum(counts[name]) for name in counts} == dict(cat=10, dog=10, unlabelled=10, all=30) and not unused
    assert min(counts['cat'] + counts['dog']) > 0 and set(groups_of(tmp_path / 'data', 'train')) == {None}
    assert os.listdir(kaggle[0]) == ['images']


FOUND = 'deep/cat.png', '7/07.png', 'images/7.png', '+2.png', '=1.png', 'x/é.png'
SPELLINGS = {
    '7/07.png': ('7/07.png', './7//07.png', '7\\07.png', ' 7/07.png ', '/home/ann/pics/7/07.png', '07.png', '07'),
    'images/7.png': ('images/7.png', '7.png', '7'),
    '+2.png': ('./+2.png', '+2.png'),
    '=1.png': ('./=1.png',),
    'x/é.png': (unicodedata.normalize('NFD', 'x/é.png'), 'é'),
}
NEAR = 'cat.PNG', 'Cat', 'deep/CAT.png', 'Deep/cat.png', 'CAT.Png', 'pics/deep/cat.png', 'cat.jpg', '/home/bob/cat.png'


def test_a_file_is_found_by_what_people_call_it():
    index = labels.Index('/home/ann/pics', FOUND)
    for path, names in SPELLINGS.items():
        assert [index.find(name, {}) for name in names] == [(path, '')] * len(names)
    for name in (*NEAR, 'C:\\ann\\cat.png'):
        assert index.find(name, {}) == (None, 'is not there, but deep/cat.png is')
    both = [unicodedata.normalize(form, 'é.png') for form in ('NFC', 'NFD')]  # Two files.
    assert [labels.Index('pics', both).find(name, {})[0] for name in both] == both


def test_a_table_says_what_is_for_testing(tmp_path, kaggle):
    splits = ['test'] * 4 + ['Train'] * 4 + [''] * 8
    rows = [('%02d.png' % i, 'ab'[i % 2] if i < 12 else '', split) for i, split in enumerate(splits)]
    table = write_csv(tmp_path / 'x.csv', rows, ('file', 'class', 'split'))
    plan = folders.plan_table(kaggle[0], table)
    assert sorted(item.path[-6:-4] for item in plan.parts['test']) == ['00', '01', '02', '03']
    assert sorted(item.path[-6:-4] for item in plan.parts['train']) == ['%02d' % i for i in range(4, 12)]
    assert len(plan.parts['unlabeled']) == 18
    with pytest.raises(utils.Error, match=r'names test pictures: leave --test_fraction out'):
        folders.plan_table(kaggle[0], table, 0.2)


def test_a_table_beside_class_folders_says_what_it_does_not_use(tmp_path, capsys):
    place(tmp_path, 'train/cat/1.png', 'train/dog/2.png', 'test/cat/3.png', 'new/4.png', 'new/5.png')
    rows = [
        ('4.png', 'cat', 'train', 'Patient 1'),
        ('5.png', 'dog', 'train', '2'),
        ('1.png', 'cat', 'test', 'patient 1'),
    ]
    table = write_csv(tmp_path / 'x.csv', [*rows, ('2.png', 'dog', 'test', '3')], ('file', 'class', 'split', 'group'))
    folders.plan_table(str(tmp_path), table)
    said = capsys.readouterr().err
    assert '1 pictures in class folders have no row there and get none, such as test/cat/3.png' in said
    assert 'the group Patient 1 is in train, and patient 1 in test: if they are one, write them alike' in said


@pytest.mark.parametrize(('part', 'options'), [('train/', {}), ('', dict(test_fraction=0.3))])
def test_a_table_of_unlabelled_pictures_adds_to_the_class_folders(tmp_path, part, options):
    folder = str(tmp_path / 'pics')
    place(folder, *('%s%s/%d.png' % (part, name, i) for name in CLASSES for i in range(8)))
    place(folder, *('unlabeled/%d.png' % i for i in range(4)), *('test/%s/t.png' % name for name in CLASSES if part))
    header = 'file', 'class', 'split', 'group'
    rows = [('unlabeled/0.png', 'crow', 'train', 'g'), ('unlabeled/1.png', '', '', 'g')]
    before = folders.plan_folders(folder, **options)
    after = folders.plan_table(folder, write_csv(tmp_path / 'x.csv', rows, header), **options)
    assert after.parts['train'] == [*before.parts['train'], Item('unlabeled/0.png', 1, 'g')]
    assert after.parts['test'] == before.parts['test'] and after.classes == before.classes
    expected = [Item('unlabeled/%d.png' % i, records.NO_CLASS, 'g' if i == 1 else None) for i in (1, 2, 3)]
    assert after.parts['unlabeled'] == expected
    for more in ('unlabeled/2.png', 'owl', 'train', ''), ('%scrow/0.png' % part, 'crow', 'train', ''):
        with pytest.raises(utils.Error, match=r'names no test|too few|at least 2'):
            folders.plan_table(folder, write_csv(tmp_path / 'x.csv', [*rows, more], header), **options)


def test_the_files_of_equal_pictures_are_all_known(tmp_path):
    place(tmp_path / 'pics', 'train/a/1.png', 'test/b/1.png', 'test/a/2.png', value=7)
    place(tmp_path / 'pics', 'train/b/2.png')
    run(tmp_path / 'pics', tmp_path / 'data')
    found = data_pair.read_sources(str(tmp_path / 'data'), 'birds')
    assert sorted(map(len, (names.split('; ') for names in found.values()))) == [1, 3]


def test_their_list_is_not_written_through_a_link(tmp_path):
    os.makedirs(tmp_path / 'data')
    (tmp_path / 'outside').mkdir()
    (tmp_path / 'outside' / 'birds.json').write_text('kept')
    os.symlink(tmp_path / 'outside', tmp_path / 'data' / 'files')
    with pytest.raises(utils.Error, match='files is a link, and nothing is written through it'):
        run(make_folder(tmp_path / 'pictures'), tmp_path / 'data')
    assert os.listdir(tmp_path / 'data') == ['files'] and (tmp_path / 'outside' / 'birds.json').read_text() == 'kept'


def test_of_many_equal_pictures_three_are_named(tmp_path):
    place(tmp_path / 'pics', 'test/a/1.png', 'test/b/1.png', *('train/a/%d.png' % i for i in range(9)), value=7)
    place(tmp_path / 'pics', 'train/b/2.png')
    run(tmp_path / 'pics', tmp_path / 'data')
    names = sorted(data_pair.read_sources(str(tmp_path / 'data'), 'birds').values(), key=len)
    assert names[0] == 'train/b/2.png' and names[1].count('; ') == 2 and names[1].endswith('.png and 8 more')


def groups_of(data_dir, part):
    """Returns the group of each record, None where there is none."""
    file = records.RecordFile(data_pair.locate_records(str(data_dir), 'birds', part))
    return [None if group == records.NO_GROUP else group for group in file.check(unlabeled=True)[2]]


def test_groups_are_kept_in_the_records(tmp_path, kaggle, capsys):
    rows = [('%02d.png' % i, 'cat' if i % 2 else 'dog', 'p%d' % (i // 4) if i < 16 else '') for i in range(20)]
    rows += [('%02d.png' % i, '', 'p%d' % (i % 4)) for i in range(20, 28)]  # Unlabelled, of the same patients.
    table = write_csv(tmp_path / 'x.csv', rows, ('file', 'class', 'group'))
    run(kaggle[0], tmp_path / 'data', labels=table, test_fraction=0.2, seed=6)
    counts, unused = table_of(capsys.readouterr().out.splitlines())
    assert sum(counts['all']) == 30 - unused[folders.OF_TEST_GROUPS]
    train, unlabeled = groups_of(tmp_path / 'data', 'train'), groups_of(tmp_path / 'data', 'unlabeled')
    assert None in train and None in unlabeled  # Pictures that belong to no group.
    known = [group for group in train + unlabeled if group is not None]
    assert set(np.bincount(known)) == {6} and len(set(known)) == 3  # A patient is in test; three are not.
    assert set(groups_of(tmp_path / 'data', 'test')) == {None}


def test_rows_without_a_picture_are_listed_and_stop_the_command(tmp_path, kaggle, capsys):
    place(kaggle[0], 'other/00.png')
    put(kaggle[0], 'images/a.heic')
    rows = [('images/a.heic', 'cat')] + [('%02d.png' % i, 'cat' if i % 2 else 'dog') for i in range(60)]
    table = write_csv(tmp_path / 'x.csv', rows)
    with pytest.raises(utils.Error, match=r'32 rows of .*x.csv name no picture in .*pics, see above'):
        run(kaggle[0], tmp_path / 'data', labels=table, test_fraction=0.2)
    lines = [line.partition('x.csv, ')[2] for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == 'line 2: images/a.heic is a picture of a format that is not read: convert it to PNG or JPEG'
    assert lines[1] == 'line 3: 00.png is the name of 2 pictures: say in which folder'
    assert lines[2] == 'line 33: 30.png is not there' and len(lines) == 21  # The last one tells how many more.
    assert not os.path.exists(tmp_path / 'data')
    plan = folders.plan_table(kaggle[0], write_csv(table, [rows[0], *rows[2:22]]), 0.2, skip_bad=True)
    assert plan.unused == {'images/a.heic': pictures.UNKNOWN_FORMAT}


ROWS = 'a.png,cat\nb.png,dog\n'
HEADER = "its header must be such as file,class, and is 'name,kind,set'; meant are file or filename or path or image, "
SPLIT = 'file,class,split\n'
BAD_TABLES = {  # Name: content, words of the line.
    'empty': ('', "0 columns named 'file'"),
    'no file': ('id,class\n' + ROWS, "0 columns named 'file'"),
    'no class': ('file,kind\n' + ROWS, "0 columns named 'class'"),
    'two names for one': ('file,label,category\n', "2 columns named 'class'"),
    'other names': ('name;kind;set\n', HEADER + 'class or label or category or choice'),
    'workbook': ('PK\x03\x04' + ROWS, 'is a workbook, not a table of text: save it as "CSV UTF-8"'),
    'a list of classes': ('file,class\na.png,"[""cat"", ""dog""]"\n', 'line 2: the class is a list, ["cat", "dog"]'),
    'utf-16 without a mark': (('file,class\n' + ROWS).encode('utf-16-le'), "0 columns named 'file'"),
    'utf-16 cut': (('file,class\n' + ROWS).encode('utf-16')[:-1], 'is not UTF-8'),
    'two files': ('file,class,file\n', "2 columns named 'file'"),
    'contradiction': ('file,class\n%s./a.png,dog\n' % ROWS, 'line 2 and line 4 contradict each other on a.png'),
    'half a contradiction': ('file,class\na.png,cat\na.png,\n', 'line 2 and line 3 contradict'),
    'one long line': ('x' * 200_000, 'line 1: field larger than field limit'),
    'one long line of cells': ('a,b,' * 50_000, "0 columns named 'file'"),
    'one long cell': ('file,class\na.png,' + 'x' * 200_000, 'line 2: field larger than field limit'),
    'latin-1': ('file,class\na.png,café\n'.encode('latin-1'), 'is not UTF-8: save it as'),
    'open quote': ('file,class\n"a.png,cat\nb.png,dog\n', 'line 3: '),
    'too many cells': ('file,class\na,b.png,cat\n', 'line 2: has more cells than the header'),
    'no name': ('file,class\n,cat\n', 'line 2: has no file'),
    'another split': (SPLIT + 'a.png,cat,val\n', "line 2: split is 'val': it must be train or test"),
    'test without class': (SPLIT + 'a.png,,test\n', 'line 2: a.png is for testing, but has no class'),
    'one class': ('file,class\na.png,cat\n', 'at least 2 classes are needed, and 1 found'),
    'no test': ('file,class\n' + ROWS, 'names no test pictures in a column `split`: give --test_fraction'),
    'escape in a split': (SPLIT + 'a.png,cat,\x1bx\n', r"split is '\x1bx': it must"),
    'long class': ('file,class\na.png,' + 'x' * 5000, 'whose name has 5000 letters, at most 255 are allowed: xxx'),
    'torn group': (
        'file,class,split,group\na.png,cat,,p\nb.png,dog,test,p\n',
        "of group 'p' both in train and in test",
    ),
    'only in test': (SPLIT + 'a.png,cat,\nb.png,dog,test\nc.png,cat,test\n', 'no picture of class dog for train'),
    'only in train': (SPLIT + 'a.png,cat,\nb.png,dog,\nc.png,cat,test\n', 'no picture of class dog for test'),
    'outside': ('file,class\n../x.csv,cat\n/etc/passwd,dog\n', '2 rows of '),
    'no file name': ('file,class\na\0.png,cat\n..,dog\n', '2 rows of '),
}


@pytest.mark.parametrize('name', BAD_TABLES)
def test_a_bad_table_is_one_line(tmp_path, name):
    content, words = BAD_TABLES[name]
    (tmp_path / 'x.csv').write_bytes(content.encode() if isinstance(content, str) else content)
    place(tmp_path / 'pics', 'a.png', 'b.png', 'c.png', 'd.png')
    refused(re.escape(words), tmp_path / 'pics', tmp_path / 'data', labels=str(tmp_path / 'x.csv'))


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=300) | st.text(alphabet='file,class\n"ab.png;\t', max_size=300).map(str.encode))
def test_any_bytes_are_a_table_or_one_line(tmp_path_factory, content):
    path = str(tmp_path_factory.getbasetemp() / 'any.csv')
    with open(path, 'wb') as file:
        file.write(content)
    try:
        assert isinstance(labels.read_labels(path), list)
    except utils.Error as error:
        assert '\n' not in str(error)


WRITTEN = {  # What spreadsheets and other programs write.
    'semicolons, said': b'\xef\xbb\xbfsep=;\r\nfile;class\r\na.png;cat\r\nb.png;dog\r\n',
    'commas, said': b'"sep=,"\nfile,class\na.png,cat\nb.png,dog\n',
    'Unicode text': 'file\tclass\r\na.png\tcat\r\nb.png\tdog\r\n'.encode('utf-16'),
    'empty columns and rows': b'file;class;;\na.png;cat;;\nb.png;dog\n;;;\n;;;\n',
    'filename and label': b'filename;label;set\na.png;cat;1\nb.png;dog;2\n',
    'path and category': b'Path,Category\n./a.png,cat\nb.png,dog\n',
    'image and class': b'image,class,note\na.png,cat,\nb.png,dog,\n',
    'file before path': b'path,file,class\nx,a.png,cat\nx,b.png,dog\n',
    'classes in brackets': b'file,class\na.png,[cat]\nb.png,{dog}\n',
}


@pytest.mark.parametrize('name', WRITTEN)
def test_tables_are_read_as_programs_write_them(tmp_path, name):
    (tmp_path / 'x.csv').write_bytes(WRITTEN[name])
    found = labels.read_labels(str(tmp_path / 'x.csv'))
    names = [(os.path.normpath(row.file), row.label.strip('[{}]')) for row in found]
    assert names == [('a.png', 'cat'), ('b.png', 'dog')]


# --- Nothing is left out without a word ---


NAMES = st.sampled_from(
    ['a.png', 'b.jpg', 'c', 'd.txt', '.e.png', 'f.heic', 'Thumbs.db', 'train', 'test', 'unlabeled', 'unlabelled', 'val']
    + ['crow', 'robin', '@eaDir', '__MACOSX', '.hidden', 'deep']
)
PATHS = st.lists(NAMES, min_size=1, max_size=5).map(tuple)


@settings(max_examples=150, deadline=None)
@given(files=st.lists(PATHS, max_size=15), links=st.lists(st.tuples(PATHS, PATHS), max_size=4), flat=st.booleans())
def test_the_counts_add_up_to_the_files_that_are_there(tmp_path_factory, files, links, flat):
    base = tmp_path_factory.mktemp('tree')
    root = base / 'pics'
    train = () if flat else ('train',)
    files = [*files, *[(*train, name, 'z%d.png' % i) for name in ('crow', 'robin') for i in range(2)]]
    if not flat:
        files += [('test', 'crow', 'z.png'), ('test', 'robin', 'z.png')]
    for path in files:
        target = root.joinpath(*path)
        if not any(parent.is_file() for parent in target.parents) and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(records.PNG_SIGNATURE + bytes(30))
    for path, target in links:
        link = root.joinpath(*path)
        if link.parent.is_dir() and not link.exists() and not link.is_symlink():
            link.symlink_to(root.joinpath(*target))
    try:
        plan = folders.plan_folders(str(root), 0.5 if flat else None)
        there = count_files(str(root))
    except utils.Error as error:
        assert '\n' not in str(error)
        return
    finally:
        shutil.rmtree(base)
    counts, unused = table_of(list(folders.format_plan(plan)))
    assert sum(counts['all']) + sum(unused.values()) == there
    named = [item.path for items in plan.parts.values() for item in items] + list(plan.unused)
    assert len(set(named)) == len(named) == there


def count_files(root):
    """Returns the number of files under a folder, through links; a link that leads nowhere counts for one."""
    return sum(len(names) for _, _, names in os.walk(root, followlinks=True))


# --- Deep pictures ---


def test_deep_pictures_are_refused_with_the_range_to_give(tmp_path):
    folder = make_folder(tmp_path / 'pictures')
    ramp, level = np.tile(np.linspace(0, 1, 8), (8, 1)), os.path.join(folder, 'test', 'crow', 'deep.tif')
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(level)  # Of one value, which is no range.
    refused(r'from 4000 to 4000, .*--range=4000,4001, say', folder, tmp_path / 'data')
    Image.fromarray((ramp * 900 - 1000).astype(np.int32)).save(level)
    Image.fromarray((ramp * 4095).astype(np.uint16)).save(os.path.join(folder, 'train', 'crow', 'deep.png'))
    for skip_bad in (False, True):
        words = r'2 pictures have more than 8 bits .*--range=-1000,4095, say'
        refused(words, folder, tmp_path / 'data', skip_bad=skip_bad)
    run(folder, tmp_path / 'data', range='-1000,4095', colors=1)
    assert find_family(tmp_path).range == (-1000, 4095)
    images, labels = read(tmp_path / 'data', 'train')
    deep = [image for image in images[labels == 1] if image.min() != image.max()]
    assert np.abs(deep[0][0, [0, -1], 0].astype(int) - [1000 / 5095 * 255, 255]).max() <= 1


# --- Unreadable pictures ---


BAD = {
    'train/crow/bad0.jpg': b'not a picture',
    'train/robin/bad1.png': fakes.make_bomb(50000),
    'unlabeled/a/bad2.png': b'',
}


def test_unreadable_pictures_are_listed_and_stop_the_command_or_are_left_out(tmp_path, capsys):
    folder = make_folder(tmp_path / 'pictures', unlabeled=3)
    for name, content in BAD.items():
        put(folder, name, content=content)
    refused(r'3 pictures cannot be read, see above: .*--skip_bad or --max_megapixels', folder, tmp_path / 'data')
    lines = {line.split(': ')[0]: line for line in capsys.readouterr().err.splitlines() if '/bad' in line}
    assert set(lines) == set(BAD)
    assert 'claims more than 400 megapixels, the limit' in lines['train/robin/bad1.png']
    run(folder, tmp_path / 'data', skip_bad=True)
    assert np.bincount(read(tmp_path / 'data', 'train')[1]).tolist() == [6, 6, 6]
    assert len(read(tmp_path / 'data', 'unlabeled')[1]) == 3
    counts, unused = table_of(capsys.readouterr().out.splitlines())
    assert counts['all'] == [21, 6] and unused == {folders.UNREADABLE: 3}


# --- What cannot be ---


BAD_OPTIONS = dict(  # By option: values that are refused, and words of the line.
    name=(['cifar10', '../x', 'a.b', 'a/b', '.'], 'name=%s is not allowed'),
    size=(['32', '0x8', 'axb', '-1x8', '9999x8', '8x-8'], 'size=%s: give WIDTHxHEIGHT'),
    colors=([0, 2, 4], 'colors=%s is not allowed: it must be 1'),
    augment=(['rotate', 'shift', 'shift-1'], 'augment=%s'),
    from_folder=(['/nowhere'], '%s is no folder'),
    range=(['1', '5,1', '-1e308,1e308', '0,nan', 'a,b'], 'range=%s: give LOW,HIGH'),
    seed=([-1], 'seed=%s is not allowed'),
    max_megapixels=([0.0], 'max_megapixels=%s'),
    labels=(['/nowhere.csv'], '%s'),
)
CASES = [(name, value, words % value) for name, (values, words) in BAD_OPTIONS.items() for value in values]
CASES += [
    ('name', '', 'needs --name'),
    ('augment', 'shift8', 'cannot be shifted by 8'),
    ('test_fraction', 0.2, 'leave'),
]


@pytest.mark.parametrize(('option', 'value', 'words'), CASES)
def test_bad_options_change_nothing(tmp_path, option, value, words):
    folder = make_folder(tmp_path / 'pictures', each=1, test=1)
    refused(re.escape(words), folder, tmp_path / 'data', **{option: value})


def test_folders_laid_out_otherwise_are_refused(tmp_path):
    folder = make_folder(tmp_path / 'pictures', test=0)

    refused('test is missing: give --test_fraction', folder, tmp_path / 'data')
    for fraction in (0, 1, -1, 2, float('nan')):
        refused('must be between 0 and 1', folder, tmp_path / 'data', test_fraction=fraction)
    refused('too few to set a share of 0.95 aside', folder, tmp_path / 'data', test_fraction=0.95)
    place(folder, 'test/owl/x.png', 'test/crow/x.png')
    refused("has the class 'owl', which the training pictures lack", folder, tmp_path / 'data')
    os.rename(os.path.join(folder, 'test', 'owl'), os.path.join(folder, 'test', 'robin'))
    refused('no picture of class blackbird for test', folder, tmp_path / 'data')
    refused(r'train is missing: .* with --test_fraction', os.path.join(folder, 'train'), tmp_path / 'data')
    os.rename(os.path.join(folder, 'train'), os.path.join(folder, 'Train'))
    refused(r"train is missing beside 'Train'", folder, tmp_path / 'data', test_fraction=0.2)


def test_an_existing_dataset_is_never_overwritten(tmp_path):
    folder = make_folder(tmp_path / 'pictures')
    run(folder, tmp_path / 'data')
    words = r'%s exists already .*choose another --name; or remove .*birds.*the splits and runs of the old dataset'
    for name in 'birds.json', 'birds-test.tfrecord':
        before = tree(tmp_path / 'data')
        with pytest.raises(utils.Error, match=words % name):
            run(folder, tmp_path / 'data', size='10x10')
        assert tree(tmp_path / 'data') == before
        os.remove(tmp_path / 'data' / name)
