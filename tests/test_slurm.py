"""A sweep as a Slurm job array, on a real cluster of two nodes on this machine (slurm_cluster.sh).

Where Slurm is not installed, the scripts are still tested, with stand-ins for sbatch and scontrol.
"""

import collections
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import fakes
import pytest
from conftest import ROOT

from libml import files, utils
from libml.running import runs

NEEDED = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'scancel', 'scontrol', 'squeue', 'srun')
PATH = os.environ['PATH'] + os.pathsep + '/usr/sbin'
MISSING = [name for name in NEEDED if not shutil.which(name, path=PATH)]
needs_slurm = pytest.mark.skipif(bool(MISSING), reason='Slurm is not installed: no %s' % ', '.join(MISSING))
ARRAY, TASK = (os.path.join(ROOT, 'scripts', name) for name in ('slurm_array.sh', 'slurm_task.sh'))
PATIENCE = 240  # Seconds until a test gives up; it takes far less.


@pytest.fixture
def cluster():
    """Starts a cluster and stops it; gives the environment of its commands."""
    script = os.path.join(ROOT, 'tests', 'slurm_cluster.sh')
    with subprocess.Popen(['bash', script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        conf = process.stdout.readline().strip()
        if conf:
            yield dict(os.environ, SLURM_CONF=conf, PYTHONPATH=ROOT, PATH=PATH)
        process.stdin.close()
    assert process.returncode == 0 and conf
    assert not os.path.exists(os.path.dirname(conf))


def wait_for(condition, what):
    """Returns the first truth that condition() gives."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError('waited in vain for ' + what)


def records(conf):
    """Returns what Slurm noted at each end of a task: dict from '<job>_<task>' to a list of (state, exit code)."""
    found = collections.defaultdict(list)
    with open(os.path.join(os.path.dirname(conf), 'completed')) as file:
        for line in file:
            fields = dict(word.split('=', 1) for word in line.split())
            found['%(ArrayJobId)s_%(ArrayTaskId)s' % fields].append((fields['JobState'], fields['ExitCode']))
    return found


@pytest.mark.slow
@needs_slurm
def test_a_sweep_is_arrays_whose_runs_go_on_when_they_are_stopped(cluster, tmp_path):
    fakes.digits(tmp_path / 'data')
    program = '%s %s/ablation/ab_mixmatch.py --data_dir=%s' % (sys.executable, ROOT, tmp_path / 'data')
    program += (
        ' --dataset=digits.1@20-100 --batch=16 --filters=4 --repeat=1 --train_kimg=12 --report_kimg=1 --save_kimg=1'
    )
    (tmp_path / 'elsewhere').mkdir()
    limit = 'cd elsewhere && %s --train_dir=limit; echo The rest of the line.'
    lines = ['# Comments and empty lines are no tasks.', '', program + ' --train_dir=requeued', program + ' --T=0']
    (tmp_path / 'sweep.txt').write_text('\r\n'.join([*lines, limit % program, '']))

    def call(*command):
        done = subprocess.run(command, cwd=tmp_path, env=cluster, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def checkpoint(train_dir):
        found = runs.find_runs(str(tmp_path / train_dir)) if (tmp_path / train_dir).exists() else []
        return found and utils.get_latest_global_step(os.path.join(found[0], 'tf'))

    def log(task):
        return (tmp_path / 'slurm' / (task + '.log')).read_text()

    first, second = call(ARRAY, 'sweep.txt', '--mem=1').split()  # The cluster takes two tasks an array.
    requeued, bad, limit = first + '_1', first + '_2', second + '_1'
    os.remove(tmp_path / 'sweep.txt')  # A task's line is what it was when it was submitted.
    wait_for(lambda: checkpoint('requeued'), 'the first checkpoint')
    call('scontrol', 'requeue', requeued)
    wait_for(lambda: checkpoint('elsewhere/limit'), 'the first checkpoint')
    call('scancel', '--batch', '--signal=USR1', limit)  # As slurm_array.sh asks for ahead of the time limit.
    wait_for(lambda: not call('squeue', '--noheader'), 'the end of all tasks')

    states = records(cluster['SLURM_CONF'])
    assert states[bad] == [('FAILED', '1:0')]
    assert log(bad).startswith('Error: T=0.0 is not allowed')
    for task, train_dir, name in (requeued, 'requeued', 'SIGTERM'), (limit, 'elsewhere/limit', 'SIGUSR1'):
        text = log(task)
        stopped = int(re.search('Stopped by %s at step ([0-9]+);' % name, text)[1])
        resumed_at = int(re.search(r'Continuing from .*/model.ckpt-([0-9]{10})\n', text)[1])
        assert 0 < stopped == resumed_at < 12 << 10
        assert checkpoint(train_dir) == 12 << 10
        assert states[task][-1] == ('COMPLETED', '0:0')
        assert not {state for state, _ in states[task]} - {'PENDING', 'COMPLETED'}  # Requeued, then done; never failed.
    assert log(limit).count('The rest of the line') == 1  # Not when the run was stopped.


@pytest.mark.slow
@needs_slurm
def test_one_run_trains_on_both_nodes(cluster, tmp_path):
    fakes.digits(tmp_path / 'data')
    addresses = fakes.addresses(2)  # The nodes' names are no hosts' names here.
    config = json.dumps(dict(cluster=dict(worker=addresses), task=dict(type='worker', index='RANK')))
    line = 'TF_CONFIG=%s exec %s %s/ablation/ab_mixmatch.py --data_dir=data --train_dir=runs --dataset=digits.1@20-100'
    line %= shlex.quote(config).replace('"RANK"', "'$SLURM_PROCID'"), sys.executable, ROOT
    line += ' --batch=8 --filters=4 --repeat=1 --seed=1 --train_kimg=1'
    command = ['srun', '--nodes=2', '--ntasks=2', '--mem=1', '--kill-on-bad-exit=1', 'bash', '-c', line]
    done = subprocess.run(command, cwd=tmp_path, env=cluster, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('kimg 1 ') == 1  # Host 0 speaks for both.
    (folder,) = runs.find_runs(str(tmp_path / 'runs'))
    assert utils.get_latest_global_step(os.path.join(folder, 'tf')) == 1 << 10
    assert files.read_json(os.path.join(folder, 'args', 'args.json'), {})['devices'] == 2


# --- The scripts alone ---


@pytest.fixture
def stand_ins(tmp_path):
    """Gives the environment in which sbatch notes its arguments, as lines of JSON, and scontrol tells MaxArraySize."""
    note = "import json, sys; print(json.dumps(sys.argv[1:]), file=open('%s', 'a'))" % (tmp_path / 'submitted')
    programs = {
        'sbatch': '%s -c "%s" "$@"; grep -c . %s' % (sys.executable, note, tmp_path / 'submitted'),
        'scontrol': 'if [ "$1" = show ]; then echo "MaxArraySize            = $MOST"; else echo "scontrol $*"; fi',
    }
    (tmp_path / 'bin').mkdir()
    for name, text in programs.items():
        (tmp_path / 'bin' / name).write_text('#!/usr/bin/env bash\n%s\n' % text)
        (tmp_path / 'bin' / name).chmod(0o755)
    return dict(os.environ, PATH='%s:%s' % (tmp_path / 'bin', PATH), MOST='1001')


def submit(tmp_path, env, text, *args):
    """Returns what slurm_array.sh prints for a file of commands, and the arguments of each sbatch that it called."""
    (tmp_path / 'sweep.txt').write_text(text, newline='')
    done = subprocess.run([ARRAY, 'sweep.txt', *args], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, [json.loads(line) for line in (tmp_path / 'submitted').read_text().splitlines()]


@pytest.mark.parametrize('most', ['1001', '3', '', '0', 'n/a'])
@pytest.mark.parametrize('concurrent', [(), ('--concurrent', '8')])
def test_a_sweep_beyond_the_largest_array_is_several_arrays(tmp_path, stand_ins, most, concurrent):
    lines = ['command %d' % i for i in range(7)]
    printed, jobs = submit(tmp_path, dict(stand_ins, MOST=most), '\n'.join(lines), *concurrent, '--time=5')
    sizes = [2, 2, 2, 1] if most == '3' else [7]
    assert printed.split() == [str(i + 1) for i in range(len(sizes))]
    commands = [job[job.index(TASK) + 1 :] for job in jobs]
    assert [len(part) for part in commands] == sizes
    assert [line for part in commands for line in part] == lines
    limit = '%8' if concurrent else ''
    assert [[word for word in job if word.startswith('--array')] for job in jobs] == [
        ['--array=1-%d%s' % (size, limit)] for size in sizes
    ]
    waits = [[word for word in job if word.startswith('--dependency')] for job in jobs]
    assert waits == [[]] + [['--dependency=afterany:%d' % i] if concurrent else [] for i in range(1, len(sizes))]
    assert all('--time=5' in job for job in jobs)


def test_lines_of_a_file_from_windows_are_the_same_commands(tmp_path, stand_ins):
    (job,) = submit(tmp_path, stand_ins, '# a\r\n\r\ntrue --T=1\r\nfalse')[1]
    assert job[-3:] == [TASK, 'true --T=1', 'false']


RUN = (  # Ends with 75 when it is signalled, as a run does.
    'import signal, sys, time; [signal.signal(s, lambda *_: sys.exit(75)) for s in (signal.SIGUSR1, signal.SIGTERM)]; '
    "print('begun', flush=True); time.sleep(60)"
)


@pytest.mark.parametrize('line', ['%s', 'cd / && %s', 'cd /; %s; echo not reached', 'A=1 %s', '(%s)', 'true | %s'])
@pytest.mark.parametrize('name,queued', [('USR1', True), ('TERM', False)])
def test_a_signal_reaches_the_command_of_any_line(stand_ins, line, name, queued):
    env = dict(stand_ins, SLURM_ARRAY_TASK_ID='2', SLURM_ARRAY_JOB_ID='7')
    command = [TASK, 'false', line % shlex.join([sys.executable, '-c', RUN])]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'begun\n'
        process.send_signal(getattr(signal, 'SIG' + name))
        rest = process.stdout.read()
    assert process.returncode == 75
    assert rest == ('scontrol requeue 7_2\n' if queued else '')


CODES = {'true': 0, 'cd / && exit 3': 3, "A=4 sh -c 'exit $A'": 4, 'false; true': 0}


@pytest.mark.parametrize('line,code', CODES.items())
def test_a_task_ends_with_the_code_of_its_line(stand_ins, line, code):
    env = dict(stand_ins, SLURM_ARRAY_TASK_ID='1', SLURM_ARRAY_JOB_ID='7')
    done = subprocess.run([TASK, line], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, '', '')


BAD = [
    (None, [], 'sweep.txt cannot be read'),
    ('# nothing\n\n', [], 'holds no command'),
    ('true\n', ['--concurrent', '0'], 'a number above 0'),
    ('true\n', ['--concurrent'], 'needs a value'),
]


@pytest.mark.parametrize(('lines', 'args', 'words'), BAD)
def test_a_bad_argument_is_one_line(tmp_path, lines, args, words):
    if lines is not None:
        (tmp_path / 'sweep.txt').write_text(lines)
    done = subprocess.run([ARRAY, 'sweep.txt', *args], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith('Error: ') and done.stderr.count('\n') == 1
    assert words in done.stderr
