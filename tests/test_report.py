"""The report: tables and pictures of runs whose accuracies are known."""

import csv
import errno
import functools
import io
import os

import fakes
import numpy as np
import pandas as pd
import pytest
import tensorflow.compat.v1 as tf
from conftest import assert_one_line_error, tree
from forked import encode_output
from scipy import stats

from libml import files, utils
from libml.running import runs
from scripts import report

ROWS = report.parse_paper_rows()
SMALL = dict(arch='resnet', beta=0.75, scales=3, train_kimg=40.0, report_kimg=1.0, keep_ckpt=50, seed=1)
FLAGS = '--beta=0.75 --report_kimg=1 --scales=3 --train_kimg=40'


def write_run(folder, accuracies, dataset='digits.1@20-100', row='MixMatch', start=0, period=1, **args):
    """Writes a run that reports `accuracies`, one each `period` kimg from `start` on; `args` change SMALL."""
    run = runs.Run(str(folder))
    run.write_args({**SMALL, **ROWS[row], 'dataset': dataset, **args})
    with tf.summary.FileWriter(run.checkpoint_dir, filename_suffix='.%d' % start) as writer:
        writer.add_session_log(tf.SessionLog(status=tf.SessionLog.START), (start << 10) + 1)
        for i, accuracy in enumerate(accuracies, 1):
            value = tf.Summary.Value(tag='accuracy', simple_value=accuracy)
            writer.add_summary(tf.Summary(value=[value]), (start + i * period) << 10)


def test_a_record_that_is_no_event_is_passed_over_and_a_named_pipe_is_no_run(tmp_path, capsys):
    write_run(tmp_path / 'a', [90])
    (path,) = runs.list_events(tmp_path / 'a')
    records = list(tf.python_io.tf_record_iterator(path))
    with tf.io.TFRecordWriter(path) as writer:
        for record in (records[0], b'\xff' * 99, *records[1:]):
            writer.write(record)
    assert runs.read_accuracies(tmp_path / 'a') == [(1024, 90)]
    assert 'no event' in capsys.readouterr().err
    write_run(tmp_path / 'b', [90], row='K = 3')
    os.mkfifo(tmp_path / 'b' / 'tf' / 'events.out.tfevents.1.x')
    found, (remark,) = report.read_all([str(tmp_path)])
    assert len(found) == 1 and 'is no file' in remark


def made_up(errors, dataset='digits@20-100', flags=FLAGS, reports=40, train_kimg=40):
    """Returns reports, see report.read_run, of runs that are always at an error: {row: {split: error}}."""
    lines = [
        (dataset, flags, row, split, 1, train_kimg, kimg, error)
        for row, by_split in errors.items()
        for split, error in by_split.items()
        for kimg in range(1, reports + 1)
    ]
    return pd.DataFrame(lines, columns=[*report.RUN, 'train_kimg', 'kimg', 'error'])


def read(folder):
    """Returns the tables of all runs below a folder, of which none is damaged."""
    found, remarks = report.read_all([str(folder)])
    assert not remarks
    return report.make_tables(found)


def numbered(errors):
    """Returns {split: error}, the splits counted from 1."""
    return dict(enumerate(errors, 1))


# --- Errors ---


def test_the_error_is_the_median_of_the_last_20_reports(tmp_path):
    accuracies = np.random.RandomState(0).uniform(80, 90, 40)
    write_run(tmp_path / 'a', accuracies)
    (table,) = read(tmp_path)
    assert table.rows.error['MixMatch'] == pytest.approx(100 - np.median(accuracies[-20:]), abs=1e-4)
    assert np.isnan(table.rows.deviation['MixMatch'])


def test_a_median_of_fewer_than_20_reports_is_said_in_the_table_and_beneath_it(tmp_path):
    write_run(tmp_path / 'a', [40, 50, 60, 62, 64, 70, 75, 77.8], train_kimg=8.0)
    write_run(tmp_path / 'b', [50] * 30, 'digits.2@20-100', train_kimg=8.0)
    (table,) = read(tmp_path)
    text = report.format_markdown([table], [])
    assert '| MixMatch | 43.50 ± 9.19 (reports: 8) |' in text
    assert 'Fewer than 20 reports: ' in text and 'Error of the last report: MixMatch 36.10.' in text
    complete = report.format_markdown(report.make_tables(made_up({'MixMatch': {1: 10}})), [])
    assert '(reports' not in complete and 'Fewer than 20' not in complete


def test_rows_are_the_papers_in_its_order_with_mean_and_deviation_over_splits(tmp_path):
    errors = np.random.RandomState(1).uniform(1, 50, [len(ROWS), 3])
    for i, row in reversed(list(enumerate(ROWS))):
        for split in range(3):
            accuracies = [100 - errors[i, split]] * 40
            write_run(tmp_path / ('%d-%d' % (i, split)), accuracies, 'cifar10.%d@250-1' % split, row)
    (table,) = read(tmp_path)
    assert (table.dataset, table.flags) == ('cifar10@250-1', FLAGS)
    assert list(table.rows.index) == list(ROWS)
    np.testing.assert_allclose(table.rows.error, errors.mean(1), rtol=1e-5)
    np.testing.assert_allclose(table.rows.deviation, errors.std(1, ddof=1), rtol=1e-5)
    assert list(table.rows.finished) == list(table.rows.runs) == [3] * len(ROWS)


def test_seeds_of_a_split_are_averaged_before_splits_are_compared(tmp_path):
    for split, seed, error, base in (1, 1, 30, 10), (1, 2, 50, 30), (2, 1, 60, 20):
        about = dict(dataset='digits.%d@20-100' % split, seed=seed)
        write_run(tmp_path / ('base-%d-%d' % (split, seed)), [100 - base] * 40, **about)
        write_run(tmp_path / ('row-%d-%d' % (split, seed)), [100 - error] * 40, row='no MixUp', **about)
    (table,) = read(tmp_path)
    row = table.rows.loc['no MixUp']
    assert (row.error, row.runs, row.splits, row.difference) == (50, 3, 2, 30)  # (40 + 60) / 2; (20 + 40) / 2.


def test_a_run_that_went_on_counts_each_report_once(tmp_path):
    write_run(tmp_path, [10] * 30)
    write_run(tmp_path, [90] * 20, start=20)  # The last 10 reports of the first process are made again.
    (table,) = read(tmp_path)
    assert report.format_error(table.rows.loc['MixMatch']) == '10.00'
    kimg, mean, low, high = report.compute_curve(table, 'MixMatch')
    np.testing.assert_array_equal(kimg, np.arange(1, 41))
    np.testing.assert_array_equal([mean, low, high], [[10] * 20 + [90] * 20] * 3)


# --- Differences ---


def test_the_interval_is_that_of_a_paired_t_test():
    base = np.array([40.0, 44.0, 39.0, 47.0, 41.0])
    row = base + [3, 1, 2, 6, 3]  # The mean is 3, the deviation 1.8708, and Student's t for 4 degrees is 2.7764.
    found = report.compute_differences(pd.DataFrame([base, row], ['MixMatch', 'K = 3'])).loc['K = 3']
    assert (found.splits, found.verdict) == (5, 'worse')
    np.testing.assert_allclose([found.difference, found.low, found.high], [3, 0.677, 5.323], atol=1e-3)


@pytest.mark.parametrize('seed', range(5))
def test_differences_equal_scipys_on_random_errors(seed):
    random = np.random.RandomState(seed)
    errors = {row: numbered(random.uniform(0, 100, 2 + seed)) for row in ROWS}
    (table,) = report.make_tables(made_up(errors))
    base = list(errors['MixMatch'].values())
    for row in table.rows.drop('MixMatch').itertuples():
        test = stats.ttest_rel(list(errors[row.Index].values()), base)
        np.testing.assert_allclose([row.low, row.high], test.confidence_interval(0.95), rtol=1e-9)
        verdict = ('worse' if test.statistic > 0 else 'better') if test.pvalue < 0.05 else 'not settled'
        assert row.verdict == verdict


@pytest.mark.parametrize(
    'differences,verdict',
    [
        ([5, 5, 5], 'worse'),  # Always the same.
        ([5, 6, 7], 'worse'),
        ([-5, -6, -7], 'better'),
        ([-1, 9, 4], 'not settled'),
        ([0, 0, 0], 'not settled'),
        ([30], 'not settled'),
        ([], ''),
    ],
)
def test_a_row_is_worse_or_better_where_the_interval_leaves_out_0(differences, verdict):
    base = pd.Series([40.0, 60.0, 50.0])
    errors = pd.DataFrame({'MixMatch': base, 'K = 3': base + pd.Series(differences, dtype=float)}).T
    assert report.compute_differences(errors).verdict['K = 3'] == verdict


def test_only_splits_that_both_have_are_compared():
    base, row = {1: 40, 2: 50, 3: 90}, {2: 51, 3: 93, 4: 10}
    (table,) = report.make_tables(made_up({'MixMatch': base, 'K = 3': row}))
    assert (table.rows.splits['K = 3'], table.rows.difference['K = 3']) == (2, 2)
    assert table.rows.error['K = 3'] == pytest.approx(154 / 3)  # The error is over all of its splits.


def test_the_table_says_what_is_settled_in_which_direction_and_what_is_not():
    base = {1: 40, 2: 44, 3: 39}
    errors = {
        'MixMatch': base,
        'no sharpening': {1: 50, 2: 55, 3: 50},
        'K = 3': {1: 30, 2: 33, 3: 29},
        'K = 4': {1: 42, 2: 41, 3: 40},
        'no MixUp': {2: 90},
    }
    (table,) = report.make_tables(made_up(errors))
    lines = report.format_table(table)
    assert '| no sharpening | 51.67 ± 2.89 | +10.67 | +9.23 to +12.10 | worse | 3 | 3 of 3 |' in lines
    assert '| K = 3 | 30.67 ± 2.08 | -10.33 | -11.77 to -8.90 | better | 3 | 3 of 3 |' in lines
    assert '| no MixUp | 90.00 | +46.00 | none: one split | not settled | 1 | 1 of 1 |' in lines
    text = '"Not settled" does not mean "equal": a true difference of up to 6.6 points is possible.'
    assert report.describe_findings(table) == text and text in lines


def test_one_split_has_no_interval_and_settles_nothing():
    (table,) = report.make_tables(made_up({'MixMatch': {1: 10}, 'no MixUp': {1: 90}}))
    assert '| no MixUp | 90.00 | +80.00 | none: one split | not settled | 1 | 1 of 1 |' in report.format_markdown(
        [table], []
    )
    assert report.describe_findings(table).startswith('Nothing is settled: no row shares more than one split')


def test_without_mixmatch_nothing_is_compared():
    (table,) = report.make_tables(made_up({'no MixUp': {1: 90, 2: 80}}))
    assert (table.rows.verdict == '').all()
    assert report.describe_findings(table).startswith('Nothing is settled yet: no split has finished runs of both')


# --- The paper's figures ---


@pytest.mark.parametrize('w_match', [100, 75])
@pytest.mark.parametrize('dataset,labels', [('cifar10.3@250-1', '250'), ('cifar10.5@4000-1', '4000')])
def test_the_papers_figures_stand_beside_its_own_setting(tmp_path, dataset, labels, w_match):
    write_run(tmp_path, [90], dataset, train_kimg=65536.0, report_kimg=64.0, w_match=w_match, period=65536)
    (table,) = read(tmp_path)
    assert table.paper == 'paper'
    np.testing.assert_array_equal(table.rows.paper, report.read_paper()[labels])
    assert table.rows.paper_difference['no sharpening'] == pytest.approx({'250': 16.03, '4000': 4.59}[labels])
    assert table.rows.finished['MixMatch'] == 1


@pytest.mark.parametrize(
    'changed',
    [
        dict(dataset='cifar10.3@500-1'),
        dict(dataset='cifar10.3@250-5000'),
        dict(dataset='svhn.3@250-1'),
        dict(dataset='cifar10-16.3@250-1'),
        dict(beta=0.5),
        dict(w_match=50),
        dict(arch='cnn13'),
        dict(filters=16),
        dict(repeat=1),
        dict(scales=2),
        dict(batch=32),
        dict(lr=0.001),
        dict(wd=0.0),
        dict(ema=0.99),
        dict(warmup_kimg=16),
        dict(train_kimg=1024.0),
        dict(whiten=True),
        dict(precision='bfloat16'),
    ],
    ids=str,
)
def test_the_papers_figures_stand_beside_no_other_setting_unless_asked_for(tmp_path, changed):
    write_run(tmp_path, [90], **{**dict(dataset='cifar10.3@250-1', train_kimg=65536.0, report_kimg=64.0), **changed})
    assert read(tmp_path)[0].paper == ''
    reports, _ = report.read_all([str(tmp_path)])
    (table,) = report.make_tables(reports, beside_paper=250)
    assert table.paper == 'paper (another setting: WRN-28-2, CIFAR-10, 250 labels)'
    assert table.rows.paper['MixMatch'] == 11.80


def test_the_papers_own_columns_come_first_where_another_is_asked_for():
    (table,) = report.make_tables(made_up({'MixMatch': {1: 10}}, 'cifar10@4000-1', '--beta=0.75 --scales=3'), 250)
    assert (table.paper, table.rows.paper['MixMatch']) == ('paper', 6.00)


# --- What is there and what is not ---


def test_an_unfinished_run_is_counted_and_compared_with_nothing(tmp_path):
    write_run(tmp_path / 'a', [90] * 40)
    write_run(tmp_path / 'b', [10] * 39, 'digits.2@20-100')
    write_run(tmp_path / 'c', [70] * 12, row='K = 3')
    write_run(tmp_path / 'd', [], row='no sharpening')
    (table,) = read(tmp_path)
    texts = [report.format_error(table.rows.loc[row]) for row in ('MixMatch', 'K = 3', 'no sharpening')]
    assert texts == ['10.00', '30.00 (unfinished, reports: 12)', '–']
    assert table.rows.runs['MixMatch'] == 2 and table.rows.splits.max() == 0
    lines = report.format_table(table)
    for row, ends in {'MixMatch': '| 1 of 2 |', 'K = 3': '| 0 of 1 |', 'no sharpening': '| 0 of 1 |'}.items():
        assert [line.endswith(ends) for line in lines if line.startswith('| %s |' % row)] == [True]


def test_other_settings_are_other_tables_but_seeds_and_housekeeping_are_not(tmp_path):
    write_run(tmp_path / 'a', [90] * 40)
    write_run(tmp_path / 'b', [80] * 40, seed=2, keep_ckpt=3, xla=True, devices=2, classes=['a'], data={'test': 'b'})
    write_run(tmp_path / 'c', [70] * 40, beta=0.5)
    write_run(tmp_path / 'd', [60] * 40, 'digits.1@50-100')
    write_run(tmp_path / 'e', [50] * 80, train_kimg=80.0)
    found = [(table.dataset, table.flags, table.rows.error['MixMatch']) for table in read(tmp_path)]
    assert found == [
        ('digits@20-100', FLAGS, 15),
        ('digits@20-100', FLAGS.replace('40', '80'), 50),
        ('digits@20-100', FLAGS.removeprefix('--beta=0.75 '), 30),
        ('digits@50-100', FLAGS, 40),
    ]


def test_a_row_that_the_paper_lacks_comes_last_and_is_named_by_its_flags(tmp_path):
    write_run(tmp_path / 'a', [90] * 40, mixmode='xx.yx', use_ema_guess=True)
    (table,) = read(tmp_path)
    assert list(table.rows.index) == [*ROWS, '--mixmode=xx.yx --use_ema_guess=True']
    assert table.rows.error.iloc[-1] == 10


# --- Other methods ---


def write_other(folder, accuracies, method='PiModel', split=1, **args):
    """Writes a run of another method than MixMatch."""
    write_run(folder, accuracies)
    shared = {name: value for name, value in SMALL.items() if name != 'beta'}
    about = {'class': method, 'dataset': 'digits.%d@20-100' % split, 'nclass': 10, 'classes': [], 'wd': 0.02}
    runs.Run(str(folder)).write_args({**shared, **about, **args})


def test_a_method_is_a_row_of_each_table_of_its_data_network_and_duration(tmp_path):
    for split in (1, 2, 3):
        for beta in (0.5, 0.75):
            folder = tmp_path / ('base%d-%s' % (split, beta))
            write_run(folder, [70 + split] * 40, 'digits.%d@20-100' % split, beta=beta, wd=0.02)
        write_other(tmp_path / ('pi%d' % split), [50 + split**2] * 40, split=split, consistency_weight=20.0)
        write_other(tmp_path / ('vat%d' % split), [80 + split] * 40, 'VAT', split, vat=0.3, wd=0.1)
    write_other(tmp_path / 'wide', [90] * 40, filters=64)
    tables = {table.flags: table for table in read(tmp_path)}
    own = '; PiModel --consistency_weight=20 --wd=0.02; VAT --vat=0.3 --wd=0.1'
    wide = '--filters=64 --report_kimg=1 --scales=3 --train_kimg=40; PiModel --wd=0.02'
    assert set(tables) == {FLAGS + own, FLAGS.removeprefix('--beta=0.75 ') + own, wide}
    assert list(tables.pop(wide).drawn.index) == ['PiModel']
    for table in tables.values():
        assert list(table.drawn.index) == ['MixMatch', 'PiModel', 'VAT']
        assert list(table.drawn.verdict) == ['', 'worse', 'better'] and table.drawn.difference['VAT'] == -10
        assert table.rows.finished.sum() == table.rows.runs.sum() == 9


def test_two_settings_of_a_method_are_two_rows_also_from_a_runs_file(tmp_path):
    write_run(tmp_path / 'runs' / 'a', [90] * 40)
    for weight in (1.0, 2.0):
        write_other(tmp_path / 'runs' / str(weight), [80] * 40, consistency_weight=weight)
    report.report([str(tmp_path / 'runs')], str(tmp_path / 'out'))
    for source in ('runs', 'out/runs.csv'):
        (table,) = read(tmp_path / source)
        assert list(table.drawn.index) == [
            'MixMatch',
            'PiModel --consistency_weight=1',
            'PiModel --consistency_weight=2',
        ]
        assert table.flags == FLAGS + '; PiModel --wd=0.02'


# --- Files ---


def test_the_csv_says_what_the_table_says(tmp_path):
    errors = {'MixMatch': {1: 10, 2: 20}, 'K = 3': {1: 11, 2: 25}}
    papers = made_up(errors, 'cifar10@250-1', '--beta=0.75 --scales=3')
    tables = report.make_tables(pd.concat([papers, made_up({'MixMatch': {2: 20}})]))
    lines = list(csv.DictReader(io.StringIO(report.format_csv(tables))))
    assert [line['row'] for line in lines] == [*ROWS, *ROWS]
    assert lines[2] == dict(
        **dict(dataset='cifar10@250-1', flags='--beta=0.75 --scales=3', row='K = 3', error='18.00', deviation='9.90'),
        **dict(runs='2', finished='2', splits='2', difference='3.00', low='-22.41', high='28.41'),
        **dict(verdict='not settled', paper='11.55', paper_difference='-0.25'),
    )
    assert [lines[11][name] for name in ('dataset', 'deviation', 'paper')] == ['digits@20-100', '', '']


def test_the_runs_file_gives_the_same_report_as_the_folders(tmp_path):
    for i, row in enumerate(('MixMatch', 'no MixUp')):
        for split in range(3):
            accuracies = np.random.RandomState(10 * i + split).uniform(0, 100, 40)
            write_run(tmp_path / 'runs' / ('%d%d' % (i, split)), accuracies, 'digits.%d@20-100' % split, row)
    write_run(tmp_path / 'runs' / 'empty', [], row='K = 3')
    report.report([str(tmp_path / 'runs')], str(tmp_path / 'first'))
    file = tmp_path / 'first' / 'runs.csv'
    lines = list(csv.DictReader(file.read_text().splitlines()))
    assert list(lines[0]) == ['dataset', 'flags', 'row', 'split', 'seed', 'train_kimg', 'kimg', 'error']
    assert len(lines) == 6 * 40 + 1
    report.report([str(file)], str(tmp_path / 'second'))
    for name in os.listdir(tmp_path / 'first'):
        assert (tmp_path / 'first' / name).read_bytes() == (tmp_path / 'second' / name).read_bytes(), name


def test_runs_that_are_given_twice_count_once(tmp_path):
    write_run(tmp_path / 'runs' / 'a', [90] * 40)
    report.report([str(tmp_path / 'runs')], str(tmp_path / 'out'))
    reports, remarks = report.read_all([str(tmp_path / 'runs'), str(tmp_path / 'out' / 'runs.csv')])
    assert len(reports) == 40 and remarks == ['40 reports were found twice and count once']


@pytest.mark.parametrize('sources', [('one', 'a_two'), ('a_two', 'one'), ('out/runs.csv', 'a_two')])
def test_of_two_runs_with_equal_arguments_the_most_advanced_counts_alone(tmp_path, monkeypatch, sources):
    write_run(tmp_path / 'one', [80] * 8, train_kimg=16.0, devices=1)
    write_run(tmp_path / 'a_two', [60] * 12, train_kimg=16.0, devices=2)
    write_run(tmp_path / 'a_two' / 'new', [], train_kimg=16.0, devices=4)
    monkeypatch.chdir(tmp_path)
    report.report(['one'], 'out')
    reports, remarks = report.read_all(sources)
    assert list(reports.error) == [40] * 12 and list(reports) == list(report.REPORT)
    other = next(source for source in sources if source != 'a_two')
    assert remarks == [other + ': 8 reports differ from those of another run with equal arguments, and do not count']


def test_pieces_of_two_runs_with_equal_arguments_make_no_finished_run(tmp_path):
    write_run(tmp_path / 'a', [80] * 20)
    write_run(tmp_path / 'b', [60] * 20, start=20)
    reports, (remark,) = report.read_all([str(tmp_path)])
    assert list(reports.error) == [40] * 20 and remark.startswith('%s: 20 reports differ' % (tmp_path / 'a'))


def test_runs_on_other_data_of_one_name_are_remarked(tmp_path):
    for name, digest in zip('abc', 'xyx', strict=True):
        row = 'MixMatch' if name < 'c' else 'K = 3'
        write_run(tmp_path / name, [90] * 40, row=row, seed=ord(name), data={'test': digest})
    _, (remark,) = report.read_all([str(tmp_path)])
    assert remark.startswith('digits.1@20-100 was not always the same data')
    assert str(tmp_path / 'a') in remark and str(tmp_path / 'b') in remark


# --- Damage ---


BAD_ARGS = [
    *('', '{"dataset": "digi', '[]', '{}', 'null', '\x00\xff', None),
    *(dict(dataset=dataset) for dataset in (3, 'digits', '\x1b[31mdigits.1@20-1')),
    *(dict(seed=seed) for seed in (None, 'x', 1.5, True)),
    *({'class': method} for method in (None, '--T=1', ['x'])),
    *(dict(train_kimg=10**400), dict(train_kimg='x'), dict(classes='x'), dict(whiten=3), dict(data=[]), dict(nu=[1])),
    dict(mixmode=None),
]


@pytest.mark.parametrize('bad', BAD_ARGS, ids=str)
def test_a_damaged_args_file_is_named_and_the_rest_is_read(tmp_path, bad):
    """What is bad is all of the file, or one of its fields."""
    write_run(tmp_path / 'a', [90] * 40)
    write_run(tmp_path / 'b', [80] * 40)
    run = runs.Run(str(tmp_path / 'b'))
    if isinstance(bad, dict):
        files.write_json(run.args_file, {**files.read_json(run.args_file, {}), **bad})
    else:
        os.remove(run.args_file)
    if isinstance(bad, str):
        with open(run.args_file, 'w', encoding='latin-1') as file:
            file.write(bad)
    reports, (remark,) = report.read_all([str(tmp_path)])
    assert list(reports.error) == [10] * 40
    assert run.folder in remark and '\x1b' not in remark and len(remark) < 500
    assert not isinstance(bad, dict) or next(iter(bad)) in remark


def test_what_may_not_be_read_is_named_and_the_rest_is_read(tmp_path, monkeypatch):
    for name in 'abc':
        write_run(tmp_path / 'runs' / name, [90] * 40)
    refused = [str(tmp_path / 'runs' / 'b'), str(tmp_path / 'runs' / 'c' / 'args' / 'args.json')]

    def refuse(original):
        def function(path, *args, **kwargs):
            if path in refused:
                raise PermissionError(errno.EACCES, 'Permission denied', path)
            return original(path, *args, **kwargs)

        return function

    monkeypatch.setattr(os, 'scandir', refuse(os.scandir))
    monkeypatch.setattr('builtins.open', refuse(open))
    reports, remarks = report.read_all([str(tmp_path / 'runs')])
    assert len(reports) == 40 and [remark.count('Permission denied') for remark in remarks] == [1, 1]
    assert refused[0] in remarks[0] and refused[1] in remarks[1]


def test_text_of_others_cannot_control_the_terminal(tmp_path, capsys):
    write_run(tmp_path / 'a', [90] * 40, lr='\x1b[31m', mixmode='\x1b[2J')
    report.report([str(tmp_path / 'a')], str(tmp_path / 'out'))
    text = (tmp_path / 'out' / 'runs.csv').read_text().replace('\\x1b', '\x1b')
    (tmp_path / 'evil.csv').write_text(text)
    report.report([str(tmp_path / 'evil.csv')], str(tmp_path / 'out'))
    assert '\x1b' not in capsys.readouterr().out and '\x1b' in text


def test_a_damaged_event_file_is_named_and_what_precedes_the_damage_is_read(tmp_path):
    write_run(tmp_path, [90] * 40)
    (name,) = os.listdir(tmp_path / 'tf')
    path = tmp_path / 'tf' / name
    whole = path.read_bytes()
    (tmp_path / 'tf' / 'events.out.tfevents.0.empty').write_bytes(b'')

    for content in (whole[:-5], whole[:-5] + b'\0' + whole[-4:]):
        path.write_bytes(content)
        reports, remarks = report.read_all([str(tmp_path)])
        assert reports.kimg.max() == 39
        assert [line.split(' is ')[0] for line in remarks] == [
            str(tmp_path / 'tf' / 'events.out.tfevents.0.empty'),
            str(path),
        ]
        assert 'damaged after 41 records' in remarks[1]


HEADER = 'dataset,flags,row,split,seed,train_kimg,kimg,error\n'


@pytest.mark.parametrize(
    'text',
    [
        '',
        'a,b\n1,2\n',
        '\x00\xff',
        HEADER + ',,,x,,,,',
        HEADER + 'd,,r,1,1,inf,1,1',
        HEADER + 'd,,r,1%s,1,1,1,1' % ('0' * 400),
        HEADER + 'd,, ,1,1,1,1,1',
        HEADER + 'd,,,1,1,1,1,1',
    ],
)
def test_a_file_that_is_no_runs_file_is_an_error(tmp_path, text):
    path = tmp_path / 'other.csv'
    path.write_bytes(text.encode('latin-1'))
    with pytest.raises(utils.Error, match='csv of this script'):
        report.read_all([str(path)])


def test_many_runs_that_cannot_be_read_are_a_list_and_a_short_error(tmp_path, capsys):
    for i in range(30):
        write_run(tmp_path / str(i), [90], scales=0)
    with pytest.raises(utils.Error, match=r'no run in or below .*; see above$') as error:
        report.read_all([str(tmp_path)])
    said = capsys.readouterr().err.splitlines()
    assert len(str(error.value)) < 300 and len(said) == 21 and said[-1] == '... and 10 more'
    assert 'scales is 0' in said[0]


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(utils.Error, match='no run in or below'):
        report.read_all([str(tmp_path)])
    with pytest.raises(utils.Error, match='is no folder'):
        report.read_all([str(tmp_path / 'missing')])


# --- Pictures ---


def drawn(draw, table):
    """Returns the matplotlib Figure of a table, rendered once."""
    figure = report.Figure(figsize=(9, 6), layout='constrained')
    draw(figure, table)
    figure.savefig(io.BytesIO())
    return figure


@pytest.mark.parametrize('draw', [report.draw_differences, report.draw_curves])
@pytest.mark.parametrize('splits', [0, 1, 3])
@pytest.mark.parametrize('reports', [0, 2])
def test_pictures_are_drawn_of_whatever_there_is(draw, splits, reports):
    errors = {row: dict.fromkeys(range(splits), 10) for row in list(ROWS)[1:4]}
    found = made_up({'MixMatch': {0: 20}, '--nu=7': {0: 30}, **errors}, reports=max(reports, 1))
    if not reports:
        found = found.assign(kimg=0, error=np.nan)
    (table,) = report.make_tables(found, beside_paper=250)
    assert drawn(draw, table).axes


def test_a_picture_has_a_part_for_each_table(tmp_path):
    found = pd.concat([made_up({'MixMatch': {1: 10}}), made_up({'MixMatch': {1: 10}}, 'cifar10@250-1')])
    names = []
    tables = report.make_tables(found)
    report.save_figure(tmp_path / 'a.png', lambda _, table: names.append(table.dataset), tables, 3, lambda rows: 1)
    assert names == ['cifar10@250-1', 'digits@20-100']
    assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')


def test_the_picture_of_differences_shows_the_tables_numbers():
    errors = {'MixMatch': {1: 10, 2: 20, 3: 15}, 'no sharpening': {1: 30, 2: 41, 3: 35}, 'K = 3': {1: 9, 2: 22, 3: 15}}
    (table,) = report.make_tables(made_up(errors), beside_paper=4000)
    figure = drawn(report.draw_differences, table)
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ['K = 3', 'no sharpening']  # No row without a run.
    dots = {line.get_label(): line for line in axis.lines if not line.get_label().startswith('_')}
    assert list(dots) == ['not settled', 'worse', table.paper]
    place = 1
    np.testing.assert_allclose(dots['worse'].get_data(), [[61 / 3], [place]])
    ends = axis.lines[place].get_data()
    np.testing.assert_allclose(ends, [table.rows.loc['no sharpening', ['low', 'high']].astype(float), [place, place]])
    np.testing.assert_allclose(dots[table.paper].get_xdata()[place], 4.59)


def test_an_arrowhead_stands_where_an_interval_is_cut_and_nowhere_else():
    errors = {'MixMatch': {1: 10, 2: 20}, 'K = 3': {1: 9, 2: 30}, 'K = 4': {1: 9, 2: 21.5}}
    (table,) = report.make_tables(made_up(errors))
    (axis,) = drawn(report.draw_differences, table).axes
    arrows = [text.xy for text in axis.texts if hasattr(text, 'xy')]
    assert table.rows.loc['K = 4', 'low'] < axis.get_xlim()[0] and table.rows.loc['K = 3', 'low'] < axis.get_xlim()[0]
    assert arrows == [(end, place) for place in (0, 1) for end in axis.get_xlim()]
    (table,) = report.make_tables(made_up({**errors, 'K = 3': {1: 30, 2: 41}, 'K = 4': {1: 9, 2: 20}}))
    (axis,) = drawn(report.draw_differences, table).axes
    assert [text.xy for text in axis.texts if hasattr(text, 'xy')] == []


def test_the_title_of_long_rows_and_few_reports_stands_over_the_headings_unit_before_bracket():
    row = 'Interpolation Consistency Training'
    (table,) = report.make_tables(made_up({'MixMatch': {1: 71, 2: 85}, row: {1: 75, 2: 80}}, reports=4, train_kimg=4))
    figure = drawn(report.draw_differences, table)
    (title,), head = figure.texts, figure.axes[0].texts[0]
    assert title.get_text() == "digits@20-100: MixMatch's test error is 78.00 ± 9.90 % (reports: 4)"
    assert head.get_text() == 'difference (95 % interval)'
    assert title.get_window_extent().y0 >= head.get_window_extent().y1
    assert title.get_window_extent().x1 < figure.bbox.x1


def test_a_panel_shows_a_rows_curve_over_mixmatchs_on_the_same_axes():
    (table,) = report.make_tables(made_up({'MixMatch': {1: 10, 2: 20}, 'K = 3': {1: 1, 2: 71}}))
    figure = drawn(report.draw_curves, table)
    panels = {axis.get_title(loc='left'): axis for axis in figure.axes}
    assert list(panels)[:2] == ['MixMatch', 'K = 3'] and not any(list(panels)[2:])
    base, row = panels['K = 3'].lines
    assert (base.get_ydata()[-1], row.get_ydata()[-1]) == (85, 64)
    assert [line.get_ydata()[-1] for line in panels['MixMatch'].lines] == [85]
    assert len({axis.get_ylim() for axis in panels.values()}) == 1
    _, _, low, high = report.compute_curve(table, 'K = 3')
    np.testing.assert_allclose([low.iloc[0], high.iloc[0]], [64 - 70 / 2**0.5, 100])  # 64 ± 49.5, and not beyond 100.


def test_a_curve_is_of_the_reports_that_all_its_runs_have(tmp_path):
    write_run(tmp_path / 'a', range(10))
    write_run(tmp_path / 'b', range(50, 56), 'digits.2@20-100', start=3)
    (table,) = read(tmp_path)
    kimg, mean, _, _ = report.compute_curve(table, 'MixMatch')
    np.testing.assert_array_equal(kimg, range(4, 10))
    np.testing.assert_array_equal(mean, np.add(range(3, 9), range(50, 56)) / 2)


# --- The command ---


@pytest.mark.parametrize('encoding', ['utf-8', 'ascii'])
def test_the_command_writes_five_files_whatever_the_encoding_of_the_terminal(server, tmp_path, encoding):
    write_run(tmp_path / 'runs' / 'a', [90] * 40)
    write_run(tmp_path / 'runs' / 'b', [80] * 40, 'digits.2@20-100')
    first = [functools.partial(encode_output, encoding)]
    done = server.run('scripts/report.py', tmp_path / 'runs', '--out', tmp_path / 'out', first=first)
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
    names = ['curves.png', 'runs.csv', 'table4.csv', 'table4.md', 'table4.png']
    assert sorted(os.listdir(tmp_path / 'out')) == names
    text = (tmp_path / 'out' / 'table4.md').read_text(encoding='utf-8')
    assert '15.00 ± 7.07' in text
    assert text.encode(encoding, 'replace').decode(encoding) in done.stdout
    for name in 'curves.png', 'table4.png':
        assert (tmp_path / 'out' / name).read_bytes().startswith(b'\x89PNG')


def test_a_full_disk_costs_nothing_that_was_there(server, tmp_path):
    write_run(tmp_path / 'runs', [90] * 40)
    report.report([str(tmp_path / 'runs')], str(tmp_path / 'report'))
    before = tree(tmp_path)
    args = 'scripts/report.py', tmp_path / 'report' / 'runs.csv', '--out', tmp_path / 'report'
    done = server.run(*args, first=[functools.partial(fakes.limit_files, 2000)])
    assert_one_line_error(done, 'runs.csv')
    for path in (tmp_path / 'report').iterdir():  # The first table may be new: it says the same.
        assert before[str(path)][0] == tree(tmp_path)[str(path)][0]
    assert len(tree(tmp_path)) == len(before)


def test_pictures_do_not_depend_on_the_users_settings_and_cost_no_table(server, tmp_path):
    write_run(tmp_path / 'runs', [90] * 40)
    report.report([str(tmp_path / 'runs')], str(tmp_path / 'as it is'))
    (tmp_path / 'rc').write_text('text.usetex: True\nsavefig.format: pdf\nsavefig.dpi: 900\nfont.family: Nowhere\n')
    env = dict(MATPLOTLIBRC=str(tmp_path / 'rc'), MPLBACKEND='nothing')
    done = server.run('scripts/report.py', tmp_path / 'runs', '--out', tmp_path / 'out', env=env)
    assert (done.returncode, done.stderr) == (0, '')
    for name in os.listdir(tmp_path / 'as it is'):
        assert (tmp_path / 'as it is' / name).read_bytes() == (tmp_path / 'out' / name).read_bytes(), name


def test_a_picture_that_cannot_be_drawn_costs_no_table(tmp_path, monkeypatch):
    write_run(tmp_path / 'runs', [90] * 40)
    monkeypatch.setattr(report, 'draw_differences', None)
    with pytest.raises(TypeError):
        report.report([str(tmp_path / 'runs')], str(tmp_path / 'out'))
    assert sorted(os.listdir(tmp_path / 'out')) == ['runs.csv', 'table4.csv', 'table4.md']
