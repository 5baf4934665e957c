"""The folder of a run: its layout, args.json, the lock, the event log, and reports read back."""

import contextlib
import functools
import glob
import io
import json
import os
import re
import socket
import sys
import time

import numpy as np
import tensorflow.compat.v1 as tf
from google.protobuf.message import DecodeError
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb

from libml import files, utils
from libml.running import checkpoints

LAST = (1, 10, 20, 50)
# Arguments that may change when a run continues.
FREE_ARGS = ('train_kimg', 'report_kimg', 'save_kimg', 'keep_ckpt', 'init_ckpt', 'xla', 'devices')
DATA_ARGS = ('data', 'classes', 'pictures', 'mean', 'std')  # Arguments that say which data a run began with.
NOT_HPARAMS = (*FREE_ARGS, *DATA_ARGS)  # check_args does not compare these, and TensorBoard does not show them.
MAX_NAME = 255  # Bytes of a folder's name that file systems allow.


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
            utils.Error: see check_fields.
        """
        args = files.read_json(self.args_file, default={})
        if not isinstance(args, dict):
            print('Ignoring %s, which does not hold arguments' % self.args_file, file=sys.stderr)
            return {}
        check_fields(self.args_file, args)
        return {'precision': 'float32', **args} if args else {}  # Older runs have no precision: it was float32.

    def check_args(self, args):
        """Raises utils.Error where the folder holds a run with other arguments."""
        for name, value in self.args.items():
            if name in args and name not in NOT_HPARAMS and args[name] != value:
                text = '%s holds a run with %s=%s, not %s: take another --run_name or --train_dir, or remove that run'
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
        text = '%s: the name of this folder is longer than %d bytes: use fewer or shorter arguments'
        utils.refuse(len(os.fsencode(os.path.basename(self.folder))) > MAX_NAME, text, self.folder, MAX_NAME)

    def locking(self):
        """Keeps every other process from writing this run, inside a `with`.

        Raises:
            utils.Error: another process does so already; or what this program writes in the folder is a link, which may
                lead to somebody else's files.
        """
        os.makedirs(self.folder, exist_ok=True)
        for name in ('tf', 'args', 'stats', 'evaluation'):
            files.refuse_link(os.path.join(self.folder, name))
        return files.locking(os.path.join(self.folder, 'lock'), self.folder + ' is being trained by ')

    def remove_unfinished(self):
        """Removes what a killed or failed process left half-written; the run must be locked."""
        checkpoints.remove_unfinished(self.arg_dir)
        checkpoints.remove_unfinished(self.checkpoint_dir)


# --- Fields of args.json, which may be anybody's file ---


def is_number(low, high, kinds=(int,)):
    """Returns a function that says whether a value is of those types, and from low to high."""
    return lambda value: type(value) in kinds and low <= value <= high


def is_text(value):
    """Returns whether a value is a text that a terminal shows on one line."""
    return isinstance(value, str) and not any(map(utils.is_control, value))


def is_list(is_item):
    """Returns a function that says whether a value is a list of such items."""
    return lambda value: isinstance(value, list) and all(map(is_item, value))


def is_identity(value):
    """Returns whether a value holds fingerprints of the data, or nothing."""
    parts = 'label', 'unlabel', 'test'
    return value is None or (isinstance(value, dict) and all(n in parts and is_text(v) for n, v in value.items()))


NUMBERS = is_list(is_number(-1e30, 1e30, (int, float))), 'a list of numbers'
FIELDS = {  # What others rely on: {name: (function of a value, what it must be)}.
    **dict.fromkeys(('dataset', 'arch', 'precision', 'p_unlabeled'), (is_text, 'a text on one line')),
    **dict.fromkeys(('train_kimg', 'report_kimg'), (is_number(0, 1 << 40, (int, float)), 'a number from 0 to 2^40')),
    'seed': (is_number(0, 2**32 - 1), 'a whole number from 0 to 2^32 - 1'),
    'nclass': (is_number(1, 1 << 20), 'a whole number from 1 to 2^20'),
    'scales': (is_number(1, 10), 'a whole number from 1 to 10'),
    'filters': (is_number(1, 4096), 'a whole number from 1 to 4096'),
    'repeat': (is_number(1, 256), 'a whole number from 1 to 256'),
    'whiten': (lambda value: isinstance(value, bool), 'true or false'),
    'classes': (is_list(is_text), 'a list of names'),
    'mean': NUMBERS,
    'std': (is_list(is_number(1e-30, 1e30, (int, float))), 'a list of numbers above 0'),
    'pictures': (lambda value: isinstance(value, dict), 'how pictures are treated'),
    'data': (is_identity, 'the fingerprints of label, unlabel and test'),
}


def check_fields(path, args):
    """Raises utils.Error where a field of an args.json, if it is there, is not what FIELDS says; path: the file."""
    for name, (valid, words) in FIELDS.items():
        if name in args and not valid(args[name]):
            text = '%s is damaged: %s is %.40s, not %s. Mend it, or take another folder'
            raise utils.Error(text % (utils.escape(path), name, utils.escape(json.dumps(args[name])), words))


class EventLog(contextlib.AbstractContextManager):
    """TensorBoard's event file of a run that starts or continues at `step`; used in a `with`.

    Each write is flushed, and a write that fails raises utils.Error. (tf.summary.FileWriter writes in a thread that
    does not report a full disk, and two of them that start within a second write one file.)

    Args:
        folder: where it goes.
        fold: function that returns the tf.GraphDef of the graph page; the run's first event file has it.
        step: int, in images. TensorBoard drops later points of an earlier process: those updates are made again.
        hparams: dict of numbers, bools and strings, for the HPARAMS page. TensorBoard keeps what the first event file
            of a folder says, so these must not change when a run continues.
        text: for the text page, which shows it as it is.
    """

    PATTERN = re.compile(r'events\.out\.tfevents\.(\d+)\.')

    def __init__(self, folder, fold, step, hparams, text):
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
            self.write(graph_def=fold().SerializeToString())
        self.write(step=step + 1, session_log=tf.SessionLog(status=tf.SessionLog.START))
        block = ''.join('    %s\n' % line for line in text.splitlines())  # Markdown for text as it is.
        for made in (hparams_pb(hparams), text_pb('start', block)):  # Of TensorBoard's own class.
            self.write(step=step, summary=tf.Summary.FromString(made.SerializeToString()))

    def scalars(self, step, values):
        """Writes named floats."""
        values = [tf.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.write(step=step, summary=tf.Summary(value=values))

    def image(self, step, tag, picture):
        """Writes a PIL.Image.Image."""
        encoded = io.BytesIO()
        picture.save(encoded, 'PNG', compress_level=1)  # The highest level takes twice as long for a fifth less.
        shown = tf.Summary.Image(encoded_image_string=encoded.getvalue(), width=picture.width, height=picture.height)
        self.write(step=step, summary=tf.Summary(value=[tf.Summary.Value(tag=tag, image=shown)]))

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


PARTS = {'tf', 'args'}  # Folders of a run.


def find_folder(path):
    """Returns the run's folder that a user means.

    Args:
        path: the folder; its folder tf; one of its checkpoints; or a folder that holds one run alone, at any depth.

    Raises:
        utils.Error: the folder holds several runs. They are listed on stderr, newest last.
    """
    utils.require('RUN', path, path, 'the folder of a run, or one of its checkpoints')  # '' is no current folder.
    path = os.path.abspath(utils.expand(path))
    if not os.path.isdir(path):
        return os.path.dirname(os.path.dirname(path))
    if os.path.basename(path) == 'tf':
        return os.path.dirname(path)
    if any(os.path.isdir(os.path.join(path, part)) for part in PARTS):
        return path
    found = find_runs(path)
    if len(found) > 1:
        newest_last = sorted(found, key=lambda run: max(p.stat().st_mtime for p in os.scandir(run) if p.is_dir()))
        utils.print_list([utils.escape(os.path.relpath(run)) for run in newest_last], len(found))
        text = '%s holds %d runs, see above, the newest last: name one of them'
        raise utils.Error(text % (utils.escape(path), len(found)))
    return found[0] if len(found) == 1 else path


def resolve(path, run=None):
    """Returns the whole checkpoint that a user means, path as in find_folder; it must not be of another run than `run`.

    Errors: those of find_folder and checkpoints.resolve.
    """
    folder = find_folder(path)
    other = run and os.path.realpath(folder) != os.path.realpath(run) and Run(folder).args
    utils.refuse(other, '%s is of another run than %s: name that run, and leave --ckpt out', path, run)
    return checkpoints.resolve(folder if os.path.isdir(utils.expand(path)) else path)


def find_runs(folder, onerror=None):
    """Returns the run folders in and below a folder, sorted. Links are followed; no folder counts twice.

    Args:
        folder: path.
        onerror: function of the OSError of each folder that cannot be read; None: such folders are passed over.

    Raises:
        utils.Error: there is no such folder.
    """
    utils.refuse(not os.path.isdir(folder), '%s is no folder', utils.escape(folder))
    found, seen, todo = [], set(), [folder]
    while todo:
        path = todo.pop()
        try:
            entries = [entry.name for entry in os.scandir(path) if entry.is_symlink() or entry.is_dir()]
        except OSError as error:
            (onerror or id)(error)
            continue
        inside = sorted(name for name in entries if os.path.isdir(os.path.join(path, name)))
        real = os.path.realpath(path)
        if real not in seen:
            seen.add(real)
            found += [path] if PARTS & {*inside} else []
            todo += [os.path.join(path, name) for name in reversed(inside) if name not in PARTS]
    return sorted(found)


def list_events(run):
    """Returns the paths of a run's event files, sorted; raises utils.Error where one is a named pipe, or no file."""
    paths = sorted(glob.glob(os.path.join(glob.escape(run), 'tf', 'events.*')))
    for path in paths:
        if not os.path.isfile(path):  # TensorBoard would wait for what comes out of a pipe.
            raise utils.Error('%s is no file: remove it' % path)
    return paths


def read_accuracies(run, damaged=None):
    """Returns a run's test accuracies in percent, a list of (step in images, value); what is damaged is left out.

    damaged: a list that gets a line for each event file that cannot be read, or not to its end.
    """
    found, lines = [], [] if damaged is None else damaged
    for path in list_events(run):
        count = 0
        # TensorBoard's own reader lists the folder anew for each file.
        try:
            with checkpoints.aliasing(path) as name:
                for record in tf.python_io.tf_record_iterator(name):
                    count += 1
                    try:
                        event = tf.Event.FromString(record)
                    except DecodeError:
                        utils.warn('%s has a record that is no event: it is left out' % path)
                        continue
                    if event.session_log.status == tf.SessionLog.START:  # The updates from there on were made again.
                        found = [(step, value) for step, value in found if step < event.step]
                    found += [(event.step, v.simple_value) for v in event.summary.value if v.tag == 'accuracy']
            lines += [] if count else ['%s is empty: it is ignored' % path]
        except tf.errors.OpError:
            lines.append('%s is damaged after %d records: the rest of it is ignored' % (path, count))
    return found


def take_medians(values):
    """Returns {'last01': .., 'last50': ..}, the medians of so many last values, of all where there are fewer."""
    return {'last%02d' % n: float(np.median(values[-n:])) for n in LAST}
