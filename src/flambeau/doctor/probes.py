"""What may hang, crash, or leave something behind is tried in processes: started at once, asked for at the end.

`flambeau.doctor.__main__` is what runs in them. This module imports nothing of what they try.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Generic, TypeVar

import msgspec

from flambeau.system.process import ending, spawn_child

_MODULE = "flambeau.doctor"
_SECONDS_OF_TORCH = 60.0
_SECONDS_OF_THE_SANDBOX = 20.0


class SandboxLayers(msgspec.Struct, frozen=True):
    """Which layers stand, as `flambeau.builder.sandbox.lockdown` has them."""

    limits: bool
    system_calls: bool
    files: bool


class TorchDevices(msgspec.Struct, frozen=True):
    """What torch sees: `made_for` is the version of CUDA or ROCm, and `None` where it was made for none."""

    version: str
    made_for: str | None
    gpus: list[str]
    mps: bool


class LoadRequest(msgspec.Struct, frozen=True):
    """The bundle that is to be loaded, and how."""

    folder: str
    engine: str
    device: str
    threshold: float | None
    allow_code: bool


class LoadResult(msgspec.Struct, frozen=True):
    """What came of loading a bundle: `error` says why it cannot be served."""

    engine: str = ""
    device: str = ""
    seconds: float = 0.0
    memory_mb: float = 0.0
    error: str = ""


Printed = TypeVar("Printed")


class ProbeProcess(Generic[Printed]):
    """A module of ours, run as a process. It prints one JSON object, and whatever else on standard error."""

    def __init__(self, module: str, kind: type[Printed], *, arguments: Sequence[str] = (), seconds: float) -> None:
        """Start it. `kind` is the type of what it prints, and `seconds` how long it may take."""
        self._kind = kind
        self._ends = time.monotonic() + seconds
        self._seconds = seconds
        self._process = spawn_child(module, *arguments, environment=os.environ, stderr=subprocess.PIPE)

    def answer(self) -> Printed | str:
        """What it printed; or why there is nothing, as the end of a sentence."""
        try:
            output, errors = self._process.communicate(timeout=max(0.0, self._ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            return f"took longer than {self._seconds:g} seconds"
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(output, type=self._kind)
        last = next((line for line in reversed(errors.decode(errors="replace").splitlines()) if line.strip()), "")
        return f"ended with {ending(self._process.returncode)}" + (f": {last.strip()}" if last else "")

    def __enter__(self) -> "ProbeProcess[Printed]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # it holds nothing that is worth an orderly end
        self._process.communicate()


def sandbox_process() -> ProbeProcess[SandboxLayers]:
    """Lock a process in as the reader of checkpoints is."""
    return ProbeProcess(_MODULE, SandboxLayers, arguments=["sandbox"], seconds=_SECONDS_OF_THE_SANDBOX)


def torch_process() -> ProbeProcess[TorchDevices]:
    """Import torch."""
    return ProbeProcess(_MODULE, TorchDevices, arguments=["torch"], seconds=_SECONDS_OF_TORCH)


def load_process(request: LoadRequest, *, seconds: float) -> ProbeProcess[LoadResult]:
    """Load a bundle and warm it up as a worker does."""
    return ProbeProcess(_MODULE, LoadResult, arguments=["load", msgspec.json.encode(request).decode()], seconds=seconds)
