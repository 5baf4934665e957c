"""What everything else stands on: errors, sessions, variables, checkpoints' names. Imports nothing else of libml."""

import contextlib
import glob
import json
import os
import re
import sys

from libml import muted

import tensorflow.compat.v1 as tf
from absl import app, flags, logging
from tensorflow.core.protobuf import rewriter_config_pb2

flags.DEFINE_boolean('debug', False, 'Show the whole traceback of an error instead of one line.')
flags.DEFINE_boolean('log_device_placement', False, 'Debugging: print the device of every operation.')


class Error(ValueError):
    """What the user can mend: its text is one line that says what is wrong and what to do."""


def check(name, value, valid, allowed):
    """Raises Error, saying what is allowed, where a named value is not valid."""
    if not valid:
        raise Error('%s=%s is not allowed: it must be %s' % (name, value, allowed))


def expand(path):
    """Returns a path with its leading ~ or ~user replaced by that home; None and '' as they are."""
    return os.path.expanduser(path) if path else path


def run(main):
    """Runs `main(argv)` as a script: what goes wrong becomes one line on stderr and a non-zero exit code.

    Exit codes: 1 an error, 2 a bad flag, 130 interrupted, otherwise what main returns. --debug shows the traceback.
    """

    def parse(argv):
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            sys.exit(fail(error, 2))

    def guarded(argv):
        try:
            return main(argv)
        except (Error, OSError, MemoryError, tf.errors.OpError) as error:
            if flags.FLAGS.debug:
                raise
            return fail(error, 1)
        except KeyboardInterrupt:
            return fail('interrupted', 130)

    app.run(guarded, flags_parser=parse)


def fail(error, code):
    """Prints the error as one line and returns the exit code."""
    print('Error:', reason(error), file=sys.stderr, flush=True)
    return code


def reason(error):
    """Returns what an exception says, as one line."""
    text = getattr(error, 'message', None) or str(error) or type(error).__name__
    if isinstance(error, tf.errors.OpError):
        # Where in the graph it was, before and after what was wrong.
        text = re.sub(r"^Graph execution error:(.*\nNode: '[^\n]*')?", '', text, flags=re.DOTALL).split('\n\t [[')[0]
    return ' '.join(text.split())


def setup_tf():
    """Turns TensorFlow into a TF1-style graph library: no eager execution, resource variables, quiet logs."""
    tf.disable_eager_execution()
    tf.enable_resource_variables()
    tf.logging.set_verbosity(tf.logging.ERROR)
    logging.set_verbosity(logging.ERROR)
    with muted():  # The first search for devices complains of missing drivers; later ones are silent.
        tf.config.list_physical_devices()


def share_operations(threads):
    """Sets how many threads of the CPU share an operation; 0: one a core. The first session of a process decides."""
    config = get_config()
    config.intra_op_parallelism_threads = threads
    with tf.Graph().as_default(), tf.Session(config=config) as session:
        session.run(tf.constant(0))


def get_config(log_device_placement=False):
    """Returns the ConfigProto of every session: memory as needed, and devices chosen where an op cannot be placed."""
    config = tf.ConfigProto(allow_soft_placement=True, log_device_placement=log_device_placement)
    config.gpu_options.allow_growth = True
    # The memory optimiser may swap or recompute across a compiled region, which breaks it.
    config.graph_options.rewrite_options.memory_optimization = rewriter_config_pb2.RewriterConfig.NO_MEM_OPT
    return config


def get_available_gpus():
    """Returns the names of the GPUs that TensorFlow can use, such as ['/device:GPU:0']."""
    return ['/device:GPU:%d' % i for i in range(len(tf.config.list_physical_devices('GPU')))]


def has_avx512():
    """Returns whether the CPU has 512-bit vectors; False where /proc/cpuinfo does not say."""
    with contextlib.suppress(OSError), open('/proc/cpuinfo') as file:
        return ' avx512f ' in file.read()
    return False


def ilog2(x):
    """Returns the integer base-2 logarithm of x, rounded up: 32 gives 5."""
    if x < 1:
        raise ValueError('ilog2 needs x >= 1, got %r' % (x,))
    return (int(x) - 1).bit_length()


def model_vars(scope=None):
    """Returns the trainable variables, of all or of those whose names begin with `scope`."""
    return tf.get_collection(tf.GraphKeys.TRAINABLE_VARIABLES, scope)


def getter_ema(ema, getter, name, *args, **kwargs):
    """A custom getter that replaces each variable by its moving average, where it has one.

    Args:
        ema: layers.MovingAverage, or a tf.train.ExponentialMovingAverage that has been applied.
        getter: the getter that variable_scope hands over; name, args and kwargs are for it.
    """
    variable = getter(name, *args, **kwargs)
    average = ema.average(variable)
    return variable if average is None else average


def in_order(*steps):
    """Returns an op that runs what each step makes, a step after the one before.

    Args:
        *steps: functions that make an op, or a list of ops, from what variables hold when its turn comes.
    """
    done = []
    for step in steps:
        with tf.control_dependencies(done):
            done = [tf.group(step())]
    return done[0]


def read_json(path, default):
    """Returns what a JSON file holds; default where there is no file, or, with a warning, where it cannot be read."""
    try:
        with open(path) as file:
            return json.load(file)
    except FileNotFoundError:
        return default
    except (ValueError, RecursionError) as error:
        print('Ignoring %s, which is not JSON: %s' % (path, error), file=sys.stderr)
        return default


def write_json(path, value):
    """Writes a JSON file, whole or not at all."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    aside = '%s.part-%d' % (path, os.getpid())
    try:
        with open(aside, 'w') as file:
            json.dump(value, file, indent=2, sort_keys=True)
            file.write('\n')
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(aside)
        raise


CHECKPOINT = 'model.ckpt'  # Followed by - and the global step in ten digits.


def checkpoints(folder):
    """Returns the path prefixes of the checkpoints in a folder, oldest first."""
    pattern = re.compile(re.escape(CHECKPOINT) + r'-(\d+)\.index$')
    names = os.listdir(folder) if os.path.isdir(folder) else []
    found = sorted((int(match.group(1)), name) for name in names if (match := pattern.match(name)))
    return [os.path.join(folder, name.removesuffix('.index')) for _, name in found]


def check_checkpoint(ckpt):
    """Reads a checkpoint through, checksums included.

    Raises:
        Error: it is not whole.
        tf.errors.PermissionDeniedError, tf.errors.ResourceExhaustedError: it cannot be said.
    """
    try:
        reader = tf.train.load_checkpoint(ckpt)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except (tf.errors.PermissionDeniedError, tf.errors.ResourceExhaustedError):
        raise
    except (tf.errors.OpError, ValueError, LookupError, RuntimeError) as error:  # A cut file is an IndexError.
        raise Error('%s is not a whole checkpoint: %s' % (ckpt, reason(error))) from error


def remove_checkpoint(ckpt):
    """Removes the files of a checkpoint, its index last: what a killed removal leaves is found, and removed later."""
    for path in sorted(glob.glob(glob.escape(ckpt) + '.*')):
        os.remove(path)


UNFINISHED = re.compile(r'.*\.tempstate\d+|checkpoint\.tmp\w+|.*\.part-\d+')


def remove_unfinished(folder):
    """Removes the files of a folder that were being written, by write_json and tf.train.Saver, when a process ended."""
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        if UNFINISHED.fullmatch(name):
            os.remove(os.path.join(folder, name))


def checkpoint_step(ckpt):
    """Returns the global step in a checkpoint's name."""
    return int(ckpt.rsplit('-', 1)[1])


def find_latest_checkpoint(folder):
    """Returns the path prefix of the newest checkpoint in a folder, None where there is none."""
    found = checkpoints(folder)
    return found[-1] if found else None


def get_latest_global_step(folder):
    """Returns the step (in images) of the newest checkpoint in a folder, 0 where there is none."""
    found = find_latest_checkpoint(folder)
    return checkpoint_step(found) if found else 0
