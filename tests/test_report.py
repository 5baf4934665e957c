"""The report: tables and pictures of runs whose accuracies are known."""

import csv
import io
import json
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import assert_one_line_error, command

from libml import runs, utils
from scripts import report

ROWS = report.paper_rows()
BASE = dict(ROWS[0].values, arch='resnet', beta=0.75, train_kimg=40.0, report_kimg=1.0, keep_ckpt=50, seed=1)


def write_run(folder, accuracies, dataset='digits.1@20-100', start=0, **args):
    """Writes a run that reports `accuracies`, one a kimg, from `start` kimg on; `args` change BASE."""
    os.makedirs(os.path.dirname(runs.args_file(folder)), exist_ok=True)
    with open(runs.args_file(folder), 'w') as file:
        json.dump(dict(BASE, dataset=dataset, **args), file)
    with tf.summary.FileWriter(os.path.join(folder, 'tf'), filename_suffix='.%d' % start) as writer:
        writer.add_session_log(tf.SessionLog(status=tf.SessionLog.START), (start << 10) + 1)
        for kimg, accuracy in enumerate(accuracies, start + 1):
            value = tf.Summary.Value(tag='accuracy', simple_value=accuracy)
            writer.add_summary(tf.Summary(value=[value]), kimg << 10)


def read(folder):
    """Returns the tables of all runs below a folder, of which none is damaged."""
    found, damaged = report.read_runs([str(folder)])
    assert not damaged
    return report.make_tables(found)


def cell(table, name):
    (found,) = (cell for cell in table.cells if cell.row.name == name)
    return found


# --- Numbers ---


def test_the_error_is_the_median_of_the_last_20_reports(tmp_path):
    accuracies = np.random.RandomState(0).uniform(80, 90, 40)
    write_run(tmp_path / 'a', accuracies)
    (table,) = read(tmp_path)
    assert cell(table, 'MixMatch').mean == pytest.approx(100 - np.median(accuracies[-20:]), abs=1e-4)
    assert np.isnan(cell(table, 'MixMatch').std)


def test_rows_are_the_papers_in_its_order_with_mean_and_deviation_over_splits(tmp_path):
    errors = np.random.RandomState(1).uniform(1, 50, [len(ROWS), 3])
    for i, row in reversed(list(enumerate(ROWS))):
        for split in range(3):
            accuracies = [100 - errors[i, split]] * 40
            write_run(tmp_path / ('%d-%d' % (i, split)), accuracies, 'cifar10.%d@250-1' % split, **row.values)
    (table,) = read(tmp_path)
    assert (table.dataset, table.flags) == ('cifar10@250-1', '--beta=0.75 --report_kimg=1 --train_kimg=40')
    assert [cell.row for cell in table.cells] == ROWS
    np.testing.assert_allclose([cell.mean for cell in table.cells], errors.mean(1), rtol=1e-5)
    np.testing.assert_allclose([cell.std for cell in table.cells], errors.std(1, ddof=1), rtol=1e-5)
    assert report.words(table) == ['Runs: 33, all of them finished.']


@pytest.mark.parametrize(
    'dataset,size', [('cifar10.3@4000-1', 4000), ('cifar10.3@500-1', None), ('svhn.3@250-1', None)]
)
def test_the_papers_figures_stand_beside_its_own_settings_alone(tmp_path, dataset, size):
    write_run(tmp_path, [90] * 40, dataset)
    (table,) = read(tmp_path)
    assert table.paper == (size and [row.paper[size] for row in ROWS])
    assert ('| MixMatch | 10.00 | 6.00 | 1 | 1 |' in report.markdown([table], [])) == bool(size)


def test_a_run_that_went_on_counts_each_report_once(tmp_path):
    write_run(tmp_path, [10] * 30)
    write_run(tmp_path, [90] * 20, start=20)  # The last 10 reports of the first process are made again.
    (table,) = read(tmp_path)
    assert cell(table, 'MixMatch').text == '10.00'
    kimg, accuracy = cell(table, 'MixMatch').curve()
    np.testing.assert_array_equal(kimg, np.arange(1, 41))
    np.testing.assert_array_equal(accuracy, [[10] * 20 + [90] * 20])


def test_a_curve_is_of_the_reports_that_all_its_runs_have(tmp_path):
    write_run(tmp_path / 'a', range(10), train_kimg=40.0)
    write_run(tmp_path / 'b', range(50, 56), 'digits.2@20-100', start=3)
    (table,) = read(tmp_path)
    kimg, accuracy = cell(table, 'MixMatch').curve()
    np.testing.assert_array_equal(kimg, range(4, 10))
    np.testing.assert_array_equal(accuracy, [range(3, 9), range(50, 56)])


# --- What is there and what is not ---


def test_an_unfinished_run_is_named_and_not_counted_beside_finished_ones(tmp_path):
    write_run(tmp_path / 'a', [90] * 40)
    write_run(tmp_path / 'b', [10] * 39, 'digits.2@20-100')
    write_run(tmp_path / 'c', [70] * 12, nu=3)
    write_run(tmp_path / 'd', [], T=1.0)
    (table,) = read(tmp_path)
    assert (cell(table, 'MixMatch').text, len(cell(table, 'MixMatch').runs)) == ('10.00', 2)
    assert cell(table, 'K = 3').text == '30.00 (unfinished)'
    assert cell(table, 'no sharpening').text == '–'
    missing, _, unfinished = report.words(table)
    assert 'K = 3 (split 2); ' in missing and 'no MixUp (split 1, 2); ' in missing and 'MixMatch (' not in missing
    for text in ('MixMatch, split 2, at 39 of 40 kimg', 'K = 3, split 1, at 12 of', 'no sharpening, split 1, at 0 of'):
        assert text in unfinished


def test_other_settings_are_other_tables_but_seeds_and_housekeeping_are_not(tmp_path):
    write_run(tmp_path / 'a', [90] * 40)
    write_run(tmp_path / 'b', [80] * 40, seed=2, keep_ckpt=3)
    write_run(tmp_path / 'c', [70] * 40, beta=0.5)
    write_run(tmp_path / 'd', [60] * 40, 'digits.1@50-100')
    found = [(table.dataset, table.flags[:11], cell(table, 'MixMatch').mean) for table in read(tmp_path)]
    both = '--report_ki', '--beta=0.75'
    assert sorted(found) == sorted(
        [('digits@20-100', both[0], 30), ('digits@20-100', both[1], 15), ('digits@50-100', both[1], 40)]
    )


def test_a_row_that_the_paper_lacks_comes_last_and_is_named_by_its_flags(tmp_path):
    write_run(tmp_path / 'a', [90] * 40, mixmode='xx.yx', use_ema_guess=True)
    (table,) = read(tmp_path)
    assert [c.row.name for c in table.cells] == [r.name for r in ROWS] + ['--mixmode=xx.yx --use_ema_guess=True']
    assert table.cells[-1].mean == 10


def test_the_csv_says_what_the_table_says(tmp_path):
    write_run(tmp_path / 'a', [90] * 40, 'cifar10.1@250-1')
    write_run(tmp_path / 'b', [80] * 40, 'cifar10.2@250-1')
    write_run(tmp_path / 'c', [80] * 40, 'digits.2@20-100')
    rows = list(csv.DictReader(io.StringIO(report.comma_separated(read(tmp_path)))))
    assert [row['run'] for row in rows] == [row.name for row in ROWS] * 2
    assert dict(rows[0], flags='') == dict(
        **dict(dataset='cifar10@250-1', flags='', run='MixMatch', error='15.00', std='7.07', paper='11.80'),
        **dict(runs='2', finished='2'),
    )
    assert [rows[11][name] for name in ('dataset', 'std', 'paper')] == ['digits@20-100', '', '']


# --- Damage ---


@pytest.mark.parametrize(
    'text', ['', '{"dataset": "digi', '[]', '{}', 'null', '\x00\xff', json.dumps(dict(BASE, dataset=3)), None]
)
def test_a_damaged_args_file_is_named_and_the_rest_is_read(tmp_path, text):
    write_run(tmp_path / 'a', [90] * 40)
    write_run(tmp_path / 'b', [80] * 40)
    path = runs.args_file(tmp_path / 'b')
    os.remove(path)
    if text is not None:
        with open(path, 'w', encoding='latin-1') as file:
            file.write(text)
    found, damaged = report.read_runs([str(tmp_path)])
    assert [run.error for run in found] == [10]
    assert len(damaged) == 1 and damaged[0].startswith(path)


def test_a_damaged_event_file_is_named_and_what_precedes_the_damage_is_read(tmp_path):
    write_run(tmp_path, [90] * 40)
    (name,) = os.listdir(tmp_path / 'tf')
    path = tmp_path / 'tf' / name
    whole = path.read_bytes()
    (tmp_path / 'tf' / 'events.out.tfevents.0.empty').write_bytes(b'')

    for content in (whole[:-5], whole[:-5] + b'\0' + whole[-4:]):
        path.write_bytes(content)
        (run,), damaged = report.read_runs([str(tmp_path)])
        assert run.at == 39 and not run.finished
        assert [line.split(' is ')[0] for line in damaged] == [
            str(tmp_path / 'tf' / 'events.out.tfevents.0.empty'),
            str(path),
        ]
        assert 'damaged after 41 records' in damaged[1]


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(utils.Error, match='no run in or below'):
        report.read_runs([str(tmp_path)])
    with pytest.raises(utils.Error, match='is no folder'):
        report.read_runs([str(tmp_path / 'missing')])


# --- Pictures ---


@pytest.mark.parametrize('draw', [report.draw_bars, report.draw_curves])
@pytest.mark.parametrize('reports', [0, 1, 40])
def test_pictures_are_drawn_of_whatever_there_is(tmp_path, draw, reports):
    figure = pytest.importorskip('matplotlib.figure').Figure(figsize=(14, 5), layout='constrained')
    write_run(tmp_path / 'a', [90] * reports)
    write_run(tmp_path / 'b', [80] * reports, 'cifar10.1@250-1')
    write_run(tmp_path / 'c', [80] * reports, 'cifar10.2@250-1')
    draw(figure, read(tmp_path))
    figure.savefig(io.BytesIO())
    assert [axis.get_title() for axis in figure.axes] == ['cifar10@250-1', 'digits@20-100']


def test_bars_and_lines_are_the_tables_numbers(tmp_path):
    figure = pytest.importorskip('matplotlib.figure').Figure
    write_run(tmp_path / 'a', [90] * 40, 'cifar10.1@250-1')
    write_run(tmp_path / 'b', [70] * 40, 'cifar10.1@250-1', nu=3)
    bars, curves = figure(), figure()
    report.draw_bars(bars, read(tmp_path))
    report.draw_curves(curves, read(tmp_path))
    widths = [bar.get_width() for bar in bars.axes[0].patches]
    assert widths[0] == 10 and widths[2] == 30 and np.isnan(widths[1])
    assert [label.get_text() for label in bars.axes[0].get_yticklabels()] == [row.name for row in ROWS]
    assert [line.get_ydata()[-1] for line in curves.axes[0].lines] == [90, 70]
    assert [text.get_text() for text in curves.legends[0].get_texts()] == ['MixMatch', 'K = 3']


# --- The command ---


def test_the_command_writes_four_files(tmp_path):
    pytest.importorskip('matplotlib')
    write_run(tmp_path / 'runs' / 'a', [90] * 40)
    done = command('scripts/report.py', tmp_path / 'runs', '--out', tmp_path / 'out')
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / 'out')) == ['curves.png', 'table4.csv', 'table4.md', 'table4.png']
    assert (tmp_path / 'out' / 'table4.md').read_text(encoding='utf-8') in done.stdout
    for name in 'curves.png', 'table4.png':
        assert (tmp_path / 'out' / name).read_bytes().startswith(b'\x89PNG')


def test_bad_arguments_of_the_command_are_one_line():
    assert_one_line_error(command('scripts/report.py'), 'one folder of runs or more')
