"""Images in memory or on disk, the endless streams drawn from them, and their augmentation.

A stream's images are a pure function of seed, stream number and position: a run that continues at a position sees
exactly what it would have seen had it never stopped. Images stay uint8 on their way to the device, and whole batches
are gathered.
"""

import functools
import itertools
import math
import sys
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow.compat.v1 as tf

from libml import records, utils
from libml.family import Family, check_shift

SETS = ('labeled', 'unlabeled', 'valid', 'test')  # The names of the four sets of images, everywhere.
TRAINING = dict(labeled=0, unlabeled=1)  # The sets that are streamed, and the numbers of their streams.
MEMORY = 2 << 30  # Bytes of pixels of one record file that are held in memory; larger files are read as they are used.
# A call of Python takes as long as a small update, so it draws many batches at once: at most CHUNK, and CHUNK_BYTES
# bytes.
CHUNK, CHUNK_BYTES = 64, 4 << 20
VIEW_BATCH = 256  # Batch size inside `train_labeled` and the other views of DataSet.


class Images:
    """Pictures and their classes, held in memory once.

    Attributes:
        labels: int32 [n]; records.NO_CLASS if a picture has no class.
        groups: int64 [n]; records.NO_GROUP if a picture belongs to no group.
        shape: (H, W, C).
    """

    def __init__(self, images: np.ndarray, labels: Sequence[int], groups: np.ndarray | None = None):
        """Takes images uint8 [n, H, W, C], labels [n] and groups [n] (None: no groups), without copying the images."""
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise ValueError('needs uint8 [n, H, W, C] and n labels, got %s %s' % (images.dtype, images.shape))
        self._images = images
        self.labels = np.asarray(labels, np.int32)
        self.groups = np.full(len(labels), records.NO_GROUP) if groups is None else groups
        self.shape = images.shape[1:]

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """Returns the images at `indices` (int [k]), uint8 [k, H, W, C]."""
        return self._images[indices]

    def select(self, indices: np.ndarray | slice) -> 'Images':
        """Returns the Images at `indices`; a slice shares the memory."""
        return Images(self._images[indices], self.labels[indices], self.groups[indices])

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (images uint8 [k, H, W, C], labels int32 [k]) once through, in order; the last k may be below size."""
        for start in range(0, len(self), size):
            indices = np.arange(start, min(start + size, len(self)))
            yield self.gather(indices), self.labels[indices]


class StreamedImages(Images):
    """Images that stay on disk, for files too large to hold: decoded whenever they are asked for."""

    def __init__(self, file, shape, labels, groups, numbers=None):
        """Takes a records.RecordFile, what its `check` returned, and the numbers of records, int [n]; None: all."""
        self._file = file
        self._numbers = np.arange(len(file)) if numbers is None else numbers
        self.shape, self.labels, self.groups = shape, labels, groups

    def gather(self, indices):
        return self._file.gather(self._numbers[indices], self.shape)

    def select(self, indices):
        chosen = self.labels[indices], self.groups[indices], self._numbers[indices]
        return StreamedImages(self._file, self.shape, *chosen)


def load(file, nclass, shape, unlabeled=False, limit=MEMORY):
    """Reads the Images of a records.RecordFile.

    Args:
        limit: int. If the pixels take more bytes, they stay on disk. The rest, and errors: see RecordFile.read.
    """
    if len(file) * int(np.prod(shape)) > limit:
        return StreamedImages(file, *file.check(nclass, shape, unlabeled, pixels=True))
    return Images(*file.read(nclass, shape, unlabeled))


# --- Streams ---


def draw_order(start, count, n, seed, stream):
    """Returns the images at `count` positions from `start` on of an endless shuffled stream, int32 [count] below n.

    Position p, from 0, lies in epoch p // n, and each epoch is a permutation of its own; a batch may straddle epochs.
    Other values of seed and stream, ints from 0 to 2**32 - 1, give other orders.
    """
    epoch, skipped = divmod(int(start), n)
    epochs = range(epoch, (start + count - 1) // n + 1)
    return np.concatenate([_permute(n, seed, stream, e) for e in epochs])[skipped : skipped + count]


@functools.lru_cache(maxsize=16)  # Enough for a chunk of both streams, unless a set has very few images.
def _permute(n, seed, stream, epoch):
    # The legacy generator gives the same order in every version of NumPy. To make a generator takes ten times as long
    # as to seed one, which counts if an epoch has few images. So each thread keeps its generator.
    if not hasattr(_thread, 'random'):
        _thread.random = np.random.RandomState()
    _thread.random.seed([seed, stream, epoch])
    return _thread.random.permutation(n).astype(np.int32)


_thread = threading.local()


def make_stream(images, batch, seed, stream_id, start=0, part=(0, 1)):
    """Returns the endless tf.data.Dataset of the shuffled batches of some Images.

    Args:
        images: Images.
        batch: int.
        seed, stream_id: see `draw_order`.
        start: position of the first image: an int, or a scalar int64 tensor that is read when the iterator is
            initialised, so that one graph can continue anywhere.
        part: (r, n): n devices share whole batches of n * batch images. The result has part r, from 0, of each.

    Returns:
        Dataset of dict(image uint8 [batch, H, W, C], label int32 [batch]).

    Raises:
        utils.Error: there are no images.
    """
    if not len(images):
        raise utils.Error(
            'no unlabelled images are left to train on: choose fewer validation images, a split with fewer labels, '
            'other --p_unlabeled, or train MixMatch with --w_match=0, which needs none'
        )

    r, n = part
    whole = n * batch
    size = whole * max(1, min(CHUNK, CHUNK_BYTES // (whole * int(np.prod(images.shape)))))

    def draw(position):
        indices = draw_order(position, size, len(images), seed, stream_id).reshape(-1, n, batch)[:, r].ravel()
        pixels, labels = images.gather(indices), images.labels[indices]
        return pixels.reshape(-1, batch, *images.shape), labels.reshape(-1, batch)

    # Ends `size` early, so that position + size does not overflow.
    chunks = tf.data.Dataset.range(start, sys.maxsize - size, size)
    return _call_for_each(chunks, draw, [size // whole, batch], images.shape).prefetch(1).unbatch()


def make_view(images, batch):
    """Returns the finite Dataset, in order, of dict(image uint8 [k, H, W, C], label int32 [k]), k <= batch."""

    def draw(start):
        indices = np.arange(start, min(start + batch, len(images)))
        return images.gather(indices), images.labels[indices]

    return _call_for_each(tf.data.Dataset.range(0, len(images), batch), draw, [None], images.shape).prefetch(2)


def iterate_equal_batches(sets, limit):
    """Yields the pictures of several Images of one shape, one set after another, in batches of one size up to `limit`.

    XLA compiles the network again for each size. A batch is uint8 [size, H, W, C]; the last one is filled up with its
    last picture.
    """
    borders = np.cumsum([0] + [len(images) for images in sets])
    total = borders[-1]
    size = math.ceil(total / max(1, math.ceil(total / limit)))
    for start in range(0, total, size or 1):
        numbers = np.minimum(np.arange(start, start + size), total - 1)
        parts = zip(sets, itertools.pairwise(borders), strict=True)
        yield np.concatenate(
            [images.gather(numbers[(begin <= numbers) & (numbers < end)] - begin) for images, (begin, end) in parts]
        )


def _call_for_each(positions, draw, count, shape):
    """Calls draw(position) for each position; returns a Dataset of dict(image [*count, *shape], label [*count])."""

    @tf.autograph.experimental.do_not_convert
    def call(position):
        image, label = tf.numpy_function(draw, [position], [tf.uint8, tf.int32])
        return {'image': tf.ensure_shape(image, [*count, *shape]), 'label': tf.ensure_shape(label, count)}

    options = tf.data.Options()
    options.autotune.enabled = False  # Nothing here is tuned, and a session would wait for the tuner when it is closed.
    return positions.map(call).with_options(options)


# --- Augmentation ---


def to_float(images):
    """Scales uint8 pixels (array or tensor) to float32 in [-1, 1]: v * 2 / 255 - 1."""
    if isinstance(images, np.ndarray):
        return images.astype(np.float32) * np.float32(2 / 255) - np.float32(1)
    return tf.cast(images, tf.float32) * (2 / 255) - 1


def augment(images, seed, mirror, shift):
    """Mirrors each image with probability 1/2, then moves it by up to `shift` pixels, and scales it to [-1, 1].

    To move is to crop at random after `shift` pixels of reflection padding (the border pixel is not repeated). Rows and
    columns are gathered from where the padding would have taken them, for the whole batch at once.

    Args:
        images: tensor [n, H, W, C], uint8 or float32, of pixels from 0 to 255; H, W, C static.
        seed: int tensor [2]; the outcome is a pure function of it, of n and of the images.
        mirror: bool.
        shift: int, 0 <= shift < min(H, W).

    Returns:
        float32 [n, H, W, C].

    Raises:
        utils.Error: shift is not of that range.
    """
    _, height, width, _ = images.shape.as_list()
    check_shift(shift, height, width)
    if shift or mirror:
        draws = tf.random.stateless_uniform([tf.shape(images)[0], 3], seed)
        moves = tf.cast(draws * (2 * shift + 1), tf.int32)  # Where the crop begins in the padded image.
        rows, columns = (_find_sources(moves[:, i : i + 1], size, shift) for i, size in enumerate((height, width)))
        if mirror:
            columns = tf.where_v2(draws[:, 2:] < 0.5, width - 1 - columns, columns)
        images = tf.gather(images, rows, axis=1, batch_dims=1)
        images = tf.gather(images, columns, axis=2, batch_dims=1)
    return to_float(images)


def _find_sources(moves, size, shift):
    """Returns where the pixels of a padded line's crops come from: int32 moves [n, 1] -> int32 [n, size]."""
    padded = np.pad(np.arange(size, dtype=np.int32), shift, 'reflect')
    return tf.gather(padded, moves + np.arange(size, dtype=np.int32))


# --- Datasets ---


def compute_mean_std(*sets):
    """Returns the mean and standard deviation of each color over some Images, on the [-1, 1] scale: float32 [C] twice.

    A color that never changes gets the standard deviation 1, as images are divided by it.
    """
    colors = sets[0].shape[-1]
    counts = np.zeros([colors, 256])
    for images in sets:
        for batch, _ in images.batches(4096):
            counts += [np.bincount(batch[..., c].ravel(), minlength=256) for c in range(colors)]
    values = to_float(np.arange(256, dtype=np.uint8)).astype(np.float64)
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ values
    std = np.sqrt(np.maximum(share @ values**2 - mean**2, 0))
    return mean.astype(np.float32), np.where(std > 1e-6, std, 1).astype(np.float32)


def parse_weights(text, nclass):
    """Returns float [nclass] weights of a text such as '1,.5,.5', the largest 1; raises utils.Error if it is none."""
    try:
        weights = np.array([float(x) for x in text.split(',')])
    except ValueError:
        weights = np.array([])
    if len(weights) != nclass or not np.all(np.isfinite(weights)) or weights.min() < 0 or not weights.max() > 0:
        raise utils.Error(
            'p_unlabeled=%s: give %d comma-separated weights, none negative, some above 0' % (text, nclass)
        )
    return weights / weights.max()


def thin(images, weights):
    """Returns Images where class c keeps the share weights[c] (always the same); raises utils.Error without classes."""
    text = 'p_unlabeled needs the class of every unlabelled image, and some here have none'
    utils.refuse(len(images) and images.labels.min() < 0, text)
    keep = np.zeros(len(images), bool)
    for label, weight in enumerate(weights):
        members = np.flatnonzero(images.labels == label)
        keep[np.random.RandomState(label).permutation(members)[: round(weight * len(members))]] = True
    return images.select(np.flatnonzero(keep))


def other_data_error(run, name, parts):
    """Returns the utils.Error of a run that began with other data than its dataset holds now."""
    text = '%s was trained on other data than %s holds now (%s): give this data another --train_dir'
    return utils.Error(text % (run, name, parts))


class DataSet:
    """The four sets of images of a semi-supervised experiment.

    Attributes:
        name: such as 'cifar10.3@250-5000'.
        family: Family.
        sets: dict from each of SETS to its Images. Those of `unlabeled` and `valid` may have no class.
        shape: (H, W, C). height, width, colors, nclass: ints.
        mean, std: float32 [C] of the training images on the [-1, 1] scale if `whiten`, otherwise zeros and ones.
        whiten, p_unlabeled: how the images are normalised and were chosen, for the record.
        fingerprints: dict(label, unlabel, test) of the fingerprints of the record files, see records.RecordFile; None
            if the images come from no files.
        seed, nu: ints, of train_labeled and train_unlabeled; see below.

    The properties train_labeled, train_unlabeled, eval_labeled, eval_unlabeled, valid and test are tf.data datasets of
    dict(image float32 [H, W, C] in [-1, 1], label int64 []), made in the current graph when they are asked for. The two
    train_* are endless, shuffled and augmented; the others run once through. train_unlabeled has nu augmentations of
    each image: image [nu, H, W, C], label [nu].
    """

    seed, nu = 0, 2

    def __init__(
        self,
        name: str,
        family: Family,
        sets: dict[str, Images],
        whiten: bool = False,
        p_unlabeled: str = '',
        fingerprints: dict[str, str] | None = None,
    ):
        """Takes the attributes of the same names."""
        self.name, self.family, self.sets = name, family, sets
        self.shape = self.height, self.width, self.colors = family.shape
        self.nclass = family.nclass
        self.whiten, self.p_unlabeled, self.fingerprints = whiten, p_unlabeled, fingerprints
        self.mean, self.std = np.zeros(self.colors, np.float32), np.ones(self.colors, np.float32)
        if whiten:
            self.mean, self.std = compute_mean_std(sets['labeled'], sets['unlabeled'])

    def identity(self) -> dict:
        """Returns what args.json keeps of the data: fingerprints, classes, and how pictures are treated."""
        found = dict(data=self.fingerprints, classes=list(self.family.classes), pictures=self.family.treatment)
        if self.whiten:
            found.update(mean=self.mean.tolist(), std=self.std.tolist())
        return found

    def check_identity(self, args: dict, run: str) -> None:
        """Raises utils.Error if a run began with other data; args: its args.json. Older runs do not say so."""
        before = args.get('data') or {}
        changed = [part for part, value in before.items() if value != (self.fingerprints or before)[part]]
        if args.get('pictures', self.family.treatment) != self.family.treatment:
            changed.append('size, range or augmentation of the pictures')
        if changed and args.get('dataset', self.name) != self.name:
            raise utils.Error('%s was trained on other data: give --dataset=%s' % (run, args['dataset']))
        if changed:
            raise other_data_error(run, self.name, ', '.join(changed))
        if (args.get('classes') or list(self.family.classes)) != list(self.family.classes):
            text = '%s was trained on classes of other names (%s) than %s has now: give this data another --train_dir'
            raise utils.Error(text % (run, utils.escape(', '.join(map(str, args['classes']))), self.name))

    def stream(self, name: str, batch: int, seed: int, start=0, part: tuple[int, int] = (0, 1)) -> tf.data.Dataset:
        """Returns the endless shuffled batches of the training images `labeled` or `unlabeled`, see `make_stream`."""
        return make_stream(self.sets[name], batch, seed, TRAINING[name], start, part)

    def augment(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Augments [n, H, W, C] as this dataset's training images are, see `augment` above."""
        return augment(images, seed, self.family.mirror, self.family.shift)

    to_float = staticmethod(to_float)
    iterate_equal_batches = staticmethod(iterate_equal_batches)

    def _view(self, name, endless=False, views=()):
        images = self.sets[name]
        size = min(VIEW_BATCH, max(1, len(images)))
        batches = self.stream(name, size, self.seed) if endless else make_view(images, size)

        @tf.autograph.experimental.do_not_convert
        def convert(number, batch):
            image, label = (tf.repeat(batch[key], views[0] if views else 1, axis=0) for key in ('image', 'label'))
            key = tf.stack([self.seed * 2 + TRAINING.get(name, 0), number])
            image = self.augment(image, key) if endless else to_float(image)
            label = tf.reshape(tf.cast(label, tf.int64), [-1, *views])
            return {'image': tf.reshape(image, [-1, *views, *self.shape]), 'label': label}

        return batches.enumerate().map(convert).unbatch()

    train_labeled = property(lambda self: self._view('labeled', endless=True))
    train_unlabeled = property(lambda self: self._view('unlabeled', endless=True, views=[self.nu]))
    eval_labeled = property(lambda self: self._view('labeled'))
    eval_unlabeled = property(lambda self: self._view('unlabeled'))
    valid = property(lambda self: self._view('valid'))
    test = property(lambda self: self._view('test'))
