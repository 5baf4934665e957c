"""Says how well a run does on each class, how far its confidence can be trusted, and where it is wrong.

    python scripts/evaluate.py RUN [--set=test] [--out FOLDER]

Prints accuracy, balanced accuracy (the mean of the classes' recalls), and for each class precision, recall, F1 and the
number of pictures; shares are in percent. FOLDER, <run>/evaluation if not given, gets <set>.json with all of this,
confusion.png, reliability.png, mistakes.png, and mistakes.csv, a row for each mistake, the surest ones first. The names
say what is not the default: with --set=valid, valid-mistakes.csv; with --weights=raw, raw-test.json, raw-mistakes.csv;
with both, raw-valid.json, raw-valid-mistakes.csv. Older files of these names are replaced.
"""

import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # The libml beside this file.
    from libml.cli import quiet

    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

import math

import numpy as np
import pandas as pd
from matplotlib import colors
from matplotlib.figure import Figure
from sklearn import metrics

from libml import data, data_pair, files, trained, utils
from libml.cli import drawing, progress, script
from libml.cli.options import Option
from libml.family import shorten
from libml.intake import pictures
from libml.intake.labels import disarm
from libml.utils import escape

BINS = 15  # Of the confidence, as in Guo et al. 2017, On Calibration of Modern Neural Networks.
NUMBERED = 20  # Classes up to which the confusion matrix is drawn: its cells have room for their counts.
MATRIX = 100  # Classes up to which there is such a matrix: it grows with their square.
WORST = 40  # Confusions and classes that are drawn in its place.
MISTAKES = 5, 8  # Rows and columns of mistakes.png.
LONGEST = 22  # Characters of a class's name in a picture.
SCORES = 'precision', 'recall', 'f1'  # Of a class.
BLUE, RED, GREY = '#92c5de', '#b2182b', '0.45'
OPTIONS = dict(
    set=Option('test', 'Pictures to evaluate.', choices=data.SETS),
    out=Option('', 'Folder for the results. Default: <run>/evaluation.', path=True),
    **trained.OPTIONS,
)


# --- Numbers ---


def measure(labels, probabilities, classes):
    """Compares guesses with the truth.

    Args:
        labels: int [n], n > 0.
        probabilities: float [n, nclass].
        classes: names.

    Returns:
        dict of accuracy, balanced_accuracy, calibration_error, confidence (its mean), all in percent; pictures, n;
        classes, a list of dicts of name, precision, recall, f1 (percent, None where they are not defined) and count;
        confusion, counts [true class][guessed class], or, of more than MATRIX classes, confusion_cells, a list of [true
        class, guessed class, count above 0]; reliability, a list of the rows of measure_calibration.
    """
    guesses, confidence, numbers = probabilities.argmax(1), probabilities.max(1), range(len(classes))
    table = metrics.precision_recall_fscore_support(labels, guesses, labels=numbers, zero_division=np.nan)
    bins = measure_calibration(confidence, guesses == labels)
    if len(classes) <= MATRIX:
        confusion = dict(confusion=metrics.confusion_matrix(labels, guesses, labels=numbers).tolist())
    else:
        cells, counts = np.unique(np.stack([labels, guesses], axis=1), axis=0, return_counts=True)
        confusion = dict(confusion_cells=np.column_stack([cells, counts]).tolist())
    return dict(
        pictures=len(labels),
        accuracy=to_percent(np.mean(guesses == labels)),
        balanced_accuracy=to_percent(np.nanmean(table[1])),
        confidence=to_percent(confidence.mean()),
        calibration_error=float(np.average((bins.accuracy - bins.confidence).abs(), weights=bins['count'])),
        classes=[
            dict(zip(SCORES, map(to_percent, scores), strict=True), name=name, count=int(count))
            for name, *scores, count in zip(classes, *table, strict=True)
        ],
        **confusion,
        reliability=bins.to_dict('records'),
    )


def to_percent(share):
    """Returns a share in percent; None for nan."""
    return None if np.isnan(share) else 100 * float(share)


def measure_calibration(confidence, right):
    """Returns how often guesses of about the same confidence, float [n], are right, bool [n].

    It is a DataFrame, a row for each of BINS bins that holds a guess: low, high (the bin is from above `low` to
    `high`), confidence, accuracy (means, all in percent) and count.
    """
    guesses = pd.DataFrame(dict(confidence=confidence, accuracy=right), dtype=float)
    number = pd.cut(confidence.clip(max=1), np.arange(BINS + 1) / BINS, labels=False)
    groups = (100 * guesses).groupby(number)
    table = groups.mean().assign(count=groups.size())
    return table.assign(low=100 * table.index / BINS, high=100 * (table.index + 1) / BINS)


def rank_mistakes(labels, probabilities):
    """Returns the indices of the mistakes, int [m], those first that the network was surest of; see `measure`."""
    guesses, confidence = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(guesses != labels)
    return wrong[np.argsort(-confidence[wrong], kind='stable')]


def tabulate_mistakes(images, probabilities, classes, sources):
    """Returns all mistakes as a DataFrame, surest first: file ('' if not known), class, guess, confidence, number.

    images: data.Images; probabilities, classes: see `measure`; sources: see data_pair.read_sources; number: in images.
    """
    wrong = rank_mistakes(images.labels, probabilities)
    names = np.array([disarm(name, "'") for name in classes], object)
    found = dict(file='', **{'class': names[images.labels[wrong]]}, guess=names[probabilities[wrong].argmax(1)])
    table = pd.DataFrame(dict(found, confidence=probabilities[wrong].max(1), number=wrong))
    if sources:
        pixels = (images.gather(wrong[i : i + 1])[0] for i in range(len(wrong)))
        paths = (str(sources.get(pictures.hash_pixels(image).hex(), '')) for image in pixels)
        table['file'] = [disarm(path.encode(errors='backslashreplace').decode()) for path in paths]
    return table


def format_measures(found):
    """Returns `measure`'s result as it is printed."""
    names = 'accuracy', 'balanced_accuracy', 'calibration_error'
    lines = ['%-18s %6.2f' % (name.replace('_', ' '), found[name]) for name in names]
    table = pd.DataFrame(found['classes'], [escape(row['name']) for row in found['classes']])
    table = table.rename(columns=dict(f1='F1'))[['precision', 'recall', 'F1', 'count']]
    return '\n'.join([*lines, '', table.to_string(col_space=9, float_format='%.2f', na_rep='-')])


# --- Pictures: each is drawn into a matplotlib Figure, which is returned ---


def new_figure(width, height, title, layout='constrained'):
    """Returns an empty Figure of a size in inches, with a title."""
    figure = Figure((width, height), layout=layout)
    figure.suptitle(title, fontsize=12, fontweight='bold')
    return figure


def draw_confusion(found, title):
    """Draws which class is taken for which. A row is a true class; its cells are shaded by their share of the row."""
    if len(found['classes']) > NUMBERED:
        return draw_worst(found, title)
    counts, names = np.array(found['confusion']), [shorten(row['name'], LONGEST) for row in found['classes']]
    side = max(5, 3 + 0.45 * len(names))  # Inches.
    figure = new_figure(side + 1, side, 'Confusions: ' + title, 'compressed')
    axis = figure.subplots()
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)  # [true, guessed]
    image = axis.imshow(shares, cmap='Blues', norm=colors.PowerNorm(0.5, 0, 100))
    axis.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 5 else 0, fontsize=9)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.tick_params(length=0)
    axis.set(xlabel='guessed class', ylabel='true class')
    text = 'accuracy %.2f %%, balanced accuracy %.2f %%' % (found['accuracy'], found['balanced_accuracy'])
    axis.set_title(text, fontsize=9, color=GREY)
    figure.colorbar(image, label='% of the true class', shrink=0.7, aspect=30, ticks=[0, 5, 20, 50, 100])
    for (true, guessed), count in np.ndenumerate(counts):
        how = dict(color='white' if shares[true, guessed] > 30 else 'black', ha='center', va='center', fontsize=9.5)
        axis.text(guessed, true, count or '', weight='bold' if true == guessed else 'normal', **how)
    return figure


def draw_worst(found, title):
    """Draws, of many classes, those that are confused most often, and those that are found least often."""
    names = [shorten(row['name'], LONGEST) for row in found['classes']]
    cells = found.get('confusion_cells') or [(*ij, n) for ij, n in np.ndenumerate(found['confusion']) if n]
    cells = pd.DataFrame(cells, columns=['true', 'guessed', 'count'])
    pairs = cells[cells.true != cells.guessed].nlargest(WORST, 'count')
    rows = pd.DataFrame(found['classes']).assign(short=names).dropna(subset='recall').nsmallest(WORST, 'recall')
    figure = new_figure(13, 9.5, 'Confusions: ' + title)
    left, right = figure.subplots(1, 2)
    mistakes = ['%s → %s' % (names[pair.true], names[pair.guessed]) for pair in pairs.itertuples()]
    number = (cells.true != cells.guessed).sum()
    left.set_title('the most frequent of %d confusions: true class → guess' % number, fontsize=9)
    left.set_xlabel('pictures')
    right.set_title('the classes that are found least often, of %d' % len(names), fontsize=9)
    right.set(xlabel='pictures of the class that are found (%)', xlim=(0, 100))
    classes = ['%s (%d)' % item for item in zip(rows.short, rows['count'], strict=True)]
    for axis, values, texts in ((left, pairs['count'], mistakes), (right, rows.recall, classes)):
        axis.barh(range(len(texts)), values, color=BLUE)
        axis.set_yticks(range(len(texts)), texts, fontsize=7)
        axis.set_ylim(WORST - 0.5, -0.5)
        axis.spines[['top', 'right']].set_visible(False)
    return figure


def draw_reliability(found, title):
    """Draws how often guesses of about the same confidence are right, over how many of them there are."""
    figure = new_figure(5.6, 6.2, 'Reliability: ' + title)
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    bins, width = pd.DataFrame(found['reliability']), 100 / BINS
    middle = (bins.low + bins.high) / 2
    upper.bar(middle, bins.accuracy, width, color=BLUE, edgecolor='white', label='share that is right')
    upper.hlines(bins.confidence, bins.low, bins.high, RED, linewidth=2.5, label='mean confidence')
    upper.vlines(middle, bins.accuracy, bins.confidence, RED, linewidth=1)
    upper.plot([0, 100], [0, 100], color='0.6', linewidth=1, linestyle='--', label='perfect calibration')
    upper.set(xlim=(0, 100), ylim=(0, 102), ylabel='right (%)')
    upper.legend(loc='upper left', fontsize=8.5, frameon=False)
    text = 'expected calibration error %(calibration_error).2f %%: mean confidence %(confidence).1f %%, '
    upper.set_title((text + 'accuracy %(accuracy).1f %%') % found, fontsize=9, color=GREY)
    lower.bar(middle, bins['count'], width, color='0.7', edgecolor='white')
    lower.set(xlabel='confidence (%)', ylabel='pictures')
    for axis in (upper, lower):
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(axis='y', color='0.92', linewidth=0.6)
        axis.set_axisbelow(True)
    return figure


def draw_mistakes(images, probabilities, classes, title):
    """Draws the mistakes that the network was surest of, each between its guessed and its true class.

    Args:
        images: data.Images; probabilities, classes: see `measure`.
    """
    labels, guesses, confidence = images.labels, probabilities.argmax(1), probabilities.max(1)
    wrong = rank_mistakes(labels, probabilities)
    worst = wrong[: MISTAKES[0] * MISTAKES[1]]
    columns = min(MISTAKES[1], max(4, len(worst)))
    rows = max(1, math.ceil(len(worst) / columns))
    ratio = min(3.0, max(1 / 3, images.shape[0] / images.shape[1]))
    figure = new_figure(1.55 * columns, (1.45 * ratio + 0.5) * rows + 0.85, 'Surest mistakes: ' + title)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, number, image in zip(axes, worst, images.gather(worst), strict=False):
        axis.imshow(image, cmap='gray', vmin=0, vmax=255)
        guessed, true = (shorten(classes[i], LONGEST) for i in (guesses[number], labels[number]))
        guessed += ' (%.0f %%)' % (100 * confidence[number])
        axis.set_title(guessed, fontsize=min(8.5, 150 / len(guessed)), color=RED, pad=3)
        axis.set_xlabel('is %s' % true, fontsize=min(8.5, 150 / len(true)), labelpad=3)
    text = '%d of %d pictures are guessed wrong' % (len(wrong), len(labels))
    text += ': the surest %d, guess (and confidence) in red' % len(worst) if len(worst) else ''
    figure.supxlabel(text, fontsize=9, color=GREY)
    return figure


# --- The command ---


def evaluate(run, set='test', out='', data_dir=None, **which):
    """Evaluates a run, prints and writes the results, see the module; returns them, see `measure`.

    Args:
        run: a run's folder or one of its checkpoints; data_dir, **which: further arguments of trained.load.
        set: one of data.SETS.
        out: folder for the results; '': <run>/evaluation.

    Raises:
        utils.Error: the run or its data cannot be used (see trained.load and trained.read_dataset), no picture of the
            set has a class, or the results cannot be written.
    """
    classifier = trained.load(run, data_dir=data_dir, **which)
    images = trained.read_dataset(classifier.folder, classifier.args, data_dir).sets[set]
    images = images.select(np.flatnonzero(images.labels >= 0))
    utils.refuse(not len(images), 'no picture of the set %s has a class: choose another --set', set)
    bar = progress.make_bar(
        images.batches(classifier.batch), 'batches', math.ceil(len(images) / classifier.batch), leave=False
    )
    probabilities = np.concatenate([classifier.classify(batch) for batch, _ in bar])
    found = measure(images.labels, probabilities, classifier.classes)
    source = dict(dataset=classifier.args['dataset'], set=set, checkpoint=classifier.ckpt, weights=classifier.weights)
    title = '%s set of %s' % (set, source['dataset'])
    utils.say('%s: %d pictures, by %s (%s weights)' % (title, len(images), classifier.ckpt, classifier.weights))
    print(format_measures(found))
    drawn = dict(
        confusion=lambda: draw_confusion(found, title),
        reliability=lambda: draw_reliability(found, title),
        mistakes=lambda: draw_mistakes(images, probabilities, classifier.classes, title),
    )
    name = data_pair.parse(source['dataset']).name
    sources = data_pair.read_sources(data_pair.find_data_dir(data_dir), name)
    mistakes = tabulate_mistakes(images, probabilities, classifier.classes, sources)
    folder = out or os.path.join(classifier.folder, 'evaluation')
    weights = 'raw-' * (classifier.weights == 'raw')
    prefix = weights + (set + '-') * (set != 'test')
    if not out:
        files.refuse_link(folder)
    try:
        # Before the pictures, which may fail.
        files.write_json(os.path.join(folder, weights + set + '.json'), {**source, **found})
        text = '\ufeff' + mistakes.to_csv(index=False, float_format='%.6f', lineterminator='\n')  # As predictions.csv.
        files.write_text(os.path.join(folder, prefix + 'mistakes.csv'), text)
        for kind, draw in drawn.items():
            with drawing.styling():
                drawing.save(draw(), os.path.join(folder, prefix + kind + '.png'), bbox_inches='tight')
    except OSError as error:
        raise utils.Error('cannot write to %s (%s)' % (folder, utils.explain(error))) from error
    print()
    names = ', '.join(prefix + name for name in ['mistakes.csv', *(kind + '.png' for kind in drawn)])
    utils.say('%s: %s%s.json, %s' % (folder, weights, set, names))
    return found


if __name__ == '__main__':
    script.run(evaluate, OPTIONS, 'which run? python scripts/evaluate.py RUN [--set=test]')
