"""Measures the program against stated references, alternately (A B A B ...): quote ratios, as machines are noisy.

python scripts/benchmark.py --dataset=cifar10.3@250-5000 --parts=step,input

    step     an update, compiled by XLA and not; with real input and with a fixed batch; against a matrix product's rate
    guess    the label guess alone, on a fixed batch, compiled and not
    input    augmented batches, against one image at a time through a Python function
    eval     the evaluation of a report, against a bare loop over the classifier
    startup  a training command from its start to its first update; --xla with an empty persistent cache, and with one
             that an earlier start has filled (TF_XLA_FLAGS=--tf_xla_persistent_cache_directory=FOLDER)

The flags of training choose the network and the batch. Each part runs in its own process. The peak memory is that of
this process, so of all variants together.

To compare with another program, give that program the same batch, nu, network and threads, and run the two alternately,
several times, on an idle machine. Compare its medians with the labelled images a second of `step`: with those of the
fixed batch where the other program is timed on a batch in memory.
"""

import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # The libml beside this file.
    from libml.cli import quiet

    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

import contextlib
import copy
import functools
import platform
import resource
import subprocess
import tempfile
import time

import numpy as np
import tensorflow.compat.v1 as tf
from easydict import EasyDict
from tensorflow import profiler

from ablation.ab_mixmatch import PARAMS, AblationMixMatch
from libml import data, data_pair, experiment, files, train, utils
from libml.cli import options, script
from libml.cli.options import Option, Range
from libml.running import hardware

PARTS = ('step', 'guess', 'input', 'eval', 'startup')
OPTIONS = dict(
    experiment.list_options(AblationMixMatch),
    parts=Option(','.join(PARTS), 'What to measure, comma-separated.'),
    turns=Option(7, 'Times that each is measured, after one that does not count.', Range(low=1)),
    turn=Option(1.0, 'Seconds that one measurement lasts at least.', Range(low=0)),
    json=Option('', 'File for the figures.', path=True),
    profile=Option('', "Folder for a trace of an update each, for TensorBoard's profile page.", path=True),
)

# Rows of the matrices whose product says what the machine can do: so many that calling it costs nothing.
MATRIX = dict(cpu=2048, gpu=8192)
EVALUATED = 1536  # Images, for `eval`.
TRAIN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'ablation', 'ab_mixmatch.py')
# The stages of a training command's start: {name: beginning of the line that it prints when the stage is over}.
STAGES = {'Python and TensorFlow': 'Reading', 'data and graph': 'Variables', 'first update': 'The first update'}
PLAIN, COMPILED = 'plain graph (--noxla)', 'compiled (--xla)'


def in_turns(functions, turns, seconds_each):
    """Returns the seconds that a call of each function takes, {name: float [turns]}.

    Args:
        functions: {name: function without arguments}.
        turns: int, how often each is measured, one after the other.
        seconds_each: seconds that a measurement lasts, by as many calls as that takes.
    """
    calls, seconds = {}, {name: [] for name in functions}
    for name, function in functions.items():
        function()  # Traces, compiles, fills caches.
        begin = time.perf_counter()
        function()
        calls[name] = max(1, round(seconds_each / (time.perf_counter() - begin)))
    for _ in range(turns):
        for name, function in functions.items():
            begin = time.perf_counter()
            for _ in range(calls[name]):
                function()
            seconds[name].append((time.perf_counter() - begin) / calls[name])
    return {name: np.array(values) for name, values in seconds.items()}


def rows(unit, values):
    """Returns the rows of a table, a list of dicts; `ratio` compares a row with the first one, turn by turn.

    Args:
        unit: of the values.
        values: {what: float [turns]}.
    """
    reference = next(iter(values.values()))
    return [
        dict(what=what, unit=unit, median=np.median(v), min=v.min(), max=v.max(), ratio=np.median(v / reference))
        for what, v in values.items()
    ]


def matrix_product(dtype):
    """Returns a function that squares matrices, and its GFLOP.

    Each core gets a matrix of its own, because an operation may be limited to one core.
    """
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
        x, y = (random.uniform(-1, 1, [batch, *views, *shape]).astype(np.float32) for views in ([], [nu]))
        held = dict(x=x, y=y, label=random.randint(0, self.nclass, batch).astype(np.int32))
        return [tf.get_variable(name, initializer=value, trainable=False).value() for name, value in held.items()]


class Bench:
    """What is measured in this process: each method is a part, and returns the rows of its table.

    Args:
        o: EasyDict of OPTIONS.
        stack: contextlib.ExitStack that closes the sessions. (Else their input threads keep Python from ending.)
    """

    def __init__(self, o, stack):
        self.o, self.stack = o, stack
        split, data_dir = data_pair.parse(o.dataset), data_pair.find_data_dir(o.data_dir)
        family = data_pair.find_family(data_dir, split.name)
        self.params = AblationMixMatch.arguments(o, family)
        self.flop = AblationMixMatch.flop(family.shape, **self.params)
        threads = hardware.choose_operation_threads(self.flop)
        hardware.set_operation_threads(threads)  # Before the data: that opens a session.
        self.dataset = data_pair.read_dataset(split, data_dir, whiten=o.whiten, p_unlabeled=o.p_unlabeled)

    def session(self, graph, config):
        """Returns a session that `stack` closes."""
        return self.stack.enter_context(contextlib.closing(tf.Session(graph=graph, config=config)))

    def model(self, xla, dataset=None, cls=AblationMixMatch):
        """Returns a model, and a session of its own, which is open, its input started."""
        with tf.Graph().as_default() as graph:
            how = dict(seed=self.o.seed, machine=hardware.Machine(xla), precision=self.o.precision)
            model = cls('', dataset or self.dataset, **how, **self.params)
            session = self.session(graph, model.machine.config())
            session.run(model.trainer.init_op)
            session.run(model.trainer.init_input_op)
        return model, session

    def rates(self, unit, count, functions):
        """Returns the rows of functions that treat `count` images a call, measured in turns."""
        seconds = in_turns(functions, self.o.turns, self.o.turn)
        return rows(unit, {what: count / found for what, found in seconds.items()})

    def step(self):
        """The update, in images a second and as a share of the arithmetic that the machine can do."""
        fixed = 'the same on a fixed batch'
        models = {PLAIN: self.model(False), fixed: self.model(False, cls=OnOneBatch), COMPILED: self.model(True)}
        updates = {what: s.make_callable([m.ops.losses, m.ops.train_op]) for what, (m, s) in models.items()}
        product, gflop = matrix_product(tf.bfloat16 if self.o.precision == 'bfloat16' else tf.float32)
        seconds = in_turns(dict(updates, product=product), self.o.turns, self.o.turn)
        if self.o.profile:
            with profiler.experimental.Profile(self.o.profile):
                updates[PLAIN](), updates[COMPILED]()
        rates = {what: self.flop / 1e9 / seconds[what] for what in (PLAIN, COMPILED)}
        return [
            *rows('labelled images/s', {what: self.o.batch / seconds[what] for what in updates}),
            *rows('GFLOP/s', {'matrix product: the ceiling': gflop / seconds['product'], **rates}),
        ]

    def guess(self):
        """The guess of a fixed batch's labels."""

        def guess(xla):
            model, session = self.model(xla, cls=OnOneBatch)
            size = {name: self.params[name] for name in ('arch', 'scales', 'filters', 'repeat')}
            with model.graph.as_default():
                classifier = functools.partial(model.classifier, **size)
                found = model.guess_label(tf.unstack(model.ops.y, axis=1), classifier, self.o.T)
            hardware.keep_draws(model.graph)
            return session.make_callable(found.p_target.op)

        return self.rates('unlabelled images/s', self.o.batch, {PLAIN: guess(False), COMPILED: guess(True)})

    def input(self):
        """The augmented images of an update."""
        (model, session), count = self.model(xla=False), self.o.batch * (1 + self.o.nu)
        whole = session.make_callable([model.ops.x.op, model.ops.y.op])
        calls = {'one by one, in Python': self.one_by_one(count), 'the program: whole batches': whole}
        return self.rates('augmented images/s', count, calls)

    def one_by_one(self, count):
        """Returns a function that augments `count` images, each by itself in a Python function."""
        images, (height, width, _), family = self.dataset.sets['unlabeled'], self.dataset.shape, self.dataset.family
        pixels, random = images.gather(np.arange(min(len(images), 5000))), np.random.RandomState(0)

        def augment(i):
            image = np.pad(pixels[i], [(family.shift, family.shift)] * 2 + [(0, 0)], 'reflect')
            top, left = random.randint(0, 2 * family.shift + 1, 2)
            image = image[top : top + height, left : left + width]
            return data.to_float(image[:, ::-1] if family.mirror and random.rand() < 0.5 else image)

        with tf.Graph().as_default() as graph:
            ones = tf.data.Dataset.range(len(pixels)).shuffle(8192).repeat()
            ones = ones.map(lambda i: tf.numpy_function(augment, [i], tf.float32), num_parallel_calls=4)
            batch = tf.data.make_one_shot_iterator(ones.batch(count).prefetch(2)).get_next()
            return self.session(graph, utils.get_config()).make_callable(batch.op)

    def eval(self):
        """The evaluation of a report."""
        shorter = copy.copy(self.dataset)
        few = slice(EVALUATED // len(train.SUBSETS))
        shorter.sets = {name: images.select(few) for name, images in shorter.sets.items()}
        model, session = self.model(False, shorter)
        sets = [shorter.sets[name] for name in train.SUBSETS.values()]
        batches = [data.to_float(pixels) for pixels in data.iterate_equal_batches(sets, train.EVAL_BATCH)]
        classify = session.make_callable(model.ops.classify_op, [model.ops.x])

        def report():
            with session.as_default():
                return model.eval_stats()

        calls = {
            'the classifier in a loop': lambda: [classify(batch) for batch in batches],
            "a report's evaluation": report,
        }
        return self.rates('images/s', sum(map(len, sets)), calls)


def startup(o):
    """Starts training commands, and stops each after its first update; returns the rows, in seconds."""
    names = (*PARAMS, 'dataset', 'data_dir', 'precision', 'whiten', 'p_unlabeled')
    argv = ['--%s=%s' % (name, o[name]) for name in names if o[name] is not None]
    ways = {'--noxla': '--noxla', '--xla, empty cache': '--xla', '--xla, full cache': '--xla'}
    found = {name: [] for name in ways}
    for _ in range(o.turns):
        with tempfile.TemporaryDirectory() as cache:
            for name, flag in ways.items():
                found[name].append(start([*argv, flag], cache))
    table = rows('s', {'start to first update, ' + name: np.array(ends)[:, -1] for name, ends in found.items()})
    laps = {name: np.diff(ends, axis=1, prepend=0).T for name, ends in found.items()}
    for i, stage in enumerate(STAGES):
        table += rows('s', {'    %s, %s' % (stage, name): laps[name][i] for name in ways})
    return table


def start(argv, cache):
    """Starts one training command with a folder as XLA's cache; returns the seconds to the end of each of STAGES."""
    xla_flags = '%s --tf_xla_persistent_cache_directory=%s' % (os.environ.get('TF_XLA_FLAGS', ''), cache)
    environment = dict(os.environ, TF_XLA_FLAGS=xla_flags.strip())
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile('w+') as errors:
        command = [sys.executable, '-u', TRAIN, *argv, '--train_dir=' + folder]
        begin, ends = time.perf_counter(), []
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process:
            for line in STAGES.values():
                if not any(printed.startswith(line) for printed in process.stdout):
                    errors.seek(0)
                    raise utils.Error('%s: %s' % (' '.join(command), errors.read().strip().rpartition('\n')[2]))
                ends.append(time.perf_counter() - begin)
            process.kill()
        return ends


def machine():
    """Returns what the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open('/proc/cpuinfo') as file:
        cpu = next((line.partition(':')[2].strip() for line in file if line.startswith('model name')), cpu)
    devices = [tf.config.experimental.get_device_details(d) for d in tf.config.list_physical_devices('GPU')]
    return {
        'cpu': cpu,
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'avx512': hardware.has_avx512(),
        'gpus': [details.get('device_name', 'unknown') for details in devices],
        'tensorflow': tf.__version__,
    }


def peak_memory():
    """Returns the largest memory that this process has held, MB; on a GPU, what TensorFlow has held there."""
    found = {'host': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    for gpu in utils.get_available_gpus()[:1]:
        found['gpu'] = tf.config.experimental.get_memory_info(gpu.removeprefix('/device:'))['peak'] / 2**20
    return found


def measure(part, o):
    """Measures one part and prints its table; returns the rows, and the peak memory unless it starts processes."""
    if part == 'startup':
        found = dict(rows=startup(o), peak_memory={})
    else:
        with contextlib.ExitStack() as stack:
            found = dict(rows=getattr(Bench(o, stack), part)(), peak_memory=peak_memory())
    print('\n%-48s %10s %10s %10s  %-20s %9s' % (part, 'median', 'min', 'max', '', 'ratio'))
    for row in found['rows']:
        print('  %(what)-46s %(median)10.4g %(min)10.4g %(max)10.4g  %(unit)-20s %(ratio)9.2f' % row)
    for where, peak in found['peak_memory'].items():
        print('  %-46s %10.4g %21s  MB' % ('peak memory, ' + where, peak, ''))
    return found


def in_a_process(part):
    """As `measure`, by this command line in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, 'figures.json')
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], '--parts=' + part, '--json=' + file])
        if done.returncode:
            sys.exit(done.returncode)
        return files.read_json(file, default={})['parts'][part]


def benchmark(**given):
    """Measures and prints. Arguments as OPTIONS."""
    o = EasyDict(options.fill(OPTIONS, given))
    parts = o.parts.split(',')
    for part in parts:
        utils.require('parts', part, part in PARTS, 'some of %s' % ', '.join(PARTS))
    figures = dict(machine=machine(), flags=dict(o), parts={})
    if len(parts) > 1:
        print(', '.join('%s %s' % item for item in figures['machine'].items()), flush=True)
    for part in parts:
        figures['parts'][part] = in_a_process(part) if len(parts) > 1 else measure(part, o)
        if o.json:
            files.write_json(os.path.abspath(o.json), figures)


if __name__ == '__main__':
    script.run(benchmark, OPTIONS, 'give flags only, such as --parts=step')
