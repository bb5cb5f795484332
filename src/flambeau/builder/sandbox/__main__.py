"""The throw-away process: `python -m flambeau.builder.sandbox REQUEST`, where REQUEST is the JSON of a `ReadRequest`.

In this order, and the order is the point: bind itself to its parent; open the file, once; have its structure examined;
import torch and preload; open the output; lock itself in; and only then unpickle and write. So whatever code the file
could bring to run finds an empty room. It is answered on standard output; see `flambeau.builder.sandbox`.
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

_SLACK = 256 << 20  # bytes of memory for Python's objects: names, shapes, and what torch keeps of a tensor
_SHARING = 8  # names that a tensor may have on average: each is written out
_SMALL = 64 << 20  # bytes that any file may grow to
_CPU_SECONDS = 60
_CPU_BYTES_PER_SECOND = 20_000_000
_QUIET_BELOW = 64 << 20  # bytes of tensors; less is written before anybody looks

Say = Callable[[ReaderMessage], None]


def main() -> int:
    """Read one file. Returns the exit code."""
    request = msgspec.json.decode(sys.argv[1], type=ReadRequest)
    end_with_parent(request.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's to answer, and it ends this
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
    same = Path(f"/proc/self/fd/{file.fileno()}")  # the very file that is open, whatever its path leads to by now
    mapped = same if same.exists() else None
    opened = _identity(os.fstat(file.fileno()))
    report = checkpoints.examine(mapped or Path(request.source))
    if _identity(os.stat(mapped or request.source)) != opened:
        raise SourceError(f"{name} was exchanged while it was being read: try again when it is whole")
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

    torch.set_num_threads(1)  # and no other thread will be started, for none can be
    permitted = checkpoints.permitted_globals()
    checkpoint.preload(permitted)
    with open(request.output, "xb", opener=_private) as output:
        os.dup2(1, 2)  # what is printed from here on is the file's own choice of words
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
    """What a file of this size may take: itself once, mapped or read, one tensor that is put in order, and slack."""
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
