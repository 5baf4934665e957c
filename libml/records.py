"""Records on disk: files of tf.train.Example with `image` (PNG bytes) and `label` (int64).

An example may have a `group` (int64) as well: no group is both in training and in validation, or in training and test.

Reading checks everything (checksums, parsing, labels, sizes, decoding), so that an error names the file and the number
of the record, counted from 0. PNGs are encoded and decoded in whole batches.
"""

import functools
import hashlib
import itertools
import mmap
import os
import struct
from typing import NamedTuple

import numpy as np
import tensorflow.compat.v1 as tf
from google.protobuf.message import DecodeError

from libml import files, utils
from libml.cli import progress

MAX_SIDE = 4096  # Pixels. An image beyond this is damage or a decompression bomb: no dataset here comes near.
BATCH_BYTES = 1 << 24  # Decoded bytes handled at a time: large enough to be fast, small enough not to be noticed.
DECODED = 128  # PNGs that one run of a graph decodes, an op for each: a loop in the graph would take twice as long.
AHEAD = 4 << 20  # Bytes that the system is asked to read ahead. A file on disk is then walked five times as fast.
PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
PNG_COLORS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}  # By PNG's color type: grey, RGB, palette, grey + alpha, RGB + alpha.
PNG_ALPHA = (4, 6)
NO_CLASS = -1  # The label of a record without a class.
NO_GROUP = -1  # The group of a record that belongs to none.
LABELS = 1 << 31  # Labels are below it: they are kept as int32.
FAR = (1 << 63) - 1  # A position beyond every file, for where a record of absurd length would end.


# --- PNG ---


def read_png_shape(png):
    """Returns (height, width, colors) from a PNG's header, None where the bytes are no PNG of 1 or 3 colors."""
    if len(png) < 33 or png[:8] != PNG_SIGNATURE or png[12:16] != b'IHDR':
        return None
    width, height, _, color_type = struct.unpack('>IIBB', png[16:26])
    colors = PNG_COLORS.get(color_type)
    return (height, width, colors) if colors and height and width else None


def _make_session(graph):
    """A CPU session on threads of this module, so that it can run inside a Python function of another session."""
    config = utils.get_config()
    config.device_count['GPU'] = 0
    config.session_inter_op_thread_pool.add(global_name=__name__)
    return tf.Session(graph=graph, config=config)


@functools.lru_cache(maxsize=8)
def _make_encoder(shape):
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.uint8, [None, *shape])
        # Stored, not compressed: a third more bytes of a small photograph, which is read in half the time.
        return _make_session(graph).make_callable(tf.image.encode_png(images, compression=0), [images])


@functools.lru_cache(maxsize=32)
def _make_decoder(shape, count):
    with tf.Graph().as_default() as graph:
        pngs = tf.placeholder(tf.string, [count])
        images = [tf.image.decode_png(png, channels=shape[-1]) for png in tf.unstack(pngs)]
        images = tf.stack([tf.ensure_shape(image, shape) for image in images])
        return _make_session(graph).make_callable(images, [pngs])


def encode(images):
    """Returns the PNGs, a list of n bytes objects, of images uint8 [n, H, W, C], C = 1 or 3.

    All together take far less time than one by one.
    """
    images = np.asarray(images, np.uint8)
    return list(_make_encoder(images.shape[1:])(images)) if len(images) else []


def decode(pngs, shape):
    """Decodes n PNGs of one shape (H, W, C), a list, to uint8 [n, H, W, C]. See read_png_shape: it checks a header.

    Raises:
        tf.errors.OpError: one of them does not decode.
    """
    images = np.empty([len(pngs), *shape], np.uint8)
    begin = 0
    while left := len(pngs) - begin:
        size = min(DECODED, 1 << (left.bit_length() - 1))  # A power of two: few graphs serve every number.
        images[begin : begin + size] = _make_decoder(tuple(shape), size)(pngs[begin : begin + size])
        begin += size
    return images


def choose_batch_size(shape):
    """Returns how many images of a shape (H, W, C) are handled at a time."""
    return max(1, min(1024, BATCH_BYTES // int(np.prod(shape))))


# --- Writing ---


class Example(NamedTuple):
    """What a record holds: PNG bytes, the class or NO_CLASS, the group or NO_GROUP."""

    png: bytes
    label: int
    group: int = NO_GROUP


def serialize(png, label, group=NO_GROUP):
    """Returns the bytes of a tf.train.Example."""
    numbers = dict(label=label) if group == NO_GROUP else dict(label=label, group=group)
    feature = {name: tf.train.Feature(int64_list=tf.train.Int64List(value=[int(n)])) for name, n in numbers.items()}
    feature['image'] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[png]))
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(deterministic=True)


def write(path, examples, total=None):
    """Writes a new record file of an iterable of Example, or of (PNG bytes, label); returns the number of records.

    total is how many there will be, for the progress bar. Raises utils.Error if the file exists, or the disk is full.
    """
    with files.creating(path) as part:
        return write_part(part, itertools.starmap(serialize, examples), total)


def write_part(part, examples, total=None):
    """Writes serialized examples to a file given by `files.creating`, with a progress bar; returns their number."""
    n, path = 0, part.rsplit('.part-', 1)[0]
    bar = progress.make_bar(examples, os.path.basename(path), total, unit='rec', leave=False)
    try:
        with tf.io.TFRecordWriter(part) as writer, bar:
            for example in bar:
                writer.write(example)
                n += 1
    except tf.errors.OpError as error:  # A full disk comes as one of several of these.
        raise utils.Error('cannot write %s (%s)' % (path, error.message)) from error
    return n


# --- Reading ---


def read(
    path: str, nclass: int | None = None, shape: tuple[int, int, int] | None = None, unlabeled: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (images uint8 [n, H, W, C], labels int32 [n]) of a file. Arguments: see RecordFile.examples."""
    return RecordFile(path).read(nclass, shape, unlabeled)[:2]


class RecordFile:
    """A record file that is there to be read. Opening walks over its index once; the pictures are read when asked for.

    The TFRecord format: each record is a length (8 bytes), its checksum (4), the data, the data's checksum (4).

    Attributes:
        path: the file.
        begin: int64 [n + 1], where each record begins in the file, and where the last one ends.
        fingerprint: hexadecimal SHA-256 over the length and the data's checksum of each record, in order. It stands
            for the content: another picture, label or order gives another fingerprint.
    """

    def __init__(self, path, empty=False):
        """Opens a file; raises utils.Error if it is missing, cut or damaged, or, unless `empty`, without records."""
        self.path = path
        utils.refuse(not os.path.isfile(path), '%s is missing: scripts/create_datasets.py makes it', path)
        with open(path, 'rb') as f:
            size = os.fstat(f.fileno()).st_size
            utils.refuse(not size and not empty, '%s is empty: remove it and make it again', path)
            self.begin, self.fingerprint = _walk(f.fileno(), size)
            self._bytes = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if size else b''
        if self.begin[-1] != size:
            n = len(self) - (self.begin[-1] > size)
            for _ in self.raw(n):  # A wrong length may end the walk later than where it stands: then a checksum fails.
                pass
            raise utils.Error('%s is cut in the middle of record %d: remove it and make it again' % (path, n))

    def __len__(self):
        return len(self.begin) - 1

    def serialized(self, number):
        """Returns the bytes of a record's tf.train.Example; the checksum is not looked at."""
        return self._bytes[self.begin[number] + 12 : self.begin[number + 1] - 4]

    def raw(self, n=None):
        """Yields the bytes of the first n records, None: of all; raises utils.Error if a checksum is wrong."""
        count = 0
        try:
            for record in itertools.islice(tf.python_io.tf_record_iterator(self.path), n):
                yield record
                count += 1
        except tf.errors.OpError as error:
            raise self.damaged(count, 'is damaged (%s)' % error.message) from error

    def damaged(self, number, what):
        """Returns the Error for a bad record."""
        return utils.Error('%s: record %d %s; remove the file and make it again' % (self.path, number, what))

    def examples(self, nclass=None, shape=None, unlabeled=False):
        """Yields the checked Example of each record; only the decoding of the pixels is left to do.

        Args:
            nclass: labels must be below it; None: any.
            shape: (H, W, C) of every image; None: that of the first one.
            unlabeled: whether a record may be without a class (label -1 or absent).

        Raises:
            utils.Error: file and number of the first bad record.
        """
        for number, record in enumerate(self.raw()):
            try:
                example = parse(record)
            except ValueError as error:
                raise self.damaged(number, error) from error
            if fault := find_fault(example.png, example.label, shape, nclass, unlabeled):
                raise self.damaged(number, fault)
            shape = shape or read_png_shape(example.png)
            yield example

    def read(self, nclass=None, shape=None, unlabeled=False):
        """Returns images uint8 [n, H, W, C], labels int32 [n], groups int64 [n] of all records.

        Arguments, and what is raised: see `examples`. A file without records needs a shape.
        """
        shape = shape or self.check(nclass, None, unlabeled)[0]
        images = np.empty([len(self), *shape], np.uint8)
        _, labels, groups = self._scan(nclass, shape, unlabeled, images.__setitem__)
        return images, labels, groups

    def check(self, nclass=None, shape=None, unlabeled=False, pixels=False):
        """Checks all records, also their pixels if asked for; returns (H, W, C), labels int32 [n], groups int64 [n].

        The other arguments, and what is raised: see `examples`.
        """
        return self._scan(nclass, shape, unlabeled, (lambda numbers, images: None) if pixels else None)

    def _scan(self, nclass, shape, unlabeled, take):
        """As `check`; gives the decoded pictures, batch by batch, to take(numbers, images), a function or None."""
        labels, groups = np.full([len(self)], NO_CLASS, np.int32), np.full([len(self)], NO_GROUP, np.int64)
        examples, first = self.examples(nclass, shape, unlabeled), 0
        while batch := list(itertools.islice(examples, choose_batch_size(shape) if shape else 1)):
            numbers = range(first, first + len(batch))
            pngs, labels[numbers], groups[numbers] = zip(*batch, strict=True)
            shape = tuple(shape or read_png_shape(pngs[0]))
            if take:
                take(numbers, self.decode(list(pngs), shape, numbers))
            first += len(batch)
        if self.path.endswith('-unlabeled.tfrecord'):  # The published script writes 0, which means nothing.
            labels[:] = NO_CLASS
        return shape, labels, groups

    def gather(self, numbers, shape):
        """Returns the decoded images of some records, uint8 [k, *shape]; raises what `read` raises."""
        return self.decode([parse(self.serialized(number)).png for number in numbers], shape, numbers)

    def decode(self, pngs, shape, numbers):
        """As the function `decode`; the utils.Error says which of the records `numbers` does not decode."""
        try:
            return decode(pngs, shape)
        except tf.errors.OpError:
            for png, number in zip(pngs, numbers, strict=True):
                try:
                    decode([png], shape)
                except tf.errors.OpError as error:
                    raise self.damaged(number, 'has a picture that does not decode') from error
            raise


def _walk(file, size):
    """Returns RecordFile's `begin` and `fingerprint` of a file descriptor; begin[-1] is not size if the file is cut."""
    begin, digest, ahead = [0], hashlib.sha256(), 0
    head = os.pread(file, 12, 0)  # A record's length, and its checksum: never zeros alone, as a file's hole has them.
    while begin[-1] + 16 <= size and any(head):
        if begin[-1] >= ahead and hasattr(os, 'posix_fadvise'):  # The disk reads on, for the walk and what follows.
            os.posix_fadvise(file, begin[-1], 2 * AHEAD, os.POSIX_FADV_WILLNEED)
            ahead = begin[-1] + AHEAD
        end = begin[-1] + 16 + int.from_bytes(head[:8], 'little')
        begin.append(min(end, FAR))
        if end <= size:
            around = os.pread(file, 16, end - 4)  # The checksum of the data, and the head of the next record.
            digest.update(head[:8] + around[:4])
            head = around[4:]
    return np.array(begin, np.int64), digest.hexdigest()


def parse(record):
    """Returns the Example of a record's bytes; raises ValueError, whose text follows on 'record 7', if it is none."""
    try:
        features = tf.train.Example.FromString(record).features.feature
    except DecodeError:
        raise ValueError('is not a tf.train.Example') from None
    image = features['image'].bytes_list.value if 'image' in features else ()
    label = features['label'].int64_list.value if 'label' in features else (NO_CLASS,)
    group = features['group'].int64_list.value if 'group' in features else (NO_GROUP,)
    if not len(image) == len(label) == len(group) == 1:
        raise ValueError('does not have one image and one label, and at most one group')
    return Example(image[0], label[0], group[0])


def find_fault(png, label, shape, nclass, unlabeled):
    """Returns why an example is not of that shape and those classes: '', or a text that continues 'record 7 ...'."""
    if not (0 <= label < (nclass or LABELS) or (unlabeled and label == NO_CLASS)):
        return 'has label %d, not one of 0 to %d' % (label, (nclass or LABELS) - 1)
    found = read_png_shape(png)
    if found is None:
        return 'does not hold a grey or RGB picture in PNG format'
    if png[24] == 16 or png[25] in PNG_ALPHA or b'tRNS' in png[33 : png.find(b'IDAT', 33)]:
        text = 'is a picture with %s: save it with 8 bits a value, and without transparency'
        return text % ('16 bits a value' if png[24] == 16 else 'transparent parts')
    if shape and found != tuple(shape):
        return 'is a picture of %dx%dx%d' % found + ' (height, width, colors), not %dx%dx%d' % tuple(shape)
    if max(found[:2]) > MAX_SIDE:
        return 'claims a picture of %dx%d pixels; at most %d a side are read' % (*found[:2], MAX_SIDE)
    return ''
