"""Measures the program, each thing and its reference in turns (A B A B ...): quote ratios, as machines are noisy.

python scripts/benchmark.py --dataset=cifar10.3@250-5000 --parts=step,input

    step   an update, compiled by XLA and not; with real input and with a fixed batch; where PyTorch is installed, in
           PyTorch, too; against a matrix product's rate
    input  augmented batches
    eval   the evaluation of a report, against a bare loop over the classifier

The flags of training choose the network and the batch. To compare with another program, give it the same batch, nu,
network and threads, and run the two in turns on an idle machine. Compare it with the fixed batch where it is timed on a
batch in memory.
"""

import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # The libml beside this file.
    from libml.cli import quiet

    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

import contextlib
import copy
import importlib.util
import json
import platform
import resource
import subprocess
import timeit

import numpy as np
import tensorflow.compat.v1 as tf
from easydict import EasyDict

from ablation.ab_mixmatch import AblationMixMatch
from libml import data, data_pair, experiment, files, train, utils
from libml.cli import options, script
from libml.cli.options import Option, Range
from libml.intake import splits
from libml.running import hardware

PARTS = ('step', 'input', 'eval')
OPTIONS = dict(
    experiment.list_options(AblationMixMatch),
    parts=Option(','.join(PARTS), 'What to measure, comma-separated.'),
    turns=Option(7, 'Times that each is measured, after one that does not count.', Range(low=1)),
    turn=Option(1.0, 'Seconds that one measurement lasts at least.', Range(low=0)),
    json=Option('', 'File for the figures.', path=True),
)

# Rows of the matrices whose product says what the machine can do: so many that calling it costs nothing.
MATRIX = dict(cpu=2048, gpu=8192)
EVALUATED = 1536  # Images, for `eval`.
PLAIN, COMPILED = 'plain graph (--noxla)', 'compiled (--xla)'
TORCH = {'PyTorch, on a fixed batch': False, 'PyTorch, the same by torch.compile': True}


def measure_in_turns(functions, turns, seconds_each):
    """Returns the seconds that a call of each function takes, {name: float [turns]}.

    Args:
        functions: {name: function without arguments}.
        turns: int, how often each is measured, one after the other.
        seconds_each: seconds that a measurement lasts, by as many calls as that takes.
    """
    calls, seconds = {}, {name: np.zeros(turns) for name in functions}
    for name, function in functions.items():
        function()  # Traces, compiles, fills caches.
        calls[name] = max(1, round(seconds_each / timeit.timeit(function, number=1)))
    for turn in range(turns):
        for name, function in functions.items():
            seconds[name][turn] = timeit.timeit(function, number=calls[name]) / calls[name]
    return seconds


def make_rows(unit, values):
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


def multiply_matrices(dtype):
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
    """What is measured in this process: each method is a part, and returns its rows.

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
        self.dataset = splits.read(o.dataset, data_dir, whiten=o.whiten, p_unlabeled=o.p_unlabeled)

    def make_model(self, xla, dataset=None, cls=AblationMixMatch):
        """Returns a model, and a session of its own, which is open, its input started."""
        with tf.Graph().as_default():
            how = dict(seed=self.o.seed, machine=hardware.Machine(xla), precision=self.o.precision)
            model = cls('', dataset or self.dataset, **how, **self.params)
        session = self.stack.enter_context(model.trainer.opening_session())
        session.run(model.trainer.init_input_op)
        return model, session

    def start_pytorch(self, compiled):
        """Returns a function that makes an update in PyTorch, in a process of its own, see pytorch/update.py."""
        dataset, path = self.dataset, os.path.join(os.path.dirname(os.path.abspath(__file__)), 'pytorch', 'update.py')
        given = dict(self.params, precision=self.o.precision, colors=dataset.colors, side=dataset.width)
        argv = [sys.executable, path, json.dumps(dict(given, compiled=compiled))]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.stack.enter_context(process)

        def update():
            process.stdin.write('\n')
            process.stdin.flush()
            utils.refuse(not process.stdout.readline(), 'PyTorch makes no update, see above: uninstall it to go on')

        return update

    def measure_rates(self, unit, count, functions):
        """Returns the rows of functions that treat `count` images a call, measured in turns."""
        seconds = measure_in_turns(functions, self.o.turns, self.o.turn)
        return make_rows(unit, {what: count / found for what, found in seconds.items()})

    def step(self):
        """The update, in images a second and as a share of the arithmetic that the machine can do."""
        fixed = 'the same on a fixed batch'
        models = {
            PLAIN: self.make_model(False),
            fixed: self.make_model(False, cls=OnOneBatch),
            COMPILED: self.make_model(True),
        }
        updates = {what: s.make_callable([m.trainer.values, m.trainer.train_op]) for what, (m, s) in models.items()}
        if importlib.util.find_spec('torch') and (self.o.arch, self.o.mixmode) == ('resnet', 'xxy.yxy'):
            updates.update({what: self.start_pytorch(compiled) for what, compiled in TORCH.items()})
        product, gflop = multiply_matrices(tf.bfloat16 if self.o.precision == 'bfloat16' else tf.float32)
        seconds = measure_in_turns(dict(updates, product=product), self.o.turns, self.o.turn)
        rates = {what: self.flop / 1e9 / seconds[what] for what in (PLAIN, COMPILED)}
        return [
            *make_rows('labelled images/s', {what: self.o.batch / seconds[what] for what in updates}),
            *make_rows('GFLOP/s', {'matrix product: the ceiling': gflop / seconds['product'], **rates}),
        ]

    def input(self):
        """The augmented images of an update."""
        model, session = self.make_model(xla=False)
        calls = {'whole batches': session.make_callable([model.ops.x.op, model.ops.y.op])}
        return self.measure_rates('augmented images/s', self.o.batch * (1 + self.o.nu), calls)

    def eval(self):
        """The evaluation of a report."""
        shorter = copy.copy(self.dataset)
        few = slice(EVALUATED // len(train.SUBSETS))
        shorter.sets = {name: images.select(few) for name, images in shorter.sets.items()}
        model, session = self.make_model(False, shorter)
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
        return self.measure_rates('images/s', sum(map(len, sets)), calls)


def describe_machine():
    """Returns what the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open('/proc/cpuinfo') as file:
        cpu = next((line.partition(':')[2].strip() for line in file if line.startswith('model name')), cpu)
    devices = [tf.config.experimental.get_device_details(d) for d in tf.config.list_physical_devices('GPU')]
    return {
        'cpu': cpu,
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'gpus': [details.get('device_name', 'unknown') for details in devices],
        'tensorflow': tf.__version__,
    }


def find_peak_memory():
    """Returns the most memory that this process, and TensorFlow on a GPU, has held so far, {where: MB}."""
    found = {'host': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    for gpu in utils.get_available_gpus()[:1]:
        found['gpu'] = tf.config.experimental.get_memory_info(gpu.removeprefix('/device:'))['peak'] / 2**20
    return found


def benchmark(**given):
    """Measures and prints. Arguments as OPTIONS."""
    o = EasyDict(options.fill(OPTIONS, given))
    parts = o.parts.split(',')
    for part in parts:
        utils.require('parts', part, part in PARTS, 'some of %s' % ', '.join(PARTS))
    figures = dict(machine=describe_machine(), flags=dict(o), parts={})
    print(', '.join('%s %s' % item for item in figures['machine'].items()))
    print('%-40s %10s %10s %10s  %-20s %9s' % ('', 'median', 'min', 'max', '', 'ratio'), flush=True)
    for part in parts:
        with contextlib.ExitStack() as stack:
            rows = getattr(Bench(o, stack), part)()
        for row in rows:
            text = '%-8s%-32s %10.4g %10.4g %10.4g  %-20s %9.2f'
            print(text % (part, *map(row.get, ('what', 'median', 'min', 'max', 'unit', 'ratio'))), flush=True)
        figures['parts'][part] = dict(rows=rows, peak_memory=find_peak_memory())
        if o.json:
            files.write_json(os.path.abspath(o.json), figures)
    print('peak memory of all: ' + ', '.join('%s %.0f MB' % item for item in find_peak_memory().items()))


if __name__ == '__main__':
    script.run(benchmark, OPTIONS, 'give flags only, such as --parts=step')
