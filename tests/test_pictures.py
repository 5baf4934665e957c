"""The user's own pictures: from a folder to a dataset that every script knows."""

import io
import os
import struct
import types
import zlib

import fakes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from libml import data_pair, pictures, records, utils
from libml.data_pair import DATASETS
from scripts import create_datasets, create_split

CLASSES = ['blackbird', 'crow', 'robin']


def make_folder(folder, each=6, test=2, unlabeled=0, size=(12, 10)):
    """Makes PICTURES with three classes of grey level 40, 120 and 200, in several formats; returns its path."""
    parts = [('train', each), ('test', test)]
    for part, count in parts:
        for label, name in enumerate(CLASSES):
            for i in range(count):
                pixels = np.full([*size, 3], 40 + 80 * label, np.uint8)
                ending = ('png', 'jpg', 'bmp', 'PNG', 'webp', 'gif')[i % 6]
                fakes.save_picture(os.path.join(folder, part, name, '%s%d.%s' % (part, i, ending)), pixels)
    for i in range(unlabeled):
        path = os.path.join(folder, 'unlabeled', 'a' * (i % 3 + 1), 'b', '%d.png' % i)
        fakes.save_picture(path, fakes.random_images(1, *size, 3, i)[0])
    return str(folder)


def run(monkeypatch, folder, data_dir, **flags):
    """Calls create_datasets --from_folder as the command line would."""
    values = dict(from_folder=str(folder), data_dir=str(data_dir), name='birds', size='8x8', colors=3, augment=None)
    values.update(dict(test_fraction=None, skip_bad=False, seed=0, source=None, verify=True), **flags)
    monkeypatch.setattr(create_datasets, 'flags', types.SimpleNamespace(FLAGS=types.SimpleNamespace(**values)))
    create_datasets.main(['create_datasets.py'])


def read(data_dir, part, name='birds'):
    return records.read(data_pair.record_file(str(data_dir), name, part), unlabeled=True)


def convert(tmp_path, image, size=(8, 8), colors=3, name='x.png', **options):
    """Saves a PIL.Image and converts it."""
    image.save(tmp_path / name, **options)
    return pictures.convert(str(tmp_path / name), size, colors)


# --- One picture ---


def test_the_centre_is_cut_out_to_the_aspect_wanted(tmp_path):
    wide = np.zeros([10, 30, 3], np.uint8)
    wide[:, 10:20] = (10, 200, 90)
    found = convert(tmp_path, Image.fromarray(wide)).astype(int)
    assert np.abs(found[:, 1:-1] - (10, 200, 90)).max() <= 3 and np.abs(found - (10, 200, 90)).max() < 60
    tall = wide.transpose(1, 0, 2)
    found = convert(tmp_path, Image.fromarray(tall), size=(4, 8))
    assert found.shape == (4, 8, 3) and (found[:, 1:-1] == (10, 200, 90)).all()


def test_resizing_is_antialiased(tmp_path):
    stripes = np.zeros([64, 64], np.uint8)
    stripes[:, ::2] = 255
    found = convert(tmp_path, Image.fromarray(stripes), size=(8, 8), colors=1)
    assert found.shape == (8, 8, 1) and np.abs(found.astype(int) - 127.5).max() < 12


def test_a_picture_of_the_right_size_keeps_its_pixels(tmp_path):
    for colors in (1, 3):
        pixels = fakes.random_images(1, 8, 8, colors)[0]
        fakes.save_picture(str(tmp_path / 'x.png'), pixels)
        np.testing.assert_array_equal(pictures.convert(str(tmp_path / 'x.png'), (8, 8), colors), pixels)


def test_grey_and_colors_become_what_is_asked(tmp_path):
    red = Image.fromarray(np.full([8, 8, 3], (255, 0, 0), np.uint8))
    assert (convert(tmp_path, red, colors=1) == 76).all()
    grey = Image.fromarray(np.full([8, 8], 90, np.uint8))
    assert (convert(tmp_path, grey, colors=3) == 90).all()


def test_pictures_of_all_modes_are_read(tmp_path):
    grey = Image.fromarray(np.full([8, 8], 128, np.uint8))
    for mode in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'HSV'):
        name = 'x.tif' if mode in ('CMYK', 'YCbCr') else 'x.png'
        image = grey.convert('RGB').convert(mode) if mode == 'HSV' else grey.convert(mode)
        if mode == 'HSV':
            image = image.convert('RGB')
        found = convert(tmp_path, image, name=name)
        assert mode == '1' or np.abs(found.astype(int) - 128).max() <= 3, mode
    deep = Image.fromarray(np.full([8, 8], 128 * 257, np.uint16))
    assert (convert(tmp_path, deep, colors=1) == 128).all()


def test_transparent_parts_become_white(tmp_path):
    pixels = np.zeros([8, 8, 4], np.uint8)
    pixels[:4] = (10, 20, 30, 255)
    found = convert(tmp_path, Image.fromarray(pixels))
    assert (found[:4] == (10, 20, 30)).all() and (found[4:] == 255).all()


def test_a_photo_is_turned_as_its_camera_says(tmp_path):
    pixels = np.zeros([8, 8, 3], np.uint8)
    pixels[:, :4] = 250
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned by 90 degrees clockwise: left goes up.
    found = convert(tmp_path, Image.fromarray(pixels), exif=exif)
    assert (found[:4] == 250).all() and (found[4:] == 0).all()


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.fromarray(np.full([8, 8], value, np.uint8)) for value in (50, 200)]
    found = convert(tmp_path, frames[0], name='x.gif', save_all=True, append_images=frames[1:])
    assert (found == 50).all()


def png_header(width, height):
    header = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    body = b'IDAT' + zlib.compress(bytes(1000))
    chunks = [struct.pack('>I', len(c) - 4) + c + struct.pack('>I', zlib.crc32(c)) for c in (header, body, b'IEND')]
    return records.PNG_SIGNATURE + b''.join(chunks)


BAD = dict(
    empty=b'',
    text=b'not a picture',
    cut=None,
    bomb=png_header(50000, 50000),
    smaller_bomb=png_header(9000, 9000),
    no_pixels=png_header(100, 100),
    html=b'<!DOCTYPE html><html></html>',
)


def bad_picture(name):
    if BAD[name] is not None:
        return BAD[name]
    file = io.BytesIO()
    Image.fromarray(fakes.random_images(1, 50, 50, 3)[0]).save(file, 'JPEG')
    return file.getvalue()[:500]


@pytest.mark.parametrize('name', BAD)
def test_an_unreadable_picture_says_why(tmp_path, name):
    (tmp_path / 'x.jpg').write_bytes(bad_picture(name))
    with pytest.raises(ValueError, match=r'.'):
        pictures.convert(str(tmp_path / 'x.jpg'), (8, 8), 3)


# --- A folder ---


def test_a_folder_becomes_a_dataset(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / 'pictures', unlabeled=7)
    for name in ('train/.hidden/x.png', 'train/crow/.x.png', 'train/crow/notes.txt', 'unlabeled/Thumbs.db'):
        os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
        with open(os.path.join(folder, name), 'w') as f:
            f.write('no picture')
    run(monkeypatch, folder, tmp_path / 'data', size='10x12', augment='mirror,shift2')
    family = data_pair.find_family(str(tmp_path / 'data'), 'birds')
    assert family == data_pair.Family(12, 10, 3, 3, True, 2, parts=('train', 'unlabeled'), classes=tuple(CLASSES))
    for part, each in (('train', 6), ('test', 2)):
        images, labels = read(tmp_path / 'data', part)
        assert images.shape == (3 * each, 12, 10, 3)
        assert np.bincount(labels).tolist() == [each] * 3
        assert np.abs(images.astype(int) - (40 + 80 * labels)[:, None, None, None]).max() <= 2
    assert read(tmp_path / 'data', 'train')[1].tolist() != sorted(read(tmp_path / 'data', 'train')[1])
    images, labels = read(tmp_path / 'data', 'unlabeled')
    expected = {fakes.random_images(1, 12, 10, 3, i).tobytes() for i in range(7)}
    assert {image.tobytes() for image in images} == expected and (labels == -1).all()

    files = data_pair.train_files(str(tmp_path / 'data'), 'birds')
    targets = data_pair.split_files(str(tmp_path / 'data' / 'SSL'), 'birds', 1, 6)
    create_split.create(create_split.Source('birds', files), targets, 6, 1)
    dataset = DATASETS['birds.1@6-3'](str(tmp_path / 'data'))
    assert [
        len(x)
        for x in (dataset.sets['labeled'], dataset.sets['unlabeled'], dataset.sets['valid'], dataset.sets['test'])
    ] == [6, 16, 3, 6]
    assert np.bincount(dataset.sets['labeled'].labels).tolist() == [2, 2, 2]
    assert (dataset.height, dataset.width, dataset.family.mirror, dataset.family.shift) == (12, 10, True, 2)


def test_the_default_augmentation_fits_the_size(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / 'pictures')
    for size, shift in (('32x32', 4), ('96x64', 8), ('8x8', 1), ('4x4', 0)):
        run(monkeypatch, folder, tmp_path / size, size=size)
        family = data_pair.find_family(str(tmp_path / size), 'birds')
        assert (family.mirror, family.shift) == (True, shift)


def test_grey_pictures(tmp_path, monkeypatch):
    run(monkeypatch, make_folder(tmp_path / 'pictures'), tmp_path / 'data', colors=1, augment='')
    images, labels = read(tmp_path / 'data', 'train')
    assert images.shape == (18, 8, 8, 1)
    assert np.abs(images.astype(int) - (40 + 80 * labels)[:, None, None, None]).max() <= 2
    assert not data_pair.find_family(str(tmp_path / 'data'), 'birds').mirror


@pytest.mark.parametrize('fraction,each', [(0.2, 2), (0.5, 5), (0.01, 1)])
def test_a_test_set_can_be_set_aside(tmp_path, monkeypatch, fraction, each):
    folder = make_folder(tmp_path / 'pictures', each=10, test=0)
    found = []
    for i, seed in enumerate((1, 1, 2)):
        run(monkeypatch, folder, tmp_path / str(i), test_fraction=fraction, seed=seed)
        assert np.bincount(read(tmp_path / str(i), 'test')[1]).tolist() == [each] * 3
        assert np.bincount(read(tmp_path / str(i), 'train')[1]).tolist() == [10 - each] * 3
        found.append([data_pair.record_file(str(tmp_path / str(i)), 'birds', part) for part in ('train', 'test')])
    contents = [[list(records.raw(path)) for path in paths] for paths in found]
    assert contents[0] == contents[1] and contents[0] != contents[2]


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(2, 30), min_size=2, max_size=5),
    fraction=st.floats(0.01, 0.6),
    seed=st.integers(0, 2**32 - 1),
)
def test_setting_aside_is_stratified_and_loses_nothing(counts, fraction, seed):
    files = [('%d/%d' % (label, i), label) for label, count in enumerate(counts) for i in range(count)]
    rest, aside = pictures.set_aside(files, fraction, seed)
    assert sorted(rest + aside) == sorted(files)
    for label, count in enumerate(counts):
        assert sum(found == label for _, found in aside) == max(1, round(fraction * count))


# --- Unreadable pictures ---


@pytest.fixture
def spoilt(tmp_path):
    """A folder with two unreadable pictures among the training ones and one among the unlabelled ones."""
    folder = make_folder(tmp_path / 'pictures', unlabeled=3)
    for i, name in enumerate(['train/crow/bad0.jpg', 'train/robin/bad1.png', 'unlabeled/a/bad2.png']):
        with open(os.path.join(folder, name), 'wb') as f:
            f.write(bad_picture(('text', 'bomb', 'empty')[i]))
    return folder


def test_unreadable_pictures_are_listed_and_stop_the_command(tmp_path, spoilt, monkeypatch, capsys):
    with pytest.raises(utils.Error, match=r'3 pictures cannot be read, see above: .*--skip_bad'):
        run(monkeypatch, spoilt, tmp_path / 'data')
    lines = [line for line in capsys.readouterr().err.splitlines() if '/bad' in line]
    assert len(lines) == 3
    assert 'bad1.png: claims 50000 x 50000 pixels' in lines[1] or 'bad1.png' in ''.join(lines)
    assert not (tmp_path / 'data').exists()


def test_unreadable_pictures_can_be_left_out(tmp_path, spoilt, monkeypatch):
    run(monkeypatch, spoilt, tmp_path / 'data', skip_bad=True)
    assert np.bincount(read(tmp_path / 'data', 'train')[1]).tolist() == [6, 6, 6]
    assert len(read(tmp_path / 'data', 'unlabeled')[1]) == 3


def test_a_class_must_keep_a_picture(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / 'pictures', each=2)
    for name in os.listdir(os.path.join(folder, 'train', 'crow')):
        with open(os.path.join(folder, 'train', 'crow', name), 'wb') as f:
            f.write(b'?')
    with pytest.raises(utils.Error, match="no picture of class 'crow' in train can be read"):
        run(monkeypatch, folder, tmp_path / 'data', skip_bad=True)
    assert not (tmp_path / 'data').exists()


# --- What cannot be ---


BAD_FLAGS = [
    (dict(name=None), 'needs --name'),
    (dict(name='cifar10'), "name 'cifar10'"),
    (dict(name='../x'), "name '../x'"),
    (dict(name=''), '--name'),
    (dict(name='a.b'), "name 'a.b'"),
    (dict(size='32'), 'size=32: give WIDTHxHEIGHT'),
    (dict(size='0x8'), 'size=0x8'),
    (dict(size='9999x8'), 'size=9999x8'),
    (dict(size='8x-8'), 'size='),
    (dict(colors=2), '--colors must be 1'),
    (dict(augment='shift8'), 'cannot be shifted by 8'),
    (dict(augment='rotate'), 'augment=rotate'),
    (dict(augment='shift'), 'augment=shift'),
    (dict(test_fraction=0.2), 'leave --test_fraction out'),
    (dict(from_folder='/nowhere'), '/nowhere/train is missing'),
]


@pytest.mark.parametrize('flags,words', BAD_FLAGS, ids=[str(flags) for flags, _ in BAD_FLAGS])
def test_bad_flags_change_nothing(tmp_path, monkeypatch, flags, words):
    folder = make_folder(tmp_path / 'pictures', each=1, test=1)
    flags = dict(dict(folder=folder), **flags)
    with pytest.raises(utils.Error, match=words) as error:
        run(monkeypatch, flags.pop('from_folder', flags.pop('folder')), tmp_path / 'data', **flags)
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'data').exists()


def test_folders_laid_out_otherwise_are_refused(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / 'pictures', test=0)

    def refused(words, **flags):
        with pytest.raises(utils.Error, match=words):
            run(monkeypatch, folder, tmp_path / 'data', **flags)

    refused('test is missing: give --test_fraction')
    for fraction in (0, 1, -1, 2, float('nan')):
        refused('must be between 0 and 1', test_fraction=fraction)
    refused('too few to set 0.95 aside', test_fraction=0.95)
    fakes.save_picture(os.path.join(folder, 'test', 'owl', 'x.png'), np.zeros([8, 8, 3], np.uint8))
    fakes.save_picture(os.path.join(folder, 'test', 'crow', 'x.png'), np.zeros([8, 8, 3], np.uint8))
    refused("has the class 'owl', which the training pictures lack")
    os.rename(os.path.join(folder, 'test', 'owl'), os.path.join(folder, 'test', 'robin'))
    refused("test has no picture of class 'blackbird'")
    assert not (tmp_path / 'data').exists()


def test_an_existing_dataset_is_never_overwritten(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / 'pictures')
    run(monkeypatch, folder, tmp_path / 'data')
    for name in sorted(os.listdir(tmp_path / 'data')):
        content = (tmp_path / 'data' / name).read_bytes()
        with pytest.raises(utils.Error, match='exists already'):
            run(monkeypatch, folder, tmp_path / 'data', size='10x10')
        assert (tmp_path / 'data' / name).read_bytes() == content
    os.remove(tmp_path / 'data' / 'birds.json')
    before = sorted(os.listdir(tmp_path / 'data'))
    with pytest.raises(utils.Error, match=r'birds-train.tfrecord exists already'):
        run(monkeypatch, folder, tmp_path / 'data')
    assert sorted(os.listdir(tmp_path / 'data')) == before


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / 'pictures')
    convert, calls = pictures.convert, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 20:  # Among the test pictures: those for training are written.
            raise KeyboardInterrupt
        return convert(*args)

    monkeypatch.setattr(pictures, 'convert', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, folder, tmp_path / 'data')
    assert not (tmp_path / 'data').exists()
