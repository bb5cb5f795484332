"""The load generator: compiled from load.c when it is missing or old, and run for one window."""

import os
import shutil
import subprocess
from pathlib import Path

import msgspec

from benchmarks.environments import WORK

SOURCE = Path(__file__).with_name("load.c")
_PROGRAM = WORK / "load"
_PATIENCE = 30.0  # seconds beyond the longest window


class LoadError(Exception):
    """There is no load generator, or it did not do its work; the message says what to do."""


class Window(msgspec.Struct, frozen=True):
    """What one window measured. Times are milliseconds; `cores` is what the client itself took of them."""

    clients: int
    good: int
    seconds: float
    per_second: float
    p50_ms: float
    p99_ms: float
    wrong_status: int
    wrong_text: int
    broken: int
    cores: float
    complaint: str

    @property
    def wrong(self) -> int:
        """Answers that were not right, and connections that broke."""
        return self.wrong_status + self.wrong_text + self.broken


def program() -> Path:
    """The compiled load generator. Raises `LoadError` where it cannot be compiled."""
    if _PROGRAM.exists() and _PROGRAM.stat().st_mtime >= SOURCE.stat().st_mtime:
        return _PROGRAM
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise LoadError("the load generator is written in C and no compiler is here: apt-get install gcc libc6-dev")
    _PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    fresh = _PROGRAM.with_suffix(f".{os.getpid()}")
    done = subprocess.run(
        [compiler, "-O2", "-std=gnu11", "-o", fresh, SOURCE, "-lm"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LoadError(f"{compiler} cannot compile {SOURCE.name}, which needs Linux and glibc: {done.stderr[:300]}")
    fresh.replace(_PROGRAM)
    return _PROGRAM


def run(
    request: Path, *, port: int, clients: int, text: str, seconds: float, warmup: float, fewest: int = 0,
    longest: float = 0.0,
) -> Window:  # fmt: skip
    """Send the request over and over from `clients` connections to 127.0.0.1:`port` and count the answers.

    After `warmup` seconds the window is `seconds` long; while fewer than `fewest` right answers have come it goes on,
    up to `longest` seconds. Raises `LoadError`.
    """
    command = [program(), "127.0.0.1", port, request, clients, seconds, warmup, text, fewest, longest]
    try:
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True, check=True, timeout=warmup + max(seconds, longest) + _PATIENCE,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        raise LoadError(f"the load generator ended with {error.returncode}: {error.stderr.decode()[:300]}") from error
    return msgspec.json.decode(done.stdout, type=Window)
