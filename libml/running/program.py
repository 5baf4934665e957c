"""An update as one XLA program: what a graph computes, from its inputs and draws to its assignments."""

import collections

import tensorflow.compat.v1 as tf

from libml import utils


def is_given(op):
    """Returns whether a program takes what an op gives, instead of computing it.

    Such are variables, inputs, and random draws: XLA would draw other numbers than the plain graph, and cannot draw
    gammas at all.
    """
    return op.type == 'VarHandleOp' or any(word in op.type for word in ('Placeholder', 'Iterator', 'Random'))


def find_parts(fetches):
    """Returns the ops that compute the fetches, and the tensors that these ops take, both as lists.

    Args:
        fetches: list of tf.Operation.
    """
    ops, given = dict.fromkeys(fetches), {}
    pending = collections.deque(fetches)
    while pending:
        op = pending.popleft()
        given.update(dict.fromkeys(tensor for tensor in op.inputs if is_given(tensor.op)))
        found = [source for source in [t.op for t in op.inputs] + op.control_inputs if not is_given(source)]
        pending += [source for source in found if source not in ops]
        ops.update(dict.fromkeys(found))
    return list(ops), list(given)


def compile_update(values, train_op):
    """Returns the values and the update of a graph, as one XLA program computes and makes them.

    The graph itself is left as it is.

    Args:
        values: float32 [n].
        train_op: tf.Operation, the update.

    Raises:
        utils.Error: a random draw waits for a part of the update.
    """
    graph = train_op.graph
    ops, given = find_parts([values.op, train_op])
    names = {op.name for op in ops}
    # What precedes a draw runs before the program. So it must not be a part of the update.
    before = [op for op in find_parts([tensor.op for tensor in given])[0] if op.name in names]
    if early := next((op for op in before if op.type.startswith(('Assign', 'ResourceApply'))), None):
        raise utils.Error('a random draw waits for %s, so XLA cannot compile the update: give --noxla' % early.name)
    definition = graph.as_graph_def()
    inside = [node for node in definition.node if node.name in names]
    del definition.node[:]
    definition.node.extend(inside)  # The functions that they call stay in definition.library.
    for node in definition.node:
        node.attr.pop('_class', None)  # It may name an op outside.
        node.input[:] = [name for name in node.input if name[0] != '^' or name[1:] in names]

    def run():
        captured = {tensor.name: tf.get_default_graph().capture(tensor) for tensor in given}
        found = tf.import_graph_def(definition, captured, [values.name, train_op.name], name='')
        with tf.control_dependencies(found[1:]):
            return tf.identity(found[0])

    with graph.as_default():
        computed = tf.function(run, jit_compile=True, autograph=False)()
    return computed, computed.op
