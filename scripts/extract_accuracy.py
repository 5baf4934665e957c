"""Writes <run>/stats/accuracy.json: the median test accuracy of the last 1, 10, 20 and 50 reports of a run.

    python scripts/extract_accuracy.py experiments/cifar10.3@250-5000/AblationMixMatch_...

The paper reports last20.
"""

import os

from libml import utils

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

LAST = (1, 10, 20, 50)


def read_accuracy(run):
    """Returns a run's test accuracies in percent, a list of (step in images, value).

    Raises utils.Error where the folder holds no report.
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


def main(argv):
    utils.check('arguments', argv[1:], len(argv) > 1, 'one run folder or more')
    for run in argv[1:]:
        stats = medians([value for _, value in read_accuracy(run)])
        path = os.path.join(run, 'stats', 'accuracy.json')
        utils.write_json(path, stats)
        print(path, ' '.join('%s %.2f' % item for item in stats.items()))


if __name__ == '__main__':
    utils.setup_tf()
    utils.run(main)
