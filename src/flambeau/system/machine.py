"""What machine this is, for choices that were measured on it and hold for no other."""

import functools
import importlib.metadata
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
    """The processor's name with what it can compute: two machines that differ in either are held for different ones.

    A name alone does not tell: in a virtual machine it may be "AMD EPYC" whatever the generation.
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
    """Whether products of bytes are added in 16 bits here: on x86 processors that lack VNNI."""
    return platform.machine() in ("x86_64", "AMD64") and "vnni" not in processor()


def resident_mb() -> float:
    """The memory of this process that is in RAM now, in MiB; where the system does not say, the most it ever was."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        import resource  # not on Windows

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / MIB if sys.platform == "darwin" else most / 1024
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


# The control groups of this process (cgroups(7), versions 1 and 2): what they leave it of cores and of memory, and whom
# the kernel killed in them.
#
# A group's limits bind all groups below it, so the tightest on the way to the root counts. Only what this process can
# see of that way is asked: inside a container its upper end is hidden. Elsewhere than on Linux nothing is limited.


T = TypeVar("T")

_ROOT = Path("/")
_ASSUMED_MEMORY = 1 << 30  # bytes, where no system says how much there is


def cpu_quota(root: Path = _ROOT) -> float | None:
    """The cores whose time this process may use, by the tightest quota. `None` where there is none.

    `root`: where `proc` and the mount points of the groups are looked for.
    """
    return min(_of_groups("cpu", _quota, root), default=None)


def memory_limit(root: Path = _ROOT) -> int:
    """The bytes of memory that this process may use at most, with all that is in its groups: the least of what the
    groups allow and what the machine has.
    """
    return min([_physical_memory(), *_of_groups("memory", _memory, root)])


def oom_kills(root: Path = _ROOT) -> int:
    """How many processes the kernel has killed so far for want of memory: in this process's group, or where no group
    counts them on the whole machine.
    """
    nearest = next(_of_groups("memory", _killed, root), None)  # it counts whoever's limit it was
    return _counters(root / "proc/vmstat").get("oom_kill", 0) if nearest is None else nearest


def _of_groups(controller: str, read: Callable[[Path], T | None], root: Path) -> Iterator[T]:
    """What is known of this process's own group of a controller, and of each one above it, in that order."""
    for group in _groups(controller, root):
        try:
            found = read(group)
        except (OSError, ValueError, IndexError):  # no such limit here: the root has none, and version 2 may lack it
            continue
        if found is not None:
            yield found


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's groups, from its own to the mount point, of version 1 and then of version 2."""
    memberships = _memberships(root)
    for mount in _mounts(root):
        path = memberships.get("" if mount.kind == "cgroup2" else controller)
        if path is None or (mount.kind == "cgroup" and controller not in mount.options):
            continue
        top = root / mount.point.lstrip("/")
        try:  # a container may be shown its own group alone, or a path as another namespace sees it
            below = PurePosixPath(path).relative_to(mount.group)
        except ValueError:
            below = PurePosixPath()
        own = top / below if ".." not in below.parts and (top / below).is_dir() else top
        yield own
        while own != top:
            own = own.parent
            yield own


def _memberships(root: Path) -> dict[str, str]:
    """The path of this process's group by controller; that of version 2 under the empty name."""
    found: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        found |= dict.fromkeys(controllers.split(","), path)
    return found


@dataclass(frozen=True, slots=True)
class _Mount:
    """A hierarchy of groups: its mount point, and the path of the group that is seen there."""

    kind: str
    options: list[str]
    group: str
    point: str


def _mounts(root: Path) -> list[_Mount]:
    """The hierarchies that are mounted, those of version 1 first (proc(5), /proc/self/mountinfo)."""
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
    # Version 1 says here what groups above demand, also those that a container does not see.
    above = _counters(group / "memory.stat").get("hierarchical_memory_limit")
    own = int((group / "memory.limit_in_bytes").read_text())
    return own if above is None else min(own, above)


def _killed(group: Path) -> int | None:
    return (_counters(group / "memory.events") or _counters(group / "memory.oom_control")).get("oom_kill")


def _counters(file: Path) -> dict[str, int]:
    """A file of the kernel with a name and a whole number in each line."""
    return {name: int(number) for name, number in (line.split() for line in _lines(file))}


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return _ASSUMED_MEMORY


# How an extra of Flambeau is added to this installation, as a command that works here.


@functools.cache
def pip_install(extra: str) -> str:
    """The command, for sentences. What was installed from a folder is on no index: there the folder is named."""
    return "pip install " + shlex.quote(f"{_origin() or 'flambeau'}[{extra}]")


def _origin() -> str | None:
    """The folder that this installation was made from (PEP 610), where it was one and is still there."""
    try:
        told = json.loads(importlib.metadata.distribution("flambeau").read_text("direct_url.json") or "{}")
        folder = unquote(urlsplit(told["url"]).path) if "dir_info" in told else ""
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError):
        return None
    return folder if folder and Path(folder, "pyproject.toml").is_file() else None
