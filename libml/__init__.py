"""MixMatch, and what surrounds it.

Besides the method itself, ablation/ab_mixmatch.py, a newcomer reads seven files. Their names are the published code's:

    layers      losses, sharpening, MixUp, interleaving: functions of tensors
    networks    the classifiers
    models      a semi-supervised model: its classifier, and what a method may say of itself
    train       a model's graph, its inputs, its evaluation and its training
    data        pictures, their streams, their augmentation
    data_pair   datasets by name, such as cifar10.3@250-5000
    utils       what these stand on

Beside these stand `records` (record files), `trained` (a run as a classifier), `review` (the page on which a person
corrects its guesses), `experiment` (a method's command line), `family` and `published` (what a dataset of a name is),
and `files` (new files, JSON). `sheet` draws the method's steps. Behind them are three wings:

    intake      from the world to records: archives, pictures, tables of labels, folders, splits
    running     what keeps a run alive: its folder, checkpoints, devices and loop
    cli         how a script starts: options, streams, exit codes

No import goes in a circle. docs/design.md has a picture.
"""

__version__ = '1.1.0.dev0'
