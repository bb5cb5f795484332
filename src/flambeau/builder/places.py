"""Has an exported graph fail for places that PyTorch refuses, in tables of vectors and along axes.

PyTorch refuses negative places in lookups, `gather` and `scatter`; a graph counts them from the end. PyTorch refuses
classes that `one_hot` does not have; a graph answers with zeros. Each would be an answer that the network never gives.
`x[places]` counts negative places from the end in both, and is left alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_REFUSING = {
    "Gather": ("aten.embedding.", "aten.embedding_bag.", "aten.index_select."),
    "GatherElements": ("aten.gather.",),
    "ScatterElements": ("aten.scatter",),
}
"""The operations of PyTorch that refuse negative places, by those of a graph that count them from the end."""
_OF_NODE = "pkg.torch.onnx.fx_node"  # the operation of PyTorch that a node came from
_INDEXING = ("aten::index", "aten::index_put", "aten::index_put_")


def refuse_negative(graph: ir.Graph) -> None:
    """Have lookups that came from PyTorch's own operations fail for negative places."""
    rewriting = _Rewriting(graph)
    for node in list(graph):
        came_from = node.metadata_props.get(_OF_NODE, "")
        if any(f"ops.{each}" in came_from for each in _REFUSING.get(node.op_type, ())):
            rewriting.fail_for_negative(node)


def refuse_negative_of_script(graph: ir.Graph, network: object) -> None:
    """The same of a graph that was made of TorchScript, whose nodes do not say where they came from.

    Where the script indexes with tensors itself, its lookups cannot be told from that, and are left alone.
    """
    script: Any = network.inlined_graph if isinstance(network, torch.jit.ScriptModule) else None
    indexes = script is None or any(script.findNode(kind) is not None for kind in _INDEXING)
    rewriting = _Rewriting(graph)
    for node in list(ir.traversal.RecursiveGraphIterator(graph)):  # EmbeddingBag becomes a loop
        if node.op_type in ("GatherElements", "ScatterElements") or (node.op_type == "Gather" and not indexes):
            rewriting.fail_for_negative(node)
        elif node.op_type == "OneHot":
            rewriting.fail_for_unknown_classes(node)


class RefusedClasses(TorchFunctionMode):
    """While a network is exported with it, its `one_hot` looks its classes up in a table of zeros as well, which fails
    for those that there are not."""

    def __torch_function__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is nn.functional.one_hot and isinstance(found, torch.Tensor) and found.dim():
            given = args[0] if args else (kwargs or {})["self"]
            return found + nn.functional.embedding(given, torch.zeros(found.shape[-1], 1, dtype=found.dtype))
        return found


class _Rewriting:
    """Puts nodes before those of a graph. What is new is called by a number: names must not occur twice in a graph and
    those within it."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made = 0

    def fail_for_negative(self, node: ir.Node) -> None:
        """Negative places become a number beyond the end, which ONNX Runtime refuses."""
        places = node.inputs[1]
        if places is None or places.is_initializer() or _is_constant(places):
            return
        whole = self._before(node, "Cast", places, to=ir.DataType.INT64)
        negative = self._before(node, "Less", whole, self._number(0))
        node.replace_input_with(1, self._before(node, "Where", negative, self._number(2**31 - 1), whole))

    def fail_for_unknown_classes(self, node: ir.Node) -> None:
        """The classes are looked up in as many zeros as there are classes, and what is found, 0, is added to them."""
        classes, depth = node.inputs[0], node.inputs[1]
        assert classes is not None  # the operation needs both
        assert depth is not None
        whole = self._before(node, "Cast", classes, to=ir.DataType.INT64)
        count = self._before(node, "Reshape", depth, self._number([1]))
        zeros = self._before(node, "ConstantOfShape", count, value=ir.tensor(np.zeros(1, np.int64)))
        found = self._before(node, "Gather", zeros, whole, axis=0)
        producer = found.producer()
        assert producer is not None  # it was made above
        self.fail_for_negative(producer)
        node.replace_input_with(0, self._before(node, "Add", whole, found))

    def _before(self, node: ir.Node, operation: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """The output of a new node before that one, which may be in a graph within."""
        value = ir.val(self._name())
        assert node.graph is not None  # it was found in one
        node.graph.insert_before(node, ir.node(operation, inputs, attributes or None, outputs=[value]))
        return value

    def _number(self, number: int | list[int]) -> ir.Value:
        name = self._name()
        value = ir.val(name, const_value=ir.tensor(np.array(number, np.int64), name=name))
        self._graph.initializers[name] = value
        return value

    def _name(self) -> str:
        self._made += 1
        return f"place {self._made}"


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "Constant"
