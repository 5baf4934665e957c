"""The datasets by name: `DATASETS['cifar10.3@250-5000']()` reads one.

Published datasets are rows of published.PUBLISHED. A dataset of the user's own is described by <data_dir>/<name>.json.
Any split that is on disk can be read. Nothing is read, listed or checked at import.
"""

import contextlib
import dataclasses
import functools
import glob
import os
import re
import shlex

import numpy as np

from libml import data, files, records, utils
from libml.cli.options import Option, Range
from libml.family import NAME, read_family, shorten, write_family  # noqa: F401  write_family: a public name.
from libml.published import FAMILIES
from libml.utils import escape

ALL = 'all'  # In a split's name, in place of the number of labels: all that the pictures have.
UNUSED = 'Unused, kept so that old command lines run: images are drawn from memory in whole batches.'
OPTIONS = dict(  # Of scripts that read a dataset.
    data_dir=Option(None, 'Folder of the datasets; default: the environment variable ML_DATA.', type=str, path=True),
)
SIMILAR = Option(
    False, 'Take names of classes for different ones that differ by capitals, width, spaces or zeros alone.'
)
NAMED_OPTIONS = dict(  # Of scripts that take one dataset.
    dataset=Option('', 'The dataset, in place of the word NAME; as the published scripts take it.'), **OPTIONS
)
TRAINING_OPTIONS = dict(
    dataset=Option(
        'cifar10.3@250-5000', '<name>.<split seed>@<labels>-<validation images>; all for the number of all labels.'
    ),
    **OPTIONS,
    whiten=Option(False, "Normalise by the training images' mean and standard deviation."),
    p_unlabeled=Option('', 'Comma-separated weight of each class among the unlabelled images, any scale.'),
    shuffle=Option(8192, UNUSED, Range(low=1)),
    para_parse=Option(4, UNUSED, Range(low=1)),
    para_augment=Option(4, UNUSED, Range(low=1)),
)


@dataclasses.dataclass(frozen=True)
class Split:
    """The parts of a dataset's name, `<name>.<seed>@<size>-<valid>`; size: int, or ALL."""

    name: str
    seed: int
    size: int | str
    valid: int

    @property
    def stem(self):
        """The name of the split's files."""
        return '%s.%d@%s' % (self.name, self.seed, self.size)

    def make_command(self, data_dir):
        """Returns the command that makes the split."""
        size = '' if self.size == ALL else ' --size=%d' % self.size
        return 'python scripts/create_split.py --seed=%d%s %s%s' % (self.seed, size, self.name, name_data_dir(data_dir))

    def files(self, data_dir):
        """Returns the paths of the split's records and map, and of the test set: dict(label, unlabel, map, test)."""
        paths = locate_split(os.path.join(data_dir, 'SSL'), self.name, self.seed, self.size)
        return dict(
            zip(('label', 'unlabel', 'map'), paths, strict=True), test=locate_records(data_dir, self.name, 'test')
        )

    def __str__(self):
        return '%s-%d' % (self.stem, self.valid)


def parse(text):
    """Returns the Split that a name such as 'cifar10.3@250-5000' means; raises utils.Error if it has another form."""
    match = re.fullmatch(r'(%s)\.([0-9]{1,9})@([0-9]{1,9}|%s)-([0-9]{1,9})' % (NAME, ALL), text)
    if not match or (match[3] != ALL and int(match[3]) < 1):
        form = '<name>.<split seed>@<labels>-<validation images>, such as cifar10.3@250-5000 or photos.1@all-0'
        raise utils.Error('dataset %r is not of the form %s' % (text, form))
    return Split(match[1], int(match[2]), ALL if match[3] == ALL else int(match[3]), int(match[4]))


def choose_name(word, dataset):
    """Returns the name that was given in one of two ways; raises utils.Error if in none."""
    utils.refuse(word is None and not dataset, 'which dataset? Give its name, such as cifar10.3@250-5000')
    return dataset if word is None else word


# --- Files ---


def find_data_dir(data_dir=None, exists=True):
    """Returns `data_dir`, or else $ML_DATA; raises utils.Error if neither is given, or it must exist and does not."""
    data_dir = utils.expand(data_dir or os.environ.get('ML_DATA'))
    text = 'where are the datasets? Give --data_dir=FOLDER, or set the environment variable ML_DATA'
    utils.refuse(not data_dir, text)
    text = 'the folder of the datasets, %s, does not exist: scripts/create_datasets.py makes it'
    utils.refuse(exists and not os.path.isdir(data_dir), text, escape(data_dir))
    return data_dir


def name_data_dir(data_dir):
    """Returns the flag, after a space, by which a shell's command uses a folder of datasets; '' if that is $ML_DATA."""
    known = os.path.expanduser(os.environ.get('ML_DATA', ''))
    same = known and os.path.abspath(known) == os.path.abspath(data_dir)
    return '' if same else ' --data_dir=%s' % shlex.quote(data_dir)


def locate_records(data_dir, name, part):
    """Returns the path of a dataset's record file."""
    return os.path.join(data_dir, '%s-%s.tfrecord' % (name, part))


def locate_family(data_dir, name):
    """Returns the path of the description of a dataset of the user's own."""
    return os.path.join(data_dir, name + '.json')


def locate_set(data_dir, name, parts=('train', 'unlabeled', 'test')):
    """Returns the paths of a user's own dataset in the order in which files.creating names them."""
    return *(locate_records(data_dir, name, part) for part in parts), locate_family(data_dir, name)


def locate_sources(data_dir, name):
    """Returns the path of the file that says which picture file a record of a user's own dataset was made of."""
    return os.path.join(data_dir, 'files', name + '.json')


def read_sources(data_dir, name):
    """Returns {digest of pixels, hexadecimal: picture file}, see pictures.hash_pixels; {} where that is not known."""
    found = files.read_json(locate_sources(data_dir, name), default={})
    return found if isinstance(found, dict) else {}


record_file, family_file = locate_records, locate_family  # The names that other people's scripts use.


def locate_train_files(data_dir, name):
    """Returns the record files that a dataset's splits are made of; raises what find_family raises."""
    family = find_family(data_dir, name)
    return [locate_records(data_dir, family.source or name, part) for part in family.parts]


def locate_split(folder, name, seed, size):
    """Returns the paths of a split's three files in `folder`: labelled records, unlabelled records, map."""
    prefix = os.path.join(folder, '%s.%d@%s' % (name, seed, size))
    return prefix + '-label.tfrecord', prefix + '-unlabel.tfrecord', prefix + '-map.json'


def locate_stl10_folds(data_dir):
    """Returns the path of the folds that stl10's archive publishes: a line holds the positions of 1000 pictures."""
    return os.path.join(data_dir, 'stl10_fold_indices.txt')


def list_splits(data_dir):
    """Returns the names, such as 'digits.1@20', of the splits on disk, sorted."""
    return _list_names(os.path.join(data_dir, 'SSL'), '-map.json')


def _list_names(folder, ending):
    """Returns the names of the files in a folder with an ending, without the ending, sorted."""
    return sorted(path.removesuffix(ending) for path in glob.glob('*' + ending, root_dir=folder))


# --- Families ---


def find_family(data_dir, name):
    """Returns the Family of a name; raises utils.Error if it is unknown, or its .json is damaged."""
    if family := look_up_family(data_dir, name):
        return family
    if re.fullmatch(NAME, name) and os.path.isfile(locate_records(data_dir, name, 'train')):
        raise utils.Error('unknown dataset %r: %s' % (name, explain_description(data_dir, name)))
    own = [own for own in _list_names(data_dir, '.json') if own not in FAMILIES and re.fullmatch(NAME, own)]
    known, splits = ', '.join([*FAMILIES, *own]), ', '.join(list_splits(data_dir)) or 'none'
    raise utils.Error('unknown dataset %r. Known: %s. Splits in %s: %s' % (name, known, data_dir, escape(splits)))


def look_up_family(data_dir, name):
    """Returns the Family of a name, None where it is unknown; raises what read_family raises."""
    path = locate_family(data_dir, name)
    if name not in FAMILIES and re.fullmatch(NAME, name) and os.path.isfile(path):
        return read_family(path)
    return FAMILIES.get(name)


def explain_description(data_dir, name):
    """Returns a line for the user: the command that makes a dataset of record files."""
    text = 'training knows your own record files once %s.json describes them: '
    text += '`python scripts/create_datasets.py --describe %s%s` reads %s-train.tfrecord and writes it'
    return text % (name, name, name_data_dir(data_dir), name)


def check_gaps(name, labels, nclass):
    """Raises utils.Error unless each of nclass classes has a record. labels: int [n]; name: for the error's text."""
    # nclass may be enormous: len(labels) + 1 classes suffice to find a gap.
    missing = np.setdiff1d(np.arange(min(nclass, len(labels) + 1)), labels)
    if len(missing):
        raise utils.Error('%s has no record of class %d of %d' % (name, missing[0], nclass))


# --- Reading a dataset ---


def read_map(path):
    """Returns a map.json's dict(label=[...], unlabel=[...]), perhaps `source`; raises utils.Error if it is damaged."""

    def check(found):
        utils.require('map', shorten(repr(found)), isinstance(found, dict), 'an object')
        for part in ('label', 'unlabel'):
            value = found.get(part)
            valid = isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
            utils.require(part, shorten(repr(value)), valid, 'a list of positions')
        value = found.get('source', {})
        valid = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
        utils.require('source', shorten(repr(value)), valid, 'names of files and their fingerprints')
        return found

    return files.parse_json(path, check, '%s is not the map of a split (%s): make the split again')


def check_source(split, data_dir, source, test):
    """Raises utils.Error where a split was made from other record files than those that are on disk.

    source is the dict from file names to fingerprints in the split's map, test the records.RecordFile of the test set.
    """
    parts = [os.path.basename(path) for path in locate_train_files(data_dir, split.name)]
    if split.name not in FAMILIES and parts[0] in source:
        # A record file that was added later makes a split invalid: it gets the fingerprint None, which no file has.
        source = {**dict.fromkeys(parts), **source}
    for name, fingerprint in source.items():
        path = os.path.join(data_dir, os.path.basename(name))
        if not os.path.isfile(path):
            continue
        file = test if path == test.path else records.RecordFile(path)
        if file.fingerprint != fingerprint:
            text = '%s was made from another %s than the one in %s now: remove %s, and make the split again by `%s`'
            *targets, _ = split.files(data_dir).values()
            found = split.stem, escape(name), data_dir, ', '.join(targets), split.make_command(data_dir)
            raise utils.Error(text % found)


def open_split(split, data_dir):
    """Opens the record files of a split.

    Returns:
        dict(label, unlabel, test) of records.RecordFile.

    Raises:
        utils.Error: the split is not installed or damaged, or was made from other record files than those on disk.
    """
    paths = split.files(data_dir)
    missing = [path for path in paths.values() if not os.path.isfile(path)]
    if missing:
        name = split.name if split.name in FAMILIES else '--from_folder PICTURES --name ' + split.name
        text = '%s is not installed, as %s is missing: run `python scripts/create_datasets.py %s%s` and then `%s`'
        raise utils.Error(text % (split, missing[0], name, name_data_dir(data_dir), split.make_command(data_dir)))
    found = read_map(paths['map'])
    files = dict(
        label=records.RecordFile(paths['label']),
        unlabel=records.RecordFile(paths['unlabel'], empty=not found['unlabel']),
        test=records.RecordFile(paths['test']),
    )
    listed, held = (tuple(len(of[part]) for part in ('label', 'unlabel')) for of in (found, files))
    text = '%s lists %d labelled and %d unlabelled images, but the records hold %d and %d: make the split again'
    utils.refuse(listed != held or split.size not in (ALL, held[0]), text, paths['map'], *listed, *held)
    check_source(split, data_dir, found.get('source', {}), files['test'])
    return files


def check_unchanged(split, data_dir, fingerprints, run):
    """Raises utils.Error where a run began with other files of a split than are on disk; missing ones do not count.

    fingerprints is the dict(label, unlabel, test) of args.json in the folder `run`, None for an older run.
    """
    for part, fingerprint in (fingerprints or {}).items():
        path = split.files(data_dir)[part]
        if os.path.isfile(path) and records.RecordFile(path, empty=True).fingerprint != fingerprint:
            raise data.other_data_error(run, split, part)


def read_dataset(split, data_dir=None, whiten=False, p_unlabeled='', needs_unlabeled=True):
    """Reads a dataset. Warns on stderr of what may be a mistake, a line for each.

    Args:
        split: Split.
        data_dir: folder of the datasets; None: $ML_DATA.
        whiten: see data.DataSet.
        p_unlabeled: text, the weights of the classes among the unlabelled images; '': keep all.
        needs_unlabeled: False if the unlabelled loss has no weight: if no unlabelled images are left, labelled ones
            take their place.

    Returns:
        data.DataSet.

    Raises:
        utils.Error: it is unknown, not installed or damaged; or what is asked of it cannot be.
    """
    data_dir = find_data_dir(data_dir)
    family = find_family(data_dir, split.name)
    weights = data.parse_weights(p_unlabeled, family.nclass) if p_unlabeled else None
    files = open_split(split, data_dir)
    text = '%s asks for %d validation images, but has only %d images that are not labelled'
    utils.refuse(split.valid > len(files['unlabel']), text, split, split.valid, len(files['unlabel']))

    load = functools.partial(data.load, nclass=family.nclass, shape=family.shape)
    labeled, rest = load(files['label']), load(files['unlabel'], unlabeled='unlabeled' in family.parts)
    warn_of_classes(split, labeled.labels, family.names)
    valid, unlabeled = take_validation(split, labeled, rest)
    if weights is not None:
        unlabeled = data.thin(unlabeled, weights)
    if not needs_unlabeled and not len(unlabeled):
        utils.warn('%s: no unlabelled images are left, and the labelled ones take their place' % split)
        unlabeled = labeled
    sets = dict(labeled=labeled, unlabeled=unlabeled, valid=valid, test=load(files['test']))
    fingerprints = {part: file.fingerprint for part, file in files.items()}
    return data.DataSet(str(split), family, sets, whiten, p_unlabeled, fingerprints)


def take_validation(split, labeled, rest):
    """Sets the first images of `rest` aside for validation; labeled, rest: data.Images of a Split's two files.

    Returns:
        data.Images for validation, and the unlabelled ones: the others that share no group with a validation image.

    Raises:
        utils.Error: a validation image shares a group with a labelled one.
    """
    valid, unlabeled = rest.select(slice(split.valid)), rest.select(slice(split.valid, None))
    shared = np.isin(valid.groups, labeled.groups) & (valid.groups != records.NO_GROUP)
    if shared.any():
        text = '%s: at most %d images can validate: the next unlabelled one is of the same group as a labelled one'
        raise utils.Error(text % (split, shared.argmax()))
    outside = ~np.isin(unlabeled.groups, valid.groups) | (unlabeled.groups == records.NO_GROUP)
    if not outside.all():
        text = '%s: %d unlabelled images are left out, as they share a group with a validation image'
        utils.warn(text % (split, np.count_nonzero(~outside)))
        unlabeled = unlabeled.select(np.flatnonzero(outside))
    classless = np.count_nonzero(valid.labels == records.NO_CLASS)
    if classless and classless == len(valid):
        utils.warn('%s: no validation image has a class: there will be no validation accuracy' % split)
    elif classless:
        text = '%s: %d of the %d validation images have no class: validation accuracy is that of the others'
        utils.warn(text % (split, classless, len(valid)))
    return valid, unlabeled


def warn_of_classes(split, labels, names):
    """Says on stderr which of all classes have no labelled picture in a split; labels: int [n], of its pictures."""
    without = [name for label, name in enumerate(names) if label not in labels]
    if without:
        some = ', '.join(without[:8]) + (', ...' if len(without) > 8 else '')
        text = '%s: %d of %d classes have no labelled picture, so they cannot be learned: %s'
        utils.warn(text % (split, len(without), len(names), some))


class Registry:
    """Maps the name of a dataset to the function that reads it; see read_dataset for its arguments.

    `name in DATASETS` says whether the split is in $ML_DATA. Iteration gives the splits there, as NAME.SEED@SIZE-1.
    """

    def __contains__(self, name):
        with contextlib.suppress(utils.Error):
            return parse(name).stem in list_splits(find_data_dir())
        return False

    def __iter__(self):
        return iter([stem + '-1' for stem in list_splits(find_data_dir())])

    def __getitem__(self, name):
        """Returns a callable (data_dir=None, whiten=False, p_unlabeled='', seed=0, nu=2) -> data.DataSet.

        seed, nu: ints, of the shuffling and augmentation in the properties of the DataSet.

        Raises:
            utils.Error: the name is not of the form `<name>.<seed>@<size>-<valid>`.
        """
        split = parse(name)

        def read(*args, seed=0, nu=2, **kwargs):
            dataset = read_dataset(split, *args, **kwargs)
            dataset.seed, dataset.nu = seed, nu
            return dataset

        return read


DATASETS = Registry()
