"""Says which pictures the sets of a dataset have in common, by their pixels.

    python scripts/check_split.py cifar10.3@250-5000

Row and column are two sets: so many pictures of the row's set are in the column's as well. On the diagonal: so many of
the set repeat another of it.
"""

import hashlib

import numpy as np
from absl import flags

from libml import data, utils
from libml.data_pair import DATASETS


def hashes(images):
    """Returns the 16-byte hash of the pixels of each of some data.Images."""
    return [
        hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        for batch, _ in images.batches(1024)
        for image in batch
    ]


def overlaps(sets):
    """Returns int [k, k]: how many elements of list i are in list j too; on the diagonal, how many repeat another."""
    unique = [set(elements) for elements in sets]
    matrix = [[sum(e in other for e in elements) for other in unique] for elements in sets]
    for i, elements in enumerate(sets):
        matrix[i][i] = len(elements) - len(unique[i])
    return np.array(matrix)


def main(argv):
    if len(argv) != 2:
        raise utils.Error('which dataset? Such as: python scripts/check_split.py cifar10.3@250-5000')
    dataset = DATASETS[argv[1]](flags.FLAGS.data_dir)
    sets = [dataset.sets[name] for name in data.SETS]
    matrix = overlaps([hashes(images) for images in sets])
    print('%-12s %9s   also in' % (dataset.name, 'pictures') + ''.join('%12s' % name for name in data.SETS))
    for name, images, row in zip(data.SETS, sets, matrix, strict=True):
        print('%-12s %9d          ' % (name, len(images)) + ''.join('%12d' % count for count in row))
    shared = matrix.sum() - np.trace(matrix)
    print('No two sets share a picture.' if not shared else 'Some sets share pictures: see off the diagonal.')


if __name__ == '__main__':
    utils.setup_tf()
    utils.run(main)
