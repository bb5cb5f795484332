"""Adds to an ONNX graph what makes one vector of those of all tokens: their mean, or the first.

The nodes are those that every version of ONNX since 2017 has, so they fit any graph. The mean is the one that
sentence-transformers takes: of the tokens that the attention mask counts.
"""

from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from flambeau.errors import SourceError

OUTPUT = "sentence_embedding"


def add(model: "onnx.ModelProto", output: str, *, mask: str | None, how: Literal["mean", "first"]) -> str:
    """Replace the graph's output of shape (rows, tokens, dimensions) by one of (rows, dimensions); gives its name.

    `mask` is the input that says which tokens count: whole numbers, shape (rows, tokens). Raises `SourceError`.
    """
    graph = model.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | {each.name for each in graph.output}
    name = OUTPUT if OUTPUT not in taken else f"{OUTPUT} of texts"

    def own(what: str) -> str:
        return f"{name}: {what}"

    def held(what: str, numbers: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(numbers, own(what)))
        return own(what)

    [value] = [each for each in graph.output if each.name == output]
    kind = value.type.tensor_type.elem_type
    if kind not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
        raise SourceError(f"its output {output} is {TensorProto.DataType.Name(kind)}, of which there is no mean")
    sizes = value.type.tensor_type.shape.dim
    width = sizes[2].dim_value if len(sizes) == 3 and sizes[2].HasField("dim_value") else "dimensions"
    if how == "first":
        first = held("first", np.array(0, np.int64))
        graph.node.append(helper.make_node("Gather", [output, first], [name], axis=1))
    else:
        if mask is None:
            raise SourceError(
                f"its output {output} has a vector for every token, and no input says which tokens count: export it "
                "with attention_mask, or say --pooling first"
            )
        along, across = held("along", np.array([0, 1, -1], np.int64)), held("across", np.array([0, -1, 1], np.int64))
        graph.node.extend([
            helper.make_node("Cast", [mask], [own("counted")], to=kind),
            helper.make_node("Reshape", [own("counted"), along], [own("row")]),  # (rows, 1, tokens)
            helper.make_node("Reshape", [own("counted"), across], [own("column")]),  # (rows, tokens, 1)
            helper.make_node("MatMul", [own("row"), output], [own("sum")]),  # (rows, 1, dimensions)
            helper.make_node("MatMul", [own("row"), own("column")], [own("count")]),  # 1 * 1 and 0 * 0
            helper.make_node("Div", [own("sum"), own("count")], [own("mean")]),
            helper.make_node("Reshape", [own("mean"), held("vector", np.array([0, -1], np.int64))], [name]),
        ])  # fmt: skip
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(name, kind, ["rows", width]))
    return name
