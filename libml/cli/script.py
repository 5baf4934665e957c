"""How a script starts and ends: its flags, its streams, its exit code."""

import contextlib
import difflib
import inspect
import os
import signal
import sys

import tensorflow.compat.v1 as tf
from absl import app, flags

from libml import utils
from libml.cli import options
from libml.utils import Error, escape, explain


def run(function, table, usage=''):
    """Runs a script: calls `function` with the words of its command line and the values of its flags.

    An error becomes one line on stderr and a non-zero exit code: 1 an error, 2 a bad flag, 130 interrupted. --debug
    shows the traceback. SIGTERM and SIGHUP end it as an exception does, so that nothing half-written stays.

    Args:
        function: takes the words by position, ~ expanded, and the options by name, filled and checked.
        table: the options.
        usage: what an error says where the words are too few or too many for `function`.
    """
    sys.excepthook = sys.__excepthook__  # See quiet.explain_import.
    options.define_flags(table)
    if 'debug' not in flags.FLAGS:  # Tests run several scripts in a process.
        flags.DEFINE_boolean('debug', False, 'Show the whole traceback of an error instead of one line.')
    for name in {*table, 'debug'}:  # Else --help would list those alone that are defined in the script's own file.
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    utils.setup_tf()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)

    def parse(argv):
        try:
            return flags.FLAGS(['--help' if word == '-h' else word for word in argv])
        except flags.UnrecognizedFlagError as error:  # absl would suggest flags of its own, too.
            near = difflib.get_close_matches(error.flagname, [*table, 'debug'])
            sys.exit(fail(flags.UnrecognizedFlagError(error.flagname, suggestions=near), 2))
        except (flags.Error, ValueError) as error:  # ValueError: --no<flag> with a value.
            sys.exit(fail(error, 2))
        except SystemExit:  # After --help, whose code would be that of an error.
            sys.exit(0)

    def main(argv):
        words, values = list(map(utils.expand, argv[1:])), options.fill(table, options.get_values(table))
        try:
            inspect.signature(function).bind(*words, **values)
        except TypeError as error:
            raise Error('%s (given: %s)' % (usage, ' '.join(words) or 'no argument')) from error
        function(*words, **values)

    def guarded(argv):
        try:
            return main(argv)
        except (Error, OSError, MemoryError, OverflowError, UnicodeError, tf.errors.OpError) as error:
            if flags.FLAGS.debug:
                raise
            return fail(error, 1)
        except KeyboardInterrupt:
            return fail('interrupted', 130)
        finally:
            for number in (signal.SIGTERM, signal.SIGHUP):  # An exception while Python ends would be a traceback.
                signal.signal(number, signal.SIG_DFL)

    app.run(guarded, flags_parser=parse)


class Output:
    """A standard stream whose errors never stop the program: what cannot be written is dropped. stderr says so once.

    `| head`, a full disk and Ctrl-C on a whole pipeline break a stream; a run must still save its checkpoint. A
    character that the stream's encoding lacks becomes `?`.
    """

    def __init__(self, stream):
        self.stream = stream or open_nowhere()  # None: it was closed before Python started.
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
            lost, self.stream = self.stream, open_nowhere()
            with contextlib.suppress(OSError, ValueError):  # What is left in its buffer would fail again at the exit.
                os.dup2(self.stream.fileno(), lost.fileno())
            if sys.stderr is not self:
                print('What is printed is lost from here on: %s' % explain(error), file=sys.stderr)

    def __getattr__(self, name):
        return getattr(self.stream, name)


def open_nowhere():
    """Returns a stream that drops what is written."""
    return open(os.devnull, 'w', encoding='utf-8')


def fail(error, code):
    """Prints the error as one line and returns the exit code."""
    print('Error:', escape(explain(error)), file=sys.stderr, flush=True)
    return code
