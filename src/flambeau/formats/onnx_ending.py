"""In what an ONNX graph ends, read off its nodes: their operators and the names of what they take and make."""

from collections.abc import Iterator
from typing import Any, Protocol

from flambeau.formats import endings
from flambeau.formats.endings import Node

_MOST_SHOWN = 4
_LONGEST = 1024  # names in a node; of further ones the ending is not told

# Where things lie, by the numbers of the fields in onnx.proto
_NODES, _OUTPUTS = 1, 12  # GraphProto
_TAKES, _MAKES, _OPERATOR = 1, 2, 4  # NodeProto


class Walk(Protocol):
    """Reads the messages of a file, as `onnx_file` does. Its messages and places are passed on to it, no more."""

    def message(self, span: Any, /) -> Any:
        """The fields of a message."""
        ...

    def spans(self, message: Any, number: int, /) -> list[Any]:
        """Where a repeated field lies."""
        ...

    def text(self, message: Any, number: int, /) -> str:
        """The last text of a field."""
        ...

    def texts(self, message: Any, number: int, /) -> list[str]:
        """All texts of a field."""
        ...


def told(walk: Walk, graph: Any) -> str:
    """The endings of the graph's outputs in words: `a softmax`, or of several `logits: a linear layer, ...`."""
    found = endings.of_graph(_nodes(walk, graph))
    names = [walk.text(walk.message(span), 1) for span in walk.spans(graph, _OUTPUTS)]
    said = [(name, found.get(name, endings.UNKNOWN).said) for name in names[:_MOST_SHOWN]]
    if len(said) == 1:
        return said[0][1]
    return ", ".join(f"{name}: {ending}" for name, ending in said)


def _nodes(walk: Walk, graph: Any) -> Iterator[Node]:
    for node in map(walk.message, walk.spans(graph, _NODES)):
        takes, makes = walk.texts(node, _TAKES)[:_LONGEST], walk.texts(node, _MAKES)[:_LONGEST]
        yield Node(walk.text(node, _OPERATOR), tuple(takes), tuple(makes))
