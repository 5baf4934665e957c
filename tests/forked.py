"""Command lines run in forks of one process that has TensorFlow loaded: a tenth of a second each, not ten.

A fork starts where a script starts: nothing of the script is built, no session is open, no flag is parsed. It runs the
file as `python FILE ARGUMENTS` would, and may first call functions that break something.
"""

import itertools
import multiprocessing
import multiprocessing.forkserver
import os
import pathlib
import runpy
import subprocess
import sys
from unittest import mock

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FORKS = multiprocessing.get_context('forkserver')
HEAVY = ['ablation.ab_mixmatch', 'libml.intake.pictures', 'pytest', 'scipy.io', 'sklearn.datasets']


class Server:
    """Runs command lines one after the other.

    Args:
        folder: where their output goes.
        library: path of a library that all forks have loaded, None for none.
    """

    def __init__(self, folder, library=None):
        self.outputs = [pathlib.Path(folder, name) for name in ('stdout', 'stderr')]
        FORKS.set_forkserver_preload(HEAVY)
        env = {'PYTHONPATH': ROOT, **({'LD_PRELOAD': library} if library else {})}  # The server finds HEAVY in ROOT.
        with mock.patch.dict(os.environ, env):
            multiprocessing.forkserver.ensure_running()

    def run(self, script, *args, first=(), env=None):
        """Runs a script, path from the repository's root; returns a subprocess.CompletedProcess with text.

        Args:
            script: path.
            *args: its arguments.
            first: functions without arguments that the fork calls before the script. Pickle carries them: they are
                functions of a module, or a functools.partial of one.
            env: dict, changes of the environment.
        """
        process = self.start(self.outputs, script, *args, first=first, env=env)
        process.join()
        return subprocess.CompletedProcess(
            [script, *args], process.exitcode, *map(pathlib.Path.read_text, self.outputs)
        )

    @staticmethod
    def start(outputs, script, *args, first=(), env=None):
        """Starts what `run` runs, its output in two files; returns the multiprocessing.Process."""
        process = FORKS.Process(target=fork, args=([script, *map(str, args)], outputs, first, env or {}))
        process.start()
        return process


def fork(argv, outputs, first, env):
    """Runs a script in this process, which ends as the script ends; `outputs` are the files of stdout and stderr."""
    for stream, path in zip((sys.stdout, sys.stderr), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    os.chdir(ROOT)
    os.environ.pop('LD_PRELOAD', None)
    os.environ.update(env)
    sys.argv = argv
    for function in first:
        function()
    runpy.run_path(argv[0], run_name='__main__')


def encode_output(encoding):
    """Does what PYTHONIOENCODING does."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding=encoding)


def before(owner, name, action):
    """Makes a method call action(n, *its arguments) before it does its own work; n counts its calls from 1."""
    original, counter = getattr(owner, name), itertools.count(1)

    def method(*args, **kwargs):
        action(next(counter), *args)
        return original(*args, **kwargs)

    setattr(owner, name, method)
