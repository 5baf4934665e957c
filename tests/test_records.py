"""Records: what is written is read, and whatever is damaged is told with the file's name and the record's number."""

import hashlib
import io
import os
import struct
import tempfile

import fakes
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from libml import files, records, utils

SHAPE = (6, 5, 3)
few = settings(max_examples=25, deadline=None)


def write_serialized(path, examples):
    """Writes a record file of serialized examples; returns their number."""
    with files.creating(path) as part:
        return records.write_part(part, examples)


def write(path, n=5, shape=SHAPE, change=None):
    """Writes n records of random pictures with labels 0, 1, ...; `change` maps numbers to serialized examples."""
    images = fakes.random_images(n, *shape)
    serialized = [records.serialize(png, label) for label, png in enumerate(records.encode(images))]
    for number, example in (change or {}).items():
        serialized[number] = example
    write_serialized(str(path), serialized)
    return images


def png(pixels, **options):
    """Returns the PNG bytes of a picture, uint8 [H, W, C] or a PIL.Image, as Pillow writes them."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file := io.BytesIO(), **{'format': 'PNG', **options})
    return file.getvalue()


def masked_crc32c(content):
    """TFRecord's checksum, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# --- Round trips ---


@few
@given(
    n=st.integers(1, 9),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])),
    seed=st.integers(0, 99),
)
def test_what_is_written_is_read(n, shape, seed):
    images = fakes.random_images(n, *shape, seed)
    labels = np.random.RandomState(seed).randint(0, 7, n)
    assert records.encode(images) == [fakes.encode_png(image) for image in images]
    assert records.encode(images[:0]) == [] and records.decode([], shape).shape == (0, *shape)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'x.tfrecord')
        assert records.write(path, zip(records.encode(images), labels, strict=True)) == n
        for found in records.read(path, 7, shape), records.read(path):
            np.testing.assert_array_equal(found[0], images)
            np.testing.assert_array_equal(found[1], labels)
            assert [x.dtype for x in found] == [np.uint8, np.int32]
        file = records.RecordFile(path)
        order = np.random.RandomState(seed).permutation(n)
        np.testing.assert_array_equal(file.gather(order, shape), images[order])
        np.testing.assert_array_equal(file.check(7)[1], labels)
        assert [file.serialized(i) for i in range(n)] == list(records.RecordFile(path).raw())
        assert os.listdir(folder) == ['x.tfrecord']


def test_records_are_what_the_published_scripts_parse(tmp_path):
    images = write(tmp_path / 'x')
    features = dict(image=tf.FixedLenFeature([], tf.string), label=tf.FixedLenFeature([], tf.int64))
    with tf.Session() as session:
        for label, record in enumerate(records.RecordFile(str(tmp_path / 'x')).raw()):
            example = tf.parse_single_example(record, features)
            image, found = session.run([tf.image.decode_image(example['image']), example['label']])
            np.testing.assert_array_equal(image, images[label])
            assert found == label


def test_pngs_of_other_writers_are_read(tmp_path):
    pixels = fakes.random_images(1, *SHAPE)[0]
    palette = Image.fromarray(pixels).quantize()
    change = {1: png(pixels, compress_level=9), 2: png(palette)}
    write(tmp_path / 'x', change={k: records.serialize(v, 0) for k, v in change.items()})
    images, _ = records.read(str(tmp_path / 'x'))
    for image, original in zip(images[1:3], [pixels, np.asarray(palette.convert('RGB'))], strict=True):
        np.testing.assert_array_equal(image, original)


def test_a_missing_label_is_no_class_where_that_is_allowed(tmp_path):
    example = tf.train.Example.FromString(records.serialize(fakes.encode_png(fakes.random_images(1, *SHAPE)[0]), 0))
    del example.features.feature['label']
    write(tmp_path / 'x', change={1: example.SerializeToString()})
    path = str(tmp_path / 'x')
    assert records.read(path, 5, SHAPE, unlabeled=True)[1].tolist() == [0, records.NO_CLASS, 2, 3, 4]
    with pytest.raises(utils.Error, match='record 1 has label -1, not one of 0 to 4'):
        records.read(path, 5, SHAPE)


def test_a_group_is_kept(tmp_path):
    picture = png(fakes.random_images(1, *SHAPE)[0])
    examples = [(picture, 0), records.Example(picture, 1, 7), records.Example(picture, records.NO_CLASS, 0)]
    records.write(str(tmp_path / 'x'), examples)
    file = records.RecordFile(str(tmp_path / 'x'))
    for found in file.check(unlabeled=True), file.read(unlabeled=True), file.read(None, SHAPE, unlabeled=True):
        assert found[1].tolist() == [0, 1, records.NO_CLASS] and found[2].tolist() == [records.NO_GROUP, 7, 0]
    assert list(file.examples(unlabeled=True)) == [records.Example(*example) for example in examples]
    assert b'group' not in file.serialized(0)  # Records without groups stay as the published scripts write them.


def test_a_file_may_be_empty_where_that_is_expected_and_is_never_overwritten(tmp_path):
    path = str(tmp_path / 'x')
    assert records.write(path, []) == 0
    with pytest.raises(utils.Error, match='x exists already'):
        records.write(path, [])
    with pytest.raises(utils.Error, match='x is empty'):
        records.RecordFile(path)
    file = records.RecordFile(path, empty=True)
    assert (len(file), list(file.raw())) == (0, [])
    images, labels, groups = file.read(3, SHAPE)
    assert (images.shape, len(labels), len(groups)) == ((0, *SHAPE), 0, 0)


# --- Fingerprints ---


def fingerprint(content):
    """The fingerprint as the specification words it: of (length, masked checksum of the data) of each record."""
    digest, begin = hashlib.sha256(), 0
    while begin < len(content):
        (length,) = struct.unpack_from('<Q', content, begin)
        data = content[begin + 12 : begin + 12 + length]
        digest.update(struct.pack('<QI', length, masked_crc32c(data)))
        begin += length + 16
    return digest.hexdigest()


@settings(max_examples=10, deadline=None)
@given(examples=st.lists(st.binary(max_size=40), max_size=5))
def test_a_fingerprint_is_that_of_lengths_and_checksums(examples):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'x')
        write_serialized(path, examples)
        with open(path, 'rb') as f:
            assert records.RecordFile(path, empty=True).fingerprint == fingerprint(f.read())


# --- Damage ---


def two_labels():
    example = tf.train.Example.FromString(records.serialize(GOOD, 0))
    example.features.feature['label'].int64_list.value.append(1)
    return example.SerializeToString()


PIXELS = fakes.random_images(1, *SHAPE)[0]
GOOD = png(PIXELS)
BAD_RECORDS = {  # What is wrong: the bytes of the record, words of the line.
    'no example': (b'\xff\xff\xff', 'is not a tf.train.Example'),
    'nothing': (b'', 'does not have one image and one label'),
    'two labels': (two_labels(), 'does not have one image and one label'),
    'large label': (records.serialize(GOOD, 5), 'has label 5, not one of 0 to 4'),
    'negative label': (records.serialize(GOOD, -1), 'has label -1'),
    'enormous label': (records.serialize(GOOD, 2**62), 'has label %d' % 2**62),
}
BAD_PICTURES = {
    'jpeg': (png(PIXELS, format='JPEG'), 'does not hold a grey or RGB picture in PNG format'),
    'empty': (b'', 'does not hold a grey or RGB picture'),
    'other shape': (png(fakes.random_images(1, 7, 5, 3)[0]), 'is a picture of 7x5x3 .* not 6x5x3'),
    'other colors': (png(PIXELS[..., 0]), 'is a picture of 6x5x1 .* not 6x5x3'),
    'alpha': (png(np.zeros([6, 5, 4], np.uint8)), 'is a picture with transparent parts: save'),
    'grey alpha': (png(np.zeros([6, 5, 2], np.uint8)), 'is a picture with transparent parts'),
    'palette alpha': (png(Image.new('P', (5, 6)), transparency=0), 'transparent parts'),
    'sixteen bits': (png(np.zeros([6, 5], np.uint16)), 'is a picture with 16 bits a value'),
    'undecodable': (GOOD[:45] + bytes(10) + GOOD[55:], 'has a picture that does not decode'),
    'bomb': (fakes.make_bomb(50000), 'is a picture of 50000x50000x3'),
}
BAD_RECORDS.update({name: (records.serialize(png, 0), words) for name, (png, words) in BAD_PICTURES.items()})


@pytest.mark.parametrize('name', BAD_RECORDS)
@pytest.mark.parametrize('number', [0, 3])
def test_a_bad_record_is_named(tmp_path, name, number):
    content, words = BAD_RECORDS[name]
    path = str(tmp_path / 'bad.tfrecord')
    write(path, change={number: content})
    with pytest.raises(utils.Error, match='bad.tfrecord: record %d .*%s' % (number, words)) as error:
        records.read(path, 5, SHAPE)
    assert '\n' not in str(error.value)


def test_a_bomb_is_refused_where_no_shape_is_expected(tmp_path):
    write(tmp_path / 'x', n=1, change={0: records.serialize(fakes.make_bomb(50000), 0)})
    with pytest.raises(utils.Error, match='record 0 claims a picture of 50000x50000 pixels'):
        records.read(str(tmp_path / 'x'))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The bytes of a record file, and where its records begin."""
    path = tmp_path_factory.mktemp('whole') / 'x'
    write(path)
    return path.read_bytes(), records.RecordFile(str(path)).begin.tolist()


def read_bytes(content):
    """Reads a record file of given bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'x')
        with open(path, 'wb') as f:
            f.write(content)
        return records.read(path, 5, SHAPE)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_no_flipped_bit_goes_unseen(whole, data):
    content, begin = whole
    position = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[position] ^= 1 << data.draw(st.integers(0, 7))
    number = int(np.searchsorted(begin, position, 'right')) - 1
    with pytest.raises(utils.Error, match='record %d' % number):
        read_bytes(changed)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_cut_goes_unseen(whole, data):
    content, begin = whole
    length = data.draw(st.integers(1, len(content) - 1).filter(lambda x: x not in begin))
    number = int(np.searchsorted(begin, length, 'right')) - 1
    with pytest.raises(utils.Error, match='is cut in the middle of record %d' % number):
        read_bytes(content[:length])
    with pytest.raises(utils.Error, match='is cut in the middle of record %d' % (5 + number)):
        read_bytes(content + content[:length])


@few
@given(content=st.binary(min_size=1, max_size=200))
def test_rubbish_is_refused(content):
    with pytest.raises(utils.Error, match='record 0'):
        read_bytes(content)


def test_a_file_of_zeros_is_not_walked_to_its_end(tmp_path):
    path = tmp_path / 'hole.tfrecord'
    path.touch()
    os.truncate(path, 1 << 34)  # As after a crash: a hole, which takes no room.
    with pytest.raises(utils.Error, match='is cut in the middle of record 0'):
        records.read(str(path))


@pytest.mark.parametrize('length', [2**31, 2**62, 2**64 - 1])
def test_an_enormous_length_with_a_right_checksum_is_refused(whole, length):
    head = struct.pack('<Q', length)
    assert struct.pack('<I', masked_crc32c(whole[0][:8])) == whole[0][8:12]  # The checksum here is TFRecord's.
    with pytest.raises(utils.Error, match='is cut in the middle of record 5'):
        read_bytes(whole[0] + head + struct.pack('<I', masked_crc32c(head)) + bytes(100))
