"""What inspect_dataset prints and draws."""

import functools
import os

import fakes
import numpy as np
from conftest import assert_one_line_error
from PIL import Image

from libml import data, records
from libml.family import Family
from scripts import inspect_dataset


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


def test_the_tables_are_printed(digits_dir, capsys):
    inspect_dataset.inspect(dataset='digits.1@20-30', data_dir=str(digits_dir))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'digits.1@20-30: pictures of 8 x 8 pixels, 1 colors'
    assert lines[1].split() == ['class', 'labeled', 'unlabeled', 'valid', 'test']
    assert lines[2].split()[:2] == ['0', '2'] and lines[12].split() == ['all', '20', '1237', '30', '510']
    assert lines[13].startswith('pixels from 0 to 255')
    images, _ = records.read(str(digits_dir / 'SSL' / 'digits.1@20-unlabel.tfrecord'))
    labeled, _ = records.read(str(digits_dir / 'SSL' / 'digits.1@20-label.tfrecord'))
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
    for place, image in ((0, 0), labeled[0]), ((0, 1), labeled[1]), ((2, 0), labeled[2]), ((1, 0), 255), ((2, 1), 255):
        assert (tile(*place) == image).all()
    for row, original in enumerate(unlabeled, 3):
        np.testing.assert_array_equal(tile(row, 0), original)
        padded = [np.pad(x, ((1, 1), (1, 1), (0, 0)), 'reflect') for x in (original, original[:, ::-1])]
        crops = {p[dy : dy + 8, dx : dx + 10].tobytes() for p in padded for dy in range(3) for dx in range(3)}
        shown = {tile(row, column).tobytes() for column in range(1, 10)}
        assert shown <= crops and len(shown) > 2
    # The names stand in the margin, and nothing else does.
    for row in range(9):
        assert (sheet[row * high : (row + 1) * high, : inspect_dataset.MARGIN] < 100).any()


def test_the_sheet_shows_the_first_of_many_classes(digits_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inspect_dataset, 'MOST_CLASSES', 3)
    inspect_dataset.inspect('digits.1@20-1267', data_dir=str(digits_dir), png=str(tmp_path / 'sheet.png'))
    assert Image.open(tmp_path / 'sheet.png').size[1] == 3 * (8 * (inspect_dataset.TILE // 8) + 2)
    assert 'sheet.png (the first 3 classes)\n' in capsys.readouterr().out


def test_a_dataset_without_unlabelled_pictures_has_a_sheet(digits_dir, tmp_path):
    inspect_dataset.inspect('digits.1@20-1267', data_dir=str(digits_dir), png=str(tmp_path / 'sheet.png'))
    assert Image.open(tmp_path / 'sheet.png').size[1] == 10 * (8 * (inspect_dataset.TILE // 8) + 2)


def test_a_full_disk_is_one_line_that_names_the_sheet_and_leaves_nothing(server, digits_dir, tmp_path):
    args = 'digits.1@20-100', '--png', tmp_path / 'sheet.png', '--data_dir', digits_dir
    limit = functools.partial(fakes.limit_files, 3000)
    assert_one_line_error(server.run('scripts/inspect_dataset.py', *args, first=[limit]), 'sheet.png')
    assert os.listdir(tmp_path) == []
