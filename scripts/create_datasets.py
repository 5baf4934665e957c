"""Installs datasets: downloads or takes the published archives, verifies them, and writes records.

    python scripts/create_datasets.py [--data_dir DIR] [--source DIR] [--noverify] [NAME ...]

Without a name, all of them. What is installed already is skipped; a file gets its name only when it is complete.

    python scripts/create_datasets.py cifar10 --size 16x16 --name cifar10-16

makes a dataset of a published one, resized.

    python scripts/create_datasets.py --from_folder PICTURES --name birds [--labels FILE.csv] [--size 32x32] ...

makes a dataset of the user's own pictures; see libml/intake/folders.py for how the folder is laid out.
"""

import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # The libml beside this file.
    from libml.cli import quiet

    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

import contextlib
import functools
import itertools
import pathlib
import shutil

import numpy as np
from PIL import Image

from libml import data_pair, files, records, utils
from libml.cli import options, script
from libml.cli.options import Option, Range
from libml.family import Family, parse_augment, parse_size
from libml.intake import archives, folders, pictures
from libml.intake.archives import Archive

TORONTO = 'https://www.cs.toronto.edu/~kriz/'
STANFORD = 'http://ufldl.stanford.edu/housenumbers/'
CIFAR10 = Archive(
    TORONTO + 'cifar-10-binary.tar.gz', 170052171, 'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd'
)
CIFAR100 = Archive(
    TORONTO + 'cifar-100-binary.tar.gz', 168513733, '58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec'
)
SVHN_TRAIN = Archive(
    STANFORD + 'train_32x32.mat', 182040794, '435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8'
)
SVHN_TEST = Archive(
    STANFORD + 'test_32x32.mat', 64275384, 'cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b'
)
SVHN_EXTRA = Archive(
    STANFORD + 'extra_32x32.mat', 1329278602, 'a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3'
)
STL10 = Archive(
    'http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz',
    2640397119,
    'f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866',
)

BATCH = 1000  # Pictures converted at a time.
BATCH_STL10 = 200  # They are nine times as large.


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
    contents = archives.read_members(path, names)
    for name in names:
        rows = split_rows(path, name, contents.pop(name), label_bytes + 3 * 32 * 32)
        labels = check_labels(path, name, rows[:, label_bytes - 1], nclass)
        images = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for i in range(0, len(rows), BATCH):
            yield images[i : i + BATCH], labels[i : i + BATCH]


def split_rows(path, name, content, length):
    """Returns bytes as uint8 [n, length]."""
    if not content or len(content) % length:
        raise utils.Error('%s: %s has %d bytes, no multiple of %d' % (path, name, len(content), length))
    return np.frombuffer(content, np.uint8).reshape(-1, length)


def check_labels(path, name, labels, nclass):
    """Returns the labels, all of which must be below nclass."""
    if len(labels) and not 0 <= labels.min() <= labels.max() < nclass:
        bad = int(np.flatnonzero((labels < 0) | (labels >= nclass))[0])
        raise utils.Error('%s: picture %d of %s has class %d of %d' % (path, bad, name, labels[bad], nclass))
    return labels


def read_svhn(fetch, archive):
    """MATLAB's layout of SVHN: X [32, 32, 3, n], y [n, 1] from 1 to 10, where 10 is the digit 0. Stored as y - 1."""
    from scipy.io import loadmat  # Slow to import, and only needed here.

    path = fetch(archive)
    try:
        found = loadmat(path, variable_names=['X', 'y'])
        images, labels = found['X'], found['y'].ravel().astype(np.int64) - 1
    except Exception as error:  # Whatever a damaged file makes SciPy's reader stumble over.
        raise utils.Error('%s cannot be read (%r): it is cut or damaged, get it again' % (path, error)) from error
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
        raise utils.Error('%s holds %s pictures %s and %d labels' % (path, images.dtype, images.shape, len(labels)))
    labels = check_labels(path, 'y', labels, 10)
    for i in range(0, len(labels), BATCH):
        yield images[..., i : i + BATCH].transpose(3, 0, 1, 2), labels[i : i + BATCH]


def read_stl10(fetch, part, labeled):
    """The binary layout of STL-10: planes of 96x96 by columns; labels from 1, in a file of their own.

    Unlabelled pictures get the label 0, as in the published records: the name of the file says that they have no class.
    """
    path, label_name, image_name = fetch(STL10), part + '_y.bin', part + '_X.bin'
    labels = None
    if labeled:
        labels = np.frombuffer(archives.read_members(path, [label_name])[label_name], np.uint8).astype(np.int64) - 1
        labels = check_labels(path, label_name, labels, 10)
    first = 0
    for chunk in archives.read_chunks(path, image_name, BATCH_STL10 * 3 * 96 * 96):
        images = split_rows(path, image_name, chunk, 3 * 96 * 96).reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
        stop = first + len(images)
        yield images, labels[first:stop] if labeled else np.zeros(len(images), int)
        first = stop
    if labeled and first != len(labels):
        raise utils.Error('%s holds %d pictures but %d labels in %s' % (path, first, len(labels), part))


# The digits come block by block: each block begins with 0 to 9 three times over, as a form that one writer fills in.
# The first ten blocks are for training; the last four, from other hands as far as the file tells, are the test set.
DIGITS_TRAIN = 1287
DIGITS_ALL = 1797

read_cifar10 = functools.partial(read_cifar, archive=CIFAR10, label_bytes=1, nclass=10)
read_cifar100 = functools.partial(read_cifar, archive=CIFAR100, label_bytes=2, nclass=100)  # Coarse, then fine label.
CIFAR10_TRAIN = tuple('data_batch_%d.bin' % i for i in range(1, 6))

SVHN_NOEXTRA = {
    'svhn-train': (73257, functools.partial(read_svhn, archive=SVHN_TRAIN)),
    'svhn-test': (26032, functools.partial(read_svhn, archive=SVHN_TEST)),
}

# Dataset -> record file -> (number of pictures, reader). A reader is called with the function that fetches an archive.
PUBLISHED = {
    'cifar10': {
        'cifar10-train': (50000, functools.partial(read_cifar10, names=CIFAR10_TRAIN)),
        'cifar10-test': (10000, functools.partial(read_cifar10, names=('test_batch.bin',))),
    },
    'cifar100': {
        'cifar100-train': (50000, functools.partial(read_cifar100, names=('train.bin',))),
        'cifar100-test': (10000, functools.partial(read_cifar100, names=('test.bin',))),
    },
    'svhn_noextra': SVHN_NOEXTRA,
    'svhn': {**SVHN_NOEXTRA, 'svhn-extra': (531131, functools.partial(read_svhn, archive=SVHN_EXTRA))},
    'stl10': {
        'stl10-train': (5000, functools.partial(read_stl10, part='train', labeled=True)),
        'stl10-test': (8000, functools.partial(read_stl10, part='test', labeled=True)),
        'stl10-unlabeled': (100000, functools.partial(read_stl10, part='unlabeled', labeled=False)),
    },
    'digits': {
        'digits-train': (DIGITS_TRAIN, functools.partial(read_digits, start=0, stop=DIGITS_TRAIN)),
        'digits-test': (DIGITS_ALL - DIGITS_TRAIN, functools.partial(read_digits, start=DIGITS_TRAIN, stop=DIGITS_ALL)),
    },
}


# --- Installing ---


def encode_all(batches):
    """Yields the (PNG bytes, label) of batches of pictures."""
    for images, labels in batches:
        yield from zip(records.encode(images), labels, strict=True)


def install(name, data_dir, source='', verify=True):
    """Installs one of DATASETS in the folder data_dir, which exists; what is there already is left as it is.

    Args:
        source, verify: see OPTIONS.

    Raises:
        utils.Error: an archive is missing, damaged or another one; the disk is full.
    """
    before = os.listdir(data_dir)
    with fetching(data_dir, source, verify) as fetch:
        for part, (total, reader) in PUBLISHED[name].items():
            path = os.path.join(data_dir, part + '.tfrecord')
            if not os.path.exists(path):
                batches = reader(fetch)
                first = next(batches, None)  # Fetches the archive, before the file and its progress bar are there.
                if first is None:
                    raise utils.Error('the archive holds no pictures for %s' % path)
                count = records.write(path, encode_all(itertools.chain([first], batches)), total)
                print('%s: %d pictures' % (path, count))
        if name in ('svhn', 'svhn_noextra'):  # Both have the same test set, and each reads a file of its own name.
            copy_test_set(data_dir, 'svhn', 'svhn_noextra')
        if name == 'stl10':
            keep_folds(data_pair.locate_stl10_folds(data_dir), fetch)
    if not set(os.listdir(data_dir)) - set(before):
        print('%s is installed in %s already' % (name, data_dir))


def copy_test_set(data_dir, name, other):
    """Makes the test set of one dataset that of another as well, unless the other has one."""
    path = data_pair.locate_records(data_dir, other, 'test')
    if not os.path.exists(path):
        with files.creating(path) as part:
            shutil.copyfile(data_pair.locate_records(data_dir, name, 'test'), part)


def keep_folds(path, fetch):
    """Keeps the published folds of stl10's labelled pictures, which its splits of 1000 labels take."""
    if not os.path.exists(path):
        folds = archives.read_members(fetch(STL10), ['fold_indices.txt'])['fold_indices.txt']
        with files.creating(path) as part:
            pathlib.Path(part).write_bytes(folds)


@contextlib.contextmanager
def fetching(data_dir, source, verify):
    """Gives a function that takes an Archive and returns its path, verified. If all went well, removes the downloads.

    Other processes that download to the same data_dir wait meanwhile.
    """
    taken = {}
    downloads = os.path.join(data_dir, 'downloads')

    def fetch(archive):
        if archive not in taken:
            get, folder = (archives.take, source) if source else (archives.download, downloads)
            taken[archive] = get(archive, folder, verify)
        return taken[archive]

    if source:
        yield fetch
        return
    files.refuse_link(downloads)
    with archives.locking(os.path.join(data_dir, '.downloads.lock')):
        with files.making_folder(downloads):
            yield fetch
        for path in taken.values():
            os.remove(path)
        with contextlib.suppress(OSError):  # Other interrupted downloads may be there, to be resumed.
            os.rmdir(downloads)


# --- A published dataset, resized ---


def resize(source, name, data_dir, size, augment=None):
    """Makes a dataset of an installed one: its pictures at another size, see `shrunk`.

    Args:
        source: name of the dataset, whose records are in data_dir.
        name: of the new one, which gets a <name>.json as a dataset of the user's own has.
        size: text, WIDTHxHEIGHT. The centre is cropped to that aspect.
        augment: text, see parse_augment; None: as the source, its shift scaled.

    Raises:
        utils.Error: the name cannot be, or is taken; a record is damaged.
    """
    folders.check_free(data_dir, name)
    size, family = parse_size(size), data_pair.find_family(data_dir, source)
    shift = round(family.shift * min(size) / min(family.height, family.width))
    mirror, shift = (family.mirror, shift) if augment is None else parse_augment(augment, size)
    train, unlabeled = (
        data_pair.locate_train_files(data_dir, source),
        data_pair.locate_records(data_dir, source, 'unlabeled'),
    )
    parts = dict(
        train=[path for path in train if path != unlabeled],  # svhn's two files become one.
        test=[data_pair.locate_records(data_dir, source, 'test')],
        unlabeled=[path for path in train if path == unlabeled],
    )
    kept = tuple(part for part in ('train', 'unlabeled') if parts[part])
    new = Family(*size, family.colors, family.nclass, mirror, shift, parts=kept, classes=family.classes)

    def make_parts():
        for part in ('train', 'test', *kept[1:]):
            files = [records.RecordFile(path) for path in parts[part]]
            total = sum(map(len, files))
            yield (
                part,
                itertools.starmap(records.serialize, encode_all(iterate_resized(files, family.shape, size))),
                total,
            )
            print('%s: %d pictures' % (data_pair.locate_records(data_dir, name, part), total))

    folders.save(name, data_dir, new, make_parts())


def iterate_resized(files, shape, size):
    """Yields (images uint8 [k, *size, C], labels) of record files of pictures of a shape (H, W, C), resized."""
    for file in files:
        _, labels, _ = file.check(shape=shape, unlabeled=True)
        for first in range(0, len(file), BATCH_STL10):
            numbers = range(first, min(first + BATCH_STL10, len(file)))
            images = np.stack([shrink(image, size) for image in file.gather(numbers, shape)])
            yield images, labels[numbers.start : numbers.stop]


def shrink(image, size):
    """Returns uint8 [*size, C] of uint8 [H, W, C]."""
    # Area averages, as the studies of smaller pictures take them; to enlarge, LANCZOS: BOX would repeat pixels.
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    method = Image.Resampling.BOX if shrinks else Image.Resampling.LANCZOS
    pixels = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    return np.asarray(pictures.fit(pixels, size, method=method)).reshape(*size, image.shape[2])


# --- The command ---

OWN = dict(  # Of the user's own pictures.
    labels=Option('', 'CSV file with the columns file and class, perhaps split (train or test) and group.', path=True),
    colors=Option(3, 'Colours of the pictures: 1 (grey) or 3.', lambda n: n in (1, 3), '1 (grey) or 3'),
    range=Option('', 'LOW,HIGH: what becomes black and white in pictures with more than 8 bits a value.'),
    test_fraction=Option(None, 'Share of the training pictures to set aside, where none are for testing.', type=float),
    similar_classes=data_pair.SIMILAR,
    skip_bad=Option(False, 'Leave out the pictures that cannot be read.'),
    max_megapixels=Option(float(pictures.MAX_MEGAPIXELS), 'A picture with more is refused.', Range(above=0)),
    seed=Option(0, 'Of the order of the pictures, and of what is set aside.', options.SEED),
)
NEW = dict(  # Of a dataset that gets a name of its own.
    name=Option('', 'Name of the new dataset: that of --from_folder, or the resized copy (--size).'),
    size=Option('', "WIDTHxHEIGHT of the pictures; default: 32x32 for the user's own, as they are for published ones."),
    augment=Option(
        None, "Augmentation, as 'mirror,shift4' or ''. Default: mirror and shift; for --size, its source's.", type=str
    ),
)
OPTIONS = dict(
    **data_pair.OPTIONS,
    source=Option('', 'Folder that holds the published archives already: nothing is downloaded.', path=True),
    verify=Option(True, "Refuse archives whose length or sha256 differ from the published ones'."),
    from_folder=Option(
        '', "Folder of the user's own pictures, such as train/<class>/**; docs/data.md has all layouts.", path=True
    ),
    **NEW,
    **OWN,
)


def create(names=(), **given):
    """Does what the command line asks for.

    Args:
        names: of published datasets.
        **given: values of OPTIONS, by name.

    Raises:
        utils.Error: they do not go together; see `install`, `resize` and `folders.make_dataset`.
    """
    chosen = options.fill(OPTIONS, given)
    check_arguments(names, chosen)
    source, verify, folder = chosen['source'], chosen['verify'], chosen['from_folder']
    new = {name: chosen[name] for name in NEW}
    with files.making_folder(data_pair.find_data_dir(chosen['data_dir'], exists=False)) as data_dir:
        if folder:
            own = {name: chosen[name] for name in OWN}
            return folders.make_dataset(folder, data_dir=data_dir, **dict(new, size=new['size'] or '32x32'), **own)
        if new['name']:
            folders.check_free(data_dir, new['name'])  # Before anything is downloaded.
        for name in names or PUBLISHED:
            install(name, data_dir, source, verify)
        if new['name']:
            resize(names[0], data_dir=data_dir, **new)


def check_arguments(names, chosen):
    """Raises utils.Error where names of datasets and options do not go together."""
    unknown = [name for name in names if name not in PUBLISHED]
    if unknown:
        raise utils.Error('unknown dataset %s: known are %s' % (', '.join(unknown), ', '.join(PUBLISHED)))
    if names and chosen['from_folder']:
        raise utils.Error('give either names of datasets or --from_folder, not both')
    if chosen['source'] and not os.path.isdir(chosen['source']):
        raise utils.Error('--source %s is no folder' % chosen['source'])
    if chosen['from_folder']:
        if not chosen['name']:
            raise utils.Error('--from_folder needs --name, such as --name birds')
        return
    for name, option in OWN.items():
        if chosen[name] != option.default:
            raise utils.Error('--%s is for --from_folder, which is not given' % name)
    if any(chosen[name] != option.default for name, option in NEW.items()):
        if len(names) != 1 or not (chosen['name'] and chosen['size']):
            raise utils.Error('to resize, give one dataset, --size and --name: cifar10 --size 16x16 --name cifar10-16')
        parse_size(chosen['size'])


if __name__ == '__main__':
    script.run(lambda *names, **given: create(names, **given), OPTIONS)
