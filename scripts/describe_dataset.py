"""Makes record files of your own a dataset that training knows: reads them and writes <data_dir>/NAME.json.

    python scripts/describe_dataset.py NAME [--augment=mirror,shift4] [--classes=bee,cat]

<data_dir>/NAME-train.tfrecord and NAME-test.tfrecord hold tf.train.Examples of `image` (PNG bytes, all of one size) and
`label` (int64, from 0), perhaps `group` (int64). NAME-unlabeled.tfrecord may hold more pictures, without `label`.
"""

import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # The libml beside this file.
    from libml.cli import quiet

    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

from libml import data_pair, files, records, utils
from libml.cli import script
from libml.cli.options import Option
from libml.family import Family, check_distinct, parse_augment, read_class, write_family
from libml.published import check_new_name

OPTIONS = dict(
    **data_pair.OPTIONS,
    augment=Option(None, "Augmentation, such as 'mirror,shift4' or ''. Default: mirror and shift.", type=str),
    similar_classes=data_pair.SIMILAR,
    classes=Option('', 'Comma-separated names of the classes, in the order of their labels. Default: numbers.'),
)


def describe(name, augment=None, classes='', similar_classes=False, data_dir=None):
    """Writes the description of a dataset whose record files are there, and prints it.

    Args: see OPTIONS.

    Raises:
        utils.Error: the name or the records are not what a dataset needs, or NAME.json is there already.
    """
    data_dir = data_pair.find_data_dir(data_dir)
    check_new_name(name)
    names = tuple(read_class(each, '--classes') for each in classes.split(',')) if classes else ()
    if not similar_classes:
        check_distinct({each: 'class %d' % label for label, each in enumerate(names)})
    with files.creating(data_pair.locate_family(data_dir, name)) as part:
        family = describe_records(name, data_dir, augment, names)
        write_family(part, family)
    text = '%s: %d classes, %d x %d pixels, %d colors'
    print(text % (name, family.nclass, family.width, family.height, family.colors))


def describe_records(name, data_dir, augment, classes):
    """Returns the Family of record files. See `describe` for the arguments and for what is raised."""
    train = records.RecordFile(data_pair.locate_records(data_dir, name, 'train'))
    unlabeled = os.path.isfile(data_pair.locate_records(data_dir, name, 'unlabeled'))
    parts = ('train', 'unlabeled') if unlabeled else ('train',)
    shape, labels, _ = train.check(pixels=True)
    nclass = int(labels.max()) + 1
    for part in (*parts[1:], 'test'):
        file = records.RecordFile(data_pair.locate_records(data_dir, name, part))
        file.check(nclass, shape, unlabeled=part == 'unlabeled', pixels=True)
    data_pair.check_gaps(train.path, labels, nclass)
    if nclass < 2:
        raise utils.Error('%s has records of one class only: at least 2 are needed' % train.path)
    utils.require('classes', ','.join(classes), len(classes) in (0, nclass), '%d names' % nclass)
    mirror, shift = parse_augment(augment, shape[:2])
    return Family(*shape, nclass, mirror, shift, parts=parts, classes=classes)


if __name__ == '__main__':
    script.run(describe, OPTIONS, 'which dataset? Such as: python scripts/describe_dataset.py birds')
