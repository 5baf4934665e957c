"""Installs datasets: downloads or takes the published archives, verifies them, and writes records.

    python scripts/create_datasets.py [--data_dir DIR] [--source DIR] [--noverify] [NAME ...]

Without a name, all of them. What is installed already is skipped; a file gets its name only when it is complete.

    python scripts/create_datasets.py cifar10 --size 16x16 --name cifar10-16

makes a dataset of a published one, resized.

    python scripts/create_datasets.py --from_folder PICTURES --name birds [--labels FILE.csv] [--size 32x32] ...

makes a dataset of the user's own pictures; see libml/intake/folders.py for how the folder is laid out.

    python scripts/create_datasets.py --describe birds [--augment=mirror,shift4] [--classes=bee,cat]

makes record files of the user's own a dataset: reads them and writes <data_dir>/birds.json. birds-train.tfrecord and
birds-test.tfrecord hold tf.train.Examples of `image` (PNG bytes, all of one size) and `label` (int64, from 0), perhaps
`group` (int64). birds-unlabeled.tfrecord may hold more pictures, without `label`.
"""

import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # The libml beside this file.
    from libml.cli import quiet

    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

import contextlib
import itertools
import pathlib

import numpy as np
from easydict import EasyDict
from PIL import Image

from libml import data_pair, files, records, utils
from libml.cli import options, script
from libml.cli.options import Option, Range
from libml.family import Family, check_distinct, parse_augment, parse_size, read_class, write_family
from libml.intake import archives, folders, pictures
from libml.published import PUBLISHED, STL10, check_new_name

BATCH = 1000  # Pictures converted at a time.
BATCH_STL10 = 200  # They are nine times as large.


# --- Readers of an archive's path: each yields (images uint8 [k, H, W, C], labels int [k]) ---


def read_digits(_, start=None, stop=None):
    """scikit-learn's 8x8 grey digits, from `start` to `stop`; their values 0 to 16 become 0 to 255."""
    from sklearn.datasets import load_digits  # Slow to import, and only needed here.

    digits = load_digits()
    images = np.round(digits.images[start:stop] * (255 / 16)).astype(np.uint8)
    yield images[..., None], digits.target[start:stop]


def read_cifar(path, names, label_bytes=1, nclass=10):
    """The binary layout of CIFAR: per picture its labels, of which the last counts, then its planes of 32x32."""
    contents = archives.read_members(path, names)
    for name in names:
        rows = split_rows(path, name, contents.pop(name), label_bytes + 3 * 32 * 32)
        labels = check_labels(path, name, rows[:, label_bytes - 1], nclass)
        images = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for i in range(0, len(rows), BATCH):
            yield images[i : i + BATCH], labels[i : i + BATCH]


def split_rows(path, name, content, length):
    """Returns bytes as uint8 [n, length]."""
    text = '%s: %s has %d bytes, no multiple of %d'
    utils.refuse(not content or len(content) % length, text, path, name, len(content), length)
    return np.frombuffer(content, np.uint8).reshape(-1, length)


def check_labels(path, name, labels, nclass):
    """Returns the labels, all of which must be below nclass."""
    if len(labels) and not 0 <= labels.min() <= labels.max() < nclass:
        bad = int(np.flatnonzero((labels < 0) | (labels >= nclass))[0])
        raise utils.Error('%s: picture %d of %s has class %d of %d' % (path, bad, name, labels[bad], nclass))
    return labels


def read_svhn(path):
    """MATLAB's layout of SVHN: X [32, 32, 3, n], y [n, 1] from 1 to 10, where 10 is the digit 0. Stored as y - 1."""
    from scipy.io import loadmat  # Slow to import, and only needed here.

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


def read_stl10(path, part, labeled=True):
    """The binary layout of STL-10: planes of 96x96 by columns; labels from 1, in a file of their own.

    Unlabelled pictures get the label 0, as in the published records: the name of the file says that they have no class.
    """
    label_name, image_name = part + '_y.bin', part + '_X.bin'
    labels = None
    if labeled:
        labels = np.frombuffer(archives.read_members(path, [label_name])[label_name], np.uint8).astype(np.int64) - 1
        labels = check_labels(path, label_name, labels, 10)
    first = 0
    for _, chunk in archives.read_chunks(path, [image_name], BATCH_STL10 * 3 * 96 * 96):
        images = split_rows(path, image_name, chunk, 3 * 96 * 96).reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
        stop = first + len(images)
        yield images, labels[first:stop] if labeled else np.zeros(len(images), int)
        first = stop
    if labeled:
        text = '%s holds %d pictures but %d labels in %s'
        utils.refuse(first != len(labels), text, path, first, len(labels), part)


READERS = dict(digits=read_digits, cifar=read_cifar, svhn=read_svhn, stl10=read_stl10)  # By layout.

# --- Installing ---


def encode_all(batches):
    """Yields the (PNG bytes, label) of batches of pictures."""
    for images, labels in batches:
        yield from zip(records.encode(images), labels, strict=True)


def install(name, data_dir, source='', verify=True):
    """Installs one of PUBLISHED in the folder data_dir, which exists; what is there already is left as it is.

    source, verify: see OPTIONS. Raises utils.Error if an archive is missing, damaged or another one, or the disk is
    full.
    """
    before = os.listdir(data_dir)
    with fetching(data_dir, source, verify) as fetch:
        for part, (total, layout, archive, arguments) in PUBLISHED[name].files.items():
            path = os.path.join(data_dir, part + '.tfrecord')
            if not os.path.exists(path):
                batches = READERS[layout](archive and fetch(archive), **arguments)
                first = next(batches, None)  # An archive is read before the file and its progress bar are there.
                utils.refuse(first is None, 'the archive holds no pictures for %s', path)
                count = records.write(path, encode_all(itertools.chain([first], batches)), total)
                utils.say('%s: %d pictures' % (path, count))
        folds = data_pair.locate_stl10_folds(data_dir)
        if name == 'stl10' and not os.path.exists(folds):
            content = archives.read_members(fetch(STL10), ['fold_indices.txt'])['fold_indices.txt']
            with files.creating(folds) as part:
                pathlib.Path(part).write_bytes(content)
    if not set(os.listdir(data_dir)) - set(before):
        utils.say('%s is installed in %s already' % (name, data_dir))


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
    lock = os.path.join(data_dir, '.downloads.lock')
    with files.locking(lock), contextlib.ExitStack() as undo:
        undo.callback(pathlib.Path(lock).unlink, missing_ok=True)
        with files.making_folder(downloads):
            for name in os.listdir(downloads):  # Nobody else writes there now: killed processes left these.
                if archives.UNFINISHED.fullmatch(name):
                    os.remove(os.path.join(downloads, name))
            yield fetch
        for path in taken.values():
            os.remove(path)
        with contextlib.suppress(OSError):  # Archives of a dataset that failed may be there, for the next try.
            os.rmdir(downloads)


# --- A published dataset, resized ---


def resize(source, name, data_dir, size, augment=None):
    """Makes a dataset of an installed one: its pictures at another size, see `shrink`.

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
    parts = dict(train=[], test=[data_pair.locate_records(data_dir, source, 'test')])
    for path in data_pair.locate_train_files(data_dir, source):  # svhn's two files become one.
        part = 'unlabeled' if path == data_pair.locate_records(data_dir, source, 'unlabeled') else 'train'
        parts.setdefault(part, []).append(path)
    kept = tuple(part for part in parts if part != 'test')
    new = Family(*size, family.colors, family.nclass, mirror, shift, parts=kept, classes=family.classes)

    def make_parts():
        for part, paths in parts.items():
            files = [records.RecordFile(path) for path in paths]
            total, examples = sum(map(len, files)), encode_all(iterate_resized(files, family.shape, size))
            yield part, itertools.starmap(records.serialize, examples), total
            utils.say('%s: %d pictures' % (data_pair.locate_records(data_dir, name, part), total))

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


# --- The user's own record files ---


def describe(name, data_dir, augment=None, classes='', similar_classes=False):
    """Writes the description of a dataset whose record files are there, and prints it. Args: see OPTIONS.

    Raises:
        utils.Error: the name or the records are not what a dataset needs, or NAME.json is there already.
    """
    check_new_name(name)
    names = tuple(read_class(each, '--classes') for each in classes.split(',')) if classes else ()
    if not similar_classes:
        check_distinct({each: 'class %d' % label for label, each in enumerate(names)})
    train, unlabeled, test, path = data_pair.locate_set(data_dir, name)
    files.discard_left(train, unlabeled, test, path)
    with files.creating(path) as description:
        shape, labels, groups = records.RecordFile(train).check(pixels=True)
        nclass = int(labels.max()) + 1
        more = [unlabeled] if os.path.isfile(unlabeled) else []
        for file in (*more, test):
            _, _, others = records.RecordFile(file).check(nclass, shape, unlabeled=file == unlabeled, pixels=True)
        shared = {*groups.tolist()} & {*others.tolist()} - {records.NO_GROUP}  # The test set is the last one.
        text = '%s and %s share the group %d: a group must be on one side'
        utils.refuse(shared, text, train, test, min(shared, default=0))
        data_pair.check_gaps(train, labels, nclass)
        utils.refuse(nclass < 2, '%s has records of one class only: at least 2 are needed', train)
        utils.require('classes', classes, len(names) in (0, nclass), '%d names' % nclass)
        parts = ('train', *('unlabeled' for _ in more))
        family = Family(*shape, nclass, *parse_augment(augment, shape[:2]), parts=parts, classes=names)
        write_family(description, family)
    text = '%s: %d classes, %d x %d pixels, %d colors'
    print(text % (name, family.nclass, family.width, family.height, family.colors))


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
    verify=Option(True, "Refuse archives whose sha256 differ from the published ones'."),
    from_folder=Option(
        None,
        "Folder of the user's own pictures, such as train/<class>/**; docs/data.md has all layouts.",
        bool,
        'a path',
        type=str,
        path=True,
    ),
    describe=Option(
        None, "Name of record files of the user's own, made a dataset by a description.", bool, 'a name', type=str
    ),
    classes=Option('', 'Comma-separated names of the classes, in the order of their labels. Default: numbers.'),
    **NEW,
    **OWN,
)
# What else goes with what is made: names of published datasets, --from_folder or --describe.
USED = {
    'names of datasets': tuple(NEW),
    '--from_folder': (*NEW, *OWN),
    '--describe': ('classes', 'augment', 'similar_classes'),
}


def create(names=(), **given):
    """Does what the command line asks for, with names of published datasets and values of OPTIONS.

    Raises:
        utils.Error: they do not go together; see `install`, `resize`, `describe` and `folders.make_dataset`.
    """
    o = EasyDict(options.fill(OPTIONS, given))
    check_arguments(names, o)
    with files.making_folder(data_pair.find_data_dir(o.data_dir, exists=False)) as data_dir:
        if o.describe:
            return describe(o.describe, data_dir, **{name: o[name] for name in USED['--describe']})
        if o.from_folder:
            o.size = o.size or '32x32'
            return folders.make_dataset(o.from_folder, data_dir, o)
        if o.name:
            folders.check_free(data_dir, o.name)  # Before anything is downloaded.
        for name in names or PUBLISHED:
            install(name, data_dir, o.source, o.verify)
        if o.name:
            resize(names[0], o.name, data_dir, o.size, o.augment)


def check_arguments(names, o):
    """Raises utils.Error where names of datasets and options do not go together."""
    unknown = [name for name in names if name not in PUBLISHED]
    utils.refuse(unknown, 'unknown dataset %s: known are %s', ', '.join(unknown), ', '.join(PUBLISHED))
    ways = dict(zip(USED, (names, o.from_folder, o.describe), strict=True))
    way, *others = [way for way, given in ways.items() if given] or ['names of datasets']
    if others:
        raise utils.Error('give either %s or %s, not both' % (way, others[0]))
    utils.refuse(o.source and not os.path.isdir(o.source), '--source %s is no folder', o.source)
    given = {name for name in {*NEW, *OWN, 'classes'} if o[name] != OPTIONS[name].default}
    for name in sorted(given - set(USED[way])):
        where = ' or '.join(where for where in USED if name in USED[where])
        raise utils.Error('--%s is for %s, which is not given' % (name, where))
    utils.refuse(way == '--from_folder' and not o.name, '--from_folder needs --name, such as --name birds')
    if way == 'names of datasets' and given:
        text = 'to resize, give one dataset, --size and --name: cifar10 --size 16x16 --name cifar10-16'
        utils.refuse(len(names) != 1 or not (o.name and o.size), text)
        parse_size(o.size)


if __name__ == '__main__':
    script.run(lambda *names, **given: create(names, **given), OPTIONS)
