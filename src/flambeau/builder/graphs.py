"""Prove that an untrusted ONNX graph can be opened and run, in a throw-away process with limits.

    graphs.prove(file, {"input": GraphInput("float32", (1, 3, 224, 224))})    # returns, or raises the user's message

The process is `flambeau.builder.sandbox.onnx_graph`. A graph that passes may still loop for ever on other numbers, so
`hold` puts wide limits on the process that goes on with it.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec

from flambeau import checkpoints
from flambeau.builder.sandbox import (
    LONGEST_LINE,
    GraphInput,
    GraphRequest,
    Read,
    ReaderMessage,
    ReadRefused,
    row_in_words,
)
from flambeau.builder.sandbox.reader import printable_text, single_threaded_environment
from flambeau.errors import SourceError
from flambeau.system.machine import usable_cores
from flambeau.system.process import cpu_alarm, ending, limit_memory, spawn_child

_MEMORY = 2 << 30  # bytes beside the weights, for one row
_TIMES = 6  # copies of the weights: read, parsed, checked, opened, optimised, and laid out anew
_CPU_SECONDS = 15
_CPU_BYTES_PER_SECOND = 20_000_000
_SLOWEST = 20  # seconds on the clock per second of processor time, on a machine that is busy with other work

_MEMORY_OF_A_BUILD = 16 << 30
_CPU_SECONDS_OF_A_BUILD = 300  # per core
_GIVEN = 10  # times that, where the graph also computes inputs that the user gave


def prove(file: Path, given: Mapping[str, GraphInput]) -> str:
    """Open the graph and run it over these inputs.

    Returns the sandbox layers in words. Raises `SourceError`.
    """
    size = _size(file)
    seconds = _CPU_SECONDS + size // _CPU_BYTES_PER_SECOND
    order = GraphRequest(str(file), os.getpid(), dict(given), memory=_MEMORY + _TIMES * size, cpu_seconds=seconds)
    process = spawn_child(
        "flambeau.builder.sandbox.onnx_graph",
        msgspec.json.encode(order).decode(),
        environment=single_threaded_environment(),
    )
    watch = threading.Timer(_SLOWEST * seconds, process.kill)
    watch.daemon = True
    watch.start()
    try:
        assert process.stdout is not None  # it is a pipe
        line = process.stdout.readline(LONGEST_LINE)
        code = process.wait()
    finally:
        watch.cancel()
        process.kill()
        process.communicate()
    said: ReaderMessage | None = None
    with contextlib.suppress(msgspec.MsgspecError):
        said = msgspec.json.decode(line, type=ReaderMessage) if line else None
    if isinstance(said, ReadRefused):
        raise SourceError(printable_text(said.reason))
    if not isinstance(said, Read) or code:
        raise SourceError(_ending(file, code, order))
    return printable_text(said.sandbox)


def _ending(file: Path, code: int, order: GraphRequest) -> str:
    what = row_in_words(order)
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return (
            f"{file.name} does not come to an end: opening it and computing {what} took more than "
            f"{order.cpu_seconds} s of one processor, or all memory of this machine"
        )
    return (
        f"{file.name} brings ONNX Runtime down ({ending(code)}) when it is opened, or computes {what}: export it again"
    )


def hold(file: Path, *, given: bool) -> None:
    """Limit this process, which goes on with the graph. `given`: it also computes inputs that the user gave."""
    if not given:
        limit_memory(_MEMORY_OF_A_BUILD + 2 * _TIMES * _size(file))
    cpu_alarm(_CPU_SECONDS_OF_A_BUILD * usable_cores() * (_GIVEN if given else 1))


def _size(file: Path) -> int:
    """The bytes of the graph and of the files beside it."""
    try:
        return sum(path.stat().st_size for path in (file, *checkpoints.files_beside(file)))
    except OSError as error:
        raise SourceError(f"{file.name} cannot be read: {error.strerror}") from error
