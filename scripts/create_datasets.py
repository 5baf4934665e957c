"""Installs datasets: downloads or takes the published archives, verifies them, and writes records.

    python scripts/create_datasets.py [--data_dir DIR] [--source DIR] [--noverify] [NAME ...]

Without a name, all of them. What is installed already is skipped; a file bears its name only once it is whole.
"""

import functools
import os

from libml import archives, data_pair, records, utils
from libml.archives import Archive

import numpy as np
from absl import flags

TORONTO = 'https://www.cs.toronto.edu/~kriz/'
CIFAR10 = Archive(
    TORONTO + 'cifar-10-binary.tar.gz', 170052171, 'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd'
)

BATCH = 1000  # Pictures converted at a time.


# --- Readers: each yields (images uint8 [k, H, W, C], labels int [k]) ---


def read_digits(fetch, start, stop):
    """scikit-learn's 8x8 grey digits, from `start` to `stop`; their values 0 to 16 become 0 to 255."""
    from sklearn.datasets import load_digits  # Slow to import, and only needed here.

    digits = load_digits()
    images = np.round(digits.images[start:stop] * (255 / 16)).astype(np.uint8)
    yield images[..., None], digits.target[start:stop]


def read_cifar(fetch, archive, names, label_bytes, nclass):
    """The binary layout of CIFAR: per picture its labels, of which the last counts, then its planes of 32x32."""
    path = fetch(archive)
    contents = archives.contents(path, names)
    for name in names:
        rows = rows_of(path, name, contents.pop(name), label_bytes + 3 * 32 * 32)
        labels = checked_labels(path, name, rows[:, label_bytes - 1], nclass)
        images = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for i in range(0, len(rows), BATCH):
            yield images[i : i + BATCH], labels[i : i + BATCH]


def rows_of(path, name, content, length):
    """Returns bytes as uint8 [n, length]."""
    if not content or len(content) % length:
        raise utils.Error('%s: %s has %d bytes, no multiple of %d' % (path, name, len(content), length))
    return np.frombuffer(content, np.uint8).reshape(-1, length)


def checked_labels(path, name, labels, nclass):
    """Returns the labels, all of which must be below nclass."""
    if len(labels) and not 0 <= labels.min() <= labels.max() < nclass:
        bad = int(np.flatnonzero((labels < 0) | (labels >= nclass))[0])
        raise utils.Error('%s: picture %d of %s has class %d of %d' % (path, bad, name, labels[bad], nclass))
    return labels


# The digits come block by block: each block is one form, filled in by one writer, and begins with the same sequence
# '0123456789' three times over. Ten blocks make 1287 pictures; the four others, from other hands, are the test set.
DIGITS_TRAIN = 1287
DIGITS_ALL = 1797

read_cifar10 = functools.partial(read_cifar, archive=CIFAR10, label_bytes=1, nclass=10)
CIFAR10_TRAIN = tuple('data_batch_%d.bin' % i for i in range(1, 6))

# Dataset -> record file -> (number of pictures, reader). A reader is called with the function that fetches an archive.
DATASETS = {
    'cifar10': {
        'cifar10-train': (
            50000,
            functools.partial(read_cifar, archive=CIFAR10, names=CIFAR10_TRAIN, label_bytes=1, nclass=10),
        ),
        'cifar10-test': (
            10000,
            functools.partial(read_cifar, archive=CIFAR10, names=('test_batch.bin',), label_bytes=1, nclass=10),
        ),
    },
    'digits': {
        'digits-train': (DIGITS_TRAIN, functools.partial(read_digits, start=0, stop=DIGITS_TRAIN)),
        'digits-test': (DIGITS_ALL - DIGITS_TRAIN, functools.partial(read_digits, start=DIGITS_TRAIN, stop=DIGITS_ALL)),
    },
}


# --- Installing ---


def encoded(batches):
    """Yields the (PNG bytes, label) of batches of pictures."""
    for images, labels in batches:
        yield from zip(records.encode(images), labels, strict=True)


def install(name, data_dir, fetch):
    """Writes the record files of a dataset that are not there yet; returns their paths."""
    written = []
    for part, (total, reader) in DATASETS[name].items():
        path = os.path.join(data_dir, part + '.tfrecord')
        if not os.path.exists(path):
            count = records.write(path, encoded(reader(fetch)), total)
            print('%s: %d pictures' % (path, count))
            written.append(path)
    return written


def fetcher(data_dir, source, verify):
    """Returns the function from an Archive to its verified path, which looks at each archive once."""

    @functools.cache
    def fetch(archive):
        if source:
            return archives.take(archive, source, verify)
        return archives.download(archive, os.path.join(data_dir, 'downloads'), verify)

    return fetch


def define_flags():
    flags.DEFINE_string('source', None, 'Folder that holds the published archives already: nothing is downloaded.')
    flags.DEFINE_boolean('verify', True, "Refuse archives whose length or sha256 differ from the published ones'.")


def main(argv):
    FLAGS = flags.FLAGS
    names = argv[1:] or list(DATASETS)
    unknown = [name for name in names if name not in DATASETS]
    if unknown:
        raise utils.Error('unknown dataset %s: known are %s' % (', '.join(unknown), ', '.join(DATASETS)))
    data_dir = data_pair.find_data_dir(FLAGS.data_dir, create=True)
    fetch = fetcher(data_dir, FLAGS.source, FLAGS.verify)
    for name in names:
        if not install(name, data_dir, fetch):
            print('%s is installed in %s already' % (name, data_dir))


if __name__ == '__main__':
    define_flags()
    utils.setup_tf()
    utils.run(main)
