"""What everything else stands on: errors, texts, paths, sessions, variables, the names of checkpoints."""

import contextlib
import os
import re
import sys
import unicodedata

import tensorflow.compat.v1 as tf
from absl import logging
from tensorflow.core.protobuf import rewriter_config_pb2

from libml.cli import quiet

AVERAGE = '/ExponentialMovingAverage'  # Behind a variable's name: its moving average, in graphs and checkpoints.


class Error(ValueError):
    """A mistake that the user can mend. Its text is one line: what is wrong, and what to do."""


def refuse(wrong, text, *values):
    """Raises Error(text % values) if something is wrong."""
    if wrong:
        raise Error(text % values)


def require(name, value, valid, allowed):
    """Raises Error unless a named value is valid; the text says what is allowed."""
    refuse(not valid, '%s=%s is not allowed: it must be %s', name, value, allowed)


def expand(path):
    """Returns a path with its leading ~ or ~user replaced by that home; None and '' as they are.

    Raises:
        Error: it is an address of other than this machine's files, a user who does not exist, or ends in what is no
            part of a name, such as the carriage return of a file that was written on Windows.
    """
    if not path:
        return path
    path = os.fspath(path)
    found = os.path.expanduser(path)
    if re.match(r'[A-Za-z][\w+.-]+:/|[A-Za-z]:\\', path):
        raise Error(
            '%s is no path of this machine: only local folders and files can be read and written' % escape(path)
        )
    if path.startswith('~') and found == path and not os.path.lexists(path):
        raise Error('%s: there is no such user: write the whole path' % escape(path))
    if any(c != ' ' and (c.isspace() or unicodedata.category(c) in ('Cc', 'Cf')) for c in (path[0], path[-1])):
        raise Error('%s begins or ends with a character that cannot be seen: remove it' % ascii(path))
    return found


def is_control(character):
    """Returns whether a character controls a terminal or the layout of a text, instead of being a visible part of it.

    These are control characters, ends of lines, changes of the direction of writing, and halves of surrogate pairs.
    """
    turns = unicodedata.bidirectional(character) in ('LRE', 'RLE', 'LRO', 'RLO', 'PDF', 'LRI', 'RLI', 'FSI', 'PDI')
    return turns or unicodedata.category(character) in ('Cc', 'Cs', 'Zl', 'Zp')


def escape(text):
    """Returns a path or another text as stdout can print it on one line, whatever bytes it is made of."""
    encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
    plain = ''.join(repr(c)[1:-1] if is_control(c) else c for c in str(text))
    return plain.encode(encoding, 'backslashreplace').decode(encoding)


def say(text):
    """Prints a text on one line of stdout, see escape."""
    print(escape(text), flush=True)


def warn(text):
    """Prints a warning on stderr."""
    print('Warning: %s' % escape(text), file=sys.stderr, flush=True)


def print_list(lines, most=20):
    """Prints the first lines of a list on stderr, and how many more there are."""
    for line in lines[:most]:
        print(line, file=sys.stderr)
    if lines[most:]:
        print('... and %d more' % len(lines[most:]), file=sys.stderr)


def explain(error):
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
    with quiet.muting():  # The first search for devices complains of missing drivers; later ones are silent.
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
