"""A graph as TensorBoard's graph page shows it: folded into the parts that the paper names."""

import tensorflow.compat.v1 as tf

CALLS = ('PartitionedCall', 'StatefulPartitionedCall')  # Ops that apply a network.
SCOPES = {'inputs', 'guess_label', 'mixup', 'interleave', 'interleave_1', 'classify', 'losses', 'update'}
PLACES = {  # Ops whose published names lie in no scope.
    **dict.fromkeys(('x', 'y', 'labels', 'update_key'), 'inputs'),
    **dict.fromkeys(('global_step', 'beta1_power', 'beta2_power'), 'update'),
}


def get_head(name):
    """Returns the first part of the name of an op, or of an input such as `^a/b` or `a/b:1`."""
    return name.lstrip('^').split('/')[0].split(':')[0]


def fold_graph(graph, fetches):
    """Returns the tf.GraphDef of what computes some ops, in which every op lies in one of the parts.

    The graph itself keeps its names: TensorFlow's optimizers order sums by them, so another name is another rounding.
    What lies outside of SCOPES is shown with the first op that takes what it gives. Calls of a network and the reading
    of its weights are shown in `classify`.

    Args:
        graph: tf.Graph.
        fetches: dict from a tf.Operation to the part that shows it, if it lies outside of SCOPES.
    """
    definition = tf.graph_util.extract_sub_graph(graph.as_graph_def(add_shapes=True), [op.name for op in fetches])
    parts = {**{get_head(op.name): part for op, part in fetches.items()}, **PLACES}
    for node in reversed(definition.node):  # An op stands behind what it takes.
        head = get_head(node.name)
        reads = node.op == 'ReadVariableOp' and get_head(node.input[0]) == 'classify'
        if node.name == head and (reads or node.op in CALLS):
            parts[head] = 'classify'
        part = head if head in SCOPES else parts.setdefault(head, 'update')
        parts.update((source, part) for source in map(get_head, node.input) if source not in (head, *PLACES))
    names = {node.name for node in definition.node}

    def move(name):
        head = get_head(name)
        if head in SCOPES:
            return name
        found = '%s/%s' % (parts[head], head)
        return name.replace(head, found + '_' if found in names else found, 1)

    called = {value.func.name for node in definition.node for value in node.attr.values()}
    functions = [function for function in definition.library.function if function.signature.name in called]
    del definition.library.function[:]
    definition.library.function.extend(functions)  # The others would be shown, too.
    for node in definition.node:
        node.name = move(node.name)
        node.input[:] = map(move, node.input)
        node.attr.pop('_class', None)  # It names ops, too.
    return definition
