"""The sweeps: the rows of the paper's Table 4, as commands that the program accepts."""

import csv
import itertools
import os
import shlex
import subprocess

import pytest
from conftest import ROOT
from test_methods import METHODS

from ablation.ab_mixmatch import PARAMS, AblationMixMatch
from libml import data_pair, experiment
from libml.cli import options
from libml.running import runs, setting
from scripts import report

OPTIONS = experiment.list_options(AblationMixMatch)

# Section 10 of the specification: the paper's Table 4.
ROWS = [
    ('MixMatch', '', 11.80, 6.00),
    ('no distribution averaging', '--nu=1', 17.09, 8.06),
    ('K = 3', '--nu=3', 11.55, 6.23),
    ('K = 4', '--nu=4', 12.45, 5.88),
    ('no sharpening', '--T=1', 27.83, 10.59),
    ('averaged weights guess', '--use_ema_guess', 11.86, 6.47),
    ('no MixUp', '--mixmode=.', 39.11, 10.97),
    ('MixUp on labelled only', '--mixmode=xx.', 32.16, 9.22),
    ('MixUp on unlabelled only', '--mixmode=.yy', 12.35, 6.83),
    ('MixUp on each separately', '--mixmode=xx.yy', 12.26, 6.50),
    ('Interpolation Consistency Training', '--mixmode=.yy --T=1 --use_ema_guess', 38.60, 6.81),
]


def sweep(name, *args):
    """Returns subprocess.CompletedProcess of a sweep script, called from elsewhere."""
    return subprocess.run([os.path.join(ROOT, 'scripts', name), *args], cwd='/', capture_output=True, text=True)


def parsed(line):
    """Returns the options that a line of a sweep sets, a dict, as the program reads and checks them."""
    program, script, *rest = shlex.split(line)
    assert (program, script) == ('python', 'ablation/ab_mixmatch.py')
    assert all(word.startswith('--') for word in rest)
    return options.fill(OPTIONS, options.parse(OPTIONS, rest))


def lines(name, *args):
    """Returns the parsed lines of a sweep that must succeed."""
    done = sweep(name, *args)
    assert (done.returncode, done.stderr) == (0, '')
    return [parsed(line) for line in done.stdout.splitlines()]


def test_the_rows_are_the_papers():
    with open(report.ROWS, newline='') as file:
        header, *rows = csv.reader(file)
    assert header == ['run', 'flags', '250', '4000']
    assert [(name, row, float(few), float(many)) for name, row, few, many in rows] == ROWS


def test_table4_is_every_row_with_250_and_4000_labels():
    varied = report.parse_paper_rows()['MixMatch']
    found = [(o['dataset'], {name: o[name] for name in varied}) for o in lines('sweep_table4.sh')]
    datasets = ('cifar10.3@250-1', 'cifar10.3@4000-1')
    assert found == [(dataset, row) for dataset in datasets for row in report.parse_paper_rows().values()]


def test_table4_keeps_the_programs_defaults_but_beta():
    for o in lines('sweep_table4.sh'):
        changed = {name for name, option in OPTIONS.items() if o[name] != option.default}
        assert changed - {'nu', 'T', 'use_ema_guess', 'mixmode', 'dataset'} == {'beta'}
        assert o['beta'] == 0.75


def test_table4_is_the_setting_that_the_report_sets_the_papers_figures_beside(tmp_path):
    for i, o in enumerate(lines('sweep_table4.sh')):
        args = dict(o, scales=3, train_kimg=float(o['train_kimg']), report_kimg=float(o['report_kimg']), seed=i)
        runs.Run(str(tmp_path / str(i))).write_args(args)
    reports, remarks = report.read_all([str(tmp_path)])
    assert not remarks
    assert [(table.dataset, table.paper) for table in report.make_tables(reports)] == [
        ('cifar10@250-1', 'paper'),
        ('cifar10@4000-1', 'paper'),
    ]


@pytest.mark.parametrize('datasets', [['cifar10.3@250-1'], ['svhn.1@250-1', 'digits.2@20-100']])
@pytest.mark.parametrize('seeds', ['', '7', '1,2,30'])
def test_datasets_times_seeds_times_rows(datasets, seeds):
    args = ['--dataset=' + datasets[0], *itertools.chain(*(('--dataset', name) for name in datasets[1:]))]
    found = lines('sweep_table4.sh', *args, *(['--seeds', seeds] if seeds else []))
    splits = [data_pair.parse(name) for name in datasets]
    wanted = [
        data_pair.Split(split.name, int(seed), split.size, split.valid)
        for split in splits
        for seed in (seeds.split(',') if seeds else [split.seed])
        for _ in ROWS
    ]
    assert [data_pair.parse(o['dataset']) for o in found] == wanted


@pytest.mark.parametrize('name', ['sweep_table4.sh', 'sweep_digits.sh', 'sweep_cifar10_small.sh'])
def test_the_program_accepts_each_line_and_no_two_share_a_folder(name):
    found = lines(name)
    folders = set()
    for o in found:
        params = {name: o[name] for name in PARAMS}
        AblationMixMatch.check_params(**params)
        folders.add(
            setting.locate_run(AblationMixMatch, os.path.join(o['train_dir'], o['dataset']), o['seed'], **params)
        )
    assert len(folders) == len(found)


STUDIES = {
    'sweep_digits.sh': ('digits.%d@20-100', (1, 2, 3)),
    'sweep_cifar10_small.sh': ('cifar10-16.%d@250-1', (1, 2, 3, 4, 5)),
}


@pytest.mark.parametrize('name', STUDIES)
def test_a_study_is_all_rows_of_each_split_and_its_setting_is_one_table(name):
    dataset, seeds = STUDIES[name]
    found = lines(name)
    assert [o['dataset'] for o in found] == [dataset % seed for seed in seeds for _ in ROWS]
    varied = {'dataset', *report.parse_paper_rows()['MixMatch']}
    assert len({tuple(value for key, value in o.items() if key not in varied) for o in found}) == 1
    assert found[0]['train_kimg'] // found[0]['report_kimg'] >= 20  # What the median is over.


@pytest.mark.parametrize('name', STUDIES)
def test_a_study_has_a_short_form_and_takes_other_flags(name):
    dataset, _ = STUDIES[name]
    found = lines(name, '--seeds=1,2', '--train_kimg=96', '--w_match=7')
    assert [o['dataset'] for o in found] == [dataset % seed for seed in (1, 2) for _ in ROWS]
    assert {(o['train_kimg'], o['w_match']) for o in found} == {(96, 7)}


def test_the_methods_are_all_of_them_on_each_split_and_make_one_table(tmp_path):
    done = sweep('sweep_methods.sh', '--train_kimg=80')
    assert (done.returncode, done.stderr) == (0, '')
    for i, line in enumerate(done.stdout.splitlines()):
        _, script, *flags = shlex.split(line)
        name = os.path.basename(script).removesuffix('.py')
        method = METHODS[name][0] if name in METHODS else AblationMixMatch
        o = options.fill(experiment.list_options(method), options.parse(experiment.list_options(method), flags))
        runs.Run(str(tmp_path / str(i))).write_args({**o, 'scales': 2, 'class': method.__name__, 'nclass': 10})
    reports, remarks = report.read_all([str(tmp_path)])
    (table,) = report.make_tables(reports)
    names = ['Interpolation Consistency Training', 'MeanTeacher', 'MixMatch', 'Mixup', 'PiModel', 'PseudoLabel', 'VAT']
    assert not remarks and sorted(table.drawn.index) == names
    assert set(table.drawn.runs) == {5} and table.dataset == 'cifar10-16@250-1'
    for words in ('--train_kimg=80', '--w_match=75', 'VAT --entmin_weight=0.06 --vat=0.3 --vat_eps=3', '--wd=0.2;'):
        assert words in table.flags


def test_extra_flags_are_for_every_run_but_leave_each_row_what_it_is():
    found = lines('sweep_table4.sh', '--nu=5', "--train_dir=a b'c$d", '--w_match=75')
    assert {(o['train_dir'], o['w_match']) for o in found} == {("a b'c$d", 75)}
    assert [o['nu'] for o in found[:4]] == [5, 1, 3, 4]


def test_rows_may_end_as_any_editor_ends_them(tmp_path):
    (tmp_path / 'rows.csv').write_bytes(b'run,flags\r\nMixMatch,\r\nno sharpening,--T=1')
    found = lines('sweep_table4.sh', '--rows', tmp_path / 'rows.csv', '--dataset=digits.1@20-1')
    assert [o['T'] for o in found] == [0.5, 1]


def test_rows_may_hold_commas_and_quotes_as_spreadsheets_write_them(tmp_path):
    rows = ['MixMatch', '--p_unlabeled=1,1'], ['a, "b"', "--T=1 --train_dir='a b'"], [], ['MixMatch', ''], ['K', '']
    with open(tmp_path / 'rows.csv', 'w', encoding='utf-8-sig', newline='') as file:
        csv.writer(file).writerows([['run', 'flags'], *rows])
    found = lines('sweep_table4.sh', '--rows', tmp_path / 'rows.csv', '--dataset=digits.1@20-1')
    assert [(o['p_unlabeled'], o['T'], o['train_dir'] == 'a b') for o in found] == [
        ('1,1', 0.5, False),
        ('', 1, True),
        *[('', 0.5, False)] * 2,
    ]


@pytest.mark.parametrize('row', ['MixMatch,--p_unlabeled=1,1', 'MixMatch', 'MixMatch,"--T=1', 'MixMatch,"--T=\'1"'])
def test_a_row_that_is_not_whole_is_one_line(tmp_path, row):
    (tmp_path / 'rows.csv').write_text('run,flags\n%s\n' % row)
    done = sweep('sweep_table4.sh', '--rows', tmp_path / 'rows.csv')
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith('Error: ') and done.stderr.count('\n') == 1


@pytest.mark.parametrize(
    'args',
    [
        ['cifar10'],
        ['--dataset'],
        ['--dataset', 'cifar10'],
        ['--dataset=cifar10.3@250'],
        ['--seeds', '1;2'],
        ['--rows=missing.csv'],
        ['--seeds=1,'],
    ],
)
def test_a_bad_argument_is_one_line(args):
    done = sweep('sweep_table4.sh', *args)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith('Error: ') and done.stderr.count('\n') == 1
