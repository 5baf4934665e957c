"""Memory and open files of a process that trains for long, and what a run leaves on disk."""

import os

import numpy as np
import pytest
from conftest import PARAMS, make_model

from ablation.ab_mixmatch import AblationMixMatch
from libml import checkpoints

UPDATES = 2000
EVERY = 20  # Updates between reports, each with a checkpoint.
KEEP = 3
BOUND = 8 << 20  # Bytes between the second quarter and the last: 5 kB an update.

pytestmark = pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='reads memory and open files from /proc')


class Watched(AblationMixMatch):
    """Notes the memory (bytes) and the open files of the process at each report."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.memory, self.files, self.finalized = [], [], []

    def report(self, step):
        with open('/proc/self/statm') as file:
            self.memory.append(int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE'))
        self.files.append(len(os.listdir('/proc/self/fd')))
        self.finalized.append(self.graph.finalized)
        return super().report(step)


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
