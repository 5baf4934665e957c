"""Sets the runs below some folders beside the paper's Table 4: the test error of each row, over splits and seeds.

    python scripts/report.py experiments/digits [--out=report]

Writes table4.md (which it prints too), table4.csv, table4.png and curves.png. A row is known by its flags, see
table4.csv beside this script; runs that share all other arguments make one table.
"""

import collections
import csv
import dataclasses
import functools
import io
import operator
import os

import numpy as np
from absl import flags

from ablation import ab_mixmatch  # noqa: F401  It defines the flags that a row is made of.
from libml import data_pair, runs, utils

ROWS = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'table4.csv')
PAPER_DATASET = 'cifar10'
NOT_SHARED = ('dataset', 'seed', 'nclass', 'save_kimg', 'keep_ckpt', 'xla')  # Arguments that may differ within a table.

# --- Rows ---


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of Table 4.

    Attributes:
        name: as in the paper.
        values: dict from each argument that any row varies to what it is in this one.
        paper: dict from a number of labels to the paper's error in percent on CIFAR-10.
    """

    name: str
    values: dict
    paper: dict


def parse_flags(text):
    """Returns the dict of the values that flags such as '--T=1 --use_ema_guess' have."""
    pairs = (word.removeprefix('--').partition('=') for word in text.split())
    return {name: flags.FLAGS[name].parser.parse(value or 'true') for name, _, value in pairs}


def show_flags(values):
    """Returns the flags, such as '--T=1', of those arguments that are not at their defaults."""
    shown = {name: '%g' % value if isinstance(value, float) else value for name, value in sorted(values.items())}
    return ' '.join('--%s=%s' % item for item in shown.items() if flags.FLAGS[item[0]].default != values[item[0]])


@functools.cache
def paper_rows():
    """Returns the paper's rows in its order."""
    with open(ROWS, encoding='utf-8', newline='') as file:
        lines = list(csv.DictReader(file))
    names, given = [line.pop('run') for line in lines], [parse_flags(line.pop('flags')) for line in lines]
    base = {name: flags.FLAGS[name].default for values in given for name in values}
    errors = [{int(size): float(error) for size, error in line.items()} for line in lines]
    return [Row(name, {**base, **values}, paper) for name, values, paper in zip(names, given, errors, strict=True)]


# --- Runs ---


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that was read.

    Attributes:
        args: dict, the contents of its args.json.
        split: data_pair.Split.
        kimg: float [n], where its reports are.
        accuracy: float [n], test accuracies in percent.
    """

    args: dict
    split: data_pair.Split
    kimg: np.ndarray
    accuracy: np.ndarray

    @property
    def values(self):
        """The arguments that make its row."""
        return {name: self.args[name] for name in paper_rows()[0].values}

    @property
    def setting(self):
        """What the runs of a table share: the dataset without its split seed, the flags of the other arguments."""
        names = set(self.args) & set(flags.FLAGS) - {*self.values, *NOT_SHARED}
        dataset = '%s@%d-%d' % (self.split.name, self.split.size, self.split.valid)
        return dataset, show_flags({name: self.args[name] for name in names})

    @property
    def at(self):
        """The kimg of the last report, 0 where there is none."""
        return self.kimg[-1] if len(self.kimg) else 0

    @property
    def finished(self):
        return self.at >= self.args['train_kimg']

    @property
    def error(self):
        """The median test error of the last 20 reports, in percent."""
        return 100 - runs.medians(self.accuracy)['last20']


def read_run(path):
    """Returns the Run in a folder.

    Raises:
        utils.Error: its args.json does not say what it is.
    """
    args = runs.read_args(path)
    needed = {'dataset': str, 'train_kimg': (int, float), **dict.fromkeys(paper_rows()[0].values, (int, float, str))}
    wrong = [name for name, kind in needed.items() if not isinstance(args.get(name), kind)]
    if wrong:
        raise utils.Error('%s is missing or damaged: no %s' % (runs.args_file(path), ', '.join(wrong)))
    try:
        reports = runs.read_accuracy(path)
    except utils.Error:
        reports = []
    kimg, accuracy = np.array(reports, float).reshape(-1, 2).T
    return Run(args, data_pair.parse(args['dataset']), kimg / 1024, accuracy)


def read_runs(folders):
    """Returns the list of all Runs in and below folders, and a line for each thing that is damaged.

    Raises:
        utils.Error: a folder is missing, or there is not one run.
    """
    found, damaged = [], []
    for path in dict.fromkeys(path for folder in folders for path in runs.find(folder)):
        try:
            found.append(read_run(path))
        except utils.Error as error:
            damaged.append(str(error))
        damaged += runs.damaged_events(path)
    if not found:
        raise utils.Error('; '.join(['no run in or below %s' % ', '.join(folders), *damaged]))
    return found, damaged


# --- Tables ---


@dataclasses.dataclass(frozen=True)
class Cell:
    """The runs of a row in one table. Errors are over the finished ones; over all, while none is."""

    row: Row
    runs: list

    @property
    def finished(self):
        return [run for run in self.runs if run.finished]

    @property
    def counted(self):
        return self.finished or [run for run in self.runs if run.at]

    @property
    def mean(self):
        return np.mean([run.error for run in self.counted]) if self.counted else np.nan

    @property
    def std(self):
        """The sample's standard deviation; nan below two runs."""
        return np.std([run.error for run in self.counted], ddof=1) if len(self.counted) > 1 else np.nan

    @property
    def text(self):
        """The error as the table shows it."""
        if not self.counted:
            return '–'
        spread = ' ± %.2f' % self.std if len(self.counted) > 1 else ''
        return '%.2f%s%s' % (self.mean, spread, '' if self.finished else ' (unfinished)')

    @property
    def splits(self):
        """How many runs there are of each split seed."""
        return collections.Counter(run.split.seed for run in self.runs)

    def curve(self):
        """Returns kimg [n] and accuracies [runs, n] at those reports that all counted runs have."""
        kimg = functools.reduce(np.intersect1d, [run.kimg for run in self.counted])
        return kimg, np.array([run.accuracy[np.isin(run.kimg, kimg)] for run in self.counted])


@dataclasses.dataclass(frozen=True)
class Table:
    """All rows of one setting.

    Attributes:
        dataset: such as 'cifar10@250-1'.
        flags: text, the arguments that all its runs share, where they are not at their defaults.
        cells: list of Cell: the paper's rows, then others.
        paper: list of the paper's errors for the cells, nan where it has none; None for another dataset.
    """

    dataset: str
    flags: str
    cells: list
    paper: list


def make_table(found):
    """Returns the Table of Runs that share a setting."""
    rows = list(paper_rows())
    for run in found:
        if run.values not in [row.values for row in rows]:
            rows.append(Row(show_flags(run.values), run.values, {}))
    cells = [Cell(row, [run for run in found if run.values == row.values]) for row in rows]
    split = found[0].split
    paper = [row.paper.get(split.size, np.nan) for row in rows]
    known = split.name == PAPER_DATASET and not np.all(np.isnan(paper))
    return Table(*found[0].setting, cells, paper if known else None)


def make_tables(found):
    """Returns the Tables of Runs, one for each setting; those with fewer labels first."""
    groups = collections.defaultdict(list)
    for run in found:
        groups[run.split.name, run.split.size, run.setting].append(run)
    return [make_table(group) for _, group in sorted(groups.items())]


def number(value):
    """Returns a percentage as text, '' for nan."""
    return '' if np.isnan(value) else '%.2f' % value


def words(table):
    """Returns paragraphs, lines, on what is missing and unfinished in a table."""
    expected = functools.reduce(operator.or_, [cell.splits for cell in table.cells])
    lacking = [(cell.row.name, sorted((expected - cell.splits).elements())) for cell in table.cells]
    missing = ['%s (split %s)' % (name, ', '.join(map(str, splits))) for name, splits in lacking if splits]
    unfinished = [
        '%s, split %d, at %g of %g kimg' % (cell.row.name, run.split.seed, run.at, run.args['train_kimg'])
        for cell in table.cells
        for run in cell.runs
        if not run.finished
    ]
    lines = ['Missing: %s.' % '; '.join(missing)] if missing else []
    if unfinished:
        lines.append('Unfinished, and not counted beside finished ones: %s.' % '; '.join(unfinished))
    else:
        lines.append('Runs: %d, all of them finished.' % sum(len(cell.runs) for cell in table.cells))
    return [line for paragraph in lines for line in (paragraph, '')][:-1]


def table_markdown(table):
    """Returns a table and what is missing in it as the lines of a Markdown section."""
    paper = [number(error) for error in table.paper] if table.paper else []
    columns = ['run', 'error', *(['paper'] if paper else []), 'runs', 'finished']
    rows = [
        [cell.row.name, cell.text, *paper[i : i + 1], str(len(cell.runs)), str(len(cell.finished))]
        for i, cell in enumerate(table.cells)
    ]
    lines = ['| %s |' % ' | '.join(row) for row in [columns, ['---'] * len(columns), *rows]]
    return ['## %s' % table.dataset, '', 'Flags: `%s`' % table.flags, '', *lines, '', *words(table), '']


def markdown(tables, damaged):
    """Returns the tables and what is missing or damaged as Markdown."""
    lines = ['Test error, %: median of the last 20 reports, mean ± standard deviation over splits and seeds.', '']
    lines += [line for table in tables for line in table_markdown(table)]
    if damaged:
        lines += ['## Damaged', '', *('- %s' % line for line in damaged), '']
    return '\n'.join(lines)


def comma_separated(tables):
    """Returns the tables as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['dataset', 'flags', 'run', 'error', 'std', 'paper', 'runs', 'finished'])
    for table in tables:
        for cell, paper in zip(table.cells, table.paper or [np.nan] * len(table.cells), strict=True):
            numbers = [number(value) for value in (cell.mean, cell.std, paper)]
            row = [table.dataset, table.flags, cell.row.name, *numbers, len(cell.runs), len(cell.finished)]
            writer.writerow(row)
    return text.getvalue()


# --- Pictures ---


def color(index):
    """Returns the color of a row: black for the first, MixMatch."""
    return 'black' if index == 0 else 'C%d' % (index - 1) if index <= 10 else '0.6'


def draw_curves(figure, tables):
    """Draws accuracy over kimg into a matplotlib Figure: a panel a table, a line a row, a band of one deviation."""
    axes = figure.subplots(1, len(tables), squeeze=False)[0]
    lines = {}
    for axis, table in zip(axes, tables, strict=True):
        for i, cell in enumerate(table.cells):
            if not cell.counted:
                continue
            kimg, accuracy = cell.curve()
            mean, std = accuracy.mean(0), accuracy.std(0, ddof=1) if len(accuracy) > 1 else 0
            style = dict(color=color(i), linestyle='-' if cell.finished else ':')
            (lines[cell.row.name],) = axis.plot(kimg, mean, linewidth=2 if i == 0 else 1.2, zorder=20 - i, **style)
            axis.fill_between(kimg, mean - std, mean + std, color=color(i), alpha=0.12, linewidth=0)
        axis.set(title=table.dataset, xlabel='kimg', ylabel='test accuracy, %')
        axis.grid(alpha=0.3)
    figure.legend(lines.values(), lines, loc='outside right center', frameon=False)


def draw_bars(figure, tables):
    """Draws errors into a matplotlib Figure: a panel a table, a bar a row, with its deviation and the paper's error."""
    axes = figure.subplots(1, len(tables), squeeze=False)[0]
    for axis, table in zip(axes, tables, strict=True):
        places = range(len(table.cells))
        paper = table.paper or [np.nan] * len(places)
        for i, cell in enumerate(table.cells):
            style = dict(alpha=1) if cell.finished else dict(alpha=0.4, hatch='//')
            axis.barh(i, cell.mean, xerr=cell.std, color=color(i), ecolor='0.4', capsize=3, **style)
            end = np.nanmax([0, cell.mean, cell.mean + cell.std, paper[i]])
            axis.annotate(cell.text, (end, i), (8, 0), textcoords='offset points', va='center', fontsize=8)
        if table.paper:
            axis.plot(paper, places, 'd', color='white', markeredgecolor='black', label='the paper')
            axis.legend(loc='lower right', frameon=False)
        names = [cell.row.name for cell in table.cells]
        axis.set(title=table.dataset, xlabel='test error, %', yticks=places, yticklabels=names)
        axis.set_xlim(0, 1.35 * axis.get_xlim()[1])
        axis.set_ylim(len(places) - 0.5, -0.5)


def save_figure(path, draw, tables, width, height):
    """Draws tables and writes a PNG.

    Raises:
        utils.Error: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise utils.Error('%s needs matplotlib: pip install -e .[report]' % path) from None
    figure = Figure(figsize=(2 + width * len(tables), height), layout='constrained', dpi=100)
    draw(figure, tables)
    figure.savefig(path)


def main(argv):
    utils.check('arguments', argv[1:], len(argv) > 1, 'one folder of runs or more, such as experiments')
    found, damaged = read_runs(argv[1:])
    tables = make_tables(found)
    out = functools.partial(os.path.join, flags.FLAGS.out)
    os.makedirs(out(), exist_ok=True)
    for name, text in ('table4.md', markdown(tables, damaged)), ('table4.csv', comma_separated(tables)):
        with open(out(name), 'w', encoding='utf-8') as file:
            file.write(text)
    print(markdown(tables, damaged))
    save_figure(out('table4.png'), draw_bars, tables, width=6, height=4)
    save_figure(out('curves.png'), draw_curves, tables, width=6, height=4.5)
    print('The tables and pictures are in %s' % out())


if __name__ == '__main__':
    flags.DEFINE_string('out', 'report', 'Folder of the tables and pictures.')
    utils.setup_tf()
    utils.run(main)
