"""What everything else stands on: errors, scripts, sessions, variables, new files, JSON files."""

import contextlib
import json
import os
import re
import shutil
import sys
import unicodedata
import uuid

import tensorflow.compat.v1 as tf
from absl import app, flags, logging
from tensorflow.core.protobuf import rewriter_config_pb2

from libml.cli import quiet


class Error(ValueError):
    """A mistake that the user can mend. Its text is one line: what is wrong, and what to do."""


def check(name, value, valid, allowed):
    """Raises Error unless a named value is valid; the text says what is allowed."""
    if not valid:
        raise Error('%s=%s is not allowed: it must be %s' % (name, value, allowed))


def expand(path):
    """Returns a path with its leading ~ or ~user replaced by that home; None and '' as they are."""
    return os.path.expanduser(path) if path else path


def run(main):
    """Runs `main(argv)` as a script: an error becomes one line on stderr and a non-zero exit code.

    Exit codes: 1 an error, 2 a bad flag, 130 interrupted, otherwise what main returns. --debug shows the traceback.
    """
    if 'debug' not in flags.FLAGS:  # Tests run several scripts in a process.
        flags.DEFINE_boolean('debug', False, 'Show the whole traceback of an error instead of one line.')
    sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)

    def parse(argv):
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            sys.exit(fail(error, 2))

    def guarded(argv):
        try:
            return main(argv)
        except (Error, OSError, MemoryError, OverflowError, tf.errors.OpError) as error:
            if flags.FLAGS.debug:
                raise
            return fail(error, 1)
        except KeyboardInterrupt:
            return fail('interrupted', 130)

    app.run(guarded, flags_parser=parse)


class Output:
    """A standard stream whose errors never stop the program: what cannot be written is dropped. stderr says so once.

    `| head`, a full disk and Ctrl-C on a whole pipeline break a stream; a run must still save its checkpoint. A
    character that the stream's encoding lacks becomes `?`.
    """

    def __init__(self, stream):
        self.stream = stream or nowhere()  # None: it was closed before Python started.
        with contextlib.suppress(AttributeError, ValueError, OSError):  # Not every stand-in for a stream can.
            stream.reconfigure(errors='replace')

    def write(self, text):
        with self.guarded():
            return self.stream.write(text)

    def flush(self):
        with self.guarded():
            self.stream.flush()

    @contextlib.contextmanager
    def guarded(self):
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the stream is closed.
            lost, self.stream = self.stream, nowhere()
            with contextlib.suppress(OSError, ValueError):  # What is left in its buffer would fail again at the exit.
                os.dup2(self.stream.fileno(), lost.fileno())
            if sys.stderr is not self:
                print('What is printed is lost from here on: %s' % reason(error), file=sys.stderr)

    def __getattr__(self, name):
        return getattr(self.stream, name)


def nowhere():
    """Returns a stream that drops what is written."""
    return open(os.devnull, 'w', encoding='utf-8')


def fail(error, code):
    """Prints the error as one line and returns the exit code."""
    print('Error:', reason(error), file=sys.stderr, flush=True)
    return code


def is_control(character):
    """Returns whether a character controls a terminal or the layout of a text, instead of being a visible part of it.

    These are control characters, ends of lines, changes of the direction of writing, and halves of surrogate pairs.
    """
    turns = unicodedata.bidirectional(character) in ('LRE', 'RLE', 'LRO', 'RLO', 'PDF', 'LRI', 'RLI', 'FSI', 'PDI')
    return turns or unicodedata.category(character) in ('Cc', 'Cs', 'Zl', 'Zp')


def shown(text):
    """Returns a path or another text as stdout can print it on one line, whatever bytes it is made of."""
    encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
    plain = ''.join(repr(c)[1:-1] if is_control(c) else c for c in str(text))
    return plain.encode(encoding, 'backslashreplace').decode(encoding)


def warn(text):
    """Prints a warning on stderr."""
    print('Warning: %s' % text, file=sys.stderr, flush=True)


def print_list(lines, most=20):
    """Prints the first lines of a list on stderr, and how many more there are."""
    for line in lines[:most]:
        print(line, file=sys.stderr)
    if lines[most:]:
        print('... and %d more' % len(lines[most:]), file=sys.stderr)


def reason(error):
    """Returns what an exception says, as one line."""
    text = getattr(error, 'message', None) or str(error) or type(error).__name__
    if isinstance(error, tf.errors.OpError):
        # Cut the place in the graph, which TensorFlow names before and after the message.
        text = re.sub(r"^Graph execution error:(.*\nNode: '[^\n]*')?", '', text, flags=re.DOTALL).split('\n\t [[')[0]
    return ' '.join(text.split())


def setup_tf():
    """Turns TensorFlow into a TF1-style graph library: no eager execution, resource variables, few log lines."""
    tf.disable_eager_execution()
    tf.enable_resource_variables()
    tf.logging.set_verbosity(tf.logging.ERROR)
    logging.set_verbosity(logging.ERROR)
    with quiet.muted():  # The first search for devices complains of missing drivers; later ones are silent.
        gpus = tf.config.list_physical_devices('GPU')
    for gpu in gpus:  # get_config says so for sessions. But tf.function opens the GPU too, and takes all of its memory.
        with contextlib.suppress(RuntimeError):  # The GPU is open already.
            tf.config.experimental.set_memory_growth(gpu, True)


def get_config():
    """Returns the ConfigProto of every session.

    A GPU's memory is taken as it is needed. An op without a kernel for its device runs on another device.
    """
    config = tf.ConfigProto(allow_soft_placement=True)
    config.gpu_options.allow_growth = True
    # The memory optimiser may swap or recompute across a compiled region, which breaks it.
    config.graph_options.rewrite_options.memory_optimization = rewriter_config_pb2.RewriterConfig.NO_MEM_OPT
    return config


def get_available_gpus():
    """Returns the names of the GPUs that TensorFlow can use, such as ['/device:GPU:0']."""
    return ['/device:GPU:%d' % i for i in range(len(tf.config.list_physical_devices('GPU')))]


def ilog2(x):
    """Returns the integer base-2 logarithm of x, rounded up: 32 gives 5."""
    if x < 1:
        raise ValueError('ilog2 needs x >= 1, got %r' % (x,))
    return (int(x) - 1).bit_length()


def model_vars(scope=None):
    """Returns the trainable variables, of all or of those whose names begin with `scope`."""
    return tf.get_collection(tf.GraphKeys.TRAINABLE_VARIABLES, scope)


def getter_ema(ema, getter, name, *args, **kwargs):
    """A custom getter, for variable_scope, that replaces each variable by its moving average, where it has one.

    ema is a tf.train.ExponentialMovingAverage that has been applied.
    """
    variable = getter(name, *args, **kwargs)
    average = ema.average(variable)
    return variable if average is None else average


def in_order(*steps):
    """Returns an op that runs several steps, one after another. Each reads the variables as the step before left them.

    A step is a function that returns an op or a list of ops.
    """
    done = []
    for step in steps:
        with tf.control_dependencies(done):
            done = [tf.group(step())]
    return done[0]


@contextlib.contextmanager
def naming(path):
    """Sets the file name of an OSError that is raised inside: errors of read and write have none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


def read_json(path, default):
    """Returns what a JSON file holds; default where there is no file, or, with a warning, where it is not JSON."""
    try:
        with naming(path), open(path, encoding='utf-8') as file:
            return json.load(file)
    except FileNotFoundError:
        return default
    except (ValueError, RecursionError) as error:
        print('Ignoring %s, which is not JSON: %s' % (path, error), file=sys.stderr)
        return default


@contextlib.contextmanager
def replacing(path):
    """Gives the name of a new file or folder beside `path`, to be renamed to `path` at the end.

    On an exception (Ctrl-C too) it is removed. A process that is killed leaves at most a *.part-<pid>-<random>, which
    nothing reads. No two processes share one, on whatever hosts they run.
    """
    part = '%s.part-%d-%s' % (path, os.getpid(), uuid.uuid4().hex[:12])  # Containers may share a pid.
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.remove(part)
        raise


@contextlib.contextmanager
def creating(path):
    """As `replacing`, if nothing has the name `path` yet; what is written is on the disk at the end.

    Raises:
        Error: `path` exists already: nothing is overwritten.
    """
    if os.path.lexists(path):
        raise Error('%s exists already and is never overwritten: remove it first, or choose another name' % path)
    with replacing(os.path.abspath(path)) as part:
        yield part
        file = os.open(part, os.O_RDONLY)  # Of a folder, too.
        os.fsync(file)
        os.close(file)


@contextlib.contextmanager
def made(folder):
    """Makes a folder unless it is there. On failure, removes the folder if it was newly made and is empty."""
    new = not os.path.isdir(folder)
    os.makedirs(folder, exist_ok=True)
    try:
        yield folder
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        raise


def write_json(path, value):
    """Writes a JSON file, whole or not at all; makes its folder."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with replacing(path) as part, naming(path), open(part, 'w', encoding='utf-8') as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write('\n')


CHECKPOINT = re.compile(r'model\.ckpt-(\d+)\.index')


def find_checkpoints(folder):
    """Returns the prefixes of the checkpoints in a folder, oldest first; [] if there is no such folder."""
    try:
        names = os.listdir(folder)  # Not os.path.isdir, which is False for a folder that cannot be read now, too.
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = sorted((int(match[1]), name) for name in names if (match := CHECKPOINT.fullmatch(name)))
    return [os.path.join(folder, name.removesuffix('.index')) for _, name in found]


def checkpoint_step(ckpt):
    """Returns the global step (in images) in a checkpoint's name."""
    return int(ckpt.rsplit('-', 1)[1])


def find_latest_checkpoint(folder):
    """Returns the path prefix of the newest checkpoint in a folder, None if there is none."""
    return next(reversed(find_checkpoints(folder)), None)


def get_latest_global_step(folder):
    """Returns the step (in images) of the newest checkpoint in a folder, 0 if there is none."""
    found = find_latest_checkpoint(folder)
    return checkpoint_step(found) if found else 0
