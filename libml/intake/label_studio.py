"""Label Studio's formats: tasks with guesses for it to show, and its exports, which hold an annotator's choices."""

import csv
import io
import json
import re
import urllib.parse
from xml.sax.saxutils import quoteattr

from libml import files, utils
from libml.family import shorten
from libml.utils import escape

LOCAL = '/data/local-files/?d='  # Where it serves local files; behind it, a path in its document root, / by default.
ADDRESS = re.compile(r'(?:https?://[^/]*)?/data/(?:(local-files/\?d=)|upload/(?:\d+/)?[0-9a-f]{8}-)(.+)')
KINDS = {  # What a field may have to be: the words, and a function of the value.
    'an object': lambda value: isinstance(value, dict),
    'a list of objects': lambda value: isinstance(value, list) and all(isinstance(item, dict) for item in value),
    'a list of names': lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
}


# --- Tasks ---


def make_config(classes):
    """Returns the labelling configuration for the names of some classes, XML on one line."""
    choices = ''.join('<Choice value=%s/>' % quoteattr(name) for name in classes)
    image = '<Image name="image" value="$image"/>'
    return '<View>%s<Choices name="choice" toName="image">%s</Choices></View>' % (image, choices)


def make_task(path, guess, confidence, version):
    """Returns the task of a picture, as JSON takes it.

    path: absolute; guess: name of a class; confidence: float, 0 to 1; version: says which model guessed.
    """
    choice = dict(id='guess', type='choices', from_name='choice', to_name='image', value={'choices': [guess]})
    prediction = dict(model_version=version, score=round(confidence, 6), result=[choice])
    return dict(data={'image': LOCAL + urllib.parse.quote(path.lstrip('/'))}, predictions=[prediction])


# --- Exports ---


def list_paths(address, folder):
    """Returns the paths that an address of a picture may stand for: absolute, or in a folder of that name; or [].

    An uploaded file has its name alone, without the eight digits that Label Studio puts before it.
    """
    match = ADDRESS.fullmatch(address)
    if not match:
        return []
    path = '/' * bool(match[1]) + urllib.parse.unquote(match[2]).replace('\\', '/').lstrip('/')
    within = path.partition('/%s/' % folder)[2]
    return [path, *([within] if within else []), path.lstrip('/')]


def read_export(path):
    """Reads an export in the format JSON or JSON-MIN.

    Returns:
        (text, places): a table of labels as CSV, with a row for each annotation that is not skipped and has a choice;
        and where each row comes from, in words.

    Raises:
        utils.Error: the file is not JSON, or a field is not what it must be.
    """
    rows, tasks = [], _take(path, {'the file': files.parse_json(path)}, 'the file', 'a list of objects')
    for number, task in enumerate(tasks, 1):
        place = 'task %d' % number
        where = '%s, %s' % (path, place)
        if 'annotations' not in task:  # JSON-MIN.
            rows.append((place, task))
            continue
        data = _take(where, task, 'data', 'an object')
        for count, annotation in enumerate(_take(where, task, 'annotations', 'a list of objects'), 1):
            where = '%s, %s, annotation %d' % (path, place, count)
            results = _take(where, annotation, 'result', 'a list of objects')
            values = [_take(where, each, 'value', 'an object') for each in results if each.get('type') == 'choices']
            names = [name for value in values for name in _take(where, value, 'choices', 'a list of names')]
            if names and not annotation.get('was_cancelled'):
                row = {**data, 'choice': names if names[1:] else names[0]}
                rows.append(('%s, annotation %d' % (place, count), row))
    if not rows:
        raise utils.Error('%s holds no choice: label some pictures, and export again' % escape(path))
    columns = dict.fromkeys(name for _, row in rows for name in row)
    table = csv.DictWriter(file := io.StringIO(newline=''), columns, lineterminator='\n')
    table.writeheader()
    table.writerows({name: _to_text(value) for name, value in row.items()} for _, row in rows)
    return file.getvalue(), [place for place, _ in rows]


def _take(where, holder, name, kind):
    """Returns a field of an object of the export; raises utils.Error where it is not of a kind, one of KINDS."""
    value = holder.get(name)
    if not KINDS[kind](value):
        text = '%s: %s is %s, but must be %s: export again as JSON, JSON-MIN or CSV'
        raise utils.Error(text % (escape(where), name, escape(shorten(json.dumps(value))), kind))
    return value


def _to_text(value):
    return value if isinstance(value, str) else '' if value is None else json.dumps(value)
