"""The command line of a method: it trains a run, or evaluates a checkpoint. A method is a subclass of MultiModel."""

import functools
import os
import shlex
import sys

from easydict import EasyDict

from libml import data_pair, train, utils
from libml.cli import options, script
from libml.running import checkpoints, hardware, runs

OPTIONS = {**data_pair.TRAINING_OPTIONS, **train.OPTIONS}  # Besides the method's PARAMS.


def list_options(method):
    """Returns the options of a method's command line."""
    return {**method.PARAMS, **OPTIONS}


def main(method):
    """Does what the command line asks for."""
    script.run(
        functools.partial(run, method), list_options(method), 'give flags only, such as --dataset=digits.1@20-100'
    )


def run(method, **given):
    """Trains a run, or evaluates a checkpoint.

    Args:
        method: a subclass of models.MultiModel.
        **given: options of `table`. An option that is not given has its default.

    Raises:
        utils.Error: an option, the dataset, a checkpoint or a host is not as it must be; or see train.Model.train.
        SystemExit: see there.
    """
    o = EasyDict(options.fill(list_options(method), given))
    split, data_dir = data_pair.parse(o.dataset), data_pair.find_data_dir(o.data_dir)
    family = data_pair.find_family(data_dir, split.name)
    params, train_nimg = method.arguments(o, family), o.train_kimg << 10
    folder = os.path.join(o.train_dir, str(split))
    chosen = dict(whiten=o.whiten, p_unlabeled=o.p_unlabeled)
    saved = runs.Run(method.run_dir(folder, o.seed, precision=o.precision, **chosen, **params))
    saved.check_name()

    # Checkpoints are checked now: reading the data takes longer.
    if o.eval_ckpt:
        o.eval_ckpt = checkpoints.resolve(o.eval_ckpt)
    elif saved.is_finished(train_nimg, precision=o.precision, **chosen):
        data_pair.check_unchanged(split, data_dir, saved.args.get('data'), saved.folder)
        print('%s is finished: to train it longer, give a --train_kimg above %d' % (saved.folder, o.train_kimg))
        return
    else:
        checkpoints.initial(saved.checkpoint_dir, o.init_ckpt)  # Raises if it is missing or damaged.

    updates = 0 if o.eval_ckpt else train_nimg // o.batch
    xla = saved.args.get('xla') if o.xla is None else o.xla  # A resumed run keeps its choice.
    machine = hardware.choose(method.flop(family.shape, **params), updates, xla, o.devices)
    method.check(machine.replicas, **params)  # Again, now with the number of devices.
    join_hosts(machine, o, seeded=o.seed is not None or bool(saved.args))
    print('Reading %s' % split, flush=True)
    dataset = data_pair.read_dataset(split, data_dir, needs_unlabeled=o.get('w_match', 1) > 0, **chosen)
    model = method(folder, dataset, seed=o.seed, precision=o.precision, machine=machine, **params)
    model.config.log_device_placement = o.log_device_placement
    if o.eval_ckpt:  # By the training graph, which can tune batch norm again.
        source = runs.Run(runs.find_folder(o.eval_ckpt))
        dataset.check_identity(source.args, source.folder)
        model.eval_checkpoint(o.eval_ckpt)
    else:
        model.train(train_nimg, o.report_kimg << 10, o.save_kimg << 10, o.keep_ckpt, o.init_ckpt)
        print(what_next(saved.folder, o.data_dir))


def join_hosts(machine, o, seeded):
    """Checks that all hosts of a run were started alike. From here on, only host 0 prints to stdout.

    Args:
        machine: hardware.Machine.
        o: dict of the options.
        seeded: whether the seed is given, or the run has one already.

    Raises:
        utils.Error: hosts differ, or each would draw a seed of its own.
    """
    machine.check_hosts(repr(sorted(o.items())))
    utils.require('seed', o['seed'], seeded or machine.hosts == 1, 'given, the same on all hosts')
    if machine.host:
        sys.stdout = script.open_nowhere()


def what_next(folder, data_dir):
    """Returns the lines that say how to use a finished run. data_dir is the flag's value; None stands for $ML_DATA."""
    run = shlex.quote(folder)
    place = ' --data_dir=%s' % shlex.quote(data_dir) if data_dir else ''
    return (
        'What it has learned:\n'
        f'  python scripts/evaluate.py {run}{place}\n'
        f'  python scripts/predict.py {run} PICTURES --out predictions.csv{place}\n'
        f'  python scripts/export.py {run} OUT{place}'
    )
