"""What a run has learned, as a classifier of pictures. A run on a published dataset needs nothing but its folder.

    from libml import trained
    classifier = trained.load('experiments/birds.1@30-50/AblationMixMatch_T0.5_...')
    print(classifier.guess(['new/1.jpg', 'new/2.png']))

Everywhere here, `args` is what a run's args.json holds, and `data_dir` the folder of the datasets; None: $ML_DATA.
"""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow.compat.v1 as tf

from libml import data, data_pair, files, networks, utils
from libml.cli.options import Option
from libml.intake import pictures
from libml.running import hardware, runs

WEIGHTS = ('averaged', 'raw')
OPTIONS = dict(  # Of the scripts that take a run.
    ckpt=Option('', 'Checkpoint to take. Default: the newest whole one of the run.', path=True),
    weights=Option('averaged', 'Weights to take: their moving average, or the raw ones.', choices=WEIGHTS),
    **data_pair.OPTIONS,
)
SIZES = ('nclass', 'scales', 'filters', 'repeat')  # Of a network.
MEMORY = 1 << 28  # Bytes of layers that a batch may take.
BATCH = 256  # Pictures classified at a time, at most.


# --- What a run holds ---


def read_args(folder):
    """Returns the args of a run; raises utils.Error where args.json is missing or damaged."""
    run = runs.Run(folder)
    utils.refuse(not os.path.isfile(run.args_file), '%s is no run: there is no file %s', folder, run.args_file)
    missing = [name for name in ('dataset', 'arch', *SIZES) if name not in run.args]
    utils.refuse(missing, '%s is damaged: it does not say %s', run.args_file, ', '.join(missing))
    utils.require('%s: arch' % run.args_file, run.args['arch'], run.args['arch'] in networks.MODELS, networks.MODELS)
    return run.args


def find_family(args, data_dir=None):
    """Returns the family.Family of a run's dataset; its classes are those that the run knew.

    Raises:
        utils.Error: the dataset's description is gone, or it is of another number of classes.
    """
    name = data_pair.parse(args['dataset']).name
    family = data_pair.FAMILIES.get(name) or data_pair.look_up_family(data_pair.find_data_dir(data_dir), name)
    text = 'the description of the dataset %s is gone: %s.json is needed to treat pictures as the run did'
    utils.refuse(not family, text, name, name)
    if (args['nclass'], tuple(args.get('classes') or family.names)) != (family.nclass, family.names):
        text = 'the dataset %s has other classes now (%d) than the run learned: another dataset has taken its name'
        raise utils.Error(text % (name, family.nclass))
    before, now = args.get('pictures', family.treatment), family.treatment
    text = 'the dataset %s has pictures of another size or range now: another dataset has taken its name'
    utils.refuse(any(before.get(key) != now[key] for key in ('shape', 'range')), text, name)
    return family


def read_dataset(folder, args, data_dir=None, whiten=False, needs_unlabeled=False):
    """Returns the data.DataSet of a run; raises utils.Error if it is gone or is another one now."""
    split, p_unlabeled = data_pair.parse(args['dataset']), args.get('p_unlabeled', '')
    dataset = data_pair.read_dataset(split, data_dir, whiten, p_unlabeled, needs_unlabeled)
    dataset.check_identity(args, folder)
    return dataset


def find_normalisation(folder, args, colors, data_dir=None):
    """Returns the mean and the deviation by which a run's network normalises images, float32 [colors] or numbers.

    Older runs need their dataset for it, see read_dataset. Raises utils.Error where args.json says them wrongly.
    """
    if not args.get('whiten'):
        return 0, 1
    if 'mean' in args:
        found = [np.array(args.get(name), np.float32) for name in ('mean', 'std')]
        text = '%s is damaged: mean and std must be lists of %d numbers, one for each color'
        utils.refuse(any(value.shape != (colors,) for value in found), text, runs.Run(folder).args_file, colors)
        return found
    dataset = read_dataset(folder, args, data_dir)
    return data.compute_mean_std(dataset.sets['labeled'], dataset.sets['unlabeled'])


def read_weights(held, description, weights='averaged'):
    """Returns the values of a network's variables in a checkpoint, {name in scope `classify`: array}.

    Batch norm's moving averages are the same for raw and averaged weights. held is a checkpoints.Held, description a
    networks.Description. Raises utils.Error if the checkpoint is another network's, or a weight is not finite.
    """
    sources, needed = {}, {}
    for variable in description.variables:
        name = 'classify/' + variable['name']
        sources[name] = name + utils.AVERAGE if weights == 'averaged' and variable['trainable'] else name
        needed[sources[name]] = 'float32 %s' % tf.TensorShape(variable['shape'])
    values = held.read(needed)
    finite = all(np.isfinite(value).all() for value in values.values())
    utils.refuse(not finite, '%s holds weights that are no numbers: take another checkpoint', held.ckpt)
    return {name: values[source] for name, source in sources.items()}


# --- The classifier ---


def load(path: str, ckpt: str = '', weights: str = 'averaged', data_dir: str | None = None) -> 'Classifier':
    """Returns the Classifier that a run has learned.

    Args:
        path: the run's folder, one of its checkpoints, or a folder that holds one run alone.
        ckpt: checkpoint to take. '': `path` itself, or, if that is a folder, its newest whole checkpoint.
        weights: one of WEIGHTS.
        data_dir: a run on a published dataset needs none.

    Raises:
        utils.Error: there is no whole checkpoint, no args.json or no description of the dataset, or they do not fit.
    """
    utils.require('weights', weights, weights in WEIGHTS, 'one of %s' % ', '.join(WEIGHTS))
    folder = runs.find_folder(path)
    with runs.resolve(ckpt or path, folder) as held:
        args = read_args(folder)
        family = find_family(args, data_dir)
        normalisation = find_normalisation(folder, args, family.colors, data_dir)
        return Classifier(folder, args, family, held, weights, normalisation)


class Classifier:
    """A trained network that classifies pictures in float32, whatever the precision of the training.

    It has a graph and a session of its own, and works with eager execution too.

    Attributes:
        folder, args: the run's.
        family: family.Family of the dataset: how pictures are treated.
        classes: names, in the order of the columns of probabilities.
        ckpt: path prefix of the checkpoint; weights: one of WEIGHTS.
        batch: int, pictures classified at a time.
        graph: tf.Graph, which holds the weights as constants; session: its tf.Session.
        images, probabilities, class_names: its tensors, uint8 [None, H, W, C], float32 [None, nclass], string [nclass].
    """

    def __init__(self, folder, args, family, held, weights, normalisation):
        """Takes the weights from a checkpoint, checkpoints.Held; normalisation: see find_normalisation."""
        self.folder, self.args, self.family, self.ckpt, self.weights = folder, args, family, held.ckpt, weights
        self.classes = family.names
        sizes = [args[name] for name in SIZES]
        description = networks.describe(args['arch'], family.shape, *sizes)
        values = read_weights(held, description, weights)
        self.batch = max(1, min(BATCH, MEMORY // (4 * 4 * description.largest)))  # Four layers of 4-byte numbers fit.
        with tf.Graph().as_default() as self.graph:
            self.images = tf.placeholder(tf.uint8, [None, *family.shape], 'images')
            # A check in the graph, for those whom it is exported to.
            sized = tf.ensure_shape(self.images, [None, *family.shape])
            found = build_logits(sized, args['arch'], sizes, values, normalisation)
            self.probabilities = tf.nn.softmax(found, name='probabilities')
            self.class_names = tf.constant(self.classes, name='classes')  # For `export`.
            self.session = tf.Session(config=utils.get_config())
        self._run = self.session.make_callable(self.probabilities, [self.images])

    def classify(self, images: np.ndarray) -> np.ndarray:
        """Returns the probabilities of the classes, float32 [n, nclass], of pictures of the network's size.

        Args:
            images: uint8 [n, H, W, C]; others raise ValueError.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.family.shape:
            text = 'needs uint8 [n, %d, %d, %d], got %s %s'
            raise ValueError(text % (*self.family.shape, images.dtype, images.shape))
        with hardware.switching(tf32=False):  # `export` must give the same numbers everywhere.
            found = [self._run(images[start : start + self.batch]) for start in range(0, len(images), self.batch)]
        return np.concatenate([np.zeros([0, len(self.classes)], np.float32), *found])

    def classify_files(self, paths: Iterable[str]) -> Iterator[tuple[str, np.ndarray | ValueError]]:
        """Classifies picture files of any format and size, treated as the dataset's pictures were.

        While the network works on a batch, the pictures of the next one are read, on all cores.

        Args:
            paths: iterable of paths, or one path.

        Yields:
            For each path, in order: (path, float32 [nclass]), or (path, ValueError) where the file cannot be read.
        """
        paths = [paths] if isinstance(paths, (str, os.PathLike)) else paths
        deep = 'has values from %.9g to %.9g, but the run learned from pictures of 8 bits: convert it to 8 bits'
        family = self.family
        paths, again = itertools.tee(paths)
        images = pictures.convert_all(paths, family.shape[:2], family.colors, family.range, ahead=self.batch)
        items = zip(again, images, strict=True)
        while batch := list(itertools.islice(items, self.batch)):
            readable = [image for _, image in batch if not isinstance(image, ValueError)]
            rows = iter(self.classify(np.stack(readable)) if readable else [])
            for path, image in batch:
                if isinstance(image, pictures.TooDeep):  # Nobody can give --range here.
                    image = ValueError(deep % (image.low, image.high))
                yield path, image if isinstance(image, ValueError) else next(rows)

    def guess(self, paths: Iterable[str]) -> list[tuple[str, float]]:
        """Returns the (class, confidence) of each of some picture files; raises ValueError where one cannot be read."""
        found = []
        for path, probabilities in self.classify_files(paths):
            if isinstance(probabilities, ValueError):
                raise ValueError('%s: %s' % (path, probabilities))
            found.append((self.classes[probabilities.argmax()], float(probabilities.max())))
        return found


def build_logits(images, arch, sizes, values, normalisation):
    """Builds a network whose weights are constants; returns its logits, float32 [None, nclass].

    Args:
        images: uint8 [None, H, W, C].
        arch: one of networks.MODELS.
        sizes: values of SIZES.
        values: {name: array} of the variables.
        normalisation: mean and deviation that images on the scale from -1 to 1 are normalised by.
    """
    mean, deviation = normalisation
    size = dict(zip(SIZES, sizes, strict=True))
    return networks.build(
        arch,
        data.to_float(images),
        noise=tf.zeros([1, size['scales'] * size['repeat'], 2]),
        getter=lambda getter, name, **_: tf.constant(values[name]),
        whiten=lambda x: (x - mean) / deviation,
        **size,
    )


@contextlib.contextmanager
def creating_result(*paths):
    """As files.creating; raises utils.Error if one of the paths is empty, exists already or cannot be written."""
    utils.require('OUT', paths[0], all(paths), 'a path')
    try:
        with files.creating(*paths) as parts:
            yield parts
    except (OSError, tf.errors.OpError) as error:
        if getattr(error, 'filename', None) and not str(error.filename).startswith(tuple(map(os.path.abspath, paths))):
            raise  # It is about what was read.
        raise utils.Error('cannot write %s (%s)' % (' and '.join(paths), utils.explain(error))) from error
