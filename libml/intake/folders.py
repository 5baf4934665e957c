"""People's own pictures, made into a dataset: which is of what class and for what, and their records.

PICTURES/train/<class>/**    PICTURES/test/<class>/** (or a fraction of train)    PICTURES/unlabeled/** (optional)
PICTURES/<class>/**          PICTURES/unlabeled/** (optional)                     with a fraction for testing
PICTURES/**                  and a table of labels, a CSV file
"""

import collections
import dataclasses
import hashlib
import itertools
import os
import sys
import unicodedata
from typing import NamedTuple

import numpy as np

from libml import data_pair, files, records, utils
from libml.family import Family, check_distinct, parse_augment, parse_range, parse_size, read_class, shorten
from libml.intake import labels, pictures
from libml.published import check_new_name
from libml.utils import escape

UNLABELED = ('unlabeled', 'unlabelled')
# Names that are probably no class, but a part of a dataset.
PARTS = frozenset({'train', 'training', 'test', 'testing', 'val', 'valid', 'validation', *UNLABELED})
NO_NAMES = frozenset({'nan', 'none', 'null', 'n/a', 'na', '?'})  # What people write where there is no class.
NO_ROW = labels.Row('', '', '', '', '')
BATCH = 256  # Pictures encoded at a time, at most.
NAMED = 3  # Files of equal pictures that are named, at most: thousands may be blank.

BESIDE_LAYOUT = 'beside train, in no folder of the layout'
BESIDE_CLASSES = 'beside the class folders'
UNREADABLE = 'cannot be read'
OF_TEST_GROUPS = 'without a class, of a group that is in test'


class Item(NamedTuple):
    """A picture of a dataset: its path in PICTURES, its label (or records.NO_CLASS), its group (or None)."""

    path: str
    label: int
    group: str | None = None


@dataclasses.dataclass
class Plan:
    """What becomes of the files in PICTURES.

    Attributes:
        classes: names, in the order of their labels.
        parts: dict from 'train', 'test' and, where there are such, 'unlabeled' to lists of Item.
        unused: dict from the path of every other file to the reason.
    """

    classes: tuple
    parts: dict
    unused: dict


# --- Folders named after classes ---


def plan_folders(folder, test_fraction=None, seed=0, similar=False, rows=None):
    """Plans a dataset whose pictures lie in folders named after their classes.

    Args:
        folder: PICTURES, laid out in one of the ways at the top of this module, without a table.
        test_fraction: share of each class set aside for testing: required without a folder `test`, forbidden with it.
        seed: of what is set aside.
        similar: whether names of classes may differ by what a person overlooks, see family.make_class_key.
        rows: {path of an unlabelled picture: its labels.Row}, see `_adds_to_folders`.

    Raises:
        utils.Error: the folder is laid out in another way; a class has no picture.
    """
    found, unused = pictures.list_files(folder)
    names = pictures.list_folders(folder)
    nested = 'train' in names
    if nested:
        test = escape(os.path.join(folder, 'test'))
        _check_fraction(test_fraction, 'test' in names, test + ' exists', test + ' is missing')
    else:
        _check_flat(folder, names, test_fraction)
    parts = ('train', 'test') if 'test' in names else ('train',)
    places = {part: os.path.join(folder, part if nested else '') for part in parts}
    folders = {  # By part: {name of a folder: name of its class}.
        part: {name: read_class(name, place) for name in pictures.list_folders(place) if name not in UNLABELED}
        for part, place in places.items()
    }
    classes = {own: escape(os.path.join(places[part], name)) for part in parts for name, own in folders[part].items()}
    plan, numbers = _make_plan(escape(places['train']), classes, unused, similar)
    _check_test_classes(folder, folders)
    for path in found:
        part, own = _place(path, nested)
        if part in UNLABELED:
            row = (rows or {}).get(path, NO_ROW)
            item = Item(path, numbers.get(row.label, records.NO_CLASS), row.group or None)
            plan.parts['train' if row.label else 'unlabeled'].append(item)
        elif own in folders.get(part, ()):
            plan.parts[part].append(Item(path, numbers[folders[part][own]]))
        else:
            unused[path] = BESIDE_CLASSES if part in folders else BESIDE_LAYOUT
    return _finish(plan, folder, test_fraction, seed)


def _check_flat(folder, names, test_fraction):
    """Raises utils.Error unless the folders in PICTURES, which has no `train`, can all be classes."""
    train = os.path.join(folder, 'train')
    parts = [name for name in names if name.lower() in PARTS and name not in UNLABELED]
    if parts:
        text = '%s is missing beside %r: training pictures go to PICTURES/train/<class>/; '
        text += 'write train, test and unlabeled in small letters'
        raise utils.Error(text % (escape(train), escape(parts[0])))
    text = '%s is missing: pictures go to PICTURES/train/<class>/; or, with --test_fraction, to PICTURES/<class>/'
    utils.refuse(test_fraction is None, text, escape(train))


def _check_fraction(test_fraction, has_test, found, missing):
    """Raises utils.Error unless there is either a test set or a fraction. found, missing: beginnings of the error."""
    if has_test and test_fraction is not None:
        raise utils.Error(found + ': leave --test_fraction out')
    if not has_test and test_fraction is None:
        raise utils.Error(missing + ': give --test_fraction=.2, say, to set training pictures aside')


def _check_test_classes(folder, folders):
    """Raises utils.Error if test has a class that train lacks; tells of classes that have several folders."""
    known = set(folders['train'].values())
    for part, found in folders.items():
        for name, times in collections.Counter(found.values()).items():
            text = '%s has the class %r, which the training pictures lack'
            utils.refuse(name not in known, text, escape(os.path.join(folder, part)), name)
            if times > 1:
                print('%s: %d folders are one class, %s, in different spellings' % (part, times, escape(name)))


def _place(path, nested):
    """Returns (part, name of the class folder or '') of a picture's path.

    If nested, the part is the first folder, whatever its name; '' for a file in PICTURES. Otherwise it is 'train'.
    """
    head, *rest = path.split(os.sep)
    if rest and head in UNLABELED:
        return head, ''
    if nested:
        return head if rest else '', rest[0] if len(rest) > 1 else ''
    return 'train', head if rest else ''


def plan_table(folder, table, test_fraction=None, seed=0, skip_bad=False, similar=False):
    """Plans a dataset whose classes are in a table. Pictures without a row or a class are unlabelled.

    If it `_adds_to_folders`, pictures without a row are what plan_folders makes of them.

    Args:
        folder: PICTURES; laid out in any way.
        table: its path, see labels.read_labels. Its files are relative to PICTURES. A file without a folder is
            searched in all folders, with or without its ending; then only one picture may have that name.
        test_fraction, seed, similar: see `plan_folders`; the first is needed where the table names no test pictures.
        skip_bad: pass over rows of files that cannot be read.

    Raises:
        utils.Error: the table is not right, or rows name files that are not there (they are listed on stderr).
    """
    rows = labels.read_labels(table)
    found, unused = pictures.list_files(folder)
    by_path = labels.match_rows(table, folder, rows, found, unused, skip_bad)
    classes = labels.find_classes(rows)
    if _adds_to_folders(folder, by_path, classes):
        print('%s only names unlabelled pictures: all others have the class of their folder' % escape(table))
        return plan_folders(folder, test_fraction, seed, similar, by_path)
    plan, numbers = _make_plan(table, classes, unused, similar)
    has_test, missing = any(row.split == 'test' for row in rows), ' names no test pictures in a column `split`'
    _check_fraction(test_fraction, has_test, table + ' names test pictures', table + missing)
    for path in found:
        row = by_path.get(path, NO_ROW)
        part = (row.split or 'train') if row.label else 'unlabeled'
        plan.parts[part].append(Item(path, numbers.get(row.label, records.NO_CLASS), row.group or None))
    places = {path: _place(path, nested=True) for path in found if path not in by_path}
    if lost := [path for path, (part, own) in places.items() if part in ('train', 'test') and own]:
        text = '%s alone says the classes: %d pictures in class folders have no row there and get none, such as %s'
        utils.warn(text % (table, len(lost), escape(lost[0])))
    labels.warn_of_similar_groups(rows)
    torn = {item.group for item in plan.parts['train']} & {item.group for item in plan.parts['test']} - {None}
    if torn:
        text = '%s has pictures of group %s both in train and in test: a group must be on one side'
        raise utils.Error(text % (table, escape(repr(min(torn)))))
    return _finish(plan, folder, test_fraction, seed)


def _adds_to_folders(folder, by_path, classes):
    """Returns whether a table, such as a review's, only gives classes that have folders to unlabelled pictures."""
    if any(row.split == 'test' or _place(path, nested=True)[0] not in UNLABELED for path, row in by_path.items()):
        return False
    place = os.path.join(folder, 'train' if 'train' in pictures.list_folders(folder) else '')
    return bool(classes) and set(classes) <= {read_class(name, place) for name in pictures.list_folders(place)}


# --- What all layouts share ---


def _make_plan(where, classes, unused, similar):
    """Returns a Plan without pictures, and {class: label}; warns of names that are probably a mistake.

    `where` names the source of the classes, a dict {name: where it stands}; utils.Error if they are fewer than two, or
    alike although not `similar`.
    """
    if not similar:
        check_distinct(classes)
    classes = sorted(classes)
    utils.refuse(len(classes) < 2, '%s: at least 2 classes are needed, and %d found', where, len(classes))
    for name in classes:
        if name.lower() in PARTS | NO_NAMES:
            utils.warn('%r is taken for the name of a class' % escape(name))
    parts = dict(train=[], test=[], unlabeled=[])
    return Plan(tuple(classes), parts, unused), {name: label for label, name in enumerate(classes)}


def _finish(plan, folder, test_fraction, seed):
    """Sets test pictures aside if asked, checks the classes, leaves out unlabelled pictures of test groups, warns."""
    if test_fraction is not None:
        _check_parts(plan, folder, ['train'])
        plan.parts['train'], plan.parts['test'] = take_test(plan.parts['train'], plan.classes, test_fraction, seed)
    _check_parts(plan, folder, ['train', 'test'])
    testing = {item.group for item in plan.parts['test']} - {None}
    unlabeled = plan.parts.pop('unlabeled')
    plan.unused.update((item.path, OF_TEST_GROUPS) for item in unlabeled if item.group in testing)
    if rest := [item for item in unlabeled if item.group not in testing]:
        plan.parts['unlabeled'] = rest
    _warn_of_shared_files(plan, folder)
    return plan


def _warn_of_shared_files(plan, folder):
    """Warns on stderr of files that links bring both into test and into training."""
    tests = {_identify(folder, item): item.path for item in plan.parts['test']}
    others = [item for part in set(plan.parts) - {'test'} for item in plan.parts[part]]
    pairs = [(item.path, tests[file]) for item in others if (file := _identify(folder, item)) in tests]
    if pairs:
        text = '%d test pictures train as well, through links: %s and %s are one file, for example'
        utils.warn(text % (len(pairs), *map(escape, min(pairs))))


def _identify(folder, item):
    found = os.stat(os.path.join(folder, item.path))
    return found.st_dev, found.st_ino


def _check_parts(plan, folder, parts):
    """Raises utils.Error unless each part has pictures: `unlabeled` any, the others some of each class."""
    for part in parts:
        wanted = {records.NO_CLASS} if part == 'unlabeled' else set(range(len(plan.classes)))
        for label in sorted(wanted - {item.label for item in plan.parts[part]}):
            what = 'of class %s for %s' % (escape(plan.classes[label]), part) if label >= 0 else 'without a class'
            reasons = ', '.join('%d (%s)' % (n, why) for why, n in collections.Counter(plan.unused.values()).items())
            raise utils.Error('%s: no picture %s; not used: %s' % (escape(folder), what, reasons or 'none'))


def take_test(items, classes, fraction, seed):
    """Splits items in two, the second for testing, with about `fraction` of each class; a group stays together.

    A hash of the seed and the path, or the name of the group, says on which side a picture is. So it stays there when
    other pictures or labels are added; and of a class with n pictures, fraction * n are set aside only on average, give
    or take the square root of that. Each class has a picture on either side: where the hash leaves none, the nearest
    one crosses over.

    `items` is a list of Item, `classes` are the names by label. Returns (rest, aside), in the order of `items`.

    Raises:
        utils.Error: a class has too few pictures or groups, or fraction is not between 0 and 1.
    """
    utils.refuse(not 0 < fraction < 1, 'test_fraction=%g: must be between 0 and 1', fraction)
    counts = collections.Counter(item.label for item in items)
    for label, count in sorted(counts.items()):
        text = 'class %s has %d pictures: too few to set a share of %g aside'
        utils.refuse(max(1, round(fraction * count)) >= count, text, escape(classes[label]), count, fraction)
    keys = [('file', item.path) if item.group is None else ('group', item.group) for item in items]
    brought, have = collections.defaultdict(collections.Counter), collections.Counter()
    for key, item in zip(keys, items, strict=True):
        brought[key][item.label] += 1
    places = {key: _hash(seed, *key) for key in brought}
    order = sorted(brought, key=places.get)
    taken = {key for key in order if places[key] < fraction}
    for key in taken:
        have.update(brought[key])
    for label in sorted(counts):
        if have[label] == counts[label]:  # All are for testing: the last of them goes back, if it can be spared.
            able = [key for key in order if label in brought[key]]
            key = max(able, key=lambda key: (all(have[x] > n for x, n in brought[key].items()), places[key]))
            taken.remove(key)
            have.subtract(brought[key])
    for label in sorted(counts):
        if not have[label]:
            able = [  # Each class must keep a training picture.
                key
                for key in order
                if label in brought[key] and all(have[each] + n < counts[each] for each, n in brought[key].items())
            ]
            text = 'class %s has too few groups to set one aside for testing'
            utils.refuse(not able, text, escape(classes[label]))
            taken.add(able[0])
            have.update(brought[able[0]])
    rest = [item for key, item in zip(keys, items, strict=True) if key not in taken]
    return rest, [item for key, item in zip(keys, items, strict=True) if key in taken]


def _hash(seed, kind, name):
    """Returns a number from 0 to 1 that depends on nothing else, on whatever system."""
    name = unicodedata.normalize('NFC', name).replace(os.sep, '/')
    digest = hashlib.sha256(('%d %s %s' % (seed, kind, name)).encode('utf-8', 'surrogateescape')).digest()
    return int.from_bytes(digest[:8], 'big') / 2**64


def format_plan(plan):
    """Yields the lines that tell what became of every file in PICTURES."""
    parts = [plan.parts.get(part, ()) for part in ('train', 'test', 'unlabeled')]
    train, test, unlabeled = (collections.Counter(item.label for item in items) for items in parts)
    names = [escape(shorten(name)) for name in plan.classes]
    rows = [('class', 'train', 'test'), *((name, train[label], test[label]) for label, name in enumerate(names))]
    if 'unlabeled' in plan.parts:
        rows.append(('unlabelled', unlabeled.total(), ''))
    rows.append(('all', train.total() + unlabeled.total(), test.total()))
    width = max(len(name) for name, _, _ in rows)
    for row in rows:
        yield ('%-*s %8s %8s' % (width, *row)).rstrip()
    if plan.unused:
        yield 'not used: %d' % len(plan.unused)
    for reason, count in collections.Counter(plan.unused.values()).items():
        example = next(path for path, why in plan.unused.items() if why == reason)
        yield '%8d %s, such as %s' % (count, reason, escape(example))


def check_free(data_dir, name):
    """As check_new_name; raises utils.Error as well if a file of that dataset is there."""
    check_new_name(name)
    paths = data_pair.locate_set(data_dir, name)
    advice = 'choose another --name; or remove %s: then the splits and runs of the old dataset will be refused'
    files.check_free(*paths, advice=advice % ', '.join(map(os.path.basename, paths)))


# --- The records ---


def make_dataset(folder, data_dir, o):
    """Writes the records of a folder of pictures and `<name>.json`, which makes the name a dataset.

    Args:
        folder: PICTURES, see the module.
        data_dir: folder of the datasets.
        o: EasyDict of name, size, augment and what create_datasets.OWN has; their meanings stand there.

    Raises:
        utils.Error: the folder is not laid out so; a picture cannot be read (each is listed on stderr); the dataset
            exists. Then nothing is written.
    """
    size = parse_size(o.size)
    augment, range = parse_augment(o.augment, size), parse_range(o.range)
    check_free(data_dir, o.name)
    if o.labels:
        plan = plan_table(folder, o.labels, o.test_fraction, o.seed, o.skip_bad, o.similar_classes)
    else:
        plan = plan_folders(folder, o.test_fraction, o.seed, o.similar_classes)
    kept = tuple(part for part in plan.parts if part != 'test')
    for part in kept:  # Shuffles: files in order often show the same thing.
        order = np.random.RandomState(o.seed).permutation(len(plan.parts[part]))
        plan.parts[part] = [plan.parts[part][i] for i in order]
    classes = plan.classes
    family = Family(*size, o.colors, len(classes), *augment, parts=kept, classes=classes, range=range)

    path, sources = data_pair.locate_sources(data_dir, o.name), {}
    files.refuse_link(os.path.dirname(path))
    with files.making_folder(os.path.dirname(path)), files.replacing(path) as part:
        save(o.name, data_dir, family, _convert(plan, folder, family, o.max_megapixels, o.skip_bad, sources))
        names = {digest: _name(paths) for digest, paths in sources.items()}
        files.write_json(part, names)  # It gets its name right after the dataset, and only if the dataset does.
    for line in format_plan(plan):
        print(line)
    utils.say('%s is in %s' % (o.name, data_dir))


def save(name, data_dir, family, parts):
    """Writes the record files of a new dataset and its description, a Family, all or nothing.

    `parts` is an iterable of (part, iterable of serialized examples, their number).
    """
    names = (*family.parts, 'test')
    with files.creating(*data_pair.locate_set(data_dir, name, names)) as (*targets, description):
        for part, examples, total in parts:
            records.write_part(targets[names.index(part)], examples, total)
        data_pair.write_family(description, family)


def _name(paths):
    """Returns the paths of equal pictures as one text: the first NAMED of them, and how many more there are."""
    return '; '.join(paths[:NAMED]) + ' and %d more' % len(paths[NAMED:]) * (len(paths) > NAMED)


def _convert(plan, folder, family, max_megapixels, skip_bad, sources):
    """Yields the parts of a Plan as `save` takes them; at the end, removes unreadable pictures from the Plan.

    sources: a dict that gets {digest of pixels: paths}, see data_pair.read_sources.
    """
    kept = {item.group for part, items in plan.parts.items() if part != 'test' for item in items} - {None}
    bad, groups = {}, {group: number for number, group in enumerate(sorted(kept))}  # Records of test need no group.
    for part, items in plan.parts.items():
        paths = (os.path.join(folder, item.path) for item in items)
        images = pictures.convert_all(paths, family.shape[:2], family.colors, family.range, max_megapixels)
        yield part, _serialize_all(items, images, family.shape, bad, groups, sources), len(items)
    _leave_out(plan, folder, bad, skip_bad)


def _serialize_all(items, images, shape, bad, groups, sources):
    """Yields the serialized examples of items; notes {path: ValueError} of those that cannot be read in `bad`.

    The others are noted in `sources`, see _convert.
    """
    pairs = zip(items, images, strict=True)
    while batch := list(itertools.islice(pairs, min(BATCH, records.choose_batch_size(shape)))):
        bad.update((item.path, image) for item, image in batch if isinstance(image, ValueError))
        good = [(item, image) for item, image in batch if item.path not in bad]
        for item, image in good:  # Several files may have the same pixels.
            digest = pictures.hash_pixels(image).hex()
            sources.setdefault(digest, []).append(item.path)
        pngs = records.encode(np.stack([image for _, image in good])) if good else []
        for png, (item, _) in zip(pngs, good, strict=True):
            yield records.serialize(png, item.label, groups.get(item.group, records.NO_GROUP))


def _leave_out(plan, folder, bad, skip_bad):
    """Lists the unreadable pictures on stderr and removes them from the Plan.

    Raises utils.Error without skip_bad, if a picture has more than 8 bits a value, or if a class is left empty.
    """
    deep = {path: error for path, error in bad.items() if isinstance(error, pictures.TooDeep)}
    for path, error in bad.items():
        if path not in deep:
            print('%s: %s' % (escape(path), ' '.join(str(error).split())), file=sys.stderr)
    if deep:
        low, high = min(error.low for error in deep.values()), max(error.high for error in deep.values())
        top = high if low < high else low + 1
        text = '%d pictures have more than 8 bits a value, from %.9g to %.9g, such as %s: give --range=%.9g,%.9g, say'
        raise utils.Error(text % (len(deep), low, high, escape(next(iter(deep))), low, top))
    text = '%d pictures cannot be read, see above: mend or remove them; or give --skip_bad or --max_megapixels'
    utils.refuse(bad and not skip_bad, text, len(bad))
    plan.unused.update(dict.fromkeys(sorted(bad), UNREADABLE))
    plan.parts = {part: [item for item in items if item.path not in bad] for part, items in plan.parts.items()}
    _check_parts(plan, folder, plan.parts)
