"""Progress bars on stderr. Imports nothing of libml."""

import os
import sys

from tqdm import tqdm

PERIOD = 60  # Seconds between the lines of a bar on a log file.


class Lines:
    """A stream for a bar on a log file: each state of the bar becomes a line, and nothing moves a cursor."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        text = text.strip()
        if text:
            self.stream.write(text + '\n')

    def flush(self):
        self.stream.flush()


def make_bar(*args, **look):
    """Returns a tqdm bar; on a log file it writes a whole line a minute. The arguments are tqdm's."""
    if not os.isatty(2):
        look = dict(look, file=Lines(sys.stderr), mininterval=PERIOD, delay=PERIOD)
    return tqdm(*args, dynamic_ncols=True, **look)
