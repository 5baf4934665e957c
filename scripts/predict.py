"""Labels new pictures with what a run has learned.

    python scripts/predict.py RUN PICTURES... --out predictions.csv [--probabilities] [--skip_bad] [--review 200]
                              [--label_studio tasks.json]

RUN is the folder of a run. PICTURES are folders, searched at any depth, or files. The table has a row a picture: file,
class, confidence. Corrected by hand, it can be given to scripts/create_datasets.py as --labels. A spreadsheet reads it
as UTF-8, and finds no formula in it: a file `=1.png` stands there as ./=1.png, a class `=1` as '=1.

--review writes review.html beside the table: a page for a browser, to correct some of the guesses by eye.
--label_studio writes the guesses as tasks for Label Studio: those of --review if it is given, else all.
"""

import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # The libml beside this file.
    from libml.cli import quiet

    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

import collections
import csv
import types

import numpy as np

from libml import files, trained, utils
from libml.cli import options, progress, script
from libml.cli.options import Option
from libml.intake import pictures
from libml.intake.label_studio import make_config, make_task
from libml.intake.labels import disarm
from libml.review import Review
from libml.utils import escape

DOUBTFUL = 0.5  # Confidence below which a guess is doubtful.
OPTIONS = dict(
    out=Option('', 'CSV file to write.', path=True),
    probabilities=Option(False, 'Write a column p:<class> with the probability of each class, too.'),
    skip_bad=Option(False, 'Leave out the pictures that cannot be read.'),
    review=Option(0, 'How many guesses to correct on a page, review.html beside the table.', options.Range(low=0)),
    labels=Option('', 'For --review: the table of labels so far; the page saves it with more rows.', path=True),
    label_studio=Option('', 'JSON file to write: the guesses as tasks for Label Studio.', path=True),
    seed=Option(0, 'Of the half of the pictures on the page that is drawn at random.', options.SEED),
    **trained.OPTIONS,
)


def find_pictures(places):
    """Returns (folder that paths are relative to, or ''; sorted paths of pictures; {unused path: reason}).

    places are folders and files; to a folder alone, paths are relative. Raises utils.Error if a place does not exist,
    or there is no picture.
    """
    places = [*{os.path.normpath(place): place for place in reversed(places)}.values()]
    root = places[0] if len(places) == 1 and os.path.isdir(places[0]) else ''
    found, unused = set(), {}  # What is in two places counts once.
    for place in places:
        if os.path.isdir(place):
            some, rest = pictures.list_files(place)
            within = '' if root else place
            found.update(os.path.join(within, path) for path in some)
            unused.update({os.path.join(within, path): reason for path, reason in rest.items()})
        elif os.path.isfile(place):  # A named pipe would be waited for.
            found.add(place)
        else:
            raise utils.Error('%s is no folder and no file: name folders of pictures, or picture files' % escape(place))
    if not found:
        raise utils.Error('there are no pictures in %s' % escape(', '.join(places)))
    return root, sorted(found), unused


def summarise(classes, labels, confidences, unused):
    """Yields the lines that say what was guessed; labels: int, the guesses; unused: {path: reason}."""
    counts, sums = (np.bincount(labels, of, len(classes)) for of in (None, confidences))
    names = [escape(name) for name in classes] + ['all']
    width = max(map(len, ['class', *names]))
    yield '%-*s %9s %16s' % (width, 'class', 'pictures', 'mean confidence')
    for name, count, total in zip(names, [*counts, len(labels)], [*sums, sum(confidences)], strict=True):
        yield '%-*s %9d %16s' % (width, name, count, '%.3f' % (total / count) if count else '-')
    yield '%d doubtful (confidence below %g)' % (sum(c < DOUBTFUL for c in confidences), DOUBTFUL)
    yield 'A picture that is like none of the training pictures gets a class, too; its confidence may be high.'
    for reason, count in collections.Counter(unused.values()).items():
        example = next(path for path in unused if unused[path] == reason)
        yield '%d not used: %s, such as %s' % (count, reason, escape(example))


def write_rows(file, classifier, root, paths, probabilities):
    """Writes the table to an open file; returns labels, confidences, and {path: reason} of the unreadable pictures.

    root is the folder that the paths of the pictures are relative to; probabilities: whether to write those of all
    classes.
    """
    # Before Python 3.13, csv puts quotes around a carriage return only where rows end in one.
    lines = types.SimpleNamespace(write=lambda text: file.write(text.removesuffix('\r\n') + '\n'))
    rows, labels, confidences, bad = csv.writer(lines, lineterminator='\r\n'), [], [], {}
    rows.writerow(['file', 'class', 'confidence', *('p:' + name for name in classifier.classes if probabilities)])
    found = classifier.classify_files(os.path.join(root, path) for path in paths)
    bar = progress.make_bar(found, 'pictures', len(paths), unit='img', leave=False)
    for path, (_, row) in zip(paths, bar, strict=True):
        if path.encode(errors='ignore').decode() != path:
            row = ValueError('its name is not UTF-8: rename it')
        if isinstance(row, ValueError):
            bad[path] = utils.explain(row)
            continue
        label = int(row.argmax())
        labels.append(label)
        confidences.append(float(row[label]))
        numbers = [row[label], *row] if probabilities else [row[label]]
        cells = disarm(path), disarm(classifier.classes[label], "'")
        rows.writerow([*cells, *('%.6f' % number for number in numbers)])
    return labels, confidences, bad


def write_tasks(path, classifier, root, paths, guesses, confidences):
    """Writes the tasks for Label Studio of some pictures; see Review.write_page for paths, guesses and confidences."""
    version = '%s %s' % (classifier.args['dataset'], os.path.basename(classifier.ckpt))
    names = [classifier.classes[guess] for guess in guesses]
    places = [os.path.abspath(os.path.join(root, path)) for path in paths]
    rows = zip(places, names, confidences, strict=True)
    files.write_json(path, [make_task(*row, version) for row in rows])


def predict(
    run, places, out, probabilities=False, skip_bad=False, review=0, labels='', label_studio='', seed=0, **which
):
    """Writes the table of a run's guesses for some pictures, and prints a summary.

    Args:
        run: a run's folder or one of its checkpoints; **which: further arguments of trained.load.
        places: folders and picture files.
        out: path of the table; it must not exist. The others: see OPTIONS.

    Raises:
        utils.Error: the run cannot be used (see trained.load), there are no pictures, one cannot be read, or the table,
            the page or the tasks cannot be written. Then none of them is.
    """
    if not out:
        raise utils.Error('where shall the table go? Give --out, such as --out predictions.csv')
    if labels and not review:
        raise utils.Error('--labels is for --review, which is not given')
    page = os.path.join(os.path.dirname(out), 'review.html') if review else ''
    targets = dict(out=out, page=page, tasks=label_studio)
    targets = {name: path for name, path in targets.items() if path}
    if len(set(map(os.path.abspath, targets.values()))) < len(targets):
        raise utils.Error('%s would be one file: choose other names' % escape(' and '.join(targets.values())))
    with trained.creating_result(*targets.values()) as parts:
        parts = dict(zip(targets, parts if targets.keys() > {'out'} else [parts], strict=True))
        root, paths, unused = find_pictures(places)
        text = '--labels goes with one folder of pictures, which the files of the table are relative to: name it alone'
        utils.refuse(labels and not root, text)
        classifier = trained.load(run, **which)
        checker = Review(classifier, root, paths, unused, labels, which.get('data_dir')) if review else None
        with open(parts['out'], 'w', encoding='utf-8-sig', newline='') as file:
            guesses, confidences, bad = write_rows(file, classifier, root, paths, probabilities)
        utils.print_list(['%s: %s' % (escape(path), reason) for path, reason in bad.items()])
        if bad and not skip_bad:
            text = '%d pictures cannot be read, see above: mend or remove them, or give --skip_bad'
            raise utils.Error(text % len(bad))
        if not guesses:
            raise utils.Error('no picture can be read, see above')
        good = [path for path in paths if path not in bad]
        chosen = checker.choose(good, confidences, review, seed) if review else range(len(good))
        shown = [[of[i] for i in chosen] for of in (good, guesses, confidences)]
        if review:
            checker.write_page(parts['page'], *shown)
        if label_studio:
            write_tasks(parts['tasks'], classifier, root, *shown)
    for line in summarise(classifier.classes, guesses, confidences, unused):
        print(line)
    if bad:
        print('%d left out: cannot be read' % len(bad))
    utils.say('%s: %d rows, guessed by %s (%s weights)' % (out, len(guesses), classifier.ckpt, classifier.weights))
    if review:
        utils.say('%s: %d guesses to check; open it in a browser' % (page, len(chosen)))
    if label_studio:
        utils.say('%s: %d tasks for Label Studio; its labelling configuration:' % (label_studio, len(chosen)))
        utils.say(make_config(classifier.classes))


if __name__ == '__main__':
    script.run(
        lambda run, place, *more, **chosen: predict(run, [place, *more], **chosen),
        OPTIONS,
        'which run, and which pictures? python scripts/predict.py RUN PICTURES... --out predictions.csv',
    )
