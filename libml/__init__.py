"""What MixMatch is built from. Imports run one way: utils <- layers <- train <- models; utils <- data <- data_pair."""

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


@contextlib.contextmanager
def environment(**values):
    """Gives environment variables values inside, those apart that have one."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


# While TensorFlow is imported: keep XLA from telling of itself, later, in the middle of a progress bar; and leave Keras
# out, which would double the time.
QUICK = dict(TF_CPP_MIN_LOG_LEVEL='1', TF_USE_LEGACY_KERAS='1')
try:
    with environment(**QUICK), muted():  # No environment variable turns off what it says of missing drivers.
        import tensorflow  # noqa: F401
except KeyboardInterrupt:  # It takes seconds, before utils.run can see to it.
    print('Error: interrupted', file=sys.stderr)
    sys.exit(130)
