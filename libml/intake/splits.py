"""Splits: which records of a dataset keep their labels, by the rule of the published script."""

import collections
import glob
import itertools
import json
import os
import time

import numpy as np

from libml import data_pair, files, records, utils

STL10_FOLD = 1000  # Labels in each of the ten folds that stl10's archive publishes.
PATIENCE = 10  # Seconds that a process waits for the files of a split which another one is making.

# --- The rule ---


def compute_shares(labels, nclass):
    """Returns each class's share of the records, divided by the largest share: float64 [nclass]."""
    counts = np.bincount(labels, minlength=nclass).astype(np.float64)
    return counts / counts.max()


def choose_class(stats, counts):
    """Returns the class to pick next: the one furthest behind its share; of several, the lowest.

    Args:
        stats: float64 [nclass], see `compute_shares`.
        counts: int [nclass], how many were picked of each class.
    """
    return int(np.argmax(stats - counts / max(counts.max(), 1)))


def pick_labeled(labels, stats, size, seed):
    """Returns the positions of the `size` records that keep their labels, a list in the order they were picked.

    Args:
        labels: int [n], the class of each record; records.NO_CLASS where it has none: such are not picked.
        stats: float64 [nclass], see `compute_shares`.
        seed: int; 0: no shuffling.

    Raises:
        utils.Error: a class runs out.
    """
    members = [np.flatnonzero(labels == label) for label in range(len(stats))]
    if seed:
        random = np.random.RandomState(seed)
        for positions in members:
            random.shuffle(positions)
    counts, picked = np.zeros(len(stats), np.int64), []
    for _ in range(size):
        label = choose_class(stats, counts)
        text = 'size=%d: the %d pictures of class %d are used up after %d labels: choose a smaller size'
        utils.refuse(counts[label] == len(members[label]), text, size, len(members[label]), label, len(picked))
        picked.append(int(members[label][counts[label]]))
        counts[label] += 1
    return picked


def order_unlabeled(labels, stats, labeled):
    """Returns the positions that were not picked so that the first k, for every k, have the classes in proportion.

    Records without a class wait in class 0's queue, where the published script has them. labels, stats: see
    pick_labeled; labeled: the positions that were picked.
    """
    labeled = set(labeled)
    queues = [collections.deque() for _ in stats]
    counts, ordered = np.zeros(len(stats), np.int64), []
    label = choose_class(stats, counts)
    for position, own in enumerate(np.maximum(labels, 0).tolist()):
        if position in labeled:
            continue
        queues[own].append(position)
        while queues[label]:
            ordered.append(queues[label].popleft())
            counts[label] += 1
            label = choose_class(stats, counts)
    return ordered + list(itertools.chain(*queues))


def order_groups(positions, labels, groups, labeled):
    """Reorders unlabelled records so that the first ones can validate: they share no group with a labelled one.

    The groups that hold no labelled record come first, group by group; of these, the groups with a class before those
    without one. Then comes the rest. Within a group, and without groups, the order stays as it is.

    Args:
        positions: list of positions of unlabelled records, in their order.
        labels, groups: int [n], the class and the group of all records, or records.NO_CLASS and records.NO_GROUP.
        labeled: positions of the labelled records.

    Returns:
        list of the same positions, and how many of them share no group with a labelled record.
    """
    if np.all(groups == records.NO_GROUP):
        return positions, len(positions)
    single = -1 - len(groups) + np.arange(len(groups))  # A record of no group is a group of its own.
    groups = np.where(groups == records.NO_GROUP, single, groups).tolist()
    taken, with_class, first = {groups[i] for i in labeled}, set(), {}
    for place, i in enumerate(positions):
        first.setdefault(groups[i], place)
        with_class.update([groups[i]] if labels[i] != records.NO_CLASS else [])

    def rank(i):
        return 2 if groups[i] in taken else groups[i] not in with_class, first[groups[i]]

    return sorted(positions, key=rank), sum(groups[i] not in taken for i in positions)


# --- Files ---


class Source:
    """The records that a dataset's splits are made of, as one sequence.

    Attributes:
        name: of the dataset; folder: of its records.
        family: Family; None where the name is unknown.
        labels: int32 [n]; records.NO_CLASS where a record has none.
        groups: int64 [n]; records.NO_GROUP where a record has none.
        stats: float64 [nclass], see `compute_shares`.
        fingerprints: dict from the names of the files, and of the test set's where there is one, to their fingerprints.
    """

    def __init__(self, name, paths):
        """Opens the record files at `paths`; their folder may hold `<name>.json` and `<name>-test.tfrecord`.

        Raises:
            utils.Error: a file is missing or damaged; a class has no record, or is beyond the family's.
        """
        self.name = name
        self.folder = os.path.dirname(paths[0])
        self.family = data_pair.look_up_family(self.folder, name)
        self._files = [records.RecordFile(path) for path in paths]
        self._first = np.cumsum([0] + [len(file) for file in self._files])
        checked = (file.check(unlabeled=True)[1:] for file in self._files)
        self.labels, self.groups = map(np.concatenate, zip(*checked, strict=True))
        found = int(self.labels.max()) + 1
        nclass = self.family.nclass if self.family else found
        utils.refuse(not found, '%s: no record has a class', ', '.join(paths))
        utils.refuse(found > nclass, '%s has %d classes, but a record has class %d', name, nclass, found - 1)
        data_pair.check_gaps(name, self.labels, nclass)
        self.stats = np.ones(nclass) if name == 'stl10' else compute_shares(self.labels[self.labels >= 0], nclass)
        test = data_pair.locate_records(self.folder, name, 'test')
        known = self._files + ([records.RecordFile(test)] if os.path.isfile(test) else [])
        self.fingerprints = {os.path.basename(file.path): file.fingerprint for file in known}

    def pick(self, size, seed):
        """Returns the positions of the labelled records, in file order; size: int, or data_pair.ALL that have a label.

        Raises:
            utils.Error: there are fewer; or ALL is asked for where every record has one.
        """
        if size == data_pair.ALL:
            if self.labels.min() != records.NO_CLASS:
                text = '%s: all %d pictures have a label, and none would be unlabelled: say how many keep it, by '
                raise utils.Error((text + '--size=N, or by a number in place of `all`') % (self.name, len(self.labels)))
            return np.flatnonzero(self.labels != records.NO_CLASS).tolist()
        if self.name == 'stl10' and size == STL10_FOLD:
            return sorted(self._fold(seed))
        return sorted(pick_labeled(self.labels, self.stats, size, seed))

    def _fold(self, line):
        """Returns the positions in a line, from 0, of stl10's published folds."""
        path = data_pair.locate_stl10_folds(self.folder)
        text = '%s is missing: copy fold_indices.txt of the archive of stl10 to it'
        utils.refuse(not os.path.isfile(path), text, path)
        with open(path, encoding='ascii', errors='replace') as f:
            lines = f.read().splitlines()
        utils.refuse(line >= len(lines), '%s has %d folds, so that seed=%d is too large', path, len(lines), line)
        words = lines[line].split()
        fold = {int(word) for word in words if word.isdecimal()}
        if not len(fold) == len(words) == STL10_FOLD or not fold.issubset(np.flatnonzero(self.labels >= 0).tolist()):
            raise utils.Error('%s, line %d: not %d positions of labelled pictures' % (path, line + 1, STL10_FOLD))
        return fold

    def serialized(self, positions):
        """Yields the serialized records at some positions; those without a class say so, whatever their file says."""
        for position in positions:
            file = int(np.searchsorted(self._first, position, 'right')) - 1
            record = self._files[file].serialized(position - self._first[file])
            if self.labels[position] == records.NO_CLASS and (found := records.parse(record)).label != records.NO_CLASS:
                record = records.serialize(found.png, records.NO_CLASS, found.group)
            yield record


def create(source, targets, size, seed, remarks=True):
    """Writes a split to targets, see data_pair.locate_split; raises utils.Error if they exist, or as Source.pick.

    remarks: whether to warn on stderr of what may be a mistake; to read a split warns of most of it as well.
    """
    files.check_free(*targets, advice='to make the split again, remove %s first' % ', '.join(targets))
    labeled = source.pick(size, seed)
    unlabeled = order_unlabeled(source.labels, source.stats, labeled)
    unlabeled, free = order_groups(unlabeled, source.labels, source.groups, labeled)
    with files.making_folder(os.path.dirname(targets[0]) or '.'), files.creating(*targets) as (*parts, map_part):
        for part, positions in zip(parts, (labeled, unlabeled), strict=True):
            records.write_part(part, source.serialized(positions), len(positions))
        with open(map_part, 'w', encoding='utf-8') as f:
            json.dump({'label': labeled, 'unlabel': unlabeled, 'source': source.fingerprints}, f)
    path = targets[0].removesuffix('-label.tfrecord')
    utils.say('%s: %d labelled, %d unlabelled' % (path, len(labeled), len(unlabeled)))
    split, known = os.path.basename(path), np.count_nonzero(source.labels != records.NO_CLASS)
    if len(labeled) < known < len(source.labels):  # In a dataset of published pictures, all of them have labels.
        utils.warn('%s: %d of %d labels are not used' % (split, known - len(labeled), known))
    if remarks:
        _remark(split, source, labeled, unlabeled, free)


def _remark(split, source, labeled, unlabeled, free):
    """Warns of what may be a mistake; `free` of the unlabelled positions share no group with a labelled one."""
    count = len(unlabeled)
    names = source.family.names if source.family else tuple(map(str, range(len(source.stats))))
    data_pair.warn_of_classes(split, source.labels[labeled], names)
    if not count:
        text = '%s: no picture is left to be unlabelled: train %s-0 with --w_match=0, or choose a smaller --size'
        utils.warn(text % (split, split))
    elif source.labels[unlabeled].max() == records.NO_CLASS:
        utils.warn('%s: no picture with a class is left to validate: there will be no validation accuracy' % split)
    if free < count:
        text = '%s: %d unlabelled pictures share a group with a labelled one: at most the other %d can validate'
        utils.warn(text % (split, count - free, free))
    if not source.family:
        utils.warn('%s: %s' % (split, data_pair.explain_description(source.folder, source.name)))


def provide(split, data_dir):
    """Makes a data_pair.Split whose files are not there, if its dataset's records are, and says so.

    Raises:
        utils.Error: see data_pair.find_family, Source and `create`.
    """
    label, unlabel, map_file, test = split.files(data_dir).values()
    sources, targets = data_pair.locate_train_files(data_dir, split.name), (label, unlabel, map_file)
    files.discard_left(*targets)
    if all(map(os.path.isfile, (*sources, test))) and not any(map(os.path.lexists, targets)):
        text = '%s is not there yet: it is made now, as by `%s`'
        print(text % (split.stem, split.make_command(data_dir)), flush=True)
        try:
            create(Source(split.name, sources), targets, split.size, split.seed, remarks=False)
        except utils.Error:
            if not any(map(os.path.lexists, targets)):
                raise  # Else another process has made it meanwhile, such as the next run of a sweep.
    end, unnamed = time.monotonic() + PATIENCE, glob.escape(map_file) + '.part-*'  # See files.creating.
    while os.path.isfile(label) and not os.path.isfile(map_file) and glob.glob(unnamed) and time.monotonic() < end:
        time.sleep(0.1)  # Another process gives the files their names just now.


def read(name, data_dir=None, **how):
    """Returns the data.DataSet of a name such as 'photos.1@all-0'; first `provide`s its split.

    **how: further arguments of data_pair.read_dataset.
    """
    split, data_dir = data_pair.parse(name), data_pair.find_data_dir(data_dir)
    provide(split, data_dir)
    return data_pair.read_dataset(split, data_dir, **how)
