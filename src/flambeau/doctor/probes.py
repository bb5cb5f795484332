"""Probes that may hang, crash or leave something behind run in processes: started at once, collected at the end.

`flambeau.doctor.__main__` runs in them. This module imports nothing that they try.
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
    """Which sandbox layers work, by the names of `flambeau.builder.sandbox.lockdown`."""

    limits: bool
    system_calls: bool
    files: bool


class TorchDevices(msgspec.Struct, frozen=True):
    """The devices that torch sees. `made_for` is its version of CUDA or ROCm, `None` if it was made for neither."""

    version: str
    made_for: str | None
    gpus: list[str]
    mps: bool


class LoadRequest(msgspec.Struct, frozen=True):
    """The bundle to load, and its settings."""

    folder: str
    engine: str
    device: str
    threshold: float | None
    allow_code: bool


class LoadResult(msgspec.Struct, frozen=True):
    """The result of loading a bundle. `error` says why it cannot be served; empty if it can."""

    engine: str = ""
    device: str = ""
    seconds: float = 0.0
    memory_mb: float = 0.0
    error: str = ""


Printed = TypeVar("Printed")


class ProbeProcess(Generic[Printed]):
    """A module of ours, run as a process. It prints one JSON object; everything else goes to standard error."""

    def __init__(self, module: str, kind: type[Printed], *, arguments: Sequence[str] = (), seconds: float) -> None:
        """Start the process. `kind` is the type of its result, and `seconds` is how long it may take."""
        self._kind = kind
        self._ends = time.monotonic() + seconds
        self._seconds = seconds
        self._process = spawn_child(module, *arguments, environment=os.environ, stderr=subprocess.PIPE)

    def answer(self) -> Printed | str:
        """Its result; or the reason why there is none, as the end of a sentence."""
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
        self._process.kill()  # it has nothing that needs an orderly end
        self._process.communicate()


def sandbox_process() -> ProbeProcess[SandboxLayers]:
    """Start a process in the sandbox of the checkpoint reader."""
    return ProbeProcess(_MODULE, SandboxLayers, arguments=["sandbox"], seconds=_SECONDS_OF_THE_SANDBOX)


def torch_process() -> ProbeProcess[TorchDevices]:
    """Start a process that imports torch."""
    return ProbeProcess(_MODULE, TorchDevices, arguments=["torch"], seconds=_SECONDS_OF_TORCH)


def load_process(request: LoadRequest, *, seconds: float) -> ProbeProcess[LoadResult]:
    """Start a process that loads a bundle and warms it up as a worker does."""
    return ProbeProcess(_MODULE, LoadResult, arguments=["load", msgspec.json.encode(request).decode()], seconds=seconds)
