"""The training loop and the evaluation."""

import contextlib
import dataclasses
import os
import secrets
import signal
import tempfile
import time
import types

import numpy as np
import tensorflow.compat.v1 as tf
from easydict import EasyDict
from tqdm import tqdm

from libml import layers, utils
from libml.cli import options
from libml.cli.options import Option, Range
from libml.running import checkpoints, hardware, replicas, runs

PRECISIONS = ('float32', 'tf32', 'bfloat16')
OPTIONS = dict(
    train_dir=Option('./experiments', 'Folder of all runs: this run goes to <train_dir>/<dataset>/<name>.', path=True),
    train_kimg=Option(1 << 16, 'Training duration in kimg (1 kimg is 1024 labelled images).', Range(1, 1 << 40)),
    report_kimg=Option(64, 'Report period in kimg.', Range(1, 1 << 40)),
    save_kimg=Option(64, 'Checkpoint period in kimg.', Range(1, 1 << 40)),
    keep_ckpt=Option(50, 'Checkpoints that are kept.', Range(low=1)),
    eval_ckpt=Option(
        '', "Only evaluate this checkpoint or run, before and after batch norm's averages are updated.", path=True
    ),
    init_ckpt=Option(
        '',
        'A new run starts from the weights and step of this checkpoint or run, for example to change --lr.',
        path=True,
    ),
    seed=Option(None, 'Fixes every random choice. Default: a new seed for each run.', options.SEED, type=int),
    precision=Option(
        'float32',
        (
            'Precision of the networks. tf32: a GPU rounds the numbers that it multiplies to 10 fraction bits. '
            'bfloat16: the networks compute with 7 fraction bits. Stored weights, statistics, losses and updates stay '
            'float32.'
        ),
        choices=PRECISIONS,
    ),
    xla=Option(None, 'Compile with XLA. Default: if that should be faster. A resumed run keeps its choice.', type=bool),
    devices=Option(
        '1',
        'Devices of each host that share an update: GPUs, or logical CPU devices if there are none.',
        lambda n: n == 'all' or (str(n).isdecimal() and str(n).isascii() and int(n) > 0),
        'a number from 1, or all',
    ),
    log_device_placement=Option(False, 'Debugging: print the device of every operation.'),
)

# A run's name leaves out these arguments if they have these values.
UNNAMED = dict(seed=None, whiten=False, p_unlabeled='', precision='float32')
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: stopped by a signal, saved; the same command continues from there.
SUBSETS = dict(train='labeled', valid='valid', test='test')  # What a report evaluates, under the names it prints.
PREFETCH = 2  # How many labelled batches wait ready on a GPU; as many unlabelled batches wait, too.
EVAL_BATCH = 512  # Images evaluated at a time, at most.
COLLAPSED = 0.1  # Below this guess_entropy, the program warns. If two classes of ten share all guesses, it is 0.3.
POINTS = 16  # Points that each loss curve gets between two reports.


class Model:
    """A model, its run and its training loop.

    An algorithm, such as AblationMixMatch, is a subclass of models.MultiModel that defines `model`. MultiModel's
    constructor calls `build`, and `build` calls `model`.

    Args:
        train_dir: folder under which the run's own folder goes.
        dataset: data.DataSet.
        seed: int that fixes every random choice. None: the seed that the run began with, a new one for a new run.
        precision: of the networks, one of PRECISIONS.
        machine: hardware.Machine; None: one device, the first GPU if there is one, and no XLA.
        **params: the arguments of `model`, which are part of the name of the run's folder.
    """

    PARAMS = types.MappingProxyType({})  # Option by name: what the arguments of `model` may be.

    def __init__(self, train_dir, dataset, seed=None, precision='float32', machine=None, **params):
        utils.require('precision', precision, precision in PRECISIONS, 'one of %s' % ', '.join(PRECISIONS))
        self.machine = machine or hardware.Machine()
        self.check(devices=self.machine.replicas, **params)
        self.params = EasyDict(params)
        self.dataset, self.precision = dataset, precision
        chosen = dict(whiten=dataset.whiten, p_unlabeled=dataset.p_unlabeled, precision=precision)
        self.run = runs.Run(self.run_dir(train_dir, seed, **chosen, **params))
        self.seed = self.run.args.get('seed', secrets.randbits(31)) if seed is None else seed
        if self.machine.host:  # Only host 0 writes the run's folder. The others write to a folder of their own.
            self.scratch = tempfile.TemporaryDirectory()
            self.run = runs.Run(self.scratch.name)
        # TF32 is a switch of the whole process, on by default.
        tf.config.experimental.enable_tensor_float_32_execution(precision == 'tf32')
        if seed is not None and self.machine.gpu:  # Many operations on a GPU are deterministic only on request.
            tf.compat.v2.config.experimental.enable_op_determinism()
        tf.set_random_seed(self.seed)
        self.config = self.machine.config()
        self.graph = tf.get_default_graph()
        self.session = None
        with self.machine.strategy.scope():
            self.step = tf.train.get_or_create_global_step()  # Counts labelled images, not updates.
        self.update_key = tf.identity(self.step, name='update_key')  # What random draws depend on; `tune` feeds it.
        self.keys = layers.Keys(self.seed, self.update_key)
        self.iterators = []
        self.stopped = []  # The names of the signals that asked to stop.

    def build(self):
        """Builds the graph: first what `model` builds, then what broadcasts, saves and initialises variables."""
        strategy = self.machine.strategy
        count = self.machine.replicas
        part = dict(self.params, batch=self.params.batch // count) if count > 1 else self.params
        with strategy.scope():
            self.ops = replicas.merge(strategy, strategy.run(self.model, kwargs=part))
            if self.machine.hosts > 1:
                self.broadcast_op = tf.group(*[replicas.broadcast(strategy, v) for v in tf.global_variables()])
                self.stop = tf.placeholder_with_default(0, [], 'stop')
                self.stop_anywhere = replicas.add_up(strategy, lambda: tf.identity(self.stop))
        self.scalars = {**self.ops.get('losses', {}), **self.ops.get('monitors', {})}  # By TensorBoard's tag.
        self.scalar_values = tf.stack(list(self.scalars.values()) or [0.0])  # One fetch is faster than several.
        self.floats = [v for v in tf.global_variables() if v.dtype.is_floating]
        self.checkpoints = checkpoints.Checkpoints(self.checkpoint_dir)
        hardware.keep_draws(self.graph)
        self.init_op = tf.global_variables_initializer()
        self.init_input_op = tf.group(*[iterator.initializer for iterator in self.iterators])

    def model(self, **params):
        """Builds one update and the evaluation.

        If several devices share an update, this method is called once for each device, with its part of the batch.

        Args:
            params: the constructor's; batch is the part of this device.

        Returns:
            EasyDict of
                train_op: one update. tune_op: moves batch norm's averages alone, as an update would.
                x: float32 [None, H, W, C], the images to classify.
                classify_raw, classify_op: float32 [None, nclass], the class probabilities of x by the weights, and by
                    their moving average.
                losses, monitors: dicts from a tag of TensorBoard to float32 [], which become curves; may be missing.
                y, label: the other inputs of the update, see ClassifySemi.inputs; may be missing.
        """
        raise NotImplementedError

    def advance(self, batch):
        """Returns the op that adds the labelled images of an update to the step, `batch` for each device."""
        return self.step.assign_add(batch * replicas.get_count())

    @property
    def train_dir(self):
        """Folder of the run."""
        return self.run.folder

    @property
    def checkpoint_dir(self):
        """Folder of the checkpoints and TensorBoard's event files."""
        return self.run.checkpoint_dir

    @property
    def arg_dir(self):
        """Folder of args.json."""
        return self.run.arg_dir

    @classmethod
    def experiment_name(cls, **params):
        """Returns the name of a run's folder: the class and the arguments sorted by name."""
        return '_'.join([cls.__name__] + ['%s%s' % item for item in sorted(params.items())])

    @classmethod
    def run_dir(cls, train_dir, seed=None, **params):
        """Returns the folder of the run with these arguments; see UNNAMED for what its name leaves out."""
        named = {name: value for name, value in dict(params, seed=seed).items() if UNNAMED.get(name, ...) != value}
        return os.path.join(train_dir, cls.experiment_name(**named))

    @classmethod
    def check(cls, devices=1, **params):
        """Raises utils.Error if PARAMS does not allow an argument, or the batch is no multiple of the devices."""
        options.fill(cls.PARAMS, {name: value for name, value in params.items() if name in cls.PARAMS})
        batch = params.get('batch', 0)  # Some models have no argument `batch`.
        utils.require(
            'batch', batch, batch % devices == 0, 'a multiple of devices=%d, which share it equally' % devices
        )

    @contextlib.contextmanager
    def open_session(self):
        """Opens self.session over the model's graph, with initialised variables."""
        target = self.machine.target
        with (
            self.machine.watching_hosts() as self.hosts_done,
            tf.Session(target, self.graph, self.config) as self.session,
        ):
            self.session.run(self.init_op)
            yield self.session
        self.session = None

    def args(self, train_nimg, report_nimg, save_nimg, keep_ckpt, init_ckpt):
        """Returns the contents of args.json: the arguments, what identifies the data, and the devices of all hosts."""
        return dict(
            self.params,
            **{'class': type(self).__name__, 'dataset': self.dataset.name, 'seed': self.seed},
            **self.dataset.identity(),
            whiten=self.dataset.whiten,
            p_unlabeled=self.dataset.p_unlabeled,
            precision=self.precision,
            xla=self.machine.xla,
            devices=self.machine.replicas,
            train_kimg=train_nimg / 1024,
            report_kimg=report_nimg / 1024,
            save_kimg=save_nimg / 1024,
            keep_ckpt=keep_ckpt,
            init_ckpt=init_ckpt,
        )

    def train(self, train_nimg, report_nimg, save_nimg=None, keep_ckpt=50, init_ckpt=''):
        """Trains until train_nimg labelled images have been seen, continuing from the newest whole checkpoint.

        Args:
            train_nimg: int, duration in images.
            report_nimg: int, images between reports.
            save_nimg: int, images between checkpoints; None for report_nimg.
            keep_ckpt: int, checkpoints kept.
            init_ckpt: checkpoint to start from, if the run has none of its own; '': start from the initial values.

        Raises:
            utils.Error: the folder is another run's or another process's, it cannot be written, init_ckpt is damaged or
                does not fit, or the loss is not finite.
            SystemExit: a signal asked to stop; a checkpoint is saved, the code is EXIT_INTERRUPTED.
        """
        save_nimg = save_nimg or report_nimg
        args = self.args(train_nimg, report_nimg, save_nimg, keep_ckpt, init_ckpt)
        self.run.check_name()
        self.dataset.check_identity(self.run.args, self.train_dir)
        self.run.check_args(args)
        if checkpoints.find(self.checkpoint_dir):  # A resumed run keeps the init_ckpt that it began with.
            args['init_ckpt'] = self.run.args.get('init_ckpt', init_ckpt)
        if first := checkpoints.initial(self.checkpoint_dir, init_ckpt):
            checkpoints.check_fits(first, self.checkpoints.needed)  # Before anything is written.
        with self.run.lock(), catching_signals() as self.stopped, self.open_session():
            self.print_start(args)
            means = self.resume(init_ckpt)
            if self.machine.hosts > 1:
                self.session.run(self.broadcast_op)
            step = int(self.session.run(self.step))
            if step >= train_nimg and not self.checkpoints.is_own:
                text = 'nothing is trained: %s is at %g kimg, and --train_kimg is %g'
                utils.warn(text % (self.checkpoints.last, step / 1024, train_nimg / 1024))
            self.session.run(self.init_input_op)
            self.graph.finalize()
            self.run.remove_unfinished()
            self.run.write_args(args)
            hparams = {name: value for name, value in args.items() if name not in runs.NOT_HPARAMS}
            with (
                runs.EventLog(self.checkpoint_dir, self.graph, step, hparams) as log,
                make_bar(step, train_nimg, disable=self.machine.host > 0) as bar,
            ):
                periods = Periods(self.params.batch, train_nimg, report_nimg, save_nimg)
                loop = Loop(self, step, means, periods, keep_ckpt, log, bar)
                finished = loop.run()
        if not finished:
            print('Stopped by %s at step %d; the same command continues from there.' % (self.stopped[0], loop.step))
            raise SystemExit(EXIT_INTERRUPTED)

    def resume(self, init_ckpt):
        """Restores the newest whole checkpoint, else init_ckpt if given.

        Returns the Means that were saved with the run's own checkpoint; without one, new Means.
        """
        self.checkpoints.resume(self.session, init_ckpt)
        return Means(self.scalars, self.checkpoints.note())

    def save(self, step, keep_ckpt, means):
        """Writes a checkpoint on host 0, and beside it the means since the last point of the curves."""
        if self.machine.host:
            return
        self.checkpoints.save(self.session, step, keep_ckpt, means.state())

    def print_start(self, args):
        """Prints the configuration and the table of variables."""
        shown = {name: value for name, value in args.items() if name not in runs.DATA_ARGS}
        print_table('Configuration', [('folder', self.train_dir), *sorted(shown.items())])
        variables = [(v.op.name, 'x'.join(map(str, v.shape)), v.shape.num_elements()) for v in utils.model_vars()]
        print_table('Variables', variables + [('all', '', sum(count for *_, count in variables))])

    def check_finite(self, values, step):
        """Raises utils.Error if a loss or monitor is not finite; values are those of self.scalars."""
        if not np.isfinite(values).all():
            shown = ', '.join('%s %g' % item for item in zip(self.scalars, values, strict=True))
            raise self.diverged('the loss is not finite at step %d (%s)' % (step, shown))

    def check_finite_weights(self, step):
        """Raises utils.Error if a variable is not finite. This can happen although the loss was finite."""
        if not all(np.isfinite(value).all() for value in self.session.run(self.floats)):
            raise self.diverged('the weights are not finite at step %d' % step)

    def diverged(self, what):
        """Returns the utils.Error that advises what to change, and to start from the last good checkpoint if any."""
        if not self.checkpoints.last:
            return utils.Error('%s, and there is no checkpoint yet: start with %s' % (what, self.remedy()))
        text = '%s; the last good checkpoint is %s: start a new run from it by %s --init_ckpt=%s'
        return utils.Error(text % (what, self.checkpoints.last, self.remedy(), self.checkpoints.last))

    def remedy(self):
        """Returns the flag that is likely to help against a loss that is not finite."""
        return '--lr=%g' % (self.params.lr / 2)

    def report(self, step):
        """Evaluates, prints a line, and returns scalars for TensorBoard; raises Interrupted if a signal came."""
        raise NotImplementedError


class Interrupted(Exception):
    """A signal came during a report."""


class Loop:
    """Makes a model's updates, checkpoints and reports when they are due, until the run ends or a signal comes.

    A checkpoint is saved before the report of its step, so that no update is lost if the report fails.

    Args:
        model: Model, its session open.
        step: int, images seen before.
        means: Means, of the updates since the last point of the curves.
        periods: Periods.
        keep_ckpt: int, checkpoints kept.
        log: runs.EventLog.
        bar: tqdm bar over images.
    """

    def __init__(self, model, step, means, periods, keep_ckpt, log, bar):
        self.model, self.step, self.means, self.periods = model, step, means, periods
        self.keep_ckpt, self.log, self.bar = keep_ckpt, log, bar
        self.first = self.saved = step
        self.warned = False
        # Nothing is fed: the graph draws its images itself, see ClassifySemi.inputs.
        self.make_update = model.session.make_callable([model.scalar_values, model.ops.train_op])

    def run(self):
        """Runs the loop; returns whether nothing is left to do."""
        report_due = self.periods.due(self.step).report and self.lacks_report()
        while True:
            if report_due:  # Comes first, so that a resumed run first makes the report that is still missing.
                report_due = not self.try_report()
            # A signal that comes after this check takes effect after the next update.
            if self.must_stop() or self.step >= self.periods.train:
                self.model.hosts_done.set()  # A host that ends from here on is no error.
                break
            self.update()
            due = self.periods.due(self.step)
            report_due = due.report
            if due.save or due.report:
                self.model.check_finite_weights(self.step)
            if due.point:
                self.write_point()
            if due.save:
                self.save()
        if self.model.stopped and self.saved < self.step:
            self.save()
        return self.step >= self.periods.train and not report_due

    def update(self):
        """Makes an update."""
        clock = time.monotonic()
        values, _ = self.make_update()
        if self.step == self.first:  # scripts/benchmark.py waits for this line.
            tqdm.write('The first update took %.1f s' % (time.monotonic() - clock))
        self.step += self.periods.batch
        self.model.check_finite(values, self.step)
        self.means.add(values)
        self.bar.update(self.periods.batch)

    def write_point(self):
        """Writes a point of the curves. Says once if the guesses have become one class."""
        point = self.means.take()
        self.log.scalars(self.step, point)
        entropy = point.get('monitors/guess_entropy', 1)
        if not self.warned and point.get('monitors/weight_l2u') and entropy < COLLAPSED:
            self.warned = True
            tqdm.write(
                'Nearly all guesses are one class (monitors/guess_entropy %.2f): the network no longer learns from the '
                'unlabelled images. Try a smaller --w_match, or a larger --warmup_kimg.' % entropy
            )

    def save(self):
        """Writes a checkpoint."""
        self.model.save(self.step, self.keep_ckpt, self.means)
        self.saved = self.step

    def lacks_report(self):
        """Returns whether this step has a checkpoint of the run's own, but no report."""
        model = self.model
        return model.checkpoints.is_own and not any(at == self.step for at, _ in runs.read_accuracies(model.train_dir))

    def try_report(self):
        """Makes a report, on host 0. Returns False if a signal came before its end, else True."""
        if self.model.machine.host:
            return True
        clock = time.monotonic()
        try:
            self.log.scalars(self.step, self.model.report(self.step))
        except Interrupted:
            return False
        self.bar.set_postfix_str('report %.1f s' % (time.monotonic() - clock), refresh=False)
        return True

    def must_stop(self):
        """Returns whether a signal asked any host to stop. All hosts get the same answer, so they stop together."""
        model = self.model
        if model.machine.hosts > 1 and model.session.run(model.stop_anywhere, {model.stop: len(model.stopped)}):
            model.stopped.append('a signal to another host')  # Model.train names the first entry.
        return bool(model.stopped)


@dataclasses.dataclass(frozen=True)
class Periods:
    """Says what is due at a step. The batch, the duration, and the periods of reports and checkpoints are in images."""

    batch: int
    train: int
    report: int
    save: int

    def due(self, step):
        """Returns what is due at a step: EasyDict(report, save, point) of bools; point: a point of the loss curves."""
        done = step >= self.train

        def passed(period):
            return step > 0 and (done or step // period > (step - self.batch) // period)

        point = max(1, self.report // POINTS)
        return EasyDict(report=passed(self.report), save=passed(self.save), point=passed(point))


class Means:
    """Means of named values over the updates since the last point.

    Args:
        names: of the values.
        state: what the method `state` returned in an earlier process; None: no updates yet.
    """

    def __init__(self, names, state=None):
        self.names = list(names)
        self.count, self.sums = 0, np.zeros(len(self.names))
        with contextlib.suppress(TypeError, ValueError):  # The state is None, or another version wrote it.
            count, sums = int(state[0]), np.array(state[1], np.float64)
            if sums.shape == self.sums.shape:
                self.count, self.sums = count, sums

    def add(self, values):
        """Takes in the values of an update, float [n]."""
        self.count += 1
        self.sums += values

    def take(self):
        """Returns the means by name, and begins anew."""
        means = dict(zip(self.names, (self.sums / self.count).tolist(), strict=True))
        self.count, self.sums = 0, np.zeros_like(self.sums)
        return means

    def state(self):
        """Returns the count and the sums as JSON can hold them. A later process continues from them."""
        return [self.count, self.sums.tolist()]


class ClassifySemi(Model):
    """A semi-supervised classifier: the inputs of an update, and the evaluation.

    Args:
        train_dir, dataset, params: see Model.
        nclass: int, classes.
    """

    def __init__(self, train_dir, dataset, nclass, **params):
        self.nclass = nclass
        super().__init__(train_dir, dataset, nclass=nclass, **params)

    def inputs(self, batch, nu):
        """Returns x, y and label of an update. They come from the dataset, augmented; each can be fed instead.

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
        x = self.dataset.augment(labeled['image'], self.keys('augment_x'))  # [B, H, W, C]
        y = self.dataset.augment(tf.repeat(unlabeled['image'], nu, axis=0), self.keys('augment_y'))  # [B * nu, H, W, C]
        y = tf.reshape(y, [batch, nu] + shape)  # [B, nu, H, W, C]
        return (
            tf.placeholder_with_default(x, [None] + shape, 'x'),
            tf.placeholder_with_default(y, [None, nu] + shape, 'y'),
            tf.placeholder_with_default(labeled['label'], [None], 'labels'),
        )

    def next_batch(self, name, batch):
        """Returns a batch of the set `name`: dict(image [B, H, W, C] in 0 to 255, label int32 [B])."""
        part, gpu = (replicas.get_number(), replicas.get_count()), self.machine.gpu
        stream = self.dataset.stream(name, batch, self.seed, self.step, part)
        with tf.device(gpu):
            if gpu:  # Batches wait on the GPU, as uint8.
                stream = stream.apply(tf.data.experimental.prefetch_to_device(gpu, PREFETCH))
            self.iterators.append(tf.data.make_initializable_iterator(stream))
            found = self.iterators[-1].get_next()
            if gpu:  # On a GPU, tf.gather has no kernel for uint8.
                found['image'] = tf.cast(found['image'], tf.float32)
            return found

    def report(self, step):
        """See Model.report. If the test set's classes differ in size, balanced accuracy is reported too."""
        predicted = self.predictions()
        train, valid, test = self.accuracies(predicted)
        tqdm.write('kimg %-5d  accuracy train/valid/test  %.2f  %.2f  %.2f' % (step >> 10, train, valid, test))
        scalars = {'accuracy': test, 'accuracy/valid': valid, 'accuracy/train_labeled': train}
        labels = self.dataset.sets['test'].labels
        if len(labels) and len(set(np.unique(labels, return_counts=True)[1])) > 1:
            right = predicted[-1] == labels
            scalars['accuracy/balanced'] = 100 * np.mean([right[labels == label].mean() for label in np.unique(labels)])
        return scalars

    @property
    def eval_batch(self):
        """Images evaluated at a time: at most as many as all devices take in an update, to limit the memory."""
        return min(EVAL_BATCH, self.params.batch * (1 + self.params.get('nu', 0)))

    def predictions(self, batch=None, feed_extra=None, classify_op=None):
        """Returns the likeliest classes of the labelled, validation and test images, three int [n].

        Args: see eval_stats.

        Raises:
            Interrupted: a signal asked the training to stop.
        """
        classify_op = self.ops.classify_op if classify_op is None else classify_op
        sets = [self.dataset.sets[name] for name in SUBSETS.values()]
        predicted = []
        for pixels in self.dataset.iterate_equal_batches(sets, batch or self.eval_batch):
            if self.stopped:
                raise Interrupted
            feed = {self.ops.x: self.dataset.to_float(pixels), **(feed_extra or {})}
            predicted.extend(self.session.run(classify_op, feed).argmax(1))
        ends = np.cumsum([len(images) for images in sets])
        return np.split(predicted, ends)[:-1]  # The last part is what filled up the last batch.

    def accuracies(self, predicted):
        """Returns the accuracies of predictions, percent, float [3]; nan for a set without labels."""
        sets = [self.dataset.sets[name] for name in SUBSETS.values()]
        return np.array([compute_accuracy(part, images.labels) for part, images in zip(predicted, sets, strict=True)])

    def eval_stats(self, batch=None, feed_extra=None, classify_op=None):
        """Returns the accuracies on the labelled, validation and test images, percent, float [3].

        Args:
            batch: int, images at a time at most; None for eval_batch.
            feed_extra: dict of further tensors to feed.
            classify_op: float32 [None, nclass], class probabilities; None: those of the averaged weights.
        """
        return self.accuracies(self.predictions(batch, feed_extra, classify_op))

    def tune(self, nimg):
        """Moves batch norm's averages, and nothing else, as updates on nimg training images would."""
        for step in range(0, nimg, self.params.batch):
            self.session.run(self.ops.tune_op, {self.update_key: step})

    def eval_checkpoint(self, ckpt):
        """Prints the accuracies of a checkpoint: raw and averaged weights, before and after tuning batch norm.

        Args:
            ckpt: the prefix of a whole checkpoint, see checkpoints.resolve.

        Returns:
            dict from 'raw', 'ema', 'tuned_raw', 'tuned_ema' to float [3], see eval_stats.
        """
        with self.open_session():
            self.checkpoints.restore(self.session, ckpt)
            self.session.run(self.init_input_op)
            which = dict(raw=self.ops.classify_raw, ema=self.ops.classify_op)
            results = {name: self.eval_stats(classify_op=op) for name, op in which.items()}
            self.tune(16384)
            self.hosts_done.set()
            results.update({'tuned_' + name: self.eval_stats(classify_op=op) for name, op in which.items()})
        print('%-12s' % 'accuracy' + ''.join('%8s' % name for name in SUBSETS))
        for name, accuracies in results.items():
            print('%-12s' % name + ''.join('%8.2f' % accuracy for accuracy in accuracies))
        return results


def compute_accuracy(predicted, labels):
    """Returns the share of right classes in percent, nan if no picture has a class. The arguments are int [n]."""
    known = labels >= 0
    return 100 * np.mean(predicted[known] == labels[known]) if known.any() else np.nan


def print_table(title, rows):
    """Prints rows of equal length under a title, columns aligned."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    print('\n%s' % title)
    for row in rows:
        print('  ' + '  '.join(str(value).ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())
    print(flush=True)


def make_bar(step, train_nimg, disable=False):
    """Returns a tqdm bar over images; on a log file it writes once a minute."""
    interval = 0.5 if os.isatty(2) else 60
    look = dict(unit='img', mininterval=interval, dynamic_ncols=True, smoothing=0.05)
    return tqdm(initial=step, total=train_nimg, disable=disable, **look)


@contextlib.contextmanager
def catching_signals(signals=(signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)):
    """Yields a list to which the names of stop signals are added as they come.

    After the first signal, whichever it was, a Ctrl-C stops the program at once. Other further signals do nothing:
    batch systems send them several times. SIGHUP comes when a terminal closes; under nohup it stays ignored.
    """
    stopped = []

    def handler(number, _):
        stopped.append(signal.Signals(number).name)
        signal.signal(signal.SIGINT, previous[signal.SIGINT])

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    previous = {s: signal.signal(s, handler) for s in signals if s != signal.SIGHUP or not ignored}
    try:
        yield stopped
    finally:
        for s in previous:
            signal.signal(s, previous[s])
