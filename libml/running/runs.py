"""The folder of a run: its layout, args.json, the lock, the event log, and reports read back."""

import contextlib
import errno
import fcntl
import functools
import glob
import os
import re
import socket
import sys
import time

import numpy as np
import tensorflow.compat.v1 as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.summary_v2 import hparams_pb

from libml import files, utils
from libml.running import checkpoints

LAST = (1, 10, 20, 50)
# Arguments that may change when a run continues.
FREE_ARGS = ('train_kimg', 'report_kimg', 'save_kimg', 'keep_ckpt', 'init_ckpt', 'xla', 'devices')
DATA_ARGS = ('data', 'classes', 'mean', 'std')  # Arguments that say which data a run began with.
NOT_HPARAMS = (*FREE_ARGS, *DATA_ARGS)  # check_args does not compare these, and TensorBoard does not show them.
MAX_NAME = 255  # Bytes of a folder's name that file systems allow.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # Of file systems without such locks.


class Run:
    """The folder of a run."""

    def __init__(self, folder):
        self.folder = folder
        self.checkpoint_dir = os.path.join(folder, 'tf')  # And of TensorBoard's event files.
        self.arg_dir = os.path.join(folder, 'args')
        self.args_file = os.path.join(self.arg_dir, 'args.json')

    @functools.cached_property
    def args(self):
        """The contents of args.json, read once; {} where there is none or, with a warning, it holds no arguments.

        Raises:
            utils.Error: its seed is no seed.
        """
        args = files.read_json(self.args_file, default={})
        if not isinstance(args, dict):
            print('Ignoring %s, which does not hold arguments' % self.args_file, file=sys.stderr)
            return {}
        seed = args.get('seed', 0)
        if type(seed) is not int or not 0 <= seed < 2**32:
            text = '%s is damaged: seed=%r is no number from 0 to 2^32 - 1. Mend it, or take another --train_dir'
            raise utils.Error(text % (self.args_file, seed))
        return {'precision': 'float32', **args} if args else {}  # Older runs have no precision: it was float32.

    def check_args(self, args):
        """Raises utils.Error where the folder holds a run with other arguments."""
        for name, value in self.args.items():
            if name in args and name not in NOT_HPARAMS and args[name] != value:
                text = '%s holds a run with %s=%s, not %s: take another --train_dir, or remove that run'
                raise utils.Error(text % (self.folder, name, value, args[name]))

    def write_args(self, args):
        """Writes args.json."""
        files.write_json(self.args_file, args)

    def is_finished(self, ckpt, train_nimg, **args):
        """Returns whether a run of train_nimg images has nothing left to do. Reads neither images nor graph.

        Args:
            ckpt: its newest whole checkpoint.
            **args: saved arguments that must match. Where one differs, the training says what is wrong.
        """
        if os.path.dirname(ckpt) != self.checkpoint_dir or checkpoints.step(ckpt) < train_nimg:
            return False
        same = all(self.args.get(name) == value for name, value in args.items())
        return same and any(step >= train_nimg for step, _ in read_accuracies(self.folder))

    def check_name(self):
        """Raises utils.Error where the folder's name is longer than file systems allow."""
        if len(os.fsencode(os.path.basename(self.folder))) > MAX_NAME:
            text = '%s: the name of this folder is longer than %d bytes: use fewer or shorter arguments'
            raise utils.Error(text % (self.folder, MAX_NAME))

    @contextlib.contextmanager
    def locking(self):
        """Keeps every other process from writing this run; raises utils.Error where one does so already.

        (The package filelock does not name the process that holds a lock, and fails where a disk answers ENOLCK.)
        """
        os.makedirs(self.folder, exist_ok=True)
        self.refuse_links()
        path = os.path.join(self.folder, 'lock')
        with open(path, 'ab+', buffering=0) as file:
            with files.naming(path):
                file.seek(0)
                owner = file.read().decode(errors='replace').strip()
                if not try_lock(file, owner):
                    raise utils.Error('%s is being trained by %s' % (self.folder, owner or 'another process'))
                file.truncate(0)
                file.write(b'process %d on %s\n' % (os.getpid(), os.fsencode(socket.gethostname())))
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # The lock is released anyway when the process ends.
                    file.truncate(0)

    def refuse_links(self):
        """Raises utils.Error if what this program writes in the folder is a link: it may lead to another's files."""
        for name in ('lock', 'tf', 'args', 'stats', 'evaluation'):
            path = os.path.join(self.folder, name)
            if os.path.islink(path):
                raise utils.Error('%s is a link, and nothing is written through it: remove it' % path)

    def remove_unfinished(self):
        """Removes what a killed or failed process left half-written; the run must be locked."""
        checkpoints.remove_unfinished(self.arg_dir)
        checkpoints.remove_unfinished(self.checkpoint_dir)


def try_lock(file, owner):
    """Locks an open file for this process; returns whether no other process holds it.

    If the file system has no locks, the text in the file decides: `owner`, such as 'process 7 on host'. The run counts
    as locked if that process is on this machine and still runs.
    """
    for lock in (fcntl.flock, fcntl.lockf):
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError):  # PermissionError: lockf may say so of a lock that is held.
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
    text = 'this file system has no locks: let one process at a time train this run. If none does, remove %s'
    utils.warn(text % file.name)
    match = re.fullmatch(r'process ([1-9]\d{0,8}) on (.*)', owner)
    return not (
        match and match[2] == socket.gethostname() and int(match[1]) != os.getpid() and files.is_running(int(match[1]))
    )


class EventLog(contextlib.AbstractContextManager):
    """TensorBoard's event file of a run that starts or continues at `step`; used in a `with`.

    Each write is flushed, and a write that fails raises utils.Error. (tf.summary.FileWriter writes in a thread that
    does not report a full disk, and two of them that start within a second write one file.)

    Args:
        folder: where it goes.
        graph: tf.Graph, for the graph page.
        step: int, in images. TensorBoard drops later points of an earlier process: those updates are made again.
        hparams: dict of numbers, bools and strings, for the HPARAMS page. TensorBoard keeps what the first event file
            of a folder says, so these must not change when a run continues.
    """

    PATTERN = re.compile(r'events\.out\.tfevents\.(\d+)\.')

    def __init__(self, folder, graph, step, hparams):
        os.makedirs(folder, exist_ok=True)
        # TensorBoard reads the files in the order of the times in their names. So each time is later than all others,
        # even if the clock was set back.
        times = [int(match[1]) + 1 for name in os.listdir(folder) if (match := self.PATTERN.match(name))]
        name = 'events.out.tfevents.%010d.%s' % (max([int(time.time()), *times]), socket.gethostname())
        self.path = os.path.join(folder, name)
        with self.writing(), checkpoints.aliasing(self.path) as path:
            self.file = tf.io.TFRecordWriter(path)
        self.write(file_version='brain.Event:2')
        if not times:  # The graph is large, and once is enough.
            self.write(graph_def=graph.as_graph_def(add_shapes=True).SerializeToString())
        self.write(step=step + 1, session_log=tf.SessionLog(status=tf.SessionLog.START))
        self.write(summary=tf.Summary.FromString(hparams_pb(hparams).SerializeToString()))

    def scalars(self, step, values):
        """Writes named floats."""
        values = [tf.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.write(step=step, summary=tf.Summary(value=values))

    def write(self, **event):
        """Writes the fields of a tf.Event."""
        with self.writing():
            os.stat(self.path)  # The system would go on writing to a file that was removed.
            self.file.write(tf.Event(wall_time=time.time(), **event).SerializeToString())
            self.file.flush()

    @contextlib.contextmanager
    def writing(self):
        """Turns what goes wrong on writing the file into utils.Error."""
        try:
            yield
        except (tf.errors.OpError, OSError) as error:
            raise checkpoints.unwritten_error(self.path, error) from error

    def __exit__(self, *_):
        with contextlib.suppress(tf.errors.OpError):  # Nothing is left to be written, if all went well.
            self.file.close()


# --- Runs that others left ---


def find_folder(path):
    """Returns the run's folder that a user means: the folder itself, its folder tf, or one of its checkpoints."""
    path = os.path.abspath(utils.expand(path))
    if not os.path.isdir(path):
        return os.path.dirname(os.path.dirname(path))
    return os.path.dirname(path) if os.path.basename(path) == 'tf' else path


def find_runs(folder):
    """Returns the run folders in and below a folder, sorted; raises utils.Error where there is no such folder."""
    if not os.path.isdir(folder):
        raise utils.Error('%s is no folder' % folder)
    return sorted(path for path, inside, _ in os.walk(folder) if 'tf' in inside or 'args' in inside)


def find_damaged_events(run):
    """Yields a line for each event file of a run that cannot be read, or not to its end."""
    for path in sorted(glob.glob(os.path.join(glob.escape(run), 'tf', 'events.*'))):
        count = 0
        try:
            with checkpoints.aliasing(path) as name:
                for _ in tf.python_io.tf_record_iterator(name):
                    count += 1
            if not count:
                yield '%s is empty: it is ignored' % path
        except tf.errors.OpError:
            yield '%s is damaged after %d records: the rest of it is ignored' % (path, count)


def read_accuracies(run):
    """Returns a run's test accuracies in percent, a list of (step in images, value); what is damaged is left out."""
    folder = os.path.join(run, 'tf')
    if not os.path.isdir(folder):
        return []
    with checkpoints.aliasing(folder) as name:
        events = EventAccumulator(name, size_guidance={'scalars': 0}).Reload()  # 0: all of them.
    if 'accuracy' not in events.Tags()['scalars']:
        return []
    return [(event.step, event.value) for event in events.Scalars('accuracy')]


def take_medians(values):
    """Returns {'last01': .., 'last50': ..}, the medians of so many last values, of all where there are fewer."""
    return {'last%02d' % n: float(np.median(values[-n:])) for n in LAST}
