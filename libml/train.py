"""The training loop and what surrounds it: run folder, checkpoints, reports. May import utils, layers and runs."""

import contextlib
import fcntl
import os
import re
import secrets
import signal
import socket
import time

from libml import layers, runs, utils

import numpy as np
import tensorflow.compat.v1 as tf
from absl import flags
from easydict import EasyDict
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tqdm import tqdm

flags.DEFINE_string('train_dir', './experiments', 'Folder of all runs: this one goes to <train_dir>/<dataset>/<name>.')
flags.DEFINE_integer('train_kimg', 1 << 16, 'Training duration in kibi-images (kimg, 1024 labelled images).', 1)
flags.DEFINE_integer('report_kimg', 64, 'Report period in kimg.', 1)
flags.DEFINE_integer('save_kimg', 64, 'Checkpoint period in kimg.', 1)
flags.DEFINE_integer('keep_ckpt', 50, 'Number of checkpoints to keep.', 1)
flags.DEFINE_string(
    'eval_ckpt', '', 'Only evaluate this checkpoint: raw, averaged, and both after re-tuning batch norm.'
)
flags.DEFINE_string(
    'init_ckpt', '', 'Checkpoint that a new run begins with, its step included: to go on with another --lr.'
)
flags.DEFINE_integer(
    'seed', None, 'Fixes every random choice; a new one for each run where it is not given.', 0, 2**32 - 1
)
PRECISIONS = ('float32', 'tf32', 'bfloat16')
flags.DEFINE_enum(
    'precision', 'float32', PRECISIONS, 'Precision of the networks: tf32 rounds what a GPU multiplies to 10 bits of '
    'fraction, bfloat16 images, kernels and all between the layers to 7; the weights themselves, statistics, losses '
    'and updates stay float32.'
)  # fmt: skip
flags.DEFINE_bool('xla', None, 'Compile the networks with XLA; by default where it pays, see compiling_pays.')

FREE_ARGS = ('train_kimg', 'report_kimg', 'save_kimg', 'keep_ckpt', 'xla')  # May change when a run is continued.
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: stopped by a signal, saved, go on by the same command.
SUBSETS = dict(train='labeled', valid='valid', test='test')  # What a report evaluates.
PREFETCH = 2  # Batches of each kind that wait on the device.
EVAL_BATCH = 512  # Images at a time at most.
SMALL_UPDATE, LARGE_RUN = 1e9, 1e13  # Floating-point operations, see threads_that_pay and compiling_pays.


class Model:
    """A model, its run folder and its training loop. A subclass's `model(**params)` builds the graph.

    Args:
        train_dir: folder under which the run's own folder goes.
        dataset: data.DataSet.
        seed: int that fixes every random choice; None for the one that the run began with, another for each run.
        xla: bool, whether XLA compiles the networks: faster updates after a slower start.
        precision: of the networks, one of PRECISIONS.
        **params: the arguments of `model`; with the class they name the run's folder.
    """

    def __init__(self, train_dir, dataset, seed=None, xla=False, precision='float32', **params):
        utils.check('precision', precision, precision in PRECISIONS, 'one of %s' % ', '.join(PRECISIONS))
        self.check(**params)
        self.train_dir = self.run_dir(train_dir, seed, **params)
        self.dataset = dataset
        self.xla, self.precision = xla, precision
        # By default TensorFlow rounds. It is one switch for the process: the last model decides.
        tf.config.experimental.enable_tensor_float_32_execution(precision == 'tf32')
        self.params = EasyDict(params)
        self.seed = runs.read_args(self.train_dir).get('seed', secrets.randbits(31)) if seed is None else seed
        self.device = next(iter(utils.get_available_gpus()), None)
        self.config = utils.get_config()
        self.session = None
        self.graph = tf.get_default_graph()
        tf.set_random_seed(self.seed)
        self.step = tf.train.get_or_create_global_step()  # In images.
        self.update_key = tf.identity(self.step, name='update_key')  # What the draws of an update depend on.
        self.keys = layers.Keys(self.seed, self.update_key)
        self.iterators = []
        self.ops = self.model(**params)
        self.floats = [v for v in tf.global_variables() if v.dtype.is_floating]
        self.saver = tf.train.Saver(max_to_keep=None, save_relative_paths=True)
        self.last_ckpt = ''  # What the variables were last restored from, or saved to.
        self.init_op = tf.global_variables_initializer()
        self.init_input_op = tf.group(*[iterator.initializer for iterator in self.iterators])

    @property
    def checkpoint_dir(self):
        """Folder of the checkpoints and TensorBoard's event files."""
        return os.path.join(self.train_dir, 'tf')

    @property
    def arg_dir(self):
        """Folder of args.json."""
        return os.path.join(self.train_dir, 'args')

    @classmethod
    def experiment_name(cls, **params):
        """Returns the name of a run's folder: the class and the arguments sorted by name."""
        return '_'.join([cls.__name__] + ['%s%s' % item for item in sorted(params.items())])

    @classmethod
    def run_dir(cls, train_dir, seed=None, **params):
        """Returns the folder of the run that such a model would make; the arguments are those of Model."""
        given = params if seed is None else dict(params, seed=seed)
        return os.path.join(train_dir, cls.experiment_name(**given))

    @classmethod
    def check(cls, **params):
        """Raises utils.Error where an argument of the model is out of range."""

    def model(self, **params):
        """Builds the graph and returns its tensors and ops as an EasyDict."""
        raise NotImplementedError

    @contextlib.contextmanager
    def open_session(self):
        """Opens self.session over the model's graph, variables at their first values."""
        with tf.Session(graph=self.graph, config=self.config) as self.session:
            self.session.run(self.init_op)
            yield self.session
        self.session = None

    # The run's folder.

    def args(self, train_nimg, report_nimg, save_nimg, keep_ckpt, init_ckpt):
        """Returns all that is needed to start the run again, the contents of args.json."""
        return dict(
            self.params,
            **{'class': type(self).__name__, 'dataset': self.dataset.name, 'seed': self.seed},
            whiten=self.dataset.whiten,
            p_unlabeled=self.dataset.p_unlabeled,
            precision=self.precision,
            xla=self.xla,
            train_kimg=train_nimg / 1024,
            report_kimg=report_nimg / 1024,
            save_kimg=save_nimg / 1024,
            keep_ckpt=keep_ckpt,
            init_ckpt=init_ckpt,
        )

    def check_args(self, args):
        """Raises utils.Error where the folder holds a run with other arguments."""
        for name, value in runs.read_args(self.train_dir).items():
            if name in args and name not in FREE_ARGS and args[name] != value:
                text = '%s holds a run with %s=%s, not %s: take another --train_dir, or remove that run'
                raise utils.Error(text % (self.train_dir, name, value, args[name]))

    @contextlib.contextmanager
    def lock(self):
        """Keeps every other process from writing this run; raises utils.Error where one does so already."""
        os.makedirs(self.train_dir, exist_ok=True)
        with open(os.path.join(self.train_dir, 'lock'), 'a+') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise utils.Error('%s is being trained by %s' % (self.train_dir, file.read().strip())) from None
            file.truncate(0)
            print('process %d on %s' % (os.getpid(), socket.gethostname()), file=file, flush=True)
            try:
                yield
            finally:
                file.truncate(0)

    def remove_unfinished(self):
        """Removes what a killed or failed process left half-written; the run must be locked."""
        utils.remove_unfinished(self.arg_dir)
        utils.remove_unfinished(self.checkpoint_dir)

    def check_fits(self, ckpt):
        """Raises utils.Error where a whole checkpoint does not fit the model."""
        reader = tf.train.load_checkpoint(ckpt)
        shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        for variable in tf.global_variables():
            name, needed = variable.op.name, '%s %s' % (variable.dtype.base_dtype.name, variable.shape)
            held = '%s %s' % (types[name].name, tf.TensorShape(shapes[name])) if name in shapes else 'none'
            if held != needed:
                raise utils.Error('%s does not fit: as %s the model needs %s, it holds %s' % (ckpt, name, needed, held))

    def restore(self, ckpt):
        """Takes all variables from a whole checkpoint; raises utils.Error where it does not fit the model."""
        self.check_fits(ckpt)
        self.saver.restore(self.session, ckpt)
        self.last_ckpt = ckpt

    def resume(self, init_ckpt=''):
        """Restores the newest whole checkpoint, else init_ckpt, if any; returns the step that the run is at."""
        ckpts = utils.checkpoints(self.checkpoint_dir)
        while ckpts:
            try:
                utils.check_checkpoint(ckpts[-1])
                break
            except utils.Error as error:
                print('Skipping a damaged checkpoint: %s' % error)
                ckpts.pop()
        ckpt = ckpts[-1] if ckpts else init_ckpt
        if ckpt:
            self.restore(ckpt)
            print('Going on from %s' % ckpt)
        return int(self.session.run(self.step))

    def save(self, step, keep):
        """Writes a checkpoint and removes the oldest ones over `keep`."""
        ckpt = os.path.join(self.checkpoint_dir, '%s-%010d' % (utils.CHECKPOINT, step))
        try:
            self.saver.save(self.session, ckpt, write_meta_graph=False)
        except (tf.errors.OpError, ValueError) as error:
            self.remove_unfinished()  # It may be what fills the disk.
            raise unwritten(ckpt, error) from error
        self.last_ckpt = ckpt
        # Those of later steps are damaged (resume skipped them), and do not count.
        for old in [c for c in utils.checkpoints(self.checkpoint_dir) if utils.checkpoint_step(c) <= step][:-keep]:
            utils.remove_checkpoint(old)

    # The loop.

    def train(self, train_nimg, report_nimg, save_nimg=None, keep_ckpt=50, init_ckpt=''):
        """Trains until so many labelled images have been seen, going on from the newest whole checkpoint.

        Args:
            train_nimg: int, duration in images.
            report_nimg: int, images between reports.
            save_nimg: int, images between checkpoints; None for report_nimg.
            keep_ckpt: int, checkpoints kept.
            init_ckpt: checkpoint that a run without one of its own begins with; '' for the variables' first values.

        Raises:
            utils.Error: the folder is another run's or another process's, it cannot be written, init_ckpt is damaged or
                does not fit, or the loss is not finite.
            SystemExit: a signal asked to stop; a checkpoint is saved, the code is EXIT_INTERRUPTED.
        """
        save_nimg = save_nimg or report_nimg
        if init_ckpt:
            utils.check_checkpoint(init_ckpt)
            self.check_fits(init_ckpt)
        args = self.args(train_nimg, report_nimg, save_nimg, keep_ckpt, init_ckpt)
        self.check_args(args)
        with self.lock(), stop_signals() as stopped, self.open_session():
            self.print_start(args)
            step = self.resume(init_ckpt)
            self.session.run(self.init_input_op)
            self.graph.finalize()
            self.remove_unfinished()
            utils.write_json(runs.args_file(self.train_dir), args)
            hparams = {name: value for name, value in args.items() if name not in FREE_ARGS}
            with EventLog(self.checkpoint_dir, self.graph, step, hparams) as log, progress_bar(step, train_nimg) as bar:
                step = self.loop(step, train_nimg, report_nimg, save_nimg, keep_ckpt, log, bar, stopped)
        if step < train_nimg:
            print('Stopped by %s at step %d; the same command goes on from there.' % (stopped[0], step))
            raise SystemExit(EXIT_INTERRUPTED)

    def loop(self, step, train_nimg, report_nimg, save_nimg, keep_ckpt, log, bar, stopped):
        """Makes updates, reports and checkpoints from `step` on, until train_nimg or until `stopped` holds a signal.

        Returns:
            The step it has come to.
        """
        update = self.session.make_callable([self.ops.losses, self.ops.train_op])
        first, stop = step, False
        while step < train_nimg and not stop:
            before, clock = step, time.monotonic()
            losses, _ = update()
            step += self.params.batch
            self.check_finite(losses, step)
            if before == first:  # scripts/benchmark.py waits for this line.
                tqdm.write('The first update took %.1f s' % (time.monotonic() - clock))
            bar.update(step - before)
            done, stop = step >= train_nimg, bool(stopped)  # A signal from here on waits for the next update.
            report = done or step // report_nimg > before // report_nimg
            save = done or stop or step // save_nimg > before // save_nimg
            if report or save:
                self.check_finite_weights(step)
            if report:
                clock = time.monotonic()
                log.scalars(step, dict(losses, **self.report(step)))
                bar.set_postfix_str('report %.1f s' % (time.monotonic() - clock), refresh=False)
            if save:
                self.save(step, keep_ckpt)
        return step

    def print_start(self, args):
        """Prints the configuration and the table of variables."""
        rows = [('train_dir', self.train_dir), *sorted(args.items())]
        print_table('Configuration', rows)
        variables = [(v.op.name, 'x'.join(map(str, v.shape)), v.shape.num_elements()) for v in utils.model_vars()]
        print_table('Variables', variables + [('all', '', sum(count for *_, count in variables))])

    def check_finite(self, losses, step):
        """Raises utils.Error where a loss is not finite."""
        if not np.all(np.isfinite(list(losses.values()))):
            values = ', '.join('%s %g' % item for item in losses.items())
            raise self.diverged('the loss is not finite at step %d (%s)' % (step, values))

    def check_finite_weights(self, step):
        """Raises utils.Error where an update of finite loss has left variables that are not finite."""
        if not all(np.isfinite(value).all() for value in self.session.run(self.floats)):
            raise self.diverged('the weights are not finite at step %d' % step)

    def diverged(self, what):
        """Returns the utils.Error that says how a run with a smaller --lr begins where this one was well."""
        if not self.last_ckpt:
            return utils.Error('%s, and there is no checkpoint yet: start with --lr=%g' % (what, self.params.lr / 2))
        text = '%s; the last good checkpoint is %s: go on from it in a run of its own by --lr=%g --init_ckpt=%s'
        return utils.Error(text % (what, self.last_ckpt, self.params.lr / 2, self.last_ckpt))

    def report(self, step):
        """Evaluates, prints a line, and returns more scalars for TensorBoard."""
        raise NotImplementedError


class ClassifySemi(Model):
    """A semi-supervised classifier: its inputs and its evaluation.

    Args:
        train_dir, dataset, params: see Model.
        nclass: int, classes.
    """

    def __init__(self, train_dir, dataset, nclass, **params):
        self.nclass = nclass
        super().__init__(train_dir, dataset, nclass=nclass, **params)

    def inputs(self, batch, nu):
        """Returns x, y and label of an update; what is not fed comes from the dataset, augmented.

        Args:
            batch: int, labelled images, and as many unlabelled ones.
            nu: int, augmentations of each unlabelled image.

        Returns:
            x: float32 [None, H, W, C], named `x`.
            y: float32 [None, nu, H, W, C], named `y`.
            label: int32 [None], named `labels`.
        """
        shape = list(self.dataset.shape)
        labeled, unlabeled = (self.next_batch(name, batch) for name in ('labeled', 'unlabeled'))
        x = self.dataset.augment(labeled['image'], self.keys())  # [B, H, W, C]
        y = self.dataset.augment(tf.repeat(unlabeled['image'], nu, axis=0), self.keys())  # [B * nu, H, W, C]
        y = tf.reshape(y, [batch, nu] + shape)  # [B, nu, H, W, C]
        return (
            tf.placeholder_with_default(x, [None] + shape, 'x'),
            tf.placeholder_with_default(y, [None, nu] + shape, 'y'),
            tf.placeholder_with_default(labeled['label'], [None], 'labels'),
        )

    def next_batch(self, name, batch):
        """Returns a batch of the dataset's images `name`: dict(image [B, H, W, C] in 0 to 255, label int32 [B])."""
        stream = self.dataset.stream(name, batch, self.seed, start=self.step)
        with tf.device(self.device):
            if self.device:  # Batches wait there, as uint8.
                stream = stream.apply(tf.data.experimental.prefetch_to_device(self.device, PREFETCH))
            self.iterators.append(tf.data.make_initializable_iterator(stream))
            found = self.iterators[-1].get_next()
            if self.device:  # TensorFlow cannot gather bytes on a GPU, and would do so on the CPU.
                found['image'] = tf.cast(found['image'], tf.float32)
            return found

    def report(self, step):
        train, valid, test = self.eval_stats()
        tqdm.write('kimg %-5d  accuracy train/valid/test  %.2f  %.2f  %.2f' % (step >> 10, train, valid, test))
        return {'accuracy': test, 'accuracy/valid': valid, 'accuracy/train_labeled': train}

    def eval_stats(self, batch=None, feed_extra=None, classify_op=None):
        """Returns the accuracies on the labelled, validation and test images, percent, float [3].

        Args:
            batch: int, images at a time at most; None for EVAL_BATCH.
            feed_extra: dict of further tensors to feed.
            classify_op: float32 [None, nclass], class probabilities; None for the averaged weights'.
        """
        classify_op = self.ops.classify_op if classify_op is None else classify_op
        sets = [self.dataset.sets[name] for name in SUBSETS.values()]
        guesses = []
        for pixels in self.dataset.equal_batches(sets, batch or EVAL_BATCH):
            feed = {self.ops.x: self.dataset.to_float(pixels), **(feed_extra or {})}
            guesses.extend(self.session.run(classify_op, feed).argmax(1))
        ends = np.cumsum([len(images) for images in sets])  # Beyond the last one the batch is only filled up.
        parts = zip(np.split(guesses, ends)[:-1], sets, strict=True)
        return np.array([100 * np.mean(part == images.labels) if len(images) else np.nan for part, images in parts])

    def tune(self, nimg):
        """Moves batch norm's averages over so many training images, weights untouched."""
        for step in range(0, nimg, self.params.batch):
            self.session.run(self.ops.tune_op, {self.update_key: step})

    def eval_checkpoint(self, ckpt):
        """Prints the accuracies of a checkpoint: raw and averaged weights, before and after tuning batch norm.

        Args:
            ckpt: path prefix of a checkpoint, such as <run>/tf/model.ckpt-0000065536.

        Returns:
            dict from 'raw', 'ema', 'tuned_raw', 'tuned_ema' to float [3], see eval_stats.
        """
        with self.open_session():
            utils.check_checkpoint(ckpt)
            self.restore(ckpt)
            self.session.run(self.init_input_op)
            which = dict(raw=self.ops.classify_raw, ema=self.ops.classify_op)
            results = {name: self.eval_stats(classify_op=op) for name, op in which.items()}
            self.tune(16384)
            results.update({'tuned_' + name: self.eval_stats(classify_op=op) for name, op in which.items()})
        print('%-12s' % 'accuracy' + ''.join('%8s' % name for name in SUBSETS))
        for name, accuracies in results.items():
            print('%-12s' % name + ''.join('%8.2f' % accuracy for accuracy in accuracies))
        return results


def compiling_pays(flop, updates):
    """Returns whether XLA is worth its compilation for so many updates of so many floating-point operations.

    Measured on 2 CPU cores, see scripts/benchmark.py; that it pays on GPUs is taken from what others found.
    """
    if utils.get_available_gpus():
        return True
    if flop < SMALL_UPDATE:  # With threads_that_pay it would take longer.
        return False
    if utils.has_avx512():  # TensorFlow's own convolutions use it, XLA's do not: the update would take longer.
        return False
    return flop * updates > LARGE_RUN  # A sixth is saved, a compilation of 10 to 15 s is spent.


def threads_that_pay(flop):
    """Returns how many threads should share an operation of an update of so many floating-point operations; 0: all.

    The parts of a small one have ended before a second thread is awake; the cores have other operations to do.
    """
    return 1 if flop < SMALL_UPDATE else 0


class EventLog:
    """TensorBoard's event file of a run that starts or goes on at `step`; used in a `with`.

    What is written has left the process when a method returns, and what cannot be written is a utils.Error.
    (tf.summary.FileWriter does both in a thread, and two that start within a second write one file.)

    Args:
        folder: where it goes.
        graph: tf.Graph, for the graph page.
        step: int, in images.
        hparams: dict of numbers, bools and strings, for the HPARAMS page. TensorBoard keeps what the first event file
            of a folder says, so these must not change when a run goes on.
    """

    PATTERN = re.compile(r'events\.out\.tfevents\.(\d+)\.')

    def __init__(self, folder, graph, step, hparams):
        os.makedirs(folder, exist_ok=True)
        # Read in the order of the times in their names, which must grow even where clocks do not.
        times = [int(match[1]) + 1 for name in os.listdir(folder) if (match := self.PATTERN.match(name))]
        name = 'events.out.tfevents.%010d.%s' % (max([int(time.time()), *times]), socket.gethostname())
        self.path = os.path.join(folder, name)
        self.file = tf.io.TFRecordWriter(self.path)
        self.write(file_version='brain.Event:2')
        self.write(graph_def=graph.as_graph_def(add_shapes=True).SerializeToString())
        # TensorBoard forgets what an earlier process logged from here on: those updates are made again.
        self.write(step=step + 1, session_log=tf.SessionLog(status=tf.SessionLog.START))
        self.write(summary=tf.Summary.FromString(hparams_pb(hparams).SerializeToString()))

    def scalars(self, step, values):
        """Writes named floats."""
        values = [tf.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.write(step=step, summary=tf.Summary(value=values))

    def write(self, **event):
        """Writes the fields of a tf.Event."""
        try:
            os.stat(self.path)  # The system would go on writing to a file that was removed.
            self.file.write(tf.Event(wall_time=time.time(), **event).SerializeToString())
            self.file.flush()
        except (tf.errors.OpError, OSError) as error:
            raise unwritten(self.path, error) from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(tf.errors.OpError):  # Nothing is left to be written, if all went well.
            self.file.close()


def unwritten(path, error):
    """Returns the utils.Error of a run that cannot write one of its files."""
    text = 'cannot write %s (%s): once it can, the same command goes on from the newest checkpoint'
    return utils.Error(text % (path, utils.reason(error)))


def print_table(title, rows):
    """Prints rows of equal length under a title, columns aligned."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    print('\n%s' % title)
    for row in rows:
        print('  ' + '  '.join(str(value).ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())
    print(flush=True)


def progress_bar(step, train_nimg):
    """Returns a tqdm bar over images; on a log file it writes a line a minute."""
    interval = 0.5 if os.isatty(2) else 60
    return tqdm(initial=step, total=train_nimg, unit='img', mininterval=interval, dynamic_ncols=True, smoothing=0.05)


@contextlib.contextmanager
def stop_signals(signals=(signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)):
    """Yields a list to which the names of stop signals are added as they come.

    A second Ctrl-C acts as ever. Batch systems send the others more than once, to end it all with a SIGKILL.
    """
    stopped = []

    def handler(number, _):
        stopped.append(signal.Signals(number).name)
        signal.signal(signal.SIGINT, previous[signal.SIGINT])

    previous = {s: signal.signal(s, handler) for s in signals}
    try:
        yield stopped
    finally:
        for s in previous:
            signal.signal(s, previous[s])
