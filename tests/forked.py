"""Command lines run in forks of one process that has TensorFlow loaded: a tenth of a second each, not ten.

A fork starts where a script starts: nothing of the script is built, no session is open, no flag is parsed. It runs the
file as `python FILE ARGUMENTS` would, and may be told to kill itself (SIGKILL) at a certain moment.
"""

import contextlib
import dataclasses
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclasses.dataclass
class Done:
    """How a command line ended, with the names of subprocess.CompletedProcess."""

    returncode: int
    stdout: str
    stderr: str


class Server:
    """Runs command lines one after the other; used in a `with`.

    Args:
        folder: where output goes.
    """

    def __init__(self, folder):
        self.folder = str(folder)
        command = [sys.executable, os.path.abspath(__file__)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def run(self, script, *args, **how):
        """Runs a script, path from the repository's root, and returns Done.

        Args:
            **how: see `child`; `kill`, `progress`, `file_size`, `patch`, `env`.
        """
        request = dict(argv=[script, *map(str, args)], folder=self.folder, **how)
        print(json.dumps(request), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        with open(os.path.join(self.folder, 'stdout')) as out, open(os.path.join(self.folder, 'stderr')) as err:
            return Done(code, out.read(), err.read())


def serve():
    """Forks for each line of stdin, and answers with the exit code, -9 where the fork was killed."""
    answers = os.fdopen(os.dup(1), 'w')
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            os._exit(child(**request))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)


def child(argv, folder, kill=None, progress=None, file_size=None, patch=None, env=None):
    """Runs a script as the interpreter would and returns the exit code.

    Args:
        argv: path of the script, and its arguments.
        folder: where stdout and stderr go.
        kill: [method of train.Model, n, seconds]: SIGKILL so long after the n-th call has begun. Method '': at start.
        progress: a file that the training loop writes its step to after each update, as text.
        file_size: bytes; no file can grow beyond it.
        patch: Python text that is executed first, to break something.
        env: dict, the environment's changes.
    """
    for stream, name in ((sys.stdin, None), (sys.stdout, 'stdout'), (sys.stderr, 'stderr')):
        path = os.path.join(folder, name) if name else os.devnull
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), stream.fileno())
    sys.argv = argv
    os.environ.update(env or {})
    if kill:
        kill_at(*kill)
    if progress:
        note_progress(progress)
    if patch:
        exec(patch, {})
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    code = 1
    try:
        runpy.run_path(argv[0], run_name='__main__')
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def kill_at(method, n, seconds):
    """Arranges for a SIGKILL, see `child`."""

    def end():
        if not seconds:
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(
            target=lambda: (time.sleep(seconds), os.kill(os.getpid(), signal.SIGKILL)), daemon=True
        ).start()

    if not method:
        return end()
    from libml import train  # Its flags are not every script's.

    owner = train.ClassifySemi if method == 'report' else train.Model
    original, calls = getattr(owner, method), []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == n:
            end()
        return original(*args, **kwargs)

    setattr(owner, method, counted)


def note_progress(path):
    """Arranges for the step to be written to a file after each update."""
    from libml import train

    original, file = train.Model.check_finite, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def noted(self, losses, step):
        os.pwrite(file, b'%010d' % step, 0)
        return original(self, losses, step)

    train.Model.check_finite = noted


if __name__ == '__main__':
    sys.path.insert(0, ROOT)
    # What all scripts share. libml.train is not among it, as its flags would clash with those of some.
    import scipy.io  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import tensorboard.backend.event_processing.event_accumulator
    import tensorboard.plugins.hparams.summary_v2  # noqa: F401

    from libml import archives, data_pair, layers, pictures  # noqa: F401

    serve()
