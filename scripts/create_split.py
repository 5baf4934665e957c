"""Splits a dataset's training records into labelled and unlabelled ones, as the published script does.

    python scripts/create_split.py --seed=3 --size=250 cifar10
    python scripts/create_split.py --seed=1 photos                  # all labels, if some pictures have none
    python scripts/create_split.py --seed=3 --size=250 $ML_DATA/SSL/cifar10 $ML_DATA/cifar10-train.tfrecord

An existing split is never overwritten. A training makes its split itself, if it is not there.
"""

import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # The libml beside this file.
    from libml.cli import quiet

    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

from libml import data_pair, utils
from libml.cli import options, script
from libml.cli.options import Option, Range
from libml.intake import splits
from libml.published import PUBLISHED

OPTIONS = dict(
    **data_pair.OPTIONS,
    seed=Option(
        0,
        'Seed of the choice of labels; 0: in file order. stl10 with 1000 labels: number of the published fold.',
        options.SEED,
    ),
    size=Option(None, 'How many records keep their labels. Default: all, if not all have one.', Range(low=1), type=int),
    all=Option(False, "Make the splits of the paper (seeds 1 to 5, its sizes) that aren't there yet."),
)
SEEDS = (1, 2, 3, 4, 5)  # Of the paper's splits.


def make(name, *paths, size=None, seed=0, all=False, data_dir=None):
    """Makes splits of a dataset.

    Args:
        name: of the dataset. With `paths`: the splits' path and name, such as DIR/cifar10 for DIR/cifar10.3@250-*.
        *paths: the record files to split; none for those of the dataset `name` in data_dir. The others: see OPTIONS.

    Raises:
        utils.Error: what is asked for cannot be made.
    """
    utils.refuse(all and size, 'give either --size=N (and --seed=N), or --all')
    if paths:
        folder, name = os.path.split(name)
    else:
        data_dir = data_pair.find_data_dir(data_dir)
        folder, paths = os.path.join(data_dir, 'SSL'), data_pair.locate_train_files(data_dir, name)
    utils.refuse(all and name not in PUBLISHED, 'the paper has no splits of %s: give --size and --seed', name)
    wanted = (
        [(size, seed) for size in PUBLISHED[name].sizes for seed in SEEDS] if all else [(size or data_pair.ALL, seed)]
    )
    source = splits.Source(name, paths)
    for size, seed in wanted:
        targets = data_pair.locate_split(folder, name, seed, size)
        missing = [path for path in targets if not os.path.isfile(path)]
        if missing or not all:
            splits.create(source, targets, size, seed)


if __name__ == '__main__':
    script.run(make, OPTIONS, 'which dataset? Such as: python scripts/create_split.py --seed=3 --size=250 cifar10')
