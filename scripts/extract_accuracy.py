"""Writes <run>/stats/accuracy.json: the median test accuracy of the last 1, 10, 20 and 50 reports of a run.

    python scripts/extract_accuracy.py experiments/cifar10.3@250-5000/AblationMixMatch_...

The paper reports last20.
"""

from libml import quiet

if __name__ == '__main__':
    quiet.import_tensorflow()  # Before anything below imports it, with its remarks.

import os
import sys

from libml import runs, utils


def extract_accuracy(run):
    """Writes a run's stats/accuracy.json and returns its contents, see runs.medians.

    Raises:
        utils.Error: the folder holds no report.
    """
    stats = runs.medians([value for _, value in runs.read_accuracy(run)])
    for line in runs.damaged_events(run):
        print(line, file=sys.stderr)
    path = os.path.join(run, 'stats', 'accuracy.json')
    utils.write_json(path, stats)
    print(path, ' '.join('%s %.2f' % item for item in stats.items()))
    return stats


def main(argv):
    utils.check('arguments', argv[1:], len(argv) > 1, 'one run folder or more')
    for run in argv[1:]:
        extract_accuracy(utils.expand(run))


if __name__ == '__main__':
    utils.setup_tf()
    utils.run(main)
