"""A run, decided once, before its data is read and its graph is built: arguments, folder, seed, checkpoint, machine."""

import inspect
import os
import re
import secrets

from easydict import EasyDict

from libml import utils
from libml.cli import options
from libml.cli.options import SEED, Option, Range
from libml.running import checkpoints, hardware, runs

# A run's name leaves out these arguments if they have these values.
UNNAMED = dict(seed=None, whiten=False, p_unlabeled='', precision='float32')
PRECISIONS = ('float32', 'tf32', 'bfloat16')
OPTIONS = dict(
    train_dir=Option(
        './experiments', 'Folder of all runs: this run goes to <train_dir>/<dataset>/<name>.', bool, 'a path', path=True
    ),
    run_name=Option(
        '',
        "Name of the run's folder. Default: the method's name and all its arguments.",
        lambda name: re.fullmatch(r'\w[\w.+@=-]*', name) and name not in runs.PARTS,
        'letters, digits and any of _ . + @ = -, first a letter or a digit; and not tf or args',
    ),
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
    seed=Option(None, 'Fixes every random choice. Default: a new seed for each run.', SEED, type=int),
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
    debug=Option(False, 'Show the whole traceback of an error instead of one line, and each variable at the start.'),
)


def locate_run(method, train_dir, seed=None, **params):
    """Returns the folder of a run: the class and the arguments sorted by name; see UNNAMED for what is left out."""
    named = {name: value for name, value in dict(params, seed=seed).items() if UNNAMED.get(name, ...) != value}
    return os.path.join(train_dir, '_'.join([method.__name__] + ['%s%s' % item for item in sorted(named.items())]))


class Setting:
    """What a run is.

    Attributes:
        method: the class of its model; params: EasyDict, the arguments of the method's `model`.
        run: runs.Run, its folder.
        seed: int; is_seeded: whether the seed is given, or the run has one already.
        precision: of the networks, one of PRECISIONS.
        machine: hardware.Machine; None until it is chosen.
        held: checkpoints.Held, what the run begins with; None: its initial values, or it is not known yet.
        log_device_placement, debug: bools, see OPTIONS.
    """

    def __init__(
        self, method, train_dir, params, seed=None, precision='float32', whiten=False, p_unlabeled='', name=''
    ):
        """Takes the attributes of the same names.

        Args:
            train_dir: folder under which the run's own folder goes.
            seed: None: a new run draws one, a continued run keeps its own.
            whiten, p_unlabeled: see data.DataSet; part of the name of the run's folder.
            name: of the run's folder; '': see locate_run.

        Raises:
            utils.Error: the name of the folder is too long, its args.json is damaged, or a run of this name has other
                arguments.
        """
        self.method, self.params, self.precision = method, EasyDict(params), precision
        named = dict(whiten=whiten, p_unlabeled=p_unlabeled, precision=precision)
        folder = os.path.join(train_dir, name) if name else locate_run(method, train_dir, seed, **named, **params)
        self.run = runs.Run(folder)
        self.run.check_name()
        if name:  # It does not say the arguments.
            self.run.check_args(
                {**named, **params, **({} if seed is None else {'seed': seed}), 'class': method.__name__}
            )
        self.named = dict(named, seed=seed)
        self.is_seeded = seed is not None or 'seed' in self.run.args
        self.seed = self.run.args.get('seed', secrets.randbits(31)) if seed is None else seed
        self.machine = self.held = self._found = None
        self.log_device_placement = self.debug = False

    @property
    def wants_determinism(self):
        """Whether TensorFlow is asked for deterministic operations: for a GPU and a given seed, as they are slower."""
        return self.named['seed'] is not None and bool(self.machine.gpu)

    def use(self, machine):
        """Takes the hardware.Machine of the run; raises utils.Error if the arguments do not fit its devices."""
        self.method.check_params(devices=machine.replicas, **self.params)
        self.machine = machine

    def choose_machine(self, flop, updates, xla, devices):
        """Chooses the machine, see hardware.choose. xla: None: the run's own choice, if it has made one."""
        self.use(hardware.choose(flop, updates, self.run.args.get('xla') if xla is None else xla, devices))

    def hold(self, ckpt):
        """Holds a checkpoint that the user named; returns it as checkpoints.Held, which says what is raised."""
        if not self.held:
            self.held = runs.resolve(ckpt)
        return self.held

    def find_start(self, init_ckpt=''):
        """Finds what the run begins with: its newest whole checkpoint, else init_ckpt if given. Holds it.

        What was found before is kept, unless the run's folder has got other checkpoints since.

        Returns:
            {checkpoint of the run: error} of the newer ones that are damaged.

        Raises:
            utils.Error: see checkpoints.resolve.
        """
        present = checkpoints.find(self.run.checkpoint_dir)
        if self._found is None or self._found[0] != present:
            self.release()
            self.held, damage = checkpoints.find_newest_whole(self.run.checkpoint_dir)
            self._found = present, damage
        if not self.held and init_ckpt:
            self.hold(init_ckpt)
        return self._found[1]

    def release(self):
        """Lets go of what is held."""
        if self.held:
            self.held.close()
        self.held = self._found = None

    def check_origin(self, dataset, evaluates=False):
        """Checks that the checkpoint that is held goes with the data, a data.DataSet.

        Args:
            evaluates: whether it is evaluated: then the data must be that of its run.

        Raises:
            utils.Error: its run learned from other data, or classes of other names.
        """
        folder = runs.find_folder(self.held.ckpt)
        is_own = folder == os.path.abspath(self.run.folder)
        source = self.run if is_own else runs.Run(folder)
        if evaluates:
            dataset.check_identity(source.args, source.folder)
            whiten, text = source.args.get('whiten', dataset.whiten), '%s was trained with whiten=%s: give the same'
            utils.refuse(whiten != dataset.whiten, text, source.folder, whiten)
        elif not is_own:
            before, now = source.args.get('classes') or [], list(dataset.family.classes)
            if before and now and before != now:
                shown = (', '.join(map(utils.escape, names)) for names in (before, now))
                text = '%s was trained on the classes %s, in this order; this dataset has %s: take another --init_ckpt'
                raise utils.Error(text % (folder, *shown))
            learned = (source.args.get('data') or {}).get('test')
            if learned and learned != (dataset.fingerprints or {}).get('test'):
                text = (
                    '%s was trained on data with another test set: it may have learned from test pictures of this run'
                )
                utils.warn(text % folder)

    def is_finished(self, train_nimg):
        """Returns whether a run of train_nimg images has nothing left to do. Reads neither images nor graph."""
        chosen = {name: value for name, value in self.named.items() if name != 'seed'}
        return bool(self.held) and self.run.is_finished(self.held.ckpt, train_nimg, **chosen)


def decide(method, train_dir, dataset, params, seed=None, precision='float32', machine=None):
    """Returns the Setting of a model that is constructed with these arguments, see train.Model.

    Raises:
        utils.Error: one is not allowed. TypeError: neither PARAMS nor a function of the method names it.
    """
    functions = method.model, getattr(method, 'guess_label', method.model)
    known = {'nclass', *method.PARAMS}.union(*(inspect.signature(function).parameters for function in functions))
    if unknown := sorted(set(params) - known):
        raise TypeError('%s has no argument %s' % (method.__name__, unknown[0]))
    own = {name: value for name, value in params.items() if name in method.PARAMS}
    options.fill({**OPTIONS, **method.PARAMS}, dict(own, seed=seed, precision=precision))
    found = Setting(method, train_dir, params, seed, precision, dataset.whiten, dataset.p_unlabeled)
    found.use(machine or hardware.Machine())
    return found


def describe(setting, dataset, periods):
    """Returns the contents of args.json: the arguments, the data's fingerprints, the number of devices.

    Args:
        dataset: data.DataSet.
        periods: dict of further arguments: train_kimg, report_kimg, save_kimg, keep_ckpt, init_ckpt.
    """
    return dict(
        setting.params,
        **{'class': setting.method.__name__, 'dataset': dataset.name, 'seed': setting.seed},
        **dataset.identity(),
        whiten=dataset.whiten,
        p_unlabeled=dataset.p_unlabeled,
        precision=setting.precision,
        xla=setting.machine.xla,
        devices=setting.machine.replicas,
        **periods,
    )


def check_hosts(setting, o):
    """Checks that all hosts of a run were started alike, and with a seed; o: dict of the options.

    Raises:
        utils.Error: hosts differ, or each would draw a seed of its own.
    """
    setting.machine.check_hosts(repr(sorted(o.items())))
    utils.require('seed', o['seed'], setting.is_seeded or setting.machine.hosts == 1, 'given, the same on all hosts')
