"""Loads TensorFlow without its remarks. Imports nothing of libml."""

import contextlib
import os
import sys


@contextlib.contextmanager
def muted():
    """Drops what C++ code writes to stderr inside: TensorFlow's notes on missing CUDA drivers bury one-line errors."""
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


@contextlib.contextmanager
def environment(**values):
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
    try:
        # The first variable silences XLA's start-up message; the second leaves Keras out, which takes half the time.
        with environment(TF_CPP_MIN_LOG_LEVEL='1', TF_USE_LEGACY_KERAS='1'), muted():
            import tensorflow  # noqa: F401
    except KeyboardInterrupt:
        print('Error: interrupted', file=sys.stderr)
        sys.exit(130)
