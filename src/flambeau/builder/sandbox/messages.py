"""What the process that reads is told, as an argument, and says, a line of JSON each on its standard output."""

import msgspec

LONGEST_LINE = 65536
"""Bytes of a line. Whoever says more is not the process that was started."""


class ReadOrder(msgspec.Struct, frozen=True):
    """What to read. Paths are absolute; `parent` is the process that asks, and `where` an `Entry.where`."""

    source: str
    output: str
    parent: int
    where: tuple[str, ...]


class GraphOrder(msgspec.Struct, frozen=True):
    """Which ONNX graph to open, and dtype and shape of what each of its `inputs` is tried with. `memory` is bytes
    beside what is mapped."""

    source: str
    parent: int
    inputs: dict[str, tuple[str, tuple[int, ...]]]
    memory: int
    cpu_seconds: int


def row_in_words(order: GraphOrder) -> str:
    """What a graph is tried with: `one row of shape [3, 224, 224]`."""
    shapes = [list(shape[1:]) for _, shape in order.inputs.values()]
    return f"one row of shape {', '.join(map(str, shapes))}"


class TensorsWritten(msgspec.Struct, frozen=True, tag="written"):
    """`done` of `total` bytes of tensors are written."""

    done: int
    total: int


class Read(msgspec.Struct, frozen=True, tag="read"):
    """All is written. `sandbox` says what held meanwhile."""

    sandbox: str


class ReadRefused(msgspec.Struct, frozen=True, tag="refused"):
    """The file is not read. `reason` is one sentence for the user."""

    reason: str


ReaderMessage = TensorsWritten | Read | ReadRefused
