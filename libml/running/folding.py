"""A graph as TensorBoard's graph page shows it: folded into the parts that the paper names."""

import tensorflow.compat.v1 as tf

# Where ops are shown that have published names, which lie in no scope.
PLACES = {
    **dict.fromkeys(('x', 'y', 'labels', 'update_key'), 'inputs'),
    **dict.fromkeys(('global_step', 'beta1_power', 'beta2_power'), 'update'),
}


def get_head(name):
    """Returns the first part of the name of an op or of an input, such as `^a/b` or `a/b:1`."""
    return name.lstrip('^').split('/')[0].split(':')[0]


def fold_graph(graph, fetches):
    """Returns the tf.GraphDef of what computes some ops, in which every op lies in a scope.

    An op that lies in no scope is shown in the scope of the first op that takes what it gives; without such an op, in
    `update`. All else keeps its name. Functions that no op calls are left out.

    Args:
        graph: tf.Graph.
        fetches: list of tf.Operation.
    """
    definition = tf.graph_util.extract_sub_graph(graph.as_graph_def(add_shapes=True), [op.name for op in fetches])
    names, places = {node.name for node in definition.node}, dict(PLACES)
    for node in reversed(definition.node):  # An op stands behind what it takes.
        head = get_head(node.name)
        place = places.setdefault(head, 'update') if head in names else head
        for source in map(get_head, node.input):
            if source in names and source not in (head, *PLACES):
                places[source] = place

    def move(name):
        head = get_head(name)
        if head not in names:  # A scope.
            return name
        found = '%s/%s' % (places[head], head)
        return name.replace(head, found + '_' if found in names else found, 1)

    used = {value.func.name for node in definition.node for value in node.attr.values()}
    functions = [function for function in definition.library.function if function.signature.name in used]
    del definition.library.function[:]
    definition.library.function.extend(functions)
    for node in definition.node:
        node.name = move(node.name)
        node.input[:] = map(move, node.input)
        node.attr.pop('_class', None)  # It names ops, too.
    return definition
