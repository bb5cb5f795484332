"""The machine: its processor and memory, the limits of the process's control groups, and how an extra is installed.

The processor's name identifies the machine for choices that were measured on it and hold for no other.
"""

import functools
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import unquote, urlsplit

MIB = 1024 * 1024


@functools.cache
def processor() -> str:
    """The processor's name and instruction sets. Two machines that differ in either count as different.

    The name alone is not enough: in a virtual machine it may be "AMD EPYC" for every generation.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    found = dict(line.partition(":")[::2] for line in reversed(lines))  # the first core's lines win
    known = {name.strip(): value.strip() for name, value in found.items()}
    units = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "asimd", "sve", "i8mm", "bf16"}
    flags = units & set(known.get("flags", known.get("Features", "")).split())
    return " ".join([known.get("model name", platform.machine()), *sorted(flags)])


def saturates() -> bool:
    """Whether int8 products are summed in 16 bits, as on x86 processors without VNNI."""
    return platform.machine() in ("x86_64", "AMD64") and "vnni" not in processor()


def resident_mb() -> float:
    """The resident memory of this process in MiB; its peak, if the system does not give the present value."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        import resource  # not on Windows

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / MIB if sys.platform == "darwin" else most / 1024
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


# The control groups of this process (cgroups(7), versions 1 and 2): their limits on cores and memory, and their
# out-of-memory kills. A group's limits bind all groups below it, so the tightest on the way to the root counts; inside
# a container the upper end of that way is hidden. Except on Linux, nothing is limited.


T = TypeVar("T")

_ROOT = Path("/")
_ASSUMED_MEMORY = 1 << 30  # bytes, if the system does not say how much there is


def cpu_quota(root: Path = _ROOT) -> float | None:
    """The cores whose time this process may use, by the tightest quota; `None` without a quota.

    `root`: the folder in which `proc` and the mount points of the groups are looked for.
    """
    return min(_of_groups("cpu", _quota, root), default=None)


def memory_limit(root: Path = _ROOT) -> int:
    """The bytes of memory that this process and all others in its groups may use together: the least of the groups'
    limits and the machine's memory.
    """
    return min([_physical_memory(), *_of_groups("memory", _memory, root)])


def oom_kills(root: Path = _ROOT) -> int:
    """How many processes the kernel has killed for want of memory so far: in this process's group, or, if no group
    counts them, on the whole machine.
    """
    nearest = next(_of_groups("memory", _killed, root), None)  # it counts every kill, whichever group's limit it was
    return _counters(root / "proc/vmstat").get("oom_kill", 0) if nearest is None else nearest


def _of_groups(controller: str, read: Callable[[Path], T | None], root: Path) -> Iterator[T]:
    """What `read` finds in this process's group of a controller, and in each group above it, in that order."""
    for group in _groups(controller, root):
        try:
            found = read(group)
        except (OSError, ValueError, IndexError):  # no such limit: the root has none, and version 2 may lack the file
            continue
        if found is not None:
            yield found


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's groups, from its own up to the mount point; version 1 first, then version 2."""
    memberships = _memberships(root)
    for mount in _mounts(root):
        path = memberships.get("" if mount.kind == "cgroup2" else controller)
        if path is None or (mount.kind == "cgroup" and controller not in mount.options):
            continue
        top = root / mount.point.lstrip("/")
        try:  # a container may see only its own group, or a path of another namespace
            below = PurePosixPath(path).relative_to(mount.group)
        except ValueError:
            below = PurePosixPath()
        own = top / below if ".." not in below.parts and (top / below).is_dir() else top
        yield own
        while own != top:
            own = own.parent
            yield own


def _memberships(root: Path) -> dict[str, str]:
    """The path of this process's group by controller; the path in version 2 has the empty name."""
    found: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        found |= dict.fromkeys(controllers.split(","), path)
    return found


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted hierarchy of groups: its mount point, and the path of the group that is visible there."""

    kind: str
    options: list[str]
    group: str
    point: str


def _mounts(root: Path) -> list[_Mount]:
    """The mounted hierarchies, those of version 1 first (proc(5), /proc/self/mountinfo)."""
    found = []
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            group, point = (_unescape(each) for each in before.split(" ")[3:5])
            found.append(_Mount(kind, options.split(","), group, point))
    return sorted(found, key=lambda mount: mount.kind)


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not Linux, or /proc is hidden
        return []


def _quota(group: Path) -> float | None:
    file = group / "cpu.max"
    if file.exists():
        quota, period = file.read_text().split()
    else:
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _memory(group: Path) -> int | None:
    file = group / "memory.max"
    if file.exists():
        text = file.read_text().strip()
        return None if text == "max" else int(text)
    # Version 1 includes the limits of the groups above, even of those that a container does not see.
    above = _counters(group / "memory.stat").get("hierarchical_memory_limit")
    own = int((group / "memory.limit_in_bytes").read_text())
    return own if above is None else min(own, above)


def _killed(group: Path) -> int | None:
    return (_counters(group / "memory.events") or _counters(group / "memory.oom_control")).get("oom_kill")


def _counters(file: Path) -> dict[str, int]:
    """Read a kernel file with a name and a whole number in each line."""
    return {name: int(number) for name, number in (line.split() for line in _lines(file))}


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return _ASSUMED_MEMORY


@functools.cache
def pip_install(extra: str) -> str:
    """The command that adds an extra to this installation, for messages. If Flambeau was installed from a folder, the
    command names the folder: no index has it.
    """
    return "pip install " + shlex.quote(f"{_origin() or 'flambeau'}[{extra}]")


def _origin() -> str | None:
    """The folder that this installation was made from (PEP 610), if it was a folder and still exists."""
    import importlib.metadata  # with a parser of mail; only messages need it

    try:
        told = json.loads(importlib.metadata.distribution("flambeau").read_text("direct_url.json") or "{}")
        folder = unquote(urlsplit(told["url"]).path) if "dir_info" in told else ""
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError):
        return None
    return folder if folder and Path(folder, "pyproject.toml").is_file() else None


def usable_cores() -> int:
    """The cores this process may use: its affinity mask, cut to the CPU quota of its control groups."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return allowed if quota is None else min(allowed, max(1, round(quota)))


@dataclass(frozen=True)
class CpuBudget:
    """How many replicas run, and how many threads each engine may use."""

    replicas: int
    threads: int


def place(replicas: int | None, threads: int | None, *, default: int, cores: int) -> CpuBudget:
    """Share `cores` between replicas: the one place where the thread budget is decided.

    OpenMP and spinning thread pools slow down sharply with more runnable threads than cores, so a replica gets
    `cores // replicas` threads and at least one. More only if the user asks for more replicas or threads. Example: 8
    cores and 2 replicas give 4 threads each.
    """
    count = replicas or default
    return CpuBudget(replicas=count, threads=threads or max(1, cores // count))
