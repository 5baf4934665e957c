"""Memory and open files of a process that trains for long, and what a run leaves on disk."""

import os
import resource
import sys

import numpy as np
import pytest
from conftest import PARAMS, command, make_dataset, make_model

from ablation.ab_mixmatch import AblationMixMatch
from libml import utils
from libml.running import checkpoints

UPDATES = 1200
EVERY = 20  # Updates between reports, each with a checkpoint.
KEEP = 3
BOUND = 5 << 20  # Bytes between the second quarter and the last: 8 kB an update.

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='reads memory and open files from /proc'),
]


class Watched(AblationMixMatch):
    """Notes the memory (bytes) and the open files of the process at each report."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.memory, self.files, self.finalized = [], [], []

    def report(self, step, stopped=()):
        with open('/proc/self/statm') as file:
            self.memory.append(int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE'))
        self.files.append(len(os.listdir('/proc/self/fd')))
        self.finalized.append(self.graph.finalized)
        return super().report(step, stopped)


def test_memory_and_open_files_stay_as_they_are(tmp_path):
    model = make_model(tmp_path, cls=Watched)
    period = EVERY * PARAMS['batch']
    model.train(UPDATES * PARAMS['batch'], period, period, KEEP)
    quarters = np.array_split(model.memory, 4)
    assert len(model.memory) == UPDATES // EVERY
    assert np.median(quarters[-1]) - np.median(quarters[1]) < BOUND
    assert len(set(model.files[1:])) == 1
    assert all(model.finalized)
    assert len(checkpoints.find(model.checkpoint_dir)) == KEEP
    assert len(os.listdir(model.checkpoint_dir)) == 3 * KEEP + 2  # With TensorFlow's list of them, and one event file.


def test_a_report_takes_no_more_memory_than_an_update(tmp_path):
    done = command(__file__, tmp_path)
    assert done.returncode == 0, done.stderr
    update, report = map(int, done.stdout.splitlines()[-1].split())
    assert report < 1.04 * update


def print_peaks(folder):
    """Prints the largest memory that this process took before a report, and with it."""
    utils.setup_tf()
    dataset = make_dataset(64, 64, 3, count=300)  # More than one batch of an evaluation, if that is too large.
    model = make_model(folder, dataset, scales=3, filters=32, repeat=1, batch=8)
    with model.trainer.opening_session() as session:
        model.trainer.restore(session, '')
        model.session.run(model.trainer.init_input_op)
        for _ in range(3):
            model.session.run(model.ops.train_op)
        update = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        model.predict_classes()
    print(update, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == '__main__':
    print_peaks(*sys.argv[1:])
