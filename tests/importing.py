"""Imports the modules it is given, and prints as JSON what of the process was changed by that: {what: [before, after]}.

`new` are the modules that came with them, `written` what was opened for writing, made, removed, connected or started.
"""

import importlib
import json
import logging
import os
import signal
import sys

import absl.logging
from absl import app, flags  # noqa: F401  Importing app defines flags of absl's own.

from libml.cli import quiet

LIBRARIES = ('matplotlib.font_manager', 'pandas', 'sklearn.metrics')  # Of scripts.
EVENTS = ('os.mkdir', 'os.remove', 'os.rename', 'socket.connect', 'subprocess.Popen', 'os.fork')


def state():
    """Returns all that an import could change."""
    from tensorflow.python.eager import context

    return dict(
        environment=dict(os.environ),
        argv=list(sys.argv),
        folder=os.getcwd(),
        descriptors={fd: os.path.realpath('/proc/self/fd/' + fd) for fd in os.listdir('/proc/self/fd')},
        signals={str(number): str(signal.getsignal(number)) for number in signal.valid_signals()},
        flags=sorted(flags.FLAGS),
        verbosity=[absl.logging.get_verbosity(), logging.root.level, str(logging.root.handlers)],
        devices=context.context()._initialized,
        eager=context.executing_eagerly(),
    )


def main(names):
    quiet.import_tensorflow()  # What TensorFlow and the other libraries do is not ours.
    import tensorflow.compat.v1  # noqa: F401

    for library in LIBRARIES if any(name.startswith('scripts.') for name in names) else ():
        importlib.import_module(library)

    before, modules, written = state(), set(sys.modules), []

    def audit(event, args):
        if event == 'open' and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and args[0] != os.devnull:
            written.append(str(args[0]))
        if event in EVENTS:
            written.append(event)

    sys.addaudithook(audit)
    for name in names:
        importlib.import_module(name)
    after = state()
    found = {what: [before[what], after[what]] for what in before if before[what] != after[what]}
    print(json.dumps(dict(found, written=written, new=sorted(set(sys.modules) - modules))))


if __name__ == '__main__':
    main(sys.argv[1:])
