"""One run on several logical CPU devices, and on two hosts: processes that speak over the loopback address.

test_step.py compares the update of several devices with NumPy.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from functools import partial
from types import SimpleNamespace

import fakes
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import tiny
from conftest import (
    QUICK,
    assert_one_line_error,
    assign,
    evaluate,
    first_is_fast,
    fitting,
    make_dataset,
    make_model,
    read_newest,
    scalars,
    variables,
)
from forked import before

from libml import layers, utils
from libml.running import checkpoints, hardware, replicas, runs, trainer

SCRIPT = 'ablation/ab_mixmatch.py'
TINY = tiny.flags(**{**tiny.RUN, 'seed': 3, 'batch': 32}, nu=1, xla=False, save_kimg=1, warmup_kimg=1)

KINDS = {  # Many ways to draw and to move variables.
    'mixmatch': dict(arch='resnet', mixmode='xxy.yxy', use_ema_guess=True, batch=8, devices=2),
    'random blends': dict(arch='shake', mixmode='xx.yx', batch=9, devices=3, precision='bfloat16'),
    'no mixing': dict(arch='cnn13', mixmode='.', w_match=0, batch=6, devices=2),
}


@pytest.mark.parametrize('kind', first_is_fast(*KINDS.values()), ids=KINDS)
def test_the_variables_of_all_devices_stay_equal_and_each_computes_its_own_part(kind, tmp_path):
    dataset, scales = fitting(kind['arch'])
    model = make_model(tmp_path, dataset, **dict(dict(scales=scales, nu=1, warmup_kimg=0), **kind))
    with model.trainer.opening_session() as session:
        session.run(model.trainer.init_input_op)
        start = variables(session)
        for _ in range(10):
            session.run(model.ops.train_op)
        assert session.run(model.step) == 10 * kind['batch']
        session.run(model.ops.tune_op, {model.update_key: 0})
        parts = session.run({v.op.name: v.values for v in tf.global_variables()})
    for name, (first, *others) in parts.items():
        assert others, name
        assert name.endswith('/bias') or not np.array_equal(first, start[name]), name
        for other in others:
            np.testing.assert_array_equal(first, other, err_msg=name)

    definition, count = model.graph.as_graph_def(), kind['devices']
    functions = {function.signature.name: function.node_def for function in definition.library.function}
    calls = [node for node in definition.node if node.op.endswith('PartitionedCall')]
    devices = [node.device[-5:] for node in calls]
    assert {devices.count('CPU:%d' % r) for r in range(count)} == {len(calls) / count} != {0}
    for node in calls:
        inside = {inner.device for inner in functions[node.attr['f'].func.name]}
        assert inside <= {'', node.device}


def test_the_parts_of_all_devices_are_the_whole_batch(tmp_path):
    dataset, seen = make_dataset(), {}
    for devices in 1, 3:
        with tf.Graph().as_default():
            model = make_model(tmp_path, dataset, batch=12, mixmode='.', devices=devices, **QUICK)
            labels = ['%slabels:0' % ('replica_%d/' % r if r else '') for r in range(devices)]
            with model.trainer.opening_session() as session:
                assign(session, dict(global_step=24))
                session.run(model.trainer.init_input_op)
                seen[devices] = np.array([np.concatenate(session.run(labels)) for _ in range(4)])
    np.testing.assert_array_equal(seen[1], seen[3])


def test_each_device_draws_for_itself():
    strategy = hardware.Machine(devices=hardware.find_devices(3)).strategy
    with strategy.scope():
        keys = layers.Keys(1, tf.constant(0))
        drawn = strategy.run(lambda: [keys('a'), keys('a'), keys('b')])
    drawn = evaluate([k for key in drawn for k in strategy.experimental_local_results(key)])
    assert len({tuple(key) for key in drawn}) == 9
    alone = layers.Keys(1, tf.constant(0))
    np.testing.assert_array_equal(evaluate([alone('a'), alone('a'), alone('b')]), drawn[::3])


def test_monitors_are_those_of_the_whole_batch():
    p = np.random.RandomState(0).dirichlet([0.1] * 5, 6).astype(np.float32)
    strategy = hardware.Machine(devices=hardware.find_devices(2)).strategy
    with strategy.scope():
        found = strategy.run(lambda: layers.guess_monitors(tf.constant(np.split(p, 2)[replicas.get_number()])))
        found = {tag: strategy.reduce('MEAN', value, axis=None) for tag, value in found.items()}
    found, expected = evaluate([found, layers.guess_monitors(tf.constant(p))])
    assert found == pytest.approx(expected)


def test_a_sum_over_hosts_waits_for_all_devices_of_a_host_and_is_of_a_type_that_gpus_can_add():
    parts = [tf.constant(1), tf.constant(2)]
    strategy = SimpleNamespace(run=lambda build: None, experimental_local_results=lambda found: parts)
    assert replicas.add_up(strategy, None).op.control_inputs == [parts[1].op]
    strategy = hardware.Machine(devices=hardware.find_devices(2)).strategy
    replicas.Hosts(strategy)
    assert tf.get_default_graph().get_tensor_by_name('stop:0').dtype != tf.int32


def test_batch_norms_averages_are_added_up_together(monkeypatch):
    machine = hardware.Machine(devices=hardware.find_devices(2))
    monkeypatch.setattr(type(machine.strategy.extended), '_reduce_to', None)
    with machine.strategy.scope():
        averages = [tf.get_variable(name, initializer=[1.0, 0.0], trainable=False) for name in 'ab']
        values = [0.0, 2.0], [1.0, 2.0]  # By device.
        moved = machine.strategy.run(
            lambda: layers.update_moments([(v, values[replicas.get_number()]) for v in averages])
        )
    with tf.Session(config=machine.config()) as session:
        session.run(tf.global_variables_initializer())
        session.run(moved)
        for found in session.run([value for v in averages for value in v.values]):
            np.testing.assert_allclose(found, [1 - 0.001 * 0.5, 0.001 * 2], rtol=1e-6)


# --- Whole runs ---


@pytest.fixture(scope='module')
def start(server, digits_dir):
    """Returns a function that trains: (train_dir, *flags, first=()); it returns the process and the run's folder."""

    def start(train_dir, *flags, first=()):
        where = '--data_dir=%s' % digits_dir, '--train_dir=%s' % train_dir
        done = server.run(SCRIPT, *TINY, *where, *flags, first=first)
        return done, runs.find_runs(str(train_dir))[0]

    return start


def send(number, signal_number, n, *_):
    """Sends this process a signal at the call of that number; for forked.before."""
    if n == number:
        os.kill(os.getpid(), signal_number)


def assert_same_end(folder, whole, kimg):
    """Asserts that two runs ended at kimg with the same variables, bit for bit, and have the same curves."""
    expected, found = read_newest(whole), read_newest(folder)
    assert expected['global_step'] == kimg << 10 and set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert scalars(os.path.join(folder, 'tf')) == scalars(os.path.join(whole, 'tf'))


@pytest.fixture(scope='module')
def whole(start, tmp_path_factory):
    """The folder of a run of 2 kimg on two devices that nothing happened to."""
    done, folder = start(tmp_path_factory.mktemp('whole'), '--devices=2', '--train_kimg=2')
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_a_run_on_two_devices_is_repeatable_also_after_a_kill(start, whole, tmp_path):
    first = [partial(before, checkpoints.Checkpoints, 'save', partial(send, 2, signal.SIGKILL))]
    done, folder = start(tmp_path, '--devices=2', '--train_kimg=2', first=first)
    assert done.returncode == -signal.SIGKILL
    done, folder = start(tmp_path, '--devices=2', '--train_kimg=2')
    assert done.returncode == 0 and 'Continuing from' in done.stdout
    assert_same_end(folder, whole, kimg=2)


@pytest.mark.slow
def test_a_run_goes_on_on_any_number_of_devices(start, whole, tmp_path):
    shutil.copytree(os.path.dirname(os.path.dirname(whole)), tmp_path, dirs_exist_ok=True)
    layouts = [{name: value.shape for name, value in read_newest(whole).items()}]
    for kimg, devices in (3, 1), (4, 2):
        done, folder = start(tmp_path, '--devices=%d' % devices, '--train_kimg=%d' % kimg)
        assert done.returncode == 0, done.stderr
        assert 'Continuing from %s/tf/model.ckpt-%010d' % (folder, kimg - 1 << 10) in done.stdout
        with open(os.path.join(folder, 'args', 'args.json')) as file:
            assert json.load(file)['devices'] == devices
        layouts.append({name: value.shape for name, value in read_newest(folder).items()})
    assert layouts[0] == layouts[1] == layouts[2]
    rows = {}
    for count in 1, 2:  # A report is the same, whatever the number of devices.
        shown = start(tmp_path, '--eval_ckpt=' + folder, '--devices=%d' % count)[0].stdout
        rows[count] = dict(re.findall('^(raw|ema) +(.*)$', shown, re.MULTILINE))
    assert set(rows[1]) == {'raw', 'ema'} and rows[1] == rows[2]
    assert done.stdout.split('accuracy train/valid/test')[-1].split()[:3] == rows[1]['ema'].split()


def test_devices_are_gpus_where_there_are_some(monkeypatch):
    assert hardware.find_devices('all') == ('/device:CPU:0',)
    assert hardware.find_devices('2') == ('/device:CPU:0', '/device:CPU:1')
    gpus = ['/device:GPU:%d' % i for i in range(3)]
    monkeypatch.setattr(utils, 'get_available_gpus', lambda: gpus)
    assert hardware.find_devices('all') == tuple(gpus)
    assert hardware.find_devices(2) == tuple(gpus[:2])
    with pytest.raises(utils.Error, match='devices=4 is not allowed: it must be at most 3, the GPUs of this machine'):
        hardware.find_devices('4')


# --- Several hosts ---


@pytest.fixture
def start_hosts(server, digits_dir, tmp_path):
    """Returns a function that trains on two hosts: (*flags, more=flags of host 1, first=functions that host 1 calls).

    It returns what the hosts said, and ends them where one takes longer than a minute after the other.
    """
    started = []

    def start_hosts(*flags, more=(), first=()):
        addresses = fakes.addresses(2)
        where = '--data_dir=%s' % digits_dir, '--train_dir=%s' % (tmp_path / 'hosts')
        outputs = [[tmp_path / ('%s%d' % (name, host)) for name in ('stdout', 'stderr')] for host in range(2)]
        pair = []
        for host in range(2):
            task = dict(cluster=dict(worker=addresses), task=dict(type='worker', index=host))
            argv = SCRIPT, *TINY, *where, *flags, *(more if host else ())
            how = dict(first=first if host else (), env=dict(TF_CONFIG=json.dumps(task)))
            pair.append(server.start(outputs[host], *argv, **how))
        started.extend(pair)
        pair[1].join()
        pair[0].join(60)
        return [
            subprocess.CompletedProcess(SCRIPT, process.exitcode, *(path.read_text() for path in paths))
            for process, paths in zip(pair, outputs, strict=True)
        ]

    yield start_hosts
    for process in started:
        process.kill()
        process.join()


def signalled(number, signal_number):
    return [partial(before, trainer.Trainer, 'ask_hosts', partial(send, number, signal_number))]


@pytest.mark.slow
def test_two_hosts_train_like_two_devices_though_one_is_stopped_and_killed(whole, start_hosts, tmp_path):
    stopped = start_hosts('--train_kimg=2', first=signalled(12, signal.SIGTERM))
    assert [done.returncode for done in stopped] == [trainer.EXIT_INTERRUPTED] * 2, stopped
    assert 'Stopped by a signal to another host at step' in stopped[0].stdout
    alive, killed = start_hosts('--train_kimg=2', first=signalled(38, signal.SIGKILL))
    assert killed.returncode == -signal.SIGKILL
    assert_one_line_error(alive, 'host 1 (127.0.0.1:', 'no longer answers')
    resumed = start_hosts('--train_kimg=2')
    assert [done.returncode for done in resumed] == [0, 0], resumed
    assert 'Continuing from' in resumed[0].stdout and not resumed[1].stdout
    (folder,) = runs.find_runs(str(tmp_path / 'hosts'))
    assert_same_end(folder, whole, kimg=2)


def test_hosts_with_other_flags_are_refused(start_hosts, tmp_path):
    for done in start_hosts('--train_kimg=2', more=['--lr=.1']):
        assert done.returncode == 1
        assert 'Error: host 1 was started with other flags than host 0: give all hosts the same' in done.stderr
    assert not (tmp_path / 'hosts').exists()


def test_a_cluster_is_that_of_tf_config_or_of_srun(monkeypatch):
    assert hardware.find_cluster() is None
    variables = dict(PROCID='1', STEP_NUM_TASKS='3', STEP_NODELIST='a[1-2]', STEP_TASKS_PER_NODE='2,1')
    for name, value in variables.items():
        monkeypatch.setenv('SLURM_' + name, value)
    cluster = hardware.find_cluster()
    assert cluster.cluster_spec().as_dict() == {'worker': ['a1:8888', 'a1:8889', 'a2:8888']}
    machine = hardware.Machine(devices=('/device:GPU:0', '/device:GPU:1'), cluster=cluster)
    assert (machine.host, machine.hosts, machine.replicas) == (1, 3, 6)
    monkeypatch.setenv('TF_CONFIG', json.dumps(dict(cluster=dict(worker=['a:1']), task=dict(type='worker', index=0))))
    assert hardware.find_cluster() is None
    for bad in ('{', '{"cluster": 3}', '{"cluster": {"ps": ["a:1"], "worker": ["b:1"]}}'):
        monkeypatch.setenv('TF_CONFIG', bad)
        with pytest.raises(utils.Error, match='TF_CONFIG'):
            hardware.find_cluster()
