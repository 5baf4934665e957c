"""Whole runs on the digits through the real command line: what they print and leave, and that a stop costs nothing."""

import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
from conftest import ROOT, assert_one_line_error, command, read_newest, scalars, tree
from tiny import flags

from ablation import ab_mixmatch
from libml import utils
from libml.running import checkpoints, hardware, setting
from scripts import extract_accuracy

SCRIPT = os.path.join('ablation', 'ab_mixmatch.py')
KIMG = 4
TINY = dict(tiny.SIZE, dataset=tiny.DATASET, batch=8, seed=3)
SHORT = dict(TINY, report_kimg=1, save_kimg=1, xla='false')
TAGS = {'losses/xe', 'losses/l2u', 'accuracy', 'accuracy/valid', 'accuracy/train_labeled'}


def run_folder(train_dir):
    """Returns the only run's folder below train_dir."""
    (folder,) = glob.glob(os.path.join(str(train_dir), TINY['dataset'], '*'))
    return folder


@pytest.fixture(scope='module')
def finished(digits_dir, tmp_path_factory):
    """An uninterrupted run: what its process said, and its folder."""
    train_dir = tmp_path_factory.mktemp('finished')
    done = command(SCRIPT, *flags(**SHORT, data_dir=digits_dir, train_dir=train_dir, train_kimg=KIMG))
    assert done.returncode == 0, done.stderr
    return done, run_folder(train_dir)


def steps(folder):
    """Returns the steps of a run's checkpoints."""
    return [checkpoints.step(ckpt) for ckpt in checkpoints.find(os.path.join(folder, 'tf'))]


# --- What a run leaves ---


def test_report_lines(finished):
    done, folder = finished
    lines = [line for line in done.stdout.splitlines() if line.startswith('kimg')]
    matches = [re.fullmatch(r'kimg (.{5})  accuracy train/valid/test  (\S+)  (\S+)  (\S+)', line) for line in lines]
    assert all(matches), lines
    found = [m.groups() for m in matches]
    assert [kimg for kimg, *_ in found] == ['%-5d' % kimg for kimg in range(1, KIMG + 1)]
    reported = scalars(os.path.join(folder, 'tf'))
    tags = ('accuracy/train_labeled', 'accuracy/valid', 'accuracy')
    for i, (_, *accuracies) in enumerate(found):
        assert accuracies == ['%.2f' % reported[tag][i][1] for tag in tags]


def test_the_start_shows_configuration_and_variables(finished):
    out = finished[0].stdout
    for name, value in dict(TINY, lr=0.002, mixmode='xxy.yxy').items():
        assert re.search(r'^ *%s +%s$' % (name, re.escape(str(value))), out, re.MULTILINE), name
    assert re.search(r'^ +kernel +5 +520$', out, re.MULTILINE) and 'conv2d' not in out


def test_tensorboard_tags_each_step_once(finished):
    found = scalars(os.path.join(finished[1], 'tf'))
    assert set(found) >= TAGS
    for tag in TAGS:
        period = 64 if tag.startswith('losses/') else 1024  # Sixteen means of the losses between two reports.
        assert [step for step, _ in found[tag]] == list(range(period, 1024 * KIMG + 1, period))
        assert np.all(np.isfinite([value for _, value in found[tag]]))


def test_checkpoints_bear_the_step_in_ten_digits(finished):
    names = {os.path.basename(path) for path in glob.glob(os.path.join(finished[1], 'tf', '*.index'))}
    assert names == {'model.ckpt-%010d.index' % (1024 * kimg) for kimg in range(1, KIMG + 1)}
    assert read_newest(finished[1])['global_step'] == 1024 * KIMG


def test_args_hold_all_that_the_run_depends_on(finished):
    with open(os.path.join(finished[1], 'args', 'args.json')) as file:
        args = json.load(file)
    defaults = dict(lr=0.002, wd=0.02, ema=0.999, beta=0.5, nu=2, T=0.5, use_ema_guess=False, mixmode='xxy.yxy')
    defaults.update({'arch': 'resnet', 'w_match': 100, 'warmup_kimg': 128, 'nclass': 10, 'class': 'AblationMixMatch'})
    defaults.update(
        train_kimg=KIMG,
        report_kimg=1,
        save_kimg=1,
        keep_ckpt=50,
        whiten=False,
        p_unlabeled='',
        init_ckpt='',
        precision='float32',
        xla=False,
        devices=1,
    )
    data, classes, treatment = args.pop('data'), args.pop('classes'), args.pop('pictures')
    assert args == {**defaults, **TINY}
    assert treatment == dict(shape=[8, 8, 1], mirror=False, shift=1, range=[])
    assert {part: len(fingerprint) for part, fingerprint in data.items()} == dict(label=64, unlabel=64, test=64)
    assert classes == []  # The digits' have no names.


def test_the_folder_is_named_by_class_and_sorted_arguments(finished):
    assert os.path.basename(finished[1]) == (
        'AblationMixMatch_T0.5_archresnet_batch8_beta0.5_ema0.999_filters2_lr0.002_mixmodexxy.yxy_nclass10_nu2_repeat1'
        '_scales1_seed3_use_ema_guessFalse_w_match100.0_warmup_kimg128_wd0.02'
    )


def test_eval_ckpt(finished, digits_dir, server):
    before = tree(finished[1])
    ckpt = utils.find_latest_checkpoint(os.path.join(finished[1], 'tf'))
    train_dir = os.path.dirname(os.path.dirname(finished[1]))
    done = server.run(SCRIPT, *flags(**SHORT, data_dir=digits_dir, train_dir=train_dir, eval_ckpt=ckpt))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('Reading ')
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[1:] if line}
    assert rows['accuracy'] == ['train', 'valid', 'test']
    assert set(rows) == {'accuracy', 'raw', 'ema', 'tuned_raw', 'tuned_ema'}
    report = [line for line in finished[0].stdout.splitlines() if line.startswith('kimg')][-1]
    assert rows['ema'] == report.split()[-3:]
    assert tree(finished[1]) == before


def test_medians_of_the_last_reports(finished):
    accuracies = [value for _, value in scalars(os.path.join(finished[1], 'tf'))['accuracy']]
    extract_accuracy.extract_accuracy(finished[1])
    with open(os.path.join(finished[1], 'stats', 'accuracy.json')) as file:
        found = json.load(file)
    median = np.median(accuracies)  # Of all: there are fewer than ten.
    assert found == pytest.approx(dict(last01=accuracies[-1], last10=median, last20=median, last50=median))


def test_a_finished_run_is_left_alone(finished, digits_dir, server):
    before = tree(finished[1])
    train_dir = os.path.dirname(os.path.dirname(finished[1]))
    done = server.run(SCRIPT, *flags(**SHORT, data_dir=digits_dir, train_dir=train_dir, train_kimg=KIMG))
    assert done.returncode == 0 and 'is finished' in done.stdout
    assert tree(finished[1]) == before


@pytest.mark.parametrize('more', [dict(whiten=True), dict(p_unlabeled=','.join('1' * 10)), dict(precision='bfloat16')])
def test_what_is_not_at_its_default_joins_the_name_of_the_folder(more, tmp_path):
    cls, params = ab_mixmatch.AblationMixMatch, dict(nu=2, lr=0.1)
    ((name, value),) = more.items()
    assert (
        os.path.basename(setting.locate_run(cls, str(tmp_path), 1, **params, **more)).count('_%s%s' % (name, value))
        == 1
    )
    assert os.path.basename(setting.locate_run(cls, str(tmp_path), 1, **params)) == 'AblationMixMatch_lr0.1_nu2_seed1'


def compile_always():
    hardware.is_xla_faster = lambda updates: True


@pytest.mark.slow
def test_a_run_goes_on_compiled_as_it_began_unless_told_otherwise(finished, digits_dir, tmp_path, server):
    shutil.copytree(finished[1], tmp_path / TINY['dataset'] / os.path.basename(finished[1]))
    periods = dict(data_dir=digits_dir, train_dir=tmp_path, report_kimg=1, save_kimg=1)
    for more, kimg, compiled in ([], 1, False), (['--xla'], 2, True):
        done = server.run(SCRIPT, *flags(**TINY, **periods, train_kimg=KIMG + kimg), *more, first=[compile_always])
        assert done.returncode == 0, done.stderr
        assert re.search('^ *xla +%s$' % compiled, done.stdout, re.MULTILINE)


# --- Stops ---


@pytest.fixture
def start(tmp_path):
    """A function that starts the script, its output in a file; what it started does not outlive the test."""
    started = []

    def start(log, *args):
        with open(log, 'w') as file:
            more = dict(cwd=ROOT, env=dict(os.environ, PYTHONPATH=ROOT), stdout=file, stderr=subprocess.STDOUT)
            started.append(subprocess.Popen([sys.executable, SCRIPT, *args], **more))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition, process, seconds=120):
    """Waits until condition() holds; the process must go on meanwhile."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, 'it has ended'
        assert time.monotonic() < end, 'it takes too long'
        time.sleep(0.005)


def test_a_stopped_and_killed_run_ends_like_one_that_was_not(start, finished, digits_dir, tmp_path, server):
    args = flags(**SHORT, data_dir=digits_dir, train_dir=tmp_path)
    folder = os.path.join(str(tmp_path), *finished[1].split(os.sep)[-2:])

    # A second process is refused while the first, here held still, is at work; SIGTERM saves.
    first = start(tmp_path / 'first.log', *args, '--train_kimg=999')
    wait_for(lambda: steps(folder), first)
    first.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)
    before = tree(folder)
    assert_one_line_error(server.run(SCRIPT, *args, '--train_kimg=999'), folder, first.pid)
    assert tree(folder) == before
    first.send_signal(signal.SIGTERM)
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 75
    stopped = steps(folder)[-1]
    assert 'Stopped by SIGTERM at step %d' % stopped in (tmp_path / 'first.log').read_text()

    # SIGKILL, and the last checkpoint is cut.
    second = start(tmp_path / 'second.log', *args, '--train_kimg=999')
    wait_for(lambda: steps(folder)[-1] > stopped, second)
    second.kill()
    assert second.wait() == -signal.SIGKILL
    cut = utils.find_latest_checkpoint(os.path.join(folder, 'tf'))
    assert checkpoints.step(cut) < 1024 * KIMG
    os.truncate(cut + '.data-00000-of-00001', 1000)

    third = server.run(SCRIPT, *args, '--train_kimg=%d' % KIMG)
    assert third.returncode == 0, third.stderr
    assert 'Continuing from' in third.stdout and os.path.basename(cut) in third.stdout
    expected, found = read_newest(finished[1]), read_newest(folder)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    expected, found = scalars(os.path.join(finished[1], 'tf')), scalars(os.path.join(folder, 'tf'))
    for tag in TAGS:
        assert found[tag] == expected[tag]


@pytest.mark.parametrize('gpus, updates, pays', [(1, 1000, False), (1, 3000, True), (0, 10**6, False)])
def test_xla_is_chosen_where_it_pays(gpus, updates, pays, monkeypatch):
    monkeypatch.setattr(utils, 'get_available_gpus', lambda: ['/device:GPU:%d' % i for i in range(gpus)])
    assert hardware.is_xla_faster(updates) is pays


@pytest.mark.parametrize('devices, warned', [(1, False), (2, True)])
def test_xla_on_several_cpu_devices_is_a_warning(devices, warned, capsys):
    machine = hardware.choose(1e6, 10, xla=True, devices=devices)
    assert ('XLA compiles nothing' in capsys.readouterr().err) is warned is not machine.compiles_update


@pytest.mark.parametrize('driver, visible, warned', [(True, '0', True), (True, '-1', False), (False, '0', False)])
def test_a_gpu_that_tensorflow_cannot_use_is_named(driver, visible, warned, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hardware, 'NVIDIA', str(tmp_path if driver else tmp_path / 'none'))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    monkeypatch.setattr(utils, 'get_available_gpus', lambda: [])
    hardware.choose(flop=1, updates=1)
    assert ("pip install -e '.[gpu]'" in capsys.readouterr().err) == warned


def test_a_small_network_gets_one_thread_an_operation_a_large_one_all():
    assert hardware.choose_operation_threads(1e8) == 1 and hardware.choose_operation_threads(3e11) == 0
