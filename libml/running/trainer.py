"""Trains a model: session, checkpoints, log, signals, and the loop of updates, reports and checkpoints."""

import contextlib
import dataclasses
import shlex
import signal
import sys
import tempfile
import threading
import time

import numpy as np
import tensorflow.compat.v1 as tf
from easydict import EasyDict
from tqdm import tqdm

from libml import utils
from libml.cli import progress
from libml.running import checkpoints, folding, hardware, program, replicas, runs, setting

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: stopped by a signal, saved; the same command continues from there.
POINTS = 16  # Points that each loss curve gets between two reports.
# What batch systems and terminals send to stop a process.
SIGNALS = ('SIGTERM', 'SIGUSR1', 'SIGUSR2', 'SIGXCPU', 'SIGHUP', 'SIGINT')


class Interrupted(Exception):
    """A signal came during a report."""


class Trainer:
    """Trains a model.

    Attributes:
        model: train.Model, its graph built.
        run: runs.Run that this host writes: only host 0 writes the run's folder, the others one of their own.
        checkpoints: checkpoints.Checkpoints of the run.
        scalars: dict from a tag of TensorBoard to float32 [], which become curves; values: all of them, float32 [n].
        floats: all variables of floating point.
        train_op: an update, compiled if the machine compiles it.
        sheet: see models.MultiModel.build_sheet.
        init_op, init_input_op: give variables their first values; begin the input at the present step.
    """

    def __init__(self, model):
        """Adds to the model's graph what its training needs; all variables exist already."""
        self.model = model
        run, machine = model.setting.run, model.machine
        self._scratch = tempfile.TemporaryDirectory() if machine.host else None
        self.run = runs.Run(self._scratch.name) if machine.host else run
        self.scalars = {**find_summaries(), **model.ops.get('losses', {}), **model.ops.get('monitors', {})}
        self.values = tf.stack(list(self.scalars.values()) or [0.0])  # One fetch is faster than several.
        self.train_op = model.ops.train_op
        if machine.compiles_update:
            self.values, self.train_op = program.compile_update(self.values, self.train_op)
        self.sheet = None
        self.floats = [v for v in tf.global_variables() if v.dtype.is_floating]
        self._hosts = replicas.Hosts(machine.strategy) if machine.hosts > 1 else None
        self.checkpoints = checkpoints.Checkpoints(self.run.checkpoint_dir)
        hardware.keep_draws(model.graph)
        self.init_op = tf.global_variables_initializer()
        self.init_input_op = tf.group(*[iterator.initializer for iterator in model.iterators])

    @contextlib.contextmanager
    def opening_session(self):
        """Opens the default session, over the model's graph, with initialised variables."""
        chosen, machine = self.model.setting, self.model.machine
        config = machine.config()
        self.model.configure(config)
        config.log_device_placement = chosen.log_device_placement
        with (
            hardware.switching(tf32=chosen.precision == 'tf32'),
            tf.Session(machine.target, self.model.graph, config) as session,
        ):
            session.run(self.init_op)
            yield session

    def train(self, train_nimg, report_nimg, save_nimg, keep_ckpt, init_ckpt):
        """Trains; see train.Model.train."""
        model, chosen = self.model, self.model.setting
        model.dataset.check_identity(chosen.run.args, chosen.run.folder)
        kimg = dict(train_kimg=train_nimg / 1024, report_kimg=report_nimg / 1024, save_kimg=save_nimg / 1024)
        args = setting.describe(chosen, model.dataset, dict(kimg, keep_ckpt=keep_ckpt, init_ckpt=init_ckpt))
        chosen.run.check_args(args)
        if checkpoints.find(self.run.checkpoint_dir):  # A resumed run keeps the init_ckpt that it began with.
            args['init_ckpt'] = chosen.run.args.get('init_ckpt', init_ckpt)
        if not model.machine.host:
            chosen.find_start(init_ckpt)
            if chosen.held:  # Before anything is written.
                chosen.check_origin(model.dataset)
                chosen.held.compare(self.checkpoints.needed)
                step = chosen.held.read({'global_step': 'int64 ()'})['global_step']
                text = 'nothing would be trained: %s is at %g kimg, and --train_kimg is %g'
                own = chosen.held.ckpt in checkpoints.find(self.run.checkpoint_dir)
                utils.refuse(step >= train_nimg and not own, text, chosen.held.ckpt, step / 1024, train_nimg / 1024)
        if not self.sheet:
            with model.graph.as_default():
                self.sheet = model.build_sheet()
        with (
            self.run.locking(),
            catching_signals() as stopped,
            model.machine.watching_hosts() as hosts_done,
            self.opening_session() as session,
        ):
            print(describe_start(self.run.folder, args, chosen.debug), flush=True)
            means = self.restore(session, init_ckpt)
            if self._hosts:
                session.run(self._hosts.broadcast_op)
            step = int(session.run(model.step))
            session.run(self.init_input_op)
            session.graph.finalize()
            self.run.remove_unfinished()
            self.run.write_args(args)
            hparams = {name: value for name, value in args.items() if name not in runs.NOT_HPARAMS}
            text = '%s\n%s' % (utils.escape(shlex.join(sys.argv)), describe_start(self.run.folder, args, debug=True))
            with (
                runs.EventLog(self.run.checkpoint_dir, self.fold_graph, step, hparams, text) as log,
                make_bar(step, train_nimg, disable=model.machine.host > 0) as bar,
            ):
                periods = Periods(model.batch, train_nimg, report_nimg, save_nimg, keep_ckpt)
                loop = Loop(self, session, step, means, periods, log, bar, stopped)
                finished = loop.train()
                hosts_done.set()  # A host that ends from here on is no error.
                if stopped and loop.saved < loop.step:
                    loop.save()
        if not finished:
            utils.say('Stopped by %s at step %d; the same command continues from there.' % (stopped[0], loop.step))
            raise SystemExit(EXIT_INTERRUPTED)

    def fold_graph(self):
        """Returns the tf.GraphDef of an update and of the evaluation, see folding.fold_graph."""
        ops, parts = self.model.ops, {tensor.op: tag.split('/')[0] for tag, tensor in self.scalars.items()}
        parts.update(dict.fromkeys((ops.train_op, ops.tune_op), 'update'))
        parts.update({tensor.op: 'evaluate' for tensor in (ops.classify_op, ops.classify_raw)})
        return folding.fold_graph(self.model.graph, parts)

    def restore(self, session, init_ckpt):
        """Restores what the run begins with. Damaged newer checkpoints are renamed: nothing overwrites them.

        Returns the Means that were saved with the run's own checkpoint; without one, new Means.
        """
        if self.model.machine.host:  # Host 0 broadcasts.
            return Means(self.scalars)
        chosen = self.model.setting
        for ckpt, error in chosen.find_start(init_ckpt).items():
            checkpoints.put_aside(ckpt)
            utils.say('Continuing without a damaged checkpoint, which is kept as %s*: %s' % (checkpoints.ASIDE, error))
        if chosen.held:
            self.checkpoints.restore(session, chosen.held)
            utils.say('Continuing from %s' % chosen.held.ckpt)
        elif runs.read_accuracies(self.run.folder):
            utils.warn('%s has reports, but no whole checkpoint: it begins anew' % self.run.folder)
        chosen.release()
        return Means(self.scalars, self.checkpoints.read_means())

    def check_finite(self, values, step):
        """Raises utils.Error if a loss or monitor is not finite; values are those of self.scalars."""
        if not np.isfinite(values).all():
            shown = ', '.join('%s %g' % item for item in zip(self.scalars, values, strict=True))
            raise self.divergence_error('the loss is not finite at step %d (%s)' % (step, shown))

    def check_finite_weights(self, session, step):
        """Raises utils.Error if a variable is not finite. This can happen although the loss was finite."""
        if not all(np.isfinite(value).all() for value in session.run(self.floats)):
            raise self.divergence_error('the weights are not finite at step %d' % step)

    def divergence_error(self, what):
        """Returns the error of a diverged run: the flag to change, and the checkpoint to start from."""
        remedy = self.model.remedy()
        if not self.checkpoints.last:
            return utils.Error('%s, and there is no checkpoint yet: start with %s' % (what, remedy or 'other flags'))
        text = '%s; the last good checkpoint is %s: start a new run from it by %s --init_ckpt=%s'
        return utils.Error(text % (what, self.checkpoints.last, remedy or '(other flags)', self.checkpoints.last))

    def ask_hosts(self, session, stopped):
        """Returns whether a signal asked any host to stop. All hosts get the same answer, so they stop together."""
        if self._hosts and self._hosts.is_any(session, len(stopped)):
            stopped.append('a signal to another host')  # `train` names the first entry.
        return bool(stopped)


def find_summaries():
    """Returns the scalars that were given to tf.summary.scalar in the current graph, {tag: float32 []}."""
    ops = [summary.op for summary in tf.get_collection(tf.GraphKeys.SUMMARIES) if summary.op.type == 'ScalarSummary']
    return {tf.get_static_value(op.inputs[0]).item().decode(): tf.cast(op.inputs[1], tf.float32) for op in ops}


class Loop:
    """Makes a model's updates, checkpoints and reports when they are due, until the run ends or a signal comes.

    A checkpoint is saved before the report of its step, so that no update is lost if the report fails.

    Args:
        trainer: Trainer; session: its open session.
        step: int, images seen before.
        means: Means, of the updates since the last point of the curves.
        periods: Periods.
        log: runs.EventLog.
        bar: tqdm bar over images.
        stopped: list of the names of the signals that asked to stop, see catching_signals.
    """

    def __init__(self, trainer, session, step, means, periods, log, bar, stopped):
        self.trainer, self.session, self.step, self.means, self.periods = trainer, session, step, means, periods
        self.log, self.bar, self.stopped = log, bar, stopped
        self.first = self.saved = step
        self.remarked = False
        model, fetches = trainer.model, [trainer.values, trainer.train_op]
        # By default nothing is fed: the graph draws its images itself, see ClassifySemi.inputs.
        plain = session.make_callable(fetches)
        self.make_update = (lambda: session.run(fetches, model.draw_feed(session))) if model.fed else plain

    def train(self):
        """Trains; returns whether nothing is left to do."""
        report_due = self.periods.due(self.step).report and self.lacks_report()
        while True:
            if report_due:  # First, so that a continued run makes up for a missing report.
                report_due = not self.try_report()
            # A signal that comes after this check takes effect after the next update.
            if self.trainer.ask_hosts(self.session, self.stopped) or self.step >= self.periods.train:
                return self.step >= self.periods.train and not report_due
            self.update()
            due = self.periods.due(self.step)
            report_due = due.report
            if due.save or due.report:
                self.trainer.check_finite_weights(self.session, self.step)
            if due.point:
                self.write_point()
            if due.save:
                self.save()

    def update(self):
        """Makes an update."""
        clock = time.monotonic()
        try:
            values, _ = self.make_update()
        except tf.errors.ResourceExhaustedError as error:
            text = 'the memory of the device is full: see nvidia-smi, or take a smaller --batch (%s)'
            raise utils.Error(text % utils.explain(error)) from error
        except tf.errors.OpError as error:
            if self.step == self.first and self.trainer.model.machine.compiles_update:
                raise utils.Error('the first update failed; try --noxla: %s' % utils.explain(error)) from error
            raise
        if self.step == self.first:
            tqdm.write('The first update took %.1f s' % (time.monotonic() - clock))
            self.bar.unpause()  # So that the time left is without the compilation.
        self.step += self.periods.batch
        self.trainer.check_finite(values, self.step)
        self.means.add(values)
        self.bar.update(self.periods.batch)

    def write_point(self):
        """Writes a point of the curves. Says once what the model remarks on one."""
        point = self.means.take()
        self.log.scalars(self.step, point)
        remark = '' if self.remarked else self.trainer.model.remark(point)
        if remark:
            self.remarked = True
            tqdm.write(remark)

    def save(self):
        """Writes a checkpoint on host 0, and beside it the means since the last point of the curves."""
        if not self.trainer.model.machine.host:
            self.trainer.checkpoints.save(self.session, self.step, self.periods.keep, self.means.state())
        self.saved = self.step

    def lacks_report(self):
        """Returns whether this step has a checkpoint of the run's own, but no report."""
        trainer = self.trainer
        reports = runs.read_accuracies(trainer.run.folder) if trainer.checkpoints.is_own else [(self.step, None)]
        return not any(at == self.step for at, _ in reports)

    def try_report(self):
        """Makes a report, on host 0. Returns False if a signal came before its end, else True."""
        if self.trainer.model.machine.host:
            return True
        clock = time.monotonic()
        try:
            self.log.scalars(self.step, self.trainer.model.report(self.step, self.stopped))
            if self.trainer.sheet:
                self.log.image(self.step, 'sheet', self.trainer.sheet.draw(self.session))
        except Interrupted:
            return False
        self.bar.set_postfix_str('report %.1f s' % (time.monotonic() - clock), refresh=False)
        return True


@dataclasses.dataclass(frozen=True)
class Periods:
    """Says what is due at a step. The batch, the duration, and the periods of reports and checkpoints are in images.

    keep: how many checkpoints are kept.
    """

    batch: int
    train: int
    report: int
    save: int
    keep: int = 50

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
        if state is None:
            return
        try:
            count, sums = int(state[0]), np.array(state[1], np.float64)
            if sums.shape == self.sums.shape and 0 <= count < 1 << 53 and np.isfinite(sums).all():
                self.count, self.sums = count, sums
        except (TypeError, ValueError, LookupError, OverflowError):
            utils.warn('the means of the curves saved with the checkpoint cannot be used: they begin anew')

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


def describe_start(folder, args, debug=False):
    """Returns the configuration, and the variables, a line a kind; debug: a line each."""
    shown = {name: value for name, value in args.items() if name not in runs.DATA_ARGS}
    tables, kinds, variables = {'Configuration': [('folder', folder), *sorted(shown.items())]}, {}, utils.model_vars()
    for v in variables:
        kinds.setdefault(v.op.name.rsplit('/', 1)[-1], []).append(v)  # Such as kernel.
    if debug:
        tables['Variables'] = [(v.op.name, 'x'.join(map(str, v.shape)), count([v])) for v in variables]
    rows = [(kind, len(some), count(some)) for kind, some in (*kinds.items(), ('all', variables))]
    tables['Variables (--debug names each)'] = [('kind', 'variables', 'parameters'), *rows]
    return '\n'.join(format_table(title, rows) for title, rows in tables.items())


def count(variables):
    """Returns how many numbers some variables hold."""
    return sum(v.shape.num_elements() for v in variables)


def format_table(title, rows):
    """Returns rows of equal length under a title, columns aligned."""
    rows = [list(map(utils.escape, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ('  '.join(value.ljust(width) for value, width in zip(row, widths, strict=True)) for row in rows)
    return '\n%s\n' % title + ''.join('  %s\n' % line.rstrip() for line in lines)


def make_bar(step, train_nimg, disable=False):
    """Returns a tqdm bar over images."""
    look = dict(unit='img', mininterval=0.5, smoothing=0.05)
    return progress.make_bar(initial=step, total=train_nimg, disable=disable, **look)


@contextlib.contextmanager
def catching_signals(names=SIGNALS):
    """Gives a list to which the names of stop signals are added as they come.

    After the first signal, whichever it was, a Ctrl-C stops the program at once. Other further signals do nothing:
    batch systems send them several times. SIGHUP comes when a terminal closes; under nohup it stays ignored. Only the
    main thread can catch signals.
    """
    stopped = []
    if threading.current_thread() is not threading.main_thread():
        utils.warn('this is not the main thread: a signal ends the training without a checkpoint')
        yield stopped
        return

    def handler(number, _):
        stopped.append(signal.Signals(number).name)
        signal.signal(signal.SIGINT, previous[signal.SIGINT])

    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    previous = {s: signal.signal(s, handler) for s in numbers if s != signal.SIGHUP or not ignored}
    try:
        yield stopped
    finally:
        for s in previous:
            signal.signal(s, previous[s])
