"""What runs leave in their folders, read back: arguments, progress, accuracies. Imports utils only."""

import contextlib
import glob
import os
import sys

from libml import utils

import numpy as np
import tensorflow.compat.v1 as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

LAST = (1, 10, 20, 50)


def args_file(run):
    """Returns the path of the args.json in a run's folder."""
    return os.path.join(run, 'args', 'args.json')


def read_args(run):
    """Returns the args.json in a run's folder; {} where there is none or, with a warning, it cannot be read."""
    args = utils.read_json(args_file(run), default={})
    if isinstance(args, dict):
        return {'precision': 'float32', **args} if args else {}  # Older runs do not say so.
    print('Ignoring %s, which does not hold arguments' % args_file(run), file=sys.stderr)
    return {}


def is_finished(run, train_nimg, **args):
    """Returns whether a run has nothing left to do. Reads neither images nor graph.

    Args:
        run: its folder, see train.Model.run_dir.
        train_nimg: int, duration in images.
        **args: more of args.json that must be so; where it is not, train.Model.train says what is wrong.
    """
    saved, ckpt = read_args(run), utils.find_latest_checkpoint(os.path.join(run, 'tf'))
    if not ckpt or utils.checkpoint_step(ckpt) < train_nimg or any(saved.get(k) != v for k, v in args.items()):
        return False
    with contextlib.suppress(utils.Error):  # train.Model.resume says that it is damaged.
        utils.check_checkpoint(ckpt)
        return True
    return False


def find(folder):
    """Returns the run folders in and below a folder, sorted.

    Raises:
        utils.Error: there is no such folder.
    """
    if not os.path.isdir(folder):
        raise utils.Error('%s is no folder' % folder)
    return sorted(path for path, inside, _ in os.walk(folder) if 'tf' in inside or 'args' in inside)


def damaged_events(run):
    """Returns a line for each event file of a run that cannot be read, or not to its end."""
    found = []
    for path in sorted(glob.glob(os.path.join(glob.escape(run), 'tf', 'events.*'))):
        count = 0
        try:
            for _ in tf.python_io.tf_record_iterator(path):
                count += 1
        except tf.errors.OpError:
            found.append('%s is damaged after %d records: the rest of it is ignored' % (path, count))
        else:
            if not count:
                found.append('%s is empty: it is ignored' % path)
    return found


def read_accuracy(run):
    """Returns a run's test accuracies in percent, a list of (step in images, value); what is damaged is left out.

    Raises:
        utils.Error: the folder holds no report.
    """
    folder = os.path.join(run, 'tf')
    events = EventAccumulator(folder, size_guidance={'scalars': 0})  # 0: all of them.
    if os.path.isdir(folder):
        events.Reload()
    if 'accuracy' not in events.Tags()['scalars']:
        raise utils.Error('%s holds no report of an accuracy: name the folder of one run, which holds tf/' % run)
    return [(event.step, event.value) for event in events.Scalars('accuracy')]


def medians(values):
    """Returns {'last01': .., 'last50': ..}, the medians of so many last values, of all where there are fewer."""
    return {'last%02d' % n: float(np.median(values[-n:])) for n in LAST}
