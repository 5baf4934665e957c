"""What inspect_dataset prints and draws."""

import functools
import os

import fakes
import numpy as np
import pytest
from conftest import assert_one_line_error
from PIL import Image

from libml import data, data_pair, records, utils
from libml.family import Family
from scripts import create_split, inspect_dataset


@pytest.fixture
def folder(tmp_path):
    """A folder with pictures of digits' shape and the split digits.1@20."""
    for part, n in (('train', 90), ('test', 15)):
        examples = zip(records.encode(fakes.random_images(n, 8, 8, 1, n)), np.arange(n) % 10, strict=True)
        records.write(data_pair.locate_records(str(tmp_path), 'digits', part), examples)
    create_split.make('digits', size=20, seed=1, data_dir=str(tmp_path))
    return tmp_path


def make_dataset(shape=(8, 10, 3), nclass=3, classless=2):
    def images(labels, seed):
        return data.Images(fakes.random_images(len(labels), *shape, seed), labels)

    unlabeled = [0, 1, 1, 1, 2] + [-1] * classless
    sets = images([0, 0, 2], 1), images(unlabeled, 2), images([1], 3), images([2, 2], 4)
    family = Family(*shape, nclass, mirror=True, shift=1)
    return data.DataSet('x.1@3-1', family, dict(zip(data.SETS, sets, strict=True)))


def test_pictures_are_counted():
    expected = [[2, 0, 1, 0], [1, 3, 1, 2], [0, 1, 0, 0], [0, 0, 2, 0]]
    assert inspect_dataset.count_classes(make_dataset()).tolist() == expected


def test_the_tables_are_printed(folder, capsys):
    inspect_dataset.inspect(dataset='digits.1@20-30', data_dir=str(folder))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'digits.1@20-30: pictures of 8 x 8 pixels, 1 colors'
    assert lines[1].split() == ['class', 'labeled', 'unlabeled', 'valid', 'test']
    assert lines[2].split() == ['0', '2', '4', '3', '2'] and lines[12].split() == ['all', '20', '40', '30', '15']
    assert lines[13].startswith('pixels from 0 to 255')
    images, _ = records.read(str(folder / 'SSL' / 'digits.1@20-unlabel.tfrecord'))
    labeled, _ = records.read(str(folder / 'SSL' / 'digits.1@20-label.tfrecord'))
    pixels = data.to_float(np.concatenate([images[30:], labeled])).astype(np.float64)
    assert lines[14].split() == ['mean', '%.4f' % pixels.mean()]
    assert lines[15].split() == ['deviation', '%.4f' % pixels.std()]


def test_the_sheet_shows_labelled_pictures_and_augmented_ones(tmp_path):
    dataset = make_dataset()
    inspect_dataset.save_sheet(str(tmp_path / 'sheet.png'), dataset)
    assert os.listdir(tmp_path) == ['sheet.png']
    sheet = np.asarray(Image.open(tmp_path / 'sheet.png'))
    scale = inspect_dataset.TILE // 10
    high, wide = 8 * scale + 2, 10 * scale + 2
    assert sheet.shape == ((3 + 6) * high, inspect_dataset.MARGIN + 10 * wide, 3)

    def tile(row, column):
        """The pixels at the centres of a tile's enlarged pixels."""
        top, left = row * high + scale // 2, inspect_dataset.MARGIN + column * wide + scale // 2
        return sheet[top : top + 8 * scale : scale, left : left + 10 * scale : scale]

    labeled, unlabeled = dataset.sets['labeled'].gather(np.arange(3)), dataset.sets['unlabeled'].gather(np.arange(6))
    np.testing.assert_array_equal(tile(0, 0), labeled[0])
    np.testing.assert_array_equal(tile(0, 1), labeled[1])
    np.testing.assert_array_equal(tile(2, 0), labeled[2])
    assert (tile(1, 0) == 255).all() and (tile(2, 1) == 255).all()
    for row in range(6):
        original = unlabeled[row]
        np.testing.assert_array_equal(tile(3 + row, 0), original)
        padded = [np.pad(x, ((1, 1), (1, 1), (0, 0)), 'reflect') for x in (original, original[:, ::-1])]
        crops = [p[dy : dy + 8, dx : dx + 10] for p in padded for dy in range(3) for dx in range(3)]
        shown = [tile(3 + row, column) for column in range(1, 10)]
        assert all(any(np.array_equal(crop, found) for crop in crops) for found in shown)
        assert len({found.tobytes() for found in shown}) > 2
    # The names stand in the margin, and nothing else does.
    for row in range(9):
        assert (sheet[row * high : (row + 1) * high, : inspect_dataset.MARGIN] < 100).any()


def test_a_dataset_without_unlabelled_pictures_has_a_sheet(folder):
    inspect_dataset.inspect('digits.1@20-70', data_dir=str(folder), png=str(folder / 'sheet.png'))
    assert Image.open(folder / 'sheet.png').size[1] == 10 * (8 * (inspect_dataset.TILE // 8) + 2)


def test_a_sheet_that_cannot_be_written_leaves_nothing(folder):
    with pytest.raises(OSError):
        inspect_dataset.inspect('digits.1@20-30', data_dir=str(folder), png=str(folder / 'nowhere' / 'sheet.png'))
    before = sorted(os.listdir(folder))
    with fakes.full_disk(100), pytest.raises(OSError):
        inspect_dataset.inspect('digits.1@20-30', data_dir=str(folder), png=str(folder / 'sheet.png'))
    assert sorted(os.listdir(folder)) == before


def test_bad_arguments(folder):
    with pytest.raises(utils.Error, match='not of the form'):
        inspect_dataset.inspect('digits', data_dir=str(folder))
    with pytest.raises(utils.Error, match='not installed'):
        inspect_dataset.inspect('svhn.2@20-30', data_dir=str(folder))


def test_a_full_disk_is_one_line_that_names_the_sheet(server, digits_dir, tmp_path):
    args = 'digits.1@20-100', '--png', tmp_path / 'sheet.png', '--data_dir', digits_dir
    assert_one_line_error(
        server.run('scripts/inspect_dataset.py', *args, first=[functools.partial(fakes.limit_files, 3000)]), 'sheet.png'
    )
    assert os.listdir(tmp_path) == []
