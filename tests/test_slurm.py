"""A sweep as a Slurm job array, on a real cluster of two nodes on this machine (slurm_cluster.sh)."""

import collections
import os
import re
import shutil
import subprocess
import sys
import time

import fakes
import pytest
from conftest import ROOT

from libml import runs, utils

NEEDED = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'scancel', 'scontrol', 'squeue')
PATH = os.environ['PATH'] + os.pathsep + '/usr/sbin'
MISSING = [name for name in NEEDED if not shutil.which(name, path=PATH)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason='Slurm is not installed: no %s' % ', '.join(MISSING))
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
    """Returns what Slurm noted at each end of a task: dict from its number to a list of (state, exit code)."""
    found = collections.defaultdict(list)
    with open(os.path.join(os.path.dirname(conf), 'completed')) as file:
        for line in file:
            fields = dict(word.split('=', 1) for word in line.split())
            found[int(fields['ArrayTaskId'])].append((fields['JobState'], fields['ExitCode']))
    return found


def test_a_sweep_is_an_array_whose_runs_go_on_when_they_are_stopped(cluster, tmp_path):
    fakes.digits(tmp_path / 'data')
    program = '%s %s/ablation/ab_mixmatch.py --data_dir=%s' % (sys.executable, ROOT, tmp_path / 'data')
    program += (
        ' --dataset=digits.1@20-100 --batch=16 --filters=4 --repeat=1 --train_kimg=12 --report_kimg=1 --save_kimg=1'
    )
    lines = [program + ' --train_dir=requeued', program + ' --T=0', program + ' --train_dir=limit']
    (tmp_path / 'sweep.txt').write_text('# Comments and empty lines are no tasks.\n\n' + '\n'.join(lines) + '\n')

    def call(*command):
        done = subprocess.run(command, cwd=tmp_path, env=cluster, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def checkpoint(train_dir):
        found = runs.find(str(tmp_path / train_dir)) if (tmp_path / train_dir).exists() else []
        return found and utils.get_latest_global_step(os.path.join(found[0], 'tf'))

    def log(task):
        return (tmp_path / 'slurm' / ('%s_%d.log' % (job, task))).read_text()

    job = call(os.path.join(ROOT, 'scripts', 'slurm_array.sh'), 'sweep.txt', '--concurrent', '2', '--mem=1')
    os.remove(tmp_path / 'sweep.txt')  # A task's line is what it was when it was submitted.
    wait_for(lambda: checkpoint('requeued'), 'the first checkpoint')
    call('scontrol', 'requeue', job + '_1')
    wait_for(lambda: checkpoint('limit'), 'the first checkpoint')
    call('scancel', '--batch', '--signal=USR1', job + '_3')  # As slurm_array.sh asks for ahead of the time limit.
    wait_for(lambda: not call('squeue', '--noheader'), 'the end of all tasks')

    states = records(cluster['SLURM_CONF'])
    assert states[2] == [('FAILED', '1:0')]
    assert log(2).startswith('Error: T=0.0 is not allowed')
    for task, train_dir, name in (1, 'requeued', 'SIGTERM'), (3, 'limit', 'SIGUSR1'):
        text = log(task)
        stopped = int(re.search('Stopped by %s at step ([0-9]+);' % name, text)[1])
        went_on = int(re.search(r'Going on from .*/model.ckpt-([0-9]{10})\n', text)[1])
        assert 0 < stopped == went_on < 12 << 10
        assert checkpoint(train_dir) == 12 << 10
        assert states[task][-1] == ('COMPLETED', '0:0')
        assert not {state for state, _ in states[task]} - {'PENDING', 'COMPLETED'}  # Requeued, then done; never failed.


@pytest.mark.parametrize(
    'lines,args,words',
    [
        (None, [], 'sweep.txt cannot be read'),
        ('# nothing\n\n', [], 'holds no command'),
        ('true\n', ['--concurrent', '0'], 'a number above 0'),
        ('true\n', ['--concurrent'], 'needs a value'),
    ],
)
def test_a_bad_argument_is_one_line(tmp_path, lines, args, words):
    if lines is not None:
        (tmp_path / 'sweep.txt').write_text(lines)
    script = os.path.join(ROOT, 'scripts', 'slurm_array.sh')
    done = subprocess.run([script, 'sweep.txt', *args], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith('Error: ') and done.stderr.count('\n') == 1
    assert words in done.stderr
