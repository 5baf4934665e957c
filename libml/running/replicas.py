"""Several devices that share an update. Each builds a replica of the model, for its part of the batch.

With one device, these functions change nothing.
"""

import numpy as np
import tensorflow.compat.v1 as tf
from easydict import EasyDict


def get_number():
    """Returns the number, from 0, of the replica that is being built; 0 if there is one."""
    if not tf.distribute.has_strategy() or tf.distribute.in_cross_replica_context():
        return 0
    return int(tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group))


def get_count():
    """Returns the number of replicas, on all hosts."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def average(value):
    """Returns the mean of a tensor over the replicas."""
    return tf.distribute.get_replica_context().all_reduce('MEAN', value) if get_count() > 1 else value


def share_loss(loss):
    """Returns loss / number of replicas: an optimizer adds up the replicas' gradients, which so become the mean."""
    return loss / get_count() if get_count() > 1 else loss


def subtract_means(variables, values):
    """Returns the op that subtracts from each variable the mean of its value over the replicas.

    All values are added up together. (An assign_sub for each variable adds up one value at a time.)
    """
    if get_count() == 1 or not variables:
        return tf.group(*[v.assign_sub(value) for v, value in zip(variables, values, strict=True)])

    def merge_all(strategy, variables, values):
        means = strategy.extended.batch_reduce_to('MEAN', list(zip(values, variables, strict=True)))
        pairs = zip(variables, means, strict=True)
        return tf.group(*[strategy.extended.update(v, lambda v, mean: v.assign_sub(mean), [mean]) for v, mean in pairs])

    return tf.distribute.get_replica_context().merge_call(merge_all, [variables, values])


def merge(strategy, found):
    """Joins what the replicas built into one update.

    Args:
        strategy: the tf.distribute.Strategy that ran `Model.model`.
        found: what strategy.run returned: a dict of ops, tensors, and dicts of float32 [].

    Returns:
        EasyDict of ops that run in all replicas, tensors of the first replica, and dicts of means over the replicas.
    """
    if strategy.num_replicas_in_sync == 1:
        return found
    ops = EasyDict()
    for name, value in found.items():
        if isinstance(value, dict):
            ops[name] = {tag: strategy.reduce('MEAN', scalar, axis=None) for tag, scalar in value.items()}
        else:
            parts = strategy.experimental_local_results(value)
            ops[name] = tf.group(*parts) if isinstance(parts[0], tf.Operation) else parts[0]
    return ops


def add_up(strategy, value):
    """Returns the sum over the replicas, on all hosts, of what value() builds in each."""
    found = strategy.run(lambda: tf.distribute.get_replica_context().all_reduce('SUM', value()))
    parts = strategy.experimental_local_results(found)
    with tf.control_dependencies(list(parts)):  # Each waits for all others, and a session would leave them out.
        return tf.identity(parts[0])


def broadcast(strategy, variable):
    """Returns the op that copies a variable from the first replica to all others."""
    return variable.assign(add_up(strategy, lambda: tf.zeros_like(variable) if get_number() else tf.identity(variable)))


class Hosts:
    """What several hosts do together: start from the same variables, and stop at the same step.

    Attributes:
        broadcast_op: copies all variables from the first replica to all others.
    """

    def __init__(self, strategy):
        """Adds the ops to the current graph; all variables exist already."""
        with strategy.scope():
            self.broadcast_op = tf.group(*[broadcast(strategy, v) for v in tf.global_variables()])
            # int64, as TensorFlow adds up no int32 of several hosts' GPUs.
            self._stop = tf.placeholder_with_default(np.int64(0), [], 'stop')
            self._stops = add_up(strategy, lambda: tf.identity(self._stop))

    def is_any(self, session, stop):
        """Returns whether any host calls this with stop, an int, above 0. All hosts call it and get one answer."""
        return bool(session.run(self._stops, {self._stop: stop}))
