"""Measures the program against stated references, alternately (A B A B ...): quote ratios, as machines are noisy.

python scripts/benchmark.py --dataset=cifar10.3@250-5000 --parts=step,input

    step     an update, compiled by XLA and not; with real input and with a fixed batch; against a matrix product's rate
    guess    the label guess alone, on a fixed batch, compiled and not
    input    augmented batches, against one image at a time through a Python function, and through TensorFlow
    eval     the evaluation of a report, against a bare loop over the classifier
    startup  a training command from its start to its first update; --xla with an empty persistent cache, and with one
             that an earlier start has filled (TF_XLA_FLAGS=--tf_xla_persistent_cache_directory=FOLDER)

The flags of training say what is measured. Each part runs in a process of its own, whose peak memory is that of all
that it compares.

To compare with another program, give that program the same batch, nu, network and threads, and run the two alternately,
several times, on an idle machine. Compare its medians with the labelled images a second of `step`: with those of the
fixed batch where the other program is timed on a batch in memory.
"""

from libml import quiet

if __name__ == '__main__':
    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

import copy
import dataclasses
import functools
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import tensorflow.compat.v1 as tf
from easydict import EasyDict
from tensorflow import profiler
from tqdm import tqdm

from ablation.ab_mixmatch import PARAMS, AblationMixMatch
from libml import data, data_pair, experiment, hardware, options, train, utils
from libml.options import Option, at_least

PARTS = ('step', 'guess', 'input', 'eval', 'startup')
OPTIONS = dict(
    experiment.table(AblationMixMatch),
    parts=Option(','.join(PARTS), 'What to measure, comma-separated.'),
    turns=Option(7, 'Times that each is measured, after one that does not count.', *at_least(1)),
    turn=Option(1.0, 'Seconds that one measurement lasts at least.', *at_least(0)),
    json=Option('', 'File for the figures.', path=True),
    profile=Option('', "Folder for a trace of an update each, for TensorBoard's profile page.", path=True),
)

# Rows of the matrices whose product says what the machine can do: so many that calling it costs nothing.
MATRIX = dict(cpu=2048, gpu=8192)
EVALUATED = 1536  # Images, for `eval`.
TRAIN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'ablation', 'ab_mixmatch.py')
# What a training command does first, and the line with which that is done.
STAGES = {'Python and TensorFlow': 'Reading', 'data and graph': 'Variables', 'first update': 'The first update'}


@dataclasses.dataclass
class Row:
    """A line of the table: how fast something is, or how long it takes; and its ratio to a reference, by turns."""

    what: str
    unit: str
    median: float
    min: float
    max: float
    ratio: float | None = None

    @classmethod
    def of(cls, what, unit, values, reference=None):
        ratio = None if reference is None else float(np.median(values / reference))
        return cls(what, unit, float(np.median(values)), float(np.min(values)), float(np.max(values)), ratio)


def in_turns(functions, turns, at_least):
    """Returns the seconds that a call of each function takes, {name: float [turns]}.

    Args:
        functions: {name: function without arguments}.
        turns: int, how often each is measured, one after the other.
        at_least: seconds that a measurement lasts, by as many calls as that takes.
    """
    calls, seconds = {}, {name: [] for name in functions}
    for name, function in functions.items():
        function()  # Traces, compiles, fills caches.
        begin = time.perf_counter()
        function()
        calls[name] = max(1, round(at_least / (time.perf_counter() - begin)))
    for _ in range(turns):
        for name, function in functions.items():
            begin = time.perf_counter()
            for _ in range(calls[name]):
                function()
            seconds[name].append((time.perf_counter() - begin) / calls[name])
    return {name: np.array(values) for name, values in seconds.items()}


def matrix_product(dtype):
    """Returns a function that squares matrices, one for each core, as an operation may have but one; and its GFLOP."""
    size, count = (MATRIX['gpu'], 1) if utils.get_available_gpus() else (MATRIX['cpu'], os.cpu_count())
    with tf.Graph().as_default() as graph:
        values = tf.random.stateless_uniform([count, size, size], [0, 1])
        factors = tf.get_variable('factors', initializer=tf.cast(values, dtype))
        products = [tf.matmul(factor, factor).op for factor in tf.unstack(factors)]  # Grouped, they would be pruned.
        session = tf.Session(graph=graph, config=utils.get_config())
        session.run(factors.initializer)
        return session.make_callable(products), count * 2 * size**3 / 1e9


class OnOneBatch(AblationMixMatch):
    """The same method on one batch for ever, which lies on the device."""

    def inputs(self, batch, nu):
        random, shape = np.random.RandomState(0), self.dataset.shape

        def hold(name, value):
            return tf.get_variable(name, initializer=value, trainable=False).value()

        def pixels(*shape):
            return random.uniform(-1, 1, shape).astype(np.float32)

        label = random.randint(0, self.nclass, batch).astype(np.int32)
        return hold('x', pixels(batch, *shape)), hold('y', pixels(batch, nu, *shape)), hold('label', label)


class Bench:
    """Models in sessions of their own, on one dataset."""

    def __init__(self, dataset, params, flop, precision, turns, at_least):
        self.dataset, self.params, self.flop, self.precision = dataset, params, flop, precision
        self.turns = lambda functions: in_turns(functions, turns, at_least)

    def model(self, xla, dataset=None, cls=AblationMixMatch):
        """Returns a model with its session open and its input started."""
        with tf.Graph().as_default() as graph:
            machine = hardware.Machine(xla)
            how = dict(seed=1, machine=machine, precision=self.precision)
            model = cls('', dataset or self.dataset, **how, **self.params)
            model.session = tf.Session(graph=graph, config=model.config)
            model.session.run(model.init_op)
            model.session.run(model.init_input_op)
        return model

    def step(self, profile=''):
        """The update."""
        models = dict(plain=self.model(xla=False), compiled=self.model(xla=True))
        models['fixed'] = self.model(xla=False, cls=OnOneBatch)
        product, product_gflop = matrix_product(tf.bfloat16 if self.precision == 'bfloat16' else tf.float32)
        updates = {name: m.session.make_callable([m.ops.losses, m.ops.train_op]) for name, m in models.items()}
        seconds = self.turns(dict(updates, product=product))
        if profile:
            with profiler.experimental.Profile(profile):
                updates['plain'](), updates['compiled']()
        counts = self.params['batch'], self.flop / 1e9
        images, rates = ({name: n / seconds[name] for name in updates} for n in counts)
        ceiling = product_gflop / seconds['product']
        return [
            Row.of('plain graph (--noxla): the reference', 'labelled images/s', images['plain'], images['plain']),
            Row.of('the same on a fixed batch', 'labelled images/s', images['fixed'], images['plain']),
            Row.of('compiled (--xla)', 'labelled images/s', images['compiled'], images['plain']),
            Row.of('matrix product: the ceiling', 'GFLOP/s', ceiling, ceiling),
            Row.of('plain graph', 'GFLOP/s', rates['plain'], ceiling),
            Row.of('compiled', 'GFLOP/s', rates['compiled'], ceiling),
        ]

    def guess(self):
        """The guess."""

        def guess(xla):
            model = self.model(xla, cls=OnOneBatch)
            size = {name: self.params[name] for name in ('arch', 'scales', 'filters', 'repeat')}
            with model.graph.as_default():
                classifier = functools.partial(model.classifier, **size)
                found = model.guess_label(tf.unstack(model.ops.y, axis=1), classifier, self.params['T'])
            return model.session.make_callable(found.p_target.op)

        seconds = self.turns(dict(plain=guess(False), compiled=guess(True)))
        rates = {name: self.params['batch'] / t for name, t in seconds.items()}
        return [
            Row.of('plain graph (--noxla): the reference', 'unlabelled images/s', rates['plain'], rates['plain']),
            Row.of('compiled (--xla)', 'unlabelled images/s', rates['compiled'], rates['plain']),
        ]

    def input(self):
        """The input."""
        model = self.model(xla=False)
        batch, nu = self.params['batch'], self.params['nu']
        calls = {name: self.one_by_one(augment) for name, augment in (('python', in_python), ('ops', in_tensorflow))}
        calls['program'] = model.session.make_callable([model.ops.x.op, model.ops.y.op])
        rates = {name: batch * (1 + nu) / t for name, t in self.turns(calls).items()}
        return [
            Row.of('one by one, in Python: the reference', 'augmented images/s', rates['python'], rates['python']),
            Row.of('one by one, in TensorFlow', 'augmented images/s', rates['ops'], rates['python']),
            Row.of('the program: whole batches', 'augmented images/s', rates['program'], rates['python']),
        ]

    def one_by_one(self, augment):
        """Returns a function that makes the input of an update in the slow way, every image by itself.

        Args:
            augment: function (dataset, pixels uint8 [n, H, W, C], views) -> function from an int64 [] tensor to so many
                augmentations of that image, float32 [views, H, W, C].
        """
        with tf.Graph().as_default() as graph:
            batches = []
            for name, views in (('labeled', 1), ('unlabeled', self.params['nu'])):
                images = self.dataset.sets[name]
                pixels = images.gather(np.arange(min(len(images), 5000)))
                one = tf.data.Dataset.range(len(pixels)).shuffle(8192).repeat()
                one = one.map(augment(self.dataset, pixels, views), num_parallel_calls=4)
                batches.append(tf.data.make_one_shot_iterator(one.batch(self.params['batch']).prefetch(2)).get_next())
            return tf.Session(graph=graph, config=utils.get_config()).make_callable([v.op for v in batches])

    def eval(self):
        """The evaluation."""
        shorter = copy.copy(self.dataset)
        few = slice(EVALUATED // len(train.SUBSETS))
        shorter.sets = {name: images.select(few) for name, images in shorter.sets.items()}
        model, compiled = (self.model(xla, shorter) for xla in (False, True))
        sets = [shorter.sets[name] for name in train.SUBSETS.values()]
        count = sum(map(len, sets))
        batches = [data.to_float(pixels) for pixels in data.equal_batches(sets, train.EVAL_BATCH)]
        classify = model.session.make_callable(model.ops.classify_op, [model.ops.x])
        seconds = self.turns(
            {
                'bare': lambda: [classify(batch) for batch in batches],
                'program': model.eval_stats,
                'compiled': compiled.eval_stats,
            }
        )
        rates = {name: count / t for name, t in seconds.items()}
        return [
            Row.of('the classifier in a loop: the reference', 'images/s', rates['bare'], rates['bare']),
            Row.of("a report's evaluation", 'images/s', rates['program'], rates['bare']),
            Row.of('the same compiled', 'images/s', rates['compiled'], rates['bare']),
        ]


def in_python(dataset, pixels, views):
    """See Bench.one_by_one: by NumPy in a Python function."""
    height, width, shift = dataset.height, dataset.width, dataset.family.shift
    random = np.random.RandomState(0)

    def view(image):
        image = np.pad(image, [(shift, shift), (shift, shift), (0, 0)], 'reflect')
        top, left = random.randint(0, 2 * shift + 1, 2)
        image = image[top : top + height, left : left + width]
        return image[:, ::-1] if dataset.family.mirror and random.rand() < 0.5 else image

    def augment(i):
        return data.to_float(np.stack([view(pixels[i]) for _ in range(views)]))

    return lambda i: tf.numpy_function(augment, [i], tf.float32)


def in_tensorflow(dataset, pixels, views):
    """See Bench.one_by_one: by TensorFlow's own ops."""
    shift = dataset.family.shift

    def view(image):
        image = tf.pad(data.to_float(image), [(shift, shift), (shift, shift), (0, 0)], 'REFLECT')
        image = tf.image.random_crop(image, dataset.shape)
        return tf.image.random_flip_left_right(image) if dataset.family.mirror else image

    return tf.autograph.experimental.do_not_convert(
        lambda i: tf.stack([view(tf.gather(pixels, i)) for _ in range(views)])
    )


def startup(argv, turns):
    """Starts training commands, and stops each after its first update.

    Args:
        argv: list of str, the flags of training.
        turns: int.

    Returns:
        list of Row, in seconds.
    """
    ways = {'--noxla': ['--noxla'], '--xla, empty cache': ['--xla'], '--xla, full cache': ['--xla']}
    found = {name: [] for name in ways}
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as cache:
            for name, more in ways.items():
                found[name].append(start(argv + more, cache))
    rows = []
    for name, stamps in found.items():
        totals, reference = (np.array(v)[:, -1] for v in (stamps, found['--noxla']))
        rows.append(Row.of('start to first update, ' + name, 's', totals, reference))
        for what, laps in zip(STAGES, np.diff(stamps, axis=1, prepend=0).T, strict=True):
            rows.append(Row.of('    ' + what, 's', laps))
    return rows


def start(argv, cache):
    """Starts one training command with a folder as XLA's cache; returns the seconds to the end of each of STAGES."""
    xla_flags = '%s --tf_xla_persistent_cache_directory=%s' % (os.environ.get('TF_XLA_FLAGS', ''), cache)
    environment = dict(os.environ, TF_XLA_FLAGS=xla_flags.strip())
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile('w+') as errors:
        command = [sys.executable, '-u', TRAIN, *argv, '--train_dir=' + folder]
        begin, stamps = time.perf_counter(), []
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process:
            for end in STAGES.values():
                if not any(line.startswith(end) for line in process.stdout):
                    errors.seek(0)
                    raise utils.Error('%s: %s' % (' '.join(command), errors.read().strip().rpartition('\n')[2]))
                stamps.append(time.perf_counter() - begin)
            process.kill()
        return stamps


def machine():
    """Returns what the figures were measured on."""
    name = platform.processor() or platform.machine()
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo') as file:
            found = dict(line.split(':', 1) for line in file if ':' in line)
        name = {key.strip(): value.strip() for key, value in found.items()}.get('model name', name)
    devices = [tf.config.experimental.get_device_details(d) for d in tf.config.list_physical_devices('GPU')]
    return {
        'cpu': name,
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'avx512': hardware.has_avx512(),
        'gpus': [details.get('device_name', 'unknown') for details in devices],
        'tensorflow': tf.__version__,
    }


def peak_memory():
    """Returns the largest memory that this process has held, MB; on a GPU, what TensorFlow has held there."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {'host': kib / 1024}
    for gpu in utils.get_available_gpus()[:1]:
        found['gpu'] = tf.config.experimental.get_memory_info(gpu.removeprefix('/device:'))['peak'] / 2**20
    return found


def measure(part, o, params, flop):
    """Returns the figures of one part: dict of rows and, unless it starts processes, of peak memory."""
    if part == 'startup':
        names = (*PARAMS, 'dataset', 'data_dir', 'precision', 'whiten', 'p_unlabeled')
        chosen = {name: o[name] for name in names}
        return dict(rows=startup(['--%s=%s' % item for item in chosen.items() if item[1] is not None], o.turns))
    split = data_pair.parse(o.dataset)
    dataset = data_pair.read_dataset(split, o.data_dir, whiten=o.whiten, p_unlabeled=o.p_unlabeled)
    bench = Bench(dataset, params, flop, o.precision, o.turns, o.turn)
    rows = bench.step(o.profile) if part == 'step' else getattr(bench, part)()
    return dict(rows=rows, peak_memory=peak_memory())


def print_part(part, found):
    """Prints the table of a part."""
    print('\n%-44s %10s %10s %10s  %-20s %9s' % (part, 'median', 'min', 'max', '', 'ratio'))
    for row in found['rows']:
        ratio = '' if row.ratio is None else '%9.2f' % row.ratio
        print('  %-42s %10.4g %10.4g %10.4g  %-20s %9s' % (row.what, row.median, row.min, row.max, row.unit, ratio))
    for where, peak in found.get('peak_memory', {}).items():
        print('  %-42s %10.4g %10s %10s  MB' % ('peak memory, ' + where, peak, '', ''))
    sys.stdout.flush()


def benchmark(**given):
    """Measures and prints; returns the figures, a dict. Arguments as OPTIONS."""
    o = EasyDict(options.fill(OPTIONS, given))
    parts = o.parts.split(',')
    for part in parts:
        utils.check('parts', part, part in PARTS, 'some of %s' % ', '.join(PARTS))
    family = data_pair.find_family(data_pair.find_data_dir(o.data_dir), data_pair.parse(o.dataset).name)
    params = AblationMixMatch.arguments(o, family)
    flop = AblationMixMatch.flop(family.shape, **params)
    hardware.set_operation_threads(hardware.operation_threads(flop))
    figures = dict(machine=machine(), flags=dict(params, dataset=o.dataset, precision=o.precision), parts={})
    if len(parts) == 1:
        (part,) = parts
        found = measure(part, o, params, flop)
        print_part(part, found)
        figures['parts'][part] = dict(found, rows=[dataclasses.asdict(row) for row in found['rows']])
        write(o.json, figures)
    else:
        print(', '.join('%s %s' % item for item in figures['machine'].items()), flush=True)
        for part in tqdm(parts, unit='part', leave=False):
            figures['parts'].update(in_a_process(part))
            write(o.json, figures)
    return figures


def write(path, figures):
    """Writes the file that --json asks for."""
    if path:
        utils.write_json(os.path.abspath(path), figures)


def in_a_process(part):
    """Runs one part of this benchmark in a process of its own; returns {part: figures}."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, 'figures.json')
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], '--parts=' + part, '--json=' + file])
        if done.returncode:
            sys.exit(done.returncode)
        return utils.read_json(file, default={})['parts']


if __name__ == '__main__':
    options.run(benchmark, OPTIONS, 'give flags only, such as --parts=step')
