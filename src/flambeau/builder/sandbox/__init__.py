"""The throw-away processes that open foreign files; `flambeau.builder.sandbox.reader` starts one and listens to it.

* here: what such a process is told, as an argument, and says, a line of JSON each on its standard output
* `__main__`: the life of the one that reads a torch file, until it locks itself in, and from then on
* `checkpoint`: the file to tensors, and all that this takes, done once before
* `safetensors_writer`: tensors to safetensors
* `onnx_graph`: the one that runs a foreign graph
* `lockdown`, `seccomp`: the lock
"""

import msgspec

LONGEST_LINE = 65536
"""Bytes of a line. Whoever says more is not the process that was started."""


class ReadRequest(msgspec.Struct, frozen=True):
    """What to read. Paths are absolute; `parent` is the process that asks, and `where` an `Entry.where`."""

    source: str
    output: str
    parent: int
    where: tuple[str, ...]


class GraphRequest(msgspec.Struct, frozen=True):
    """Which ONNX graph to open, and dtype and shape of what each of its `inputs` is tried with. `memory` is bytes
    beside what is mapped."""

    source: str
    parent: int
    inputs: dict[str, tuple[str, tuple[int, ...]]]
    memory: int
    cpu_seconds: int


def row_in_words(request: GraphRequest) -> str:
    """What a graph is tried with: `one row of shape [3, 224, 224]`."""
    shapes = [list(shape[1:]) for _, shape in request.inputs.values()]
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
