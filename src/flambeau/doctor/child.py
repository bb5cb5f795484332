"""Processes that try what may hang, crash, or leave something behind: started at once, asked for at the end."""

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Generic, TypeVar

import msgspec

from flambeau.system.process import ending, spawn_child

Told = TypeVar("Told")


class ProbeProcess(Generic[Told]):
    """A module of ours, run as a process. It prints one JSON object, and whatever else on standard error."""

    def __init__(self, module: str, told: type[Told], *, arguments: Sequence[str] = (), seconds: float) -> None:
        """Start it. `told` is the type of what it prints, and `seconds` how long it may take."""
        self._told = told
        self._ends = time.monotonic() + seconds
        self._seconds = seconds
        self._process = spawn_child(module, *arguments, environment=os.environ, stderr=subprocess.PIPE)

    def answer(self) -> Told | str:
        """What it printed; or why there is nothing, as the end of a sentence."""
        try:
            output, errors = self._process.communicate(timeout=max(0.0, self._ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            return f"took longer than {self._seconds:g} seconds"
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(output, type=self._told)
        last = next((line for line in reversed(errors.decode(errors="replace").splitlines()) if line.strip()), "")
        return f"ended with {ending(self._process.returncode)}" + (f": {last.strip()}" if last else "")

    def __enter__(self) -> "ProbeProcess[Told]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # it holds nothing that is worth an orderly end
        self._process.communicate()
