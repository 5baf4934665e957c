"""Record files of the user's own become a dataset by the description that create_datasets.py --describe writes."""

import os

import pytest
from conftest import write_records

from libml import data_pair, records, utils
from libml.data_pair import DATASETS
from libml.family import Family
from scripts import create_datasets, create_split

SHAPE = (9, 8, 3)


@pytest.fixture
def folder(tmp_path):
    write_records(tmp_path, 'mine', [0, 1, 2] * 6, shape=SHAPE)
    write_records(tmp_path, 'mine', [0, 1, 2], 'test', SHAPE, seed=1)
    return tmp_path


def test_described_records_can_be_split_and_read(folder, capsys):
    create_datasets.create(describe='mine', data_dir=str(folder))
    assert 'mine: 3 classes, 8 x 9 pixels, 3 colors' in capsys.readouterr().out
    with pytest.raises(utils.Error, match=r'mine.json exists already'):
        create_datasets.create(describe='mine', data_dir=str(folder))
    create_split.make('mine', size=6, seed=1, data_dir=str(folder))
    dataset = DATASETS['mine.1@6-4'](str(folder))
    assert [len(images) for images in dataset.sets.values()] == [6, 8, 4, 3]
    assert dataset.family == Family(*SHAPE, 3, mirror=True, shift=1)


def test_a_description_takes_names_augmentation_and_unlabelled_pictures(folder):
    write_records(folder, 'mine', [records.NO_CLASS] * 5, 'unlabeled', SHAPE)
    create_datasets.create(describe='mine', augment='shift2', classes='bee,café,ant', data_dir=str(folder))
    family = data_pair.find_family(str(folder), 'mine')
    assert (family.mirror, family.shift, family.parts) == (False, 2, ('train', 'unlabeled'))
    assert family.classes == ('bee', 'café', 'ant')


BAD = {  # What is wrong: what is written instead or besides, the arguments, words of the error.
    'no name': ({}, dict(describe='cifar10'), 'none of cifar10'),
    'no records': ({}, dict(describe='yours'), r'yours-train.tfrecord is missing'),
    'no test set': (dict(test=None), {}, r'mine-test.tfrecord is missing'),
    'another size': (dict(test=([0], (8, 8, 3))), {}, r'mine-test.tfrecord: record 0 is a picture of 8x8x3'),
    'another class': (dict(test=([3], SHAPE)), {}, r'mine-test.tfrecord: record 0 has label 3'),
    'a gap': (dict(train=([0, 2], SHAPE)), {}, 'has no record of class 1 of 3'),
    'an enormous gap': (dict(train=([0, 2**31 - 1], SHAPE)), {}, 'has no record of class 1 of 2147483648'),
    'one class': (dict(train=([0, 0], SHAPE), test=([0], SHAPE)), {}, 'at least 2'),
    'a group on both sides': (
        dict(train=([(0, 5), (1, 6), (2, 7)], SHAPE), test=([(0, 8), (1, 5)], SHAPE)),
        {},
        'share the group 5',
    ),
    'augmentation': ({}, dict(augment='turn'), 'augment=turn'),
    'too few names': ({}, dict(classes='a,b'), '3 names'),
    'the same name': ({}, dict(classes='a,b,a'), 'two classes have the same name'),
    'similar names': ({}, dict(classes='a,b,A'), 'a .class 0. and A .class 2.: .*--similar_classes'),
    'an invisible character': ({}, dict(classes='a,b,a\u200b'), 'invisible'),
    'an empty name': ({}, dict(classes='a,,c'), "'' is empty"),
}


@pytest.mark.parametrize('what', BAD)
def test_what_cannot_be_described_is_said(folder, what):
    instead, options, words = BAD[what]
    for part, content in instead.items():
        os.remove(data_pair.locate_records(str(folder), 'mine', part))
        if content:
            labels, shape = content
            write_records(folder, 'mine', labels, part, shape)
    before = sorted(os.listdir(folder))
    with pytest.raises(utils.Error, match=words) as error:
        create_datasets.create(**dict(dict(describe='mine', data_dir=str(folder)), **options))
    assert '\n' not in str(error.value) and sorted(os.listdir(folder)) == before
