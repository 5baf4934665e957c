"""Shows what a dataset holds: pictures per class; range, mean and standard deviation of the pixels; a sheet to look at.

    python scripts/inspect_dataset.py cifar10.3@250-5000 --png sheet.png

The sheet has a row of labelled pictures for each class. Below, each row shows one unlabelled picture: the original,
then augmented copies, as the network sees them.
"""

import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # The libml beside this file.
    from libml.cli import quiet

    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image, ImageDraw

from libml import data, data_pair, files, utils
from libml.cli import script
from libml.cli.options import Option
from libml.intake import splits

OPTIONS = dict(
    **data_pair.NAMED_OPTIONS,
    png=Option(None, 'Write the sheet of pictures to this file.', type=str, path=True),
)
COLUMNS = 10
AUGMENTED_ROWS = 6
TILE = 64  # Pixels. Smaller pictures are enlarged, by a whole factor, to at most this; larger ones stay as they are.
MARGIN = 96  # For the names of the classes.
MOST_CLASSES = 100  # On a sheet: more make a picture that few programs open.


# --- Numbers ---


def count_classes(dataset):
    """Returns int [4, nclass + 1]: pictures of each class in each of data.SETS; last, those without a class."""
    sets = [dataset.sets[name].labels for name in data.SETS]
    labels = [np.where(labels < 0, dataset.nclass, labels) for labels in sets]
    return np.stack([np.bincount(found, minlength=dataset.nclass + 1) for found in labels])


def print_counts(dataset):
    """Prints the table of `count_classes`."""
    table = count_classes(dataset)
    rows = [('class', data.SETS), *zip(dataset.family.names, table.T, strict=False)]
    if table[:, -1].any():
        rows.append(('without a class', table[:, -1]))
    for name, cells in [*rows, ('all', table.sum(1))]:
        print('%-20s' % name + ''.join('%12s' % cell for cell in cells))


def print_pixels(dataset):
    """Prints range, mean and standard deviation of the training pictures' pixels."""
    sets = dataset.sets['labeled'], dataset.sets['unlabeled']
    ends = [(batch.min(), batch.max()) for images in sets for batch, _ in images.batches(1024)]
    print('pixels from %d to %d of 255; on the scale from -1 to 1, for each color:' % (np.min(ends), np.max(ends)))
    for name, values in zip(('mean', 'deviation'), data.compute_mean_std(*sets), strict=True):
        print('%-20s' % name + ' '.join('%.4f' % value for value in values))


# --- The sheet ---


def take_labeled_rows(dataset):
    """Returns uint8 [k, COLUMNS, H, W, C]: labelled pictures of the first k classes, white where there are no more."""
    rows = np.full([min(dataset.nclass, MOST_CLASSES), COLUMNS, *dataset.sets['labeled'].shape], 255, np.uint8)
    for label in range(len(rows)):
        found = np.flatnonzero(dataset.sets['labeled'].labels == label)[:COLUMNS]
        rows[label, : len(found)] = dataset.sets['labeled'].gather(found)
    return rows


def make_augmented_rows(dataset):
    """Returns uint8 [k, COLUMNS, H, W, C]: unlabelled pictures, each as it is and then augmented."""
    first = dataset.sets['unlabeled'].gather(np.arange(min(AUGMENTED_ROWS, len(dataset.sets['unlabeled']))))
    with tf.Graph().as_default(), tf.Session(config=utils.get_config()) as session:
        images = tf.placeholder(tf.uint8, [None, *first.shape[1:]])
        augmented = dataset.augment(images, tf.constant([0, 0]))
        repeated = np.repeat(first, COLUMNS - 1, 0)
        found = session.run(augmented, {images: repeated}) if len(first) else repeated
    pixels = np.round((found + 1) * 127.5).astype(np.uint8).reshape(len(first), COLUMNS - 1, *first.shape[1:])
    return np.concatenate([first[:, None], pixels], 1)


def draw(rows, names):
    """Returns the PIL.Image of rows of pictures, uint8 [r, k, H, W, C], the r names beside them."""
    count, columns, height, width, _ = rows.shape
    scale = max(1, TILE // max(height, width))
    high, wide = height * scale + 2, width * scale + 2
    sheet = Image.new('RGB', (MARGIN + columns * wide, count * high), 'white')
    pen = ImageDraw.Draw(sheet)
    for i, name in enumerate(names):
        pen.text((2, i * high + high // 2 - 6), name, 'black')
        for j in range(columns):
            pixels = np.broadcast_to(rows[i, j], [height, width, 3])
            tile = Image.fromarray(np.ascontiguousarray(pixels)).resize((width * scale, height * scale), Image.NEAREST)
            sheet.paste(tile, (MARGIN + j * wide, i * high))
    return sheet


def save_sheet(path, dataset):
    """Writes the sheet of a dataset; an existing file is replaced once the new one is whole."""
    labeled, augmented = take_labeled_rows(dataset), make_augmented_rows(dataset)
    names = [name[:15] for name in dataset.family.names[: len(labeled)]] + ['augmented'] * len(augmented)
    sheet = draw(np.concatenate([labeled, augmented]), names)
    with files.naming(path), files.replacing(path) as part:
        sheet.save(part, 'PNG')


def inspect(name=None, png=None, data_dir=None, dataset=''):
    """Prints what a dataset such as 'cifar10.3@250-5000' holds, and writes the sheet to the file `png`, if given.

    `dataset` is another way to give the name.
    """
    dataset = splits.read(data_pair.choose_name(name, dataset), data_dir)
    print('%s: pictures of %d x %d pixels, %d colors' % (dataset.name, dataset.width, dataset.height, dataset.colors))
    print_counts(dataset)
    print_pixels(dataset)
    if png:
        save_sheet(png, dataset)
        utils.say('sheet: %s' % png + ' (the first %d classes)' % MOST_CLASSES * (dataset.nclass > MOST_CLASSES))


if __name__ == '__main__':
    script.run(
        inspect, OPTIONS, 'which dataset? Such as: python scripts/inspect_dataset.py cifar10.3@250-5000 --png sheet.png'
    )
