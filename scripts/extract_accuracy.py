"""Writes <run>/stats/accuracy.json: the median test accuracy of the last 1, 10, 20 and 50 reports of a run.

    python scripts/extract_accuracy.py RUN...

RUN is the folder of a run, or a folder that holds one run alone. The paper reports last20.
"""

import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # The libml beside this file.
    from libml.cli import quiet

    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

from libml import files, utils
from libml.cli import script
from libml.running import runs


def extract_accuracy(run):
    """Writes a run's stats/accuracy.json and returns it, see runs.take_medians.

    Raises:
        utils.Error: the run has no report, or the folder holds several runs.
    """
    if os.path.isdir(run) and not os.path.isdir(os.path.join(run, 'tf')):
        run = runs.find_folder(run)
    damaged = []
    values = [value for _, value in runs.read_accuracies(run, damaged)]
    utils.refuse(not values, '%s holds no report of an accuracy: name the folder of one run, which holds tf/', run)
    stats = runs.take_medians(values)
    for line in damaged:
        print(line, file=sys.stderr)
    path = os.path.join(run, 'stats', 'accuracy.json')
    files.refuse_link(os.path.dirname(path))
    files.write_json(path, stats)
    utils.say('%s %s' % (path, ' '.join('%s %.2f' % item for item in stats.items())))
    return stats


if __name__ == '__main__':
    script.run(lambda run, *more: [extract_accuracy(r) for r in (run, *more)], {}, 'give one run folder or more')
