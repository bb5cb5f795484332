"""Finds the numbers that a graph compares an input with, such as the sampling rates that it knows.

A graph that asks `sr == 16000` computes something else, or nothing, for the 0 and 1 that inputs of whole numbers are
tried with. It reads the graph and runs nothing.
"""

import math
from collections.abc import Iterator

import numpy as np
import onnx

_PASSING = ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Gather", "Flatten")
"""Operations after which a single number is still the same number."""
_COMPARING = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
_MOST = 8  # numbers to keep of one input


def of_input(model: onnx.ModelProto, name: str, *, dtype: str) -> tuple[int, ...]:
    """The whole numbers of this dtype that the graph compares the input with, in the graph's order; empty if there are
    none."""
    constants = dict(_constants(model.graph))
    same, found = {name}, dict[int, None]()
    for node in model.graph.node:
        if node.op_type in _PASSING and node.input and node.input[0] in same:
            same.update(node.output)
        elif node.op_type in _COMPARING and same & set(node.input):
            numbers = [constants[other] for other in node.input if other in constants]
            found.update((number, None) for each in numbers if (number := _whole(each, dtype)) is not None)
    return tuple(found)[:_MOST]


def _whole(constant: np.ndarray, dtype: str) -> int | None:
    """The number of a constant, if it is a whole one that the dtype has."""
    if constant.size != 1 or constant.dtype.kind not in "iuf":
        return None
    number = constant.item()
    if not math.isfinite(number) or number != int(number):
        return None
    limits = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo("uint8" if dtype == "bool" else dtype)
    return int(number) if limits.min <= number <= limits.max else None


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, np.ndarray]]:
    """The small constants of a graph by name. Those in other files are no single numbers."""
    for tensor in graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL and np.prod(tensor.dims) <= 1:
            yield tensor.name, onnx.numpy_helper.to_array(tensor)
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value" and np.prod(attribute.t.dims) <= 1:
                yield node.output[0], onnx.numpy_helper.to_array(attribute.t)
            elif attribute.name in ("value_int", "value_float"):
                yield node.output[0], np.array(onnx.helper.get_attribute_value(attribute))
