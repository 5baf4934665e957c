"""Loads TensorFlow without its remarks. Imports nothing of libml."""

import contextlib
import os
import sys
import tempfile


@contextlib.contextmanager
def muting():
    """Drops what is written to stderr inside: TensorFlow's notes on CUDA drivers would bury one-line errors."""
    if sys.stderr is None:  # It was closed before Python started: there is nothing to drop.
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def open_closed_streams():
    """Opens /dev/null in place of each standard stream that was closed before Python started, as by `2>&-`.

    Without this, the next file that is opened would become stderr, say, and what C++ code prints would go into it.
    """
    for number, name in enumerate(('stdin', 'stdout', 'stderr')):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Gets the lowest number that is free: this one.
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, 'w' if number else 'r', closefd=False))  # noqa: SIM115


@contextlib.contextmanager
def setting_environment(**values):
    """Sets environment variables inside, except those that are set already."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def import_tensorflow():
    """Imports TensorFlow quietly. A script calls this first, before it imports what imports TensorFlow.

    Ctrl-C during the import, which takes seconds, ends the process with one line and exit code 130.
    """
    sys.excepthook = explain_import
    open_closed_streams()
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = '/tmp'  # There is none that can be written; TensorFlow's import only asks for its name.
    os.environ.pop('MPLBACKEND', None)  # What a notebook leaves there would stop matplotlib's import.
    try:
        # The first variable silences XLA's start-up message. The second leaves Keras out: the import is twice as fast.
        with setting_environment(TF_CPP_MIN_LOG_LEVEL='1', TF_USE_LEGACY_KERAS='1'), muting():
            import tensorflow  # noqa: F401
    except KeyboardInterrupt:
        print('Error: interrupted', file=sys.stderr)
        sys.exit(130)


def explain_import(kind, error, trace):
    """Prints an error of the imports as one line; a sys.excepthook, until script.run takes over."""
    text, advice = ' '.join(str(error).split()) or kind.__name__, ''
    if kind is KeyboardInterrupt:
        text = 'interrupted'
    elif kind is MemoryError or 'failed to map' in text or 'annot allocate memory' in text:
        advice = ': there is too little memory to load this (see `ulimit -v`, or the limit of your batch job)'
    elif issubclass(kind, ImportError):
        advice = ': is the environment active, and the package installed? (pip install -e .)'
    print('Error: %s%s' % (text, advice), file=sys.stderr)
