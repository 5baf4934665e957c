"""Counts the pictures that the sets of a dataset have in common, by their pixels; names some that carry two classes.

    python scripts/check_split.py cifar10.3@250-5000

Row and column are two sets. A cell counts the pictures of the row's set that the column's set has as well. The diagonal
counts the pictures that repeat another picture of the same set.
"""

import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # The libml beside this file.
    from libml.cli import quiet

    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

import numpy as np

from libml import data_pair, records
from libml.cli import script
from libml.intake import pictures, splits

OPTIONS = data_pair.NAMED_OPTIONS
EXAMPLES = 3  # Pictures with two classes that are named.


def count_overlaps(sets):
    """Returns int [k, k]: how many elements of list i are in list j too; on the diagonal, how many repeat another."""
    unique = [set(elements) for elements in sets]
    matrix = [[sum(e in other for e in elements) for other in unique] for elements in sets]
    for i, elements in enumerate(sets):
        matrix[i][i] = len(elements) - len(unique[i])
    return np.array(matrix)


def find_conflicts(hashed, labels):
    """Returns [{class: (set, number) of the first copy of this class}], one for each picture of two classes or more.

    hashed: {set: hashes of its pictures}; labels: {set: int [n]}; records.NO_CLASS where a picture has none.
    """
    found = {}
    for name, elements in hashed.items():
        for number, (element, label) in enumerate(zip(elements, labels[name].tolist(), strict=True)):
            if label != records.NO_CLASS:
                found.setdefault(element, {}).setdefault(label, (name, number))
    return [places for places in found.values() if len(places) > 1]


def check_split(name=None, data_dir=None, dataset=''):
    """Prints what the sets of a dataset such as 'cifar10.3@250-5000' share, and the pictures of two classes or more.

    data_dir is the folder of the datasets; None: $ML_DATA. `dataset` is another way to give the name. Raises
    utils.Error if the dataset cannot be read.
    """
    dataset = splits.read(data_pair.choose_name(name, dataset), data_dir)
    hashed = {
        name: [pictures.hash_pixels(image) for batch, _ in images.batches(1024) for image in batch]
        for name, images in dataset.sets.items()
    }
    matrix = count_overlaps(list(hashed.values()))
    print('%-12s %9s   also in' % (dataset.name, 'pictures') + ''.join('%12s' % name for name in hashed))
    for (name, elements), row in zip(hashed.items(), matrix, strict=True):
        print('%-12s %9d          ' % (name, len(elements)) + ''.join('%12d' % count for count in row))
    shared = matrix.sum() - np.trace(matrix)
    print('No two sets share a picture.' if not shared else 'Some sets share pictures: see off the diagonal.')

    found = find_conflicts(hashed, {name: images.labels for name, images in dataset.sets.items()})
    print('%s under two classes or more.' % ('No picture stands' if not found else '%d pictures stand' % len(found)))
    for classes in found[:EXAMPLES]:
        places = ['%s as picture %d of %s' % (dataset.family.names[k], n, name) for k, (name, n) in classes.items()]
        print('    ' + ', '.join(places))


if __name__ == '__main__':
    script.run(check_split, OPTIONS, 'which dataset? Such as: python scripts/check_split.py cifar10.3@250-5000')
