"""MixMatch, and what surrounds it.

Seven files are MixMatch; a newcomer reads these and nothing else. Their names are those of the published code:

    layers      losses, sharpening, MixUp, interleaving: functions of tensors
    networks    the classifiers
    models      a semi-supervised model: its inputs, its classifier
    train       a model's graph, its evaluation and its training
    data        pictures, their streams, their augmentation
    data_pair   datasets by name, such as cifar10.3@250-5000
    utils       what these stand on

The method itself is ablation/ab_mixmatch.py. Beside these stand `records` (record files), `trained` (a run as a
classifier), `experiment` (a method's command line), `family` (what a dataset of a name is) and `files` (new files,
JSON). `sheet` draws the method's steps. Behind them are three wings:

    intake      from the world to records: archives, pictures, tables of labels, folders, splits
    running     what keeps a run alive: its folder, checkpoints, devices and loop
    cli         how a script starts: options, streams, exit codes

Imports run one way. docs/design.md has a picture.
"""

__version__ = '1.1.0.dev0'
