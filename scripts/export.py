"""Exports what a run has learned as a SavedModel, which plain TensorFlow loads without this project.

    python scripts/export.py RUN OUT [--tflite]

RUN is the folder of a run, OUT the folder to make. The signature `serving_default` takes `images`, uint8
[None, H, W, C], and gives `probabilities`, float32 [None, nclass], and the names of the `classes`, string [nclass].
Pixels are normalised inside; pictures of another size are an error. --tflite writes OUT/model.tflite, too, and
OUT/labels.txt, the name of a class in each line.
"""

import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # The libml beside this file.
    from libml.cli import quiet

    quiet.import_tensorflow()  # Must come first: it hides TensorFlow's start-up messages.

import pathlib

import tensorflow.compat.v1 as tf

from libml import files, trained, utils
from libml.cli import quiet, script
from libml.cli.options import Option

OPTIONS = dict(tflite=Option(False, 'Write OUT/model.tflite and OUT/labels.txt, too.'), **trained.OPTIONS)


def export(run, out, tflite=False, **which):
    """Exports a run, see the module.

    Args:
        run: a run's folder or one of its checkpoints; **which: further arguments of trained.load.
        out: folder to make; it must not exist.
        tflite: whether to write out/model.tflite and out/labels.txt.

    Raises:
        utils.Error: the run cannot be used (see trained.load), or OUT exists or cannot be written. Nothing half-written
            is left.
    """
    with trained.creating_result(out) as part:
        classifier = trained.load(run, **which)
        images, probabilities = classifier.images, classifier.probabilities
        with classifier.graph.as_default():
            outputs = dict(probabilities=probabilities, classes=classifier.class_names)
            tf.saved_model.simple_save(classifier.session, part, dict(images=images), outputs)
            if tflite:
                with quiet.muting():
                    converter = tf.lite.TFLiteConverter.from_session(classifier.session, [images], [probabilities])
                    content = converter.convert()
                pathlib.Path(part, 'model.tflite').write_bytes(content)
                files.write_text(os.path.join(part, 'labels.txt'), '\n'.join([*classifier.classes, '']))
    shape = 'x'.join(map(str, classifier.family.shape))
    utils.say('%s: images uint8 [None, %s] to probabilities of %d classes' % (out, shape, len(classifier.classes)))
    utils.say('made from %s (%s weights)' % (classifier.ckpt, classifier.weights))


if __name__ == '__main__':
    script.run(export, OPTIONS, 'which run, and where to? python scripts/export.py RUN OUT')
