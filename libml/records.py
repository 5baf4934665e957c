"""Records on disk: files of tf.train.Example with `image` (PNG bytes) and `label` (int64). Imports utils only.

A file is read in one pass that checks everything (checksums, parsing, labels, sizes, decoding), so that what is wrong
is told with the file's name and the record's number, counted from 0. PNGs are encoded and decoded in whole batches.
"""

import contextlib
import functools
import itertools
import mmap
import os
import struct
import uuid

from libml import utils

import numpy as np
import tensorflow.compat.v1 as tf
from google.protobuf.message import DecodeError
from tqdm import tqdm

MAX_SIDE = 4096  # Pixels. An image beyond this is damage or a decompression bomb: no dataset here comes near.
BATCH_BYTES = 1 << 24  # Decoded bytes handled at a time: large enough to be fast, small enough not to be noticed.
DECODED = 128  # PNGs that one run of a graph decodes, an op for each: a loop in the graph would take twice as long.
PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
PNG_COLORS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}  # By PNG's color type: grey, RGB, palette, grey + alpha, RGB + alpha.
NO_CLASS = -1  # The label of a record without a class.
NO_MORE = 1 << 31  # Labels are kept as int32.


# --- PNG ---


def png_shape(png):
    """Returns (height, width, colors) from a PNG's header, None where the bytes are no PNG of 1 or 3 colors."""
    if len(png) < 33 or png[:8] != PNG_SIGNATURE or png[12:16] != b'IHDR':
        return None
    width, height, _, color_type = struct.unpack('>IIBB', png[16:26])
    colors = PNG_COLORS.get(color_type)
    return (height, width, colors) if colors and height and width else None


def _session(graph):
    """A CPU session on threads of this module, so that it can run inside a Python function of another session."""
    config = utils.get_config()
    config.device_count['GPU'] = 0
    config.session_inter_op_thread_pool.add(global_name=__name__)
    return tf.Session(graph=graph, config=config)


@functools.lru_cache(maxsize=8)
def _encoder(shape):
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.uint8, [None, *shape])
        # Stored, not compressed: a third more bytes of a small photograph, which is read in half the time.
        return _session(graph).make_callable(tf.image.encode_png(images, compression=0), [images])


@functools.lru_cache(maxsize=32)
def _decoder(shape, count):
    with tf.Graph().as_default() as graph:
        pngs = tf.placeholder(tf.string, [count])
        images = [tf.image.decode_png(png, channels=shape[-1]) for png in tf.unstack(pngs)]
        images = tf.stack([tf.ensure_shape(image, shape) for image in images])
        return _session(graph).make_callable(images, [pngs])


def encode(images):
    """Encodes images as PNG, many times faster than one by one.

    Args:
        images: uint8 [n, H, W, C], C = 1 or 3.

    Returns:
        A list of n bytes objects.
    """
    images = np.asarray(images, np.uint8)
    return list(_encoder(images.shape[1:])(images)) if len(images) else []


def encode_png(image):
    """Encodes one image, uint8 [H, W, C] with C = 1 or 3, as PNG bytes."""
    return encode(image[None])[0]


def decode(pngs, shape):
    """Decodes PNGs of one known shape, whose headers were checked (png_shape).

    Args:
        pngs: list of n bytes objects.
        shape: (H, W, C).

    Returns:
        uint8 [n, H, W, C].

    Raises:
        tf.errors.OpError: one of them does not decode.
    """
    images = np.empty([len(pngs), *shape], np.uint8)
    begin = 0
    while left := len(pngs) - begin:
        size = min(DECODED, 1 << (left.bit_length() - 1))  # A power of two: few graphs serve every number.
        images[begin : begin + size] = _decoder(tuple(shape), size)(pngs[begin : begin + size])
        begin += size
    return images


def batch_size(shape):
    """Returns how many images of a shape (H, W, C) are handled at a time."""
    return max(1, min(1024, BATCH_BYTES // int(np.prod(shape))))


# --- Writing ---


@contextlib.contextmanager
def aside(path):
    """Gives the name of a file to write beside `path`; it takes the name `path` only once it is whole.

    On any exception (Ctrl-C too) the unfinished file is removed. A process that is killed leaves at most a
    *.part-<pid>-<random>, which nothing reads. No two processes share one, on whatever hosts they run.

    Raises:
        utils.Error: `path` exists already: nothing is overwritten.
    """
    if os.path.lexists(path):
        raise utils.Error('%s exists already and is never overwritten: remove it first' % path)
    part = '%s.part-%d-%s' % (path, os.getpid(), uuid.uuid4().hex[:12])  # Containers may share a pid.
    try:
        yield part
        with open(part, 'rb+') as f:
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)


@contextlib.contextmanager
def made(folder):
    """Makes a folder unless it is there. If what is done inside fails, it goes again, if it was made and is empty."""
    new = not os.path.isdir(folder)
    os.makedirs(folder, exist_ok=True)
    try:
        yield folder
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        raise


def serialize(png, label, group=None):
    """Returns the bytes of a tf.train.Example; `group`, an int64, is a feature of its own where it is given."""
    numbers = {'label': label} if group is None else {'label': label, 'group': group}
    feature = {
        name: tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value)])) for name, value in numbers.items()
    }
    feature['image'] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[png]))
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(deterministic=True)


def write(path, examples, total=None, desc=None):
    """Writes a record file and returns the number of records.

    Args:
        path: the file; its folder exists.
        examples: iterable of (PNG bytes, label).
        total: how many there will be, desc: what they are; both for the progress bar.

    Raises:
        utils.Error: the file exists already, or the disk is full.
    """
    return write_serialized(path, itertools.starmap(serialize, examples), total, desc)


def write_serialized(path, examples, total=None, desc=None):
    """As `write`, of examples that are serialized already (an iterable of bytes)."""
    with aside(path) as part:
        return write_part(part, examples, total, desc or os.path.basename(path))


def write_part(part, examples, total=None, desc=None):
    """Writes serialized examples to a file given by `aside`, with a progress bar; returns their number."""
    n = 0
    try:
        with tf.io.TFRecordWriter(part) as writer, tqdm(examples, desc, total, unit='rec', leave=False) as bar:
            for example in bar:
                writer.write(example)
                n += 1
    except tf.errors.OpError as error:  # A full disk comes as one of several of these.
        raise utils.Error('cannot write %s (%s)' % (part.rsplit('.part-', 1)[0], error.message)) from error
    return n


# --- Reading ---


def boundaries(path):
    """Returns int64 [n + 1]: where each of a file's n records begins, and where the last one ends.

    The positions are those of the TFRecord format: length (8 bytes), its checksum (4), data, its checksum (4).

    Raises:
        utils.Error: the file is missing, empty, cut or damaged.
    """
    if not os.path.isfile(path):
        raise utils.Error('%s is missing: scripts/create_datasets.py makes it' % path)
    size = os.path.getsize(path)
    if not size:
        raise utils.Error('%s is empty: remove it and make it again' % path)
    found = [0]
    with open(path, 'rb') as f:
        while found[-1] + 16 <= size:
            f.seek(found[-1])
            found.append(found[-1] + 16 + int.from_bytes(f.read(8), 'little'))
    if found[-1] != size:
        n = len(found) - 1 - (found[-1] > size)
        for _ in _raw(path, n):  # A flipped bit in a length leads astray: then the checksum names the first bad record.
            pass
        raise utils.Error('%s is cut in the middle of record %d: remove it and make it again' % (path, n))
    return np.array(found, np.int64)


def _raw(path, n):
    """Yields the first n serialized records; the checksums are verified."""
    count = 0
    try:
        for record in itertools.islice(tf.python_io.tf_record_iterator(path), n):
            yield record
            count += 1
    except tf.errors.OpError as error:
        raise damaged(path, count, 'is damaged (%s)' % error.message) from error


def raw(path):
    """Yields the serialized records of a file.

    Raises:
        utils.Error: the file is missing, empty, cut, or a checksum is wrong.
    """
    yield from _raw(path, len(boundaries(path)) - 1)


def damaged(path, number, what):
    """Returns the Error for a bad record."""
    return utils.Error('%s: record %d %s; remove the file and make it again' % (path, number, what))


def parse(record):
    """Returns (PNG bytes, label) of a serialized example; label NO_CLASS where it has none.

    Raises:
        ValueError: it is not an example of this format. Its text continues 'record 7 ...'.
    """
    try:
        features = tf.train.Example.FromString(record).features.feature
    except DecodeError:
        raise ValueError('is not a tf.train.Example') from None
    image = features['image'].bytes_list.value if 'image' in features else ()
    label = features['label'].int64_list.value if 'label' in features else (NO_CLASS,)
    if len(image) != 1 or len(label) != 1:
        raise ValueError('does not have one image and one label')
    return image[0], label[0]


def check(png, label, shape, nclass, unlabeled):
    """Raises ValueError (its text continues 'record 7 ...') unless the example is of that shape and those classes."""
    if not (0 <= label < (nclass or NO_MORE) or (unlabeled and label == NO_CLASS)):
        raise ValueError('has label %d, not one of 0 to %d' % (label, (nclass or NO_MORE) - 1))
    found = png_shape(png)
    if found is None:
        raise ValueError('does not hold a grey or RGB picture in PNG format')
    if shape and found != tuple(shape):
        raise ValueError('is a picture of %dx%dx%d' % found + ' (height, width, colors), not %dx%dx%d' % tuple(shape))
    if max(found[:2]) > MAX_SIDE:
        raise ValueError('claims a picture of %dx%d pixels; at most %d a side are read' % (*found[:2], MAX_SIDE))


def examples(path, nclass=None, shape=None, unlabeled=False):
    """Yields the checked (PNG bytes, label) of each record; only the decoding of the pixels is left to do.

    Args:
        path: the file.
        nclass: labels must be below it; None: any.
        shape: (H, W, C) of every image; None: that of the first one.
        unlabeled: whether a record may be without a class (label -1 or absent).

    Raises:
        utils.Error: file and number of the first bad record.
    """
    for number, record in enumerate(raw(path)):
        try:
            png, label = parse(record)
            check(png, label, shape, nclass, unlabeled)
        except ValueError as error:
            raise damaged(path, number, error) from error
        shape = shape or png_shape(png)
        yield png, label


def _batches(path, nclass, shape, unlabeled):
    """Yields (numbers, shape, PNGs, labels) of batches of checked examples; arguments and errors as of `examples`."""
    pairs, first = examples(path, nclass, shape, unlabeled), 0
    while batch := list(itertools.islice(pairs, batch_size(shape) if shape else 1)):
        pngs, labels = zip(*batch, strict=True)
        shape = tuple(shape or png_shape(pngs[0]))
        yield range(first, first + len(batch)), shape, pngs, labels
        first += len(batch)


def read(path, nclass=None, shape=None, unlabeled=False):
    """Reads a whole file.

    Args: see `examples`.

    Returns:
        images uint8 [n, H, W, C], labels int32 [n].

    Raises:
        utils.Error: the file is missing, empty or damaged; a record is not what the arguments say.
    """
    images, labels = None, np.empty([len(boundaries(path)) - 1], np.int32)
    for numbers, size, pngs, found in _batches(path, nclass, shape, unlabeled):
        if images is None:
            images = np.empty([len(labels), *size], np.uint8)
        images[numbers.start : numbers.stop] = decode_checked(pngs, size, path, numbers)
        labels[numbers.start : numbers.stop] = found
    return images, labels


def decode_checked(pngs, shape, path, numbers):
    """As `decode`; the utils.Error names the file and the number of the record that does not decode."""
    try:
        return decode(pngs, shape)
    except tf.errors.OpError:
        for png, number in zip(pngs, numbers, strict=False):
            try:
                decode([png], shape)
            except tf.errors.OpError as error:
                raise damaged(path, number, 'has a picture that does not decode') from error
        raise


class RecordFile:
    """Random access to the records of a file, which is checked once from end to end when it is opened.

    Attributes:
        path: the file.
        labels: int32 [n]; NO_CLASS where a record has none.
        shape: (H, W, C) of the images.
    """

    def __init__(self, path, nclass=None, shape=None, unlabeled=False, pixels=False):
        """Opens a file. `pixels`: check that the images decode, too; other arguments and errors as of `examples`."""
        self.path = path
        self._begin = boundaries(path)
        self.labels = np.empty([len(self._begin) - 1], np.int32)
        for numbers, self.shape, pngs, labels in _batches(path, nclass, shape, unlabeled):
            self.labels[numbers.start : numbers.stop] = labels
            if pixels:
                decode_checked(pngs, self.shape, path, numbers)
        with open(path, 'rb') as f:
            self._bytes = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self):
        return len(self.labels)

    def serialized(self, number):
        """Returns the bytes of a record's tf.train.Example."""
        return self._bytes[self._begin[number] + 12 : self._begin[number + 1] - 4]

    def gather(self, numbers):
        """Returns the decoded images of some records, uint8 [k, H, W, C]; errors as of `read`."""
        pngs = [parse(self.serialized(number))[0] for number in numbers]
        return decode_checked(pngs, self.shape, self.path, numbers)
