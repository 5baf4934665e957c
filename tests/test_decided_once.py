"""A run is decided once: options are checked once, a folder is one object, a checkpoint is copied at most once."""

import collections
import glob
import json
import os
from functools import partial

import tiny

from libml.cli import options
from libml.running import checkpoints, runs


def count_calls(path):
    """Arranges for the calls of what decides a run to be counted, by name and first argument, in a file."""
    calls = collections.Counter()

    def counted(function, name):
        def call(*args, **kwargs):
            calls[name, str(args[-1]) if name == 'Run' else ''] += 1
            path.write_text(json.dumps([[*key, count] for key, count in calls.items()]))
            return function(*args, **kwargs)

        return call

    options.fill = counted(options.fill, 'fill')
    checkpoints.copying = counted(checkpoints.copying, 'copy')
    runs.Run.__init__ = counted(runs.Run.__init__, 'Run')


def start(server, digits_dir, tmp_path, *flags):
    """Trains a tiny run; returns ({counted function: calls}, {folder: Run objects made of it})."""
    path = tmp_path / 'calls.json'
    given = *tiny.flags(**tiny.RUN, data_dir=digits_dir), *flags  # The last of two flags counts.
    done = server.run('ablation/ab_mixmatch.py', *given, first=[partial(count_calls, path)])
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    return {name: n for name, folder, n in found if not folder}, {os.path.abspath(f): n for _, f, n in found if f}


def test_a_start_decides_once(server, digits_dir, tmp_path):
    one, other = '--train_dir=%s' % (tmp_path / 'one'), '--train_dir=%s' % (tmp_path / 'other')
    new, folders = start(server, digits_dir, tmp_path, one, '--train_kimg=1')
    assert new == dict(fill=1) and list(folders.values()) == [1]
    continued, folders = start(server, digits_dir, tmp_path, one, '--train_kimg=2')
    assert continued == dict(fill=1, copy=1) and list(folders.values()) == [1]
    (run,) = glob.glob(str(tmp_path / 'one' / '*' / '*'))
    begun, folders = start(server, digits_dir, tmp_path, other, '--train_kimg=3', '--lr=.001', '--init_ckpt=%s' % run)
    assert begun == dict(fill=1, copy=1) and list(folders.values()) == [1, 1]
    finished, folders = start(server, digits_dir, tmp_path, one, '--train_kimg=2')
    assert finished == dict(fill=1, copy=1) and list(folders.values()) == [1]
