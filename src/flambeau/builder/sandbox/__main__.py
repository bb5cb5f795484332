"""The process that reads a torch file: `python -m flambeau.builder.sandbox REQUEST`, with a `ReadRequest` as JSON.

The order of its steps matters: tie its life to its parent; open the file, once; examine the file's structure; import
torch and preload; open the output; lock itself in; only then unpickle and write. Any code that the file manages to run
therefore has nothing to reach. Replies go to standard output; see `flambeau.builder.sandbox`.
"""

import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from flambeau import checkpoints
from flambeau.builder.sandbox import Read, ReaderMessage, ReadRefused, ReadRequest, TensorsWritten, lockdown
from flambeau.checkpoints.report import Report, TensorMapping
from flambeau.errors import SetupError, SourceError
from flambeau.system.process import end_with_parent
from flambeau.system.staging import no_space, no_space_at

_SLACK = 256 << 20  # bytes of memory for Python's objects: names, shapes, and torch's own data for each tensor
_SHARING = 8  # names that may share a tensor on average: each is written out in full
_SMALL = 64 << 20  # bytes that the output may reach beyond that, however small the file
_CPU_SECONDS = 60
_CPU_BYTES_PER_SECOND = 20_000_000
_QUIET_BELOW = 64 << 20  # bytes of tensors; less is written too quickly to need progress

Say = Callable[[ReaderMessage], None]


def main() -> int:
    """Read one file. Returns the exit code."""
    request = msgspec.json.decode(sys.argv[1], type=ReadRequest)
    end_with_parent(request.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles a terminal's Ctrl-C, and ends this process
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)

    def say(message: ReaderMessage) -> None:
        channel.write(msgspec.json.encode(message) + b"\n")

    name = Path(request.source).name
    try:
        with open(request.source, "rb") as file:
            held = _read(file, request, name=name, say=say)
    except SetupError as error:
        say(ReadRefused(str(error)))
    except MemoryError:
        say(ReadRefused(f"{name} takes more memory to read than a file of its size should: do not use the file"))
    except OSError as error:
        if no_space(error):
            say(ReadRefused(no_space_at(Path(request.output).parent)))
            return 0
        say(ReadRefused(f"{name} cannot be read ({error.strerror or error}): check the file"))
    except Exception as error:
        say(ReadRefused(f"reading {name} failed unexpectedly ({type(error).__name__}: {error}): please report it"))
    else:
        say(Read(str(held)))
    return 0


def _read(file: IO[bytes], request: ReadRequest, *, name: str, say: Say) -> lockdown.Sandbox:
    """Read the open file and write the output, locked in. Raises `SetupError`, `OSError` and `MemoryError`."""
    same = Path(f"/proc/self/fd/{file.fileno()}")  # the file that is open, even if its path now names another
    mapped = same if same.exists() else None
    opened = _identity(os.fstat(file.fileno()))
    report = checkpoints.examine(mapped or Path(request.source), whole=True)
    if _identity(os.stat(mapped or request.source)) != opened:
        raise SourceError(f"{name} was replaced while it was being read: try again when it is whole")
    if report.verdict != "data":
        raise SourceError(f"{name} {report.reason}: {report.remedy}")
    entry = next((each for each in report.entries if each.where == request.where), None)
    if entry is None:
        raise SourceError(
            f"{name} holds no tensors at {'.'.join(request.where) or 'its top'}: name another --weights-key"
        )

    from flambeau.builder.requirements import require_torch

    require_torch()
    import torch

    from flambeau.builder.sandbox import checkpoint, safetensors_writer

    torch.set_num_threads(1)  # the sandbox allows no other thread to start
    permitted = checkpoints.permitted_globals()
    checkpoint.preload(permitted)
    with open(request.output, "xb", opener=_private) as output:
        os.dup2(1, 2)  # discard standard error: from here on the file may control what is printed
        held = lockdown.enter(_limits(report, entry, name), readable=(file.fileno(),))
        loaded = checkpoint.load(file, mapped, report, name=name, permitted=permitted)
        tensors = checkpoint.find(loaded, entry, name=name)

        def tell(done: int, total: int) -> None:
            if total >= _QUIET_BELOW:
                say(TensorsWritten(done, total))

        safetensors_writer.write(tensors, output, say=tell)
    if _identity(os.fstat(file.fileno())) != opened:
        raise SourceError(f"{name} was changed while it was being read: try again when it is whole")
    return held


def _limits(report: Report, entry: TensorMapping, name: str) -> lockdown.Limits:
    """The limits for a file of this size. Memory: the file once (mapped or read), one contiguous copy of its largest
    tensor, and slack."""
    import torch

    sizes = [0]
    for key, told in entry.tensors.items():
        dtype = getattr(torch, told.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise SourceError(f"{name} holds {key!r} as {told.dtype}, which torch {torch.__version__} does not know")
        sizes.append(math.prod(told.shape) * dtype.itemsize)
    total = sum(sizes)
    if total > _SHARING * report.size + _SMALL:
        raise SourceError(
            f"{name} has {report.size} bytes, and its tensors have {total} when written out: do not use the file"
        )
    names = sum(len(key.encode()) * 6 + 32 * len(told.shape) + 128 for key, told in entry.tensors.items())  # as JSON
    return lockdown.Limits(
        memory=report.size + max(sizes) + _SLACK,
        file_bytes=total + names + 4096,
        cpu_seconds=_CPU_SECONDS + report.size // _CPU_BYTES_PER_SECOND,
    )


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


if __name__ == "__main__":
    sys.exit(main())
