"""What MixMatch is built from. Imports run one way: utils <- layers <- models <- train; utils <- data <- data_pair."""

import contextlib
import os
import sys


@contextlib.contextmanager
def muted():
    """Drops what C++ code writes to stderr inside: TensorFlow's notes on missing CUDA drivers bury one-line errors."""
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


try:
    with muted():  # They cannot be turned off in any other way: no environment variable reaches them.
        import tensorflow  # noqa: F401
except KeyboardInterrupt:  # It takes seconds, before utils.run can see to it.
    print('Error: interrupted', file=sys.stderr)
    sys.exit(130)
