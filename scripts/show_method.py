"""Draws what MixMatch does with a few unlabelled pictures, by the weights of a run: the method in one picture.

    python scripts/show_method.py RUN --out method.png

A column is a picture. From the top to the bottom: the picture as it is; its augmentations (K of them, `--nu`), each
with the network's prediction; the mean of the predictions; the sharpened guess; the partner and the mixed picture, each
with its label. The functions of the method draw at random and compute all of it; only the pictures are chosen here.
"""

import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # The libml beside this file.
    from libml.cli import quiet

    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

import tensorflow.compat.v1 as tf

from ablation.ab_mixmatch import PARAMS, AblationMixMatch
from libml import data_pair, files, sheet, trained, utils
from libml.cli import script
from libml.cli.options import SEED, Option, Range
from libml.running import runs

OPTIONS = dict(
    out=Option('method.png', 'Where the picture goes; an older one is replaced.', path=True),
    number=Option(4, 'Pictures to show.', Range(1, 12)),
    seed=Option(1, 'Chooses the pictures and the draws.', SEED),
    ckpt=trained.OPTIONS['ckpt'],
    **data_pair.OPTIONS,
)


def compute(run, seed, ckpt='', data_dir=None):
    """Returns the run's data.DataSet, its args, and what sheet.Sheet.compute returns, by a checkpoint of the run.

    Raises:
        utils.Error: the run is another method's, or its dataset or its checkpoint is gone or another.
    """
    folder = runs.find_folder(run)
    with runs.resolve(ckpt or run, folder) as held:
        args = trained.read_args(folder)
        missing = sorted(set(PARAMS) - set(args))
        text = '%s is a run of %s: only those of MixMatch can be shown'
        if missing or args.get('class', 'AblationMixMatch') != 'AblationMixMatch':
            raise utils.Error(text % (folder, utils.escape(args.get('class', 'another method'))))
        dataset = trained.read_dataset(folder, args, data_dir, args.get('whiten', False), needs_unlabeled=True)
        with tf.Graph().as_default():
            model = AblationMixMatch('', dataset, seed=seed, nclass=dataset.nclass, **{n: args[n] for n in PARAMS})
            steps = sheet.Sheet(model, seed)
            with model.trainer.opening_session() as session:
                model.trainer.checkpoints.restore(session, held)
                return dataset, args, steps.compute(session)


def show(run, out='method.png', number=4, seed=1, ckpt='', data_dir=None):
    """Writes the picture of a run; the arguments are the options."""
    utils.require('out', out, out, 'a path')
    dataset, args, found = compute(run, seed, ckpt, data_dir)
    with files.naming(out), files.replacing(os.fspath(out)) as part:
        sheet.draw(found, dataset, args['T'], number).save(part, 'PNG')
    utils.say('picture: %s' % out)


if __name__ == '__main__':
    script.run(show, OPTIONS, 'which run? Such as: python scripts/show_method.py RUN --out method.png')
