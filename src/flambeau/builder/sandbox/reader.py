"""Convert a torch file to safetensors in a throw-away process that locks itself in before it unpickles (T-01, T-02,
T-04).

    reading = reader.start(file, folder=folder, where=("state_dict",))   # returns at once; the other process starts
    ...
    weights = reading.result(progress=show)                              # a safetensors file in `folder`

This module starts that process, enforces its time limit, relays its messages and trusts none of them. It never opens
the torch file itself. The process runs `flambeau.builder.sandbox`, the sandbox is `flambeau.builder.sandbox.lockdown`.

Not covered: bugs in the kernel behind the system calls that remain (reading, mapping and writing memory), and the
values. A weights file can hold any numbers, and a network trained to mislead reads like any other.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from flambeau import checkpoints
from flambeau.builder.sandbox import LONGEST_LINE, Read, ReaderMessage, ReadRefused, ReadRequest, TensorsWritten
from flambeau.errors import SourceError
from flambeau.system.process import spawn_child

OUTPUT = "read.safetensors"
"""The name of the file written to `folder`."""

_SECONDS = 120.0  # for an empty file, on a machine that is busy with other builds
_BYTES_PER_SECOND = 5_000_000  # of a slow network disk
_LONGEST_SENTENCE = 2000  # characters
_ENVIRONMENT = (
    "PATH",
    "LANG",
    "LC_ALL",
    "HOME",
    "TMPDIR",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "SYSTEMROOT",
)
_SINGLE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def single_threaded_environment() -> dict[str, str]:
    """The environment for a throw-away process: no secrets, and one thread."""
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return kept | dict.fromkeys(_SINGLE_THREAD, "1")


ReadProgress = Callable[[int, int], None]


def start(path: Path, *, folder: Path, where: tuple[str, ...]) -> "FileReading":
    """Start reading the mapping of tensors at `where` in the torch file `path` (see
    `checkpoints.report.TensorMapping`).

    Returns at once. Call it from a thread that outlives the reading: the other process ends with that thread.
    """
    request = ReadRequest(str(path.resolve()), str(folder.resolve() / OUTPUT), os.getpid(), where)
    process = spawn_child(
        "flambeau.builder.sandbox", msgspec.json.encode(request).decode(), environment=single_threaded_environment()
    )
    return FileReading(path, folder / OUTPUT, process)


class FileReading:
    """A file being read by another process, until `result` or `close`."""

    def __init__(self, path: Path, output: Path, process: "subprocess.Popen[bytes]") -> None:
        self._path = path
        self._output = output
        self._process = process
        self._began = time.monotonic()
        self._whole = False
        self.sandbox = ""
        """The sandbox layers of the other process, in words; set by `result`."""

    @property
    def pid(self) -> int:
        """The id of the other process."""
        return self._process.pid

    def result(self, *, progress: ReadProgress | None = None, timeout: float | None = None) -> Path:
        """Wait for the safetensors file, which has the torch file's keys, and return its path.

        `progress` is called with (bytes written, bytes in total) while a large file is read. `timeout` is in seconds
        since the start; by default it grows with the file. Raises `SourceError`.
        """
        seconds = timeout or _SECONDS + _size(self._path) // _BYTES_PER_SECOND
        late = threading.Event()

        def kill() -> None:
            late.set()
            self._process.kill()

        watch = threading.Timer(max(0.0, self._began + seconds - time.monotonic()), kill)
        watch.daemon = True
        watch.start()
        try:
            said = self._listen(progress)
            code = self._process.wait()
            if isinstance(said, ReadRefused):
                raise SourceError(printable_text(said.reason))
            if late.is_set():
                raise SourceError(f"{self._path.name} was not read within {seconds:g} s: fetch or save it again")
            if said is None or code:
                raise SourceError(f"the process that read {self._path.name} {_ending(code)}")
            self._verify()
            self.sandbox = printable_text(said.sandbox)
            self._whole = True
        finally:
            watch.cancel()
            self.close()
        return self._output

    def close(self) -> None:
        """End the other process if it still runs, and delete its output unless that is complete."""
        self._process.kill()
        self._process.wait()
        _pipe(self._process).close()
        if not self._whole:
            self._output.unlink(missing_ok=True)

    def _listen(self, progress: ReadProgress | None) -> Read | ReadRefused | None:
        """The last message of the other process, if it sent one."""
        for message in self._messages():
            if not isinstance(message, TensorsWritten):
                return message
            if progress is not None:
                progress(message.done, message.total)
        return None

    def _messages(self) -> Iterator[ReaderMessage]:
        pipe = _pipe(self._process)
        while line := pipe.readline(LONGEST_LINE):
            try:
                yield msgspec.json.decode(line, type=ReaderMessage)
            except msgspec.MsgspecError:
                raise SourceError(
                    f"the process that read {self._path.name} was taken over by it, and was killed: do not use the file"
                ) from None

    def _verify(self) -> None:
        """Check the output: a file written by a process that read an untrusted file is itself untrusted."""
        report = checkpoints.examine(self._output)
        if (report.format, report.verdict) != ("safetensors", "data"):
            raise SourceError(
                f"the process that read {self._path.name} did not write safetensors ({report.reason}): "
                "do not use the file"
            )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # the other process reports it better
        return 0


def _pipe(process: "subprocess.Popen[bytes]") -> IO[bytes]:
    assert process.stdout is not None  # `start` asked for a pipe
    return process.stdout


def printable_text(sentence: str) -> str:
    """Untrusted text made safe to show on a terminal."""
    return "".join(char if char.isprintable() else "?" for char in sentence[:_LONGEST_SENTENCE])


def _ending(code: int) -> str:
    """How a process ended that gave no reason."""
    if code >= 0:
        return f"ended with exit code {code} and no message: this is a bug in Flambeau, please report it"
    name = str(-code)
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
    why = {
        "SIGKILL": "this machine may have too little memory",
        "SIGXCPU": "it computed for longer than any file of this size takes: do not use the file",
        "SIGSYS": "it tried what its sandbox forbids: do not use the file",
    }.get(name, "the file is damaged, or made to do this: fetch or save it again")
    return f"was ended by {name}: {why}"
