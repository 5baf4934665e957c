"""Compares runs with MixMatch, row by row, as the paper's Table 4 does.

    python scripts/report.py experiments/digits [--out=report]

The arguments are folders; all runs at any depth below them are read. The script prints its tables and writes to --out:

    table4.md, table4.csv   for each row: error, difference to MixMatch, and whether the runs settle that difference
    table4.png              the differences, with their 95 % intervals
    curves.png              accuracy during training
    runs.csv                the error of each run at each report; this script reads such a file in place of a folder

A row is a setting of a few flags: see table4.csv beside this script. Runs whose other arguments are equal make one
table.
"""

from libml.cli import quiet

if __name__ == '__main__':
    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

import dataclasses
import functools
import os
import pathlib

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from ablation.ab_mixmatch import PARAMS, AblationMixMatch
from libml import data_pair, experiment, utils
from libml.cli import options, script
from libml.running import runs

OPTIONS = dict(
    out=options.Option('report', 'Folder of the tables and pictures.', path=True),
    beside_paper=options.Option(
        0,
        "Show the paper's results with so many labels beside every table, named as those of another setting.",
        allowed='0 (not at all), 250 or 4000',
        valid=lambda labels: labels in (0, 250, 4000),
    ),
)

ROWS = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'table4.csv')
BASE = 'MixMatch'  # The row that all others are compared with.
NOT_SHARED = ('dataset', 'seed', 'save_kimg', 'keep_ckpt', 'xla', 'devices')  # Arguments that may differ in a table.
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


def show_flags(values):
    """Returns the flags, such as '--T=1', of those arguments that are not at their defaults."""
    changed = {
        name: value
        for name, value in sorted(values.items())
        if value != experiment.list_options(AblationMixMatch)[name].default
    }
    return ' '.join('--%s=%s' % (n, '%g' % v if isinstance(v, float) else v) for n, v in changed.items())


# --- Reading ---


def read_run(path):
    """Returns the reports of the run in a folder, a DataFrame of the columns REPORT, a line a report.

    Those are what names the run; train_kimg, the run's duration; kimg and error, the report's place and its test error
    in percent. A run without reports has one line: kimg 0, error nan.

    Raises:
        utils.Error: its args.json does not say what it is.
    """
    run, varied = runs.Run(path), parse_paper_rows()[BASE]
    needed = {'dataset': str, 'seed': int, 'train_kimg': (int, float), **dict.fromkeys(varied, (int, float, str))}
    wrong = [name for name, kind in needed.items() if not isinstance(run.args.get(name), kind)]
    if wrong:
        raise utils.Error('args.json is missing or damaged: no %s' % ', '.join(wrong))
    split = data_pair.parse(run.args['dataset'])
    values = {name: run.args[name] for name in varied}
    shared = set(run.args) & set(experiment.list_options(AblationMixMatch)) - {*varied, *NOT_SHARED}
    about = dict(
        dataset='%s@%d-%d' % (split.name, split.size, split.valid),
        flags=show_flags({name: run.args[name] for name in shared}),
        row=next((row for row, known in parse_paper_rows().items() if known == values), show_flags(values)),
        split=split.seed,
        seed=run.args['seed'],
        train_kimg=float(run.args['train_kimg']),
    )
    step, accuracy = np.array(runs.read_accuracies(path) or [(0, np.nan)], float).T
    return pd.DataFrame({**about, 'kimg': step / 1024, 'error': (100 - accuracy).round(4)})


def read_csv(path):
    """Returns the reports in a runs.csv, see read_run; raises utils.Error where the file is something else."""
    try:
        return pd.read_csv(path, converters={'flags': str})[[*REPORT]].astype(REPORT)
    except (ValueError, KeyError) as error:
        raise utils.Error('no runs.csv of this script: %s' % error) from None


def read_all(sources):
    """Returns the reports of all runs, see read_run, and a line on each thing that is damaged or there twice.

    Args:
        sources: folders, of which all runs in and below are read, and files as runs.csv.

    Raises:
        utils.Error: a folder is missing, or there is not one run.
    """
    found, remarks = [], []
    paths = [path for source in sources for path in ([source] if os.path.isfile(source) else runs.find_runs(source))]
    for path in dict.fromkeys(paths):
        try:
            found.append(read_csv(path) if os.path.isfile(path) else read_run(path))
        except utils.Error as error:
            remarks.append('%s: %s' % (path, error))
        remarks += runs.find_damaged_events(path)
    if not found:
        raise utils.Error('; '.join(['no run in or below %s' % ', '.join(sources), *remarks]))
    reports = pd.concat(found).sort_values([*RUN, 'kimg'], ignore_index=True)
    once = reports.drop_duplicates([*RUN, 'kimg'])
    if len(once) < len(reports):
        remarks.append('%d reports were found twice and count once' % (len(reports) - len(once)))
    return once, remarks


# --- Numbers ---


@dataclasses.dataclass(frozen=True)
class Table:
    """All runs of one setting.

    Attributes:
        dataset: such as 'cifar10@250-1'.
        flags: text, the arguments that all its runs share, where they are not at their defaults.
        reports: DataFrame, a line a report, see read_run.
        runs: DataFrame, a line a run, see summarise.
        rows: DataFrame, a line a row, see compare; and paper, paper_difference: the paper's error and its difference.
        paper: text, the heading of the paper's results; '' where there are none.
    """

    dataset: str
    flags: str
    reports: pd.DataFrame
    runs: pd.DataFrame
    rows: pd.DataFrame
    paper: str


def summarise(reports):
    """Returns the DataFrame of the runs of a setting, a line a run.

    Its columns are row, split, seed and train_kimg; kimg, the place of the last report; error, the median of the last
    20 reports in percent; finished; and counts: whether the run counts in its row's error. Finished runs count. If a
    row has no finished run, all its runs that have a report count.
    """
    groups = reports.groupby(['row', 'split', 'seed', 'train_kimg'])
    table = groups.agg(
        kimg=('kimg', 'last'), error=('error', lambda e: runs.take_medians(e.array)['last20'])
    ).reset_index()
    table['finished'] = table.kimg >= table.train_kimg
    table['counts'] = table.finished | (~table.groupby('row').finished.transform('any') & (table.kimg > 0))
    return table


def compute_differences(errors):
    """Compares rows with MixMatch, each over the splits that both have.

    Args:
        errors: DataFrame, a line a row, a column a split; in percent, nan where there is none.

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
    """Returns a DataFrame indexed by row, the paper's rows first; table is what summarise returned.

    Its columns are error and deviation, the mean and the sample's standard deviation over splits (of the means over
    seeds); runs and finished, how many; and the columns of `differences` from finished runs alone, nan for MixMatch.
    """
    names = [*parse_paper_rows(), *sorted(set(table.row) - set(parse_paper_rows()))]
    counted, finished = (
        table[chosen].pivot_table(index='row', columns='split', values='error').reindex(names)
        for chosen in (table.counts, table.finished)
    )
    rows = pd.DataFrame(dict(error=counted.mean(axis=1), deviation=counted.std(axis=1)))
    rows = rows.join([table.groupby('row').finished.agg(runs='size', finished='sum'), compute_differences(finished)])
    return rows.fillna(dict(runs=0, finished=0, splits=0, verdict='')).astype(dict(runs=int, finished=int, splits=int))


def make_table(dataset, shared, reports, beside_paper=0):
    """Returns the Table of a setting; shared is its flags, beside_paper is that of OPTIONS."""
    summary = summarise(reports)
    rows = compare(summary)
    own = shared in PAPER_FLAGS and PAPER_DATASETS.get(dataset)
    heading = 'paper' if own else OTHER_SETTING % beside_paper if beside_paper else ''
    errors = read_paper()[own or str(beside_paper)].reindex(rows.index) if heading else pd.Series(np.nan, rows.index)
    rows = rows.assign(read_paper=errors, paper_difference=(errors - errors[BASE]).drop(BASE))
    return Table(dataset, shared, reports, summary, rows, heading)


def make_tables(reports, beside_paper=0):
    """Returns the Tables of all runs, one for each setting."""
    return [make_table(*key, group, beside_paper) for key, group in reports.groupby(['dataset', 'flags'])]


# --- Words ---

LEGEND = (
    'Error: test error in percent, the median of the last 20 reports; mean ± standard deviation over splits. '
    "Difference: the row's error minus that of MixMatch on the same splits, in percentage points; above 0, the row is "
    'worse. Interval: what the true difference may be, judged by how much it changes from split to split; 95 of 100 '
    'such intervals are right. A row is called worse or better only if its interval leaves out 0.'
)


def format_number(value, form='%.2f'):
    """Returns a number as text; '–' for nan."""
    return '–' if np.isnan(value) else form % value


def format_error(row):
    """Returns the error of a row, see compare, such as '11.80 ± 0.50'."""
    spread = '' if np.isnan(row.deviation) else ' ± %.2f' % row.deviation
    return format_number(row.error) + spread + (' (unfinished)' if row.error >= 0 and not row.finished else '')


def format_interval(row):
    """Returns the interval of a row, see compare, such as '-0.50 to +1.30'."""
    if row.splits == 1:
        return 'none: one split'
    return '–' if np.isnan(row.low) else '%+.2f to %+.2f' % (row.low, row.high)


def join_words(words):
    """Returns 'a, b and c'."""
    return ' and '.join(filter(None, [', '.join(words[:-1]), words[-1]]))


def describe_findings(table):
    """Returns one paragraph: what the runs settle and what they do not, for a reader without statistics."""
    rows = table.rows[table.rows.splits > 0]
    if rows.empty:
        return 'Nothing is settled yet: no split has finished runs of both MixMatch and another row.'
    if rows.splits.max() == 1:
        return (
            'Nothing is settled: no row shares more than one split with MixMatch. So these runs cannot show how much '
            'of a difference is chance, and there are no intervals. More splits (--seeds of the sweep) give them.'
        )
    sentences = []
    for verdict in 'worse', 'better':
        chosen = rows[rows.verdict == verdict].itertuples()
        named = ['%s (%+.2f points; %s)' % (row.Index, row.difference, format_interval(row)) for row in chosen]
        sentences += ['Settled as %s than MixMatch: %s.' % (verdict, join_words(named))] if named else []
    unsettled = rows[rows.verdict == 'not settled']
    if len(unsettled):
        reach = unsettled[['low', 'high']].abs().max(axis=None)
        sentences += [
            'Not settled: %s.' % join_words([name + ' (one split)' * (n == 1) for name, n in unsettled.splits.items()]),
            'These differences change so much from split to split that they may be chance alone.',
            '"Not settled" does not mean "equal": a true difference of up to %.1f points is still possible.' % reach,
            'More splits narrow the intervals.',
        ]
    sentences.append('Of 20 rows that are truly equal to MixMatch, about one is called worse or better by chance.')
    return ' '.join(sentences)


def describe_missing(table):
    """Returns paragraphs, lines, on what is missing and unfinished in a table."""
    counts = pd.crosstab(table.runs.row, table.runs.split).reindex(table.rows.index, fill_value=0)
    lacking = {row: count.index[count == 0] for row, count in counts.iterrows()}
    texts = ['%s (split %s)' % (row, ', '.join(map(str, splits))) for row, splits in lacking.items() if len(splits)]
    unfinished = [
        '%s, split %d, at %g of %g kimg' % (run.row, run.split, run.kimg, run.train_kimg)
        for run in table.runs[~table.runs.finished].itertuples()
    ]
    lines = ['Missing: %s.' % '; '.join(texts), ''] if texts else []
    if unfinished:
        return [*lines, 'Unfinished, so no difference is made from them: %s.' % '; '.join(unfinished)]
    return [*lines, 'Runs: %d, all of them finished.' % len(table.runs)]


def format_table(table):
    """Returns a table, what it settles, and what is missing in it, as the lines of a Markdown section."""
    heads = ['row', 'error', 'difference', '95 % interval', 'verdict', 'splits compared', 'runs finished']
    lines = [
        [row.Index, format_error(row), format_number(row.difference, '%+.2f'), format_interval(row), row.verdict or '–']
        + [str(row.splits or '–'), '%d of %d' % (row.finished, row.runs)]
        + ([format_number(row.paper), format_number(row.paper_difference, '%+.2f')] if table.paper else [])
        for row in table.rows.itertuples()
    ]
    heads += [table.paper, 'its difference'] if table.paper else []
    lines = ['| %s |' % ' | '.join(line) for line in [heads, ['---'] * len(heads), *lines]]
    about = ['## %s' % table.dataset, '', 'Flags: `%s`' % table.flags, '']
    return [*about, *lines, '', describe_findings(table), '', *describe_missing(table), '']


def format_markdown(tables, remarks):
    """Returns the tables and the remarks of read_all as Markdown."""
    lines = [LEGEND, '', *(line for table in tables for line in format_table(table))]
    lines += ['## Remarks', '', *('- %s' % remark for remark in remarks), ''] if remarks else []
    return '\n'.join(lines)


def format_csv(tables):
    """Returns the tables as CSV."""
    rows = {(table.dataset, table.flags): table.rows for table in tables}
    return pd.concat(rows, names=['dataset', 'flags', 'row']).to_csv(float_format='%.2f')


# --- Pictures ---

STYLE = {  # Colours that the colour-blind tell apart. In black and white the shapes do.
    'worse': dict(color='#B84300', marker='>'),
    'better': dict(color='#0067A5', marker='<'),
    'not settled': dict(color='0.15', marker='o', markerfacecolor='white'),
    '': dict(color='0.15', marker=''),
}
PANELS = 4  # Side by side in curves.png.


def find_limits(rows):
    """Returns the ends of the axis of differences. All dots are inside; long intervals are cut, to keep dots apart."""
    dots = np.nan_to_num([0, *rows.difference, *rows.paper_difference])
    ends = np.nan_to_num([*dots, *rows.low, *rows.high])
    room = np.ptp(dots) + 1
    return max(min(ends), min(dots) - room) - room / 20, min(max(ends), max(dots) + room) + room / 20


def draw_differences(figure, table):
    """Draws each row's difference to MixMatch, with its interval, into a matplotlib figure; the paper's below it."""
    axis, rows = figure.subplots(), table.rows.drop(BASE)
    beside = dict(xycoords=('axes fraction', 'data'), va='center', fontsize=8.5)
    axis.annotate('difference (95 % interval)', (1.02, -0.85), **beside, color='0.45')
    for place, row in enumerate(rows.itertuples()):
        axis.axhspan(place - 0.5, place + 0.5, color='0.96' if place % 2 else 'white', linewidth=0)
        axis.plot([row.low, row.high], [place, place], color=STYLE[row.verdict]['color'], linewidth=2)
        text = '%+.2f  (%s)' % (row.difference, format_interval(row)) if row.splits else 'no runs to compare'
        axis.annotate(text, (1.02, place), **beside)
    for verdict, found in rows[rows.splits > 0].groupby('verdict'):
        places = rows.index.get_indexer(found.index)
        style = dict(STYLE[verdict], markersize=8, markeredgewidth=1.5, linestyle='')
        axis.plot(found.difference, places, **style, label=verdict)
    if table.paper:
        axis.plot(rows.paper_difference, np.arange(len(rows)) + 0.3, 'kD', markersize=4, label=table.paper)
    axis.axvline(0, color='black', linewidth=0.8)
    axis.set(xlim=find_limits(rows), ylim=(len(rows) - 0.5, -0.5))
    axis.set_xlabel('test error minus that of MixMatch, percentage points (to the right: worse)')
    axis.set_yticks(range(len(rows)), rows.index)
    axis.tick_params(axis='y', length=0)
    axis.grid(axis='x', color='0.85', linewidth=0.6)
    axis.spines[['top', 'right', 'left']].set_visible(False)
    title = "%s: MixMatch's test error is %s %%" % (table.dataset, format_error(table.rows.loc[BASE]))
    axis.set_title(title, fontsize=10, fontweight='bold', loc='left', pad=12)
    if axis.get_legend_handles_labels()[0]:
        figure.legend(loc='outside lower left', ncols=4, frameon=False, fontsize=8.5)


def compute_curve(table, row):
    """Returns kimg [n], mean [n], low [n] and high [n]: a row's test accuracy ± standard deviation over runs, in %.

    Only runs that count (see summarise) are taken, and only the reports that all of them have.
    """
    chosen = table.runs[table.runs.counts & (table.runs.row == row)][['row', 'split', 'seed']]
    accuracy = 100 - chosen.merge(table.reports).pivot(index='kimg', columns=['split', 'seed'], values='error').dropna()
    mean, deviation = accuracy.mean(axis=1), accuracy.std(axis=1).fillna(0)
    return accuracy.index, mean, (mean - deviation).clip(0, 100), (mean + deviation).clip(0, 100)


def count_panel_lines(table):
    """Returns how many lines of panels a table's curves take."""
    return -(-len(table.rows) // PANELS)


def draw_curves(figure, table):
    """Draws test accuracy over kimg into a matplotlib figure: a panel a row, over MixMatch's curve in grey."""
    axes = figure.subplots(count_panel_lines(table), PANELS, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, row in zip(axes, table.rows.itertuples(), strict=False):
        color = STYLE[row.verdict]['color']
        for name, shade, width in [(BASE, '0.68', 1.2)] * (row.Index != BASE) + [(row.Index, color, 1.6)]:
            kimg, mean, low, high = compute_curve(table, name)
            axis.fill_between(kimg, low, high, color=shade, alpha=0.22, linewidth=0.5)
            axis.plot(kimg, mean, color=shade, linewidth=width)
        words = 'error %s' % format_error(row) if row.error >= 0 else 'no report'
        words += ', %s' % row.verdict if row.verdict else ''
        axis.set_title(row.Index, fontsize=8.5, fontweight='bold', loc='left', pad=15)
        axis.annotate(words, (0, 1), (0, 4), 'axes fraction', textcoords='offset points', fontsize=8, color=color)
        axis.grid(color='0.9', linewidth=0.6)
        axis.spines[['top', 'right']].set_visible(False)
        axis.tick_params(labelsize=8, labelbottom=row.Index in table.rows.index[-PANELS:])
    for axis in axes[len(table.rows) :]:
        axis.axis('off')
    note = '%s   (line: mean over runs; band: ± standard deviation; grey: MixMatch)' % table.dataset
    figure.suptitle(note, x=0.01, ha='left', fontsize=10)
    figure.supxlabel('kimg: 1024 labelled images seen', fontsize=9)
    figure.supylabel('test accuracy, %', fontsize=9)


def save_figure(path, draw, tables, width, heights):
    """Draws tables one below the other and writes a PNG; width and heights, one for each table, are in inches."""
    figure = Figure(figsize=(width, sum(heights)), layout='constrained', dpi=150)
    parts = figure.subfigures(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, table in zip(parts, tables, strict=True):
        draw(part, table)
    figure.savefig(path)


# --- The command ---


def report(sources, out='report', beside_paper=0):
    """Prints the tables of runs, and writes tables, pictures and runs.csv into the folder `out`.

    Sources and errors: see read_all. beside_paper: int, see OPTIONS.
    """
    reports, remarks = read_all(sources)
    tables = make_tables(reports, beside_paper)
    folder, text = pathlib.Path(out), format_markdown(tables, remarks)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'table4.md').write_text(text, encoding='utf-8')
    (folder / 'table4.csv').write_text(format_csv(tables), encoding='utf-8')
    (folder / 'runs.csv').write_text(reports.to_csv(index=False), encoding='utf-8')
    heights = [1.6 + 0.32 * len(table.rows) for table in tables]
    save_figure(folder / 'table4.png', draw_differences, tables, 9, heights)
    heights = [0.8 + 1.9 * count_panel_lines(table) for table in tables]
    save_figure(folder / 'curves.png', draw_curves, tables, 10.5, heights)
    print(text)
    print('The tables and pictures are in %s' % out)


if __name__ == '__main__':
    script.run(
        lambda source, *more, **chosen: report([source, *more], **chosen),
        OPTIONS,
        'give one folder of runs or more, such as experiments',
    )
