"""The command line of a method: it trains a run, or evaluates a checkpoint. A method is a subclass of MultiModel."""

import os
import shlex
import sys

import tensorflow.compat.v1 as tf
from easydict import EasyDict

from libml import data_pair, utils
from libml.cli import options, script
from libml.cli.options import Option, Range
from libml.intake import splits
from libml.running import setting

PARAMS = dict(  # What every published method takes, besides its own PARAMS and the network's.
    batch=Option(64, 'Labelled images in an update, and as many unlabelled ones.', Range(1, 65536)),
    lr=Option(0.002, "Adam's learning rate.", Range(above=0)),
    wd=Option(0.02, 'Weight decay: each update multiplies the kernels by 1 - wd * lr.', Range(low=0)),
    ema=Option(0.999, 'Decay of the moving average of the weights.', Range(0, below=1)),
)
WARMUP_KIMG = Option(  # The published warmup_pos, 0.4, is a share of the 65536 kimg that a published run takes.
    26214, 'kimg over which the unlabelled loss gains its weight; published: 0.4 of --train_kimg.', Range(low=0)
)
OPTIONS = {**data_pair.TRAINING_OPTIONS, **setting.OPTIONS}  # Besides the method's PARAMS.


def list_options(method):
    """Returns the options of a method's command line."""
    return {**method.PARAMS, **OPTIONS}


def main(method):
    """Does what the command line asks for."""
    usage = 'give flags only, such as --dataset=digits.1@20-100'
    script.run(lambda **chosen: start(method, EasyDict(chosen)), list_options(method), usage)


def run(method, **given):
    """Trains a run, or evaluates a checkpoint.

    Args:
        method: a subclass of models.MultiModel.
        **given: options of `list_options`. An option that is not given has its default.

    Raises:
        utils.Error: an option, the dataset, a checkpoint or a host is not as it must be; or see train.Model.train.
        SystemExit: see there.
    """
    start(method, EasyDict(options.fill(list_options(method), given)))


def start(method, o):
    """As `run`; o is an EasyDict of all options, which are checked."""
    split, data_dir = data_pair.parse(o.dataset), data_pair.find_data_dir(o.data_dir)
    family = data_pair.find_family(data_dir, split.name)
    folder, train_nimg = os.path.join(o.train_dir, str(split)), o.train_kimg << 10
    params, chosen = method.arguments(o, family), dict(whiten=o.whiten, p_unlabeled=o.p_unlabeled)
    decided = setting.Setting(method, folder, params, o.seed, o.precision, name=o.run_name, **chosen)
    if o.eval_ckpt:  # Checkpoints are read now: reading the data takes longer.
        decided.hold(o.eval_ckpt)
    else:
        decided.find_start(o.init_ckpt)
        if decided.is_finished(train_nimg):
            decided.release()
            data_pair.check_unchanged(split, data_dir, decided.run.args.get('data'), decided.run.folder)
            text = '%s is finished: to train it longer, give a --train_kimg above %d'
            utils.say(text % (decided.run.folder, o.train_kimg))
            return
    updates = 0 if o.eval_ckpt else train_nimg // o.batch
    decided.choose_machine(method.flop(family.shape, **params), updates, o.xla, o.devices)
    decided.log_device_placement, decided.debug = o.log_device_placement, o.debug
    setting.check_hosts(decided, o)
    if decided.machine.host:  # From here on, only host 0 prints to stdout.
        sys.stdout = script.open_nowhere()
    splits.provide(split, data_dir)
    print('Reading %s' % split, flush=True)
    needed = method.needs_unlabeled(**params)
    dataset = data_pair.read_dataset(split, data_dir, needs_unlabeled=needed, **chosen)
    with tf.Graph().as_default():
        model = method(folder, dataset, setting=decided, **params)
        if o.eval_ckpt:  # By the training graph, which can tune batch norm again.
            model.eval_checkpoint(o.eval_ckpt)
        else:
            model.train(train_nimg, o.report_kimg << 10, o.save_kimg << 10, o.keep_ckpt, o.init_ckpt)
            print(describe_next(decided.run.folder, data_dir))


def describe_next(folder, data_dir):
    """Returns the lines that say how to use a finished run, for a shell. data_dir: folder of the datasets."""
    place = data_pair.name_data_dir(data_dir)
    return (
        'What it has learned:\n'
        f'  RUN={shlex.quote(folder)}\n'
        f'  python scripts/evaluate.py "$RUN"{place}\n'
        f'  python scripts/predict.py "$RUN" PICTURES --out predictions.csv{place}\n'
        f'  python scripts/export.py "$RUN" OUT{place}'
    )
