"""Says how well a run does on each class, how far its confidence can be trusted, and where it is wrong.

    python scripts/evaluate.py RUN [--set=test] [--out FOLDER]

Prints accuracy, balanced accuracy (the mean of the classes' recalls), and for each class precision, recall, F1 and the
number of pictures; shares are in percent. FOLDER, <run>/evaluation if not given, gets <set>.json with all of this,
confusion.png, reliability.png and mistakes.png. Older files of these names are replaced.
"""

from libml import quiet

if __name__ == '__main__':
    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

import os
import warnings

import numpy as np
from matplotlib import colors
from matplotlib.figure import Figure
from sklearn import metrics
from tqdm import tqdm

from libml import data, options, trained, utils
from libml.options import Option
from libml.pictures import shown

BINS = 15  # Of the confidence, as in Guo et al. 2017, On Calibration of Modern Neural Networks.
NUMBERED = 20  # Classes up to which the cells of the confusion matrix bear their counts.
MISTAKES = 5, 8  # Rows and columns of mistakes.png.
LONGEST = 22  # Characters of a class's name in a picture.
BLUE, RED, GREY = '#92c5de', '#b2182b', '0.45'
OPTIONS = dict(
    set=Option('test', 'Pictures to evaluate.', choices=('test', 'valid', 'labeled', 'unlabeled')),
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
        confusion, counts [true class][guessed class]; reliability, a list of dicts, see `calibration`.
    """
    guesses, confidence, which = probabilities.argmax(1), probabilities.max(1), range(len(classes))
    table = metrics.precision_recall_fscore_support(labels, guesses, labels=which, zero_division=np.nan)
    names = ('precision', 'recall', 'f1')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # sklearn warns of guessed classes that no picture has.
        balanced = metrics.balanced_accuracy_score(labels, guesses)
    bins = calibration(confidence, guesses == labels)
    return dict(
        pictures=len(labels),
        accuracy=percent(metrics.accuracy_score(labels, guesses)),
        balanced_accuracy=percent(balanced),
        confidence=percent(confidence.mean()),
        calibration_error=sum(abs(b['accuracy'] - b['confidence']) * b['count'] for b in bins) / len(labels),
        classes=[
            dict(zip(names, map(percent, row[:3]), strict=True), name=name, count=int(row[3]))
            for name, *row in zip(classes, *table, strict=True)
        ],
        confusion=metrics.confusion_matrix(labels, guesses, labels=which).tolist(),
        reliability=bins,
    )


def percent(share):
    """Returns a share in percent; None for nan."""
    return None if np.isnan(share) else 100 * float(share)


def calibration(confidence, right):
    """Returns how often guesses of about the same confidence are right.

    Args:
        confidence: float [n]; right: bool [n].

    Returns:
        list of dicts of low, high (the bin is from above `low` to `high`), confidence, accuracy (means, all in percent)
        and count, for each of BINS bins that holds a guess.
    """
    number = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    return [
        dict(
            low=100 * i / BINS,
            high=100 * (i + 1) / BINS,
            confidence=percent(confidence[number == i].mean()),
            accuracy=percent(right[number == i].mean()),
            count=int((number == i).sum()),
        )
        for i in np.unique(number)
    ]


def lines(found):
    """Yields the lines that `measure`'s result is printed as."""
    for name in ('accuracy', 'balanced_accuracy', 'calibration_error'):
        yield '%-18s %6.2f' % (name.replace('_', ' '), found[name])
    rows = found['classes']
    width = max(len('class'), *(len(shown(row['name'])) for row in rows))
    yield ''
    yield '%-*s  %9s  %6s  %6s  %6s' % (width, 'class', 'precision', 'recall', 'F1', 'count')
    for row in rows:
        shares = ('-' if row[name] is None else '%.2f' % row[name] for name in ('precision', 'recall', 'f1'))
        yield '%-*s  %9s  %6s  %6s  %6d' % (width, shown(row['name']), *shares, row['count'])


# --- Pictures: each is drawn into a matplotlib Figure, which is returned ---


def short(name):
    """Returns a name, its middle left out where it is long."""
    half = (LONGEST - 1) // 2
    return name if len(name) <= LONGEST else '%s…%s' % (name[:half], name[-half:])


def new_figure(width, height, title):
    """Returns an empty Figure of a size in inches, with a title."""
    figure = Figure((width, height), layout='constrained')
    figure.suptitle(title, fontsize=12, fontweight='bold', parse_math=False)
    return figure


def note(axis, text, size=9):
    """Writes a line in grey above an axis."""
    axis.set_title(text, fontsize=size, color=GREY, parse_math=False)


def draw_confusion(found, title):
    """Draws which class is taken for which. A row is a true class; its cells are shaded by their share of the row."""
    counts, names = np.array(found['confusion']), [short(row['name']) for row in found['classes']]
    many, longest = len(names) > NUMBERED, max(map(len, names))
    side = max(9.0, 0.13 * len(names)) if many else max(3.0, 0.45 * len(names))  # Inches, as all sizes here.
    size, beside = (min(7.0, 700 / len(names)), 0.9 + 0.13 * longest) if many else (9, 1.0)
    margin = 0.6 + 0.0095 * size * longest
    figure = new_figure(side + margin + beside, side + margin + (1.0 if many else 0.7), title)
    axis, *listed = figure.subplots(1, 1 + many, width_ratios=(side + margin, beside)[: 1 + many], squeeze=False)[0]
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)  # [true, guessed]
    image = axis.imshow(shares, cmap='Blues', norm=colors.PowerNorm(0.5, 0, 100), interpolation='nearest')
    turn = 90 if 0.09 * longest > side / len(names) else 0
    axis.set_xticks(range(len(names)), names, rotation=turn, fontsize=size, parse_math=False)
    axis.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)
    axis.tick_params(length=0)
    axis.set(xlabel='guessed class', ylabel='true class')
    note(axis, 'accuracy %.2f %%, balanced accuracy %.2f %%' % (found['accuracy'], found['balanced_accuracy']))
    axis.spines[:].set_color('0.8')
    if many:
        rule(axis, len(names))
        axis.set_anchor('N')  # What is left over goes below, to the long names.
        list_confusions(listed[0], counts, names)
        place = listed[0].inset_axes((0, 0.03, 0.9, 0.012))
        bar = figure.colorbar(image, cax=place, orientation='horizontal', ticks=[0, 5, 20, 50, 100])
    else:
        number_cells(axis, counts, shares)
        bar = figure.colorbar(image, ax=axis, shrink=0.9, aspect=30, pad=0.02, ticks=[0, 5, 20, 50, 100])
    bar.set_label('% of the true class', fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


def rule(axis, n):
    """Draws thin lines between the cells of a matrix [n, n]."""
    for set_ticks in (axis.set_xticks, axis.set_yticks):
        set_ticks(np.arange(-0.5, n), minor=True)
    axis.grid(which='minor', color='0.93', linewidth=0.3)
    axis.tick_params(which='minor', length=0)


def number_cells(axis, counts, shares):
    """Writes the counts, int [n, n], into the cells of a matrix of shares in percent; right guesses in bold."""
    for row, column in zip(*np.nonzero(counts), strict=True):
        how = dict(color='white' if shares[row, column] > 30 else 'black', weight='bold' if row == column else 'normal')
        size = 9 if counts.max() < 10000 else 7
        axis.text(column, row, counts[row, column], ha='center', va='center', fontsize=size, **how)


def list_confusions(axis, counts, names, most=30):
    """Lists the most frequent mistakes beside a matrix whose cells are too small for numbers."""
    mistakes = counts * (1 - np.eye(len(counts), dtype=int))
    order = np.argsort(-mistakes, axis=None, kind='stable')[:most]
    rows = [(mistakes.flat[i], *divmod(i, len(counts))) for i in order if mistakes.flat[i]]
    axis.axis('off')
    axis.set_title('most frequent mistakes', fontsize=10, loc='left')
    for line, (count, true, guessed) in enumerate(rows):
        text = '%4d  %s → %s' % (count, names[true], names[guessed])
        axis.text(0, 0.985 - 0.9 * line / most, text, fontsize=8, va='top', transform=axis.transAxes, parse_math=False)


def draw_reliability(found, title):
    """Draws how often guesses of about the same confidence are right, over how many of them there are."""
    figure = new_figure(5.6, 6.2, title)
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    bins = found['reliability']
    middle, width = [(b['low'] + b['high']) / 2 for b in bins], 100 / BINS
    accuracy, confidence = (np.array([b[name] for b in bins]) for name in ('accuracy', 'confidence'))
    upper.bar(middle, accuracy, width, color=BLUE, edgecolor='white', label='share that is right')
    upper.hlines(
        confidence, *(np.array(middle) + [[-width / 2], [width / 2]]), RED, linewidth=2.5, label='mean confidence'
    )
    upper.vlines(middle, accuracy, confidence, RED, linewidth=1)
    upper.plot([0, 100], [0, 100], color='0.6', linewidth=1, linestyle='--', label='perfect calibration')
    upper.set(xlim=(0, 100), ylim=(0, 102), ylabel='right (%)')
    upper.legend(loc='upper left', fontsize=8.5, frameon=False)
    text = 'expected calibration error %.2f %%: mean confidence %.1f %%, accuracy %.1f %%'
    note(upper, text % tuple(found[name] for name in ('calibration_error', 'confidence', 'accuracy')))
    lower.bar(middle, [b['count'] for b in bins], width, color='0.7', edgecolor='white')
    lower.set(xlabel='confidence (%)', ylabel='pictures')
    for axis in (upper, lower):
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(axis='y', color='0.92', linewidth=0.6)
        axis.set_axisbelow(True)
    return figure


def draw_mistakes(images, labels, probabilities, classes, title):
    """Draws the mistakes that the network was surest of, each under its guessed and its true class.

    Args:
        images: data.Images; labels, probabilities, classes: see `measure`.
    """
    guesses, confidence = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(guesses != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind='stable')][: MISTAKES[0] * MISTAKES[1]]
    columns = min(MISTAKES[1], max(4, len(worst)))
    rows = max(1, -(-len(worst) // columns))
    ratio = min(3.0, max(1 / 3, images.shape[0] / images.shape[1]))
    tile, above = 1.45, 0.42  # Inches: the width of a picture, and the space for the two lines above it.
    width, height = (tile + 0.1) * columns + 0.1, (tile * ratio + above) * rows + 0.85
    figure = Figure((width, height))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    spaces = dict(wspace=0.1 / tile, hspace=above / (tile * ratio))
    figure.subplots_adjust(0.1 / width, 0.1 / height, 1 - 0.1 / width, 1 - (0.75 + above) / height, **spaces)
    for axis in axes:
        axis.axis('off')
    for axis, number, image in zip(axes, worst, images.gather(worst), strict=False):
        axis.imshow(image[..., 0] if image.shape[2] == 1 else image, cmap='gray', vmin=0, vmax=255)
        guessed, true = (short(classes[i]) for i in (guesses[number], labels[number]))
        write_above(axis, '%s (%.0f %%)' % (guessed, 100 * confidence[number]), 14, RED)
        write_above(axis, 'is %s' % true, 3, 'black')
    what = '%d of %d pictures are guessed wrong' % (len(wrong), len(labels))
    what += ': the surest %d, guess (and confidence) in red' % len(worst) if len(worst) else ''
    middle = dict(ha='center', va='top', parse_math=False)
    figure.text(0.5, 1 - 0.12 / height, title, fontsize=12, fontweight='bold', **middle)
    figure.text(0.5, 1 - 0.42 / height, what, fontsize=9, color=GREY, **middle)
    return figure


def write_above(axis, text, points, color):
    """Writes a line so many points above a small picture, smaller where the text is long."""
    how = dict(textcoords='offset points', ha='center', va='bottom', fontsize=min(8.5, 150 / len(text)))
    axis.annotate(text, (0.5, 1), (0, points), 'axes fraction', color=color, parse_math=False, **how)


def save(figure, path):
    """Writes a Figure as PNG, whole or not at all."""
    with utils.replacing(path) as part, warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph')  # Signs of names that no font here has.
        figure.savefig(part, format='png', dpi=150)


# --- The command ---


def classify(classifier, images):
    """Returns the probabilities of some data.Images, float32 [n, nclass], with a progress bar."""
    with tqdm(total=len(images), desc='pictures', unit='img', leave=False) as bar:
        parts = []
        for batch, _ in images.batches(classifier.batch):
            parts.append(classifier.classify(batch))
            bar.update(len(batch))
    return np.concatenate(parts)


def evaluate(run, set='test', out='', data_dir=None, **which):
    """Evaluates a run, prints and writes the results, see the module.

    Args:
        run: see trained.load; data_dir, which: its further arguments.
        set: one of data.SETS.
        out: folder for the results; '': <run>/evaluation.

    Returns:
        dict, see `measure`, and what was evaluated.

    Raises:
        utils.Error: the run or its data cannot be used (see trained.load and trained.read_dataset), no picture of the
            set has a class, or the results cannot be written.
    """
    utils.check('set', set, set in data.SETS, 'one of %s' % ', '.join(data.SETS))
    classifier = trained.load(run, data_dir=data_dir, **which)
    images = trained.read_dataset(classifier.folder, classifier.args, data_dir).sets[set]
    images = images.select(np.flatnonzero(images.labels >= 0))
    if not len(images):
        raise utils.Error('no picture of the set %s has a class: choose another --set' % set)
    probabilities, classes = classify(classifier, images), classifier.classes
    found = measure(images.labels, probabilities, classes)
    source = dict(dataset=classifier.args['dataset'], set=set, checkpoint=classifier.ckpt, weights=classifier.weights)
    title = '%s set of %s' % (set, source['dataset'])
    print('%s: %d pictures, by %s (%s weights)' % (title, len(images), classifier.ckpt, classifier.weights))
    for line in lines(found):
        print(line)
    out = out or os.path.join(classifier.folder, 'evaluation')
    write(
        out,
        set,
        {**source, **found},
        dict(
            confusion=draw_confusion(found, 'Confusions: ' + title),
            reliability=draw_reliability(found, 'Reliability: ' + title),
            mistakes=draw_mistakes(images, images.labels, probabilities, classes, 'Surest mistakes: ' + title),
        ),
    )
    return found


def write(folder, name, found, figures):
    """Writes <name>.json and the figures, {name: Figure}, into a folder, which is made; raises utils.Error."""
    try:
        utils.write_json(os.path.join(folder, name + '.json'), found)
        for kind, figure in figures.items():
            save(figure, os.path.join(folder, kind + '.png'))
    except OSError as error:
        raise utils.Error('cannot write to %s (%s)' % (folder, utils.reason(error))) from error
    print('\n%s: %s.json, %s' % (folder, name, ', '.join(kind + '.png' for kind in figures)))


if __name__ == '__main__':
    options.run(evaluate, OPTIONS, 'which run? python scripts/evaluate.py RUN [--set=test]')
