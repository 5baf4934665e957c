"""The user's own pictures: folders of files of any common format, made into a dataset. Imports libml's data side only.

PICTURES/train/<class>/*    PICTURES/test/<class>/* (or a fraction of train)    PICTURES/unlabeled/** (optional)
"""

import contextlib
import os
import re
import sys
import warnings

import numpy as np
from PIL import Image, ImageOps

from libml import data, data_pair, records, utils

EXTENSIONS = ('.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
MAX_PIXELS = 1 << 26  # Of a file before it is resized: 8192 x 8192. More is taken for a decompression bomb.
BATCH = 256


# --- One picture ---


def convert(path, size, colors):
    """Reads a picture, crops its centre to the aspect wanted and resizes it with antialiasing.

    Args:
        path: a file of any format that Pillow reads; of an animation, the first frame.
        size: (height, width).
        colors: 1 (grey) or 3 (RGB). Transparent parts become white.

    Returns:
        uint8 [height, width, colors].

    Raises:
        ValueError: it cannot be read; the text says why.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Of odd metadata; what matters is raised, or checked here.
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError('claims %d x %d pixels, too many to read' % image.size)
                image = _opaque(ImageOps.exif_transpose(image)).convert({1: 'L', 3: 'RGB'}[colors])
        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)
    except ValueError:
        raise
    except Exception as error:  # Pillow's readers raise whatever the damage makes them stumble over.
        raise ValueError(str(error) or type(error).__name__) from error
    return np.asarray(image, np.uint8).reshape(*size, colors)


def _opaque(image):
    """Brings 16-bit grey to 8 bits and puts transparent pictures on white."""
    if image.mode.startswith('I'):
        return Image.fromarray((np.asarray(image, np.uint32).clip(0, 65535) >> 8).astype(np.uint8))
    if 'A' in image.getbands() or 'transparency' in image.info:
        image = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image


# --- Folders ---


def listed(folder):
    """Returns the paths of the pictures under a folder at any depth, sorted; hidden files and others are not."""
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith('.')]
        found += [os.path.join(here, name) for name in names if _is_picture(name)]
    return sorted(found)


def _is_picture(name):
    return name.lower().endswith(EXTENSIONS) and not name.startswith('.')


def classes_of(folder):
    """Returns the names of the classes, the folders in `folder`, sorted.

    Raises:
        utils.Error: there is no such folder, or fewer than two classes.
    """
    if not os.path.isdir(folder):
        raise utils.Error('%s is missing: pictures go to PICTURES/train/<class>/' % folder)
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith('.'))
    if len(found) < 2:
        raise utils.Error('%s holds %d classes (folders); at least 2 are needed' % (folder, len(found)))
    return found


def labeled_files(folder, classes):
    """Returns the (path, label) of all pictures in `folder`/<class>.

    Raises:
        utils.Error: a class is unknown, or has no picture.
    """
    unknown = sorted(set(classes_of(folder)) - set(classes))
    if unknown:
        raise utils.Error('%s has the class %r, which the training pictures lack' % (folder, unknown[0]))
    found = []
    for label, name in enumerate(classes):
        paths = listed(os.path.join(folder, name))
        if not paths:
            raise utils.Error('%s has no picture of class %r (%s)' % (folder, name, ' '.join(EXTENSIONS)))
        found += [(path, label) for path in paths]
    return found


def set_aside(files, fraction, seed):
    """Splits (path, label) pairs in two, the second with `fraction` of each class (at least one), chosen by seed.

    Raises:
        utils.Error: a class has too few pictures, or fraction is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise utils.Error('test_fraction=%g: must be between 0 and 1' % fraction)
    random = np.random.RandomState(seed)
    labels = np.array([label for _, label in files])
    aside = set()
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        count = max(1, round(fraction * len(members)))
        if count >= len(members):
            path = os.path.dirname(files[members[0]][0])
            raise utils.Error('%s has %d pictures: too few to set %g aside' % (path, len(members), fraction))
        aside.update(members[:count].tolist())
    rest = [file for i, file in enumerate(files) if i not in aside]
    return rest, [files[i] for i in sorted(aside)]


# --- The dataset ---


def parse_size(text):
    """Returns (height, width) of a text such as '48x32', which names the width first."""
    match = re.fullmatch(r'([0-9]{1,4})x([0-9]{1,4})', text)
    if not match or not all(1 <= int(side) <= records.MAX_SIDE for side in match.groups()):
        raise utils.Error('size=%s: give WIDTHxHEIGHT, such as 32x32, at most %d a side' % (text, records.MAX_SIDE))
    return int(match[2]), int(match[1])


def parse_augment(text, size):
    """Returns (mirror, shift) of a text such as 'mirror,shift4' or '', checked against size = (height, width)."""
    match = re.fullmatch(r'(mirror)?,?(?:shift([0-9]{1,4}))?', text)
    if not match:
        raise utils.Error("augment=%s: give mirror, shift<pixels>, both as in 'mirror,shift4', or ''" % text)
    mirror, shift = bool(match[1]), int(match[2] or 0)
    data.check_shift(shift, *size)
    return mirror, shift


def make(folder, name, data_dir, size, colors, augment, test_fraction=None, seed=0, skip_bad=False):
    """Writes the records of a folder of pictures and `<name>.json`, which makes the name a dataset.

    Args:
        folder: PICTURES, see the module.
        name: of the dataset.
        data_dir: where the records go.
        size: (height, width) of the pictures; colors: 1 or 3.
        augment: (mirror, shift), see data.augment.
        test_fraction: share of each class set aside for testing; to be given if there is no folder `test`, only then.
        seed: of the order of the records and of what is set aside.
        skip_bad: leave unreadable pictures out rather than fail.

    Raises:
        utils.Error: the folder is not laid out so; a picture cannot be read (each is listed on stderr); the dataset
            exists. Then nothing is written.
    """
    if name in data_pair.FAMILIES or not re.fullmatch(data_pair.NAME, name):
        raise utils.Error('name %r: letters, digits, - and _, not one of %s' % (name, ', '.join(data_pair.FAMILIES)))
    classes = classes_of(os.path.join(folder, 'train'))
    parts = _parts(folder, classes, test_fraction, seed)
    kept = tuple(part for part in ('train', 'unlabeled') if part in parts)
    family = data_pair.Family(*size, colors, len(classes), *augment, parts=kept, classes=tuple(classes))
    bad, counts = [], {}
    with contextlib.ExitStack() as stack:  # All are named in the end, if nothing failed; the description last.
        description = stack.enter_context(records.aside(data_pair.family_file(data_dir, name)))
        for part, files in parts.items():
            path = data_pair.record_file(data_dir, name, part)
            examples = _examples(files, size, colors, bad)
            counts[path] = records.write_part(
                stack.enter_context(records.aside(path)), examples, len(files), os.path.basename(path)
            )
        _check_bad(bad, skip_bad, parts, classes)
        data_pair.write_family(description, family)
    for path, count in counts.items():
        print('%s: %d pictures' % (path, count))


def _check_bad(bad, skip_bad, parts, classes):
    """Lists the unreadable pictures on stderr, and raises utils.Error unless they may be, and can be, left out."""
    for path, reason in bad:
        print('%s: %s' % (path, ' '.join(str(reason).split())), file=sys.stderr)
    if bad and not skip_bad:
        raise utils.Error('%d pictures cannot be read, see above: mend or remove them, or give --skip_bad' % len(bad))
    unreadable = {path for path, _ in bad}
    for part, files in parts.items():
        lost = {label for _, label in files} - {label for path, label in files if path not in unreadable}
        for label in sorted(lost):
            what = 'of class %r ' % classes[label] if label >= 0 else ''
            raise utils.Error('no picture %sin %s can be read' % (what, part))


def _parts(folder, classes, test_fraction, seed):
    """Returns {part: [(path, label)]}; training pictures are shuffled, as their names often follow bursts."""
    train, test = labeled_files(os.path.join(folder, 'train'), classes), os.path.join(folder, 'test')
    if os.path.isdir(test):
        if test_fraction is not None:
            raise utils.Error('%s exists: leave --test_fraction out' % test)
        test = labeled_files(test, classes)
    elif test_fraction is None:
        raise utils.Error('%s is missing: give --test_fraction=.2, say, to set pictures of train aside' % test)
    else:
        train, test = set_aside(train, test_fraction, seed)
    parts = {'train': [train[i] for i in np.random.RandomState(seed).permutation(len(train))], 'test': test}
    unlabeled = os.path.join(folder, 'unlabeled')
    if files := [(path, records.NO_CLASS) for path in listed(unlabeled)]:
        parts['unlabeled'] = [files[i] for i in np.random.RandomState(seed).permutation(len(files))]
    return parts


def _examples(files, size, colors, bad):
    """Yields the serialized examples of (path, label) pairs; appends (path, reason) to `bad` for unreadable ones."""
    for start in range(0, len(files), BATCH):
        images, labels = [], []
        for path, label in files[start : start + BATCH]:
            try:
                images.append(convert(path, size, colors))
                labels.append(label)
            except ValueError as error:
                bad.append((path, error))
        yield from map(records.serialize, records.encode(np.stack(images)) if images else [], labels)
