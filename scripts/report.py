"""Compares runs with MixMatch, row by row, as the paper's Table 4 does.

    python scripts/report.py experiments/digits [--out=report]

The arguments are folders; all runs at any depth below them are read. The script prints its tables and writes to --out:

    table4.md, table4.csv   for each row: error, difference to MixMatch, and whether the runs settle that difference
    table4.png              the differences, with their 95 % intervals
    curves.png              accuracy during training
    runs.csv                the error of each run at each report; this script reads such a file in place of a folder

A row is a setting of a few flags, see table4.csv beside this script. Runs that differ in others make other tables.
Another method, such as examples/vat.py, is a row of each table whose data, network and duration are its runs'.
"""

import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # The libml beside this file.
    from libml.cli import quiet

    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

import dataclasses
import functools
import math

import numpy as np
import pandas as pd
import tensorflow.compat.v1 as tf
from matplotlib.figure import Figure
from scipy import stats

from ablation.ab_mixmatch import PARAMS, AblationMixMatch
from libml import data_pair, experiment, files, models, utils
from libml.cli import drawing, options, script
from libml.running import runs
from libml.utils import escape

BESIDE = "Show the paper's results with so many labels beside every table, named as those of another setting."
OPTIONS = dict(
    out=options.Option('report', 'Folder of the tables and pictures.', path=True),
    beside_paper=options.Option(0, BESIDE, (0, 250, 4000).__contains__, '0 (not at all), 250 or 4000'),
)

ROWS = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'table4.csv')
BASE = 'MixMatch'  # The row that all others are compared with.
MEDIAN = 20  # The error is the median of so many last reports, as in the paper.
NOT_SHARED = ('dataset', 'seed', 'save_kimg', 'keep_ckpt', 'xla', 'devices')  # Arguments that may differ in a table.
# What a table's methods share. Weight decay is each one's own: the paper's Mean Teacher has another.
COMMON = {*experiment.OPTIONS, *experiment.PARAMS, *models.PARAMS} - {*NOT_SHARED, 'wd'}
NOT_OWN = {*COMMON, *NOT_SHARED, *runs.DATA_ARGS, 'class', 'nclass'}
RUN = dict(dataset=str, flags=str, row=str, split=int, seed=int)  # Columns that tell one run from all others.
REPORT = dict(RUN, train_kimg=float, kimg=float, error=float)  # Columns of a report, see read_run.

# The paper's setting: all flags that no row varies are at their defaults, except for these. (--scales=3 is what the
# default means for CIFAR-10.) The published sweep leaves --w_match at 100, the default; the paper's text says 75.
PAPER_DATASETS = {'cifar10@250-1': '250', 'cifar10@4000-1': '4000'}
PAPER_FLAGS = ('--beta=0.75 --scales=3', '--beta=0.75 --scales=3 --w_match=75')
OTHER_SETTING = 'paper (another setting: WRN-28-2, CIFAR-10, %d labels)'

# --- Rows ---


@functools.cache
def read_paper():
    """Returns the paper's Table 4, a DataFrame indexed by row: flags, and errors in the columns '250' and '4000'."""
    return pd.read_csv(ROWS, index_col='run', keep_default_na=False)


@functools.cache
def parse_paper_rows():
    """Returns {row: {argument: value}} in the paper's order, for each argument that any row varies."""
    parsed = {row: options.parse(PARAMS, text.split()) for row, text in read_paper()['flags'].items()}
    varied = [name for name in PARAMS if any(values[name] != PARAMS[name].default for values in parsed.values())]
    return {row: {name: values[name] for name in varied} for row, values in parsed.items()}


def is_other(row):
    """Returns whether a row is another method than MixMatch, such as 'PiModel --consistency_weight=10'."""
    return row not in parse_paper_rows() and not row.startswith('--')


def show_flags(values, known):
    """Returns the flags, such as '--T=1', of those arguments that are not at their defaults; known: the options."""
    changed = [(n, value) for n, value in sorted(values.items()) if n not in known or value != known[n].default]
    return escape(' '.join('--%s=%s' % (n, '%g' % v if isinstance(v, float) else v) for n, v in changed))


# --- Reading ---


def read_run(run, damaged=None):
    """Returns the reports of a runs.Run, a DataFrame of the columns REPORT, a line a report.

    kimg is a report's place, error its test error in percent. A run without reports has one line: kimg 0, error nan.
    Raises utils.Error where args.json does not say what it is. damaged: see runs.read_accuracies.
    """
    step, accuracy = np.array(runs.read_accuracies(run.folder, damaged) or [(0, np.nan)], float).T
    known, method = experiment.list_options(AblationMixMatch), run.args.get('class', AblationMixMatch.__name__)
    rows = parse_paper_rows() if method == AblationMixMatch.__name__ else {}
    varied = rows.get(BASE, {})
    needed = 'dataset', 'seed', 'train_kimg', *varied
    wrong = [name for name in needed if not isinstance(run.args.get(name), int | float | str)]
    wrong += [] if isinstance(method, str) and method.isidentifier() else ['class']
    utils.refuse(wrong, 'args.json is missing or damaged: no %s', ', '.join(wrong))
    split, kimg = data_pair.parse(run.args['dataset']), float(run.args['train_kimg'])
    shared = {*run.args} & ({*known} - {*varied, *NOT_SHARED} if rows else COMMON)
    flags = show_flags({name: run.args[name] for name in shared}, known)
    own = {name: run.args[name] for name in varied or {*run.args} - NOT_OWN}
    row = show_flags(own, known) if rows else ('%s %s' % (method, show_flags(own, {}))).strip()
    row = next((row for row, values in rows.items() if values == own), row)
    about = '%s@%s-%d' % (split.name, split.size, split.valid), flags, row, split.seed, run.args['seed'], kimg
    return pd.DataFrame(dict(zip(REPORT, about, strict=False), kimg=step / 1024, error=(100 - accuracy).round(4)))


def read_csv(path):
    """Returns the reports in a runs.csv, see read_run; raises utils.Error where the file is something else."""
    try:
        found = pd.read_csv(path, keep_default_na=False, na_values=dict(error=''))[[*REPORT]].astype(REPORT)
        if not (np.isfinite(found[['train_kimg', 'kimg']]).all(axis=None) and found.row.str.strip().all()):
            raise ValueError('train_kimg and kimg must be finite, and row not blank')
    except (ValueError, KeyError, OverflowError) as error:
        raise utils.Error('no runs.csv of this script: %s' % escape(error)) from None
    return found.assign(**{name: found[name].map(functools.cache(escape)) for name in ('dataset', 'flags', 'row')})


def read_all(sources):
    """Returns the reports of all runs, see read_run, and a line on each thing that cannot be read or is there twice.

    sources are folders, of which all runs in and below are read, and files as runs.csv. Of runs with equal arguments
    the most advanced counts. Raises utils.Error if a folder is missing, or there is not one run.
    """
    found, lost, damaged, places, data = [], [], [], {}, {}
    for source in sources:
        inside = [source] if os.path.isfile(source) else runs.find_runs(source, lambda e: lost.append((e.filename, e)))
        places = {**{os.path.realpath(path): path for path in inside}, **places}
    for path in places.values():
        try:
            run = None if os.path.isfile(path) else runs.Run(path)
            found.append((read_run(run, damaged) if run else read_csv(path)).assign(path=path))
            if run and run.args.get('data'):
                data.setdefault(run.args['dataset'], {}).setdefault(repr(sorted(run.args['data'].items())), path)
        except (utils.Error, OSError, tf.errors.OpError) as error:
            lost.append((path, error))
    remarks = ['%s: %s' % (escape(path), utils.explain(error)) for path, error in lost] + [*map(escape, damaged)]
    text = '%s was not always the same data, and errors on it do not compare: see %s and %s, for example'
    remarks += [escape(text % (name, *list(at.values())[:2])) for name, at in data.items() if len(at) > 1]
    if not found and len(remarks) > 1:
        utils.print_list(remarks)
        remarks = ['see above']
    utils.refuse(not found, '%s', '; '.join(['no run in or below %s' % escape(', '.join(sources)), *remarks]))
    reports = pd.concat(found).sort_values([*RUN, 'kimg'], ignore_index=True)
    once = reports.merge(reports.drop_duplicates([*RUN], keep='last')[[*RUN, 'path']]).drop_duplicates([*RUN, 'kimg'])
    counted = reports[[*RUN, 'kimg']].merge(once, 'left').error  # nan where the run that counts has no such report.
    other = reports[reports.error.notna() & ~((reports.error - counted).abs() < 1e-4)]
    text = '%s: %d reports differ from those of another run with equal arguments, and do not count'
    remarks += [text % (escape(path), number) for path, number in other.groupby('path').size().items()]
    if twice := reports.error.count() - once.error.count() - len(other):
        remarks.append('%d reports were found twice and count once' % twice)
    return once[[*REPORT]], remarks


# --- Numbers ---


@dataclasses.dataclass(frozen=True)
class Table:
    """All runs of one setting."""

    dataset: str  # Such as 'cifar10@250-1'.
    flags: str  # The arguments that all its runs share, where they are not at their defaults.
    reports: pd.DataFrame  # A line a report, see read_run.
    runs: pd.DataFrame  # A line a run, see summarise.
    rows: pd.DataFrame  # A line a row, see compare; and paper, paper_difference: the paper's error and its difference.
    paper: str  # The heading of the paper's results; '' where there are none.

    @property
    def drawn(self):
        """The rows that have a run, as `rows`."""
        return self.rows[self.rows.runs > 0]


def summarise(reports):
    """Returns the runs of a setting, a DataFrame, a line a run.

    Its columns are row, split, seed and train_kimg; kimg and last, place and error of the last report; error, the
    median of the last 20 reports in percent; reports, how many there are; finished; and counts, whether it counts in
    its row's error: it is finished, or it has a report and no run of its row is finished.
    """
    groups = reports.groupby(['row', 'split', 'seed', 'train_kimg'], as_index=False)
    error = ('error', lambda e: runs.take_medians(e.array)['last%d' % MEDIAN])
    table = groups.agg(kimg=('kimg', 'last'), error=error, last=('error', 'last'), reports=('error', 'count'))
    table['finished'] = table.kimg >= table.train_kimg
    table['counts'] = table.finished | (~table.groupby('row').finished.transform('any') & (table.kimg > 0))
    return table


def compute_differences(errors):
    """Compares rows with MixMatch over the splits that both have; errors: percent [row, split], nan for none.

    Returns:
        DataFrame, a line a row but MixMatch: splits, how many both have; difference, the mean error minus MixMatch's;
        low and high, its 95 % interval by Student's t, nan where there are less than two splits; verdict: 'worse' or
        'better' where the interval leaves out 0, else 'not settled'; '' without any split.
    """
    gaps = (errors - errors.loc[BASE]).drop(BASE)
    splits, mean = gaps.count(axis=1), gaps.mean(axis=1)
    half = stats.t.ppf(0.975, splits - 1) * gaps.sem(axis=1)
    verdict = np.select([mean - half > 0, mean + half < 0, splits > 0], ['worse', 'better', 'not settled'], '')
    return pd.DataFrame(dict(splits=splits, difference=mean, low=mean - half, high=mean + half, verdict=verdict))


def compare(table):
    """Returns a DataFrame indexed by row, the paper's rows first, of the runs that summarise returned.

    Its columns are error and deviation, mean and sample's standard deviation over splits (of means over seeds); last,
    the mean of the last reports; reports, the fewest of a run; runs and finished, how many; and those of
    compute_differences, of finished runs alone.
    """
    names = [*parse_paper_rows(), *sorted(set(table.row) - set(parse_paper_rows()))]
    axes = dict(index='row', columns='split', values='error')
    counted, finished = (table[kept].pivot_table(**axes).reindex(names) for kept in (table.counts, table.finished))
    rows = pd.DataFrame(dict(error=counted.mean(axis=1), deviation=counted.std(axis=1)))
    ends = table[table.counts].groupby('row').agg(last=('last', 'mean'), reports=('reports', 'min'))
    number = table.groupby('row').finished.agg(runs='size', finished='sum')
    rows = rows.join([ends, number, compute_differences(finished)])
    return rows.fillna(dict(runs=0, finished=0, splits=0, verdict='')).astype(dict(runs=int, finished=int, splits=int))


def join_methods(reports):
    """Returns the reports, see read_run, with those of other methods in each table of MixMatch that they fit into."""
    other = reports.row.map(is_other).astype(bool)
    tables = reports[~other][['dataset', 'flags']].drop_duplicates().rename(columns=dict(flags='table'))
    tables['flags'] = tables.table.map(lambda text: ' '.join(f for f in text.split() if f[2:].split('=')[0] in COMMON))
    joined = reports[other].merge(tables, 'left', ['dataset', 'flags'])
    return pd.concat([reports[~other], joined.assign(flags=joined.table.fillna(joined['flags']))[[*reports]]])


def shorten_rows(rows):
    """Shortens the names of other methods' rows in a table: flags that all rows of a method share are left out.

    Returns {row: short name}, and a list of texts, each a method with those flags.
    """
    names, texts, others = {}, [], {row: row.split() for row in rows if is_other(row)}
    for method in sorted({words[0] for words in others.values()} - {*parse_paper_rows()}):
        own = {row: words for row, words in others.items() if words[0] == method}
        shared = sorted(set.intersection(*map(set, own.values())) - {method})
        names.update({row: ' '.join(word for word in words if word not in shared) for row, words in own.items()})
        texts.append(' '.join([method, *shared]))
    return names, texts


def make_tables(reports, beside_paper=0):
    """Returns the Tables of all runs, one for each setting; beside_paper is that of OPTIONS."""
    tables = []
    for (dataset, flags), group in join_methods(reports).groupby(['dataset', 'flags']):
        names, methods = shorten_rows(group.row.unique())
        group = group.assign(row=group.row.map(lambda row, names=names: names.get(row, row)))
        summary = summarise(group)
        rows = compare(summary)
        own = flags in PAPER_FLAGS and PAPER_DATASETS.get(dataset)
        heading = 'paper' if own else OTHER_SETTING % beside_paper if beside_paper else ''
        errors = pd.Series(read_paper()[own or str(beside_paper)] if heading else np.nan, rows.index)
        rows = rows.assign(paper=errors, paper_difference=(errors - errors[BASE]).drop(BASE))
        tables.append(Table(dataset, '; '.join([flags, *methods]), group, summary, rows, heading))
    return tables


# --- Words ---

LEGEND = (
    'The error is the test error in percent, the median of the last 20 reports (of all, where it says how many); mean '
    "± standard deviation over splits. The difference is the row's error minus MixMatch's on the same splits, in "
    'percentage points; above 0, the row is worse. The interval is what the true difference may be, judged by its '
    'changes from split to split; 95 of 100 such intervals are right. A row is called worse or better only if its '
    'interval leaves out 0.'
)


def format_number(value, form='%.2f'):
    """Returns a number as text; '–' for nan."""
    return '–' if np.isnan(value) else form % value


def format_error(row, unit=''):
    """Returns the error of a row, see compare, such as '11.80 ± 0.50', with a unit behind it."""
    if np.isnan(row.error):
        return '–'
    spread = '' if np.isnan(row.deviation) else ' ± %.2f' % row.deviation
    marks = filter(None, [not row.finished and 'unfinished', row.reports < MEDIAN and 'reports: %d' % row.reports])
    return ('%.2f%s%s (%s)' % (row.error, spread, unit, ', '.join(marks))).removesuffix(' ()')


def format_interval(row):
    """Returns the interval of a row, see compare, such as '-0.50 to +1.30'."""
    if row.splits == 1:
        return 'none: one split'
    return '–' if np.isnan(row.low) else '%+.2f to %+.2f' % (row.low, row.high)


def describe_findings(table):
    """Returns one sentence on what the column `verdict` means here, for a reader without statistics."""
    rows = table.rows[table.rows.splits > 0]
    if rows.empty:
        return 'Nothing is settled yet: no split has finished runs of both MixMatch and another row.'
    if rows.splits.max() == 1:
        return 'Nothing is settled: no row shares more than one split with MixMatch. More splits give intervals.'
    reach = rows[rows.verdict == 'not settled'][['low', 'high']].abs().max(axis=None)
    text = '"Not settled" does not mean "equal": a true difference of up to %.1f points is possible.'
    return 'Every difference is settled.' if np.isnan(reach) else text % reach


def format_table(table):
    """Returns a table and what it settles as the lines of a Markdown section."""
    heads = ['row', 'error', 'difference', '95 % interval', 'verdict', 'splits compared', 'runs finished']
    lines = [
        [row.Index, format_error(row), format_number(row.difference, '%+.2f'), format_interval(row), row.verdict or '–']
        + [str(row.splits or '–'), '%d of %d' % (row.finished, row.runs)]
        + ([format_number(row.paper), format_number(row.paper_difference, '%+.2f')] if table.paper else [])
        for row in (table.rows if table.paper else table.drawn).itertuples()
    ]
    heads += [table.paper, 'its difference'] if table.paper else []
    lines = ['| %s |' % ' | '.join(line) for line in [heads, ['---'] * len(heads), *lines]]
    lines = ['## %s' % table.dataset, '', 'Flags: `%s`' % table.flags, '', *lines, '']
    ends = table.rows['last'][table.rows.reports < MEDIAN]
    if len(ends):
        text = 'Fewer than %d reports: the error is of the whole training. Error of the last report: %s.'
        lines += [text % (MEDIAN, ', '.join('%s %.2f' % item for item in ends.items())), '']
    return [*lines, describe_findings(table), '']


def format_markdown(tables, remarks):
    """Returns the tables and the remarks of read_all as Markdown."""
    lines = [LEGEND, '', *(line for table in tables for line in format_table(table))]
    lines += ['## Remarks', '', *('- %s' % remark for remark in remarks), ''] if remarks else []
    return '\n'.join(lines)


def format_csv(tables):
    """Returns the tables as CSV."""
    rows = {(table.dataset, table.flags): table.rows.drop(columns=['last', 'reports']) for table in tables}
    return pd.concat(rows, names=['dataset', 'flags', 'row']).to_csv(float_format='%.2f')


# --- Pictures ---

STYLE = {  # Colours that the colour-blind tell apart. In black and white the shapes do.
    'worse': dict(color='#B84300', marker='>'),
    'better': dict(color='#0067A5', marker='<'),
    'not settled': dict(color='0.15', marker='o', markerfacecolor='white'),
    '': dict(color='0.15', marker=''),
}
PANELS = 4  # Side by side in curves.png.
DRAWN = 50  # Tables in a picture at most: matplotlib draws no more than 65,536 pixels.


def draw_differences(figure, table):
    """Draws each row's difference to MixMatch, with its interval, into a matplotlib figure; the paper's below it."""
    axis, rows = figure.subplots(), table.drawn.drop(BASE, errors='ignore')
    axis.text(1.02, 1, 'difference (95 % interval)', color='0.45', fontsize=8.5, va='bottom', transform=axis.transAxes)
    dots = np.nan_to_num([0, *rows.difference, *rows.paper_difference])
    room = np.ptp(dots) + 1  # Long intervals are cut, to keep dots apart.
    ends = np.nan_to_num([*dots, *rows.low, *rows.high])
    cuts = np.clip([min(ends), max(ends)], min(dots) - room, max(dots) + room) + [-room / 20, room / 20]
    for place, row in enumerate(rows.itertuples()):
        axis.axhspan(place - 0.5, place + 0.5, color='0.96' if place % 2 else 'white', linewidth=0)
        line = dict(color=STYLE[row.verdict]['color'], linewidth=2)
        axis.plot([row.low, row.high], [place, place], **line)
        for end in cuts[[row.low < cuts[0], row.high > cuts[1]]]:  # The interval goes on there.
            axis.annotate('', (end, place), (row.difference, place), size=18, arrowprops=dict(line, arrowstyle='->'))
        text = '%+.2f  (%s)' % (row.difference, format_interval(row)) if row.splits else 'no runs to compare'
        axis.text(1.02, place, text, fontsize=8.5, va='center', transform=axis.get_yaxis_transform())
    for verdict, found in rows[rows.splits > 0].groupby('verdict'):
        style = dict(STYLE[verdict], markersize=8, markeredgewidth=1.5, linestyle='', label=verdict, zorder=4)
        axis.plot(found.difference, rows.index.get_indexer(found.index), **style)
    axis.plot(rows.paper_difference, np.arange(len(rows)) + 0.3, 'kD', markersize=4, label=table.paper)
    axis.axvline(0, color='black', linewidth=0.8)
    axis.set(xlim=cuts, ylim=(max(len(rows), 1) - 0.5, -0.5), yticks=range(len(rows)), yticklabels=rows.index)
    axis.set_xlabel('test error minus that of MixMatch, percentage points (to the right: worse)')
    if not rows.splits.any():
        axis.set_xticks([0])
    axis.tick_params(axis='y', length=0)
    axis.grid(axis='x', color='0.85', linewidth=0.6)
    axis.spines[['top', 'right', 'left']].set_visible(False)
    title = "%s: MixMatch's test error is %s" % (table.dataset, format_error(table.rows.loc[BASE], ' %'))
    figure.suptitle(title, x=0.01, ha='left', fontsize=10, fontweight='bold')
    if axis.get_legend_handles_labels()[0]:
        figure.legend(loc='outside lower left', ncols=4, frameon=False, fontsize=8.5)


def compute_curve(table, row):
    """Returns kimg, mean, low and high [n]: accuracy ± deviation, %, over a row's runs that count, where all report."""
    chosen = table.runs[table.runs.counts & (table.runs.row == row)][['row', 'split', 'seed']]
    accuracy = 100 - chosen.merge(table.reports).pivot(index='kimg', columns=['split', 'seed'], values='error').dropna()
    mean, deviation = accuracy.mean(axis=1), accuracy.std(axis=1).fillna(0)
    return accuracy.index, mean, (mean - deviation).clip(0, 100), (mean + deviation).clip(0, 100)


def draw_curves(figure, table):
    """Draws test accuracy over kimg into a matplotlib figure: a panel a row, over MixMatch's curve in grey."""
    lines = math.ceil(len(table.drawn) / PANELS)
    axes = figure.subplots(lines, PANELS, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, row in zip(axes, table.drawn.itertuples(), strict=False):
        color = STYLE[row.verdict]['color']
        for name, shade, width in [(BASE, '0.68', 1.2)] * (row.Index != BASE) + [(row.Index, color, 1.6)]:
            kimg, mean, low, high = compute_curve(table, name)
            axis.fill_between(kimg, low, high, color=shade, alpha=0.22, linewidth=0.5)
            axis.plot(kimg, mean, '.-' if len(kimg) == 1 else '-', color=shade, linewidth=width)
        words = 'error %s' % format_error(row) if row.error >= 0 else 'no report'
        words += ', %s' % row.verdict if row.verdict else ''
        axis.set_title(row.Index, fontsize=8.5, fontweight='bold', loc='left', pad=15)
        axis.annotate(words, (0, 1), (0, 4), 'axes fraction', textcoords='offset points', fontsize=8, color=color)
        axis.grid(color='0.9', linewidth=0.6)
        axis.spines[['top', 'right']].set_visible(False)
        axis.tick_params(labelsize=8, labelbottom=row.Index in table.drawn.index[-PANELS:])
    for axis in axes[len(table.drawn) :]:
        axis.axis('off')
    note = '   (line: mean over runs; band: ± standard deviation; grey: MixMatch)'
    figure.suptitle(table.dataset + note, x=0.01, ha='left', fontsize=10)
    figure.supxlabel('kimg: 1024 labelled images seen', fontsize=9)
    figure.supylabel('test accuracy, %', fontsize=9)


def save_figure(path, draw, tables, width, height):
    """Draws tables one below the other and writes a PNG; in inches: width, and height(rows), that of a table."""
    heights = [height(len(table.drawn)) for table in tables]
    with drawing.styling():
        figure = Figure(figsize=(width, sum(heights)), layout='constrained')
        parts = figure.subfigures(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
        for part, table in zip(parts, tables, strict=True):
            draw(part, table)
        drawing.save(figure, path)


# --- The command ---


def report(sources, out='report', beside_paper=0):
    """Prints the tables of runs, and writes tables, pictures and runs.csv into the folder `out`; see read_all."""
    reports, remarks = read_all(sources)
    tables = make_tables(reports, beside_paper)
    text = format_markdown(tables, remarks)
    print(text)
    contents = {'table4.md': text, 'table4.csv': format_csv(tables), 'runs.csv': reports.to_csv(index=False)}
    for name, content in contents.items():
        files.write_text(os.path.join(out, name), content)
    save_figure(os.path.join(out, 'table4.png'), draw_differences, tables[:DRAWN], 9, lambda rows: 1.6 + 0.32 * rows)
    path = os.path.join(out, 'curves.png')
    save_figure(path, draw_curves, tables[:DRAWN], 10.5, lambda rows: 0.8 + 1.9 * math.ceil(rows / PANELS))
    utils.say('The tables and pictures are in ' + out + ' (pictures of the first %d)' % DRAWN * (len(tables) > DRAWN))


if __name__ == '__main__':
    script.run(
        lambda source, *more, **chosen: report([source, *more], **chosen),
        OPTIONS,
        'give one folder of runs or more, such as experiments',
    )
