"""A model: its graph, and the evaluation. What keeps its training alive is in libml/running."""

import types

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

from libml import layers, utils
from libml.running import replicas
from libml.running.setting import decide
from libml.running.trainer import Interrupted, Trainer

SUBSETS = dict(train='labeled', valid='valid', test='test')  # What a report evaluates, under the names it prints.
PREFETCH = 2  # How many labelled batches wait ready on a GPU; as many unlabelled batches wait, too.
EVAL_BATCH = 512  # Images evaluated at a time, at most.


class Model:
    """A model and its run.

    An algorithm, such as AblationMixMatch, is a subclass of models.MultiModel that defines `model`.

    Args:
        train_dir: folder under which the run's own folder goes.
        dataset: data.DataSet.
        seed: int that fixes every random choice. None: a new run draws one, a continued run keeps its own.
        precision: of the networks, one of setting.PRECISIONS.
        machine: hardware.Machine; None: one device, the first GPU if there is one, and no XLA.
        setting: setting.Setting, if the run is decided already; it replaces train_dir, seed, precision and machine.
        **params: the arguments of `model`, which are part of the name of the run's folder. One is `batch`.

    Attributes:
        setting, dataset: see above.
        step: the global step: it counts labelled images, not updates.
        update_key: what random draws depend on: the step, unless `tune` feeds it.
        keys: layers.Keys.
        iterators: list of the iterators of the input, one for each stream and device.
        ops: EasyDict that `model` returned.
        fed: {plain placeholder of `model`: tensor that holds its next value}.
        trainer: Trainer.
    """

    PARAMS = types.MappingProxyType({})  # Option by name: what the arguments of `model` may be.

    def __init__(self, train_dir, dataset, seed=None, precision='float32', machine=None, setting=None, **params):
        self.setting = setting or decide(type(self), train_dir, dataset, params, seed, precision, machine)
        self.dataset = dataset
        if tf.global_variables():
            raise utils.Error('this graph has variables already: build each model in a tf.Graph of its own')
        if self.setting.wants_determinism:  # Before the graph is built: TensorFlow chooses operations by it.
            tf.compat.v2.config.experimental.enable_op_determinism()
        tf.set_random_seed(self.setting.seed)
        with self.machine.strategy.scope():
            self.step = tf.train.get_or_create_global_step()
        self.update_key = tf.identity(self.step, name='update_key')
        self.keys = layers.Keys(self.setting.seed, self.update_key)
        self.iterators = []
        self.ops = self.build()
        self.fed = self.feed_placeholders()
        self.trainer = Trainer(self)

    def build(self):
        """Builds the graph; returns what `model` returned, joined over the devices."""
        strategy, part = self.machine.strategy, self.batch // self.machine.replicas

        def build_replica():
            ops = self.model(**dict(self.params, batch=part))
            with tf.control_dependencies([ops.train_op]):  # An update sees the old step.
                ops.train_op = tf.group(self.step.assign_add(self.batch))
            return ops

        with strategy.scope():
            return replicas.merge(strategy, strategy.run(build_replica))

    def model(self, **params):
        """Builds one update and the evaluation.

        If several devices share an update, this method is called once for each device, with its part of the batch.

        Args:
            params: the constructor's; batch is the part of this device.

        Returns:
            EasyDict of
                train_op: one update, after which the step moves. tune_op: moves batch norm's averages alone, as an
                    update would.
                x: float32 [None, H, W, C], the images to classify.
                classify_raw, classify_op: float32 [None, nclass], the class probabilities of x by the weights, and by
                    their moving average.
                losses, monitors: dicts from a tag of TensorBoard to float32 [], which become curves; may be missing.
                y, label: the other inputs of the update, see ClassifySemi.inputs; may be missing. What is a plain
                    placeholder is fed.
            Scalars of tf.summary.scalar become curves, too.
        """
        raise NotImplementedError

    # --- The published interface ---

    params = property(lambda self: self.setting.params)
    machine = property(lambda self: self.setting.machine)
    graph = property(lambda self: self.update_key.graph)
    batch = property(lambda self: self.setting.params.batch)
    train_dir = property(lambda self: self.setting.run.folder)
    checkpoint_dir = property(lambda self: self.setting.run.checkpoint_dir)
    arg_dir = property(lambda self: self.setting.run.arg_dir)

    @property
    def session(self):
        """The session that is open, see Trainer.opening_session."""
        return tf.get_default_session()

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
            SystemExit: a signal asked to stop; a checkpoint is saved, the code is trainer.EXIT_INTERRUPTED.
        """
        self.trainer.train(train_nimg, report_nimg, save_nimg or report_nimg, keep_ckpt, init_ckpt)


class ClassifySemi(Model):
    """A semi-supervised classifier: an update's inputs, and the evaluation. Args: see Model; nclass: int, classes."""

    def __init__(self, train_dir, dataset, nclass, **params):
        utils.require('nclass', nclass, nclass >= dataset.nclass, 'at least %d, as in the data' % dataset.nclass)
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

    def feed_placeholders(self):
        """Returns {plain placeholder of `model`: tensor of its next value}, for a method without inputs of its own."""
        plain = {name: self.ops[name] for name in ('x', 'y', 'label') if name in self.ops}
        plain = {name: tensor for name, tensor in plain.items() if tensor.op.type == 'Placeholder'}
        if not plain:
            return {}
        utils.require('devices', self.machine.replicas, self.machine.replicas == 1, '1 for a method with placeholders')
        values = dict(zip(('x', 'y', 'label'), self.inputs(self.batch, self.views or 1), strict=True))
        if 'y' in plain and plain['y'].shape.rank == 4:  # As the published vat, pseudo_label and mixup have it.
            values['y'] = values['y'][:, 0]
        return {tensor: values[name] for name, tensor in plain.items()}

    @property
    def views(self):
        """How many augmentations of an unlabelled image an update sees; 0 where it sees none."""
        if 'y' not in self.ops:
            return 0
        return 1 if self.ops.y.shape.rank == 4 else int(self.ops.y.shape[1])

    def draw_feed(self, session, feed=None):
        """Returns the values of plain placeholders for an update, a feed; `feed`: of the input, such as update_key."""
        return dict(zip(self.fed, session.run(list(self.fed.values()), feed), strict=True)) if self.fed else {}

    def next_batch(self, name, batch):
        """Returns a batch of the set `name`: dict(image [B, H, W, C] in 0 to 255, label int32 [B])."""
        part, gpu = (replicas.get_number(), replicas.get_count()), self.machine.gpu
        stream = self.dataset.stream(name, batch, self.setting.seed, self.step, part)
        with tf.device(gpu):
            if gpu:  # Batches wait on the GPU, as uint8.
                stream = stream.apply(tf.data.experimental.prefetch_to_device(gpu, PREFETCH))
            self.iterators.append(tf.data.make_initializable_iterator(stream))
            found = self.iterators[-1].get_next()
            if gpu:  # On a GPU, tf.gather has no kernel for uint8.
                found['image'] = tf.cast(found['image'], tf.float32)
            return found

    def report(self, step, stopped=()):
        """Prints and returns accuracies, {tag: percent}, a balanced one if the test set's classes differ in size."""
        predicted = self.predict_classes(stopped=stopped)
        train, valid, test = self.compute_accuracies(predicted)
        tqdm.write('kimg %-5d  accuracy train/valid/test  %s  %s  %s' % (step >> 10, *map(show, (train, valid, test))))
        scalars = {'accuracy': test, 'accuracy/train_labeled': train}
        if not np.isnan(valid):
            scalars['accuracy/valid'] = valid
        labels = self.dataset.sets['test'].labels
        if len(labels) and len(set(np.unique(labels, return_counts=True)[1])) > 1:
            right = predicted[-1] == labels
            scalars['accuracy/balanced'] = 100 * np.mean([right[labels == label].mean() for label in np.unique(labels)])
        return scalars

    @property
    def eval_batch(self):
        """Images evaluated at a time: at most as many as all devices take in an update, to limit the memory."""
        return min(EVAL_BATCH, self.batch * (1 + self.views))

    def predict_classes(self, batch=None, feed_extra=None, classify_op=None, stopped=()):
        """Returns the likeliest classes of the labelled, validation and test images, three int [n].

        Args: see eval_stats; stopped: list that gets an entry when a signal asks the training to stop.

        Raises:
            Interrupted: stopped has an entry.
        """
        classify_op = self.ops.classify_op if classify_op is None else classify_op
        sets = [self.dataset.sets[name] for name in SUBSETS.values()]
        predicted = []
        for pixels in self.dataset.iterate_equal_batches(sets, batch or self.eval_batch):
            if stopped:
                raise Interrupted
            feed = {self.ops.x: self.dataset.to_float(pixels), **(feed_extra or {})}
            predicted.extend(self.session.run(classify_op, feed).argmax(1))
        ends = np.cumsum([len(images) for images in sets])
        return np.split(predicted, ends)[:-1]  # The last part is what filled up the last batch.

    def compute_accuracies(self, predicted):
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
        return self.compute_accuracies(self.predict_classes(batch, feed_extra, classify_op))

    def tune(self, nimg):
        """Moves batch norm's averages, and nothing else, as updates on nimg training images would."""
        for step in range(0, nimg, self.batch):
            key = {self.update_key: step}
            self.session.run(self.ops.tune_op, {**key, **self.draw_feed(self.session, key)})

    def eval_checkpoint(self, ckpt):
        """Prints the accuracies of a checkpoint: raw and averaged weights, before and after tuning batch norm.

        Args:
            ckpt: a whole checkpoint, see checkpoints.resolve.

        Returns:
            dict from 'raw', 'ema', 'tuned_raw', 'tuned_ema' to float [3], see eval_stats.
        """
        held = self.setting.hold(ckpt)
        self.setting.check_origin(self.dataset, evaluates=True)
        with self.machine.watching_hosts() as hosts_done, self.trainer.opening_session() as session:
            self.trainer.checkpoints.restore(session, held)
            self.setting.release()
            session.run(self.trainer.init_input_op)
            which = dict(raw=self.ops.classify_raw, ema=self.ops.classify_op)
            results = {name: self.eval_stats(classify_op=op) for name, op in which.items()}
            self.tune(16384)
            hosts_done.set()
            results.update({'tuned_' + name: self.eval_stats(classify_op=op) for name, op in which.items()})
        print('%-12s' % 'accuracy' + ''.join('%8s' % name for name in SUBSETS))
        for name, accuracies in results.items():
            print('%-12s' % name + ''.join('%8s' % show(accuracy) for accuracy in accuracies))
        return results


def show(accuracy):
    """Returns a percentage as it is printed; `-` for nan, which is that of no picture."""
    return '-' if np.isnan(accuracy) else '%.2f' % accuracy


def compute_accuracy(predicted, labels):
    """Returns the share of right classes in percent, nan if no picture has a class. The arguments are int [n]."""
    known = labels >= 0
    return 100 * np.mean(predicted[known] == labels[known]) if known.any() else np.nan
