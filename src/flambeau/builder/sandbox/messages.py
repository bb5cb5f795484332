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
    """Which ONNX graph to open, and the shape of a row for its `input`. `memory` is bytes beside what is mapped."""

    source: str
    parent: int
    input: str
    shape: tuple[int, ...]
    memory: int
    cpu_seconds: int


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
