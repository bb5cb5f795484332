"""What a network ends in: the last operation that changes its numbers, followed from operation to operation.

Each tensor gets the ending of the operation that made it. Operations that only move numbers (a reshape, a cast, a
slice) pass on the ending of their argument. Example: `Gemm -> Softmax -> Reshape` ends in a softmax. This module knows
the names of operations only, no library and no values.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

OperationKind = Literal["softmax", "log-softmax", "sigmoid", "linear", "features", "other", "unknown"]
"""`linear` gives scores; `features` are pooled, normalised or rectified. `other` is known, but none of these."""


class Ending(msgspec.Struct, frozen=True):
    """The last operation. `text` names it for people, with an article: "a softmax"."""

    kind: OperationKind
    text: str


UNKNOWN = Ending("unknown", "an unknown operation")

PARTLY = Ending("other", "numbers that were changed in part")

LINEAR = Ending("linear", "a linear layer")
_MAPS = Ending("features", "a convolution")
_POOLED = Ending("features", "a pooling")
_NORMED = Ending("features", "a normalisation")
_SOFTMAX, _LOG_SOFTMAX = Ending("softmax", "a softmax"), Ending("log-softmax", "a log-softmax")

_ENDINGS: dict[str, Ending] = {
    **dict.fromkeys(("Softmax", "softmax", "_softmax", "_safe_softmax"), _SOFTMAX),
    **dict.fromkeys(("LogSoftmax", "log_softmax", "_log_softmax"), _LOG_SOFTMAX),
    **dict.fromkeys(("Sigmoid", "sigmoid", "special_expit"), Ending("sigmoid", "a sigmoid")),
    **dict.fromkeys(
        ("Gemm", "MatMul", "Einsum", "linear", "addmm", "mm", "bmm", "matmul", "einsum", "baddbmm", "addmv", "mv"),
        LINEAR,
    ),
    **dict.fromkeys(("Conv", "conv1d", "conv2d", "conv3d", "convolution", "_convolution"), _MAPS),
    **dict.fromkeys(
        ("GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool", "ReduceMean", "ReduceMax", "mean", "amax",
         "avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "max_pool2d", "adaptive_max_pool2d", "max"),
        _POOLED,
    ),
    **dict.fromkeys(
        ("BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "LpNormalization",
         "batch_norm", "native_batch_norm", "layer_norm", "native_layer_norm", "group_norm", "instance_norm",
         "_batch_norm_impl_index", "cudnn_batch_norm"),
        _NORMED,
    ),
    **dict.fromkeys(("Relu", "relu"), Ending("features", "a ReLU")),
    **dict.fromkeys(("Gelu", "gelu"), Ending("features", "a GELU")),
    **dict.fromkeys(("silu", "Swish"), Ending("features", "a SiLU")),
    **dict.fromkeys(("HardSwish", "hardswish"), Ending("features", "a hard swish")),
    **dict.fromkeys(("Tanh", "tanh"), Ending("other", "a tanh")),
    **dict.fromkeys(("HardSigmoid", "hardsigmoid"), Ending("other", "a hard sigmoid")),
    **dict.fromkeys(("Clip", "clamp", "clip", "clamp_min", "clamp_max", "hardtanh"), Ending("other", "a clip")),
}  # fmt: skip

MOVING = frozenset((
    "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Transpose", "Dropout", "Slice", "Gather",
    "Expand", "Concat", "Split", "QuantizeLinear", "DequantizeLinear",
    "view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "squeeze", "unsqueeze", "permute",
    "transpose", "t", "movedim", "numpy_T", "clone", "contiguous", "_to_copy", "to", "type_as", "float", "double",
    "detach", "alias", "expand", "expand_as", "dropout", "native_dropout", "feature_dropout", "alpha_dropout",
    "select", "slice", "index", "index_select", "gather", "cat", "concat", "split", "split_with_sizes", "chunk",
    "unbind", "stack", "lift_fresh", "copy_", "narrow", "detach_", "_conj", "view_as",
))  # fmt: skip
"""They only move numbers. A slice of a softmax no longer sums to 1, which the values show."""

_JOINING = frozenset(("Concat", "cat", "concat", "stack"))

SCALING = frozenset((
    "Add", "Sub", "Mul", "Div", "Sum", "add", "sub", "mul", "div", "rsub", "true_divide",
))  # fmt: skip
"""Combined with a constant or another linear layer's result, a linear layer's result stays linear."""

_COMPOSED = {
    ("exp", "log-softmax"): _SOFTMAX,
    ("Exp", "log-softmax"): _SOFTMAX,
    ("log", "softmax"): _LOG_SOFTMAX,
    ("Log", "softmax"): _LOG_SOFTMAX,
}


def ending(operation: str, given: Sequence[Ending | None], *, spatial: bool = True) -> Ending:
    """The ending of an operation's result. `given` are its arguments' endings, `None` for constants and inputs.

    `operation` is its name in ONNX or ATen, without a domain or overload. `spatial`: the result has more than one
    position in an image; a convolution with a single position is a linear layer.
    """
    known = [each for each in given if each is not None]
    if operation in _JOINING and len({each.kind for each in known}) > 1:
        return Ending("other", "several kinds of numbers, joined")
    if operation in MOVING:
        return known[0] if known else Ending("other", "its input")
    if len(known) == 1 and (made := _COMPOSED.get((operation, known[0].kind))):
        return made
    if operation in SCALING and known and all(each.kind == "linear" for each in known):
        return LINEAR
    found = _ENDINGS.get(operation)
    if found is _MAPS and not spatial:
        return LINEAR
    return found or Ending("other", f"the operation {operation}")


class Node(msgspec.Struct, frozen=True):
    """A node of an ONNX graph. An omitted input or output is the empty string."""

    operation: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def of_graph(nodes: Iterable[Node]) -> Mapping[str, Ending]:
    """The ending of every value that the nodes make. The nodes must be in the order of computation."""
    found: dict[str, Ending] = {}
    for node in nodes:
        if node.operation == "Constant":
            continue
        made = ending(node.operation, [found.get(name) for name in node.inputs])
        found.update(dict.fromkeys(filter(None, node.outputs), made))
    return found


# The endings of an ONNX file's outputs, from its nodes: their operators, and the names of their inputs and outputs.


_MOST_SHOWN = 4
_LONGEST = 1024  # names in a node; further outputs have no known ending

# Field numbers in onnx.proto.
_NODES, _OUTPUTS = 1, 12  # GraphProto
_TAKES, _MAKES, _OPERATOR = 1, 2, 4  # NodeProto


class GraphReader(Protocol):
    """Reads the messages of a file, as in `checkpoints.onnx`. Its messages and spans are opaque here."""

    def message(self, span: Any, /) -> Any:
        """The fields of a message."""
        ...

    def spans(self, message: Any, number: int, /) -> list[Any]:
        """The spans of a repeated field."""
        ...

    def text(self, message: Any, number: int, /) -> str:
        """The last string of a field."""
        ...

    def texts(self, message: Any, number: int, /) -> list[str]:
        """All strings of a field."""
        ...


def graph_ends_in(reader: GraphReader, graph: Any) -> str:
    """The endings of the graph's outputs in words: `a softmax`, or of several `logits: a linear layer, ...`."""
    found = of_graph(nodes_of(reader, graph))
    names = [reader.text(reader.message(span), 1) for span in reader.spans(graph, _OUTPUTS)]
    text = [(name, found.get(name, UNKNOWN).text) for name in names[:_MOST_SHOWN]]
    if len(text) == 1:
        return text[0][1]
    return ", ".join(f"{name}: {ending}" for name, ending in text)


def nodes_of(reader: GraphReader, graph: Any) -> Iterator[Node]:
    """The nodes of a graph, in the order of the file."""
    for node in map(reader.message, reader.spans(graph, _NODES)):
        takes, makes = reader.texts(node, _TAKES)[:_LONGEST], reader.texts(node, _MAKES)[:_LONGEST]
        yield Node(reader.text(node, _OPERATOR), tuple(takes), tuple(makes))
