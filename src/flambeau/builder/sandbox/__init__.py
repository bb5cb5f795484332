"""The throw-away processes that open untrusted files. `flambeau.builder.sandbox.reader` and `flambeau.builder.graphs`
start them and read their messages.

* here: the requests (an argument, as JSON) and the replies (one line of JSON each on standard output)
* `__main__`: the process that reads a torch file, before and after it locks itself in
* `checkpoint`: loads the tensors, and preloads everything that loading them needs
* `safetensors_writer`: writes tensors as safetensors
* `onnx_graph`: the process that runs an untrusted graph
* `lockdown`, `seccomp`: the sandbox layers
"""

import msgspec

LONGEST_LINE = 65536
"""Bytes in a line. A longer one was not written by our code."""


class ReadRequest(msgspec.Struct, frozen=True):
    """What to read. Paths are absolute; `parent` is the requesting process's id, `where` a `TensorMapping.where`."""

    source: str
    output: str
    parent: int
    where: tuple[str, ...]


class GraphInput(msgspec.Struct, frozen=True, array_like=True):
    """What to try for an input. `numbers` holds the number to try it with, if it is not to be any."""

    dtype: str
    shape: tuple[int, ...]
    numbers: tuple[int, ...] = ()


class GraphRequest(msgspec.Struct, frozen=True):
    """Which ONNX graph to open, and what to try for each of its `inputs`. `memory` is in bytes beyond what is mapped
    already."""

    source: str
    parent: int
    inputs: dict[str, GraphInput]
    memory: int
    cpu_seconds: int


def row_in_words(request: GraphRequest) -> str:
    """The trial input in words: `one row of shape [3, 224, 224]`."""
    shapes = [list(each.shape[1:]) for each in request.inputs.values()]
    return f"one row of shape {', '.join(map(str, shapes))}"


class TensorsWritten(msgspec.Struct, frozen=True, tag="written"):
    """`done` of `total` bytes of tensors have been written."""

    done: int
    total: int


class Read(msgspec.Struct, frozen=True, tag="read"):
    """The work is done. `sandbox` names the layers that were in force."""

    sandbox: str


class ReadRefused(msgspec.Struct, frozen=True, tag="refused"):
    """The file was refused. `reason` is one sentence for the user."""

    reason: str


ReaderMessage = TensorsWritten | Read | ReadRefused
