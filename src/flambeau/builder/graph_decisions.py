"""Notices an ONNX graph that decides by the numbers it is given, as `if rows.max() > 1` in the network does: one row
would then decide for the others in its batch. It reads the graph and runs nothing.
"""

from collections.abc import Collection, Iterator

import onnx
from onnx.inliner import inline_local_functions

_OF_SHAPES = frozenset({"Shape", "Size"})
_DECIDING = {"If": (0,), "Loop": (0, 1)}  # the inputs that say what is computed, and how often

BECAUSE = "its graph decides by its numbers, as of `if rows.max() > 1`, and another row may decide otherwise"


def decides(model: onnx.ModelProto, inputs: Collection[str]) -> bool:
    """Whether an If or a Loop depends on numbers computed of these inputs, and not only of their shapes."""
    if model.functions:
        model = inline_local_functions(model)
    return _decides(model.graph, {*inputs})


def _decides(graph: onnx.GraphProto, of_inputs: set[str]) -> bool:
    """The same of a graph within. Adds the values that were computed of the inputs to `of_inputs`."""
    for node in graph.node:
        found = any(name in of_inputs for name in node.input)
        if any(node.input[place] in of_inputs for place in _DECIDING.get(node.op_type, ()) if place < len(node.input)):
            return True
        for inner in _graphs_of(node):
            if found:
                of_inputs |= {each.name for each in inner.input}  # a loop's own values
            if _decides(inner, of_inputs):
                return True
            found = found or any(each.name in of_inputs for each in inner.output)
        if found and node.op_type not in _OF_SHAPES:
            of_inputs |= {*node.output}
    return False


def _graphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs
