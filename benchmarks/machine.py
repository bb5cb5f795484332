"""Where and with what a run was made: processor, memory, versions, date."""

import contextlib
import datetime
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

from benchmarks.environments import version
from benchmarks.peers import CORES

_SHOWN = {
    "flask": ("flask", "gunicorn"),
    "litserve": ("litserve",),
    "bentoml": ("bentoml",),
    "ray": ("ray",),
    "torchserve": ("torchserve",),
    "mlserver": ("mlserver", "uvloop"),
    "mosec": ("mosec",),
}


def describe() -> dict[str, str]:
    """The machine, by what a reader would ask."""
    return {
        "processor": _line("/proc/cpuinfo", "model name"),
        "cores": str(CORES),
        "memory": f"{int(_line('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "checkout": _commit(),
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def versions(environments: Iterable[str]) -> dict[str, str]:
    """The versions of the peers' packages, and of what all share."""
    shared = {package: version("flask", package) for package in ("torch", "onnxruntime", "numpy", "pillow")}
    return shared | {
        f"{package} ({name})" if package not in (name, "flask", "gunicorn") else package: version(name, package)
        for name in environments
        for package in _SHOWN[name]
    }


def _line(file: str, key: str) -> str:
    for line in Path(file).read_text().splitlines():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return "unknown"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return done.stdout.strip() or "unknown"
    return "unknown"
