"""What a dataset of a name is, a user's own as NAME.json; what is allowed."""

import contextlib
import dataclasses
import json
import re
import unicodedata

from libml import files, records, utils
from libml.utils import escape, require

NAME = r'[A-Za-z0-9_][A-Za-z0-9_-]*'  # Of a dataset.


@dataclasses.dataclass(frozen=True)
class Family:
    """What the datasets of one name have in common.

    Attributes:
        height, width, colors, nclass: ints.
        mirror, shift: the augmentation, see data.augment.
        parts: the record files that splits are made of, `<source>-<part>.tfrecord`. The test set is always
            `<name>-test.tfrecord`.
        source: the dataset whose record files are used, as svhn_noextra uses those of svhn; '': its own.
        classes: names of the classes; () if they have none.
        range: (lowest, highest) value of the pictures that were deeper than 8 bits; () if none was.
    """

    height: int
    width: int
    colors: int
    nclass: int
    mirror: bool
    shift: int
    parts: tuple = ('train',)
    source: str = ''
    classes: tuple = ()
    range: tuple = ()

    @property
    def shape(self):
        return self.height, self.width, self.colors

    @property
    def treatment(self):
        """How pictures are treated, as args.json keeps it."""
        return dict(shape=list(self.shape), mirror=self.mirror, shift=self.shift, range=list(self.range))

    @property
    def names(self):
        """The names of the classes; their numbers if they have no names."""
        return self.classes or tuple(map(str, range(self.nclass)))


# --- NAME.json ---


def read_family(path):
    """Reads the Family in a .json file that write_family wrote; raises utils.Error if it is damaged."""
    text = '%s does not describe a dataset (%s): make the dataset again'
    return files.parse_json(path, lambda fields: check_family(Family(**fields)), text)


def write_family(path, family):
    """Writes what read_family reads; raises utils.Error if the Family says what cannot be."""
    fields = {key: value for key, value in dataclasses.asdict(check_family(family)).items() if key != 'source'}
    with files.naming(path), open(path, 'w', encoding='utf-8') as file:
        json.dump(fields, file, indent=2)


def check_family(family):
    """Returns a user's own Family, its lists as tuples; raises utils.Error where a field is not what it must be."""
    lists = {name: tuple(value) for name, value in vars(family).items() if isinstance(value, list)}
    family = dataclasses.replace(family, **lists)
    for name, (is_right, allowed) in RIGHT.items():
        value = getattr(family, name)
        require(name, escape(shorten(repr(value))), is_right(family, value), allowed)
    _check_classes(family.classes)
    return family


def _is_whole(value, low, high):
    return type(value) is int and low <= value <= high


def _is_range(value):
    numbers = isinstance(value, tuple) and len(value) == 2 and all(type(x) in (int, float) for x in value)
    return value == () or (numbers and -1e300 < value[0] < value[1] < 1e300)


def _are_texts(value):
    return isinstance(value, tuple) and all(isinstance(text, str) for text in value)


def _check_classes(names):
    for name in names:
        text = 'classes: %s is empty, or has characters that are no text'
        utils.refuse(not name or any(map(utils.is_control, name)), text, escape(ascii(name)))
    utils.refuse(len(set(names)) < len(names), 'classes: two classes have the same name')


SIDE = (lambda _, value: _is_whole(value, 1, records.MAX_SIDE), 'a whole number from 1 to %d' % records.MAX_SIDE)
RIGHT = dict(  # By field: whether a Family's value is right, the fields before it being so; and what it must be.
    height=SIDE,
    width=SIDE,
    colors=(lambda _, value: type(value) is int and value in (1, 3), '1 or 3'),
    nclass=(lambda _, value: _is_whole(value, 2, 1 << 20), 'a whole number from 2 to 2^20'),
    mirror=(lambda _, value: type(value) is bool, 'true or false'),
    shift=(lambda family, value: _is_whole(value, 0, min(family.shape[:2]) - 1), 'a whole number below both sides'),
    parts=(lambda _, value: value in (('train',), ('train', 'unlabeled')), 'train, or train and unlabeled'),
    source=(lambda _, value: value == '', "empty: only a published dataset uses another one's records"),
    range=(lambda _, value: _is_range(value), 'two finite numbers, the lower one first'),
    classes=(lambda family, value: _are_texts(value) and len(value) in (0, family.nclass), 'nclass texts'),
)


# --- Names of classes ---


LONGEST_NAME = 255  # Letters of a class: more cannot name a folder, and are probably a text from another column.
COLUMN = 40  # Letters of a text that is shown beside others, at most.
JOINERS = '\u200c\u200d'  # Invisible, but a part of words in some scripts.
BLANK = re.compile('[\u034f\u115f\u1160\u180b-\u180f\ufe00-\ufe0f]')  # Nothing to see, though no format characters.


def read_class(name, where):
    """Returns a class's name in Unicode's composed form (NFC).

    `where` is the folder or table that holds the name; utils.Error names it if this cannot be the name of a class.
    """
    text = ''
    if any(map(utils.is_control, name)):
        text = '%s holds the class %s, whose name is not UTF-8 or has a control character: rename it'
    elif any(unicodedata.category(c) == 'Cf' and c not in JOINERS for c in name):
        text = '%s holds the class %s, whose name has an invisible character: rename it'
    utils.refuse(text, text, escape(where), escape(ascii(shorten(name))))
    text = '%s has a class whose name has %d letters, at most %d are allowed: %s'
    utils.refuse(len(name) > LONGEST_NAME, text, escape(where), len(name), LONGEST_NAME, escape(shorten(name)))
    return unicodedata.normalize('NFC', ' '.join(name.split()))


def make_class_key(name):
    """Returns what is the same for all names of classes that a person takes for one.

    Capital letters, width, composed form, invisible characters, spaces, underscores and hyphens between words, zeros
    before a number and the `.0` behind it make no difference; nor that a spreadsheet took UTF-8 for its own code page.
    """
    with contextlib.suppress(UnicodeError):
        name = name.encode('cp1252').decode('utf-8')
    text = ''.join(c for c in unicodedata.normalize('NFKC', name) if unicodedata.category(c) != 'Cf')
    text = re.sub(r'(?<=\w)[\s_-]+(?=[^\W_])', ' ', BLANK.sub('', text).casefold())
    return re.sub(r'(?<![\w.,])0+(?=\d)|(?<=\d)[.]0+(?![\w.])', '', text)


def check_distinct(places):
    """Raises utils.Error where a person takes two names of classes for one; places: {name: where it stands}."""
    alike = {}
    for name in places:
        alike.setdefault(make_class_key(name), []).append(name)
    pairs = [
        ' and '.join('%s (%s)' % (escape(name), places[name]) for name in names)
        for names in alike.values()
        if names[1:]
    ]
    text = '%s: one class, or several? Write them alike, or give --similar_classes if they are meant to differ'
    utils.refuse(pairs, text, '; '.join(pairs[:4] + ['...'] * (len(pairs) > 4)))


def shorten(text, most=COLUMN):
    """Returns a text, its middle left out if it has more than `most` letters."""
    return text if len(text) <= most else text[: most // 2] + '…' + text[1 - most // 2 :]


# --- What a user asks for ---


def parse_size(text):
    """Returns (height, width) of a text such as '48x32', which names the width first."""
    match = re.fullmatch(r'([0-9]{1,4})x([0-9]{1,4})', text)
    if not match or not all(1 <= int(side) <= records.MAX_SIDE for side in match.groups()):
        raise utils.Error('size=%s: give WIDTHxHEIGHT, such as 32x32, at most %d a side' % (text, records.MAX_SIDE))
    return int(match[2]), int(match[1])


def parse_augment(text, size):
    """Returns (mirror, shift) of a text such as 'mirror,shift4' or '', checked against size = (height, width).

    None: mirror, and a shift by an eighth of the smaller side, as for CIFAR and STL-10.
    """
    if text is None:
        return True, min(size) // 8
    match = re.fullmatch(r'(mirror)?,?(?:shift([0-9]{1,4}))?', text)
    utils.refuse(not match, "augment=%s: give mirror, shift<pixels>, both as in 'mirror,shift4', or ''", text)
    mirror, shift = bool(match[1]), int(match[2] or 0)
    check_shift(shift, *size)
    return mirror, shift


def parse_range(text):
    """Returns (low, high) of a text such as '0,4095'; () of ''."""
    if not text:
        return ()
    try:
        found = tuple(map(float, text.split(',')))
    except ValueError:
        found = None
    allowed = 'range=%s: give LOW,HIGH, such as 0,4095: the values that become black and white'
    utils.refuse(not _is_range(found), allowed, text)
    return found


def check_shift(shift, height, width):
    """Raises utils.Error unless images of that size can be padded by reflection."""
    text = 'images of %dx%d cannot be shifted by %d pixels: choose less'
    utils.refuse(not 0 <= shift < min(height, width), text, height, width, shift)
