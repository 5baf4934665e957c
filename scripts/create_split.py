"""Splits a dataset's training records into labelled and unlabelled ones, as the published script does.

    python scripts/create_split.py --seed=3 --size=250 cifar10
    python scripts/create_split.py --seed=3 --size=250 $ML_DATA/SSL/cifar10 $ML_DATA/cifar10-train.tfrecord

An existing split is never overwritten.
"""

import collections
import itertools
import json
import os

import numpy as np
from absl import flags

from libml import data_pair, records, utils

SEEDS = (1, 2, 3, 4, 5)
# What --all makes: the sizes of the paper (for digits, which it lacks, some to try), each with SEEDS.
SIZES = {
    'cifar10': (250, 500, 1000, 2000, 4000),
    'cifar100': (10000,),
    'svhn': (250, 500, 1000, 2000, 4000),
    'svhn_noextra': (250, 500, 1000, 2000, 4000),
    'stl10': (1000, 5000),
    'digits': (20, 50, 100),
}
STL10_FOLD = 1000  # Labels in each of the ten folds that stl10's archive publishes.

# --- The rule ---


def shares(labels, nclass):
    """Returns each class's share of the records, divided by the largest share: float64 [nclass]."""
    counts = np.bincount(labels, minlength=nclass).astype(np.float64)
    return counts / counts.max()


class Turn:
    """Says whose turn it is, when classes are to be picked in proportion to `stats`."""

    def __init__(self, stats):
        self._stats = stats
        self.counts = np.zeros(len(stats), np.int64)  # How many were picked of each class.

    def next(self):
        """Returns the class that is furthest behind; the lowest of several."""
        return int(np.argmax(self._stats - self.counts / max(self.counts.max(), 1)))


def pick_labeled(labels, stats, size, seed):
    """Picks the records that keep their labels.

    Args:
        labels: int [n], the class of each record; records.NO_CLASS where it has none: such are not picked.
        stats: float64 [nclass], see `shares`.
        size: how many to pick.
        seed: int; 0: no shuffling.

    Returns:
        list of `size` positions, in the order they were picked.

    Raises:
        utils.Error: a class runs out.
    """
    members = [np.flatnonzero(labels == label) for label in range(len(stats))]
    if seed:
        random = np.random.RandomState(seed)
        for positions in members:
            random.shuffle(positions)
    turn, picked = Turn(stats), []
    for _ in range(size):
        label = turn.next()
        if turn.counts[label] == len(members[label]):
            text = 'size=%d: the %d pictures of class %d are used up after %d labels: choose a smaller size'
            raise utils.Error(text % (size, len(members[label]), label, len(picked)))
        picked.append(int(members[label][turn.counts[label]]))
        turn.counts[label] += 1
    return picked


def order_unlabeled(labels, stats, labeled):
    """Orders the records that were not picked so that every beginning of the file has the classes in proportion.

    Args:
        labels, stats: as of pick_labeled. Records without a class wait in class 0's queue, where the published script
            has them.
        labeled: positions that were picked.

    Returns:
        list of the other positions.
    """
    labeled = set(labeled)
    queues = [collections.deque() for _ in stats]
    turn, ordered = Turn(stats), []
    label = turn.next()
    for position, own in enumerate(np.maximum(labels, 0).tolist()):
        if position in labeled:
            continue
        queues[own].append(position)
        while queues[label]:
            ordered.append(queues[label].popleft())
            turn.counts[label] += 1
            label = turn.next()
    return ordered + list(itertools.chain(*queues))


# --- Files ---


class Source:
    """The records that a dataset's splits are made of, as one sequence.

    Attributes:
        name: of the dataset.
        labels: int32 [n]; records.NO_CLASS where a record has none.
        stats: float64 [nclass], see `shares`.
    """

    def __init__(self, name, paths):
        self.name = name
        self._folder = os.path.dirname(paths[0])
        self._files = [records.RecordFile(path) for path in paths]
        self._first = np.cumsum([0] + [len(file) for file in self._files])
        self.labels = np.concatenate([self._classes(file) for file in self._files])
        if self.labels.max() < 0:
            raise utils.Error('%s: no record has a class' % ', '.join(paths))
        self.stats = shares(self.labels[self.labels >= 0], self._nclass())
        if name == 'stl10':
            self.stats[:] = 1
        if not self.stats.all():
            empty = int(np.argmin(self.stats))
            raise utils.Error('%s has no record of class %d of %d' % (name, empty, len(self.stats)))

    @staticmethod
    def _classes(file):
        # The published script writes 0 as the class of stl10's unlabelled pictures, which means nothing.
        _, labels, _ = file.check(unlabeled=True)
        classless = os.path.basename(file.path).endswith('-unlabeled.tfrecord')
        return np.full_like(labels, records.NO_CLASS) if classless else labels

    def _nclass(self):
        family = data_pair.FAMILIES.get(self.name)
        found = int(self.labels.max()) + 1
        if family and found > family.nclass:
            raise utils.Error('%s has %d classes, but a record has class %d' % (self.name, family.nclass, found - 1))
        return family.nclass if family else found

    def pick(self, size, seed):
        """Returns the positions of the labelled records, in file order."""
        if self.name == 'stl10' and size == STL10_FOLD:
            return sorted(self._fold(seed))
        return sorted(pick_labeled(self.labels, self.stats, size, seed))

    def _fold(self, line):
        """Returns the positions in a line, from 0, of stl10's published folds."""
        path = data_pair.stl10_folds(self._folder)
        if not os.path.isfile(path):
            raise utils.Error('%s is missing: copy fold_indices.txt of the archive of stl10 to it' % path)
        with open(path, encoding='ascii', errors='replace') as f:
            lines = f.read().splitlines()
        if line >= len(lines):
            raise utils.Error('%s has %d folds, so that seed=%d is too large' % (path, len(lines), line))
        words = lines[line].split()
        fold = {int(word) for word in words if word.isdecimal()}
        if not len(fold) == len(words) == STL10_FOLD or not fold.issubset(np.flatnonzero(self.labels >= 0).tolist()):
            raise utils.Error('%s, line %d: not %d positions of labelled pictures' % (path, line + 1, STL10_FOLD))
        return fold

    def serialized(self, positions):
        """Yields the serialized records at some positions."""
        for position in positions:
            file = int(np.searchsorted(self._first, position, 'right')) - 1
            yield self._files[file].serialized(position - self._first[file])


def create(source, targets, size, seed):
    """Writes a split.

    Args:
        source: Source.
        targets: the files to write: labelled records, unlabelled records, map; see data_pair.split_files.
        size: number of labelled records.
        seed: int.

    Raises:
        utils.Error: a target exists, or there are too few records.
    """
    existing = [path for path in targets if os.path.lexists(path)]
    if existing:
        raise utils.Error('%s exists already and is never overwritten: remove the split first' % existing[0])
    labeled = source.pick(size, seed)
    unlabeled = order_unlabeled(source.labels, source.stats, labeled)
    label, unlabel, map_file = map(records.aside, targets)
    with (
        records.made(os.path.dirname(targets[0]) or '.'),
        map_file as map_part,  # All are named in the end, the map last.
        unlabel as unlabel_part,
        label as label_part,
    ):
        for part, positions in (label_part, labeled), (unlabel_part, unlabeled):
            desc = os.path.basename(part).rsplit('.part', 1)[0]
            records.write_part(part, source.serialized(positions), len(positions), desc)
        with open(map_part, 'w', encoding='ascii') as f:
            json.dump({'label': labeled, 'unlabel': unlabeled}, f)
    print('%s: %d labelled, %d unlabelled' % (targets[0].removesuffix('-label.tfrecord'), size, len(unlabeled)))


def define_flags():
    text = 'Seed of the choice of labels; 0: in file order. stl10@1000: line of the fold.'
    flags.DEFINE_integer('seed', 0, text, 0, 2**32 - 1)
    flags.DEFINE_integer('size', None, 'How many records keep their labels.', 1)
    flags.DEFINE_boolean('all', False, "Make the splits of the paper (seeds 1 to 5, its sizes) that aren't there yet.")


def main(argv):
    FLAGS = flags.FLAGS
    if len(argv) < 2:
        raise utils.Error('which dataset? Such as: python scripts/create_split.py --seed=3 --size=250 cifar10')
    if bool(FLAGS.all) == bool(FLAGS.size):
        raise utils.Error('give either --size=N (and --seed=N), or --all')
    if argv[2:]:  # The published form: prefix of the output, then record files.
        folder, name = os.path.split(argv[1])
        paths = argv[2:]
    else:
        data_dir = data_pair.find_data_dir(FLAGS.data_dir)
        folder, name = os.path.join(data_dir, 'SSL'), argv[1]
        paths = data_pair.train_files(data_dir, name)
    if FLAGS.all and name not in SIZES:
        raise utils.Error('the paper has no splits of %s: give --size and --seed' % name)
    wanted = [(size, seed) for size in SIZES[name] for seed in SEEDS] if FLAGS.all else [(FLAGS.size, FLAGS.seed)]
    source = Source(name, paths)
    for size, seed in wanted:
        targets = data_pair.split_files(folder, name, seed, size)
        if FLAGS.all and all(map(os.path.isfile, targets)):
            continue
        create(source, targets, size, seed)


if __name__ == '__main__':
    define_flags()
    utils.setup_tf()
    utils.run(main)
