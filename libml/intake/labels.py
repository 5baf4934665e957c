"""The table of labels: a CSV file that says which picture is of which class, and for what."""

import collections
import csv
import io
import os
import re
import unicodedata
from typing import NamedTuple

from libml import files, utils
from libml.family import make_class_key, read_class, shorten
from libml.intake import label_studio, pictures
from libml.utils import escape


class Row(NamedTuple):
    """A row of a table of labels: where it stands, in words; and its cells, '' where there is none."""

    place: str
    file: str
    label: str
    split: str
    group: str


class Table(NamedTuple):
    """A table of labels as it stands; known columns have the names of COLUMNS."""

    lines: list  # Of text, with their ends.
    ends: list  # The lines where the header and each row end.
    delimiter: str
    columns: list
    rows: list  # (place in words, cells) of each.


COLUMNS = dict(  # What a column may be called.
    file=('file', 'filename', 'path', 'image'),
    **{'class': ('class', 'label', 'category', 'choice')},
    split=('split',),
    group=('group',),
)
SKIPPED = 'was_cancelled'  # Label Studio's column; a picture where it is true has no class.
FORMULA = tuple('=+-@\t\r＝＋－＠ ')  # What a formula begins with in a spreadsheet; and a space, which is lost.
NO_TABLES = {b'PK\x03\x04': 'a workbook', b'\xd0\xcf\x11\xe0': 'a workbook', b'%PDF': 'a PDF'}


def read_labels(path):
    """Returns a list of Row: a CSV file with the columns `file` and `class`, perhaps `split` and `group`.

    Commas, semicolons or tabs part the columns, or what a first line such as `sep=;` says. The text is UTF-8 or, with a
    byte-order mark, UTF-16. Other columns are ignored. JSON is read as an export of Label Studio.

    Raises:
        utils.Error: it is no such file.
    """
    return read_rows(path, read_table(path))


def read_rows(path, table):
    """Returns the list of Row of a Table; raises utils.Error, which names `path`, where a row is wrong."""
    return [_read_row('%s, %s' % (path, place), place, table.columns, cells) for place, cells in table.rows]


def read_table(path):
    """Returns the Table in a file, see read_labels; rows without a cell are left out."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise utils.Error('%s is no file: give a table' % escape(path))
    with files.reading(path) as file:
        content = file.read()
    for mark, what in NO_TABLES.items():
        if content.startswith(mark):
            raise utils.Error('%s is %s, not a table of text: save it as "CSV UTF-8"' % (escape(path), what))
    try:
        text, places = content.decode('utf-16' if content[:2] in (b'\xff\xfe', b'\xfe\xff') else 'utf-8-sig'), []
    except UnicodeError as error:
        raise utils.Error('%s is not UTF-8: save it as "CSV UTF-8"' % escape(path)) from error
    if text[:64].lstrip().startswith(('[', '{')):
        text, places = label_studio.read_export(path)
    lines = list(io.StringIO(text, newline=''))
    first = lines[0] if lines else ''
    said = re.fullmatch(r'"?sep=(.)"?\s*', first)
    before, delimiter = bool(said), said[1] if said else max(',;\t', key=first.count)
    # Not by pandas, which tells no line numbers and lets a stray quote pass.
    reader = csv.reader(lines[before:], delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        columns = _find_columns(path, next(reader, []))
        ends, rows = [before + reader.line_num], []
        for number, cells in enumerate(reader):
            if any(cells):
                ends.append(before + reader.line_num)
                rows.append((places[number] if places else 'line %d' % ends[-1], cells))
    except csv.Error as error:
        raise utils.Error('%s, line %d: %s' % (escape(path), reader.line_num, error)) from error
    return Table(lines, ends, delimiter, columns, rows)


def _find_columns(path, header):
    """Returns the names of a table's columns, the known ones as the keys of COLUMNS."""
    columns = [name.strip().lower() for name in header]
    if 'choice' in columns:  # Of Label Studio: what was answered. Other classes are what the tasks came with.
        columns = ['' if name in COLUMNS['class'] and name != 'choice' else name for name in columns]
    for name, others in COLUMNS.items():
        if name not in columns:
            columns = [name if column in others else column for column in columns]
        if columns.count(name) > 1 or (name in ('file', 'class') and name not in columns):
            text = '%s has %d columns named %r: its header must be such as file,class, and is %s; meant are %s'
            shown = escape(repr(shorten(','.join(header))))
            meant = ', '.join(' or '.join(names) for names in COLUMNS.values())
            raise utils.Error(text % (escape(path), columns.count(name), name, shown, meant))
    return columns


def _read_row(where, place, columns, cells):
    cell = collections.defaultdict(str, zip(columns, cells, strict=False))
    label, split, group = (' '.join(cell[name].split()) for name in ('class', 'split', 'group'))
    if disarm(label[1:], "'") == label:
        label = label[1:]
    if cell[SKIPPED].lower() == 'true':
        label = ''
    row = Row(place, cell['file'], read_class(label, where), split.lower(), group)
    is_list = re.fullmatch(r'[\[{] ?(["\'].*)?[\]}]', row.label)  # Of names; [other] is a name itself.
    faults = [
        any(cells[len(columns) :]) and 'has more cells than the header: a comma inside a cell needs quotes around it',
        is_list and 'the class is a list, %s: give one class a row' % escape(shorten(row.label)),
        not row.file and 'has no file',
        row.split not in ('', 'train', 'test') and 'split is %s: it must be train or test' % escape(repr(row.split)),
        row.split == 'test' and not row.label and '%s is for testing, but has no class' % escape(row.file),
    ]
    if any(faults):
        raise utils.Error('%s: %s' % (where, next(filter(None, faults))))
    return row


def find_classes(rows):
    """Returns {class: the places where it stands, in words} of a list of Row."""
    places = collections.defaultdict(list)
    for row in rows:
        places[row.label].append(row.place)
    places.pop('', None)
    return {name: first + ' and %d more' % len(more) * bool(more) for name, (first, *more) in places.items()}


def warn_of_similar_groups(rows):
    """Warns on stderr of a group in test that a person takes for one in train, see family.make_class_key."""
    train = {make_class_key(row.group): row.group for row in rows if row.label and row.split != 'test'}
    for group in sorted({row.group for row in rows if row.group and row.split == 'test'}):
        if (other := train.get(make_class_key(group), group)) != group:
            text = 'the group %s is in train, and %s in test: if they are one, write them alike'
            utils.warn(text % (escape(other), escape(group)))
            return


def match_rows(table, folder, rows, found, unused, skip_bad):
    """Returns {path of a picture: the Row that names it}.

    Args:
        table, rows: path of the table and its list of Row; folder, found, unused: see pictures.list_files.
        skip_bad: pass over rows of files that cannot be read.

    Raises:
        utils.Error: rows contradict each other, or name files that are not there (they are listed on stderr).
    """
    index, by_path, wrong = Index(folder, found), {}, []
    for row in rows:
        path, reason = index.find(row.file, unused)
        if path is None or (path in unused and not skip_bad):
            wrong.append('%s, %s: %s %s' % (table, row.place, escape(row.file), reason))
        elif path not in unused and by_path.setdefault(path, row)[2:] != row[2:]:
            text = '%s: %s and %s contradict each other on %s'
            raise utils.Error(text % (table, by_path[path].place, row.place, escape(path)))
    utils.print_list(wrong)
    if wrong:
        raise utils.Error('%d rows of %s name no picture in %s, see above' % (len(wrong), table, escape(folder)))
    return by_path


class Index:
    """Finds the pictures in a folder by what a table calls them."""

    def __init__(self, folder, found):
        self._folder = os.path.abspath(folder)
        self._exact = {_compose(path): path for path in found} | {path: path for path in found}
        self._loose = collections.defaultdict(list)  # By the file's name, and by that without its ending.
        for path in found:
            for key in set(_list_names(path)):
                self._loose[key].append(path)
        self._similar = {make_class_key(name): paths[0] for name, paths in self._loose.items()}

    def find(self, file, unused):
        """Returns (path, '') of a picture, (path, reason) of a file that is not used, or (None, reason)."""
        name = file.strip()
        others = label_studio.list_paths(name, os.path.basename(self._folder))
        spellings = (file, name, name.replace('\\', '/'), *others)
        if set(map(os.path.dirname, others)) == {''}:  # The name of an uploaded file, which may be in any folder.
            path, spellings = _compose(others[0]), ()
        for spelling in spellings:
            if os.path.isabs(spelling):
                spelling = os.path.relpath(spelling, self._folder)
            path = os.path.normpath(spelling)
            path = path if path in self._exact else _compose(path)
            if path in self._exact:
                return self._exact[path], ''
            if path in unused:
                return path, ('lies ' if unused[path] == pictures.SYSTEM else 'is ') + unused[path]
        several = self._loose.get(path, ()) if os.sep not in path else ()
        if several[1:]:
            return None, 'is the name of %d pictures: say in which folder' % len(several)
        if several:
            return several[0], ''
        # Not the nearest name by difflib: of numbered pictures, 30.png is near 20.png, but another picture.
        similar = next(
            (self._similar[key] for key in map(make_class_key, _list_names(path)) if key in self._similar), ''
        )
        return None, 'is not there' + (similar and ', but %s is' % escape(similar))


def _list_names(path):
    """Returns the name of a file, and its name without its ending."""
    name = _compose(os.path.basename(path))
    return name, os.path.splitext(name)[0]


def _compose(path):
    return unicodedata.normalize('NFC', path)


def disarm(text, before='./'):
    """Returns the text of a cell, with `before` before it where a spreadsheet would take it for a formula."""
    return before + text if text.startswith(FORMULA) else text
