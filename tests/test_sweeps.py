"""The sweeps: the rows of the paper's Table 4, as commands that the program accepts."""

import copy
import csv
import itertools
import os
import shlex
import subprocess

import pytest
from absl import flags
from conftest import ROOT

from ablation import ab_mixmatch
from libml import data_pair
from scripts import report

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
    """Returns the flags that a line of a sweep sets, parsed by the real program's definitions."""
    program, script, *rest = shlex.split(line)
    assert (program, script) == ('python', 'ablation/ab_mixmatch.py')
    values = copy.deepcopy(flags.FLAGS)
    assert values([script, *rest]) == [script]  # Nothing is left over.
    return values


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
    found = [(v.dataset, {n: v[n].value for n in report.paper_rows()[0].values}) for v in lines('sweep_table4.sh')]
    datasets = ('cifar10.3@250-1', 'cifar10.3@4000-1')
    assert found == [(dataset, row.values) for dataset in datasets for row in report.paper_rows()]


def test_table4_keeps_the_programs_defaults_but_beta():
    names = [*ab_mixmatch.MODEL_FLAGS, 'train_kimg', 'report_kimg', 'seed', 'whiten', 'p_unlabeled']
    for values in lines('sweep_table4.sh'):
        changed = {name for name in names if values[name].value != values[name].default}
        assert changed - {'nu', 'T', 'use_ema_guess', 'mixmode'} == {'beta'}
        assert values.beta == 0.75


@pytest.mark.parametrize('datasets', [['cifar10.3@250-1'], ['svhn.1@250-1', 'digits.2@20-100']])
@pytest.mark.parametrize('seeds', ['', '7', '1,2,30'])
def test_datasets_times_seeds_times_rows(datasets, seeds):
    args = ['--dataset=' + datasets[0], *itertools.chain(*(('--dataset', name) for name in datasets[1:]))]
    found = lines('sweep_table4.sh', *args, *(['--seeds', seeds] if seeds else []))
    splits = [data_pair.parse(name) for name in datasets]
    wanted = [
        (split.name, int(seed), split.size, split.valid)
        for split in splits
        for seed in (seeds.split(',') if seeds else [split.seed])
        for _ in ROWS
    ]
    found = [data_pair.parse(values.dataset) for values in found]
    assert [(s.name, s.seed, s.size, s.valid) for s in found] == wanted


@pytest.mark.parametrize('name', ['sweep_table4.sh', 'sweep_digits.sh'])
def test_the_program_accepts_each_line_and_no_two_share_a_folder(name):
    found = lines(name)
    folders = set()
    for values in found:
        params = {name: values[name].value for name in ab_mixmatch.MODEL_FLAGS}
        ab_mixmatch.AblationMixMatch.check(**params)
        train_dir = os.path.join(values.train_dir, values.dataset)
        folders.add(ab_mixmatch.AblationMixMatch.run_dir(train_dir, values.seed, **params))
    assert len(folders) == len(found)


def test_digits_are_all_rows_of_three_splits():
    found = lines('sweep_digits.sh')
    assert [values.dataset for values in found] == ['digits.%d@20-100' % seed for seed in (1, 2, 3) for _ in ROWS]
    reports = {values.train_kimg // values.report_kimg for values in found}
    assert min(reports) >= 20  # What the median is over.


def test_extra_flags_are_for_every_run_but_leave_each_row_what_it_is():
    found = lines('sweep_table4.sh', '--nu=5', "--train_dir=a b'c$d", '--w_match=75')
    assert {(values.train_dir, values.w_match) for values in found} == {("a b'c$d", 75)}
    assert [values.nu for values in found[:4]] == [5, 1, 3, 4]


@pytest.mark.parametrize(
    'args',
    [
        ['cifar10'],
        ['--dataset'],
        ['--dataset', 'cifar10'],
        ['--dataset=cifar10.3@250'],
        ['--seeds', '1;2'],
        ['--seeds=1,'],
    ],
)
def test_a_bad_argument_is_one_line(args):
    done = sweep('sweep_table4.sh', *args)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith('Error: ') and done.stderr.count('\n') == 1
