"""Brings the rows of a graph's inputs and outputs to their first axis, where requests and answers have them.

`flambeau.identify.row_axes` says where the declared sizes put them. This module finds those of the outputs from what
the graph computed, and changes the graph. It runs nothing.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from flambeau.types import Tensors

Orders = dict[str, tuple[int, ...]]
"""For each output whose rows are not its first axis: its axes, that of the rows first."""


def of_outputs(one: Tensors, several: Tensors | None, *, rows: int) -> Orders:
    """The orders of outputs, from what was computed for one row and for `rows`.

    `several` is `None` for a graph that can compute one row only; then an axis of length 1 is taken for theirs.
    """
    found: Orders = {}
    for name, array in one.items():
        fitting = [axis for axis, size in enumerate(array.shape) if size == 1]
        if several is not None:
            shape = several[name].shape
            fitting = [axis for axis in fitting if len(shape) == array.ndim and shape[axis] == rows]
        if len(fitting) == 1 and fitting[0]:
            found[name] = (*fitting, *(axis for axis in range(array.ndim) if axis not in fitting))
    return found


def first(arrays: Tensors, orders: Orders) -> Tensors:
    """The arrays with their rows first."""
    return {name: array.transpose(orders[name]) if name in orders else array for name, array in arrays.items()}


def move_inputs(model: onnx.ModelProto, axes: Mapping[str, int]) -> None:
    """Have the graph take these inputs with their rows first: a Transpose gives it what it expects."""
    for value in (each for each in model.graph.input if each.name in axes):
        inner, axis = f"{value.name} as the graph has it", axes[value.name]
        sizes = value.type.tensor_type.shape.dim
        order = [*range(1, axis + 1), 0, *range(axis + 1, len(sizes))]
        rename(model.graph, value.name, inner)
        model.graph.node.insert(0, onnx.helper.make_node("Transpose", [value.name], [inner], perm=order))
        _reorder(value, _back(order))


def move_outputs(model: onnx.ModelProto, orders: Orders) -> None:
    """Have the graph answer with these outputs' rows first."""
    for value in (each for each in model.graph.output if each.name in orders):
        inner, order = f"{value.name} as the graph has it", orders[value.name]
        for node in model.graph.node:
            node.output[:] = [inner if each == value.name else each for each in node.output]
        rename(model.graph, value.name, inner)
        model.graph.node.append(onnx.helper.make_node("Transpose", [inner], [value.name], perm=order))
        if len(value.type.tensor_type.shape.dim) == len(order):
            _reorder(value, order)
        else:
            value.type.tensor_type.ClearField("shape")  # the graph says another than it computes


def add_to(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Add an axis of one row to the inputs without one; a Reshape gives the graph the scalar it expects."""
    for name in names:
        value = next(each for each in model.graph.input if each.name == name)
        inner, shape = f"{name} without rows", f"{name}: no axis"
        rename(model.graph, name, inner)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(0, np.int64), shape))
        model.graph.node.insert(0, onnx.helper.make_node("Reshape", [name, shape], [inner]))
        value.type.tensor_type.shape.dim.add().dim_value = 1


def free(model: onnx.ModelProto) -> None:
    """Make the first axis of every input and output free."""
    for value in (*model.graph.input, *model.graph.output):
        sizes = value.type.tensor_type.shape.dim
        if sizes and not sizes[0].dim_param:
            sizes[0].dim_param = "rows"
    del model.graph.value_info[:]  # inner shapes, inferred for the old number of rows


def rename(graph: onnx.GraphProto, name: str, inner: str) -> None:
    """Have all nodes take `inner` where they took `name`."""
    for node in _nodes(graph):
        node.input[:] = [inner if each == name else each for each in node.input]


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph, and of the graphs within them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _back(order: Sequence[int]) -> list[int]:
    """The order that undoes this one."""
    return [int(place) for place in np.argsort(order)]


def _reorder(value: onnx.ValueInfoProto, order: Sequence[int]) -> None:
    sizes = value.type.tensor_type.shape.dim
    moved = []
    for place in order:
        copy = onnx.TensorShapeProto.Dimension()
        copy.CopyFrom(sizes[place])
        moved.append(copy)
    del sizes[:]
    sizes.extend(moved)
